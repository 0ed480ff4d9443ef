"""6.4 `SQLStore` on real databases: what the contract suite does not ask of every store."""

import contextlib
import json
import math
import multiprocessing
import os
import pickle
import random
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from telesession import (
    SessionDataError,
    SessionLost,
    SessionStoreError,
    _locks,
    with_session,
)
from telesession.leases import Held
from tests import servers
from tests.helpers import SECRET, run_together, says
from tests.stores import NAME, TIMEOUT, found, message, put, visit
from tests.worker import connect, workers

sa = pytest.importorskip("sqlalchemy")
from telesession._connections import Say  # noqa: E402
from telesession.sql import SQLStore  # noqa: E402

pytestmark = pytest.mark.thorough

DATABASES = ("sqlite", "postgres", "mariadb")
EPOCH = {
    "sqlite": "SELECT CAST(strftime('%s', 'now') AS REAL)",
    "postgresql": "SELECT CAST(extract(epoch FROM now()) AS double precision)",
    "mysql": "SELECT unix_timestamp(now(6)) + 0e0",
}


@pytest.fixture(autouse=True)
def no_lock_left():
    yield
    assert _locks.held() == 0


@pytest.fixture(params=DATABASES)
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def store(engine):
    return SQLStore(engine)


@pytest.fixture
def another():
    """Makes further engines of the database of one, as other processes have them."""
    made = []

    def make(engine, **options):
        made.append(sa.create_engine(engine.url, **options))
        return made[-1]

    yield make
    for one in made:
        one.dispose()


def execute(engine, statement, *parameters):
    """The rows that a statement gives, in a transaction of its own."""
    with engine.begin() as connection:
        result = connection.execute(statement, *parameters)
        return result.all() if result.returns_rows else []


def ask(engine, text):
    return execute(engine, sa.text(text))[0][0]


def rows(store):
    return {row.name: row for row in execute(store.engine, sa.select(store.table))}


def age(store, seconds=1e6):
    """Have all that expires do so that much sooner."""
    expires = store.table.c.expires
    execute(store.engine, sa.update(store.table).values(expires=expires - seconds))


def update(store, user=42, body=lambda session: session.update(n=session.get("n", 0) + 1), **more):
    """Handle a message of that user with ``body``."""

    @with_session(store=store, **more)
    def handler(message):
        return body(message.session)

    return handler(message(user))


@contextlib.contextmanager
def saying(listen):
    """Have ``listen(cursor, text)`` called before each statement; it may raise, or say another."""
    before = Say.word

    def word(self, text, parameters=()):
        text, parameters = listen(self.cursor, text) or (text, parameters)
        before(self, text, parameters)

    Say.word = word
    try:
        yield
    finally:
        Say.word = before


def not_run(store, kind, **options):
    """The error with which an update ends before its handler begins."""
    ran = []
    with pytest.raises(kind) as caught:
        visit(ran.append, store=store, **options)
    assert ran == []
    return caught.value


class TestTable:
    def test_many_make_it_at_once(self, engine, another):
        """Whoever is not the first finds it made."""
        stores = [SQLStore(another(engine)) for _ in range(6)]
        outcomes = run_together(*(lambda s=s, u=u: update(s, u) for u, s in enumerate(stores, 1)))

        assert outcomes == [None] * 6
        assert len(rows(stores[0])) == 6

    def test_processes_make_it_at_once(self, engine):
        with workers(3, engine.url.render_as_string(False), "increments", 2, 1, 1) as crowd:
            assert [worker.read()["counted"] for worker in crowd] == [{"0": 2}] * 3

        assert found(store=SQLStore(engine)) == {"n": 6}

    def test_it_may_have_another_name(self, engine):
        """Any that the database takes; one that is there is kept."""
        one, two = SQLStore(engine), SQLStore(engine, table='a bot\'s "own" 100%s')
        two.table.drop(engine, checkfirst=True)
        for n in range(1, 4):
            put({"n": n}, store=two)
            two = SQLStore(engine, table=two.table.name)
            assert (found(store=one), found(store=two)) == ({}, {"n": n})

    def test_it_is_made_again_in_another_database(self, store):
        """The database was replaced by an empty one: at most one update fails."""
        put({"n": 1}, store=store)
        store.table.drop(store.engine)
        try:
            update(store)
        except SessionStoreError:
            update(store)
        assert found(store=store) == {"n": 1}

        with pytest.raises((SessionLost, SessionStoreError)):
            update(store, 42, lambda session: (session.update(n=7), store.table.drop(store.engine)))
        update(store)
        assert found(store=store) == {"n": 1}

    @pytest.mark.parametrize("made_before", [False, True])
    def test_sqlite_writes_ahead(self, sqlite, made_before):
        """In a file in which the store makes the table; another one stays as it is."""
        store = SQLStore(sqlite)
        if made_before:
            store.table.create(sqlite)
        update(store)
        assert ask(sqlite, "PRAGMA journal_mode") == ("delete" if made_before else "wal")


class TestStatements:
    """What is sent to the database for an update; MySQL alone can't lease and read at once."""

    @pytest.fixture
    def said(self):
        said = []

        def listen(cursor, text):
            if not text.startswith("PRAGMA"):
                said.append(text.split()[0])

        with saying(listen):
            yield said

    def test_one_session(self, store, said):
        update(store)
        update(store)  # may remove what has expired
        said.clear()

        update(store)
        update(store, body=dict)

        mysql = store.engine.dialect.name == "mysql"
        assert said == 2 * (
            ["INSERT", "UPDATE", "SELECT", "UPDATE"] if mysql else ["INSERT", "UPDATE"]
        )

    def test_three_stacked(self, store, said):
        one, two, three = (with_session(property=f"s{n}", store=store) for n in (1, 2, 3))

        @one
        @two
        @three
        def handler(message):
            message.s1["n"] = message.s2["n"] = message.s3["n"] = message.s1.get("n", 0) + 1
            return message.s1["n"]

        assert [handler(message()), handler(message())] == [1, 2]
        said.clear()
        assert handler(message()) == 3

        mysql = store.engine.dialect.name == "mysql"
        lease = ["INSERT", "UPDATE", "SELECT"] if mysql else ["INSERT"]
        begin = "START" if mysql else "BEGIN"
        assert said == [begin, *lease, "COMMIT", begin, *["UPDATE"] * 3, "COMMIT"]


LISTED = [
    f"user_a:{key}"
    for key in ("1", "%", "_", "é 😀\n", "É", "e", "E", "a b", "a-b", "ab", "Z", "z ", "z", "'")
]
ALIKE = ["userXa:1", "User_A:1", "user_a", "user_ab:1", "xuser_a:1", "user_a1:", "user_a :"]


def insert(store, names, **values):
    list(store.names("makes the table"))
    rows = [{"name": name, "payload": "{}", **values} for name in names]
    execute(store.engine, sa.insert(store.table), rows)


class TestListing:
    """The names of what is stored, and what is stored, without a lease."""

    @pytest.mark.parametrize("page", [1, 2, 3, 1000])
    def test_exactly_those(self, store, monkeypatch, page):
        """Each once, however the pages fall, and in whatever order the database has them."""
        monkeypatch.setattr("telesession.sql._PAGE", page)
        store = SQLStore(store.engine, lease=60)
        assert list(store.names("user_a:")) == []
        insert(store, LISTED + ALIKE)
        insert(store, ["user_a:over"], expires=1.0)
        insert(store, ["user_a:later"], expires=1e11)
        leased, _ = store.open(["user_a:1", "user_a:never stored"], 0)
        expected = sorted([*LISTED, "user_a:later"])
        assert sorted(store.names("user_a:")) == expected
        assert sorted(store.names("User_A:")) == ["User_A:1"]
        assert sorted(store.names("user_a:%")) == ["user_a:%"]
        assert sorted(store.names("user_a:é")) == ["user_a:é 😀\n"]
        assert sorted(store.names("")) == sorted(expected + ALIKE)
        store.commit(leased, ())

    @pytest.mark.parametrize("collation", ["en-x-icu", "de-x-icu", "C", "und-x-icu"])
    def test_postgres_orders_otherwise(self, postgres, monkeypatch, collation):
        """Pages follow each other by the order of the column, and prefixes stay exact."""
        monkeypatch.setattr("telesession.sql._PAGE", 2)
        store = SQLStore(postgres)
        insert(store, LISTED + ALIKE)
        try:
            change = f'ALTER TABLE telesession ALTER name TYPE text COLLATE "{collation}"'
            execute(postgres, sa.text(change))
        except sa.exc.ProgrammingError:
            pytest.skip("this PostgreSQL does not have it")
        assert sorted(store.names("user_a:")) == sorted(LISTED)

    def test_many(self, store):
        """Of 100,000 each comes once, page by page, and they are not in memory together."""
        insert(store, (f"session:{number}" for number in range(100_000)))
        found = bytearray(100_000)
        tracemalloc.start()
        for name in store.names("session:"):
            found[int(name.removeprefix("session:"))] += 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert set(found) == {1}
        assert peak < 3_000_000

    def test_nothing_is_held_between_pages(self, store, monkeypatch):
        """No connection, so that the one who iterates can write, and take as long as it likes."""
        monkeypatch.setattr("telesession.sql._PAGE", 2)
        store = SQLStore(store.engine)
        insert(store, LISTED)
        names = store.names("user_a:")
        seen = [next(names)]
        assert store.engine.pool.checkedout() == 0
        for name in LISTED:
            lease, _ = store.open([name], 0)
            store.commit(lease, [(name, '{"n":1}', None)])
        seen.extend(names)
        assert sorted(seen) == sorted(LISTED)

    def test_peek(self, store):
        """Reads in one statement: no lease, no other expiry, and while others have it leased."""
        said = []
        assert store.peek(NAME) is None
        lease, _ = store.open([NAME], 0)
        assert store.peek(NAME) is None
        store.commit(lease, [(NAME, b"\xff", 60)])
        lease, _ = store.open([NAME], 0)
        before = rows(store)
        with saying(lambda cursor, text: said.append(text.split()[0])):
            assert store.peek(NAME) == b"\xff"
        assert said == ["SELECT"]
        assert rows(store) == before
        age(store)
        assert store.peek(NAME) is None
        store.commit(lease, ())


class TestClock:
    @pytest.mark.parametrize("absurd", [0.0, 1e11])
    def test_the_workers_clock_is_not_asked(self, store, monkeypatch, absurd):
        """Leases and ttls are the database's seconds."""
        monkeypatch.setattr(time, "time", lambda: absurd)

        def body(session):
            now, row = ask(store.engine, EPOCH[store.engine.dialect.name]), rows(store)[NAME]
            assert now < row.leased_until <= now + store.lease + 1
            assert store.renew([NAME], row.token)
            assert not store.renew([NAME], "another")
            with pytest.raises(Held):
                store.acquire([NAME], "another", 0, {})
            session["n"] = session.get("n", 0) + 1

        update(store, body=body, ttl=1000)
        update(store, body=body, ttl=1000)

        row = rows(store)[NAME]
        assert 900 < row.expires - ask(store.engine, EPOCH[store.engine.dialect.name]) < 1002
        assert row.leased_until is None
        assert found(store=store) == {"n": 2}


class TestExpiry:
    def test_nothing_is_left_of_thousands(self, store, monkeypatch):
        """Neither a row nor a lease; a thousand rows at a time."""
        monkeypatch.setattr("telesession.sql._PURGE_INTERVAL", math.inf)
        put({"n": 1}, store=store, ttl=1)
        update(store, 1)
        plain = rows(store)[NAME]._asdict()
        dead = {**plain, "payload": None, "expires": 2.0, "leased_until": 2.0, "token": "dead"}
        users = [{**plain, "name": f"session:{user}"} for user in range(4999)]
        users += [{**dead, "name": f"dead:{user}"} for user in range(500)]
        execute(store.engine, sa.insert(store.table), users)
        age(store)
        assert found(store=store) == {}
        monkeypatch.undo()
        later, left = SQLStore(store.engine), []

        for _ in range(7):
            update(later, 1)
            left.append(len(rows(store)))

        assert left == [4601, 3701, 2801, 1901, 1001, 101, 1]
        assert rows(store)["session:1:1"].leased_until is None

    def test_its_holder_has_it_to_the_end(self, store):
        """A session whose time is over while its handler runs is not removed under it."""
        put({"n": 1}, store=store, ttl=1000)

        def body(session):
            age(store)
            update(SQLStore(store.engine), 43)
            session["n"] += 1

        update(store, body=body)
        assert found(store=store) == {"n": 2}

    def test_what_a_dead_process_had(self, store):
        """It is kept, unless it expires, and free."""
        put({"n": 1}, store=store)
        execute(store.engine, sa.update(store.table).values(token="dead", leased_until=1.0))

        update(SQLStore(store.engine), 43)

        assert found(store=store, lock_timeout=1) == {"n": 1}

    def test_a_lease_that_is_over(self, store):
        """Its holder saves, unless somebody else took it meanwhile (contract 6.4)."""
        put({"n": 1}, store=store)
        over = sa.update(store.table).values(leased_until=1.0)

        update(store, 42, lambda session: (session.update(n=2), execute(store.engine, over)))

        assert found(store=store, lock_timeout=1) == {"n": 2}


NAMES = [
    *"aAäÄåßæｼ'\"`%\\?_😀😁",
    *("ss", "ae", "a\u0308", "%%", "%s", "%(key)s", ":key", "a ", " a", "a  ", "a\t", "\uff41"),
    *("x" * 200, "x" * 199 + "X", "x" * 199, "😀" * 200, "😀" * 199 + "😁"),
]


class TestContent:
    def test_names_are_kept_apart(self, store):
        """By the letter, whatever the database takes for equal."""
        for n, key in enumerate(NAMES):
            put({"n": n}, store=store, key=lambda message, key=key: key)

        kept = [found(store=store, key=lambda message, key=key: key)["n"] for key in NAMES]

        assert kept == list(range(len(NAMES)))
        assert set(rows(store)) == {f"session:{key}" for key in NAMES}

    @pytest.mark.parametrize("codec", [None, pickle], ids=["json", "pickle"])
    def test_big_sessions(self, store, codec):
        content = {"v": "é%s'\\\x00" * 200_000, "w": list(range(1000))}
        content |= {} if codec is None else {"x": os.urandom(100_000), "y": {1, 2}}

        put(content, store=store, codec=codec)

        assert found(store=store, codec=codec) == content

    @pytest.mark.parametrize("garbage", ["@base64@x", "@nan", "{", "5"])
    def test_garbage_is_refused(self, store, garbage):
        """It is left as it is, and free."""
        self.refuse(store, garbage)

    def test_bytes_are_refused(self, sqlite):
        """SQLite takes them in a column of text; the others don't."""
        self.refuse(SQLStore(sqlite), b"\x00\xff")

    def refuse(self, store, garbage):
        update(store)
        text = sa.text("UPDATE telesession SET payload = :garbage")
        execute(store.engine, text, {"garbage": garbage})

        assert NAME in str(not_run(store, SessionDataError))

        row = rows(store)[NAME]
        assert (row.payload, row.leased_until) == (garbage, None)


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def crowd(store):
    """Updates of four users at once, so that the pool has as many connections."""
    together = threading.Barrier(4)

    def body(session):
        together.wait(TIMEOUT)
        session["n"] = session.get("n", 0) + 1

    return run_together(*(lambda user=user: update(store, user, body) for user in range(1, 5)))


def close_all(killer):
    """The server closes all connections but that of this engine, which is of another pool."""
    with killer.connect() as connection:
        if killer.dialect.name == "mysql":
            own = connection.execute(sa.text("SELECT connection_id()")).scalar()
            threads = connection.execute(sa.text("SHOW PROCESSLIST")).all()
            killing = [f"KILL {row[0]}" for row in threads if row[1] == "root" and row[0] != own]
        else:
            pids = "FROM pg_stat_activity WHERE datname IS NOT NULL AND pid <> pg_backend_pid()"
            killing = [f"SELECT pg_terminate_backend(pid) {pids}"]
        for each in killing:
            connection.execute(sa.text(each))


class TestTrouble:
    @pytest.mark.parametrize("database", DATABASES)
    def test_no_server(self, database, tmp_path):
        """The handler does not run."""
        url = {
            "sqlite": f"sqlite:///{tmp_path / 'no' / 'directory'}",
            "postgres": f"postgresql+psycopg://me:{SECRET}@127.0.0.1:{closed_port()}/x",
            "mariadb": f"mysql+pymysql://me:{SECRET}@127.0.0.1:{closed_port()}/x",
        }[database]
        error = not_run(SQLStore(sa.create_engine(url)), SessionStoreError)

        assert isinstance(error.__cause__, sa.exc.OperationalError)
        assert NAME in str(error)
        assert SECRET not in str(error)

    @pytest.mark.parametrize("engine", DATABASES[1:], indirect=True)
    def test_connections_that_the_server_closed(self, engine, another):
        """No update fails for it, neither before its handler nor after."""
        store, killer = SQLStore(engine), another(engine)
        assert crowd(store) == [None] * 4
        close_all(killer)
        assert crowd(store) == [None] * 4

        update(store, 1, lambda session: (session.update(n=3), close_all(killer)))

        kept = rows(SQLStore(another(engine))).values()
        assert sorted(row.payload[5] for row in kept) == ["2", "2", "2", "3"]
        engine.dispose()  # its own connections are closed as well

    def test_a_connection_that_breaks_after_the_save(self, postgres):
        """Nobody can tell it from one that broke before: an error, not `SessionLost` (6.3)."""
        store = SQLStore(postgres)
        put({"n": 1}, store=store)

        save = "UPDATE telesession SET payload = 'saved', leased_until = NULL, token = 'another'"

        def fail(cursor, text):
            if text.startswith("UPDATE"):
                with postgres.begin() as connection:  # as if others came by meanwhile
                    connection.exec_driver_sql(save)
                cursor.connection.close()

        with saying(fail), says(SessionStoreError, NAME, "not known") as caught:
            put({"n": 2}, store=store)

        assert type(caught.value) is SessionStoreError
        assert "closed" in str(caught.value.__cause__)

    def test_postgres_crashes(self):
        """What was saved is there, and work goes on with the same engine."""
        with (
            tempfile.TemporaryDirectory(prefix="telesession-") as directory,
            servers.postgres_server(Path(directory, "data")) as server,
        ):
            engine = sa.create_engine(server.url)
            store = SQLStore(engine, lease=1)
            assert crowd(store) == [None] * 4

            server.stop()
            not_run(store, SessionStoreError)
            server.start()
            assert crowd(store) == [None] * 4

            with pytest.raises(SessionStoreError, match="not saved"):
                update(store, 1, lambda session: (session.clear(), server.stop()))
            server.start()
            assert update(store, 1, dict) == {"n": 2}
            engine.dispose()

    @pytest.mark.parametrize("database", [*DATABASES, "sqlite-query-only"])
    def test_a_database_that_can_only_be_read(self, request, another, database):
        """The handler does not run, since nothing could keep others out; what is stored stands."""
        engine = request.getfixturevalue(database.partition("-")[0])
        put({"n": 1}, store=SQLStore(engine))
        options = {
            "postgres": {"connect_args": {"options": "-c default_transaction_read_only=on"}},
            "mariadb": {"connect_args": {"init_command": "SET SESSION TRANSACTION READ ONLY"}},
        }
        if database == "sqlite":
            url = f"file:{engine.url.database}?mode=ro"
            options[database] = {
                "creator": lambda: sqlite3.connect(url, uri=True, check_same_thread=False)
            }
        reading = another(engine, **options.get(database, {}))
        if database == "sqlite-query-only":
            sa.event.listen(reading, "connect", lambda c, _: c.execute("PRAGMA query_only = 1"))

        not_run(SQLStore(reading), SessionStoreError)
        not_run(SQLStore(reading, table="missing"), SessionStoreError)

        assert found(store=SQLStore(engine), lock_timeout=1) == {"n": 1}

    def test_a_full_disk(self, sqlite):
        """What was stored stands, no lease is renewed, and no error shows what was not saved."""
        full = "PRAGMA max_page_count = 40"
        sa.event.listen(sqlite, "connect", lambda connection, _: connection.execute(full))
        store = SQLStore(sqlite, lease=0.5)
        put({"n": 1}, store=store)

        with says(SessionStoreError, NAME, "not saved") as caught:
            put({"n": 2, "v": SECRET * 40 * 4096}, store=store)

        assert "full" in str(caught.value.__cause__)
        assert SECRET not in str(caught.value.__cause__)
        assert rows(store)[NAME].payload == '{"n":1}'
        small = lambda session: session.update(v="v" * 2000)  # noqa: E731
        (last,) = run_together(lambda: [update(store, user, small) for user in range(1000, 1080)])
        assert type(last) is SessionStoreError
        assert len(rows(store)) > 2
        # a database that has just failed is not asked to let go: what it has leased runs out
        assert sum(row.leased_until is not None for row in rows(store).values()) <= 2
        assert found(store=store) == {"n": 1}

    def test_ctrl_c_while_it_leases(self, sqlite, another):
        """Nothing that the traceback keeps alive has the file locked."""
        store = SQLStore(sqlite)
        update(store)

        def interrupt(cursor, text):
            if text.startswith("INSERT"):
                cursor.execute("INSERT INTO telesession (name) VALUES ('1') RETURNING name")
                raise KeyboardInterrupt

        with saying(interrupt), pytest.raises(KeyboardInterrupt) as caught:
            update(store)
        assert caught.tb
        update(SQLStore(another(sqlite, connect_args={"timeout": 0.01})), lock_timeout=0.01)
        assert rows(store)[NAME].leased_until is None

    def test_a_locked_file(self, sqlite, another):
        """An update waits for it for as long as sqlite3 does, and is told what it is (6.3)."""
        store = SQLStore(another(sqlite, connect_args={"timeout": 0.02}))
        patient = SQLStore(another(sqlite))

        def lock():
            connection = sqlite3.connect(sqlite.url.database, check_same_thread=False)
            connection.execute("BEGIN EXCLUSIVE")
            return threading.Timer(0.3, connection.close)

        update(store)
        first = lock()
        told = not_run(store, SessionStoreError)
        assert "locked" in str(told)
        assert "another process" not in str(told)
        first.start()
        update(patient)
        update(patient, body=lambda session: (session.update(n=session["n"] + 1), lock().start()))
        assert found(store=patient) == {"n": 3}


def write_on(url, user, acknowledged):
    """Write and write, in a process of its own, and say what is saved."""
    with connect(url) as store:

        @with_session(property="one", store=store)
        @with_session(property="two", store=store)
        def handler(update, n):
            update.one.update(n=n, text=str(n) * 3000)
            update.two.update(n=n)

        for n in range(1, 1_000_000):
            handler(message(user), n)
            acknowledged.send(n)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_thirty_kills(sqlite):
    """The file opens every time, and nothing that was acknowledged is lost."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_sql"])
    last = {}
    for first in range(1, 31, 2):
        pair = []
        for user in (first, first + 1):
            reader, writer = context.Pipe(False)
            process = context.Process(target=write_on, args=(str(sqlite.url), user, writer))
            process.start()
            writer.close()
            pair.append((user, process, reader))
        for user, _, reader in pair:
            assert reader.poll(TIMEOUT)
            last[user] = reader.recv()
        time.sleep(random.uniform(0, 0.03))
        for user, process, reader in pair:
            process.kill()
            with reader, contextlib.suppress(EOFError):
                while reader.poll(TIMEOUT):
                    last[user] = reader.recv()
            process.join(TIMEOUT)
        with contextlib.closing(sqlite3.connect(sqlite.url.database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    kept = {name: json.loads(row.payload) for name, row in rows(SQLStore(sqlite)).items()}
    assert len(last) == 30
    for user, n in last.items():
        one, two = (kept[f"{each}:{user}:{user}"] for each in ("one", "two"))
        assert one["n"] == two["n"] in (n, n + 1)
        assert one["text"] == str(one["n"]) * 3000


AUTOCOMMIT, SERIALIZABLE = ({"isolation_level": level} for level in ("AUTOCOMMIT", "SERIALIZABLE"))
ONE_BY_ONE = {"use_insertmanyvalues": False}
OPTIONS = ({}, AUTOCOMMIT, SERIALIZABLE, ONE_BY_ONE)
ENGINES = [(database, more) for database in DATABASES for more in OPTIONS]
ENGINES += [
    ("postgres", {"connect_args": {"options": "-c default_transaction_isolation=serializable"}})
]
if sys.version_info >= (3, 12):
    ENGINES += [("sqlite", {"connect_args": {"autocommit": on}}) for on in (False, True)]


def counting(store):
    """Update one session, many times on several threads."""

    def run():
        for _ in range(8):
            update(store, ttl=1000)

    assert run_together(*[run] * 4) == [None] * 4
    row = rows(store)[NAME]
    assert (row.payload, row.leased_until) == ('{"n":32}', None)


def crossing(stores):
    """Update three sessions, stacked in any order, on all stores at once."""

    def run(store):
        def handler(update):
            for each in "abc":
                getattr(update, each)["n"] = getattr(update, each).get("n", 0) + 1

        for _ in range(8):
            stack = handler
            for each in random.sample("abc", 3):
                stack = with_session(property=each, store=store)(stack)
            stack(message())

    assert run_together(*(lambda store=store: run(store) for store in stores)) == [None] * 6
    assert [row.payload for row in rows(stores[0]).values()] == ['{"n":48}'] * 3


class TestEngines:
    """Whatever the engine does about transactions itself, the store's are its own."""

    @pytest.mark.parametrize(("database", "options"), ENGINES, ids=str)
    def test_sessions_in_any_order(self, request, another, database, options):
        """No deadlock, no lost update and no error."""
        engine = request.getfixturevalue(database)
        crossing([SQLStore(another(engine, **options)) for _ in range(6)])

    @pytest.mark.parametrize(("database", "options"), ENGINES, ids=str)
    def test_all_or_nothing(self, request, another, database, options):
        """Of a stack all sessions are saved or none, and none stays leased for long."""
        engine = another(request.getfixturevalue(database), **options)
        store, seen = SQLStore(engine, lease=0.5), []

        @with_session(property="one", store=store)
        @with_session(property="two", store=store)
        def handler(update, n):
            update.one["n"] = update.two["n"] = n
            seen.clear()

        def fail(cursor, text):
            if text.startswith("UPDATE telesession SET payload"):
                seen.append(text)
                if len(seen) == 2:
                    raise RuntimeError("no")

        handler(message(), 1)
        before = rows(store)
        with saying(fail), pytest.raises(SessionStoreError):
            handler(message(), 2)

        assert len(seen) > 1
        kept = [{name: row[:3] for name, row in each.items()} for each in (rows(store), before)]
        assert kept[0] == kept[1]
        handler(message(), 3)  # when the leases are over
        kept = {(row.payload, row.expires, row.leased_until) for row in rows(store).values()}
        assert kept == {('{"n":3}', None, None)}

    @pytest.mark.parametrize(("database", "options"), ENGINES, ids=str)
    def test_one_session_on_many_threads(self, request, another, database, options):
        engine = another(request.getfixturevalue(database), pool_pre_ping=True, **options)
        counting(SQLStore(engine))

    @pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
    def test_one_that_begins_transactions_itself(self, sqlite, another, begin):
        """As SQLAlchemy's documentation advises for SQLite."""

        def listening(engine):
            sa.event.listen(engine, "connect", lambda c, _: setattr(c, "isolation_level", None))
            sa.event.listen(engine, "begin", lambda c: c.exec_driver_sql(begin))
            return engine

        crossing([SQLStore(listening(another(sqlite))) for _ in range(6)])
        counting(SQLStore(listening(another(sqlite))))

    def test_one_that_has_asked_before(self, sqlite, another):
        """What is executed when a connection is taken may have begun a transaction."""
        engine = another(sqlite)
        sa.event.listen(engine, "engine_connect", lambda c: c.scalar(sa.select(1)))
        put({"n": 1}, store=SQLStore(engine))
        put({"n": 2}, store=SQLStore(engine))
        assert found(store=SQLStore(sqlite)) == {"n": 2}

    def test_postgres_begins_transactions_itself(self, postgres, another):
        engine = another(postgres)
        sa.event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN"))
        crossing([SQLStore(engine)] * 6)
        counting(SQLStore(engine))

    def test_another_transaction_was_in_the_way(self, postgres, monkeypatch):
        """The second try is a transaction with the isolation that it needs."""
        store, said = SQLStore(postgres), []
        put({"n": 1}, store=store)

        def listen(cursor, text):
            said.append(text.split()[0])
            if said in (["INSERT"], ["INSERT", "BEGIN", "INSERT", "COMMIT", "UPDATE"]):
                return "DO $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END$$", ()
            return None

        with saying(listen):
            put({"n": 2}, store=store)
        assert said[:5] == ["INSERT", "BEGIN", "INSERT", "COMMIT", "UPDATE"]
        assert said[5:8] == ["BEGIN", "UPDATE", "COMMIT"]
        assert found(store=store) == {"n": 2}

    @pytest.mark.parametrize("names", [[NAME], [NAME, "other:1"]], ids=["one", "two"])
    def test_a_lease_counts_from_when_it_is_granted(self, postgres, names):
        """Not from when it was asked for: the row may have been locked for longer than it lasts."""
        store = SQLStore(postgres, lease=0.5)
        put({"n": 1}, store=store)
        with postgres.connect() as connection:
            connection.execute(sa.select(store.table).with_for_update()).all()

            def follow():
                waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
                with postgres.connect() as watching:
                    while not watching.execute(waiting).scalar():
                        pass
                    watching.execute(sa.text("SELECT pg_sleep(0.6)"))
                connection.rollback()

            run_together(lambda: store.acquire(names, "token", 0, {}), follow)
        now = ask(postgres, EPOCH["postgresql"])
        assert rows(store)[NAME].leased_until > now


NOWHERE = sa.create_engine("sqlite:///nowhere")
MISUSE = [
    ("sqlite:///x.db", {}, TypeError, "sqlalchemy.create_engine"),
    (sa.create_mock_engine("sqlite://", print), {}, TypeError, "sqlalchemy.create_engine"),
    (sa.create_engine("sqlite://"), {}, ValueError, "create_engine('sqlite:///sessions.db')"),
    (NOWHERE, {"table": None}, TypeError, "table=None"),
    (NOWHERE, {"table": ""}, TypeError, "table=''"),
    (NOWHERE, {"lease": 0}, ValueError, "lease=0"),
    (NOWHERE, {"lease": "10"}, TypeError, "lease='10'"),
]


class TestConstruction:
    @pytest.mark.parametrize(("engine", "options", "kind", "cure"), MISUSE)
    def test_misuse(self, engine, options, kind, cure):
        with says(kind, cure):
            SQLStore(engine, **options)

    def test_another_database(self, sqlite, monkeypatch):
        monkeypatch.setattr(sqlite.dialect, "name", "oracle")
        with says(ValueError, "SQLite, PostgreSQL, MySQL and MariaDB"):
            SQLStore(sqlite)

    def test_it_does_not_show_the_password(self):
        store = SQLStore(sa.create_engine(f"postgresql+psycopg://me:{SECRET}@nowhere/x"))
        assert repr(store) == "SQLStore(postgresql+psycopg://me:***@nowhere/x, table='telesession')"

    def test_stores_of_one_table_share_locks(self, sqlite, another):
        store = SQLStore(sqlite)

        assert SQLStore(sqlite, lease=5).identity is store.identity
        assert SQLStore(sqlite, table="other").identity is not store.identity
        assert SQLStore(another(sqlite)).identity is not store.identity
