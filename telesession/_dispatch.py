"""The visits that each thread has open, and pyTelegramBotAPI's dispatch of an update around them.

pyTelegramBotAPI tries one handler after the other. A handler under `when` whose condition fails
leaves its visit to the dispatch, with its sessions locked. The next handler of the same sessions
takes the visit over; other code on the thread joins the sessions. When the dispatch ends, even by
an exception, it tells the visits that are left to save and unlock, which `_visit` does.

This module wraps two methods of `TeleBot` as soon as `when` is used. They are private to
pyTelegramBotAPI: where a version lacks them, a handler under `when` unlocks its sessions at once.
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

    task = None  #: as a visit has it; a dispatch belongs to no task
    over = False  #: whether nothing is left to do
    around: Any = None  #: the next visit or dispatch outwards on the thread
    linked = False  #: whether it is in the chain that starts at `innermost`
    filtering = False  #: whether a handler's filters are running
    left: Sequence[Any] = ()  #: visits that handlers left, with their sessions locked
    refused: Collection[Any] = ()  #: sessions that were in use, by table of locks and name
    told: Sequence[Any] = ()  #: ``busy`` callbacks that ran for those sessions

    def link(self) -> None:
        """Put this dispatch into the chain of the thread's visits."""
        if not self.linked:
            thread = threading.get_ident()
            self.around = innermost.get(thread)
            self.linked = True
            innermost[thread] = self

    def keep(self, visit: Any) -> None:
        """Keep a visit that a handler leaves for the next handler."""
        unlink(threading.get_ident(), visit)
        if not self.left or self.left[-1] is not visit:
            self.left = [*self.left, visit]
        if not self.linked:
            self.link()

    def refuse(self, locks: Any, name: str) -> bool:
        """Note that a session was in use; returns whether that is new."""
        new = (locks, name) not in self.refused
        self.refused = {*self.refused, (locks, name)}
        self.link()
        return new

    def offers(self, visit: Any) -> bool:
        """Whether a handler that starts now may take over that visit."""
        if self.filtering or running.get(threading.get_ident()) is not self:
            return False
        return any(one is visit and one.left for one in self.left)

    def leave(self) -> None:
        """Save the changes of the visits that are left, and unlock their sessions."""
        try:
            for visit in reversed(self.left):
                visit.settle()
        except BaseException:
            for visit in reversed(self.left):
                with contextlib.suppress(Exception):
                    visit.settle()
            raise

    def end(self, around: "Dispatch | None") -> None:
        """Settle all visits and make ``around`` the running dispatch; called again on interrupt."""
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


#: By thread, its innermost visit or linked dispatch; `around` leads outwards from there.
innermost: dict[int, Any] = {}
#: By thread, the dispatch that is running.
running: dict[int, Dispatch] = {}


def _forget(_: Any) -> None:
    innermost.clear()
    running.clear()


per_process(Dispatch, _forget)


def leave_inside(thread: int, entry: Any) -> None:
    """Leave the visits inside of ``entry``, which ends: an interrupt kept them from ending.

    Visits of other tasks of an event loop stay, since tasks end in any order.
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
    """Take a visit or dispatch out of its thread's chain."""
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
    """Track every dispatch from now on; returns the class whose instances mean "next handler"."""
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
