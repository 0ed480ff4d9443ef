"""The update types of pyTelegramBotAPI with a session, for annotations.

::

    from telesession.types import Message


    @bot.message_handler(func=lambda m: True)
    @with_session()
    def count(message: Message) -> None:
        message.session["n"] = message.session.get("n", 0) + 1

At run time these are the classes of `telebot.types` themselves; only a type checker sees that they
have a ``session``. For a property of another name, or to say what is in the session, write such a
class of your own::

    from telebot import types
    from typing import TypedDict


    class Form(TypedDict, total=False):
        name: str
        age: int


    class FormMessage(types.Message):
        form: Form


    @bot.message_handler(func=lambda m: True)
    @with_session(property="form")
    def ask(message: FormMessage) -> None:
        message.form["age"] = 30
"""

from typing import TYPE_CHECKING, Any

from telebot import types as _types

__all__ = [
    "BusinessConnection",
    "CallbackQuery",
    "ChatJoinRequest",
    "ChatMemberUpdated",
    "ChosenInlineResult",
    "InlineQuery",
    "Message",
    "MessageReactionUpdated",
    "PollAnswer",
    "PreCheckoutQuery",
    "ShippingQuery",
]

if TYPE_CHECKING:

    class _WithSession:
        session: dict[str, Any]

    class BusinessConnection(_types.BusinessConnection, _WithSession):
        """A `telebot.types.BusinessConnection` with a session."""

    class CallbackQuery(_types.CallbackQuery, _WithSession):
        """A `telebot.types.CallbackQuery` with a session."""

    class ChatJoinRequest(_types.ChatJoinRequest, _WithSession):
        """A `telebot.types.ChatJoinRequest` with a session."""

    class ChatMemberUpdated(_types.ChatMemberUpdated, _WithSession):
        """A `telebot.types.ChatMemberUpdated` with a session."""

    class ChosenInlineResult(_types.ChosenInlineResult, _WithSession):
        """A `telebot.types.ChosenInlineResult` with a session."""

    class InlineQuery(_types.InlineQuery, _WithSession):
        """A `telebot.types.InlineQuery` with a session."""

    class Message(_types.Message, _WithSession):
        """A `telebot.types.Message` with a session."""

    class MessageReactionUpdated(_types.MessageReactionUpdated, _WithSession):
        """A `telebot.types.MessageReactionUpdated` with a session."""

    class PollAnswer(_types.PollAnswer, _WithSession):
        """A `telebot.types.PollAnswer` with a session."""

    class PreCheckoutQuery(_types.PreCheckoutQuery, _WithSession):
        """A `telebot.types.PreCheckoutQuery` with a session."""

    class ShippingQuery(_types.ShippingQuery, _WithSession):
        """A `telebot.types.ShippingQuery` with a session."""

else:
    globals().update((name, getattr(_types, name)) for name in __all__)
