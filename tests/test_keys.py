"""`telesession.keys`, contract 3.2: every key function on every update, in one table.

The rows are what the Bot API's documentation says about who and where, not what the code gives.
"""

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
from telesession import keys
from tests import updates
from tests.updates import UPDATES, VARIANTS

FUNCTIONS = (keys.user, keys.chat, keys.topic, keys.user_chat, keys.user_chat_inline)

#: More of what Telegram sends: cases in which a key function could go wrong.
MORE: dict[str, tuple[str, dict]] = {
    "channel post signed with a profile": (
        "channel_post",
        {**UPDATES["channel_post"], "from": updates.USER, "sender_chat": None},
    ),
    "reply in the General topic": (
        "message",
        {**VARIANTS["message in the General topic"][1], "message_thread_id": 99},
    ),
    "callback in direct messages": (
        "callback_query",
        {
            **UPDATES["callback_query"],
            "message": {
                **VARIANTS["message in direct messages"][1],
                "from": updates.BOT,
            },
        },
    ),
    "message in direct messages by the channel": (
        "message",
        {
            **VARIANTS["message in direct messages"][1],
            "from": updates.CHANNEL_BOT,
            "sender_chat": updates.CHANNEL,
        },
    ),
    "guest message in a forum topic": (
        "guest_message",
        {
            **VARIANTS["message in a forum topic"][1],
            "guest_query_id": "1",
        },
    ),
    "business message on another connection": (
        "business_message",
        {**UPDATES["business_message"], "business_connection_id": "connection of 44"},
    ),
    "boost from a source that is not known yet": (
        "chat_boost",
        {
            **UPDATES["chat_boost"],
            "boost": {**UPDATES["chat_boost"]["boost"], "source": {"source": "new"}},
        },
    ),
    # As the reference has it: `user` is there "if the voter isn't anonymous".
    "anonymous poll answer without a user": (
        "poll_answer",
        {k: v for k, v in VARIANTS["anonymous poll answer"][1].items() if k != "user"},
    ),
    # Undocumented: anonymous administrators act through the stand-in here too, and there is no
    # sender_chat to tell of it.
    "member removed by an anonymous administrator": (
        "chat_member",
        {**VARIANTS["other member removed"][1], "from": updates.GROUP_ANONYMOUS_BOT},
    ),
}

EVERY = {**{name: (name, payload) for name, payload in UPDATES.items()}, **VARIANTS, **MORE}

# user, chat, topic, user_chat, user_chat_inline
EXPECTED: dict[str, tuple] = {
    "message": (42, 42, 42, "42:42", "42:42"),
    "edited_message": (42, 42, 42, "42:42", "42:42"),
    # Nobody knows which administrator wrote it.
    "channel_post": (None, -1002, -1002, None, None),
    "edited_channel_post": (None, -1002, -1002, None, None),
    # An inline query tells the type of its chat, and never which chat it is.
    "inline_query": (42, None, None, None, None),
    "chosen_inline_result": (42, None, None, None, None),
    # The message under the button is the bot's, the click is the user's.
    "callback_query": (42, 42, 42, "42:42", "42:42"),
    "shipping_query": (42, None, None, None, None),
    "pre_checkout_query": (42, None, None, None, None),
    "poll": (None, None, None, None, None),
    "poll_answer": (42, None, None, None, None),
    "my_chat_member": (42, 42, 42, "42:42", "42:42"),
    "chat_member": (42, -1001, -1001, "42:-1001", "42:-1001"),
    # The chat that the user wants to join, not user_chat_id.
    "chat_join_request": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "message_reaction": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "message_reaction_count": (None, -1002, -1002, None, None),
    "removed_chat_boost": (42, -1002, -1002, "42:-1002", "42:-1002"),
    "chat_boost": (42, -1002, -1002, "42:-1002", "42:-1002"),
    # Of the user who connects the bot; user_chat_id is that user's own chat with the bot.
    "business_connection": (42, 42, 42, "42:42", "42:42"),
    "business_message": (
        42,
        "42@connection of 43",
        "42@connection of 43",
        "42:42@connection of 43",
        "42:42@connection of 43",
    ),
    "edited_business_message": (
        42,
        "42@connection of 43",
        "42@connection of 43",
        "42:42@connection of 43",
        "42:42@connection of 43",
    ),
    # Either side of the chat may have deleted them.
    "deleted_business_messages": (
        None,
        "42@connection of 43",
        "42@connection of 43",
        None,
        None,
    ),
    "purchased_paid_media": (42, None, None, None, None),
    "managed_bot": (42, None, None, None, None),
    "guest_message": (
        42,
        "-1001@guest",
        "-1001@guest",
        "42:-1001@guest",
        "42:-1001@guest",
    ),
    "subscription": (42, None, None, None, None),
    # A private chat has the id of its user.
    "stopped_message_generation": (42, 42, 42, "42:42", "42:42"),
    # Variants.
    "message in a group": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "message in a basic group": (42, -1004, -1004, "42:-1004", "42:-1004"),
    "message in a forum topic": (42, -1001, "-1001:5", "42:-1001", "42:-1001"),
    "message in the General topic": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "reply in the General topic": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "message in a reply thread": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "message in a private topic": (42, 42, "42:5", "42:42", "42:42"),
    "message in direct messages": (42, -1003, "-1003:42", "42:-1003", "42:-1003"),
    "message in direct messages by the channel": (
        -1002,
        -1003,
        "-1003:42",
        "-1002:-1003",
        "-1002:-1003",
    ),
    "message by an anonymous administrator": (
        -1001,
        -1001,
        -1001,
        "-1001:-1001",
        "-1001:-1001",
    ),
    "message as a channel": (-1002, -1001, -1001, "-1002:-1001", "-1002:-1001"),
    "message forwarded from the linked channel": (
        -1002,
        -1001,
        -1001,
        "-1002:-1001",
        "-1002:-1001",
    ),
    "channel post signed with a profile": (42, -1002, -1002, "42:-1002", "42:-1002"),
    "callback in a group": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "callback in a forum topic": (42, -1001, "-1001:5", "42:-1001", "42:-1001"),
    "callback in direct messages": (42, -1003, "-1003:42", "42:-1003", "42:-1003"),
    "callback on a channel post": (42, -1002, -1002, "42:-1002", "42:-1002"),
    "callback on an inline message": (42, None, None, None, None),
    "callback on an inaccessible message": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "callback in a business chat": (
        42,
        "42@connection of 43",
        "42@connection of 43",
        "42:42@connection of 43",
        "42:42@connection of 43",
    ),
    "inline query in the chat with the bot": (42, None, None, None, "42:42"),
    "inline query in a private chat": (42, None, None, None, None),
    "inline query in a group": (42, None, None, None, None),
    "inline query in a channel": (42, None, None, None, None),
    "inline query without a chat type": (42, None, None, None, None),
    "anonymous poll answer": (-1002, None, None, None, None),
    "anonymous poll answer without a user": (-1002, None, None, None, None),
    # The same as what that administrator writes.
    "anonymous reaction": (-1001, -1001, -1001, "-1001:-1001", "-1001:-1001"),
    "reaction in the chat with the bot": (42, 42, 42, "42:42", "42:42"),
    # Who did it, not to whom it was done.
    "bot added to a group": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "other member removed": (42, -1001, -1001, "42:-1001", "42:-1001"),
    "member removed by an anonymous administrator": (
        -1001,
        -1001,
        -1001,
        "-1001:-1001",
        "-1001:-1001",
    ),
    "boost by a gift code": (42, -1002, -1002, "42:-1002", "42:-1002"),
    "boost by a giveaway": (42, -1002, -1002, "42:-1002", "42:-1002"),
    "boost by a giveaway without a winner": (None, -1002, -1002, None, None),
    "boost from a source that is not known yet": (None, -1002, -1002, None, None),
    "removed boost without a winner": (None, -1002, -1002, None, None),
    "business message by the owner": (
        43,
        "42@connection of 43",
        "42@connection of 43",
        "43:42@connection of 43",
        "43:42@connection of 43",
    ),
    "business message on another connection": (
        42,
        "42@connection of 44",
        "42@connection of 44",
        "42:42@connection of 44",
        "42:42@connection of 44",
    ),
    "guest message in a private chat": (
        42,
        "42@guest",
        "42@guest",
        "42:42@guest",
        "42:42@guest",
    ),
    "guest message in a forum topic": (
        42,
        "-1001@guest",
        "-1001@guest:5",
        "42:-1001@guest",
        "42:-1001@guest",
    ),
    "generation stopped in a private topic": (42, 42, "42:5", "42:42", "42:42"),
}


def make(name):
    return updates.make(*EVERY[name])


def keys_of(update):
    return tuple(function(update) for function in FUNCTIONS)


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
    assert set(EXPECTED) == {*util.update_types, *VARIANTS, *MORE}


@pytest.mark.parametrize("name", EXPECTED)
def test_keys(name):
    assert keys_of(make(name)) == EXPECTED[name]


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


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_key_is_a_str_or_an_int_or_none(function):
    for name in EXPECTED:
        assert type(function(make(name))) in (str, int, type(None)), name


@pytest.fixture
def telebot_log(caplog, monkeypatch):
    """What pyTelegramBotAPI logs, which by default says nothing below an error."""
    monkeypatch.setattr(telebot.logger, "propagate", True)
    with caplog.at_level(logging.DEBUG, telebot.logger.name):
        yield caplog


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_deprecated_attribute_is_looked_at(function, telebot_log):
    for name in EXPECTED:
        update = make(name)
        telebot_log.clear()
        function(update)
        assert telebot_log.messages == [], name


@pytest.mark.parametrize("function", [keys.chat, keys.topic])
def test_nor_where_a_click_is_handed_on_as_its_inaccessible_message(function, telebot_log):
    """``show(call.message)``: a decorated handler that another one calls with the message."""
    message = make("callback on an inaccessible message").message
    telebot_log.clear()

    function(message)

    assert telebot_log.messages == []


def test_an_inaccessible_message_itself_has_a_chat_and_no_user():
    message = make("callback on an inaccessible message").message

    assert keys_of(message) == (None, -1001, -1001, None, None)


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
