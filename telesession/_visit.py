"""What happens around a handler: one update's visit to the sessions of a stack.

A visit locks the sessions in the order of their properties, loads them and shows them on the
update. After the handler it closes them, saves the changes and releases the locks. It leaves
locking to `_locks`, calls of stores to `_several`, and a thread's chain of visits to `_dispatch`.

The outermost visit of a thread holds the locks and the leases. A decorated handler that is called
inside of it, or an `open` block, is a part of it: the part joins sessions that are open already and
adds the others, and the outermost visit saves them all. A part that raises is undone.

Every update of every bot passes through here, so rare cases have methods of their own, and rare
attributes have their defaults on the class. A signal handler may raise at any line: `leave` does
what is left to do, and is called again where it was interrupted itself.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from telesession._dispatch import current_task, innermost, leave_inside, running, unlink
from telesession._locks import Locks
from telesession._options import Options
from telesession._savepoint import Savepoint, refill
from telesession._session import (
    ClosedSession,
    NoSession,
    Session,
    UnopenedSession,
    check_free,
    updates_of,
)
from telesession._several import Share, commit_all, commit_or_log, failed
from telesession._workers import mind_stop
from telesession.codecs import Unkeepable
from telesession.errors import SessionBusy
from telesession.stores import Change, Payload, Store

_MISSING: Any = object()
_set = object.__setattr__  # bypasses `Session.__setattr__`
_become: Any = vars(object)["__class__"].__set__  # sets the class, bypassing it, too


class Dropped(SessionBusy):
    """A session is in use, and the update is not to wait for it."""


class Visit:
    """An update's visit to its sessions, or that of an `open` block."""

    touch = True  #: whether sessions that are not saved begin a new ttl
    again = False  #: whether `leave` was interrupted
    task: Any = None  #: the task of an event loop that runs the block
    around: "Visit | None" = None  #: the next visit outwards on the thread
    parent: "Visit | None" = None  #: the next one whose handler or block runs, of the same task
    root: "Visit | None" = None  #: the visit that saves for it; `None` if it saves by itself
    own: Sequence[UnopenedSession] | None = None  #: the sessions that it opened or joined itself
    shares: Sequence[Share] = ()  #: one for each store; replaces `store` and `lease`
    joined: "Sequence[_Join]" = ()
    absent: Sequence[tuple[str, NoSession]] = ()
    before: "dict[int, _Before] | None" = None  #: how to undo this part: by the session's `id`

    def __init__(self, thread: int, update: Any = None) -> None:
        self.thread = thread  #: the thread that it runs on; 0 when nothing is left to do
        self.update = update  #: the update that shows the sessions; `None` in an `open` block
        #: the sessions that it locks, in the order of locking
        self.sessions: list[UnopenedSession] = []
        self.since = 0.0  #: when it began, by `time.monotonic`
        self.store: Store | None = None  #: the store that opened the sessions, once it has
        self.lease: Any = None  #: the store's lease on the sessions
        self.saving = False  #: whether the store may have received the changes
        self.saved = False  #: whether no saving is left to do
        self.left = False  #: whether it is left to the dispatch, with its sessions locked

    def enter(self, stack: Sequence[Options], store: Store, timeout: float) -> None:
        """Lock, load and show the sessions of an update."""
        update, sessions = self.update, self.sessions
        names: list[str] = []
        waited = False
        for options in stack:
            try:
                key = options.key(update)
            except Exception as error:
                raise options.key_failed(update, error) from error
            if type(key) is int or (type(key) is str and key):
                name = f"{options.prefix}{key}"
            else:
                found = options.name_of_update(key, update)
                if found is None:
                    self._do_without(options)
                    continue
                name = found
            session = UnopenedSession()
            session._options = options
            session._name = name
            session._user = self
            sessions.append(session)
            locks = options.locks
            if name in locks.lines or locks.holders.setdefault(name, self) is not self:
                self._wait(session)
                waited = True
            names.append(name)
        if waited:
            self._lock(sessions, again=True)
        if not names:
            return
        self.since = time.monotonic()
        try:
            self.lease, payloads = store.open(names, timeout, None)
        except Exception as error:
            failed("load", store, names, error)
        self.store = store
        for number, session in enumerate(sessions):
            options = session._options
            session._stored = session._before = stored = payloads[number]
            session._form = None
            if not stored or options.upgrade is not None:
                session._fill()
            else:
                try:
                    loaded = options.loads(stored)
                except Exception as error:
                    raise options.unreadable(session._name) from error
                if not isinstance(loaded, dict):
                    raise options.unreadable(session._name)
                if options.form is not None:
                    session._form = options.form(loaded)
                session.update(loaded)
            property = options.property
            if getattr(update, property, _MISSING) is not _MISSING:
                check_free(update, property, session)
            setattr(update, property, session)
            session.__class__ = Session
        innermost[self.thread] = self

    def save(self) -> None:
        """Save what the handler changed: all of it, or nothing and raise."""
        update = self.update
        changes: list[Change] = []
        for session in self.sessions:
            _become(session, ClosedSession)
            options, before, stored = session._options, session._before, session._stored
            shown = getattr(update, options.property, None)
            data = {**session} if shown is session else _settled(session, shown)
            if data or stored is not None:
                try:
                    payload = options.encode(data, before, session._form)
                except Unkeepable as error:
                    raise options.unkeepable(session._name, error) from error.__cause__
                if payload is not before:
                    changes.append((session._name, payload if data else None, options.ttl))
                elif stored is not None and options.ttl is not None:
                    changes.append((session._name, stored, options.ttl))
        store = self.store
        if store is not None:
            self.saving = True
            try:
                store.commit(self.lease, changes)
            except Exception as error:
                failed("save", store, self._names(), error)
        self.saved = True

    def leave(self) -> None:
        """Take back what was not saved, and unlock what was locked."""
        thread = self.thread
        if self.left or not thread:
            return
        if not self.saved:
            self._give_up()
        for session in self.sessions:
            name, locks = session._name, session._options.locks
            if locks.holders.get(name) is self:
                del locks.holders[name]
            if name in locks.lines:
                locks.grant(name, self)
            session._user = None
        if innermost.get(thread) is self:
            del innermost[thread]
        self.thread = 0

    # The rest is rare: waiting, and visits inside of other visits.

    def gives_way(self) -> bool:
        """Whether it has loaded nothing yet, so that it can do without its locks for a while."""
        return self.store is None

    def find(self, locks: Locks, name: str) -> UnopenedSession:
        """The session of this visit with that name."""
        return next(
            session
            for session in self.sessions
            if session._name == name and session._options.locks is locks
        )

    def _wait(self, session: UnopenedSession, again: bool = False) -> None:
        """Wait for the lock of a session, unless its declaration says not to."""
        options = session._options
        if options.busy != "wait" and self.update is not None and not again:
            raise Dropped(f"{session._name!r} is in use by another handler", session._name)
        options.locks.wait(session._name, self, options.lock_timeout)

    def _lock(self, sessions: Sequence[UnopenedSession], again: bool = False) -> None:
        """Lock all sessions; while this visit waits for one lock, it may lose those it has."""
        waited = True
        while waited:
            waited = False
            for session in sessions:
                locks, name = session._options.locks, session._name
                if locks.holder(name) is not self and locks.take(name, self) is not self:
                    self._wait(session, again)
                    waited = again = True

    def _names(self) -> list[str]:
        return [session._name for session in self.sessions]

    def _give_up(self) -> None:
        """Save nothing. A second interrupt, when `leave` runs again, still unlocks everything."""
        again, self.again = self.again, True
        try:
            self._abandon()
        except BaseException:
            if not again:
                raise
            self.saved = True
            self.leave()
            raise

    def _abandon(self) -> None:
        """Close the sessions without saving, and release the leases."""
        self._close_unsaved()
        if self.lease is not None or self.store is not None:
            store = self.store or self.sessions[0]._options.store  # unset after an interrupt
            changes = [change for _, change in self._unsaved()]
            commit_or_log(store, self.lease, changes, self._names())

    def _close_unsaved(self) -> None:
        for session in self.sessions:
            loaded = type(session) is not UnopenedSession
            _become(session, ClosedSession)
            if loaded:
                value = _value_of(session)
                if isinstance(value, dict):
                    _settled(session, value)
                _show(session, session)

    def _unsaved(self) -> list[tuple[UnopenedSession, Change]]:
        """The changes to store although the handler failed: those of parts, and a new ttl."""
        found: list[tuple[UnopenedSession, Change]] = []
        for session in () if self.saving else self.sessions:
            stored, ttl = getattr(session, "_stored", None), session._options.ttl
            pending = _pending_of(session)
            if pending is not None:
                payload = pending if session._options.codec.loads(pending) else None
                found.append((session, (session._name, payload, ttl)))
            elif self.touch and stored and ttl is not None:
                found.append((session, (session._name, stored, ttl)))
        return found

    def pass_on(self, asked: bool) -> None:
        """Leave the sessions, still locked, to the next handler, since this one doesn't match.

        ``asked`` is whether a condition function was called, which may have changed a session.
        """
        self.touch = False
        for session in self.sessions:
            if type(session) is ClosedSession:  # a block that a condition ran has added it
                _keep_pending(session, self)
        dispatch = running.get(self.thread)
        if dispatch is None or dispatch.filtering or self.parent is not None or not self.sessions:
            return
        for session in self.sessions:
            _become(session, ClosedSession)
            session._user = None
            if asked:
                session._reload(_pending_of(session))
        dispatch.keep(self)
        self.left = True

    def changed(self) -> bool:
        """Whether there are changes of parts to save, while it is left."""
        if not self.thread or self.saving:
            return False
        return any(_pending_of(session) is not None for session in self.sessions)

    def settle(self) -> None:
        """Save what parts changed of sessions that no later handler took over, and unlock them."""
        if not self.thread:  # a handler has taken it over
            return
        unlink(self.thread, self)  # since visits may be around it and, of other tasks, inside of it
        self.left = False
        try:
            try:
                if self.changed():
                    self.save()
            finally:
                self.leave()
        finally:
            if self.thread:
                self.leave()

    def enter_among(self, stack: Sequence[Options], timeout: float) -> "Visit":
        """`enter` inside of another visit or a dispatch, or with several stores.

        Returns the visit that holds the sessions: one that was left with exactly these, or `self`.
        """
        left = _left_for(self.thread, stack, self.update)
        if left is None:
            self.__class__ = FullVisit
            self._enter([(options, options.name(self.update)) for options in stack], timeout)
            return self
        left._resume_all()
        return left

    def _enter(self, wanted: Sequence[tuple[Options, str | None]], timeout: float) -> None:
        raise NotImplementedError

    def _resume_all(self) -> None:
        """Reopen the sessions that were left to the dispatch, for its next handler."""
        for session in self.sessions:
            session._user = self
            self._open(session)
        self.touch = True
        self.left = False

    def _open(self, session: UnopenedSession) -> None:
        """Show a session on the update, and make it an open `Session`."""
        update, property = self.update, session._options.property
        if update is not None and getattr(update, property, None) is not session:
            check_free(update, property, session)
            setattr(update, property, session)
        session.__class__ = Session

    def _do_without(self, options: Options) -> None:
        absent = NoSession(options.reason(self.update), options.property)
        check_free(self.update, options.property)
        setattr(self.update, options.property, absent)
        self.__class__ = FullVisit
        self.absent = [*self.absent, (options.property, absent)]


class FullVisit(Visit):
    """A visit that needs more than `Visit` does.

    It is nested with another visit, has sessions on several stores or left to the dispatch, or its
    update has no session for one of the declarations.
    """

    apart = False  #: whether it saves by itself although it is inside of another visit
    blank = False  #: whether it empties its session, so that stored data need not be decoded

    def _load(self, session: UnopenedSession) -> None:
        """Fill a session from its stored data, and show it on the update."""
        session._updates = [] if self.update is None else [self.update]
        session._before = None if self.blank else session._stored
        if not self.blank:
            session._fill()
        self._open(session)

    def save(self) -> None:
        if not self.thread:  # the outer visit ended first, and this one with it
            return
        leave_inside(self.thread, self)
        self._check_absent()
        if self.joined or self.parent is not None:
            self._hand_back()
        if self.root is not None:
            self.saved = True
            return
        changes: list[tuple[UnopenedSession, Change]] = []
        for session in self.sessions:
            if type(session) is UnopenedSession:  # it was never loaded
                continue
            options = session._options
            data = _settled(session, _value_of(session))
            _become(session, ClosedSession)
            before, stored = session._before, session._stored
            if data or stored is not None:
                payload = options.encoded(session._name, data, before)
                if payload is not before:
                    change = (session._name, payload if data else None, options.ttl)
                    changes.append((session, change))
                elif stored is not None and options.ttl is not None:
                    changes.append((session, (session._name, stored, options.ttl)))
        self.saving = True
        self._to_shares()
        commit_all(self.shares, self._by_share(changes))
        self.saved = True

    def leave(self) -> None:
        if self.left or not self.thread:
            return
        leave_inside(self.thread, self)
        for property, absent in self.absent:
            if not isinstance(getattr(self.update, property, None), (NoSession, UnopenedSession)):
                setattr(self.update, property, absent)
        unlink(self.thread, self)
        super().leave()
        for session in self.sessions:
            _set(session, "_updates", [])  # breaks a reference cycle

    def _abandon(self) -> None:
        if self.root is not None:  # sessions that the root leased for this part stay with it
            for session in self.sessions:
                _set(session, "_user", None)
            self._leave_leased(self.root)
        for before in (self.before or {}).values():
            before.restore()
        if self.root is not None or not self.shares:
            super()._abandon()
            return
        self._close_unsaved()
        interrupt: BaseException | None = None
        for share, mine in zip(self.shares, self._by_share(self._unsaved())):
            if share.idle():
                continue
            try:
                commit_or_log(share.store, share.lease, mine, list(share.found))
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _by_share(self, changes: Sequence[tuple[UnopenedSession, Change]]) -> list[list[Change]]:
        sorted_out: list[list[Change]] = [[] for _ in self.shares]
        for session, change in changes:
            for share, mine in zip(self.shares, sorted_out):
                if share.store is session._options.store and session._name in share.found:
                    mine.append(change)
        return sorted_out

    def _leave_leased(self, carrier: "Visit") -> None:
        """Hand over the sessions that ``carrier`` leased; called again after an interrupt."""
        kept = []
        for session in self.sessions:
            name, store, locks = session._name, session._options.store, session._options.locks
            leased = [share for share in carrier.shares if share.store is store and share.has(name)]
            if leased:
                session._stored = leased[0].found[name]
                if locks.holder(name) is not carrier:
                    if not carrier.sessions or carrier.sessions[-1] is not session:
                        carrier.sessions.append(session)
                    locks.hand_over(name, carrier)
            else:
                kept.append(session)
        self.sessions = kept

    def move_to(self, other: Any) -> None:
        """Hand over sessions, locks and leases to another visit of the same thread."""
        shares = other._to_shares()  # now, since it looks at the other's sessions
        for session in self.sessions:
            other.sessions.append(session)
            session._options.locks.hand_over(session._name, other)
        unlink(self.thread, self)
        # In one line, so that an interrupt can't leave a lease to both.
        other.shares, self.thread = [*shares, *self._to_shares()], 0
        other.store = other.store or self.store

    def _read(self, sessions: Sequence[UnopenedSession], timeout: float) -> None:
        """Lease and read further sessions, on one store after the other."""
        shares = self._to_shares()
        todo: dict[int, list[UnopenedSession]] = {}
        for session in sessions:
            todo.setdefault(id(session._options.store), []).append(session)
        for group in todo.values():
            store = group[0]._options.store
            share = next((one for one in shares if one.store is store), None)
            if share is None:
                share = Share(store)
                shares.append(share)
            payloads = share.open([session._name for session in group], timeout)
            for session, stored in zip(group, payloads):
                session._stored = stored
            self.store = self.store or store

    def _to_shares(self) -> list[Share]:
        """Replace the single store and lease by a list of shares."""
        if isinstance(self.shares, list):
            return self.shares
        shares = []
        if self.store is not None:
            share = Share(self.store)
            share.lease = self.lease
            share.found = {session._name: session._stored for session in self.sessions}
            shares.append(share)
        self.shares = shares
        return shares

    def enter_block(self, options: Options, names: Sequence[str]) -> list[dict[str, Any]]:
        """Open the sessions of an `open` block, and return them in the order of ``names``."""
        mind_stop()
        self.task = current_task()
        wanted: list[tuple[Options, str | None]] = [(options, name) for name in sorted(names)]
        self._enter(wanted, options.lock_timeout)
        found = {session._name: self._given(session) for session in self.own or ()}
        return [found[name] for name in names]

    def _given(self, session: UnopenedSession) -> dict[str, Any]:
        """What this block or handler got for a session when it opened or joined it."""
        return next((join.value for join in self.joined if join.session is session), session)

    def _enter(self, wanted: Sequence[tuple[Options, str | None]], timeout: float) -> None:
        """Join the sessions that the thread has open, and open the others."""
        thread = self.thread
        parent = _active(innermost.get(thread))
        dispatch = running.get(thread)
        if dispatch is not None and (self.update is None or _active(dispatch.around) is not parent):
            dispatch = None  # this is a block, or inside of one or of a handler
        if parent is not None:
            self.parent = parent
            parent.__class__ = FullVisit
            if not self.apart:
                self.root = parent if parent.root is None else parent.root
        taken: list[tuple[FullVisit, Options, UnopenedSession]] = []
        joins: list[UnopenedSession] = []
        for options, name in wanted:
            if name is None:
                self._do_without(options)
                continue
            holder = options.locks.holder(name)
            if dispatch is not None and (options.locks, name) in dispatch.refused:
                raise Dropped(f"{name!r} was in use by another handler", name)
            if holder is not None and holder.thread == thread:
                session = holder.find(options.locks, name)
                if dispatch is not None and dispatch.offers(holder):
                    holder.__class__ = FullVisit
                    taken.append((holder, options, session))
                else:
                    self._check_joins(holder, session)
                    joins.append(session)
                    if holder.left and self.root is None and not self.apart:
                        self.root = holder  # it saves when the dispatch ends
                continue
            session = UnopenedSession()
            session._options = options
            session._name = name
            session._user = self
            self.sessions.append(session)
        added = list(self.sessions)
        self._lock(added)
        self.since = time.monotonic()
        carrier: Any = self.root or (taken[0][0] if taken else self)
        carrier.__class__ = FullVisit
        try:
            if added:
                carrier._read(added, timeout)
        except BaseException:
            if carrier is not self and self.root is None:
                for session in self.sessions:
                    session._user = None
                self._leave_leased(carrier)
            raise
        if self.root is not None:
            self._leave_leased(self.root)
        for holder in {id(holder): holder for holder, _, _ in taken}.values():
            holder.move_to(self.root or self)
        if self.root is not None:  # a session that an outer dispatch keeps is among them
            joins += [session for _, _, session in taken]
            taken = []
        self.before = self._note_before(joins)
        self.own = own = [*added, *joins, *(session for _, _, session in taken)]
        if self.root is not None:
            self.before |= {id(session): _Before(session, added=True) for session in added}
        for session in added:
            self._load(session)
            if self.root is not None:
                self.joined = [*self.joined, _Join(session, None, [], session)]
        for _, options, session in taken:
            self._resume(session, options)
        for session in joins:
            self._join(session)
        if own:
            self.around = innermost.get(thread)
            innermost[thread] = self

    def _check_joins(self, holder: "Visit", session: UnopenedSession) -> None:
        """Refuse to join a session that is still opening, or that another task has open."""
        why = ""
        for user in (holder, session._user):
            task = None if user is None else user.task
            if task is not None and task is not current_task():
                why = (
                    "is open in another task of this thread's event loop, which could not go on "
                    "while this one waited for it. Have no `await` inside of the block, or open "
                    "it in a thread: `await asyncio.to_thread(...)`."
                )
        if not why and type(session) is UnopenedSession and session._user is not None:
            why = "is just being opened: its key, initial, upgrade and codec can't open it."
        if why:
            raise SessionBusy(f"{session._name!r} {why}", session._name)

    def _note_before(self, joins: Iterable[UnopenedSession]) -> "dict[int, _Before]":
        """Note the state of the sessions that this part may change: joined ones and outer ones."""
        before: dict[int, _Before] = {}
        visit = self.parent
        while visit is not None:
            if visit.own is None:
                visit.own = list(visit.sessions)
            for session in visit.own:
                if session._user is not None and id(session) not in before:
                    before[id(session)] = _Before(session)
            visit = visit.parent
        for session in joins:
            if id(session) not in before:
                before[id(session)] = _Before(session, type(session) is UnopenedSession)
        return before

    def _join(self, session: UnopenedSession) -> None:
        """Join an open session: show it on this update as its other updates show it."""
        update, property = self.update, session._options.property
        if type(session) is UnopenedSession:  # the visit that locked it failed to load it
            self._load(session)
        user, value = session._user, _value_of(session)
        if type(session) is ClosedSession:
            _become(session, Session)
        fresh = value is None or (user is None and not session)  # it was removed before
        if fresh:
            session.clear()
            session.update(session._started())
            value = session
        elif not isinstance(value, dict):
            session._replacement(value)  # always raises here
        updates = updates_of(session)
        if update is not None and not any(one is update for one in updates):
            shown = getattr(update, property, None)
            if value is session or type(shown) is not type(value) or shown != value:
                check_free(update, property, session)  # else the update was copied with its dict
            _set(session, "_updates", [*updates, update])
        self.joined = [*self.joined, _Join(session, user, updates, value, fresh)]
        _show(session, value)
        _set(session, "_user", self)

    def _resume(self, session: UnopenedSession, options: Options) -> None:
        """Reopen a session that was left to the dispatch."""
        session._user = self
        if session._options is not options and _pending_of(session) is None:
            _become(session, UnopenedSession)  # with other options, it may begin otherwise
            dict.clear(session)
        session._options = options
        if type(session) is UnopenedSession:  # perhaps another session of its stack failed to load
            self._load(session)
            return
        if not any(one is self.update for one in updates_of(session)):
            session._updates = [*updates_of(session), self.update]
        self._open(session)

    def _hand_back(self) -> None:
        """Give the sessions that this part joined or added to the visits around it."""
        for join in reversed(self.joined):
            self._hand_back_one(join)
        parent = self.parent
        if parent is not None and self.before:
            if parent.before is None:
                parent.before = {}
            for key, before in self.before.items():
                name, locks = before.session._name, before.session._options.locks
                if locks.holder(name) is not parent:  # the lock's holder just doesn't save
                    parent.before.setdefault(key, before)

    def _hand_back_one(self, join: "_Join") -> None:
        session, user = join.session, join.user
        value = _value_of(session)
        if join.fresh and value is session and dict(session) == session._started():
            session.clear()  # unchanged since it began anew, so it stays removed
            value = None
        if user is None or user.update is None:  # an `open` block keeps the dict that it got
            kept = session if user is None else user._given(session)
            if value is not kept:
                refill(kept, session._replacement(value))
            value = kept
        _show(session, value)
        _show_only(session, join.updates)
        _set(session, "_user", user)
        if user is None:
            self._put_down(session)

    def _put_down(self, session: UnopenedSession) -> None:
        """Close a session that no visit uses until the root saves it or another part joins it."""
        _become(session, ClosedSession)
        holder = session._options.locks.holder(session._name)
        if holder.left:
            _keep_pending(session, holder)

    def _check_absent(self) -> None:
        for property, absent in self.absent:
            shown = getattr(self.update, property, None)
            if shown is not None and not isinstance(shown, (NoSession, UnopenedSession)):
                absent._refuse()


def _left_for(thread: int, stack: Sequence[Options], update: Any) -> Visit | None:
    """The visit that a handler under `when` left, if it has exactly the sessions of ``stack``."""
    visit, dispatch = innermost.get(thread), running.get(thread)
    if visit is None or dispatch is None or not dispatch.offers(visit):
        return None
    if visit.update is not update or len(visit.sessions) != len(stack):
        return None
    for session, options in zip(visit.sessions, stack):
        if session._options is not options or type(session) is not ClosedSession:
            return None
    return visit  # type: ignore[no-any-return]


def _active(visit: Any) -> Any:
    """The first visit from here outwards whose handler or block runs, in this task or in none."""
    while visit is not None and (visit.left or visit.task not in (None, current_task())):
        visit = visit.around
    return visit


def _keep_pending(session: UnopenedSession, holder: Visit) -> None:
    """Have the holder of a closed session save it although no handler of it has returned."""
    payload = session._options.encoded(session._name, dict(session), session._before)
    session._pending = None if payload is session._before else payload
    holder.__class__ = FullVisit


def _pending_of(session: UnopenedSession) -> Payload | None:
    return getattr(session, "_pending", None)


class _Join(NamedTuple):
    """How a part uses a session that a visit around it saves."""

    session: UnopenedSession
    user: Any  #: the visit that used it before, or `None`
    updates: list[Any]  #: the updates that showed it before
    value: dict[str, Any]  #: what the part got: the session, or a dict in its place
    fresh: bool = False  #: whether the session begins anew after a removal


class _Before:
    """A session's state before a part that may fail; ``added`` means that the part opened it."""

    def __init__(self, session: UnopenedSession, added: bool = False) -> None:
        self.session = session
        self.added = added
        self._pending = _pending_of(session)
        if added:
            return
        self._user = session._user
        self._kind = type(session)
        self._updates = updates_of(session)
        self._value = _value_of(session)
        self._content = [Savepoint(session)]
        if isinstance(self._value, dict) and self._value is not session:
            self._content.append(Savepoint(self._value))

    def restore(self) -> None:
        session = self.session
        _set(session, "_pending", self._pending)
        if self.added:
            _set(session, "_user", None)
            if type(session) is UnopenedSession:
                dict.clear(session)
                return
            _become(session, ClosedSession)
            _show(session, session)
            if session._before is None and session._stored is not None:
                session.__class__ = UnopenedSession  # a `remove` emptied it without decoding it
                dict.clear(session)
            else:
                session._reload()
            return
        for content in self._content:
            content.restore()
        _set(session, "_user", self._user)
        _become(session, self._kind)
        _show(session, self._value)
        _show_only(session, self._updates)


def _value_of(session: UnopenedSession) -> Any:
    """The session or, if a handler put another value in its place on an update, that value."""
    value, property = getattr(session, "_instead", _MISSING), session._options.property
    value = session if value is _MISSING else value
    shown = (getattr(update, property, None) for update in updates_of(session))
    return next((one for one in shown if one is not value), value)


def _show(session: UnopenedSession, value: Any) -> None:
    """Show a value in a session's place, or the session itself, on all its updates."""
    property = session._options.property
    _set(session, "_instead", _MISSING if value is session else value)
    for update in updates_of(session):
        if getattr(update, property, None) is not value:
            setattr(update, property, value)
    guests = getattr(session, "_guests", None) if value is session else None
    while guests:
        setattr(guests.popitem()[1], property, session)


def _show_only(session: UnopenedSession, updates: list[Any]) -> None:
    """Show it on these updates from now on; others keep what they show until that is saved."""
    if session._instead is not _MISSING:
        guests = getattr(session, "_guests", {})
        guests.update((id(one), one) for one in updates_of(session))
        _set(session, "_guests", guests)
    _set(session, "_updates", updates)


def _settled(session: UnopenedSession, value: Any) -> dict[str, Any]:
    """The content of a session that is to be saved; its updates show the session itself again."""
    if value is session:
        data = {**session}
    else:
        data = session._replacement(value)
        refill(session, data)
    _show(session, session)
    return data


def in_use(options: Options, name: str) -> dict[str, Any] | None:
    """The present content of a session that the calling thread has open; else `None`."""
    thread = threading.get_ident()
    holder = options.locks.holder(name)
    if holder is None or holder.thread != thread or holder.task not in (None, current_task()):
        return None
    session = holder.find(options.locks, name)
    if type(session) is UnopenedSession:
        return None
    value = _value_of(session)
    return dict(value) if isinstance(value, dict) else {}
