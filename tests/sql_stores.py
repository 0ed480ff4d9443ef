"""An `SQLStore` on each database, and what is seen of it there."""

import contextlib

import pytest

from telesession import _locks, with_session
from tests.stores import message, visit

sa = pytest.importorskip("sqlalchemy")

from telesession._connections import Say  # noqa: E402

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


NAMES = [
    *"aAäÄåßæｼ'\"`%\\?_😀😁",
    *("ss", "ae", "a\u0308", "%%", "%s", "%(key)s", ":key", "a ", " a", "a  ", "a\t", "\uff41"),
    *("x" * 200, "x" * 199 + "X", "x" * 199, "😀" * 200, "😀" * 199 + "😁"),
]


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
