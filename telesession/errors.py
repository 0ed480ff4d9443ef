"""What can go wrong with a session, each with a message that says what to do about it.

Misuse that is visible at decoration is a `TypeError` or `ValueError`; everything that happens
while the bot runs is a `SessionError`. Messages name the property and the key of the session;
of its content they show short keys at the most, so that they can be logged.
"""


class SessionError(Exception):
    """The root of all errors that telesession raises while a bot runs.

    Args:
        message: what went wrong, and what to do about it.
        name: the session's name in its store, ``"<property>:<key>"``, or a property alone.
    """

    property: str | None = None  #: the property of the session, where the error is about one
    key: str | None = None  #: its key, as text, where it has one

    def __init__(self, message: str = "", name: str = "") -> None:
        super().__init__(message)
        self.about(name)

    def add(self, sentence: str) -> None:
        """Say something more, at the end of the message."""
        self.args = (f"{self} {sentence}",)

    def about(self, name: str) -> None:
        """Note which session the error is about, unless that is known already."""
        if self.property is None and name:
            self.property, colon, key = name.partition(":")
            self.key = key if colon else None


class SessionUnavailable(SessionError):
    """A session was used on an update for which the key function gave `None`."""


class SessionBusy(SessionError):
    """A session is in use: longer than `lock_timeout`, or by a handler that waits for this one."""


class SessionClosed(SessionError):
    """A session was changed after its handler returned, when nothing would save the change."""


class SessionDataError(SessionError):
    """A session's content can't be saved as it is, or stored data can't be read."""


class SessionStoreError(SessionError):
    """The store failed; the client's own error, where there is one, is the `__cause__`."""


class SessionLost(SessionError):
    """The lease of a session ran out while its handler ran, so the save was refused."""
