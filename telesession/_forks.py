"""What happens at a fork: the child resets what belonged to threads of its parent.

What to reset, and how, is left to each module, which says so by `per_process`.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

_resets: "weakref.WeakKeyDictionary[Any, Callable[[Any], object]]" = weakref.WeakKeyDictionary()


def per_process(owner: Any, reset: Callable[[Any], object]) -> None:
    """Call ``reset(owner)`` now, and in every forked child for as long as ``owner`` lives."""
    reset(owner)
    _resets[owner] = reset


_pauses: "weakref.WeakKeyDictionary[Any, tuple[Callable[[Any], object], ...]]"
_pauses = weakref.WeakKeyDictionary()


def around_fork(
    owner: Any, before: Callable[[Any], object], after: Callable[[Any], object]
) -> None:
    """Call ``before(owner)`` before each fork, and ``after(owner)`` in the parent when it is over.

    That goes on for as long as ``owner`` lives.
    """
    _pauses[owner] = before, after


class Mutex:
    """A mutex that survives exceptions of signal handlers, forks, and a late gevent patch."""

    def __init__(self) -> None:
        per_process(self, Mutex._reset)

    def _reset(self) -> None:
        self._kinds: dict[Any, Any] = {}

    def current(self) -> Any:
        """The lock of the present kind, since gevent replaces those of `threading`.

        A greenlet that waited for a lock of the old kind would block all greenlets.
        """
        kind = threading.Lock  # where it is replaced, RLock is made of the replacement
        return self._kinds.get(kind) or self._kinds.setdefault(kind, threading.RLock())

    def alone(self, work: Callable[..., Result], *args: Any) -> Result:
        """Call ``work`` while no other thread is in `alone`."""
        mutex = self.current()
        try:
            with mutex:
                return work(*args)
        except BaseException:
            # A signal handler may have raised just before the block released the mutex.
            with contextlib.suppress(RuntimeError):
                mutex.release()
            raise


def _in_child() -> None:
    for owner, reset in list(_resets.items()):
        reset(owner)


def _around(step: int) -> None:
    for owner, steps in list(_pauses.items()):
        steps[step](owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _around(0), after_in_parent=lambda: _around(1), after_in_child=_in_child
    )
