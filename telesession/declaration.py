"""`Declaration`: one session as `with_session` declares it, and what can be done with it."""

import contextlib
import copy
import pickle
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from telesession import codecs, keys
from telesession.checks import (
    called,
    checked_busy,
    checked_callable,
    checked_codec,
    checked_property,
    checked_seconds,
    kind,
)
from telesession.data import Session
from telesession.errors import SessionDataError, SessionError, SessionUnavailable
from telesession.keyvalue import as_store
from telesession.memory import default_store
from telesession.stores import Store
from telesession.visit import Visit
from telesession.wrapper import Stack, wrap

Handler = TypeVar("Handler", bound=Callable[..., Any])
_MISSING: Any = object()


class Declaration:
    """One session as `with_session` declares it; decorates any number of handlers."""

    def __init__(
        self,
        *,
        property: str,
        key: Callable[[Any], keys.Key],
        ttl: float | timedelta | None,
        store: Any,
        initial: Callable[[], dict[Any, Any]],
        codec: codecs.Codec | None,
        lock_timeout: float | timedelta,
        busy: str,
    ) -> None:
        self.attribute = checked_property(property)
        self._key: Callable[[Any], keys.Key] = checked_callable("key", key)
        self._initial = checked_callable("initial", initial)
        self.seconds: float | None = None if ttl is None else checked_seconds("ttl", ttl)
        self.lock_timeout: float = checked_seconds("lock_timeout", lock_timeout)
        self.busy = checked_busy(busy)
        self._given_store = default_store if store is None else store
        self.backend: Store = as_store(self._given_store)
        self.lock_suffix = f"@{id(self.backend.identity)}"
        self.codec = self.backend.codec if codec is None else checked_codec(codec)

    @property
    def key(self) -> Callable[[Any], keys.Key]:
        """The key function."""
        return self._key

    @property
    def store(self) -> Any:
        """The store as it was given, or the process-wide `MemoryStore`."""
        return self._given_store

    @property
    def ttl(self) -> float | None:
        """Seconds after which a session that no update opened expires, or `None`.

        A new value counts for each session from its next save.
        """
        return self.seconds

    @ttl.setter
    def ttl(self, ttl: float | timedelta | None) -> None:
        self.seconds = None if ttl is None else checked_seconds("ttl", ttl)

    def __call__(self, handler: Handler) -> Handler:
        return wrap(self, handler)

    def when(
        self, *conditions: Callable[[Session], object], **values: object
    ) -> Callable[[Handler], Handler]:
        """A decorator for a handler that is for some states of the session only.

        ::

            @bot.message_handler(func=lambda m: True)
            @session.when(step="name")
            def take_name(message): ...

        The handler runs if the session, locked and loaded, has all ``values`` (`None` also
        stands for a key that it hasn't) and all ``conditions``, called with it, are true. Else
        nothing is saved and pyTelegramBotAPI goes on to its next handler; if that is one with the
        same sessions it gets them as they are, still locked, so nobody comes in between. Conditions
        are to look only, not to change anything.
        """
        for condition in conditions:
            if not callable(condition):
                raise TypeError(
                    f"when({condition!r}) takes functions, and values by name: when(step='name')"
                )
            checked_callable("when", condition)
        if not conditions and not values:
            raise TypeError("when() needs something to tell by, such as when(step='name')")

        def matches(session: Session) -> bool:
            return all(session.get(key) == value for key, value in values.items()) and all(
                condition(session) for condition in conditions
            )

        def decorate(handler: Handler) -> Handler:
            if not callable(getattr(handler, "__func__", handler)):  # it was `@session.when`
                raise TypeError("when goes above a handler with parentheses: @session.when(n=1)")
            return wrap(self, handler, matches)

        return decorate

    @contextlib.contextmanager
    def open(self, update: Any = _MISSING, *, key: Any = _MISSING) -> Iterator[Session]:
        """The session outside a handler: in a timer, a thread, a command for another user.

        ::

            with session.open(key="42:99") as data:
                data["reminded"] = True

        Locked, loaded, saved and refused as in a handler; a session that this thread has open
        already is joined. It always waits for a session that is in use, whatever ``busy`` says.

        Args:
            update: whose session it is, by the declaration's key function; or
            key: what the key function would give.

        Raises:
            SessionUnavailable: the update has no session.
            SessionError: as a handler would.
        """
        neither_or_both = (update is _MISSING) == (key is _MISSING)
        if neither_or_both or isinstance(update, (str, int, dict, type(None))):
            raise TypeError("open takes an update, or a key: open(message) or open(key='42:99')")
        outside = types.SimpleNamespace()
        if update is not _MISSING:
            name = self.name(update)
        else:
            name = self._name_of(key, f"open was given the key {key!r}")
        if name is None:
            raise SessionUnavailable(
                self.reason(update)
                if key is _MISSING
                else f"{self.attribute!r} can't be opened with key=None. Give the key of a session."
            )
        one = copy.copy(self)
        one.busy = "wait"
        one._key = lambda outside: name.partition(":")[2]
        visit = Visit(Stack(one), outside)
        try:
            yield getattr(outside, self.attribute)
            visit.save()
        except BaseException:
            visit.abandon()
            raise
        finally:
            visit.leave()

    def name(self, update: Any) -> str | None:
        """The name of the update's session in the store."""
        try:
            key = self._key(update)
        except Exception as error:
            raise SessionError(
                f"the key function {called(self._key)} of {self.attribute!r} failed on "
                f"{kind(update)} with {type(error).__name__}. Have it return None for updates "
                "that have no session, or take one of telesession.keys, which know all updates."
            ) from error
        if type(key) is int or (type(key) is str and key):
            return f"{self.attribute}:{key}"
        given = f"the key function {called(self._key)} gave {key!r} for {kind(update)}"
        return self._name_of(key, given)

    def _name_of(self, key: Any, given: str) -> str | None:
        if key is None:
            return None
        if not isinstance(key, (str, int)) or isinstance(key, bool) or key == "":
            raise SessionError(
                f"{self.attribute!r}: {given}. A key is an int, such as message.chat.id, or a str "
                "that isn't empty, or None for no session."
            )
        return f"{self.attribute}:{key}"

    def reason(self, update: Any) -> str:
        """Why the update has no session, and what to do about it."""
        known = [called(key) for key in (keys.user, keys.chat) if key(update) is not None]
        cure = (
            f"that this one has, such as telesession.keys.{known[0]}"
            if known
            else "function of your own, since this one names neither user nor chat"
        )
        return (
            f"{self.attribute!r} is not available: the key function {called(self._key)} gave None "
            f"for {kind(update)}. Ask `isinstance(update.{self.attribute}, dict)` first, or give "
            f"with_session a key {cure}."
        )

    def start(self, name: str) -> dict[Any, Any]:
        data = self._initial()
        if not isinstance(data, dict):
            raise SessionDataError(
                f"initial={called(self._initial)} gave a {type(data).__name__} for {name!r}: "
                "it has to return a new dict each time it is called"
            )
        return dict(data)

    def unreadable(self, name: str) -> SessionDataError:
        return SessionDataError(
            f"what is stored under {name!r} can't be read with codec={called(self.codec)}. It is "
            "left as it is, and the handler did not run. Read it with the codec that wrote it, "
            "or delete it from the store."
        )

    def unkeepable(self, name: str, error: codecs.Unkeepable) -> SessionDataError:
        return SessionDataError(
            f"{self.attribute}{error.path} in {name!r} is {error.what}, which "
            f"codec={called(self.codec)} can't keep or would change. Nothing was saved. "
            f"{_KEEPS.get(id(self.codec), 'Please convert the value, or give another codec.')}"
        )

    @property
    def property(self) -> str:  # last, since it hides the builtin in this class
        """The attribute of the update that holds the session."""
        return self.attribute


_KEEPS = {
    id(codecs.JSON): "JSON keeps dicts with str keys, lists, str, int, bool, None and finite "
    "floats: convert the value. If nobody else can write to the store, codec=pickle keeps more.",
    id(pickle): "pickle keeps what can be imported, so no lambda, lock, open file or bot: convert "
    "the value to what describes it.",
}
