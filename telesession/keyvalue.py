"""`KeyValueStore`: any object with get and set, or any mutable mapping, as a store."""

import base64
import contextlib
import inspect
import itertools
import logging
import operator
import os
import reprlib
import shelve
import threading
import time
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import cachetools

from telesession._forks import per_process
from telesession.errors import SessionDataError, SessionStoreError
from telesession.stores import Change, Payload, Store

logger = logging.getLogger("telesession")

Result = TypeVar("Result")

#: What the object gave for the sessions of a visit, by name.
Found: TypeAlias = dict[str, str | None]


class KeyValueStore(Store):
    """Any object with ``get`` and ``set`` (or ``put``), or any mutable mapping, made a `Store`.

    `with_session` wraps such an object by itself. Wrap it yourself to share a clock with it, or
    to have the object expire sessions on its own.

    The object is handed strings, and may give back `str` or `bytes`. A falsy answer or a
    `KeyError` means "nothing stored". ``delete``, or item deletion, is used where there is one,
    else an empty string is set. An answer of `False` from ``set`` is a failure. The object need
    not be thread-safe: it is called by one thread at a time.

    Where several sessions are saved and one of them fails, those before it are put back. The names
    of the sessions are listed for mappings and diskcache.

    JSON text is kept as it is. Before anything else, and before text with a ttl, stands a short
    head, ``@<Unix time of expiry>@``, since most such stores know no expiry.

    Args:
        store: the object.
        expire: the name of the argument of ``set`` that takes an expiry in seconds, for stores
            that have one: ``"timeout"`` for cachelib, ``"expire"`` for diskcache. The object
            then expires the session; without it expired content stays until it is next opened.
        clock: the time in seconds since the epoch, as a callable; for tests.
    """

    def __init__(
        self, store: Any, *, expire: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        better = _BETTER.get(type(store).__module__.partition(".")[0])
        if better is not None:
            raise TypeError(f"store={type(store).__name__}: wrap it as telesession.{better}")
        put = getattr(store, "set", None) or getattr(store, "put", None)
        get = getattr(store, "get", None)
        if isinstance(store, type):
            raise TypeError(f"store={store.__name__} is a class: give an instance of it")
        if callable(get) and callable(put):
            delete = getattr(store, "delete", None) or getattr(store, "__delitem__", None)
        elif hasattr(store, "__getitem__") and hasattr(store, "__setitem__"):
            if isinstance(store, Sequence) or (
                hasattr(store, "append") and not hasattr(store, "keys")
            ):
                raise TypeError(
                    f"store={reprlib.repr(store)} has its items by position, and sessions are "
                    "kept by name: give a mapping such as {}, or an object with get(key) and "
                    "set(key, value)"
                )
            get, put = get or store.__getitem__, store.__setitem__
            delete = getattr(store, "__delitem__", None)
            if expire is not None:
                raise TypeError(f"expire={expire!r}: {store!r} has no set that could take it")
        else:
            raise TypeError(
                f"store={store!r} has neither get and set (or put) nor item access: give a "
                "telesession store, a mapping such as {}, or an object with get(key) and "
                "set(key, value)"
            )
        calls = get, put, getattr(type(store), "execute_command", None)  # that of Redis' clients
        if any(map(inspect.iscoroutinefunction, calls)):
            raise TypeError(
                f"store={type(store).__name__} is asynchronous: telesession is for blocking bots, "
                "give the blocking client of the same service"
            )
        self.store = store
        self._get, self._put, self._delete = get, put, delete
        # Reading an item of a cache would make it the last used.
        cache = type(store).__module__.partition(".")[0] == "cachetools"
        self._get_unused = partial(_unused, store) if cache else get
        # else a crash loses what is new; not for others, whose sync may be another thing
        self._sync = store.sync if isinstance(store, shelve.Shelf) else None
        self._expire = expire
        self._clock = clock
        per_process(self, KeyValueStore._renew_mutex)

    def _renew_mutex(self) -> None:
        self._mutexes = _by_object.setdefault((os.getpid(), id(self.store)), _Mutexes())

    @property
    def identity(self) -> object:
        return self.store

    def __repr__(self) -> str:
        return f"KeyValueStore({type(self.store).__name__})"

    def open(
        self, names: Sequence[str], timeout: float = 0, lease: Found | None = None
    ) -> tuple[Found, Sequence[Payload | None]]:
        found, payloads = self._alone(self._load, names)
        if lease is None:
            return found, payloads
        lease.update(found)
        return lease, payloads

    def commit(self, lease: Found, changes: Sequence[Change]) -> None:
        if changes:
            self._alone(self._carry_out, lease, changes)

    def names(self, prefix: str) -> Iterator[str]:
        kind = type(self.store)
        mapping = isinstance(self.store, Mapping)
        keys: Iterator[Any]
        if kind in _DICTS:
            keys = _parts(self.store)
        elif isinstance(self.store, shelve.Shelf):  # which makes a copy of each key
            keys = _parts(self.store, self._alone)
        elif hasattr(kind, "iterkeys") and not mapping:  # diskcache: page by page, in order
            keys = self._chunks(self.store.iterkeys())
        elif mapping or (hasattr(kind, "__iter__") and hasattr(kind, "__getitem__")):
            keys = iter(self._alone(list, self.store))
        else:
            return super().names(prefix)
        return self._stored(prefix, keys)

    def peek(self, name: str) -> Payload | None:
        return self._alone(self._look, name)[1]

    def _alone(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do ``work``, which calls the object, while no other thread does."""
        mutex = self._mutexes.current()
        try:
            with mutex:
                return work(*args)
        except BaseException:
            # It may have come after the block, just before that let go of the mutex.
            with contextlib.suppress(RuntimeError):
                mutex.release()
            raise

    def _carry_out(self, found: Found, changes: Sequence[Change]) -> None:
        begun: list[Change] = []
        try:
            for change in changes:
                begun.append(change)
                name, payload, ttl = change
                if payload is None:
                    self._remove(name)
                else:
                    self._save(name, payload, ttl)
            if self._sync is not None:
                self._sync()
        except BaseException as error:
            # A single change can't be half done, and a store that fails isn't asked again for it.
            saved = self._take_back(found, begun) if begun and len(changes) > 1 else []
            if not saved:
                raise
            last = begun[-1][0]
            message = (
                f"{self!r} failed with {type(error).__name__} to save {last!r}, and then to take "
                f"back what it had saved. {', '.join(map(repr, saved))}: saved. {last!r}: perhaps "
                "saved. The other sessions of the update were not saved."
            )
            if not isinstance(error, Exception):
                logger.warning("%s", message)
                raise
            raise SessionStoreError(message) from error

    def _take_back(self, found: Found, begun: Sequence[Change]) -> list[str]:
        """Put back what was found; the names of the saved sessions for which that failed, too.

        The last of ``begun`` is the one that failed. It may have been saved nevertheless, and
        comes last, since there may be something wrong with it alone.
        """
        *left, last = begun
        try:
            while left:
                self._put_back(found, left[-1])
                left.pop()
            self._put_back(found, last)
            if self._sync is not None:
                self._sync()
        except Exception:  # the client's own error, if any, is on its way to the caller
            pass
        return [name for name, _, _ in left]

    def _put_back(self, found: Found, change: Change) -> None:
        name, _, ttl = change
        text = found[name]
        if text is None:
            self._remove(name)
        elif ttl is None:
            self._check(name, self._put(name, text))
        else:
            self._save(name, parse(text)[1], ttl)

    def _load(self, names: Sequence[str]) -> tuple[Found, list[Payload | None]]:
        found: Found = {}
        payloads: list[Payload | None] = []
        for name in names:
            text, payload = self._read(name, self._get)
            if text is not None and payload is None:
                self._remove(name)  # it has expired
                text = None
            found[name] = text
            payloads.append(payload)
        return found, payloads

    def _look(self, name: str) -> tuple[str | None, Payload | None]:
        return self._read(name, self._get_unused)

    def _read(self, name: str, get: Callable[[str], Any]) -> tuple[str | None, Payload | None]:
        """The text that is kept, and the payload in it, `None` if that has expired."""
        try:
            text = self._blocking(get(name))
        except KeyError:
            return None, None
        if not text:
            return None, None
        try:
            text = text if isinstance(text, str) else text.decode()
            expires, payload = parse(text)
        except (AttributeError, ValueError) as error:
            raise SessionDataError(
                f"{name!r} is kept as something that telesession did not write. It is left as "
                "it is; give telesession a store, or a property, of its own."
            ) from error
        over = expires is not None and expires <= self._clock()
        return text, None if over else payload

    def _stored(self, prefix: str, keys: Iterator[Any]) -> Iterator[str]:
        """Those of ``keys`` that begin with ``prefix`` and are the name of a session."""
        for key in keys:
            name = key.decode(errors="replace") if isinstance(key, bytes) else key  # as dbm's are
            if isinstance(name, str) and name.startswith(prefix):
                try:
                    stored = self.peek(name) is not None
                except SessionDataError:  # it can be removed, at least
                    stored = True
                if stored:
                    yield name

    def _chunks(self, keys: Iterator[Any]) -> Iterator[Any]:
        chunk: list[Any]
        while chunk := self._alone(list, itertools.islice(keys, 100)):
            yield from chunk

    def _save(self, name: str, payload: Payload, ttl: float | None) -> None:
        if ttl is not None and self._expire:
            seconds = int(ttl) if ttl == int(ttl) else ttl  # some take whole seconds only
            answer = self._put(name, compose(payload, None), **{self._expire: seconds})
        else:
            expires = None if ttl is None else self._clock() + ttl
            answer = self._put(name, compose(payload, expires))
        self._check(name, answer)

    def _remove(self, name: str) -> None:
        if self._delete is None:
            self._check(name, self._put(name, ""))
        else:
            with contextlib.suppress(KeyError):
                self._blocking(self._delete(name))

    def _check(self, name: str, answer: Any) -> None:
        if self._blocking(answer) is False:
            raise SessionStoreError(
                f"{name!r} was not saved: {type(self.store).__name__}.set answered False. "
                "See the store's own log; it may be full, or the value too large for it."
            )

    def _blocking(self, answer: Any) -> Any:
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise SessionStoreError(
                f"the store {type(self.store).__name__} is asynchronous: telesession is for "
                "blocking bots, give the blocking client of the same service"
            )
        return answer


def compose(payload: Payload, expires: float | None) -> str:
    """The text that is kept for a payload that expires at ``expires``, in seconds since the epoch.

    >>> compose('{"n":1}', None), compose('{"n":1}', 1700000000.5), compose(b"n", None)
    ('{"n":1}', '@1700000000.5@{"n":1}', '@base64@bg==')
    """
    head = [] if expires is None else [repr(expires)]
    if isinstance(payload, bytes):
        payload = base64.b64encode(payload).decode()
        head.append("base64")
    return f"@{' '.join(head)}@{payload}" if head or payload.startswith("@") else payload


def parse(text: str) -> tuple[float | None, Payload]:
    """Undo `compose`: when it expires, and the payload. Raises `ValueError` on anything else."""
    if not text.startswith("@"):
        return None, text
    head, payload = text[1:].split("@", 1)
    words = head.split()
    expires = float(words[0]) if words and words[0] != "base64" else None
    if "base64" in words:
        return expires, base64.b64decode(payload, validate=True)
    return expires, payload


def _unused(cache: "cachetools.Cache[str, Any]", name: str) -> Any:
    return cachetools.Cache.__getitem__(cache, name) if name in cache else None


def _parts(
    mapping: Any, call: Callable[..., list[Any]] = lambda work, *args: work(*args)
) -> Iterator[Any]:
    """The keys of a mapping, in parts that depend on the keys alone.

    So a key that is there all the while comes once, however others come and go between.
    """
    count = len(mapping) // 8192 + 1
    for number in range(count):
        yield from call(_part, mapping, number, count)


def _part(mapping: Any, number: int, count: int) -> list[Any]:
    # All in C, so that other threads don't change a dict meanwhile.
    keys, again = itertools.tee(mapping)
    numbers = map(operator.mod, map(hash, again), itertools.repeat(count))
    mine = map(operator.eq, numbers, itertools.repeat(number))
    return list(itertools.compress(keys, mine))


_DICTS = (dict, OrderedDict, defaultdict)

_BETTER = {"pymongo": "mongo.MongoStore(collection)", "sqlalchemy": "sql.SQLStore(engine)"}


class _Mutexes:
    """Those of one object, with which it is called by one thread at a time.

    Where gevent replaced what `threading` has after the last use, there is a new one: while a
    greenlet has the old one, no other can wait for it without blocking all of them.
    """

    def __init__(self) -> None:
        self._by_kind: dict[Any, Any] = {}

    def current(self) -> Any:
        kind = threading.Lock  # it is replaced by gevent, and RLock uses what replaces it
        mutex = self._by_kind.get(kind)
        return mutex or self._by_kind.setdefault(kind, threading.RLock())


# By the identity of the object, which lives as long as a wrapper of it does; those of a forked
# child are its own.
_by_object: "weakref.WeakValueDictionary[tuple[int, int], _Mutexes]" = weakref.WeakValueDictionary()
_wrapped: "weakref.WeakValueDictionary[int, KeyValueStore]" = weakref.WeakValueDictionary()


def as_store(store: Any) -> Store:
    """``store`` itself if it is a `Store`, else the one `KeyValueStore` around it.

    There is only one, so that a stack opens all its sessions on the same object together.
    """
    if isinstance(store, Store):
        return store
    return _wrapped.setdefault(id(store), KeyValueStore(store))
