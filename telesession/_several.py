"""Calls to stores: saves on several stores as if they were one, and wraps what stores raise.

What to load and to save is left to `_visit`.
"""

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

_TURN = 20  # names listed before other threads get their turn


class Share:
    """A visit's sessions on one store: their lease, and their stored payloads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lease: Any = None
        self.found: dict[str, Payload | None] = {}
        self._asked: Sequence[str] = ()
        self._answers: Sequence[Payload | None] = ()
        self._failed = False

    def open(self, names: Sequence[str], timeout: float) -> Sequence[Payload | None]:
        """Lease and read further sessions."""
        self._asked, self._answers = names, ()
        try:
            self.lease, self._answers = self.store.open(names, timeout, self.lease)
        except Exception as error:
            failed("load", self.store, names, error)
        return [self.found[name] for name in names if self.has(name)]

    def has(self, name: str) -> bool:
        """Whether a session is leased. Notes `open`'s answers, as an interrupt may stop `open`."""
        self.found.update(zip(self._asked, self._answers))
        return name in self.found

    def idle(self) -> bool:
        """Whether nothing was leased, since `open` failed or was interrupted."""
        return self.lease is None and not self.found

    def commit(self, changes: Sequence[Change]) -> None:
        """Write the changes, and release the lease."""
        try:
            self.store.commit(self.lease, changes)
        except Exception as error:
            # A server that failed is not asked again. A store without leases has no server: there,
            # the error came out of a signal handler, such as an alarm's.
            self._failed = self.lease is not None
            failed("save", self.store, list(self.found), error)

    def take_back(self, changes: Sequence[Change]) -> list[str]:
        """Undo the changes, unless others wrote since; returns the names where undoing failed."""
        if self._failed:
            return []
        changed = [change for change in changes if change[1] != self.found[change[0]]]
        left = [name for name, _, _ in changed]
        if changed:
            with contextlib.suppress(Exception):
                token, now = self.store.open(left, 0)
                unspoilt = [
                    (name, self.found[name], ttl)
                    for (name, payload, ttl), present in zip(changed, now)
                    if payload == present
                ]
                self.store.commit(token, unspoilt)
                restored = {name for name, _, _ in unspoilt}
                left = [name for name in left if name not in restored]
        return left


def failed(what: str, store: Store, names: Sequence[str], error: Exception) -> NoReturn:
    """Raise a `SessionStoreError` from a client's error; pass on a `SessionError`."""
    if isinstance(error, SessionError):
        error.about(names[0] if names else "")
        raise error
    raise failure(what, store, names, error) from error


def listed(store: Store, prefix: str) -> Iterator[str]:
    """The names that begin with ``prefix``, as `Store.names` gives them."""
    try:
        names = store.names(prefix)  # not in `each`, so that a store that can't list raises now
    except Exception as error:
        failed("list", store, [prefix[:-1]], error)

    def each() -> Iterator[str]:
        try:
            for number, name in enumerate(names):
                if number % _TURN == 0:
                    time.sleep(0)  # lets threads with updates run
                yield name
        except Exception as error:
            failed("list", store, [prefix[:-1]], error)

    return each()


def peeked(store: Store, name: str) -> Payload | None:
    """The payload that `Store.peek` gives."""
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
            done.append((share, theirs))  # before the commit, which an interrupt may follow
            share.commit(theirs)
    except BaseException as error:
        left = [name for share, theirs in done for name in share.take_back(theirs)]
        if left and isinstance(error, SessionError):
            error.add(f"{', '.join(map(repr, left))}: saved before, and could not be taken back.")
        raise


def commit_or_log(
    store: Store, lease: Any, changes: Sequence[Change], names: Sequence[str]
) -> None:
    """Commit, and only log a failure, since the caller gets a more important error."""
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
    """The type of an error and, if an `OSError` caused it, what its number means.

    Not the error's text, which may quote session data.
    """
    behind: BaseException | None = error
    for _ in range(10):  # the chain may be a cycle
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
