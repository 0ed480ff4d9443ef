"""What `KeyValueStore` knows of clients: which can't keep sessions, and what they are told."""

import contextlib
import dbm.dumb
import functools
import importlib
import importlib.util
import math
import shelve
import sys
import threading
import types

import pytest

from telesession import KeyValueStore, SessionError, SessionStoreError, _clients, with_session
from tests.memcached_options import ALWAYS, RIGHT
from tests.stores import TIMEOUT, Clock, GetSet, found, put

pytestmark = pytest.mark.thorough

SERVER = ("127.0.0.1", 1)


def stand_in(kind, **attributes):
    """An object of a class that is known by its name only, since its library isn't needed here."""
    module, _, name = kind.rpartition(".")
    own = {"get": lambda self, key: None, "set": lambda self, key, value: None}
    return type(name, (), {**own, "__module__": module, **attributes})()


def pymemcache(kind, *servers, **options):
    client = pytest.importorskip("pymemcache")
    return getattr(client, kind)(*(servers or [SERVER]), **options)


class TestHidingFailures:
    """6.1 A client that is known to hide failures is refused, with the option to change."""

    @pytest.mark.parametrize("kind", ["Client", "PooledClient", "HashClient"])
    @pytest.mark.parametrize(
        ("options", "cure"),
        [
            ({"ignore_exc": True, "default_noreply": False}, "ignore_exc=False"),
            ({}, "default_noreply=False"),
            ({"default_noreply": True}, "default_noreply=False"),
            ({"ignore_exc": True}, "ignore_exc=False, default_noreply=False"),
        ],
    )
    def test_options_of_pymemcache(self, kind, options, cure):
        servers = [SERVER] if kind == "HashClient" else SERVER
        client = pymemcache(kind, servers, **options)

        with pytest.raises(TypeError, match=cure):
            with_session(store=client)
        client.close()

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"retry_attempts": 0},  # asks another server for what that one has
            {"retry_attempts": 10**9, "retry_timeout": 0},
            {"retry_attempts": math.inf},
            {"dead_timeout": 0},
        ],
    )
    def test_hashing_that_leaves_a_server_out(self, options):
        """It answers "nothing" until it tries again, and asks another server after that."""
        client = pymemcache("HashClient", [SERVER, ("127.0.0.1", 2)], **RIGHT, **options)

        with pytest.raises(TypeError, match=r"retry_attempts=math\.inf, retry_timeout=-math\.inf"):
            with_session(store=client)

    @pytest.mark.parametrize("number", [1, 2])
    def test_hashing_that_asks_the_same_server_always(self, number):
        client = pymemcache(
            "HashClient", [("127.0.0.1", n + 1) for n in range(number)], **RIGHT, **ALWAYS
        )
        for _ in range(5):
            with pytest.raises(SessionStoreError, match="handler did not run"):
                found(store=client)

    @pytest.mark.parametrize("kind", ["Client", "PooledClient"])
    def test_what_pymemcache_has_to_say_is_enough(self, kind):
        with pytest.raises(SessionStoreError, match="handler did not run"):
            found(store=pymemcache(kind, **RIGHT))

    @pytest.mark.parametrize("options", [{}, {"ignore_exc": True, "default_noreply": False}])
    def test_in_a_wrapper(self, options):
        import cachelib
        from pymemcache.client.retrying import RetryingClient

        client = pymemcache("Client", **options)
        for store in (RetryingClient(client), cachelib.MemcachedCache(client)):
            with pytest.raises(TypeError, match=r"pymemcache\.Client .*make it with"):
                with_session(store=store)

    def test_a_subclass(self):
        from pymemcache import Client

        class Own(Client):
            pass

        with pytest.raises(TypeError, match="store=Own"):
            with_session(store=Own(SERVER))

    def test_in_a_class_of_the_users_own(self):
        """It may look for failures itself."""
        with_session(store=stand_in("bot.Cache", client=pymemcache("Client")))

    @pytest.mark.parametrize(
        "kind",
        [
            "memcache.Client",
            "bmemcached.client.mixin.ClientMixin",
            "libmc._client.PyClient",
            "pylibmc.client.Client",
            "pylibmc.pools.ThreadMappedPool",
            "sqlitedict.SqliteDict",
            "dogpile.cache.backends.memcached.GenericMemcachedBackend",
            "dogpile.cache.backends.null.NullBackend",
            "django.core.cache.backends.memcached.BaseMemcachedCache",
            "django.core.cache.backends.db.DatabaseCache",
            "django.core.cache.backends.dummy.DummyCache",
            "flask_caching.backends.nullcache.NullCache",
            "cachelib.uwsgi.UWSGICache",
        ],
    )
    def test_whatever_the_options_are(self, kind):
        with pytest.raises(TypeError, match=r"lost\. Instead, give "):
            with_session(store=stand_in(kind))
        with pytest.raises(TypeError, match=kind.partition(".")[0]):
            with_session(store=stand_in("cachelib.MemcachedCache", _client=stand_in(kind)))
        with pytest.raises(TypeError, match=kind.partition(".")[0]):
            with_session(store=stand_in("dogpile.cache.region.CacheRegion", backend=stand_in(kind)))

    def test_a_cache_that_keeps_nothing(self):
        import cachelib

        with pytest.raises(TypeError, match="that keeps something"):
            with_session(store=cachelib.NullCache())

    def test_diskcache(self, tmp_path):
        import diskcache

        with (
            contextlib.closing(diskcache.FanoutCache(str(tmp_path))) as cache,
            pytest.raises(TypeError, match=r"give a diskcache\.Cache"),
        ):
            with_session(store=cache)

    def test_django(self):
        cache = stand_in("django_redis.cache.RedisCache", _ignore_exceptions=True)
        proxy = stand_in(
            "django.utils.connection.ConnectionProxy", _connections={"a": cache}, _alias="a"
        )
        for store in (cache, proxy):
            with pytest.raises(TypeError, match="IGNORE_EXCEPTIONS"):
                with_session(store=store)
        with_session(store=stand_in("django_redis.cache.RedisCache", _ignore_exceptions=False))

    @pytest.mark.parametrize("there", [True, False])
    def test_flask_caching(self, there):
        """It has its cache from the application, if there is one."""

        def cache(self):
            if there:
                return stand_in("flask_caching.backends.nullcache.NullCache")
            raise AttributeError("no application")

        store = stand_in("flask_caching.Cache", cache=property(cache))
        with pytest.raises(TypeError, match="NullCache") if there else contextlib.nullcontext():
            with_session(store=store)


async def coroutine(*args):
    raise AssertionError("awaited")


async def generator(*args):
    yield


class TestAsynchronous:
    """6.3 It is refused as soon as it can be known."""

    @pytest.mark.parametrize(
        "attributes",
        [
            {"get": generator},
            {"set": generator},
            {"delete": coroutine},
            {"__delitem__": coroutine},
            {"put": coroutine, "set": None},
            {"set": functools.partial(coroutine)},
            {"__aenter__": coroutine},
            {"__await__": lambda self: iter(())},
        ],
        ids=lambda attributes: next(iter(attributes)),
    )
    def test_when_it_is_made(self, attributes):
        with pytest.raises(TypeError, match=r"asynchronous: .* blocking client"):
            with_session(store=stand_in("bot.Client", **attributes))

    def test_one_that_can_be_used_either_way(self):
        with_session(store=stand_in("bot.Client", __aenter__=coroutine, __enter__=print))

    def test_what_only_shows_when_it_is_called(self):
        store = types.SimpleNamespace(get=lambda key: generator(), set=print)

        with pytest.raises(SessionStoreError, match="asynchronous"):
            found(store=store)


class TestFiles:
    """6.1, 6.4 Python's own files: what can't work is refused when the store is made."""

    @pytest.mark.skipif(
        importlib.util.find_spec("dbm.sqlite3") is None, reason="there is no dbm.sqlite3"
    )
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_dbm_sqlite3(self, tmp_path, wrapped):
        import dbm.sqlite3

        with (
            shelve.Shelf(dbm.sqlite3.open(tmp_path / "kept", "c")) as shelf,
            pytest.raises(TypeError, match=r"shelve\.Shelf\(dbm\.dumb\.open\("),
        ):
            with_session(store=shelf if wrapped else shelf.dict)

    def test_what_shelve_makes_from_python_313_on(self):
        kept = stand_in("dbm.sqlite3._Database", __getitem__=print, __setitem__=print)
        for store in (kept, shelve.Shelf(kept)):
            with pytest.raises(TypeError, match=r"only by the thread .*dbm\.dumb"):
                with_session(store=store)
        kept.close = lambda: None

    @pytest.mark.parametrize(
        ("library", "works"), [("ndbm", False), ("GNU gdbm", True), ("Berkeley DB", True)]
    )
    def test_dbm_ndbm(self, monkeypatch, library, works):
        monkeypatch.setitem(sys.modules, "_dbm", types.SimpleNamespace(library=library))
        kept = stand_in("_dbm.dbm", __getitem__=print, __setitem__=print)

        with contextlib.nullcontext() if works else pytest.raises(TypeError, match="values of"):
            with_session(store=kept)

    def test_the_cure(self, tmp_path):
        path = str(tmp_path / "kept")
        with shelve.Shelf(dbm.dumb.open(path)) as shelf:
            errors = []

            def use():
                try:
                    put({"n": 1}, store=shelf)
                except SessionError as error:
                    errors.append(error)

            thread = threading.Thread(target=use)
            thread.start()
            thread.join(TIMEOUT)
            assert (errors, found(store=shelf)) == ([], {"n": 1})

    def test_a_dbm_is_written_at_once(self, tmp_path):
        path = str(tmp_path / "kept")
        with dbm.dumb.open(path) as kept:
            put({"n": 1}, store=kept)
            with dbm.dumb.open(path, "r") as other:
                assert len(other) == 1


class TestForgetting:
    """6.1 With the options that the docstring of `KeyValueStore` names, a cache keeps all."""

    def keeps(self, cache, number):
        store = KeyValueStore(cache)
        for user in range(number):
            store.commit(store.open([f"s:{user}"])[0], [(f"s:{user}", "x" * 1000, None)])
        return sum(store.peek(f"s:{user}") is not None for user in range(number))

    @pytest.mark.parametrize(
        ("kind", "options", "all_kept"),
        [
            ("SimpleCache", {}, False),
            ("SimpleCache", {"threshold": 10**9, "default_timeout": 0}, True),
            ("FileSystemCache", {}, False),
            ("FileSystemCache", {"threshold": 0, "default_timeout": 0}, True),
        ],
    )
    def test_cachelib(self, tmp_path, monkeypatch, kind, options, all_kept):
        import cachelib

        module = importlib.import_module(getattr(cachelib, kind).__module__)
        now = module.time()
        monkeypatch.setattr(module, "time", lambda: now)
        path = [str(tmp_path)] if kind == "FileSystemCache" else []
        cache = getattr(cachelib, kind)(*path, **options)
        assert (self.keeps(cache, 510) == 510) is all_kept
        now += 301

        assert (self.keeps(cache, 0), cache.get("s:509") is not None) == (0, all_kept)

    @pytest.mark.parametrize(
        ("options", "all_kept"), [({}, False), ({"eviction_policy": "none"}, True)]
    )
    def test_diskcache(self, tmp_path, options, all_kept):
        import diskcache

        with diskcache.Cache(str(tmp_path), size_limit=50_000, **options) as cache:
            assert (self.keeps(cache, 200) == 200) is all_kept


class TestSeconds:
    """4.6 What a client is told of a ttl."""

    @pytest.mark.parametrize("ttl", [1, 30 * 86400 - 0.5, 30 * 86400, 31 * 86400, 1e9])
    def test_memcached(self, memcached, ttl):
        """More than thirty days are a date to it, and 1971 is over."""
        store = KeyValueStore(memcached, expire="expire")
        put({"n": 1}, store=store, ttl=ttl)

        assert found(store=store, ttl=ttl) == {"n": 1}

    def test_a_fraction(self, valkey):
        """Clients take whole seconds; what is left of them, the store tells by itself."""
        clock = Clock(1000)
        store = KeyValueStore(valkey, expire="ex", clock=clock)
        put({"n": 1}, store=store, ttl=90.5)
        assert 90 < valkey.ttl(next(iter(valkey.keys()))) <= 91

        clock.advance(90.4)
        assert store.peek("session:42:42") is not None
        clock.advance(0.1)
        assert store.peek("session:42:42") is None


class TestRefusals:
    """4.3, 6.3 What a server refuses is not saved, and what was stored stays."""

    def test_too_large_for_memcached(self, memcached):
        """It drops what it had."""
        store = KeyValueStore(memcached)
        put({"n": 1}, store=store)

        with pytest.raises(SessionStoreError, match="was not saved"):
            put({"n": "x" * 2_000_000}, store=store)
        assert found(store=store) == {"n": 1}

    def test_a_stack_on_memcached(self, memcached):
        store = KeyValueStore(memcached)
        store.commit(store.open(["a", "b"])[0], [("a", "1", None), ("b", "1", None)])
        lease, _ = store.open(["a", "b"])
        with pytest.raises(Exception, match="too large"):
            store.commit(lease, [("a", "2", None), ("b", "x" * 2_000_000, None)])

        assert store.open(["a", "b"])[1] == ["1", "1"]

    def test_a_removal_that_failed(self):
        kept = GetSet()
        kept.delete = lambda key: False
        put({"n": 1}, store=kept)

        with pytest.raises(SessionStoreError, match=r"GetSet\.delete answered False"):
            put({}, store=kept)

    @pytest.mark.parametrize(
        ("store", "error", "refused"),
        [
            ("pymemcache.Client", "pymemcache.MemcacheServerError", True),
            ("pymemcache.PooledClient", "pymemcache.MemcacheClientError", True),
            ("pymemcache.Client", "pymemcache.MemcacheUnexpectedCloseError", False),
            ("pymemcache.RetryingClient", "pymemcache.MemcacheServerError", False),
            ("redis.Redis", "redis.ResponseError", False),  # an earlier try may have been done
            ("bot.Client", "builtins.TimeoutError", False),
        ],
    )
    def test_whether_nothing_was_done(self, store, error, refused):
        kinds = {error: None}
        if "UnexpectedClose" in error:
            kinds = {"pymemcache.MemcacheServerError": None, error: None}
        base = Exception
        for each in kinds:
            module, _, name = each.rpartition(".")
            base = type(name, (base,), {"__module__": module})

        assert _clients.refused(stand_in(store), base()) is refused

    def test_one_that_did_not_answer_is_asked_once(self):
        """6.3 Also not to take anything back, where nothing else was written."""
        asked = []

        def store_set(key, value):
            asked.append(key)
            raise TimeoutError

        store = types.SimpleNamespace(get=lambda key: None, set=store_set)
        with pytest.raises(SessionStoreError, match="not known"):
            put({"n": 1}, store=store)

        assert len(asked) == 1
