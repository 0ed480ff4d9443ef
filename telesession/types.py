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

if TYPE_CHECKING:

    class _WithSession:
        session: dict[str, Any]

    class BotSubscriptionUpdated(_types.BotSubscriptionUpdated, _WithSession): ...

    class BusinessConnection(_types.BusinessConnection, _WithSession): ...

    class BusinessMessagesDeleted(_types.BusinessMessagesDeleted, _WithSession): ...

    class CallbackQuery(_types.CallbackQuery, _WithSession): ...

    class ChatBoostRemoved(_types.ChatBoostRemoved, _WithSession): ...

    class ChatBoostUpdated(_types.ChatBoostUpdated, _WithSession): ...

    class ChatJoinRequest(_types.ChatJoinRequest, _WithSession): ...

    class ChatMemberUpdated(_types.ChatMemberUpdated, _WithSession): ...

    class ChosenInlineResult(_types.ChosenInlineResult, _WithSession): ...

    class InlineQuery(_types.InlineQuery, _WithSession): ...

    class ManagedBotUpdated(_types.ManagedBotUpdated, _WithSession): ...

    class Message(_types.Message, _WithSession): ...

    class MessageGenerationStopped(_types.MessageGenerationStopped, _WithSession): ...

    class MessageReactionCountUpdated(_types.MessageReactionCountUpdated, _WithSession): ...

    class MessageReactionUpdated(_types.MessageReactionUpdated, _WithSession): ...

    class PaidMediaPurchased(_types.PaidMediaPurchased, _WithSession): ...

    class Poll(_types.Poll, _WithSession): ...

    class PollAnswer(_types.PollAnswer, _WithSession): ...

    class PreCheckoutQuery(_types.PreCheckoutQuery, _WithSession): ...

    class ShippingQuery(_types.ShippingQuery, _WithSession): ...

else:
    from telebot.types import *  # noqa: F403 (older versions lack some of them)
