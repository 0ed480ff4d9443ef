"""6.1 `KeyValueStore`: what it takes for a store, what it keeps there, and how it fails.

What every store has to keep is in `test_stores`; here is what is particular to objects with get
and set, and to mappings. Where the store does not matter it is a plain dict.
"""

import asyncio
import collections
import datetime
import dbm.dumb
import decimal
import gc
import json
import math
import pickle
import re
import shelve
import subprocess
import sys
import threading
import time
import tracemalloc
from array import array
from datetime import timedelta
from types import MappingProxyType

import cachetools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telesession import (
    JSON,
    KeyValueStore,
    SessionDataError,
    SessionStoreError,
    with_session,
)
from telesession.keyvalue import as_store, compose, parse
from tests.helpers import shown
from tests.interrupts import free, interruptions
from tests.stores import NAME, TIMEOUT, Bot, Clock, GetSet, found, message, payload, put, visit


class Client:
    """Has only the methods that it is given."""

    def __init__(self, **methods):
        self.__dict__.update(methods)


class Items:
    """Item access and nothing else."""

    def __init__(self, kept=None):
        self.kept = {} if kept is None else kept

    def __getitem__(self, key):
        return self.kept[key]

    def __setitem__(self, key, value):
        self.kept[key] = value


class ItemsWithDelete(Items):
    def __delitem__(self, key):
        del self.kept[key]


class GetPut:
    def __init__(self):
        self.kept = {}

    def get(self, key):
        return self.kept[key]

    def put(self, key, value):
        self.kept[key] = value


class GetSetDelete(GetSet):
    def delete(self, key):
        del self.kept[key]


class GetSetDelItem(GetSet):
    def __delitem__(self, key):
        del self.kept[key]


class Encoding(GetSet):
    """Gives bytes back, as clients of servers do."""

    def get(self, key):
        return self.kept.get(key, "").encode()


class Listed(ItemsWithDelete):
    """Item access, and an iteration of its own."""

    def __iter__(self):
        return iter(self.kept)


def save(store, *names, content="content", ttl=None):
    """Save sessions under these names, as handlers would."""
    for name in names:
        lease, _ = store.open([name])
        store.commit(lease, [(name, content, ttl)])


class BytearrayEncoding(GetSet):
    def get(self, key):
        return bytearray(self.kept.get(key, ""), "utf-8")


class TestWhatIsAStore:
    """6.1 Any object with get and set (or put), or any mutable mapping."""

    @pytest.mark.parametrize(
        "make",
        [
            GetPut,
            GetSet,
            GetSetDelete,
            GetSetDelItem,
            Items,
            ItemsWithDelete,
            Encoding,
            BytearrayEncoding,
            collections.OrderedDict,
            collections.UserDict,
            lambda: collections.defaultdict(str),
            lambda: collections.ChainMap({}, {}),
        ],
    )
    @pytest.mark.parametrize("codec", [None, pickle], ids=["JSON", "pickle"])
    def test_it_keeps_and_removes(self, make, codec):
        declared = {"store": make(), "codec": codec}

        assert found(**declared) == {}
        put({"n": 1, "e": "é"}, **declared)
        assert found(**declared) == {"n": 1, "e": "é"}
        visit(lambda message: message.session.clear(), **declared)
        assert found(**declared) == {}
        put({"n": 2}, **declared)
        assert found(**declared) == {"n": 2}

    @pytest.mark.parametrize("make", [GetSetDelete, GetSetDelItem, ItemsWithDelete])
    def test_what_is_removed_is_deleted(self, make):
        store = make()
        put({"n": 1}, store=store)
        visit(lambda message: message.session.clear(), store=store)

        assert store.kept == {}

    @pytest.mark.parametrize("make", [GetSet, GetPut, Items])
    def test_where_nothing_can_be_deleted_nothing_is_left_to_read(self, make):
        store = make()
        put({"secret": 1}, store=store)
        visit(lambda message: message.session.clear(), store=store)

        assert store.kept == {NAME: ""}

    @pytest.mark.parametrize("answer", [None, "", b"", 0, False, ()], ids=repr)
    def test_a_falsy_answer_means_nothing(self, answer):
        store = Client(get=lambda key: answer, set=lambda key, value: None)

        assert found(store=store) == {}

    @pytest.mark.parametrize("answer", [None, True, 1, 0, "OK", b"OK"], ids=repr)
    def test_no_answer_of_set_but_false_is_a_failure(self, answer):
        store = Client(get=lambda key: None, set=lambda key, value: answer)

        put({"n": 1}, store=store)

    def test_what_has_gone_already_needs_no_removal(self):
        store = {}
        put({"n": 1}, store=store)

        def handler(message):
            store.clear()
            message.session.clear()

        visit(handler, store=store)

        assert store == {}

    def test_a_store_is_handed_strings(self):
        handed = []
        kept = GetSetDelete()
        store = Client(
            get=lambda key: handed.append(key) or kept.get(key),
            set=lambda key, value: handed.extend([key, value]) or kept.set(key, value),
            delete=lambda key: handed.append(key) or kept.delete(key),
        )
        for codec in (JSON, pickle):
            for ttl in (None, 60):
                put({"n": "é"}, store=store, codec=codec, ttl=ttl, key=lambda update: 42)
                visit(
                    lambda message: message.session.clear(),
                    store=store,
                    codec=codec,
                    key=lambda update: 42,
                )

        assert {type(each) for each in handed} == {str}

    @pytest.mark.parametrize(
        ("store", "why"),
        [
            (object(), "neither get and set"),
            (7, "neither get and set"),
            ("redis://localhost", "neither get and set"),
            (Client(get=print), "neither get and set"),
            (Client(set=print), "neither get and set"),
            (Client(get=1, set=2), "neither get and set"),
            ((), "neither get and set"),
            (frozenset(), "neither get and set"),
            (dict, "is a class"),
            (GetSet, "is a class"),
        ],
    )
    @pytest.mark.parametrize(
        "use", [KeyValueStore, lambda store: with_session(store=store)], ids=["wrap", "declare"]
    )
    def test_anything_else_is_refused(self, use, store, why):
        with pytest.raises(TypeError, match=why) as caught:
            use(store)

        assert "store=" in str(caught.value)

    @pytest.mark.parametrize(
        "store",
        [[], [1], bytearray(3), array("i"), collections.deque(), collections.UserList()],
        ids=repr,
    )
    @pytest.mark.parametrize(
        "use", [KeyValueStore, lambda store: with_session(store=store)], ids=["wrap", "declare"]
    )
    def test_a_sequence_is_refused(self, use, store):
        """1.4 It has item access, by position."""
        with pytest.raises(TypeError, match=r"by position.* such as \{\}") as caught:
            use(store)

        assert f"store={store!r}" in str(caught.value)

    @pytest.mark.parametrize("store", ["text", b"bytes", (1,), range(3)], ids=repr)
    def test_so_is_one_that_cannot_be_changed(self, store):
        with pytest.raises(TypeError, match=r"such as \{\}"):
            with_session(store=store)

    def test_a_long_list_is_not_shown_in_full(self):
        with pytest.raises(TypeError) as caught:
            with_session(store=["x" * 1000] * 1000)

        assert len(str(caught.value)) < 500

    def test_a_shelf_is_written_at_once(self, tmp_path):
        """A bot may end by a crash, which closes nothing."""
        with shelve.Shelf(dbm.dumb.open(str(tmp_path / "shelf"))) as shelf:
            put({"n": 1}, store=shelf)
            put({"n": "x" * 1000}, store=shelf)  # too long for its place in the file
            with shelve.Shelf(dbm.dumb.open(str(tmp_path / "shelf"), "r")) as other:
                assert json.loads(other[NAME]) == {"n": "x" * 1000}

    def test_no_other_method_of_a_client_is_called(self):
        """What `sync` is to a shelf, it is not to Redis: there it begins a replication."""
        kept = GetSetDelete()
        called = []
        store = Client(get=kept.get, set=kept.set, delete=kept.delete)
        for name in ("sync", "flush", "save", "commit", "close"):
            setattr(store, name, lambda *args, name=name: called.append(name))
        put({"n": 1}, store=store)
        visit(lambda message: message.session.clear(), store=store)

        assert called == []

    @pytest.mark.parametrize("decoded", [False, True], ids=["bytes", "str"])
    def test_a_redis_client_either_way(self, valkey, decoded):
        import redis

        settings = valkey.connection_pool.connection_kwargs
        with redis.Redis(port=settings["port"], decode_responses=decoded) as client:
            put({"n": "é"}, store=client)
            assert found(store=client) == {"n": "é"}
            client.flushall()
            put({"n": (1,)}, store=client, codec=pickle)
            assert found(store=client, codec=pickle) == {"n": (1,)}


class TestOneObject:
    """5.1 All declarations on one object share its locks, however it was wrapped."""

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda store: store,
            KeyValueStore,
            lambda store: KeyValueStore(store, clock=lambda: time.time()),
        ],
        ids=["as it is", "wrapped", "wrapped with a clock"],
    )
    def test_declarations_of_their_own(self, wrap):
        store = GetSet()
        bot = Bot(8)

        def count(message):
            n = message.session.get("n", 0)
            time.sleep(0.001)
            message.session["n"] = n + 1

        @bot.handler
        @with_session(store=store)
        def one(message):
            count(message)

        @bot.handler
        @with_session(store=wrap(store))
        def two(message):
            count(message)

        @bot.handler
        @with_session(store=wrap(store), ttl=60)
        def three(message):
            count(message)

        bot.run([payload(text=text) for text in ("one", "two", "three")] * 40)

        assert bot.errors == []
        assert found(store=store) == {"n": 120}

    def test_there_is_one_store_for_one_object(self):
        store = {}

        assert as_store(store) is as_store(store)
        assert as_store(store) is not as_store({})

    def test_a_store_is_itself(self):
        store = KeyValueStore({})

        assert as_store(store) is store

    def test_an_object_is_let_go_of(self):
        class Kept(dict):
            gone = False

            def __del__(self):
                Kept.gone = True

        put({"n": 1}, store=Kept())
        gc.collect()

        assert Kept.gone

    def test_a_shelf_that_another_thread_opened(self, tmp_path):
        """As it is for every bot with worker threads."""
        bot = Bot(2)
        with shelve.Shelf(dbm.dumb.open(str(tmp_path / "shelf"))) as shelf:

            @bot.handler
            @with_session(store=shelf)
            def count(message):
                message.session["n"] = message.session.get("n", 0) + 1

            bot.run([payload(text="count")] * 10)
            assert found(store=shelf) == {"n": 10}

        assert bot.errors == []

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="there is no dbm.sqlite3")
    def test_what_shelve_opens_is_refused_from_python_313_on(self, tmp_path):
        """Only the thread that opened it may use it."""
        pytest.importorskip("dbm.sqlite3")
        with (
            shelve.open(str(tmp_path / "shelf")) as shelf,
            pytest.raises(TypeError, match=r"Give shelve\.Shelf\(dbm\.dumb\.open\("),
        ):
            with_session(store=shelf)

    def test_it_need_not_be_thread_safe(self):
        """It is called by one thread at a time, wrapped once or more often."""
        overlaps = []

        class Exclusive(GetSetDelete):
            caller = None

            def get(self, key):
                return self.enter(super().get, key)

            def set(self, key, value):
                return self.enter(super().set, key, value)

            def delete(self, key):
                return self.enter(super().delete, key)

            def enter(self, method, *args):
                if self.caller:
                    overlaps.append(self.caller)
                self.caller = method.__name__
                time.sleep(0.0005)
                try:
                    return method(*args)
                finally:
                    self.caller = None

        store = Exclusive()
        bot = Bot(8)

        @bot.handler
        @with_session(store=store)
        def count(message):
            message.session["n"] = 1

        @bot.handler
        @with_session(store=KeyValueStore(store))
        def clear(message):
            message.session.clear()

        users = range(100, 140)
        bot.run([payload(user, text) for user in users for text in ("count", "clear")])

        assert bot.errors == []
        assert overlaps == []


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

    @pytest.mark.parametrize("stored", ["@5", "@-1", "@1700000000.5", "@0 base64"])
    def test_a_head_without_an_end_is_no_session(self, stored):
        """4.5 It is never wiped: cut off, or never ours."""
        store = {NAME: stored}

        with pytest.raises(SessionDataError, match=NAME):
            visit(lambda message: None, store=store)

        assert store == {NAME: stored}


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


class Full(GetSetDelete):
    """Says False to what it does not keep, once it is full."""

    full = False

    def set(self, key, value):
        if self.full is True or key == self.full:
            return False
        super().set(key, value)
        return True


class TestSetAnsweringFalse:
    """6.1 That is a failure, not a success."""

    @pytest.fixture
    def store(self):
        store = Full()
        put({"n": 1}, store=store)
        return store

    def test_the_caller_hears_of_it(self, store):
        store.full = True

        with pytest.raises(SessionStoreError, match=r"Full\.set answered False") as caught:
            put({"n": "secret"}, store=store)

        assert NAME in str(caught.value)
        assert "secret" not in str(caught.value)
        assert found(store=store) == {"n": 1}

    def test_it_works_again(self, store):
        store.full = True
        with pytest.raises(SessionStoreError):
            put({"n": 2}, store=store)
        store.full = False
        put({"n": 3}, store=store)

        assert found(store=store) == {"n": 3}

    @pytest.mark.parametrize("other", ["the same store", "another store"])
    def test_a_stack_saves_nothing(self, store, other):
        @with_session(store={} if other == "another store" else store, property="one")
        @with_session(store=store)
        def handler(message):
            before = dict(message.one), dict(message.session)
            message.one["n"] = message.session["n"] = 2
            return before

        store.full = NAME
        with pytest.raises(SessionStoreError):
            handler(message())
        store.full = False

        assert handler(message()) == ({}, {"n": 1})

    def test_an_update_that_only_reads_a_session_with_a_ttl(self, store):
        put({"n": 1}, store=store, ttl=60)
        store.full = True

        with pytest.raises(SessionStoreError):
            visit(lambda message: None, store=store, ttl=60)

    def test_removing_where_nothing_can_be_deleted(self):
        """It would be back at the next update."""
        kept = {}
        answers = [True, False]

        def store_set(key, value):
            if answer := answers.pop(0):
                kept[key] = value
            return answer

        store = Client(get=kept.get, set=store_set)
        put({"n": 1}, store=store)

        with pytest.raises(SessionStoreError):
            visit(lambda message: message.session.clear(), store=store)

    def test_an_answer_of_delete_says_nothing(self):
        """Many say False for what was not there."""
        store = GetSet()
        store.delete = lambda key: bool(store.kept.pop(key, None)) and False
        put({"n": 1}, store=store)
        visit(lambda message: message.session.clear(), store=store)

        assert store.kept == {}


REFUSED = "asynchronous: .* blocking client"


async def coroutine(*args):
    raise AssertionError("awaited")


def awaitable(*args):
    """As the methods of redis.asyncio: a plain function."""
    return coroutine()


class Awaitable:
    """As a Future: nothing that has to be closed."""

    def __init__(self, *args):
        pass

    def __await__(self):
        raise AssertionError("awaited")


class TestAsynchronous:
    """6.3 An asynchronous store is refused with a clear error, and nothing is left un-awaited."""

    @pytest.fixture(autouse=True)
    def nothing_un_awaited(self):
        """What pytest makes of a warning from a coroutine that is thrown away is a failure."""
        yield
        gc.collect()

    @pytest.mark.parametrize("name", ["get", "set", "both"])
    @pytest.mark.parametrize("items", [False, True], ids=["methods", "items"])
    def test_coroutine_functions_at_decoration(self, name, items):
        methods = {
            each: coroutine if name in (each, "both") else lambda *args: None
            for each in ("get", "set")
        }
        if items:
            methods = {f"__{each}item__": method for each, method in methods.items()}

        with pytest.raises(TypeError, match=REFUSED):
            with_session(store=Client(**methods))

    def test_a_client_as_that_of_redis_at_decoration(self):
        """Its ``get`` and ``set`` don't show what they are."""

        class Redis(Client):
            execute_command = coroutine

        with pytest.raises(TypeError, match=REFUSED):
            with_session(store=Redis(get=awaitable, set=awaitable))

    def test_an_object_with_attributes_of_its_own_making(self):
        """What is not there is asked for nowhere but on its type."""

        class Proxy(Client):
            def __getattr__(self, name):
                raise KeyError(name)

        with_session(store=Proxy(get=print, set=print, put=print, delete=print))

    @pytest.mark.parametrize("make", [awaitable, Awaitable], ids=["coroutine", "awaitable"])
    def test_awaitables_from_get(self, make):
        ran = []
        store = Client(get=make, set=make)

        for _ in range(2):
            with pytest.raises(SessionStoreError, match=REFUSED):
                visit(ran.append, store=store)
        assert ran == []

    @pytest.mark.parametrize("make", [awaitable, Awaitable], ids=["coroutine", "awaitable"])
    def test_awaitables_from_set(self, make):
        store = Client(get=lambda key: None, set=make, delete=lambda key: None)

        with pytest.raises(SessionStoreError, match=REFUSED):
            put({"n": 1}, store=store)

    @pytest.mark.parametrize("make", [awaitable, Awaitable], ids=["coroutine", "awaitable"])
    def test_awaitables_from_set_where_nothing_can_be_deleted(self, make):
        kept = {NAME: '{"n": 1}'}
        store = Client(get=kept.get, set=make)

        with pytest.raises(SessionStoreError, match=REFUSED):
            visit(lambda message: message.session.clear(), store=store)

    def test_awaitables_from_delete(self):
        store = GetSet()
        store.delete = Awaitable
        put({"n": 1}, store=store)

        with pytest.raises(SessionStoreError, match=REFUSED):
            visit(lambda message: message.session.clear(), store=store)

    def test_redis_asyncio(self):
        """Its methods are plain functions that return awaitables. It is never connected."""
        import redis.asyncio

        client = redis.asyncio.Redis()
        ran = []

        with pytest.raises((TypeError, SessionStoreError), match=REFUSED):
            visit(ran.append, store=client)

        assert ran == []
        asyncio.run(client.aclose())


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
        tracemalloc.start()
        try:
            assert sum(1 for _ in store.names("session:")) == 100_000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert peak < 1_400_000  # a list of them, as they are, and no copy

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

    def test_what_cannot_be_read(self):
        with pytest.raises(SessionDataError, match="'a'"):
            KeyValueStore({"a": "@5"}).peek("a")

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


class TestSeveral:
    """4.1 Several sessions are saved all or none."""

    BEFORE = MappingProxyType({"a": "old", "b": "@1e12@old", "c": "old", "other": "x"})
    CHANGES = (("a", "new", None), ("b", None, None), ("new", b"new", 60), ("c", "new", 60))
    CLOCK = Clock(1000)

    def open(self, client, **options):
        store = KeyValueStore(client, clock=self.CLOCK, **options)
        return store, store.open([name for name, _, _ in self.CHANGES])[0]

    @pytest.mark.parametrize("number", [1, 2, 3])
    @pytest.mark.parametrize("written", [False, True])
    def test_what_was_written_is_taken_back(self, number, written):
        """Also what may have been written by the one that failed."""
        kept = dict(self.BEFORE)
        client = Failing(kept, number, written=written)
        store, lease = self.open(client)

        with pytest.raises(OSError, match="disk"):
            store.commit(lease, self.CHANGES)

        assert {**kept, "c": parse(kept["c"])[1]} == self.BEFORE
        assert parse(kept["c"])[0] in (None, 1060)

    def test_a_single_one_is_not_asked_for_again(self):
        client = Failing(dict(self.BEFORE), 1)
        store, lease = self.open(client)
        asked = len(client.calls)
        with pytest.raises(OSError, match="disk"):
            store.commit(lease, self.CHANGES[:1])

        assert client.calls[asked:] == [("set", "a")]

    def test_what_cannot_be_taken_back_is_named(self):
        kept = dict(self.BEFORE)
        client = Failing(kept, 2, forever=True)
        store, lease = self.open(client)
        with pytest.raises(SessionStoreError) as caught:
            store.commit(lease, self.CHANGES)

        assert kept["a"] == "new"
        assert "'a', 'b': saved. 'new': perhaps saved." in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert client.calls[-2:] == [("set", "new"), ("set", "b")]  # and no more of them

    def test_a_false_answer(self):
        kept = dict(self.BEFORE)
        client = Client(
            get=kept.get,
            set=lambda key, value: key != "new" and kept.update({key: value}),
            delete=kept.__delitem__,
        )
        store, lease = self.open(client)
        with pytest.raises(SessionStoreError, match="'new' was not saved"):
            store.commit(lease, self.CHANGES)

        assert kept == self.BEFORE

    def test_a_lease_is_extended(self):
        kept = dict(self.BEFORE)
        client = Failing(kept, 2, written=True)
        store, _ = self.open(client)
        lease, _ = store.open(["a"])
        same, payloads = store.open(["b", "c"], 0, lease)
        assert same is lease
        assert payloads == ["old", "old"]
        with pytest.raises(OSError, match="disk"):
            store.commit(lease, [("a", "new", None), ("b", "new", None)])

        assert kept == self.BEFORE

    def test_a_lease_that_could_not_be_extended(self):
        store = KeyValueStore({"a": "old", "b": "@5"})
        lease, _ = store.open(["a"])
        before = dict(lease)
        with pytest.raises(SessionDataError):
            store.open(["c", "b"], 0, lease)

        assert lease == before

    def test_a_shelf(self, tmp_path):
        with shelve.Shelf(dbm.dumb.open(str(tmp_path / "shelf"))) as shelf:
            shelf["a"] = "old"
            store, lease = self.open(shelf)
            store._sync = Answers(OSError("disk"), None)
            with pytest.raises(OSError, match="disk"):
                store.commit(lease, self.CHANGES)

            assert dict(shelf) == {"a": "old"}


class Answers:
    """Gives, or raises, one after the other."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self):
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer


class Failing:
    """Its set of that number fails, and with ``forever`` all calls after that."""

    def __init__(self, kept, number, *, written=False, forever=False):
        self.kept = kept
        self.number = number
        self.written, self.forever = written, forever
        self.error = OSError("disk full")
        self.calls = []

    def get(self, key):
        self.calls.append(("get", key))
        return self.kept.get(key)

    def set(self, key, value):
        self.calls.append(("set", key))
        self.number -= 1
        if self.number == 0 or (self.number < 0 and self.forever):
            if self.written:
                self.kept[key] = value
            raise self.error
        self.kept[key] = value

    def delete(self, key):
        self.calls.append(("delete", key))
        del self.kept[key]


class TestInterrupted:
    """An exception out of a signal handler may come at any line."""

    CHANGES = MappingProxyType(
        {
            "new": [("new", "1", None)],
            "existing": [("a", "1", 60)],
            "removed": [("a", None, None)],
            "several": [("a", "1", None), ("b", None, None), ("new", b"2", 60), ("c", "3", 60)],
            "none": [],
        }
    )

    def make(self):
        return KeyValueStore({"a": "old", "b": "old", "c": "old"}, clock=Clock(1000))

    def check(self, store, *states):
        assert free(store._mutex.current())
        assert {name: store.peek(name) for name in store.names("")} in states
        for name in ("a", "new"):
            save(store, name)
            assert store.open([name])[1] == ["content"]

    @pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
    def test_commit(self, changes):
        before = dict(self.make().store)
        after = {**before, **{name: payload for name, payload, _ in changes}}
        after = {name: payload for name, payload in after.items() if payload is not None}

        def commit(store):
            lease, _ = store.open([name for name, _, _ in changes])
            yield
            store.commit(lease, changes)

        for store in interruptions(self.make, commit):
            store.commit({}, [])
            self.check(store, before, after)

    @pytest.mark.parametrize(
        "use",
        [
            lambda store: store.open(["a", "none"]),
            lambda store: store.open(["b"], 0, {"a": "old"}),
            lambda store: list(store.names("")),
            lambda store: store.peek("a"),
        ],
        ids=["open", "extend", "names", "peek"],
    )
    def test_other_uses(self, use):
        def run(store):
            yield
            use(store)

        for store in interruptions(self.make, run):
            self.check(store, dict(self.make().store))

    def test_a_commit_that_fails(self):
        """Whatever is left then, the store can be used."""

        def commit(store):
            store, lease = store, store.open(["a", "b"])[0]
            yield
            with pytest.raises(OSError, match="disk"):
                store.commit(lease, [("a", "1", None), ("b", "1", None)])

        for store in interruptions(lambda: KeyValueStore(Failing({}, 2)), commit):
            assert free(store._mutex.current())
            store.store.number = -1  # it has failed, or will not
            save(store, "a")
            assert store.peek("a") == "content"


class TestGreenlets:
    """5.1 gevent may patch the threads after telesession was imported, and the store was made."""

    def test_a_mutex_of_the_kind_that_is_there_now(self, monkeypatch):
        kept = {}
        one, two = KeyValueStore(kept), KeyValueStore(kept, clock=time.time)
        before = one._mutex.current()
        assert before is two._mutex.current()
        monkeypatch.setattr(threading, "Lock", lambda: None)

        assert one._mutex.current() is two._mutex.current()
        assert one._mutex.current() is not before
        assert KeyValueStore({})._mutex.current() is not one._mutex.current()

    def test_a_client_that_yields(self):
        pytest.importorskip("gevent")
        done = subprocess.run(
            [sys.executable, "-c", GREENLETS], capture_output=True, text=True, timeout=TIMEOUT
        )

        assert done.stdout == "done\n", done.stderr


GREENLETS = """
from telesession import KeyValueStore
import time

class Kept:
    kept, inside = {}, 0
    def get(self, key):
        return self.slow(lambda: self.kept.get(key))
    def set(self, key, value):
        return self.slow(lambda: self.kept.update({key: value}))
    def slow(self, call):
        self.inside += 1
        assert self.inside == 1
        time.sleep(0.01)
        self.inside -= 1
        return call()

store = KeyValueStore(Kept())
store.commit(store.open(["a"])[0], [("a", "1", None)])

from gevent import monkey
monkey.patch_all()
import gevent

def use(name):
    store.commit(store.open([name])[0], [(name, "1", None)])
    assert store.peek(name) == "1"

gevent.joinall([gevent.spawn(use, f"{n}") for n in range(5)], raise_error=True)
print("done")
"""


def test_a_client_of_redis_is_told_of_redis_store(caplog):
    """6.1 It works, for one process; there is a store for several."""
    import redis

    KeyValueStore(redis.Redis())
    KeyValueStore({})
    (record,) = caplog.records
    assert "telesession.redis.RedisStore(client)" in record.message
