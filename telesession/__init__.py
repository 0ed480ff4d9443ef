"""Sessions for blocking Telegram bots written with pyTelegramBotAPI, as one decorator.

This module only collects the names that most bots need: what they do is left to `declaration` and
the other modules. Stores on servers, forms, states and test helpers are imported from their own.
"""

from telesession import keys
from telesession._session import Session
from telesession.codecs import JSON
from telesession.declaration import Declaration, with_session
from telesession.errors import (
    SessionBusy,
    SessionClosed,
    SessionDataError,
    SessionError,
    SessionLost,
    SessionStoreError,
    SessionUnavailable,
)
from telesession.keyvalue import KeyValueStore
from telesession.memory import MemoryStore
from telesession.stores import Store

__all__ = [
    "Declaration",
    "JSON",
    "KeyValueStore",
    "MemoryStore",
    "Session",
    "SessionBusy",
    "SessionClosed",
    "SessionDataError",
    "SessionError",
    "SessionLost",
    "SessionStoreError",
    "SessionUnavailable",
    "Store",
    "keys",
    "with_session",
]
