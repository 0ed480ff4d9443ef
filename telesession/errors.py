"""The errors of sessions while a bot runs; their messages say what to do.

Misuse that is visible at decoration is a `TypeError` or `ValueError`, which `_checks` raises.
Messages name the property and the key of the session; of its content they show short keys at the
most, so that they can be logged.
"""


class SessionError(Exception):
    """The base class of all errors that telesession raises while a bot runs.

    Args:
        message: the problem and its cure.
        name: the session's name in its store, ``"<property>:<key>"``, or a property alone.
    """

    property: str | None = None  #: the property of the session, where the error is about one
    key: str | None = None  #: the session's key, as text, where it has one

    def __init__(self, message: str = "", name: str = "") -> None:
        super().__init__(message)
        self.about(name)

    def add(self, sentence: str) -> None:
        """Append a sentence to the message."""
        self.args = (f"{self} {sentence}",)

    def about(self, name: str) -> None:
        """Set the session that the error is about, unless it is set already."""
        if self.property is None and name:
            self.property, colon, key = name.partition(":")
            self.key = key if colon else None


class SessionUnavailable(SessionError):
    """A session was used on an update for which the key function gave `None`."""


class SessionBusy(SessionError):
    """A session was in use for all of ``lock_timeout``, or by a handler that waits for this one."""


class SessionClosed(SessionError):
    """A session was changed after its handler returned, when nothing saves the change any more."""


class SessionDataError(SessionError):
    """A session's content can't be saved as it is, or stored data can't be read."""


class SessionStoreError(SessionError):
    """The store failed; the client's own error, where there is one, is the `__cause__`."""


class SessionLost(SessionError):
    """The lease of a session ran out while its handler ran, so the save was refused."""
