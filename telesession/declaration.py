"""`with_session` and its `Declaration`. `_handler` wraps handlers, `_visit` opens sessions."""

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, overload

from telesession import keys as key_functions
from telesession._checks import checked_callable, checked_seconds, has_bare_when, short_repr
from telesession._handler import Condition, is_update, may_be, wrap
from telesession._options import Busy, Options, check_known
from telesession._several import listed, peeked
from telesession._visit import FullVisit, in_use
from telesession.codecs import Codec
from telesession.errors import SessionUnavailable

Handler = TypeVar("Handler", bound=Callable[..., Any])
_P = ParamSpec("_P")
if TYPE_CHECKING:  # Python has defaults of type variables from 3.13 on
    from typing_extensions import TypeVar as TypeVarWithDefault

    Data = TypeVarWithDefault("Data", default=dict[str, Any])
else:
    Data = TypeVar("Data")
_MISSING: Any = object()
_SEVERAL = "open(keys=['1:99', '2:99'])"
_OF_UPDATES = "open(keys=[session.key(message), session.key(reply)])"
_KEYS = {  # by the id of a key function: an example of its keys, for messages
    id(key_functions.user): "message.from_user.id",
    id(key_functions.chat): "message.chat.id",
}
_BARE = "when goes above a handler with parentheses: @session.when(step='name')"


class _Mistakes:
    """Messages for a declaration that is used as a session; type checkers see none of this."""

    if not TYPE_CHECKING:

        def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
            raise TypeError(_NO_SESSION.format(property=self.property))

        __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = _refuse
        __enter__ = __exit__ = _refuse

        def __bool__(self) -> bool:  # without it, `bool` would call `__len__`
            return True

        def __getattr__(self, name: str) -> NoReturn:
            what = f"'Declaration' object has no attribute {name!r}"
            if hasattr(dict, name) and not name.startswith("_"):
                what = _NO_SESSION.format(property=self.property)
            raise AttributeError(what)

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not hasattr(type(self), name):
                raise AttributeError(
                    f"{name!r} can't be set on a declaration: its options are given to "
                    "with_session, and its sessions are dicts on their updates: "
                    f"message.{self.property}['n'] = 1"
                )
            super().__setattr__(name, value)


_NO_SESSION = (
    "this is the declaration of sessions, and not one of them: in a handler the session is on its "
    "update, message.{property}['n'] = 1, and elsewhere `with session.open(message) as data:` "
    "opens it"
)


class Declaration(_Mistakes, Generic[Data]):
    """One session as `with_session` declares it; decorates any number of handlers.

    To type checkers a session is the `TypedDict` that ``initial`` is, or else a ``dict[str, Any]``.
    """

    def __init__(self, options: Options) -> None:
        self._options = options

    @property
    def key(self) -> Callable[[Any], key_functions.Key]:
        """The key function."""
        return self._options.key

    @property
    def store(self) -> Any:
        """The store as it was given, or the process-wide `MemoryStore`."""
        return self._options.given_store

    @property
    def ttl(self) -> float | None:
        """Seconds after which a session that no update opened expires, or `None`.

        A new value counts for each session from its next save.
        """
        return self._options.ttl

    @ttl.setter
    def ttl(self, ttl: float | timedelta | None) -> None:
        self._options.ttl = None if ttl is None else checked_seconds("ttl", ttl)

    def __call__(self, handler: Handler = _MISSING, /) -> Handler:
        if handler is _MISSING:
            raise TypeError(
                "a declaration goes above a handler without parentheses: @session. Only "
                "@with_session() has them, with options or without"
            )
        if isinstance(handler, Declaration):
            raise TypeError(
                "a declaration goes above a handler, and not above the one of "
                f"{handler.property!r}: for both sessions write both above the handler"
            )
        return wrap(self._options, handler)

    def when(
        self,
        *conditions: Callable[[Data], object] | Callable[[Data, Any], object],
        **values: object,
    ) -> Callable[[Handler], Handler]:
        """A decorator for a handler that runs only in some states of the session.

        ::

            @bot.message_handler(func=lambda m: True)
            @session.when(step="name")
            def take_name(message): ...

        The session is locked and loaded. The handler runs if the session has all ``values`` and all
        ``conditions`` are true. As a value, `None` also matches a key that is missing, a set
        matches any of its members, and a `State` stands for its name. Else pyTelegramBotAPI goes on
        to its next handler. The session stays locked until a handler has run or none matched, so no
        other update comes in between. Conditions must not change the session.

        ::

            @session.when(step={"name", "age"})
            @session.when(lambda s, message: message.text == s.get("answer"), step="riddle")

        Args:
            conditions: functions of the session, or of the session and the update.
            values: by key, the value that the session must have.

        Raises:
            TypeError, ValueError: at decoration, for conditions or values that can't work.
        """
        if len(conditions) == 1 and not values and has_bare_when(conditions[0]):
            raise TypeError(_BARE)
        for condition in conditions:
            if not callable(condition):
                raise TypeError(
                    f"when({condition!r}) takes functions, and values by name: when(step='name')"
                )
            checked_callable("when", condition)
        if not conditions and not values:
            raise TypeError("when() needs something to tell by, such as when(step='name')")
        condition = Condition(conditions, values)

        def decorate(handler: Handler) -> Handler:
            if not callable(getattr(handler, "__func__", handler)):  # an update: `when` was bare
                raise TypeError(_BARE)
            return wrap(self._options, handler, condition)

        return decorate

    @overload
    def open(self, update: Any, *, apart: bool = False) -> AbstractContextManager[Data]: ...
    @overload
    def open(self, *, key: str | int, apart: bool = False) -> AbstractContextManager[Data]: ...
    @overload
    def open(
        self, *, keys: Sequence[str | int], apart: bool = False
    ) -> AbstractContextManager[list[Data]]: ...
    @contextlib.contextmanager
    def open(
        self,
        update: Any = _MISSING,
        *more: Any,
        key: Any = _MISSING,
        keys: Sequence[Any] = _MISSING,
        apart: bool = False,
    ) -> Iterator[Any]:
        """The session outside a handler: in a timer, a thread, a command for another user.

        >>> wallet = with_session(key=key_functions.user, store={}, initial=lambda: {"coins": 10})
        >>> with wallet.open(key=42) as data:
        ...     data["coins"] += 1
        >>> with wallet.open(keys=[42, 43]) as (mine, theirs):
        ...     mine["coins"] -= 5
        ...     theirs["coins"] += 5
        >>> wallet.peek(key=42), wallet.peek(key=43)
        ({'coins': 6}, {'coins': 15})

        The session is locked, loaded, saved and refused as in a handler. Inside of a handler with
        sessions, or of another block, the block is a part of that one: all sessions are saved
        together, all or none, and stay locked until then; a session that is open there already is
        joined. The block waits for a session that is in use, whatever ``busy`` says.

        Args:
            update: the update whose session is opened, by the declaration's key function; or
            key: the session's key; or
            keys: a list of several distinct keys, for a list of sessions in this order. That can't
                deadlock with other handlers if the thread has none of the sessions open yet.
            apart: whether to save and unlock at the end of the block, also inside a handler: for
                a loop over many sessions. A session that the handler has open is joined anyway.

        Raises:
            TypeError, ValueError: none of these was given, or more than one; a key twice.
            SessionUnavailable: the update has no session.
            SessionBusy: another handler had it for ``lock_timeout`` seconds, or waits for this one.
            SessionError: as a handler would raise it.
        """
        self._check("open", update, key, keys, more)
        names = [self._name(update, one) for one in (keys if keys is not _MISSING else [key])]
        if len(set(names)) < len(names):
            raise ValueError(f"open(keys={keys!r}): each key may be given once only")
        with self._block(names, apart=apart) as found:
            yield found if keys is not _MISSING else found[0]

    def keys(self) -> Iterator[str]:
        """The keys of the stored sessions of this declaration, as text.

        >>> session = with_session(store={"session:42:42": '{"n":1}', "other:42": "{}"})
        >>> for key in session.keys():
        ...     with session.open(key=key, apart=True) as data:
        ...         print(key, data)
        42:42 {'n': 1}

        No session is loaded or locked. Expired ones are left out; those that come or go meanwhile
        may be missing or not. The store is asked page by page, so there may be any number. Open
        sessions in the loop with ``apart=True``, or in a handler without sessions: else they
        stay locked until the handler around the loop ends.

        Raises:
            SessionStoreError: the store can't list what it keeps, or failed.
        """
        options = self._options
        names = listed(options.store, options.prefix)
        return (name[len(options.prefix) :] for name in names)

    @overload
    def peek(self, update: Any) -> Data | None: ...
    @overload
    def peek(self, *, key: str | int) -> Data | None: ...
    def peek(self, update: Any = _MISSING, *, key: Any = _MISSING) -> Any:
        """A copy of the stored session, or `None`: for filters and middlewares that only read.

        >>> session = with_session(store={"session:42:42": '{"admin":true}'})
        >>> session.peek(key="42:42"), session.peek(key="43:43")
        ({'admin': True}, None)

        As in ``@bot.message_handler(func=lambda m: (session.peek(m) or {}).get("admin"))``.

        It neither waits nor locks, and begins no new ttl. In a handler that has the session, it
        copies the session's present content. For an update without a session it is `None`.

        Args:
            update: the update whose session is read; or
            key: the session's key.

        Raises:
            TypeError: neither was given, or both.
            SessionDataError: the stored data can't be read.
            SessionStoreError: the store failed.
        """
        self._check("peek", update, key)
        options = self._options
        name = options.name(update) if key is _MISSING else self._name(update, key)
        if name is None:
            return None
        mine = in_use(options, name)
        if mine is not None:
            return copy.deepcopy(mine) or None
        payload = peeked(options.store, name)
        return None if payload is None else options.decoded(name, payload)

    @overload
    def remove(self, update: Any) -> None: ...
    @overload
    def remove(self, *, key: str | int) -> None: ...
    def remove(self, update: Any = _MISSING, *, key: Any = _MISSING) -> None:
        """Remove the stored session under its lock, even if its data can't be read.

        >>> session = with_session(store={"session:42:42": "can't be read"})
        >>> session.remove(key="42:42")
        >>> session.store
        {}

        In a handler that has the session, this empties it; it is removed when the handler is saved.

        Args:
            update: the update whose session is removed; or
            key: the session's key.

        Raises:
            TypeError: neither was given, or both.
            SessionUnavailable: the update has no session.
            SessionError: as `open` raises it.
        """
        self._check("remove", update, key)
        with self._block([self._name(update, key)], blank=True) as (data,):
            data.clear()

    @contextlib.contextmanager
    def _block(
        self, names: Sequence[str], *, apart: bool = False, blank: bool = False
    ) -> Iterator[list[dict[str, Any]]]:
        visit = FullVisit(threading.get_ident())
        visit.apart = apart
        visit.blank = blank
        try:
            try:
                yield visit.enter_block(self._options, names)
                visit.save()
            finally:
                visit.leave()
        finally:
            if visit.thread:
                visit.leave()

    def _check(
        self, call: str, update: Any, key: Any, keys: Any = _MISSING, more: Sequence[Any] = ()
    ) -> None:
        """Refuse arguments that don't name one session, and say what to write instead."""
        one = sum(given is not _MISSING for given in (update, key, keys)) == 1 and not more
        listed = isinstance(keys, (list, tuple))
        wrong = next((each for each in (keys if listed else [key]) if is_update(each)), None)
        fits = update is _MISSING or is_update(update) or may_be(update, [self._options])
        if one and fits and wrong is None and (listed or keys is _MISSING):
            return
        example = _KEYS.get(id(self.key), "'42:99'")
        what = f"an update or a key: {call}(message), {call}(key={example})"
        if call == "open":
            what = f"an update, a key or keys: open(message), open(key={example}) or {_SEVERAL}"
        if more:
            what = f"one update; several sessions are opened by their keys: {_OF_UPDATES}"
        elif one and wrong is not None:
            cure = _OF_UPDATES if listed else f"{call}(message)"
            what = f"no {type(wrong).__name__} for a key: write {cure}"
        elif one and keys is not _MISSING:
            cure = _SEVERAL if isinstance(keys, str) else "open(keys=[*keys])"
            what = f"a list of keys, not a {type(keys).__name__}: {cure}"
        elif one and type(update).__module__ == "telebot.types":
            what = f"{what}. A {type(update).__name__} is no update"
        raise TypeError(f"{call} takes {what}")

    def _name(self, update: Any, key: Any) -> str:
        options = self._options
        if key is _MISSING:
            name = options.name(update)
            why = "" if name else options.reason(update)
        else:
            name = options.name_of(key, f"the key {short_repr(key)} was given")
            options.check_form(key)
            why = f"{options.property!r} has no session with key=None. Give the key of a session."
        if name is None:
            raise SessionUnavailable(why, options.property)
        return name

    @property
    def property(self) -> str:  # last, since it hides the builtin in this class
        """The attribute of the update that holds the session."""
        return self._options.property


class _WithSession(Protocol[_P]):
    @overload
    def __call__(self, *args: _P.args, **options: _P.kwargs) -> Declaration: ...
    @overload
    def __call__(
        self,
        *,
        property: str = ...,
        key: Callable[[Any], key_functions.Key] = ...,
        ttl: float | timedelta | None = ...,
        store: Any = ...,
        initial: Callable[[], Data],
        upgrade: Callable[[Data], object] | None = ...,
        codec: Codec | None = ...,
        lock_timeout: float | timedelta = ...,
        busy: Busy = ...,
    ) -> Declaration[Data]: ...
    @overload
    def __call__(self, handler: Handler, /) -> Handler: ...


def _taking(options: Callable[_P, Options]) -> _WithSession[_P]:
    """Make `with_session`, with the signature of ``options`` for `help` and type checkers."""

    def with_session(handler: Any = None, /, *args: Any, **given: Any) -> Any:
        """Give a handler a session: ``update.<property>``, a dict that is kept between updates.

        It goes under the bot's own decorator. It may be stacked, for several sessions in one
        handler, and the declaration may be kept to decorate many handlers::

            @bot.message_handler(func=lambda m: True)
            @with_session(ttl=3600)
            def count(message):
                message.session["n"] = message.session.get("n", 0) + 1

        Handlers of one session run one at a time, in the order in which their updates came. The
        changes of a handler are saved when it returns, and dropped when it raises.

        Args:
            property: the attribute of the update that holds the session.
            key: a function that takes an update and returns the key of its session, a `str` or
                `int`, or `None` for no session; see `telesession.keys`.
            ttl: seconds (or a `timedelta`) after which a session expires that no update has
                opened; `None` keeps it for good.
            store: where sessions are kept: a telesession store, any object with ``get`` and
                ``set`` (or ``put``), any mutable mapping; `None` is an in-memory store shared by
                all such declarations of the process.
            initial: a function that returns the data of a new session, another dict at each call;
                a `TypedDict` also gives type checkers the type that `open`, `peek` and `when` use.
            upgrade: a function that gets the data of a stored session before all other code, and
                brings it to its present form in place; its result is ignored, and its changes are
                stored when the session is next written.
            codec: an object with ``dumps`` and ``loads``; `None` is the store's own: `pickle` in
                memory, JSON everywhere else.
            lock_timeout: seconds (or a `timedelta`) to wait while one and the same other handler
                has the session.
            busy: what happens to an update whose session is in use: with ``"wait"`` it waits for
                its turn, while another thread serves the bot; with ``"drop"`` it is ignored; a
                function is called with the handler's arguments in its place, once per update.

        Raises:
            TypeError, ValueError: at decoration, for an option that can't work.
            SessionError: while the bot runs; `telesession.errors` has its subclasses.
        """
        check_known(given)
        own_key = getattr(handler, "__module__", "") == key_functions.__name__
        if args or own_key or not (handler is None or callable(handler)):
            example = f"key=keys.{handler.__name__}" if own_key else "ttl=60"
            raise TypeError(
                f"with_session({handler!r}) takes its options by keyword, as in "
                f"with_session({example}), and is put above a handler"
            )
        declaration: Declaration = Declaration(Options(**given))
        return declaration if handler is None else declaration(handler)

    functools.update_wrapper(with_session, options, (), ())
    return with_session


with_session = _taking(Options)
