"""`KeyValueStore`: any object with get and set, or any mutable mapping, as a store."""

import base64
import contextlib
import inspect
import os
import shelve
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from telesession.errors import SessionDataError, SessionStoreError
from telesession.forks import per_process
from telesession.stores import Change, Payload, Store


class KeyValueStore(Store):
    """Any object with ``get`` and ``set`` (or ``put``), or any mutable mapping, made a `Store`.

    `with_session` wraps such an object by itself. Wrap it yourself to share a clock with it, or
    to have the object expire sessions on its own.

    The object is handed strings, and may give back `str` or `bytes`. A falsy answer or a
    `KeyError` means "nothing stored". ``delete``, or item deletion, is used where there is one,
    else an empty string is set. An answer of `False` from ``set`` is a failure. The object need
    not be thread-safe: it is called by one thread at a time.

    JSON text is kept as it is. Before anything else, and before text with a ttl, stands a short
    head, ``@<Unix time of expiry>@``, since most such stores know no expiry.

    Args:
        store: the object.
        expire: the name of the argument of ``set`` that takes an expiry in seconds, for stores
            that have one: ``"timeout"`` for cachelib, ``"expire"`` for diskcache. The object
            then expires the session; without it expired content stays until it is next opened.
        clock: the time in seconds since the epoch, as a callable; for tests.
    """

    atomic = False

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
        # else a crash loses what is new; not for others, whose sync may be another thing
        self._sync = store.sync if isinstance(store, shelve.Shelf) else None
        self._expire = expire
        self._clock = clock
        per_process(self, KeyValueStore._renew_mutex)

    def _renew_mutex(self) -> None:
        self._mutex = _mutexes.setdefault((os.getpid(), id(self.store)), threading.Lock())

    @property
    def identity(self) -> object:
        return self.store

    def __repr__(self) -> str:
        return f"KeyValueStore({type(self.store).__name__})"

    def open(
        self, names: Sequence[str], timeout: float = 0
    ) -> tuple[None, Sequence[Payload | None]]:
        with self._mutex:
            return None, [self._load(name) for name in names]

    def commit(self, lease: None, changes: Sequence[Change]) -> None:
        with self._mutex:
            for name, payload, ttl in changes:
                if payload is None:
                    self._remove(name)
                else:
                    self._save(name, payload, ttl)
            if changes and self._sync is not None:
                self._sync()

    def _load(self, name: str) -> Payload | None:
        try:
            text = self._blocking(self._get(name))
        except KeyError:
            return None
        if not text:
            return None
        try:
            expires, payload = parse(text if isinstance(text, str) else text.decode())
        except (AttributeError, ValueError) as error:
            raise SessionDataError(
                f"{name!r} is kept as something that telesession did not write. It is left as "
                "it is; give telesession a store, or a property, of its own."
            ) from error
        if expires is not None and expires <= self._clock():
            self._remove(name)
            return None
        return payload

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


_BETTER = {"pymongo": "mongo.MongoStore(collection)", "sqlalchemy": "sql.SQLStore(engine)"}

# By the identity of the object, which lives as long as a wrapper of it does; one in each process.
_mutexes: "weakref.WeakValueDictionary[tuple[int, int], threading.Lock]"
_mutexes = weakref.WeakValueDictionary()
_wrapped: "weakref.WeakValueDictionary[int, KeyValueStore]" = weakref.WeakValueDictionary()


def as_store(store: Any) -> Store:
    """``store`` itself if it is a `Store`, else the one `KeyValueStore` around it.

    There is only one, so that a stack opens all its sessions on the same object together.
    """
    if isinstance(store, Store):
        return store
    return _wrapped.setdefault(id(store), KeyValueStore(store))
