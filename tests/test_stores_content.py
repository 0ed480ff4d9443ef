"""4.3 to 4.5 Every store of `BACKENDS` keeps exactly what was saved, with any codec."""

import datetime
import json
import math
import pickle

import pytest

from telesession import JSON, SessionDataError, with_session
from tests import store_suite
from tests.store_suite import Boom
from tests.stores import NAME, Clock, found, message, put, visit

no_lock_left = store_suite.no_lock_left
store = store_suite.store

JSON_VALUES = {
    "small ints": [0, -1, 1],
    "big ints": [2**63, -(2**200), 10**40],
    "floats": [0.1, -0.0, 0.0, 1e308, 5e-324, 1e16, 1.0, 2.5e-8],
    "int and float": [1, 1.0, -1, -1.0],
    "bool and int": [True, 1, False, 0, None],
    "strings": ["", " ", "é", "😀", "\u2028", "\x00", "\\", '"', "@", "@base64@", "ﬀ", "e\u0301"],
    "a lone surrogate": "\ud800",
    "a long string": "x" * 100_000,
    "lists": [[], [[]], [[], [[]]], [None]],
    "dicts": {"": {}, "é": {"😀": {}}, "@": 1, "a:b": 2},
    "an order of keys": {"z": 1, "a": {"c": 1, "b": 2}, "m": 3},
    "texts like keywords": ["null", "NaN", "true", "{}", "1"],
    "depth": [[[[[[[[[[[[[[[[[[[[{"a": [[[[[[[[[[[[{}]]]]]]]]]]]]}]]]]]]]]]]]]]]]]]]]],
}

json_value = pytest.mark.parametrize("value", JSON_VALUES.values(), ids=JSON_VALUES)

NOW = datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc)
RECURSIVE: list = []
RECURSIVE.append(RECURSIVE)

# What JSON can't keep or would change, and the path under which it is.
NOT_JSON = [
    ((), "['v']"),
    (NOW, "['v']"),
    (math.nan, "['v']"),
    ({"a": [0, 1, {"b": {1}}]}, "['v']['a'][2]['b']"),
    ([{"a": {"b": 1, 7: 2}}], "['v'][0]['a'][7]"),
]


class TestExactly:
    """4.3 What is loaded is exactly what was saved, or it is refused."""

    @json_value
    def test_json_values(self, store, value):
        put({"v": value}, store=store)

        assert repr(found(store=store)) == repr({"v": value})

    def test_keys(self, store):
        content = dict.fromkeys(("", " ", "é", "\n", "@", "1", "None", "a.b", "$x", "x" * 999), 1)
        put(content, store=store)

        assert found(store=store) == content

    @pytest.mark.parametrize(("value", "path"), NOT_JSON, ids=repr)
    def test_what_json_would_change_is_refused(self, backend, value, path):
        """The message names the path, and the stored session stays as it was."""
        declared = {"store": backend.store, "codec": JSON}
        put({"n": 1}, **declared)
        before = backend.raw(NAME)

        def handler(message):
            message.session["n"] = 2
            message.session["v"] = value

        with pytest.raises(SessionDataError) as caught:
            visit(handler, **declared)

        assert f"session{path} " in str(caught.value)
        assert NAME in str(caught.value)
        assert backend.raw(NAME) == before
        assert found(**declared) == {"n": 1}

    def test_what_json_would_change_is_no_new_session(self, backend):
        with pytest.raises(SessionDataError, match=r"session\['v'\]\['a'\]"):
            put({"v": {"a": {1, 2}}}, store=backend.store, codec=JSON)

        assert backend.raw(NAME) is None

    def test_a_structure_that_contains_itself(self, store):
        with pytest.raises(SessionDataError, match=NAME):
            put({"v": RECURSIVE}, store=store, codec=JSON)

        assert found(store=store, codec=JSON) == {}

    def test_an_int_key_at_the_top(self, store):
        with pytest.raises(SessionDataError, match=r"session\[1\] "):
            put({1: 1}, store=store, codec=JSON)

    def test_what_initial_makes_is_checked_too(self, backend):
        ran = []

        with pytest.raises(SessionDataError, match=r"session\['at'\] "):
            visit(ran.append, store=backend.store, codec=JSON, initial=lambda: {"at": NOW})

        assert ran == []
        assert backend.raw(NAME) is None

    def test_a_stack_saves_nothing_when_one_of_its_sessions_is_refused(self, backend):
        @with_session(property="one", store=backend.store)
        @with_session(property="two", store=backend.store, codec=JSON)
        def handler(message):
            message.one["n"] = 1
            message.two["n"] = {1}

        with pytest.raises(SessionDataError, match=r"two\['n'\] "):
            handler(message())

        assert backend.raw("one:42:42") is backend.raw("two:42:42") is None

    def test_the_message_does_not_tell_the_content(self, store):
        with pytest.raises(SessionDataError) as caught:
            put({"v": {"secret"}}, store=store, codec=JSON)

        assert "secret" not in str(caught.value)


class BytesCodec:
    """As many serializers are: bytes out, bytes in."""

    @staticmethod
    def dumps(data):
        return b"\xff\x00@" + repr(data).encode()[::-1]

    @staticmethod
    def loads(text):
        assert isinstance(text, bytes)
        return eval(text.removeprefix(b"\xff\x00@")[::-1], {"datetime": datetime})


class TextCodec:
    """As a signer is: text that is no JSON, of which some begins like our own head."""

    def dumps(self, data):
        return f"@{repr(data).encode().hex()}@"

    def loads(self, text):
        assert isinstance(text, str)
        return eval(bytes.fromhex(text.removeprefix("@").removesuffix("@")), {"datetime": datetime})


VALUES_OF_CODECS = {
    "JSON": (JSON, {"a": [1, 2.5, "é"]}),
    "json": (json, {"a": [1, 2.5, "é", 2**100]}),
    "pickle": (pickle, {"a": (1, {2}, b"3", NOW), 1: 2}),
    "bytes": (BytesCodec, {"a": (1, {2}, b"3", NOW), 1: 2}),
    "text": (TextCodec(), {"a": (1, {2}, b"3", NOW), 1: 2}),
}
codecs = pytest.mark.parametrize(
    ("codec", "value"), VALUES_OF_CODECS.values(), ids=VALUES_OF_CODECS
)


class TestCodecs:
    """4.4 `codec` is any object with dumps and loads."""

    @codecs
    def test_round_trip(self, store, codec, value):
        put(value, store=store, codec=codec)

        assert repr(found(store=store, codec=codec)) == repr(value)

    @codecs
    def test_round_trip_with_a_ttl(self, backend, codec, value):
        declared = {"store": backend.timed(Clock()), "codec": codec, "ttl": 60}
        put(value, **declared)
        visit(lambda message: message.session.update(more=1), **declared)

        assert repr(found(**declared)) == repr({**value, "more": 1})

    @codecs
    def test_an_unchanged_session_is_not_written(self, backend, codec, value):
        watch = backend.watched()
        put(value, store=watch.store, codec=codec)
        del watch.calls[:]

        assert found(store=watch.store, codec=codec) == value
        assert watch.writes == []

    @codecs
    def test_another_codec_cannot_read_it(self, backend, codec, value):
        """4.5, and the message says which codec failed."""
        put(value, store=backend.store, codec=codec)
        before = backend.raw(NAME)

        class Other:
            dumps = json.dumps

            @staticmethod
            def loads(text):
                raise Boom

        with pytest.raises(SessionDataError, match="Other") as caught:
            found(store=backend.store, codec=Other)

        assert isinstance(caught.value.__cause__, Boom)
        assert backend.raw(NAME) == before

    def test_a_codec_that_fails(self, backend):
        class Failing:
            loads = json.loads

            @staticmethod
            def dumps(data):
                raise Boom

        put({"n": 1}, store=backend.store, codec=JSON)
        before = backend.raw(NAME)

        with pytest.raises(SessionDataError) as caught:
            visit(lambda m: m.session.update(n=2), store=backend.store, codec=Failing)

        assert isinstance(caught.value.__cause__, Boom)
        assert backend.raw(NAME) == before

    def test_a_codec_that_forgets(self, backend):
        """One that logs what it can't encode, and says that all went well."""

        class Forgetful:
            loads = json.loads

            @staticmethod
            def dumps(data):
                return json.dumps({key: value for key, value in data.items() if value != "lost"})

        put({"n": 1}, store=backend.store, codec=Forgetful)
        before = backend.raw(NAME)

        with pytest.raises(SessionDataError, match=r"session\['m'\] "):
            put({"n": 2, "m": "lost"}, store=backend.store, codec=Forgetful)
        with pytest.raises(SessionDataError, match=r"session\['l'\]\[1\]\['o'\] "):
            put({"l": [0, {"o": Swallowed()}]}, store=backend.store, codec=Swallowing)

        assert backend.raw(NAME) == before

    def test_the_default(self, backend):
        """The store in memory keeps what pickle can, every other store keeps JSON."""
        if backend.default_codec is pickle:
            put({"v": (1, {2}, NOW)}, store=backend.store)
            assert found(store=backend.store) == {"v": (1, {2}, NOW)}
        else:
            put({"v": [1, "é"]}, store=backend.store)
            raw = backend.raw(NAME)
            assert json.loads(raw) == {"v": [1, "é"]}
            with pytest.raises(SessionDataError, match=r"session\['v'\]"):
                put({"v": (1,)}, store=backend.store)


class Swallowed:
    pass


class Swallowing:
    """A codec that makes null of what it doesn't know."""

    loads = json.loads

    @staticmethod
    def dumps(data):
        return json.dumps(data, default=lambda value: None)


class TestUnreadable:
    """4.5 Stored data that can't be read raises SessionDataError, and is left as it is."""

    @pytest.mark.parametrize(
        "stored",
        [
            "garbage",
            '{"n": 1',
            "[1, 2]",
            '"text"',
            "1",
            "null",
            "@",
            "@garbage",
            "@garbage@{}",
            "@base64@{}",
            b"\xff\xfe\x00",
            b"\x80\x04}\x94.",
        ],
        ids=repr,
    )
    def test_garbage(self, backend, stored):
        backend.plant(NAME, stored)
        before = backend.raw(NAME)
        ran = []

        for _ in range(2):
            with pytest.raises(SessionDataError) as caught:
                visit(ran.append, store=backend.store, codec=JSON)

            assert NAME in str(caught.value)
            assert "garbage" not in str(caught.value)

        assert ran == []
        assert backend.raw(NAME) == before

        with_session(store=backend.store, codec=JSON).remove(message())
        assert backend.raw(NAME) is None

    def test_garbage_is_no_pickle(self, backend):
        backend.plant(NAME, b"garbage")
        before = backend.raw(NAME)

        with pytest.raises(SessionDataError):
            found(store=backend.store, codec=pickle)

        assert backend.raw(NAME) == before

    def test_the_other_sessions_of_the_stack_are_left_too(self, backend):
        backend.plant("two:42:42", "garbage")

        @with_session(property="one", store=backend.store, codec=JSON, initial=lambda: {"n": 1})
        @with_session(property="two", store=backend.store, codec=JSON)
        def handler(message):
            message.one["n"] = 2

        with pytest.raises(SessionDataError, match="two:42:42"):
            handler(message())

        assert backend.raw("one:42:42") is None

    def test_the_session_works_again_once_it_is_gone(self, backend):
        backend.plant(NAME, "garbage")
        with pytest.raises(SessionDataError):
            put({"n": 1}, store=backend.store, codec=JSON)

        backend.plant(NAME, '{"n": 2}')

        assert found(store=backend.store, codec=JSON) == {"n": 2}

    def test_json_in_another_style_is_read_and_not_written_for_that(self, backend):
        """A store outside the process may be written by others."""
        watch = backend.watched()
        backend.plant(NAME, '{ "n" : 1 ,\n "e" : "é" }'.replace("é", "\\u00e9"))

        assert found(store=watch.store, codec=JSON) == {"n": 1, "e": "é"}
        assert watch.writes == []
