"""6.3, 6.4 `LeasingStore`: what it makes of the three calls that a store of one's own adds."""

import contextlib
import gc
import threading
import time
import weakref

import pytest

from telesession import SessionBusy, SessionDataError, SessionLost, SessionStoreError, leases
from telesession.leases import identity
from tests import own_store
from tests.helpers import says, until
from tests.own_store import NAMES, A, B, C, OwnStore, changed, failing, renewer
from tests.stores import TIMEOUT, visit

pytestmark = pytest.mark.thorough

store = own_store.store
grouped = own_store.grouped


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
