"""What can go wrong with a session, each with a message that says what to do about it.

Misuse that is visible at decoration is a `TypeError` or `ValueError`; everything that happens
while the bot runs is a `SessionError`. Messages name the property and the key of the session,
never its content, so that they can be logged.
"""


class SessionError(Exception):
    """The root of all errors that telesession raises while a bot runs."""


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
