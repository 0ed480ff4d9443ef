"""`with_session`: the decorator, and what it takes."""

import difflib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

from telesession import codecs, keys
from telesession.declaration import Declaration

Handler = TypeVar("Handler", bound=Callable[..., Any])


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
    busy: Literal["wait", "queue", "drop"] = ...,
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
    busy: Literal["wait", "queue", "drop"] = "wait",
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
        busy: what an update does meanwhile: ``"wait"`` in its thread; ``"queue"`` for the thread
            of this process that has the session to handle it next, which leaves its own thread
            free at once; or ``"drop"`` out, that is, be ignored.

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
        busy=busy,
    )
    return declaration if handler is None else declaration(handler)


_OPTIONS = ("property", "key", "ttl", "store", "initial", "codec", "lock_timeout", "busy")
