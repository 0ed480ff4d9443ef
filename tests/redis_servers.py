"""Clients and stores of a server of Redis or Valkey, and what the server shows of them."""

import contextlib
import functools

import pytest
import redis
import valkey as valkey_py
from redis.backoff import NoBackoff
from redis.retry import Retry

from telesession import SessionStoreError, with_session
from telesession.redis import RedisStore
from tests import servers
from tests.helpers import says, until
from tests.stores import NAME, TIMEOUT, visit

KEY = "telesession:{%s:42:42}"
DATA, LEASE, WAKE = KEY % "session", KEY % "session" + ":lease", KEY % "session" + ":wake"


@pytest.fixture(scope="module", params=["Valkey", "Redis"])
def valkey_port(request, tmp_path_factory):
    """The port of a server of either kind."""
    binary = servers.redis_binary if request.param == "Redis" else None
    with servers.valkey_server(tmp_path_factory.mktemp("server"), binary=binary) as server:
        yield server.port


@pytest.fixture
def connect():
    """Makes clients that don't try twice."""
    with contextlib.ExitStack() as stack:
        once = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None}
        yield lambda port, **more: stack.enter_context(redis.Redis(port=port, **{**once, **more}))


@pytest.fixture
def store(valkey):
    return RedisStore(valkey)


@pytest.fixture
def rival(connect, valkey_port):
    """A store of the same sessions that competes on the server, as another process does."""
    return RedisStore(connect(valkey_port))


@pytest.fixture
def own(tmp_path, request):
    """A server for one test, with the options of its parameter."""
    with servers.valkey_server(tmp_path, *getattr(request, "param", ())) as server:
        yield server


def blocked(client, number=1):
    """Wait until the server has that many clients wait."""
    until(lambda: client.info("clients")["blocked_clients"] == number)


def leases(client):
    return list(client.scan_iter("*:lease"))


def kept(client):
    """All keys, but for those that tell for a minute which token let go."""
    return {key for key in client.scan_iter() if b":done:" not in key}


def stack(store, *properties, **options):
    """A handler that counts in sessions of these properties, and tells what they were before."""

    def handler(message, body=lambda message: None, by=1):
        counts = [getattr(message, property).get("n", 0) for property in properties]
        for property, n in zip(properties, counts, strict=True):
            getattr(message, property)["n"] = n + by
        body(message)
        return counts

    for property in reversed(properties):
        handler = with_session(property=property, store=store, **options)(handler)
    return handler


@contextlib.contextmanager
def monitored(client, lua=False):
    """What the server gets meanwhile, by its own account, with what scripts call or without."""
    commands = []
    port = client.get_connection_kwargs()["port"]
    with redis.Redis(port=port) as other, other.monitor() as monitor:
        yield commands
        client.echo("the end")
        for each in monitor.listen():
            command = each["command"].split()[0]
            if command == "ECHO":
                break
            # `blocked` asks for INFO
            if (lua or each["client_type"] != "lua") and command != "INFO":
                commands.append(command)


def not_run(store, cause):
    """An update fails for that reason, before its handler runs."""
    ran = []
    with says(SessionStoreError, NAME, "handler did not run", cause):
        visit(ran.append, store=store)
    assert ran == []


def made(kind, **options):
    """A client with those options; skips where the installed version doesn't know them."""
    try:
        return kind(**options)
    except TypeError as error:
        pytest.skip(f"the installed client says: {error}")


def pooled(package, client, **options):
    """A client whose pool has one connection, for which all wait."""
    pool = package.BlockingConnectionPool(max_connections=1, **options)
    return client(connection_pool=pool)


POOLS = {
    "redis": redis.Redis,
    "redis, RESP2": functools.partial(redis.Redis, protocol=2),
    "redis, one connection": functools.partial(redis.Redis, single_connection_client=True),
    "redis, a pool of one": functools.partial(pooled, redis, redis.Redis),
    "valkey": valkey_py.Valkey,
    "valkey, a pool of one": functools.partial(pooled, valkey_py, valkey_py.Valkey),
}


@pytest.fixture(params=POOLS)
def any_client(request, valkey, valkey_port):
    with POOLS[request.param](port=valkey_port) as client:
        yield client


def plant(store, *names, ttl=None, payload='{"n":1}'):
    for name in names:
        lease, _ = store.open([name], TIMEOUT)
        store.commit(lease, [(name, payload, ttl)])
