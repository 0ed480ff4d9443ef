"""`MemoryStore`: sessions in this process's memory, bounded, each with an expiry of its own."""

import contextlib
import logging
import math
import pickle
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from cachetools import TTLCache

from telesession.codecs import Codec
from telesession.forks import per_process
from telesession.stores import Change, Payload, Store

logger = logging.getLogger("telesession")


class _Entry:
    __slots__ = ("cache", "payload")

    def __init__(self, cache: "_Expiring", payload: Payload) -> None:
        self.cache = cache
        self.payload = payload


class _Expiring(TTLCache[str, _Entry]):
    """A `TTLCache` that tells which keys it dropped because their time was over."""

    def __init__(self, ttl: float, clock: Callable[[], float], forget: Callable[[str], object]):
        super().__init__(math.inf, ttl, clock)
        self._forget = forget

    def expire(self, time: float | None = None) -> Any:
        expired = super().expire(time)
        for name, _ in expired:
            self._forget(name)
        return expired


class MemoryStore(Store):
    """The default store: sessions in this process's memory, as `pickle` made them.

    Each session expires by the ttl of its own declaration: the store has a `cachetools.TTLCache`
    for every distinct ttl. Expired sessions are dropped whenever the store is used.

    Args:
        maxsize: how many sessions are kept at the most. Beyond that the least recently used one
            is dropped; a warning in the log tells of the first.
        clock: the time in seconds, as a callable; for tests.

    >>> store = MemoryStore(maxsize=100_000)
    >>> len(store), "session:42:42" in store
    (0, False)
    """

    codec: Codec = pickle

    def __init__(
        self, maxsize: int = 1_000_000, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not isinstance(maxsize, int) or isinstance(maxsize, bool) or maxsize < 1:
            raise ValueError(f"maxsize={maxsize!r} must be a positive number of sessions")
        self.maxsize = maxsize
        self._clock = clock
        per_process(self, MemoryStore._renew_mutex)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._forever = _Expiring(math.inf, clock, self._entries.pop)
        self._timed: dict[float, _Expiring] = {}  # by ttl; none of them empty
        self._warned = False

    def _renew_mutex(self) -> None:
        self._mutex = threading.Lock()

    def open(self, names: Sequence[str], timeout: float = 0) -> tuple[None, list[Payload | None]]:
        # No mutex here, nor where a payload is exchanged below: each is one operation on an
        # entry that is of no concern to other visits, since this one holds the session's lock.
        if self._timed:
            self._expire()
        payloads: list[Payload | None] = []
        for name in names:
            entry = self._entries.get(name)
            if entry is None:
                payloads.append(None)
                continue
            payloads.append(entry.payload)
            try:
                self._entries.move_to_end(name)
            except KeyError:  # evicted at this very moment
                pass
        return None, payloads

    def commit(self, lease: None, changes: Sequence[Change]) -> None:
        for name, payload, ttl in changes:
            if type(payload) is bytes:
                # What pickle makes lies in a block that is too large for it, and would stay there:
                # a copy takes half of the memory.
                payload = b"%b" % payload
            entry = self._entries.get(name)
            if entry and entry.cache is self._forever and ttl is None and payload is not None:
                entry.payload = payload
                try:
                    self._entries.move_to_end(name)
                except KeyError:
                    pass
            else:
                with self._mutex:
                    self._carry_out(name, payload, ttl)

    def __repr__(self) -> str:
        return f"MemoryStore(maxsize={self.maxsize})"

    def __len__(self) -> int:
        self._expire()
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        self._expire()
        return name in self._entries

    def clear(self) -> None:
        """Forget all sessions."""
        with self._mutex:
            for name, entry in list(self._entries.items()):
                self._drop(name, entry)

    def _cache(self, ttl: float | None) -> _Expiring:
        if ttl is None:
            return self._forever
        if ttl not in self._timed:
            self._timed[ttl] = _Expiring(ttl, self._clock, self._entries.pop)
        return self._timed[ttl]

    def _carry_out(self, name: str, payload: Payload | None, ttl: float | None) -> None:
        entry = self._entries.get(name)
        if payload is None:
            if entry is not None:
                self._drop(name, entry)
            return
        cache = self._cache(ttl)
        if entry is not None and entry.cache is not cache:
            self._drop(name, entry)
        cache[name] = self._entries[name] = _Entry(cache, payload)  # its time counts from now
        self._entries.move_to_end(name)
        if len(self._entries) > self.maxsize:
            self._sweep()
        while len(self._entries) > self.maxsize:
            self._evict()

    def _drop(self, name: str, entry: _Entry) -> None:
        self._entries.pop(name, None)
        with contextlib.suppress(KeyError):  # it may have expired just now
            del entry.cache[name]
        self._tidy(entry.cache)

    def _evict(self) -> None:
        name, entry = self._entries.popitem(last=False)
        self._drop(name, entry)
        if not self._warned:
            self._warned = True
            logger.warning(
                "MemoryStore is full (maxsize=%d): it drops the least recently used sessions "
                "from now on. Give it a larger maxsize, or declare sessions with a ttl.",
                self.maxsize,
            )

    def _expire(self) -> None:
        with self._mutex:
            self._sweep()

    def _sweep(self) -> None:
        for cache in list(self._timed.values()):
            if cache.expire():
                self._tidy(cache)

    def _tidy(self, cache: _Expiring) -> None:
        if not cache:
            self._timed.pop(cache.ttl, None)


#: Where declarations without a store of their own keep their sessions.
default_store = MemoryStore()
