"""Drive a bot without a network: in tests, in a terminal, anywhere.

::

    from telesession.testing import Chat

    chat = Chat(bot)  # user 1 in a private chat with the bot
    assert chat.send("hi") == ["1 messages"]

Updates go the way they go in life: JSON, `telebot.types.Update`, ``bot.process_new_updates``. The
bot's calls are answered through ``telebot.apihelper.CUSTOM_REQUEST_SENDER``, for bots that have a
`Chat` only; what a test sets there later is asked first, and may make Telegram refuse. The one call
that pyTelegramBotAPI makes past that hook is ``bot.download_file``.
"""

import inspect
import time
from typing import Any

import telebot

from telesession._telegram import JSON, Answer, Who, buttons_of, telegram_of, user_json, written

__all__ = ["Answer", "Chat"]


class Chat:
    """One chat with a bot: what a user does there, and what the bot answers.

    All that makes an update returns the `Answer`s to it: the API calls that its handlers made, in
    order, but for those that only read (get...). Handlers run in the caller's thread, whatever
    ``bot.threaded`` says, and what they raise is raised here, unless the bot's own
    ``exception_handler`` returns True for it. Chats of one bot can be used in many threads at once.

    ::

        group = Chat(bot, user=7, chat=-100)
        assert group.send("/start") == ["Hello, 7"]
        assert group.send("hi", user=8) == ["Hello, 8"]

    Args:
        bot: any `telebot.TeleBot`; ``TeleBot("1:test")`` is enough.
        user: who acts, unless a call names another: an id, or a User's JSON to give more than that.
        chat: a group's id, or a Chat's JSON; by default the user's private chat with the bot.

    Both are there as ``chat.user`` and ``chat.chat``, in JSON, to make updates with.
    """

    def __init__(self, bot: telebot.TeleBot, *, user: Who = 1, chat: Who | None = None) -> None:
        if not isinstance(bot, telebot.TeleBot):
            raise TypeError(f"bot must be a telebot.TeleBot, not {bot!r}")
        self._bot: Any = bot
        self._telegram = telegram_of(bot)
        self.user = user_json(user)
        private = {"id": self.user["id"], "first_name": self.user["first_name"]}
        self.chat = self._telegram.chat(private if chat is None else chat)
        self._query = ""

    def send(self, text: str = "", *, user: Who | None = None, **fields: Any) -> list[Answer]:
        """Send a message, with any further fields of it: ``send("hi", message_thread_id=3)``."""
        content = {**written(text), **fields}
        return self.update(message=self._telegram.message(self.chat, self._who(user), content))

    def edit(self, text: str = "", *, user: Who | None = None, **fields: Any) -> list[Answer]:
        """Edit the newest message that the user sent here; `LookupError` if there is none."""
        who = self._who(user)
        for old in self._telegram.messages(self.chat):
            # The bot's id is its token's, so it may equal a user's.
            if old["from"]["id"] == who["id"] and not old["from"]["is_bot"]:
                kept = {name: value for name, value in old.items() if name != "entities"}
                new = {**kept, **written(text), "edit_date": int(time.time()), **fields}
                return self.update(edited_message=self._telegram.keep(new))
        raise LookupError(f"user {who['id']} has sent no message here that could be edited")

    def click(self, button: str, *, user: Who | None = None) -> list[Answer]:
        """Click an inline button, by its label or callback data, on the newest message with it.

        Raises `LookupError`, which names the buttons that there are, if no message has it.
        """
        seen = []
        for message in self._telegram.messages(self.chat):
            for found in buttons_of(message):
                data = found.get("callback_data")
                if data is not None and button in (found["text"], data):
                    content = {"message": message, "chat_instance": "1", "data": data}
                    return self._ask("callback_query", user, content)
                seen.append(found["text"])
        if not button:
            there = f"There are {seen}." if seen else "There is none in this chat."
            raise LookupError(f"click which button? {there}")
        raise LookupError(f"no inline button {button!r} to click in this chat, only {seen}")

    def inline(self, query: str, *, user: Who | None = None, **fields: Any) -> list[Answer]:
        """Type an inline query in this chat, with any further fields of it: ``offset="50"``."""
        self._query = query
        chat_type = self.chat["type"].replace("private", "sender")
        content = {"query": query, "offset": "", "chat_type": chat_type, **fields}
        return self._ask("inline_query", user, content)

    def choose(self, result: Answer, *, user: Who | None = None) -> list[Answer]:
        """Choose one of the results of the last `inline`: a chosen_inline_result update."""
        content = {"result_id": result.params["id"], "query": self._query}
        return self._ask("chosen_inline_result", user, content)

    def update(self, **fields: Any) -> list[Answer]:
        """Send any other update, in JSON: ``update(poll_answer={"user": chat.user, ...})``.

        Raises `TypeError` for a kind of update that pyTelegramBotAPI doesn't know.
        """
        unknown = fields.keys() - set(inspect.signature(telebot.types.Update).parameters)
        if unknown:
            raise TypeError(f"{', '.join(sorted(unknown))}: pyTelegramBotAPI has no such update")
        return self._telegram.dispatch(self._bot, fields)

    def pending(self) -> list[Answer]:
        """Take what the bot sent here outside of its handlers, from a timer or thread."""
        return self._telegram.take_pending(self.chat)

    def _who(self, user: Who | None) -> JSON:
        return self.user if user is None else user_json(user)

    def _ask(self, kind: str, user: Who | None, content: JSON) -> list[Answer]:
        asked = {"id": str(self._telegram.number()), "from": self._who(user), **content}
        return self.update(**{kind: asked})
