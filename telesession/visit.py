"""What happens around a handler: one update's visit to the sessions of a stack.

The sessions are locked in sorted order, loaded and injected; the handler runs; the sessions are
closed; what changed is saved; the locks are released. A handler called by another handler joins
the sessions that the outer visit has open already.

Every update of every bot passes through here, so what is rare stands in functions of its own.
"""

import inspect
import time
from collections.abc import Collection, Iterable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

from telesession.checks import called
from telesession.contents import check_free, encoded, inject, load, refill, replacement, wrong_type
from telesession.data import ClosedSession, NoSession, Session
from telesession.errors import SessionBusy
from telesession.locks import LockKey, locks
from telesession.routing import Passed, go_on, is_dispatched, passed
from telesession.stores import Change, Store
from telesession.transactions import Lease, as_it_was, commit, has_ttl, let_go, open_on

if TYPE_CHECKING:
    from telesession.declaration import Declaration
    from telesession.wrapper import Condition, Stack


class Dropped(SessionBusy):
    """A session with ``busy="drop"`` is in use."""


class Visit:
    """One update's visit to the sessions of a stack; the holder of their locks."""

    # What most visits don't have, at no cost to them.
    waits_since = 0.0
    _absent: Sequence[tuple[str, NoSession]] = ()
    #: what we joined, what we found of it, and whether that is new since it had been removed
    _joined: Sequence[tuple[Session, dict[str, Any], bool]] = ()

    def __init__(self, stack: "Stack", update: Any) -> None:
        self.thread = get_ident()
        self.opened: dict[LockKey, Session] = {}  # what visits further in may join
        self._update = update
        self._leases: list[Lease] = []
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
            session._updates = (update,)
            self.opened[name + declaration.lock_suffix] = session
        if passed and self._take_over():
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
        replaced: Sequence[tuple[Session, dict[str, Any]]] = ()
        for _, _, sessions in self._leases:
            changes: list[Change] = []
            for session in sessions:
                declaration = session._declaration
                left = getattr(self._update, declaration.attribute, None)
                session.__class__ = ClosedSession
                data = dict(session) if left is session else replacement(session, left)
                if data or session._stored is not None:
                    payload = encoded(session, data)
                    if payload is not session._before:
                        kept = payload if data else None
                        changes.append((session._name, kept, declaration.seconds))
                    elif has_ttl(session):
                        changes.append(as_it_was(session))
                if left is not session:
                    replaced = (*replaced, (session, data))
            plan.append(changes)
        for session, data in replaced:
            refill(session, data)
        commit(self._leases, plan)

    def abandon(self) -> None:
        """Let go without saving: the handler raised, or saving did."""
        for session in self.opened.values():
            left = getattr(self._update, session._declaration.attribute, None)
            session.__class__ = ClosedSession
            if left is not session and not isinstance(left, Session):
                refill(session, dict(left) if isinstance(left, dict) else dict(session))
        let_go(self._leases, touch=True)

    def leave(self) -> None:
        """Hand back what was joined, and unlock what wasn't."""
        try:
            for property, absent in self._absent:
                if not isinstance(getattr(self._update, property, None), (NoSession, Session)):
                    setattr(self._update, property, absent)
            if self._joined:
                self._hand_back()
            for session in self.opened.values():
                session._updates = ()  # so that an update is gone as soon as nobody has it
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
        """Leave the sessions as they were stored, and locked, to the update's next handler.

        What is returned has pyTelegramBotAPI go on to that one.
        """
        if self._joined or not self.opened or not is_dispatched():
            self._close()
            return go_on()()
        left = Passed(self._update, self.opened, self._locked, self._leases)
        self._locked, self._leases = (), []
        return go_on()(left.dropped)

    def lock_timeout(self, key: LockKey) -> float:
        """Seconds to wait for the lock ``key``."""
        declaration = self.opened[key]._declaration
        if declaration.busy == "drop":
            raise Dropped(f"{self.opened[key]._name!r} is in use by another handler")
        return declaration.lock_timeout

    def _take_over(self) -> bool:
        """Have what the thread's last handler left, if that was not for this update either."""
        left = Passed.take()
        if left is None:
            return False
        if left.update is not self._update or left.opened.keys() != self.opened.keys():
            left.let_go()
            return False
        declarations = {key: session._declaration for key, session in self.opened.items()}
        self.opened, self._locked, self._leases = left.opened, left.locked, left.leases
        locks.hand_over(self._locked, self)
        try:
            for key, session in self.opened.items():
                session.__class__ = Session
                session.clear()
                session._declaration = declarations[key]
                session._updates = (self._update,)
                load(session, session._stored)
                setattr(self._update, session._declaration.attribute, session)
        except BaseException:
            self._give_up()
            raise
        return True

    def _give_up(self) -> None:
        """Let go of what could not be opened."""
        try:
            self._close()
        finally:
            self.leave()

    def _close(self) -> None:
        for session in self.opened.values():
            session.__class__ = ClosedSession
        let_go(self._leases, touch=False)

    def _open(
        self, store: Store, names: list[str], sessions: Collection[Session], timeout: float
    ) -> None:
        """Read the sessions that live on one store, and inject them."""
        if self.waits_since:
            timeout = max(0.0, timeout - (time.monotonic() - self.waits_since))
        token, payloads = open_on(store, names, sessions, timeout)
        self._leases.append((store, token, sessions))
        for session, stored in zip(sessions, payloads):
            load(session, stored)
            inject(self._update, session._declaration.attribute, session)

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
        inject(self._update, declaration.attribute, absent)
        self._absent = (*self._absent, (declaration.attribute, absent))

    def _join(self) -> None:
        """Join what visits of this thread have open; what remains in ``opened`` is ours to open."""
        for key in list(self.opened):
            host = locks.holder(key)
            if host is self:
                continue
            assert isinstance(host, Visit)  # whoever is on a thread is one
            del self.opened[key]
            session = host.opened[key]
            property = session._declaration.attribute
            inner = getattr(session, "_inner", ())
            innermost = inner[-1] if inner else session._updates[0]
            current = getattr(innermost, property, None)
            fresh = current is None  # the handler around us removed it
            if fresh:
                current = session._declaration.start(session._name)
            elif not isinstance(current, dict):
                raise wrong_type(session, current)
            if not any(self._update is other for other in session._updates):
                if getattr(self._update, property, None) is not session:  # as a copy's may be
                    check_free(self._update, property)
                session._updates += (self._update,)
            setattr(self._update, property, current)
            session._inner = (*inner, self._update)
            self._joined = (*self._joined, (session, current, fresh))

    def _hand_back(self) -> None:
        """Let the handler around us see what we replaced or removed."""
        for session, found, fresh in self._joined:
            session._inner = session._inner[:-1]
            property = session._declaration.attribute
            left = getattr(self._update, property, None)
            if left is found and not fresh:
                continue
            if left is found and left == session._declaration.start(session._name):
                left = None  # nothing came of it: it stays removed
            for update in session._updates:
                setattr(update, property, left)
