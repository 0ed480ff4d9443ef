"""6.3, 6.4 What a user gets when something fails: the table of faults, each cell a test.

``pytest tests/test_faults.py -k "full and redis"`` runs one cell. `MATRIX` says what its test has
to see, and ``tests/faults.rst`` is made of it: ``python -m tests.test_faults --write``.
"""

import contextlib
import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from telesession import JSON, MemoryStore, SessionError, _locks, with_session
from tests import servers
from tests.interrupts import Interrupt, Interrupting
from tests.stores import TIMEOUT, found, message, put
from tests.worker import ROOT, Worker, connect

pytestmark = pytest.mark.thorough

LEASE = 0.5
CLIENT_TIMEOUT = 0.3  # seconds, of clients that have one
SLACK = 1.0  # seconds that a busy machine may take for what takes none

STORES = {
    "memory": "``MemoryStore``",
    "redis": "``RedisStore`` [2]_",
    "sqlite": "SQLite [3]_",
    "postgres": "PostgreSQL",
    "mariadb": "MariaDB",
    "mongo": "``MongoStore`` [4]_",
}

FAULTS = {
    "dies": "the bot's process is killed in a handler",
    "stalls": "the bot's process stalls for longer than its lease",
    "gone": "the server dies in the middle of a handler, and stays dead; the next update",
    "restarts-between": "the server is killed and starts again between two updates",
    "restarts-inside": "the same in the middle of a handler, within its lease",
    "slow": "the server does not answer for longer than the lease: before a handler; in the middle",
    "full": "memory or disk is full: what does not fit; the next update, which would",
    "read-only": "the server becomes read-only in the middle of a handler; the next update",
    "retry": "the answer to a save is lost, and the client's connection with it",
    "clock-back": "the bot's process is killed in a handler, and the clock steps back an hour",
    "clock-forward": "the clock steps forward an hour in the middle of a handler; and others come",
    "failover": "another server takes over behind the same name; the next updates",
    "fork": "the process forks after it used the store",
    "interrupt": "an exception out of a signal handler between a command and its answer",
}


def _error(what: str, kind: str) -> str:
    return f"{what}: ``{kind}``"


SAVED = "saved"
NOT_RUN = _error("handler not run", "SessionStoreError")
REFUSED = _error("save refused", "SessionStoreError")
LOST = _error("save refused", "SessionLost")
FREE = "nothing saved is lost; the next update waits for *lease* at most"
FORGETS = "saved, and the session least recently used is gone, see ``maxsize``"
NO_SERVER = "has no server"
UNMOVED = "nothing: its clock can't be set"
ONCE = "saved once"
UNKNOWN = "``SessionStoreError``, which says that it is not known"
WAITS = "the next update waits for *lease* at most"
OWN = "each user's updates find what is theirs"

#: What the test of a cell observes, in its words; or why there is no test, after "not tested".
MATRIX: dict[str, dict[str, str]] = {
    "dies": {"memory": "all sessions are gone", **dict.fromkeys(list(STORES)[1:], FREE)},
    "stalls": {"memory": SAVED, **dict.fromkeys(list(STORES)[1:], LOST)},
    "gone": {
        "memory": NO_SERVER,
        "redis": f"{REFUSED}; {NOT_RUN}",
        "sqlite": f"{REFUSED}; {NOT_RUN}",
        "postgres": f"{REFUSED}; {NOT_RUN}",
        "mariadb": f"{REFUSED}; {NOT_RUN}",
        "mongo": f"{REFUSED}; {NOT_RUN}",
    },
    "restarts-between": {"memory": NO_SERVER, **dict.fromkeys(list(STORES)[1:], SAVED)},
    "restarts-inside": {"memory": NO_SERVER, **dict.fromkeys(list(STORES)[1:], SAVED)},
    "slow": {
        "memory": NO_SERVER,
        "redis": f"{NOT_RUN}; {REFUSED}",
        "sqlite": f"{NOT_RUN}; {REFUSED}",
        "postgres": f"{SAVED}, after waiting for it; {SAVED}",
        "mariadb": f"{NOT_RUN}; {REFUSED}",
        "mongo": f"{NOT_RUN}; {REFUSED}",
    },
    "full": {
        "memory": FORGETS,
        "redis": f"{REFUSED}; {NOT_RUN}",
        "sqlite": f"{REFUSED}; {SAVED}",
        "postgres": f"{REFUSED}; {SAVED}",
        "mariadb": "not tested: MariaDB 10.11 may end itself, and has to be started again",
        "mongo": "not tested: there is no MongoDB here whose disk could be filled",
    },
    "read-only": {
        "memory": NO_SERVER,
        "redis": f"{REFUSED}; {NOT_RUN}",
        "sqlite": f"{REFUSED}; {NOT_RUN}",
        "postgres": f"{REFUSED}; {NOT_RUN}",
        "mariadb": f"{REFUSED}; {NOT_RUN}",
        "mongo": "not tested: there is no MongoDB here with a secondary",
    },
    "retry": {
        "memory": NO_SERVER,
        "redis": ONCE,
        "sqlite": NO_SERVER,
        "postgres": f"{ONCE}, or {UNKNOWN}",
        "mariadb": f"{ONCE}, or {UNKNOWN}",
        "mongo": f"{ONCE}, or {UNKNOWN}",
    },
    "clock-back": {"memory": UNMOVED, **dict.fromkeys(list(STORES)[1:], WAITS)},
    "clock-forward": {
        "memory": UNMOVED,
        "redis": f"{LOST}; {LOST}",
        **dict.fromkeys(list(STORES)[2:], f"{SAVED}; {LOST}"),
    },
    "failover": {
        "memory": NO_SERVER,
        "redis": f"{NOT_RUN}; {SAVED}",
        "sqlite": NO_SERVER,
        "postgres": f"{NOT_RUN}; {SAVED}",
        "mariadb": "not tested: its administrator may write where it is read-only",
        "mongo": "not tested: there is no MongoDB here with a secondary",
    },
    "fork": {
        "memory": "saved, by each process for itself",
        **dict.fromkeys(list(STORES)[1:], "saved, by both processes"),
    },
    "interrupt": dict.fromkeys(STORES, OWN),
}

NOTES = """\
In every cell, what was saved before stands, and when the fault is over the bot goes on without a
restart: its next update is saved, after waiting for *lease* at most. Each is a test:
``pytest tests/test_faults.py -k "full and redis"``.

.. [2] Redis or Valkey with ``appendonly yes`` and ``appendfsync always``. Without persistence a
   restart loses all sessions, and the save of a handler that ran meanwhile is refused
   (``SessionLost``).
.. [3] There is no server that could die: another process locks the file instead, for good, for a
   moment, and for longer than the connection's timeout. The file itself must not be replaced while
   processes have it open, as SQLite's documentation says.
.. [4] On SecantusDB, which speaks as MongoDB does.

Clients of Redis, MariaDB and MongoDB have a timeout in these tests; psycopg has none, and waits.
"""


HEAD = [
    "Fault by fault",
    "==============",
    "",
    "What an update gets when something fails, for each store; ``tests/test_faults.py`` makes this",
    "page of what it tests.",
    "",
]


def table() -> str:
    """What ``tests/faults.rst`` says."""
    lines = [*HEAD, ".. list-table::", "   :header-rows: 1", ""]
    rows = [["", *STORES.values()]]
    for fault, what in FAULTS.items():
        rows.append([what, *(MATRIX[fault][store] for store in STORES)])
    for row in rows:
        for number, cell in enumerate(row):
            bullet = "     - " if number else "   * - "
            lines += textwrap.wrap(
                cell,
                100,
                initial_indent=bullet,
                subsequent_indent=" " * 7,
                break_on_hyphens=False,
                break_long_words=False,
            ) or [bullet.rstrip()]
    return "\n".join(lines) + "\n\n" + NOTES


PAGE = ROOT / "tests" / "faults.rst"


def test_page():
    """``tests/faults.rst`` shows this table, and no other."""
    assert PAGE.read_text(encoding="utf-8") == table(), "run python -m tests.test_faults --write"


def test_matrix_is_whole():
    """Every fault has a cell for every store."""
    assert list(MATRIX) == list(FAULTS)
    assert all(list(cells) == list(STORES) for cells in MATRIX.values())


def cells(fault: str) -> Any:
    """Run a test for every store of this row whose cell is tested."""
    return pytest.mark.parametrize(
        ("place", "expected"),
        [
            pytest.param(store, text, id=store)
            for store, text in MATRIX[fault].items()
            if text != NO_SERVER and not text.startswith("not tested") and store != "memory"
        ],
        indirect=["place"],
    )


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
            return _error("save refused" if ran else "handler not run", type(error).__name__)
        self.unsure = False
        self.saved += 1
        return SAVED

    def goes_on(self) -> None:
        """Nothing was lost, and the next update succeeds when a lease is over at the latest."""
        start = time.monotonic()
        assert self.sends() == SAVED
        assert time.monotonic() - start < self.store.lease + SLACK


# The faults


@cells("dies")
def test_dies(place, expected):
    before = {"n": 7, "text": "å" * 20_000}
    with connect(place.url, lease=LEASE) as store:
        put(before, store=store)
        with Worker(place.url, "hold", LEASE, 60) as holder:
            assert holder.read() == "ready"
            holder.go()
            assert holder.read() == "inside"
            holder.process.kill()
            holder.process.wait(TIMEOUT)
            start = time.monotonic()
            assert found(store=store) == before
            waited = time.monotonic() - start
    assert waited < LEASE + SLACK
    assert expected == FREE


_IN_MEMORY = """
import os, signal, sys
from telesession import with_session
from tests.stores import message

@with_session
def handler(message):
    n = message.session["n"] = message.session.get("n", 0) + 1
    print(n, flush=True)
    if n == 2:
        os.kill(os.getpid(), int(sys.argv[1]))

for _ in range(3):
    handler(message())
"""


@pytest.mark.skipif(os.name != "posix", reason="there are no signals")
@pytest.mark.parametrize("fault", ["dies", "stalls"])
def test_memory(fault):
    """Of a process that dies nothing is left; one that stalls has what it had."""
    number = signal.SIGKILL if fault == "dies" else signal.SIGSTOP

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", _IN_MEMORY, str(int(number))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    said = []
    for _ in range(2 if fault == "dies" else 1):
        with start() as process:
            said += [process.stdout.readline().strip() for _ in range(2)]
            if fault == "stalls":
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                process.send_signal(signal.SIGCONT)
            rest, _ = process.communicate(timeout=TIMEOUT)
            said += rest.split()
    outcome = {
        "1 2 1 2": "all sessions are gone",  # the second process finds nothing of the first
        "1 2 3": SAVED,
    }[" ".join(said)]
    assert outcome == MATRIX[fault]["memory"]


@cells("stalls")
def test_stalls(place, expected):
    with (
        connect(place.url, lease=LEASE) as store,
        Worker(place.url, "hold", LEASE, 0.1) as stalled,
    ):
        assert stalled.read() == "ready"
        stalled.go()
        assert stalled.read() == "inside"
        os.kill(stalled.process.pid, signal.SIGSTOP)
        try:
            put({"n": 2}, store=store)  # waits for the lease
        finally:
            os.kill(stalled.process.pid, signal.SIGCONT)
        said = stalled.read()
        assert (SAVED if said == "saved" else _error("save refused", said)) == expected
        assert found(store=store) == {"n": 2}


@cells("gone")
def test_gone(place, user, expected):
    assert user.sends() == SAVED
    try:
        outcomes = [user.sends(lambda session: place.stop()), user.sends()]
    finally:
        place.start()
    assert "; ".join(outcomes) == expected
    user.goes_on()


def restart(place, user):
    if isinstance(place, SQLitePlace):
        place.restart(0.2)
    else:
        place.stop()
        place.start()


@pytest.fixture
def patient(place, user, monkeypatch):
    """A user whose lease, and SQLite's timeout, is as long as by default."""
    monkeypatch.setattr(SQLitePlace, "options", {})
    user.use(place.store(user.stack, lease=10))
    return user


@cells("restarts-between")
def test_restarts_between(place, patient, expected):
    assert patient.sends() == SAVED
    restart(place, patient)
    assert patient.sends() == expected
    patient.goes_on()


@cells("restarts-inside")
def test_restarts_inside(place, patient, expected):
    assert patient.sends() == SAVED
    assert patient.sends(lambda session: restart(place, patient)) == expected
    patient.goes_on()


@cells("slow")
def test_slow(place, user, expected):
    """The server gets what it was sent, but late: after the lease, so that it is refused."""
    assert user.sends() == SAVED
    with contextlib.ExitStack() as stack:

        def freeze(session=None):
            stack.enter_context(place.frozen())
            nonlocal over
            over = time.monotonic() + 2 * LEASE
            if place.waits:
                threading.Timer(2 * LEASE, stack.close).start()

        def thaw():
            time.sleep(max(0.0, over - time.monotonic()))
            stack.close()

        over = 0.0
        freeze()
        before = user.sends()
        if place.waits:
            assert time.monotonic() >= over
            before += ", after waiting for it"
        thaw()
        user.goes_on()
        inside = user.sends(freeze)
        thaw()
    assert f"{before}; {inside}" == expected
    if "refused" in inside:  # or perhaps not: the server may have done it when it woke up
        user.saved = json.loads(user.store.peek(f"{user.property}:42:42"))["n"]
    user.goes_on()


@cells("full")
def test_full(place, user, expected):
    place.shrink(user.store, user.stack)
    assert user.sends() == SAVED

    def body(session):
        session["big"] = secrets.token_hex(4_000_000)
        place.fill(user.store)

    try:
        outcomes = [user.sends(body), user.sends()]
    finally:
        place.relieve(user.store)
    assert "; ".join(outcomes) == expected
    user.goes_on()


def test_memory_full():
    """The store is full of sessions: that of user 42 is not the oldest, that of user 1 is."""
    store = MemoryStore(maxsize=2)
    users = [1, 42, 43]

    @with_session(store=store)
    def handler(update):
        update.session["n"] = update.session.get("n", 0) + 1
        return update.session["n"]

    assert [handler(message(user)) for user in users] == [1, 1, 1]
    assert [handler(message(user)) for user in reversed(users)] == [2, 2, 1]
    assert MATRIX["full"]["memory"] == FORGETS


@cells("read-only")
def test_read_only(place, user, expected):
    assert user.sends() == SAVED
    try:
        outcomes = [user.sends(lambda session: place.forbid(user.store)), user.sends()]
    finally:
        place.allow(user.store)
    assert "; ".join(outcomes) == expected
    user.goes_on()


@pytest.fixture
def wired(place, request):
    """A user of the place behind a wire, if there is one; who has been there once."""
    with contextlib.ExitStack() as stack:
        place, wire = place.behind(stack)
        if isinstance(place, RedisPlace):
            place.retries = 3  # redis-py has some by default
        property = request.function.__name__.removeprefix("test_")
        user = User(place, property, stack)
        user.use(place.store(stack, lease=10))
        user.wire = wire
        assert user.sends() == SAVED
        yield user


@cells("retry")
def test_retry(place, wired, expected):
    """6.3, 6.4 The server has done what was asked; what is said of it is true."""

    def cut(session):
        wired.wire.cut = True

    name = f"{wired.property}:42:42"
    outcome = None
    try:
        outcome = wired.sends(cut)
    finally:
        stored = JSON.loads(wired.store.peek(name))["n"]
    if outcome == SAVED:
        assert stored == wired.saved
    else:
        assert outcome == REFUSED
        assert "is not known" in str(wired.error)
        assert stored in (wired.saved, wired.saved + 1)
        wired.saved = stored
    assert (ONCE if outcome == SAVED else UNKNOWN) in expected
    wired.goes_on()


@pytest.fixture(scope="module")
def clocked_places(tmp_path_factory):
    """As `places`, but with a clock that the test sets."""
    with contextlib.ExitStack() as stack:
        made = {}

        def place(name):
            if name not in made:
                clock = stack.enter_context(servers.server_clock())
                with clock.kept(preload=name != "mongo"):
                    opened = PLACES[name](tmp_path_factory.mktemp(name))
                    made[name] = stack.enter_context(opened), clock
            return made[name]

        yield place


@pytest.fixture
def clocked(request, clocked_places):
    place, clock = clocked_places(request.param)
    clock.step(0)
    return place, clock


def clocked_cells(fault):
    """As `cells`, for the places with a clock."""
    mark = cells(fault)
    return pytest.mark.parametrize(("clocked", "expected"), mark.args[1], indirect=["clocked"])


@contextlib.contextmanager
def holder(place, clock, lease, seconds):
    """A process that is about to have the session."""
    with clock.kept(preload=False):  # where the store is a file, that is the clock that counts
        worker = Worker(place.url, "hold", lease, seconds)
    with worker:
        assert worker.read() == "ready"
        yield worker


@clocked_cells("clock-back")
def test_clock_back(clocked, expected):
    """6.4 It blocks nobody for longer than a lease."""
    place, clock = clocked
    with holder(place, clock, LEASE, 60) as dies, holder(place, clock, LEASE, 0) as waits:
        dies.go()
        assert dies.read() == "inside"
        clock.step(-3600)
        dies.process.kill()
        dies.process.wait(TIMEOUT)
        start = time.monotonic()
        waits.go()
        assert waits.read() == "inside"
        assert time.monotonic() - start < LEASE + 3 * SLACK
        assert waits.read() == "saved"
    assert expected == WAITS


@clocked_cells("clock-back")
def test_clock_back_beside_a_live_one(clocked, expected):
    """6.4 A handler that goes on is not robbed by that."""
    place, clock = clocked
    lease = 4 * LEASE  # a busy machine may renew a shorter one too late
    with holder(place, clock, lease, 2 * lease) as has, holder(place, clock, lease, 0) as waits:
        has.go()
        assert has.read() == "inside"
        clock.step(-3600)
        waits.go()
        assert has.read() == "saved"
        assert [waits.read(), waits.read()] == ["inside", "saved"]
    assert expected == WAITS


@clocked_cells("clock-forward")
def test_clock_forward(clocked, expected):
    """6.4 It may cost the update that runs meanwhile, and never lets two in."""
    place, clock = clocked
    outcomes = []
    for others in (False, True):
        clock.step(0)
        with holder(place, clock, 10, 1) as has, holder(place, clock, 10, 0) as comes:
            has.go()
            assert has.read() == "inside"
            clock.step(3600)
            if others:
                comes.go()
                assert [comes.read(), comes.read()] == ["inside", "saved"]
            said = has.read()
        outcomes.append(SAVED if said == "saved" else _error("save refused", said))
    assert "; ".join(outcomes) == expected


@pytest.mark.parametrize("fault", ["clock-back", "clock-forward"])
def test_memory_and_the_clock(fault, monkeypatch):
    """What expires does so when it should."""
    before, hour = time.time, -3600 if fault == "clock-back" else 3600
    session = with_session(store=MemoryStore(), ttl=60)
    with session.open(key=1) as data:
        data["n"] = 1
        monkeypatch.setattr(time, "time", lambda: before() + hour)
    assert session.peek(key=1) == {"n": 1}
    assert MATRIX[fault]["memory"] == UNMOVED


@cells("failover")
def test_failover(place, wired, expected, tmp_path):
    """6.4 The server that was demoted is left at the first error."""
    name = _name(place)
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(PLACES[name](tmp_path))
        place.demote(stack)
        _, aside = other.behind(stack)
        wired.wire.target = aside.target
        outcomes = [wired.sends()]
        wired.saved = 0  # the other server has nothing
        outcomes.append(wired.sends())
    assert "; ".join(outcomes) == expected


def _name(place):
    return {RedisPlace: "redis", PostgresPlace: "postgres"}[type(place)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@cells("fork")
def test_fork(place, expected):
    """6.4 It works in parent and child."""
    with connect(place.url, lease=LEASE) as store:
        put({}, store=store)
        with Worker(place.url, "fork", LEASE, 0) as forks:
            assert forks.read() == "ready"
            forks.go()
            said = sorted(forks.read() for _ in range(5))
        assert said == ["inside"] * 3 + ["saved"] * 2
        assert found(store=store) == {"n": 3}
    assert expected == "saved, by both processes"


_FORKS = """
import os
from telesession import with_session
from tests.stores import message

@with_session
def handler(message):
    n = message.session["n"] = message.session.get("n", 0) + 1
    os.write(1, b"%d\\n" % n)

handler(message())
child = os.fork()
handler(message())
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_memory_fork():
    done = subprocess.run(
        [sys.executable, "-c", _FORKS], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (done.stdout.split(), done.returncode) == (["1", "2", "2"], 0), done.stderr
    assert MATRIX["fork"]["memory"] == "saved, by each process for itself"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on Windows")
@cells("interrupt")
def test_interrupt(place, wired, expected):
    """6.4 An answer that belongs to another request is never taken for ours."""
    assert _interrupted(wired.store, wired.wire) == expected


def test_memory_interrupt():
    assert _interrupted(MemoryStore(), None) == MATRIX["interrupt"]["memory"]


def _interrupted(store, wire):
    """Updates of some users, of which every third is interrupted, and what they find."""
    session = with_session(property="interrupt", store=store, lock_timeout=3 * LEASE)
    counts = dict.fromkeys(range(6), 0)
    for user in counts:
        with session.open(key=user) as data:
            data.update(user=user, n=0)
    hit = 0
    for number in range(12):
        user = number % 3
        try:
            with _interruption(wire, number), session.open(key=user) as data:
                data["n"] += 1
        except (Interrupt, SessionError):
            hit += 1
        for other in (3, 4, 5):  # whose sessions are not leased
            with session.open(key=other) as data:
                assert (data["user"], data["n"]) == (other, counts[other])
                data["n"] += 1
            counts[other] += 1
    assert hit > 6
    return OWN


@contextlib.contextmanager
def _interruption(wire, number):
    """An exception in the middle: while an answer is on its way, or at one of our lines."""
    if wire is None:
        with Interrupting(7 + 5 * number):
            yield
        return

    def ring(*_):
        # Late, so that the answer comes when the next one is waited for.
        threading.Timer(0.05, wire.flows.set).start()
        raise Interrupt

    before = signal.signal(signal.SIGALRM, ring)
    wire.flows.clear()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(table(), encoding="utf-8")
    else:
        print(table())
