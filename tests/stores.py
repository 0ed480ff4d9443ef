"""The stores that run the contract suite, and what the suite has to know of each.

A further store joins the suite by an entry in `BACKENDS`: for a `telesession.Store`, such as one
that leases, a `StoreBackend` around it will do, and fixtures for its server go to ``conftest.py``.
"""

import dbm.dumb
import json
import shelve
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import cachetools
import pytest
import telebot
from telebot import types

from telesession import JSON, KeyValueStore, MemoryStore, SessionLost, Store, with_session
from telesession.stores import Change, Payload
from tests.updates import OTHER, PRIVATE, UPDATES, USER, make

TIMEOUT = 30  # seconds, a guard against tests that hang: none comes near it

NAME = "session:42:42"  #: where the session of `message()` is kept


# Updates and visits


def payload(user: int = 42, text: str = "hello") -> dict[str, Any]:
    """A message of a user in the private chat with the bot, as Telegram sends it."""
    sender = {**(USER if user == 42 else OTHER), "id": user}
    return {**UPDATES["message"], "from": sender, "chat": {**PRIVATE, "id": user}, "text": text}


def message(user: int = 42) -> Any:
    """The same as a handler gets it."""
    return make("message", payload(user))


def visit(body: Callable[[Any], Any], **options: Any) -> Any:
    """Handle one message with ``body``, under ``with_session(**options)``."""

    @with_session(**options)
    def handler(message: Any) -> Any:
        return body(message)

    return handler(message())


def put(content: dict[str, Any], **options: Any) -> None:
    """Have a handler save ``content``."""

    def body(message: Any) -> None:
        message.session = content

    visit(body, **options)


def found(**options: Any) -> dict[str, Any]:
    """What a handler finds in its session."""
    return visit(lambda message: dict(message.session), **options)


class Clock:
    """A clock that only the test moves."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        self.advanced: Callable[[float], object] = lambda seconds: None

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.advanced(seconds)


class Bot:
    """A real `telebot.TeleBot` with worker threads, fed with messages instead of polling.

    ::

        bot = Bot(threads=2)

        @bot.handler
        @with_session()
        def count(message): ...

        bot.run([payload(text="count")] * 200)
    """

    def __init__(self, threads: int, backend: "Backend | None" = None, **options: Any) -> None:
        self.errors: list[Exception] = []
        self._backend = backend
        self._bot = telebot.TeleBot(
            "42:test", threaded=True, num_threads=threads, exception_handler=self, **options
        )

    def handler(self, handler: Any) -> Any:
        """Register a handler for the messages whose text is its name."""
        name = handler.__name__
        self._bot.message_handler(func=lambda message: message.text == name)(handler)
        return handler

    def any_handler(self, handler: Any) -> Any:
        """Register a handler for all messages."""
        self._bot.message_handler(func=lambda message: True)(handler)
        return handler

    def handle(self, exception: Exception) -> bool:
        """What pyTelegramBotAPI calls for a handler that raised."""
        self.errors.append(exception)
        return True

    def feed(self, payloads: Sequence[dict[str, Any]]) -> None:
        """Give these messages to the threads."""
        self._bot.process_new_updates(
            [
                types.Update.de_json(json.dumps({"update_id": number, "message": each}))
                for number, each in enumerate(payloads)
            ]
        )

    def run(
        self, payloads: Sequence[dict[str, Any]], then: Callable[[], object] = lambda: None
    ) -> None:
        """Handle these messages on all threads; return when the last handler has.

        The first worker that finds no message left calls ``then``.
        """
        self.feed(payloads)
        self._bot.worker_pool.put(then)
        # The queue is first in, first out: each worker finds its task to stop behind all others.
        pool = self._bot.worker_pool
        for _ in range(pool.num_threads):
            pool.put(self._stop_worker)
        deadline = time.monotonic() + TIMEOUT
        while any(worker.is_alive() for worker in pool.workers):
            assert time.monotonic() < deadline, "a handler hangs"
            time.sleep(0.001)

    def _stop_worker(self) -> None:
        worker: Any = threading.current_thread()
        if (
            type(worker) is not telebot.util.WorkerThread
        ):  # it stands in for another, and ends itself
            self._bot.worker_pool.put(self._stop_worker)
            time.sleep(0.001)
            return
        if self._backend:
            self._backend.leave_thread()
        worker.stop()


# Stores that are watched, and fail on demand


class Watch:
    """What is asked of a store, and what of it shall fail. Its `store` is for `with_session`."""

    store: Any

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []  #: ("get" or "set" or "delete", name)
        self._faults: dict[str, tuple[BaseException, int | None]] = {}

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [call for call in self.calls if call[0] != "get"]

    def fail(self, operation: str, error: BaseException, *, on: int | None = None) -> None:
        """Have calls of ``operation`` fail from now on, or only the one of that number."""
        self._faults[operation] = error, on

    def heal(self) -> None:
        self._faults.clear()

    def note(self, operation: str, name: str) -> None:
        self.calls.append((operation, name))
        if operation in self._faults:
            error, on = self._faults[operation]
            if on is not None:
                self._faults[operation] = error, on - 1
            if on in (None, 1):
                raise error


OPERATIONS = {
    "get": "get",
    "set": "set",
    "delete": "delete",
    "__getitem__": "get",
    "__setitem__": "set",
    "__delitem__": "delete",
}


class WatchedClient(Watch):
    """Stands for a client with get and set, or a mapping."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        self.client = client
        self.store = self

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self.client, attribute)
        if attribute not in OPERATIONS:
            return value

        def call(name: str, *args: Any, **kwargs: Any) -> Any:
            self.note(OPERATIONS[attribute], name)
            return value(name, *args, **kwargs)

        return call


class WatchedStore(Watch, Store):
    """Stands for a `Store`. What fails is not written, and is no longer leased."""

    def __init__(self, inner: Store) -> None:
        super().__init__()
        self.inner = inner
        self.codec = inner.codec
        self.store = self

    def open(
        self, names: Sequence[str], timeout: float, lease: Any = None
    ) -> tuple[Any, Sequence[Payload | None]]:
        for name in names:
            self.note("get", name)
        return self.inner.open(names, timeout, lease)

    def commit(self, lease: Any, changes: Sequence[Change]) -> None:
        try:
            for name, payload, _ in changes:
                self.note("delete" if payload is None else "set", name)
        except BaseException:
            self.inner.commit(lease, ())
            raise
        self.inner.commit(lease, changes)

    def names(self, prefix: str) -> Iterator[str]:
        return self.inner.names(prefix)

    def peek(self, name: str) -> Payload | None:
        self.note("peek", name)
        return self.inner.peek(name)


# Stores of the tests' own


class GetSet:
    """The least that a store can be: get and set, and no way to delete."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self.kept.get(key)

    def set(self, key: str, value: str) -> None:
        self.kept[key] = value


class Leasing(Store):
    """What a store that leases does, in memory, and strict about how it is called."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.kept: dict[str, tuple[Payload, float | None]] = {}
        self.leases: dict[object, Sequence[str]] = {}
        self._clock = clock
        self._mutex = threading.Lock()

    def open(
        self, names: Sequence[str], timeout: float, lease: Any = None
    ) -> tuple[Any, Sequence[Payload | None]]:
        with self._mutex:
            leased = {name for each in self.leases.values() for name in each}
            assert names, "opened without names"
            assert leased.isdisjoint(names), "opened twice at once"
            if lease is None:
                lease = object()
            else:
                assert lease in self.leases, "added to what was let go of"
            self.leases[lease] = (*self.leases.get(lease, ()), *names)
            return lease, [self._read(name) for name in names]

    def commit(self, lease: Any, changes: Sequence[Change]) -> None:
        with self._mutex:
            names = self.leases.pop(lease, ())
            for name, payload, ttl in changes:
                if name not in names:
                    raise SessionLost(f"{name!r} is not leased")
                if payload is None:
                    self.kept.pop(name, None)
                else:
                    self.kept[name] = payload, None if ttl is None else self._clock() + ttl

    def _read(self, name: str) -> Payload | None:
        payload, expires = self.kept.get(name, (None, None))
        if expires is not None and expires <= self._clock():
            del self.kept[name]
            return None
        return payload


# What the suite has to know of each


class Backend(ABC):
    """A store as the contract suite sees it."""

    store: Any  #: what goes to ``with_session(store=...)``
    default_codec: Any = JSON
    leases = False  #: whether it lets only those write who opened the session and not committed

    @abstractmethod
    def timed(self, clock: Clock) -> Any:
        """The store with a clock of the test's; skips where the time is not the test's to set."""

    @abstractmethod
    def watched(self) -> Watch:
        """The store behind a `Watch`."""

    @abstractmethod
    def raw(self, name: str) -> Any:
        """What is stored under ``name``, without regard to any expiry; None where nothing is."""

    @abstractmethod
    def plant(self, name: str, value: str | bytes) -> None:
        """Store something as somebody else would."""

    def leave_thread(self) -> None:  # noqa: B027
        """Let go of what the store keeps for the current thread, which is about to end."""

    def check_idle(self) -> None:  # noqa: B027
        """Assert that nothing is held for any session, now that no handler runs."""


class KeyValueBackend(Backend):
    """Any object with get and set, or a mapping."""

    def __init__(self, store: Any, leave_thread: Callable[[], object] = lambda: None) -> None:
        self.store = store
        self._leave_thread = leave_thread

    def timed(self, clock: Clock) -> Any:
        return KeyValueStore(self.store, clock=clock)

    def watched(self) -> Watch:
        return WatchedClient(self.store)

    def raw(self, name: str) -> Any:
        return self.store.get(name) or None

    def plant(self, name: str, value: str | bytes) -> None:
        if hasattr(self.store, "set"):
            self.store.set(name, value)
        else:
            self.store[name] = value

    def leave_thread(self) -> None:
        self._leave_thread()


class StoreBackend(Backend):
    """A `telesession.Store`.

    Args:
        store: the store.
        timed: makes the same store with a clock, where that can be.
        leased: the sessions that it has leased just now.
    """

    def __init__(
        self,
        store: Store,
        timed: Callable[[Clock], Store] | None = None,
        leased: Callable[[], Any] | None = None,
    ) -> None:
        self.store = self._current = store
        self.default_codec = store.codec
        self.leases = leased is not None
        self._timed = timed
        self._leased = leased or (lambda: None)

    def timed(self, clock: Clock) -> Any:
        if self._timed is None:
            pytest.skip("the clock of this store is not the test's to set")
        self._current = self._timed(clock)
        return self._current

    def watched(self) -> Watch:
        return WatchedStore(self.store)

    def raw(self, name: str) -> Any:
        lease, (payload,) = self._current.open([name], TIMEOUT)
        self._current.commit(lease, ())
        return payload

    def plant(self, name: str, value: str | bytes) -> None:
        lease, _ = self._current.open([name], TIMEOUT)
        self._current.commit(lease, [(name, value, None)])

    def check_idle(self) -> None:
        assert not self._leased(), "a session is still leased"


class LeasingBackend(StoreBackend):
    """A store whose server has a clock of its own, which can't be moved.

    Instead of the clock, a test's `Clock` moves the times at which what is stored expires.

    Args:
        store: the store.
        age: makes everything that is stored so many seconds older.
        leased: what is leased just now.
    """

    def __init__(
        self, store: Store, age: Callable[[float], object], leased: Callable[[], Any]
    ) -> None:
        super().__init__(store, leased=leased)
        self._age = age

    def timed(self, clock: Clock) -> Any:
        clock.advanced = self._age
        return self.store


Opened = Iterator[Backend]


@contextmanager
def _memory(request: pytest.FixtureRequest) -> Opened:
    yield StoreBackend(MemoryStore(), lambda clock: MemoryStore(clock=clock))


@contextmanager
def _leasing(request: pytest.FixtureRequest) -> Opened:
    store = Leasing()
    yield StoreBackend(store, lambda clock: Leasing(clock), lambda: store.leases)


@contextmanager
def _dict(request: pytest.FixtureRequest) -> Opened:
    yield KeyValueBackend({})


@contextmanager
def _get_set(request: pytest.FixtureRequest) -> Opened:
    yield KeyValueBackend(GetSet())


@contextmanager
def _ttl_cache(request: pytest.FixtureRequest) -> Opened:
    yield KeyValueBackend(cachetools.TTLCache(maxsize=100, ttl=3600))


@contextmanager
def _lru_cache(request: pytest.FixtureRequest) -> Opened:
    yield KeyValueBackend(cachetools.LRUCache(maxsize=100))


@contextmanager
def _shelve(request: pytest.FixtureRequest) -> Opened:
    # Not shelve.open(), which may choose dbm.sqlite3: that is for one thread only.
    path = request.getfixturevalue("tmp_path") / "shelf"
    with shelve.Shelf(dbm.dumb.open(str(path))) as shelf:
        yield KeyValueBackend(shelf)


@contextmanager
def _diskcache(request: pytest.FixtureRequest) -> Opened:
    import diskcache

    with diskcache.Cache(str(request.getfixturevalue("tmp_path"))) as cache:
        yield KeyValueBackend(cache, leave_thread=cache.close)


@contextmanager
def _cachelib(request: pytest.FixtureRequest) -> Opened:
    from cachelib import FileSystemCache

    path = request.getfixturevalue("tmp_path")
    yield KeyValueBackend(FileSystemCache(str(path), threshold=0, default_timeout=0))


@contextmanager
def _redis(request: pytest.FixtureRequest) -> Opened:
    yield KeyValueBackend(request.getfixturevalue("valkey"))


def _on_redis(client: Any) -> Backend:
    """The same for a single server and a cluster."""
    from telesession.redis import RedisStore

    def age(seconds: float) -> None:
        for key in client.scan_iter():
            left = client.pttl(key)
            if left > 0 and not key.endswith(b":lease"):
                client.pexpire(key, max(0, left - round(seconds * 1000)))

    return LeasingBackend(RedisStore(client), age, lambda: list(client.scan_iter("*:lease")))


@contextmanager
def _redis_store(request: pytest.FixtureRequest) -> Opened:
    yield _on_redis(request.getfixturevalue("valkey"))


@contextmanager
def _redis_cluster(request: pytest.FixtureRequest) -> Opened:
    yield _on_redis(request.getfixturevalue("valkey_cluster"))


def _on_sql(engine: Any) -> Backend:
    import sqlalchemy as sa

    from telesession.sql import SQLStore

    store = SQLStore(engine)
    t = store.table.c

    def age(seconds: float) -> None:
        with engine.begin() as connection:
            connection.execute(sa.update(store.table).values(expires=t.expires - seconds))

    def leased() -> Any:
        with engine.begin() as connection:
            return connection.execute(sa.select(t.name).where(t.leased_until.is_not(None))).all()

    return LeasingBackend(store, age, leased)


@contextmanager
def _sqlite(request: pytest.FixtureRequest) -> Opened:
    yield _on_sql(request.getfixturevalue("sqlite"))


@contextmanager
def _postgres(request: pytest.FixtureRequest) -> Opened:
    yield _on_sql(request.getfixturevalue("postgres"))


@contextmanager
def _mariadb(request: pytest.FixtureRequest) -> Opened:
    yield _on_sql(request.getfixturevalue("mariadb"))


@contextmanager
def _mongo(request: pytest.FixtureRequest) -> Opened:
    from telesession.mongo import MongoStore

    collection = request.getfixturevalue("mongo")

    def age(seconds: float) -> None:
        for found in collection.find({"expires": {"$exists": True}}):
            # a lease that is renewed keeps its document from the server's removal
            fields = ["expires"] if "lease" in found else ["expires", "delete_at"]
            times = {field: found[field] - timedelta(seconds=seconds) for field in fields}
            collection.update_one({"_id": found["_id"]}, {"$set": times})

    yield LeasingBackend(
        MongoStore(collection), age, lambda: list(collection.find({"lease": {"$exists": True}}))
    )


@contextmanager
def _memcached(request: pytest.FixtureRequest) -> Opened:
    yield KeyValueBackend(request.getfixturevalue("memcached"))


BACKENDS: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[Backend]]] = {
    "memory": _memory,
    "leasing": _leasing,
    "dict": _dict,
    "get-set": _get_set,
    "ttl-cache": _ttl_cache,
    "lru-cache": _lru_cache,
    "shelve": _shelve,
    "diskcache": _diskcache,
    "cachelib": _cachelib,
    "redis": _redis,
    "memcached": _memcached,
    "redis-store": _redis_store,
    "redis-cluster": _redis_cluster,
    "sqlite": _sqlite,
    "postgres": _postgres,
    "mariadb": _mariadb,
    "mongo": _mongo,
}
