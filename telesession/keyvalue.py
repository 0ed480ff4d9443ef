"""`KeyValueStore`: any mapping, or object with get and set, as a store.

What common clients do wrong, and how to call one object from many threads, is left to `_clients`.
"""

import base64
import contextlib
import inspect
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import cachetools

from telesession import _clients
from telesession._checks import short_repr
from telesession.errors import SessionStoreError
from telesession.stores import Change, Payload, Store, partly_saved

logger = logging.getLogger("telesession")

#: The texts that the object gave for the sessions of a visit, by name.
Found: TypeAlias = dict[str, str | None]


class KeyValueStore(Store):
    """Any object with ``get`` and ``set`` (or ``put``), or any mutable mapping, made a `Store`.

    `with_session` wraps such an object by itself. Wrap it yourself to give it a clock, or to have
    the object itself expire sessions.

    The object gets strings, and may give back `str` or `bytes`. A falsy answer or a `KeyError`
    means "nothing stored". ``delete``, or item deletion, is used where there is one, else an empty
    string is set. An answer of `False` from ``set`` is a failure, and so is one from ``delete`` if
    the session is still there. The object need not be thread-safe: one thread at a time calls it.

    If one of several sessions can't be saved, the sessions before it are restored. If saving a
    single session fails, the object is not asked again, unless it is known to have answered.
    Sessions can be listed in mappings and diskcache.

    After an error, or an exception out of a signal handler, the connections of a Redis or memcached
    client are closed, since an answer may be left unread there; the client opens new ones. For
    other objects with get and set, ``disconnect_all`` is called, or, after such an exception or a
    time-out, ``close``, if the object has such a method.

    JSON text without a ttl is kept as it is. Other payloads have a short head, such as
    ``@<Unix time of expiry>@``, since most such stores know no expiry.

    Caches forget. This is what each drops by default, and how to make it keep everything:

    =====================  =========================================  ==========================
    cache                  forgets                                    keeps all with
    =====================  =========================================  ==========================
    cachelib, each         what has no ttl, after 300 s               ``default_timeout=0``
    ... FileSystemCache    beyond 500 entries                         ``threshold=0``
    ... SimpleCache        beyond 500 entries (also if that is 0)     a large ``threshold``
    diskcache.Cache        beyond 1 GiB                               ``eviction_policy="none"``
    cachetools, each       beyond ``maxsize``; TTLCache and           nothing
                           TLRUCache by their own ttl, too
    memcached              beyond 64 MiB, and when it ends            nothing (``-M``: it refuses)
    Redis                  nothing, unless ``maxmemory-policy`` says  ``noeviction``
    django.core.cache      after 300 s; in memory and in files       ``TIMEOUT=None``,
                           beyond 300 entries                         ``MAX_ENTRIES``
    =====================  =========================================  ==========================

    cachelib.FileSystemCache, with any options, logs a file that it can't read, and says that
    nothing is stored.

    Args:
        store: the object.
        expire: the name of the argument of ``set`` that takes an expiry in seconds, if it has one:
            ``"timeout"`` for cachelib, ``"expire"`` for diskcache. The object then expires
            sessions; without it, expired content stays until the session is next opened.
        clock: the time in seconds since the epoch, as a callable; for tests.

    Raises:
        TypeError: for an object that can't be a store: an asynchronous client, a `dbm` file that
            only one thread can use, or a client that hides failures, so that a stored session
            could seem to be missing. Of memcached's clients that leaves pymemcache's, without
            ``ignore_exc`` and with ``default_noreply=False``; `HashClient` needs
            ``retry_attempts=math.inf, retry_timeout=-math.inf``, too.
    """

    def __init__(
        self, store: Any, *, expire: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        package = type(store).__module__.partition(".")[0]
        if package in _BETTER:
            raise TypeError(
                f"store={type(store).__name__}: wrap it as telesession.{_BETTER[package]}"
            )
        if package in ("redis", "valkey"):
            if hasattr(store, "command_stack"):
                raise TypeError(
                    f"store={type(store).__name__}: it sends its commands later, so its answers "
                    "are no data: give the client that made it"
                )
            logger.warning(
                "store=%s: its sessions are safe for the threads of one process only. "
                "telesession.redis.RedisStore(client) makes them safe for several.",
                type(store).__name__,
            )
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
                    f"store={short_repr(store)} has its items by position, and sessions are "
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
        _clients.check(store, (get, put, delete))
        self.store = store
        self._get, self._put, self._delete = get, put, delete
        # `get` of a cache would mark the item as recently used.
        self._get_unused = partial(_unused, store) if package == "cachetools" else get
        self._sync = _clients.sync(store)
        self._expire = expire
        self._clock = clock
        self._mutex = _lines.setdefault(id(store), _clients.Line(store))

    @property
    def identity(self) -> object:
        return self.store

    def __repr__(self) -> str:
        return f"KeyValueStore({type(self.store).__name__})"

    def open(
        self, names: Sequence[str], timeout: float = 0, lease: Found | None = None
    ) -> tuple[Found, Sequence[Payload | None]]:
        found, payloads = self._mutex.alone(self._load, names)
        if lease is None:
            return found, payloads
        lease.update(found)
        return lease, payloads

    def commit(self, lease: Found, changes: Sequence[Change]) -> None:
        if changes:
            self._mutex.alone(self._carry_out, lease, changes)

    def names(self, prefix: str) -> Iterator[str]:
        kind = type(self.store)
        if not (hasattr(kind, "__iter__") and hasattr(kind, "__getitem__")):
            return super().names(prefix)
        has_keys = hasattr(kind, "keys")  # then it may iterate over something else
        keys: list[Any] = self._mutex.alone(  # dbm has bytes
            lambda: list(self.store.keys() if has_keys else self.store)
        )
        names = (key.decode(errors="replace") if isinstance(key, bytes) else key for key in keys)
        return (
            name
            for name in names
            if isinstance(name, str) and name.startswith(prefix) and self.peek(name) is not None
        )

    def peek(self, name: str) -> Payload | None:
        return self._mutex.alone(self._read, name, self._get_unused)[1]

    def _carry_out(self, found: Found, changes: Sequence[Change]) -> None:
        texts, begun = [], []
        for name, payload, ttl in changes:
            # The text has the expiry, unless the object gets exactly the same one.
            expires = None if ttl is None or self._told(ttl) == ttl else self._clock() + ttl
            texts.append((name, None if payload is None else compose(payload, expires), ttl))
        try:
            for name, text, ttl in texts:
                begun.append((name, found[name], ttl))
                self._write(name, text, ttl)
            self._sync()
        except BaseException as error:
            # A single change can't be half done, so there is nothing to undo. But if memcached
            # answers that a value is too large, it has dropped the earlier value.
            answered = isinstance(error, SessionStoreError) or _clients.answered(error)
            if not begun or (len(changes) == 1 and not answered):
                raise
            *saved, failed = begun
            # only the first error is for the caller
            with contextlib.suppress(Exception):
                while saved:
                    self._write(*saved[-1])
                    saved.pop()
                self._write(*failed)  # last, since this one may fail again
                self._sync()
            if not saved or not isinstance(error, Exception):
                raise
            left = [name for name, _, _ in (*saved, failed)]
            raise partly_saved(self, left, [failed[0]], error) from error

    def _load(self, names: Sequence[str]) -> tuple[Found, list[Payload | None]]:
        found: Found = {}
        payloads: list[Payload | None] = []
        for name in names:
            text, payload = self._read(name, self._get)
            if text is not None and payload is None:
                self._write(name, None)  # expired
                text = None
            found[name] = text
            payloads.append(payload)
        return found, payloads

    def _read(self, name: str, get: Callable[[str], Any]) -> tuple[str | None, Payload | None]:
        """The text that is kept, and its payload, which is `None` if it has expired."""
        try:
            text = self._ask(get, name)
        except KeyError:
            return None, None
        if not text:
            return None, None
        expires, payload = parse(text)
        over = expires is not None and expires <= self._clock()
        return text, None if over else payload

    def refused(self, error: Exception) -> bool:
        return _clients.refused(self.store, error)

    def _write(self, name: str, text: str | None, ttl: float | None = None) -> None:
        """Set a text, or delete it if ``text`` is `None`."""
        if text is None and self._delete is not None:
            with contextlib.suppress(KeyError):
                # Many stores answer False if the key was missing.
                if self._ask(self._delete, name) is False and self._ask(self._get_unused, name):
                    raise self._unsaved(name, "delete")
            return
        told = None if text is None or ttl is None else self._told(ttl)
        options = {self._expire: told} if self._expire and told is not None else {}
        if self._ask(self._put, name, text or "", **options) is False:
            raise self._unsaved(name, "set")

    def _told(self, ttl: float) -> int | None:
        """A ttl as the object takes it; `None` without ``expire``."""
        return _clients.seconds(self.store, ttl, self._clock()) if self._expire else None

    def _unsaved(self, name: str, method: str) -> SessionStoreError:
        return SessionStoreError(
            f"{name!r} was not saved: {type(self.store).__name__}.{method} answered False. "
            "See the store's own log; it may be full, or the value too large for it."
        )

    def _ask(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        answer = self._mutex.ask(call, *args, **options)
        if inspect.isawaitable(answer) or inspect.isasyncgen(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise SessionStoreError(
                f"the store {type(self.store).__name__} is asynchronous: telesession is for "
                "blocking bots, give the blocking client of the same service"
            )
        return answer


def compose(payload: Payload, expires: float | None) -> str:
    """The text to keep for a payload that expires at ``expires``, in seconds since the epoch.

    >>> compose('{"n":1}', None), compose('{"n":1}', 1700000000.5), compose(b"n", None)
    ('{"n":1}', '@1700000000.5@{"n":1}', '@base64@bg==')
    """
    head = [] if expires is None else [repr(expires)]
    if isinstance(payload, bytes):
        payload = base64.b64encode(payload).decode()
        head.append("base64")
    return f"@{' '.join(head)}@{payload}" if head or payload.startswith("@") else payload


def parse(found: Any) -> tuple[float | None, Payload]:
    """Undo `compose`: the expiry and the payload.

    The payload of what telesession can't have written is empty.
    """
    try:
        text: str = found if isinstance(found, str) else found.decode()
        if not text.startswith("@"):
            return None, text
        head, payload = text[1:].split("@", 1)
        words = head.split()
        expires = float(words[0]) if words and words[0] != "base64" else None
        if "base64" in words:
            return expires, base64.b64decode(payload, validate=True)
        return expires, payload
    except (AttributeError, ValueError):
        return None, b""


def payload_of(found: Any) -> Payload | None:
    """The payload of what a store with an expiry of its own has kept, `None` for nothing."""
    return None if found is None else parse(found)[1]


def _unused(cache: "cachetools.Cache[str, Any]", name: str) -> Any:
    return cachetools.Cache.__getitem__(cache, name) if name in cache else None


_BETTER = {"pymongo": "mongo.MongoStore(collection)", "sqlalchemy": "sql.SQLStore(engine)"}


# By the object's `id`, which is valid as long as a wrapper of the object lives.
_lines: "weakref.WeakValueDictionary[int, _clients.Line]" = weakref.WeakValueDictionary()
_wrapped: "weakref.WeakValueDictionary[int, KeyValueStore]" = weakref.WeakValueDictionary()


def as_store(store: Any) -> Store:
    """``store`` itself if it is a `Store`, else the only `KeyValueStore` around it.

    With one wrapper per object, a stack opens all its sessions on that object together.
    """
    if isinstance(store, Store):
        return store
    return _wrapped.setdefault(id(store), KeyValueStore(store))
