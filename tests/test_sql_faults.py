"""`SQLStore` where something comes in between: interrupts, forks, locked files, other pools."""

import contextlib
import gc
import os
import sqlite3
import sys
import threading
import time

import pytest

from telesession import SessionError, SessionStoreError, with_session
from tests.helpers import run_together
from tests.interrupts import Interrupt, interruptions
from tests.sql_stores import execute, rows, saying, update
from tests.stores import NAME, TIMEOUT, found, put

sa = pytest.importorskip("sqlalchemy")
from telesession import _connections, _statements, sql  # noqa: E402
from telesession.sql import SQLStore  # noqa: E402

pytestmark = pytest.mark.thorough

PLACES = tuple(str(module.__file__) for module in (_connections, _statements, sql))


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def engine(request):
    return request.getfixturevalue(request.param)


def leased(store):
    return [name for name, row in rows(store).items() if row.leased_until is not None]


@pytest.mark.parametrize("names", [[NAME], [NAME, "other:1"]], ids=["one", "two"])
def test_an_interrupt_at_every_line(engine, names):
    """All of an update is saved, or nothing, and nothing is left of it (4.1, 6.4)."""
    store = SQLStore(engine)
    list(store.names("makes the table"))

    def run(store):
        changes = [(name, '{"n":1}', None) for name in names]
        store._purged = time.monotonic() + 1000
        yield
        lease, _ = store.open(names, 0)
        try:
            store.commit(lease, changes)
        except Interrupt:
            store.commit(lease, ())
            raise

    count = 0
    step = 1 if engine.dialect.name == "sqlite" else 5  # the lines are the same for all
    for _ in interruptions(lambda: store, run, PLACES, step):
        assert leased(store) == []
        kept = {row.payload for row in rows(store).values()}
        assert len(kept) <= 1  # of two sessions both were saved, or none
        assert run_together(lambda: store.commit(store.open(names, 0)[0], [])) == [None]
        execute(engine, sa.delete(store.table))
        count += 1
    assert count * step > 30
    gc.collect()
    assert store._connections.own.pool.checkedout() == 0


def test_an_interrupt_between_a_command_and_its_answer(engine):
    """Nobody gets what was meant for another: the connection is not used again (6.4)."""
    store = SQLStore(engine)
    for user in range(1, 30):
        update(store, user, lambda session, user=user: session.update(user=user))
    seen = []

    def interrupt(cursor, text):
        cursor.execute("SELECT name, payload, token, 0, 0, 0 FROM telesession", ())
        raise KeyboardInterrupt

    for user in range(1, 30, 3):
        with saying(interrupt), pytest.raises(KeyboardInterrupt):
            update(store, user)
        for other in (user, 1, 29):
            update(store, other, lambda session, other=other: seen.append((session["user"], other)))
    assert all(one == two for one, two in seen)
    assert leased(store) == []


class TestLocked:
    """A file that another connection has locked is told as that, in sqlite3's own time (6.3)."""

    @pytest.fixture
    def store(self, sqlite):
        engine = sa.create_engine(sqlite.url, connect_args={"timeout": 0.5})
        store = SQLStore(engine)
        put({"n": 1}, store=store)
        yield store
        engine.dispose()

    @contextlib.contextmanager
    def lock(self, store):
        with contextlib.closing(sqlite3.connect(store.engine.url.database)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield

    def told(self, store, user=42, **more):
        start = time.monotonic()
        with pytest.raises(SessionError) as caught:
            update(store, user, **more)
        return time.monotonic() - start, str(caught.value)

    def test_loading_and_saving(self, store):
        with self.lock(store):
            took, text = self.told(store)
        assert "locked" in text
        assert "did not run" in text
        assert took < 1.5
        locked = self.lock(store)
        start = time.monotonic()
        with pytest.raises(SessionError, match="was not saved") as caught:
            update(store, body=lambda session: (session.update(n=5), locked.__enter__()))
        assert time.monotonic() - start < 1.5
        assert "locked" in str(caught.value)
        locked.__exit__(None, None, None)
        assert found(store=store) == {"n": 1}

    def test_many_threads(self, store):
        """They wait together, not one after the other."""
        with self.lock(store):
            alone = self.told(store)[0]
            start = time.monotonic()
            outcomes = run_together(
                *(lambda user=user: self.told(store, user) and 1 / 0 for user in range(1, 9))
            )
            together = time.monotonic() - start
        assert {type(outcome) for outcome in outcomes} == {ZeroDivisionError}
        assert together < 3 * alone  # one after the other, it would be 8
        update(store)

    def test_looking_does_not_wait(self, store):
        """`peek` and `keys` read while others write."""
        with self.lock(store):
            assert store.peek(NAME) == '{"n":1}'
            assert list(store.names("session:")) == [NAME]
        with store._connections._turn.current():  # as a writer of ours has it
            assert run_together(lambda: store.peek(NAME) and [*store.names("")] and None) == [None]

    def test_an_interrupt_while_it_waits(self, store):
        """It has no mutex of ours left: other threads go on."""

        def interrupt(cursor, text):
            raise KeyboardInterrupt

        with saying(interrupt), pytest.raises(KeyboardInterrupt):
            update(store)
        assert run_together(lambda: update(store)) == [None]


class TestDisk:
    """SQLite waits for the disk once in an update (issue 11, point 8)."""

    def levels(self, store, **options):
        found = []

        def listen(cursor, text):
            if text.startswith(("INSERT", "UPDATE", "DELETE")):
                found.append(cursor.execute("PRAGMA synchronous").fetchone()[0])

        with saying(listen):
            update(store, **options)
        return found

    @pytest.mark.parametrize(
        ("level", "expected"), [("OFF", 0), ("NORMAL", 1), ("FULL", 2), ("EXTRA", 3)]
    )
    def test_as_the_user_has_set_it(self, sqlite, level, expected):
        """Only what is kept waits; a lease does not, since power takes its holder, too."""
        sa.event.listen(sqlite, "connect", lambda c, _: c.execute(f"PRAGMA synchronous = {level}"))
        store = SQLStore(sqlite)
        update(store)
        store._purged = time.monotonic() + 1000
        assert self.levels(store) == [min(expected, 1), expected]
        assert self.levels(store, body=lambda session: None) == [min(expected, 1)] * 2
        assert self.levels(store, body=lambda session: session.clear())[1] == expected
        with sqlite.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == expected

    def test_a_file_of_another_mode(self, sqlite):
        """Where it isn't written ahead, nothing is changed: it could be spoilt."""
        store = SQLStore(sqlite)
        store.table.create(sqlite)
        store._purged = time.monotonic() + 1000
        assert self.levels(store) == [2, 2]


class TestPool:
    """The store's connections are its own; the user's are left as they are (6.4)."""

    def test_the_users_connection_is_not_used(self, engine):
        other = sa.create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=0.5)
        store = SQLStore(other)
        with other.connect():
            update(store)
        assert found(store=store) == {"n": 1}
        other.dispose()

    def test_the_users_transaction_is_not_committed(self, sqlite):
        with sqlite.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE orders (id integer)")
        store = SQLStore(sqlite)
        put({"n": 1}, store=store)
        with sqlite.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM orders")
            update(store)
            connection.exec_driver_sql("INSERT INTO orders VALUES (1)")
            connection.rollback()
            assert connection.exec_driver_sql("SELECT count(*) FROM orders").scalar() == 0

    def test_listeners_that_came_later(self, sqlite):
        """Those of the engine's connections are called for the store's as well."""
        store, seen = SQLStore(sqlite), []
        sa.event.listen(sqlite, "connect", lambda connection, record: seen.append(1))
        update(store)
        assert seen

    def test_dispose_closes_them(self, engine):
        store = SQLStore(engine)
        update(store)
        assert store._connections.own.pool.checkedin() == 1
        engine.dispose()
        assert store._connections.own.pool.checkedin() == 0
        update(store)

    @pytest.mark.parametrize("pool", [sa.QueuePool, sa.NullPool])
    def test_classes_that_can_work(self, engine, pool):
        other = sa.create_engine(engine.url, poolclass=pool)
        store = SQLStore(other)
        assert run_together(*[lambda: update(store)] * 4) == [None] * 4
        assert found(store=store) == {"n": 4}
        other.dispose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
class TestForks:
    """A store that was used before a fork works in the children (6.4)."""

    def fork(self, work):
        """The exit code of a child that does it."""
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                work()
                code = 0
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_used_before(self, engine):
        store = SQLStore(engine)
        update(store)
        for n in range(2, 5):
            assert self.fork(lambda: update(store)) == 0
            assert store.peek(NAME) == f'{{"n":{n}}}'
        update(store)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_while_threads_write(self, sqlite):
        """No child believes that a lock of its parent's is its own."""
        store, stop = SQLStore(sqlite), threading.Event()
        update(store)

        def write():
            while not stop.is_set():
                update(store, 7)

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        codes = [self.fork(lambda: [update(store, 8) for _ in range(3)]) for _ in range(5)]
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
        assert codes == [0] * 5
        assert store.peek("session:8:8") == '{"n":15}'
        with contextlib.closing(sqlite3.connect(sqlite.url.database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_no_file_is_carried_across(self, sqlite):
        """What a parent's end does to the file, a child would not see."""
        if not sys.platform.startswith("linux"):
            pytest.skip("open files are counted in /proc")
        store = SQLStore(sqlite)
        update(store)
        sqlite.pool.dispose()

        def none_open():
            for fd in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):  # that of the list itself
                    assert not os.readlink(f"/proc/self/fd/{fd}").startswith(sqlite.url.database)

        assert self.fork(none_open) == 0


REFUSED = [
    ("sqlite://", {"poolclass": sa.StaticPool}),
    ("sqlite://", {"poolclass": sa.QueuePool}),
    ("sqlite://", {"poolclass": sa.NullPool}),
    ("sqlite:///:memory:", {}),
    ("sqlite:///file:x?mode=memory&cache=shared&uri=true", {"poolclass": sa.QueuePool}),
    ("sqlite:///file:x?mode=memory&uri=true", {"poolclass": sa.QueuePool}),
    ("sqlite:///nowhere/x.db", {"poolclass": sa.StaticPool}),
    ("sqlite:///nowhere/x.db", {"poolclass": sa.SingletonThreadPool}),
    ("sqlite:///nowhere/x.db", {"poolclass": sa.AssertionPool}),
    ("postgresql+psycopg://x/y", {"poolclass": sa.StaticPool}),
]


@pytest.mark.parametrize(("url", "options"), REFUSED)
def test_one_connection_for_everybody(url, options):
    """It is refused when the store is made, with the cure (6.4)."""
    with pytest.raises(ValueError, match=r"(?s)sqlite:///sessions\.db.*codec=telesession\.JSON"):
        SQLStore(sa.create_engine(url, **options))


@pytest.mark.parametrize(
    ("url", "options", "schema"),
    [
        ("sqlite:///x.db", {"creator": lambda: sqlite3.connect(":memory:")}, None),
        ("sqlite:///file:?uri=true", {"poolclass": sa.QueuePool}, None),
        ("sqlite:///file:/x?vfs=memdb&uri=true", {"poolclass": sa.QueuePool}, None),
        ("sqlite:///{}", {}, "temp"),
    ],
)
def test_a_database_for_each_connection(tmp_path, url, options, schema):
    """It is told at once where only the first use can show it."""
    engine = sa.create_engine(url.format(tmp_path / "x.db"), **options)

    with pytest.raises(SessionStoreError, match=r"(?s)of its own.*codec=telesession\.JSON"):
        update(SQLStore(engine, schema=schema))


@pytest.mark.parametrize("url", ["postgresql+psycopg_async://x/y"])
def test_an_asynchronous_driver(url):
    with pytest.raises(TypeError, match="asynchronous"):
        SQLStore(sa.create_engine(url))


class TestNames:
    @pytest.mark.parametrize(
        "options", [{"table": "bot.sessions"}, {"schema": "a.b"}, {"table": ".x"}, {"table": "x."}]
    )
    def test_a_dot(self, sqlite, options):
        with pytest.raises(ValueError, match="schema="):
            SQLStore(sqlite, **options)

    @pytest.mark.parametrize("options", [{"schema": ""}, {"schema": 5}, {"table": b"x"}])
    def test_no_name(self, sqlite, options):
        with pytest.raises(TypeError, match="must be a str"):
            SQLStore(sqlite, **options)

    @pytest.mark.parametrize("translated", [False, True])
    def test_a_schema(self, postgres, translated):
        """Given to the store, or by the engine's ``schema_translate_map``."""
        with postgres.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA IF EXISTS bot CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA bot")
        for _ in range(2):
            if translated:
                mapped = postgres.execution_options(schema_translate_map={None: "bot"})
                store = SQLStore(mapped)
            else:
                store = SQLStore(postgres, schema="bot")
            update(store)
        assert repr(store).endswith("table='bot.telesession')")
        with postgres.connect() as connection:
            find = "SELECT payload FROM bot.telesession"
            assert connection.exec_driver_sql(find).all() == [('{"n":2}',)]
            assert not sa.inspect(connection).has_table("telesession")
        assert SQLStore(postgres, schema="bot").identity is store.identity
        assert SQLStore(postgres).identity is not store.identity

    def test_a_schema_of_sqlite(self, sqlite, tmp_path):
        """Another file, which the engine attaches to each connection."""
        attach = f"ATTACH '{tmp_path}/other.db' AS other"
        sa.event.listen(sqlite, "connect", lambda connection, record: connection.execute(attach))
        store = SQLStore(sqlite, schema="other")
        update(store)
        assert found(store=store) == {"n": 1}


def test_a_role_that_may_not_create(postgres):
    """It is told what to do, and works with a table that another one made."""
    with postgres.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS writer")
        connection.exec_driver_sql("CREATE ROLE writer LOGIN")
    other = sa.create_engine(postgres.url.set(username="writer"))
    with pytest.raises(SessionError, match="create tables"):
        update(SQLStore(other))
    store = SQLStore(postgres)
    store.table.create(postgres)
    with postgres.begin() as connection:
        rights = "SELECT, INSERT, UPDATE, DELETE ON telesession"
        connection.exec_driver_sql(f"GRANT {rights} TO writer")
    update(SQLStore(other))
    assert found(store=store) == {"n": 1}
    other.dispose()
    with postgres.begin() as connection:
        connection.exec_driver_sql(f"REVOKE {rights} FROM writer")
        connection.exec_driver_sql("DROP ROLE writer")


def test_a_table_of_somebody_else(engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS orders")
        connection.exec_driver_sql("CREATE TABLE orders (id integer)")

    with pytest.raises(SessionStoreError, match=r"'orders' has other columns .* give table="):
        update(SQLStore(engine, table="orders"))


def test_two_store_objects(sqlite):
    """A handler that would wait for itself is told at once (6.4)."""
    one, two = (with_session(store=SQLStore(sa.create_engine(sqlite.url))) for _ in range(2))
    start = time.monotonic()
    with one.open(key="1:1") as session:
        session["n"] = 1
        with pytest.raises(SessionError, match="through another store object"):
            two.open(key="1:1").__enter__()
    assert time.monotonic() - start < 5
    for declaration in (one, two):
        declaration.store.engine.dispose()


def test_a_pool_that_is_closed_while_the_table_is_looked_for(sqlite, monkeypatch):
    """As where a bot ends while its store releases a lease: no connection stays open."""
    opened = []

    class Noted(sqlite3.Connection):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            opened.append(self)

    engine = sa.create_engine(sqlite.url, connect_args={"factory": Noted})
    inspect = sa.inspect

    def closing(connection):
        engine.dispose()
        return inspect(connection)

    monkeypatch.setattr(sql.sa, "inspect", closing)
    put({"n": 1}, store=SQLStore(engine))
    monkeypatch.undo()
    engine.dispose()
    assert len(opened) > 1
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")
