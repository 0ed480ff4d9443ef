"""The wrapper of a handler, one for a whole stack: it finds the update, and checks conditions.

What happens around the handler is left to `_visit`.
"""

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from telesession._checks import called, check_handler, takes
from telesession._dispatch import innermost, running, watch
from telesession._options import Options
from telesession._session import NoSession
from telesession._visit import Dropped, Visit
from telesession._workers import mind_stop
from telesession.codecs import state_type
from telesession.errors import SessionBusy

logger = logging.getLogger("telesession")

Handler = TypeVar("Handler", bound=Callable[..., Any])
_MARK = "__telesession__"


class Condition:
    """The condition that a session has to fulfil for a handler under `when`.

    Args:
        functions: each takes the session or, if it needs two arguments, the session and the update.
        values: by key, the value that the session must have there, or a set of alternatives.
    """

    def __init__(self, functions: Sequence[Callable[..., object]], values: dict[str, Any]) -> None:
        self.functions = [
            (function, takes(function, 2) and not takes(function, 1)) for function in functions
        ]
        self._values = [(key, _alternatives(key, value)) for key, value in values.items()]

    def __call__(self, session: Any, update: Any) -> bool:
        for key, alternatives in self._values:
            if session.get(key) not in alternatives:
                return False
        for function, both in self.functions:
            if not (function(session, update) if both else function(session)):
                return False
        return True


def _alternatives(key: str, value: Any) -> list[Any]:
    """The values that fulfil a condition: those of a set, or ``value`` itself."""
    several = isinstance(value, (set, frozenset))
    return [_named(key, one) for one in (value if several else [value])]


def _named(key: str, value: Any) -> Any:
    """The value, or the name of a `State` of pyTelegramBotAPI."""
    if isinstance(value, state_type()):
        if value.name is None:
            raise ValueError(f"when({key}=State()): a State without a StatesGroup has no name")
        return value.name
    if isinstance(value, (list, tuple)) and any(isinstance(one, state_type()) for one in value):
        raise ValueError(
            f"when({key}={value!r}) compares a {type(value).__name__} as it is, and no session can "
            f"hold a State. Alternatives are a set: when({key}={{Form.name, Form.age}})"
        )
    if inspect.isfunction(value):
        raise TypeError(
            f"when({key}={value!r}) compares values. A function is given without a name, and gets "
            f"the session: when(lambda session: session.get({key!r}, 0) > 1)"
        )
    return value


class Stack:
    """The handler of a wrapper, and the declarations on it."""

    def __init__(self, options: Options, handler: Any, condition: Condition | None) -> None:
        mine: list[tuple[Options, Condition | None]] = [(options, condition)]
        self.handler = handler
        self.wrapper: Any = None
        # functools.wraps copies __dict__, so a foreign decorator around our wrapper has our mark,
        # too. Its stack is left alone: the foreign decorator has to stay in between.
        inner = getattr(handler, _MARK, None)
        if isinstance(inner, Stack) and inner.wrapper is handler:
            mine += inner.declared
            self.handler = inner.handler
        properties = [each.property for each, _ in mine]
        if len(set(properties)) < len(properties):
            raise ValueError(
                f"property={options.property!r} is declared twice on {called(handler)}: "
                "give each session of a stack a property of its own. (when(...) declares its "
                "session itself, and takes several conditions at once.)"
            )
        self.declared: list[tuple[Options, Condition | None]] = mine  #: outermost first
        self.conditions = [(each.property, when) for each, when in mine if when is not None]
        self.asks = any(when.functions for _, when in self.conditions)
        #: in the order in which all handlers lock, so that no two can deadlock
        self.options = tuple(sorted((each for each, _ in mine), key=lambda each: each.prefix))
        stores = {id(each.store) for each in self.options}
        self.store = options.store if len(stores) == 1 else None
        self.lock_timeout = min(each.lock_timeout for each in self.options)
        if all(each.busy != "wait" for each in self.options):
            self.lock_timeout = 0.0  # so that it doesn't wait for other processes either

    def matches(self, update: Any) -> bool:
        """Whether the sessions on an update fulfil all conditions."""
        for property, condition in self.conditions:
            session = getattr(update, property)
            if isinstance(session, NoSession) or not condition(session, update):
                return False
        return True

    def refused(self, busy: SessionBusy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result for an update that found its session in use and doesn't wait for it."""
        logger.debug("An update is not handled, as busy= says: %s", busy)
        result = None
        for options in self.options:
            mine = options.property == busy.property
            if mine and _is_first(options, busy) and callable(options.busy):
                result = options.busy(*args, **kwargs)
        return watch()() if self.conditions else result


def _is_first(options: Options, busy: SessionBusy) -> bool:
    """Note a session that was in use; returns whether the update hasn't been told."""
    thread = threading.get_ident()
    dispatch = running.get(thread)
    if dispatch is None:
        return True
    new = dispatch.refuse(options.locks, f"{options.prefix}{busy.key}", Visit(thread))
    if not new or options.busy in dispatch.told:
        return False
    dispatch.told = [*dispatch.told, options.busy]
    return True


def wrap(options: Options, handler: Handler, condition: Condition | None = None) -> Handler:
    """Wrap a handler to have a declaration's session, under a condition if one is given."""
    if isinstance(handler, (staticmethod, classmethod)):
        return type(handler)(wrap(options, handler.__func__, condition))
    check_handler(handler)
    stack = Stack(options, handler, condition)
    inner, asks = stack.handler, stack.asks
    declared, store, timeout = stack.options, stack.store, stack.lock_timeout
    find, position = _finder(inner, declared)
    go_on = watch()() if stack.conditions else None

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        update = args[position] if len(args) > position else None
        if type(update) not in _updates:
            update = find(args, kwargs)
        thread = threading.get_ident()
        visit = Visit(thread, update)
        busy: SessionBusy | None = None
        try:
            try:
                try:
                    if store is None or thread in innermost:
                        visit = visit.enter_among(declared, timeout)
                    else:
                        visit.enter(declared, store, timeout)
                except SessionBusy as error:
                    if not isinstance(error, Dropped) and timeout:
                        raise
                    busy = error
                else:
                    if go_on is not None and not stack.matches(update):
                        visit.pass_on(asks)
                        return go_on
                    result = inner(*args, **kwargs)
                    visit.save()
            finally:
                visit.leave()
        finally:
            if visit.thread:
                visit.leave()
        if busy is not None:
            return stack.refused(busy, args, kwargs)
        return result

    stack.wrapper = wrapper
    setattr(wrapper, _MARK, stack)
    return wrapper  # type: ignore[return-value]


#: The types of updates met so far: a cache for `is_update`.
_updates: set[type] = set()
_NAMES = {
    *("Message", "InaccessibleMessage", "InlineQuery", "ChosenInlineResult", "CallbackQuery"),
    *("ShippingQuery", "PreCheckoutQuery", "Poll", "PollAnswer", "ChatMemberUpdated"),
    *("ChatJoinRequest", "MessageReactionUpdated", "MessageReactionCountUpdated"),
    *("ChatBoostUpdated", "ChatBoostRemoved", "BusinessConnection", "BusinessMessagesDeleted"),
    *("PaidMediaPurchased", "ManagedBotUpdated", "BotSubscriptionUpdated"),
    "MessageGenerationStopped",
}


def is_update(value: Any) -> bool:
    """Whether a value is an update that pyTelegramBotAPI hands to handlers."""
    kind = type(value)
    for base in kind.__mro__:
        if base.__module__ == "telebot.types" and base.__name__ in _NAMES:
            mind_stop()  # here, since telebot is imported now, and no handler has run yet
            _updates.add(kind)
            return True
    return False


def may_be(value: Any, declared: Iterable[Options]) -> bool:
    """Whether a value may stand for an update in a test: it has a sender, a chat or a key."""
    if isinstance(value, (type(None), int, float, str, bytes, dict, list, tuple, set, frozenset)):
        return False
    if isinstance(value, type) or inspect.isroutine(value) or inspect.ismodule(value):
        return False
    if any(base.__module__.partition(".")[0] == "telebot" for base in type(value).__mro__):
        return False
    return _has_sender(value) or (
        hasattr(value, "__dict__") and any(_has_key(value, options) for options in declared)
    )


def _has_sender(value: Any) -> bool:
    return hasattr(value, "from_user") or hasattr(value, "chat")


def _has_key(value: Any, options: Options) -> bool:
    try:
        return options.key(value) is not None
    except Exception:
        return False


def _signature(handler: Callable[..., Any], *, follow_wrapped: bool) -> inspect.Signature:
    try:
        return inspect.signature(handler, follow_wrapped=follow_wrapped)
    except ValueError:  # some builtins have none
        return inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])


def _finder(
    handler: Callable[..., Any], declared: Sequence[Options]
) -> tuple[Callable[..., Any], int]:
    """A function that finds a handler's update among its arguments, and its usual position."""
    names = list(_signature(handler, follow_wrapped=True).parameters)
    position = 1 if names and names[0] in ("self", "cls") else 0
    # not the wrapped function's signature, to which a decorator may add arguments
    signature = _signature(handler, follow_wrapped=False)

    def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = [kwargs[name] for name in dict.fromkeys([*names, *kwargs]) if name in kwargs]
        given = [*args, *named]
        for value in given:
            if is_update(value):
                _check_call(handler, signature, args, kwargs)
                return value
        candidates = [*args[position:], *named]
        likely = [value for value in candidates if may_be(value, declared)]
        for value in [*filter(_has_sender, likely), *likely]:
            _check_call(handler, signature, args, kwargs)
            _check_mock(value)
            return value
        if any(map(inspect.isfunction, given)):
            raise TypeError(
                f"{called(given[0])} was handed to {called(handler)} as its update. If that is "
                "`@with_session(key)`: options are given by keyword, `@with_session(key=...)`."
            )
        what = f" but with {', '.join(map(_described, given))}" if given else ""
        kinds = dict.fromkeys(type(value).__name__ for value in given)
        hints = [_HINTS[kind] for kind in kinds if kind in _HINTS]
        raise TypeError(
            f"{called(handler)} was called without its update{what}. A handler with a "
            "session takes one update at a time, such as a message or a call; for a session by "
            f"its key write `with session.open(key=...) as data:`.{' '.join(['', *hints])}"
        )

    return find, position


#: Hints by the type of the argument that a handler got instead of its update.
_HINTS = {
    "dict": "Of JSON, telebot.types.Update.de_json(...) makes an update.",
    "Update": "Hand on what the Update holds, such as update.message.",
    "NoneType": "If that is call.message, which a message sent in inline mode doesn't have, hand "
    "on the call itself: menu(call).",
}


def _check_mock(value: Any) -> None:
    """Refuse a mock with an attribute of every name, since its key would mean nothing."""
    if type(value).__module__ == "unittest.mock" and hasattr(value, "telesession"):
        raise TypeError(
            f"the update is a {type(value).__name__} that has an attribute of every name: which "
            "session is its own can't be told. Give it a spec, such as Mock(spec=telebot.types."
            "Message, from_user=Mock(id=1), chat=Mock(id=1)), or let telesession.testing.Chat(bot) "
            "send real updates."
        )


def _check_call(
    handler: Any, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Refuse arguments that don't fit the handler, such as those of a method without ``self``."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = called(handler)
        raise TypeError(
            f"{name} can't be called like this: {error}. If it is a method, its first parameter is "
            "self, and the bound method is registered: bot.register_message_handler(thing."
            f"{name.rpartition('.')[2]}), not at the decorator in the class."
        ) from None


def _described(value: Any) -> str:
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    if isinstance(value, (int, float, type(None))):
        return repr(value)
    return f"a {type(value).__name__}"
