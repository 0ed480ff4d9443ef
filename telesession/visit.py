"""What happens around a handler: one update's visit to the sessions of a stack.

The sessions are locked in sorted order, loaded and injected; the handler runs; the sessions are
closed; what changed is saved; the locks are released. A handler called by another handler joins
the sessions that the outer visit has open already.

Every update of every bot passes through here, so what is rare stands in functions of its own.
"""

import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from telesession.checks import called, kind
from telesession.codecs import Unkeepable, encode
from telesession.data import ClosedSession, NoSession, Session
from telesession.errors import SessionBusy, SessionDataError, SessionError, SessionStoreError
from telesession.locks import EVICTION, LockKey, locks
from telesession.stores import Change, Payload, Store

if TYPE_CHECKING:
    from telesession.declaration import Declaration
    from telesession.wrapper import Condition, Stack

logger = logging.getLogger("telesession")

_MISSING: Any = object()

#: By the id of their update, visits whose handler was not for it and that wait for its next one.
#: Whoever pops a visit from here is the one who may do something with it.
_passed_on: "dict[int, Visit]" = {}
_NONE: Sequence[Any] = ()  # not a list, since most visits need none of theirs

#: The sessions of a visit that live on one store, behind the store's own token for them.
Lease: TypeAlias = tuple[Store, Any, Collection[Session]]


class Dropped(SessionBusy):
    """A session with ``busy="drop"`` is in use."""


class Visit:
    """One update's visit to the sessions of a stack; the holder of their locks."""

    __slots__ = (
        "_absent",
        "_joined",
        "_kept",
        "_leases",
        "_locked",
        "_update",
        "opened",
        "thread",
        "waits_since",
    )

    def __init__(self, stack: "Stack", update: Any) -> None:
        self.thread = get_ident()
        self.waits_since = 0.0
        self.opened: dict[LockKey, Session] = {}  # what visits further in may join
        self._update = update
        self._leases: list[Lease] = []
        self._absent: Sequence[tuple[str, NoSession]] = _NONE
        # what we joined, and what we made of it where the outer handler had removed it
        self._joined: Sequence[tuple[Session, dict[str, Any] | None]] = _NONE
        names: list[str] = []
        for declaration in stack.declarations:
            name = declaration.name(update)
            if name is None:
                self._do_without(declaration)
                continue
            names.append(name)
            session = Session()
            session._declaration = declaration
            session._name = name
            session._update = update
            session._guests = session._inner = ()
            self.opened[name + declaration.lock_suffix] = session
        if _passed_on and self._take_over():
            return
        self._locked = locks.acquire(self.opened, self)
        try:
            if len(self._locked) < len(self.opened):
                self._join()
                names = [session._name for session in self.opened.values()]
            if len(stack.stores) > 1:
                self._open_each(stack)
            elif names:
                self._open(stack.stores[0], names, self.opened.values(), stack.lock_timeout)
        except BaseException:
            self._give_up()
            raise

    def save(self) -> None:
        """Save what the handler changed: all of it, or nothing and raise."""
        for property, absent in self._absent:
            left = getattr(self._update, property, None)
            if left is not None and not isinstance(left, (NoSession, Session)):
                absent._refuse()
        plan: list[list[Change]] = []
        replaced: Sequence[tuple[Session, dict[str, Any]]] = _NONE
        for _, _, sessions in self._leases:
            changes: list[Change] = []
            for session in sessions:
                declaration = session._declaration
                left = getattr(self._update, declaration.attribute, None)
                session.__class__ = ClosedSession
                data = dict(session) if left is session else _replacement(session, left)
                if data or session._stored is not None:
                    payload = _encode(session, data)
                    if payload is not session._before:
                        kept = payload if data else None
                        changes.append((session._name, kept, declaration.seconds))
                    elif _has_ttl(session):
                        changes.append(_as_it_was(session))
                if left is not session:
                    replaced = (*replaced, (session, data))
            plan.append(changes)
        for session, data in replaced:
            _refill(session, data)
        leases, self._leases = self._leases, []
        for number, (store, token, sessions) in enumerate(leases):
            try:
                store.commit(token, plan[number])
            except BaseException as error:
                self._leases = leases[number + 1 :]
                _undo(leases[: number + 1], plan)
                if not _foreign(error):
                    raise
                raise _failure("save", store, sessions, error) from error

    def abandon(self) -> None:
        """Let go without saving: the handler raised, or saving did."""
        for session in self.opened.values():
            left = getattr(self._update, session._declaration.attribute, None)
            session.__class__ = ClosedSession
            if left is not session and not isinstance(left, Session):
                _refill(session, dict(left) if isinstance(left, dict) else dict(session))
        self._let_go(touch=True)

    def leave(self) -> None:
        """Hand back what was joined, and unlock what wasn't."""
        try:
            for property, absent in self._absent:
                if not isinstance(getattr(self._update, property, None), (NoSession, Session)):
                    setattr(self._update, property, absent)
            if self._joined:
                self._hand_back()
        finally:
            locks.release(self._locked)

    def matches(self, conditions: Iterable[tuple["Declaration", "Condition"]]) -> bool:
        """Whether the handler is for sessions in this state."""
        for declaration, condition in conditions:
            session = getattr(self._update, declaration.attribute)
            if isinstance(session, NoSession) or not condition(session):
                return False
        return True

    def pass_on(self) -> Any:
        """Keep the sessions as they were stored, and locked, for the update's next handler.

        What is returned has pyTelegramBotAPI go on to that handler. It also stands for our claim:
        when pyTelegramBotAPI drops it, and no handler has taken the sessions over, we let go.
        """
        for session in self.opened.values():
            session.__class__ = ClosedSession
        if self._joined or not self.opened:
            self._let_go(touch=False)
            return _continue_handling()()
        self._kept = self._locked, time.monotonic()
        self._locked = ()
        _passed_on[id(self._update)] = self
        return _continue_handling()(self._withdraw)

    def lock_timeout(self, key: LockKey) -> float:
        """Seconds to wait for the lock ``key``."""
        declaration = self.opened[key]._declaration
        if declaration.busy == "drop":
            raise Dropped(f"{self.opened[key]._name!r} is in use by another handler")
        return declaration.lock_timeout

    def evict(self) -> None:
        """Let go if the handler that we keep the sessions for doesn't come.

        So it is if another one raised: as long as its traceback lives, what `pass_on` gave does.
        """
        if _passed_on.get(id(self._update)) is self:
            _, since = self._kept
            if time.monotonic() - since >= EVICTION:
                self._withdraw()

    def _withdraw(self) -> bool:
        """Let go of what we passed on, if nobody took it."""
        if _passed_on.get(id(self._update)) is not self:
            return False
        if _passed_on.pop(id(self._update), None) is None:
            return False
        self._let_go(touch=False)
        locks.release(self._kept[0])
        return True

    def _take_over(self) -> bool:
        """Have what the update's last handler, which was not for it, passed on."""
        before = _passed_on.pop(id(self._update), None)
        if before is None:
            return False
        self._locked = before._kept[0]
        locks.hand_over(self._locked, self)
        self._leases, before._leases = before._leases, []
        if before.opened.keys() != self.opened.keys():
            self._let_go(touch=False)
            locks.release(self._locked)
            return False
        declarations = {key: session._declaration for key, session in self.opened.items()}
        self.opened = before.opened
        try:
            for key, session in self.opened.items():
                session.__class__ = Session
                session.clear()
                session._declaration = declarations[key]
                _fill(session, session._stored)
                setattr(self._update, session._declaration.attribute, session)
        except BaseException:
            self._give_up()
            raise
        return True

    def _give_up(self) -> None:
        """Let go of what could not be opened."""
        try:
            for session in self.opened.values():
                session.__class__ = ClosedSession
            self._let_go(touch=False)
        finally:
            self.leave()

    def _open(
        self, store: Store, names: list[str], sessions: Collection[Session], timeout: float
    ) -> None:
        """Read the sessions that live on one store, and inject them."""
        if self.waits_since:
            timeout = max(0.0, timeout - (time.monotonic() - self.waits_since))
        try:
            token, payloads = store.open(names, timeout)
        except SessionError:
            raise
        except Exception as error:
            raise _failure("load", store, sessions, error) from error
        self._leases.append((store, token, sessions))
        for session, stored in zip(sessions, payloads):
            _fill(session, stored)
            _inject(self._update, session._declaration.attribute, session)

    def _open_each(self, stack: "Stack") -> None:
        for store in stack.stores:
            mine = [one for one in self.opened.values() if one._declaration.backend is store]
            if mine:
                self._open(store, [one._name for one in mine], mine, stack.lock_timeout)

    def _do_without(self, declaration: "Declaration") -> None:
        if inspect.isfunction(self._update):
            raise TypeError(
                f"{called(self._update)} was handed to a handler as its update. If that is "
                "`@with_session(key)`: options are given by keyword, `@with_session(key=...)`."
            )
        absent = NoSession(declaration.reason(self._update))
        _inject(self._update, declaration.attribute, absent)
        self._absent = (*self._absent, (declaration.attribute, absent))

    def _join(self) -> None:
        """Join what visits of this thread have open; what remains in ``opened`` is ours to open."""
        hosts = {cast(Visit, locks.holder(key)) for key in self.opened} - {self}
        if any([host._withdraw() for host in hosts]):  # noqa: C419
            locks.release(self._locked)
            self._locked = ()
            self._locked = locks.acquire(self.opened, self)
        for key in list(self.opened):
            host = cast(Visit, locks.holder(key))
            if host is self:
                continue
            del self.opened[key]
            session = host.opened[key]
            property = session._declaration.attribute
            innermost = session._inner[-1] if session._inner else session._update
            current = getattr(innermost, property, None)
            fresh = None
            if current is None:  # the handler around us removed it
                current = fresh = session._declaration.start(session._name)
            elif not isinstance(current, dict):
                raise _wrong_type(session, current)
            others = (session._update, *session._guests)
            if not any(self._update is other for other in others):
                if getattr(self._update, property, None) is not session:  # as a copy's may be
                    _check_free(self._update, property)
                session._guests = (*session._guests, self._update)
            setattr(self._update, property, current)
            session._inner = (*session._inner, self._update)
            self._joined = (*self._joined, (session, fresh))

    def _hand_back(self) -> None:
        """Let the handler around us see what we replaced or removed."""
        for session, fresh in self._joined:
            session._inner = session._inner[:-1]
            property = session._declaration.attribute
            left = getattr(self._update, property, None)
            if left is fresh and left == session._declaration.start(session._name):
                left = None  # nothing came of it: it stays removed
            for update in (session._update, *session._guests):
                setattr(update, property, left)

    def _let_go(self, *, touch: bool) -> None:
        """Release what is leased; if ``touch``, the sessions expire one ttl from now."""
        leases, self._leases = self._leases, []
        for store, token, sessions in leases:
            touched = [_as_it_was(one) for one in sessions if touch and _has_ttl(one)]
            try:
                store.commit(token, touched)
            except Exception as error:  # one that matters more is on its way to the caller
                logger.warning("%s", _failure("release", store, sessions, error))


def _fill(session: Session, stored: Payload | None) -> None:
    declaration = session._declaration
    session._stored = session._before = stored
    if stored is None:
        _start(session)
        return
    try:
        data = declaration.codec.loads(stored)
    except Exception as error:
        raise declaration.unreadable(session._name) from error
    if not isinstance(data, dict):
        raise declaration.unreadable(session._name)
    session.update(data)


def _start(session: Session) -> None:
    """Fill a session of which nothing is stored."""
    start = session._declaration.start(session._name)
    if start:
        session._before = _encode(session, start)
        # decoded again, so that no part of it is shared with the next session
        session.update(session._declaration.codec.loads(session._before))


def _encode(session: Session, data: dict[str, Any]) -> Payload:
    declaration = session._declaration
    try:
        return encode(declaration.codec, data, session._before)
    except Unkeepable as error:
        raise declaration.unkeepable(session._name, error) from error.__cause__


def _replacement(session: Session, left: Any) -> dict[str, Any]:
    """The content of what the handler put in the place of a session."""
    if left is None:
        return {}
    if not isinstance(left, dict):
        raise _wrong_type(session, left)
    return {key: dict(one) if isinstance(one, Session) else one for key, one in left.items()}


def _refill(session: Session, data: dict[str, Any]) -> None:
    """Have a closed session show what was put in its place, on all updates that it was on."""
    dict.clear(session)
    dict.update(session, data)
    for update in (session._update, *session._guests):
        setattr(update, session._declaration.attribute, session)


def _wrong_type(session: Session, left: Any) -> SessionDataError:
    return SessionDataError(
        f"{session._declaration.attribute!r} was set to a value of type {type(left).__name__} for "
        f"{session._name!r}. Set it to a dict, or to None to remove the session."
    )


def _inject(update: Any, property: str, session: Any) -> None:
    _check_free(update, property)
    setattr(update, property, session)


def _check_free(update: Any, property: str) -> None:
    """Refuse to hide an attribute that is not what an earlier handler left."""
    existing = getattr(update, property, _MISSING)
    if existing is _MISSING or isinstance(existing, (ClosedSession, NoSession)):
        return
    if isinstance(existing, Session):
        raise SessionError(
            f"{property!r} of {kind(update)} holds {existing._name!r}, which is still open, so it "
            "can't hold another session. Give one of the two declarations its own property."
        )
    raise SessionError(
        f"property={property!r}: {kind(update)} has an attribute of that name already, which a "
        "session would hide. Give with_session another property."
    )


def _undo(leases: Sequence[Lease], plan: Sequence[Sequence[Change]]) -> None:
    """Take back what was written, as far as the stores still answer and nobody wrote since."""
    for (store, _, sessions), changes in zip(leases, plan):
        written = {name: payload for name, payload, _ in changes}
        mine = [session for session in sessions if session._name in written]
        if not mine:
            continue
        with contextlib.suppress(Exception):
            token, found = store.open([session._name for session in mine], 0)
            unspoilt = [one for one, now in zip(mine, found) if now == written[one._name]]
            store.commit(token, [_as_it_was(session) for session in unspoilt])


@functools.cache
def _continue_handling() -> Any:
    """What tells pyTelegramBotAPI to go on to its next handler, and us when it is through."""
    from telebot.handler_backends import ContinueHandling

    class PassedOn(ContinueHandling):
        def __init__(self, let_go: Callable[[], object] = lambda: None) -> None:
            self._let_go = let_go

        def __del__(self) -> None:
            self._let_go()

    return PassedOn


def _has_ttl(session: Session) -> bool:
    return session._declaration.seconds is not None and session._stored is not None


def _as_it_was(session: Session) -> Change:
    return session._name, session._stored, session._declaration.seconds


def _foreign(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, SessionError)


def _failure(
    what: str, store: Store, sessions: Collection[Session], error: BaseException
) -> SessionStoreError:
    names = ", ".join(repr(session._name) for session in sessions)
    return SessionStoreError(
        f"{store!r} failed to {what} {names} with {called(type(error))}. {_OUTCOMES[what]} "
        "The error itself is this one's __cause__; telebot.logger.setLevel('DEBUG') shows it."
    )


_OUTCOMES = {
    "load": "The handler did not run.",
    "save": "What the handler changed was not saved.",
    "release": "There was nothing to save.",
}
