"""What is in a session: loaded, put on its update, replaced by the handler, and encoded again."""

from typing import Any

from telesession.checks import kind
from telesession.codecs import Unkeepable, encode
from telesession.data import ClosedSession, NoSession, Session
from telesession.errors import SessionDataError, SessionError
from telesession.stores import Payload

_MISSING: Any = object()


def load(session: Session, stored: Payload | None) -> None:
    """Fill a session with what is stored of it, or with what a new one starts with."""
    session._stored = session._before = stored
    if stored is None:
        _start(session)
        return
    declaration = session._declaration
    try:
        data = declaration.codec.loads(stored)
    except Exception as error:
        raise declaration.unreadable(session._name) from error
    if not isinstance(data, dict):
        raise declaration.unreadable(session._name)
    session.update(data)


def _start(session: Session) -> None:
    start = session._declaration.start(session._name)
    if start:
        session._before = encoded(session, start)
        # decoded again, so that no part of it is shared with the next session
        session.update(session._declaration.codec.loads(session._before))


def encoded(session: Session, data: dict[str, Any]) -> Payload:
    """What to store for ``data``: the very same object as before where nothing has changed."""
    declaration = session._declaration
    try:
        return encode(declaration.codec, data, session._before)
    except Unkeepable as error:
        raise declaration.unkeepable(session._name, error) from error.__cause__


def replacement(session: Session, left: Any) -> dict[str, Any]:
    """The content of what the handler put in the place of a session."""
    if left is None:
        return {}
    if not isinstance(left, dict):
        raise wrong_type(session, left)
    return {key: dict(one) if isinstance(one, Session) else one for key, one in left.items()}


def refill(session: Session, data: dict[str, Any]) -> None:
    """Have a closed session show what was put in its place, on all updates that it was on."""
    dict.clear(session)
    dict.update(session, data)
    for update in session._updates:
        setattr(update, session._declaration.attribute, session)


def wrong_type(session: Session, left: Any) -> SessionDataError:
    return SessionDataError(
        f"{session._declaration.attribute!r} was set to a value of type {type(left).__name__} for "
        f"{session._name!r}. Set it to a dict, or to None to remove the session."
    )


def inject(update: Any, property: str, session: Any) -> None:
    """Set the attribute of an update that holds its session."""
    existing = getattr(update, property, _MISSING)
    if existing is not _MISSING:
        check_free(update, property)
    setattr(update, property, session)


def check_free(update: Any, property: str) -> None:
    """Refuse to hide an attribute that is not what an earlier handler left."""
    existing = getattr(update, property, _MISSING)
    if existing is _MISSING or isinstance(existing, (ClosedSession, NoSession)):
        return
    if isinstance(existing, Session):
        raise SessionError(
            f"{property!r} of {kind(update)} holds {existing._name!r}, which is still open, so it "
            "can't hold another session. Give one of the two declarations its own property."
        )
    raise SessionError(
        f"property={property!r}: {kind(update)} has an attribute of that name already, which a "
        "session would hide. Give with_session another property."
    )
