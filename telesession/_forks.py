"""Forked children: what threads of the parent process hold, nobody lets go of there."""

import os
import weakref
from collections.abc import Callable
from typing import Any

_resets: "weakref.WeakKeyDictionary[Any, Callable[[Any], object]]" = weakref.WeakKeyDictionary()


def per_process(owner: Any, reset: Callable[[Any], object]) -> None:
    """Call ``reset(owner)`` now, and in every forked child for as long as ``owner`` lives."""
    reset(owner)
    _resets[owner] = reset


def _in_child() -> None:
    for owner, reset in list(_resets.items()):
        reset(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
