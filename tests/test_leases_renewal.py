"""6.4 `LeasingStore`: who renews leases, which of them, and for how long."""

import gc
import logging
import os
import threading
import time
import weakref
from datetime import timedelta

import pytest

from telesession import SessionLost
from tests import own_store
from tests.helpers import says, until
from tests.own_store import NAMES, A, B, C, OwnStore, changed, renewer
from tests.stores import TIMEOUT

pytestmark = pytest.mark.thorough

store = own_store.store


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
