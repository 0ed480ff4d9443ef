"""4.6 `MemoryStore`: really empty of what expired, and at what cost."""

import gc
from datetime import timedelta

import cachetools
import pytest

from telesession import MemoryStore, with_session
from telesession import memory as memory_module
from tests import memory_stores
from tests.memory_stores import TTL, kept, read, save, update, watched
from tests.stores import NAME, found, message, put, visit

pytestmark = pytest.mark.thorough

clock = memory_stores.clock
store = memory_stores.store


def caches():
    """The caches in which stores keep sessions, of all stores that are still there."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, cachetools.TTLCache)]


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

    def test_what_was_renewed_hides_no_other(self, store, clock):
        """What expires next is not what was saved first."""
        save(store, "a", "b", ttl=TTL)
        clock.advance(TTL / 4)
        alive = watched(store, "c", TTL)
        clock.advance(TTL / 4)
        save(store, "b", ttl=TTL)
        clock.advance(TTL / 2)
        read(store, "another")
        assert kept(store, "a", "b", "c") == ["b", "c"]
        clock.advance(TTL / 4)
        read(store, "another")

        assert not alive()

    def test_while_a_handler_of_another_runs(self, store, clock):
        alive = watched(store, "a", TTL)
        clock.advance(TTL / 2)
        save(store, "b", ttl=TTL)
        lease, _ = store.open(["b"])
        clock.advance(TTL / 2)
        store.commit(lease, [("b", b"new", TTL)])

        assert not alive()
        assert kept(store, "a", "b") == ["b"]

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
