"""4.2 to 4.4 `telesession.codecs`: kept exactly, or refused with the path to it."""

import datetime
import enum
import json
import math
import os
import pickle
import re
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple
from decimal import Decimal
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from telebot.handler_backends import State, StatesGroup

from telesession import JSON, SessionDataError, with_session
from telesession.codecs import Unkeepable, encode
from tests.helpers import shown


class Level(enum.IntEnum):
    ONE = 1


class Kind(str, enum.Enum):  # a StrEnum, which Python 3.10 lacks
    A = "a"


class Number(int):
    pass


class Text(str):
    __slots__ = ()


class Bag(list):
    pass


class Fraction(float):
    pass


Point = namedtuple("Point", "x y")


class Game:
    """Compares by identity, as most classes do."""

    def __init__(self, score):
        self.score = score


class Named:
    def __init__(self):
        self.name = "Ada"


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Sparing(Game):
    """Has pickle leave out what it has."""

    def __getstate__(self):
        return {"kind": "sparing"}


class SparingJSON:
    def dumps(self, data):
        return json.dumps(data, default=vars)

    def loads(self, text):
        return json.loads(text, object_hook=lambda d: Sparing(d["score"]) if "score" in d else d)


class Form(StatesGroup):
    name = State()
    age = State()


class Stage(State):
    pass


class EqualState(State):
    def __eq__(self, other):
        return type(other) is type(self) and other.name == self.name

    __hash__ = None


class Undecided:
    """Compares as arrays do: what ``==`` gives is neither true nor false."""

    def __eq__(self, other):
        raise ValueError("the truth value of an array is ambiguous")

    __hash__ = None


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


class ObligingJSON:
    """Quietly makes text of what it doesn't know."""

    loads = staticmethod(json.loads)

    def dumps(self, data):
        return json.dumps(data, default=str)


class ForgetfulJSON:
    """Drops what is None."""

    loads = staticmethod(json.loads)

    def dumps(self, data):
        return json.dumps({key: value for key, value in data.items() if value is not None})


class VersionedJSON:
    """Adds something of its own."""

    dumps = staticmethod(json.dumps)

    def loads(self, text):
        return {**json.loads(text), "version": 1}


class UnsignedZero:
    """Adds zero to floats, which takes the sign from the negative one."""

    loads = staticmethod(json.loads)

    def dumps(self, data):
        return json.dumps({key: value + 0.0 for key, value in data.items()})


class CantEncode:
    loads = staticmethod(json.loads)

    def dumps(self, data):
        raise RuntimeError("no encoder")


class CantDecode:
    dumps = staticmethod(json.dumps)

    def loads(self, text):
        raise RuntimeError("no decoder")


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
SALTED_JSON = [Salted(JSON), Salted(json), Salted(BytesJSON())]
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


@pytest.mark.parametrize("data", KEPT_BY_JSON, ids=range(len(KEPT_BY_JSON)))
@pytest.mark.parametrize("codec", [JSON, json, pickle, PickleLike(), BytesJSON(), MsgpackLike()])
def test_kept_exactly(codec, data):
    assert same(codec.loads(encode(codec, data, None)), data)


REFUSED_BY_JSON = [
    ({1: "a"}, "[1]", "a key of type int"),
    ({"d": {1: "a", "1": "b"}}, "['d'][1]", "a key of type int"),
    ({"d": {True: 1}}, "['d'][True]", "a key of type bool"),
    ({"d": {None: 1}}, "['d'][None]", "a key of type NoneType"),
    ({"d": {1.5: 1}}, "['d'][1.5]", "a key of type float"),
    ({"d": {math.nan: 1}}, "['d'][nan]", "a key of type float"),
    ({"d": {(1, "x"): 1}}, "['d'][(1, 'x')]", "a key of type tuple"),
    ({"d": {b"k": 1}}, "['d'][b'k']", "a key of type bytes"),
    ({"d": {Kind.A: 1}}, "['d'][<Kind.A: 'a'>]", "a key of type Kind"),
    ({"d": {Text("k"): 1}}, "['d']['k']", "a key of type Text"),
    ({"cart": [("tea", 1)]}, "['cart'][0]", "a value of type tuple"),
    ({"fine": [1], "cart": [{"tea": 1}, {"size": (1,)}]}, "['cart'][1]['size']", "tuple"),
    ({"in a tuple": ({1},)}, "['in a tuple'][0]", "a value of type set"),
    ({"s": {1}}, "['s']", "a value of type set"),
    ({"s": frozenset()}, "['s']", "a value of type frozenset"),
    ({"b": b"bytes"}, "['b']", "a value of type bytes"),
    ({"b": bytearray()}, "['b']", "a value of type bytearray"),
    ({"at": datetime.datetime(2024, 1, 1)}, "['at']", "a value of type datetime"),
    ({"at": [datetime.date(2024, 1, 1)]}, "['at'][0]", "a value of type date"),
    ({"d": Decimal(1)}, "['d']", "a value of type Decimal"),
    ({"c": 1j}, "['c']", "a value of type complex"),
    ({"o": Game(1)}, "['o']", "a value of type Game"),
    ({"f": [0.0, math.nan]}, "['f'][1]", "the float nan"),
    ({"f": {"x": math.inf}}, "['f']['x']", "the float inf"),
    ({"f": {"x": -math.inf}}, "['f']['x']", "the float -inf"),
    ({"e": Level.ONE}, "['e']", "a value of type Level"),
    ({"e": [Kind.A]}, "['e'][0]", "a value of type Kind"),
    ({"i": Number(1)}, "['i']", "a value of type Number"),
    ({"s": Text("x")}, "['s']", "a value of type Text"),
    ({"f": Fraction(0.5)}, "['f']", "a value of type Fraction"),
    ({"l": Bag()}, "['l']", "a value of type Bag"),
    ({"p": Point(1, 2)}, "['p']", "a value of type Point"),
    ({"d": [OrderedDict(a=1)]}, "['d'][0]", "a value of type OrderedDict"),
    ({"d": {"n": defaultdict(list)}}, "['d']['n']", "a value of type defaultdict"),
    ({"d": Counter("aa")}, "['d']", "a value of type Counter"),
    ({"d": OrderedDict(a={1})}, "['d']['a']", "a value of type set"),
    ({"i": [10**5000]}, "['i'][0]", "a value of type int"),
    # JSON reads these two characters as the one that they stand for in UTF-16.
    ({"s": "\ud83d\ude00"}, "['s']", "a value of type str"),
    ({"\ud83d\ude00": 1}, "['\\ud83d\\ude00']", "a key of type str"),
]


@pytest.mark.parametrize(
    ("data", "path", "what"), REFUSED_BY_JSON, ids=[path for _, path, _ in REFUSED_BY_JSON]
)
def test_refused_by_json(data, path, what):
    with pytest.raises(Unkeepable) as caught:
        encode(JSON, data, None)

    assert caught.value.path == path
    assert caught.value.what.endswith(what)


@pytest.mark.parametrize(
    ("data", "path"), [({"1": "a", 1: "b"}, "[1]"), ({"null": 1, None: 2}, "[None]")]
)
def test_of_two_keys_that_json_makes_one_the_one_that_is_no_str_is_blamed(data, path):
    with pytest.raises(Unkeepable) as caught:
        encode(JSON, data, None)

    assert caught.value.path == path


def in_itself():
    data = {"list": []}
    data["list"].append(data)
    return data


@pytest.mark.parametrize("data", [in_itself(), {"deep": nested(1, 200_000)}], ids=["cycle", "deep"])
def test_endless_data_is_refused_by_json(data):
    with pytest.raises(Unkeepable, match="contains itself or is nested too deeply"):
        encode(JSON, data, None)


@pytest.mark.parametrize("depth", [1, 9, 60, 400])
def test_a_deep_value_is_found(depth):
    with pytest.raises(Unkeepable) as caught:
        encode(JSON, {"deep": nested({1}, depth)}, None)

    steps = "[0]" * depth if depth < 10 else "[0][0][0][0][0]...[0][0][0][0]"
    assert caught.value.path == f"['deep']{steps}"
    assert caught.value.what == "a value of type set"


def test_whatever_the_depth_it_is_kept_or_refused():
    limit = sys.getrecursionlimit()
    for depth in [*range(limit - 100, limit + 100), 2 * limit, 5 * limit]:
        data = {"deep": nested(1, depth)}
        payload = encoded(JSON, data)
        if not isinstance(payload, Unkeepable):
            assert payload == '{"deep":' + "[" * depth + "1" + "]" * depth + "}"


# Other codecs.


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (json, {"f": [math.nan, math.inf]}),
        (pickle, {1: (1, {2}), "at": datetime.datetime(2024, 1, 1), "e": Level.ONE}),
        (pickle, {"game": Game(1), "d": OrderedDict(b=1, a=2), "f": math.nan}),
        (PickleLike(), {1: (1, {2}), "at": datetime.datetime(2024, 1, 1), "e": Level.ONE}),
        (PickleLike(), {"game": Game(1), "d": OrderedDict(b=1, a=2), "f": math.nan}),
        (MsgpackLike(), {1: [b"bytes"], "f": math.nan}),
        (ForgetfulJSON(), {"a": 1}),
    ],
)
def test_kept_by_other_codecs(codec, data):
    assert same(codec.loads(encode(codec, data, None)), data)


@pytest.mark.parametrize("codec", [pickle, PickleLike()])
def test_pickle_keeps_what_contains_itself(codec):
    data = in_itself()

    back = pickle.loads(encode(codec, data, None))

    assert back["list"][0] is back


def test_a_codec_may_sort_keys():
    assert encode(SortedJSON(), {"b": 1, "a": 2}, None) == '{"a": 2, "b": 1}'


@pytest.mark.parametrize(
    ("codec", "data", "path"),
    [
        (json, {"d": {1: 1}}, "['d'][1]"),
        (json, {"f": (1,)}, "['f']"),
        (SortedJSON(), {"f": [{1}]}, "['f'][0]"),
        (SortedJSON(), {"d": {"a": 1, "1": {1: 1}}}, "['d']['1'][1]"),
        (SortedJSON(), {"d": {"a": 1, 1: 1}}, "['d'][1]"),
        (BytesJSON(), {"f": [(1,)]}, "['f'][0]"),
        (MsgpackLike(), {"f": [1, (2,)]}, "['f'][1]"),
        (MsgpackLike(), {"f": lambda: None}, "['f']"),
        (ObligingJSON(), {"at": datetime.date(2024, 1, 1)}, "['at']"),
        (ForgetfulJSON(), {"a": 1, "n": None}, "['n']"),
        (UnsignedZero(), {"a": 0.5, "f": -0.0}, "['f']"),
        (VersionedJSON(), {"a": 1}, "['a']"),  # or anything
        (VersionedJSON(), {"version": 2}, "['version']"),
        (pickle, {"f": [1, lambda: None]}, "['f'][1]"),
        (pickle, {"d": {"a": (0, open)}, "g": (n for n in ())}, "['g']"),
        (PickleLike(), {"f": [1, lambda: None]}, "['f'][1]"),
    ],
)
def test_refused_by_other_codecs(codec, data, path):
    with pytest.raises(Unkeepable) as caught:
        encode(codec, data, None)

    assert caught.value.path == path


@pytest.mark.parametrize("codec", [CantEncode(), CantDecode()])
def test_a_codec_that_fails_is_the_cause(codec):
    with pytest.raises(Unkeepable) as caught:
        encode(codec, {"a": 1}, None)

    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_has_no_answer_to_whether_it_is_equal_is_compared_by_what_pickle_makes():
    value = encoded(PickleLike(), {"value": Undecided()})

    assert type(pickle.loads(value)["value"]) is Undecided
    assert encode(PickleLike(), pickle.loads(value), value) is value


# What is too deep, or long.


@pytest.mark.parametrize("codec", [JSON, json, pickle, PickleLike(), BytesJSON()])
@pytest.mark.parametrize("depth", [1_000, 2_500, 100_000])
def test_what_is_nested_too_deeply_is_called_that(codec, depth):
    error = encoded(codec, {"fine": [1], "cart": [nested(1, depth)]})

    if isinstance(error, Unkeepable):
        assert error.what == "a structure that contains itself or is nested too deeply"
        assert error.path in ("['cart']", "")
        assert isinstance(error.__cause__, RecursionError)
        assert "flatter" in error.cure
    else:
        assert sys.version_info >= (3, 12)
        assert depth < 100_000


@pytest.mark.parametrize("codec", [JSON, json])
def test_what_contains_itself_is_found(codec):
    error = encoded(codec, {"fine": [1], "me": in_itself()})

    assert error.path == "['me']"
    assert "contains itself" in error.what


class Looping:
    """A common mistake: pickle asks for a method before there is anything to delegate to."""

    def __init__(self):
        self.inner = 1

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_an_object_whose_own_code_recurses_is_not_called_deep():
    error = encoded(pickle, {"a": [Looping()]})

    assert (error.path, error.what) == ("['a'][0]", "a value of type Looping")


class Unshown:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("k" * 28, f"'{'k' * 28}'"),
        ("k" * 29, f"'{'k' * 26}..."),
        ("k" * 10**6, f"'{'k' * 26}..."),
        (tuple(range(100)), "(0, 1, 2, 3, 4, 5, 6, 7, 8,..."),
        (10**5000, "<int>"),
        (Unshown(), "<Unshown>"),
    ],
    ids=range(6),
)
def test_long_keys_are_cut_short(key, shown):
    value = encoded(PickleLike(), {"a": {key: [lambda: None]}})
    assert value.path == f"['a'][{shown}][0]"

    if type(key) is not str:
        assert encoded(JSON, {key: 1}).path == f"[{shown}]"


# pyTelegramBotAPI's states.

HOLDING_STATES = [
    (Form.name, "", "a value of type State (of pyTelegramBotAPI)"),
    (Stage(), "", "a value of type Stage (of pyTelegramBotAPI)"),
    ([1, (2, Form.age)], "[1][1]", "a value of type State (of pyTelegramBotAPI)"),
    ({"a": {"b": Form.name}}, "['a']['b']", "a value of type State (of pyTelegramBotAPI)"),
    (OrderedDict(a=Form.name), "['a']", "a value of type State (of pyTelegramBotAPI)"),
    ({Form.name: 1}, "", "a key of type State (of pyTelegramBotAPI)"),
    ({Form.name}, "", "a value of type set that holds a State of pyTelegramBotAPI"),
    ([frozenset([Form.name])], "[0]", "a value of type frozenset that holds a State of pyTel"),
    ({(1, Form.name): 1}, "[(1, ", "a key of type tuple that holds a State of pyTelegramBotAPI"),
    ([Game([Form.name])], "[0]", "a value of type Game that holds a State of pyTelegramBotAPI"),
]


@pytest.mark.parametrize(("value", "path", "what"), HOLDING_STATES, ids=range(len(HOLDING_STATES)))
@pytest.mark.parametrize("codec", [JSON, json, pickle, PickleLike(), *SALTED_PICKLE])
def test_states_are_refused_by_their_type(codec, value, path, what):
    error = encoded(codec, {"fine": [Game, 1] if codec is pickle else [1], "state": value})

    assert isinstance(error, Unkeepable)
    assert error.path.startswith(f"['state']{path}")
    assert error.cure == "Please store the text of the state, such as Form.name.name."
    assert error.what.startswith(what)


def test_a_state_beside_a_cycle_is_found():
    data = in_itself()
    data["state"] = Form.name

    error = encoded(pickle, data)
    assert "holds a State" in error.what
    assert "Form.name.name" in error.cure


def test_a_state_of_which_a_codec_makes_text_is_refused_with_the_cure():
    assert "Form.name.name" in encoded(ObligingJSON(), {"state": Form.name}).cure


@pytest.mark.parametrize("value", [Form, State, [Form.name.name], EqualState()], ids=shown)
@pytest.mark.parametrize("codec", [pickle, PickleLike()])
def test_what_comes_back_equal_is_no_such_state(codec, value):
    assert codec.loads(encode(codec, {"value": value}, None)) == {"value": value}


# What is stored already.


@pytest.mark.parametrize("data", KEPT_BY_JSON, ids=range(len(KEPT_BY_JSON)))
@pytest.mark.parametrize("codec", [JSON, json, pickle, PickleLike(), BytesJSON(), MsgpackLike()])
def test_unchanged_gives_what_is_stored(codec, data):
    before = encode(codec, data, None)

    assert encode(codec, codec.loads(before), before) is before


def thinned():
    """A set whose order comes from its past: 1, 64. Pickled and loaded, it is 64, 1."""
    numbers = set(range(100))
    numbers -= {number for number in numbers if number not in (1, 64)}
    return numbers


@pytest.mark.parametrize("value", [thinned(), Named()], ids=["set", "attribute named as the key"])
def test_unchanged_is_not_written_by_pickle_either(value):
    before = encode(pickle, {"name": value}, None)

    assert encode(pickle, pickle.loads(before), before) is before


@pytest.mark.parametrize(
    ("codec", "before"),
    [
        (JSON, '{ "a": 1, "b": [ 1.00, 2e0 ] }\n'),
        (JSON, r'{"a":"\u00e9 é \ud83d\ude00 \/"}'),
        (JSON, '{"b":1,"a":{"d":1,"c":-0.0}}'),
        (JSON, '{"twice":1,"twice":2}'),
        (JSON, '{"a":{"twice":[1,2,3],"twice":0}}'),
        (JSON, '{"a": 1}'),
        (JSON, '{"a":\t1}'),
        (JSON, '{"a":1}\n'),
        (JSON, '{"a":[1.50]}'),
        (JSON, '{"a":1e2}'),
        (JSON, '{"a":[7,1E2]}'),
        (JSON, '{"a":-0}'),
        (JSON, r'{"a":"\/"}'),
        (JSON, '{"a":"é"}'),
        (JSON, '{"a":"\x7f"}'),
        (JSON, b'{"a": 1}'),
        (json, '{"a":NaN,"b":Infinity}'),
        (SortedJSON(), '{"b":1,"a":2}'),
        (PickleLike(), pickle.dumps({"a": (1, {2})}, protocol=0)),
    ],
)
def test_the_same_in_another_style_is_unchanged(codec, before):
    """As another program, or an older version of the codec, would write it."""
    assert encode(codec, codec.loads(before), before) is before


@pytest.mark.parametrize("data", KEPT_BY_JSON, ids=range(len(KEPT_BY_JSON)))
@pytest.mark.parametrize("codec", SALTED_JSON + SALTED_PICKLE)
def test_unchanged_is_not_written_by_a_codec_that_never_makes_the_same(codec, data):
    before = encode(codec, data, None)

    assert encode(codec, codec.loads(before), before) is before
    if codec in SALTED_JSON:
        assert encode(codec, json.loads(json.dumps(data)), before) is before


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        [-0.0, math.inf, 1j, b"x"],
        {1: "a", None: 1, (1, 2.0): ()},
        {1, 2, 3},
        [datetime.datetime(2024, 1, 1), Decimal("1.0"), Kind.A, Color.RED, Point(1, 2)],
        OrderedDict(b=1, a=2),
        [Game(1), Game([2])],
        Named(),
        Game,
    ],
    ids=lambda value: type(value).__name__,
)
def test_unchanged_objects_are_not_written_by_such_a_codec(value):
    [codec] = SALTED_PICKLE
    before = encode(codec, {"value": value, "name": 1}, None)

    assert encode(codec, codec.loads(before), before) is before


def test_the_same_text_again_is_unchanged():
    """Also where pickle would tell it from another that is equal: one object, or two."""
    [codec] = SALTED_PICKLE
    text = "".join(["na", "me"])
    before = encode(codec, {"name": "name", "also": text}, None)

    assert encode(codec, {"name": text, "also": text}, before) is before


ONE, OTHER = [1], [1]

SMALL_CHANGES = [
    (1, True),
    (1, 1.0),
    (0.0, -0.0),
    (0j, -0j),
    ([1], (1,)),
    ({1: "x"}, {True: "x"}),
    ({1: "x"}, {1.0: "x"}),
    ({(1,): "x"}, {(True,): "x"}),
    ({0.0: "x"}, {-0.0: "x"}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1}, {True}),
    (math.nan, None),
    (Decimal("1.0"), Decimal("1.00")),
    (Color.RED, Color.BLUE),
    (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
    (Game(1), Game(2)),
    (Game(1), Game(True)),
    (Sparing(1), Sparing(2)),
    ([ONE, OTHER], [ONE, ONE]),
    ([ONE, ONE], [ONE, OTHER]),
    ([Game(ONE), OTHER], [Game(ONE), ONE]),
]


@pytest.mark.parametrize(("stored", "data"), SMALL_CHANGES, ids=shown)
@pytest.mark.parametrize("codec", SALTED_PICKLE)
def test_the_smallest_change_is_written_by_such_a_codec(codec, stored, data):
    before = codec.dumps({"value": [stored]})

    payload = encode(codec, {"value": [data]}, before)

    assert payload is not before
    assert pickle.dumps(codec.loads(payload)) == pickle.dumps(
        pickle.loads(pickle.dumps({"value": [data]}))
    )


def test_a_change_of_what_pickle_leaves_out_is_kept():
    """The codec keeps more of this class than its ``__getstate__`` gives."""
    codec = SparingJSON()
    before = encode(codec, {"value": Sparing(1)}, None)

    payload = encode(codec, {"value": Sparing(2)}, before)

    assert codec.loads(payload)["value"].score == 2


def test_an_unchanged_session_is_not_encoded():
    codec = Salted(JSON)
    before = codec.dumps({"a": [1, {"b": None}]})
    codec.dumps = None

    assert encode(codec, {"a": [1, {"b": None}]}, before) is before


CHANGES = [
    ({"a": 1}, {"a": True}),
    ({"a": 1}, {"a": 1.0}),
    ({"a": 0}, {"a": False}),
    ({"a": 1}, {"a": "1"}),
    ({"a": [1]}, {"a": [True]}),
    ({"a": []}, {"a": {}}),
    ({"a": None}, {}),
    ({"a": None}, {"b": None}),
    ({"a": {"b": [[1], [2]]}}, {"a": {"b": [[1], [2, 3]]}}),
    ({"a": {"b": [[1], [2]]}}, {"a": {"b": [[1]]}}),
    ({"a": 0.0}, {"a": -0.0}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"recent": {"a": 1, "b": 2}}, {"recent": {"b": 2, "a": 1}}),
    # JSON makes the same text of these.
    ({"a": [1, 2]}, {"a": (1, 2)}),
    ({"a": {"1": "x"}}, {"a": {1: "x"}}),
    ({"a": {"true": "x"}}, {"a": {True: "x"}}),
    ({"level": 1}, {"level": Level.ONE}),
    ({"kind": "a"}, {"kind": Kind.A}),
    ({"d": {"x": 1}}, {"d": OrderedDict(x=1)}),
    ({"s": "\U0001f600"}, {"s": "\ud83d\ude00"}),
]


@pytest.mark.parametrize(("stored", "data"), CHANGES)
@pytest.mark.parametrize("codec", [JSON, json], ids=["JSON", "json"])
def test_a_change_is_kept_or_refused(codec, stored, data):
    before = codec.dumps(stored)
    payload = encoded(codec, data, before)

    if isinstance(payload, Unkeepable):
        assert rightly_refused(codec, data, payload)
    else:
        assert same(codec.loads(payload), data)


@pytest.mark.parametrize("codec", [pickle, PickleLike()])
def test_a_change_inside_of_an_object_is_kept(codec):
    before = encode(codec, {"game": Game(1)}, None)

    payload = encode(codec, {"game": Game(2)}, before)

    assert codec.loads(payload)["game"].score == 2


def test_a_handler_hears_of_every_value_that_json_would_change():
    stored = {}

    @with_session(store=stored)
    def handler(update, level):
        update.session["level"] = level

    def update():
        return SimpleNamespace(from_user=SimpleNamespace(id=1), chat=SimpleNamespace(id=1))

    handler(update(), 1)
    with pytest.raises(SessionDataError):
        handler(update(), Level.ONE)


def test_a_handler_is_told_where():
    stored = {}

    @with_session(store=stored)
    def handler(update):
        update.session["cart"] = [{1, 2}]

    update = SimpleNamespace(from_user=SimpleNamespace(id=1), chat=SimpleNamespace(id=1))

    with pytest.raises(SessionDataError, match=r"session\['cart'\]\[0\] .* type set") as caught:
        handler(update)
    assert isinstance(caught.value.__cause__, TypeError)
    assert stored == {}


# Any value.

texts = st.one_of(
    st.text(max_size=2), st.sampled_from(["\ud83d", "\ude00 x", "a", "1", "null", "true"])
)
json_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([1, 1.0, True, -0.0, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
json_values = st.recursive(
    json_leaves,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(texts, parts, max_size=4),
    max_leaves=20,
)
json_data = st.dictionaries(texts, json_values, max_size=5)

keys = st.one_of(
    texts,
    texts,
    st.integers(-2, 2),
    st.booleans(),
    st.sampled_from([None, 1.5, math.nan, math.inf, (), (1, "x"), b"k", datetime.date(2024, 1, 1)]),
    st.just("\ud83d\ude00"),
)
leaves = st.one_of(
    json_leaves,
    json_leaves,
    st.sampled_from([math.nan, -math.inf, "\ud83d\ude00", Level.ONE, Kind.A, Text("x"), Number(1)]),
    st.sampled_from([b"", 1j, Decimal(1), Point(1, 2), Game(1), Undecided(), range(3), open]),
    st.datetimes(),
    st.builds(bytearray),
    st.sets(st.integers(0, 3)),
)
values = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.lists(parts, max_size=4),
        st.dictionaries(keys, parts, max_size=4),
        st.lists(parts, max_size=3).map(tuple),
        st.dictionaries(texts, parts, max_size=2).map(OrderedDict),
        parts.map(lambda part: [part, part]),  # shared
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(json_data)
def test_anything_like_json_is_kept_exactly(data):
    before = encode(JSON, data, None)

    assert same(JSON.loads(before), data)
    assert encode(JSON, JSON.loads(before), before) is before
    assert encode(JSON, data, json.dumps(data, indent=1)) == json.dumps(data, indent=1)


@settings(deadline=None, max_examples=700)
@given(
    st.dictionaries(texts | keys, values, max_size=3),
    st.sampled_from([JSON, json, SortedJSON(), BytesJSON(), ObligingJSON()]),
)
@example({"a": ({1},), "b": {1}}, JSON)
def test_anything_is_kept_exactly_or_refused_where_it_is_not(data, codec):
    payload = encoded(codec, data)

    if isinstance(payload, Unkeepable):
        assert rightly_refused(codec, data, payload)
    else:
        assert same(codec.loads(payload), data, ordered=not isinstance(codec, SortedJSON))


few = st.recursive(
    st.sampled_from([0, 1, 1.0, True, False, None, "", "a"]),
    lambda parts: (
        st.lists(parts, max_size=2) | st.dictionaries(st.sampled_from("ab"), parts, max_size=2)
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(*[st.dictionaries(st.sampled_from("ab"), few, max_size=2)] * 2)
def test_any_change_of_what_is_stored_is_kept(stored, data):
    """Values from so few that the two are often nearly, and sometimes quite, the same."""
    payload = encode(JSON, data, JSON.dumps(stored))

    assert same(JSON.loads(payload), data)


@pytest.mark.parametrize(
    ("content", "path"),
    [(OrderedDict({1: "x"}), "session[1]"), (Counter(a=(2,)), "session['a']")],
    ids=["key", "value"],
)
def test_what_initial_gives_is_kept_as_exactly(content, path):
    """Also what is in a kind of dict that becomes a plain one, as every session does."""
    handler = with_session(store={}, initial=lambda: content)(lambda update: None)
    with pytest.raises(SessionDataError, match=re.escape(path)):
        handler(SimpleNamespace(from_user=SimpleNamespace(id=1), chat=SimpleNamespace(id=1)))


def test_initial_may_give_any_kind_of_dict():
    handler = with_session(store={}, initial=lambda: OrderedDict(n=1))(
        lambda update: update.session
    )
    update = SimpleNamespace(from_user=SimpleNamespace(id=1), chat=SimpleNamespace(id=1))
    assert handler(update) == {"n": 1}
