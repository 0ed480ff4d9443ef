"""`with_session`, and the `Declaration` of a session that it gives."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from telesession import keys as key_functions
from telesession._checks import checked_callable, checked_seconds
from telesession._handler import Condition, wrap
from telesession._options import Options, check_known
from telesession._several import listed, peeked
from telesession._visit import Wide, in_use
from telesession.errors import SessionUnavailable

Handler = TypeVar("Handler", bound=Callable[..., Any])
_P = ParamSpec("_P")
_MISSING: Any = object()


class Declaration:
    """One session as `with_session` declares it; decorates any number of handlers."""

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

    def __call__(self, handler: Handler) -> Handler:
        return wrap(self._options, handler)

    def when(
        self, *conditions: Callable[..., object], **values: object
    ) -> Callable[[Handler], Handler]:
        """A decorator for a handler that is for some states of the session only.

        ::

            @bot.message_handler(func=lambda m: True)
            @session.when(step="name")
            def take_name(message): ...

        The handler runs if the session, locked and loaded, has all ``values`` (`None` also
        stands for a key that it hasn't, a set for any of its members, a `State` for its name) and
        all ``conditions`` are true, functions of the session or of the session and the update.
        Else pyTelegramBotAPI goes on to its next handler. The session stays locked until a handler
        has run or none matched, so nobody comes in between. Conditions are to look only, not to
        change anything.
        """
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
            if not callable(getattr(handler, "__func__", handler)):  # it was `@session.when`
                raise TypeError("when goes above a handler with parentheses: @session.when(n=1)")
            return wrap(self._options, handler, condition)

        return decorate

    @contextlib.contextmanager
    def open(
        self,
        update: Any = _MISSING,
        *,
        key: Any = _MISSING,
        keys: Sequence[Any] = _MISSING,
        apart: bool = False,
    ) -> Iterator[Any]:
        """The session outside a handler: in a timer, a thread, a command for another user.

        ::

            with session.open(key="42:99") as data:
                data["reminded"] = True

            with wallet.open(keys=[payer, payee]) as (mine, theirs):
                mine["coins"] -= 5
                theirs["coins"] += 5

        Locked, loaded, saved and refused as in a handler. In a handler with sessions, or in
        another block, it belongs to that one: it is saved with its sessions, all or none, and
        stays locked until then; a session that is open there already is joined. It always waits
        for a session that is in use, whatever ``busy`` says.

        Args:
            update: whose session it is, by the declaration's key function; or
            key: what the key function would give; or
            keys: several of them, for a list of sessions in this order, which can't deadlock with
                others that are opened in this way.
            apart: whether to save and unlock at the end of the block, also inside a handler: for
                a loop over many.

        Raises:
            SessionUnavailable: the update has no session.
            SessionError: as a handler would.
        """
        given = [one is not _MISSING for one in (update, key, keys)]
        if sum(given) != 1 or isinstance(update, (str, int, dict, type(None))):
            raise TypeError(
                "open takes an update, a key or keys: open(message), open(key='42:99') or "
                "open(keys=['1:99', '2:99'])"
            )
        names = [self._name(update, one) for one in (keys if keys is not _MISSING else [key])]
        if len(set(names)) < len(names):
            raise ValueError(f"open(keys={keys!r}): each key may be given once only")
        with self._block(names, apart=apart) as found:
            yield found if keys is not _MISSING else found[0]

    def keys(self) -> Iterator[str]:
        """The keys of the stored sessions of this declaration, as text.

        ::

            for key in session.keys():
                with session.open(key=key, apart=True) as data:
                    data["news"] = True

        No session is loaded or locked. Expired ones are left out; those that come or go meanwhile
        may be missing or not. The store is asked page by page, so any number will do.

        Raises:
            SessionStoreError: the store can't list what it keeps, or failed.
        """
        options = self._options
        names = listed(options.store, options.prefix)
        return (name[len(options.prefix) :] for name in names)

    def peek(self, update: Any = _MISSING, *, key: Any = _MISSING) -> dict[str, Any] | None:
        """A copy of what is stored, or `None`: for filters and middlewares that only look.

        ::

            @bot.message_handler(func=lambda m: (session.peek(m) or {}).get("admin"))

        It neither waits nor locks, and begins no new ttl. In a handler that has the session, it is
        a copy of what the handler has in it now. An update without a session has nothing stored.

        Args:
            update: whose session it is; or
            key: what the key function would give.

        Raises:
            SessionDataError: what is stored can't be read.
            SessionStoreError: the store failed.
        """
        self._check_one("peek", update, key)
        options = self._options
        name = options.name(update) if key is _MISSING else self._name(update, key)
        if name is None:
            return None
        mine = in_use(options, name)
        if mine is not None:
            return copy.deepcopy(mine) or None
        payload = peeked(options.store, name)
        return None if payload is None else options.decoded(name, payload)

    def remove(self, update: Any = _MISSING, *, key: Any = _MISSING) -> None:
        """Remove what is stored, also what can't be read; under the lock.

        ::

            for key in session.keys():          # /forget_me
                if key.startswith(f"{message.from_user.id}:"):
                    session.remove(key=key)

        In a handler that has the session, it is emptied, and removed when the handler is saved.

        Args:
            update: whose session it is; or
            key: what the key function would give.

        Raises:
            SessionUnavailable: the update has no session.
            SessionError: as `open`.
        """
        self._check_one("remove", update, key)
        with self._block([self._name(update, key)], blank=True) as (data,):
            data.clear()

    @contextlib.contextmanager
    def _block(
        self, names: Sequence[str], *, apart: bool = False, blank: bool = False
    ) -> Iterator[list[dict[str, Any]]]:
        visit = Wide()
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

    def _check_one(self, call: str, update: Any, key: Any) -> None:
        neither_or_both = (update is _MISSING) == (key is _MISSING)
        if neither_or_both or isinstance(update, (str, int, dict, type(None))):
            raise TypeError(
                f"{call} takes an update or a key: {call}(message), {call}(key='42:99')"
            )

    def _name(self, update: Any, key: Any) -> str:
        options = self._options
        if key is _MISSING:
            name = options.name(update)
            why = "" if name else options.reason(update)
        else:
            name = options.name_of(key, f"the key {key!r} was given")
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
    def __call__(self, handler: Handler, /) -> Handler: ...
    @overload
    def __call__(self, *args: _P.args, **options: _P.kwargs) -> Declaration: ...


def _taking(options: Callable[_P, Options]) -> _WithSession[_P]:
    """Have `with_session` take what ``options`` takes, in the eyes of people and type checkers."""

    def with_session(handler: Any = None, /, *args: Any, **given: Any) -> Any:
        """Give a handler a session: ``update.<property>``, a dict that is kept between updates.

        Goes under the bot's own decorator. May be stacked, for several sessions in one handler,
        and kept to declare one session for many handlers::

            @bot.message_handler(func=lambda m: True)
            @with_session(ttl=3600)
            def count(message):
                message.session["n"] = message.session.get("n", 0) + 1

        Handlers of one session run one at a time, in the order in which their updates came. What
        a handler changes is saved when it returns, and not at all when it raises.

        Args:
            property: the attribute of the update that holds the session.
            key: which session an update belongs to: takes the update, returns a `str` or `int`,
                or `None` for no session; see `telesession.keys`.
            ttl: seconds (or a `timedelta`) after which a session expires that no update has
                opened; `None` keeps it for good.
            store: where sessions are kept: a telesession store, any object with ``get`` and
                ``set`` (or ``put``), any mutable mapping; `None` is an in-memory store shared by
                all such declarations of the process.
            initial: gives the data of a session that isn't stored yet, a new dict at each call.
            upgrade: called with the data of a stored session before anything else sees it, to
                bring it to the form of today; what it returns is ignored, and what it changed is
                stored when the session is next written.
            codec: an object with ``dumps`` and ``loads``; `None` is the store's own: `pickle` in
                memory, JSON everywhere else.
            lock_timeout: seconds (or a `timedelta`) to wait while one and the same other handler
                has the session.
            busy: what becomes of an update meanwhile: ``"wait"`` for its turn, while another
                thread serves the bot; ``"drop"``, it is ignored; or a function that is called in
                the handler's place, once for an update, with the handler's arguments.

        Raises:
            TypeError, ValueError: at decoration, for an option that can't work.
            SessionError: while the bot runs; `telesession.errors` has its kinds.
        """
        check_known(given)
        own_key = getattr(handler, "__module__", "") == key_functions.__name__
        if args or own_key or not (handler is None or callable(handler)):
            raise TypeError(
                f"with_session({handler!r}) takes its options by keyword, as in "
                "with_session(ttl=60), and is put above a handler"
            )
        declaration = Declaration(Options(**given))
        return declaration if handler is None else declaration(handler)

    functools.update_wrapper(with_session, options, (), ())
    return with_session


with_session = _taking(Options)
