"""4.1 to 4.6, 5.1 to 5.5, 6.1, 6.3 What every store has to keep, on each of `BACKENDS`."""

import datetime
import json
import logging
import math
import pickle
import random
import threading
import time
from datetime import timedelta

import pytest

from telesession import (
    JSON,
    KeyValueStore,
    SessionBusy,
    SessionDataError,
    SessionError,
    SessionStoreError,
    _locks,
    with_session,
)
from tests.helpers import until
from tests.stores import (
    NAME,
    TIMEOUT,
    Bot,
    Clock,
    GetSet,
    Leasing,
    WatchedClient,
    WatchedStore,
    found,
    message,
    payload,
    put,
    visit,
)


@pytest.fixture(autouse=True)
def no_lock_left():
    """5.5 Nothing is kept for an idle session but what its store holds."""
    yield
    assert _locks.held() == 0


@pytest.fixture
def store(backend):
    return backend.store


class Boom(Exception):
    """What goes wrong in a handler, or in a client."""


def raising(body, error=Boom):
    """The body of a handler that does something and then fails."""

    def run(message):
        body(message)
        raise error

    return run


class TestNames:
    """3.4 In a store a session is kept under "<property>:<key>"."""

    def test_property_and_key(self, backend):
        put({"n": 1}, store=backend.store)

        assert backend.raw(NAME) is not None
        assert backend.raw("session:42") is None

    def test_a_session_of_another_user_is_another_one(self, store):
        put({"n": 1}, store=store)

        @with_session(store=store)
        def handler(message):
            return dict(message.session)

        assert handler(message(user=43)) == {}
        assert handler(message(user=42)) == {"n": 1}

    def test_sessions_of_different_properties_never_mix(self, backend):
        """Even in a private chat, where user id and chat id are equal."""

        @with_session(store=backend.store, property="user", key=lambda m: m.from_user.id)
        @with_session(store=backend.store, property="room", key=lambda m: m.chat.id)
        def handler(message):
            before = dict(message.user), dict(message.room)
            message.user["mine"] = "user"
            message.room["mine"] = "room"
            return before

        assert handler(message()) == ({}, {})
        assert handler(message()) == ({"mine": "user"}, {"mine": "room"})
        assert backend.raw("user:42") != backend.raw("room:42")


CHANGES = {
    "a value added": lambda session: session.update(new=1),
    "a value replaced": lambda session: session.update(n=2),
    "a value deleted": lambda session: session.pop("n"),
    "a value deleted by del": lambda session: session.__delitem__("n"),
    "a list appended to": lambda session: session["cart"].append("milk"),
    "a list sorted": lambda session: session["cart"].sort(),
    "a dict in a list": lambda session: session["orders"][0].update(paid=True),
    "a list in a dict in a list": lambda session: session["orders"][0]["items"].clear(),
    "a dict in a dict": lambda session: session["deep"]["er"].setdefault("est", []).append(1),
    "an int for an equal float": lambda session: session.update(x=1),
    "an int for an equal bool": lambda session: session.update(on=1),
    "None": lambda session: session.update(n=None),
    "an equal dict under another key": lambda session: session.update(m=session.pop("deep")),
}


def content():
    """A session with something to change at every depth."""
    return {
        "n": 1,
        "x": 1.0,
        "on": True,
        "cart": ["tea", "bread"],
        "orders": [{"items": [1, 2]}],
        "deep": {"er": {}},
    }


change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


class TestAllOrNothing:
    """4.1 When the handler raises, nothing of its changes is kept, nested ones included."""

    def test_no_change_is_kept(self, store):
        put(content(), store=store)

        for change in CHANGES.values():
            with pytest.raises(Boom):
                visit(raising(lambda message: change(message.session)), store=store)  # noqa: B023

        assert repr(found(store=store)) == repr(content())

    @pytest.mark.parametrize(
        "change",
        [
            lambda message: message.session.clear(),
            lambda message: setattr(message, "session", None),
            lambda message: delattr(message, "session"),
            lambda message: setattr(message, "session", {"n": 2}),
        ],
        ids=["clear", "None", "del", "replaced"],
    )
    def test_the_session_is_neither_removed_nor_replaced(self, store, change):
        put(content(), store=store)

        with pytest.raises(Boom):
            visit(raising(change), store=store)

        assert found(store=store) == content()

    def test_no_session_comes_to_be(self, backend):
        with pytest.raises(Boom):
            visit(raising(lambda message: message.session.update(n=1)), store=backend.store)

        assert backend.raw(NAME) is None

    @pytest.mark.parametrize("error", [Boom("why"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
    def test_the_caller_gets_the_very_exception(self, store, error):
        with pytest.raises(type(error)) as caught:
            visit(raising(lambda message: message.session.update(n=1), error), store=store)

        assert caught.value is error
        assert found(store=store) == {}

    def test_nothing_is_written(self, backend):
        put(content(), store=backend.store)
        watch = backend.watched()

        with pytest.raises(Boom):
            visit(raising(lambda message: message.session.update(n=2)), store=watch.store)

        assert watch.writes == []

    def test_a_stack_keeps_none_of_its_sessions(self, store):
        @with_session(property="one", store=store)
        @with_session(property="two", store=store)
        def handler(message, error):
            before = dict(message.one), dict(message.two)
            message.one["n"] = message.two["n"] = error
            if error:
                raise Boom
            return before

        handler(message(), 0)
        with pytest.raises(Boom):
            handler(message(), 1)

        assert handler(message(), 0) == ({"n": 0}, {"n": 0})


class TestSaving:
    """4.2 Any change is saved, however deep. What did not change is not written."""

    @change
    def test_any_change_is_saved(self, store, change):
        put(content(), store=store)
        expected = content()
        change(expected)

        visit(lambda message: change(message.session), store=store)

        assert repr(found(store=store)) == repr(expected)

    def test_an_unchanged_session_is_not_written(self, backend):
        put(content(), store=backend.store)
        watch = backend.watched()

        def look(message):
            assert message.session["cart"][0] == "tea"
            assert message.session.get("nothing") is None
            message.session["cart"].append(message.session["cart"].pop())
            message.session["n"] = 1
            message.session["orders"] = [{"items": [1, 2]}]

        visit(look, store=watch.store)

        assert watch.calls == [("get", NAME)]

    def test_a_changed_session_is_written_once(self, backend):
        put(content(), store=backend.store)
        watch = backend.watched()

        def handler(message):
            for n in range(10):
                message.session["n"] = n

        visit(handler, store=watch.store)

        assert watch.calls == [("get", NAME), ("set", NAME)]

    def test_of_a_stack_only_what_changed_is_written(self, backend):
        watch = backend.watched()

        @with_session(property="one", store=watch.store)
        @with_session(property="two", store=watch.store)
        def handler(message):
            message.one["n"] = 1
            message.two["n"] = message.two.get("n", 0) + 1

        handler(message())
        del watch.calls[:]
        handler(message())

        assert watch.writes == [("set", "two:42:42")]

    @pytest.mark.parametrize(
        "handler",
        [
            lambda message: None,
            lambda message: message.session.get("n"),
            lambda message: (message.session.update(n=1), message.session.pop("n")),
            lambda message: setattr(message, "session", {}),
            lambda message: setattr(message, "session", None),
            lambda message: delattr(message, "session"),
        ],
        ids=["untouched", "read", "filled and emptied", "{}", "None", "del"],
    )
    def test_a_new_session_left_empty_is_not_stored(self, backend, handler):
        watch = backend.watched()

        visit(handler, store=watch.store)

        assert watch.writes == []
        assert backend.raw(NAME) is None

    def test_a_new_session_left_as_initial_made_it_is_not_stored(self, backend):
        watch = backend.watched()

        assert found(store=watch.store, initial=lambda: {"n": 7}) == {"n": 7}
        assert watch.writes == []
        assert backend.raw(NAME) is None

    def test_a_change_to_what_initial_made_is_saved(self, store):
        declared = {"store": store, "initial": lambda: {"cart": []}}
        visit(lambda message: message.session["cart"].append("tea"), **declared)

        assert found(**declared) == {"cart": ["tea"]}

    @pytest.mark.parametrize(
        "remove",
        [
            lambda message: message.session.clear(),
            lambda message: message.session.popitem(),
            lambda message: setattr(message, "session", {}),
            lambda message: setattr(message, "session", None),
            lambda message: delattr(message, "session"),
        ],
        ids=["clear", "the last value removed", "{}", "None", "del"],
    )
    def test_an_emptied_session_is_removed(self, backend, remove):
        """2.4 Clearing removes the session from the store; the next starts from initial()."""
        put({"n": 1}, store=backend.store)

        visit(remove, store=backend.store)

        assert backend.raw(NAME) is None
        assert found(store=backend.store, initial=lambda: {"n": 0}) == {"n": 0}

    def test_a_replaced_session_is_saved(self, store):
        put({"old": 1}, store=store)
        put({"new": [1]}, store=store)

        assert found(store=store) == {"new": [1]}


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


TTL = 60


class TestTTL:
    """4.6 A session expires its ttl after the end of the last update that opened it."""

    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def declared(self, backend, clock):
        """The options of a session with a ttl."""
        return {"store": backend.timed(clock), "ttl": TTL}

    def test_it_lives_until_then(self, declared, clock):
        put({"n": 1}, **declared)
        clock.now = math.nextafter(clock.now + TTL, 0)

        assert found(**declared) == {"n": 1}

    def test_it_expires_exactly_then(self, declared, clock):
        put({"n": 1}, **declared)
        clock.advance(TTL)

        assert found(**declared) == {}

    def test_expired_content_is_gone(self, backend, declared, clock):
        """At the next visit, of which the handler does nothing."""
        put({"n": 1}, **declared)
        clock.advance(TTL)
        visit(lambda message: None, **declared)

        assert backend.raw(NAME) is None

    def test_an_expired_session_starts_from_initial(self, declared, clock):
        put({"n": 1, "m": 1}, **declared)
        clock.advance(TTL)
        declared["initial"] = lambda: {"n": 0}
        visit(lambda message: message.session.update(more=1), **declared)

        assert found(**declared) == {"n": 0, "more": 1}

    @pytest.mark.parametrize(
        "body",
        [
            lambda message: None,
            lambda message: message.session["n"],
            lambda message: message.session.update(m=2),
            lambda message: setattr(message, "session", {"n": 1}),
        ],
        ids=["nothing", "reads", "changes", "replaces"],
    )
    def test_it_counts_from_the_last_update(self, declared, clock, body):
        put({"n": 1}, **declared)
        for _ in range(3):
            clock.advance(TTL - 1)
            visit(body, **declared)
        clock.advance(TTL - 1)
        assert found(**declared)["n"] == 1

        clock.advance(TTL)
        assert found(**declared) == {}

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            (raising(lambda message: None), Boom),
            (raising(lambda message: message.session.update(n=2)), Boom),
            (raising(lambda message: message.session.clear()), Boom),
            (lambda message: message.session.update(n=lambda: 1), SessionDataError),
            (lambda message: setattr(message, "session", 7), SessionDataError),
        ],
        ids=["raises", "changes and raises", "clears and raises", "can't be kept", "no dict"],
    )
    def test_it_counts_from_the_last_update_that_failed(self, declared, clock, body, error):
        put({"n": 1}, **declared)
        for _ in range(2):
            clock.advance(TTL - 1)
            with pytest.raises(error):
                visit(body, **declared)
        clock.advance(TTL - 1)
        assert found(**declared) == {"n": 1}

        clock.advance(TTL)
        assert found(**declared) == {}

    @pytest.mark.parametrize("body", [lambda message: None, raising(lambda message: None)])
    def test_it_counts_from_the_end_of_the_handler(self, declared, clock, body):
        """A slow handler's session does not expire under its hands."""
        put({"n": 1}, **declared)

        def slow(message):
            clock.advance(TTL + 1)
            body(message)

        try:
            visit(slow, **declared)
        except Boom:
            pass
        clock.advance(TTL - 1)
        assert found(**declared) == {"n": 1}

        clock.advance(TTL)
        assert found(**declared) == {}

    def test_a_new_session_counts_from_the_end_of_the_handler(self, declared, clock):
        def slow(message):
            message.session["n"] = 1
            clock.advance(TTL + 1)

        visit(slow, **declared)
        clock.advance(TTL - 1)

        assert found(**declared) == {"n": 1}

    def test_without_a_ttl_it_never_expires(self, declared, clock):
        del declared["ttl"]
        put({"n": 1}, **declared)
        clock.advance(1e9)

        assert found(**declared) == {"n": 1}

    def test_a_timedelta_is_as_good(self, declared, clock):
        declared["ttl"] = timedelta(minutes=1)
        put({"n": 1}, **declared)
        clock.advance(59)
        assert found(**declared) == {"n": 1}

        clock.advance(60)
        assert found(**declared) == {}

    def test_a_fraction_of_a_second(self, declared, clock):
        declared["ttl"] = 0.25
        put({"n": 1}, **declared)
        clock.advance(0.125)
        assert found(**declared) == {"n": 1}

        clock.advance(0.25)
        assert found(**declared) == {}

    def test_each_session_of_a_stack_by_its_own_ttl(self, declared, clock):
        store = declared["store"]

        @with_session(property="short", store=store, ttl=10)
        @with_session(property="long", store=store, ttl=100)
        @with_session(property="forever", store=store)
        def handler(message):
            sessions = message.short, message.long, message.forever
            before = [dict(session) for session in sessions]
            for session in sessions:
                session["n"] = 1
            return before

        handler(message())
        clock.advance(10)
        assert handler(message()) == [{}, {"n": 1}, {"n": 1}]
        clock.advance(100)
        assert handler(message()) == [{}, {}, {"n": 1}]

    @pytest.mark.parametrize(("old", "new"), [(10, 100), (100, 10), (None, 50), (50, 50.0)])
    def test_a_new_ttl_counts_from_the_next_save(self, declared, clock, old, new):
        """1.3 A declaration's ttl can be written."""
        declaration = with_session(store=declared["store"], ttl=old)

        @declaration
        def handler(message, n=None):
            before = message.session.get("n")
            if n is not None:
                message.session["n"] = n
            return before

        handler(message(), 1)
        declaration.ttl = new
        handler(message(), 2)
        clock.advance(new - 1)
        assert handler(message()) == 2

        clock.advance(new)
        assert handler(message()) is None

    def test_no_ttl_from_the_next_save_on(self, declared, clock):
        put({"n": 1}, **declared)
        del declared["ttl"]
        put({"n": 2}, **declared)
        clock.advance(1e9)

        assert found(**declared) == {"n": 2}

    def test_a_removed_session_is_gone(self, backend, declared):
        put({"n": 1}, **declared)
        visit(lambda message: message.session.clear(), **declared)

        assert backend.raw(NAME) is None

    def test_an_update_of_another_user_does_not_count(self, declared, clock):
        put({"n": 1}, **declared)

        @with_session(**declared)
        def handler(message):
            message.session["n"] = 2

        clock.advance(TTL - 1)
        handler(message(user=43))
        clock.advance(1)

        assert found(**declared) == {}


class TestNothingLost:
    """5.1 Handlers of one session never overlap."""

    UPDATES = 100

    @pytest.mark.parametrize("threads", [2, 8])
    def test_increments(self, backend, threads):
        """Read, wait, write: 100 increments on many threads give 100."""
        bot = Bot(threads, backend)
        inside = []
        overlaps = []

        @bot.handler
        @with_session(store=backend.store)
        def count(message):
            overlaps.extend(inside)
            inside.append(threading.get_ident())
            n = message.session.get("n", 0)
            time.sleep(random.random() * 0.003)
            message.session["n"] = n + 1
            inside.remove(threading.get_ident())

        bot.run([payload(text="count")] * self.UPDATES)

        assert bot.errors == []
        assert overlaps == []
        assert found(store=backend.store) == {"n": self.UPDATES}

    def test_failing_handlers_among_them(self, backend):
        """Those that raise change nothing, and let the next one in."""
        bot = Bot(8, backend)
        turns = iter(range(self.UPDATES))

        @bot.handler
        @with_session(store=backend.store, ttl=3600)
        def count(message):
            message.session["n"] = message.session.get("n", 0) + 1
            if next(turns) % 2:
                raise Boom

        bot.run([payload(text="count")] * self.UPDATES)

        assert [type(error) for error in bot.errors] == [Boom] * (self.UPDATES // 2)
        assert found(store=backend.store) == {"n": self.UPDATES // 2}

    def test_many_users_at_once(self, backend):
        bot = Bot(8, backend)
        users = [random.Random(7).randrange(100, 110) for _ in range(self.UPDATES)]

        @bot.handler
        @with_session(store=backend.store)
        def count(message):
            n = message.session.get("n", 0)
            time.sleep(random.random() * 0.001)
            message.session["n"] = n + 1

        bot.run([payload(user, "count") for user in users])

        @with_session(store=backend.store)
        def counted(message):
            return message.session["n"]

        assert bot.errors == []
        assert {user: counted(message(user)) for user in users} == {
            user: users.count(user) for user in users
        }

    @pytest.mark.parametrize("second", ["the same store", "another store"])
    def test_stacks_in_opposite_orders(self, backend, second):
        """5.3 Two sessions, stacked in both orders: no deadlock, and nothing lost in either."""
        bot = Bot(8, backend)
        one = with_session(property="one", store=backend.store)
        two = with_session(
            property="two",
            key=lambda message: message.from_user.id,
            store=backend.store if second == "the same store" else {},
        )

        def count(message):
            n, m = message.one.get("n", 0), message.two.get("n", 0)
            time.sleep(random.random() * 0.003)
            message.one["n"], message.two["n"] = n + 1, m + 1

        @bot.handler
        @one
        @two
        def forth(message):
            count(message)

        @bot.handler
        @two
        @one
        def back(message):
            count(message)

        @bot.handler
        @two
        def only(message):
            message.two["n"] += 1

        forth(message())
        bot.run([payload(text=text) for text in ("forth", "back", "only")] * 40)

        @one
        @two
        def counted(message):
            return message.one["n"], message.two["n"]

        assert bot.errors == []
        assert counted(message()) == (81, 121)

    def test_different_sessions_do_not_wait_for_each_other(self, backend):
        """5.2 All handlers are inside at once: each waits there for all others."""
        bot = Bot(8, backend)
        together = threading.Barrier(8)

        @bot.handler
        @with_session(store=backend.store)
        def meet(message):
            together.wait(TIMEOUT)
            message.session["met"] = True

        bot.run([payload(user, "meet") for user in range(100, 108)])

        assert bot.errors == []
        assert backend.raw("session:107:107") is not None


class TestBusy:
    """5.4 Waiting longer than lock_timeout raises SessionBusy."""

    def test_a_handler_that_takes_too_long(self, backend):
        bot = Bot(2, backend)
        busy = threading.Event()
        ran = []

        @bot.handler
        @with_session(store=backend.store, lock_timeout=0.01)
        def handler(message):
            ran.append(message)
            assert busy.wait(TIMEOUT)
            message.session["n"] = message.session.get("n", 0) + 1

        # What lets the other one go on comes after the one that has to wait has given up.
        bot.run([payload(text="handler")] * 2, lambda: (until(lambda: bot.errors), busy.set()))

        (error,) = bot.errors
        assert isinstance(error, SessionBusy)
        assert NAME in str(error)
        assert len(ran) == 1
        assert found(store=backend.store) == {"n": 1}


class TestFailingStore:
    """6.3 A failing store raises SessionStoreError from the client's own error."""

    @pytest.fixture
    def watch(self, backend):
        put({"n": 1}, store=backend.store)
        return backend.watched()

    def check(self, caught, error):
        assert caught.value.__cause__ is error
        assert NAME in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_loading(self, watch):
        """The handler did not run."""
        error, ran = Boom("secret"), []
        watch.fail("get", error)

        with pytest.raises(SessionStoreError) as caught:
            visit(ran.append, store=watch.store)

        self.check(caught, error)
        assert ran == []
        assert watch.writes == []

    @pytest.mark.parametrize(
        ("operation", "body"),
        [
            ("set", lambda message: message.session.update(n="secret")),
            ("delete", lambda message: message.session.clear()),
        ],
        ids=["set", "delete"],
    )
    def test_saving(self, backend, watch, operation, body):
        """The caller hears of it, and nothing has changed."""
        if isinstance(backend.store, GetSet):
            operation = "set"
        error = Boom("secret")
        watch.fail(operation, error, on=1)

        with pytest.raises(SessionStoreError) as caught:
            visit(body, store=watch.store)

        self.check(caught, error)
        assert found(store=backend.store) == {"n": 1}

    @pytest.mark.parametrize("operation", ["get", "set", "delete"])
    def test_it_works_again_without_a_restart(self, backend, watch, operation):
        if isinstance(backend.store, GetSet) and operation == "delete":
            operation = "set"

        @with_session(store=watch.store)
        def handler(message, n):
            message.session["n"] = n
            if n is None:
                message.session.clear()

        watch.fail(operation, Boom())
        for _ in range(3):
            with pytest.raises(SessionStoreError):
                handler(message(), None if operation == "delete" else 2)
        watch.heal()

        assert found(store=watch.store) == {"n": 1}
        handler(message(), 3)
        assert found(store=watch.store) == {"n": 3}
        handler(message(), None)
        assert found(store=watch.store) == {}

    def test_a_handler_that_raises_as_well_is_heard(self, backend, watch, caplog):
        """What the handler raised matters more than that the ttl could not be counted anew."""
        put({"n": 1}, store=backend.store, ttl=3600)
        error = Boom()
        watch.fail("set", OSError("no route"))

        with pytest.raises(Boom) as caught, caplog.at_level(logging.WARNING, "telesession"):
            visit(raising(lambda message: None, error), store=watch.store, ttl=3600)

        assert caught.value is error
        assert NAME in caplog.text
        assert "OSError" in caplog.text

    def test_an_interrupt_is_passed_on_as_it_is(self, watch):
        error = KeyboardInterrupt()
        watch.fail("set", error, on=1)

        with pytest.raises(KeyboardInterrupt) as caught:
            put({"n": 2}, store=watch.store)

        assert caught.value is error
        assert found(store=watch.store) == {"n": 1}

    def test_loading_the_second_of_a_stack(self, watch):
        watch.fail("get", Boom(), on=2)
        ran = []

        @with_session(property="one", store=watch.store)
        @with_session(store=watch.store)
        def handler(message):
            ran.append(message)

        with pytest.raises(SessionStoreError):
            handler(message())

        assert ran == []
        handler(message())
        assert len(ran) == 1


class TestStacks:
    """4.1 and 5.3: the sessions of a stack are saved together, or not at all."""

    @staticmethod
    def stack(one, two, three):
        @with_session(property="one", store=one)
        @with_session(property="two", store=two)
        @with_session(property="three", store=three)
        def handler(message, change=lambda *sessions: None):
            sessions = message.one, message.two, message.three
            before = [dict(session) for session in sessions]
            change(*sessions)
            return before

        return handler

    @staticmethod
    def fill(one, two, three):
        one["n"] = two["n"] = 1

    @staticmethod
    def change(one, two, three):
        one["n"] = 2
        two.clear()
        three["n"] = 3

    @pytest.mark.parametrize("number", [1, 2])
    def test_on_one_store(self, backend, number):
        """Whichever write fails, what was written before it is taken back."""
        watch = backend.watched()
        handler = self.stack(watch.store, watch.store, watch.store)
        handler(message(), self.fill)
        error = Boom()
        watch.fail("set", error, on=number)

        with pytest.raises(SessionStoreError) as caught:
            handler(message(), self.change)

        assert caught.value.__cause__ is error
        assert handler(message()) == [{"n": 1}, {"n": 1}, {}]
        assert backend.raw("three:42:42") is None
        handler(message(), self.change)
        assert handler(message()) == [{"n": 2}, {}, {"n": 3}]

    @pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
    def test_over_two_stores(self, backend, first):
        """The other store fails: what was written to this one, if anything, is taken back."""
        other = WatchedClient({})
        stores = (
            (backend.store, backend.store, other.store)
            if first
            else (other.store, backend.store, backend.store)
        )
        handler = self.stack(*stores)
        handler(message(), self.fill)
        error = Boom()
        other.fail("set", error, on=1)

        with pytest.raises(SessionStoreError) as caught:
            handler(message(), self.change)

        assert caught.value.__cause__ is error
        assert handler(message()) == [{"n": 1}, {"n": 1}, {}]
        handler(message(), self.change)
        assert handler(message()) == [{"n": 2}, {}, {"n": 3}]

    def test_this_store_fails_after_another(self, backend):
        watch = backend.watched()
        handler = self.stack({}, watch.store, watch.store)
        handler(message(), self.fill)
        watch.fail("set", Boom(), on=1)

        with pytest.raises(SessionStoreError):
            handler(message(), self.change)

        assert handler(message()) == [{"n": 1}, {"n": 1}, {}]

    def test_the_second_store_cannot_be_read(self, backend):
        other = WatchedClient({})
        handler = self.stack(backend.store, other.store, backend.store)
        handler(message(), self.fill)
        other.fail("get", Boom(), on=1)

        with pytest.raises(SessionStoreError):
            handler(message(), self.change)

        assert handler(message()) == [{"n": 1}, {"n": 1}, {}]

    def test_a_ttl_counts_on_for_what_was_taken_back(self, backend):
        clock, other = Clock(), WatchedClient({})
        store = backend.timed(clock)

        @with_session(property="one", store=store, ttl=TTL)
        @with_session(property="two", store=other.store)
        def handler(message, n=None):
            before = message.one.get("n")
            if n:
                message.one["n"] = message.two["n"] = n
            return before

        handler(message(), 1)
        other.fail("set", Boom(), on=1)
        with pytest.raises(SessionStoreError):
            handler(message(), 2)
        clock.advance(TTL - 1)
        assert handler(message()) == 1

        clock.advance(TTL)
        assert handler(message()) is None


def test_the_suites_own_leasing_store_is_strict():
    """What the suite shows of it, it shows of a store that refuses what it has not leased."""
    store = Leasing()
    lease, payloads = store.open([NAME], TIMEOUT)

    assert payloads == [None]
    with pytest.raises(AssertionError):
        store.open([NAME], TIMEOUT)
    store.commit(lease, [(NAME, "x", None)])
    with pytest.raises(SessionError):
        store.commit(lease, [(NAME, "y", None)])
    assert WatchedStore(store).open([NAME], TIMEOUT)[1] == ["x"]
    assert isinstance(KeyValueStore({}).codec, type(JSON))
