"""Key functions: which session an update belongs to.

A key function takes the update that the handler gets and returns a `str` or an `int`, or `None`
for "no session here". Those below find user and chat wherever an update type of the Bot API
keeps them; anything with the same attributes will do, so they need no import of `telebot`.

Chats that share an id are told apart: a chat of a business account is keyed
``"<chat id>@<business connection id>"`` and the chat of a guest query ``"<chat id>@guest"``, since
the ids of both coincide with those of chats that the bot itself is in.
"""

from typing import Any, TypeAlias

Key: TypeAlias = str | int | None

_ANONYMOUS_ADMIN = 1087968824  # @GroupAnonymousBot, the user that stands in for all of them


def user(update: Any) -> int | None:
    """The id of the user who caused the update, in whatever chat; `None` where there is none.

    Who writes, votes or reacts as a chat (a channel, an anonymous admin) is keyed by that chat's
    id, since Telegram sends the same stand-in user for all of them, or none.
    """
    who = getattr(update, "from_user", None) or getattr(update, "user", None)
    mask = getattr(update, "voter_chat", None) or getattr(update, "actor_chat", None)
    if who is not None and mask is None:
        anonymous = who.id == _ANONYMOUS_ADMIN
        mask = getattr(update, "chat" if anonymous else "sender_chat", None)
    if (mask or who) is not None:
        return (mask or who).id  # type: ignore[union-attr, no-any-return]
    source = getattr(getattr(update, "boost", update), "source", None)
    if getattr(source, "user", None) is not None:
        return source.user.id  # type: ignore[union-attr, no-any-return]
    home = getattr(update, "chat", None)
    if getattr(home, "type", None) == "private" and not _elsewhere(update):
        return home.id  # type: ignore[union-attr, no-any-return]
    return None


def chat(update: Any) -> int | str | None:
    """The id of the chat in which the update happened, for all its users; else `None`."""
    place = _place(update)
    home = getattr(place, "chat", None)
    if home is None:
        return getattr(update, "user_chat_id", None)
    elsewhere = _elsewhere(place)
    return f"{home.id}@{elsewhere}" if elsewhere else home.id


def topic(update: Any) -> int | str | None:
    """``"<chat id>:<topic id>"`` in a topic, of a forum or of a channel's direct messages.

    Elsewhere as `chat`. A reply thread in an ordinary group has a thread id too, but is no topic.
    """
    where = chat(update)
    place = _place(update)
    if type(place).__name__ == "InaccessibleMessage":
        return where  # it has no topic, and would log a warning for each question
    thread = getattr(place, "message_thread_id", None)
    if not getattr(place, "is_topic_message", True):
        thread = None
    direct = getattr(place, "direct_messages_topic", None)
    if direct is not None:
        thread = direct.topic_id
    return where if where is None or thread is None else f"{where}:{thread}"


def user_chat(update: Any) -> str | None:
    """``"<user id>:<chat id>"`` where the update has both, else `None`. The default.

    >>> from types import SimpleNamespace as Update
    >>> user_chat(Update(from_user=Update(id=42), chat=Update(id=99)))
    '42:99'
    """
    try:  # most updates are plain messages, and this is a third of the time
        if not (update.sender_chat or update.business_connection_id or update.guest_query_id):
            return f"{update.from_user.id}:{update.chat.id}"
    except AttributeError:
        pass
    who = user(update)
    where = chat(update)
    return None if who is None or where is None else f"{who}:{where}"


def user_chat_inline(update: Any) -> str | None:
    """As `user_chat`, and an inline query from the private chat with the bot shares its session.

    Telegram marks such a query with the chat type ``"sender"``. The idea is Opengram's.
    """
    if getattr(update, "chat_type", None) == "sender":
        return f"{update.from_user.id}:{update.from_user.id}"
    return user_chat(update)


def _place(update: Any) -> Any:
    """What knows the chat: the update, or the message under which a button was clicked."""
    return getattr(update, "message", None) or update


def _elsewhere(place: Any) -> str | None:
    if getattr(place, "guest_query_id", None):
        return "guest"
    return getattr(place, "business_connection_id", None)
