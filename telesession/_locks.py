"""First come, first served locks by name, within a process; an idle name costs nothing.

Locks across processes are left to `leases`, and extra worker threads for those that wait to
`_workers`.

A lock without a line of waiters is taken and released without a mutex, by single operations on
dicts, which are atomic: `setdefault` picks one of several threads. A thread that must wait enters
the name's line and then tries again; a releasing thread looks for a line after the release. One of
the two always sees the other. While there is a line, every newcomer joins it.

A signal handler may raise at any moment. So each step can be repeated: releasing a lock, or leaving
a line, first looks whether that is still to be done.

Stacks take their locks in one order, so stacks alone can't deadlock. A handler that opens further
sessions while it runs can close a cycle of waiting. If a holder in the cycle is still locking its
stack, it gives way and keeps its place right behind the waiter; else the visit is refused at once.
"""

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from telesession._forks import per_process
from telesession._workers import stand_in
from telesession.errors import SessionBusy

#: Seconds that a line may stand still before another thread stands in for its waiting threads.
PATIENCE = 0.001


class Holder(Protocol):
    """What takes locks: an update's visit, on one thread."""

    thread: int
    since: float  #: when it began, by `time.monotonic`

    def gives_way(self) -> bool:
        """Whether it can lose its locks for a while, since it has loaded nothing yet."""


class _Waiter:
    __slots__ = ("gate", "holder", "locks", "name", "place")

    def __init__(self, locks: "Locks", name: str, holder: Holder, place: bool = False) -> None:
        self.locks = locks
        self.name = name
        self.holder = holder
        self.place = place  #: whether it only keeps the place of a holder that gave way
        self.gate = threading.Lock()
        self.gate.acquire()

    def chain(self) -> Iterator[tuple["_Waiter", Any]]:
        """This waiter with its lock's holder, then the holder's own waiter with its, and so on."""
        wanted: _Waiter | None = self
        seen = set()
        while wanted is not None and wanted not in seen:  # else a cycle, which is being refused
            seen.add(wanted)
            holder = wanted.locks.holder(wanted.name)
            if holder is None or holder is wanted.holder:
                return  # this waiter can go on
            yield wanted, holder
            wanted = _everyone.waiting.get(holder.thread)

    def needs(self, thread: int) -> bool:
        """Whether it waits, directly or through others, for a lock that ``thread`` holds."""
        return any(holder.thread == thread for _, holder in self.chain())


class _Line(deque[_Waiter]):
    """The waiters for one lock, in order; the first stays in it until it has woken up."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = time.monotonic()  #: when the line began, or a waiter last got the lock


class _Everyone:
    """The state that all tables of locks share."""

    def __init__(self) -> None:
        per_process(self, _Everyone._reset)

    def _reset(self) -> None:
        self.mutex = threading.RLock()  # guards the lines
        self.waiting: dict[int, _Waiter] = {}  # by thread, to find cycles

    def free(self) -> None:
        """Release the mutex, if a signal handler raised before that was done."""
        with contextlib.suppress(RuntimeError):
            self.mutex.release()


_everyone = _Everyone()


class Locks:
    """The locks of one place, with an entry for each name in use.

    `_visit` has the code of `take` and `release` inline, to save the calls.
    """

    def __init__(self) -> None:
        per_process(self, Locks._reset)

    def _reset(self) -> None:
        self.holders: dict[str, Any] = {}
        self.lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        return len(self.holders) + len(self.lines)

    def holder(self, name: str) -> Any:
        """The holder of ``name``, or `None`."""
        return self.holders.get(name)

    def take(self, name: str, holder: Holder) -> Any:
        """Take ``name`` if it is free and has no line; returns its holder, which may be `None`."""
        if name in self.lines:
            return self.holders.get(name)
        return self.holders.setdefault(name, holder)

    def hand_over(self, name: str, holder: Holder) -> None:
        """Make ``holder`` the holder of ``name``, instead of another one on the same thread."""
        self.holders[name] = holder

    def release(self, name: str, holder: Holder) -> None:
        """Release ``name``, if ``holder`` holds it, and grant it to the first in its line."""
        if self.holders.get(name) is holder:
            del self.holders[name]
        if name in self.lines:
            self.grant(name, holder)

    def grant(self, name: str, gone: Holder) -> None:
        """Give ``name``, if it is free, to the first in its line; ``gone`` leaves the line."""
        try:
            with _everyone.mutex:
                for one in list(self.lines.get(name, ())):
                    if one.holder is gone:  # the place of a holder that gave way and has ended
                        self._take_out(one)
                self._grant(name)
        finally:
            _everyone.free()

    def give_way(self, waiter: _Waiter, holder: Holder) -> None:
        """Put ``waiter`` before ``holder``, which waits for another lock. Needs the mutex."""
        name = waiter.name
        line = _Line()
        line += [waiter, _Waiter(self, name, holder, place=True)]
        line += [one for one in self.lines[name] if one is not waiter and one.holder is not holder]
        self.lines[name] = line
        if self.holders.get(name) is holder:
            del self.holders[name]
        self._grant(name)

    def wait(self, name: str, holder: Holder, timeout: float) -> None:
        """Wait in line for ``name``, which another holder has, and take it.

        Raises `SessionBusy` when the line has not moved for ``timeout`` seconds of this wait, or
        when waiting could never end.
        """
        waiter = _Waiter(self, name, holder)
        try:
            try:
                self._enter(waiter)
                if not self._woken(waiter, 0.0, min(PATIENCE, timeout)):
                    with stand_in(waiter.needs):
                        self._woken(waiter, time.monotonic(), timeout)
            finally:
                self._leave(waiter)
        finally:
            if _everyone.waiting.get(holder.thread) is waiter:
                self._leave(waiter)
        if self.holders.get(name) is not holder:
            raise SessionBusy(self._overdue(name, timeout), name)

    def _woken(self, waiter: _Waiter, since: float, timeout: float) -> bool:
        """Wait for the waiter's turn; `False` if the line has not moved for ``timeout`` seconds.

        The seconds count from ``since`` at the earliest.
        """
        timeout = min(timeout, threading.TIMEOUT_MAX / 2)
        while True:
            line = self.lines[waiter.name]
            left = max(since, line.moved) + timeout - time.monotonic()
            if waiter.gate.acquire(timeout=max(left, 0.0)):
                return True
            if left <= 0:
                return False

    def _enter(self, waiter: _Waiter) -> None:
        try:
            with _everyone.mutex:
                _everyone.waiting[waiter.holder.thread] = waiter  # first; `_leave` drops it last
                line = self.lines.setdefault(waiter.name, _Line())
                places = [number for number, one in enumerate(line) if one.holder is waiter.holder]
                if places:
                    line[places[0]] = waiter
                else:
                    line.append(waiter)
                self._grant(waiter.name)  # it may have been released just before there was a line
                if self.holders.get(waiter.name) is not waiter.holder:
                    _break_cycle(waiter)
        finally:
            _everyone.free()

    def _leave(self, waiter: _Waiter) -> None:
        try:
            with _everyone.mutex:
                self._take_out(waiter)
                _everyone.waiting.pop(waiter.holder.thread, None)
        finally:
            _everyone.free()

    def _take_out(self, waiter: _Waiter) -> None:
        line = self.lines.get(waiter.name)
        if line is not None:
            if waiter in line:
                line.remove(waiter)
            if not line:
                del self.lines[waiter.name]

    def _grant(self, name: str) -> None:
        """Give a free lock to the first in its line."""
        line = self.lines.get(name)
        if not line:
            self.lines.pop(name, None)  # left empty by an interrupt in `_take_out`
            return
        first = line[0]
        if self.holders.setdefault(name, first.holder) is not first.holder:
            return
        if first.place:
            waiting = _everyone.waiting.get(first.holder.thread)
            if waiting is not None and waiting.holder is first.holder:
                with contextlib.suppress(SessionBusy):  # it is raised in the waiting thread already
                    _break_cycle(waiting)  # its holder has one lock more, which may close a cycle
            if self.holders.get(name) is first.holder:
                self._take_out(first)
        elif first.gate.locked():
            line.moved = time.monotonic()
            first.gate.release()

    def _overdue(self, name: str, timeout: float) -> str:
        holder = self.holders.get(name)
        since = getattr(holder, "since", 0.0)
        had = f" It has had it for {time.monotonic() - since:.3g} seconds." if since else ""
        return (
            f"{name!r} was in use by another handler for all of lock_timeout={timeout:g} "
            f"seconds.{had} Make that handler quicker, or give with_session a longer "
            "lock_timeout. Or it can never end: it waits for a thread, a timer or a future of its "
            "own that wants the same session (let that one return what there is to save), or "
            "for an update that comes behind this one."
        )


def _break_cycle(waiter: _Waiter) -> None:
    """If ``waiter`` closes a cycle of waiting, have a holder in it give way, or raise."""
    chain = []
    for wanted, holder in waiter.chain():
        chain.append((wanted, holder))
        if holder.thread == waiter.holder.thread:
            break
    else:
        return
    for wanted, holder in chain:
        if holder.gives_way():
            wanted.locks.give_way(wanted, holder)
            return
    mine, _ = chain[-1]
    raise SessionBusy(
        f"{waiter.name!r} is held by a handler that waits, in turn, for {mine.name!r}, which this "
        "one holds: neither could ever go on. Open both sessions together, in the outer handler: "
        "stack their declarations on it or, where it is one declaration with two keys, use "
        "`with session.open(keys=[...])` in a handler without the session.",
        waiter.name,
    )


_tables: "weakref.WeakValueDictionary[int, Locks]" = weakref.WeakValueDictionary()


def locks_of(place: object) -> Locks:
    """The table of locks for ``place``, an object that lives at least as long as the table."""
    return _tables.setdefault(id(place), Locks())


def held() -> int:
    """How many locks are held or waited for in this process."""
    return sum(map(len, list(_tables.values())))
