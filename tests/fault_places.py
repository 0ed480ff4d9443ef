"""Places where sessions are kept, each with a server that a test may do anything to."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from telesession import SessionError, _locks, with_session
from tests import servers
from tests.faults import SAVED, ending
from tests.stores import TIMEOUT, message
from tests.worker import connect

LEASE = 0.5
CLIENT_TIMEOUT = 0.3  # seconds, of clients that have one
SLACK = 1.0  # seconds that a busy machine may take for what takes none


# Places where sessions are kept, each with a server of its own, which a test may do anything to


class Place:
    """A store whose server can be tormented."""

    waits = False  #: whether its client has no timeout

    def __init__(self, url: str, server: Any = None) -> None:
        self.url = url
        self.server = server

    def processes(self) -> list[int]:
        return [self.server.process.pid]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The server does not answer meanwhile."""
        pids = self.processes()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server.start()

    def store(self, stack: contextlib.ExitStack, lease: float = LEASE) -> Any:
        raise NotImplementedError

    def behind(self, stack: contextlib.ExitStack) -> tuple["Place", servers.Wire | None]:
        """The same place behind a wire, if it has one."""
        return self, None

    def demote(self, stack: contextlib.ExitStack) -> None:
        """Have it take nothing any more, as a server does after a failover, until the end."""
        self.forbid(None)
        stack.callback(self.allow, None)

    def shrink(self, store: Any, stack: contextlib.ExitStack) -> None:
        """Have it on a small disk until the end of ``stack``, if it can't be filled later."""

    def fill(self, store: Any) -> None:
        """Have no place in it for anything big."""

    def relieve(self, store: Any) -> None:
        """Have place in it again."""

    def forbid(self, store: Any) -> None:
        """Have it read-only."""
        raise NotImplementedError

    def allow(self, store: Any) -> None:
        raise NotImplementedError


class RedisPlace(Place):
    retries = 0

    def store(self, stack, lease=LEASE):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        from telesession.redis import RedisStore

        once = {"socket_timeout": CLIENT_TIMEOUT, "retry": Retry(NoBackoff(), self.retries)}
        return RedisStore(
            stack.enter_context(redis.Redis(port=self.server.port, **once)), lease=lease
        )

    def behind(self, stack):
        wire = servers.Wire(self.server.port)
        stack.callback(wire.close)
        return RedisPlace(f"redis://127.0.0.1:{wire.port}", SimpleNamespace(port=wire.port)), wire

    def demote(self, stack):
        import redis

        with redis.Redis(port=self.server.port) as client:
            client.replicaof("127.0.0.1", 1)
        stack.callback(self._promote)

    def _promote(self):
        import redis

        with redis.Redis(port=self.server.port) as client:
            client.replicaof("NO", "ONE")

    def fill(self, store):
        store.client.config_set("maxmemory", 1)

    def relieve(self, store):
        store.client.config_set("maxmemory", 0)

    def forbid(self, store):
        store.client.replicaof("127.0.0.1", 1)

    def allow(self, store):
        store.client.replicaof("NO", "ONE")


class SQLPlace(Place):
    options: ClassVar[dict[str, Any]] = {}
    disk: str = ""

    def relieve(self, store):
        command = ["mount", "-o", "remount,size=100m", self.disk]
        subprocess.run(command, check=True)

    def store(self, stack, lease=LEASE):
        import sqlalchemy as sa

        from telesession.sql import SQLStore

        engine = sa.create_engine(self.url, **self.options)
        stack.callback(engine.dispose)
        sa.event.listen(engine, "connect", self.begin)
        return SQLStore(engine, lease=lease)

    def begin(self, connection: Any, record: Any) -> None:
        """What is done with each new connection."""

    def execute(self, *statements: str) -> None:
        """As the administrator, each on its own."""
        import sqlalchemy as sa

        pool = sa.pool.NullPool
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=pool)
        with engine.connect() as connection:
            for each in statements:
                connection.exec_driver_sql(each)


class SQLitePlace(SQLPlace):
    """Another process that locks the file stands for a server that is gone."""

    options: ClassVar[dict[str, Any]] = {
        "connect_args": {"timeout": 0.05},
        "pool_size": 1,
        "max_overflow": 0,
    }
    _lock: Any = None
    _pragma = "user_version"  # which does nothing

    def begin(self, connection, record):
        connection.execute(f"PRAGMA {self._pragma}")

    def stop(self):
        self._lock = sqlite3.connect(
            self.url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False
        )
        self._lock.execute("BEGIN EXCLUSIVE")

    def start(self):
        self._lock.close()

    def restart(self, seconds: float) -> None:
        """Be locked for a moment from now on."""
        self.stop()
        threading.Timer(seconds, self.start).start()

    @contextlib.contextmanager
    def frozen(self):
        self.stop()
        yield
        self.start()

    def _set(self, store, pragma):
        self._pragma = pragma
        store.engine.dispose()  # it counts for new connections

    def fill(self, store):
        self._set(store, "max_page_count = 60")

    def relieve(self, store):
        self._set(store, "max_page_count = 1000000")

    def forbid(self, store):
        self._set(store, "query_only = 1")

    def allow(self, store):
        self._set(store, "query_only = 0")


class PostgresPlace(SQLPlace):
    waits = True

    def processes(self):
        process = self.server.process
        return [each.pid for each in (process, *process.children(recursive=True))]

    def behind(self, stack):
        parts = urllib.parse.urlsplit(self.url)
        directory = urllib.parse.parse_qs(parts.query)["host"][0]
        wire = servers.Wire(f"{directory}/.s.PGSQL.5432")
        stack.callback(wire.close)
        url = f"postgresql+psycopg://postgres@127.0.0.1:{wire.port}/postgres?sslmode=disable"
        return PostgresPlace(url, self.server), wire

    def shrink(self, store, stack):
        self.disk = directory = small_disk(stack, self.server.process.uids().real)
        self.execute(f"CREATE TABLESPACE small LOCATION '{directory}'")
        stack.callback(self.execute, "DROP TABLE telesession", "DROP TABLESPACE small")
        self.execute(
            "DROP TABLE IF EXISTS telesession",
            create(store) + " TABLESPACE small",
        )

    def forbid(self, store):
        self._read_only("on")

    def allow(self, store):
        self._read_only("off")

    def _read_only(self, value):
        self.execute(
            "SET default_transaction_read_only = off",
            f"ALTER SYSTEM SET default_transaction_read_only = {value}",
            "SELECT pg_reload_conf()",
        )
        with connect(self.url) as other, other.engine.connect() as connection:
            deadline = time.monotonic() + TIMEOUT
            while True:
                found = connection.exec_driver_sql("SHOW default_transaction_read_only").scalar()
                connection.rollback()
                if found == value or time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        time.sleep(0.1)  # others get to know of it at their next statement, or a moment later


class MariaDBPlace(SQLPlace):
    options: ClassVar[dict[str, Any]] = {
        "connect_args": {"read_timeout": CLIENT_TIMEOUT, "connect_timeout": CLIENT_TIMEOUT}
    }

    def behind(self, stack):
        wire = servers.Wire(self.server.port)
        stack.callback(wire.close)
        return MariaDBPlace(self.url.replace(f":{self.server.port}/", f":{wire.port}/")), wire

    def shrink(self, store, stack):
        self.disk = directory = small_disk(stack, os.getuid())
        stack.callback(self.execute, "DROP TABLE telesession")
        self.execute(
            "DROP TABLE IF EXISTS telesession",
            create(store) + f" DATA DIRECTORY='{directory}'",
        )

    def relieve(self, store):
        super().relieve(store)
        if self.server.process.poll() is not None:
            self.stop()
            self.start()

    def forbid(self, store):
        self._read_only(store, 1)

    def allow(self, store):
        self._read_only(store, 0)

    def _read_only(self, store, value):
        self.execute(f"SET GLOBAL tx_read_only = {value}")
        store.engine.dispose()  # it counts for new connections


class MongoPlace(Place):
    def behind(self, stack):
        wire = servers.Wire(self.server.port)
        stack.callback(wire.close)
        return MongoPlace(self.url.replace(f":{self.server.port}/", f":{wire.port}/")), wire

    def store(self, stack, lease=LEASE):
        import pymongo

        from telesession.mongo import MongoStore

        milliseconds = int(CLIENT_TIMEOUT * 1000)
        client = stack.enter_context(
            pymongo.MongoClient(
                self.url, socketTimeoutMS=milliseconds, serverSelectionTimeoutMS=milliseconds
            )
        )
        return MongoStore(client.telesession.sessions, lease=lease)


def create(store):
    """The statement that makes the store's table."""
    from sqlalchemy.schema import CreateTable

    return str(CreateTable(store.table).compile(store.engine)).strip()


def small_disk(stack, owner):
    """A directory on a disk of 3 MB of its own."""
    directory = tempfile.mkdtemp(prefix="telesession-")
    stack.callback(os.rmdir, directory)
    os.chmod(directory, 0o755)
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "telesession", directory]
    if (
        not sys.platform.startswith("linux")
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("only root can make a small disk, on Linux")
    stack.callback(subprocess.run, ["umount", "-l", directory], check=True)
    os.chown(directory, owner, -1)
    return directory


@contextlib.contextmanager
def _redis(directory):
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    with servers.valkey_server(directory, *durable) as server:
        yield RedisPlace(f"redis://127.0.0.1:{server.port}", server)


@contextlib.contextmanager
def _sqlite(directory):
    yield SQLitePlace(f"sqlite:///{directory / 'sessions.sqlite'}")


@contextlib.contextmanager
def _postgres(directory):
    with (
        tempfile.TemporaryDirectory(prefix="telesession-") as own,
        servers.postgres_server(Path(own, "data")) as server,
    ):
        yield PostgresPlace(server.url, server)


@contextlib.contextmanager
def _mariadb(directory):
    with (
        tempfile.TemporaryDirectory(prefix="telesession-") as own,
        servers.mariadb_server(Path(own)) as server,
    ):
        url = f"mysql+pymysql://root@127.0.0.1:{server.port}/telesession?charset=utf8mb4"
        yield MariaDBPlace(url, server)


@contextlib.contextmanager
def _mongo(directory):
    with servers.mongo_server(directory) as server:
        yield MongoPlace(f"mongodb://127.0.0.1:{server.port}/?directConnection=true", server)


PLACES = {
    "redis": _redis,
    "sqlite": _sqlite,
    "postgres": _postgres,
    "mariadb": _mariadb,
    "mongo": _mongo,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The places, each made when it is first asked for; none is shared with other modules."""
    with contextlib.ExitStack() as stack:
        made = {}

        def place(name):
            if name not in made:
                made[name] = stack.enter_context(PLACES[name](tmp_path_factory.mktemp(name)))
            return made[name]

        yield place


@pytest.fixture
def place(request, places):
    yield places(request.param)
    assert _locks.held() == 0


@pytest.fixture
def user(place, request):
    """A user of the place, who has been there once."""
    property = request.function.__name__.removeprefix("test_")
    with contextlib.ExitStack() as stack:
        yield User(place, property, stack)


class User:
    """Sends updates that count, and sees what becomes of each."""

    def __init__(self, place: Place, property: str, stack: contextlib.ExitStack) -> None:
        self.property = property
        self.saved = 0
        self.unsure = False  #: whether the last save may have been done, as its error said
        self.error: SessionError | None = None
        self.stack = stack
        self.use(place.store(stack))

    def use(self, store: Any) -> None:
        self.store = store

    def sends(self, body: Callable[[Any], object] = lambda session: None) -> str:
        """What becomes of an update in whose handler ``body`` happens."""
        ran = []

        @with_session(property=self.property, store=self.store, lock_timeout=LEASE + SLACK)
        def handler(update: Any) -> None:
            ran.append(True)
            session = getattr(update, self.property)
            assert session.get("n", 0) in (self.saved, self.saved + self.unsure)
            self.saved = session.get("n", 0)
            session["n"] = self.saved + 1
            body(session)

        try:
            handler(message())
        except SessionError as error:
            self.unsure = self.unsure or "is not known" in str(error)
            self.error = error
            return ending("save refused" if ran else "handler not run", type(error).__name__)
        self.unsure = False
        self.saved += 1
        return SAVED

    def goes_on(self) -> None:
        """Nothing was lost, and the next update succeeds when a lease is over at the latest."""
        start = time.monotonic()
        assert self.sends() == SAVED
        assert time.monotonic() - start < self.store.lease + SLACK
