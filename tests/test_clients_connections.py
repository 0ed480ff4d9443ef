"""6.4 What `KeyValueStore` knows of clients: how each is disconnected, and forked."""

import contextlib
import dbm.dumb
import os
import random
import shelve
import socket
import types

import pytest

from telesession import KeyValueStore, SessionError, _clients, with_session
from tests.helpers import Failure
from tests.interrupts import Interrupt, Interrupting, interruptions
from tests.memcached_options import ALWAYS, RIGHT
from tests.stores import TIMEOUT, Clock, found, put

pytestmark = pytest.mark.thorough


class Behind:
    """A client whose connection has the answers in the order of its commands, as all have.

    An answer that isn't read, since an exception came, is read by the next command.
    """

    def __init__(self, kept):
        self.kept = kept
        self.closed = 0
        self.answers = []

    def ask(self, answer):
        self.answers.append(answer)
        self.waits()
        return self.answers.pop(0)

    def waits(self):
        pass

    def get(self, key):
        return self.ask(self.kept.get(key))

    def set(self, key, value):
        self.kept[key] = value
        return self.ask("OK")

    def delete(self, key):
        return self.ask(self.kept.pop(key, None) and True)

    def _close(self):
        self.closed += 1
        self.answers.clear()


class Closes(Behind):
    close = Behind._close


class Disconnects(Behind):
    disconnect_all = Behind._close

    def close(self):
        raise AssertionError("closed for good")


class Wraps(Behind):
    """As redis-py's, with a pool."""

    def __init__(self, kept):
        super().__init__(kept)
        outer = self

        class Pool:
            def disconnect(self, inuse_connections=True):
                assert not inuse_connections  # others may be using them
                outer._close()

        self.connection_pool = Pool()

    def close(self):
        raise AssertionError("closed for good")


class Timeout(Exception):
    """As that of a library."""


class TestInterrupted:
    """6.4 An answer that belongs to another request is never taken for ours."""

    KEPT = types.MappingProxyType({f"s:{n}": f"content {n}" for n in range(9)})

    def _do(self, operation, store, lease):
        changes = {
            "set": [("s:1", "new", None)],
            "delete": [("s:1", None, None)],
            "several": [("s:1", "new", None), ("s:2", None, None)],
        }
        if operation == "get":
            store.open(["s:3", "s:4"])
        elif operation == "peek":
            store.peek("s:4")
        else:
            store.commit(lease, changes[operation])

    @pytest.mark.parametrize("make", [Closes, Disconnects, Wraps])
    @pytest.mark.parametrize("error", [Interrupt, TimeoutError, Timeout])
    @pytest.mark.parametrize("operation", ["get", "set", "delete", "peek"])
    def test_between_a_command_and_its_answer(self, make, error, operation):
        client = make(dict(self.KEPT))
        store, other = KeyValueStore(client), KeyValueStore(client, clock=Clock())
        lease, _ = store.open(["s:1"])

        def fail():
            client.waits = lambda: None
            raise error

        client.waits = fail
        with pytest.raises(error):
            self._do(operation, store, lease)

        assert client.closed == 1
        assert other.open(["s:3"])[1] == ["content 3"]
        assert client.closed == 1

    @pytest.mark.parametrize("make", [Closes, Disconnects, Wraps])
    @pytest.mark.parametrize("operation", ["get", "peek", "several"])
    def test_at_any_line(self, make, operation):
        """Of ours, and of the client's."""

        def run(store):
            lease, _ = store.open(["s:1", "s:2"])
            yield
            self._do(operation, store, lease)

        stores = interruptions(
            lambda: KeyValueStore(make(dict(self.KEPT))), run, (_clients.__file__, __file__)
        )
        number = 0
        for store in stores:
            number += 1
            names = ["s:5", "s:6", "s:3"]
            assert store.open(names)[1] == [self.KEPT[name] for name in names]
            kept = store.store.kept
            assert (kept["s:1"], kept.get("s:2")) in (("content 1", "content 2"), ("new", None))
        assert number > 10

    def test_what_keeps_its_items_itself_is_not_closed(self, tmp_path):
        with shelve.Shelf(dbm.dumb.open(str(tmp_path / "kept"))) as shelf:
            put({"n": 1}, store=shelf)
            for number in range(0, 60, 7):
                with contextlib.suppress(Interrupt), Interrupting(number, shelve.__file__):
                    found(store=shelf)
            assert found(store=shelf) == {"n": 1}

    @pytest.mark.parametrize("error", [Failure, KeyError])
    def test_an_error_of_its_own_closes_nothing_for_good(self, error):
        client = Closes({})

        def fail():
            raise error

        client.waits = fail
        with contextlib.suppress(Failure):
            KeyValueStore(client).open(["a"])

        assert client.closed == 0

    @pytest.mark.parametrize("single", [False, True])
    def test_redis(self, valkey, single):
        import redis

        port = valkey.connection_pool.connection_kwargs["port"]
        with redis.Redis(port=port, single_connection_client=single) as client:
            self._users(client, redis.client.__file__, redis.connection.__file__)

    @pytest.mark.parametrize("kind", ["Client", "PooledClient", "HashClient", "RetryingClient"])
    def test_pymemcache(self, memcached, kind):
        import pymemcache.client.base
        from pymemcache.client.retrying import RetryingClient

        server, patience = memcached.server, {"timeout": TIMEOUT, "connect_timeout": TIMEOUT}
        if kind == "HashClient":
            client = pymemcache.HashClient([server], **patience, **RIGHT, **ALWAYS)
        elif kind == "RetryingClient":
            client = RetryingClient(pymemcache.Client(server, **patience, **RIGHT), attempts=2)
        else:
            client = getattr(pymemcache, kind)(server, **patience, **RIGHT)
        self._users(client, pymemcache.client.base.__file__)
        client.close()

    def test_cachelib(self, valkey):
        import cachelib
        import redis.client

        port = valkey.connection_pool.connection_kwargs["port"]
        cache = cachelib.RedisCache(port=port, default_timeout=0)
        self._users(cache, redis.client.__file__, redis.connection.__file__)
        cache._write_client.close()

    def _users(self, client, *files):
        """Updates of many users, some of them interrupted: each finds what is theirs."""
        session = with_session(store=client)
        for user in range(20):
            with session.open(key=user) as data:
                data.update(user=user, n=0)
        chance = random.Random(7)
        hit = 0
        for number in range(0, 400, 7):
            user = chance.randrange(20)
            try:
                with Interrupting(number, files), session.open(key=user) as data:
                    data["n"] += 1
            except (Interrupt, SessionError):
                hit += 1
            for other in chance.sample(range(20), 2):
                with session.open(key=other) as data:
                    assert data["user"] == other
                    data["n"] += 1
        assert hit > 5


class TestForked:
    """6.4 A client that was used before a fork works in parent and child."""

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_pymemcache(self, memcached):
        store = KeyValueStore(memcached)
        put({"n": 0}, store=store)
        for number in range(4):
            with store.store.client_pool.get_and_release() as client:
                mine = client.sock
            child = os.fork()
            if child == 0:
                right = False
                with contextlib.suppress(Exception):
                    other = {"store": store, "key": lambda update: "child"}
                    put({"n": number}, **other)
                    right = found(**other) == {"n": number}
                    with store.store.client_pool.get_and_release() as client:
                        right = right and client.sock is not mine
                os._exit(0 if right else 1)
            put({"n": number}, store=store)
            assert found(store=store) == {"n": number}
            assert os.waitpid(child, 0)[1] == 0
            assert isinstance(mine, socket.socket)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_what_is_not_known_is_left_alone(self):
        """Its ``close`` may tell the server, over the parent's connection."""
        client = Closes({})
        store = KeyValueStore(client)
        store.open(["a"])
        store._mutex._process -= 1
        store.open(["a"])

        assert client.closed == 0
