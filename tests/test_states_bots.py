"""8.1 `telesession.states`: bots go on unchanged, beside each other, with what they had."""

import json
import pickle
import random
import threading
import time

import pytest
import telebot
from telebot.storage import StatePickleStorage, StateRedisStorage

from telesession import MemoryStore, SessionBusy, SessionDataError, keys, with_session
from telesession.states import StateStorage, take_over
from telesession.testing import Chat
from tests import stateful
from tests.helpers import run_together, says
from tests.stateful import Form, bot_with
from tests.stores import TIMEOUT, message
from tests.test_processes import crowd, crowds, empty  # noqa: F401
from tests.worker import connect

pytestmark = pytest.mark.thorough

storage = stateful.storage
bot = stateful.bot


class TestTogether:
    @pytest.mark.parametrize("threads", [2, 8])
    def test_blocks_of_one_user(self, threads, quick_switches):
        """5.1 200 of 200, where pyTelegramBotAPI's storages keep about 100 and 25."""
        storage = StateStorage(with_session(store=MemoryStore()))
        bot = telebot.TeleBot("1:test", state_storage=storage, num_threads=threads)
        done = threading.Semaphore(0)

        @bot.message_handler(func=lambda m: True)
        def count(message):
            with bot.retrieve_data(message.from_user.id, message.chat.id) as data:
                n = data.get("n", 0)
                time.sleep(random.random() * 0.002)
                data["n"] = n + 1
            done.release()

        bot.set_state(42, "a")
        bot.process_new_messages([message() for _ in range(200)])
        for _ in range(200):
            assert done.acquire(timeout=TIMEOUT)
        bot.worker_pool.close()
        assert storage.get_data(42, 42) == {"n": 200}

    @pytest.mark.parametrize("calls", ["add_data", "set_state", "reset_data"])
    def test_all_calls_wait_for_the_block(self, calls):
        """It holds the lock; only `get_state`, which a filter asks, does not wait."""
        storage = StateStorage(with_session(store=MemoryStore(), lock_timeout=0.05))
        bot = bot_with(storage)
        bot.set_state(1, "a")
        inside, leave = threading.Event(), threading.Event()

        def block():
            with bot.retrieve_data(1):
                inside.set()
                leave.wait(TIMEOUT)

        def other():
            inside.wait(TIMEOUT)
            try:
                assert bot.get_state(1) == "a"
                more = {"add_data": {"n": 1}, "set_state": {"state": "b"}}.get(calls, {})
                with pytest.raises(SessionBusy):
                    getattr(bot, calls)(1, **more)
            finally:
                leave.set()

        assert run_together(block, other) == [None, None]

    @pytest.mark.parametrize("name", ["sqlite", "redis-store"])
    def test_processes(self, request, crowd, name):  # noqa: F811
        """4 processes, 100 blocks of one user each: there are 400."""
        url = empty(request, name)
        with connect(url) as store:
            storage = StateStorage(with_session(store=store))
            storage.set_state(42, 42, "a")
            busy = crowd(url, *[["retrievals", 100]] * 4)
            for worker in busy:
                worker.go()
            assert [worker.read() for worker in busy] == [100] * 4
            assert storage.get_data(42, 42) == {"n": 400}

    def test_a_filter_is_asked_before_the_lock(self):
        """What stays unsafe: two quick messages answer one question."""
        bot = bot_with(StateStorage(with_session(store=MemoryStore())))
        both, took = threading.Barrier(2), []

        @bot.message_handler(state=Form.name)
        def name(message):
            both.wait(TIMEOUT)
            took.append("name")
            bot.set_state(42, Form.age)

        bot.set_state(42, Form.name)
        run_together(*[lambda: bot.process_new_messages([message()])] * 2)
        assert took == ["name", "name"]

    def test_when_is_asked_under_the_lock(self):
        """The cure: the second of two quick messages answers the second question."""
        session = with_session(store=MemoryStore())
        bot = bot_with(StateStorage(session))
        took = []

        @bot.message_handler(func=lambda m: True)
        @session.when(_state=Form.name)
        def name(message):
            time.sleep(0.01)
            took.append("name")
            bot.set_state(42, Form.age)

        @bot.message_handler(func=lambda m: True)
        @session.when(_state=Form.age)
        def age(message):
            took.append("age")

        bot.set_state(42, Form.name)
        run_together(*[lambda: bot.process_new_messages([message()])] * 2)
        assert took == ["name", "age"]


class TestConversations:
    """Bots as pyTelegramBotAPI's examples are, which run unchanged but for the one line."""

    def test_states_and_filters(self, bot, store):
        """Questions by `state=` filters, `is_digit`, and a command at any question."""

        @bot.message_handler(commands=["go"])
        def go(message):
            bot.set_state(message.from_user.id, Form.name, message.chat.id)
            bot.send_message(message.chat.id, "name?")

        @bot.message_handler(state="*", commands=["stop"])
        def stop(message):
            bot.delete_state(message.from_user.id, message.chat.id)
            bot.send_message(message.chat.id, "stopped")

        @bot.message_handler(state=Form.name)
        def name(message):
            bot.set_state(message.from_user.id, Form.age, message.chat.id)
            with bot.retrieve_data(message.from_user.id, message.chat.id) as data:
                data["name"] = message.text
            bot.send_message(message.chat.id, "age?")

        @bot.message_handler(state=[Form.age], is_digit=True)
        def age(message):
            with bot.retrieve_data(message.from_user.id, message.chat.id) as data:
                bot.send_message(message.chat.id, f"{data['name']}, {message.text}, {len(data)}")
            bot.delete_state(message.from_user.id, message.chat.id)

        @bot.message_handler(state=Form.age, is_digit=False)
        def no_age(message):
            bot.send_message(message.chat.id, "a number")

        ann, bob = Chat(bot), Chat(bot, user=2, chat=-100)
        said = []
        for text in ("/go", "Ann", "old", "36", "36", "/go", "/stop"):
            said += [[*ann.send(text), *(bob.send(text) if text != "old" else [])]]
        assert said == [
            ["name?"] * 2,
            ["age?"] * 2,
            ["a number"],
            ["Ann, 36, 1"] * 2,
            [],
            ["name?"] * 2,
            ["stopped"] * 2,
        ]
        assert store == {}

    def test_state_context(self, storage, store):
        """The context that a middleware hands on: set, get, add_data, data, reset_data, delete."""
        context = pytest.importorskip("telebot.states.sync.context")
        middleware = pytest.importorskip("telebot.states.sync.middleware")
        bot = bot_with(storage, use_class_middlewares=True)
        bot.setup_middleware(middleware.StateMiddleware(bot))
        seen = []

        @bot.message_handler(commands=["go"])
        def go(message, state: context.StateContext):
            state.set(Form.name)

        @bot.message_handler(state=Form.name)
        def name(message, state: context.StateContext):
            state.set(Form.age)
            state.add_data(name=message.text)
            with state.data() as data:
                data["n"] = 1
            seen.append((state.get(), json.loads(store["session:1:-100"])))
            state.reset_data()

        @bot.message_handler(state=Form.age)
        def age(message, state_context: context.StateContext):
            with state_context.data() as data:
                seen.append(dict(data))
            state_context.delete()

        chat = Chat(bot, chat=-100)
        for text in ("/go", "Ann", "36"):
            chat.send(text)
        assert seen == [("Form:age", {"_state": "Form:age", "name": "Ann", "n": 1}), {}]
        assert store == {}

    def test_a_button(self, bot):
        """A state of the one who clicks, on a callback query as on a message."""

        @bot.message_handler(commands=["go"])
        def go(message):
            bot.set_state(message.from_user.id, "colour", message.chat.id)
            bot.send_message(
                message.chat.id, "which?", reply_markup=telebot.util.quick_markup(BLUE)
            )

        @bot.callback_query_handler(func=lambda call: True, state="colour")
        def clicked(call):
            bot.add_data(call.from_user.id, call.message.chat.id, colour=call.data)
            bot.delete_state(call.from_user.id, call.message.chat.id)
            bot.send_message(call.message.chat.id, call.data)

        chat = Chat(bot, chat=-100)
        chat.send("/go")
        clicks = [chat.click("Blue", user=user) for user in (2, 1, 1)]
        assert clicks == [[], ["blue"], []]


BLUE = {"Blue": {"callback_data": "blue"}}


class TestTakeOver:
    """What another storage has kept is brought over, once."""

    RECORDS = {  # noqa: RUF012
        (1, 1): {"state": "a", "data": {"n": 1}},
        (-100, 1): {"state": None, "data": {"list": [1, {"x": "y"}]}},
        (-100, 2): {"state": "b", "data": {}},
    }

    def check(self, old, storage, **options):
        assert take_over(old, storage, **options) == 3
        for (chat, user), record in self.RECORDS.items():
            assert storage.get_state(chat, user) == record["state"]
            assert storage.get_data(chat, user) == record["data"]

    @pytest.fixture
    def write(self, tmp_path):
        """The storage of a file with that content."""

        def write(content):
            path = tmp_path / "kept" / "states.pkl"
            path.parent.mkdir()
            path.write_bytes(pickle.dumps(content))
            return StatePickleStorage(str(path))

        return write

    def test_as_it_is_written_now(self, tmp_path, storage):
        """By the installed version itself."""
        old = StatePickleStorage(str(tmp_path / "kept" / "states.pkl"))
        for (chat, user), record in self.RECORDS.items():
            old.set_state(chat, user, record["state"])
            for key, value in record["data"].items():
                old.set_data(chat, user, key, value)
        self.check(old, storage)

    @pytest.mark.parametrize("bots", [1, 2])
    def test_files_since_4_23(self, write, storage, bots):
        """A key for each bot, connection, topic, chat and user; what is not ours stays there."""
        content = {f"telebot:7:{chat}:{user}": one for (chat, user), one in self.RECORDS.items()}
        if bots == 2:
            content["telebot:8:1:1"] = {"state": "other", "data": {"m": 1}}
        old = write(content)
        if bots == 2:
            with says(ValueError, "[7, 8]", "bot_id"):
                take_over(old, storage)
        self.check(old, storage, **({"bot_id": 7} if bots == 2 else {}))

    def test_topics_and_connections(self, write, store):
        parts = ["7:x_-1:1:1", "7:5:-100:1", "7:x:5:-100:1", "-100:1"]
        content = {f"telebot:{part}": {"state": part, "data": {}} for part in parts}
        session = with_session(store=store, key=keys.user_topic)
        assert take_over(write(content), StateStorage(session)) == 4
        found = {key: session.peek(key=key)["_state"] for key in list(session.keys())}
        named = ["1:1@x_-1", "1:-100:5", "1:-100@x:5", "1:-100"]
        assert found == dict(zip(named, parts))

    def test_files_until_4_22(self, write, storage):
        content = {}
        for (chat, user), record in self.RECORDS.items():
            content.setdefault(chat, {})[user] = record
        self.check(write(content), storage)

    def test_files_until_4_3(self, write, storage):
        """There was no chat."""
        assert take_over(write({1: self.RECORDS[1, 1]}), storage) == 1
        assert (storage.get_state(1, 1), storage.get_data(1, 1)) == ("a", {"n": 1})

    def test_a_state_as_an_object(self, write, storage):
        """Which a file has, and no session keeps."""
        take_over(write({"telebot:7:1:1": {"state": Form.name, "data": {}}}), storage)
        assert storage.get_state(1, 1) == "Form:name"

    def test_once(self, write, storage):
        """What there is already is not overwritten, and what is nobody's is left."""
        content = {"telebot:7:1:1": self.RECORDS[1, 1], "telebot:7:1:None": self.RECORDS[1, 1]}
        old = write(content)
        assert take_over(old, storage) == 1
        storage.set_data(1, 1, "n", 2)
        assert take_over(old, storage) == 0
        assert storage.get_data(1, 1) == {"n": 2}

    def test_what_can_not_be_kept(self, write, storage):
        """The error names it; after it is mended, or with another codec, the rest follows."""
        content = {1: {1: self.RECORDS[1, 1]}, 2: {2: {"state": "a", "data": {"set": {1}}}}}
        old = write(content)
        with says(SessionDataError, "session:2:2", "['set']"):
            take_over(old, storage)
        session = with_session(property="other", store=MemoryStore())
        assert take_over(old, StateStorage(session)) == 2

    def test_redis(self, valkey, valkey_port, storage):
        """By the installed version itself, and in the form that there was until 4.22."""
        old = StateRedisStorage(port=valkey_port)
        for (chat, user), record in self.RECORDS.items():
            if record["state"] is not None:
                old.set_state(chat, user, record["state"])
                for key, value in record["data"].items():
                    old.set_data(chat, user, key, value)
        kept = {"1": self.RECORDS[-100, 1]}
        valkey.set(
            "telebot_-100", json.dumps({**json.loads(valkey.get("telebot_-100") or "{}"), **kept})
        )
        valkey.set("another", "x")
        self.check(old, storage)
        assert valkey.exists("telebot_-100")
        assert take_over(old, storage) == 0
