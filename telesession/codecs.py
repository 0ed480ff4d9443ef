"""Codecs: how a session's dict becomes what a store keeps, and exactly the same dict again.

A codec is any object with ``dumps(dict) -> str | bytes`` and ``loads`` for the way back: `JSON`
here, the modules `pickle` and `json`, an ``itsdangerous`` serializer, a class of your own.
"""

import functools
import io
import json
import marshal
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any, Protocol


class Codec(Protocol):
    """What `with_session` takes as ``codec``."""

    def dumps(self, obj: Any, /) -> str | bytes:
        """Encode a dict."""

    def loads(self, data: Any, /) -> Any:
        """Decode what `dumps` gave, of the same type (`str` or `bytes`)."""


class _StrictJSON:
    """JSON without its non-standard NaN and Infinity, as compact ASCII text."""

    dumps = staticmethod(json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode)
    loads = staticmethod(json.loads)

    def __repr__(self) -> str:
        return "JSON"


JSON: Codec = _StrictJSON()


class Unkeepable(Exception):
    """A value that a codec refuses, or would give back changed: where it is, and what it is."""

    def __init__(self, path: str, what: str, cure: str = "") -> None:
        super().__init__(path, what, cure)
        self.path = path
        self.what = what
        self.cure = cure  #: where that isn't to give what the codec keeps


def _path(steps: list[Any]) -> str:
    """Steps as they are written in Python, cut short where they are long or many."""
    shown = [f"[{_shown(step)}]" for step in steps[:6] + steps[6:][-4:]]
    if len(steps) > len(shown):
        shown.insert(6, "...")
    return "".join(shown)


def _shown(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:  # an int of more than 4,300 digits, for one
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 30 else f"{text[:27]}..."


def encode(codec: Codec, data: dict[Any, Any], before: "str | bytes | None") -> "str | bytes":
    """Encode ``data``, or return ``before`` itself where that says the same already.

    Raises `Unkeepable` unless decoding would give exactly ``data`` again. `pickle` is taken at its
    word, as long as what it makes can be loaded, for all but pyTelegramBotAPI's states. What any
    other codec makes is decoded and compared, since most of them quietly turn a tuple into a list
    or a key 1 into "1".
    """
    try:
        if codec is pickle:
            payload: str | bytes = pickle.dumps(data)
            if payload == before:
                return before
        # Some codecs never make the same of the same, and others may have written it in a style
        # of their own: so the content is compared.
        form = payload if codec is pickle else _form(codec, data)
        if before is not None and form is not None and form == _form(codec, codec.loads(before)):
            return before
        if codec is not pickle:
            payload = codec.dumps(data)
        _check(codec, data, payload)
        return before if payload == before else payload
    except Exception as error:
        raise _refusal(codec, data, error) from error


def encoder(codec: Codec) -> Callable[[dict[Any, Any], "str | bytes | None"], "str | bytes"]:
    """`encode` for one codec, quick for what `pickle` keeps in one form only."""
    return _pickled if codec is pickle else functools.partial(encode, codec)


def _pickled(data: dict[Any, Any], before: "str | bytes | None") -> "str | bytes":
    try:
        payload = pickle.dumps(data)
    except Exception:
        return encode(pickle, data, before)  # which says what it is
    if payload == before:
        return before
    if 0x93 in payload or 0x8F in payload or 0x91 in payload:  # there are classes or sets
        return encode(pickle, data, before)
    return payload


def _check(codec: Codec, data: dict[Any, Any], payload: "str | bytes") -> None:
    decoded = codec.loads(payload)
    if codec is pickle:
        kept = _equal(data, decoded) or not _holds_state(data)
    else:
        form = _form(codec, data)
        kept = (form is not None and form == _form(codec, decoded)) or _same(data, decoded)
    if not kept:
        raise ValueError("it would be changed")


def _form(codec: Codec, value: Any) -> bytes | None:
    """The same for values that nobody can tell apart after this codec; `None` if unknown."""
    try:
        if codec is JSON:
            return marshal.dumps(value, 2)  # by value, and of nothing but built-in types
        if codec is pickle:
            return pickle.dumps(value)
        buffer = io.BytesIO()
        _Form(buffer).dump(value)
        return buffer.getvalue()
    except Exception:
        return None


class _StateFound(Exception):
    pass


class _Stateless(pickle.Pickler):
    """Refuses states of pyTelegramBotAPI."""

    def reducer_override(self, value: Any) -> Any:
        if _is_state(type(value)):
            raise _StateFound
        return NotImplemented


class _Form(_Stateless):
    """Tells whether containers are one object or two, but not texts."""

    def persistent_id(self, value: Any) -> Any:
        return f"{value}." if type(value) is str else None

    def reducer_override(self, value: Any) -> Any:
        if any("__getstate__" in vars(of) for of in type(value).__mro__[:-1]):
            raise TypeError  # it may leave out what the codec keeps
        return super().reducer_override(value)


def _holds_state(value: Any) -> bool:
    """Whether pickle would write a state of pyTelegramBotAPI that is somewhere in the value."""
    try:
        _Stateless(io.BytesIO()).dump(value)
    except _StateFound:
        return True
    except Exception:
        pass
    return False


def state_type() -> Any:
    """pyTelegramBotAPI's `State`, for `isinstance`; before it is imported, nothing is one."""
    return getattr(sys.modules.get("telebot.handler_backends"), "State", ())  # in all versions


def _is_state(of: type) -> bool:
    """Whether it is pyTelegramBotAPI's `State`, or made of it, and comes back unequal."""
    return issubclass(of, state_type()) and not _has_equality(of)


def _has_equality(of: type) -> bool:
    default: Any = object.__eq__
    return of.__eq__ is not default


def _same(one: Any, other: Any) -> bool:
    """Whether a value came back as it was; keys may have another order, as in sorted JSON."""
    of = type(one)
    if getattr(of, "_plain", of) is not type(other):  # see Notes._plain
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
        # Nothing to compare by; the codec knows the type and kept it.
        return not _holds_state(one)
    if isinstance(one, float) and float.hex(one) != float.hex(other):
        return False  # the zeros are equal otherwise
    return bool(one == other or (one != one and other != other))  # or both NaN


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # an array, for one, has no single answer
        return False


def _fault(codec: Codec, data: dict[Any, Any]) -> Exception | None:
    try:
        _check(codec, data, codec.dumps(data))
    except Exception as error:
        return error
    return None


_DEEPEST = 500  # levels to which a value that is refused is looked for
_CONTAINERS = (dict, list, tuple, set, frozenset)
_FLAT = "Please make it flatter: name what is elsewhere instead of holding it."
_STATE = "Please store the text of the state, such as Form.name.name."


def _refusal(codec: Codec, value: Any, error: Exception) -> Unkeepable:
    """Names the innermost key or value that the codec does not keep, each in a dict of its own."""
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
