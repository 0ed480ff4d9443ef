"""6.4 `SQLStore` on real databases: what the contract suite does not ask of every store."""

import math
import os
import pickle
import time

import pytest

from telesession import SessionDataError, SessionLost, SessionStoreError, with_session
from telesession.leases import Held
from tests import sql_stores
from tests.helpers import SECRET, peak_of_listing, run_together, says
from tests.sql_stores import EPOCH, NAMES, age, ask, execute, not_run, rows, saying, update
from tests.stores import NAME, found, message, put
from tests.worker import workers

sa = pytest.importorskip("sqlalchemy")

from telesession.sql import SQLStore  # noqa: E402

pytestmark = pytest.mark.thorough

no_lock_left = sql_stores.no_lock_left
engine = sql_stores.engine
another = sql_stores.another


@pytest.fixture
def store(engine):
    return SQLStore(engine)


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
        """Of 30,000 each comes once, page by page, and they are not in memory together."""
        insert(store, (f"session:{number}" for number in range(30_000)))
        assert peak_of_listing(store.names("session:"), 30_000) < 1_000_000

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

        with_session(store=store).remove(message())
        assert rows(store) == {}


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
