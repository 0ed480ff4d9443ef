"""One at a time: first come, first served locks by key, and nothing kept for an idle key.

A holder takes its keys in sorted order, so stacks can't deadlock however their handlers declare
them. Only a handler that opens further sessions while it runs can close a cycle of waiting; the
one that would close it is told at once.

A lock that nobody waits for is taken and released without a mutex, by single operations on dicts,
which are atomic: `setdefault` decides who of several gets it. Whoever has to wait enters the
key's queue and then tries once more; whoever releases looks for a queue before and after. So one
of the two always sees the other. And whoever comes while there is a queue joins it.
"""

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable
from typing import Protocol

from telesession.errors import SessionBusy
from telesession.forks import per_process

LockKey = str  # "<name of the session in its store>@<identity of the store>"


class Holder(Protocol):
    """Whoever takes locks: an update's visit, on one thread."""

    thread: int  #: 0 if no handler runs, on any
    waits_since: float  #: by `time.monotonic`, 0 if it did not have to wait

    def lock_timeout(self, key: LockKey) -> float:
        """Seconds to wait for ``key``; may raise `SessionBusy` at once."""


class _Waiter:
    __slots__ = ("gate", "holder", "key")

    def __init__(self, key: LockKey, holder: Holder) -> None:
        self.key = key
        self.holder = holder
        self.gate = threading.Lock()
        self.gate.acquire()


class Locks:
    """A table of locks, with an entry for each key that is in use just now."""

    def __init__(self) -> None:
        per_process(self, Locks._reset)

    def _reset(self) -> None:
        self._holders: dict[LockKey, Holder] = {}
        self._mutex = threading.Lock()  # for the queues
        self._queues: dict[LockKey, deque[_Waiter]] = {}
        self._waiters: dict[int, _Waiter] = {}  # by thread, to find cycles

    def __len__(self) -> int:
        return len(self._holders)

    def holder(self, key: LockKey) -> Holder:
        """Who holds ``key``, which the calling thread does."""
        return self._holders[key]

    def any_held(self) -> bool:
        """Whether the calling thread holds any lock, that is, is in a handler with a session."""
        thread = threading.get_ident()
        return any(holder.thread == thread for holder in list(self._holders.values()))

    def hand_over(self, keys: Iterable[LockKey], holder: Holder) -> None:
        """Make ``holder`` the one who holds ``keys``, which the caller does."""
        for key in keys:
            self._holders[key] = holder

    def acquire(self, keys: Collection[LockKey], holder: Holder) -> Collection[LockKey]:
        """Take all ``keys``; return those that ``holder``'s thread didn't have yet.

        Raises `SessionBusy`, holding nothing new, when the time to wait for one of them is over,
        or when waiting for it could never end.
        """
        taken: list[LockKey] = []
        try:
            for key in keys if len(keys) == 1 else sorted(keys):
                if key in self._queues:
                    current = self._holders.get(key)
                else:
                    current = self._holders.setdefault(key, holder)
                if current is not holder:
                    if current is not None and current.thread == holder.thread:
                        continue
                    self._wait(key, holder)
                taken.append(key)
        except BaseException:
            self.release(taken)
            raise
        return taken

    def release(self, keys: Iterable[LockKey]) -> None:
        """Hand each of ``keys`` to whoever has waited longest for it, or forget it."""
        for key in keys:
            self._holders.pop(key, None)  # a forked child never had it
            if key in self._queues:
                with self._mutex:
                    self._grant(key)

    def _wait(self, key: LockKey, holder: Holder) -> None:
        timeout = holder.lock_timeout(key)
        holder.waits_since = holder.waits_since or time.monotonic()
        with self._mutex:
            self._refuse_cycle(key, holder.thread)
            waiter = self._waiters[holder.thread] = _Waiter(key, holder)
            self._queues.setdefault(key, deque()).append(waiter)
            self._grant(key)  # it may have been released just before we had a queue
        left = min(max(0.0, holder.waits_since + timeout - time.monotonic()), threading.TIMEOUT_MAX)
        try:
            granted = waiter.gate.acquire(timeout=left)
        except BaseException:  # Ctrl-C while waiting
            if not self._withdraw(waiter):
                self.release([key])
            raise
        if not granted and self._withdraw(waiter):
            raise SessionBusy(
                f"{_name(key)!r} was in use by another handler for all of "
                f"lock_timeout={timeout:g} seconds. Make that handler quicker, or give "
                "with_session a longer lock_timeout."
            )

    def _grant(self, key: LockKey) -> None:
        """Give a free lock to the first of its queue."""
        queue = self._queues.get(key)
        if queue:
            first = queue[0]
            if self._holders.setdefault(key, first.holder) is first.holder:
                self._dequeue(first)
                first.gate.release()

    def _withdraw(self, waiter: _Waiter) -> bool:
        """Leave the queue; `False` if the lock was granted at the very last moment."""
        with self._mutex:
            waiting = self._waiters.get(waiter.holder.thread) is waiter
            if waiting:
                self._dequeue(waiter)
            return waiting

    def _dequeue(self, waiter: _Waiter) -> None:
        queue = self._queues[waiter.key]
        queue.remove(waiter)
        if not queue:
            del self._queues[waiter.key]
        del self._waiters[waiter.holder.thread]

    def _refuse_cycle(self, key: LockKey, thread: int) -> None:
        wanted = key
        while True:
            holder = self._holders.get(wanted)
            waiter = None if holder is None else self._waiters.get(holder.thread)
            if waiter is None:
                return
            wanted = waiter.key
            held = self._holders.get(wanted)
            if held is not None and held.thread == thread:
                raise SessionBusy(
                    f"{_name(key)!r} is held by a handler that waits, in turn, for "
                    f"{_name(wanted)!r}, which this one holds: neither could ever go on. Stack "
                    "both sessions on the outer handler: then they are opened together, in a "
                    "safe order."
                )


def _name(key: LockKey) -> str:
    return key.rpartition("@")[0]


#: The locks of all sessions of this process.
locks = Locks()
