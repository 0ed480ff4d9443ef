"""6.2 `MemoryStore`: bounded, least recently used first, and really empty of what expired.

What every store has to keep is in `test_stores`.
"""

import gc
import logging
import math
import os
import pickle
import sys
import threading
import tracemalloc
import warnings
import weakref
from datetime import timedelta

import cachetools
import pytest
from telebot.apihelper import ApiTelegramException

from telesession import (
    JSON,
    MemoryStore,
    SessionBusy,
    SessionDataError,
    SessionStoreError,
    _locks,
    with_session,
)
from telesession import memory as memory_module
from tests.interrupts import Interrupt, free, interruptions
from tests.stores import NAME, TIMEOUT, Clock, found, message, put, visit

pytestmark = pytest.mark.thorough

TTL = 60


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def save(store, *names, ttl=None):
    """Save sessions under these names, one after the other, as handlers would."""
    for name in names:
        update(store, name, ttl=ttl)


def update(store, name, content=b"content", ttl=None):
    """Open a session and save it."""
    lease, _ = store.open([name])
    store.commit(lease, [(name, content, ttl)])


def read(store, name):
    """Open a session and save nothing."""
    lease, (payload,) = store.open([name])
    store.commit(lease, [])
    return payload


def kept(store, *names):
    """Which of them are in the store; to look is no use of them."""
    return [name for name in names if name in store]


class TestBound:
    """6.2 It is bounded; what it has to drop it drops least recently used first."""

    def test_it_keeps_no_more_than_maxsize(self):
        store = MemoryStore(maxsize=3)
        for n in range(10):
            save(store, str(n))
            assert len(store) == min(n + 1, 3)

        assert kept(store, *map(str, range(10))) == ["7", "8", "9"]

    def test_to_save_is_a_use(self):
        store = MemoryStore(maxsize=2)
        save(store, "a", "b", "a", "c")

        assert kept(store, "a", "b", "c") == ["a", "c"]

    @pytest.mark.parametrize("ttl", [TTL, None])
    def test_the_end_of_a_long_handler_is_a_use(self, clock, ttl):
        store = MemoryStore(maxsize=2, clock=clock)
        save(store, "a", ttl=ttl)
        lease, _ = store.open(["a"])
        save(store, "b", ttl=ttl)
        store.commit(lease, [("a", b"new", ttl)])
        save(store, "c")

        assert kept(store, "a", "b", "c") == ["a", "c"]

    def test_to_read_is_a_use(self):
        store = MemoryStore(maxsize=2)
        save(store, "a", "b")
        read(store, "a")
        save(store, "c")

        assert kept(store, "a", "b", "c") == ["a", "c"]

    def test_to_look_is_no_use(self):
        store = MemoryStore(maxsize=2)
        save(store, "a", "b")
        assert "a" in store
        save(store, "c")

        assert kept(store, "a", "b", "c") == ["b", "c"]

    @pytest.mark.parametrize("ttls", [(None, 60), (60, None), (60, 30), (30, 60), (60, 60)])
    def test_across_ttls(self, clock, ttls):
        """Neither what expires first goes first, nor what never does."""
        store = MemoryStore(maxsize=2, clock=clock)
        save(store, "a", ttl=ttls[0])
        save(store, "b", ttl=ttls[1])
        read(store, "a")
        save(store, "c", ttl=90)
        assert kept(store, "a", "b", "c") == ["a", "c"]

        save(store, "d")
        assert kept(store, "a", "b", "c", "d") == ["c", "d"]

    def test_in_handlers(self, clock):
        store = MemoryStore(maxsize=2, clock=clock)

        @with_session(store=store, ttl=TTL)
        def count(message):
            message.session["n"] = message.session.get("n", 0) + 1
            return message.session["n"]

        @with_session(store=store)
        def look(message):
            return message.session.get("n")

        assert [count(message(user)) for user in (1, 2)] == [1, 1]
        assert look(message(1)) == 1
        assert count(message(3)) == 1
        assert look(message(1)) == 1
        assert look(message(2)) is None

    def test_what_has_expired_makes_room(self, clock, caplog):
        store = MemoryStore(maxsize=2, clock=clock)
        save(store, "forever")
        save(store, "short", ttl=10)
        clock.advance(10)
        save(store, "new")

        assert kept(store, "forever", "short", "new") == ["forever", "new"]
        assert caplog.records == []

    def test_what_is_removed_makes_room(self, caplog):
        store = MemoryStore(maxsize=2)
        save(store, "a", "b")
        store.commit(None, [("b", None, None)])
        save(store, "c")

        assert kept(store, "a", "b", "c") == ["a", "c"]
        assert caplog.records == []

    def test_one(self):
        store = MemoryStore(maxsize=1)
        put({"n": 1}, store=store)
        assert found(store=store) == {"n": 1}

        save(store, "other")
        assert found(store=store) == {}

    def test_a_session_that_was_dropped_while_its_handler_ran_is_saved(self):
        store = MemoryStore(maxsize=1)
        put({"n": 1}, store=store)

        def handler(message):
            save(store, "other")
            assert NAME not in store
            message.session["n"] += 1

        visit(handler, store=store)

        assert found(store=store) == {"n": 2}
        assert len(store) == 1

    @pytest.mark.parametrize("maxsize", [0, -1, 1.5, True, None, "100", math.inf])
    def test_maxsize_is_a_positive_int(self, maxsize):
        with pytest.raises((TypeError, ValueError), match="maxsize="):
            MemoryStore(maxsize=maxsize)

    def test_by_default_it_is_bounded_too(self):
        assert MemoryStore().maxsize == memory_module.default_store.maxsize == 1_000_000

    def test_reading_while_another_session_is_dropped(self):
        """At every step of it, another thread reads the sessions that stay."""
        store = MemoryStore(maxsize=3)
        save(store, "a", "b", "c")

        with Reader(store, ["b", "c"], file=memory_module.__file__):
            save(store, "d")

        assert kept(store, "a", "b", "c", "d") == ["b", "c", "d"]

    def test_many_threads_at_once(self, quick_switches, caplog):
        """They read, save and remove what others drop; their own sessions are theirs alone."""
        store = MemoryStore(maxsize=1000)
        start = threading.Barrier(4)
        errors = []

        def work(number):
            start.wait(TIMEOUT)
            try:
                for n in range(400):
                    name = f"{number}:{n % 7}"
                    before = read(store, name)
                    assert before in (None, name.encode())
                    content = None if n % 5 == 0 else name.encode()
                    update(store, name, content, ttl=(None, 60, 90)[n % 3])
                    assert read(store, name) == content
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)

        assert errors == []
        assert len(store) <= 28


class Reader:
    """A thread that opens sessions whenever the main thread has made a step in a file."""

    def __init__(self, store, names, file):
        self.store, self.names, self.file = store, names, file
        self.waits = False  # for a lock that the main thread has: then one turn is enough
        self.threads = []

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)

    def __exit__(self, *exc_info):
        sys.settrace(self.before)
        for thread in self.threads:
            thread.join(TIMEOUT)

    def trace(self, frame, event, argument):
        if frame.f_code.co_filename != self.file:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not self.waits:
            self.threads.append(threading.Thread(target=self.store.open, args=(self.names,)))
            self.threads[-1].start()
            self.threads[-1].join(0.2)
            self.waits = self.threads[-1].is_alive()
        return self.trace


class TestWarning:
    """6.2 What it has to drop it drops, and says so once in the log."""

    def test_the_first_drop_is_told(self, caplog):
        store = MemoryStore(maxsize=2)
        save(store, "a", "b", "a")
        assert caplog.records == []

        save(store, "c")
        (record,) = caplog.records
        assert record.name == "telesession"
        assert record.levelno == logging.WARNING
        assert "maxsize=2" in record.getMessage()

    def test_no_other_is(self, caplog):
        store = MemoryStore(maxsize=2)
        save(store, *"abcdefgh")
        store.clear()
        save(store, *"abcdefgh")

        assert len(caplog.records) == 1

    def test_each_store_tells(self, caplog):
        for maxsize in (1, 2):
            save(MemoryStore(maxsize=maxsize), *"abc")

        assert [f"maxsize={n}" in r.getMessage() for n, r in enumerate(caplog.records, 1)] == [
            True,
            True,
        ]

    def test_the_content_is_not_told(self, caplog):
        store = MemoryStore(maxsize=1)
        put({"secret": "secret"}, store=store)
        save(store, "other")

        assert "secret" not in caplog.text


def caches():
    """The caches in which stores keep sessions, of all stores that are still there."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, cachetools.TTLCache)]


class Content(str):
    """A payload of which the test can see when it is gone."""


def watched(store, name, ttl=None):
    """Save a session, and give a function that tells whether its content is still in memory."""
    content = Content(name)
    update(store, name, content, ttl)
    reference = weakref.ref(content)
    del content

    def alive():
        gc.collect()
        return reference() is not None

    assert alive()
    return alive


class TestExpired:
    """4.6 Expired content is really gone from the memory, not only hidden."""

    @pytest.mark.parametrize(
        "use",
        [
            len,
            lambda store: "another" in store,
            lambda store: read(store, "another"),
            lambda store: found(store=store),
            lambda store: put({"n": 1}, store=store),
            MemoryStore.clear,
        ],
        ids=["len", "in", "open", "a handler", "a handler that saves", "clear"],
    )
    def test_any_use_of_the_store_drops_it(self, store, clock, use):
        alive = watched(store, "a", TTL)
        clock.advance(TTL)
        use(store)

        assert not alive()

    def test_all_of_it_at_once(self, store, clock):
        alive = []
        for n in range(10):
            alive.append(watched(store, str(n), TTL))
            clock.advance(0.25)
        assert len(store) == 10
        clock.advance(TTL)
        read(store, "another")

        assert not any(each() for each in alive)
        assert len(store) == 0

    def test_of_all_ttls(self, store, clock):
        alive = [watched(store, str(ttl), ttl) for ttl in range(1, 8)]
        clock.advance(8)
        read(store, "another")

        assert not any(each() for each in alive)

    def test_only_what_has_expired(self, store, clock):
        save(store, "a", ttl=TTL)
        clock.advance(TTL / 2)
        save(store, "b", ttl=TTL)
        clock.advance(TTL / 2)

        assert kept(store, "a", "b") == ["b"]
        assert len(store) == 1

    @pytest.mark.parametrize("ttl", [None, TTL])
    def test_what_was_replaced_or_removed_or_dropped_is_gone_too(self, ttl, clock):
        store = MemoryStore(maxsize=2, clock=clock)
        replaced = watched(store, "a", ttl)
        moved = watched(store, "b", ttl)
        removed = watched(store, "a", ttl)
        assert not replaced()
        update(store, "b", "content", 90)
        assert not moved()
        update(store, "a", None)
        assert not removed()

        dropped = watched(store, "c", ttl)
        save(store, "d", "e")
        assert not dropped()


class TestTTLs:
    """4.6 Each session has the ttl of its own declaration."""

    def test_side_by_side(self, store, clock):
        for ttl in (30, 10, None, 20, 0.5):
            save(store, f"{ttl}", ttl=ttl)
        names = ["0.5", "10", "20", "30", "None"]
        alive = []
        for seconds in (0, 0.5, 9.5, 10, 10, 1e9):
            clock.advance(seconds)
            alive.append(kept(store, *names))

        assert alive == [names, names[1:], names[2:], names[3:], names[4:], names[4:]]

    def test_one_session_under_two_ttls(self, store, clock):
        """The last that saved it counts."""
        save(store, "a", ttl=100)
        save(store, "a", ttl=10)
        clock.advance(10)
        assert "a" not in store

        save(store, "a", ttl=10)
        save(store, "a", ttl=100)
        clock.advance(99)
        assert "a" in store
        clock.advance(1)
        assert "a" not in store

    @pytest.mark.parametrize(("old", "new"), [(10, 100), (100, 10), (None, 10), (10, None)])
    def test_changed_on_a_declaration(self, store, clock, old, new):
        """1.3 It moves the session, with its next save."""
        declaration = with_session(store=store, ttl=old)

        @declaration
        def count(message):
            message.session["n"] = message.session.get("n", 0) + 1
            return message.session["n"]

        assert count(message()) == 1
        declaration.ttl = new
        assert count(message()) == 2
        assert len(store) == 1
        clock.advance((new or 1e9) - 1)
        assert NAME in store

        clock.advance(1)
        assert (NAME in store) is (new is None)

    def test_a_timedelta_is_the_same_ttl(self, store):
        before = len(caches())
        put({"n": 1}, store=store, ttl=60)
        put({"n": 2}, store=store, ttl=timedelta(minutes=1))
        put({"n": 3}, store=store, ttl=60.0)

        assert len(store) == 1
        assert len(caches()) == before + 1

    @pytest.mark.parametrize("gone", ["expired", "removed", "moved", "dropped", "cleared"])
    def test_many_leave_nothing_behind(self, clock, gone):
        """As where each user has a ttl: no cache is kept for one that no session has."""
        before = len(caches())
        store = MemoryStore(maxsize=200, clock=clock)
        for n in range(1, 101):
            save(store, str(n), ttl=n)
        assert len(store) == 100
        during = len(caches())
        for n in range(1, 101):
            if gone == "removed":
                store.commit(None, [(str(n), None, None)])
            elif gone == "moved":
                save(store, str(n))
            elif gone == "dropped":
                save(store, f"new {n}", f"newer {n}")
        if gone == "expired":
            clock.advance(100)
        elif gone == "cleared":
            store.clear()

        assert len(store) == {"moved": 100, "dropped": 200}.get(gone, 0)
        assert during - before >= 100
        assert len(caches()) <= before + 1


class TestLooks:
    def test_len_and_in(self, store):
        assert len(store) == 0
        assert NAME not in store
        put({"n": 1}, store=store)

        assert len(store) == 1
        assert NAME in store
        assert "session:42" not in store
        assert 42 not in store

    def test_clear(self, store):
        save(store, "a", "b")
        save(store, "c", ttl=TTL)
        put({"n": 1}, store=store)
        store.clear()

        assert len(store) == 0
        assert kept(store, "a", "b", "c", NAME) == []
        assert found(store=store) == {}
        put({"n": 2}, store=store)
        assert found(store=store) == {"n": 2}

    @pytest.mark.parametrize("ttl", [None, TTL])
    def test_cleared_while_a_handler_runs(self, store, ttl):
        put({"n": 1}, store=store, ttl=ttl)

        def handler(message):
            store.clear()
            message.session["n"] += 1

        visit(handler, store=store, ttl=ttl)

        assert found(store=store) == {"n": 2}

    def test_without_one_of_its_own_a_declaration_has_the_common_one(self):
        assert with_session().store is memory_module.default_store


class TestContent:
    """4.4 The in-memory store keeps any value that pickle can."""

    def test_its_codec(self, store):
        assert with_session(store=store)._options.codec is pickle
        assert with_session(store=store, codec=JSON)._options.codec is JSON

    def test_a_copy_is_kept(self, store):
        """What a handler keeps of its session is not the session any more."""
        mine = []
        put({"list": mine}, store=store)
        mine.append(1)

        assert found(store=store) == {"list": []}

    def test_shared_parts_stay_shared(self, store):
        part = [1]
        put({"a": part, "b": [part]}, store=store)
        visit(lambda message: message.session["a"].append(2), store=store)

        assert found(store=store) == {"a": [1, 2], "b": [[1, 2]]}

    def test_cycles(self, store):
        part = {}
        part["self"] = part
        put({"part": part}, store=store)
        part = found(store=store)["part"]

        assert part["self"] is part

    def test_the_update_itself(self, store):
        """Whose attribute is the session, which has the update in it."""

        def handler(message):
            message.session["first"] = message
            message.session["n"] = 1

        visit(handler, store=store)
        first = found(store=store)["first"]

        assert first.text == "hello"
        assert first.session["n"] == 1

    @pytest.mark.parametrize(
        ("value", "path"),
        [
            (lambda: 1, "['v']"),
            ([1, threading.Lock()], "['v'][1]"),
            ({"a": [0, {"b": (n for n in ())}]}, "['v']['a'][1]['b']"),
            (({}, (sys,)), "['v'][1][0]"),
        ],
        ids=["lambda", "lock", "generator", "module"],
    )
    def test_what_pickle_cannot_keep_is_refused(self, store, value, path):
        put({"n": 1}, store=store)
        before = read(store, NAME)

        with pytest.raises(SessionDataError) as caught:
            put({"n": 2, "v": value}, store=store)

        assert f"session{path} " in str(caught.value)
        assert read(store, NAME) == before

    def test_what_pickle_cannot_load_is_refused(self, store):
        """Else the session could never be opened again. This is an error of pyTelegramBotAPI."""
        put({"n": 1}, store=store)
        refused = {"error_code": 400, "description": "chat not found"}
        error = ApiTelegramException("sendMessage", None, refused)

        with pytest.raises(SessionDataError, match=r"session\['error'\]"):
            put({"n": 2, "error": error}, store=store)

        assert found(store=store) == {"n": 1}


class TestLocks:
    """5.5 No lock is left over after the last handler, however it ended."""

    @pytest.fixture(autouse=True)
    def none_left(self):
        assert _locks.held() == 0
        yield
        assert _locks.held() == 0

    def test_after_a_handler(self, store):
        visit(lambda message: None, store=store)
        put({"n": 1}, store=store)

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_after_an_exception(self, store, error):
        def handler(message):
            assert _locks.held() == 1
            raise error

        with pytest.raises(error):
            visit(handler, store=store)

    def test_after_content_that_cannot_be_kept(self, store):
        with pytest.raises(SessionDataError):
            put({"v": lambda: 1}, store=store)

    def test_after_content_that_cannot_be_read(self, store):
        update(store, NAME, b"garbage")

        with pytest.raises(SessionDataError):
            found(store=store)

    @pytest.mark.parametrize("method", ["open", "commit"])
    def test_after_a_store_that_fails(self, store, method, monkeypatch):
        def fail(*args):
            raise OSError

        monkeypatch.setattr(store, method, fail)
        with pytest.raises(SessionStoreError):
            put({"n": 1}, store=store)

    def test_after_a_time_out(self, store):
        inside, leave = threading.Event(), threading.Event()

        def slow(message):
            inside.set()
            assert leave.wait(TIMEOUT)

        thread = threading.Thread(target=visit, args=(slow,), kwargs={"store": store})
        thread.start()
        assert inside.wait(TIMEOUT)
        with pytest.raises(SessionBusy):
            visit(lambda message: None, store=store, lock_timeout=0.001)
        assert _locks.held() == 1
        leave.set()
        thread.join(TIMEOUT)

    def test_after_many_users(self, store):
        @with_session(store=store)
        def handler(message):
            message.session["n"] = 1
            assert _locks.held() == 1

        for user in range(1, 101):
            handler(message(user))

        assert len(store) == 100


class TestNames:
    """5.7 The names of what is stored, page by page."""

    def test_exactly_those_that_begin_with_the_prefix(self, store):
        save(
            store, "user_a:1", "user_a:2", "userXa:1", "User_A:1", "user_a", "user_ab:1", "user%:1"
        )

        assert sorted(store.names("user_a:")) == ["user_a:1", "user_a:2"]
        assert sorted(store.names("user%:")) == ["user%:1"]
        assert list(store.names("nobody:")) == []
        assert len(list(store.names(""))) == 7

    def test_neither_removed_nor_expired_nor_dropped_ones(self, clock):
        store = MemoryStore(maxsize=2, clock=clock)
        save(store, "dropped", "removed", "kept")
        update(store, "removed", None)
        save(store, "short", ttl=10)
        assert sorted(store.names("")) == ["kept", "short"]
        clock.advance(10)

        assert list(store.names("")) == ["kept"]

    def test_what_expires_while_it_is_listed(self, store, clock):
        save(store, *map(str, range(100)), ttl=10)
        names = store.names("")
        next(names)
        clock.advance(10)

        assert list(names) == []

    def test_each_that_stays_comes_once_whatever_happens_meanwhile(self, store):
        stay = {f"stays:{n}" for n in range(3000)}
        save(store, *stay, *(f"goes:{n}" for n in range(3000)))
        listed = []
        for number, name in enumerate(store.names("")):
            listed.append(name)
            read(store, f"stays:{number % 3000}")
            update(store, f"stays:{(number * 7) % 3000}", b"new", ttl=(None, 60)[number % 2])
            update(store, f"goes:{number % 3000}", None)
            update(store, f"comes:{number}")

        stayed = [name for name in listed if name in stay]
        assert len(stayed) == len(set(stayed)) == 3000
        assert len(listed) == len(set(listed))

    def test_it_takes_little_memory(self, store):
        save(store, *(f"session:{n}" for n in range(100_000)))
        tracemalloc.start()
        try:
            assert sum(1 for _ in store.names("session:")) == 100_000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert peak < 1_400_000  # a list of them, as they are, and no copy

    def test_nothing_is_held_between(self, store):
        save(store, "a", "b", ttl=TTL)
        names = store.names("")
        next(names)
        thread = threading.Thread(target=save, args=(store, "c"), kwargs={"ttl": TTL})
        thread.start()
        thread.join(TIMEOUT)

        assert not thread.is_alive()
        assert "c" in store


class TestPeek:
    """5.7 What is stored, and nothing changes by that."""

    def test_what_is_stored(self, store):
        save(store, "a")

        assert store.peek("a") == b"content"
        assert store.peek("b") is None

    def test_it_is_no_use(self):
        store = MemoryStore(maxsize=2)
        save(store, "a", "b")
        store.peek("a")
        save(store, "c")

        assert kept(store, "a", "b", "c") == ["b", "c"]

    def test_the_ttl_counts_on(self, store, clock):
        alive = watched(store, "a", TTL)
        clock.advance(TTL - 1)
        assert store.peek("a") == "a"
        clock.advance(1)

        assert store.peek("a") is None
        assert not alive()


def test_a_lease_is_extended(store):
    """There is nothing to lease, so one commit writes whatever was opened."""
    lease, _ = store.open(["a"])
    lease, payloads = store.open(["b"], 0, lease)
    store.commit(lease, [("a", b"1", None), ("b", b"2", TTL)])
    store.commit(lease, [])

    assert payloads == [None]
    assert store.open(["a", "b"])[1] == [b"1", b"2"]


class TestCost:
    """What expires is looked for when something has expired, and not before."""

    def test_no_cache_is_asked_before(self, store, clock, monkeypatch):
        save(store, "a", ttl=TTL)
        clock.advance(1)
        save(store, "b", ttl=TTL + 10)
        asked = []
        expire = cachetools.TTLCache.expire

        def counted(cache, time=None):
            asked.append(cache.ttl)
            return expire(cache, time)

        monkeypatch.setattr(cachetools.TTLCache, "expire", counted)
        clock.advance(TTL - 2)
        assert read(store, "a") == read(store, "b") == b"content"
        assert store.peek("c") is None
        assert len(store) == 2
        assert asked == []

        clock.advance(1)
        assert read(store, "a") is None
        assert set(asked) == {TTL, TTL + 10}
        asked.clear()
        clock.advance(10)
        assert read(store, "b") == b"content"
        assert asked == []
        clock.advance(1)
        assert len(store) == 0

    def test_a_session_that_is_used_on_and_on(self, store, clock):
        """It is there for a ttl after its last use, and then gone."""
        for _ in range(5):
            save(store, "a", ttl=TTL)
            clock.advance(TTL - 1)
        assert kept(store, "a") == ["a"]
        clock.advance(1)

        assert len(store) == 0


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
