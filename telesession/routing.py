"""Sessions on their way from a handler that was not for their update to the next one.

A handler under `when` that doesn't match leaves its sessions open and locked, so that nobody comes
in between. The thread's next handler takes them over, if it has the same update and sessions; else
it lets go of them. That there is no such handler shows when pyTelegramBotAPI drops what the last
one returned. Where an error keeps that alive, or a decorator has hidden who dropped it, a thread
finds out by looking whether pyTelegramBotAPI is still at that update.
"""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

from telesession.data import ClosedSession, Session
from telesession.locks import LockKey, locks
from telesession.patrol import Patrol
from telesession.transactions import Lease, let_go

#: What is on its way. Whoever pops it is the one who may use what it has.
passed: "dict[Passed, bool]" = {}


class Passed:
    """What a handler left for the next one; it holds the locks meanwhile."""

    thread = 0  # no handler runs, so nobody can join it, and it waits for nothing
    waits_since = 0.0

    def __init__(
        self,
        update: Any,
        opened: dict[LockKey, Session],
        locked: Collection[LockKey],
        leases: list[Lease],
    ) -> None:
        self.opened = opened
        self.locked = locked
        self.leases = leases
        self.update = update
        self._dispatcher = threading.get_ident()
        for session in opened.values():
            session.__class__ = ClosedSession
        locks.hand_over(locked, self)
        passed[self] = True
        sweeper.start()

    @staticmethod
    def take() -> "Passed | None":
        """What the calling thread's last handler left, if it is still there."""
        thread = threading.get_ident()
        for one in list(passed):
            if one._dispatcher == thread and passed.pop(one, False):
                return one
        return None

    def lock_timeout(self, key: LockKey) -> float:
        return 0.0  # it waits for nothing

    def withdraw(self) -> None:
        """Let go, unless a handler has taken it over."""
        if passed.pop(self, False):
            self.let_go()

    def dropped(self) -> None:
        """Let go, if it is pyTelegramBotAPI who dropped us: garbage is collected anywhere."""
        if _is_telebot(sys._getframe(2)):
            self.withdraw()

    def is_over(self) -> bool:
        """Whether pyTelegramBotAPI has left the update: no frame of the thread has it any more."""
        return not any(
            one is self.update
            for frame in _of_telebot(sys._current_frames().get(self._dispatcher))
            for one in frame.f_locals.values()
        )

    def let_go(self) -> None:
        try:
            let_go(self.leases, touch=False)
        finally:
            locks.release(self.locked)


def is_dispatched() -> bool:
    """Whether it is pyTelegramBotAPI who called the handler, and may go on to another one."""
    return any(_of_telebot(sys._getframe(3)))


def _of_telebot(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of pyTelegramBotAPI among ``frame`` and those around it."""
    while frame is not None:
        if _is_telebot(frame):
            yield frame
        frame = frame.f_back


def _is_telebot(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "telebot"


class _Sweeper(Patrol):
    """Lets go of what no handler takes."""

    TICK = 0.05  # seconds

    def __init__(self) -> None:
        super().__init__("telesession-sweeper", self.TICK, 20)

    def reset(self) -> None:
        super().reset()
        passed.clear()

    def needed(self) -> bool:
        return bool(passed)

    def look(self) -> bool:
        for one in list(passed):
            if one.is_over() and passed.pop(one, False):
                try:  # not here: a store that is slow to answer is no concern of the others
                    threading.Thread(target=one.let_go, daemon=True).start()
                except RuntimeError:  # there are too many threads
                    one.let_go()
        return True

    def without(self) -> str:
        return "A session that no handler takes over may stay locked."


sweeper = _Sweeper()


@functools.cache
def go_on() -> Callable[..., Any]:
    """The class whose instances have pyTelegramBotAPI go on to its next handler.

    What is given to it is called when such an instance is dropped.
    """
    from telebot.handler_backends import ContinueHandling

    class GoOn(ContinueHandling):
        def __init__(self, dropped: Callable[[], object] = lambda: None) -> None:
            self._dropped = dropped

        def __del__(self) -> None:
            with contextlib.suppress(ValueError):  # at the interpreter's end, with no frame around
                self._dropped()

    return GoOn
