"""The update types of pyTelegramBotAPI with a session, for annotations.

::

    from telesession.types import Message


    @bot.message_handler(func=lambda m: True)
    @with_session()
    def count(message: Message) -> None:
        message.session["n"] = message.session.get("n", 0) + 1

At run time these are the classes of `telebot.types` themselves; only a type checker sees their
``session``. For a property of another name, or for a session with typed keys, write such a class
of your own; the type of ``initial`` is also that of `open`, `peek` and `when`::

    from telebot import types
    from typing import TypedDict


    class Form(TypedDict, total=False):
        name: str
        age: int


    class FormMessage(types.Message):
        form: Form


    form = with_session(property="form", initial=Form)


    @bot.message_handler(func=lambda m: True)
    @form
    def ask(message: FormMessage) -> None:
        message.form["age"] = 30


    with form.open(key="42:42") as data:
        data["age"] = 31
"""

from typing import TYPE_CHECKING, Any

from telebot import types as _types

__all__ = [
    "BotSubscriptionUpdated",
    "BusinessConnection",
    "BusinessMessagesDeleted",
    "CallbackQuery",
    "ChatBoostRemoved",
    "ChatBoostUpdated",
    "ChatJoinRequest",
    "ChatMemberUpdated",
    "ChosenInlineResult",
    "InlineQuery",
    "ManagedBotUpdated",
    "Message",
    "MessageGenerationStopped",
    "MessageReactionCountUpdated",
    "MessageReactionUpdated",
    "PaidMediaPurchased",
    "Poll",
    "PollAnswer",
    "PreCheckoutQuery",
    "ShippingQuery",
]

if TYPE_CHECKING:

    class _WithSession:
        session: dict[str, Any]

    class BotSubscriptionUpdated(_types.BotSubscriptionUpdated, _WithSession):
        """A `telebot.types.BotSubscriptionUpdated` with a session."""

    class BusinessConnection(_types.BusinessConnection, _WithSession):
        """A `telebot.types.BusinessConnection` with a session."""

    class BusinessMessagesDeleted(_types.BusinessMessagesDeleted, _WithSession):
        """A `telebot.types.BusinessMessagesDeleted` with a session."""

    class CallbackQuery(_types.CallbackQuery, _WithSession):
        """A `telebot.types.CallbackQuery` with a session."""

    class ChatBoostRemoved(_types.ChatBoostRemoved, _WithSession):
        """A `telebot.types.ChatBoostRemoved` with a session."""

    class ChatBoostUpdated(_types.ChatBoostUpdated, _WithSession):
        """A `telebot.types.ChatBoostUpdated` with a session."""

    class ChatJoinRequest(_types.ChatJoinRequest, _WithSession):
        """A `telebot.types.ChatJoinRequest` with a session."""

    class ChatMemberUpdated(_types.ChatMemberUpdated, _WithSession):
        """A `telebot.types.ChatMemberUpdated` with a session."""

    class ChosenInlineResult(_types.ChosenInlineResult, _WithSession):
        """A `telebot.types.ChosenInlineResult` with a session."""

    class InlineQuery(_types.InlineQuery, _WithSession):
        """An `telebot.types.InlineQuery` with a session."""

    class ManagedBotUpdated(_types.ManagedBotUpdated, _WithSession):
        """A `telebot.types.ManagedBotUpdated` with a session."""

    class Message(_types.Message, _WithSession):
        """A `telebot.types.Message` with a session."""

    class MessageGenerationStopped(_types.MessageGenerationStopped, _WithSession):
        """A `telebot.types.MessageGenerationStopped` with a session."""

    class MessageReactionCountUpdated(_types.MessageReactionCountUpdated, _WithSession):
        """A `telebot.types.MessageReactionCountUpdated` with a session."""

    class MessageReactionUpdated(_types.MessageReactionUpdated, _WithSession):
        """A `telebot.types.MessageReactionUpdated` with a session."""

    class PaidMediaPurchased(_types.PaidMediaPurchased, _WithSession):
        """A `telebot.types.PaidMediaPurchased` with a session."""

    class Poll(_types.Poll, _WithSession):
        """A `telebot.types.Poll` with a session."""

    class PollAnswer(_types.PollAnswer, _WithSession):
        """A `telebot.types.PollAnswer` with a session."""

    class PreCheckoutQuery(_types.PreCheckoutQuery, _WithSession):
        """A `telebot.types.PreCheckoutQuery` with a session."""

    class ShippingQuery(_types.ShippingQuery, _WithSession):
        """A `telebot.types.ShippingQuery` with a session."""

else:
    # Older versions of pyTelegramBotAPI lack some of them.
    globals().update((name, getattr(_types, name)) for name in __all__ if hasattr(_types, name))
