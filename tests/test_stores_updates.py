"""4.6, 5.1, 5.4, 6.3 Every store of `BACKENDS`: updates that come late, together, or in vain."""

import logging
import math
import random
import threading
import time
from datetime import timedelta

import pytest

from telesession import (
    JSON,
    KeyValueStore,
    SessionBusy,
    SessionDataError,
    SessionError,
    SessionStoreError,
    with_session,
)
from tests import store_suite
from tests.helpers import until
from tests.store_suite import TTL, Boom, raising
from tests.stores import (
    NAME,
    TIMEOUT,
    Bot,
    Clock,
    GetSet,
    Leasing,
    WatchedStore,
    found,
    message,
    payload,
    put,
    visit,
)

no_lock_left = store_suite.no_lock_left

SLACK = 10  # seconds that a busy machine may take, while the servers' clocks go on


class TestTTL:
    """4.6 A session expires its ttl after the end of the last update that opened it."""

    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def declared(self, backend, clock):
        """The options of a session with a ttl."""
        return {"store": backend.timed(clock), "ttl": TTL}

    def test_it_lives_until_then(self, declared, clock):
        put({"n": 1}, **declared)
        clock.now = math.nextafter(clock.now + TTL, 0)

        assert found(**declared) == {"n": 1}

    def test_it_expires_exactly_then(self, declared, clock):
        put({"n": 1}, **declared)
        clock.advance(TTL)

        assert found(**declared) == {}

    def test_expired_content_is_gone(self, backend, declared, clock):
        """At the next visit, of which the handler does nothing."""
        put({"n": 1}, **declared)
        clock.advance(TTL)
        visit(lambda message: None, **declared)

        assert backend.raw(NAME) is None

    def test_an_expired_session_starts_from_initial(self, declared, clock):
        put({"n": 1, "m": 1}, **declared)
        clock.advance(TTL)
        declared["initial"] = lambda: {"n": 0}
        visit(lambda message: message.session.update(more=1), **declared)

        assert found(**declared) == {"n": 0, "more": 1}

    @pytest.mark.parametrize(
        "body",
        [
            lambda message: None,
            lambda message: message.session["n"],
            lambda message: message.session.update(m=2),
            lambda message: setattr(message, "session", {"n": 1}),
        ],
        ids=["nothing", "reads", "changes", "replaces"],
    )
    def test_it_counts_from_the_last_update(self, declared, clock, body):
        put({"n": 1}, **declared)
        for _ in range(3):
            clock.advance(TTL - SLACK)
            visit(body, **declared)
        clock.advance(TTL - SLACK)
        assert found(**declared)["n"] == 1

        clock.advance(TTL)
        assert found(**declared) == {}

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            (raising(lambda message: None), Boom),
            (raising(lambda message: message.session.update(n=2)), Boom),
            (raising(lambda message: message.session.clear()), Boom),
            (lambda message: message.session.update(n=lambda: 1), SessionDataError),
            (lambda message: setattr(message, "session", 7), SessionDataError),
        ],
        ids=["raises", "changes and raises", "clears and raises", "can't be kept", "no dict"],
    )
    def test_it_counts_from_the_last_update_that_failed(self, declared, clock, body, error):
        put({"n": 1}, **declared)
        for _ in range(2):
            clock.advance(TTL - SLACK)
            with pytest.raises(error):
                visit(body, **declared)
        clock.advance(TTL - SLACK)
        assert found(**declared) == {"n": 1}

        clock.advance(TTL)
        assert found(**declared) == {}

    @pytest.mark.parametrize("body", [lambda message: None, raising(lambda message: None)])
    def test_it_counts_from_the_end_of_the_handler(self, declared, clock, body):
        """A slow handler's session does not expire under its hands."""
        put({"n": 1}, **declared)

        def slow(message):
            clock.advance(TTL + 1)
            body(message)

        try:
            visit(slow, **declared)
        except Boom:
            pass
        clock.advance(TTL - SLACK)
        assert found(**declared) == {"n": 1}

        clock.advance(TTL)
        assert found(**declared) == {}

    def test_a_new_session_counts_from_the_end_of_the_handler(self, declared, clock):
        def slow(message):
            message.session["n"] = 1
            clock.advance(TTL + 1)

        visit(slow, **declared)
        clock.advance(TTL - SLACK)

        assert found(**declared) == {"n": 1}

    def test_without_a_ttl_it_never_expires(self, declared, clock):
        del declared["ttl"]
        put({"n": 1}, **declared)
        clock.advance(1e9)

        assert found(**declared) == {"n": 1}

    def test_a_timedelta_is_as_good(self, declared, clock):
        declared["ttl"] = timedelta(minutes=1)
        put({"n": 1}, **declared)
        clock.advance(TTL - SLACK)
        assert found(**declared) == {"n": 1}

        clock.advance(60)
        assert found(**declared) == {}

    def test_a_fraction_of_a_second(self, declared, clock):
        declared["ttl"] = 1.75
        put({"n": 1}, **declared)
        clock.advance(1)
        assert found(**declared) == {"n": 1}

        clock.advance(1.75)
        assert found(**declared) == {}

    def test_each_session_of_a_stack_by_its_own_ttl(self, declared, clock):
        store = declared["store"]

        @with_session(property="short", store=store, ttl=10)
        @with_session(property="long", store=store, ttl=100)
        @with_session(property="forever", store=store)
        def handler(message):
            sessions = message.short, message.long, message.forever
            before = [dict(session) for session in sessions]
            for session in sessions:
                session["n"] = 1
            return before

        handler(message())
        clock.advance(10)
        assert handler(message()) == [{}, {"n": 1}, {"n": 1}]
        clock.advance(100)
        assert handler(message()) == [{}, {}, {"n": 1}]

    @pytest.mark.parametrize(("old", "new"), [(10, 100), (100, 10), (None, 50), (50, 50.0)])
    def test_a_new_ttl_counts_from_the_next_save(self, declared, clock, old, new):
        """1.3 A declaration's ttl can be written."""
        declaration = with_session(store=declared["store"], ttl=old)

        @declaration
        def handler(message, n=None):
            before = message.session.get("n")
            if n is not None:
                message.session["n"] = n
            return before

        handler(message(), 1)
        declaration.ttl = new
        handler(message(), 2)
        clock.advance(new - 1)
        assert handler(message()) == 2

        clock.advance(new)
        assert handler(message()) is None

    def test_no_ttl_from_the_next_save_on(self, declared, clock):
        put({"n": 1}, **declared)
        del declared["ttl"]
        put({"n": 2}, **declared)
        clock.advance(1e9)

        assert found(**declared) == {"n": 2}

    def test_a_removed_session_is_gone(self, backend, declared):
        put({"n": 1}, **declared)
        visit(lambda message: message.session.clear(), **declared)

        assert backend.raw(NAME) is None

    def test_an_update_of_another_user_does_not_count(self, declared, clock):
        put({"n": 1}, **declared)

        @with_session(**declared)
        def handler(message):
            message.session["n"] = 2

        clock.advance(TTL - SLACK)
        handler(message(user=43))
        clock.advance(SLACK)

        assert found(**declared) == {}


class TestNothingLost:
    """5.1 Handlers of one session never overlap."""

    UPDATES = 100

    @pytest.mark.parametrize("threads", [2, 8])
    def test_increments(self, backend, threads):
        """Read, wait, write: 100 increments on many threads give 100."""
        bot = Bot(threads, backend)
        inside = []
        overlaps = []

        @bot.handler
        @with_session(store=backend.store)
        def count(message):
            overlaps.extend(inside)
            inside.append(threading.get_ident())
            n = message.session.get("n", 0)
            time.sleep(random.random() * 0.003)
            message.session["n"] = n + 1
            inside.remove(threading.get_ident())

        bot.run([payload(text="count")] * self.UPDATES)

        assert bot.errors == []
        assert overlaps == []
        assert found(store=backend.store) == {"n": self.UPDATES}

    def test_failing_handlers_among_them(self, backend):
        """Those that raise change nothing, and let the next one in."""
        bot = Bot(8, backend)
        turns = iter(range(self.UPDATES))

        @bot.handler
        @with_session(store=backend.store, ttl=3600)
        def count(message):
            message.session["n"] = message.session.get("n", 0) + 1
            if next(turns) % 2:
                raise Boom

        bot.run([payload(text="count")] * self.UPDATES)

        assert [type(error) for error in bot.errors] == [Boom] * (self.UPDATES // 2)
        assert found(store=backend.store) == {"n": self.UPDATES // 2}

    def test_many_users_at_once(self, backend):
        bot = Bot(8, backend)
        users = [random.Random(7).randrange(100, 110) for _ in range(self.UPDATES)]

        @bot.handler
        @with_session(store=backend.store)
        def count(message):
            n = message.session.get("n", 0)
            time.sleep(random.random() * 0.001)
            message.session["n"] = n + 1

        bot.run([payload(user, "count") for user in users])

        @with_session(store=backend.store)
        def counted(message):
            return message.session["n"]

        assert bot.errors == []
        assert {user: counted(message(user)) for user in users} == {
            user: users.count(user) for user in users
        }

    @pytest.mark.parametrize("second", ["the same store", "another store"])
    def test_stacks_in_opposite_orders(self, backend, second):
        """5.3 Two sessions, stacked in both orders: no deadlock, and nothing lost in either."""
        bot = Bot(8, backend)
        one = with_session(property="one", store=backend.store)
        two = with_session(
            property="two",
            key=lambda message: message.from_user.id,
            store=backend.store if second == "the same store" else {},
        )

        def count(message):
            n, m = message.one.get("n", 0), message.two.get("n", 0)
            time.sleep(random.random() * 0.003)
            message.one["n"], message.two["n"] = n + 1, m + 1

        @bot.handler
        @one
        @two
        def forth(message):
            count(message)

        @bot.handler
        @two
        @one
        def back(message):
            count(message)

        @bot.handler
        @two
        def only(message):
            message.two["n"] += 1

        forth(message())
        bot.run([payload(text=text) for text in ("forth", "back", "only")] * 40)

        @one
        @two
        def counted(message):
            return message.one["n"], message.two["n"]

        assert bot.errors == []
        assert counted(message()) == (81, 121)

    def test_different_sessions_do_not_wait_for_each_other(self, backend):
        """5.2 All handlers are inside at once: each waits there for all others."""
        bot = Bot(8, backend)
        together = threading.Barrier(8)

        @bot.handler
        @with_session(store=backend.store)
        def meet(message):
            together.wait(TIMEOUT)
            message.session["met"] = True

        bot.run([payload(user, "meet") for user in range(100, 108)])

        assert bot.errors == []
        assert backend.raw("session:107:107") is not None


class TestBusy:
    """5.4 Waiting longer than lock_timeout raises SessionBusy."""

    def test_a_handler_that_takes_too_long(self, backend):
        bot = Bot(2, backend)
        busy = threading.Event()
        ran = []

        @bot.handler
        @with_session(store=backend.store, lock_timeout=0.01)
        def handler(message):
            ran.append(message)
            assert busy.wait(TIMEOUT)
            message.session["n"] = message.session.get("n", 0) + 1

        # What lets the other one go on comes after the one that has to wait has given up.
        bot.run([payload(text="handler")] * 2, lambda: (until(lambda: bot.errors), busy.set()))

        (error,) = bot.errors
        assert isinstance(error, SessionBusy)
        assert NAME in str(error)
        assert len(ran) == 1
        assert found(store=backend.store) == {"n": 1}


class TestFailingStore:
    """6.3 A failing store raises SessionStoreError from the client's own error."""

    @pytest.fixture
    def watch(self, backend):
        put({"n": 1}, store=backend.store)
        return backend.watched()

    def check(self, caught, error):
        assert caught.value.__cause__ is error
        assert NAME in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_loading(self, watch):
        """The handler did not run."""
        error, ran = Boom("secret"), []
        watch.fail("get", error)

        with pytest.raises(SessionStoreError) as caught:
            visit(ran.append, store=watch.store)

        self.check(caught, error)
        assert ran == []
        assert watch.writes == []

    @pytest.mark.parametrize(
        ("operation", "body"),
        [
            ("set", lambda message: message.session.update(n="secret")),
            ("delete", lambda message: message.session.clear()),
        ],
        ids=["set", "delete"],
    )
    def test_saving(self, backend, watch, operation, body):
        """The caller hears of it, and nothing has changed."""
        if isinstance(backend.store, GetSet):
            operation = "set"
        error = Boom("secret")
        watch.fail(operation, error, on=1)

        with pytest.raises(SessionStoreError) as caught:
            visit(body, store=watch.store)

        self.check(caught, error)
        assert found(store=backend.store) == {"n": 1}

    @pytest.mark.parametrize("operation", ["get", "set", "delete"])
    def test_it_works_again_without_a_restart(self, backend, watch, operation):
        if isinstance(backend.store, GetSet) and operation == "delete":
            operation = "set"

        @with_session(store=watch.store)
        def handler(message, n):
            message.session["n"] = n
            if n is None:
                message.session.clear()

        watch.fail(operation, Boom())
        for _ in range(3):
            with pytest.raises(SessionStoreError):
                handler(message(), None if operation == "delete" else 2)
        watch.heal()

        assert found(store=watch.store) == {"n": 1}
        handler(message(), 3)
        assert found(store=watch.store) == {"n": 3}
        handler(message(), None)
        assert found(store=watch.store) == {}

    def test_a_handler_that_raises_as_well_is_heard(self, backend, watch, caplog):
        """What the handler raised matters more than that the ttl could not be counted anew."""
        put({"n": 1}, store=backend.store, ttl=3600)
        error = Boom()
        watch.fail("set", OSError("no route"))

        with pytest.raises(Boom) as caught, caplog.at_level(logging.WARNING, "telesession"):
            visit(raising(lambda message: None, error), store=watch.store, ttl=3600)

        assert caught.value is error
        assert NAME in caplog.text
        assert "OSError" in caplog.text

    def test_an_interrupt_is_passed_on_as_it_is(self, watch):
        error = KeyboardInterrupt()
        watch.fail("set", error, on=1)

        with pytest.raises(KeyboardInterrupt) as caught:
            put({"n": 2}, store=watch.store)

        assert caught.value is error
        assert found(store=watch.store) == {"n": 1}

    def test_loading_the_second_of_a_stack(self, watch):
        watch.fail("get", Boom(), on=2)
        ran = []

        @with_session(property="one", store=watch.store)
        @with_session(store=watch.store)
        def handler(message):
            ran.append(message)

        with pytest.raises(SessionStoreError):
            handler(message())

        assert ran == []
        handler(message())
        assert len(ran) == 1


def test_the_suites_own_leasing_store_is_strict():
    """What the suite shows of it, it shows of a store that refuses what it has not leased."""
    store = Leasing()
    lease, payloads = store.open([NAME], TIMEOUT)

    assert payloads == [None]
    with pytest.raises(AssertionError):
        store.open([NAME], TIMEOUT)
    store.commit(lease, [(NAME, "x", None)])
    with pytest.raises(SessionError):
        store.commit(lease, [(NAME, "y", None)])
    assert WatchedStore(store).open([NAME], TIMEOUT)[1] == ["x"]
    assert isinstance(KeyValueStore({}).codec, type(JSON))
