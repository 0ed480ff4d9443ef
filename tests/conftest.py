"""Real servers for the stores that talk to one, each started once and emptied for every test."""

import gc
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from telebot.util import WorkerThread

from telesession import _locks, with_session
from tests import servers
from tests.helpers import until
from tests.stores import BACKENDS, Backend

TIMEOUT = 10  # seconds, a guard: servers answer within a tenth of one


# Parameters of tests, mostly stores, that take long without depending on the Python that runs them.
# Whole modules of which that is true have a `pytestmark`.
THOROUGH = {
    *("get-set", "ttl-cache", "lru-cache", "diskcache", "cachelib", "redis", "memcached"),
    *("redis-cluster", "postgres", "mariadb", "mongo", "sqlite"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what CI runs on one Python only."""
    for item in items:
        call = getattr(item, "callspec", None)
        values = call.params.values() if call else ()
        if any(isinstance(value, str) and value in THOROUGH for value in values):
            item.add_marker("thorough")


def pytest_collection_finish() -> None:
    """Leave what is there before the first test out of each test's `gc.collect()`."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _idle_workers_end() -> Iterator[None]:
    """A bot's idle workers wake twice a second for good, so thousands of bots would slow tests."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if isinstance(thread, WorkerThread):
            thread.stop()
            thread.continue_event.set()


@pytest.fixture
def store():
    """A store for a test's sessions, none of which is left locked."""
    yield {}
    until(lambda: _locks.held() == 0)  # a sweeper may be about to let go


@pytest.fixture
def session(store):
    """A declaration of sessions on that store."""
    return with_session(store=store)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each of the stores that run the contract suite, empty."""
    with BACKENDS[request.param](request) as backend:
        yield backend
    backend.check_idle()


@pytest.fixture(scope="session")
def valkey_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Valkey server on loopback."""
    with servers.valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server.port


@pytest.fixture
def valkey(valkey_port: int) -> Iterator[Any]:
    """A `redis.Redis` client of an empty Valkey server."""
    import redis

    with redis.Redis(port=valkey_port, socket_timeout=TIMEOUT) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def valkey_cluster_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of one of the three Valkey servers of a cluster on loopback."""
    directory = tmp_path_factory.mktemp("valkey-cluster")
    with servers.valkey_cluster_servers(directory) as nodes:
        yield nodes[0].port


@pytest.fixture
def valkey_cluster(valkey_cluster_port: int) -> Iterator[Any]:
    """A `redis.cluster.RedisCluster` client of an empty cluster."""
    from redis.cluster import RedisCluster

    with RedisCluster("127.0.0.1", valkey_cluster_port, socket_timeout=TIMEOUT) as client:
        client.flushall(target_nodes=RedisCluster.PRIMARIES)
        yield client


@pytest.fixture(scope="session")
def memcached_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a memcached server on loopback."""
    with servers.memcached_server(tmp_path_factory.mktemp("memcached")) as server:
        yield server.port


@pytest.fixture
def memcached(memcached_port: int) -> Iterator[Any]:
    """A `pymemcache.PooledClient` of an empty memcached server."""
    from pymemcache import PooledClient

    client = PooledClient(
        ("127.0.0.1", memcached_port),
        connect_timeout=TIMEOUT,
        timeout=TIMEOUT,
        default_noreply=False,
    )
    client.flush_all(noreply=False)
    yield client
    client.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Where a PostgreSQL server is, for SQLAlchemy."""
    # Not in pytest's directory: the server of root's tests runs as another user.
    with (
        tempfile.TemporaryDirectory(prefix="telesession-") as directory,
        servers.postgres_server(Path(directory, "data")) as server,
    ):
        yield server.url


@pytest.fixture(scope="session")
def postgres_engine(postgres_url: str) -> Iterator[Any]:
    """A SQLAlchemy engine of the PostgreSQL server, for all tests."""
    yield from _engine(postgres_url)


@pytest.fixture
def postgres(postgres_engine: Any) -> Any:
    """A SQLAlchemy engine of a PostgreSQL server that has no table ``telesession``."""
    return _without_table(postgres_engine)


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """Where a database on a MariaDB server is, for SQLAlchemy."""
    # Not in pytest's directory: the path of a Unix socket has to be short.
    with (
        tempfile.TemporaryDirectory(prefix="telesession-") as directory,
        servers.mariadb_server(Path(directory)) as server,
    ):
        yield f"mysql+pymysql://root@127.0.0.1:{server.port}/telesession?charset=utf8mb4"


@pytest.fixture(scope="session")
def mariadb_engine(mariadb_url: str) -> Iterator[Any]:
    """A SQLAlchemy engine of the MariaDB server, for all tests."""
    yield from _engine(mariadb_url)


@pytest.fixture
def mariadb(mariadb_engine: Any) -> Any:
    """A SQLAlchemy engine of a MariaDB server that has no table ``telesession``."""
    return _without_table(mariadb_engine)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Where a SQLite database is, which is empty, for SQLAlchemy."""
    return f"sqlite:///{tmp_path / 'sessions.sqlite'}"


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Any]:
    """A SQLAlchemy engine of an empty SQLite database."""
    yield from _engine(sqlite_url)


@pytest.fixture(scope="session")
def mongo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server is that speaks as MongoDB does."""
    with servers.mongo_server(tmp_path_factory.mktemp("mongo")) as server:
        yield f"mongodb://127.0.0.1:{server.port}/?directConnection=true"


@pytest.fixture(scope="session")
def mongo_client(mongo_url: str) -> Iterator[Any]:
    """A `pymongo.MongoClient` for all tests."""
    import pymongo

    timeout = TIMEOUT * 1000
    with pymongo.MongoClient[Any](mongo_url, serverSelectionTimeoutMS=timeout) as client:
        yield client


@pytest.fixture
def mongo(mongo_client: Any) -> Any:
    """A `pymongo.collection.Collection` that has neither documents nor indexes."""
    collection = mongo_client["telesession"]["sessions"]
    collection.drop()
    return collection


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def _engine(url: str) -> Iterator[Any]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(url)
    yield engine
    engine.dispose()


def _without_table(engine: Any) -> Any:
    import sqlalchemy

    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE IF EXISTS telesession"))
    return engine
