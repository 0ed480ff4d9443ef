"""`SQLStore`'s table, and the text of its statements; `_connections` runs them."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

#: How many rows one purge removes at the most; some SQLite versions take fewer than 1000 values.
PURGE_LIMIT = 900

# Seconds after a lease's end before its row is removed: until then a stalled holder may still save.
_GRACE = 3600.0

_MYSQL_NOW = "timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1e6"
#: The database's clock, in seconds since the epoch.
_NOW = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "cast(extract(epoch from clock_timestamp()) as double precision)",
    "mysql": _MYSQL_NOW,
    "mariadb": _MYSQL_NOW,
}
DIALECTS = tuple(_NOW)

# With IMMEDIATE, SQLite takes the write lock at the beginning, not in the middle of a transaction.
BEGIN = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "BEGIN ISOLATION LEVEL READ COMMITTED",
    "mysql": "START TRANSACTION",
    "mariadb": "START TRANSACTION",
}

Values: TypeAlias = Mapping[str, Any]

_NULL: Any = sa.null()


def _number(value: float) -> Any:
    """A number as a literal in the text."""
    return sa.literal_column(repr(value))


def is_mysql(dialect: sa.Dialect) -> bool:
    return dialect.name in ("mysql", "mariadb")


class _Name(sa.TypeDecorator[str]):
    """A session's name; bytes on MySQL, which compares text without case or trailing spaces."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        return mysql.VARBINARY(1024) if is_mysql(dialect) else sa.Text()

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> Any:
        return value.encode() if value is not None and is_mysql(dialect) else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> str | None:
        return bytes(value).decode() if isinstance(value, (bytes, bytearray)) else value


def session_table(name: str, schema: str | None) -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("name", _Name, primary_key=True),
        # null while a session that is not stored is leased
        sa.Column(
            "payload", sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4"), "mysql", "mariadb")
        ),
        # times are in seconds since the epoch
        sa.Column("expires", sa.Double, index=True),
        # the last holder's token: it stays after the release, so that a repeated request is
        # recognised
        sa.Column("token", sa.String(64)),
        sa.Column("leased_until", sa.Double),  # null after the release
        sa.Column("beat", sa.BigInteger),  # goes up with each lease and renewal
        schema=schema,
        # the default engine of a MariaDB server may lack transactions
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )


class Statement:
    """A statement, compiled once to the driver's text and order of parameters."""

    __slots__ = ("_constants", "_order", "text")

    def __init__(self, what: Any, dialect: sa.Dialect) -> None:
        compiled = what.compile(dialect=dialect)
        self.text = str(compiled)
        self._order: Sequence[str] | None = compiled.positiontup
        self._constants = {name: each for name, each in compiled.params.items() if each is not None}

    def parameters(self, values: Values) -> Any:
        """The values in the form that the driver takes."""
        if self._constants:
            values = {**self._constants, **values}
        return values if self._order is None else [values[name] for name in self._order]


class Statements:
    """All statements of a store; their value ``key`` is a session's name, ``holder`` a token."""

    def __init__(self, table: sa.Table, dialect: sa.Dialect, lease: float) -> None:
        self._table, self._dialect = table, dialect
        self._encoded = is_mysql(dialect)
        t = table.c
        now: Any = sa.literal_column(_NOW[dialect.name], sa.Double)
        self._until = until = now + _number(float(lease))
        key = sa.bindparam("key", type_=_Name)
        self._holder = holder = sa.bindparam("holder", type_=sa.String)
        leased = t.leased_until.is_not(None)
        mine = (t.name == key) & (t.token == holder) & leased
        #: Whether a row can be leased; a token can't lease again what it has released.
        self._vacant = (
            (t.leased_until <= now)
            | (leased & (t.token == holder))
            | (~leased & (t.token.is_(None) | (t.token != holder)))
        )
        self._over = (t.expires <= now) & (~leased | (t.leased_until <= now - _number(_GRACE)))
        self._columns = (
            *(t.name, t.payload, t.token, t.beat, t.leased_until),
            sa.case((t.expires <= now, _number(1)), else_=_number(0)),
        )
        beat = sa.func.coalesce(t.beat, _number(0)) + _number(1)
        self._taken: Any = {"token": holder, "leased_until": until, "beat": beat}
        self.lease = functools.lru_cache(64)(self._lease)
        self.read = functools.lru_cache(64)(self._read)
        self.purge = functools.lru_cache(64)(self._purge)

        update = sa.update(table).where(mine)
        ttl: Any = sa.bindparam("ttl", type_=sa.Double)
        content = {"payload": sa.bindparam("content", type_=sa.Text), "expires": now + ttl}
        self.renew = self._text(update.values(leased_until=until, beat=beat))
        self.save = self._text(update.values(**content, leased_until=_NULL))
        self.delete = self._text(sa.delete(table).where(mine))
        #: Of these two, one releases a lease: the first if a payload is stored, else the second.
        self.release = (
            self._text(update.where(t.payload.is_not(None)).values(leased_until=_NULL)),
            self._text(sa.delete(table).where(mine, t.payload.is_(None))),
        )
        #: A row's holder: the token, and the end of the lease.
        self.whose = self._text(sa.select(t.token, t.leased_until).where(t.name == key))
        #: Ends a lease that was not renewed since ``beat``.
        stood = (t.token == holder) & (t.beat == sa.bindparam("beat", type_=sa.BigInteger))
        self.end = self._text(
            sa.update(table).where(t.name == key, stood).values(leased_until=_number(0.0))
        )

        there = t.payload.is_not(None) & (t.expires.is_(None) | (t.expires > now))
        self.peek = self._text(sa.select(t.payload).where((t.name == key) & there))
        begin = sa.func.substr(
            t.name, _number(1), sa.bindparam("length", type_=sa.Integer), type_=_Name
        )
        asked = sa.case(((begin == key) & there, _number(1)), else_=_number(0)).label("asked")
        #: Among the next ``rows`` rows in the database's own order: the names that begin with
        #: ``key``, which has ``length`` characters, and the last row's name in any case. The rows
        #: are filtered after LIMIT; else a planner may read and sort the whole table for each page.
        page = (
            sa.select(t.name, asked)
            .where(t.name > sa.bindparam("last", type_=_Name))
            .order_by(t.name)
            .limit(sa.bindparam("rows", type_=sa.Integer))
            .cte("page")
        )
        last = sa.select(sa.func.max(page.c.name)).scalar_subquery()
        self.page = self._text(
            sa.select(page.c.name, page.c.asked)
            .where((page.c.asked == _number(1)) | (page.c.name == last))
            .order_by(page.c.name)
        )
        #: Skips rows that other transactions have locked.
        self.find_over = self._text(
            sa.select(t.name)
            .where(self._over)
            .limit(_number(PURGE_LIMIT))
            .with_for_update(skip_locked=True)
        )

    def _text(self, what: Any) -> Statement:
        return Statement(what, self._dialect)

    def key(self, name: str) -> Any:
        """A session's name in the database's form."""
        return name.encode() if self._encoded else name

    def keys(self, names: Sequence[str]) -> dict[str, Any]:
        """The values of a statement for several names."""
        return {f"key{number}": self.key(name) for number, name in enumerate(names)}

    def _lease(self, count: int) -> tuple[Sequence[Statement], bool]:
        """The statements that lease ``count`` sessions, and whether the last returns `read`'s rows.

        They leave sessions that another token holds unchanged, and return no rows for those.
        """
        row = {"token": self._holder, "leased_until": self._until, "expires": self._until}
        rows: Any = [{"name": each, "beat": _number(0), **row} for each in _keys(count)]
        if self._encoded:
            # In ON DUPLICATE KEY UPDATE, sql_mode decides whether an assignment sees earlier ones.
            upsert: Any = mysql.insert(self._table).values(rows)
            take = sa.update(self._table).where(self._table.c.name.in_(_keys(count)), self._vacant)
            return [
                self._text(upsert.on_duplicate_key_update(name=self._table.c.name)),
                self._text(take.values(self._taken)),
            ], False
        insert: Any = postgresql.insert if self._dialect.name == "postgresql" else sqlite.insert
        upsert = insert(self._table).values(rows)
        upsert = upsert.on_conflict_do_update(
            index_elements=[self._table.c.name], set_=self._taken, where=self._vacant
        )
        if returns := self._dialect.insert_returning:
            upsert = upsert.returning(*self._columns)
        return [self._text(upsert)], returns

    def _read(self, count: int) -> Statement:
        """Reads ``count`` rows: name, payload, token, beat, leased until, and whether expired."""
        return self._text(sa.select(*self._columns).where(self._table.c.name.in_(_keys(count))))

    def _purge(self, count: int) -> Statement:
        """Removes those of ``count`` rows that have expired."""
        named = self._table.c.name.in_(_keys(count))
        return self._text(sa.delete(self._table).where(named & self._over))


def _keys(count: int) -> Sequence[Any]:
    return [sa.bindparam(f"key{number}", type_=_Name) for number in range(count)]
