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

    over = False  #: whether nothing is left to do
    filtering = False  #: whether a handler's filters are running
    left: Sequence[Any] = ()  #: visits that handlers left, with their sessions locked
    refused: Collection[Any] = ()  #: sessions that were in use, by table of locks and name
    told: Sequence[Any] = ()  #: ``busy`` callbacks that ran for those sessions

    def __init__(self, around: Any) -> None:
        self.around = around  #: the innermost visit of the thread when the dispatch began

    def keep(self, visit: Any) -> None:
        """Keep a visit that a handler leaves for the next handler."""
        if visit not in self.left:
            self.left = [*self.left, visit]

    def refuse(self, locks: Any, name: str, visit: Any) -> bool:
        """Note that a session was in use; returns whether that is new.

        ``visit`` is a new one. It stays in the chain, without sessions, so that a later handler
        finds that it isn't alone, and looks here.
        """
        if (locks, name) in self.refused:
            return False
        self.refused = {*self.refused, (locks, name)}
        visit.left, visit.around = True, innermost.get(visit.thread)
        self.keep(visit)
        innermost[visit.thread] = visit
        return True

    def offers(self, visit: Any) -> bool:
        """Whether a handler that starts now may take over that visit."""
        return bool(visit.left and visit in self.left and not self.filtering)

    def leave(self) -> None:
        """Save the changes of the visits that are left, all or none, and unlock their sessions."""
        try:
            if len(self.left) > 1:
                changed = [visit for visit in self.left if visit.changed()]
                for visit in changed[1:]:
                    visit.move_to(changed[0])
            for visit in reversed(self.left):
                visit.settle()
        except BaseException:
            for visit in reversed(self.left):
                with contextlib.suppress(Exception):
                    visit.settle()
            raise

    def end(self, outer: "Dispatch | None") -> None:
        """Settle all visits and make ``outer`` the running dispatch; called again on interrupt."""
        thread = threading.get_ident()
        try:
            if self.left or innermost.get(thread) is not self.around:
                leave_inside(thread, self.around)
                self.leave()
        finally:
            if outer is None:
                running.pop(thread, None)
            else:
                running[thread] = outer
        self.over = True


#: By thread, its innermost visit; `around` leads outwards from there.
innermost: dict[int, Any] = {}
#: By thread, the dispatch that is running.
running: dict[int, Dispatch] = {}


def _forget(_: Any) -> None:
    for visit in innermost.values():
        while visit is not None:
            visit.thread = 0  # nothing is left to do: it goes on in the parent, with its lease
            visit = visit.around
    innermost.clear()
    running.clear()


per_process(Dispatch, _forget)


def leave_inside(thread: int, around: Any) -> None:
    """Leave the visits inside of ``around``, which ends: an interrupt kept them from ending.

    Visits of other tasks of an event loop stay, since tasks end in any order.
    """
    inside = []
    visit = innermost.get(thread)
    while visit is not None and visit is not around:
        inside.append(visit)
        visit = visit.around
    for one in inside if visit is around else ():
        if one.task is None or one.task is current_task():
            one.leave()


def unlink(thread: int, visit: Any) -> None:
    """Take a visit out of its thread's chain."""
    inside: Any = innermost.get(thread)
    if inside is visit:
        if visit.around is None:
            del innermost[thread]
        else:
            innermost[thread] = visit.around
        return
    while inside is not None and inside.around is not visit:
        inside = inside.around
    if inside is not None:
        inside.around = visit.around


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
        outer = running.get(thread)
        here = Dispatch(innermost.get(thread))
        try:
            try:
                running[thread] = here
                return run(*args, **kwargs)
            finally:
                here.end(outer)
        finally:
            if not here.over:
                here.end(outer)

    @functools.wraps(test)
    def tested(*args: Any, **kwargs: Any) -> Any:
        here = running.get(threading.get_ident())
        if here is None:  # `when` is used for the first time, by a handler
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
