"""`SQLStore` on every driver that SQLAlchemy documents and that is installed (contract 6.4)."""

import random
import tempfile
from pathlib import Path

import pytest

from telesession import SessionError, with_session
from telesession.leases import Held
from tests import servers
from tests.helpers import run_together
from tests.sql_stores import NAMES, age, close_all, rows, saying, update
from tests.stores import found, message, put

sa = pytest.importorskip("sqlalchemy")
from telesession.sql import SQLStore  # noqa: E402

pytestmark = pytest.mark.thorough

#: By driver, what is imported, and the server.
DRIVERS = {
    "sqlite+pysqlite": ("sqlite3", "sqlite"),
    "postgresql+psycopg": ("psycopg", "postgres"),
    "postgresql+psycopg2": ("psycopg2", "postgres"),
    "postgresql+pg8000": ("pg8000", "postgres"),
    "mysql+pymysql": ("pymysql", "mariadb"),
    "mysql+mysqldb": ("MySQLdb", "mariadb"),
    "mysql+mysqlconnector": ("mysql.connector", "mariadb"),
    "mariadb+pymysql": ("pymysql", "mariadb"),
    "mariadb+mariadbconnector": ("mariadb", "mariadb"),
}
SERVED = [driver for driver in DRIVERS if not driver.startswith("sqlite")]


def connect_to(url, driver, **options):
    """An engine of that driver for a server that the tests know by another one."""
    url = sa.make_url(url).set(drivername=driver)
    socket = url.query.get("host", "")
    if "pg8000" in driver and socket:
        options.setdefault("connect_args", {"unix_sock": f"{socket}/.s.PGSQL.5432"})
        url = url.set(query={})
    if "mysqlconnector" in driver:
        # MariaDB doesn't know the collation that this driver takes by default
        url = url.update_query_dict({"collation": "utf8mb4_general_ci"})
    if "mariadbconnector" in driver:
        url = url.set(query={})
    return sa.create_engine(url, **options)


@pytest.fixture(params=DRIVERS)
def engine(request):
    module, server = DRIVERS[request.param]
    pytest.importorskip(module)
    engine = connect_to(request.getfixturevalue(server).url, request.param)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine):
    return SQLStore(engine)


def test_content(store):
    """Names by the letter, any text, bytes, and what was never stored."""
    for n, key in enumerate(NAMES):
        put({"n": n}, store=store, key=lambda message, key=key: key)
    kept = [found(store=store, key=lambda message, key=key: key)["n"] for key in NAMES]
    assert kept == list(range(len(NAMES)))
    assert set(store.names("session:")) == {f"session:{key}" for key in NAMES}

    big = {"v": "é😀%s'\\\x00" * 100_000, "null": None, "list": [1.5, True]}
    put(big, store=store)
    assert found(store=store) == big
    lease, _ = store.open(["bytes:1"], 0)
    store.commit(lease, [("bytes:1", b"\xff\x00", None)])
    assert store.peek("bytes:1") == b"\xff\x00"
    before = len(rows(store))
    update(store, 43, dict)
    assert len(rows(store)) == before


def test_a_listener_that_runs_a_statement(store):
    """As the usual ``SET search_path`` does, in a transaction that most drivers begin with it."""

    def ask(connection, record):
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.fetchall()
        cursor.close()

    sa.event.listen(store.engine, "connect", ask)
    update(store)
    assert found(store=store) == {"n": 1}


def test_ttl(store):
    put({"n": 1}, store=store, ttl=1000)
    assert found(store=store, ttl=1000) == {"n": 1}
    age(store)
    assert found(store=store) == {}
    assert list(store.names("")) == []
    store._purged = 0.0
    update(store, 43, dict)
    assert rows(store) == {}


def test_contention(store):
    """Single sessions and stacks in any order, on many threads: nothing is lost (5.1, 5.3)."""

    def run():
        def handler(update):
            for each in "abc":
                getattr(update, each)["n"] = getattr(update, each).get("n", 0) + 1

        for _ in range(5):
            stack = handler
            for each in random.sample("abc", 3):
                stack = with_session(property=each, store=store)(stack)
            stack(message())
            update(store)

    assert run_together(*[run] * 4) == [None] * 4
    assert [row.payload for row in rows(store).values()] == ['{"n":20}'] * 4


def test_requests_that_come_twice(store):
    """They count once, and nothing that was let go of is leased again (6.4)."""
    assert list(store.acquire(["a", "b"], "one-9000", 0, {})) == [None, None]
    assert store.renew(["a", "b"], "one-9000")
    for _ in range(2):
        assert store.write(["a", "b"], "one-9000", [("a", "1", None)])
        assert {name: row.leased_until for name, row in rows(store).items()} == {"a": None}
        assert not store.renew(["a"], "one-9000")
    with pytest.raises(Held) as held:
        store.acquire(["a"], "one-9000", 0, {})
    assert held.value.token == "one-9000"
    assert store.acquire(["a"], "two-9000", 0, {}) == ["1"]
    assert not store.write(["a"], "one-9000", [("a", "2", None)])
    assert store.write(["a"], "two-9000", [("a", None, None)])
    assert store.write(["a"], "two-9000", [("a", None, None)])
    assert rows(store) == {}


def test_what_stands_still(store):
    """It may be taken, whatever the server's clock says, and only as it was seen (6.4)."""
    store.acquire(["a", "b"], "one-9000", 0, {})
    with pytest.raises(Held) as first:
        store.acquire(["a"], "two-9000", 0, {})
    assert store.renew(["a"], "one-9000")
    with pytest.raises(Held) as second:
        store.acquire(["a"], "two-9000", 0, {"a": first.value.beat})
    assert second.value.beat != first.value.beat
    with pytest.raises(Held):
        store.acquire(["a", "b"], "two-9000", 0, {"a": second.value.beat})
    assert store.renew(["a"], "one-9000")
    with pytest.raises(Held) as third:
        store.acquire(["a"], "two-9000", 0, {})
    assert store.acquire(["a"], "two-9000", 0, {"a": third.value.beat}) == [None]
    assert not store.renew(["a"], "one-9000")
    assert not store.write(["a", "b"], "one-9000", [("b", "1", None)])
    assert store.peek("b") is None


@pytest.mark.parametrize("engine", SERVED, indirect=True)
def test_connections_that_the_server_closed(engine, request):
    """No update fails for it, neither before its handler nor after (6.3)."""
    store = SQLStore(engine)
    update(store)
    other = request.getfixturevalue(
        "postgres" if "postgres" in engine.url.drivername else "mariadb"
    )
    killer = sa.create_engine(other.url, poolclass=sa.NullPool)
    close_all(killer)
    update(store)
    update(store, body=lambda session: (session.update(n=7), close_all(killer)))
    assert SQLStore(killer).peek("session:42:42") == '{"n":7}'
    other.dispose()


@pytest.mark.parametrize("driver", SERVED)
def test_a_restart(driver):
    """What fails is told, and when the server is back the bot goes on."""
    module, server = DRIVERS[driver]
    pytest.importorskip(module)
    run = servers.postgres_server if server == "postgres" else servers.mariadb_server
    with (
        tempfile.TemporaryDirectory(prefix="telesession-") as directory,
        run(Path(directory, "data") if server == "postgres" else Path(directory)) as server,
    ):
        url = getattr(server, "url", None) or (
            f"mysql+pymysql://root@127.0.0.1:{server.port}/telesession?charset=utf8mb4"
        )
        engine = connect_to(url, driver)
        store = SQLStore(engine, lease=1)
        update(store)
        server.stop()
        with pytest.raises(SessionError):
            update(store)
        server.start()
        update(store)
        with pytest.raises(SessionError) as caught:
            update(store, body=lambda session: (session.clear(), server.stop()))
        server.start()
        assert "not known" in str(caught.value) or "not saved" in str(caught.value)
        assert update(store, body=dict)["n"] == 2
        engine.dispose()


@pytest.mark.parametrize("engine", SERVED, indirect=True)
def test_what_the_server_refuses(engine):
    """It answered, so that nothing was saved, and the message says so (6.3)."""
    store = SQLStore(engine)
    put({"n": 1}, store=store)

    def refuse(cursor, text):
        if text.startswith("UPDATE telesession SET payload"):
            return "INSERT INTO telesession SELECT * FROM telesession", ()
        return None

    with saying(refuse), pytest.raises(SessionError, match="was not saved"):
        put({"n": 2}, store=store)
    assert found(store=store) == {"n": 1}
