"""Codecs: how a session's dict becomes what a store keeps, and exactly the same dict again.

A codec is any object with ``dumps(dict) -> str | bytes`` and ``loads`` for the way back: `JSON`
here, the modules `pickle` and `json`, an ``itsdangerous`` serializer, a class of your own.
"""

import json
import math
import pickle
import re
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

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path = path
        self.what = what


def encode(codec: Codec, data: dict[Any, Any], before: "str | bytes | None") -> "str | bytes":
    """Encode ``data``, or return ``before`` itself where that says the same already.

    Raises `Unkeepable` unless decoding would give exactly ``data`` again. `pickle` is taken at its
    word, as long as what it makes can be loaded. What any other codec makes is decoded and
    compared, since most of them quietly turn a tuple into a list or a key 1 into "1".
    """
    try:
        payload = codec.dumps(data)
        if codec is pickle:
            opcodes: Any = payload
            if payload == before:
                return before
            if not (0x93 in opcodes or 0x8F in opcodes or 0x91 in opcodes):
                return payload  # neither classes nor sets: it can be loaded, and has one form only
            codec.loads(payload)
        elif codec is not JSON or "\\ud" in str(payload) or not _is_plain(data):
            changed = _changed(data, codec.loads(payload), "")
            if changed:
                raise Unkeepable(*changed)
    except Unkeepable:
        raise
    except Exception as error:
        raise Unkeepable(*_refused(codec, data)) from error
    if before is not None:
        if payload == before:
            return before
        if codec is JSON and _differ(payload, before):
            return payload
        stored = codec.loads(before)  # which others may have written, in another style
        if (codec is not JSON or stored == data) and codec.dumps(stored) == payload:
            return before
    return payload


_DEEP = 50  # levels of a session that few have
_SCALARS = {str, int, float, bool, type(None)}


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


def _refused(codec: Codec, value: Any) -> tuple[str, str]:
    """The path and type of the innermost value that the codec can't encode."""

    def fails(part: dict[Any, Any]) -> bool:
        try:
            codec.loads(codec.dumps(part))
        except Exception:
            return True
        return False

    path = ""
    for _ in range(200):  # a cycle has no innermost value
        if isinstance(value, dict):
            for key in value:
                if fails({key: None}):
                    return f"{path}[{key!r}]", f"a key of type {type(key).__name__}"
        for key, part in _parts(value):
            if fails({"": part}):
                path, value = f"{path}[{key!r}]", part
                break
        else:
            return path, _typename(value)
    return "", "a structure that contains itself or is nested too deeply"


def _changed(before: Any, after: Any, path: str) -> tuple[str, str] | None:
    """The path and type of the first value that did not come back as it was, if any."""
    if getattr(type(before), "_plain", type(before)) is not type(after):  # see Session._plain
        return path, _typename(before)
    if isinstance(before, dict):
        twins = {key: key for key in after}
        for key in before:
            if key not in twins or type(key) is not type(twins[key]):
                return f"{path}[{key!r}]", f"a key of type {type(key).__name__}"
        for key, old in before.items():
            found = _changed(old, after[key], f"{path}[{key!r}]")
            if found:
                return found
    elif isinstance(before, (list, tuple)):
        for index, (old, new) in enumerate(zip(before, after, strict=False)):
            found = _changed(old, new, f"{path}[{index}]")
            if found:
                return found
    elif _has_no_equality(before):
        return None  # nothing to compare by; the codec knows the type and kept it
    elif _equal(before, after):
        return None
    if isinstance(before, (dict, list, tuple)) and len(before) == len(after):
        return None
    return path, _typename(before)


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _typename(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"the float {value}"
    return f"a value of type {type(value).__name__}"


def _equal(before: Any, after: Any) -> bool:
    try:
        return bool(before == after or (before != before and after != after))  # or both NaN
    except Exception:  # an array, for one, has no single answer
        return False


def _has_no_equality(value: Any) -> bool:
    default: Any = object.__eq__
    return type(value).__eq__ is default
