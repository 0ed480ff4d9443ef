"""6.4 `SQLStore` on real databases: lost connections, killed processes, and any engine."""

import contextlib
import json
import multiprocessing
import random
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from telesession import SessionStoreError, with_session
from tests import servers, sql_stores
from tests.helpers import SECRET, run_together, says
from tests.sql_stores import DATABASES, EPOCH, ask, close_all, not_run, rows, saying, update
from tests.stores import NAME, TIMEOUT, found, message, put
from tests.worker import connect

sa = pytest.importorskip("sqlalchemy")

from telesession.sql import SQLStore  # noqa: E402

pytestmark = pytest.mark.thorough

no_lock_left = sql_stores.no_lock_left
engine = sql_stores.engine
another = sql_stores.another


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
    context.set_forkserver_preload(["tests.test_sql_trouble"])
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

    @pytest.mark.parametrize("given", ["creator", "pool"])
    def test_one_connection_for_everybody(self, engine, another, given):
        """On it, the bot's own transaction would be committed with each session."""
        raw = engine.raw_connection()
        one = raw.dbapi_connection
        create = (lambda: one) if given == "creator" else sa.QueuePool(lambda: one)
        with says(SessionStoreError, "the same connection each time", "a new connection"):
            update(SQLStore(another(engine, **{given: create})))

        raw.cursor().execute("SELECT 1")  # it is as it was
        raw.close()

    def test_a_creator_that_fails(self, engine, another):
        """It is told as any connection that fails: nothing was done."""

        def creator():
            raise engine.dialect.loaded_dbapi.OperationalError("no")

        error = not_run(SQLStore(another(engine, creator=creator)), SessionStoreError)
        assert isinstance(error.__cause__, sa.exc.OperationalError)

    def test_a_creator_of_new_connections(self, engine, another):
        """It is asked twice more, at first use."""
        arguments, options = engine.dialect.create_connect_args(engine.url)
        made = []

        def creator():
            made.append(engine.dialect.connect(*arguments, **options))
            return made[-1]

        store = SQLStore(another(engine, creator=creator))
        update(store)
        before = len(made)
        update(store)

        assert len(made) == before

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
