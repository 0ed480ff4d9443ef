"""4.2, 4.3, 5.7 `KeyValueStore`: what it keeps, in which form, and how it lists that."""

import collections
import datetime
import dbm.dumb
import decimal
import json
import math
import pickle
import re
import shelve
import threading
from datetime import timedelta

import cachetools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telesession import KeyValueStore, SessionDataError, SessionStoreError, with_session
from telesession.keyvalue import compose, parse
from tests.helpers import peak_of_listing, shown
from tests.keyvalue_clients import Client, GetPut, Items, ItemsWithDelete, save
from tests.stores import NAME, TIMEOUT, Clock, GetSet, found, message, put, visit


class Listed(ItemsWithDelete):
    """Item access, and an iteration of its own."""

    def __iter__(self):
        return iter(self.kept)


class TestForm:
    """What is kept: JSON as it is, and before all else a short head."""

    def test_json_is_kept_as_it_is(self):
        store = {}
        put({"n": 1, "e": "é"}, store=store)

        assert store == {NAME: '{"n":1,"e":"\\u00e9"}'}

    def test_a_ttl_is_kept_as_the_time_of_expiry(self):
        store = {}
        put({"n": 1}, store=KeyValueStore(store, clock=Clock(1000.5)), ttl=60)

        assert store == {NAME: '@1060.5@{"n":1}'}

    def test_bytes_are_kept_as_text(self):
        store = {}
        put({"n": 1}, store=store, codec=pickle)

        assert store[NAME].startswith("@base64@")
        assert store[NAME].isascii()

    def test_text_beyond_ascii(self, valkey):
        class Unicode:
            loads = json.loads

            @staticmethod
            def dumps(data):
                return json.dumps(data, ensure_ascii=False)

        put({"e": "é😀"}, store=valkey, codec=Unicode)

        assert valkey.get(NAME) == '{"e": "é😀"}'.encode()
        assert found(store=valkey, codec=Unicode) == {"e": "é😀"}

    @given(
        st.one_of(st.text(min_size=1), st.text("@0.5 base64").filter(bool), st.binary()),
        st.none() | st.floats(0, 1e12) | st.integers(0, 10**12),
    )
    @settings(derandomize=True, database=None, deadline=None)
    def test_every_payload_comes_back(self, stored, expires):
        text = compose(stored, expires)

        assert parse(text) == (expires, stored)
        assert text

    def test_a_session_written_with_a_ttl_is_read_without_one(self):
        clock = Clock()
        store = KeyValueStore({}, clock=clock)
        put({"n": 1}, store=store, ttl=60)
        assert found(store=store) == {"n": 1}

        clock.advance(60)
        assert found(store=store) == {}

    @pytest.mark.parametrize(
        "stored", [7, 1.5, True, ["{}"], {"n": 1}, ("{}",), object(), {1}], ids=shown
    )
    @pytest.mark.parametrize("ttl", [None, 60])
    def test_what_is_no_text_is_left(self, stored, ttl):
        """4.5 Somebody else's data raises, and is left as it is."""
        store = {NAME: stored}
        ran = []

        with pytest.raises(SessionDataError, match=NAME):
            visit(ran.append, store=store, ttl=ttl)

        assert ran == []
        assert store[NAME] is stored

        with_session(store=store).remove(message())
        assert NAME not in store

    @pytest.mark.parametrize("stored", ["@5", "@-1", "@1700000000.5", "@0 base64"])
    def test_a_head_without_an_end_is_no_session(self, stored):
        """4.5 It is never wiped: cut off, or never ours."""
        store = {NAME: stored}

        with pytest.raises(SessionDataError, match=NAME):
            visit(lambda message: None, store=store)

        assert store == {NAME: stored}

        with_session(store=store).remove(message())
        assert store == {}


class TestExpire:
    """Objects that can expire what they keep are told when."""

    class Recording(GetSet):
        def __init__(self):
            super().__init__()
            self.told = []

        def set(self, key, value, **told):
            super().set(key, value)
            self.told.append(told)

    def test_it_is_told_the_seconds(self):
        client = self.Recording()
        store = KeyValueStore(client, expire="timeout")
        put({"n": 1}, store=store, ttl=60)
        visit(lambda message: None, store=store, ttl=60)
        put({"n": 2}, store=store, ttl=timedelta(minutes=2))
        put({"n": 3}, store=store)

        assert client.told == [{"timeout": 60}, {"timeout": 60}, {"timeout": 120}, {}]
        assert client.kept == {NAME: '{"n":3}'}

    def test_without_it_only_the_text_knows(self):
        client = self.Recording()
        put({"n": 1}, store=client, ttl=60)

        assert client.told == [{}]

    def test_diskcache(self, tmp_path):
        import diskcache

        with diskcache.Cache(str(tmp_path)) as cache:
            store = KeyValueStore(cache, expire="expire")
            put({"n": 1}, store=store, ttl=3600)
            assert found(store=store, ttl=3600) == {"n": 1}
            assert cache.get(NAME, expire_time=True)[1] is not None

            put({"n": 2}, store=store)
            assert cache.get(NAME, expire_time=True) == ('{"n":2}', None)

    def test_cachelib(self, tmp_path):
        from cachelib import FileSystemCache

        cache = FileSystemCache(str(tmp_path))
        store = KeyValueStore(cache, expire="timeout")
        put({"n": 1}, store=store, ttl=3600)

        assert found(store=store, ttl=3600) == {"n": 1}
        assert cache.get(NAME) == '{"n":1}'

    def test_redis(self, valkey):
        store = KeyValueStore(valkey, expire="ex")
        put({"n": 1}, store=store, ttl=3600)
        assert 0 < valkey.ttl(NAME) <= 3600

        put({"n": 2}, store=store)
        assert valkey.ttl(NAME) == -1

    def test_redis_with_a_timedelta(self, valkey):
        """redis and pymemcache take whole seconds only."""
        put({"n": 1}, store=KeyValueStore(valkey, expire="ex"), ttl=timedelta(hours=1))

        assert 0 < valkey.ttl(NAME) <= 3600

    def test_memcached(self, memcached):
        store = KeyValueStore(memcached, expire="expire")
        put({"n": 1}, store=store, ttl=3600)

        assert found(store=store, ttl=3600) == {"n": 1}
        assert memcached.get(NAME) == b'{"n":1}'


def scalars():
    return st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.dates()
    )


def values():
    """Much of what a session may hold, and more than JSON can keep."""
    keys = st.text() | st.integers() | st.booleans() | st.none() | st.floats()
    return st.recursive(
        scalars(),
        lambda parts: st.one_of(
            st.lists(parts, max_size=3),
            st.dictionaries(keys, parts, max_size=3),
            st.tuples(parts, parts),
        ),
        max_leaves=8,
    )


class Pickling:
    """A codec that does the same as pickle, and is not the module."""

    dumps = staticmethod(pickle.dumps)
    loads = staticmethod(pickle.loads)


class Plain:
    """An object without equality of its own, as most are."""

    n = 0


class TestExactly:
    """4.2 and 4.3 Any change is saved, and what is loaded is exactly what was saved."""

    @pytest.mark.parametrize(
        ("value", "path"),
        [
            *((value, "") for value in ((), {1}, frozenset(), b"x", object(), int, 1j, range(2))),
            *((value, "") for value in (datetime.date.max, decimal.Decimal(1), math.nan, math.inf)),
            (["a", (1,)], "[1]"),
            (["a", {1: 2}.keys()], "[1]"),
            ({"a": -math.inf}, "['a']"),
            ({"a": [0, 1, {"b": (1,)}]}, "['a'][2]['b']"),
            ({1.5: 1}, "[1.5]"),
            ({None: 1}, "[None]"),
            ({True: 1}, "[True]"),
            ({(1, 2): 1}, "[(1, 2)]"),
            ([{"a": {"b": 1, 7: 2}}], "[0]['a'][7]"),
            (collections.OrderedDict(a=1), ""),
            ({"a": collections.Counter()}, "['a']"),
        ],
        ids=shown,
    )
    def test_what_json_would_change(self, value, path):
        """It is refused, and the message says where it is."""
        store = {}

        with pytest.raises(SessionDataError, match=re.escape(f"session['v']{path} in '{NAME}'")):
            put({"v": value}, store=store)

        assert store == {}

    @given(st.dictionaries(st.text(), values(), max_size=3))
    @settings(derandomize=True, database=None, deadline=None, max_examples=300)
    def test_whatever_is_not_refused(self, content):
        store = {}
        try:
            put(content, store=store)
        except SessionDataError:
            assert store == {}
        else:
            assert repr(found(store=store)) == repr(content)

    def test_the_sign_of_zero(self):
        store = {}
        put({"x": 0.0}, store=store)
        put({"x": -0.0}, store=store)

        assert math.copysign(1, found(store=store)["x"]) == -1

    def test_the_order_of_keys(self):
        """As where the last used comes last."""
        store = {}
        put({"used": {"a": 1, "b": 2}}, store=store)

        def use(message):
            used = message.session["used"]
            used["a"] = used.pop("a")

        visit(use, store=store)

        assert list(found(store=store)["used"]) == ["b", "a"]

    @pytest.mark.parametrize(
        ("before", "after"), [([1], (1,)), ({"1": 2}, {1: 2}), ({"null": 2}, {None: 2})], ids=repr
    )
    def test_what_json_would_change_to_what_is_stored(self, before, after):
        """The handler finds another value next time than it left."""
        store = {}
        put({"v": before}, store=store)

        with pytest.raises(SessionDataError, match=r"session\['v'\]"):
            put({"v": after}, store=store)

    def test_a_codec_that_leaves_out_all_that_is_new(self):
        class Forgetful:
            loads = json.loads

            @staticmethod
            def dumps(data):
                return json.dumps({key: data[key] for key in data if type(data[key]) is int})

        store = {}
        put({"n": 1}, store=store, codec=Forgetful)

        with pytest.raises(SessionDataError, match=r"session\['lost'\]"):
            put({"n": 1, "lost": "x"}, store=store, codec=Forgetful)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
            (
                datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.timezone.utc),
                datetime.datetime(
                    2024, 1, 1, 13, tzinfo=datetime.timezone(datetime.timedelta(hours=1))
                ),
            ),
            ({1}, {True}),
        ],
        ids=shown,
    )
    def test_equal_values(self, before, after):
        store = {}
        put({"v": before}, store=store, codec=Pickling)
        put({"v": after}, store=store, codec=Pickling)

        assert repr(found(store=store, codec=Pickling)) == repr({"v": after})

    def test_an_object_without_equality(self):
        store = {}
        put({"v": Plain()}, store=store, codec=Pickling)
        visit(lambda message: setattr(message.session["v"], "n", 1), store=store, codec=Pickling)

        assert found(store=store, codec=Pickling)["v"].n == 1

    def test_an_object_without_equality_and_pickle_itself(self):
        store = {}
        put({"v": Plain()}, store=store, codec=pickle)
        visit(lambda message: setattr(message.session["v"], "n", 1), store=store, codec=pickle)

        assert found(store=store, codec=pickle)["v"].n == 1

    def test_an_unchanged_set_is_not_written(self):
        """Loaded, it has not the order of the larger set that it was before."""
        value = set(range(200))
        for number in range(200):
            if number not in (1, 64):
                value.discard(number)
        kept = GetSet()
        put({"v": value}, store=kept, codec=pickle)
        writes = []
        store = Client(get=kept.get, set=lambda key, value: writes.append(key))
        visit(lambda message: message.session["v"], store=store, codec=pickle)

        assert writes == []


class TestNames:
    """5.7 The names of what is stored."""

    NAMES = ("user_a:1", "user_a:2", "userXa:1", "User_A:1", "user_a", "user_ab:1")

    @pytest.mark.parametrize(
        "make",
        [
            dict,
            collections.OrderedDict,
            collections.UserDict,
            lambda: collections.defaultdict(str),
            lambda: collections.ChainMap({}, {}),
            lambda: cachetools.LRUCache(100),
            lambda: cachetools.TTLCache(100, 60),
            lambda: shelve.Shelf({}),
        ],
    )
    def test_exactly_those_that_begin_with_the_prefix(self, make):
        clock = Clock()
        store = KeyValueStore(make(), clock=clock)
        save(store, *self.NAMES)
        save(store, "user_a:short", ttl=10)
        assert sorted(store.names("user_a:")) == ["user_a:1", "user_a:2", "user_a:short"]
        clock.advance(10)

        assert sorted(store.names("user_a:")) == ["user_a:1", "user_a:2"]
        assert sorted(store.names("")) == sorted(self.NAMES)
        assert list(store.names("nobody:")) == []

    def test_diskcache(self, tmp_path):
        import diskcache

        with diskcache.Cache(str(tmp_path)) as cache:
            store = KeyValueStore(cache)
            names = [f"user_a:{n}" for n in range(250)]
            save(store, *names, *self.NAMES[2:])
            cache[7] = "not ours"
            listed = []
            for name in store.names("user_a:"):
                if "new" not in name:
                    listed.append(name)
                    save(store, f"user_a:new {name}")
                    save(store, name, content=None)

            assert sorted(listed) == sorted(names)

    def test_a_dbm_whose_keys_are_bytes(self, tmp_path):
        with dbm.dumb.open(str(tmp_path / "kept")) as kept:
            store = KeyValueStore(kept)
            save(store, *self.NAMES)

            assert sorted(store.names("user_a:")) == ["user_a:1", "user_a:2"]

    def test_a_mapping_that_iterates_over_its_items(self):
        """As peewee's `KeyValue` does."""

        class Pairs(dict):
            def __iter__(self):
                return iter(self.items())

        store = KeyValueStore(Pairs())
        save(store, *self.NAMES)

        assert sorted(store.names("user_a:")) == ["user_a:1", "user_a:2"]

    def test_what_is_no_session(self):
        """An object that can't delete keeps an empty text; other keys are somebody else's."""
        kept = Listed({"session:gone": "", "session:1": "{}", 7: "{}", ("session:2",): "{}"})
        store = KeyValueStore(kept)

        assert list(store.names("session:")) == ["session:1"]

    def test_what_cannot_be_read_is_there_nevertheless(self):
        store = KeyValueStore({"session:1": "@5", "session:2": 7})

        assert sorted(store.names("session:")) == ["session:1", "session:2"]

    @pytest.mark.parametrize("make", [dict, lambda: cachetools.LRUCache(100_000), Listed])
    def test_each_that_stays_comes_once_whatever_happens_meanwhile(self, make):
        kept = make()
        store = KeyValueStore(kept)
        stay = {f"stays:{n}" for n in range(10_000)}
        save(store, *(f"goes:{n}" for n in range(10_000)), *stay)
        listed = []
        for number, name in enumerate(store.names("")):
            listed.append(name)
            save(store, f"stays:{number % 10_000}", f"comes:{number}")
            save(store, f"goes:{number % 10_000}", content=None)

        stayed = [name for name in listed if name in stay]
        assert len(stayed) == len(set(stayed)) == 10_000
        assert len(listed) == len(set(listed))

    def test_it_takes_little_memory_for_all_of_a_dict(self):
        store = KeyValueStore({f"session:{n}": "{}" for n in range(100_000)})

        # a list of them, as they are, and no copy
        assert peak_of_listing(store.names("session:"), 100_000) < 1_000_000

    @pytest.mark.parametrize("make", [dict, lambda: cachetools.LRUCache(9), lambda: Listed({})])
    def test_nothing_is_held_between(self, make):
        store = KeyValueStore(make())
        save(store, "a", "b")
        names = store.names("")
        next(names)
        thread = threading.Thread(target=save, args=(store, "c"))
        thread.start()
        thread.join(TIMEOUT)

        assert not thread.is_alive()

    @pytest.mark.parametrize("make", [GetSet, GetPut, Items, ItemsWithDelete])
    def test_an_object_that_cannot_list_says_so_and_what_to_do(self, make):
        store = KeyValueStore(make())

        with pytest.raises(SessionStoreError, match=r"can't list .* in a session of your own"):
            store.names("session:")

    def test_a_redis_client_is_not_asked_for_all_its_keys(self, valkey):
        with pytest.raises(SessionStoreError, match="RedisStore"):
            KeyValueStore(valkey).names("session:")


class TestPeek:
    """5.7 What is stored, and nothing changes by that."""

    @pytest.mark.parametrize("make", [dict, GetSet, GetPut, Items])
    def test_what_is_stored(self, make):
        store = KeyValueStore(make())
        save(store, "a")

        assert store.peek("a") == "content"
        assert store.peek("b") is None

    def test_what_has_expired_is_neither_given_nor_removed(self):
        kept, clock = {}, Clock()
        store = KeyValueStore(kept, clock=clock)
        save(store, "a", ttl=10)
        before = dict(kept)
        clock.advance(9)
        assert store.peek("a") == "content"
        clock.advance(1)

        assert store.peek("a") is None
        assert kept == before

    @pytest.mark.parametrize("kept", ["@5", b"\xff", 7])
    def test_what_cannot_be_read(self, kept):
        with pytest.raises(SessionDataError, match=NAME):
            with_session(store={NAME: kept}).peek(message())

    @pytest.mark.parametrize(
        "make",
        [
            cachetools.LRUCache,
            cachetools.LFUCache,
            cachetools.FIFOCache,
            lambda n: cachetools.TTLCache(n, 60),
        ],
    )
    @pytest.mark.parametrize("look", ["peek", "names"])
    def test_it_is_no_use_of_an_item_of_a_cache(self, make, look):
        store = KeyValueStore(make(2))
        save(store, "a", "b")
        for _ in range(3):
            if look == "peek":
                assert store.peek("a") == "content"
            else:
                assert sorted(store.names("a")) == ["a"]
        save(store, "c")

        assert sorted(store.names("")) == ["b", "c"]

    def test_of_a_cache_that_has_expired(self):
        clock = Clock()
        store = KeyValueStore(cachetools.TTLCache(9, 60, clock))
        save(store, "a")
        clock.advance(60)

        assert store.peek("a") is None
