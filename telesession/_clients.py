"""What `KeyValueStore` knows of common clients: failures that they hide, and their connections.

Clients are recognised by the names of their classes, so no client library is imported. What to read
and to write is left to `keyvalue`.
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

#: By class that hides failures whatever its options are: the replacement. Found by tests with a
#: stopped or dead server, or in the source.
_HIDING = {
    "bmemcached.ClientMixin": _PYMEMCACHE,
    "cachelib.NullCache": "a cache that keeps something",
    "cachelib.UWSGICache": "another cache",
    "diskcache.FanoutCache": "a diskcache.Cache",
    "django.BaseMemcachedCache": _PYMEMCACHE,
    "django.DatabaseCache": "a telesession.sql.SQLStore",
    "django.DummyCache": "a cache that keeps something",
    "dogpile.GenericMemcachedBackend": _PYMEMCACHE,
    "dogpile.NullBackend": "a cache that keeps something",
    "flask_caching.NullCache": "a cache that keeps something",
    "libmc.PyClient": _PYMEMCACHE,
    "libmc.PyClientPool": _PYMEMCACHE,
    "memcache.Client": _PYMEMCACHE,
    "pylibmc.Client": _PYMEMCACHE,
    "pylibmc.ClientPool": _PYMEMCACHE,
    "pylibmc.ThreadMappedPool": _PYMEMCACHE,
    "sqlitedict.SqliteDict": "a telesession.sql.SQLStore",
}

#: By class: tests for options with which it hides failures, and what to change.
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
        # Else, after a failure, it answers "nothing stored", and later asks another server.
        (
            lambda client: (client.retry_attempts, client.retry_timeout) != (math.inf, -math.inf),
            "retry_attempts=math.inf, retry_timeout=-math.inf",
        ),
    ),
}
_OPTIONS["pymemcache.PooledClient"] = _OPTIONS["pymemcache.Client"]

#: Errors that are a server's answer, or that a client raises before it asks a server.
_ANSWERS = {
    *("pymemcache.MemcacheClientError", "pymemcache.MemcacheServerError"),
    *("redis.DataError", "redis.ResponseError", "valkey.DataError", "valkey.ResponseError"),
}

#: Packages whose objects pass calls on to an inner client.
_WRAPPERS = {"cachelib", "django", "django_redis", "dogpile", "flask_caching", "pymemcache"}

#: The attributes that may have an inner client.
_INNER = (
    *("client", "_client", "_read_client", "_write_client", "_cache", "redis_connection"),
    "backend",
)


def check(store: Any, calls: Sequence[Any]) -> None:
    """Raise `TypeError` for an object that is known not to keep sessions safely.

    Args:
        store: the object.
        calls: the methods that will be called.
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
    """The function that writes a store's file to disk, so that a crash loses nothing.

    For other objects it does nothing: their ``sync`` may mean something else, as Redis's does.
    """
    if isinstance(store, shelve.Shelf) or type(store).__module__ in ("dbm.dumb", "_gdbm"):
        return store.sync  # type: ignore[no-any-return]
    return lambda: None


def seconds(store: Any, ttl: float, now: float) -> int:
    """A ttl as ``store`` takes it: whole seconds, rounded up; 0 if it takes no such ttl.

    memcached takes more than 30 days for a Unix time, and none after 2038.
    """
    whole = math.ceil(ttl)
    if whole > _MONTH and any(kind.startswith("pymemcache.") for kind in _kinds(store)):
        whole = math.ceil(now + ttl)
        return whole if whole < 2**31 else 0
    return whole


def answered(error: BaseException) -> bool:
    """Whether the server answered with an error, or was not asked; then it may be asked again."""
    kinds = _kinds(error)
    return not _ANSWERS.isdisjoint(kinds) and "pymemcache.MemcacheUnexpectedCloseError" not in kinds


def refused(store: Any, error: Exception) -> bool:
    """Whether nothing was done; `False` for clients that retry: an earlier try may be done."""
    once = _kinds(store)[0] in ("pymemcache.Client", "pymemcache.PooledClient")
    return once and answered(error)


def _is_asynchronous(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _kinds(thing: Any) -> list[str]:
    """The classes of an object, each as "package.Class"."""
    return [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(thing).__mro__]


def _layers(store: Any, wrappers: set[str] | None = None, depth: int = 3) -> Iterator[Any]:
    """An object and its inner clients; with ``wrappers``, only objects of these are looked into."""
    yield store
    kinds = _kinds(store)
    if not depth or (
        wrappers is not None and wrappers.isdisjoint(kind.partition(".")[0] for kind in kinds)
    ):
        return
    inner = [inspect.getattr_static(store, name, None) for name in _INNER]
    if "django.ConnectionProxy" in kinds:
        inner.append(store._connections[store._alias])
    if "flask_caching.Cache" in kinds:
        with contextlib.suppress(Exception):  # outside of an application nothing can be called
            inner.append(store.cache)
    for client in inner:
        if client is not None:
            yield from _layers(client, wrappers, depth - 1)


def _connections(store: Any) -> Iterator[Callable[[], object]]:
    """Functions that close the connections of clients that open new ones at the next call.

    For Redis clients they close idle connections only: other threads may use the others.
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
    """Calls one object for one thread at a time, so that no call gets another call's answer.

    If a signal handler raises between a command and its answer, a client may take that answer for
    the one to its next command: another user's session. A forked child with its parent's connection
    may read the parent's answers. So connections are closed then, before the next call, if it is
    known how.
    """

    def __init__(self, store: Any) -> None:
        super().__init__()
        self._store = store
        self._asked = False  #: whether a call began whose answer may be unread
        self._process = os.getpid()

    def ask(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a method of the object; only inside of `alone`."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._disconnect()
        if self._asked:
            self._hang_up()
        self._asked = True
        try:
            answer = call(*args, **options)
        except KeyError:  # a mapping's answer that the key is missing
            self._asked = False
            raise
        except Exception as error:  # perhaps a signal handler's, so an answer may be unread
            self._hang_up(close=_is_timeout(error))
            raise
        except BaseException:
            self._hang_up()
            raise
        self._asked = False
        return answer

    def _hang_up(self, close: bool = True) -> None:
        """Close the connections or, where it isn't known how and ``close`` says so, the object."""
        if not self._disconnect() and close:
            self._close()
        self._asked = False

    def _disconnect(self) -> bool:
        """Close the connections; returns whether it is known how."""
        connections = list(_connections(self._store))
        for close in connections:
            with contextlib.suppress(Exception):
                close()
        return bool(connections)

    def _close(self) -> None:
        """Close an unknown object, unless it holds its items itself, as a shelf does."""
        kind = type(self._store)
        if hasattr(kind, "close") and not hasattr(kind, "__getitem__"):
            with contextlib.suppress(Exception):
                self._store.close()


def _is_timeout(error: Exception) -> bool:
    return any("timeout" in kind.lower() for kind in _kinds(error))
