"""Drive a bot without a network, in tests or a terminal; `_telegram` has the fake Telegram.

::

    from telesession.testing import Chat

    chat = Chat(bot)  # user 1 in a private chat with the bot
    assert chat.send("hi") == ["1 messages"]

Updates take the usual path: JSON, `telebot.types.Update`, ``bot.process_new_updates``. Calls of
bots that have a `Chat` are answered through ``telebot.apihelper.CUSTOM_REQUEST_SENDER``; a function
that a test sets there later is asked first. ``bot.download_file`` is answered, too.
"""

import contextlib
import inspect
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import telebot

from telesession._telegram import (
    FILES,
    JSON,
    Answer,
    Who,
    buttons_of,
    snake,
    telegram_of,
    user_json,
    written,
)

__all__ = ["Answer", "Chat"]


class Chat:
    """One chat with a bot: acts of users in it, and the bot's answers.

    Methods that make an update return the `Answer`s to it: the API calls of its handlers, in order,
    except for those that only read (get...). Handlers run in the caller's thread, whatever
    ``bot.threaded`` says, and their exceptions are raised here, unless the bot's own
    ``exception_handler`` returns True for them. Many threads can use chats of one bot at once.

    ::

        group = Chat(bot, user=7, chat=-100)
        assert group.send("/start") == ["Hello, 7"]
        assert group.send("hi", user=8) == ["Hello, 8"]

    Args:
        bot: any `telebot.TeleBot`; ``TeleBot("1:test")`` is enough. Its id is the number in the
            token, but not 1, which is the default user's: then the bot has another id.
        user: the acting user, unless a call names another one: an id, or a User's JSON.
        chat: a group's id, or a Chat's JSON; by default the user's private chat with the bot.

    Both are available as ``chat.user`` and ``chat.chat``, in JSON, to make updates with.
    """

    def __init__(self, bot: telebot.TeleBot, *, user: Who = 1, chat: Who | None = None) -> None:
        if not isinstance(bot, telebot.TeleBot):
            raise TypeError(f"bot must be a telebot.TeleBot, not {bot!r}")
        self._bot: Any = bot
        self._telegram = telegram_of(bot)
        self.user = user_json(user)
        names = ("id", "first_name", "last_name", "username")
        private = {name: self.user[name] for name in names if name in self.user}
        self.chat = self._telegram.chat(private if chat is None else chat)
        self._query = ""

    @property
    def messages(self) -> list[JSON]:
        """All messages of this chat, the users' and the bot's, in JSON, oldest first."""
        return self._telegram.messages(self.chat)

    def send(self, text: str = "", *, user: Who | None = None, **fields: Any) -> list[Answer]:
        """Send a message, with any further fields: ``send("hi", message_thread_id=3)``.

        ::

            chat.send("Look!", photo=b"...")  # the text is its caption
            chat.send(document=Path("cv.pdf"))
            chat.send(contact="+44123")  # the user's own
            chat.send("Yes", reply_to_message=chat.messages[-1])  # or an `Answer`

        A file (photo, document, video, audio, voice, ...) is given as bytes, a path, an open file
        or a pair of a name and one of these, and the bot can download it; or as the ``file_id`` of
        a file that was sent before; or in JSON.
        """
        return self._send([self._written(text, user, fields)])

    def album(
        self,
        files: Sequence[Any],
        text: str = "",
        *,
        user: Who | None = None,
        **fields: Any,
    ) -> list[Answer]:
        """Send files as one album: photos, or others by their kind, ``[{"video": b"..."}]``.

        Each is a message of its own. The text is the caption of the first.
        """
        group = {**fields, "media_group_id": str(self._telegram.number())}
        kinds = [file if isinstance(file, Mapping) else {"photo": file} for file in files]
        captions = [text, *[""] * len(kinds)]
        return self._send(
            [self._written(each, user, {**group, **kind}) for each, kind in zip(captions, kinds)]
        )

    def message(
        self, text: str = "", *, user: Who | None = None, **fields: Any
    ) -> telebot.types.Message:
        """The message that `send` would send, unsent: for functions that take one, such as `peek`.

        ``session.peek(chat.message(user=8))`` looks at the session that user 8 has in this chat,
        and ``session.key(chat.message(user=8))`` is its key.
        """
        parse: Any = telebot.types.Message.de_json
        return parse(json.dumps(self._written(text, user, fields)))  # type: ignore[no-any-return]

    def edit(self, text: str = "", *, user: Who | None = None, **fields: Any) -> list[Answer]:
        """Edit the newest message that the user sent here; `LookupError` if there is none."""
        who = self._who(user)
        for old in reversed(self.messages):
            sender = old.get("from", who)
            # A test may give a user the bot's id.
            if sender["id"] == who["id"] and not sender["is_bot"]:
                kept = {k: v for k, v in old.items() if k not in ("entities", "caption_entities")}
                new = {"edit_date": int(time.time()), **self._content(text, who, fields, old)}
                return self._send([{**kept, **new}], "edited_")
        raise LookupError(f"user {who['id']} has sent no message here that could be edited")

    def click(
        self,
        button: str = "",
        *,
        data: str | None = None,
        message: Answer | JSON | None = None,
        user: Who | None = None,
    ) -> list[Answer]:
        """Click an inline button, by its label or callback data, on the newest message with it.

        Args:
            button: the label or the data. If no message has such a button, that is a `LookupError`,
                which names the buttons of the chat; or
            data: the data alone. If no message has such a button, one from before a restart has.
            message: the message to click on, an `Answer` or its ``result``; it may be an older one,
                or one from before a restart.
            user: the user who clicks.
        """
        shown = [self._telegram.known(_json(message))] if message else self.messages[::-1]
        seen = []
        for each in shown:
            for found in buttons_of(each):
                held = found.get("callback_data")
                if held is not None and (held == data or button in (found["text"], held)):
                    return self._click(each, held, user)
                seen.append(found["text"])
        if data is not None:
            old = shown[0] if message else self._telegram.old(self.chat, data)
            return self._click(old, data, user)
        if not button:
            there = f"There are {seen}." if seen else "There is none in this chat."
            raise LookupError(f"click which button? {there}")
        raise LookupError(f"no inline button {button!r} to click in this chat, only {seen}")

    def inline(self, query: str, *, user: Who | None = None, **fields: Any) -> list[Answer]:
        """Type an inline query in this chat, with any further fields: ``offset="50"``."""
        self._query = query
        chat_type = self.chat["type"].replace("private", "sender")
        content = {"query": query, "offset": "", "chat_type": chat_type, **fields}
        return self._ask("inline_query", user, content)

    def choose(self, result: Answer, *, user: Who | None = None) -> list[Answer]:
        """Choose one of the results of the last `inline`: a chosen_inline_result update."""
        chosen = {"result_id": result.params["id"], "query": self._query, "from": self._who(user)}
        return self.update(chosen_inline_result=chosen)

    def update(self, **fields: Any) -> list[Answer]:
        """Send any other update, in JSON: ``update(poll_answer={"user": chat.user, ...})``.

        Raises `TypeError` for a kind of update that pyTelegramBotAPI doesn't know.
        """
        unknown = fields.keys() - set(inspect.signature(telebot.types.Update).parameters)
        if unknown:
            raise TypeError(f"{', '.join(sorted(unknown))}: pyTelegramBotAPI has no such update")
        return self._telegram.dispatch(self._bot, fields)

    def pending(self) -> list[Answer]:
        """Take the answers that the bot sent here outside of handlers, from timers or threads."""
        return self._telegram.take_pending(self.chat)

    def together(self, *acts: str | Callable[[], list[Answer]]) -> list[list[Answer]]:
        """Have several updates handled at once, as by a bot's worker threads, to provoke races.

        ::

            chat.together("Ann", "30")  # two quick messages
            chat.together(lambda: chat.click("Buy"), lambda: other_chat.click("Buy"))

        Args:
            acts: texts to send, or functions; each is run in a thread of its own.

        Returns the answers of each act, in their order, when all have ended; an exception in an act
        is raised here. The threads switch as often as Python can, and at each call to Telegram they
        wait for each other for up to a tenth of a second, so that handlers without a lock overlap.
        """
        start, meeting = threading.Barrier(len(acts)), threading.Barrier(len(acts))

        def run(act: str | Callable[[], list[Answer]]) -> list[Answer]:
            start.wait()
            try:
                return self.send(act) if isinstance(act, str) else act()
            finally:
                meeting.abort()

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        self._telegram.meeting = meeting
        try:
            with ThreadPoolExecutor(len(acts)) as threads:
                running = [threads.submit(run, act) for act in acts]
            return [each.result() for each in running]
        finally:
            sys.setswitchinterval(interval)
            self._telegram.meeting = None

    @contextlib.contextmanager
    def refuse(
        self,
        method: str,
        description: str = "Forbidden: bot was blocked by the user",
        *,
        code: int = 403,
        **parameters: Any,
    ) -> Iterator[None]:
        """Have Telegram refuse the bot's calls in this chat: they raise `ApiTelegramException`.

        ::

            with chat.refuse("send_message"):
                chat.send("/news")
            with chat.refuse("send_message", "Too Many Requests", code=429, retry_after=5):
                chat.send("/news")

        Args:
            method: the method's name in the Bot API, "sendMessage", or in pyTelegramBotAPI,
                "send_message" (which ``bot.reply_to`` calls).
            description: Telegram's text of the error.
            code: the ``error_code``, an HTTP status.
            parameters: the error's ``parameters``, such as ``retry_after``.
        """
        name = snake(method)
        if not hasattr(telebot.apihelper, name):
            raise TypeError(
                f"{method!r} is no method of the Bot API that could be refused, as 'sendMessage' is"
            )
        error = {"error_code": code, "description": description}
        refusal = self.chat, name, {**error, **({"parameters": parameters} if parameters else {})}
        self._telegram.refusals.append(refusal)
        try:
            yield
        finally:
            self._telegram.refusals.remove(refusal)

    def _who(self, user: Who | None) -> JSON:
        return self.user if user is None else user_json(user)

    def _written(self, text: str, user: Who | None, fields: JSON) -> JSON:
        who = self._who(user)
        return self._telegram.message(self.chat, who, self._content(text, who, fields))

    def _content(self, text: str, who: JSON, given: JSON, old: JSON | None = None) -> JSON:
        """The fields of a message, or of an edit of ``old``, from the fields that a test gives."""
        content = dict(given)
        if "reply_to_message" in content:
            content["reply_to_message"] = _json(content["reply_to_message"])
        if isinstance(content.get("contact"), str):
            own = {name: who[name] for name in ("first_name", "last_name") if name in who}
            content["contact"] = {"phone_number": given["contact"], **own, "user_id": who["id"]}
        for kind in FILES & content.keys():
            content.update(self._telegram.file(kind, content.pop(kind)))
        if FILES & {*content, *(old or ())}:
            return {**written(text or content.pop("caption", ""), "caption"), **content}
        return {**written(text), **content}

    def _send(self, messages: list[JSON], kind: str = "") -> list[Answer]:
        kind += "channel_post" if self.chat["type"] == "channel" else "message"
        for message in messages:
            self._telegram.keep(message)
        return [answer for each in messages for answer in self.update(**{kind: each})]

    def _click(self, message: JSON, data: str, user: Who | None) -> list[Answer]:
        content = {"message": message, "chat_instance": str(self.chat["id"]), "data": data}
        return self._ask("callback_query", user, content)

    def _ask(self, kind: str, user: Who | None, content: JSON) -> list[Answer]:
        asked = {"id": str(self._telegram.number()), "from": self._who(user), **content}
        return self.update(**{kind: asked})


def _json(message: Answer | JSON) -> JSON:
    return message.result if isinstance(message, Answer) else message
