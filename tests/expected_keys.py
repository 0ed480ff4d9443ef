"""The key that every key function gives for every update, in one table.

The rows are what the Bot API's documentation says about who and where, not what the code gives.
"""

from telesession import keys
from tests import updates
from tests.updates import UPDATES, VARIANTS

# Of the table's columns; `user_topic` follows from two of them.
FUNCTIONS = (keys.user, keys.chat, keys.topic, keys.user_chat, keys.user_chat_inline)
EVERY_FUNCTION = (*FUNCTIONS, keys.user_topic, keys.everyone)

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
    "member removed by a bot": (
        "chat_member",
        {**VARIANTS["other member removed"][1], "from": updates.BOT},
    ),
    # What `bot.send_message` returns, and what `call.message` and `reply_to_message` are.
    "message by the bot": ("message", {**UPDATES["message"], "from": updates.BOT}),
    "message by the bot in a private topic": (
        "message",
        {**VARIANTS["message in a private topic"][1], "from": updates.BOT},
    ),
    "message by the bot in a group": (
        "message",
        {**VARIANTS["message in a group"][1], "from": updates.BOT},
    ),
    "message by the bot in a basic group": (
        "message",
        {**VARIANTS["message in a basic group"][1], "from": updates.BOT},
    ),
    "message by the bot in a forum topic": (
        "message",
        {**VARIANTS["message in a forum topic"][1], "from": updates.BOT},
    ),
    "message by the bot in direct messages": (
        "message",
        {**VARIANTS["message in direct messages"][1], "from": updates.BOT},
    ),
    "message by the bot as the group": (
        "message",
        {**VARIANTS["message by an anonymous administrator"][1], "reply_markup": updates.BUTTON},
    ),
    "message by the bot for a business account": (
        "business_message",
        VARIANTS["callback in a business chat"][1]["message"],
    ),
    "guest message by another bot": (
        "guest_message",
        {**VARIANTS["guest message in a private chat"][1], "from": updates.BOT},
    ),
    "channel post by the bot": (
        "channel_post",
        {**UPDATES["channel_post"], "reply_markup": updates.BUTTON},
    ),
    "message by another bot": (
        "message",
        {
            **VARIANTS["message in a group"][1],
            "from": {"id": 8, "is_bot": True, "first_name": "Other"},
        },
    ),
    "message by Telegram in the chat with the bot": (
        "message",
        {**UPDATES["message"], "from": updates.TELEGRAM},
    ),
    "message through an inline bot": (
        "message",
        {**VARIANTS["message in a group"][1], "via_bot": updates.BOT},
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
    # A bot that acts is who acted; only of what it wrote it isn't the user.
    "member removed by a bot": (7, -1001, -1001, "7:-1001", "7:-1001"),
    "message by the bot": (42, 42, 42, "42:42", "42:42"),
    "message by the bot in a private topic": (42, 42, "42:5", "42:42", "42:42"),
    "message by the bot in a group": (None, -1001, -1001, None, None),
    "message by the bot in a basic group": (None, -1004, -1004, None, None),
    "message by the bot in a forum topic": (None, -1001, "-1001:5", None, None),
    "message by the bot in direct messages": (None, -1003, "-1003:42", None, None),
    "message by the bot as the group": (-1001, -1001, -1001, "-1001:-1001", "-1001:-1001"),
    # The account is a user, for whom the bot wrote it.
    "message by the bot for a business account": (
        43,
        "42@connection of 43",
        "42@connection of 43",
        "43:42@connection of 43",
        "43:42@connection of 43",
    ),
    "guest message by another bot": (None, "42@guest", "42@guest", None, None),
    "channel post by the bot": (None, -1002, -1002, None, None),
    "message by another bot": (None, -1001, -1001, None, None),
    "message by Telegram in the chat with the bot": (42, 42, 42, "42:42", "42:42"),
    "message through an inline bot": (42, -1001, -1001, "42:-1001", "42:-1001"),
}


def make(name):
    return updates.make(*EVERY[name])


#: What the installed pyTelegramBotAPI knows.
KNOWN = [name for name in EXPECTED if not updates.unknown(*EVERY[name])]
