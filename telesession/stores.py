"""The interface of stores: a store opens a set of sessions and commits the changes to them.

`telesession.memory` and `telesession.keyvalue` implement it without a server, `leases` with one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from telesession._checks import called
from telesession.codecs import JSON, Codec
from telesession.errors import SessionStoreError

#: A session as its codec encoded it. Empty is what is stored, but can't be a session: nobody reads
#: or writes that, and only `None` removes it.
Payload: TypeAlias = str | bytes


#: A change to one session: its name in the store, ``"<property>:<key>"``; its new payload, where
#: `None` removes the session; and the seconds from now after which it expires, where `None` is
#: never.
Change: TypeAlias = tuple[str, Payload | None, float | None]


class Store(ABC):
    """The base class of stores: `open` a set of sessions, `commit` the changes to them.

    All sessions of a stack that live on one store are opened by one call and committed by one
    call, so a store can lease and read them in one round trip and write and release them in
    another. Handlers of one process queue before they call a store. Where a stack lives on several
    stores, and a later one fails to commit, the sessions of an earlier one are opened once more,
    with a ``timeout`` of 0, to undo the changes.

    Errors: a `SessionError` that a store raises is passed on; any other `Exception` reaches the
    caller as a `SessionStoreError` with that exception as its cause.
    """

    #: The codec of declarations that name none.
    codec: Codec = JSON

    @property
    def identity(self) -> object:
        """The same object for all stores that keep the same sessions, so that they share locks."""
        return self

    @abstractmethod
    def open(
        self, names: Sequence[str], timeout: float, lease: Any = None
    ) -> tuple[Any, Sequence[Payload | None]]:
        """Read the sessions ``names``, in this order, `None` for each that isn't stored.

        A store that leases takes the leases first, for all or none, waits up to ``timeout``
        seconds for them and then raises `SessionBusy`; the first item returned is its lease, an
        object of any kind, which `commit` gets. It is `None` for a store that can't fail.

        With ``lease``, which an earlier call returned and `commit` has not got yet, the sessions
        are added to that lease, so that one commit writes all of them, and it is returned. None of
        ``names`` is in it already. If this call fails, ``lease`` is as it was before.
        """

    @abstractmethod
    def commit(self, lease: Any, changes: Sequence[Change]) -> None:
        """Carry out ``changes``, all or none of them, and release ``lease``.

        Called once for every `open` without ``lease``, with no changes when there is nothing to
        write. Opened sessions that ``changes`` don't name stay as they are. A store that leases
        writes only while it holds the lease, and raises `SessionLost` otherwise.

        All or none holds even if a signal handler raises at any line, as for `KeyboardInterrupt`.
        After this call raised, or was interrupted before it began, it may be called again with no
        changes: that releases ``lease`` if it is still held, and does nothing otherwise.
        """

    def names(self, prefix: str) -> Iterator[str]:
        """Iterate over the names of the stored sessions that begin with exactly ``prefix``.

        Expired ones are left out. A store outside of the process is asked page by page, and no lock
        is held between two names. Each session that is stored all the while comes once; sessions
        that come or go meanwhile may be missing or not.

        Raises `SessionStoreError`, at the call, where the store can't list what it keeps.
        """
        raise SessionStoreError(
            f"{self!r} can't list the sessions that it keeps. Keep their keys in a session of your "
            "own (with key=keys.everyone), or use a store that can: MemoryStore, RedisStore, "
            "SQLStore, MongoStore, a dict or a diskcache.Cache."
        )

    def cure(self, error: Exception) -> str:
        """Advice on an error of the client: a sentence and a space, or ``""``."""
        return ""

    def refused(self, error: Exception) -> bool:
        """Whether ``error`` proves that the server did nothing: it refused, or was never asked.

        `False` where the server may have done it, and only its answer is missing.
        """
        return False

    def peek(self, name: str) -> Payload | None:
        """Read the payload of one session, or `None`, without a lease and without waiting.

        That is no use of the session: its expiry, and its place among the least recently used,
        stay as they are.
        """
        raise SessionStoreError(
            f"{self!r} can't read a session without opening it: open it, or use a store that can."
        )


def partly_saved(
    store: Store, left: Sequence[str], failed: Sequence[str], error: Exception
) -> SessionStoreError:
    """The error for a save that failed half-way and could not be undone.

    Args:
        store: the store that failed.
        left: the names of the sessions that stay saved.
        failed: the names among ``left`` whose own saving failed, so that they may not be saved.
        error: the error that ended the saving.
    """
    saved = ", ".join(repr(name) for name in left if name not in failed)
    unsure = ", ".join(map(repr, failed))
    return SessionStoreError(
        f"{store!r} gave up with {called(type(error))} in the middle of saving an update, and then "
        "failed to take back what it had saved. "
        + (f"{saved}: saved. " if saved else "")
        + (f"{unsure}: perhaps saved. " if unsure else "")
        + "The other sessions of the update were not saved.",
        left[0],
    )
