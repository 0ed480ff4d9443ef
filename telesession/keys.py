"""Key functions: which session an update belongs to. `_options` makes the session's name of a key.

A key function takes the update that the handler gets and returns a `str` or an `int`, or `None`
for "no session here". The functions below find user and chat wherever an update type of the Bot
API has them; they read attributes only, so they need no import of `telebot`. They ignore attributes
that telesession set on the update: a session may be called ``user``.

Chats that share an id are told apart: a chat of a business account is keyed
``"<chat id>@<business connection id>"`` and the chat of a guest query ``"<chat id>@guest"``, since
the ids of both coincide with those of chats that the bot itself is in.
"""

from typing import Any, TypeAlias

from telesession._session import NoSession
from telesession.errors import SessionUnavailable

Key: TypeAlias = str | int | None

_ANONYMOUS_ADMIN = 1087968824  # @GroupAnonymousBot, the user that stands in for all of them


def user(update: Any) -> int | None:
    """The id of the user who caused the update, in whatever chat; `None` if it names no user.

    That is ``from_user`` or ``user``: the user who wrote, clicked, asked, paid, voted, reacted, or
    changed a member's status; for a boost, ``source.user``.

    In a private chat the user is the chat, whoever wrote the message: a message that the bot sent,
    such as ``call.message``, belongs to that user's session. In other chats a message that a bot
    wrote names no user: only the call knows which member clicked on it. A message that a bot wrote
    for a business account names that account.

    A user who writes, votes or reacts as a chat (``sender_chat``, ``voter_chat``, ``actor_chat``: a
    channel, an anonymous admin) is keyed by that chat's id, since Telegram sends the same stand-in
    user for all such users, or none. A channel post without ``from_user`` names no user.

    >>> from types import SimpleNamespace as Any
    >>> bot, group = Any(id=7, is_bot=True), Any(id=-100, type="supergroup")
    >>> message = Any(from_user=bot, chat=group)
    >>> click = Any(from_user=Any(id=42, is_bot=False), message=message)
    >>> user(click), user(message)
    (42, None)
    >>> user(Any(from_user=bot, chat=Any(id=42, type="private")))
    42
    """
    try:  # most updates are plain messages
        if not (update.business_connection_id or update.sender_chat or update.guest_query_id):
            if update.chat.type == "private":
                return update.chat.id  # type: ignore[no-any-return]
            if not update.from_user.is_bot:
                return update.from_user.id  # type: ignore[no-any-return]
    except (AttributeError, SessionUnavailable):
        pass
    home = _from_telegram(update, "chat")
    if getattr(home, "type", None) == "private" and not _elsewhere(update):
        return home.id  # type: ignore[no-any-return]
    if _is_inaccessible(update):
        return None
    who = _from_telegram(update, "from_user") or _from_telegram(update, "user")
    mask = _from_telegram(update, "voter_chat") or _from_telegram(update, "actor_chat")
    if who is None:
        who = getattr(
            _from_telegram(_from_telegram(update, "boost", update), "source"), "user", None
        )
    elif home is not None and mask is None:
        mask = home if who.id == _ANONYMOUS_ADMIN else _from_telegram(update, "sender_chat")
        is_message = _from_telegram(update, "old_chat_member") is None
        if mask is None and is_message and getattr(who, "is_bot", None) is True:
            return None
    found = mask or who
    return None if found is None else found.id


def chat(update: Any) -> int | str | None:
    """The id of the chat in which the update happened, for all its users; else `None`.

    That is ``chat``; for a click, ``message.chat``, which a message sent in inline mode doesn't
    have; for a business connection, ``user_chat_id``. Inline queries, payments and poll answers
    name no chat.
    """
    try:  # most updates are plain messages
        if not (update.business_connection_id or update.guest_query_id):
            return update.chat.id  # type: ignore[no-any-return]
    except (AttributeError, SessionUnavailable):
        pass
    place = _place(update)
    home = _from_telegram(place, "chat")
    if home is None:
        return _from_telegram(update, "user_chat_id")  # type: ignore[no-any-return]
    elsewhere = _elsewhere(place)
    return f"{home.id}@{elsewhere}" if elsewhere else home.id


def topic(update: Any) -> int | str | None:
    """``"<chat id>:<topic id>"`` in a topic, of a forum or of a channel's direct messages.

    Elsewhere as `chat`. The topic is ``message_thread_id``, or ``direct_messages_topic``. A reply
    thread in an ordinary group has a thread id too, but is no topic (``is_topic_message``).

    >>> from types import SimpleNamespace as Any
    >>> topic(Any(chat=Any(id=-100), message_thread_id=5, is_topic_message=True))
    '-100:5'
    """
    where = chat(update)
    place = _place(update)
    if _is_inaccessible(place):
        return where  # it has no topic, and logs a warning for each attribute that is read
    thread = _from_telegram(place, "message_thread_id")
    if not _from_telegram(place, "is_topic_message", True):
        thread = None
    direct = _from_telegram(place, "direct_messages_topic")
    if direct is not None:
        thread = direct.topic_id
    return where if where is None or thread is None else f"{where}:{thread}"


def user_chat(update: Any) -> str | None:
    """``"<user id>:<chat id>"`` where the update has both, else `None`. The default.

    >>> from types import SimpleNamespace as Any
    >>> user_chat(Any(from_user=Any(id=42), chat=Any(id=99)))
    '42:99'
    """
    try:  # most updates are plain messages, for which this takes a quarter of the time
        if not (update.business_connection_id or update.sender_chat or update.guest_query_id):
            home = update.chat
            if home.type == "private":
                who = str(home.id)
                return f"{who}:{who}"
            writer = update.from_user
            if not writer.is_bot:
                return f"{writer.id}:{home.id}"
    except (AttributeError, SessionUnavailable):
        pass
    return _pair(user(update), chat(update))


def user_topic(update: Any) -> str | None:
    """``"<user id>:<chat id>:<topic id>"`` in a topic, and elsewhere as `user_chat`.

    >>> from types import SimpleNamespace as Any
    >>> user_topic(Any(from_user=Any(id=42), chat=Any(id=-100), message_thread_id=5))
    '42:-100:5'
    """
    return _pair(user(update), topic(update))


def user_chat_inline(update: Any) -> str | None:
    """As `user_chat`, and an inline query from the private chat with the bot has that chat's key.

    Telegram marks such a query with the ``chat_type`` ``"sender"``. The idea comes from Opengram.

    >>> from types import SimpleNamespace as Any
    >>> user_chat_inline(Any(from_user=Any(id=42), chat_type="sender"))
    '42:42'
    """
    if getattr(update, "chat_type", None) == "sender":
        return f"{update.from_user.id}:{update.from_user.id}"
    return user_chat(update)


def everyone(update: Any) -> str:
    """One session for the whole bot, for every update, even if it names neither user nor chat.

    Handlers with this key run one at a time, for updates of all users.

    >>> everyone(object())
    'everyone'
    """
    return "everyone"


def written_by_bot(update: Any) -> bool:
    """Whether the update names no user because a bot wrote the message, as it wrote `call.message`.

    Then hand on the call, as in ``menu(call)``, or use ``open(key=...)``. A message that is not
    accessible any more comes only with a call, and of the messages without a sender (channel
    posts) only those of a bot have buttons.
    """
    if user(update) is not None:
        return False
    return (
        _is_inaccessible(update)
        or _from_telegram(update, "from_user") is not None
        or _from_telegram(update, "reply_markup") is not None
    )


def _is_inaccessible(update: Any) -> bool:
    """Whether only the chat is left of a message; reading its other attributes logs a warning.

    Versions of pyTelegramBotAPI before 4.15 have no type for such messages.
    """
    if type(update).__name__ == "InaccessibleMessage":
        return True
    return _from_telegram(update, "date") == 0 and _from_telegram(update, "from_user") is None


def _place(update: Any) -> Any:
    """The object with the chat: the update, or the message under which a button was clicked."""
    return _from_telegram(update, "message") or update


def _elsewhere(place: Any) -> str | None:
    if _from_telegram(place, "guest_query_id"):
        return "guest"
    return _from_telegram(place, "business_connection_id")  # type: ignore[no-any-return]


def _pair(who: int | None, where: int | str | None) -> str | None:
    return None if who is None or where is None else f"{who}:{where}"


def _from_telegram(update: Any, name: str, default: Any = None) -> Any:
    """An attribute that Telegram sent, not one that telesession set; else ``default``."""
    value = getattr(update, name, default)
    return default if value is not None and isinstance(value, (dict, NoSession)) else value
