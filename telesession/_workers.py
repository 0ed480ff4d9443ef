"""Who serves a bot's updates while one of its worker threads waits for a session.

A `TeleBot` has two worker threads that take updates from one queue. One that has to wait would keep
its place for as long as the wait takes. So another thread stands in for it: it takes updates from
the same queue, as one more worker of the same pool, and ends when it has nobody to stand in for.

`TeleBot.stop_bot` waits for all workers. In a handler it must not wait for those that wait for that
very handler, which could never end; so the workers' `join` is wrapped.
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
        #: Threads that wait; each with what tells whether that is for what a thread, by ident, has.
        self.needs: dict[Any, Callable[[int], bool]] = {}
        self._of: weakref.WeakKeyDictionary[Any, _Shift] = weakref.WeakKeyDictionary()

    def of(self, worker: Any) -> _Shift | None:
        """That of the pool to which a thread belongs; `None` if it is no worker of a bot."""
        kind: Any = getattr(sys.modules.get("telebot.util"), "WorkerThread", ())
        if not isinstance(worker, kind):
            return None
        pool = getattr(worker.exception_callback, "__self__", None)  # the polling thread has none
        if not hasattr(pool, "workers"):
            return None
        with self.mutex:
            return self._of.setdefault(pool, _Shift())


_shifts = _Shifts()


def mind_stop() -> None:
    """Have a handler that stops its bot not wait for those that wait for it; called beforehand."""
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


def _nobody(_: int) -> bool:
    return False


@contextlib.contextmanager
def stand_in(needs: Callable[[int], bool] = _nobody) -> Iterator[None]:
    """While the calling thread waits in this block, another one serves its bot's updates.

    ``needs`` tells whether it waits for what a thread has.
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
            except RuntimeError:  # there are too many threads
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
        """One more worker of a pool, for as long as more of them wait than others stand in."""

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
                # a bot that was being stopped when we came has not stopped us
                stopped = not all(worker._running for worker in self._pool.workers)
                if not stopped and shift.standing_in <= shift.waiting:
                    return False
                self._end()
                return True

        def _end(self) -> None:
            with _shifts.mutex:
                if self in self._pool.workers:
                    self._shift.standing_in -= 1
                    # a new list, since the bot may be going through the other one
                    self._pool.workers = [one for one in self._pool.workers if one is not self]

    return StandIn
