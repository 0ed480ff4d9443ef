"""5.7, 6.4 `RedisStore` on real servers: what is stored is listed and read without a lease."""

import pytest
import redis
import valkey as valkey_py
from redis.cluster import RedisCluster
from valkey.cluster import ValkeyCluster

from telesession import SessionDataError, with_session
from telesession.redis import RedisStore
from tests import redis_servers
from tests.helpers import peak_of_listing, says, until
from tests.redis_servers import DATA, leases, made, monitored, plant
from tests.stores import NAME, message

pytestmark = pytest.mark.thorough

valkey_port = redis_servers.valkey_port
connect = redis_servers.connect
store = redis_servers.store

NAMES = [
    f"user_a:{key}"
    for key in ("1", "{b}", "}", "{", "a}b", "*", "?[a]", "é 😀\n\x00", ":lease", "}:lease", "\\")
]
ALIKE = ["userXa:1", "User_A:1", "user_a", "user_ab:1", "xuser_a:1", "user_a1:"]


class TestListing:
    """The names of what is stored, and what is stored, without a lease."""

    @pytest.mark.parametrize("prefix", ["telesession:", "", "my{bot}:", "a*[b]\\?"])
    @pytest.mark.parametrize("cluster", [False, True], ids=["single", "cluster"])
    def test_exactly_those(self, valkey, valkey_cluster, cluster, prefix):
        """Whatever stands in names and prefixes, and whatever else is stored."""
        client = valkey_cluster if cluster else valkey
        store, other = RedisStore(client, prefix=prefix), RedisStore(client, prefix="aX[b]\\?")
        plant(store, *NAMES, *ALIKE)
        plant(other, "user_a:other")
        plant(store, "user_a:over", ttl=0.001)
        leased, _ = store.open(["user_a:1", "user_a:never stored"], 0)
        for end in (b"x", b"\xff}"):  # what others have there
            client.set(prefix.encode() + b"{user_a:" + end, 1)
        until(lambda: not client.exists(f"{prefix}{{user_a:over}}"))

        assert sorted(store.names("user_a:")) == sorted(NAMES)
        assert sorted(store.names("User_A:")) == ["User_A:1"]
        assert sorted(store.names("user_a:*")) == ["user_a:*"]
        assert sorted(store.names("user_a:?")) == ["user_a:?[a]"]
        assert sorted(store.names("")) == sorted(NAMES + ALIKE)
        assert list(other.names("user_a:")) == ["user_a:other"]
        store.commit(leased, ())

    @pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 2}], ids=str)
    @pytest.mark.parametrize("kind", [redis.Redis, valkey_py.Valkey])
    def test_any_client(self, valkey, valkey_port, kind, options):
        valkey.set(b"telesession:{user_a:\xff}", "others'")
        with made(kind, port=valkey_port, **options) as client:
            store = RedisStore(client)
            plant(store, *NAMES)
            assert sorted(store.names("user_a:")) == sorted(NAMES)
            assert [store.peek(name) for name in NAMES] == ['{"n":1}'] * len(NAMES)

    @pytest.mark.parametrize("options", [{}, {"decode_responses": True}], ids=str)
    @pytest.mark.parametrize("kind", [RedisCluster, ValkeyCluster])
    def test_any_client_of_a_cluster(self, valkey_cluster, valkey_cluster_port, kind, options):
        """On all its servers, many to a server."""
        names = [f"user_a:{number}" for number in range(5000)]
        pipe = valkey_cluster.pipeline()
        for name in names:
            pipe.set(f"telesession:{{{name}}}", "1")
        pipe.execute()
        with kind("127.0.0.1", valkey_cluster_port, **options) as client:
            store = RedisStore(client)
            assert sorted(store.names("user_a:")) == sorted(names)
            assert {store.peek(name) for name in names[:50]} == {"1"}
            assert store.peek("user_a:none") is None

    def test_many(self, valkey, store):
        """Of 100,000 each comes once, page by page, and they are not in memory together."""
        pipe = valkey.pipeline(transaction=False)
        for number in range(100_000):
            pipe.set(f"telesession:{{session:{number}}}", "1")
        pipe.execute()
        names = store.names("session:")
        next(names)
        with monitored(valkey) as commands:
            next(names)
        assert commands == []
        assert peak_of_listing(store.names("session:"), 100_000) < 3_000_000

    def test_repeated(self, valkey, store, monkeypatch):
        """What a server repeats, as it does when many keys have gone meanwhile, comes once."""
        names = [f"session:{number}" for number in range(3000)]
        plant(store, *names)
        call, answers = valkey.execute_command, []

        def twice(*args, **kwargs):
            number, (cursor, keys) = call(*args, **kwargs)
            answers.append(keys)
            return [number, [cursor, [*keys, *answers[-2:][0], *keys[:10]]]]

        monkeypatch.setattr(valkey, "execute_command", twice)
        assert sorted(store.names("session:")) == sorted(names)
        assert len(answers) > 2

    def test_peek(self, valkey, store):
        """Reads in one command: no lease, no other expiry, and while others have it leased."""
        assert store.peek(NAME) is None
        lease, _ = store.open([NAME], 0)
        assert store.peek(NAME) is None
        store.commit(lease, [(NAME, b"\xff", 60)])
        valkey.pexpire(DATA, 5000)
        lease, _ = store.open([NAME], 0)
        with monitored(valkey, lua=True) as commands:
            assert store.peek(NAME) == b"\xff"
        assert commands == ["EVALSHA", "GET"]  # the script does nothing else
        assert valkey.pttl(DATA) <= 5000
        assert len(leases(valkey)) == 1
        store.commit(lease, [(NAME, "x", 0.001)])
        until(lambda: store.peek(NAME) is None)

    @pytest.mark.parametrize("decode", [True, False], ids=["str", "bytes"])
    def test_peek_at_what_others_wrote(self, valkey, valkey_port, connect, decode):
        store = RedisStore(connect(valkey_port, decode_responses=decode))
        for value in (b"\xff hunter2", b"@base64@hunter2!"):
            valkey.set(DATA, value)
            with says(SessionDataError, NAME):
                with_session(store=store).peek(message())
            assert list(store.names("session:")) == [NAME]
