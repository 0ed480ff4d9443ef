"""What a store is, to telesession: it opens a set of sessions and commits what became of them.

`telesession.memory` and `telesession.keyvalue` have the two that need no server.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from telesession._checks import called
from telesession.codecs import JSON, Codec
from telesession.errors import SessionStoreError

#: What a codec made of a session.
Payload: TypeAlias = str | bytes


#: What becomes of one session at the end of an update: its name in the store, which is
#: ``"<property>:<key>"``; what to keep, where `None` removes the session; and the seconds from now
#: after which it expires, where `None` is never.
Change: TypeAlias = tuple[str, Payload | None, float | None]


class Store(ABC):
    """What telesession asks of a store: open a set of sessions, commit what became of them.

    All sessions of a stack that live on one store are opened by one call and committed by one
    call, so a store can lease and read them in one round trip and write and release them in
    another. Handlers of one process have queued before they come here. Only where a stack lives on
    several stores, and a later one failed to commit, are the sessions of an earlier one opened once
    more, with no time to wait, to take back what was written.

    Errors: a `SessionError` that a store raises is passed on; any other `Exception` reaches the
    caller as a `SessionStoreError` with that exception as its cause.
    """

    #: Used by declarations that name no codec of their own.
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
        seconds for them and then raises `SessionBusy`; the first item returned is its lease, in
        whatever form, to be handed to `commit`. It is `None` for a store that can't fail.

        With ``lease``, which an earlier call returned and `commit` has not had yet, the sessions
        are added to it, so that one commit writes all of them; it is returned. None of ``names``
        is in it already. If this fails, ``lease`` is as it was before.
        """

    @abstractmethod
    def commit(self, lease: Any, changes: Sequence[Change]) -> None:
        """Carry out ``changes``, all or none of them, and let go of ``lease``.

        Called for every `open` without ``lease``, with no changes when there is nothing to write.
        Sessions that were opened and aren't named stay as they are. A store that leases writes
        only while it holds the lease and raises `SessionLost` otherwise.

        All or none also where an exception out of a signal handler, such as `KeyboardInterrupt`,
        comes at any line. After an exception came out of it, or in its place, it may be called
        once more with no changes: that lets go of ``lease`` if it is still held, and does nothing
        otherwise.
        """

    def names(self, prefix: str) -> Iterator[str]:
        """Iterate over the names of the stored sessions that begin with exactly ``prefix``.

        Expired ones are left out. A store outside of the process is asked page by page, and
        between two names nothing is held: other threads go on. Each session that is stored all
        the while comes once; those that come or go meanwhile may be missing or not.

        Raises `SessionStoreError`, at the call, where the store can't list what it keeps.
        """
        raise SessionStoreError(
            f"{self!r} can't list the sessions that it keeps. Keep their keys in a session of your "
            "own (with key=keys.everyone), or use a store that can: MemoryStore, RedisStore, "
            "SQLStore, MongoStore, a dict or a diskcache.Cache."
        )

    def cure(self, error: Exception) -> str:
        """What to do about an error of the client: a sentence and a space, or nothing."""
        return ""

    def refused(self, error: Exception) -> bool:
        """Whether nothing was done, since the server refused, or was never asked.

        Not where the answer may be all that is missing.
        """
        return False

    def peek(self, name: str) -> Payload | None:
        """Read one session as it is stored, or `None`, and change nothing by that.

        It takes no lease and waits for nobody who has the session; the session expires when it
        would have expired anyway, and is as long unused as it was.
        """
        raise SessionStoreError(
            f"{self!r} can't read a session without opening it: open it, or use a store that can."
        )


def partly_saved(
    store: Store, left: Sequence[str], failed: Sequence[str], error: Exception
) -> SessionStoreError:
    """What to raise when what was saved could not be taken back.

    Args:
        store: it failed.
        left: the names of the sessions that stay saved.
        failed: those among them for which saving failed, so that perhaps they were not.
        error: why saving was given up.
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
