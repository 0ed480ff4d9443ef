"""The objects that an update shows to its handler: open and closed sessions, and `NoSession`.

`telesession._visit` alone reads and writes the slots of a session.
"""

import copy
from collections.abc import Iterator
from typing import Any, NoReturn

from telesession._checks import kind
from telesession.errors import SessionClosed, SessionDataError, SessionError, SessionUnavailable
from telesession.stores import Payload

_SHARED = ("_guests", "_instead", "_pending", "_updates")  # slots for sessions of several visits


class UnopenedSession(dict[str, Any]):
    """A session that is not open yet: a dict, with slots for what telesession knows of it."""

    _plain = dict  #: the type that codecs take it for
    __slots__ = ("_before", "_form", "_name", "_options", "_stored", "_user", *_SHARED)
    _options: Any  #: the options of its declaration
    _name: str  #: its name in the store
    _user: Any  #: the innermost visit that uses it, or `None`
    _stored: Payload | None  #: its payload in the store
    _before: Payload | None  #: the payload of its unchanged content
    _form: bytes | None  #: the `codecs.form` of what ``_stored`` decodes to, where it is known
    _pending: Payload | None  #: what parts changed of it while no handler had it, if they did
    _updates: list[Any]  #: the updates of the visits that use it
    _instead: Any  #: what they show in its place, where a handler has replaced it
    _guests: dict[int, Any]  #: other updates that show that value, by `id`

    def _started(self) -> dict[Any, Any]:
        """The data of a new session; decoded, so that two sessions share no part of it."""
        options = self._options
        start: dict[Any, Any] = options.start(self._name)
        if not start:
            return start
        payload = options.encoded(self._name, start, None)
        if self._stored is None:
            self._before = payload
        started: dict[Any, Any] = options.codec.loads(payload)
        return started

    def _fill(self) -> None:
        """Take the stored data, or that of a new session."""
        options, stored = self._options, self._stored
        if stored is None:
            self.update(self._started())
        else:
            self.update(options.decoded(self._name, stored))
            if options.upgrade is not None:
                self._before = options.encoded(self._name, dict(self), stored)

    def _reload(self, payload: Payload | None = None) -> None:
        """Replace the content by that of ``payload``, or by the content as it was loaded."""
        payload = self._before if payload is None else payload
        data = self._started() if payload is None else self._options.codec.loads(payload)
        dict.clear(self)
        dict.update(self, data)

    def _replacement(self, shown: Any) -> dict[str, Any]:
        """The content of the dict that a handler put in the session's place."""
        if shown is None:
            return {}
        if not isinstance(shown, dict):
            raise SessionDataError(
                f"{self._options.property!r} was set to a value of type {type(shown).__name__} for "
                f"{self._name!r}. Set it to a dict, or to None to remove the session.",
                self._name,
            )
        return {
            key: dict(one) if isinstance(one, UnopenedSession) else one
            for key, one in shown.items()
        }

    def __reduce__(self) -> Any:
        return Copied, (dict(self),)

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        kind: Any = Copied if memo else dict  # a memo means that an update is copied with it
        return kind(copy.deepcopy(dict(self), memo))  # type: ignore[no-any-return]


class Copied(dict[str, Any]):
    """A copied or unpickled session: a dict.

    Its type shows that the update that holds it is a copy of an update with a session.
    """

    _plain = dict


class Session(UnopenedSession):
    """A session's data while its handler runs: a `dict` that is saved when the handler returns."""

    __slots__ = ()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)  # copy and pickle look for such names
        raise AttributeError(_by_item(self, name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:
            raise AttributeError(_by_item(self, name))
        super().__setattr__(name, value)


def _by_item(session: UnopenedSession, name: str) -> str:
    property = session._options.property
    return f"a session is a dict, without attributes of its own: write {property}[{name!r}]"


_OWN = frozenset(("__class__", *UnopenedSession.__slots__))


class _Closed:
    """A container that can be read but not changed; the containers in it are closed as well."""

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
    """The reading methods of a closed dict."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        return self._shut(super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return self._shut(super().get(key, default))

    def values(self) -> Any:
        return [self._shut(value) for value in super().values()]

    def items(self) -> Any:
        return [(key, self._shut(value)) for key, value in super().items()]


class ClosedSession(_Reading, UnopenedSession):
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
    """Stands in a session's place on an update for which the key function gave `None`.

    It is falsy; any other use raises `SessionUnavailable` with the reason.
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
            raise AttributeError(name)  # copy and pickle look for such names
        self._refuse()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise SessionUnavailable(self._reason, self._property)

    __getitem__ = __setitem__ = __delitem__ = __contains__ = _refuse
    __iter__ = __len__ = __or__ = __ror__ = __ior__ = __setattr__ = _refuse


def updates_of(session: UnopenedSession) -> list[Any]:
    """The updates that show a session, or what a handler put in its place."""
    found: list[Any] | None = getattr(session, "_updates", None)
    if found is None:
        holder = session._options.locks.holder(session._name)
        found = [] if holder is None or holder.update is None else [holder.update]
    return found


def check_free(update: Any, property: str, session: UnopenedSession | None = None) -> None:
    """Refuse to hide an attribute, unless it is left from an earlier handler's session.

    That includes one that is still open, on a copy of the update that shows it.
    """
    shown = getattr(update, property, None)
    missing = shown is None and not hasattr(update, property)
    if missing or isinstance(shown, (ClosedSession, NoSession, Copied)):
        return
    if session is not None and (shown is session or id(update) in getattr(session, "_guests", ())):
        return
    name = property if session is None else session._name
    if isinstance(shown, UnopenedSession):
        originals = updates_of(shown)
        if originals and not any(one is update for one in originals):
            return
        raise SessionError(
            f"{property!r} of {kind(update)} holds {shown._name!r}, which is still open, so it "
            "can't hold another session. Give one of the two declarations its own property, or "
            "hand on a copy: copy.copy(update).",
            name,
        )
    raise SessionError(
        f"property={property!r}: {kind(update)} has an attribute of that name already, which a "
        "session would hide. Give with_session another property.",
        name,
    )
