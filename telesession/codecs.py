"""Codecs: how a session's dict becomes what a store keeps, and exactly the same dict again.

A codec is any object with ``dumps(dict) -> str | bytes`` and ``loads`` for the way back: `JSON`
here, the modules `pickle` and `json`, an ``itsdangerous`` serializer, a class of your own.
"""

import enum
import functools
import io
import json
import math
import pickle
import re
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
            payload = pickle.dumps(data)
            if payload == before:
                return before
            if not (0x93 in payload or 0x8F in payload or 0x91 in payload):
                return payload  # neither classes nor sets: it can be loaded, and has one form only
            return _with_classes(data, payload, before)
        if codec is JSON:
            return _in_json(codec, data, before)
        return _by_other(codec, data, before)
    except Unkeepable:
        raise
    except Exception as error:
        raise _refusal(data, functools.partial(_failure, codec), error) from error


def _with_classes(data: dict[Any, Any], payload: bytes, before: Any) -> "str | bytes":
    """Pickle, where an object may come back unequal and a set in another order."""
    pickle.loads(payload)
    if _may_hold_state(payload) and _holds_state(data):
        raise _refusal(data, _holds_state, _StateFound())
    if before is not None and pickle.dumps(pickle.loads(before)) == payload:
        payload = before
    return payload


def _in_json(codec: Codec, data: dict[Any, Any], before: Any) -> "str | bytes":
    payload = codec.dumps(data)
    if not _is_plain(data) or ("\\ud" in str(payload) and codec.loads(payload) != data):
        _check(data, codec.loads(payload))
    if payload == before:
        payload = before
    elif before is not None and not _differ(payload, before):
        stored = codec.loads(before)  # which others may have written, in another style
        if stored == data and codec.dumps(stored) == payload:
            payload = before
    return payload


def _by_other(codec: Codec, data: dict[Any, Any], before: Any) -> "str | bytes":
    """Compared before it is encoded, since some codecs never make the same of the same."""
    alike = False
    if before is not None:
        stored = codec.loads(before)
        alike = not _changed(data, stored, {})
    if alike and _same(data, stored):
        payload = before
    else:
        payload = codec.dumps(data)
        _check(data, codec.loads(payload))
        if payload == before or (alike and codec.dumps(stored) == payload):
            payload = before
    return payload  # type: ignore[no-any-return]


def _check(data: dict[Any, Any], decoded: Any) -> None:
    changed = _changed(data, decoded)
    if changed:
        raise _unkeepable(*changed)


def _same(data: Any, stored: Any) -> bool:
    """Whether two that are alike are the same, order, types and signs of zeros included."""
    for fast in (True, False):
        try:
            if _form(data, fast) == _form(stored, fast):
                return True
        except Exception:
            pass
    return False


def _form(value: Any, fast: bool) -> bytes:
    """What pickle makes of a value: with ``fast`` whichever parts are one object."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, 4)
    pickler.fast = fast
    pickler.dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """Refuses objects that nothing tells apart but a reduction that may leave something out."""

    def reducer_override(self, value: Any) -> Any:
        if _has_no_equality(value) and not isinstance(value, enum.Enum):
            names = ("__reduce_ex__", "__reduce__", "__getstate__")
            of = type(value)
            if any(getattr(of, name, None) != getattr(object, name, None) for name in names):
                raise TypeError
            if self.fast and not isinstance(value, type):  # parts that it shares with others count
                raise TypeError
        return NotImplemented


class _StatePickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if _is_state(type(value)):
            raise _StateFound
        return NotImplemented


class _StateFound(Exception):
    pass


def _holds_state(value: Any) -> Exception | None:
    """Whether pickle would write a state of pyTelegramBotAPI that is somewhere in the value."""
    try:
        _StatePickler(io.BytesIO()).dump(value)
    except _StateFound as found:
        return found
    except Exception:
        pass
    return None


def _may_hold_state(payload: bytes) -> bool:
    """Whether the class of a state is named in what pickle made."""
    state = getattr(sys.modules.get("telebot.states"), "State", None)
    classes: list[type] = [state] if state else []
    for each in classes:
        classes += each.__subclasses__()
    return any(each.__qualname__.encode() in payload for each in classes)


def _is_state(of: type) -> bool:
    """Whether it is pyTelegramBotAPI's `State`, or made of it, and comes back unequal."""
    state = getattr(sys.modules.get("telebot.states"), "State", ())
    default: Any = object.__eq__
    return issubclass(of, state) and of.__eq__ is default


_DEEP = 50  # levels of a session that few have
_EXACT = {str, int, bool, type(None)}  # equal and of one type is the same
_SCALARS = {float, *_EXACT}


def _is_plain(data: dict[Any, Any]) -> bool:
    """Whether strict JSON gives ``data`` back exactly, whatever is in it.

    Only two halves of a surrogate pair, each in a place of its own, would become one character.
    """
    level: list[Any] = [data]
    for _ in range(_DEEP):
        values: list[Any] = []
        for one in level:
            if type(one) is dict:
                if not set(map(type, one)) <= {str}:
                    return False
                one = one.values()
            values += one
        types = set(map(type, values))
        if types <= _SCALARS:
            return True
        if not types <= {dict, list, *_SCALARS}:
            return False
        level = [value for value in values if type(value) in (dict, list)]
    return False


#: JSON text that has one form only: no spaces, escapes or fractions...
_ONE_FORM = re.compile(r"[!-\-/-[\]-~]*").fullmatch
#: ... and none of these: an exponent, the number -0.
_OTHER_FORM = re.compile(r"[eE-](?:(?<=[0-9][eE])|(?<=-)(?=0))").search


def _differ(payload: "str | bytes", before: "str | bytes") -> bool:
    """Whether our JSON can't be the same as ``before`` in another style; `False` if unknown.

    As many keys, so that it is not for one that ``before`` has twice.
    """
    if type(payload) is not str or type(before) is not str:
        return False
    if not _ONE_FORM(before) or _OTHER_FORM(before):
        return False
    return payload.count('":') == before.count('":')


def _failure(codec: Codec, part: dict[Any, Any]) -> Exception | None:
    try:
        codec.loads(codec.dumps(part))
    except Exception as error:
        return error
    return None


def _refusal(
    value: Any, fails: Callable[[dict[Any, Any]], Exception | None], error: Exception
) -> Unkeepable:
    """Names the innermost key or value that fails, each in a dict of its own."""
    steps: list[Any] = []
    above: set[int] = set()
    while len(steps) < _DEEPEST:
        above.add(id(value))
        if isinstance(value, dict):
            for key in value:
                if fails({key: None}):
                    return _unkeepable([*steps, key], key, "a key")
        for step, part in _parts(value):
            found = fails({"": part}) if id(part) not in above else None
            if found:
                steps.append(step)
                value, error = part, found
                break
        else:
            cycle = not isinstance(error, _StateFound) and any(
                id(part) in above for _, part in _parts(value)
            )
            if cycle or (isinstance(value, _CONTAINERS) and "recursion" in repr(error).lower()):
                break
            return _unkeepable(steps, value, "a value")
    what = "a structure that contains itself or is nested too deeply"
    return Unkeepable(_path(steps[:1]), what, _FLAT)


def _changed(
    before: Any, after: Any, twins: dict[int, int] | None = None
) -> tuple[list[Any], Any, str] | None:
    """The steps to the first value that did not come back as it was, if any, and that.

    With ``twins`` also one that is the same object as another on one side only.
    """
    of = type(before)
    if getattr(of, "_plain", of) is not type(after):  # see Session._plain
        return [], before, "a value"
    if twins is not None and (of.__hash__ is None or _has_no_equality(before)):
        mine, other = id(before), id(after)
        if twins.setdefault(mine, other) != other or twins.setdefault(-other, mine) != mine:
            return [], before, "a value"
    if isinstance(before, dict):
        if not (before.keys() == after.keys() and {*map(type, [*before, *after])} <= {str}):
            keys = {key: key for key in after}
            for key in before:
                if key not in keys or type(key) is not type(keys[key]):
                    return [key], key, "a key"
        pairs: Any = ((key, old, after[key]) for key, old in before.items())
    elif isinstance(before, (list, tuple)):
        pairs = zip(range(len(before)), before, after, strict=False)
    elif _has_no_equality(before):
        # Nothing to compare by; the codec knows the type and kept it.
        return ([], before, "a value") if _holds_state(before) else None
    else:
        return None if _equal(before, after) else ([], before, "a value")
    for step, old, new in pairs:
        if type(old) is type(new) and type(old) in _EXACT and old == new:
            continue
        found = _changed(old, new, twins)
        if found:
            found[0].insert(0, step)
            return found
    return None if len(before) == len(after) else ([], before, "a value")


_DEEPEST = 500  # levels to which a value that is refused is looked for
_CONTAINERS = (dict, list, tuple, set, frozenset)
_FLAT = "Please make it flatter: name what is elsewhere instead of holding it."
_STATE = "Please store the text of the state, such as Form.name.name."


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


def _equal(before: Any, after: Any) -> bool:
    try:
        if isinstance(before, float) and float.hex(before) != float.hex(after):
            return False  # the zeros are equal otherwise
        return bool(before == after or (before != before and after != after))  # or both NaN
    except Exception:  # an array, for one, has no single answer
        return False


def _has_no_equality(value: Any) -> bool:
    default: Any = object.__eq__
    return type(value).__eq__ is default
