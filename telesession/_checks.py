"""Checks of handlers and options at decoration; messages name the option, its value and the cure.

When to check is left to the callers, such as `_options`.
"""

import functools
import inspect
import itertools
import keyword
import re
import sys
import unicodedata
from collections.abc import Callable
from datetime import timedelta
from typing import Any


def check_handler(handler: Any) -> None:
    if not callable(handler) or isinstance(handler, type):
        raise TypeError(
            f"with_session goes above a handler function, not {handler!r}. To open the session of "
            "an update outside of its handler: `with session.open(message) as data:`"
        )
    if other := not_plain(handler):
        raise TypeError(
            f"{called(handler)} is {other} function: telesession is for the blocking TeleBot, "
            "whose handlers are plain functions (def, without yield)"
        )


def not_plain(function: Any) -> str | None:
    """The kind of a function that does nothing yet when it is called; else `None`."""
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(type(function), "__call__", None)  # noqa: B004
    for kind, test in (
        ("a coroutine", inspect.iscoroutinefunction),
        ("an async generator", inspect.isasyncgenfunction),
        ("a generator", inspect.isgeneratorfunction),
    ):
        if test(function) or test(call):
            return kind
    return None


def checked_property(property: Any) -> str:
    if not isinstance(property, str):
        raise TypeError(f"property={property!r} must be a str, such as 'session'")
    if not property.isidentifier() or keyword.iskeyword(property) or property.startswith("_"):
        raise ValueError(
            f"property={property!r} can't be an attribute of the update: give a public Python "
            "identifier that is no keyword, such as 'session'"
        )
    return unicodedata.normalize("NFKC", property)  # as Python does with names in a program


def checked_callable(option: str, value: Any) -> Callable[..., Any]:
    if isinstance(value, dict) and option == "initial":
        raise TypeError(
            f"initial={value!r} is one dict that all sessions would share: give a function that "
            "makes a new one each time, such as initial=dict or initial=lambda: {'n': 0}"
        )
    numbers, how, example = _CALLS[option]
    if not callable(value):
        what = "can't be called"
    elif other := not_plain(value):
        what = f"is {other} function"
    elif not any(takes(value, number) for number in numbers):
        what = f"can't be called {how}"
    else:
        return value  # type: ignore[no-any-return]
    raise TypeError(f"{option}={value!r} {what}: give a plain function, such as {example}")


#: By option: how many arguments its function takes, the same in words, and an example.
_CALLS = {
    "key": ((1,), "with an update", "telesession.keys.user_chat"),
    "initial": ((0,), "without arguments", "dict"),
    "upgrade": ((1,), "with a session's data", "lambda data: data.setdefault('cart', [])"),
    "when": (
        (1, 2),
        "with a session, or a session and an update",
        "lambda session: 'step' in session",
    ),
}


def takes(function: Callable[..., Any], arguments: int) -> bool:
    """Whether a function can be called with that many arguments, as far as its signature tells."""
    try:  # not the wrapped function's signature, to which a decorator may add arguments
        signature = inspect.signature(function, follow_wrapped=False)
    except Exception:  # some builtins have no signature, and some objects a broken one
        return True
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def has_bare_when(function: Any) -> bool:
    """Whether ``when`` stands above a function in the source without parentheses."""
    try:
        lines, _ = inspect.getsourcelines(function)
    except (OSError, TypeError):
        return False
    above = itertools.takewhile(lambda line: not re.match(r"\s*(async\s+)?def\b", line), lines)
    return any(re.match(r"\s*@[\w.]*\bwhen\s*(#.*)?$", line) for line in above)


def checked_codec(codec: Any) -> Any:
    for call in (getattr(codec, "dumps", None), getattr(codec, "loads", None)):
        if not callable(call) or not_plain(call) or not takes(call, 1):
            raise TypeError(
                f"codec={codec!r} has no dumps and loads that are plain functions of one argument: "
                "give an object that has both, such as the module pickle; of a class, an instance"
            )
    return codec


def checked_seconds(option: str, value: Any) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{option}={value!r} must be a number of seconds or a timedelta")
    if not 0 < seconds <= sys.float_info.max:  # refuses NaN, and an int too large for a float
        raise ValueError(f"{option}={value!r} must be a positive, finite number of seconds")
    return seconds


def checked_busy(busy: Any) -> Any:
    # it gets the handler's arguments, which aren't known here; an update is among them
    takes_some = callable(busy) and (takes(busy, 1) or not takes(busy, 0))
    if (not takes_some or not_plain(busy)) and busy not in ("wait", "drop"):
        raise ValueError(
            f"busy={busy!r} must be 'wait', 'drop', or a function that is called in the handler's "
            "place, such as lambda call: bot.answer_callback_query(call.id, 'One moment')"
        )
    return busy


def called(thing: Any) -> str:
    """The name of a function, class or module for a message, or of an object's class.

    Not what the object's text shows, or a partial's, which may be a secret, such as a codec's key.
    """
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    return name if isinstance(name, str) else type(thing).__name__


def short_repr(value: Any) -> str:
    """A value for a message, cut short, since it may be content."""
    try:
        text = repr(value)
    except Exception:  # an int of more than 4,300 digits, for one
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 30 else f"{text[:27]}..."


def kind(update: Any) -> str:
    return f"an update of type {type(update).__name__}"
