"""What is asked of stores around a handler, and what their failures become."""

import contextlib
import logging
import os
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

from telesession.checks import called
from telesession.data import Session
from telesession.errors import SessionError, SessionStoreError
from telesession.stores import Change, Payload, Store

logger = logging.getLogger("telesession")

#: The sessions of a visit that live on one store, behind the store's own token for them.
Lease: TypeAlias = tuple[Store, Any, Collection[Session]]


def open_on(
    store: Store, names: Sequence[str], sessions: Collection[Session], timeout: float
) -> tuple[Any, Sequence[Payload | None]]:
    """Lease the sessions that live on one store, and read what is stored of them."""
    try:
        return store.open(names, timeout)
    except SessionError:
        raise
    except Exception as error:
        raise _failure("load", store, sessions, error) from error


def commit(leases: list[Lease], plan: Sequence[Sequence[Change]]) -> None:
    """Carry out the changes planned for each of ``leases``, which are gone then; or none of them.

    If a store fails, only the ``leases`` of those behind it are left, for `let_go`.
    """
    for number, (store, token, sessions) in enumerate(leases):
        try:
            store.commit(token, plan[number])
        except BaseException as error:
            written = leases[:number] if store.atomic else leases[: number + 1]
            del leases[: number + 1]
            _undo(written, plan)
            if isinstance(error, SessionError) or not isinstance(error, Exception):
                raise
            raise _failure("save", store, sessions, error) from error
    leases.clear()


def let_go(leases: list[Lease], *, touch: bool) -> None:
    """Release what is leased; if ``touch``, the sessions expire one ttl from now."""
    while leases:
        store, token, sessions = leases.pop(0)
        touched = [as_it_was(session) for session in sessions if touch and has_ttl(session)]
        try:
            store.commit(token, touched)
        except Exception as error:  # one that matters more is on its way to the caller
            logger.warning("%s", _failure("release", store, sessions, error))
        except BaseException:  # Ctrl-C
            let_go(leases, touch=touch)
            raise


def has_ttl(session: Session) -> bool:
    """Whether the time to live of what is stored has to count from now."""
    return session._declaration.seconds is not None and session._stored is not None


def as_it_was(session: Session) -> Change:
    """The change that leaves a session as it was opened."""
    return session._name, session._stored, session._declaration.seconds


def _undo(leases: Sequence[Lease], plan: Sequence[Sequence[Change]]) -> None:
    """Take back what was written, as far as the stores still answer and nobody wrote since."""
    for (store, _, sessions), changes in zip(leases, plan):
        written = {name: payload for name, payload, _ in changes}
        mine = [session for session in sessions if session._name in written]
        if not mine:
            continue
        with contextlib.suppress(Exception):
            token, found = store.open([session._name for session in mine], 0)
            unspoilt = [one for one, now in zip(mine, found) if now == written[one._name]]
            store.commit(token, [as_it_was(session) for session in unspoilt])


def _failure(
    what: str, store: Store, sessions: Collection[Session], error: BaseException
) -> SessionStoreError:
    names = ", ".join(repr(session._name) for session in sessions)
    return SessionStoreError(
        f"{store!r} failed to {what} {names} with {_what(error)}. {_OUTCOMES[what]} "
        "The error itself is this one's __cause__; telebot.logger.setLevel('DEBUG') shows it."
    )


def _what(error: BaseException) -> str:
    """The kind of an error and, if one of the system's is behind it, what that means.

    Not its text, which may quote what was to be stored.
    """
    behind: BaseException | None = error
    for _ in range(10):  # there may be a circle of them
        if isinstance(behind, OSError) and isinstance(behind.errno, int):
            return f"{called(type(error))} ({os.strerror(behind.errno)})"
        behind = getattr(behind, "__cause__", None) or getattr(behind, "__context__", None)
    return called(type(error))


_OUTCOMES = {
    "load": "The handler did not run.",
    "save": "What the handler changed was not saved, unless only the answer was lost.",
    "release": "There was nothing to save.",
}
