"""5.2, 5.4 Waiting for a session: the line, cycles in it, and who serves the bot meanwhile."""

import contextlib
import inspect
import threading
import time

import pytest
from telebot.util import WorkerThread

from telesession import SessionBusy, _handler, _locks, _workers, keys, with_session
from tests.helpers import Failure, run_together, says, until
from tests.stores import TIMEOUT, Bot, message, payload

pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    until(lambda: _locks.held() == 0)
    assert not _locks._everyone.waiting
    assert not _workers._shifts.needs


@pytest.fixture
def room(store):
    """A declaration whose sessions everybody locks before those of ``session``."""
    return with_session(property="room", key=keys.chat, store=store)


def waiting(number):
    """Wait until so many threads wait for a session."""
    until(lambda: len(_locks._everyone.waiting) == number)


class Calls:
    """Calls on threads of their own, each begun when the one before is in line."""

    def __init__(self):
        self.outcomes = []
        self._threads = []

    def begin(self, function, *arguments, waits=True):
        number, before = len(self.outcomes), len(_locks._everyone.waiting)
        self.outcomes.append(None)

        def run():
            try:
                self.outcomes[number] = function(*arguments)
            except Exception as error:
                self.outcomes[number] = error

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        if waits:
            waiting(before + 1)

    def end(self):
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "deadlock"
        return self.outcomes


class Holding:
    """A handler of user 42 that is inside until `go_on` is set, and does ``then`` first."""

    def __init__(self, declaration, then=lambda message: None):
        self._inside, self.go_on, self.end = (threading.Event() for _ in range(3))
        self._then = then
        self.handler = declaration(self._body)

    def _body(self, message):
        self._inside.set()
        assert self.go_on.wait(TIMEOUT)
        result = self._then(message)
        assert self.end.wait(TIMEOUT)
        return result

    def begin(self, calls):
        calls.begin(self.handler, message(), waits=False)
        assert self._inside.wait(TIMEOUT)


class TestTimeOut:
    def test_while_the_line_moves_nobody_times_out(self, store):
        """Contract 5.4: the last of the line waits longer than lock_timeout, behind others."""

        @with_session(store=store, lock_timeout=0.5)
        def handler(message):
            time.sleep(0.12)

        start = time.monotonic()
        assert run_together(*[lambda: handler(message())] * 8) == [None] * 8
        assert time.monotonic() - start > 0.5

    def test_one_holder_for_all_of_it(self, store, session):
        """Contract 5.4: the message names the time-out and how long the holder has had it, and
        every likely cause."""
        calls = Calls()
        holding = Holding(session)
        holding.begin(calls)
        waits = with_session(store=store, lock_timeout=0.05)(pytest.fail)
        words = ["'session:42:42'", "lock_timeout=0.05", "It has had it for 0.", "quicker"]
        words += ["longer", "thread", "timer", "future", "comes behind this one"]
        with says(SessionBusy, *words) as caught:
            waits(message())
        assert (caught.value.property, caught.value.key) == ("session", "42:42")
        holding.go_on.set()
        holding.end.set()
        assert calls.end() == [None]

    def test_a_block_that_has_had_it(self, store, session):
        """Contract 5.4: the message tells of an `open` block, too, how long it has had it."""
        waits = with_session(store=store, lock_timeout=0.05)(pytest.fail)

        def told():
            with says(SessionBusy, "It has had it for 0."):
                waits(message())

        with session.open(key="42:42"):
            assert run_together(told) == [None]

    def test_each_has_its_own(self, store, session):
        """Contract 5.4: who has less patience leaves the line, and the others stay in it."""
        calls = Calls()
        holding = Holding(session)
        holding.begin(calls)
        calls.begin(with_session(store=store, lock_timeout=0.05)(pytest.fail), message())
        calls.begin(session(lambda message: "ran"), message())
        waiting(1)
        holding.go_on.set()
        holding.end.set()
        first, hasty, patient = calls.end()
        assert (first, type(hasty), patient) == (None, SessionBusy, "ran")


class TestCycles:
    def opening(self, room):
        def then(message):
            with room.open(message) as data:
                data["n"] = data.get("n", 0) + 1

        return then

    def test_who_gives_way_keeps_its_place(self, session, room):
        """Contract 5.2: only the one that would have closed a cycle goes before it."""
        calls, order = Calls(), []
        holding = Holding(session, self.opening(room))
        holding.begin(calls)
        for number in range(3):  # the first has the room, and waits for the session
            calls.begin(
                session(room(lambda message, number=number: order.append(number))), message()
            )
        calls.begin(room(lambda message: order.append("room")), message())
        holding.go_on.set()
        holding.end.set()
        assert calls.end() == [None] * 5
        assert order == [0, 1, 2, "room"]

    def test_who_gave_way_and_times_out(self, store, session, room):
        """Contract 5.5: nobody keeps a place in a line that it has left."""
        calls = Calls()
        holding = Holding(session, self.opening(room))
        holding.begin(calls)
        hasty = with_session(store=store, lock_timeout=0.2)
        calls.begin(hasty(room(pytest.fail)), message())
        holding.go_on.set()
        until(lambda: isinstance(calls.outcomes[1], SessionBusy))
        calls.begin(room(lambda message: message.room["n"]), message())
        holding.end.set()
        assert calls.end()[2] == 1

    def test_who_gave_way_waits_once_more(self, store, session, room):
        """Contract 5.2: in its old place, where it has what it waited for before the other ends."""
        calls, order = Calls(), []
        notes = with_session(property="notes", store=store)
        hasty = with_session(property="notes", store=store, lock_timeout=0.3)

        def open_notes(message):
            with hasty.open(message):
                pytest.fail("it is in use")

        one, two = Holding(session, open_notes), Holding(notes, self.opening(room))
        for holding in (one, two):
            holding.begin(calls)
        for number in range(2):
            calls.begin(session(room(lambda _, number=number: order.append(number))), message())
        one.go_on.set()
        waiting(3)
        two.go_on.set()  # it gets the room, from the first of the stacks
        until(lambda: isinstance(calls.outcomes[0], SessionBusy))
        waiting(2)
        two.end.set()
        assert calls.end()[1:] == [None] * 3
        assert order == [0, 1]

    def test_giving_way_again_and_again(self, store, session, room):
        """Contract 5.3, 5.4: stacks in both orders never fail beside a handler that opens more."""
        calls, handled = Calls(), []
        both = [session(room(handled.append)), room(session(handled.append))]
        crossing = session(self.opening(room))
        for number in range(60):
            calls.begin([*both, crossing][number % 3], message(), waits=False)
        assert calls.end() == [None] * 60
        assert len(handled) == 40
        assert room.peek(key=42) == {"n": 20}

    def test_the_one_that_closes_it(self, session, room):
        """Contract 5.4: where both have begun, it is told at once, and the other one goes on."""
        calls = Calls()
        one = Holding(session, self.opening(room))

        def open_session(message):
            with session.open(message):
                pass

        two = Holding(room, open_session)
        for holding in (one, two):
            holding.begin(calls)
        one.go_on.set()
        waiting(1)
        two.go_on.set()
        two.end.set()
        one.end.set()
        first, second = calls.end()
        assert first is None
        assert isinstance(second, SessionBusy)
        assert "'session:42:42'" in str(second)
        assert "'room:42'" in str(second)

    def test_waiting_for_a_cycle_that_is_being_told(self, session, room, monkeypatch):
        """Contract 5.4: who comes while the one that closed a cycle is on its way out waits."""
        calls, closing = Calls(), []
        told, go_on = threading.Event(), threading.Event()

        def open_session(message):
            closing.append(threading.get_ident())
            with session.open(message):
                pass

        free = _locks._Everyone.free

        def freed(everyone):
            free(everyone)
            if threading.get_ident() in closing and not told.is_set():
                told.set()
                assert go_on.wait(TIMEOUT)

        one, two = Holding(session, self.opening(room)), Holding(room, open_session)
        for holding in (one, two):
            holding.begin(calls)
        one.go_on.set()
        waiting(1)
        monkeypatch.setattr(_locks._Everyone, "free", freed)
        two.go_on.set()
        assert told.wait(TIMEOUT)
        calls.begin(session(lambda message: "ran"), message())
        go_on.set()
        two.end.set()
        one.end.set()
        first, second, third = calls.end()
        assert (first, type(second), third) == (None, SessionBusy, "ran")


class TestStandIns:
    """Contract 5.2: an update that waits holds no worker."""

    @pytest.fixture
    def held(self, session):
        """A bot of two threads whose user 42 is in a handler until `go_on` is set."""

        class Held:
            bot = Bot(2)
            inside, go_on = threading.Event(), threading.Event()
            handled = []  # noqa: RUF012
            then = staticmethod(lambda message: None)

        @Held.bot.any_handler
        @session
        def handler(message):
            if message.text == "first":
                Held.inside.set()
                assert Held.go_on.wait(TIMEOUT)
            Held.then(message)
            Held.handled.append(message.text)

        Held.pool = Held.bot._bot.worker_pool
        Held.bot.feed([payload(text="first")])
        assert Held.inside.wait(TIMEOUT)
        yield Held
        Held.go_on.set()

    def test_they_come_and_go(self, held):
        """In the end the bot has the workers that it had."""
        before = list(held.pool.workers)
        held.bot.feed([payload(text=str(number)) for number in range(5)])
        waiting(5)
        held.bot.feed([payload(43, "other")])
        until(lambda: held.handled == ["other"])
        assert len(held.pool.workers) == 2 + 5
        held.go_on.set()
        until(lambda: held.pool.workers == before)
        assert held.handled == ["other", "first", *map(str, range(5))]

    def test_so_many_at_the_most(self, held, monkeypatch):
        """Beyond that, workers wait, as those of a bare bot would."""
        monkeypatch.setattr(_workers, "LIMIT", 3)
        held.bot.feed([payload(text=str(number)) for number in range(9)])
        waiting(4)
        held.bot.feed([payload(43, "other")])
        time.sleep(0.05)
        assert len(held.pool.workers) == 2 + 3
        assert held.handled == []
        held.go_on.set()
        held.bot.run([])
        assert sorted(held.handled) == ["0", "1", *map(str, range(2, 9)), "first", "other"]

    def test_the_limit(self):
        assert _workers.LIMIT == 100

    def test_an_error_on_a_stand_in(self, held):
        """It reaches the bot's exception handler, and the stand-in goes on."""
        held.then = staticmethod(_raise_if_bad)
        held.bot.feed([payload(text="waits")])
        waiting(1)
        held.bot.feed([payload(43, "bad"), payload(43, "good")])
        until(lambda: held.handled == ["good"])
        assert [str(error) for error in held.bot.errors] == ["bad"]

    def test_an_exception_handler_that_raises(self, held, monkeypatch):
        """It costs a stand-in, as it costs a bare bot a worker; the next who waits has one."""
        monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

        class Errors(list):
            def append(self, error):
                raise Failure("of the exception handler")

        held.then = staticmethod(_raise_if_bad)
        held.bot.errors = Errors()
        held.bot.feed([payload(text="waits")])
        waiting(1)
        until(lambda: len(held.pool.workers) == 3)
        held.bot.feed([payload(43, "bad")])
        until(lambda: len(held.pool.workers) == 2)
        held.go_on.set()
        until(lambda: held.handled == ["first", "waits"])
        held.inside.clear()
        held.go_on.clear()
        held.bot.feed([payload(text="first")])
        assert held.inside.wait(TIMEOUT)
        held.bot.feed([payload(text="waits"), payload(43, "other")])
        until(lambda: held.handled[2:] == ["other"])

    @pytest.mark.parametrize("threaded", [True, False])
    def test_no_worker_of_a_bot(self, session, threaded):
        """Threads of somebody else just wait, also with a bot without threads."""
        bot = Bot(1)
        bot._bot.threaded = threaded
        handled = []
        bot.any_handler(session(lambda message: handled.append(message.text)))
        before = threading.active_count()
        with session.open(key="42:42"):
            if threaded:
                bot.feed([payload(text="1"), payload(43, "other")])
                until(lambda: handled == ["other"])
            else:
                feeding = threading.Thread(target=bot.feed, args=[[payload(text="1")]])
                feeding.start()
                waiting(1)
                time.sleep(0.01)
                assert threading.active_count() == before + 1
                assert handled == []
        until(lambda: handled[-1:] == ["1"])
        bot.run([])


def _raise_if_bad(message):
    if message.text == "bad":
        raise Failure(message.text)


class TestStopping:
    """`TeleBot.stop_bot` waits for the handlers that run, and for those in line."""

    @pytest.fixture(autouse=True)
    def new_process(self, monkeypatch):
        """As in a process in which no session has been opened yet."""

        def forget():
            _workers._wrap_join.cache_clear()
            _handler._updates.clear()

        monkeypatch.setattr(WorkerThread, "join", inspect.unwrap(WorkerThread.join))
        forget()
        yield
        forget()

    @pytest.fixture
    def stopping(self, session):
        bot = Bot(2)
        handled, inside, go_on = [], threading.Event(), threading.Event()

        @bot.any_handler
        @session
        def handler(message):
            inside.set()
            assert go_on.wait(TIMEOUT)
            if message.text == "stop":
                bot._bot.stop_bot()
            handled.append(message.text)

        return bot, handled, inside, go_on

    def stop(self, bot):
        thread = threading.Thread(target=bot._bot.stop_bot, daemon=True)
        thread.start()
        return thread

    def ended(self, bot):
        return not any(worker.is_alive() for worker in bot._bot.worker_pool.workers)

    def test_while_some_wait(self, stopping):
        bot, handled, _, go_on = stopping
        bot.feed([payload(text=str(number)) for number in range(5)])
        waiting(4)
        thread = self.stop(bot)
        go_on.set()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        assert handled == list("01234")
        assert self.ended(bot)

    def test_a_handler_on_a_stand_in(self, stopping):
        bot, handled, inside, go_on = stopping
        bot.feed([payload(text="0"), payload(text="1")])
        waiting(1)
        inside.clear()
        bot.feed([payload(43, "other")])
        assert inside.wait(TIMEOUT)
        thread = self.stop(bot)
        time.sleep(0.05)
        assert thread.is_alive()
        go_on.set()
        thread.join(TIMEOUT)
        assert sorted(handled) == ["0", "1", "other"]

    def test_nothing_more_is_begun(self, stopping):
        """Also by a stand-in that comes when the bot is being stopped already."""
        bot, handled, inside, go_on = stopping
        bot.feed([payload(text="0")])
        assert inside.wait(TIMEOUT)
        for worker in bot._bot.worker_pool.workers:
            worker.stop()
        until(lambda: sum(worker.is_alive() for worker in bot._bot.worker_pool.workers) == 1)
        bot.feed([payload(text="lost")])
        go_on.set()
        until(lambda: self.ended(bot))
        assert handled == ["0"]

    def test_a_stand_in_that_comes_late(self, stopping, monkeypatch):
        """One that starts when the bot is being stopped already takes no update."""
        bot, handled, inside, go_on = stopping
        pool, stand_in = bot._bot.worker_pool, _workers._stand_in

        def late():
            for worker in pool.workers:
                worker.stop()
            return stand_in()

        monkeypatch.setattr(_workers, "_stand_in", late)
        bot.feed([payload(text="0")])
        assert inside.wait(TIMEOUT)
        bot.feed([payload(text="1"), payload(43, "lost")])
        waiting(1)
        time.sleep(0.05)
        go_on.set()
        until(lambda: self.ended(bot))
        assert handled == ["0", "1"]

    @pytest.mark.parametrize("first", [True, False], ids=["waits already", "comes later"])
    def test_by_the_handler_that_they_wait_for(self, stopping, first, session):
        """It does not wait for those, who are handled when it is done."""
        bot, handled, inside, go_on = stopping
        if first:
            bot.feed([payload(text="stop"), payload(text="1"), payload(text="2")])
            waiting(2)
            go_on.set()
        else:
            late, came = threading.Event(), threading.Event()

            def slow(message):
                came.set()
                return late.wait(TIMEOUT)

            bot._bot.message_handlers[0]["filters"]["func"] = lambda message: (
                message.text == "stop" or slow(message)
            )
            bot.feed([payload(text="stop"), payload(text="1")])
            assert inside.wait(TIMEOUT)
            assert came.wait(TIMEOUT)
            go_on.set()
            until(lambda: not any(one._running for one in bot._bot.worker_pool.workers))
            late.set()
        until(lambda: handled == (["stop", "1", "2"] if first else ["stop", "1"]))
        until(lambda: self.ended(bot))
        assert bot.errors == []

    def test_in_an_open_block_that_they_wait_for(self, stopping, session):
        bot, handled, _, go_on = stopping
        go_on.set()
        with contextlib.ExitStack() as stack:
            stack.enter_context(session.open(key="42:42"))
            bot.feed([payload(text="1")])
            waiting(1)
            time.sleep(0.01)  # more than a moment, after which somebody stands in
            bot._bot.stop_bot()
            assert handled == []
        until(lambda: handled == ["1"])

    def test_blocks_alone(self, session):
        """No handler is decorated: those that wait do so in blocks of their own."""
        bot, handled = Bot(2), []

        @bot.any_handler
        def handler(message):
            with session.open(key="42:42"):
                handled.append(message.text)

        with session.open(key="42:42"):
            bot.feed([payload(text="1")])
            waiting(1)
            time.sleep(0.01)
            bot._bot.stop_bot()
            assert handled == []
        until(lambda: handled == ["1"])
