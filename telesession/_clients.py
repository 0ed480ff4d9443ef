"""What is known of the objects that sessions are kept in: what they hide, how they connect.

They are known by the names of their classes, so that none of their libraries is imported.
"""

import contextlib
import inspect
import math
import os
import shelve
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from telesession._forks import Mutex

_MONTH = 30 * 24 * 60 * 60  # seconds

_PYMEMCACHE = "pymemcache.Client((host, port), connect_timeout=3, timeout=3, default_noreply=False)"

#: What to give instead of a class that hides failures whatever its options are. As measured with
#: a server that stood still, or was dead, or from the source.
_HIDING = {
    "bmemcached.ClientMixin": _PYMEMCACHE,
    "cachelib.NullCache": "a cache that keeps something",
    "cachelib.UWSGICache": "another cache",
    "diskcache.DjangoCache": "a diskcache.Cache",
    "diskcache.FanoutCache": "a diskcache.Cache",
    "django.BaseMemcachedCache": _PYMEMCACHE,
    "django.DatabaseCache": "a telesession.sql.SQLStore",
    "django.DummyCache": "a cache that keeps something",
    "flask_caching.NullCache": "a cache that keeps something",
    "libmc.PyClient": _PYMEMCACHE,
    "libmc.PyClientPool": _PYMEMCACHE,
    "memcache.Client": _PYMEMCACHE,
    "pylibmc.Client": _PYMEMCACHE,
    "pylibmc.ClientPool": _PYMEMCACHE,
}

#: The options with which other classes hide failures: which, and what to change.
_OPTIONS: dict[str, tuple[tuple[Callable[[Any], Any], str], ...]] = {
    "django_redis.RedisCache": (
        (lambda cache: cache._ignore_exceptions, '"IGNORE_EXCEPTIONS": False in its OPTIONS'),
    ),
    "pymemcache.Client": (
        (lambda client: client.ignore_exc, "ignore_exc=False"),
        (lambda client: client.default_noreply, "default_noreply=False"),
    ),
    "pymemcache.HashClient": (
        (lambda client: client.ignore_exc, "ignore_exc=False"),
        (lambda client: client.default_kwargs["default_noreply"], "default_noreply=False"),
        # Else it answers "nothing" until it tries again, and asks another server after that.
        (
            lambda client: (client.retry_attempts, client.retry_timeout) != (math.inf, -math.inf),
            "retry_attempts=math.inf, retry_timeout=-math.inf",
        ),
    ),
}
_OPTIONS["pymemcache.PooledClient"] = _OPTIONS["pymemcache.Client"]

#: Errors that a server answers with, or that a client raises before it asks one.
_ANSWERS = {
    *("pymemcache.MemcacheClientError", "pymemcache.MemcacheServerError"),
    *("redis.DataError", "redis.ResponseError", "valkey.DataError", "valkey.ResponseError"),
}

#: Packages whose objects ask the client that they have as it is.
_WRAPPERS = {"cachelib", "django", "django_redis", "flask_caching", "pymemcache"}

#: Where objects have a client.
_INNER = ("client", "_client", "_read_client", "_write_client", "_cache", "redis_connection")


def check(store: Any, calls: Sequence[Any]) -> None:
    """Raise `TypeError` for an object that can't keep sessions, as far as that can be known.

    Args:
        store: the object.
        calls: what is to be called of it.
    """
    kind = type(store)
    if any(map(_is_asynchronous, (*calls, getattr(kind, "execute_command", None)))) or (
        (hasattr(kind, "__aenter__") or hasattr(kind, "__await__"))
        and not hasattr(kind, "__enter__")
    ):
        raise TypeError(
            f"store={kind.__name__} is asynchronous: telesession is for blocking bots, "
            "give the blocking client of the same service"
        )
    for client in _layers(store, _WRAPPERS):
        for known in _kinds(client):
            change = "give " + _HIDING[known] if known in _HIDING else ""
            wrong = [cure for is_wrong, cure in _OPTIONS.get(known, ()) if is_wrong(client)]
            if wrong:
                change = "make it with " + ", ".join(wrong)
            if change:
                raise TypeError(
                    f"store={kind.__name__}: {known} answers as if nothing had failed when its "
                    "server fails, so that a stored session would seem not to be there, and be "
                    f"lost. Instead, {change}"
                )
    kept = vars(store)["dict"] if isinstance(store, shelve.Shelf) else store
    module = type(kept).__module__
    if module == "dbm.sqlite3":
        raise TypeError(
            f"store={kind.__name__}: files of dbm.sqlite3, which shelve.open() makes from Python "
            "3.13 on, can be used only by the thread that opened them, and a bot has several. "
            'Give shelve.Shelf(dbm.dumb.open("sessions")), or a telesession.sql.SQLStore'
        )
    if module == "_dbm" and getattr(sys.modules.get("_dbm"), "library", "") == "ndbm":
        raise TypeError(
            f"store={kind.__name__}: files of this dbm.ndbm break with values of more than about "
            'a thousand characters. Give shelve.Shelf(dbm.dumb.open("sessions")), or a '
            "telesession.sql.SQLStore"
        )


def sync(store: Any) -> Callable[[], object]:
    """What has a file written, so that a crash doesn't lose what is new.

    Not for other objects, whose ``sync`` may be another thing: to Redis it is a replication.
    """
    if isinstance(store, shelve.Shelf) or type(store).__module__ in ("dbm.dumb", "_gdbm"):
        return store.sync  # type: ignore[no-any-return]
    return lambda: None


def seconds(store: Any, ttl: float, now: float) -> int:
    """A time to live as ``store`` takes it: whole seconds, rounded up; 0 if it can't be told.

    memcached takes more than 30 days for a date, and knows none after 2038.
    """
    whole = math.ceil(ttl)
    if whole > _MONTH and any(kind.startswith("pymemcache.") for kind in _kinds(store)):
        whole = math.ceil(now + ttl)
        return whole if whole < 2**31 else 0
    return whole


def answered(error: BaseException) -> bool:
    """Whether the server answered with an error, or was not asked: so another request may be."""
    kinds = _kinds(error)
    return not _ANSWERS.isdisjoint(kinds) and "pymemcache.MemcacheUnexpectedCloseError" not in kinds


def refused(store: Any, error: Exception) -> bool:
    """Whether nothing was done, also by an earlier try of a client that tries again by itself."""
    once = _kinds(store)[0] in ("pymemcache.Client", "pymemcache.PooledClient")
    return once and answered(error)


def _is_asynchronous(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _kinds(thing: Any) -> list[str]:
    """The classes of an object, each with the name of its package only."""
    return [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(thing).__mro__]


def _layers(store: Any, wrappers: set[str] | None = None, depth: int = 3) -> Iterator[Any]:
    """An object, and the clients that it asks; if it belongs to ``wrappers``, if they are given."""
    yield store
    kinds = _kinds(store)
    if not depth or (
        wrappers is not None and wrappers.isdisjoint(kind.partition(".")[0] for kind in kinds)
    ):
        return
    inner = [inspect.getattr_static(store, name, None) for name in _INNER]
    if "django.ConnectionProxy" in kinds:
        inner.append(store._connections[store._alias])
    for client in inner:
        if client is not None:
            yield from _layers(client, wrappers, depth - 1)


def _connections(store: Any) -> Iterator[Callable[[], object]]:
    """What closes the connections of a client that opens others when it is next asked.

    Of Redis' clients those that are idle: another thread may be using the others.
    """
    for client in _layers(store):
        kind = type(client)
        if hasattr(kind, "disconnect_all"):
            yield client.disconnect_all
        elif hasattr(kind, "get_nodes"):
            for node in client.get_nodes():
                yield from _connections(node)
        pools = inspect.getattr_static(client, "_pools", None)  # Django's
        for pool in (
            *(list(pools.values()) if isinstance(pools, dict) else ()),
            inspect.getattr_static(client, "connection_pool", None),
            inspect.getattr_static(client, "connection", None),
        ):
            if hasattr(type(pool), "disconnect"):
                yield partial(pool.disconnect, False)


class Line(Mutex):
    """The line to one object: one thread at a time has it, and gets no answer to another.

    Where an exception comes out of a signal handler between a command and its answer, a client may
    take that answer for the one to its next command: another user's session. A forked child that
    has the connection of its parent may read what is for the parent. So connections are closed
    then, before anything else is asked, as far as the object has a way to do that.
    """

    def __init__(self, store: Any) -> None:
        super().__init__()
        self._store = store
        self._asked = False  #: and perhaps nobody has read the answer
        self._process = os.getpid()

    def ask(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a method of the object, in `alone`."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._disconnect()
        if self._asked:
            self._hang_up()
        self._asked = True
        try:
            answer = call(*args, **options)
        except KeyError:  # a mapping's answer
            self._asked = False
            raise
        except Exception as error:
            # One that came out of a signal handler looks like one of the client's.
            if not self._disconnect() and _is_timeout(error):
                self._close()
            self._asked = False
            raise
        except BaseException:
            self._hang_up()
            raise
        self._asked = False
        return answer

    def _hang_up(self) -> None:
        if not self._disconnect():
            self._close()
        self._asked = False

    def _disconnect(self) -> bool:
        """Close the connections, if it is known how."""
        connections = list(_connections(self._store))
        for close in connections:
            with contextlib.suppress(Exception):
                close()
        return bool(connections)

    def _close(self) -> None:
        """Close an object that is not known, unless it keeps its items itself, as a shelf does."""
        kind = type(self._store)
        if hasattr(kind, "close") and not hasattr(kind, "__getitem__"):
            with contextlib.suppress(Exception):
                self._store.close()


def _is_timeout(error: Exception) -> bool:
    return any("timeout" in kind.lower() for kind in _kinds(error))
