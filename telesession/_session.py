"""What a handler finds on its update: the session, or what stands in its place.

What is noted in a session's slots is the business of `telesession._visit`, and of nobody else.
"""

import copy
from collections.abc import Iterator
from typing import Any, NoReturn

from telesession.errors import SessionClosed, SessionUnavailable
from telesession.stores import Payload


class Notes(dict[str, Any]):
    """A dict with the notes that telesession makes about it: a session that is not open yet."""

    _plain = dict  #: the type that codecs see
    __slots__ = ("_before", "_guests", "_name", "_options", "_stored", "_user")
    _options: Any  #: of its declaration
    _name: str  #: in the store
    _user: Any  #: the visit that works on it just now, the innermost of several; or `None`
    _stored: Payload | None  #: what the store has
    _before: Payload | None  #: what the codec makes of the session while nothing has changed
    _guests: dict[int, Any]  #: updates that show what was put in its place, by identity

    def __reduce__(self) -> Any:
        return Copied, (dict(self),)

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        kind: Any = Copied if memo else dict  # a part of something else that is copied, or not
        return kind(copy.deepcopy(dict(self), memo))  # type: ignore[no-any-return]


class Copied(dict[str, Any]):
    """What a session becomes where it is copied or pickled: an ordinary dict.

    By its type one sees that an update which has it is a copy of one that had a session.
    """

    _plain = dict


class Session(Notes):
    """A session's data while its handler runs: a `dict` that is saved when the handler returns."""

    __slots__ = ()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)  # what copy, pickle and the like look for
        raise AttributeError(_by_item(self, name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _NOTES:
            raise AttributeError(_by_item(self, name))
        super().__setattr__(name, value)


def _by_item(session: Notes, name: str) -> str:
    property = session._options.property
    return f"a session is a dict, without attributes of its own: write {property}[{name!r}]"


_NOTES = frozenset(("__class__", *Notes.__slots__))


class _Closed:
    """A container that can be read, and no longer changed; what it holds is closed as well."""

    __slots__ = ()
    _name: str

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise SessionClosed(
            f"{self._name!r} was changed after its handler returned, or its open(...) block ended, "
            "when nothing saves the change any more. A thread or timer that outlives the handler "
            "opens the session itself: `with declaration.open(update) as data:`.",
            self._name,
        )

    __setitem__ = __delitem__ = __ior__ = __iadd__ = __imul__ = __isub__ = __iand__ = __ixor__ = (
        _refuse
    )
    clear = pop = popitem = setdefault = update = _refuse
    append = extend = insert = remove = reverse = sort = _refuse
    add = discard = _refuse
    difference_update = intersection_update = symmetric_difference_update = _refuse

    def _shut(self, value: Any) -> Any:
        kind = type(value)
        if kind is tuple:
            return tuple(map(self._shut, value))
        if kind not in _SHUT:
            return value
        twin = _SHUT[kind](value)
        twin._name = self._name
        return twin


class _Reading(_Closed, dict[str, Any]):
    """How a closed dict is read."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        return self._shut(super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return self._shut(super().get(key, default))

    def values(self) -> Any:
        return [self._shut(value) for value in super().values()]

    def items(self) -> Any:
        return [(key, self._shut(value)) for key, value in super().items()]


class ClosedSession(_Reading, Notes):
    """A session whose handler has returned."""

    __slots__ = ()


class _ClosedDict(_Reading):
    _plain = dict
    __slots__ = ("_name",)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class _ClosedList(_Closed, list[Any]):
    _plain = list
    __slots__ = ("_name",)

    def __getitem__(self, index: Any) -> Any:
        return self._shut(super().__getitem__(index))

    def __iter__(self) -> Iterator[Any]:
        return map(self._shut, super().__iter__())

    def __reduce__(self) -> Any:
        return list, (list.copy(self),)


class _ClosedSet(_Closed, set[Any]):
    _plain = set
    __slots__ = ("_name",)

    def __reduce__(self) -> Any:
        return set, (list(self),)


_SHUT: dict[type, Any] = {dict: _ClosedDict, list: _ClosedList, set: _ClosedSet}


class NoSession:
    """Stands where a session would be, on an update for which the key function gave `None`.

    It is falsy, and any other use raises `SessionUnavailable` with the reason.
    """

    __slots__ = ("_property", "_reason")

    def __init__(self, reason: str, property: str = "") -> None:
        object.__setattr__(self, "_reason", reason)
        object.__setattr__(self, "_property", property)

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<no session>"

    def __reduce__(self) -> Any:
        return NoSession, (self._reason, self._property)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what copy, pickle and the like look for
        self._refuse()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise SessionUnavailable(self._reason, self._property)

    __getitem__ = __setitem__ = __delitem__ = __contains__ = _refuse
    __iter__ = __len__ = __or__ = __ror__ = __ior__ = __setattr__ = _refuse
