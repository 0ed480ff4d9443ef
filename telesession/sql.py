"""`SQLStore`: sessions in a SQL database, safe for many processes, over SQLAlchemy Core."""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

try:
    import sqlalchemy as sa
    from sqlalchemy.dialects import mysql, postgresql, sqlite
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError
except ImportError as error:
    raise ImportError('SQLStore needs SQLAlchemy: pip install "telesession[sql]"') from error

from telesession._forks import per_process
from telesession.keyvalue import compose, parse
from telesession.leases import Beat, Held, LeasingStore, foreign, identity
from telesession.stores import Change, Payload

logger = logging.getLogger("telesession")

_PURGE_LIMIT = 900  # rows that one update removes at the most; some SQLite takes no 1000 names
_PAGE = 1000  # rows that one statement looks at for their names
_PURGE_INTERVAL = 1.0  # seconds, unless the last one found more rows than that
_ATTEMPTS = 5  # to write while other transactions are in the way

Result = TypeVar("Result")


class SQLStore(LeasingStore):
    """Sessions in one table of SQLite, PostgreSQL, MySQL (8 or later) or MariaDB (10.6 or later).

    The table is made when it is first needed. An update takes two transactions: one leases and
    reads all its sessions, the other writes them and lets go; of one session, each is a single
    statement on PostgreSQL. Leases, and sessions with a ttl, are over by the database's clock.
    Sessions whose time is over are removed as updates come, at most 900 at a time.

    SQLite is for the processes of one host. A file in which this store makes its table is put
    into WAL mode; it is written by one process at a time, and so is each session.

    Args:
        engine: what ``sqlalchemy.create_engine`` gave.
        table: the name of the table.
        lease: seconds (or a `timedelta`) after which a session is free again if its process died.

    >>> SQLStore(sa.create_engine("sqlite:///sessions.db"))
    SQLStore(sqlite:///sessions.db, table='telesession')
    """

    def __init__(
        self,
        engine: sa.Engine,
        *,
        table: str = "telesession",
        lease: float | timedelta = 10.0,
    ) -> None:
        super().__init__(lease)
        if not isinstance(engine, sa.Engine):
            raise TypeError(
                f"engine={engine!r} is no (blocking) SQLAlchemy engine: give what "
                "sqlalchemy.create_engine(url) returns"
            )
        if not isinstance(table, str) or not table:
            raise TypeError(f"table={table!r} must be a str, the name of a table")
        dialect = engine.dialect.name
        if dialect not in _NOW:
            raise ValueError(
                f"engine={engine!r}: SQLStore is for SQLite, PostgreSQL, MySQL and MariaDB"
            )
        if dialect == "sqlite" and isinstance(engine.pool, sa.SingletonThreadPool):
            raise ValueError(
                f"engine={engine!r} is a database in memory, another one for each thread: give "
                "one with a file, such as create_engine('sqlite:///sessions.db'), or use "
                "telesession.MemoryStore"
            )
        self.engine = engine
        self.table = _table(table)
        level: Any = {"isolation_level": "AUTOCOMMIT"} if dialect in _AUTOCOMMIT else {}
        self._engine = engine.execution_options(**level)
        self._engine.hide_parameters = True  # sessions are not for logs, nor are tokens
        self._sql = _Statements(self.table, engine.dialect, self.lease)
        per_process(self, SQLStore._renew_turn)
        self._made = False
        self._purged = 0.0

    def _renew_turn(self) -> None:
        # SQLite has one writer at a time: those of one process need not compete for the file
        alone = self.engine.dialect.name == "sqlite"
        self._turn: Any = threading.Lock() if alone else contextlib.nullcontext()

    @property
    def identity(self) -> object:
        return identity(self.engine, self.table.name)

    def __repr__(self) -> str:
        return f"SQLStore({self.engine.url!r}, table={self.table.name!r})"

    def acquire(
        self, names: Sequence[str], token: str, waited: float, stale: Mapping[str, Beat]
    ) -> Sequence[Payload | None]:
        sql = self._sql

        def run(connection: sa.Connection) -> dict[str, Any]:
            # in sorted order, here and below, so that transactions can't deadlock
            asked: Any = [{"key": name, "holder": token} for name in sorted(names)]
            found = connection.execute(sql.lease, asked if len(names) > 1 else asked[0])
            if sql.read is not None:
                found = connection.execute(sql.read, {"keys": names})
            rows = {row.name: row for row in found if row.token == token}
            for name in names:
                if name not in rows:
                    raise Held(name)
            return rows

        try:
            rows = self._run(run, one=len(names) == 1 and sql.read is None and not waited)
        except DBAPIError as error:
            if _in_the_way(error):
                raise Held(names[0]) from None
            raise
        return [
            None if rows[name].expired else _payload(name, rows[name].payload) for name in names
        ]

    def renew(self, names: Sequence[str], token: str) -> bool:
        def run(connection: sa.Connection) -> None:
            for name in sorted(names):
                if not connection.execute(self._sql.renew, {"key": name, "holder": token}).rowcount:
                    raise _Over

        return self._patiently(run, one=len(names) == 1)

    def write(
        self, names: Sequence[str], token: str, changes: Sequence[Change], *, release: bool = True
    ) -> bool:
        planned = {name: (payload, ttl) for name, payload, ttl in changes}

        def run(connection: sa.Connection) -> None:
            for name in sorted(names):
                values: dict[str, Any] = {"key": name, "holder": token}
                statements: tuple[Any, ...]
                if name not in planned:
                    statements = self._sql.release if release else (self._sql.renew,)
                elif planned[name][0] is None:
                    statements = (self._sql.delete if release else self._sql.empty,)
                else:
                    payload, ttl = planned[name]
                    values |= {"content": compose(payload, None), "ttl": ttl}  # type: ignore[arg-type]
                    statements = (self._sql.save if release else self._sql.save_and_keep,)
                if not any(connection.execute(each, values).rowcount for each in statements):
                    raise _Over

        done = self._patiently(run, one=len(names) == 1)
        if release:
            self._purge()
        return done

    def cure(self, error: Exception) -> str:
        if "unable to open database file" not in str(getattr(error, "orig", "")):
            return ""
        return (
            f"SQLite can't open {self.engine.url.database!r}: make its directory, let this process "
            "write there, and mind that sqlite:///sessions.db is in the directory in which the bot "
            "was started, sqlite:////var/sessions.db is in /var. "
        )

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the stored sessions that begin with ``prefix``, each once."""
        values = {"prefix": prefix, "length": self._sql.length(prefix), "last": ""}

        def run(connection: sa.Connection) -> Sequence[Any]:
            return connection.execute(self._sql.page, values).all()

        while page := self._run(run, one=True):
            yield from (row.name for row in page if row.asked)
            values["last"] = page[-1].name

    def peek(self, name: str) -> Payload | None:
        """What is stored of a session, without a lease."""

        def run(connection: sa.Connection) -> Any:
            return connection.execute(self._sql.peek, {"key": name}).scalar()

        return _payload(name, self._run(run, one=True))

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sa.Connection]:
        """A connection that is in no transaction yet, as far as the database is concerned."""
        with self._turn, self._engine.connect() as connection:
            begun = False
            if connection.dialect.name in _AUTOCOMMIT and not connection.in_transaction():
                # an engine may begin them itself, as SQLAlchemy advises for SQLite: not like ours
                connection.begin()
            if connection.dialect.name == "postgresql":
                connection.connection.rollback()  # no round trip where none has begun
            elif connection.dialect.name == "sqlite":
                begun = getattr(connection.connection.dbapi_connection, "in_transaction", False)
                if begun:
                    connection.exec_driver_sql("ROLLBACK")
            try:
                yield connection
            finally:
                if begun:
                    with contextlib.suppress(SQLAlchemyError):
                        connection.exec_driver_sql("BEGIN")

    @contextlib.contextmanager
    def _transaction(self, one: bool = False) -> Iterator[sa.Connection]:
        """A transaction; with ``one`` each statement is a transaction by itself."""
        try:
            with self._connect() as connection:
                if one and connection.dialect.name in _AUTOCOMMIT:
                    yield connection
                    return
                connection.exec_driver_sql(_BEGIN[connection.dialect.name])
                try:
                    yield connection
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    with contextlib.suppress(SQLAlchemyError):  # the connection may be gone
                        connection.exec_driver_sql("ROLLBACK")
                    raise
        except SQLAlchemyError:
            self._made = False  # it may be another database when it is back
            raise

    def _make(self) -> None:
        def there() -> bool:
            with self._connect() as connection:
                return sa.inspect(connection).has_table(self.table.name)

        if not there():
            if self.engine.dialect.name == "sqlite":
                with self._connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            try:
                with self._transaction() as connection:
                    self.table.create(connection)
            except SQLAlchemyError:
                if not there():
                    raise  # else another process was quicker
        self._made = True

    def _run(self, run: Callable[[sa.Connection], Result], one: bool = False) -> Result:
        """Do it in one transaction, once more if the connection was lost before it was over."""
        lost: DBAPIError | None = None
        while True:
            try:
                if not self._made:
                    self._make()
                with self._transaction(one) as connection:
                    return run(connection)
            except _Over:
                if lost is not None:
                    raise lost from None  # it may have been done before the connection was lost
                raise
            except DBAPIError as error:
                # one from the pool, of before the server was restarted: the others are closed now
                over = error.statement == "COMMIT"
                if lost is not None or over or not error.connection_invalidated:
                    raise
                lost = error

    def _patiently(self, run: Callable[[sa.Connection], None], one: bool) -> bool:
        """Do it all in one transaction, or nothing of it where a lease is over."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._run(run, one and attempt == 1)
                return True
            except _Over:
                return False
            except DBAPIError as error:
                if attempt == _ATTEMPTS or not _in_the_way(error):
                    raise
            time.sleep(random.uniform(0, 0.01 * 2**attempt))
        raise AssertionError  # the last attempt has returned or raised

    def _purge(self) -> None:
        """Remove sessions whose time is over."""
        if time.monotonic() - self._purged < _PURGE_INTERVAL:
            return
        self._purged = time.monotonic()

        def run(connection: sa.Connection) -> int:
            names = connection.execute(self._sql.find_over).scalars().all()
            if names:
                connection.execute(self._sql.purge, {"keys": names})
            return len(names)

        try:
            if self._run(run) == _PURGE_LIMIT:
                self._purged = 0.0  # there may be more
        except SQLAlchemyError as error:  # the update has been saved: this can be done later
            logger.debug("%r could not remove what expired: %s", self, type(error).__name__)


class _Over(Exception):
    """A lease is over: roll back."""


class _Name(sa.TypeDecorator[str]):
    """A session's name. MySQL would compare text without regard to case and trailing spaces."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        return mysql.VARBINARY(1024) if _is_mysql(dialect.name) else sa.Text()

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> Any:
        return value.encode() if value is not None and _is_mysql(dialect.name) else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> str | None:
        return value.decode() if isinstance(value, (bytes, bytearray)) else value


def _table(name: str) -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("name", _Name, primary_key=True),
        # null while a session that isn't stored is leased
        sa.Column(
            "payload", sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4"), "mysql", "mariadb")
        ),
        # all times are seconds since the epoch
        sa.Column("expires", sa.Double, index=True),
        sa.Column("token", sa.String(32)),
        sa.Column("leased_until", sa.Double),
    )


class _Statements:
    """What the store says to the database. ``key`` is a session's name, ``holder`` a token."""

    def __init__(self, table: sa.Table, dialect: sa.Dialect, lease: float) -> None:
        t = table.c
        now: Any = sa.literal_column(_NOW[dialect.name], sa.Double)
        until = now + sa.literal_column(repr(float(lease)), sa.Double)
        key, holder = sa.bindparam("key", type_=_Name), sa.bindparam("holder", type_=sa.String)
        keys: Any = sa.bindparam("keys", expanding=True, type_=_Name)
        mine = (t.name == key) & (t.token == holder) & (t.leased_until > now)
        vacant = t.token.is_(None) | (t.leased_until <= now)
        over = (t.expires <= now) & (t.leased_until.is_(None) | (t.leased_until <= now))

        row = {"name": key, "token": holder, "leased_until": until, "expires": until}
        columns = (t.name, t.payload, t.token, (t.expires <= now).label("expired"))
        #: for databases that can't lease and read in one statement
        self.read: Any = sa.select(*columns).where(t.name.in_(keys))
        if _is_mysql(dialect.name):
            # assigned in this order, the second with the token that the first has set
            self.lease: Any = mysql.insert(table).values(row)
            self.lease = self.lease.on_duplicate_key_update(
                [
                    ("token", sa.case((vacant, holder), else_=t.token)),
                    ("leased_until", sa.case((t.token == holder, until), else_=t.leased_until)),
                ]
            )
        else:
            insert: Any = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
            self.lease = insert(table).values(row)
            asked = self.lease.excluded  # with no parameter here, several rows are one statement
            self.lease = self.lease.on_conflict_do_update(
                index_elements=[t.name],
                set_={"token": asked.token, "leased_until": until},  # from now, not when it came
                where=vacant | (t.token == asked.token),
            )
            # Not on SQLite: a result that Ctrl-C left unread would keep the file locked.
            if dialect.name == "postgresql" and dialect.use_insertmanyvalues:
                self.lease = self.lease.returning(*columns)
                self.read = None

        update = sa.update(table).where(mine)
        released = {"token": None, "leased_until": None}
        ttl: Any = sa.bindparam("ttl", type_=sa.Double)
        content = {"payload": sa.bindparam("content", type_=sa.Text), "expires": now + ttl}
        self.renew = update.values(leased_until=until)
        self.save = update.values(**content, **released)
        self.save_and_keep = update.values(**content)
        self.empty = update.values(payload=None, expires=t.leased_until)
        self.delete = sa.delete(table).where(mine)

        there = t.payload.is_not(None) & (t.expires.is_(None) | (t.expires > now))
        self.peek = sa.select(t.payload).where((t.name == key) & there)
        # MySQL has names as bytes, others as text
        self.length: Callable[[str], int] = (
            (lambda prefix: len(prefix.encode())) if _is_mysql(dialect.name) else len
        )
        begin = sa.func.substr(t.name, 1, sa.bindparam("length", type_=sa.Integer), type_=_Name)
        prefix = sa.bindparam("prefix", type_=_Name)
        asked = sa.case(((begin == prefix) & there, 1), else_=0).label("asked")
        #: The names that are asked for among the next rows by the database's own order, and the
        #: last one in any case. Rows are chosen after they are limited, or the planner may well
        #: read and sort the whole table for every page.
        page = (
            sa.select(t.name, asked)
            .where(t.name > sa.bindparam("last", type_=_Name))
            .order_by(t.name)
            .limit(_PAGE)
            .cte("page")
        )
        last = sa.select(sa.func.max(page.c.name)).scalar_subquery()
        self.page = (
            sa.select(page).where((page.c.asked == 1) | (page.c.name == last)).order_by(page.c.name)
        )

        # one of the two, by whether anything is stored
        self.release = (
            update.where(t.payload.is_not(None)).values(**released),
            self.delete.where(t.payload.is_(None)),
        )
        # what others are working with just now is left to them
        self.find_over = (
            sa.select(t.name).where(over).limit(_PURGE_LIMIT).with_for_update(skip_locked=True)
        )
        self.purge = sa.delete(table).where(t.name.in_(keys) & over)


_MYSQL_NOW = "timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1e6"
#: The database's clock, in seconds since the epoch.
_NOW = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "cast(extract(epoch from clock_timestamp()) as double precision)",
    "mysql": _MYSQL_NOW,
    "mariadb": _MYSQL_NOW,
}
# A transaction that begins to write at once is never told in its middle that it can't.
_BEGIN = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "BEGIN ISOLATION LEVEL READ COMMITTED",
    "mysql": "START TRANSACTION",
    "mariadb": "START TRANSACTION",
}
# The others get transactions even for one statement: MySQL's drivers ask the server to change that.
_AUTOCOMMIT = ("sqlite", "postgresql")


def _is_mysql(dialect: str) -> bool:
    return dialect in ("mysql", "mariadb")


def _in_the_way(error: DBAPIError) -> bool:
    """Whether another transaction hindered this one, which may well succeed at the next try."""
    original: Any = error.orig
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    code = getattr(original, "sqlite_errorname", "") or ""  # since Python 3.11
    number = original.args[0] if original is not None and original.args else None
    if isinstance(number, dict):  # pg8000
        state = number.get("C")
    return (
        state in ("40001", "40P01")  # serialization failure, deadlock detected
        or number in (1020, 1205, 1213)  # MySQL: changed since read, lock wait timeout, deadlock
        or code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
        or str(number).startswith("database is locked")
    )


def _payload(name: str, found: Any) -> Payload | None:
    try:
        return None if found is None else parse(found)[1]
    except (AttributeError, TypeError, ValueError) as error:
        raise foreign(
            [name], "the table", "Give SQLStore a table of its own, or delete the row."
        ) from error
