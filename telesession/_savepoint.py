"""What a dict held at some moment, and how it is put back in place.

A part that fails must leave no trace, and whoever holds a list of the session is to find it as it
was. So the dicts, lists and sets themselves are kept, each with a copy of what was in it. Objects
of other types may change inside, so they are copied: what is put back in their place is the copy.
"""

import copy
from typing import Any

_PLAIN = {str, int, float, bool, type(None), bytes, complex}  # their values can't change


class Savepoint:
    """The content of ``root``, all the way down."""

    def __init__(self, root: dict[Any, Any]) -> None:
        containers: dict[int, Any] = {}
        others = False
        todo: list[Any] = [root]
        while todo:
            value = todo.pop()
            if type(value) in _PLAIN or id(value) in containers:
                continue
            if isinstance(value, dict):
                containers[id(value)] = value
                todo += dict.values(value)
            elif isinstance(value, (list, set)):
                containers[id(value)] = value
                todo += value
            else:
                others = True
        self._contents: list[tuple[Any, Any]] = []
        memo = containers.copy()  # of objects that are copied, so that they keep our containers
        for container in containers.values():
            content: Any = dict(container) if isinstance(container, dict) else list(container)
            if others:
                parts = content.items() if isinstance(content, dict) else enumerate(content)
                for key, value in list(parts):
                    if type(value) not in _PLAIN and id(value) not in containers:
                        content[key] = _copied(value, memo)
            self._contents.append((container, content))

    def restore(self) -> None:
        """Put everything back; it may be done again where it was interrupted."""
        for container, content in self._contents:
            if isinstance(container, list):
                list.__setitem__(container, slice(None), content)
            else:
                kind = dict if isinstance(container, dict) else set
                kind.clear(container)
                kind.update(container, content)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, for one, which saving will refuse
        return value
