"""What a store is, to telesession: it opens a set of sessions and commits what became of them.

`telesession.memory` and `telesession.keyvalue` have the two that need no server.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

from telesession.codecs import JSON, Codec

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

    #: Whether a `commit` that raises has written nothing; else it is taken back from outside.
    atomic = True

    @property
    def identity(self) -> object:
        """The same object for all stores that keep the same sessions, so that they share locks."""
        return self

    @abstractmethod
    def open(self, names: Sequence[str], timeout: float) -> tuple[Any, Sequence[Payload | None]]:
        """Read the sessions ``names``, in this order, `None` for each that isn't stored.

        A store that leases takes the leases first, for all or none, waits up to ``timeout``
        seconds for them and then raises `SessionBusy`; the first item returned is its lease, in
        whatever form, to be handed to `commit`.
        """

    @abstractmethod
    def commit(self, lease: Any, changes: Sequence[Change]) -> None:
        """Carry out ``changes``, all or none of them, and let go of ``lease``.

        Called once for every `open`, with no changes when there is nothing to write. Sessions
        that were opened and aren't named stay as they are. A store that leases writes only while
        it holds the lease and raises `SessionLost` otherwise.
        """
