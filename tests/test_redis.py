"""6.4 `RedisStore` on real servers: what the contract suite does not ask of every store."""

import functools
import json
import os
import pickle
import threading
import traceback
import types

import pytest
import redis
import redis.asyncio
import redis.sentinel
import valkey as valkey_py
from redis.cluster import RedisCluster
from valkey.cluster import ValkeyCluster

import telesession.redis as redis_store
from telesession import (
    SessionBusy,
    SessionDataError,
    SessionLost,
    SessionStoreError,
    with_session,
)
from telesession.leases import Held
from telesession.redis import RedisStore
from tests import redis_servers
from tests.helpers import count, run_together, says, until
from tests.redis_servers import (
    DATA,
    KEY,
    LEASE,
    WAKE,
    blocked,
    kept,
    leases,
    made,
    monitored,
    not_run,
    stack,
)
from tests.stores import NAME, TIMEOUT, found, message, put, visit

pytestmark = pytest.mark.thorough

valkey_port = redis_servers.valkey_port
connect = redis_servers.connect
store = redis_servers.store
rival = redis_servers.rival
own = redis_servers.own
any_client = redis_servers.any_client

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def unwoken_never(monkeypatch):
    """Whoever waits looks again only if the server wakes it."""
    monkeypatch.setattr(redis_store, "_LONGEST_WAIT", TIMEOUT * 10)


@pytest.mark.parametrize("ttl", [None, 60])
@pytest.mark.parametrize("properties", [["one"], ["one", "two", "three"]], ids=len)
def test_two_round_trips(valkey, store, properties, ttl):
    """An update costs two commands, stacked or not, whether it changes something or nothing."""
    handler = stack(store, *properties, ttl=ttl)
    handler(message())  # hands the server the scripts

    for by in (1, 0):
        with monitored(valkey) as commands:
            handler(message(), by=by)
        assert commands == ["EVALSHA", "EVALSHA"]


class TestServerTrouble:
    """A clear error each time, and work goes on once the server is well, without a restart."""

    def test_connection_refused(self, own, connect):
        store = RedisStore(connect(own.port))
        own.stop()
        not_run(store, "ConnectionError")
        own.start()
        assert stack(store, "session")(message()) == [0]

    @pytest.mark.parametrize("own", [DURABLE], indirect=True, ids=["durable"])
    def test_restarted(self, own, connect):
        """Sessions that are on disk are there again, and so are leases: the save is taken."""
        handler = stack(RedisStore(connect(own.port)), "session")

        for n in range(3):
            assert handler(message(), lambda _: (own.stop(), own.start())) == [n]
            own.stop()
            own.start()

    def test_killed_in_the_middle_of_a_handler(self, own, connect):
        """The save is refused: there is no server, or none that knows of the lease."""
        handler = stack(RedisStore(connect(own.port)), "session")
        with says(SessionStoreError, NAME, "was not saved", "ConnectionError"):
            handler(message(), lambda _: own.stop())
        own.start()
        with says(SessionLost, NAME, "was not saved"):
            handler(message(), lambda _: (own.stop(), own.start()))
        assert [handler(message()) for _ in range(2)] == [[0], [1]]

    @pytest.mark.parametrize("decode", [True, False], ids=["str", "bytes"])
    @pytest.mark.parametrize(
        "value",
        [["hunter2"], b"\xff\xfe hunter2", b"hunter2", b"", b"@base64@hunter2!", b"@hunter2"],
        ids=["list", "no UTF-8", "no JSON", "empty", "no base64", "no head"],
    )
    def test_what_others_wrote(self, valkey, valkey_port, connect, value, decode):
        """It is left as it is, the handler does not run, and nothing of its stack stays leased."""
        store = RedisStore(connect(valkey_port, decode_responses=decode))
        others = stack(store, "before", "after")
        others(message())
        valkey.rpush(DATA, *value) if isinstance(value, list) else valkey.set(DATA, value)
        before, ran = valkey.dump(DATA), []

        for handler in (stack(store, "session"), stack(store, "before", "session", "after")):
            with says(SessionStoreError if isinstance(value, list) else SessionDataError, NAME):
                handler(message(), ran.append)

        assert ran == leases(valkey) == []
        assert valkey.dump(DATA) == before
        assert others(message()) == [1, 1]

        if not isinstance(value, list):
            with_session(store=store, ttl=60).remove(message())
            assert valkey.dump(DATA) is None

    @pytest.mark.parametrize("own", [("--replicaof", "127.0.0.1", "1")], indirect=True, ids=[""])
    def test_a_read_only_replica(self, own, connect):
        not_run(RedisStore(connect(own.port)), "ReadOnlyError")

    def test_no_memory(self, own, connect):
        """At load the handler does not run; later the save of the whole stack is refused.

        What is leased is let go of in the background, where that needs no memory.
        """
        store = RedisStore(connect(own.port), lease=3)
        handler = stack(store, "session", "other")
        handler(message())

        def full(message):
            store.client.config_set("maxmemory", 1)

        def removing(message):
            del message.other
            full(message)

        for body in (full, removing):
            with says(SessionStoreError, NAME, "was not saved", "OutOfMemoryError", "maxmemory"):
                handler(message(), body)
            until(lambda: leases(store.client) == [])
            not_run(store, "OutOfMemoryError")
            store.client.config_set("maxmemory", 0)
            assert store.client.mget(DATA, KEY % "other") == [b'{"n":1}'] * 2

        assert handler(message()) == [1, 1]
        store.acquire([NAME], "token", 0, {})
        store.client.config_set("maxmemory", 1)
        assert store.renew([NAME], "token")

    def test_scripts_flushed(self, valkey, store):
        """Between updates, and in the middle of one."""
        for n in range(3):
            assert stack(store, "session")(message(), lambda _: valkey.script_flush()) == [n]
            valkey.script_flush()


class TestLeases:
    """Whoever holds the lease writes; nobody else does."""

    def test_protocol(self, valkey, store):
        """Each step is for all its sessions or none, by the whole token of their holder."""
        mine, his, both = "a" * 16, "a" * 15 + "b", ["one", "two"]
        lease, wake = "telesession:{two}:lease", "telesession:{two}:wake"
        for _ in range(2):  # as a client does whose first answer got lost
            assert store.acquire(both, mine, 0, {}) == [None, None]
            assert 9000 < valkey.pttl(lease) <= 10_000
        for names in (both, ["two"], ["three", "two"]):
            with pytest.raises(Held, match=names[0] if names == both else "two"):
                store.acquire(names, his, 0, {})
            assert not store.renew(names, his)
            assert not store.write(names, his, ())
        assert valkey.get(lease).startswith(mine.encode() + b" ")
        assert valkey.get(lease).endswith(b"!")
        assert valkey.pttl(lease) > 0
        valkey.pexpire(lease, 100)
        assert store.renew(both, mine)
        assert 9000 < valkey.pttl(lease) <= 10_000
        for release in (False, True):
            assert store.write(both, mine, [("one", "1", None)], release=release)
        assert not store.renew(both, mine)
        assert store.write(both, mine, [("one", "2", None)])  # as a client does once more
        assert valkey.mget("telesession:{one}", "telesession:{two}", lease) == [b"1", None, None]
        for _ in range(2):  # as nobody waits who would take it
            store.acquire(["two"], mine, 1, {})
            store.write(["two"], mine, ())
            assert valkey.llen(wake) == 1

    def test_a_lease_that_was_lost(self, valkey, store, rival):
        """What others wrote and leased meanwhile stands, and the rest of the stack is let go."""
        handler = stack(store, "other", "session", "third")

        def body(message):
            valkey.delete(LEASE)
            run_together(lambda: put({"n": 7}, store=rival))
            valkey.set(LEASE, "another's!")

        with says(SessionLost, "other:42:42", NAME, "was not saved"):
            handler(message(), body)

        assert valkey.get(DATA) == b'{"n":7}'
        assert valkey.get(LEASE) == b"another's!"
        assert kept(valkey) == {each.encode() for each in (DATA, LEASE)}

    def test_that_others_wrote_the_same(self, valkey, store, rival):
        """As two that count do: what the other wrote is not taken back for it."""

        def body(message):
            valkey.delete(LEASE)
            run_together(lambda: put({"n": 1}, store=rival))

        with says(SessionLost, NAME):
            stack(store, "session")(message(), body)

        assert valkey.get(DATA) == b'{"n":1}'

    @pytest.mark.parametrize("lease", [1e-5, 1e306])
    def test_of_any_length(self, valkey, lease):
        store = RedisStore(valkey, lease=lease)
        store.acquire(["one"], "token", 0, {})
        store.renew(["one"], "token")
        store.write(["one"], "token", ())
        until(lambda: kept(valkey) == set())

    @pytest.mark.parametrize(
        ("ttl", "least", "most"),
        [(60, 59_000, 60_000), (None, -1, -1), (1e300, 10**13, 10**14), (1e-9, -2, 1)],
    )
    def test_expiry_is_the_servers(self, valkey, store, ttl, least, most):
        for n in range(2):
            put({"n": n}, store=store, ttl=ttl)
            assert least <= valkey.pttl(DATA) <= most
            valkey.pexpire(DATA, 1000)

    def test_nothing_is_left(self, valkey, store):
        """Of 1,000 users, for some of whom others have waited: no key, lease or wake list.

        For a minute it is known who let go (5.5).
        """
        handler = stack(store, "session", ttl=0.5)

        def waited_for(message):
            valkey.append(leases(valkey)[0], "!")

        for user in range(100, 1100):
            handler(message(user), waited_for if user % 50 == 0 else lambda message: None)

        until(lambda: kept(valkey) == set())
        pipe = valkey.pipeline(transaction=False)
        for key in valkey.scan_iter():
            pipe.pttl(key)
        assert set(pipe.execute()) <= {-2, *range(60_001)}  # -2 is gone meanwhile


class TestWaiting:
    """Who waits for a session that another process has is woken by the server."""

    @staticmethod
    def behind(store, body, *stores):
        """Have handlers on ``stores`` wait for one on ``store``, which does ``body`` meanwhile."""
        threads = [
            threading.Thread(target=visit, args=(count,), kwargs={"store": each}, daemon=True)
            for each in stores
        ]

        def handler(message):
            for thread in threads:
                thread.start()
            body()
            count(message)

        visit(handler, store=store)
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "not woken"
        assert found(store=store) == {"n": len(stores) + 1}

    @pytest.mark.parametrize("number", [1, 5])
    def test_one_by_one(self, valkey, valkey_port, connect, store, unwoken_never, number):
        """All get their turn, none asks without need, and soon nothing is left."""
        rivals = [RedisStore(connect(valkey_port)) for _ in range(number)]
        assert [found(store=each) for each in (store, *rivals)] == [{}] * (number + 1)  # connects

        with monitored(valkey) as commands:
            self.behind(store, lambda: blocked(valkey, number), *rivals)

        assert sorted(commands) == ["BLPOP"] * number + ["EVALSHA"] * (3 * number + 4)
        assert 0 < valkey.pttl(WAKE) <= 1000
        assert leases(valkey) == []

    def test_on_a_cluster(self, valkey_cluster, valkey_cluster_port, unwoken_never):
        node = valkey_cluster.get_redis_connection(valkey_cluster.get_node_from_key(DATA))
        with ValkeyCluster("127.0.0.1", valkey_cluster_port) as client:
            self.behind(RedisStore(valkey_cluster), lambda: blocked(node), RedisStore(client))

    def test_no_longer_than_lock_timeout(self, store, rival):
        store.acquire([NAME], "somebody's", 0, {})
        with says(SessionBusy, NAME, "another process", "lock_timeout"):
            visit(count, store=rival, lock_timeout=0.05)

        store.write([NAME], "somebody's", ())
        assert found(store=rival) == {}

    def test_longer_than_the_socket_timeout(self, valkey, valkey_port, connect, store):
        """For a client that takes a server to be gone that says nothing for a second."""
        valkey.config_resetstat()

        def looked():
            return valkey.info("commandstats").get("cmdstat_blpop", {"calls": 0})["calls"] > 3

        rival = RedisStore(connect(valkey_port, socket_timeout=1))
        self.behind(store, lambda: until(looked), rival)

    def test_with_a_single_connection(self, request, valkey, valkey_port, store):
        """Who waits hands it to the other handlers now and then."""
        pool = redis.BlockingConnectionPool(port=valkey_port, max_connections=1)
        request.addfinalizer(pool.disconnect)
        with redis.Redis(connection_pool=pool) as client:
            rival = RedisStore(client)

            def body():
                blocked(valkey)
                stack(rival, "other")(message())

            self.behind(store, body, rival)


class TestCluster:
    """What belongs together has one slot; what has several slots is saved together all the same."""

    @pytest.mark.parametrize("prefix", ["", "{", "}", "my{bot}:", "a}b{c", "\x00é"])
    def test_one_slot(self, valkey_cluster, prefix):
        """For data, lease and wake list, whatever stands in their keys."""
        store = RedisStore(valkey_cluster, prefix=prefix)
        for key in ("a{b}c", "}{", "{}", "}", "{", "é \n\x00", "*?[a]", ":lease", "x" * 999):
            data = f"{prefix}{{session:{key}}}"
            handler = stack(store, "session", key=lambda message, key=key: key)
            assert handler(message()) == [0]
            assert handler(message(), lambda _, k=data: valkey_cluster.append(k + ":lease", "!"))
            keys = [data, data + ":lease", data + ":wake"]
            assert [valkey_cluster.exists(each) for each in keys] == [1, 0, 1]
            assert len(set(map(valkey_cluster.keyslot, keys))) == 1

    @pytest.mark.parametrize("before", [0, 1], ids=["new", "stored"])
    @pytest.mark.parametrize("lost", ["one", "two", "three"])
    def test_several_slots(self, valkey_cluster, lost, before):
        """Whichever lease is lost, nothing is saved, and nothing stays leased."""
        store = RedisStore(valkey_cluster)
        assert len(store.groups(["one:42:42", "two:42:42", "three:42:42"])) == 3
        handler = stack(store, "one", "two", "three", ttl=60)
        for _ in range(before):
            handler(message())

        with says(SessionLost, "one:42:42", "two:42:42", "three:42:42"):
            handler(message(), lambda _: valkey_cluster.delete(KEY % lost + ":lease"))

        assert len(kept(valkey_cluster)) == 3 * before  # no lease, and nothing new
        assert handler(message()) == [before] * 3
        assert 59_000 < valkey_cluster.pttl(KEY % "one") <= 60_000


class TestClients:
    """Any blocking client of redis-py or valkey-py, as its user made it."""

    @pytest.mark.parametrize("codec", [None, pickle], ids=["json", "pickle"])
    @pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 2}], ids=str)
    @pytest.mark.parametrize("kind", [redis.Redis, valkey_py.Valkey])
    def test_round_trip(self, valkey, valkey_port, kind, options, codec):
        content = {"text": "é😀\x00", "n": [1.0, 10**30, None]}
        valkey.script_flush()
        with made(kind, port=valkey_port, **options) as client:
            put(content, store=RedisStore(client), codec=codec)
            assert found(store=RedisStore(client), codec=codec) == content

        assert valkey.get(DATA).startswith(b"@base64@" if codec else b'{"text":')

    @pytest.mark.parametrize("prefix", ["é:", "my{bot}:"])
    @pytest.mark.parametrize("kind", [redis.Redis, valkey_py.Valkey])
    def test_any_encoding(self, valkey_port, kind, store, prefix):
        """A client that has another encoding, or hides what it can't encode, stores the same."""
        options = {"encoding": "latin-1", "encoding_errors": "replace", "decode_responses": True}
        text = types.SimpleNamespace(
            dumps=functools.partial(json.dumps, ensure_ascii=False), loads=json.loads
        )
        with kind(port=valkey_port, **options) as client:
            here = RedisStore(client, prefix=prefix)
            put({"text": "é😀"}, store=here, codec=text)
            assert found(store=here, codec=text) == {"text": "é😀"}
            assert list(here.names("")) == [NAME]
        there = RedisStore(store.client, prefix=prefix)
        assert found(store=there, codec=text) == {"text": "é😀"}

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks where there are threads
    def test_fork_after_use(self, any_client):
        """Children and parent go on, each with connections of its own."""
        handler = stack(RedisStore(any_client), "session")
        handler(message())
        children = []
        for _ in range(2):
            children.append(os.fork())
            if not children[-1]:
                try:
                    for _ in range(20):
                        handler(message())
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
        for _ in range(20):
            handler(message())
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert handler(message()) == [61]

    def test_sentinel(self, valkey, valkey_port):
        """What `master_for` gives works; what `slave_for` gives is refused."""
        sentinel = redis.sentinel.Sentinel([])
        sentinel.discover_master = lambda name: ("127.0.0.1", valkey_port)
        with sentinel.master_for("bot") as client:
            put({"n": 1}, store=RedisStore(client))
            assert found(store=RedisStore(client)) == {"n": 1}
        for client in (sentinel, sentinel.slave_for("bot")):
            with says((TypeError, ValueError)[client is not sentinel], "client="):
                RedisStore(client)

    def test_prefix_and_identity(self, valkey, rival):
        """Stores of one pool and prefix share locks; each prefix has sessions of its own."""
        store, other = RedisStore(valkey, prefix="one:"), RedisStore(valkey, prefix="two:")
        same = RedisStore(redis.Redis(connection_pool=valkey.connection_pool), prefix="one:")
        put({"n": 1}, store=store)
        put({"n": 2}, store=other)

        assert found(store=same) == {"n": 1}
        assert kept(valkey) == {b"one:{session:42:42}", b"two:{session:42:42}"}
        assert store.identity is same.identity
        assert len({id(each.identity) for each in (store, other, RedisStore(valkey), rival)}) == 4
        assert repr(store) == "RedisStore(Redis, prefix='one:')"

    @pytest.mark.parametrize(
        ("client", "options", "error", "words"),
        [
            (redis.Redis, {}, TypeError, ["client=", "redis.Redis()"]),
            (RedisCluster, {}, TypeError, ["client=", "redis.Redis()"]),
            ({}, {}, TypeError, ["client={}", "redis.Redis()"]),
            (redis.Redis().pipeline(), {}, TypeError, ["client=", "redis.Redis()"]),
            (redis.Redis().pubsub(), {}, TypeError, ["client=", "redis.Redis()"]),
            (redis.asyncio.Redis(), {}, TypeError, ["asynchronous", "blocking client"]),
            (redis.Redis(), {"prefix": b"x"}, TypeError, ["prefix=b'x'", "str"]),
            (redis.Redis(), {"prefix": "my{}:"}, ValueError, ["prefix='my{}:'"]),
            (redis.Redis(), {"lease": 0}, ValueError, ["lease=0", "positive"]),
            (redis.Redis(), {"lease": True}, TypeError, ["lease=True", "number of seconds"]),
            (redis.Redis(), {"lease": "x"}, TypeError, ["lease='x'", "number of seconds"]),
        ],
    )
    def test_misuse(self, client, options, error, words):
        with says(error, *words):
            RedisStore(client, **options)
