"""``busy=``: what an update does that finds its session in use."""

import logging
import threading
import time

import pytest

from telesession import SessionBusy, keys, with_session

from telesession import _locks
from tests.helpers import Failure, count, nobody, run_together, says, until
from tests.stores import TIMEOUT, Bot, Leasing, message, payload


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert _locks.held() == 0


@pytest.fixture
def queue(store):
    return with_session(store=store, busy="queue")


@pytest.fixture
def drop(store):
    return with_session(store=store, busy="drop")


def entered(handler):
    """A handler that tells when it is inside, and stays until it may go on."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(message):
        inside.set()
        assert go_on.wait(TIMEOUT)
        return handler(message)

    return wait, inside, go_on


def flood(bot, decorate, behind, body):
    """Have messages come behind "first", which is inside, and then another user's, who is free.

    Gives the texts of those that were handled without an error, in order.
    """
    handled = []
    first, inside, go_on = entered(lambda message: None)

    @bot.any_handler
    @decorate
    def handler(message):
        if message.text == "first":
            first(message)
        body(message)
        handled.append(message.text)

    bot.feed([payload(text="first")])
    assert inside.wait(TIMEOUT)  # or the other worker's update might get here first
    bot.feed([*(payload(text=text) for text in behind), payload(43, "other")])
    until(lambda: handled)
    assert handled == ["other"]
    go_on.set()
    bot.run([])
    return handled[1:]


class TestQueue:
    def test_in_order_on_one_thread(self, queue):
        """A user who floods a slow handler holds one worker; the others are free at once."""
        bot = Bot(2)
        threads = []
        behind = list(map(str, range(19)))

        def body(message):
            threads.append(threading.get_ident())
            count(message)

        assert flood(bot, queue, behind, body) == ["first", *behind]
        assert bot.errors == []
        assert len(set(threads[1:])) == 1
        with queue.open(key="42:42") as data:
            assert data == {"n": 20}

    def test_below_a_handler_that_is_not_for_it(self, store, queue):
        """What that one passes on is no handler that runs: there is a line all the same."""
        bot = Bot(2)
        room = with_session(property="room", store=store)
        bot.any_handler(room.when(n=1)(pytest.fail))

        handled = flood(bot, queue, ["second", "third"], lambda message: None)
        assert (handled, bot.errors) == (["first", "second", "third"], [])

    @pytest.mark.parametrize("threads", [2, 8])
    def test_nothing_is_lost(self, queue, threads):
        bot = Bot(threads)

        @bot.any_handler
        @queue
        def handler(message):
            n = message.session.get("n", 0)
            time.sleep(0.001)
            message.session["n"] = n + 1

        bot.run([payload(user) for user in (42, 43, 42, 44)] * 50)

        assert bot.errors == []
        for user, n in [(42, 100), (43, 50), (44, 50)]:
            with queue.open(key=f"{user}:{user}") as data:
                assert data == {"n": n}

    def test_an_error_stops_nobody(self, queue):
        """It reaches pyTelegramBotAPI's exception handling, and those behind go on."""
        bot = Bot(2)

        def body(message):
            if message.text.startswith("bad"):
                raise Failure(message.text)

        behind = ["bad 1", "good 1", "bad 2", "good 2"]
        assert flood(bot, queue, behind, body) == ["first", "good 1", "good 2"]
        assert [str(error) for error in bot.errors] == ["bad 1", "bad 2"]

    def test_an_error_is_that_of_its_own_bot(self, queue):
        """Also where that of another bot works off the line, and if its exception_handler fails."""
        one, two = Bot(1), Bot(1)
        first, inside, go_on = entered(lambda message: None)
        done = []
        one.any_handler(queue(first))

        @two.any_handler
        @queue
        def handler(message):
            if message.text == "bad":
                raise Failure
            done.append(message.text)

        one.feed([payload()])
        assert inside.wait(TIMEOUT)
        two.run([payload(text="bad"), payload(text="good")])
        go_on.set()
        one.run([])
        assert (one.errors, [type(error) for error in two.errors]) == ([], [Failure])
        assert done == ["good"]

    def test_an_exception_handler_that_fails(self, queue, caplog):
        """Those behind in the line are handled all the same."""

        class Errors(list):
            def append(self, error):
                raise Failure("of the exception handler")

        def body(message):
            if message.text == "bad":
                raise ValueError

        bot = Bot(2)
        bot.errors = Errors()
        assert flood(bot, queue, ["bad", "good"], body) == ["first", "good"]
        assert "of the exception handler" in caplog.text

    def test_the_first_one_raises(self, queue):
        """Its error is its caller's, after those behind it were handled."""
        slow, inside, go_on = entered(None)
        done = []

        @queue
        def handler(message):
            if message.text == "first":
                slow(message)
            done.append(message.text)

        def follow():
            assert inside.wait(TIMEOUT)
            assert handler(message()) is None
            go_on.set()

        first = message()
        first.text = "first"
        outcomes = run_together(lambda: handler(first), follow)
        assert isinstance(outcomes[0], TypeError)  # None can't be called
        assert done == ["hello"]

    def test_an_error_on_a_thread_of_somebody_else(self, queue, caplog):
        """Who called for another update doesn't get it; it is logged."""
        slow, inside, go_on = entered(lambda message: 1)

        @queue
        def handler(message):
            if message.text == "bad":
                raise Failure("bad")
            return slow(message)

        def follow():
            assert inside.wait(TIMEOUT)
            bad = message()
            bad.text = "bad"
            handler(bad)
            go_on.set()

        assert run_together(lambda: handler(message()), follow) == [1, None]
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("telesession", logging.ERROR)
        assert record.exc_info[0] is Failure

    def test_a_handler_inside_a_handler(self, queue):
        """It joins, and doesn't wait in a line behind itself."""
        inner = queue(count)

        @queue
        def outer(message):
            return inner(message), inner(message)

        assert outer(message()) == (1, 2)

    def test_inside_a_handler_of_another_session(self, store, queue):
        """A line is no handler's to work off: updates of others would join its sessions."""
        queued = queue(count)
        room = with_session(property="room", key=keys.chat, store=store)
        inside, go_on = threading.Event(), threading.Event()

        @room
        def outer(message):
            queue(entering)(message)
            raise Failure

        def entering(message):
            inside.set()
            assert go_on.wait(TIMEOUT)
            count(message)

        def follow():
            assert inside.wait(TIMEOUT)
            threading.Timer(0.01, go_on.set).start()
            return queued(message())

        failed, second = run_together(lambda: outer(message()), follow)
        assert isinstance(failed, Failure)
        assert second == 2

    def test_beside_other_sessions(self, store, queue):
        """One session of a stack may have a line, and the handler gets all of them."""
        chat = with_session(property="room", key=keys.chat, store=store)

        @chat
        @queue
        def handler(message):
            message.room["n"] = message.session["n"] = 1
            return "done"

        assert handler(message()) == "done"
        with says(TypeError, "busy='queue'", "handler"):
            with_session(property="more", busy="queue")(handler)

    def test_no_session_no_line(self, store):
        handler = with_session(store=store, key=nobody, busy="queue")(lambda message: 1)
        assert handler(message()) == 1

    def test_ctrl_c(self, queue, caplog):
        """What is left in the line is told of, and the next update finds no line."""
        slow, inside, go_on = entered(lambda message: None)

        @queue
        def handler(message):
            if message.text == "interrupt":
                raise KeyboardInterrupt
            slow(message)

        def follow():
            assert inside.wait(TIMEOUT)
            interrupt = message()
            interrupt.text = "interrupt"
            handler(interrupt)
            handler(message())
            go_on.set()

        def lead():
            with pytest.raises(KeyboardInterrupt):
                handler(message())

        assert run_together(lead, follow) == [None, None]
        assert "1 queued updates" in caplog.text


class TestDrop:
    def test_a_busy_session(self, drop, caplog):
        """The update is ignored, and so it is said at debug level."""
        caplog.set_level(logging.DEBUG, "telesession")
        slow, inside, go_on = entered(count)
        handler = drop(slow)

        def click_again():
            assert inside.wait(TIMEOUT)
            assert handler(message()) is None
            go_on.set()

        assert run_together(lambda: handler(message()), click_again) == [1, None]
        (record,) = caplog.records
        assert record.levelno == logging.DEBUG
        assert "'session:42:42'" in record.getMessage()
        assert handler(message()) == 2

    def test_a_session_that_another_process_has(self):
        """The same, where all sessions of the stack may be dropped."""
        store = Busy()
        handler = with_session(store=store, busy="drop")(pytest.fail)
        assert handler(message()) is None

        handler = with_session(store=store, property="other")(
            with_session(busy="drop")(pytest.fail)
        )
        with pytest.raises(SessionBusy):
            handler(message())

    def test_only_that_session(self, store, drop):
        """A session that isn't to be dropped is waited for."""
        room = with_session(property="room", key=keys.chat, store=store)
        slow, inside, go_on = entered(lambda message: message.room.update(n=1))
        hold = room(slow)

        @room
        @drop
        def click(message):
            return message.room["n"]

        def follow():
            assert inside.wait(TIMEOUT)
            threading.Timer(0.01, go_on.set).start()
            return click(message())

        assert run_together(lambda: hold(message()), follow) == [None, 1]

    def test_an_error_inside_is_an_error(self, drop):
        """A handler that itself runs into a busy session is not taken for a busy session."""

        @drop
        def handler(message):
            raise SessionBusy("another one")

        with pytest.raises(SessionBusy, match="another one"):
            handler(message())

    def test_inside_itself(self, drop):
        """The handler that has the session may call others with it."""

        @drop
        def outer(message):
            return drop(count)(message)

        assert outer(message()) == 1


class Busy(Leasing):
    """A store whose sessions are all in use by others."""

    def open(self, names, timeout, lease=None):
        raise SessionBusy(f"{names} after {timeout}")


@pytest.mark.parametrize("busy", ["waits", None, True, 1])
def test_misuse(busy):
    with says(ValueError, f"busy={busy!r}", "'wait', 'queue' or 'drop'"):
        with_session(busy=busy)


@pytest.mark.parametrize("busy", [None, "wait"])
def test_another_user_while_one_floods(busy):
    """One user sends 20 messages to a slow handler, then another one sends one.

    With a line it is handled before the first of them; else, or with bare handlers, after most.
    The benchmarks say what that is in seconds.
    """
    before = {}
    for kind in (busy, "queue"):
        handled, inside = [], threading.Event()
        bot = Bot(2)

        def slow(message, handled=handled, inside=inside):
            inside.set()
            if message.from_user.id == 42:
                time.sleep(0.1)
            handled.append(message.text)

        bot.any_handler(with_session(store={}, busy=kind)(slow) if kind else slow)
        bot.feed([payload(text="0")])
        assert inside.wait(TIMEOUT)
        flood = [str(number) for number in range(1, 20)]
        bot.run([*(payload(text=text) for text in flood), payload(43, "other")])
        before[kind] = handled.index("other")
        if kind:
            assert [text for text in handled if text != "other"] == ["0", *flood]
    assert before["queue"] < 2
    assert before[busy] >= 18
