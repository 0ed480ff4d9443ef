"""What happens around a handler: one update's visit to the sessions of a stack.

The sessions are locked in sorted order, loaded and injected; the handler runs; the sessions are
closed; what changed is saved; the locks are released. A handler called by another handler joins
the sessions that the outer visit has open already.

Every update of every bot passes through here. So `Visit.__init__`, `Visit.save` and `Visit.leave`
are written out, for the price of a call each, and what is rare stands in functions of its own.
"""

import contextlib
import logging
from collections.abc import Collection, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from telesession.codecs import Unkeepable, encode
from telesession.data import ClosedSession, NoSession, Session
from telesession.errors import SessionDataError, SessionError, SessionStoreError
from telesession.locks import LockKey, locks
from telesession.stores import Change, Payload, Store

if TYPE_CHECKING:
    from telesession.session import Declaration, Stack

logger = logging.getLogger("telesession")

_MISSING: Any = object()
_NONE: Sequence[Any] = ()  # not a list, since most visits need none of theirs

#: The sessions of a visit that live on one store, behind the store's own token for them.
Lease: TypeAlias = tuple[Store, Any, Collection[Session]]


class Visit:
    """One update's visit to the sessions of a stack; the holder of their locks."""

    __slots__ = (
        "_absent",
        "_guest_of",
        "_hidden",
        "_hosts",
        "_leases",
        "_locked",
        "_update",
        "opened",
        "thread",
    )

    def __init__(self, stack: "Stack", update: Any) -> None:
        self.thread = get_ident()
        self.opened: dict[LockKey, Session] = {}  # what visits further in may join
        self._update = update
        self._leases: list[Lease] = []
        self._absent: Sequence[tuple[str, NoSession]] = _NONE
        self._guest_of: Sequence[Session] = _NONE  # what we joined
        self._hosts: Sequence[tuple[Visit, LockKey]] = _NONE  # whose lock we opened one under
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
            session._guests = ()
            self.opened[name + declaration.lock_suffix] = session
        keys = self._with_hidden(stack) if stack.hidden else self.opened
        self._locked = locks.acquire(keys, self)
        try:
            if len(self._locked) < len(keys):
                self._join()
                names = [session._name for session in self.opened.values()]
            if len(stack.stores) > 1:
                self._open_each(stack)
            elif names:
                self._open(stack.stores[0], names, self.opened.values(), stack.lock_timeout)
            if self._hosts:
                self._lend()
        except BaseException:
            for session in self.opened.values():
                session.__class__ = ClosedSession
            self._let_go(touch=False)
            self.leave()
            raise

    def save(self) -> None:
        """Save what the handler changed: all of it, or nothing and raise."""
        if self._absent:
            self._check_absent()
        plan = []
        for store, token, sessions in self._leases:
            changes: list[Change] = []
            for session in sessions:
                declaration = session._declaration
                session.__class__ = ClosedSession
                if getattr(self._update, declaration.attribute, None) is not session:
                    _take_over(session)
                if not session and session._stored is None:
                    continue
                payload = _encode(session)
                if payload is not session._before:
                    changes.append(
                        (session._name, payload if session else None, declaration.seconds)
                    )
                elif _has_ttl(session):
                    changes.append(_as_it_was(session))
            plan.append((store, token, changes))
        leases, self._leases = self._leases, []
        for done, (store, token, changes) in enumerate(plan, 1):
            try:
                store.commit(token, changes)
            except BaseException as error:
                self._leases = leases[done:]
                _undo(leases[:done], plan)
                _raise_failure("save", store, [name for name, *_ in changes], error)

    def abandon(self) -> None:
        """Let go without saving: the handler raised, or saving did."""
        for session in self.opened.values():
            session.__class__ = ClosedSession
            with contextlib.suppress(SessionDataError):
                _take_over(session)
        self._let_go(touch=True)

    def leave(self) -> None:
        """Hand back what was joined, and unlock what wasn't."""
        if self._guest_of:
            self._hand_back()
        for host, key in self._hosts:
            host.opened.pop(key, None)
        locks.release(self._locked)

    def _open(
        self, store: Store, names: list[str], sessions: Collection[Session], timeout: float
    ) -> None:
        """Read the sessions that live on one store, and inject them."""
        try:
            token, payloads = store.open(names, timeout)
        except BaseException as error:
            _raise_failure("load", store, names, error)
        self._leases.append((store, token, sessions))
        update = self._update
        for session, stored in zip(sessions, payloads):
            declaration = session._declaration
            session._stored = session._before = stored
            if stored is None:
                _start(session)
            else:
                try:
                    data = declaration.codec.loads(stored)
                except Exception as error:
                    raise declaration.unreadable(session._name) from error
                if not isinstance(data, dict):
                    raise declaration.unreadable(session._name)
                session.update(data)
            if getattr(update, declaration.attribute, _MISSING) is not _MISSING:
                _check_free(update, declaration.attribute)
            setattr(update, declaration.attribute, session)

    def _open_each(self, stack: "Stack") -> None:
        for store in stack.stores:
            mine = [one for one in self.opened.values() if one._declaration.backend is store]
            if mine:
                self._open(store, [one._name for one in mine], mine, stack.lock_timeout)

    def lock_timeout(self, key: LockKey) -> float:
        """Seconds to wait for the lock ``key``."""
        if key in self.opened:
            return self.opened[key]._declaration.lock_timeout
        return self._hidden[key].lock_timeout

    def _do_without(self, declaration: "Declaration") -> None:
        absent = NoSession(declaration.reason(self._update))
        _inject(self._update, declaration.attribute, absent)
        self._absent = (*self._absent, (declaration.attribute, absent))

    def _check_absent(self) -> None:
        for property, absent in self._absent:
            left = getattr(self._update, property, None)
            if left is not None and not isinstance(left, NoSession):
                setattr(self._update, property, absent)
                absent._refuse()

    def _with_hidden(self, stack: "Stack") -> Collection[LockKey]:
        """The keys of our sessions, and of those that a wrapper further in will open."""
        self._hidden = {}
        for declaration in stack.hidden:
            with contextlib.suppress(SessionError):  # it may be meant for another update than ours
                name = declaration.name(self._update)
                if name is not None:
                    self._hidden[name + declaration.lock_suffix] = declaration
        return self._hidden.keys() | self.opened

    def _join(self) -> None:
        """Join what visits of this thread have open; what remains in ``opened`` is ours to open."""
        for key in list(self.opened):
            host = cast(Visit, locks.holder(key))
            session = host.opened.get(key)
            if host is self:
                continue
            if session is None:
                self._hosts = (*self._hosts, (host, key))
                continue
            del self.opened[key]
            property = session._declaration.attribute
            current = getattr(session._update, property, None)
            if not isinstance(current, dict):  # removed by the outer handler
                current = session._declaration.start(session._name)
                setattr(session._update, property, current)
            if self._update is not session._update:
                _inject(self._update, property, current)
                session._guests = (*session._guests, self._update)
            self._guest_of = (*self._guest_of, session)

    def _lend(self) -> None:
        """Let visits further in join what we opened under another visit's lock."""
        for host, key in self._hosts:
            host.opened[key] = self.opened[key]

    def _hand_back(self) -> None:
        """Let the outer handler see what we replaced or removed."""
        for session in self._guest_of:
            property = session._declaration.attribute
            left = getattr(self._update, property, None)
            if left is not getattr(session._update, property, None):
                setattr(session._update, property, left)

    def _let_go(self, *, touch: bool) -> None:
        """Release what is leased; if ``touch``, the sessions expire one ttl from now."""
        leases, self._leases = self._leases, []
        for store, token, sessions in leases:
            touched = [_as_it_was(one) for one in sessions if touch and _has_ttl(one)]
            try:
                store.commit(token, touched)
            except Exception as error:  # one that matters more is on its way to the caller
                logger.warning("%s", error, exc_info=True)


def _start(session: Session) -> None:
    """Fill a session of which nothing is stored."""
    session.update(session._declaration.start(session._name))
    if session:
        session._before = _encode(session)


def _encode(session: Session) -> Payload:
    declaration = session._declaration
    try:
        return encode(declaration.codec, dict(session), session._before)
    except Unkeepable as error:
        raise declaration.unkeepable(session._name, error) from error.__cause__


def _take_over(session: Session) -> None:
    """Make the session what the handler left on the update."""
    property = session._declaration.attribute
    left = getattr(session._update, property, None)
    if left is session:
        return
    for update in (session._update, *session._guests):
        setattr(update, property, session)
    if left is not None and not isinstance(left, dict):
        raise SessionDataError(
            f"{property!r} was set to a {type(left).__name__} for {session._name!r}. "
            "Set it to a dict, or to None to remove the session."
        )
    dict.clear(session)
    dict.update(session, left or ())


def _inject(update: Any, property: str, session: Any) -> None:
    if getattr(update, property, _MISSING) is not _MISSING:
        _check_free(update, property)
    setattr(update, property, session)


def _check_free(update: Any, property: str) -> None:
    """Refuse to hide an attribute that is not what an earlier handler left."""
    existing = getattr(update, property)
    if isinstance(existing, (ClosedSession, NoSession)):
        return
    kind = type(update).__name__
    if isinstance(existing, Session):
        raise SessionError(
            f"{property!r} of this {kind} holds {existing._name!r}, which is still open, so it "
            "can't hold another session. Give one of the two declarations its own property."
        )
    raise SessionError(
        f"property={property!r}: a {kind} has an attribute of that name already, which a session "
        "would hide. Give with_session another property."
    )


def _undo(leases: Sequence[Lease], plan: Sequence[tuple[Store, Any, list[Change]]]) -> None:
    """Take back what was written, as far as the stores still answer."""
    for (store, token, sessions), (_, _, changes) in zip(leases, plan):
        names = {name for name, *_ in changes}
        with contextlib.suppress(Exception):
            store.commit(token, [_as_it_was(one) for one in sessions if one._name in names])


def _has_ttl(session: Session) -> bool:
    return session._declaration.seconds is not None and session._stored is not None


def _as_it_was(session: Session) -> Change:
    return session._name, session._stored, session._declaration.seconds


def _raise_failure(what: str, store: Store, names: Sequence[str], error: BaseException) -> NoReturn:
    """Raise what the store raised, as a `SessionError` if it is none and no interrupt."""
    if isinstance(error, SessionError) or not isinstance(error, Exception):
        raise error
    outcome = "The handler did not run" if what == "load" else "What it changed was not saved"
    raise SessionStoreError(
        f"{store!r} failed to {what} {', '.join(map(repr, names))} with {type(error).__name__} "
        f"(the cause, in the traceback). {outcome}. See that the store can be reached."
    ) from error
