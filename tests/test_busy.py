"""5.9 What an update does that finds its session in use; `test_waiting` has what waits."""

import logging
import threading

import pytest
from telebot import types
from telebot.handler_backends import ContinueHandling

from telesession import SessionBusy, _locks, keys, with_session
from tests.helpers import Failure, count, run_together, says
from tests.stores import TIMEOUT, Bot, Leasing, message, payload
from tests.when_bots import AfterHandlers
from tests.worker import Worker, connect


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert _locks.held() == 0


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


def meanwhile(session, *functions):
    """What functions give while another handler of user 42 has its session."""
    slow, inside, go_on = entered(lambda message: None)

    def follow():
        assert inside.wait(TIMEOUT)
        try:
            return [function() for function in functions]
        finally:
            go_on.set()

    _, found = run_together(lambda: session(slow)(message()), follow)
    return found


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


class TestFunction:
    """Contract 5.9: it is called in the handler's place, once for an update."""

    @pytest.fixture
    def calls(self):
        return []

    @pytest.fixture
    def told(self, store, calls):
        """A declaration whose function notes its arguments."""

        def tell(*args, **kwargs):
            calls.append((args, kwargs))
            return "told"

        return with_session(store=store, busy=tell)

    def test_a_busy_session(self, session, told, calls):
        """It gets the handler's arguments, and gives what the caller gets."""
        handler, mine = told(pytest.fail), message()
        assert meanwhile(session, lambda: handler(mine, 1, two=2)) == ["told"]
        assert calls == [((mine, 1), {"two": 2})]

    def test_a_free_session(self, told, calls):
        handler = told(count)
        assert [handler(message()), handler(message())] == [1, 2]
        assert calls == []

    def test_an_error(self, store, session):
        """That of the function is the caller's, and nothing is left locked."""

        def fail(message):
            raise Failure

        handler = with_session(store=store, busy=fail)(pytest.fail)
        assert type(meanwhile(session, lambda: handler(message()))) is Failure

    def test_it_may_open_other_sessions(self, store, session):
        """None of the handler's is open, or locked."""
        notes = with_session(store=store, property="notes")

        def note(message):
            with notes.open(message) as data, session.open(key="43:43") as other:
                data["n"] = other["n"] = 1
            return _locks.held()

        handler = notes(with_session(store=store, busy=note)(pytest.fail))
        assert meanwhile(session, lambda: handler(message())) == [1]
        assert sorted(store) == ["notes:42:42", "session:43:43"]

    @pytest.mark.parametrize("held", ["session", "room"])
    def test_a_stack(self, store, held):
        """Of several functions, the one whose session is in use is called."""
        called = []
        declared = {
            property: with_session(
                store=store, property=property, busy=lambda message, p=property: called.append(p)
            )
            for property in ("session", "room")
        }
        handler = declared["session"](declared["room"](pytest.fail))
        meanwhile(declared[held], lambda: handler(message()))
        assert called == [held]

    @pytest.mark.parametrize("which", ["room", "session", "both"])
    def test_a_stack_that_another_process_has(self, sqlite_url, which):
        """The same, and nothing is waited for, where no declaration of the stack waits."""
        called = []
        with Worker(sqlite_url, "hold", 30, 30) as holder, connect(sqlite_url) as store:
            assert holder.read() == "ready"
            holder.go()
            assert holder.read() == "inside"
            session = with_session(store=store, busy=lambda message: called.append("session"))
            room = with_session(
                store=store, property="room", busy=lambda message: called.append("room")
            )
            handlers = {"room": room(count_room), "session": session(pytest.fail)}
            handlers["both"] = room(handlers["session"])
            handlers[which](message())
        assert called == ([] if which == "room" else ["session"])

    @pytest.mark.parametrize("middlewares", [False, True])
    def test_under_when(self, session, told, calls, middlewares):
        """Once for all handlers that are tried; those without the session get the update."""
        bot, reached = dispatching(middlewares)
        for step in (None, "name", "age"):
            bot.register_message_handler(told.when(step=step)(pytest.fail))
        bot.register_message_handler(passing(reached, "passing"))
        bot.register_message_handler(told.when(step="late")(pytest.fail))
        bot.register_message_handler(lambda message: reached.append("plain"))

        first, second = update(), update()
        meanwhile(
            session, *(lambda one=one: bot.process_new_updates([one]) for one in (first, second))
        )

        assert [args[0] for args, _ in calls] == [first.message, second.message]
        assert reached == ["passing", "plain"] * 2

    @pytest.mark.parametrize("middlewares", [False, True])
    def test_dropped_under_when(self, session, drop, middlewares):
        """The update goes on to handlers without the session, too."""
        bot, reached = dispatching(middlewares)
        for step in (None, "name"):
            bot.register_message_handler(drop.when(step=step)(pytest.fail))
        bot.register_message_handler(lambda message: reached.append("plain"))
        meanwhile(session, lambda: bot.process_new_updates([update()]))
        assert reached == ["plain"]

    def test_a_handler_of_the_session_below_when(self, session, told, calls):
        """It has the update, as without the handlers above, and it is told only once."""
        bot, reached = dispatching(False)
        bot.register_message_handler(told.when(step="name")(pytest.fail))
        bot.register_message_handler(told(pytest.fail))
        bot.register_message_handler(lambda message: reached.append("plain"))
        meanwhile(session, lambda: bot.process_new_updates([update()]))
        assert len(calls) == 1
        assert reached == []

    def test_the_session_becomes_free_meanwhile(self, store, told, calls):
        """An update that was told to wait isn't handled by the next `when` all the same."""
        bot, reached = dispatching(False)
        session = with_session(store=store)
        slow, inside, go_on = entered(lambda message: None)
        bot.register_message_handler(told.when(step="name")(pytest.fail))
        ended = threading.Event()

        def between(message):
            go_on.set()
            assert ended.wait(TIMEOUT)
            return ContinueHandling()

        bot.register_message_handler(between)
        bot.register_message_handler(told.when(step=None)(pytest.fail))
        bot.register_message_handler(lambda message: reached.append("plain"))

        def hold():
            session(slow)(message())
            ended.set()

        def follow():
            assert inside.wait(TIMEOUT)
            bot.process_new_updates([update()])

        assert run_together(hold, follow) == [None, None]
        assert (len(calls), reached) == (1, ["plain"])

    def test_one_function_of_two_sessions(self, store):
        """Both are in use, and the update is one."""
        called = []
        one, two = (
            with_session(store=store, property=property, busy=called.append)
            for property in ("one", "two")
        )
        bot, reached = dispatching(False)
        bot.register_message_handler(one.when(n=1)(pytest.fail))
        bot.register_message_handler(two.when(n=1)(pytest.fail))
        bot.register_message_handler(lambda message: reached.append("plain"))

        def both(handler):
            return with_session(store=store, property="one")(
                with_session(store=store, property="two")(handler)
            )

        meanwhile(both, lambda: bot.process_new_updates([update()]))
        assert (len(called), reached) == (1, ["plain"])

    def test_on_the_threads_of_a_bot(self, session, told, calls):
        """Nobody waits, and nobody stands in."""
        bot = Bot(2)
        slow, inside, go_on = entered(lambda message: None)

        @bot.any_handler
        @told
        def handler(message):
            if message.text == "first":
                slow(message)

        bot.feed([payload(text="first")])
        assert inside.wait(TIMEOUT)
        bot.feed([payload(text=str(number)) for number in range(9)])
        bot.feed([payload(43, text="last")])
        bot._bot.worker_pool.put(go_on.set)
        bot.run([])
        assert [args[0].text for args, _ in calls] == list(map(str, range(9)))


def count_room(message):
    message.room["n"] = 1


def passing(reached, name):
    """A handler that lets the update go on."""

    def handler(message):
        reached.append(name)
        return ContinueHandling()

    return handler


def dispatching(middlewares):
    """A bot without threads, with class middlewares or without; and a list."""
    bot = Bot(1, use_class_middlewares=middlewares)._bot
    bot.threaded = False
    if middlewares:
        bot.setup_middleware(AfterHandlers(no_error))
    return bot, []


def no_error(exception):
    assert exception is None


def update(user=42):
    return types.Update.de_json({"update_id": 1, "message": payload(user)})


async def coroutine(message):
    pass


def generator(message):
    yield


@pytest.mark.parametrize("busy", ["waits", "queue", None, True, 1, coroutine, generator, lambda: 1])
def test_misuse(busy):
    """Contract 1.4: the message has the option, the value and the cure."""
    with says(ValueError, f"busy={busy!r}", "'wait', 'drop'", "a function"):
        with_session(busy=busy)


@pytest.mark.parametrize(
    "busy", [print, lambda self, call: 1, lambda call, *, bot: 1, lambda *args: 1]
)
def test_a_function_of_any_arguments(busy):
    """Contract 5.9: it gets the handler's, which may be a method or take the bot."""
    with_session(busy=busy)
