"""4.2 to 4.4 `telesession.codecs`: kept exactly, or refused with the path to it."""

import datetime
import json
import math
import pickle
import re
import sys
from collections import Counter, OrderedDict, defaultdict
from decimal import Decimal
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from telebot.handler_backends import State, StatesGroup

from telesession import JSON, SessionDataError, with_session
from telesession.codecs import Unkeepable, encode
from tests.coded import (
    KEPT_BY_JSON,
    SALTED_PICKLE,
    BytesJSON,
    Game,
    Kind,
    Level,
    MsgpackLike,
    PickleLike,
    Point,
    SortedJSON,
    encoded,
    nested,
    rightly_refused,
    same,
)
from tests.helpers import shown


class Number(int):
    pass


class Text(str):
    __slots__ = ()


class Bag(list):
    pass


class Fraction(float):
    pass


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
