"""Codecs: how a session's dict becomes a store's payload, and exactly the same dict again.

A codec is any object with ``dumps(dict) -> str | bytes`` and its inverse, ``loads``: `JSON` here,
the modules `pickle` and `json`, an ``itsdangerous`` serializer, a class of your own. Errors for the
user are left to `_options`, which knows the session's name.
"""

import contextlib
import io
import json
import marshal
import math
import pickle
import sys
from typing import Any, Protocol

from telesession._checks import short_repr


class Codec(Protocol):
    """The type of ``codec`` in `with_session`."""

    def dumps(self, obj: Any, /) -> str | bytes:
        """Encode a dict."""

    def loads(self, data: Any, /) -> Any:
        """Decode the result of `dumps`, with the type that it had (`str` or `bytes`)."""


class _StrictJSON:
    """JSON without its non-standard NaN and Infinity, as compact ASCII text."""

    # What contains itself ends in a RecursionError; to look for it would cost each container.
    dumps = staticmethod(
        json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":")).encode
    )
    loads = staticmethod(json.loads)
    __name__ = "JSON"

    def __repr__(self) -> str:
        return "JSON"


JSON: Codec = _StrictJSON()


class Unkeepable(Exception):
    """A value that a codec refuses, or would give back changed, with its path and description."""

    def __init__(self, path: str, what: str, cure: str = "") -> None:
        super().__init__(path, what, cure)
        self.path = path
        self.what = what
        self.cure = cure  #: advice, instead of the usual advice for the codec


def _path(steps: list[Any]) -> str:
    """Steps in Python's notation, shortened if they are long or many."""
    shown = [f"[{short_repr(step)}]" for step in steps[:6] + steps[6:][-4:]]
    if len(steps) > len(shown):
        shown.insert(6, "...")
    return "".join(shown)


def encode(
    codec: Codec, data: dict[Any, Any], before: "str | bytes | None", was: bytes | None = None
) -> "str | bytes":
    """Encode ``data``, or return ``before`` itself if it already means the same.

    ``was`` is the `form` of what ``before`` decodes to, if it is known.

    Raises `Unkeepable` unless decoding would give exactly ``data`` again. `pickle` is trusted if
    its result can be loaded, except for pyTelegramBotAPI's states. The result of any other codec is
    decoded and compared, since most codecs silently turn a tuple into a list or a key 1 into "1".
    """
    try:
        if codec is pickle:
            payload: str | bytes = pickle.dumps(data)
            if payload == before:
                return before
            # Without an opcode of a class or a set, it is the only way to encode the data.
            if not (0x93 in payload or 0x8F in payload or 0x91 in payload):
                return payload
        # Contents are compared, since some codecs encode equal data differently each time, and
        # other programs may have stored it in another style.
        now = payload if codec is pickle else form(codec, data)
        if before is not None and now is not None:
            was = was or form(codec, codec.loads(before))
            if now == was:
                return before
        if codec is not pickle:
            payload = codec.dumps(data)
        _check(codec, data, payload, now)
        return before if payload == before else payload
    except Exception as error:
        raise _refusal(codec, data, error) from error


def _check(codec: Codec, data: dict[Any, Any], payload: "str | bytes", now: Any) -> None:
    decoded = codec.loads(payload)
    if codec is pickle:
        kept = _equal(data, decoded) or not _holds_state(data)
    else:
        kept = (now is not None and now == form(codec, decoded)) or _same(data, decoded)
    if not kept:
        raise ValueError("it would be changed")


def form(codec: Codec, value: Any) -> bytes | None:
    """Bytes that are equal only for values that this codec gives back alike; `None` if unknown."""
    try:
        if codec is JSON:
            return marshal.dumps(value, 2)  # compares by value, and takes built-in types only
        if codec is pickle:
            return pickle.dumps(value)
        buffer = io.BytesIO()
        _Form(buffer).dump(value)
        return buffer.getvalue()
    except Exception:
        return None


class _Stateless(pickle.Pickler):
    """A pickler that refuses states of pyTelegramBotAPI."""

    found = False

    def reducer_override(self, value: Any) -> Any:
        if _is_state(type(value)):
            self.found = True
            raise TypeError
        return NotImplemented


class _Form(_Stateless):
    """A pickler that tells a shared container from two equal ones, but takes equal texts alike."""

    def persistent_id(self, value: Any) -> Any:
        return f"{value}." if type(value) is str else None

    def reducer_override(self, value: Any) -> Any:
        for of in type(value).__mro__[:-1]:
            method = vars(of).get("__getstate__")
            module = getattr(method, "__module__", "") or ""
            if method is not None and module not in sys.stdlib_module_names:
                raise TypeError  # it may leave out data that the codec keeps
        return super().reducer_override(value)


def _holds_state(value: Any) -> bool:
    """Whether a state of pyTelegramBotAPI is anywhere in the value, as far as pickle looks."""
    pickler = _Stateless(io.BytesIO())
    with contextlib.suppress(Exception):
        pickler.dump(value)
    return pickler.found


def state_type() -> Any:
    """pyTelegramBotAPI's `State`, for `isinstance`; an empty tuple before it is imported."""
    return getattr(sys.modules.get("telebot.handler_backends"), "State", ())  # in all versions


def _is_state(of: type) -> bool:
    """Whether a type is pyTelegramBotAPI's `State`, or a subclass, and comes back unequal."""
    return issubclass(of, state_type()) and not _has_equality(of)


def _has_equality(of: type) -> bool:
    default: Any = object.__eq__
    return of.__eq__ is not default


def _same(one: Any, other: Any) -> bool:
    """Whether a value came back as it was; the order of keys may differ, as in sorted JSON."""
    of = type(one)
    if getattr(of, "_plain", of) is not type(other):  # see UnopenedSession._plain
        return False
    if isinstance(one, dict):
        keys = {key: key for key in other}
        return len(one) == len(other) and all(
            key in keys and type(key) is type(keys[key]) and _same(value, other[key])
            for key, value in one.items()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if not _has_equality(of):
        # The type has no equality, so the codec is trusted, which knows the type.
        return not _holds_state(one)
    if isinstance(one, float) and float.hex(one) != float.hex(other):
        return False  # `==` takes 0.0 and -0.0 as equal
    return bool(one == other or (one != one and other != other))  # or both NaN


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # an array, for one, compares by elements
        return False


def _fault(codec: Codec, data: dict[Any, Any]) -> Exception | None:
    try:
        _check(codec, data, codec.dumps(data), form(codec, data))
    except Exception as error:
        return error
    return None


_DEEPEST = 500  # levels to which a refused value is searched for
_CONTAINERS = (dict, list, tuple, set, frozenset)
_FLAT = "Please make it flatter: name what is elsewhere instead of holding it."
_STATE = "Please store the text of the state, such as Form.name.name."


def _refusal(codec: Codec, value: Any, error: Exception) -> Unkeepable:
    """Find the innermost key or value that the codec doesn't keep, by trying each in a dict."""
    steps: list[Any] = []
    above: set[int] = set()
    while len(steps) < _DEEPEST:
        above.add(id(value))
        for step, part in _parts(value):
            if id(part) in above:
                continue
            found = _fault(codec, {"": part})
            if found:
                steps.append(step)
                value, error = part, found
                break
            if isinstance(value, dict) and _fault(codec, {step: part}):
                return _unkeepable([*steps, step], step, "a key")
        else:
            cycle = any(id(part) in above for _, part in _parts(value))
            deep = isinstance(value, _CONTAINERS) and "recursion" in repr(error).lower()
            if (cycle or deep) and not _holds_state(value):
                break
            return _unkeepable(steps, value, "a value")
    what = "a structure that contains itself or is nested too deeply"
    return Unkeepable(_path(steps[:1]), what, _FLAT)


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _unkeepable(steps: list[Any], value: Any, role: str) -> Unkeepable:
    what = f"{role} of type {type(value).__name__}"
    cure = ""
    if type(value) is float and not math.isfinite(value) and role == "a value":
        what = f"the float {value}"
    elif _is_state(type(value)):
        what, cure = f"{what} (of pyTelegramBotAPI)", _STATE
    elif _holds_state(value):
        what, cure = f"{what} that holds a State of pyTelegramBotAPI", _STATE
    return Unkeepable(_path(steps), what, cure)
