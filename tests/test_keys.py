"""3.2 `telesession.keys`: every key function on every update, by the table `expected_keys`."""

import doctest
import functools
import logging
import subprocess
import sys
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import telebot
from telebot import util

import telesession
from telesession import keys, with_session
from telesession._session import NoSession
from telesession.testing import Chat
from tests import updates
from tests.expected_keys import EVERY, EVERY_FUNCTION, EXPECTED, FUNCTIONS, KNOWN, MORE, make
from tests.updates import UPDATES, VARIANTS

#: Of the rows, what `declaration` is told of: to hand on the call is what helps.
BY_BOT = {
    "message by the bot in a group",
    "message by the bot in a basic group",
    "message by the bot in a forum topic",
    "message by the bot in direct messages",
    "guest message by another bot",
    "channel post by the bot",
    "message by another bot",
}


def keys_of(update):
    return tuple(function(update) for function in FUNCTIONS)


def all_keys_of(update):
    return tuple(function(update) for function in EVERY_FUNCTION)


def plain(thing, build):
    """The same attributes on an object that is no telebot type."""
    if isinstance(thing, list):
        return [plain(item, build) for item in thing]
    if not type(thing).__module__.startswith("telebot"):
        return thing
    return build(**{name: plain(value, build) for name, value in vars(thing).items()})


def slotted(**attributes):
    return make_dataclass("Slotted", attributes, slots=True)(**attributes)


def test_every_update_has_a_row():
    assert set(EXPECTED) == {*UPDATES, *VARIANTS, *MORE}
    assert set(EXPECTED) >= set(util.update_types)


@pytest.mark.parametrize("name", EXPECTED)
def test_keys(name):
    assert keys_of(make(name)) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_user_topic_is_user_and_topic(name):
    who, _, where, per_chat, _ = EXPECTED[name]

    found = keys.user_topic(make(name))

    assert found == (None if who is None or where is None else f"{who}:{where}")
    assert (found is None) == (per_chat is None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("message in a forum topic", "42:-1001:5"),
        ("callback in a forum topic", "42:-1001:5"),
        ("message in a private topic", "42:42:5"),
        ("message by the bot in a private topic", "42:42:5"),
        ("message in direct messages", "42:-1003:42"),
        ("message in the General topic", "42:-1001"),
        ("message in a reply thread", "42:-1001"),
        ("guest message in a forum topic", "42:-1001@guest:5"),
        ("message by the bot in a forum topic", None),
        ("inline_query", None),
    ],
)
def test_user_topic_tells_topics_apart(name, expected):
    assert keys.user_topic(make(name)) == expected


def test_everyone_is_one_session_of_all_updates():
    assert {keys.everyone(make(name)) for name in KNOWN} == {"everyone"}
    assert keys.everyone(SimpleNamespace()) == "everyone"


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_told_where_a_bot_wrote_the_message(name):
    assert keys.written_by_bot(make(name)) == (name in BY_BOT)
    assert keys.written_by_bot(plain(make(name), SimpleNamespace)) == (name in BY_BOT)


CLICKS = [
    name
    for name in KNOWN
    if hasattr(getattr(make(name), "message", None), "chat")
    and getattr(make(name).message, "sender_business_bot", None) is None  # or it is the account's
]


@pytest.mark.parametrize("function", EVERY_FUNCTION)
@pytest.mark.parametrize("name", CLICKS)
def test_the_message_under_a_button_is_of_who_clicked_or_of_nobody(name, function):
    """3.2 ``menu(call.message)``, whose sender is the bot, has the session of the one who clicked;
    or there is none, and the reason is known."""
    call = make(name)

    of_message = function(call.message)

    assert of_message in (function(call), None)
    assert of_message is not None or keys.written_by_bot(call.message)
    assert function(call) is not None


@pytest.mark.parametrize("date", [0, updates.DATE], ids=["inaccessible", "fresh"])
@pytest.mark.parametrize("function", EVERY_FUNCTION)
def test_in_a_private_chat_the_user_is_the_chat(function, date):
    """3.2 Whoever wrote the message, and as long as the message is there."""
    message = {"chat": updates.PRIVATE, "message_id": 100, "date": date, "from": updates.BOT}
    call = updates.make("callback_query", {**UPDATES["callback_query"], "message": message})

    assert function(call.message) == function(call) == function(make("message"))


def test_who_clicks_is_never_taken_for_who_wrote():
    """Whatever the one who clicks is, the click is theirs."""
    call = {**EVERY["callback in a group"][1], "from": updates.BOT}

    assert keys_of(updates.make("callback_query", call))[::3] == (7, "7:-1001")


@functools.cache
def names_read():
    """The attributes that key functions look at, and that a session's property may be called."""
    read = set()

    class Watched(SimpleNamespace):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    for name in EXPECTED:
        all_keys_of(plain(make(name), Watched))
        keys.written_by_bot(plain(make(name), Watched))
    return sorted(name for name in read if not name.startswith("_"))


class Kept(dict):
    """Any other kind of dict."""


SESSIONS = {
    "empty": {},
    "session": {"id": 1, "type": "private", "user": {"id": 1}},
    "subclass": Kept(chat=1),
    "none": NoSession("not available"),
}


@pytest.mark.parametrize("present", SESSIONS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_session_on_an_update_is_no_part_of_it(name, present):
    """A property may have any name that the update has not: ``property="user"``, ``"source"``."""
    update = make(name)
    expected, by_bot = all_keys_of(update), keys.written_by_bot(update)
    free = [attribute for attribute in names_read() if not hasattr(update, attribute)]
    assert free

    for attribute in free:
        setattr(update, attribute, SESSIONS[present])
        assert (all_keys_of(update), keys.written_by_bot(update)) == (expected, by_bot), attribute
        delattr(update, attribute)
    for attribute in free:
        setattr(update, attribute, SESSIONS[present])
    assert (all_keys_of(update), keys.written_by_bot(update)) == (expected, by_bot)


@pytest.mark.parametrize("present", SESSIONS)
@pytest.mark.parametrize("name", CLICKS)
def test_nor_is_one_on_the_message_under_a_button(name, present):
    call = make(name)
    expected = all_keys_of(call)

    for attribute in names_read():
        if attribute not in vars(call.message):
            setattr(call.message, attribute, SESSIONS[present])

    assert all_keys_of(call) == expected


@pytest.mark.parametrize(
    ("property", "update_type"),
    [
        ("user", "message"),
        ("user", "channel_post"),
        ("message", "message"),
        ("source", "channel_post"),
        ("source", "chat_boost"),
        ("boost", "removed_chat_boost"),
        ("voter_chat", "message"),
        ("actor_chat", "poll_answer"),
        ("sender_chat", "message_reaction"),
        ("chat", "poll_answer"),
        ("from_user", "poll_answer"),
        ("user_chat_id", "inline_query"),
        ("business_connection_id", "chat_member"),
        ("guest_query_id", "callback_query"),
        ("direct_messages_topic", "callback_query"),
    ],
)
@pytest.mark.parametrize("function", EVERY_FUNCTION)
def test_a_handler_may_call_one_with_the_same_property(store, function, property, update_type):
    """2.5 The inner one asks for the key of an update that has its session, or none, already."""
    update = make(update_type)
    session = with_session(property=property, key=function, store=store)
    stored = [] if function(update) is None else [f"{property}:{function(update)}"]

    @session
    def inner(update):
        if isinstance(getattr(update, property), dict):
            getattr(update, property)["inner"] = True

    @session
    def outer(update):
        if isinstance(getattr(update, property), dict):
            getattr(update, property)["outer"] = True
        inner(update)

    outer(update)
    outer(update)

    assert list(store) == stored


@pytest.mark.parametrize("function", [keys.user_chat, keys.user, keys.chat, keys.user_topic])
def test_a_menu_shown_from_a_button_is_the_users_own(function, store):
    """3.2 In a private chat, ``menu(call.message)`` goes on with the session of ``/menu``."""
    bot = telebot.TeleBot("7:test", threaded=False)
    session = with_session(key=function, store=store)

    @bot.message_handler(commands=["menu"])
    @session
    def menu(message):
        message.session["seen"] = message.session.get("seen", 0) + 1
        button = telebot.types.InlineKeyboardButton("Again", callback_data="again")
        markup = telebot.types.InlineKeyboardMarkup([[button]])
        bot.send_message(message.chat.id, str(message.session["seen"]), reply_markup=markup)

    @bot.callback_query_handler(func=lambda call: True)
    @session
    def again(call):
        menu(call.message)

    ann, bob = Chat(bot, user=42), Chat(bot, user=43)

    assert ann.send("/menu") + ann.click("again") + ann.send("/menu") == ["1", "2", "3"]
    assert bob.send("/menu") + bob.click("again") == ["1", "2"]


def test_examples_in_docstrings():
    assert doctest.testmod(keys).failed == 0
    shown = [keys.user, keys.topic, keys.user_chat, keys.user_topic, keys.everyone]
    assert all(">>>" in function.__doc__ for function in shown)


@pytest.mark.parametrize("name", EXPECTED)
def test_any_object_with_the_same_attributes_will_do(name):
    assert keys_of(plain(make(name), SimpleNamespace)) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_objects_without_a_dict_will_do(name):
    assert keys_of(plain(make(name), slotted)) == EXPECTED[name]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, (None, None, None, None, None)),
        ({"from_user": SimpleNamespace(id=42)}, (42, None, None, None, None)),
        ({"chat": SimpleNamespace(id=99)}, (None, 99, 99, None, None)),
        (
            {"from_user": SimpleNamespace(id=42), "chat": SimpleNamespace(id=99)},
            (42, 99, 99, "42:99", "42:99"),
        ),
        ({"from_user": None, "chat": None}, (None, None, None, None, None)),
    ],
    ids=["nothing", "user", "chat", "user and chat", "neither"],
)
def test_an_object_needs_no_more_than_it_has(attributes, expected):
    assert keys_of(SimpleNamespace(**attributes)) == expected


@pytest.mark.parametrize("function", FUNCTIONS[1:])
def test_chats_that_share_an_id_do_not_share_a_session(function):
    """User 42's chats with the bot, with two business accounts, and as the host of a guest bot."""
    found = [
        function(make(name))
        for name in (
            "message",
            "business_message",
            "business message on another connection",
            "guest message in a private chat",
        )
    ]

    assert len(set(found)) == len(found)
    assert None not in found


@pytest.mark.parametrize("function", EVERY_FUNCTION)
def test_a_key_is_a_str_or_an_int_or_none(function):
    for name in KNOWN:
        assert type(function(make(name))) in (str, int, type(None)), name


@pytest.fixture
def telebot_log(caplog, monkeypatch):
    """What pyTelegramBotAPI logs, which by default says nothing below an error."""
    monkeypatch.setattr(telebot.logger, "propagate", True)
    with caplog.at_level(logging.DEBUG, telebot.logger.name):
        yield caplog


@pytest.mark.parametrize("function", [*EVERY_FUNCTION, keys.written_by_bot])
def test_no_deprecated_attribute_is_looked_at(function, telebot_log):
    for name in KNOWN:
        update = make(name)
        telebot_log.clear()
        function(update)
        assert telebot_log.messages == [], name


@pytest.mark.parametrize("function", [*EVERY_FUNCTION, keys.written_by_bot])
def test_nor_where_a_click_is_handed_on_as_its_inaccessible_message(function, telebot_log):
    """``show(call.message)``: a decorated handler that another one calls with the message."""
    message = make("callback on an inaccessible message").message
    telebot_log.clear()

    function(message)

    assert telebot_log.messages == []


def test_an_inaccessible_message_itself_has_a_chat_and_no_user():
    message = make("callback on an inaccessible message").message

    assert keys_of(message) == (None, -1001, -1001, None, None)
    assert keys.written_by_bot(message)


def test_importing_telesession_imports_no_client():
    """Contract 6.5, in an interpreter of its own."""
    code = (
        "import sys, telesession, telesession.keys\n"
        "print({'redis', 'sqlalchemy', 'pymongo', 'telebot'} & sys.modules.keys())"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(telesession.__file__).parents[1],  # the very package under test
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.stdout.strip(), done.stderr) == ("set()", "")
