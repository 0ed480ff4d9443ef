"""`MemoryStore`: sessions in this process's memory. Locking is left to `_locks`."""

import logging
import math
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from cachetools import TTLCache

from telesession._forks import Mutex
from telesession.codecs import Codec
from telesession.stores import Change, Payload, Store

logger = logging.getLogger("telesession")

_NEVER = math.inf
_UNKNOWN = -math.inf  #: a value of `_due` while the caches lag behind the entries


class _Entry:
    __slots__ = ("payload", "saved", "ttl")

    def __init__(self, payload: Payload | None, saved: float, ttl: float | None) -> None:
        # a copy, since pickle's result occupies a larger block of memory than it needs
        self.payload = b"%b" % payload if type(payload) is bytes else payload
        self.saved = saved
        self.ttl = ttl


class _Moment(float):
    """A time for `TTLCache.expire` that notes when the first of the remaining items expires."""

    first = _NEVER

    def __lt__(self, expires: float) -> bool:
        later = super().__lt__(expires)
        if later:
            self.first = min(self.first, expires)
        return later


class MemoryStore(Store):
    """The default store: sessions in this process's memory, as `pickle` made them.

    Each session expires by the ttl of its own declaration: the store has a `cachetools.TTLCache`
    for every distinct ttl. Expired sessions are dropped whenever the store is used.

    Args:
        maxsize: the largest number of sessions. Beyond it the least recently used session is
            dropped; the first time that is logged as a warning.
        clock: the time in seconds, as a callable; for tests.

    >>> store = MemoryStore(maxsize=100_000)
    >>> len(store), "session:42:42" in store
    (0, False)
    """

    codec: Codec = pickle

    # `_entries` is authoritative: it is changed in one step, for all sessions of a commit at once.
    # The caches follow, and `_due` is unknown meanwhile. If an exception comes in between, such as
    # one out of a signal handler, the next use of the store rebuilds the caches.

    def __init__(
        self, maxsize: int = 1_000_000, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not isinstance(maxsize, int) or isinstance(maxsize, bool) or maxsize < 1:
            raise ValueError(f"maxsize={maxsize!r} must be a positive number of sessions")
        self.maxsize = maxsize
        self._clock = clock
        self._now = clock()  # the caches' time, which stands still while they are changed
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._caches: dict[float | None, TTLCache[str, _Entry]] = {}  # by ttl; none of them empty
        self._due = _NEVER  # the time before which nothing expires
        self._warned = False
        self._mutex = Mutex()  # guards the caches

    def open(
        self, names: Sequence[str], timeout: float = 0, lease: None = None
    ) -> tuple[None, list[Payload | None]]:
        if self._due < _NEVER and self._clock() >= self._due:
            self._change()
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
            except KeyError:  # another thread dropped it just now
                pass
        return None, payloads

    def commit(self, lease: None, changes: Sequence[Change]) -> None:
        if len(changes) == 1:
            ((name, payload, ttl),) = changes
            entry = self._entries.get(name)
            if payload is not None and entry is not None and entry.ttl == ttl:
                payload = b"%b" % payload if type(payload) is bytes else payload
                try:
                    if ttl is None:  # its place in the caches stays the same
                        entry.payload = payload
                        self._entries.move_to_end(name)
                        return
                    if self._mutex.alone(self._renew, name, payload, entry):
                        return
                except KeyError:  # another thread dropped it just now
                    pass
        elif self._exchange(changes):
            return
        self._change(changes)

    def _exchange(self, changes: Sequence[Change]) -> bool:
        """Do all changes, if each replaces a payload without a ttl; returns whether it did."""
        entries = self._entries
        plan: list[tuple[_Entry, Payload | None, Payload]] = []
        for name, payload, ttl in changes:
            entry = entries.get(name)
            if ttl is not None or payload is None or entry is None or entry.ttl is not None:
                return False
            payload = b"%b" % payload if type(payload) is bytes else payload
            plan.append((entry, entry.payload, payload))
        try:
            for entry, _, payload in plan:
                entry.payload = payload
        except BaseException:
            for entry, before, _ in plan:
                entry.payload = before
            raise
        return all(name in entries for name, _, _ in changes)  # another thread may drop one

    def names(self, prefix: str) -> Iterator[str]:
        for name in list(self._entries):
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
        self._change([(name, None, None) for name in list(self._entries)])

    def _expire(self) -> None:
        if self._clock() >= self._due:
            self._change()

    def _change(self, changes: Sequence[Change] = ()) -> None:
        """Drop expired sessions, and carry out ``changes``, all or none of them."""
        full = self._mutex.alone(self._carry_out, changes)
        if full and not self._warned:
            self._warned = True
            logger.warning(
                "MemoryStore is full (maxsize=%d): it drops the least recently used sessions "
                "from now on. Give it a larger maxsize, or declare sessions with a ttl.",
                self.maxsize,
            )

    def _carry_out(self, changes: Sequence[Change]) -> bool:
        """Carry out ``changes``; returns whether other sessions were dropped for room."""
        entries = self._entries
        due, self._due = self._due, _UNKNOWN
        now = self._now = self._clock()
        if now >= due:
            due = self._sweep(due, now)
        new, old = {}, []
        for name, payload, ttl in changes:
            new[name] = _Entry(payload, now, ttl)
            old.append((name, entries.get(name)))
        entries.update(new)
        for name, before in old:
            entry = new[name]
            if before is not None and (entry.payload is None or before.ttl != entry.ttl):
                self._displace(name, before)
            if entry.payload is None:
                del entries[name]
                continue
            entries.move_to_end(name)
            self._place(name, entry)
            if entry.ttl is not None and now + entry.ttl < due:
                due = now + entry.ttl
        full = len(entries) > self.maxsize
        while len(entries) > self.maxsize:
            self._displace(*entries.popitem(last=False))
        self._due = due
        return full

    def _renew(self, name: str, payload: Payload, entry: _Entry) -> bool:
        """Replace an entry's payload and restart its ttl; `False` if sessions are due to expire."""
        now = self._now = self._clock()
        due = self._due
        if now >= due:
            return False
        self._entries.move_to_end(name)
        self._due = _UNKNOWN
        self._caches[entry.ttl][name] = entry
        entry.payload, entry.saved = payload, now
        self._due = due
        return True

    def _sweep(self, due: float, now: float) -> float:
        """Drop expired sessions; returns when the next one expires."""
        if due == _UNKNOWN:
            self._caches.clear()
            for name, entry in sorted(self._entries.items(), key=lambda item: item[1].saved):
                over = entry.ttl is not None and entry.saved + entry.ttl <= now
                if over or entry.payload is None:
                    del self._entries[name]
                else:
                    self._now = entry.saved
                    self._place(name, entry)
            self._now = now
        moment = _Moment(now)
        for ttl, cache in list(self._caches.items()):
            for name, _ in cache.expire(moment):
                del self._entries[name]
            if not cache:
                del self._caches[ttl]
        return moment.first

    def _place(self, name: str, entry: _Entry) -> None:
        cache = self._caches.get(entry.ttl)
        if cache is None:
            ttl = math.inf if entry.ttl is None else entry.ttl
            cache = self._caches[entry.ttl] = TTLCache(math.inf, ttl, lambda: self._now)
        cache[name] = entry

    def _displace(self, name: str, entry: _Entry) -> None:
        cache = self._caches[entry.ttl]
        del cache[name]
        if not cache:
            del self._caches[entry.ttl]


#: The store of declarations that name none.
default_store = MemoryStore()
