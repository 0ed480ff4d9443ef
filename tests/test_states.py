"""8.1 `telesession.states`: pyTelegramBotAPI's states, kept in sessions."""

import contextlib
import enum
import inspect
import json
import random

import pytest
import telebot
from telebot.storage import StateMemoryStorage

from telesession import MemoryStore, SessionDataError, SessionUnavailable, keys, with_session
from telesession.states import StateStorage
from telesession.testing import Chat
from tests import stateful, updates
from tests.helpers import Failure, says
from tests.stateful import Form, bot_with
from tests.stores import message

pytestmark = pytest.mark.thorough

storage = stateful.storage
bot = stateful.bot

#: Those of private chats, and of two members of two groups.
PLACES = [(1, 1), (2, 2), (-100, 1), (-100, 2), (-200, 1)]

PARTS = inspect.signature(telebot.TeleBot.set_state).parameters.keys()
needs_parts = pytest.mark.skipif(
    "message_thread_id" not in PARTS, reason="this pyTelegramBotAPI has one state for each chat"
)


class TestAsThere:
    """The same calls have the same results as with pyTelegramBotAPI's own memory storage."""

    def test_the_interface(self):
        """All methods of the installed version, with its arguments, by position and by name."""
        methods = {
            name: method
            for name, method in inspect.getmembers(StateMemoryStorage, inspect.isfunction)
            if not name.startswith("_")
        }
        assert "get_interactive_data" in methods
        for name, method in methods.items():
            own = vars(StateStorage)[name]
            names = list(inspect.signature(method).parameters)
            arguments = dict.fromkeys(names, 1)
            arguments["bot_id"] = None
            inspect.signature(own).bind(*names)
            inspect.signature(own).bind(**arguments)

    @pytest.mark.parametrize("seed", range(40))
    def test_any_calls(self, seed, store):
        """Of several users in several chats, with blocks among them."""
        rng = random.Random(seed)
        ours, theirs = StateStorage(with_session(store=store)), StateMemoryStorage()
        for step in range(60):
            call, chosen = rng.choice(CALLS), rng.randrange(10**6)
            found = [
                outcome(call, storage, *rng_place, random.Random(chosen))
                for rng_place in [rng.choice(PLACES)]
                for storage in (ours, theirs)
            ]
            assert found[0] == found[1], (step, call.__name__)
            for place in PLACES:
                assert ours.get_state(*place) == theirs.get_state(*place)
                assert ours.get_data(*place) == (theirs.get_data(*place) or {})

    @needs_parts
    @pytest.mark.parametrize("seed", range(10))
    def test_topics_and_business_chats(self, seed, store):
        """Each topic, and each business connection, has a state of its own with `user_topic`."""
        rng = random.Random(seed)
        session = with_session(store=store, key=keys.user_topic)
        bots = [bot_with(StateStorage(session)), bot_with(StateMemoryStorage())]
        parts = [{}, {"message_thread_id": 5}, {"business_connection_id": "x"}]
        parts.append({**parts[1], **parts[2]})
        for _ in range(100):
            chat, user = rng.choice(PLACES)
            where = {"user_id": user, "chat_id": chat, **rng.choice(parts)}
            call = rng.choice(["set_state", "get_state", "delete_state", "reset_data"])
            more = {"state": rng.choice("abc")} if call == "set_state" else {}
            assert len({getattr(bot, call)(**where, **more) for bot in bots}) == 1

    def test_states_are_taken_as_there(self, bot, storage, store):
        """A `State` and an enumeration stand for their names; texts and numbers for themselves."""

        class Step(enum.Enum):
            one = 1

        for given, kept in [
            (Form.name, "Form:name"),
            ("a", "a"),
            (0, 0),
            (7, 7),
            (Step.one, "one"),
        ]:
            bot.set_state(1, given)
            assert bot.get_state(1) == kept
            assert json.loads(store["session:1:1"]) == {"_state": kept}
        bot.set_state(1, None)
        assert bot.get_state(1) is None
        bot.add_data(1, n=1)
        assert storage.get_data(1, 1) == {"n": 1}

    def test_without_a_state_there_is_nothing_to_add_to(self, bot, storage, store):
        """`add_data` raises `RuntimeError`, and data of a block or of `save` is not kept."""
        with says(RuntimeError, "user 1", "chat 1", "'n'", "set_state"):
            bot.add_data(1, n=1)
        with bot.retrieve_data(1) as data:
            data["n"] = 1
        assert (data, storage.save(1, 1, data), store) == ({"n": 1}, False, {})

    def test_data_without_a_block(self, bot):
        """As bots read it: a copy, which waits for nobody, and changes nothing."""
        bot.set_state(1, "a")
        bot.add_data(1, n=1, list=[1])
        found = bot.retrieve_data(1)
        found.data["list"].append(2)
        assert found.data["n"] == 1
        assert bot.retrieve_data(1).data == {"n": 1, "list": [1]}
        with bot.retrieve_data(1) as data:
            assert bot.retrieve_data(1).data == data

    def test_a_block_that_deletes_its_state(self, bot, store):
        """What is in the block stays deleted."""
        bot.set_state(1, "a")
        with bot.retrieve_data(1) as data:
            data["n"] = 1
            bot.delete_state(1)
        assert store == {}

    def test_a_block_that_sets_the_first_state(self, bot, storage):
        with bot.retrieve_data(1) as data:
            data["n"] = 1
            bot.set_state(1, "a")
        assert (bot.get_state(1), storage.get_data(1, 1)) == ("a", {"n": 1})


def set_state(storage, chat, user, rng):
    return storage.set_state(chat, user, rng.choice([Form.name, "text", 1, None]))


def delete_state(storage, chat, user, rng):
    return storage.delete_state(chat, user)


def set_data(storage, chat, user, rng):
    return storage.set_data(chat, user, rng.choice("abc"), rng.choice([1, "x", [1], {"y": 2}]))


def reset_data(storage, chat, user, rng):
    return storage.reset_data(chat, user)


def save(storage, chat, user, rng):
    if storage.get_state(chat, user) is None:
        return None  # a KeyError in old versions, as with no user
    return bool(storage.save(chat, user, {"saved": [rng.random()]})) or True


def block(storage, chat, user, rng):
    if not storage.get_data(chat, user):
        return None  # where there is no record, old versions have no dict
    with storage.get_interactive_data(chat, user) as data:
        before = json.dumps(data, sort_keys=True)
        for _ in range(rng.randrange(4)):
            key = rng.choice("abc")
            change = rng.randrange(6)
            if change == 0:
                data.pop(key, None)
            elif change == 1:
                data.clear()
            elif change == 2 and isinstance(data.get(key), list):
                data[key].append(len(data[key]))
            else:
                data[key] = rng.choice([3, [4], {"z": [5]}])
        return before


CALLS = [set_state, set_state, delete_state, set_data, set_data, reset_data, save, block, block]


def outcome(call, *arguments):
    try:
        return call(*arguments)
    except RuntimeError:
        return "RuntimeError"


class TestTheSession:
    def test_both_see_the_same(self, bot, session, store):
        """The data is the session's own; the state is one key of it, and `when` asks for it."""
        seen = []

        @bot.message_handler(commands=["start"])
        def start(message):
            bot.set_state(message.from_user.id, Form.name, message.chat.id)
            bot.add_data(message.from_user.id, message.chat.id, n=1)

        @bot.message_handler(func=lambda m: True)
        @session.when(_state=Form.name)
        def take_name(message):
            seen.append(dict(message.session))
            message.session.update(name=message.text, _state=Form.age.name)

        @bot.message_handler(state=Form.age)
        def take_age(message):
            with bot.retrieve_data(message.from_user.id, message.chat.id) as data:
                seen.append(data)

        chat = Chat(bot)
        for text in ("/start", "Ann", "36"):
            chat.send(text)
        assert seen == [{"_state": "Form:name", "n": 1}, {"n": 1, "name": "Ann"}]
        assert json.loads(store["session:1:1"]) == {"_state": "Form:age", **seen[1]}

    def test_data_of_a_session_without_a_state(self, bot, storage, session, store):
        """A handler has begun the session: there is something to add to, and no state."""
        with session.open(key="1:1") as data:
            data["n"] = 1
        bot.add_data(1, m=2)
        with bot.retrieve_data(1) as data:
            data["n"] += 1
        assert (bot.get_state(1), storage.get_data(1, 1)) == (None, {"n": 2, "m": 2})
        bot.set_state(1, "a")
        assert storage.reset_data(1, 1)
        assert json.loads(store["session:1:1"]) == {"_state": "a"}

    @pytest.mark.parametrize("empty", [True, False])
    @pytest.mark.parametrize("fails", [True, False])
    def test_a_handler_that_has_it_open(self, bot, session, store, empty, fails):
        """State, data and session are saved together, or taken back together."""
        if not empty:
            store["session:1:1"] = '{"n":1}'
        before = dict(store)

        @bot.message_handler(func=lambda m: True)
        @session
        def handler(message):
            bot.add_data(1, added=1)
            with bot.retrieve_data(1) as data:
                data["kept"] = [1]
                message.session["between"] = 1
            bot.set_state(1, "a")
            assert (bot.get_state(1), message.session["kept"]) == ("a", [1])
            message.session["own"] = 1
            if fails:
                raise Failure

        with pytest.raises(Failure) if fails else contextlib.nullcontext():
            Chat(bot).send("hi")
        all = {"added": 1, "kept": [1], "between": 1, "_state": "a", "own": 1}
        expected = before if fails else {"session:1:1": {**({} if empty else {"n": 1}), **all}}
        assert {name: json.loads(text) for name, text in store.items()} == (
            {name: json.loads(text) for name, text in expected.items()} if fails else expected
        )

    def test_deleted_in_a_handler_that_has_it_open(self, bot, session, store):
        """The session is empty then, and not begun again by the end of the block."""
        bot.set_state(1, "a")

        @session
        def handler(message):
            with bot.retrieve_data(42) as data:
                data["n"] = 1
                bot.delete_state(42)

        bot.set_state(42, "a")
        handler(message())
        assert set(store) == {"session:1:1"}

    def test_what_is_raised_in_a_block(self, bot, storage):
        """It is raised by the block, which saves nothing, nested changes included."""
        bot.set_state(1, "a")
        bot.add_data(1, list=[1])

        def fail():
            with bot.retrieve_data(1) as data:
                data["list"].append(2)
                data["n"] = 1
                bot.set_state(1, "b")
                raise Failure

        with pytest.raises(Failure):
            fail()
        assert (bot.get_state(1), storage.get_data(1, 1)) == ("a", {"list": [1]})

    def test_what_the_codec_refuses(self, bot, storage):
        """4.3 The error names the place, and the stored session stays as it was."""
        bot.set_state(1, "a")
        with says(SessionDataError, "['set']"), bot.retrieve_data(1) as data:
            data["set"] = {1}
        with says(SessionDataError, "['set']"):
            bot.add_data(1, set={1})
        assert storage.get_data(1, 1) == {}

    def test_it_expires(self):
        """4.6 With the session's ttl, which a state that is only asked for doesn't renew."""
        now = [0.0]
        session = with_session(store=MemoryStore(clock=lambda: now[0]), ttl=60)
        bot = bot_with(StateStorage(session))
        bot.set_state(1, "a")
        now[0] = 59
        assert bot.get_state(1) == "a"
        now[0] = 61
        assert bot.get_state(1) is None

    def test_a_block_inside_another(self, bot, storage):
        """Both keep what they changed."""
        bot.set_state(1, "a")
        with bot.retrieve_data(1) as outer:
            outer["outer"] = 1
            with bot.retrieve_data(1) as inner:
                inner["inner"] = 1
            bot.add_data(1, added=1)
        assert storage.get_data(1, 1) == {"outer": 1, "inner": 1, "added": 1}

    def test_what_others_change_meanwhile(self, bot, storage):
        """The block saves what it has changed itself."""
        bot.set_state(1, "a")
        bot.add_data(1, n=1)
        with bot.retrieve_data(1) as data:
            data["m"] = 1
            bot.add_data(1, n=2)
        assert storage.get_data(1, 1) == {"n": 2, "m": 1}

    def test_a_block_in_a_session_with_nothing_in_it_yet(self, bot, session, store):
        @session
        def handler(message):
            with bot.retrieve_data(42) as data:
                data["n"] = 1
            assert message.session == {"n": 1}

        handler(message())
        assert store == {"session:42:42": '{"n":1}'}

    def test_initial(self, store):
        """A new session begins as it is declared to, also where a state begins it."""
        bot = bot_with(StateStorage(with_session(store=store, initial=lambda: {"cart": []})))
        bot.set_state(1, "a")
        with bot.retrieve_data(1) as data:
            data["cart"].append("tea")
        assert json.loads(store["session:1:1"]) == {"_state": "a", "cart": ["tea"]}


class TestKeys:
    """User and chat are keyed as the key function of the declaration would key them."""

    @needs_parts
    @pytest.mark.parametrize("function", [keys.user_chat, keys.user_topic, keys.chat, keys.user])
    @pytest.mark.parametrize(
        "name",
        [
            "message",
            "message in a group",
            "message in a forum topic",
            "message in the General topic",
            "message in a reply thread",
            "message by an anonymous administrator",
            "callback in a forum topic",
            "callback in a business chat",
            "business_message",
            "chat_join_request",
        ],
    )
    def test_as_a_handler_has_it(self, function, name, store):
        """What pyTelegramBotAPI takes out of an update leads to the session of its handler."""
        from telebot.states import resolve_context

        where = {**updates.UPDATES, **{k: v[1] for k, v in updates.VARIANTS.items()}}[name]
        update = updates.make(updates.VARIANTS.get(name, (name,))[0], where)
        session = with_session(store=store, key=function)
        chat, user, *place = resolve_context(update, 7)
        connection, bot_id, thread = place
        StateStorage(session).set_state(
            chat, user, "a", connection, message_thread_id=thread, bot_id=bot_id
        )
        assert list(session.keys()) == [str(function(update))]
        assert session.peek(update) == {"_state": "a"}

    def test_a_key_function_of_ones_own(self, store):
        session = with_session(store=store, key=lambda message: f"chat{message.chat.id}")
        StateStorage(session).set_state(-100, 1, "a")
        assert StateStorage(session).get_state(-100, 2) == "a"

    def test_nobody(self, storage, store):
        """Of a count of reactions pyTelegramBotAPI knows no user: there is no state to set."""
        assert storage.get_state(-100, None) is None
        with says(SessionUnavailable, "StateCall", "user_chat"):
            storage.set_state(-100, None, "a")
        StateStorage(with_session(store=store, key=keys.chat)).set_state(-100, None, "a")
        assert list(store) == ["session:-100"]

    @needs_parts
    def test_several_bots(self, storage, store):
        """Each has a property of its own; one storage for two is refused, with the cure."""
        bot_with(storage).set_state(1, "a")
        with says(ValueError, "bot 1", "bot 2", "property"):
            bot_with(storage, "2:test").get_state(1)
        other = StateStorage(with_session(property="other", store=store))
        assert bot_with(other, "2:test").get_state(1) is None

    def test_the_name_of_the_state_is_taken(self, bot, storage):
        bot.set_state(1, "a")
        with says(ValueError, "'_state'", "another name"):
            bot.add_data(1, _state="b")
        with says(ValueError, "'_state'"), bot.retrieve_data(1) as data:
            data["_state"] = "b"
        assert bot.get_state(1) == "a"

    def test_misuse(self, store):
        for given in (store, with_session, None, MemoryStore()):
            with says(TypeError, "declaration", "StateStorage(with_session())"):
                StateStorage(given)
