"""Leases: how a store keeps a session for one handler at a time across processes.

A lease is a claim on a session for some seconds, under a token that nobody else knows. Whoever
holds it may write; when its holder dies it runs out, and the session is free again::

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

`LeasingStore` does the waiting, the renewing and the bookkeeping; a store adds the three calls
that its server has to carry out atomically.
"""

import contextlib
import itertools
import logging
import random
import secrets
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from telesession._checks import called, checked_seconds
from telesession._forks import per_process
from telesession._workers import stand_in
from telesession.errors import SessionBusy, SessionDataError, SessionLost
from telesession.stores import Change, Payload, Store

logger = logging.getLogger("telesession")

_LONGEST_POLL = 0.1  # seconds between two looks at a session that others have leased
_LONGEST_TIME = 10**14  # milliseconds; servers refuse dates that are much later
_LONGEST_NAP = 2.0  # seconds between two looks of the renewer at leases, or whether it is needed
_PATIENCE = 12  # after so many looks at nothing the renewer ends


class Held(Exception):
    """What `LeasingStore.acquire` raises for a session that another token holds."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Lease:
    """The sessions that one update has leased; it may come to have more of them."""

    __slots__ = ("__weakref__", "groups", "over", "payloads", "renewed", "token", "written")

    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        token: str,
        payloads: dict[str, Payload | None],
        renewed: float,
    ) -> None:
        self.groups = groups
        self.token = token
        self.payloads = payloads  #: what was stored when they were opened
        self.renewed = renewed  #: when it was last known to be ours, by `time.monotonic`
        self.over = False  #: whether nothing is left to be done for it
        #: what is to be taken back of a commit that fails
        self.written: list[tuple[Sequence[str], list[Change]]] = []


class LeasingStore(Store):
    """A store that leases sessions, so that any number of processes can share it.

    To write one, subclass it and implement `acquire`, `renew` and `write`. Each is one atomic
    step on the server, for all names that it is given or none, and safe to call from several
    threads at once. The server's clock says when a lease, or a session with a ttl, is over. What
    is stored of a session comes back as it was given, `str` as `str` and `bytes` as `bytes`.

    Handlers of one process queue before they come here: two of them never ask for one session.
    Where several store objects can stand for one place on the server, `identity` has to say so.

    Where the server can only handle some sessions in one step, `groups` tells which; where it can
    tell that a session became free, `wait` listens to it. Errors of the client are raised as they
    are: the caller gets them as the cause of a `SessionStoreError`, and what is leased runs out.

    `open` adds to a lease that it is given: one `commit` then writes all its sessions. `commit` may
    be called once more, with no changes, after an exception came out of it or instead of it.

    Args:
        lease: seconds after which a session is free again if its process died, or stalled. It is
            renewed for as long as the handler runs.
    """

    def __init__(self, lease: float | timedelta) -> None:
        self.lease: float = checked_seconds("lease", lease)
        self._renewer = _Renewer(self)

    @abstractmethod
    def acquire(self, names: Sequence[str], token: str, waited: float) -> Sequence[Payload | None]:
        """Lease the sessions ``names`` to ``token`` for `lease` seconds, and read them, at once.

        Returns what is stored of each, in this order, `None` where nothing is or it has expired.
        If another token holds any of them, takes none and raises `Held`. For data that it can't
        have written it raises `SessionDataError`; the leases are then let go of. ``waited`` is
        for how many seconds the caller has tried before, 0 at first.
        """

    @abstractmethod
    def renew(self, names: Sequence[str], token: str) -> bool:
        """Make leases of ``token`` last `lease` seconds from now; `False` if one is over."""

    @abstractmethod
    def write(
        self, names: Sequence[str], token: str, changes: Sequence[Change], *, release: bool = True
    ) -> bool:
        """Carry out ``changes``, and, if ``release``, let go of all ``names``.

        `False`, with nothing written, if the lease of one of ``names`` is over. ``changes`` concern
        some of ``names``, and may be none at all.
        """

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        """The same names, by what one step can handle, and always in the same order.

        Sessions of several groups are written one group after the other, and what was written is
        taken back if a later one can't be; only a process that dies or stalls in between leaves a
        part.
        """
        return [names]

    def wait(self, name: str, limit: float, waited: float) -> None:
        """Return, after at most ``limit`` seconds, when ``name`` may be free.

        Sleeps for a part of the time already waited: short waits end promptly, and long ones ask
        the server seldom.
        """
        pause = min(_LONGEST_POLL, 0.002 + waited / 4)
        time.sleep(min(limit, pause * random.uniform(0.5, 1.5)))

    def open(
        self, names: Sequence[str], timeout: float, lease: Lease | None = None
    ) -> tuple[Lease, list[Payload | None]]:
        token = secrets.token_hex(8) if lease is None else lease.token
        groups = self.groups(names)
        found, asked = self._obtain(groups, token, timeout)
        if lease is None:
            lease = Lease(groups, token, found, asked)
            self._renewer.watch(lease)
        else:
            lease.payloads.update(found)  # first, since an interrupt may come in between
            lease.groups = self.groups([*itertools.chain(*lease.groups), *names])
            lease.renewed = min(lease.renewed, asked)
        return lease, [found[name] for name in names]

    def commit(self, lease: Lease, changes: Sequence[Change]) -> None:
        self._renewer.forget(lease)
        if lease.over:
            return
        kept = False
        try:
            if not lease.written:  # else it is being taken back, and an interrupt came
                kept = self._write(lease, changes)
        except Exception:
            # The client failed, and is not asked once more, which may take as long again: what is
            # still leased runs out. Only where a part may have been written, that is taken back.
            try:
                if lease.written and len(lease.written[-1][1]) < len(changes):
                    self._take_back(lease)
            finally:
                lease.over = True
            raise
        except BaseException:
            self._give_up(lease)
            raise
        if kept:
            lease.over = True
            return
        self._give_up(lease)
        if changes:
            names = ", ".join(repr(name) for name, _, _ in changes)
            raise SessionLost(
                f"{names} was not saved: its lease of {self.lease:g} seconds ran out while the "
                "handler ran, since the process stalled or the store could not be reached, and "
                "others may have used it. Handle the update again, or give the store a longer "
                "lease."
            )

    def _obtain(
        self, groups: Sequence[Sequence[str]], token: str, timeout: float
    ) -> tuple[dict[str, Payload | None], float]:
        """Lease them, when others have let go; what is stored, and when it was asked for."""
        start = asked = time.monotonic()
        with contextlib.ExitStack() as waiting:
            while True:
                try:
                    return self._acquire(groups, token, asked - start), asked
                except Held as held:
                    name = held.name
                waited = time.monotonic() - start
                if waited >= timeout:
                    break
                if asked == start:
                    waiting.enter_context(stand_in())
                self.wait(name, timeout - waited, waited)
                asked = time.monotonic()
        raise SessionBusy(
            f"{name!r} was in use by another process for as long as lock_timeout allows. "
            "Make its handler quicker, or give with_session a longer lock_timeout. If "
            f"that process died, the session is free again in {self.lease:g} seconds.",
            name,
        )

    def _acquire(
        self, groups: Sequence[Sequence[str]], token: str, waited: float
    ) -> dict[str, Payload | None]:
        found: dict[str, Payload | None] = {}
        for number, names in enumerate(groups):
            try:
                found.update(zip(names, self.acquire(names, token, waited)))
            except BaseException as error:
                # Ctrl-C may come when these are leased already. A client that failed is not asked
                # once more, which may take as long again; such leases run out.
                leased = isinstance(error, SessionDataError) or not isinstance(error, Exception)
                self._release(groups[: number + leased], token)
                raise
        return found

    def _write(self, lease: Lease, changes: Sequence[Change]) -> bool:
        """Write and let go; `False` if a lease is over. May leave something to take back."""
        if len(lease.groups) == 1:
            return self.write(lease.groups[0], lease.token, changes)
        for names in lease.groups:
            mine = [change for change in changes if change[0] in names]
            lease.written.append((names, mine))  # before, since it may fail after it was done
            if not self.write(names, lease.token, mine, release=False):
                return False
        lease.written = []
        self._release(lease.groups, lease.token)
        return True

    def _take_back(self, lease: Lease) -> None:
        """Write what was stored before, and let go of that, as far as the server answers."""
        for names, changes in lease.written:
            before = [(name, lease.payloads[name], ttl) for name, _, ttl in changes]
            with contextlib.suppress(Exception):
                if before:
                    self.write(names, lease.token, before)

    def _give_up(self, lease: Lease) -> None:
        self._take_back(lease)
        self._release(lease.groups, lease.token)
        lease.over = True

    def _release(self, groups: Sequence[Sequence[str]], token: str) -> None:
        """Let go without writing, as far as the server answers; what it doesn't hear runs out."""
        with contextlib.suppress(Exception):
            for names in groups:
                if not self.write(names, token, ()) and len(names) > 1:
                    for name in names:  # one of them is lost, the others are not
                        self.write([name], token, ())


class _Renewer:
    """A thread that renews the leases of handlers that take long.

    It looks at the leases six times in their duration and renews those that are a third of it
    old: of those that end sooner it never tells the server. A lease that nobody has any more,
    since Ctrl-C came before its handler had it, runs out. The thread is started when it is needed,
    and ends with its store, or when there was nothing to do for a while.
    """

    def __init__(self, store: LeasingStore) -> None:
        self._store: weakref.ref[LeasingStore] = weakref.ref(store)
        self._lease = store.lease
        per_process(self, _Renewer._reset)

    def _reset(self) -> None:
        self._mutex = threading.Lock()  # for the thread
        self._thread: threading.Thread | None = None
        self._held: weakref.WeakValueDictionary[str, Lease] = weakref.WeakValueDictionary()

    def watch(self, lease: Lease) -> None:
        self._held[lease.token] = lease
        if self._thread is None:
            self._start()

    def forget(self, lease: Lease) -> None:
        self._held.pop(lease.token, None)

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
            self._look()
            time.sleep(min(self._lease / 6, _LONGEST_NAP))
            idle = 0 if self._held else idle + 1

    def _look(self) -> None:
        for lease in list(self._held.values()):
            if lease.token in self._held and time.monotonic() - lease.renewed >= self._lease / 3:
                self._renew(lease)

    def _ends(self) -> bool:
        """Whether to end: who comes after this finds no thread and starts another one."""
        with self._mutex:
            thread, self._thread = self._thread, None
            if self._held:  # somebody came just before
                self._thread = thread
            return self._thread is None

    def _renew(self, lease: Lease) -> None:
        store = self._store()
        groups = lease.groups
        start = time.monotonic()
        try:
            if store and all(store.renew(names, lease.token) for names in groups):
                if groups is lease.groups:  # else it has more by now, which may be older
                    lease.renewed = start
            else:
                self.forget(lease)  # too late; saving will be refused
        except Exception as error:
            if lease.token not in self._held:
                return  # its handler has ended meanwhile
            logger.warning(
                "%r failed to renew the lease of %s with %s. The handler goes on; unless a later "
                "try succeeds, saving will be refused.",
                store,
                ", ".join(map(repr, itertools.chain(*groups))),
                called(type(error)),
            )


_identities: "weakref.WeakKeyDictionary[Any, dict[str, object]]" = weakref.WeakKeyDictionary()


def identity(owner: Any, space: str) -> object:
    """The same object for the same part ``space`` of what ``owner``, a client, talks to."""
    return _identities.setdefault(owner, {}).setdefault(space, object())


def milliseconds(seconds: float) -> int:
    """A lease, or a time to live, as servers take it."""
    return max(1, round(min(seconds * 1000, _LONGEST_TIME)))


def foreign(names: Sequence[str], place: str, cure: str) -> SessionDataError:
    """What to raise for stored data that can't be ours."""
    return SessionDataError(
        f"{', '.join(map(repr, names))}: {place} has something there that telesession did not "
        f"write. It is left as it is, and the handler did not run. {cure}"
    )
