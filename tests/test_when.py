"""5.8 `Declaration.when`: which handler an update is for, decided while it is locked."""

import functools
import gc
import threading
import time

import pytest
import telebot
from telebot import types
from telebot.handler_backends import ContinueHandling, State, StatesGroup

from telesession import MemoryStore, SessionClosed, _locks, keys, with_session
from telesession.testing import Chat
from tests import when_bots
from tests.helpers import Failure, content, count, nobody, run_together, says, until
from tests.stores import TIMEOUT, Bot, Leasing, WatchedStore, message, payload, put
from tests.when_bots import raising

nothing_left = when_bots.nothing_left
bot = when_bots.bot


async def coroutine(session):
    pass


def generator(session):
    yield


class TestMatching:
    @pytest.mark.parametrize(
        ("conditions", "values", "matches"),
        [
            ([], {"step": "name"}, True),
            ([], {"step": "age"}, False),
            ([], {"step": "name", "n": 1}, True),
            ([], {"step": "name", "n": 2}, False),
            ([], {"absent": None}, True),
            ([], {"absent": 0}, False),
            ([lambda s: s["n"] > 0], {}, True),
            ([lambda s: s["n"] > 0, lambda s: s["n"] > 1], {}, False),
            ([lambda s: s["n"] > 0], {"step": "age"}, False),
            ([lambda s: s.get("cart")], {}, False),
        ],
    )
    def test_values_and_conditions(self, store, session, conditions, values, matches):
        """All values are equal, and all conditions true; None stands for what isn't there."""
        put({"step": "name", "n": 1}, store=store)
        ran = []

        result = session.when(*conditions, **values)(ran.append)(message())

        assert bool(ran) is matches
        assert isinstance(result, ContinueHandling) is not matches

    @pytest.mark.parametrize(
        ("values", "matches"),
        [
            ({"step": {"name", "age"}}, True),
            ({"step": frozenset({"age", "name"})}, True),
            ({"step": {"age"}}, False),
            ({"step": set()}, False),
            ({"absent": {None, 1}}, True),
            ({"n": {1.0, 2}}, True),
            ({"list": [1, 2]}, True),
            ({"list": [1]}, False),
            ({"step": ["name", "age"]}, False),
            ({"list": {(1, 2)}}, False),
            ({"step": "name", "n": {2}}, False),
        ],
    )
    def test_alternatives(self, store, session, values, matches):
        """Contract 5.8: a set has alternatives, compared with ==; a list compares as it is."""
        put({"step": "name", "n": 1, "list": [1, 2]}, store=store)
        ran = []
        session.when(**values)(ran.append)(message())
        assert bool(ran) is matches

    def test_states(self, store, session):
        """Contract 5.8: a `State` stands for its name, also in a set; without one it is refused."""

        class Steps(StatesGroup):
            name = State()
            age = State()

        ran = []
        one = session.when(step=Steps.name)(lambda message: ran.append("one"))
        either = session.when(step={Steps.name, Steps.age})(lambda message: ran.append("either"))
        for step in (Steps.name.name, Steps.age.name, "name"):
            put({"step": step}, store=store)
            one(message())
            either(message())
        assert ran == ["one", "either", "either"]
        for value in (State(), {State()}):
            with says(ValueError, "step", "State", "no name"):
                session.when(step=value)
        for value in ([Steps.name, Steps.age], (Steps.name,)):
            with says(ValueError, "step", "Alternatives are a set: when(step={Form.name"):
                session.when(step=value)

    def test_conditions_with_the_update(self, store, session):
        """Contract 5.8: a second argument is the update; what has a default is the author's."""
        put({"text": "hello"}, store=store)
        ran = []
        wanted = message()

        def same_text(data, update):
            return update is wanted and data["text"] == update.text

        session.when(same_text)(ran.append)(wanted)
        session.when(same_text)(pytest.fail)(message())
        session.when(lambda data, text="hello": data["text"] == text)(ran.append)(wanted)
        session.when(lambda *both: len(both) == 1)(ran.append)(wanted)
        session.when(functools.partial(same_text, update=wanted))(ran.append)(wanted)
        assert len(ran) == 4

    def test_no_session_matches_nothing(self, store):
        """A handler for a state isn't for an update that has none."""
        session = with_session(store=store, key=nobody)

        result = session.when(lambda s: pytest.fail("asked"))(pytest.fail)(message())

        assert isinstance(result, ContinueHandling)

    def test_the_handler_is_as_ever(self, store, session):
        """It takes arguments, returns a value, and what it changes is saved."""

        @session.when(step=None)
        def handler(message, more):
            message.session["step"] = more
            return 42

        assert handler(message(), "name") == 42
        assert store == {"session:42:42": '{"step":"name"}'}
        assert handler.__name__ == "handler"

    def test_it_stacks(self, store, session):
        """On other declarations and conditions, which all have to match."""
        other = with_session(property="room", key=keys.chat, store=store)
        plain = with_session(property="plain", store=store)
        ran = []
        handler = plain(session.when(n=1)(other.when(m=1)(ran.append)))

        for text, matches in [('{"n":1}', False), ('{"n":1}', True)]:
            store["session:42:42"] = text
            handler(message())
            assert bool(ran) is matches
            store["room:42"] = '{"m":1}'
        store["session:42:42"] = '{"n":2}'
        handler(message())
        assert len(ran) == 1

    def test_misuse(self, session):
        with says(TypeError, "when()", "step='name'"):
            session.when()
        with says(TypeError, "when('name')", "when(step='name')"):
            session.when("name")
        with says(TypeError, "can't be called with a session", "lambda session:"):
            session.when(lambda: True)
        for condition in (coroutine, generator):
            with says(TypeError, f"is a {condition.__name__} function: give a plain function"):
                session.when(condition)
        with says(TypeError, "when(n=<", "compares values", "lambda session: session.get('n'"):
            session.when(n=lambda n: n > 1)
        with says(TypeError, "parentheses"):
            session.when(print)(message())
        with says(ValueError, "when(...)"):
            session(session.when(n=1)(print))

    def test_a_condition_that_fails(self, store, session):
        """Its error is the caller's, as if the handler had raised it."""
        with pytest.raises(KeyError):
            session.when(lambda s: s["absent"])(pytest.fail)(message())
        assert store == {}


class TestNothingSaved:
    def test_when_nothing_matches(self):
        """Nothing is written, not even for a new time to live."""
        watch = WatchedStore(Leasing())
        put({"n": 1}, store=watch, ttl=60)
        watch.calls.clear()

        with_session(store=watch, ttl=60).when(n=2)(pytest.fail)(message())

        assert watch.writes == []

    def test_what_a_condition_changes(self, bot, store, session):
        """The next handler gets the session as it was stored."""
        store["session:1:1"] = '{"cart":[]}'

        def meddle(s):
            s["cart"].append(1)
            s["new"] = 1

        found = []
        bot.register_message_handler(session.when(meddle)(pytest.fail))
        bot.register_message_handler(session(lambda m: found.append(dict(m.session))))
        Chat(bot).send("hi")

        assert found == [{"cart": []}]
        assert store == {"session:1:1": '{"cart":[]}'}

    def test_between_handlers_the_session_is_closed(self, bot, session):
        """A handler without a session can't change what nothing would save."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))

        @bot.message_handler()
        def plain(message):
            message.session["n"] = 2

        with pytest.raises(SessionClosed):
            Chat(bot).send("hi")


class TestPassingOn:
    """One update opens its session once, for all handlers that it is tried on."""

    @pytest.fixture
    def watch(self):
        return WatchedStore(Leasing())

    def wizard(self, bot, session, answers):
        for step in (None, "name", "age", "done"):

            @bot.message_handler(func=lambda m: True)
            @session.when(step=step)
            def handler(message, step=step):
                answers.append(step)
                message.session["step"] = message.text

    def test_one_lease(self, bot, watch):
        """Four handlers are tried, one of them runs: one read and one write."""
        answers = []
        self.wizard(bot, with_session(store=watch), answers)
        for text in ("name", "age", "done", "done"):
            watch.calls.clear()
            Chat(bot).send(text)
            assert [call for call, _ in watch.calls] == ["get", "set"][
                : 2 - (answers[-1] == "done")
            ]
        assert answers == [None, "name", "age", "done"]

    def test_one_key(self, bot, store):
        """The update has one session while its handlers are tried, and its key is asked once."""
        asked = []
        session = with_session(key=lambda update: asked.append(update) or len(asked), store=store)
        for step in ("name", "age"):
            bot.register_message_handler(session.when(step=step)(raising))
        bot.register_message_handler(session(count))

        Chat(bot).send("hi")

        assert len(asked) == 1
        assert content(store) == {"session:1": {"n": 1}}

    def test_a_plain_handler_at_the_end(self, bot, watch):
        """The same holds where a handler of the same sessions without a condition comes last."""
        session = with_session(store=watch)
        bot.register_message_handler(session.when(step="name")(pytest.fail))
        bot.register_message_handler(session.when(step="age")(pytest.fail))
        bot.register_message_handler(session(lambda m: m.session.update(n=1)))

        Chat(bot).send("hi")

        assert watch.calls == [("get", "session:1:1"), ("set", "session:1:1")]

    def test_replaced_after_a_miss(self, bot, store, session):
        """The handler that took over may put another dict in the place of its session."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        kept = []

        @bot.message_handler()
        @session
        def handler(message):
            message.session = {"n": 2}
            kept.append(message)

        Chat(bot).send("hi")
        assert store == {"session:1:1": '{"n":2}'}
        assert type(kept[0].session).__name__ == "ClosedSession"

    def test_nobody_comes_in_between(self, bot, store):
        """Another update of the user waits until this one has found its handler."""
        session = with_session(store=store)
        routing, going_on = threading.Event(), threading.Event()
        bot.register_message_handler(session.when(step="name")(pytest.fail))

        def slow(message):
            if message.text == "first":
                routing.set()
                assert going_on.wait(TIMEOUT)
            return True

        @bot.message_handler(func=slow)
        @session.when(step=None)
        def handler(message):
            message.session["step"] = "name" if message.text == "first" else "lost"
            message.session.setdefault("texts", []).append(message.text)

        first = threading.Thread(target=Chat(bot).send, args=["first"])
        first.start()
        assert routing.wait(TIMEOUT)
        opened = threading.Event()

        def come_in():
            with session.open(key="1:1") as data:
                data["step"] = data.get("step", "nobody was first")
                opened.set()

        second = threading.Thread(target=come_in)
        second.start()
        assert not opened.wait(0.05)
        going_on.set()
        first.join(TIMEOUT)
        second.join(TIMEOUT)
        assert store == {"session:1:1": '{"step":"name","texts":["first"]}'}

    def test_other_sessions_at_the_next_handler(self, bot, store):
        """What a handler with other sessions doesn't want is let go of first."""
        session = with_session(store=store)
        other = with_session(property="room", key=keys.chat, store=store)
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(other(session.when(n=1)(pytest.fail)))
        bot.register_message_handler(other.when(n=1)(pytest.fail))
        bot.register_message_handler(session(lambda m: m.session.update(n=1)))

        Chat(bot).send("hi")

        assert store == {"session:1:1": '{"n":1}'}

    def test_opened_in_between(self, bot, store, session):
        """A handler without a session may open it, by the key or by the update."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))

        @bot.message_handler()
        def plain(message):
            with session.open(key="1:1") as data:
                data["n"] = 1
            return ContinueHandling()

        bot.register_message_handler(session.when(n=1)(lambda m: m.session.update(n=2)))
        Chat(bot).send("hi")
        assert store == {"session:1:1": '{"n":2}'}

    def test_no_handler_matches(self, bot, session):
        """The session is free as soon as pyTelegramBotAPI is through with the update."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        assert Chat(bot).send("hi") == []
        assert _locks.held() == 0

    def test_a_later_handler_raises(self, bot, store, session):
        """Whoever waits for the session gets it at once, though a traceback is kept."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))

        @bot.message_handler()
        def plain(message):
            raise Failure

        kept = None
        try:
            Chat(bot).send("hi")
        except Failure as error:
            kept = error
        assert kept.__traceback__
        assert _locks.held() == 0

        def change():
            with session.open(key="1:1") as data:
                data["n"] = 1

        assert run_together(change) == [None]
        assert store == {"session:1:1": '{"n":1}'}

    def test_the_thread_goes_on_with_another_user(self, bot, session):
        """Two threads had an error after a miss, and now handle each other's user: no cycle."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(raising)
        together = threading.Barrier(2)

        def work(own, others):
            with pytest.raises(Failure) as caught:
                Chat(bot, user=own).send("hi")
            together.wait(TIMEOUT)
            assert caught.value.__traceback__
            return session(lambda message: _locks.held())(message(others))

        assert max(run_together(lambda: work(1, 2), lambda: work(2, 1))) <= 2
        assert _locks.held() == 0

    def test_one_update_for_two_bots(self, store):
        """Each has its own handlers, and its own thread, and lets go of what it locked."""
        together = threading.Barrier(2)
        update = types.Update.de_json({"update_id": 1, "message": payload()})

        def work(property):
            bot = telebot.TeleBot("1:test", threaded=False)
            session = with_session(property=property, store=store)
            both = session.when(lambda session: together.wait(TIMEOUT) < 0)
            bot.register_message_handler(both(pytest.fail))
            bot.register_message_handler(lambda message: together.wait(TIMEOUT))
            bot.process_new_updates([update])

        assert run_together(lambda: work("one"), lambda: work("two")) == [None, None]
        until(lambda: _locks.held() == 0)

    def test_ctrl_c_while_it_is_let_go(self, bot):
        """All of it is, and the interrupt comes through."""

        class Interrupted(Leasing):
            def commit(self, lease, changes):
                super().commit(lease, changes)
                raise KeyboardInterrupt

        stores = Interrupted(), Leasing()
        one, two = (with_session(property=f"s{n}", store=each) for n, each in enumerate(stores))
        bot.register_message_handler(one(two.when(n=1)(pytest.fail)))
        bot.register_message_handler(with_session(property="other")(pytest.fail))
        with pytest.raises(KeyboardInterrupt):
            Chat(bot).send("hi")
        assert [len(store.leases) for store in stores] == [0, 0]
        assert _locks.held() == 0

    def test_what_nobody_waits_for_is_let_go(self, bot):
        """Its lease as well, for which other processes wait, when the dispatch ends."""
        store = Leasing()
        session = with_session(store=store, busy="drop")
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(raising)

        with pytest.raises(Failure) as caught:
            Chat(bot).send("hi")
        assert not store.leases
        assert caught.value.__traceback__
        assert session(lambda message: "ran")(message(1)) == "ran"

    def test_no_thread_is_needed(self, bot, store, session, monkeypatch):
        """All is done by the thread that pyTelegramBotAPI gave the update."""

        def start(thread):
            raise RuntimeError("can't start new thread")

        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(session.when(n=None)(count))
        bot.register_message_handler(raising)
        monkeypatch.setattr(threading.Thread, "start", start)
        Chat(bot).send("hi")
        assert store == {"session:1:1": '{"n":1}'}

    def test_garbage_is_collected_in_between(self, bot, store, session):
        """What is locked stays locked: no collector of garbage lets go of it."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        held = []

        @bot.message_handler()
        def between(message):
            gc.collect()
            held.append(_locks.held())
            return ContinueHandling()

        bot.register_message_handler(session(count))
        Chat(bot).send("hi")
        assert held == [1]
        assert store == {"session:1:1": '{"n":1}'}

    def test_a_slow_filter_is_waited_for(self, bot, store, session):
        """However long the next filter takes, nobody comes in between."""
        store["session:1:1"] = '{"step":"b"}'
        ran, slow = [], threading.Event()
        bot.register_message_handler(session.when(step="a")(lambda m: ran.append("a")))

        def is_for(message):
            slow.set()
            time.sleep(0.05)
            return True

        bot.register_message_handler(session.when(step="b")(lambda m: ran.append("b")), func=is_for)

        def flip():
            assert slow.wait(TIMEOUT)
            with session.open(key="1:1") as data:
                data["step"] = "a"

        assert run_together(lambda: Chat(bot).send("hi"), flip) == [[], None]
        assert ran == ["b"]

    def test_data_that_cannot_be_read(self, store, session):
        """Is told as ever, and leaves nothing locked."""
        store["session:42:42"] = "{"
        with pytest.raises(Exception, match="can't be read"):
            session.when(n=1)(pytest.fail)(message())

    def test_called_by_a_handler_with_more_sessions(self):
        """What the handler around it doesn't have is let go of."""
        store = Leasing()
        session = with_session(store=store)
        room = with_session(property="room", key=keys.chat, store=store)
        inner = room(session.when(n=1)(pytest.fail))

        @session
        def outer(message):
            inner(message)
            assert len(store.leases) == 1
            with pytest.raises(SessionClosed):
                message.room["n"] = 1

        outer(message())
        assert not store.leases

    def test_called_by_a_handler(self, store, session):
        """A handler inside another one joins the session, and passes on nothing."""
        inner = session.when(n=1)(lambda message: message.session.update(inner=True))

        @session
        def outer(message):
            first = inner(message)
            message.session["n"] = 1
            inner(message)
            return first

        assert isinstance(outer(message()), ContinueHandling)
        assert store == {"session:42:42": '{"n":1,"inner":true}'}


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("where", ["memory", "redis"])
def test_a_quick_second_message_reaches_the_next_state(request, threads, where):
    """Handler A takes 50 ms to go to state B, the second message comes 5 ms after the first.

    All second messages reach the handler of state B.
    """
    store = MemoryStore()
    if where == "redis":
        from telesession.redis import RedisStore

        store = RedisStore(request.getfixturevalue("valkey"))
    session = with_session(store=store)
    bot = Bot(threads)
    reached, handled = [], threading.Semaphore(0)

    @bot.any_handler
    @session.when(step=None)
    def a(message):
        time.sleep(0.05)
        message.session["step"] = "b"
        handled.release()

    @bot.any_handler
    @session.when(step="b")
    def b(message):
        reached.append(message.from_user.id)
        handled.release()

    last = 100 + 20 * threads
    for first in range(100, last, threads // 2):
        users = range(first, first + threads // 2)
        bot.feed([payload(user) for user in users])
        time.sleep(0.005)
        bot.feed([payload(user) for user in users])
        for _ in range(threads):
            assert handled.acquire(timeout=TIMEOUT)
    bot.run([])

    assert bot.errors == []
    assert sorted(reached) == list(range(100, last))
