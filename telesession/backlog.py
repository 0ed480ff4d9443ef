"""``busy="queue"``: updates that find their session in use wait in line, and no thread with them.

Whoever finds no line opens one and handles updates until it is empty. Whoever finds one joins it
and is free at once, so that a user who floods a slow handler keeps one worker of the bot busy.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from telesession.forks import per_process
from telesession.locks import LockKey, locks

logger = logging.getLogger("telesession")

#: A handler, its arguments, and the thread that brought them.
_Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], threading.Thread]


class Backlogs:
    """The lines: one for each session that a thread is handling queued updates of just now."""

    def __init__(self) -> None:
        per_process(self, Backlogs._reset)

    def _reset(self) -> None:
        self._lines: dict[LockKey, deque[_Call]] = {}
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return len(self._lines)

    def handle(
        self,
        key: LockKey,
        handler: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call the handler, and then the handlers of all updates that came meanwhile.

        Where another thread is at it already, that one will call the handler: `None`, at once.
        """
        if locks.any_held():  # called by a handler, to which updates of others are no concern
            return handler(*args, **kwargs)
        with self._mutex:
            line = self._lines.get(key)
            if line is not None:
                line.append((handler, args, kwargs, threading.current_thread()))
                return None
            self._lines[key] = deque()
        result = failure = None
        try:
            try:
                result = handler(*args, **kwargs)
            except Exception as error:
                failure = error
            self._work_off(key)  # not while handling the failure, which is none of theirs
        except BaseException:
            self._drop(key)
            raise
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # whose traceback has this frame
        return result

    def _work_off(self, key: LockKey) -> None:
        while call := self._next(key):
            handler, args, kwargs, thread = call
            try:
                handler(*args, **kwargs)
            except Exception as error:
                _report(key, thread, error)

    def _drop(self, key: LockKey) -> None:
        """Ctrl-C: nobody will come back to those in the line."""
        with self._mutex:
            line = self._lines.pop(key, None)
        if line:
            logger.warning("%d queued updates of %r are not handled", len(line), key)

    def _next(self, key: LockKey) -> _Call | None:
        with self._mutex:
            line = self._lines.get(key)
            if line:
                return line.popleft()
            self._lines.pop(key, None)  # in a forked child there is none
            return None


def _report(key: LockKey, thread: Any, error: Exception) -> None:
    """Give an error to pyTelegramBotAPI, as if the handler had raised in ``thread``, its own."""
    callback = getattr(thread, "exception_callback", None)
    if callback is not None and type(thread).__module__ == "telebot.util":
        try:
            callback(thread, error)
            return
        except Exception as another:  # the bot's exception_handler failed
            error = another
    # or it is a thread of somebody else's, who knows nothing of this update
    logger.error("a queued update of %r failed", key, exc_info=error)


#: The lines of all sessions of this process.
backlogs = Backlogs()
