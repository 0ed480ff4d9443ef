"""Who serves a bot's updates while one of its worker threads waits for a session.

A `TeleBot` has two worker threads that take updates from one queue. One that has to wait would keep
its place for as long as the wait takes. So another thread stands in for it: it takes updates from
the same queue, as one more worker of the same pool, and ends when it has nobody to stand in for.
"""

import contextlib
import functools
import queue
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from telesession._forks import per_process

#: How many stand-ins a bot has at the most; beyond that its workers wait.
LIMIT = 100

_PATIENCE = 0.5  # seconds for which a stand-in waits for an update before it looks whether to end


class _Shift:
    """How many threads of a bot's pool wait for a session, and how many stand in for them."""

    waiting = 0
    standing_in = 0


class _Shifts:
    """The shift of each pool that has had to wait."""

    def __init__(self) -> None:
        per_process(self, _Shifts._reset)

    def _reset(self) -> None:
        self.mutex = threading.RLock()
        self._of: weakref.WeakKeyDictionary[Any, _Shift] = weakref.WeakKeyDictionary()

    def of(self, worker: Any) -> _Shift | None:
        """That of the pool to which a thread belongs; `None` if it is no worker of a bot."""
        util = sys.modules.get("telebot.util")
        if util is None or not isinstance(worker, util.WorkerThread):
            return None
        pool = getattr(worker.exception_callback, "__self__", None)  # the polling thread has none
        if not hasattr(pool, "workers"):
            return None
        with self.mutex:
            return self._of.setdefault(pool, _Shift())


_shifts = _Shifts()


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """While the calling thread waits in this block, another one serves its bot's updates."""
    worker: Any = threading.current_thread()
    shift = _shifts.of(worker)
    if shift is None:
        yield
        return
    with _shifts.mutex:
        shift.waiting += 1
        missing = worker._running and shift.standing_in < min(shift.waiting, LIMIT)
        shift.standing_in += missing
    try:
        if missing:
            try:
                _stand_in()(shift, worker)
            except RuntimeError:  # there are too many threads
                shift.standing_in -= 1
        yield
    finally:
        with _shifts.mutex:
            shift.waiting -= 1


@functools.cache
def _stand_in() -> Any:
    from telebot.util import WorkerThread

    class StandIn(WorkerThread):
        """One more worker of a pool, for as long as more of them wait than others stand in."""

        def __init__(self, shift: _Shift, worker: Any) -> None:
            self._shift = shift
            self._pool = worker.exception_callback.__self__
            begin: Any = super().__init__
            begin(worker.exception_callback, worker.queue, "telesession-stand-in")

        def run(self) -> None:
            with _shifts.mutex:
                self._pool.workers.append(self)  # so that the bot stops it, and waits for it
            while not self._ends():
                try:
                    task, args, kwargs = self.queue.get(timeout=_PATIENCE)
                except queue.Empty:
                    continue
                try:
                    task(*args, **kwargs)
                except Exception as error:
                    self.exception_callback(self, error)

        def _ends(self) -> bool:
            shift = self._shift
            with _shifts.mutex:
                if self._running and shift.standing_in <= shift.waiting:
                    return False
                shift.standing_in -= 1
                # a new list, since the bot may be going through the other one
                self._pool.workers = [one for one in self._pool.workers if one is not self]
                return True

    return StandIn
