"""Savepoints: the content of a dict at some moment, to be restored in place by `_visit`.

A part that fails must leave no trace, even in a list of the session that the handler still has. So
a savepoint keeps the dicts, lists and sets themselves, each with a copy of its items, also those in
tuples. Objects of other types may change inside, so they are copied, and the copy replaces them.
"""

import copy
from collections import OrderedDict
from typing import Any

_PLAIN = {str, int, float, bool, type(None), bytes, complex}  # their values can't change


class Savepoint:
    """The content of ``root``, all the way down."""

    def __init__(self, root: dict[Any, Any]) -> None:
        containers: dict[int, Any] = {}
        tuples: set[int] = set()
        others = False
        todo: list[Any] = [root]
        while todo:
            value = todo.pop()
            if type(value) in _PLAIN or id(value) in containers or id(value) in tuples:
                continue
            if isinstance(value, tuple):
                tuples.add(id(value))
                others |= type(value) is not tuple
                todo += value
            elif isinstance(value, dict):
                containers[id(value)] = value
                todo += dict.values(value)
            elif isinstance(value, (list, set)):
                containers[id(value)] = value
                todo += value
            else:
                others = True
        self._contents: list[tuple[Any, Any]] = []
        memo = containers.copy()  # for deepcopy: copied objects refer to the same containers
        for container in containers.values():
            content: Any = dict(container) if isinstance(container, dict) else list(container)
            if others:
                parts = content.items() if isinstance(content, dict) else enumerate(content)
                for key, value in list(parts):
                    if type(value) not in _PLAIN and id(value) not in containers:
                        content[key] = _copied(value, memo)
            self._contents.append((container, content))

    def restore(self) -> None:
        """Restore the content; after an interrupt it can be called again."""
        for container, content in self._contents:
            if isinstance(container, list):
                list.__setitem__(container, slice(None), content)
            else:
                refill(container, content)


def refill(target: Any, content: Any) -> None:
    """Replace the items of a dict or set by those of another, without code of a subclass.

    An `OrderedDict` keeps its order beside the dict's own items, so it has methods of its own.
    """
    if content is target:
        return
    kind: Any = next(one for one in (OrderedDict, dict, set) if isinstance(target, one))
    kind.clear(target)
    kind.update(target, content)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # an object such as a lock, which saving will refuse
        return value
