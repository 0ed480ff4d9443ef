"""Sessions on their way from a handler that was not for their update to the next one.

A handler under `when` that doesn't match leaves its sessions open and locked, so that nobody comes
in between. The next handler of the same update takes them over, if it has the same sessions; else
they are let go. That no handler took them shows when pyTelegramBotAPI drops what the last one
returned; if an error keeps that alive, whoever waits for a session calls `Passed.evict`.
"""

import functools
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from telesession.data import ClosedSession, Session
from telesession.locks import EVICTION, LockKey, locks
from telesession.transactions import Lease, let_go

#: By the id of the update. Whoever pops an entry is the one who may use what it has.
passed: "dict[int, Passed]" = {}


class Passed:
    """What a handler left for the next one; it holds the locks meanwhile."""

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
        self.thread = threading.get_ident()
        self._update = update
        self._since = time.monotonic()
        for session in opened.values():
            session.__class__ = ClosedSession
        passed[id(update)] = self
        locks.hand_over(locked, self)

    def lock_timeout(self, key: LockKey) -> float:
        return 0.0  # it waits for nothing

    def evict(self) -> None:
        if time.monotonic() - self._since >= EVICTION:
            self.withdraw()

    def withdraw(self) -> bool:
        """Let go, unless a handler has taken it over."""
        if passed.get(id(self._update)) is not self or not passed.pop(id(self._update), None):
            return False
        self.let_go()
        return True

    def let_go(self) -> None:
        let_go(self.leases, touch=False)
        locks.release(self.locked)


@functools.cache
def go_on() -> Callable[..., Any]:
    """The class whose instances have pyTelegramBotAPI go on to its next handler.

    What is given to it is called when pyTelegramBotAPI has dropped the instance.
    """
    from telebot.handler_backends import ContinueHandling

    class GoOn(ContinueHandling):
        def __init__(self, dropped: Callable[[], object] = lambda: None) -> None:
            self._dropped = dropped

        def __del__(self) -> None:
            self._dropped()

    return GoOn
