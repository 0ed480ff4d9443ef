"""6.1 `KeyValueStore`: what it takes for a store, and what it refuses.

What every store has to keep is in `test_stores`; here, and in the files beside this one, is what
is particular to objects with get and set, and to mappings. Where the store does not matter it is
a plain dict.
"""

import asyncio
import collections
import dbm.dumb
import gc
import json
import pickle
import shelve
import sys
import time
from array import array

import pytest

from telesession import JSON, KeyValueStore, SessionStoreError, with_session
from telesession.keyvalue import as_store
from tests.keyvalue_clients import Client, GetPut, Items, ItemsWithDelete
from tests.stores import NAME, Bot, GetSet, found, message, payload, put, visit


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


def test_a_client_of_redis_is_told_of_redis_store(caplog):
    """6.1 It works, for one process; there is a store for several."""
    import redis

    KeyValueStore(redis.Redis())
    KeyValueStore({})
    (record,) = caplog.records
    assert "telesession.redis.RedisStore(client)" in record.message


def test_a_pipeline_is_refused():
    """1.4 It gives itself as the answer to each command."""
    import redis

    with pytest.raises(TypeError, match="give the client that made it"):
        with_session(store=redis.Redis().pipeline())


def test_a_collection_or_an_engine_is_refused():
    """1.4 The message names its store. A collection has attributes of any name, as stores do."""
    pymongo = pytest.importorskip("pymongo")
    sqlalchemy = pytest.importorskip("sqlalchemy")
    with (
        pymongo.MongoClient(connect=False) as client,
        pytest.raises(TypeError, match=r"telesession\.mongo\.MongoStore\(collection\)"),
    ):
        with_session(store=client.bot.sessions)
    with pytest.raises(TypeError, match=r"telesession\.sql\.SQLStore\(engine\)"):
        with_session(store=sqlalchemy.create_engine("sqlite://"))
