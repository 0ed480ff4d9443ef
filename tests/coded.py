"""Values of many kinds, codecs of many habits, and what one makes of the other."""

import datetime
import enum
import json
import math
import os
import pickle
from collections import namedtuple

from telesession.codecs import Unkeepable, encode


class Level(enum.IntEnum):
    ONE = 1


class Kind(str, enum.Enum):  # a StrEnum, which Python 3.10 lacks
    A = "a"


Point = namedtuple("Point", "x y")


class Game:
    """Compares by identity, as most classes do."""

    def __init__(self, score):
        self.score = score


class PickleLike:
    """The user's own codec around pickle: signed, compressed, dill, ..."""

    dumps = staticmethod(pickle.dumps)
    loads = staticmethod(pickle.loads)


class Salted:
    """Never makes the same of the same, as encryption and timed signatures do."""

    def __init__(self, codec):
        self.codec = codec

    def dumps(self, data):
        payload = self.codec.dumps(data)
        salt = os.urandom(8)
        return salt.hex() + payload if isinstance(payload, str) else salt + payload

    def loads(self, payload):
        return self.codec.loads(payload[16 if isinstance(payload, str) else 8 :])


class MsgpackLike:
    """Bytes, and tuples come back as lists."""

    def dumps(self, data):
        return pickle.dumps(self._lists(data))

    loads = staticmethod(pickle.loads)

    def _lists(self, value):
        if isinstance(value, dict):
            return {key: self._lists(part) for key, part in value.items()}
        return [self._lists(part) for part in value] if type(value) in (list, tuple) else value


class SortedJSON:
    loads = staticmethod(json.loads)

    def dumps(self, data):
        return json.dumps(data, sort_keys=True)


class BytesJSON:
    loads = staticmethod(json.loads)

    def dumps(self, data):
        return json.dumps(data).encode()


def same(one, other, *, ordered=True):
    """Whether nobody can tell them apart: types, order, -0.0 and NaN included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        if not ordered and one.keys() == other.keys():
            other = {key: other[key] for key in one}
        one, other = list(one.items()), list(other.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(
            same(mine, yours, ordered=ordered) for mine, yours in zip(one, other)
        )
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, Game):
        return one.score == other.score
    return one == other


def kept(codec, value):
    try:
        return same(codec.loads(codec.dumps({"": value}))[""], value)
    except Exception:
        return False


class Walk:
    """Notes the key that the path ends with, and the value that it leads to."""

    def __init__(self, value, key=None):
        self.value = value
        self.key = key

    def __getitem__(self, key):
        return Walk(self.value[key], key)


def follow(path, data):
    names = {"session": Walk(data), "datetime": datetime, "nan": math.nan, "inf": math.inf}
    return eval(f"session{path}", names)


def encoded(codec, data, before=None):
    """What `encode` gives, or the error by which it refuses."""
    try:
        return encode(codec, data, before)
    except Unkeepable as error:
        return error


def rightly_refused(codec, data, error):
    """Whether the path leads to the key or value named, and the codec doesn't keep that."""
    end = follow(error.path, data)
    is_key = error.what.startswith("a key")
    accused = end.key if is_key else end.value
    assert type(accused).__name__ in error.what.split()
    if not kept(codec, {accused: None} if is_key else accused):
        return True
    # Or not here: 1 and "1" are one key to JSON, so the value of one of them goes missing.
    return not same(follow(error.path, codec.loads(codec.dumps(data))).value, end.value)


def nested(value, depth):
    for _ in range(depth):
        value = [value]
    return value


SHARED = [1]

SALTED_PICKLE = [Salted(PickleLike())]

KEPT_BY_JSON = [
    {},
    {"n": None, "b": True, "i": 0, "f": 1.5, "s": "text", "l": [], "d": {}, "": ""},
    {"alike": [0, False, 0.0, "", None, [], {}], "ones": [1, True, 1.0, "1"]},
    {"ints": [-(2**64), 10**4000]},
    {"floats": [-0.0, 5e-324, 1.7976931348623157e308, 1e16, 0.1]},
    {"text": '😀 \0 \u2028 " \\ / \x7f \ufeff'},
    {"lone surrogates": ["\ud83d", "\ude00", "\ude00\ud83d", "\ud83d x \ude00"], "\ud83d": 1},
    {"order": {"b": 1, "a": 2, "c": 3}},
    {"deep": nested(1, 100)},
    {"one": SHARED, "again": SHARED},  # equal, and no longer shared
]
