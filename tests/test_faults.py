"""6.3, 6.4 What a user gets when something fails: the table of faults, each cell a test.

``pytest tests/test_faults.py -k "full and redis"`` runs one cell. `MATRIX` says what its test has
to see, and the README's table is made of it: ``python -m tests.test_faults --write README.rst``.
"""

import contextlib
import os
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from telesession import MemoryStore, SessionError, _locks, with_session
from tests import servers
from tests.stores import TIMEOUT, found, message, put
from tests.worker import ROOT, Worker, connect

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
}


def _error(what: str, kind: str) -> str:
    return f"{what}: ``{kind}``"


SAVED = "saved"
NOT_RUN = _error("handler not run", "SessionStoreError")
BUSY = _error("handler not run", "SessionBusy")
REFUSED = _error("save refused", "SessionStoreError")
LOST = _error("save refused", "SessionLost")
FREE = "nothing saved is lost; the next update waits for *lease* at most"
FORGETS = "saved, and the session least recently used is gone, see ``maxsize``"
NO_SERVER = "has no server"

#: What the test of a cell observes, in its words; or why there is no test, after "not tested".
MATRIX: dict[str, dict[str, str]] = {
    "dies": {"memory": "all sessions are gone", **dict.fromkeys(list(STORES)[1:], FREE)},
    "stalls": {"memory": SAVED, **dict.fromkeys(list(STORES)[1:], LOST)},
    "gone": {
        "memory": NO_SERVER,
        "redis": f"{REFUSED}; {NOT_RUN}",
        "sqlite": f"{REFUSED}; {BUSY}",
        "postgres": f"{REFUSED}; {NOT_RUN}",
        "mariadb": f"{REFUSED}; {NOT_RUN}",
        "mongo": f"{REFUSED}; {NOT_RUN}",
    },
    "restarts-between": {"memory": NO_SERVER, **dict.fromkeys(list(STORES)[1:], SAVED)},
    "restarts-inside": {"memory": NO_SERVER, **dict.fromkeys(list(STORES)[1:], SAVED)},
    "slow": {
        "memory": NO_SERVER,
        "redis": f"{NOT_RUN}; {REFUSED}",
        "sqlite": f"{BUSY}; {REFUSED}",
        "postgres": f"{SAVED}, after waiting for it; {LOST}",
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


def table() -> str:
    """The README's table, as reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
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


_BLOCK = re.compile(r"(^\.\. begin faults\n\n).*?(^\.\. end faults$)", re.M | re.S)


def test_readme():
    """The README shows this table, and no other."""
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    if ".. begin faults" not in text:
        pytest.skip("README.rst has no '.. begin faults' yet")
    block = _BLOCK.search(text)
    assert block, "README.rst has no '.. end faults'"
    assert block[0] == f"{block[1]}{table()}\n{block[2]}", (
        "run python -m tests.test_faults --write README.rst"
    )


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
    def store(self, stack, lease=LEASE):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        from telesession.redis import RedisStore

        once = {"socket_timeout": CLIENT_TIMEOUT, "retry": Retry(NoBackoff(), 0)}
        return RedisStore(
            stack.enter_context(redis.Redis(port=self.server.port, **once)), lease=lease
        )

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
        return SQLStore(engine, lease=lease)

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

    def _pragma(self, store, pragma):
        with store.engine.connect() as connection:  # the only one that there is
            connection.exec_driver_sql(f"PRAGMA {pragma}")

    def fill(self, store):
        self._pragma(store, "max_page_count = 60")

    def relieve(self, store):
        self._pragma(store, "max_page_count = 1000000")

    def forbid(self, store):
        self._pragma(store, "query_only = 1")

    def allow(self, store):
        self._pragma(store, "query_only = 0")


class PostgresPlace(SQLPlace):
    waits = True

    def processes(self):
        process = self.server.process
        return [each.pid for each in (process, *process.children(recursive=True))]

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


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        readme = Path(sys.argv[2])
        text, number = _BLOCK.subn(
            lambda block: f"{block[1]}{table()}\n{block[2]}", readme.read_text(encoding="utf-8")
        )
        if not number:
            sys.exit(f"{readme} has no '.. begin faults' and '.. end faults'")
        readme.write_text(text, encoding="utf-8")
    else:
        print(table())
