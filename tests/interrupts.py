"""Exceptions that come at any line, as those out of signal handlers do."""

import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import telesession

TIMEOUT = 30  # seconds, a guard against tests that hang

Subject = TypeVar("Subject")

TELESESSION = str(Path(telesession.__file__).parent)


class Interrupt(BaseException):
    """What a signal handler raises, as for Ctrl-C."""


class Alarm(Exception):
    """What the handler of an alarm raises, for a time-out."""


class Interrupting:
    """Raises ``error`` at the line of that number, counted in the files under ``path``.

    Other ``events`` of `sys.settrace` may count as well. `where` tells where it was raised.
    """

    where = ""

    def __init__(
        self,
        number: int,
        path: str | tuple[str, ...] = TELESESSION,
        error: type[BaseException] = Interrupt,
        events: Collection[str] = ("line",),
    ) -> None:
        self.left = number
        self.path = path
        self.error = error
        self.events = events

    def __enter__(self) -> "Interrupting":
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self.before)

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "call" and not frame.f_code.co_filename.startswith(self.path):
            return None
        if event == "return" and frame.f_code.co_flags & inspect.CO_GENERATOR:
            return self.trace  # at a `yield` such an exception would pass by what surrounds it
        if event in self.events:
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                code = frame.f_code
                self.where = f"{event} in {code.co_name}, {code.co_filename}:{frame.f_lineno}"
                raise self.error
        return self.trace


def interruptions(
    make: Callable[[], Subject],
    run: Callable[[Subject], Iterator[None]],
    path: str | tuple[str, ...] = TELESESSION,
    step: int = 1,
) -> Iterator[Subject]:
    """Interrupt ``run`` once at each of its lines, each time with a new subject, and yield that.

    With ``step`` it is at some of its lines.

    What ``run`` does before its ``yield`` isn't interrupted. The last subject is one of a run that
    came to its end.
    """
    for number in itertools.count(0, step):
        subject = make()
        steps = run(subject)
        next(steps)
        try:
            with Interrupting(number, path):
                next(steps, None)
        except Interrupt:
            yield subject
        else:
            assert number > 0, "nothing of it was interrupted"
            yield subject
            return


def free(mutex: Any) -> bool:
    """Whether another thread can have a mutex."""
    answers: list[bool] = []

    def ask() -> None:
        answers.append(mutex.acquire(timeout=0.5))
        if answers[0]:
            mutex.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(TIMEOUT)
    return answers == [True]
