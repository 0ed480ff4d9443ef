"""What is asked of stores around a handler: of one, or of several as if they were one."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from telesession._checks import called
from telesession.errors import SessionError, SessionStoreError
from telesession.stores import Change, Payload, Store

logger = logging.getLogger("telesession")

_TURN = 20  # names, after which other threads have theirs


class Share:
    """The sessions that a visit has on one store: their lease, and what was stored of them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lease: Any = None
        self.found: dict[str, Payload | None] = {}
        self._asked: Sequence[str] = ()
        self._answers: Sequence[Payload | None] = ()
        self._failed = False

    def open(self, names: Sequence[str], timeout: float) -> Sequence[Payload | None]:
        """Lease further sessions, and read them."""
        self._asked, self._answers = names, ()
        try:
            self.lease, self._answers = self.store.open(names, timeout, self.lease)
        except Exception as error:
            failed("load", self.store, names, error)
        return [self.found[name] for name in names if self.has(name)]

    def has(self, name: str) -> bool:
        """Whether a session is leased; which is noted here, since an interrupt may come before."""
        self.found.update(zip(self._asked, self._answers))
        return name in self.found

    def idle(self) -> bool:
        """Whether nothing was leased: that was interrupted, or failed."""
        return self.lease is None and not self.found

    def commit(self, changes: Sequence[Change]) -> None:
        """Write, and let go."""
        try:
            self.store.commit(self.lease, changes)
        except BaseException as error:
            if isinstance(error, Exception):
                # Whom a lease is of is not asked again; without one, it was no server that failed,
                # but an exception out of a signal handler, as of an alarm.
                self._failed = self.lease is not None
                failed("save", self.store, list(self.found), error)
            raise

    def take_back(self, changes: Sequence[Change]) -> list[str]:
        """Undo what was written, if nobody wrote since; the names for which that failed."""
        if self._failed:
            return []
        names = [name for name, payload, _ in changes if payload != self.found[name]]
        if not names:
            return []
        with contextlib.suppress(Exception):
            token, now = self.store.open(names, 0)
            written = {name: (payload, ttl) for name, payload, ttl in changes}
            unspoilt = [
                (name, self.found[name], written[name][1])
                for name, payload in zip(names, now)
                if payload == written[name][0]
            ]
            self.store.commit(token, unspoilt)
            return [name for name in names if name not in {name for name, _, _ in unspoilt}]
        return names


def failed(what: str, store: Store, names: Sequence[str], error: Exception) -> NoReturn:
    """Raise what is to be said of a store's error; one of our own says it itself."""
    if isinstance(error, SessionError):
        error.about(names[0] if names else "")
        raise error
    raise failure(what, store, names, error) from error


def listed(store: Store, prefix: str) -> Iterator[str]:
    """The names that begin with ``prefix``, as `Store.names` gives them."""
    try:
        names = store.names(prefix)  # at once, so that a store that can't list says so here
    except Exception as error:
        failed("list", store, [prefix[:-1]], error)

    def each() -> Iterator[str]:
        try:
            for number, name in enumerate(names):
                if number % _TURN == 0:
                    time.sleep(0)  # so that threads with updates need not wait for a whole list
                yield name
        except Exception as error:
            failed("list", store, [prefix[:-1]], error)

    return each()


def peeked(store: Store, name: str) -> Payload | None:
    """What `Store.peek` gives."""
    try:
        return store.peek(name)
    except Exception as error:
        failed("load", store, [name], error)


def commit_all(shares: Sequence[Share], changes: Sequence[Sequence[Change]]) -> None:
    """Carry out the changes of each share, or none of them, as far as the stores answer."""
    done: list[tuple[Share, Sequence[Change]]] = []
    try:
        for share, theirs in zip(shares, changes):
            if share.idle():
                continue
            done.append((share, theirs))  # before, since an interrupt may come just afterwards
            share.commit(theirs)
    except BaseException as error:
        left = [name for share, theirs in done for name in share.take_back(theirs)]
        if left and isinstance(error, SessionError):
            error.add(f"{', '.join(map(repr, left))}: saved before, and could not be taken back.")
        raise


def let_go(store: Store, lease: Any, changes: Sequence[Change], names: Sequence[str]) -> None:
    """Commit where an error that matters more is on its way to the caller."""
    try:
        store.commit(lease, changes)
    except Exception as error:
        logger.warning("%s", failure("release", store, names, error))


def failure(what: str, store: Store, names: Sequence[str], error: Exception) -> SessionStoreError:
    outcome = _NOT_SAVED if what == "save" and store.refused(error) else _OUTCOMES[what]
    return SessionStoreError(
        f"{store!r} failed to {what} {', '.join(map(repr, names))} with {_what(error)}. "
        f"{store.cure(error)}{outcome} "
        "The error itself is this one's __cause__; telebot.logger.setLevel('DEBUG') shows it.",
        names[0] if names else "",
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


_NOT_SAVED = "What the handler changed was not saved."
_OUTCOMES = {
    "load": "The handler did not run.",
    "save": "Whether what the handler changed was saved is not known, since no answer came.",
    "release": "There was nothing to save.",
    "list": "What was listed so far is right.",
}
