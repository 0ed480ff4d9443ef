"""`SQLStore`'s own connections: their pool, when to try again, and what an error means.

`_statements` has the SQL that runs on them, and `sql` decides which statements an update needs.
"""

import contextlib
import random
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from telesession._forks import Mutex, around_fork, per_process
from telesession._statements import BEGIN, Statement, Values
from telesession.errors import SessionStoreError

Result = TypeVar("Result")

_ATTEMPTS = 5  # tries while other transactions are in conflict
_AT_ONCE = 0.5  # seconds within which a connection that was dead fails; a later failure timed out
_BEFORE_FORK = 1.0  # seconds that a fork waits for threads that are using SQLite

# The parent's engines, kept in a forked child: closing them here would end them for the parent.
_inherited: list[sa.Engine] = []


class Say:
    """Runs statements on one connection."""

    __slots__ = ("cursor", "lost", "text")

    def __init__(self, cursor: Any, lost: DBAPIError | None) -> None:
        self.cursor = cursor
        self.lost = lost  #: at a second try, the error of the first, which may have worked
        self.text = ""

    def word(self, text: str, parameters: Any = ()) -> None:
        self.text = text
        self.cursor.execute(text, parameters)

    def do(self, statement: Statement, values: Values) -> int:
        """Run a statement; returns how many rows it changed."""
        self.word(statement.text, statement.parameters(values))
        return int(self.cursor.rowcount)

    def ask(self, statement: Statement, values: Values) -> list[Any]:
        """Run a statement; returns its rows."""
        self.word(statement.text, statement.parameters(values))
        return list(self.cursor.fetchall())


class _WasDead(Exception):
    """A connection of the pool had died before it was used."""

    def __init__(self, error: DBAPIError) -> None:
        self.error = error


class Connections:
    """A pool like an engine's, but separate from it.

    Each statement is committed at once, unless a transaction is begun. The pool's raw connections
    are used, since SQLAlchemy's `Connection` takes several times as long as most statements do. A
    connection is closed when an exception came while it was used: it may have an unread answer or
    an open transaction. Unless the error was a conflict with another transaction, all connections
    are closed then, since the server may have been restarted or demoted.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._dialect: Any = engine.dialect
        self._sqlite = engine.dialect.name == "sqlite"
        # SQLite has one writer at a time, and a waiting connection polls the file less and less
        # often: threads of one process that wait for this mutex get their turns sooner.
        self._turn = Mutex()
        self._locked = 0.0  # when a thread last gave up waiting for the file
        self._own: sa.Engine | None = None
        self._end: Any = None
        per_process(self, Connections._reset)
        if self._sqlite:
            around_fork(self, Connections._pause, Connections._resume)
        this = weakref.ref(self)

        def disposed(engine: sa.Engine) -> None:
            if (connections := this()) is not None:
                connections.close()

        sa.event.listen(engine, "engine_disposed", disposed)

    def _reset(self) -> None:
        if self._own is not None:
            self._end.detach()
            _inherited.append(self._own)
            self._own = None

    def _pause(self) -> None:
        """Close all connections before a fork.

        With an open file, SQLite in the child would believe that it holds the parent's locks.
        """
        deadline = time.monotonic() + _BEFORE_FORK
        self._turn.current().acquire(timeout=_BEFORE_FORK)
        if self._own is not None:
            reading = getattr(self._own.pool, "checkedout", int)
            while reading() and time.monotonic() < deadline:
                time.sleep(0.001)
            self.close()

    def _resume(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._turn.current().release()

    @property
    def own(self) -> sa.Engine:
        """The engine around the pool, made at first use, when the user's listeners are in place."""
        if self._own is None:
            pool = self._engine.pool.recreate()
            try:
                _check_creator(pool)
            except Exception as error:
                if (failed := self._failed(error, None, None)) is None:
                    raise
                raise failed from error
            sa.event.listen(pool, "connect", self._begin)
            own = sa.Engine(pool, self._dialect, self._engine.url, hide_parameters=True)
            self._end = weakref.finalize(self, own.dispose)
            self._own = own
        return self._own

    @property
    def _begin(self) -> Callable[[Any, Any], None]:
        """The listener that sets up a new connection, after the user's listeners have."""
        if self._sqlite:
            return _begin_sqlite
        dialect = self._dialect

        def begin(connection: Any, record: Any) -> None:
            connection.commit()  # what listeners did, such as SET, may have begun a transaction
            dialect.set_isolation_level(connection, "AUTOCOMMIT")

        return begin

    def run(
        self,
        work: Callable[[Say], Result],
        *,
        together: bool = False,
        lasting: bool = False,
        reading: bool = False,
    ) -> Result:
        """Call ``work`` with a connection, and return its result.

        The call is repeated on a new connection where a pooled one turned out dead, and where the
        database asks for that, as after a deadlock. Errors of the driver are raised as SQLAlchemy
        raises them; their ``statement`` is `None` where no connection was made.

        Args:
            work: a function that runs statements; it may be called a second time.
            together: use a transaction, which is rolled back if ``work`` returns a false value.
            lasting: wait for the disk as the user has set it; on SQLite, other calls don't wait.
            reading: ``work`` writes nothing.
        """
        if reading or not self._sqlite:
            return self._run(work, together, lasting, None)
        since = time.monotonic()
        return self._turn.alone(lambda: self._run(work, together, lasting, since))

    def _run(
        self, work: Callable[[Say], Result], together: bool, lasting: bool, since: float | None
    ) -> Result:
        lost: DBAPIError | None = None
        attempt = 0
        while True:
            attempt += 1
            pool = self.own.pool
            # Another thread gave up waiting for the file while this one waited for its turn.
            hurry = since is not None and since < self._locked
            try:
                return self._once(pool, work, together or attempt > 1, lasting, hurry, lost)
            except _WasDead as dead:
                self.close(pool)
                if lost is not None:
                    raise lost from None
                lost = dead.error
            except Exception as error:
                if is_conflict(error) and attempt < _ATTEMPTS:
                    time.sleep(random.uniform(0, 0.01 * 2**attempt))
                    continue
                self.close(pool)
                if is_locked(error):
                    self._locked = time.monotonic()
                if lost is not None:
                    raise lost from None
                raise

    def close(self, pool: sa.Pool | None = None) -> None:
        """Close all connections, unless ``pool`` has been replaced; later calls open new ones."""
        own = self._own
        if own is not None and pool in (None, own.pool):
            pool = own.pool
            own.dispose(close=False)  # replaces the pool first, so that `_once` sees it
            pool.dispose()

    def _once(
        self,
        pool: sa.Pool,
        work: Callable[[Say], Result],
        together: bool,
        lasting: bool,
        hurry: bool,
        lost: DBAPIError | None,
    ) -> Result:
        began = time.monotonic()
        connection: Any = None
        cursor: Any = None
        say: Say | None = None
        info: Any = {}
        try:
            connection = pool.connect()
            info = connection.info
            cursor = connection.cursor()
            say = Say(cursor, lost)
            if self._sqlite:
                _care(say, info, lasting, hurry)
            if together:
                say.word(BEGIN[self._dialect.name])
            result = work(say)
            if together:
                say.word("COMMIT" if result else "ROLLBACK")
            cursor.close()
            info["used"] = True
        except BaseException as error:
            failed = self._failed(error, connection, say)
            with contextlib.suppress(Exception):
                cursor.close()
            if connection is not None:
                connection.invalidate()
            if failed is None:
                raise
            at_once = time.monotonic() - began < _AT_ONCE and not _timed_out(error)
            if failed.connection_invalidated and at_once and "used" in info:
                raise _WasDead(failed) from error
            raise failed from error
        connection.close()
        self._drop(pool)
        return result

    @contextlib.contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """A connection as SQLAlchemy has it, to look at a table or to make one."""
        pool = self.own.pool
        try:
            with self.own.connect() as connection:
                yield connection
        finally:
            self._drop(pool)

    def _drop(self, pool: sa.Pool) -> None:
        """Close what was given back to a pool after `close` had replaced it."""
        if pool is not self.own.pool:
            pool.dispose()

    def _failed(self, error: BaseException, connection: Any, say: Say | None) -> DBAPIError | None:
        """A driver's error wrapped as SQLAlchemy wraps it; `None` for any other exception."""
        if not isinstance(error, (OSError, self._dialect.loaded_dbapi.Error)):
            return None
        gone = (
            say is None  # without a cursor nothing was sent
            or isinstance(error, OSError)  # pg8000 doesn't wrap it
            or self._dialect.is_disconnect(error, connection.dbapi_connection, say.cursor)
        )
        wrapped: Any = DBAPIError.instance(
            say.text if say else None,
            None,
            error,
            Exception,
            hide_parameters=True,
            connection_invalidated=gone,
            dialect=self._dialect,
        )
        return wrapped  # type: ignore[no-any-return]


def _check_creator(pool: Any) -> None:
    """Refuse a function of the user's that gives the same connection each time.

    A pool must not have that connection, even to look at it: it would close it.
    """
    if getattr(pool._creator, "__module__", "") == "sqlalchemy.engine.create":
        return
    one, two = pool._invoke_creator(None), pool._invoke_creator(None)
    if one is two:
        raise SessionStoreError(
            "the creator of SQLStore's engine gives the same connection each time, on which the "
            "bot's own transactions would be committed with each session. Have it make a new "
            "connection at each call."
        )
    one.close()
    two.close()


def _begin_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    """Commit each statement at once, and note the settings of the user's listeners."""
    if getattr(connection, "autocommit", -1) != -1:  # from Python 3.12; at -1 isolation_level rules
        connection.autocommit = True  # type: ignore[attr-defined,unused-ignore]
    connection.isolation_level = None
    level, mode, patience = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("synchronous", "journal_mode", "busy_timeout")
    )
    # the user's setting, and the present one
    record.info["waits"] = (level, level) if mode == "wal" else (0, 0)
    record.info["patience"] = patience


def _care(say: Say, info: Any, lasting: bool, hurry: bool) -> None:
    """Set whether SQLite waits for the disk, and for the file.

    In WAL mode, data that the system has is safe while the machine runs. A lease need not survive a
    power failure, since its holder doesn't.
    """
    users, now = info["waits"]
    level = users if lasting else min(users, 1)
    if level != now:
        say.word(f"PRAGMA synchronous = {level}")
        info["waits"] = users, level
    if hurry or "hurried" in info:
        say.word(f"PRAGMA busy_timeout = {0 if hurry else info['patience']}")
        info["hurried"] = True


def _original(error: object) -> Any:
    return getattr(error, "orig", None)


def _number(error: Any) -> Any:
    """The server's code of an error: an SQLSTATE on PostgreSQL, a number on MySQL, or `None`."""
    first = error.args[0] if error is not None and error.args else None
    if isinstance(first, dict):  # pg8000
        return first.get("C")
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    number = getattr(error, "errno", None) or first  # mysql-connector, and mariadb
    return number if isinstance(number, int) else state


def is_conflict(error: BaseException) -> bool:
    """Whether a conflict with another transaction ended this one, which should then be repeated.

    That is PostgreSQL's serialization failure and deadlock, and MySQL's deadlock and "record has
    changed since last read".
    """
    return _number(_original(error)) in ("40001", "40P01", 1020, 1213)


def is_locked(error: BaseException) -> bool:
    """Whether SQLite gave up waiting for a file that another connection has locked."""
    original = _original(error)
    return isinstance(original, sqlite3.OperationalError) and "is locked" in str(original)


def was_refused(error: BaseException) -> bool:
    """Whether nothing was done, since there was no connection, or the server refused."""
    if isinstance(error, sa.exc.TimeoutError):
        return True  # the pool had no free connection
    if not isinstance(error, DBAPIError):
        return False
    if error.statement is None:
        return True
    if error.connection_invalidated:
        return False
    original = _original(error)
    if isinstance(original, sqlite3.Error):
        return "disk I/O" not in str(original)
    number = _number(original)
    # MySQL's codes from 2000 to 2999 come from the client
    return number is not None and (isinstance(number, str) or not 2000 <= number < 3000)


def _timed_out(error: BaseException | None) -> bool:
    for _ in range(10):
        if isinstance(error, TimeoutError):
            return True
        error = getattr(error, "__cause__", None) or getattr(error, "__context__", None)
    return False
