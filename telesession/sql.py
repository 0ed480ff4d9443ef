"""`SQLStore`: sessions in a SQL database, for many processes. `leases` waits and renews."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError
except ImportError as error:
    raise ImportError('SQLStore needs SQLAlchemy: pip install "telesession[sql]"') from error

from telesession._connections import Connections, Say, is_locked, was_refused
from telesession._statements import BEGIN, DIALECTS, PURGE_LIMIT, Statements, session_table
from telesession.errors import SessionStoreError
from telesession.keyvalue import compose, payload_of
from telesession.leases import Beat, Held, LeasingStore, identity
from telesession.stores import Change, Payload

logger = logging.getLogger("telesession")

Result = TypeVar("Result")

_PAGE = 1000  # rows that one statement of `names` looks at
_PURGE_INTERVAL = 1.0  # seconds between two purges, unless the last one reached PURGE_LIMIT
_PURGE_SIZES = (1, 30, PURGE_LIMIT)  # numbers of names, so that there are three statements only
_MAKING = 1.0  # seconds in which to try again to make the table, while other processes make it


class SQLStore(LeasingStore):
    """Sessions in one table of SQLite, PostgreSQL, MySQL (8 or later) or MariaDB (10.6 or later).

    The table is made when it is first needed. An update takes two steps: one leases and reads all
    its sessions, the other writes and releases them; for one session, each is a single statement on
    PostgreSQL and SQLite. The database's clock decides when leases, and sessions with a ttl, are
    over. Updates also remove expired sessions, at most 900 at a time.

    The store has a pool of connections of its own, made like the engine's when it is first needed:
    it may double the number of connections. The engine's listeners for connections are called for
    them, its listeners for statements are not, and ``echo`` shows none. ``engine.dispose()`` closes
    them, too. After an error the server is asked again only where a pooled connection had died
    before, and after a deadlock or serialization failure.

    SQLite is for the processes of one host. The store puts a file in which it makes its table into
    WAL mode; one process writes the file at a time. An update then waits for the disk once, when
    it is saved, as ``PRAGMA synchronous`` of the connections says. A file that another connection
    has locked is an error after the ``timeout`` of sqlite3 (5 seconds).

    Deployments: a store that was used before a fork works in the children, with gunicorn's
    ``--preload`` as well; with SQLite, let no other connection of the program be open at the fork.
    uWSGI has to be given ``py-call-osafterfork``. Behind pgbouncer in the mode ``transaction``,
    psycopg needs ``connect_args={"prepare_threshold": None}``. A role that may not create tables
    needs one made by another: ``SQLStore(engine).table.create(engine)``.

    The tests ran with these drivers, each for single sessions, stacks, contention, a ttl,
    repeated requests, closed connections and a restart of the server:

    ===================================  ===========================================
    server                               drivers
    ===================================  ===========================================
    SQLite 3.40                          sqlite3
    PostgreSQL 18                        psycopg 3, psycopg2, pg8000
    MariaDB 10.11 (for MySQL as well)    PyMySQL, mysqlclient, mysql-connector-python
                                         (with ``collation=utf8mb4_general_ci``),
                                         mariadb
    ===================================  ===========================================

    Args:
        engine: an engine of ``sqlalchemy.create_engine`` for a file or a server, with its default
            pool, a `QueuePool` or a `NullPool`.
        table: the name of the table.
        schema: the schema of the table, where it isn't the database's default.
        lease: seconds (or a `timedelta`) after which a session is free again if its process died.

    Raises:
        TypeError, ValueError: for an engine or a name that can't work.

    >>> SQLStore(sa.create_engine("sqlite:///sessions.db"))
    SQLStore(sqlite:///sessions.db, table='telesession')
    """

    def __init__(
        self,
        engine: sa.Engine,
        *,
        table: str = "telesession",
        schema: str | None = None,
        lease: float | timedelta = 10.0,
    ) -> None:
        super().__init__(lease)
        _check(engine)
        translated = engine.get_execution_options().get("schema_translate_map") or {}
        schema = translated.get(schema, schema)
        for option, name in (("table", table), ("schema", schema)):
            _check_name(option, name)
        self.engine = engine
        self.table = session_table(table, schema)
        self._connections = Connections(engine)
        self._sql = Statements(self.table, engine.dialect, self.lease)
        self._made = False
        self._purged = 0.0
        if _in_memory(engine, self._connections):
            raise ValueError(
                f"engine={engine!r} is a database in memory, another one for each connection: give "
                "one with a file, such as create_engine('sqlite:///sessions.db'), or use "
                "telesession.MemoryStore, in tests with codec=telesession.JSON"
            )

    @property
    def identity(self) -> object:
        return identity(self.engine.dialect, self.table.fullname)

    def __repr__(self) -> str:
        return f"SQLStore({self.engine.url!r}, table={self.table.fullname!r})"

    def acquire(
        self, names: Sequence[str], token: str, waited: float, stale: Mapping[str, Beat]
    ) -> Sequence[Payload | None]:
        sql = self._sql
        ordered = sorted(names)  # the same order in all transactions, so that they can't deadlock
        (*before, last), returns = sql.lease(len(names))
        values = {**sql.keys(ordered), "holder": token}
        gone = [name for name in ordered if name in stale]
        held: list[Held] = []

        def work(say: Say) -> dict[str, Any]:
            held.clear()
            for name in gone:
                holder, beat = stale[name]
                say.do(sql.end, {"key": sql.key(name), "holder": holder, "beat": beat})
            for statement in before:
                say.do(statement, values)
            found: list[Any] = []
            if returns:
                found = say.ask(last, values)
            else:
                say.do(last, values)
            if len(found) < len(names):
                found = say.ask(sql.read(len(names)), values)
            rows = {_text(row[0]): row for row in found}
            for name in ordered:
                _, _, holder, beat, until, _ = rows.get(name, (None,) * 6)
                if holder != token or until is None:
                    held.append(Held(name, holder or "", beat))
                    return {}
            return rows

        rows = self._run(work, together=len(names) > 1 or bool(gone))
        if held:
            raise held[0]
        return [payload_of(None if rows[name][5] else rows[name][1]) for name in names]

    def renew(self, names: Sequence[str], token: str) -> bool:
        def work(say: Say) -> bool:
            return all(
                say.do(self._sql.renew, {"key": self._sql.key(name), "holder": token})
                for name in sorted(names)
            )

        return self._run(work, together=len(names) > 1)

    def write(
        self, names: Sequence[str], token: str, changes: Sequence[Change], *, release: bool = True
    ) -> bool:
        # all names are one group, so `release` is true
        planned = {name: (payload, ttl) for name, payload, ttl in changes}

        def work(say: Say) -> bool:
            return all(self._carry_out(say, name, token, planned) for name in sorted(names))

        done = self._run(work, together=len(names) > 1, lasting=bool(changes))
        self._purge()
        return done

    def _carry_out(
        self,
        say: Say,
        name: str,
        token: str,
        planned: Mapping[str, tuple[Payload | None, float | None]],
    ) -> bool:
        sql = self._sql
        values: dict[str, Any] = {"key": sql.key(name), "holder": token}
        payload, ttl = planned.get(name, (None, None))
        if payload is not None:
            values |= {"content": compose(payload, None), "ttl": ttl}
            statements = [sql.save]
        else:
            statements = [sql.delete] if name in planned else [*sql.release]
        if any(say.do(each, values) for each in statements):
            return True
        # The same request may have been done before: a missing row may be one that it removed.
        whose = say.ask(sql.whose, values)
        done = [*whose[0]] == [token, None] if whose else payload is None
        if say.lost is not None and not done:
            raise say.lost
        return done

    def refused(self, error: Exception) -> bool:
        return was_refused(error)

    def cure(self, error: Exception) -> str:
        text = str(getattr(error, "orig", ""))
        if is_locked(error):
            return _LOCKED
        if "unable to open database file" in text:
            return (
                f"SQLite can't open {self.engine.url.database!r}: make its directory, let this "
                "process write there, and mind that sqlite:///sessions.db is in the directory in "
                "which the bot was started, sqlite:////var/sessions.db is in /var. "
            )
        if re.search("no column named|Unknown column|column .* does not exist", text):
            return (
                f"The table {self.table.fullname!r} has other columns than SQLStore's: give table= "
                "a name of its own. "
            )
        if "denied" in text:
            return (
                "Let this user create tables, or have another one make it, by "
                "SQLStore(engine).table.create(engine), and let this one select, insert, update "
                "and delete there. "
            )
        if "prepared statement" in text:
            return (
                "A pooler such as pgbouncer is in between: give "
                "create_engine(url, connect_args={'prepare_threshold': None}). "
            )
        return ""

    def names(self, prefix: str) -> Iterator[str]:
        start = self._sql.key(prefix)
        values = {"key": start, "length": len(start), "last": self._sql.key(""), "rows": _PAGE}
        while page := self._run(lambda say: say.ask(self._sql.page, values), reading=True):
            yield from (_text(name) for name, asked in page if asked)
            values["last"] = self._sql.key(_text(page[-1][0]))

    def peek(self, name: str) -> Payload | None:
        values = {"key": self._sql.key(name)}
        rows = self._run(lambda say: say.ask(self._sql.peek, values), reading=True)
        return payload_of(rows[0][0] if rows else None)

    def _run(self, work: Callable[[Say], Result], **how: bool) -> Result:
        try:
            if not self._made:
                self._make()
            return self._connections.run(work, **how)
        except SQLAlchemyError:
            self._made = False  # the server may come back with another database
            raise

    def _make(self) -> None:
        began = time.monotonic()
        made = False
        while not self._there():
            if made:
                raise SessionStoreError(
                    f"{self!r} made its table, and the engine's next connection did not find it. "
                    "Either each connection has a database of its own, in memory or temporary: "
                    "give an engine with a file or a server, or use telesession.MemoryStore, in "
                    "tests with codec=telesession.JSON. Or the database cuts the table's name "
                    "short: give a shorter one."
                )
            try:
                with self._connections.connect() as connection:
                    self._create(connection)
                made = True
            except SQLAlchemyError as error:
                if self._there():
                    break  # another process was quicker
                # SQLite doesn't wait where two connections change the journal mode at once
                if not is_locked(error) or time.monotonic() - began > _MAKING:
                    raise
                time.sleep(random.uniform(0, 0.05))
            finally:
                if self.engine.dialect.name == "sqlite":
                    self._connections.close()  # they were opened before the file was in WAL mode
        self._made = True

    def _there(self) -> bool:
        with self._connections.connect() as connection:
            return sa.inspect(connection).has_table(self.table.name, self.table.schema)

    def _create(self, connection: sa.Connection) -> None:
        dialect = self.engine.dialect.name
        if dialect == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        try:
            connection.exec_driver_sql(BEGIN[dialect])
            self.table.create(connection)
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            connection.invalidate()  # not every driver would roll back a transaction of this BEGIN
            raise

    def _purge(self) -> None:
        """Remove expired sessions, once in `_PURGE_INTERVAL` at the most."""
        if time.monotonic() - self._purged < _PURGE_INTERVAL:
            return
        self._purged = time.monotonic()

        def work(say: Say) -> int:
            names = [_text(name) for (name,) in say.ask(self._sql.find_over, {})]
            if names:
                size = next(size for size in _PURGE_SIZES if size >= len(names))
                padded = names + names[-1:] * (size - len(names))
                say.do(self._sql.purge(size), self._sql.keys(padded))
            return len(names)

        try:
            if self._run(work, together=True) == PURGE_LIMIT:
                self._purged = 0.0  # there may be more
        except SQLAlchemyError as error:  # the update is saved, and a later one can purge
            logger.debug("%r could not remove what expired: %s", self, type(error).__name__)


_LOCKED = (
    "Another connection has SQLite's file locked for longer than sqlite3 waits "
    "(connect_args={'timeout': 5.0}): look for a transaction that is neither committed nor rolled "
    "back, of this process, the handler itself, or another one. In a forked process it may be one "
    "that a thread of the parent was in at the fork: fork before the engine is used. "
)

_ONE_CONNECTION = (sa.StaticPool, sa.SingletonThreadPool, sa.AssertionPool)


def _check(engine: sa.Engine) -> None:
    if not isinstance(engine, sa.Engine):
        raise TypeError(
            f"engine={engine!r} is no (blocking) SQLAlchemy engine: give what "
            "sqlalchemy.create_engine(url) returns"
        )
    if engine.dialect.name not in DIALECTS:
        raise ValueError(
            f"engine={engine!r}: SQLStore is for SQLite, PostgreSQL, MySQL and MariaDB"
        )
    if engine.dialect.is_async:
        raise TypeError(
            f"engine={engine!r} has the asynchronous driver {engine.dialect.driver!r}, and "
            "handlers block: give create_engine a blocking one, such as sqlite:///…, "
            "postgresql+psycopg://… or mysql+pymysql://…"
        )
    if isinstance(engine.pool, _ONE_CONNECTION):
        raise ValueError(
            f"engine={engine!r} has a {type(engine.pool).__name__}: one connection for everybody, "
            "or one for each thread, on which transactions of the bot and sessions would mix. Give "
            "an engine with a file or a server, and the pool that create_engine chooses for it, "
            "such as create_engine('sqlite:///sessions.db'), or use telesession.MemoryStore, in "
            "tests with codec=telesession.JSON"
        )


def _check_name(option: str, name: Any) -> None:
    if option == "schema" and name is None:
        return
    if not isinstance(name, str) or not name:
        raise TypeError(f"{option}={name!r} must be a str, the name of a {option}")
    if "." in name:
        schema, _, table = name.rpartition(".")
        raise ValueError(
            f"{option}={name!r} would be one name with a dot in it: give schema={schema!r}, "
            f"table={table!r}"
        )


def _in_memory(engine: sa.Engine, connections: Connections) -> bool:
    """Whether an engine is for SQLite without a file; asks SQLite only if the URL looks like it."""
    file = engine.url.database or ""
    suspect = file in ("", ":memory:") or "memory" in f"{file}{engine.url.query.get('mode')}"
    if engine.dialect.name != "sqlite" or not suspect:
        return False
    with connections.connect() as connection:
        return not connection.exec_driver_sql("PRAGMA database_list").all()[0][2]


def _text(name: Any) -> str:
    """A session's name as text, where a driver gives bytes."""
    return name if isinstance(name, str) else bytes(name).decode()
