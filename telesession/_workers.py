"""Stand-in threads, which serve a bot's updates while its worker threads wait for sessions.

A `TeleBot` has two worker threads that take updates from one queue. A worker that waits for a
session serves no updates meanwhile, so another thread stands in for it: it takes updates from the
same queue, as one more worker of the same pool, and ends when no worker needs it any more. When to
wait is decided in `_locks` and `leases`.

`TeleBot.stop_bot` waits for all workers. Called in a handler, it would wait for ever for workers
that wait for that very handler's sessions; so the workers' `join` is wrapped.
"""

import contextlib
import functools
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from telesession._forks import per_process

#: The largest number of stand-ins of a bot; further waiting workers get none.
LIMIT = 100

_PATIENCE = 0.5  # seconds for which a stand-in waits for an update before it checks whether to end


class _Shift:
    """The numbers of waiting threads and of stand-ins in a bot's pool."""

    waiting = 0
    standing_in = 0


class _Shifts:
    """The shift of each pool that has had to wait."""

    def __init__(self) -> None:
        per_process(self, _Shifts._reset)

    def _reset(self) -> None:
        self.mutex = threading.RLock()
        #: By waiting thread: whether it waits for a session of the thread with an ident.
        self.needs: dict[Any, Callable[[int], bool]] = {}
        self._of: weakref.WeakKeyDictionary[Any, _Shift] = weakref.WeakKeyDictionary()

    def of(self, worker: Any) -> _Shift | None:
        """The shift of the worker's pool; `None` for a thread that is no worker of a bot."""
        kind: Any = getattr(sys.modules.get("telebot.util"), "WorkerThread", ())
        if not isinstance(worker, kind):
            return None
        pool = getattr(worker.exception_callback, "__self__", None)  # not for the polling thread
        if not hasattr(pool, "workers"):
            return None
        with self.mutex:
            return self._of.setdefault(pool, _Shift())


_shifts = _Shifts()


def mind_stop() -> None:
    """Let handlers stop their bot: wrap `join`, if telebot is imported, before a handler runs."""
    worker = getattr(sys.modules.get("telebot.util"), "WorkerThread", None)
    if worker is not None:
        _wrap_join(worker)


@functools.cache
def _wrap_join(worker: Any) -> None:
    wait = worker.join

    @functools.wraps(wait)
    def join(thread: Any, timeout: float | None = None) -> None:
        if timeout is not None:
            wait(thread, timeout)
            return
        mine = threading.get_ident()
        while thread.is_alive():
            needs = _shifts.needs.get(thread)
            if needs is not None and needs(mine):
                return
            wait(thread, _PATIENCE / 10)

    worker.join = join


@contextlib.contextmanager
def stand_in(needs: Callable[[int], bool] = lambda ident: False) -> Iterator[None]:
    """While the calling thread waits in this block, another thread serves its bot's updates.

    ``needs`` tells whether it waits for a session of the thread with an ident.
    """
    worker: Any = threading.current_thread()
    shift = _shifts.of(worker)
    if shift is None:
        yield
        return
    with _shifts.mutex:
        shift.waiting += 1
        missing = worker._running and shift.standing_in < min(shift.waiting, LIMIT)
        shift.standing_in += missing
    _shifts.needs[worker] = needs
    try:
        if missing:
            try:
                _stand_in()(shift, worker)
            except RuntimeError:  # the system allows no further thread
                with _shifts.mutex:
                    shift.standing_in -= 1
        yield
    finally:
        _shifts.needs.pop(worker, None)
        with _shifts.mutex:
            shift.waiting -= 1


@functools.cache
def _stand_in() -> Any:
    from telebot.util import WorkerThread

    class StandIn(WorkerThread):
        """One more worker of a pool, for as long as the pool has no more stand-ins than waiters."""

        def __init__(self, shift: _Shift, worker: Any) -> None:
            self._shift = shift
            self._pool = worker.exception_callback.__self__
            begin: Any = super().__init__
            begin(worker.exception_callback, worker.queue, "telesession-stand-in")

        def run(self) -> None:
            with _shifts.mutex:
                self._pool.workers.append(self)  # so that the bot stops it, and waits for it
            try:
                while not self._ends():
                    try:
                        task, args, kwargs = self.queue.get(timeout=_PATIENCE)
                    except queue.Empty:
                        continue
                    try:
                        task(*args, **kwargs)
                    except Exception as error:
                        self.exception_callback(self, error)
            finally:  # the bot's exception_handler may have raised
                self._end()

        def _ends(self) -> bool:
            shift = self._shift
            with _shifts.mutex:
                # a bot that was stopping when this thread joined the pool has not stopped it
                stopped = not all(worker._running for worker in self._pool.workers)
                if not stopped and shift.standing_in <= shift.waiting:
                    return False
                self._end()
                return True

        def _end(self) -> None:
            with _shifts.mutex:
                if self in self._pool.workers:
                    self._shift.standing_in -= 1
                    # a new list, since the bot may be iterating over the old one
                    self._pool.workers = [one for one in self._pool.workers if one is not self]

    return StandIn
