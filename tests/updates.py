"""Updates as the Bot API documents them: one of every type, and the variants that matter for keys.

User 42 acts in all of them: in the private chat 42, the supergroup -1001, the channel -1002, or in
the channel's direct messages chat -1003. The bot is user 7, and user 43 is anyone else.
"""

import json
from typing import Any

import pytest
from telebot import types

DATE = 1_700_000_000

USER = {"id": 42, "is_bot": False, "first_name": "Ada", "username": "ada", "language_code": "en"}
OTHER = {"id": 43, "is_bot": False, "first_name": "Bob"}
BOT = {"id": 7, "is_bot": True, "first_name": "Bot", "username": "the_bot"}

# Telegram fills "from" with these, the same for everyone, when a chat is the sender.
GROUP_ANONYMOUS_BOT = {
    "id": 1087968824,
    "is_bot": True,
    "first_name": "Group",
    "username": "GroupAnonymousBot",
}
CHANNEL_BOT = {
    "id": 136817688,
    "is_bot": True,
    "first_name": "Channel",
    "username": "Channel_Bot",
}
TELEGRAM = {"id": 777000, "is_bot": False, "first_name": "Telegram"}

BUTTON = {"inline_keyboard": [[{"text": "Again", "callback_data": "again"}]]}

PRIVATE = {"id": 42, "type": "private", "first_name": "Ada", "username": "ada"}
GROUP = {"id": -1001, "type": "supergroup", "title": "Group"}
FORUM = {**GROUP, "is_forum": True}
CHANNEL = {"id": -1002, "type": "channel", "title": "Channel"}
DIRECT_MESSAGES = {
    "id": -1003,
    "type": "supergroup",
    "title": "Channel",
    "is_direct_messages": True,
}


def _message(chat: dict, sender: dict | None = USER, **fields: Any) -> dict:
    message = {"message_id": 100, "chat": chat, "date": DATE, "text": "hello", **fields}
    if sender is not None:
        message["from"] = sender
    return message


def _callback_query(**fields: Any) -> dict:
    return {"id": "1", "from": USER, "chat_instance": "2", "data": "button", **fields}


def _inline_query(**fields: Any) -> dict:
    return {"id": "1", "from": USER, "query": "cats", "offset": "", **fields}


def _member_updated(chat: dict, performer: dict, member: dict, old: str, new: str) -> dict:
    return {
        "chat": chat,
        "from": performer,
        "date": DATE,
        "old_chat_member": {"user": member, "status": old},
        "new_chat_member": {"user": member, "status": new},
    }


def _reaction(chat: dict, **actor: dict) -> dict:
    return {
        "chat": chat,
        "message_id": 100,
        **actor,
        "date": DATE,
        "old_reaction": [],
        "new_reaction": [{"type": "emoji", "emoji": "👍"}],
    }


def _chat_boost(source: dict) -> dict:
    return {
        "chat": CHANNEL,
        "boost": {
            "boost_id": "1",
            "add_date": DATE,
            "expiration_date": DATE + 86_400,
            "source": source,
        },
    }


def _removed_chat_boost(source: dict) -> dict:
    return {"chat": CHANNEL, "boost_id": "1", "remove_date": DATE, "source": source}


_ADDRESS = {
    "country_code": "GB",
    "state": "",
    "city": "London",
    "street_line1": "12 St James's Square",
    "street_line2": "",
    "post_code": "SW1Y 4JH",
}

UPDATES: dict[str, dict] = {
    "message": _message(PRIVATE),
    "edited_message": _message(PRIVATE, edit_date=DATE + 1),
    "channel_post": _message(CHANNEL, None, sender_chat=CHANNEL),
    "edited_channel_post": _message(CHANNEL, None, sender_chat=CHANNEL, edit_date=DATE + 1),
    "inline_query": _inline_query(chat_type="supergroup"),
    "chosen_inline_result": {
        "result_id": "1",
        "from": USER,
        "query": "cats",
        "inline_message_id": "AAA",
    },
    "callback_query": _callback_query(message=_message(PRIVATE, BOT)),
    "shipping_query": {
        "id": "1",
        "from": USER,
        "invoice_payload": "order",
        "shipping_address": _ADDRESS,
    },
    "pre_checkout_query": {
        "id": "1",
        "from": USER,
        "currency": "XTR",
        "total_amount": 5,
        "invoice_payload": "order",
    },
    "poll": {
        "id": "1",
        "question": "Tea?",
        "options": [
            {"persistent_id": "a", "text": "Yes", "voter_count": 1},
            {"persistent_id": "b", "text": "No", "voter_count": 0},
        ],
        "total_voter_count": 1,
        "is_closed": False,
        "is_anonymous": True,
        "type": "regular",
        "allows_multiple_answers": False,
        "allows_revoting": True,
        "members_only": False,
    },
    "poll_answer": {
        "poll_id": "1",
        "user": USER,
        "option_ids": [0],
        "option_persistent_ids": ["a"],
    },
    "my_chat_member": _member_updated(PRIVATE, USER, BOT, "kicked", "member"),
    "chat_member": _member_updated(GROUP, USER, USER, "left", "member"),
    "chat_join_request": {"chat": GROUP, "from": USER, "user_chat_id": 42, "date": DATE},
    "message_reaction": _reaction(GROUP, user=USER),
    "message_reaction_count": {
        "chat": CHANNEL,
        "message_id": 100,
        "date": DATE,
        "reactions": [{"type": {"type": "emoji", "emoji": "👍"}, "total_count": 1}],
    },
    "removed_chat_boost": _removed_chat_boost({"source": "premium", "user": USER}),
    "chat_boost": _chat_boost({"source": "premium", "user": USER}),
    "business_connection": {
        "id": "connection of 42",
        "user": USER,
        "user_chat_id": 42,
        "date": DATE,
        "rights": {"can_reply": True},
        "can_reply": True,  # before there were rights
        "is_enabled": True,
    },
    # User 42 writes to the business account of user 43: the chat has the same id as the one that
    # user 42 has with the bot, and is another chat.
    "business_message": _message(PRIVATE, business_connection_id="connection of 43"),
    "edited_business_message": _message(
        PRIVATE, business_connection_id="connection of 43", edit_date=DATE + 1
    ),
    "deleted_business_messages": {
        "business_connection_id": "connection of 43",
        "chat": PRIVATE,
        "message_ids": [100, 101],
    },
    "purchased_paid_media": {
        "from": USER,
        # Telegram sends no such field: pyTelegramBotAPI 4.37 reads the user from here, and fails on
        # what Telegram sends.
        "from_user": USER,
        "paid_media_payload": "album",
    },
    "managed_bot": {
        "user": USER,
        "bot": {"id": 8, "is_bot": True, "first_name": "Managed", "username": "managed_bot"},
    },
    "guest_message": _message(GROUP, text="@the_bot hello", guest_query_id="1"),
    "subscription": {"user": USER, "invoice_payload": "monthly", "state": "canceled"},
    "stopped_message_generation": {"chat": PRIVATE, "draft_id": 1},
}

# By name: the type of the update, and its payload.
VARIANTS: dict[str, tuple[str, dict]] = {
    "message in a group": ("message", _message(GROUP)),
    "message in a basic group": (
        "message",
        _message({"id": -1004, "type": "group", "title": "Basic group"}),
    ),
    "message in a forum topic": (
        "message",
        _message(FORUM, message_thread_id=5, is_topic_message=True),
    ),
    # The General topic leaves no trace in its messages.
    "message in the General topic": ("message", _message(FORUM)),
    # Outside of forums, the thread is the tree of replies that the message belongs to.
    "message in a reply thread": (
        "message",
        _message(
            GROUP, message_thread_id=99, reply_to_message=_message(GROUP, OTHER, message_id=99)
        ),
    ),
    "message in a private topic": (
        "message",
        _message(PRIVATE, message_thread_id=5, is_topic_message=True),
    ),
    "message in direct messages": (
        "message",
        _message(DIRECT_MESSAGES, direct_messages_topic={"topic_id": 42, "user": USER}),
    ),
    "message by an anonymous administrator": (
        "message",
        _message(GROUP, GROUP_ANONYMOUS_BOT, sender_chat=GROUP),
    ),
    "message as a channel": ("message", _message(GROUP, CHANNEL_BOT, sender_chat=CHANNEL)),
    "message forwarded from the linked channel": (
        "message",
        _message(
            GROUP,
            TELEGRAM,
            sender_chat=CHANNEL,
            is_automatic_forward=True,
            forward_origin={"type": "channel", "date": DATE, "chat": CHANNEL, "message_id": 50},
        ),
    ),
    "callback in a group": ("callback_query", _callback_query(message=_message(GROUP, BOT))),
    "callback in a forum topic": (
        "callback_query",
        _callback_query(message=_message(FORUM, BOT, message_thread_id=5, is_topic_message=True)),
    ),
    "callback on a channel post": (
        "callback_query",
        _callback_query(message=_message(CHANNEL, None, sender_chat=CHANNEL, reply_markup=BUTTON)),
    ),
    "callback on an inline message": ("callback_query", _callback_query(inline_message_id="AAA")),
    "callback on an inaccessible message": (
        "callback_query",
        _callback_query(message={"chat": GROUP, "message_id": 100, "date": 0}),
    ),
    # Sent by the bot on behalf of user 43, so that user is its sender.
    "callback in a business chat": (
        "callback_query",
        _callback_query(
            message=_message(
                PRIVATE,
                OTHER,
                sender_business_bot=BOT,
                business_connection_id="connection of 43",
            )
        ),
    ),
    "inline query in the chat with the bot": ("inline_query", _inline_query(chat_type="sender")),
    "inline query in a private chat": ("inline_query", _inline_query(chat_type="private")),
    "inline query in a group": ("inline_query", _inline_query(chat_type="group")),
    "inline query in a channel": ("inline_query", _inline_query(chat_type="channel")),
    "inline query without a chat type": ("inline_query", _inline_query()),
    # Telegram adds the user for bots that don't know of voter_chat.
    "anonymous poll answer": (
        "poll_answer",
        {
            "poll_id": "1",
            "voter_chat": CHANNEL,
            "user": CHANNEL_BOT,
            "option_ids": [0],
            "option_persistent_ids": ["a"],
        },
    ),
    "anonymous reaction": ("message_reaction", _reaction(GROUP, actor_chat=GROUP)),
    "reaction in the chat with the bot": ("message_reaction", _reaction(PRIVATE, user=USER)),
    "bot added to a group": (
        "my_chat_member",
        _member_updated(GROUP, USER, BOT, "left", "member"),
    ),
    "other member removed": (
        "chat_member",
        _member_updated(GROUP, USER, OTHER, "member", "left"),
    ),
    "boost by a gift code": ("chat_boost", _chat_boost({"source": "gift_code", "user": USER})),
    "boost by a giveaway": (
        "chat_boost",
        _chat_boost({"source": "giveaway", "giveaway_message_id": 100, "user": USER}),
    ),
    "boost by a giveaway without a winner": (
        "chat_boost",
        _chat_boost({"source": "giveaway", "giveaway_message_id": 100, "is_unclaimed": True}),
    ),
    "removed boost without a winner": (
        "removed_chat_boost",
        _removed_chat_boost({"source": "giveaway", "giveaway_message_id": 0}),
    ),
    "business message by the owner": (
        "business_message",
        _message(PRIVATE, OTHER, business_connection_id="connection of 43"),
    ),
    # The chat is the one that user 42 has with somebody else, whatever its id here.
    "guest message in a private chat": (
        "guest_message",
        _message(PRIVATE, text="@the_bot hello", guest_query_id="1"),
    ),
    "generation stopped in a private topic": (
        "stopped_message_generation",
        {"chat": PRIVATE, "message_thread_id": 5, "draft_id": 1},
    ),
}


#: What key functions read and not every version of pyTelegramBotAPI has.
_FIELDS = {
    *("business_connection_id", "direct_messages_topic", "guest_query_id", "voter_chat"),
    *("actor_chat", "sender_business_bot", "user_chat_id"),
}


def make(update_type: str, payload: dict) -> Any:
    """Parse a payload, and return what pyTelegramBotAPI hands to the handlers of its type.

    Skips the test where the installed version doesn't know such an update.
    """
    reason = unknown(update_type, payload)
    if reason:
        pytest.skip(reason)
    return getattr(_parsed(update_type, payload), update_type)


def unknown(update_type: str, payload: dict) -> str:
    """What the installed pyTelegramBotAPI doesn't know of an update; empty if it knows all."""
    update = _parsed(update_type, payload)
    found = getattr(update, update_type, None)
    parts = [(update, {update_type}), (found, payload.keys())]
    if "message" in payload:
        parts.append((getattr(found, "message", None), payload["message"].keys()))
    for part, names in parts:
        for name in names & {update_type, *_FIELDS}:
            if not hasattr(part, name):
                return f"this pyTelegramBotAPI's {type(part).__name__} has no {name}"
    return ""


def _parsed(update_type: str, payload: dict) -> Any:
    # As text: parsed from a dict, objects would share parts of the payload, and alter them.
    return types.Update.de_json(json.dumps({"update_id": 1, update_type: payload}))
