"""A declaration's checked options, and its sessions' names. `_checks` has the rules."""

import difflib
import inspect
import logging
import pickle
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeAlias

from telesession import codecs, keys
from telesession._checks import (
    called,
    checked_busy,
    checked_callable,
    checked_codec,
    checked_property,
    checked_seconds,
    kind,
    short_repr,
)
from telesession._locks import locks_of
from telesession.errors import SessionDataError, SessionError
from telesession.keyvalue import as_store
from telesession.memory import default_store

logger = logging.getLogger("telesession")

Busy: TypeAlias = Literal["wait", "drop"] | Callable[..., object]


class Options:
    """The options of `with_session`, all by keyword, checked and with their defaults."""

    def __init__(
        self,
        *,
        property: str = "session",
        key: Callable[[Any], keys.Key] = keys.user_chat,
        ttl: float | timedelta | None = None,
        store: Any = None,
        initial: Callable[[], dict[Any, Any]] = dict,
        upgrade: Callable[[dict[Any, Any]], object] | None = None,
        codec: codecs.Codec | None = None,
        lock_timeout: float | timedelta = 60.0,
        busy: Busy = "wait",
    ) -> None:
        self.property = checked_property(property)
        self.key: Callable[[Any], keys.Key] = checked_callable("key", key)
        self._told = False  # whether `check_form` has warned
        self.ttl = None if ttl is None else checked_seconds("ttl", ttl)
        self.given_store = default_store if store is None else store
        self.store = as_store(self.given_store)
        self.initial = checked_callable("initial", initial)
        self.upgrade = None if upgrade is None else checked_callable("upgrade", upgrade)
        self.codec: codecs.Codec = self.store.codec if codec is None else checked_codec(codec)
        self.loads = self.codec.loads
        self.encode = partial(codecs.encode, self.codec)
        #: what tells whether content has changed; `None` for `pickle`, whose payload does
        self.form = None if self.codec is pickle else partial(codecs.form, self.codec)
        self.lock_timeout = checked_seconds("lock_timeout", lock_timeout)
        self.busy: Busy = checked_busy(busy)
        self.prefix = f"{self.property}:"
        self.locks = locks_of(self.store.identity)

    def name(self, update: Any) -> str | None:
        """The name of the update's session in the store; `None` where it has no session."""
        try:
            key = self.key(update)
        except Exception as error:
            raise self.key_failed(update, error) from error
        if type(key) is str and key:
            return f"{self.prefix}{key}"
        return self.name_of_update(key, update)

    def key_failed(self, update: Any, error: Exception) -> SessionError:
        return SessionError(
            f"the key function {called(self.key)} of {self.property!r} failed on "
            f"{kind(update)} with {type(error).__name__}. Have it return None for updates "
            "that have no session, or take one of telesession.keys, which know all updates.",
            self.property,
        )

    def name_of_update(self, key: Any, update: Any) -> str | None:
        """The name of the session with ``key``, which the key function gave for ``update``."""
        return self.name_of(
            key, f"the key function {called(self.key)} gave {short_repr(key)} for {kind(update)}"
        )

    def name_of(self, key: Any, given: str) -> str | None:
        """The name of the session with ``key``; ``given`` says in a message who gave the key."""
        if key is None:
            return None
        if not isinstance(key, (str, int)) or isinstance(key, bool) or key == "":
            raise SessionError(
                f"{self.property!r}: {given}. A key is an int, such as message.chat.id, or a str "
                "that isn't empty, or None for no session.",
                self.property,
            )
        return f"{self.prefix}{key}"

    def check_form(self, key: Any) -> None:
        """Warn once about a key that the key function never gives, since it is not a pair."""
        form = _PAIRS.get(id(self.key))
        if form is None or self._told or key is None or ":" in str(key):
            return
        self._told = True
        logger.warning(
            "%r was opened with the key %r, but its key function %s gives texts such as %s: no "
            "handler would find that session.",
            self.property,
            key,
            called(self.key),
            form,
        )

    def reason(self, update: Any) -> str:
        """Why the update has no session, and what to do about it."""
        if keys.written_by_bot(update):
            return (
                f"{self.property!r} is not available: the message was written by a bot, which "
                f"names no user for {called(self.key)}. If it is call.message, hand on the call "
                "itself, menu(call); else open the session by its key: "
                "`with session.open(key=...) as data:`."
            )
        known = [called(key) for key in (keys.user, keys.chat) if key(update) is not None]
        cure = (
            f"that this one has, such as telesession.keys.{known[0]}"
            if known
            else "function of your own, since this one names neither user nor chat"
        )
        return (
            f"{self.property!r} is not available: the key function {called(self.key)} gave None "
            f"for {kind(update)}. Ask `isinstance(update.{self.property}, dict)` first, or give "
            f"with_session a key {cure}."
        )

    def start(self, name: str) -> dict[Any, Any]:
        """The data of a new session."""
        data = self.initial()
        if not isinstance(data, dict):
            raise SessionDataError(
                f"initial={called(self.initial)} gave a {type(data).__name__} for {name!r}: "
                "it has to return a new dict each time it is called",
                name,
            )
        return dict(data)

    def decoded(self, name: str, stored: "str | bytes") -> dict[Any, Any]:
        """The data of a stored session, after ``upgrade``."""
        if not stored:
            raise self.unreadable(name)
        try:
            data = self.codec.loads(stored)
        except Exception as error:
            raise self.unreadable(name) from error
        if not isinstance(data, dict):
            raise self.unreadable(name)
        if self.upgrade is not None:
            try:
                self.upgrade(data)
            except Exception as error:
                raise SessionDataError(
                    f"upgrade={called(self.upgrade)} failed on what is stored under {name!r} with "
                    f"{type(error).__name__}. It is left as it is, and the handler did not run.",
                    name,
                ) from error
        return data

    def encoded(self, name: str, data: dict[Any, Any], before: "str | bytes | None") -> Any:
        """The payload of ``data``, which is ``before`` itself if that means the same."""
        try:
            return self.encode(data, before)
        except codecs.Unkeepable as error:
            raise self.unkeepable(name, error) from error.__cause__

    def unkeepable(self, name: str, error: codecs.Unkeepable) -> SessionDataError:
        return SessionDataError(
            f"{self.property}{error.path} in {name!r} is {error.what}, which "
            f"codec={called(self.codec)} can't keep or would change. Nothing was saved. "
            f"{error.cure or _KEEPS.get(id(self.codec), _CONVERT)}",
            name,
        )

    def unreadable(self, name: str) -> SessionDataError:
        return SessionDataError(
            f"what is stored under {name!r} can't be read with codec={called(self.codec)}. It is "
            "left as it is, and the handler did not run. Read it with the codec that wrote it; if "
            "that was another program, give telesession a store of its own; or remove it: "
            "session.remove(key=...) of its declaration does, whatever it is.",
            name,
        )


#: By the id of a key function that gives pairs: examples of its keys.
_PAIRS = {
    id(keys.user_chat): "'42:-100', of user 42 in chat -100, or '42:42' in their private chat",
    id(keys.user_chat_inline): "'42:-100', or '42:42' in the private chat of user 42",
    id(keys.user_topic): "'42:-100', or '42:-100:5' in a topic",
}
_CONVERT = "Please convert the value, or give another codec."
_KEEPS = {
    id(codecs.JSON): "JSON keeps dicts with str keys, lists, str, int, bool, None and finite "
    "floats: convert the value. If nobody else can write to the store, codec=pickle keeps more.",
    id(pickle): "pickle keeps what can be imported, so no lambda, lock, open file or bot: convert "
    "the value to what describes it.",
}


def check_known(options: dict[str, Any]) -> None:
    """Refuse an unknown option, and suggest a similar one."""
    known = list(inspect.signature(Options).parameters)
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise TypeError(f"with_session has no option {option}={value!r}: {hint}")
