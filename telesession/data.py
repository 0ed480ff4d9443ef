"""What a handler finds on its update: the session, or what stands in its place."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from telesession.errors import SessionClosed, SessionUnavailable
from telesession.stores import Payload

if TYPE_CHECKING:
    from telesession.declaration import Declaration


class Session(dict[str, Any]):
    """A session's data while its handler runs: a `dict` that is saved when the handler returns.

    What telesession itself must know of an open session is kept beside the data, in slots.
    """

    _plain = dict  #: the type that codecs see
    __slots__ = ("_before", "_declaration", "_inner", "_name", "_stored", "_updates")
    _declaration: "Declaration"
    _name: str  #: in the store
    _updates: tuple[Any, ...]  #: whose attribute it is: its own, and those it was joined with
    _inner: tuple[Any, ...]  #: once joined: the updates of handlers that run, innermost last
    _stored: Payload | None  #: what the store had
    _before: Payload | None  #: what the codec makes of the session while nothing has changed

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # copied and pickled as what it is to its user


class _Closed:
    """A dict or list that can be read, and no longer changed; what it holds is closed as well."""

    __slots__ = ()
    _name: str

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise SessionClosed(
            f"{self._name!r} was changed after its handler returned, or its open(...) block ended, "
            "when nothing saves the change any more. A thread or timer that outlives the handler "
            "opens the session itself: `with declaration.open(update) as data:`."
        )

    __setitem__ = __delitem__ = __ior__ = __iadd__ = __imul__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse
    append = extend = insert = remove = reverse = sort = _refuse

    def _shut(self, value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(self._shut, value))
        if type(value) not in (dict, list):
            return value
        twin = ClosedSession(value) if isinstance(value, dict) else _ClosedList(value)
        twin._name = self._name
        return twin


class ClosedSession(_Closed, Session):
    """A session whose handler has returned."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        return self._shut(super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return self._shut(super().get(key, default))

    def values(self) -> Any:
        return [self._shut(value) for value in super().values()]

    def items(self) -> Any:
        return [(key, self._shut(value)) for key, value in super().items()]


class _ClosedList(_Closed, list[Any]):
    _plain = list
    __slots__ = ("_name",)

    def __getitem__(self, index: Any) -> Any:
        return self._shut(super().__getitem__(index))

    def __iter__(self) -> Iterator[Any]:
        return map(self._shut, super().__iter__())

    def __reduce__(self) -> Any:
        return list, (list.copy(self),)


class NoSession:
    """Stands where a session would be, on an update for which the key function gave `None`.

    It is falsy, and any other use raises `SessionUnavailable` with the reason.
    """

    __slots__ = ("_reason",)

    def __init__(self, reason: str) -> None:
        object.__setattr__(self, "_reason", reason)

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<no session>"

    def __reduce__(self) -> Any:
        return NoSession, (self._reason,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what copy, pickle and the like look for
        self._refuse()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise SessionUnavailable(self._reason)

    __getitem__ = __setitem__ = __delitem__ = __contains__ = _refuse
    __iter__ = __len__ = __or__ = __ror__ = __ior__ = __setattr__ = _refuse
