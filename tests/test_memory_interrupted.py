"""6.2 `MemoryStore`: whole after an exception at any line."""

import os
import threading
import warnings

import cachetools
import pytest

from telesession import MemoryStore
from tests import memory_stores
from tests.interrupts import Interrupt, free, interruptions
from tests.memory_stores import TTL, kept, read, save, update
from tests.stores import TIMEOUT

pytestmark = pytest.mark.thorough

clock = memory_stores.clock


def consistent(store):
    """Assert that the entries and the caches have the same sessions."""
    timed = {ttl: list(cache.items()) for ttl, cache in store._caches.items()}
    entries = dict(store._entries)
    assert sorted(name for cache in timed.values() for name, _ in cache) == sorted(entries)
    assert all(timed.values())
    for ttl, cache in timed.items():
        assert all(entries[name] is entry and entry.ttl == ttl for name, entry in cache)


INTERRUPTED = {
    "new": [("new", b"1", None)],
    "new with a ttl": [("new", b"1", TTL)],
    "existing": [("a", b"1", None)],
    "existing with a ttl": [("t", b"1", TTL)],
    "removed": [("a", None, None)],
    "removed with a ttl": [("t", None, TTL)],
    "of another ttl": [("a", b"1", TTL)],
    "of no ttl any more": [("t", b"1", None)],
    "several": [("a", b"1", None), ("b", None, None), ("t", b"2", TTL), ("new", b"3", TTL)],
    "none": [],
}


class TestInterrupted:
    """An exception out of a signal handler may come at any line."""

    @pytest.fixture
    def make(self, clock):
        def make(maxsize=100):
            store = MemoryStore(maxsize, clock=clock)
            save(store, "least", "a", "b")
            save(store, "t", "u", ttl=TTL)
            return store

        return make

    def check(self, store, clock, *states):
        """It is in one of these states, and works."""
        assert free(store._mutex.current())
        state = {name: store.peek(name) for name in sorted(store.names(""))}
        assert state in states
        assert sorted(store._entries) == sorted(state)
        consistent(store)
        for name, ttl in (("a", None), ("t", TTL), ("new", TTL), ("other", None)):
            update(store, name, b"next", ttl)
            assert read(store, name) == b"next"
        consistent(store)
        clock.advance(TTL)
        assert kept(store, "a", "t", "new", "other") == ["a", "other"]
        assert read(store, "t") is None
        consistent(store)
        assert list(store._caches) == [None]

    @pytest.mark.parametrize("changes", INTERRUPTED.values(), ids=INTERRUPTED)
    @pytest.mark.parametrize("maxsize", [100, 5])
    def test_commit(self, make, clock, changes, maxsize):
        """All or nothing of it is there. Sessions that made room for it are no part of that."""
        before = dict.fromkeys(("least", "a", "b", "t", "u"), b"content")
        after = {**before, **{name: payload for name, payload, _ in changes}}
        after = {name: payload for name, payload in after.items() if payload is not None}
        states = [before, after]
        if len(after) > maxsize:
            states.append({name: payload for name, payload in after.items() if name != "least"})

        def commit(store):
            lease, _ = store.open([name for name, _, _ in changes] or ["a"], 0)
            if changes and maxsize == 5:
                read(store, "u")
            yield
            store.commit(lease, changes)

        for store in interruptions(lambda: make(maxsize), commit):
            store.commit(None, [])
            self.check(store, clock, *states)

    @pytest.mark.parametrize(
        "use",
        [
            lambda store: store.open(["a", "t", "none"], 0),
            lambda store: list(store.names("")),
            lambda store: store.peek("t"),
            len,
            MemoryStore.clear,
        ],
        ids=["open", "names", "peek", "len", "clear"],
    )
    @pytest.mark.parametrize("seconds", [0, TTL - 1, TTL])
    def test_other_uses(self, make, clock, use, seconds):
        content = dict.fromkeys(("least", "a", "b", "t", "u"), b"content")
        if seconds == TTL:
            del content["t"], content["u"]

        def run(store):
            clock.advance(seconds)
            yield
            use(store)

        for store in interruptions(make, run):
            states = [content, {}] if use is MemoryStore.clear else [content]
            self.check(store, clock, *states)

    def test_within_cachetools(self, make, clock):
        """Where a cache is left half changed."""
        changes = [("t", b"1", TTL), ("a", None, None), ("b", b"1", TTL), ("new", b"1", TTL)]
        before = dict.fromkeys(("least", "a", "b", "t", "u"), b"content")
        after = {"least": b"content", "b": b"1", "t": b"1", "u": b"content", "new": b"1"}

        def commit(store):
            yield
            store.commit(None, changes)

        for store in interruptions(make, commit, cachetools.__file__):
            self.check(store, clock, before, after)

    def test_twice(self, make, clock):
        """While things are put in order after the first."""

        def interrupted(store):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store, "_place", raising)
                with pytest.raises(Interrupt):
                    store.commit(None, [("t", b"1", TTL + 1), ("new", b"1", TTL)])
            yield
            len(store)

        def raising(*args):
            raise Interrupt

        after = dict.fromkeys(("least", "a", "b", "u"), b"content") | {"t": b"1", "new": b"1"}
        for store in interruptions(make, interrupted):
            self.check(store, clock, after)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
    def test_a_fork_while_a_thread_changes_it(self, make, clock, monkeypatch):
        store = make()
        held, leave = threading.Event(), threading.Event()
        place = store._place

        def slowly(name, entry):
            held.set()
            assert leave.wait(TIMEOUT)
            place(name, entry)

        monkeypatch.setattr(store, "_place", slowly)
        thread = threading.Thread(target=save, args=(store, "v"), kwargs={"ttl": TTL})
        thread.start()
        assert held.wait(TIMEOUT)
        monkeypatch.undo()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python 3.12, that threads don't come along
            child = os.fork()
        if not child:
            try:
                save(store, "new", "t", ttl=TTL)
                consistent(store)
                os._exit(kept(store, "new", "t", "u", "v") != ["new", "t", "u", "v"])
            finally:
                os._exit(3)
        leave.set()
        thread.join(TIMEOUT)

        assert os.waitpid(child, 0)[1] == 0
