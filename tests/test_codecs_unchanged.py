"""4.2 `telesession.codecs`: what is unchanged is not written, and the smallest change is."""

import dataclasses
import datetime
import enum
import json
import math
import pickle
import uuid
from collections import OrderedDict
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telesession import JSON
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
    Salted,
    SortedJSON,
    encoded,
    rightly_refused,
    same,
)
from tests.helpers import shown


class Named:
    def __init__(self):
        self.name = "Ada"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    """Python gives it a `__getstate__`, which leaves nothing out."""

    score: int


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


SALTED_JSON = [Salted(JSON), Salted(json), Salted(BytesJSON())]


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
        Frozen(1),
        uuid.UUID(int=1),
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
