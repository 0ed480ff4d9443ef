"""`with_session`: what a declaration says, and the one wrapper that a handler gets."""

import difflib
import functools
import inspect
import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, overload

from telesession import codecs, keys
from telesession.checks import (
    called,
    check_handler,
    checked_callable,
    checked_codec,
    checked_property,
    checked_seconds,
    kind,
)
from telesession.errors import SessionDataError, SessionError
from telesession.keyvalue import as_store
from telesession.memory import default_store
from telesession.stores import Store
from telesession.visit import Visit

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Declaration:
    """One session as `with_session` declares it; decorates any number of handlers."""

    def __init__(
        self,
        *,
        property: str,
        key: Callable[[Any], keys.Key],
        ttl: float | timedelta | None,
        store: Any,
        initial: Callable[[], dict[Any, Any]],
        codec: codecs.Codec | None,
        lock_timeout: float | timedelta,
    ) -> None:
        self.attribute = checked_property(property)
        self._key: Callable[[Any], keys.Key] = checked_callable("key", key)
        self._initial = checked_callable("initial", initial)
        self.seconds: float | None = None if ttl is None else checked_seconds("ttl", ttl)
        self.lock_timeout: float = checked_seconds("lock_timeout", lock_timeout)
        self._given_store = default_store if store is None else store
        self.backend: Store = as_store(self._given_store)
        self.lock_suffix = f"@{id(self.backend.identity)}"
        self.codec = self.backend.codec if codec is None else checked_codec(codec)

    @property
    def key(self) -> Callable[[Any], keys.Key]:
        """The key function."""
        return self._key

    @property
    def store(self) -> Any:
        """The store as it was given, or the process-wide `MemoryStore`."""
        return self._given_store

    @property
    def ttl(self) -> float | None:
        """Seconds after which a session that no update opened expires, or `None`.

        A new value counts for each session from its next save.
        """
        return self.seconds

    @ttl.setter
    def ttl(self, ttl: float | timedelta | None) -> None:
        self.seconds = None if ttl is None else checked_seconds("ttl", ttl)

    def __call__(self, handler: Handler) -> Handler:
        return _wrap(self, handler)

    def name(self, update: Any) -> str | None:
        """The name of the update's session in the store."""
        try:
            key = self._key(update)
        except Exception as error:
            raise SessionError(
                f"the key function {called(self._key)} of {self.attribute!r} failed on "
                f"{kind(update)} with {type(error).__name__}. Have it return None for updates "
                "that have no session."
            ) from error
        if key is None:
            return None
        if not isinstance(key, (str, int)) or isinstance(key, bool) or key == "":
            raise SessionError(
                f"the key function {called(self._key)} of {self.attribute!r} gave {key!r} for "
                f"{kind(update)}. Return a str that isn't empty or an int, or None for no session."
            )
        return f"{self.attribute}:{key}"

    def reason(self, update: Any) -> str:
        """Why the update has no session, and what to do about it."""
        known = [called(key) for key in (keys.user, keys.chat) if key(update) is not None]
        cure = (
            f"give with_session a key that this one has, such as telesession.keys.{known[0]}"
            if known
            else "this one names neither user nor chat, so give with_session a key of your own"
        )
        return (
            f"{self.attribute!r} is not available: the key function {called(self._key)} gave None "
            f"for {kind(update)}. Check `if update.{self.attribute}:` first, or {cure}."
        )

    def start(self, name: str) -> dict[Any, Any]:
        data = self._initial()
        if not isinstance(data, dict):
            raise SessionDataError(
                f"initial={called(self._initial)} gave a {type(data).__name__} for {name!r}: "
                "it has to return a new dict each time it is called"
            )
        return data

    def unreadable(self, name: str) -> SessionDataError:
        return SessionDataError(
            f"what is stored under {name!r} can't be read with codec={called(self.codec)}. It is "
            "left as it is, and the handler did not run. Read it with the codec that wrote it, "
            "or delete it from the store."
        )

    def unkeepable(self, name: str, error: codecs.Unkeepable) -> SessionDataError:
        return SessionDataError(
            f"{self.attribute}{error.path} in {name!r} is {error.what}, which "
            f"codec={called(self.codec)} can't keep or would change. Nothing was saved. "
            f"{_KEEPS.get(id(self.codec), 'Please convert the value, or give another codec.')}"
        )

    @property
    def property(self) -> str:  # last, since it hides the builtin in this class
        """The attribute of the update that holds the session."""
        return self.attribute


@overload
def with_session(handler: Handler, /) -> Handler: ...
@overload
def with_session(
    *,
    property: str = ...,
    key: Callable[[Any], keys.Key] = ...,
    ttl: float | timedelta | None = ...,
    store: Any = ...,
    initial: Callable[[], dict[Any, Any]] = ...,
    codec: codecs.Codec | None = ...,
    lock_timeout: float | timedelta = ...,
) -> Declaration: ...
def with_session(
    handler: Any = None,
    /,
    *args: Any,
    property: str = "session",
    key: Callable[[Any], keys.Key] = keys.user_chat,
    ttl: float | timedelta | None = None,
    store: Any = None,
    initial: Callable[[], dict[Any, Any]] = dict,
    codec: codecs.Codec | None = None,
    lock_timeout: float | timedelta = 60.0,
    **unknown: Any,
) -> Any:
    """Give a handler a session: ``update.<property>``, a dict that is kept between updates.

    Goes under the bot's own decorator. May be stacked, for several sessions in one handler, and
    kept to declare one session for many handlers::

        @bot.message_handler(func=lambda m: True)
        @with_session(ttl=3600)
        def count(message):
            message.session["n"] = message.session.get("n", 0) + 1

    Handlers of one session run one at a time, in the order in which their updates came. What a
    handler changes is saved when it returns, and not at all when it raises.

    Args:
        property: the attribute of the update that holds the session.
        key: which session an update belongs to: takes the update, returns a `str` or `int`, or
            `None` for no session; see `telesession.keys`.
        ttl: seconds (or a `timedelta`) after which a session expires that no update has opened;
            `None` keeps it for good.
        store: where sessions are kept: a telesession store, any object with ``get`` and ``set``
            (or ``put``), any mutable mapping; `None` is an in-memory store shared by all such
            declarations of the process.
        initial: gives the data of a session that isn't stored yet, a new dict at each call.
        codec: an object with ``dumps`` and ``loads``; `None` is the store's own: `pickle` in
            memory, JSON everywhere else.
        lock_timeout: seconds (or a `timedelta`) to wait while another handler has the session.

    Raises:
        TypeError, ValueError: at decoration, for an option that can't work.
        SessionError: while the bot runs; its subclasses in `telesession.errors` say what happened.
    """
    for option, value in unknown.items():
        near = difflib.get_close_matches(option, _OPTIONS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_OPTIONS)}"
        raise TypeError(f"with_session has no option {option}={value!r}: {hint}")
    own_key = getattr(handler, "__module__", "") == keys.__name__
    if args or own_key or not (handler is None or callable(handler)):
        raise TypeError(
            f"with_session({handler!r}) takes its options by keyword, as in "
            "with_session(ttl=60), and is put above a handler"
        )
    declaration = Declaration(
        property=property,
        key=key,
        ttl=ttl,
        store=store,
        initial=initial,
        codec=codec,
        lock_timeout=lock_timeout,
    )
    return declaration if handler is None else declaration(handler)


_MARK = "__telesession__"
_KEEPS = {
    id(codecs.JSON): "JSON keeps dicts with str keys, lists, str, int, bool, None and finite "
    "floats: convert the value, or give with_session codec=pickle, which keeps it.",
    id(pickle): "pickle keeps what can be imported, so no lambda, lock, open file or bot: convert "
    "the value to what describes it.",
}
_OPTIONS = ("property", "key", "ttl", "store", "initial", "codec", "lock_timeout")


class Stack:
    """What a wrapper carries: the handler, and the declarations on it, outermost first."""

    def __init__(self, declaration: Declaration, handler: Any) -> None:
        self.declarations: tuple[Declaration, ...] = (declaration,)
        self.handler = handler
        self.wrapper: Any = None
        # functools.wraps copies __dict__, so the stack that a foreign decorator wraps shows
        # through it; only a wrapper's own stack is taken apart.
        inner = getattr(handler, _MARK, None)
        if isinstance(inner, Stack) and inner.wrapper is handler:
            self.declarations += inner.declarations
            self.handler = inner.handler
        self.stores = list({id(one.backend): one.backend for one in self.declarations}.values())
        self.lock_timeout = min(one.lock_timeout for one in self.declarations)
        properties = [one.attribute for one in self.declarations]
        if declaration.attribute in properties[1:]:
            raise ValueError(
                f"property={declaration.attribute!r} is declared twice on {called(handler)}: "
                "give each session of a stack a property of its own"
            )


def _wrap(declaration: Declaration, handler: Handler) -> Handler:
    if isinstance(handler, (staticmethod, classmethod)):
        return type(handler)(_wrap(declaration, handler.__func__))
    check_handler(handler)
    stack = Stack(declaration, handler)
    inner = stack.handler
    position, name = _update_parameter(inner)

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if len(args) > position:
            update = args[position]
        elif name in kwargs:
            update = kwargs[name]
        elif position == _NOWHERE:
            update = _search(args, kwargs)
        else:
            raise TypeError(f"{called(inner)} was called without its update")
        visit = Visit(stack, update)
        try:
            result = inner(*args, **kwargs)
            visit.save()
        except BaseException:
            visit.abandon()
            raise
        finally:
            visit.leave()
        return result

    stack.wrapper = wrapper
    setattr(wrapper, _MARK, stack)
    return wrapper  # type: ignore[return-value]


_NOWHERE = sys.maxsize


def _update_parameter(handler: Callable[..., Any]) -> tuple[int, str]:
    """Where a handler takes its update: the first parameter, or the one after self."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except ValueError:  # some builtins have none
        return _NOWHERE, ""
    position = 1 if parameters and parameters[0].name in ("self", "cls") else 0
    if len(parameters) <= position:
        return _NOWHERE, ""
    if parameters[position].kind is inspect.Parameter.VAR_POSITIONAL:
        return _NOWHERE, ""
    return position, parameters[position].name


def _search(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The update among arguments of which the handler's signature says nothing."""
    given = [*args, *kwargs.values()]
    updates = [value for value in given if type(value).__module__ == "telebot.types"]
    if not given:
        raise TypeError("a handler was called without its update")
    return updates[0] if updates else given[0]
