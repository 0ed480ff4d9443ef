"""`MemoryStore`: sessions in this process's memory, bounded, each with an expiry of its own."""

import contextlib
import logging
import math
import pickle
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from cachetools import TTLCache

from telesession._forks import per_process
from telesession.codecs import Codec
from telesession.stores import Change, Payload, Store

logger = logging.getLogger("telesession")

Result = TypeVar("Result")

_PAGES = 1024  #: so many parts `names` takes the sessions in
_NEVER = math.inf
_UNKNOWN = -math.inf  #: when the first session expires, while the caches are made anew


class _Entry:
    __slots__ = ("payload", "saved", "ttl")

    def __init__(self, payload: Payload, saved: float, ttl: float | None) -> None:
        self.payload = payload
        self.saved = saved  #: when its time began, if it has a ttl
        self.ttl = ttl


class _Moment(float):
    """A time for `TTLCache.expire`, which remembers when the first that it leaves expires."""

    first = math.inf

    def __lt__(self, expires: float) -> bool:
        self.first = expires
        return super().__lt__(expires)


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

    # `_entries` is what counts: each is replaced, removed or changed in one step, and whenever an
    # exception, such as one out of a signal handler, comes between such a step and what follows
    # from it in the caches and pages, these are made anew from the entries.

    def __init__(
        self, maxsize: int = 1_000_000, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not isinstance(maxsize, int) or isinstance(maxsize, bool) or maxsize < 1:
            raise ValueError(f"maxsize={maxsize!r} must be a positive number of sessions")
        self.maxsize = maxsize
        self._clock = clock
        self._now = [clock()]  # the time in the caches: it stands still while one is changed
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._due = _UNKNOWN  # nothing expires before
        self._last: str | None = None  # the name that was moved to the end of them
        self._full = self._warned = False
        self._rebuild()
        self._mutex = threading.RLock()
        per_process(self, MemoryStore._renew_mutex)

    def _renew_mutex(self) -> None:
        torn = not self._mutex.acquire(blocking=False)  # by a thread that isn't in this process
        self._mutex = threading.RLock()
        if torn:
            self._rebuild()

    def open(
        self, names: Sequence[str], timeout: float = 0, lease: None = None
    ) -> tuple[None, list[Payload | None]]:
        # No mutex here, nor where a payload is exchanged below: each is one operation on an
        # entry that is of no concern to other visits, since this one holds the session's lock.
        if self._due < _NEVER and self._clock() >= self._due:
            self._alone(self._sweep)
        entries = self._entries
        payloads: list[Payload | None] = []
        for name in names:
            entry = entries.get(name)
            if entry is None:
                payloads.append(None)
                continue
            payloads.append(entry.payload)
            try:
                entries.move_to_end(name)
                self._last = name
            except KeyError:  # evicted at this very moment
                pass
        return None, payloads

    def commit(self, lease: None, changes: Sequence[Change]) -> None:
        if len(changes) == 1:
            ((name, payload, ttl),) = changes
            entry = self._entries.get(name)
            if entry is not None and payload is not None and entry.ttl == ttl:
                if ttl is None:
                    entry.payload = b"%b" % payload if type(payload) is bytes else payload
                    if name is self._last:
                        return
                    try:
                        self._entries.move_to_end(name)
                        self._last = name
                        return
                    except KeyError:  # evicted at this very moment
                        pass
                else:
                    try:
                        self._mutex.acquire()
                        now = self._now[0] = self._clock()
                        there = now < self._due and self._entries.get(name) is entry
                        if there:
                            self._timed[ttl][name] = entry  # its time counts from now
                            if type(payload) is bytes:
                                payload = b"%b" % payload
                            entry.payload, entry.saved = payload, now
                            if name is not self._last:
                                self._entries.move_to_end(name)
                                self._last = name
                        self._mutex.release()
                    except BaseException:
                        self._recover()
                        raise
                    if there:
                        return
        if changes:
            self._alone(self._carry_out, changes)
            self._warn()

    def names(self, prefix: str) -> Iterator[str]:
        # By pages, since the entries change places whenever they are used.
        self._expire()
        for number in list(self._pages):
            for name in list(self._pages.get(number, ())):
                if name.startswith(prefix) and name in self:
                    yield name

    def peek(self, name: str) -> Payload | None:
        self._expire()
        entry = self._entries.get(name)
        return None if entry is None else entry.payload

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
        self._alone(self._forget_all)

    def _alone(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do ``work``, which changes caches, while no other thread does."""
        try:
            self._mutex.acquire()
            result = work(*args)
            self._mutex.release()
        except BaseException:
            self._recover()
            raise
        return result

    def _recover(self) -> None:
        """After an exception at any line between `acquire` and `release`, or just beside them."""
        try:
            with self._mutex:
                self._rebuild()
        finally:
            with contextlib.suppress(RuntimeError):  # it wasn't held
                self._mutex.release()

    def _carry_out(self, changes: Sequence[Change]) -> None:
        self._sweep()
        before = []
        try:
            for name, payload, ttl in changes:
                entry = self._entries.get(name)
                before.append((name, entry))
                if entry is not None and (payload is None or entry.ttl != ttl):
                    del self._entries[name]
                    self._displace(name, entry)
                if payload is not None:
                    if type(payload) is bytes:
                        payload = b"%b" % payload
                    entry = _Entry(payload, 0.0 if ttl is None else self._now[0], ttl)
                    self._entries[name] = entry
                    self._entries.move_to_end(name)
                    self._last = name
                    self._place(name, entry)
        except BaseException:
            for name, entry in reversed(before):
                if entry is None:
                    self._entries.pop(name, None)
                else:
                    self._entries[name] = entry
            raise
        while len(self._entries) > self.maxsize:
            self._full = True
            self._last = None
            self._displace(*self._entries.popitem(last=False))

    def _forget_all(self) -> None:
        self._entries.clear()
        self._rebuild()

    def _expire(self) -> None:
        if self._due < _NEVER and self._clock() >= self._due:
            self._alone(self._sweep)

    def _sweep(self) -> None:
        now = self._now[0] = self._clock()
        if now < self._due:
            return
        if self._due == _UNKNOWN:
            self._rebuild()
        due = _NEVER
        for cache in list(self._timed.values()):
            moment = _Moment(now)
            for name, _ in cache.expire(moment):
                del self._entries[name]
                del self._page(name)[name]
            if cache:
                due = min(due, moment.first)
            else:
                del self._timed[cache.ttl]
        self._due = due

    def _place(self, name: str, entry: _Entry) -> None:
        """Put an entry where it belongs but among the entries."""
        if entry.ttl is None:
            cache = self._forever
        else:
            if entry.ttl not in self._timed:
                self._timed[entry.ttl] = self._cache(entry.ttl)
            cache = self._timed[entry.ttl]
            if entry.saved + entry.ttl < self._due:
                self._due = entry.saved + entry.ttl
        cache[name] = entry
        self._page(name)[name] = None

    def _displace(self, name: str, entry: _Entry) -> None:
        """Undo `_place`."""
        del self._page(name)[name]
        if entry.ttl is None:
            del self._forever[name]
        else:
            cache = self._timed[entry.ttl]
            del cache[name]
            if not cache:
                del self._timed[entry.ttl]

    def _rebuild(self) -> None:
        """Make anew all that follows from the entries."""
        self._due = _UNKNOWN  # until all is there
        now, due = self._clock(), _NEVER
        self._forever = self._cache(math.inf)
        self._timed: dict[float, TTLCache[str, _Entry]] = {}  # by ttl; none of them empty
        self._pages: dict[int, dict[str, None]] = {}
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].saved):
            expires = _NEVER if entry.ttl is None else entry.saved + entry.ttl
            if expires <= now:
                del self._entries[name]
            else:
                self._now[0] = entry.saved
                self._place(name, entry)
                due = min(due, expires)
        self._now[0] = now
        self._due = due

    def _cache(self, ttl: float) -> "TTLCache[str, _Entry]":
        return TTLCache(math.inf, ttl, partial(self._now.__getitem__, 0))

    def _page(self, name: str) -> dict[str, None]:
        return self._pages.setdefault(hash(name) % _PAGES, {})

    def _warn(self) -> None:
        if self._full and not self._warned:
            self._warned = True
            logger.warning(
                "MemoryStore is full (maxsize=%d): it drops the least recently used sessions "
                "from now on. Give it a larger maxsize, or declare sessions with a ttl.",
                self.maxsize,
            )


#: Where declarations without a store of their own keep their sessions.
default_store = MemoryStore()
