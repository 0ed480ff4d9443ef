"""A thread that looks after something for as long as there is something to look after."""

import logging
import threading
import time
from abc import ABC, abstractmethod

from telesession._forks import per_process

logger = logging.getLogger("telesession")


class Patrol(ABC):
    """A thread that is started when it is needed, and ends when it wasn't for a while.

    A daemon, it keeps no process from ending. A forked child has none, until it needs one itself.

    Args:
        name: the thread's.
        pause: seconds between two looks.
        patience: after so many looks at nothing it ends.
    """

    def __init__(self, name: str, pause: float, patience: int) -> None:
        self._name = name
        self._pause = pause
        self._patience = patience
        per_process(self, type(self).reset)

    @abstractmethod
    def needed(self) -> bool:
        """Whether there is something to look after."""

    @abstractmethod
    def look(self) -> bool:
        """Look after it; `False` to end."""

    @abstractmethod
    def without(self) -> str:
        """What there is to say where the thread can't be started."""

    def reset(self) -> None:
        """Forget what a parent process had."""
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Have the thread run. Who calls this has made `needed` true before."""
        if self._thread is None:
            self._launch()

    def _launch(self) -> None:
        with self._mutex:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # too many threads, or the interpreter is ending
                logger.warning("%s Its thread did not start: %s.", self.without(), error)
            else:
                self._thread = thread

    def _run(self) -> None:
        idle = 0
        while self.look() and (idle < self._patience or not self._ended()):
            time.sleep(self._pause)
            idle = 0 if self.needed() else idle + 1

    def _ended(self) -> bool:
        """Whether to end: who comes after this finds no thread and starts another one."""
        with self._mutex:
            thread, self._thread = self._thread, None
            if self.needed():  # somebody came just before
                self._thread = thread
            return self._thread is None
