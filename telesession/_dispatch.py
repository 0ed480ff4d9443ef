"""What each thread is in the middle of: visits, and pyTelegramBotAPI's dispatch of an update.

pyTelegramBotAPI tries one handler after the other. A handler under `when` for which the update is
not leaves its visit to the dispatch, with its sessions locked. The next handler of the same
sessions takes them over; anything else of the thread that wants them joins them. When the dispatch
ends, however it ends, what is left is saved and let go.

The dispatch is known because two methods of `TeleBot` are wrapped as soon as `when` is used. They
are private to pyTelegramBotAPI: where it lacks them, no dispatch is known, and a handler under
`when` lets go of its sessions at once.
"""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from telesession._forks import per_process


class Dispatch:
    """One update's way through the handlers of a bot, on one thread."""

    task = None  #: of an event loop
    over = False  #: whether nothing is left to be done
    around: Any = None  #: what the thread was in the middle of
    linked = False  #: whether the thread's visits find it
    filtering = False  #: whether a handler's filters are being asked
    left: Sequence[Any] = ()  #: visits that handlers have left, still open
    refused: Collection[Any] = ()  #: sessions that were in use, and are not asked for again
    told: Sequence[Any] = ()  #: functions that were called for those

    def link(self) -> None:
        """Be found by visits of this thread from now on."""
        if not self.linked:
            thread = threading.get_ident()
            self.around = innermost.get(thread)
            self.linked = True
            innermost[thread] = self

    def keep(self, visit: Any) -> None:
        """Have what a handler leaves for the next one."""
        unlink(threading.get_ident(), visit)
        if not self.left or self.left[-1] is not visit:
            self.left = [*self.left, visit]
        if not self.linked:
            self.link()

    def refuse(self, locks: Any, name: str) -> bool:
        """Note that a session was in use; whether that is new."""
        new = (locks, name) not in self.refused
        self.refused = {*self.refused, (locks, name)}
        self.link()
        return new

    def offers(self, visit: Any) -> bool:
        """Whether the handler that comes now may take over that visit."""
        if self.filtering or running.get(threading.get_ident()) is not self:
            return False
        return any(one is visit and one.left for one in self.left)

    def leave(self) -> None:
        """Save what was changed in the visits that are left, and let go of them."""
        try:
            for visit in reversed(self.left):
                visit.settle()
        except BaseException:
            for visit in reversed(self.left):
                with contextlib.suppress(Exception):
                    visit.settle()
            raise

    def end(self, around: "Dispatch | None") -> None:
        """Settle, and be forgotten for the one ``around``; called again if it is interrupted."""
        thread = threading.get_ident()
        try:
            if self.linked:
                leave_inside(thread, self)
                self.leave()
        finally:
            if self.linked:
                unlink(thread, self)
            if around is None:
                running.pop(thread, None)
            else:
                running[thread] = around
        self.over = True


#: By thread, its innermost visit, or dispatch with sessions left; each knows the one `around` it.
innermost: dict[int, Any] = {}
#: By thread, the dispatch that is running.
running: dict[int, Dispatch] = {}


def _forget(_: Any) -> None:
    innermost.clear()
    running.clear()


per_process(Dispatch, _forget)


def leave_inside(thread: int, entry: Any) -> None:
    """Leave the visits inside of one that ends: an interrupt came before they could end.

    But tasks of an event loop leave theirs in any order.
    """
    inside = []
    one = innermost.get(thread)
    while one is not None and one is not entry:
        inside.append(one)
        one = one.around
    for visit in inside if one is entry else ():
        if visit.task is None or visit.task is current_task():
            visit.leave()


def unlink(thread: int, entry: Any) -> None:
    """Take a visit or dispatch out of what its thread is in the middle of."""
    inside: Any = innermost.get(thread)
    if inside is entry:
        if entry.around is None:
            del innermost[thread]
        else:
            innermost[thread] = entry.around
        return
    while inside is not None and inside.around is not entry:
        inside = inside.around
    if inside is not None:
        inside.around = entry.around


def current_task() -> Any:
    """The task of the event loop that runs in this thread, if one does."""
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:
        return None


@functools.cache
def watch() -> Callable[[], Any]:
    """Be told of every dispatch from now on; what makes the answer "go on to the next handler"."""
    from telebot import TeleBot
    from telebot.handler_backends import ContinueHandling

    run: Any = getattr(TeleBot, "_run_middlewares_and_handler", None)
    test: Any = getattr(TeleBot, "_test_message_handler", None)
    if run is None or test is None:
        return ContinueHandling

    @functools.wraps(run)
    def dispatched(*args: Any, **kwargs: Any) -> Any:
        thread = threading.get_ident()
        around = running.get(thread)
        here = Dispatch()
        try:
            try:
                running[thread] = here
                return run(*args, **kwargs)
            finally:
                here.end(around)
        finally:
            if not here.over:
                here.end(around)

    @functools.wraps(test)
    def tested(*args: Any, **kwargs: Any) -> Any:
        here = running.get(threading.get_ident())
        if here is None or not here.linked:
            return test(*args, **kwargs)
        here.filtering = True
        try:
            return test(*args, **kwargs)
        finally:
            here.filtering = False

    for name, wrapped in (
        ("_run_middlewares_and_handler", dispatched),
        ("_test_message_handler", tested),
    ):
        setattr(TeleBot, name, wrapped)
    return ContinueHandling
