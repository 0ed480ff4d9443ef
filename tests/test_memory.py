"""6.2 `MemoryStore`: bounded, least recently used first; what it keeps, and what it lists.

What every store has to keep is in `test_stores`.
"""

import logging
import math
import pickle
import sys
import threading

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
from tests import memory_stores
from tests.helpers import peak_of_listing
from tests.memory_stores import TTL, kept, read, save, update, watched
from tests.stores import NAME, TIMEOUT, found, message, put, visit

pytestmark = pytest.mark.thorough

clock = memory_stores.clock
store = memory_stores.store


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

        # a list of them, as they are, and no copy
        assert peak_of_listing(store.names("session:"), 100_000) < 1_000_000

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
