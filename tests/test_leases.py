"""6.3, 6.4 `LeasingStore`: what it makes of the three calls that a store of one's own adds."""

import contextlib
import gc
import logging
import os
import threading
import time
import weakref
from datetime import timedelta

import pytest

from telesession import SessionBusy, SessionDataError, SessionLost, SessionStoreError, leases
from telesession.leases import Held, LeasingStore, identity
from tests.helpers import says, until
from tests.stores import TIMEOUT, visit

pytestmark = pytest.mark.thorough

A, B, C = NAMES = ["a:1", "b:1", "c:1"]


class OwnStore(LeasingStore):
    """What the docstring of `LeasingStore` asks for, in memory; it notes calls, and can fail."""

    def __init__(self, lease=10.0, grouped=False):
        super().__init__(lease)
        self.kept = {}  # name: (payload, when it expires)
        self.leased = {}  # name: (token, until by the server's clock, beat)
        self.ended = set()  # tokens that have let go
        self.clock = time.monotonic  # the server's
        self.calls = []
        self.failures = {}  # (operation, name): what to raise, once
        self.too_late = False  # whether writing fails after it was done
        self._grouped = grouped
        self._step = threading.Lock()

    def groups(self, names):
        return [[name] for name in sorted(names)] if self._grouped else [names]

    def acquire(self, names, token, waited, stale):
        with self._step:
            self._note("acquire", names)
            for name in names:
                holder, until, beat = self.leased.get(name, (token, 0, 0))
                gone = stale.get(name) == (holder, beat) or until <= self.clock()
                if holder != token and not gone:
                    raise Held(name, holder, beat)
            self._extend(names, token)
            return [self._read(name) for name in names]

    def renew(self, names, token):
        with self._step:
            self._note("renew", names)
            if not self._has(names, token):
                return False
            self._extend(names, token)
            return True

    def write(self, names, token, changes, *, release=True):
        with self._step:
            self._note("write", names, fail=not self.too_late)
            if not self._has(names, token):
                return token in self.ended  # it is sent for the second time
            for name, payload, ttl in changes:
                if payload is None:
                    self.kept.pop(name, None)
                else:
                    self.kept[name] = payload, None if ttl is None else time.monotonic() + ttl
            if release:
                self.ended.add(token)
                for name in names:
                    del self.leased[name]
            if self.too_late:
                self._fail("write", names)
            return True

    def _read(self, name):
        payload, expires = self.kept.get(name, (None, None))
        return None if expires is not None and expires <= time.monotonic() else payload

    def _has(self, names, token):
        return all(self.leased.get(name, ("",))[0] == token for name in names)

    def _extend(self, names, token):
        for name in names:
            _, _, beat = self.leased.get(name, ("", 0, 0))
            self.leased[name] = token, self.clock() + self.lease, beat + 1

    def _note(self, operation, names, fail=True):
        self.calls.append((operation, *names))
        if fail:
            self._fail(operation, names)

    def _fail(self, operation, names):
        for name in names:
            error = self.failures.pop((operation, name), None)
            if error:
                raise error

    # For tests

    def steal(self, name):
        """Have another process take the session, as it can when the lease ran out."""
        self.leased[name] = "thief-60000", time.monotonic() + TIMEOUT, 0

    def count(self, operation):
        return sum(call[0] == operation for call in self.calls)


@pytest.fixture
def store():
    return OwnStore()


@pytest.fixture
def grouped():
    """A store that handles each session in a step of its own."""
    store = OwnStore(grouped=True)
    store.kept = {name: (f"old {name}", None) for name in NAMES}
    return store


def renewer(store):
    """The thread that renews the leases of the store, while it has one."""
    return store._renewer._thread


def changed(*names):
    return [(name, f"new {name}", None) for name in names]


# One step for all


def test_visit(store):
    """An update leases and reads in one call, writes and lets go in another, and renews nothing."""
    for n in (1, 2):
        visit(lambda update: update.session.update(n=n), store=store)  # noqa: B023
    assert store.calls == [("acquire", "session:42:42"), ("write", "session:42:42")] * 2
    assert store.kept == {"session:42:42": ('{"n":2}', None)}
    assert store.leased == {}


def test_order(store):
    """What is read comes in the order of the names."""
    store.kept = {name: (name, None) for name in NAMES}
    lease, found = store.open([B, C, A], 0)
    assert found == [B, C, A]
    store.commit(lease, [])


def test_held(store):
    """A session that another process holds is waited for."""
    store.steal(A)
    threading.Timer(0.1, store.leased.clear).start()
    store.commit(store.open(NAMES, TIMEOUT)[0], changed(A))
    assert store.kept[A] == ("new a:1", None)
    assert store.count("acquire") > 2


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_busy(store, timeout):
    """Waiting ends with the time-out, and says which session it was; none is leased then."""
    store.steal(B)
    start = time.monotonic()
    with says(SessionBusy, "'b:1'", "another process", "lock_timeout", "60 seconds"):
        store.open(NAMES, timeout)
    assert time.monotonic() - start >= timeout
    assert list(store.leased) == [B]


def test_pauses(store, monkeypatch):
    """Who waits asks often at first, then seldom, but ten times a second at least."""
    now, pauses = [100.0], []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    store.leased[A] = "thief-60000", float("inf"), 0
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(leases.time, "sleep", sleep)
    monkeypatch.setattr(leases.random, "uniform", lambda low, high: (low + high) / 2)
    with pytest.raises(SessionBusy):
        store.open([A], 10)
    assert pauses[0] < 0.005
    assert pauses[:-1] == sorted(pauses[:-1])
    assert max(pauses) == 0.1
    assert sum(pauses) == pytest.approx(10)  # the last one only as long as there is time
    assert len(pauses) < 150
    monkeypatch.undo()
    monkeypatch.setattr(leases.time, "sleep", pauses.append)
    pauses.clear()
    for _ in range(100):
        store.wait(A, 60, 30)
    assert 0.05 <= min(pauses) < 0.08 < 0.12 < max(pauses) <= 0.15  # not all at the same times


@pytest.mark.parametrize("changes", [changed(A), []], ids=["write", "nothing to write"])
def test_lost(store, changes):
    """What was lost is not written; a handler that wrote nothing has lost nothing."""
    lease, _ = store.open(NAMES, 0)
    store.steal(A)
    if changes:
        with says(SessionLost, "'a:1'", "10 seconds", "Handle the update again"):
            store.commit(lease, changes)
    else:
        store.commit(lease, changes)
    assert store.kept == {}
    assert list(store.leased) == [A]  # the others are free
    assert store.leased[A][0] == "thief-60000"


@pytest.mark.parametrize("error", [ConnectionError(), KeyboardInterrupt()], ids=repr)
def test_write_fails(store, error):
    """A write that fails reaches the caller, who does not wait for the server to let go as well."""
    lease, _ = store.open([A], 0)
    store.failures["write", A] = error
    with pytest.raises(type(error)):
        store.commit(lease, changed(A))
    assert store.count("write") == (1 if isinstance(error, Exception) else 2)
    store.commit(lease, ())
    until(lambda: not store.leased)
    assert store.kept == {}
    assert store.count("write") == 2


@pytest.mark.parametrize("operation", ["acquire", "write"])
def test_let_go_of_when_the_server_is_back(operation):
    """What the client failed to let go of is let go of later, long before it would run out."""
    store = OwnStore(6)
    threads = []
    down = True

    def write(names, token, changes, *, release=True):
        threads.append(threading.current_thread())
        if down:
            raise ConnectionError
        return OwnStore.write(store, names, token, changes, release=release)

    store.write = write
    if operation == "acquire":
        store.acquire = failing(store.acquire, ConnectionError(), late=True)  # the answer is lost
        with pytest.raises(ConnectionError):
            store.open([A, B], 0)
        assert threading.current_thread() not in threads
    else:
        lease, _ = store.open([A, B], 0)
        with pytest.raises(ConnectionError):
            store.commit(lease, changed(A))
        assert threads.pop(0) is threading.current_thread()
    until(lambda: threads)
    assert sorted(store.leased) == [A, B]
    down = False
    start = time.monotonic()
    store.commit(store.open([A, B], TIMEOUT)[0], changed(A))
    assert time.monotonic() - start < 4
    assert set(threads[:-1]) == {renewer(store)}
    assert store.kept == {A: ("new a:1", None)}
    assert store.count("renew") == 0


def test_a_server_that_stays_away(store, monkeypatch):
    """It is asked to let go until the lease has run out, and no longer."""
    lease, _ = store.open([A], 0)
    store.write = failing(store.write, *[ConnectionError()] * 100)
    with pytest.raises(ConnectionError):
        store.commit(lease, changed(A))
    store._renewer._look()
    assert list(store._renewer._owed) == [lease.token]
    late = time.monotonic() + store.lease
    monkeypatch.setattr(leases.time, "monotonic", lambda: late)
    store._renewer._look()
    assert not store._renewer._owed


def test_failures_of_a_client(store):
    """A handler's caller gets a `SessionStoreError` from what the client raised."""
    for operation in ("acquire", "write"):
        store.failures[operation, "session:42:42"] = error = ConnectionError()
        with pytest.raises(SessionStoreError) as caught:
            visit(lambda update: update.session.update(n=1), store=store)
        assert caught.value.__cause__ is error
    assert store.kept == {}


@pytest.mark.parametrize("grouped", [False, True], ids=["one step", "a step for each"])
@pytest.mark.parametrize("changes", [changed(A, B), []], ids=["write", "nothing to write"])
def test_commit_again(grouped, changes):
    """After it was done, a second time does nothing; also not when the session is others'."""
    store = OwnStore(grouped=grouped)
    lease, _ = store.open(NAMES, 0)
    store.commit(lease, changes)
    other, _ = store.open(NAMES, 0)
    before = dict(store.kept), dict(store.leased), list(store.calls)
    store.commit(lease, ())
    assert (store.kept, store.leased, store.calls) == before
    store.commit(other, ())


@pytest.mark.parametrize("grouped", [False, True], ids=["one step", "a step for each"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after it was done"])
def test_commit_again_after_interrupts(grouped, late):
    """Wherever two interrupts come, the call without changes lets go; all is saved, or nothing."""
    for first in range(20):
        for second in range(first + 1, 21):
            store = OwnStore(grouped=grouped)
            store.kept = {name: (f"old {name}", None) for name in NAMES}
            lease, _ = store.open(NAMES, 0)
            number = 0
            write = store.write

            def interrupted(*args, **kwargs):
                nonlocal number
                number += 1
                hit = number in (first, second)  # noqa: B023
                answer = None if hit and not late else write(*args, **kwargs)  # noqa: B023
                if hit:
                    raise KeyboardInterrupt
                return answer

            store.write = interrupted
            for changes in (changed(*NAMES), [], []):
                with contextlib.suppress(KeyboardInterrupt):
                    store.commit(lease, changes)
            assert store.leased == {}
            assert len({payload.split()[0] for payload, _ in store.kept.values()}) == 1


def test_commit_instead_of_one_that_never_ran(store):
    """An exception out of a signal handler may come before the changes are handed over."""
    lease, _ = store.open(NAMES, 0)
    store.commit(lease, ())
    assert store.kept == store.leased == {}


@pytest.mark.parametrize("error", [SessionDataError(), KeyboardInterrupt()], ids=repr)
def test_leased_but_not_read(store, error):
    """What was leased before reading it failed is let go of."""
    store.acquire = failing(store.acquire, error, late=True)
    with pytest.raises(type(error)):
        store.open(NAMES, 0)
    assert store.leased == {}


def failing(call, *errors, late=False):
    """The same, but it raises these first, if ``late`` when it is done."""
    left = list(errors)

    def run(*args, **kwargs):
        if left and not late:
            raise left.pop(0)
        answer = call(*args, **kwargs)
        if left:
            raise left.pop(0)
        return answer

    return run


# A step for each


def test_groups(grouped):
    """Sessions of several groups are leased in their order, and let go of when all are written."""
    lease, found = grouped.open([C, A, B], 0)
    assert found == ["old c:1", "old a:1", "old b:1"]
    grouped.commit(lease, changed(C, A))
    assert [call[1] for call in grouped.calls] == [A, B, C] * 3
    assert {name: payload for name, (payload, _) in grouped.kept.items()} == {
        A: "new a:1",
        B: "old b:1",
        C: "new c:1",
    }
    assert grouped.leased == {}


@pytest.mark.parametrize("taken", NAMES)
def test_one_group_is_held(grouped, taken):
    """While one can't be had, none of the others is kept from those that need only it."""
    grouped.steal(taken)
    with says(SessionBusy, repr(taken)):
        grouped.open(NAMES, 0)
    assert list(grouped.leased) == [taken]


@pytest.mark.parametrize(
    "error", [ConnectionError(), SessionDataError(), KeyboardInterrupt()], ids=repr
)
def test_one_group_is_not_read(grouped, error):
    """A group that can't be read leaves none leased."""
    grouped.failures["acquire", B] = error
    with pytest.raises(type(error)):
        grouped.open(NAMES, 0)
    assert grouped.leased == {}


@pytest.mark.parametrize("lost", NAMES)
@pytest.mark.parametrize("changes", [changed(*NAMES), []], ids=["write", "nothing to write"])
def test_one_group_is_lost(grouped, lost, changes):
    """None is saved if one is lost; the others are let go of."""
    before = dict(grouped.kept)
    lease, _ = grouped.open(NAMES, 0)
    grouped.steal(lost)
    if changes:
        with says(SessionLost, repr(lost)):
            grouped.commit(lease, changes)
    else:
        grouped.commit(lease, changes)
    assert grouped.kept == before
    assert list(grouped.leased) == [lost]


@pytest.mark.parametrize("late", [False, True], ids=["before", "after it was done"])
@pytest.mark.parametrize("error", [ConnectionError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("broken", NAMES)
def test_one_group_is_not_written(grouped, broken, error, late):
    """None is saved if writing one fails, even if that one was saved in truth."""
    del grouped.kept[C]  # one that is new goes again
    before = dict(grouped.kept)
    lease, _ = grouped.open(NAMES, 0)
    grouped.too_late = late
    grouped.failures["write", broken] = error
    with pytest.raises(type(error)):
        grouped.commit(lease, changed(*NAMES))
    assert grouped.kept == before
    if isinstance(error, Exception):  # the server is asked to take back, and for nothing else now
        assert list(grouped.leased) == NAMES[NAMES.index(broken) + 1 :]
    grouped.commit(lease, ())
    until(lambda: not grouped.leased)
    assert grouped.kept == before


@pytest.mark.parametrize("late", [False, True], ids=["before", "after it was done"])
def test_what_can_not_be_taken_back(grouped, late):
    """It is named, with what is known of each session."""
    lease, _ = grouped.open(NAMES, 0)
    write, calls = grouped.write, 0

    def breaking(names, token, changes, *, release=True):
        nonlocal calls
        calls += 1
        if calls == 1 or (calls == 2 and late):
            write(names, token, changes, release=release)
        if calls > 1:
            raise ConnectionError("hunter2")
        return True

    grouped.write = breaking
    words = "ConnectionError", "'a:1': saved.", "'b:1': perhaps saved.", "other", "were not saved"
    with says(SessionStoreError, *words) as caught:
        grouped.commit(lease, changed(*NAMES))
    assert caught.value.property == "a"
    assert "hunter2" not in str(caught.value)
    kept = [payload.split()[0] for payload, _ in map(grouped.kept.get, NAMES)]
    assert kept == ["new", "new" if late else "old", "old"]


def test_lost_and_not_taken_back(grouped):
    """Also where others have taken one of them, and the server then failed."""
    lease, _ = grouped.open(NAMES, 0)
    grouped.steal(B)
    grouped.write = failing_later(grouped.write, 2)
    with says(SessionStoreError, "SessionLost", "'a:1': saved.", "The other") as caught:
        grouped.commit(lease, changed(*NAMES))
    assert "perhaps" not in str(caught.value)
    assert isinstance(caught.value.__cause__, SessionLost)


def failing_later(call, after):
    """The same so many times, and then it always fails."""
    number = 0

    def run(*args, **kwargs):
        nonlocal number
        number += 1
        if number > after:
            raise ConnectionError
        return call(*args, **kwargs)

    return run


@pytest.mark.parametrize("broken", NAMES)
def test_one_group_is_refused(grouped, broken):
    """6.3 A group that was not written for sure is not taken back; those before it are."""
    before = dict(grouped.kept)
    lease, _ = grouped.open(NAMES, 0)
    grouped.refused = lambda error: True
    grouped.failures["write", broken] = ConnectionError()
    grouped.calls.clear()
    with pytest.raises(ConnectionError):
        grouped.commit(lease, changed(A, C))
    assert grouped.kept == before
    written = NAMES[: NAMES.index(broken)]
    tried = [*written, broken, *(name for name in written if name != B)]
    assert grouped.calls == [("write", name) for name in tried]


@pytest.mark.parametrize("writing", NAMES)
def test_the_only_group_that_is_written(grouped, writing):
    """Where only one is written, there is nothing to take back: the server is not asked again."""
    before = dict(grouped.kept)
    lease, _ = grouped.open(NAMES, 0)
    grouped.failures["write", writing] = ConnectionError()
    with pytest.raises(ConnectionError):
        grouped.commit(lease, changed(writing))
    assert grouped.kept == before
    assert grouped.calls[-1] == ("write", writing)
    assert grouped.count("write") == NAMES.index(writing) + 1


def test_letting_go_fails(grouped):
    """A server that fails while it is told to let go is not told of the next session."""
    lease, _ = grouped.open(NAMES, 0)
    write = grouped.write

    def releasing(names, token, changes, *, release=True):
        if release:
            grouped.calls.append(("let go", *names))
            raise ConnectionError
        return write(names, token, changes, release=release)

    grouped.write = releasing
    grouped.commit(lease, changed(A))  # it is saved, whatever becomes of the leases
    assert grouped.kept[A] == ("new a:1", None)
    assert grouped.count("let go") == 1
    grouped.commit(lease, ())
    assert grouped.count("let go") == 1


# A lease that grows


def test_grows(store):
    """What is opened with a lease is written by the same step."""
    store.kept = {name: (name, None) for name in NAMES}
    lease, _ = store.open([B], 0)
    grown, found = store.open([C, A], 0, lease)
    assert grown is lease
    assert found == [C, A]
    assert {token for token, _, _ in store.leased.values()} == {lease.token}
    store.calls.clear()
    store.commit(lease, changed(*NAMES))
    assert store.calls == [("write", B, C, A)]
    assert store.kept == {name: (f"new {name}", None) for name in NAMES}
    assert store.leased == {}


@pytest.mark.parametrize("broken", NAMES)
def test_grows_by_groups(grouped, broken):
    """All groups are written in their order, and taken back if one can't be."""
    before = dict(grouped.kept)
    lease, _ = grouped.open([C], 0)
    grouped.open([B, A], 0, lease)
    grouped.failures["write", broken] = KeyboardInterrupt()
    grouped.calls.clear()
    with pytest.raises(KeyboardInterrupt):
        grouped.commit(lease, changed(*NAMES))
    assert grouped.calls[0] == ("write", A)
    assert grouped.kept == before
    assert grouped.leased == {}


@pytest.mark.parametrize("grouped", [False, True], ids=["one step", "a step for each"])
@pytest.mark.parametrize(
    "error", [None, ConnectionError(), SessionDataError(), KeyboardInterrupt()], ids=repr
)
def test_does_not_grow(grouped, error):
    """Where the others can't be had, the lease is as it was: renewed, and good for a save."""
    store = OwnStore(0.3, grouped=grouped)
    lease, _ = store.open([A], 0)
    if error is None:
        store.steal(C)
        with says(SessionBusy, "'c:1'"):
            store.open([B, C], 0.05, lease)
    else:
        store.failures["acquire", C] = error
        with pytest.raises(type(error)):
            store.open([B, C], 0, lease)
    failed = isinstance(error, ConnectionError)
    assert sorted(store.leased) == [A] + [B] * (failed and grouped) + [C] * (not error)
    time.sleep(0.5)
    store.calls.clear()
    store.commit(lease, changed(A))
    assert list(store.kept) == [A]
    assert ("write", A) in store.calls
    until(lambda: A not in store.leased and B not in store.leased)
    assert failed or not any(name in call for call in store.calls for name in (B, C))


@pytest.mark.parametrize("grouped", [False, True], ids=["one step", "a step for each"])
def test_grows_at_the_second_try(grouped):
    """What failed to be added, and then was, is not let go of in the background."""
    store = OwnStore(0.6, grouped=grouped)
    lease, _ = store.open([A], 0)
    acquire = store.acquire
    store.acquire = failing(acquire, ConnectionError(), late=True)
    with pytest.raises(ConnectionError):
        store.open([B], 0, lease)
    store.acquire = acquire
    store.open([B], 0, lease)
    for _ in range(3):
        store._renewer._look()
    assert sorted(store.leased) == [A, B]
    store.commit(lease, changed(A, B))
    assert sorted(store.kept) == [A, B]
    until(lambda: not store._renewer._owed)


# A holder that is gone


@pytest.fixture
def clock(monkeypatch):
    """That of who waits: it is moved by whoever sleeps, and by the test."""
    now = [100.0]
    thread, sleep = threading.current_thread(), time.sleep

    def move(seconds):
        if threading.current_thread() is not thread:  # a renewer of another test
            sleep(seconds)
        else:
            now[0] += seconds

    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(leases.time, "sleep", move)
    return move


def left_behind(lease):
    """A store whose server's clock stands still, and that has a holder that died."""
    store = OwnStore(lease)
    store._renewer.watch = lambda lease: None
    store.clock = lambda: -3600.0
    return store


def test_holder_that_stands_still(clock):
    """It is taken over from when nobody renewed it for as long as it was asked for."""
    store, other = left_behind(30), OwnStore(3)
    store.open([A, B], 0)
    other.leased, other.clock = store.leased, store.clock
    start = leases.time.monotonic()
    lease, _ = other.open([A, B], 60)
    assert 30 <= leases.time.monotonic() - start < 31
    assert store.leased[A][0] == store.leased[B][0] == lease.token
    other.commit(lease, changed(A))


def test_holder_that_is_alive(clock):
    """One that renews its lease is never taken over, whatever the server's clock says."""
    store, other = left_behind(3), OwnStore(0.3)
    token = store.open([A], 0)[0].token
    other.leased, other.clock = store.leased, store.clock
    for _ in range(100):
        with pytest.raises(SessionBusy):
            other.open([A], 0)
        clock(1)
        store.renew([A], token)
    with pytest.raises(SessionBusy):
        other.open([A], 2.5)


def test_many_short_looks(clock):
    """What was seen outlives a wait: those that never wait get there, too."""
    store, other = left_behind(3), OwnStore(3)
    store.open([A], 0)
    other.leased, other.clock = store.leased, store.clock
    looks = 0
    while True:
        looks += 1
        try:
            lease, _ = other.open([A], 0)
            break
        except SessionBusy:
            clock(0.5)
    assert looks == 7
    other.commit(lease, changed(A))
    # the next holder is observed anew
    store.open([A], 0)
    with pytest.raises(SessionBusy):
        other.open([A], 0)


def test_a_step_that_does_not_know_it(clock):
    """A store that can't take over is not asked for ever without a pause."""
    store = left_behind(3)
    store.open([A], 0)
    store.acquire = lambda names, token, waited, stale: OwnStore.acquire(
        store, names, token, waited, {}
    )
    with says(SessionBusy, "'a:1'", "3 seconds"):
        store.open([A], 60)


def test_what_is_seen_is_bounded(clock):
    """However many sessions are in the way."""
    store = left_behind(3)
    names = [f"a:{n}" for n in range(1500)]
    store.open(names, 0)
    for name in names:
        with pytest.raises(SessionBusy):
            store.open([name], 0)
    assert len(store._seen) == 1000
    clock(3)
    store.commit(store.open(names[-1:], 0)[0], ())
    assert len(store._seen) == 999


@pytest.mark.parametrize("same_thread", [True, False])
def test_two_objects_for_one_place(same_thread):
    """Who waits for itself is told at once; others of the process are not called another one."""
    store, other = OwnStore(3), OwnStore(3)
    other.leased = store.leased
    lease, _ = store.open([A], 0)
    caught = []

    def ask():
        try:
            other.open([A], TIMEOUT if same_thread else 0)
        except SessionBusy as error:
            caught.append(str(error))

    if same_thread:
        ask()
    else:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(TIMEOUT)
    (text,) = caught
    assert "another store object" in text
    assert ("the very handler" if same_thread else "another thread") in text
    assert "another process" not in text
    store.commit(lease, changed(A))
    other.commit(other.open([A], 0)[0], ())


def test_interrupted_while_it_waits_to_grow():
    """As by Ctrl-C, in a store that waits by itself."""
    store = OwnStore(0.3)
    lease, _ = store.open([A], 0)
    store.steal(B)
    store.wait = failing(store.wait, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        store.open([B], TIMEOUT, lease)
    time.sleep(0.5)
    store.commit(lease, changed(A))
    assert store.kept[A] == ("new a:1", None)


@pytest.mark.parametrize("grouped", [False, True], ids=["one step", "a step for each"])
def test_grown_lease_is_renewed(grouped):
    """All that it has, for as long as the handler runs; also while it waits for more."""
    store = OwnStore(0.3, grouped=grouped)
    lease, _ = store.open([A], 0)
    time.sleep(0.2)
    store.steal(C)
    threading.Timer(0.5, store.leased.pop, (C,)).start()
    store.open([B, C], TIMEOUT, lease)
    time.sleep(0.8)
    store.commit(lease, changed(*NAMES))
    assert sorted(store.kept) == NAMES
    assert store.leased == {}


def test_grows_while_it_is_renewed():
    """What came after the renewal began is not taken to be renewed."""
    store = OwnStore(0.6)
    asked, answered = threading.Event(), threading.Event()
    renewed, seen = [], []

    def renew(names, token):
        renewed.append(list(names))
        seen.append(lease.renewed)
        asked.set()
        answered.wait(TIMEOUT)
        return True

    store.renew = renew
    lease, _ = store.open([A], 0)
    opened = lease.renewed
    assert asked.wait(TIMEOUT)
    store.open([B], 0, lease)
    answered.set()
    until(lambda: len(renewed) > 1)
    assert renewed[:2] == [[A], [A, B]]
    assert seen[1] == opened
    store.commit(lease, ())


def test_renewed_while_it_grows():
    """What is leased before a renewal, and added after it, counts as the oldest does."""
    store = OwnStore(0.6)
    lease, _ = store.open([A], 0)
    acquire = store.acquire

    def slowly(*args):
        found = acquire(*args)
        until(lambda: lease.renewed > start)
        return found

    store.acquire = slowly
    start = time.monotonic()
    store.open([B], 0, lease)
    assert lease.renewed < start + 0.1
    store.commit(lease, ())


# Who waits


@pytest.fixture
def stand_ins(monkeypatch):
    """How often somebody stood in, and stands in just now."""
    counts = {"all": 0, "now": 0}

    @contextlib.contextmanager
    def stand_in():
        counts["all"] += 1
        counts["now"] += 1
        try:
            yield
        finally:
            counts["now"] -= 1

    monkeypatch.setattr(leases, "stand_in", stand_in)
    return counts


def test_nobody_stands_in(store, stand_ins):
    """Where there is nothing to wait for, or no time to wait."""
    store.commit(store.open([A], TIMEOUT)[0], ())
    store.steal(A)
    with pytest.raises(SessionBusy):
        store.open([A], 0)
    assert stand_ins == {"all": 0, "now": 0}


@pytest.mark.parametrize("outcome", [None, SessionBusy, ConnectionError, KeyboardInterrupt])
def test_somebody_stands_in(store, stand_ins, outcome):
    """From the first time that it is held until the wait is over, however that ends."""
    store.steal(A)
    meanwhile = []

    def wait(name, limit, waited):
        meanwhile.append(stand_ins["now"])
        if len(meanwhile) < 3:
            return
        if outcome is None:
            store.leased.clear()
        elif outcome is SessionBusy:
            time.sleep(limit)
        else:
            raise outcome

    store.wait = wait
    if outcome is None:
        store.commit(store.open([A], TIMEOUT)[0], ())
    else:
        with pytest.raises(outcome):
            store.open([A], 0.1)
    assert meanwhile == [1, 1, 1]
    assert stand_ins == {"all": 1, "now": 0}


# Renewing


def test_long_handler():
    """Leases are renewed for as long as the handler runs, a few times each, and then no more."""
    store = OwnStore(0.3, grouped=True)
    start = time.monotonic()
    lease, _ = store.open(NAMES, 0)
    time.sleep(1.0)
    store.commit(lease, changed(*NAMES))
    assert sorted(store.kept) == NAMES
    assert 3 * 3 <= store.count("renew") <= (time.monotonic() - start) / 0.1 * 3
    store.calls.clear()
    time.sleep(0.3)
    assert store.calls == []


def test_renewing_fails_once(caplog):
    """A renewal that fails is logged, and tried again before the lease is over."""
    store = OwnStore(0.6)
    store.failures["renew", A] = ConnectionError("hunter2")
    lease, _ = store.open([A], 0)
    until(lambda: store.count("renew") == 3)
    store.commit(lease, changed(A))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("telesession", logging.WARNING)
    assert "'a:1'" in record.message
    assert "ConnectionError" in record.message
    assert "hunter2" not in record.message


def test_lost_while_the_handler_runs(caplog):
    """What is lost is not renewed any more, and not saved."""
    store = OwnStore(0.15)
    lease, _ = store.open([A], 0)
    store.steal(A)
    until(lambda: store.count("renew"))
    time.sleep(0.2)
    assert store.count("renew") == 1
    with says(SessionLost, "'a:1'"):
        store.commit(lease, changed(A))
    assert not caplog.records


def test_ends_while_it_is_renewed(caplog):
    """A handler may end in the middle of a renewal, even of one that then fails."""
    store = OwnStore(0.15)
    asked, answered = threading.Event(), threading.Event()

    def renew(names, token):
        asked.set()
        answered.wait(TIMEOUT)
        raise ConnectionError

    store.renew = renew
    lease, _ = store.open([A], 0)
    assert asked.wait(TIMEOUT)
    store.commit(lease, changed(A))
    answered.set()
    until(lambda: not renewer(store))
    assert store.leased == {}
    assert list(store.kept) == [A]
    assert not caplog.records


def test_renewer_ends_and_starts_again():
    """There is one daemon thread while there are leases, and none after a while without."""
    store = OwnStore(0.1)
    for _ in range(2):
        before = threading.active_count()
        all = [store.open([name], 0)[0] for name in NAMES]
        thread = renewer(store)
        assert thread.daemon
        assert thread.is_alive()
        assert threading.active_count() <= before + 1
        for lease in all:
            store.commit(lease, ())
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_no_thread_to_be_had(store, monkeypatch, caplog):
    """Where no thread can start, handlers go on and it is logged; the next one tries again."""

    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        store.commit(store.open([A], 0)[0], changed(A))
    assert "can't start new thread" in caplog.text
    assert store.leased == {}
    assert store.kept
    store.commit(store.open([A], 0)[0], ())
    assert renewer(store).is_alive()


def test_lease_that_nobody_has():
    """As one that Ctrl-C kept its handler from getting: it is not renewed, and runs out."""
    store = OwnStore(0.3)
    store.open([A], 0)
    store.commit(store.open([A], TIMEOUT)[0], changed(A))
    assert store.count("renew") == 0
    until(lambda: not renewer(store))
    assert not store._renewer.held


@pytest.mark.usefixtures("quick_switches")
def test_leases_come_and_go():
    """While others come, go and are dropped, each that somebody has is renewed."""
    store = OwnStore(0.3)
    stop = threading.Event()

    def work(number):
        for n in range(10**6):
            if stop.is_set():
                return
            lease, _ = store.open([f"{number}:{n}"], 0)
            if n % 3:
                store.commit(lease, ())

    kept, _ = store.open(NAMES, 0)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join(TIMEOUT)
    store.commit(kept, changed(A))
    assert store.kept == {A: ("new a:1", None)}


def test_store_goes():
    """A store that nobody has is kept by no thread, and its thread ends."""
    store = OwnStore(3)
    store.commit(store.open([A], 0)[0], ())
    thread = renewer(store)
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    thread.join(3)  # else it would look for further leases for twice that long
    assert not thread.is_alive()


@pytest.mark.parametrize("lease", [timedelta(days=365), 1e300])
def test_very_long_lease(lease):
    """The renewer is not in the way of a lease of any length."""
    store = OwnStore(lease)
    store.commit(store.open([A], 0)[0], ())
    renewer(store).join(0.05)
    assert renewer(store).is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks where there are threads
def test_fork():
    """A forked child has a thread for its own leases, and does not renew those of its parent."""
    store = OwnStore(0.3)
    lease, _ = store.open([A], 0)
    child = os.fork()
    if not child:
        status = 1
        try:
            own, _ = store.open([B], 0)
            until(lambda: store.count("renew") >= 2)
            store.commit(own, changed(B))
            status = int(("renew", A) in store.calls)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.commit(lease, changed(A))


# Which stores are one


def test_identity():
    """The same object for the same part of the same client, for as long as there is a client."""

    class Client:
        pass

    one, other = Client(), Client()
    assert identity(one, "x") is identity(one, "x")
    assert len({identity(client, space) for client in (one, other) for space in "xy"}) == 4
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None
