"""Leases: how a store keeps a session for one handler at a time across processes.

A lease is a claim on a session for some seconds, under a secret token. The lease's holder may
write; when the holder's process dies, the lease runs out, and the session is free again::

    time    process A                      the server              process B
    ------  -----------------------------  ----------------------  ---------------------------
     0 s    acquire: leased, and read      A's until 10 s
     1 s    handler runs, then the whole                           acquire: held, so it waits
            machine stalls
    10 s                                   nobody's
    10 s                                   B's until 20 s          acquire: leased, and read
    11 s    wakes up, writes: refused,     B's until 20 s          handler runs
            SessionLost
    12 s                                   nobody's                writes, and lets go

`LeasingStore` does the waiting, the renewing and the bookkeeping; it leaves to the modules `redis`,
`sql` and `mongo` the three calls that their servers carry out atomically.
"""

import contextlib
import itertools
import logging
import math
import os
import random
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

from telesession._checks import called, checked_seconds
from telesession._forks import per_process
from telesession._workers import stand_in
from telesession.errors import SessionBusy, SessionLost
from telesession.stores import Change, Payload, Store, partly_saved

logger = logging.getLogger("telesession")

_LONGEST_POLL = 0.1  # seconds between two tries to lease a session that another holder has
_LONGEST_TIME = 10**14  # milliseconds; servers refuse dates that are much later
_LONGEST_NAP = 2.0  # seconds between two rounds of the renewer
_MOST_SEEN = 1000  # foreign leases that are remembered
_PATIENCE = 12  # idle rounds after which the renewer ends


#: A lease's token, and a value that changes with each renewal of the lease.
Beat: TypeAlias = tuple[str, Any]


class Held(Exception):
    """What `LeasingStore.acquire` raises for a session that another token holds.

    Args:
        name: the session's name.
        token: the holder's token.
        beat: any value that each renewal changes; it is compared with ``==``.
    """

    def __init__(self, name: str, token: str = "", beat: Any = None) -> None:
        super().__init__(name)
        self.name = name
        self.token = token
        self.beat: Beat = (token, beat)


@dataclass(eq=False)
class Lease:
    """The sessions that one update has leased; `LeasingStore.open` may add further ones."""

    token: str
    renewed: float = math.inf  #: when it was last known to be held, by `time.monotonic`
    groups: Sequence[Sequence[str]] = ()
    #: the stored payloads when the sessions were opened
    payloads: dict[str, Payload | None] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)  #: the handler's thread
    over: bool = False  #: whether nothing is left to do for it
    #: groups that it failed to add, perhaps leased
    unsure: list[Sequence[str]] = field(default_factory=list)
    #: what a failing commit has to undo
    written: list[tuple[Sequence[str], list[Change]]] = field(default_factory=list)


class LeasingStore(Store):
    """A store that leases sessions, so that any number of processes can share it.

    To write such a store, subclass this class and implement `acquire`, `renew` and `write`. Each
    is one atomic step on the server, for all given names or none, and must be safe to call from
    several threads at once. The server's clock decides when a lease, or a session with a ttl, is
    over. A payload comes back with the type that it had, `str` or `bytes`.

    Handlers of one process queue before they call the store, so two of them never ask for one
    session. Store objects that keep the same sessions on a server need the same `identity`.

    If the server's clock is set back, a holder that died would hold its sessions for as long as
    the clock is behind. So a waiting process watches the lease by its own clock, and may take it
    once it was not renewed for its whole duration: `acquire` gets such leases as ``stale``. A
    lease's token ends in its duration in milliseconds.

    Where the server can only handle some sessions in one step, `groups` says which; where it can
    signal that a session became free, `wait` listens to it. Errors of the client are raised
    unchanged: the caller gets them as the cause of a `SessionStoreError`. The handler's thread then
    doesn't ask the client again, which may block as long again; the renewer releases the leases.

    `open` can add sessions to a lease: one `commit` then writes all sessions of it. `commit` may be
    called again, with no changes, after it raised or after an interrupt came in its place.

    Args:
        lease: seconds (or a `timedelta`) after which a session is free again if its process died or
            stalled. The lease is renewed for as long as the handler runs.
    """

    def __init__(self, lease: float | timedelta) -> None:
        self.lease: float = checked_seconds("lease", lease)
        self._seen: dict[str, tuple[Beat, float]] = {}  # foreign leases: beat, and since when
        self._renewer = _Renewer(self)

    @abstractmethod
    def acquire(
        self, names: Sequence[str], token: str, waited: float, stale: Mapping[str, Beat]
    ) -> Sequence[Payload | None]:
        """Lease the sessions ``names`` to ``token`` for `lease` seconds and read them, in one step.

        Returns the payload of each, in this order, `None` where nothing is stored or it has
        expired. If another token holds any of them, leases none and raises `Held`. ``waited`` is
        the seconds that the caller has waited so far, 0 at first. ``stale`` has sessions whose
        holder is gone: a lease with that very token and beat counts as over, whatever the server's
        clock says.
        """

    @abstractmethod
    def renew(self, names: Sequence[str], token: str) -> bool:
        """Make the leases of ``token`` last `lease` seconds from now; `False` if it lost one.

        Each renewal changes the beat. A lease that is over, but that no other token took, may be
        renewed or not.
        """

    @abstractmethod
    def write(
        self, names: Sequence[str], token: str, changes: Sequence[Change], *, release: bool = True
    ) -> bool:
        """Write ``changes`` and, with ``release``, release the leases of all ``names``.

        Returns `False`, with nothing written, if ``token`` lost the lease of one of ``names``; a
        store that can tell counts a lease as lost only when another token took it. ``changes``
        concern some of ``names``, and may be empty. A client may send a request twice: where the
        first one released the leases, the second does nothing and returns `True`. ``release`` is
        false only where `groups` gave several groups.
        """

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        """The names, grouped by what one step can handle, in the same order at every call.

        Groups are written one after the other, and undone if a later group fails; only a process
        that dies or stalls in between leaves a part of them written.
        """
        return [names]

    def wait(self, name: str, limit: float, waited: float) -> None:
        """Return when ``name`` may be free, after ``limit`` seconds at the latest.

        Sleeps for a fraction of ``waited``, the seconds waited so far: a short wait ends promptly,
        and a long one asks the server seldom.
        """
        pause = min(_LONGEST_POLL, 0.002 + waited / 4)
        time.sleep(min(limit, pause * random.uniform(0.5, 1.5)))

    def open(
        self, names: Sequence[str], timeout: float, lease: Lease | None = None
    ) -> tuple[Lease, list[Payload | None]]:
        mine = Lease(self._token()) if lease is None else lease
        try:
            found, asked = self._obtain(mine, self.groups(names), timeout)
        except BaseException:
            if lease is None:
                self._end(mine)
            raise
        mine.payloads.update(found)  # before the groups, since an interrupt may come between
        mine.groups = self.groups([*mine.payloads])
        mine.renewed = min(mine.renewed, asked)
        if lease is None:
            self._renewer.watch(mine)
        return mine, [found[name] for name in names]

    def commit(self, lease: Lease, changes: Sequence[Change]) -> None:
        self._renewer.forget(lease)
        if lease.over:
            return
        kept = False
        try:
            if not lease.written:  # else an interrupt stopped undoing it
                kept = self._write(lease, changes)
        except Exception as error:
            # A client that failed is not asked again, which may block as long again, unless a
            # part of the changes may have been written: that is undone.
            sure = bool(lease.written) and self.refused(error)
            if sure:
                lease.written.pop()  # the last group was refused, so nothing of it is written
            try:
                if lease.written and (sure or len(lease.written[-1][1]) < len(changes)):
                    left = self._take_back(lease)
                    if left:
                        last = () if sure else lease.written[-1][0]
                        failed = [name for name in last if name in left]
                        raise partly_saved(self, left, failed, error) from error
            finally:
                self._end(lease, lease.groups)
            raise
        except BaseException:
            self._give_up(lease)
            raise
        if kept:
            self._end(lease)
            return
        left = self._give_up(lease)
        if changes:
            lost = SessionLost(
                f"{', '.join(repr(name) for name, _, _ in changes)} was not saved: its lease of "
                f"{self.lease:g} seconds ran out while the handler ran, since the process stalled "
                "or the store could not be reached, and others may have used it. Handle the "
                "update again, or give the store a longer lease.",
                changes[0][0],
            )
            if left:
                raise partly_saved(self, left, (), lost) from lost
            raise lost

    def _end(self, lease: Lease, left: Sequence[Sequence[str]] = ()) -> None:
        """Mark a lease as over; the renewer releases the groups that it may still hold."""
        lease.over = True
        if left or lease.unsure:
            self._renewer.release_later([*left, *lease.unsure], lease.token)

    def _token(self) -> str:
        # A counter would cost less, but repeat itself in a child of a fork that Python didn't make.
        return f"{os.urandom(8).hex()}-{milliseconds(self.lease)}"

    def _obtain(
        self, lease: Lease, groups: Sequence[Sequence[str]], timeout: float
    ) -> tuple[dict[str, Payload | None], float]:
        """Lease the groups, waiting for other holders; the payloads, and when they were asked."""
        start = asked = time.monotonic()
        stale: dict[str, Beat] = {}
        with contextlib.ExitStack() as waiting:
            while True:
                try:
                    return self._acquire(lease, groups, asked - start, stale), asked
                except Held as error:
                    held = error
                # a holder that didn't renew one session is gone, so its other leases are stale, too
                gone = self._is_stale(held, asked) or held.token in dict(stale.values())
                if gone and stale.get(held.name) != held.beat:
                    stale[held.name] = held.beat
                    continue
                waited = time.monotonic() - start
                mine = _holding(held.token)
                if waited >= timeout or (mine and mine.thread == threading.get_ident()):
                    raise self._busy(held, mine)
                if asked == start:
                    waiting.enter_context(stand_in())
                self.wait(held.name, timeout - waited, waited)
                asked = time.monotonic()

    def _is_stale(self, held: Held, asked: float) -> bool:
        """Whether a lease was not renewed for its whole duration, so that its holder is gone."""
        beat, since = self._seen.get(held.name, (None, 0.0))
        if beat != held.beat:
            self._seen[held.name] = held.beat, time.monotonic()
            for name in list(self._seen)[:-_MOST_SEEN]:
                self._seen.pop(name, None)
            return False
        return asked - since >= self._asked_for(held.token)

    def _asked_for(self, token: str) -> float:
        """The duration in seconds of a lease with this token."""
        length = token.rpartition("-")[2]
        return int(length) / 1000 if length.isdecimal() else self.lease

    def _busy(self, held: Held, mine: Lease | None) -> SessionBusy:
        name = repr(held.name)
        if mine is None:
            return SessionBusy(
                f"{name} was in use by another process for as long as lock_timeout allows. "
                "Make its handler quicker, or give with_session a longer lock_timeout. If that "
                f"process died, the session is free again in {self._asked_for(held.token):g} "
                "seconds.",
                held.name,
            )
        what = (
            "in use by the very handler, or block, that asks for it once more"
            if mine.thread == threading.get_ident()
            else "in use by another thread of this process for as long as lock_timeout allows"
        )
        return SessionBusy(
            f"{name} is {what}, through another store object than this {self!r}. Make one store "
            "for the whole program: then handlers of one session join, or wait for each other in "
            "turn.",
            held.name,
        )

    def _acquire(
        self,
        lease: Lease,
        groups: Sequence[Sequence[str]],
        waited: float,
        stale: Mapping[str, Beat],
    ) -> dict[str, Payload | None]:
        found: dict[str, Payload | None] = {}
        for number, names in enumerate(groups):
            try:
                found.update(zip(names, self.acquire(names, lease.token, waited, stale)))
            except Held:
                self._let_go(lease, groups[:number])
                raise
            except Exception as error:
                # A client that failed is not asked again here, and not while the token is in use:
                # a late request may lease them after their release.
                lease.unsure += groups[: number + (not self.refused(error))]
                raise
            except BaseException:  # a Ctrl-C, so these may be leased, too
                self._let_go(lease, groups[: number + 1])
                raise
        if self._seen:
            for name in found:
                self._seen.pop(name, None)
        return found

    def _write(self, lease: Lease, changes: Sequence[Change]) -> bool:
        """Write and release; `False` if a lease is lost. `Lease.written` then is to be undone."""
        if len(lease.groups) == 1:
            return self.write(lease.groups[0], lease.token, changes)
        for names in lease.groups:
            mine = [change for change in changes if change[0] in names]
            lease.written.append((names, mine))  # first: even a write that raises may be done
            if not self.write(names, lease.token, mine, release=False):
                lease.written.pop()
                return False
        lease.written = []
        self._let_go(lease, lease.groups)
        return True

    def _take_back(self, lease: Lease) -> list[str]:
        """Write the earlier payloads back and release; returns the names where that failed."""
        left = []
        for names, changes in lease.written:
            before = [(name, lease.payloads[name], ttl) for name, _, ttl in changes]
            try:
                if before:
                    self.write(names, lease.token, before)
            except Exception:
                left += [name for name, _, _ in before]
        return left

    def _give_up(self, lease: Lease) -> list[str]:
        left = self._take_back(lease)
        self._end(lease, () if self._release(lease.groups, lease.token) else lease.groups)
        return left

    def _let_go(self, lease: Lease, groups: Sequence[Sequence[str]]) -> None:
        """Release some groups of a lease; those of a server that doesn't answer are unsure."""
        if not self._release(groups, lease.token):
            lease.unsure += groups

    def _release(self, groups: Sequence[Sequence[str]], token: str) -> bool:
        """Release without writing; returns whether the server answered."""
        try:
            for names in groups:
                if not self.write(names, token, ()) and len(names) > 1:
                    for name in names:  # one lease is lost, the others may be held
                        self.write([name], token, ())
        except Exception:
            return False
        return True


class _Renewer:
    """A thread that renews the leases of slow handlers, and repeats releases that failed.

    It looks at the leases six times in their duration and renews those that are a third of it
    old, so a quick handler costs no renewal. A lease that Ctrl-C kept from its handler is not
    renewed, and runs out. Leases on a server that failed are released as soon as it answers again.
    The thread is started when it is needed, and ends with its store, or when it was idle for a
    while.
    """

    def __init__(self, store: LeasingStore) -> None:
        self._store: weakref.ref[LeasingStore] = weakref.ref(store)
        self._lease = store.lease
        per_process(self, _Renewer._reset)
        _renewers.add(self)

    def _reset(self) -> None:
        self._mutex = threading.Lock()  # guards `_thread`
        self._due = threading.Event()  # set when there is something to release
        self._thread: threading.Thread | None = None
        #: by token; a WeakValueDictionary would take several times as long
        self.held: dict[str, weakref.ref[Lease]] = {}
        #: by token: the groups to release, and when their leases have run out anyway
        self._owed: dict[str, tuple[Sequence[Sequence[str]], float]] = {}

    def watch(self, lease: Lease) -> None:
        self.held[lease.token] = weakref.ref(lease)
        if self._thread is None:
            self._start()

    def forget(self, lease: Lease) -> None:
        self.held.pop(lease.token, None)

    def release_later(self, groups: Sequence[Sequence[str]], token: str) -> None:
        earlier, _ = self._owed.get(token, ((), 0.0))
        self._owed[token] = [*earlier, *groups], time.monotonic() + self._lease
        self._due.set()
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._mutex:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="telesession-renewer", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # too many threads, or the interpreter is ending
                logger.warning(
                    "%r can't renew leases: handlers go on, and what takes longer than %g seconds "
                    "is not saved. Its thread did not start: %s.",
                    self._store(),
                    self._lease,
                    error,
                )
            else:
                self._thread = thread

    def _run(self) -> None:
        idle = 0
        while self._store() is not None and (idle < _PATIENCE or not self._ends()):
            self._due.clear()
            self._look()
            self._due.wait(min(self._lease / 6, _LONGEST_NAP))
            idle = 0 if self.held or self._owed else idle + 1

    def _look(self) -> None:
        for token, reference in self.held.copy().items():
            lease = reference()
            if lease is None:
                self.held.pop(token, None)
            elif token in self.held and time.monotonic() - lease.renewed >= self._lease / 3:
                self._renew(lease)
        for token, owed in self._owed.copy().items():
            store = self._store()
            done = store is None or store._release(owed[0], token) or time.monotonic() >= owed[1]
            if done and self._owed.get(token) is owed:  # else further groups were added
                del self._owed[token]

    def _ends(self) -> bool:
        """Whether to end; from then on, a new lease starts another thread."""
        with self._mutex:
            thread, self._thread = self._thread, None
            if self.held or self._owed:  # a lease came just before
                self._thread = thread
            return self._thread is None

    def _renew(self, lease: Lease) -> None:
        store = self._store()
        groups = lease.groups
        start = time.monotonic()
        try:
            if store and all(store.renew(names, lease.token) for names in groups):
                if groups is lease.groups:  # else groups were added, whose leases may be older
                    lease.renewed = start
            else:
                self.forget(lease)  # it is lost, and saving will be refused
        except Exception as error:
            if lease.token not in self.held:
                return  # the handler has ended meanwhile
            logger.warning(
                "%r failed to renew the lease of %s with %s. The handler goes on; unless a later "
                "try succeeds, saving will be refused.",
                store,
                ", ".join(map(repr, itertools.chain(*groups))),
                called(type(error)),
            )


_renewers: "weakref.WeakSet[_Renewer]" = weakref.WeakSet()


def _holding(token: str) -> Lease | None:
    """The lease with that token, if this process has it."""
    for renewer in list(_renewers):
        reference = renewer.held.get(token)
        lease = None if reference is None else reference()
        if lease is not None:
            return lease
    return None


_identities: "weakref.WeakKeyDictionary[Any, dict[str, object]]" = weakref.WeakKeyDictionary()


def identity(owner: Any, space: str) -> object:
    """The identity of the stores that keep sessions in ``space`` through the client ``owner``."""
    return _identities.setdefault(owner, {}).setdefault(space, object())


def milliseconds(seconds: float) -> int:
    """A lease's duration, or a ttl, in whole milliseconds, as servers take it."""
    return max(1, round(min(seconds * 1000, _LONGEST_TIME)))
