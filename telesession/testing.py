"""Drive a bot without a network: in tests, in a terminal, anywhere.

::

    from telesession.testing import Chat

    chat = Chat(bot)  # user 1 in a private chat with the bot
    assert chat.send("hi") == ["1 messages"]

Updates go the way they go in life: JSON, `telebot.types.Update`, ``bot.process_new_updates``. The
bot's calls are answered through ``telebot.apihelper.CUSTOM_REQUEST_SENDER``, for bots that have a
`Chat` only. ``bot.download_file`` is the one call that pyTelegramBotAPI makes past that hook.
"""

import json
import re
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import telebot
from telebot import apihelper, types, util

__all__ = ["Answer", "Chat"]

Who: TypeAlias = int | Mapping[str, Any]
JSON: TypeAlias = dict[str, Any]

# Much of pyTelegramBotAPI has no annotations, which strict type checkers refuse to call.
_apihelper: Any = apihelper
_types: Any = types
_util: Any = util


class Answer(str):
    """One API call of the bot, as the text or caption that it sent, "" where there is none.

    An answered inline query is one `Answer` per result: its title, with its fields in ``params``.
    """

    method: str  #: the API method, for example "sendMessage"
    params: JSON  #: what was sent with it, files included, JSON decoded
    result: Any  #: what the bot got back, in JSON: a message with its ``message_id``, or True

    def __new__(cls, text: str, method: str, params: JSON, result: Any) -> "Answer":
        self = super().__new__(cls, text)
        self.method, self.params, self.result = method, params, result
        return self

    @property
    def buttons(self) -> list[str]:
        """The texts of its inline or reply buttons, row by row."""
        return [button["text"] for button in _buttons(self.params)]


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
        self._telegram = _telegram_of(bot)
        self.user = _user(user)
        private = {"id": self.user["id"], "first_name": self.user["first_name"]}
        self.chat = self._telegram.chat(private if chat is None else chat)
        self._query = ""

    def send(self, text: str = "", *, user: Who | None = None, **fields: Any) -> list[Answer]:
        """Send a message, with any further fields of it: ``send("hi", message_thread_id=3)``."""
        content = {**_written(text), **fields}
        return self.update(message=self._telegram.message(self.chat, self._who(user), content))

    def edit(self, text: str = "", *, user: Who | None = None, **fields: Any) -> list[Answer]:
        """Edit the newest message that the user sent here; `LookupError` if there is none."""
        who = self._who(user)
        for old in self._telegram.messages(self.chat):
            # The bot's id is its token's, so it may equal a user's.
            if old["from"]["id"] == who["id"] and not old["from"]["is_bot"]:
                kept = {name: value for name, value in old.items() if name != "entities"}
                new = {**kept, **_written(text), "edit_date": int(time.time()), **fields}
                return self.update(edited_message=self._telegram.keep(new))
        raise LookupError(f"user {who['id']} has sent no message here that could be edited")

    def click(self, button: str, *, user: Who | None = None) -> list[Answer]:
        """Click an inline button, by its label or callback data, on the newest message with it.

        Raises `LookupError`, which names the buttons that there are, if no message has it.
        """
        seen = []
        for message in self._telegram.messages(self.chat):
            for found in _buttons(message):
                data = found.get("callback_data")
                if data is not None and button in (found["text"], data):
                    content = {"message": message, "chat_instance": "1", "data": data}
                    return self._ask("callback_query", user, content)
                seen.append(found["text"])
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
        """Send any other update, in JSON: ``update(poll_answer={"user": chat.user, ...})``."""
        return self._telegram.dispatch(self._bot, fields)

    def pending(self) -> list[Answer]:
        """Take what the bot sent here outside of its handlers, from a timer or thread."""
        return self._telegram.take_pending(self.chat)

    def _who(self, user: Who | None) -> JSON:
        return self.user if user is None else _user(user)

    def _ask(self, kind: str, user: Who | None, content: JSON) -> list[Answer]:
        asked = {"id": str(self._telegram.number()), "from": self._who(user), **content}
        return self.update(**{kind: asked})


@dataclass(eq=False)
class _Run:
    """One update on its way through a bot."""

    thread: int
    answers: list[Answer] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)


class _Telegram:
    """What Telegram is to one bot: updates in, API calls out, with the chats and messages of both.

    A message is replaced, never changed: another thread may be turning it into JSON.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        number = token.partition(":")[0]
        self._me = _user({"id": int(number) if number.isdecimal() else 1, "first_name": "Bot"})
        self._me.update(is_bot=True, username="test_bot")
        self._chats: dict[int, JSON] = {}
        self._messages: dict[int, JSON] = {}
        self._pending: list[Answer] = []
        self._runs: list[_Run] = []
        self._settings: tuple[bool, Any] = (True, None)
        self._numbers = count(1)
        self._lock = threading.RLock()

    def dispatch(self, bot: Any, fields: JSON) -> list[Answer]:
        """Have the bot handle an update in this thread; give its calls, or raise its error."""
        update = _types.Update.de_json(json.dumps({"update_id": self.number(), **fields}))
        run = _Run(threading.get_ident())
        # Where a fixture has put back what was there before the `Chat`, no call may reach Telegram.
        _apihelper.CUSTOM_REQUEST_SENDER = _apihelper.CUSTOM_REQUEST_SENDER or _Hook(None)
        with self._lock:
            if not self._runs:
                self._settings = bot.threaded, bot.exception_handler
                bot.threaded, bot.exception_handler = False, self
            self._runs.append(run)
        try:
            bot.process_new_updates([update])
        except Exception as error:
            if error not in run.errors:  # a middleware's, of which only polling tells the handler
                self.handle(error)
        finally:
            with self._lock:
                self._runs.remove(run)
                if not self._runs:  # of the runs that overlap, the last sets the bot back
                    bot.threaded, bot.exception_handler = self._settings
        if run.errors:
            raise run.errors[0]
        return run.answers

    def handle(self, exception: Exception) -> bool:
        """Be the bot's ``exception_handler``: with class middlewares nothing else hears of all."""
        own, run = self._settings[1], self.run()
        handled = own is not None and bool(own.handle(exception))
        if run and not handled:
            run.errors.append(exception)
        return handled

    def run(self) -> _Run | None:
        """This thread's run, the innermost if its handler uses a `Chat` itself."""
        with self._lock:
            here = [run for run in self._runs if run.thread == threading.get_ident()]
            return here[-1] if here else None

    def number(self) -> int:
        with self._lock:
            return next(self._numbers)

    def chat(self, chat: Any) -> JSON:
        """A chat by its id, a number or text, or "@username"; one given in JSON is remembered."""
        described = _chat(chat)
        with self._lock:
            if isinstance(chat, Mapping):
                self._chats[described["id"]] = described
            return self._chats.get(described["id"], described)

    def message(self, chat: JSON, sender: JSON, content: JSON) -> JSON:
        head = {"message_id": self.number(), "date": int(time.time()), "chat": chat, "from": sender}
        return self.keep({**head, **content})

    def keep(self, message: JSON) -> JSON:
        with self._lock:
            self._messages[message["message_id"]] = message
        return message

    def messages(self, chat: JSON) -> list[JSON]:
        """The messages of a chat, newest first."""
        with self._lock:
            return [m for m in reversed(self._messages.values()) if m["chat"]["id"] == chat["id"]]

    def take_pending(self, chat: JSON) -> list[Answer]:
        def here(answer: Answer) -> bool:
            return str(answer.params.get("chat_id", chat["id"])) == str(chat["id"])

        with self._lock:
            taken = [answer for answer in self._pending if here(answer)]
            self._pending = [answer for answer in self._pending if not here(answer)]
        return taken

    def call(self, method: str, params: JSON) -> str:
        """Answer an API call, in JSON, and keep it for the update whose handler made it."""
        with self._lock:
            result = self._result(method, params)
            if not method.startswith("get"):
                run = self.run()
                kept = run.answers if run else self._pending
                kept.extend(_answers(method, params, result))
            return json.dumps({"ok": True, "result": result}, default=str)

    def _result(self, method: str, params: JSON) -> Any:
        returns = _returns(method)
        numbers = params.get("message_ids") or [params.get("message_id", 0)]
        old = [self._messages.get(int(n), {"message_id": int(n)} if n else {}) for n in numbers]
        if method == "getMe":
            return self._me
        if method == "getChat":
            return self.chat(params["chat_id"])
        if method == "sendMediaGroup":
            return [self._sent("sendMedia", {**params, "media": m}, {}) for m in params["media"]]
        if method in ("copyMessage", "copyMessages", "forwardMessage", "forwardMessages"):
            copies = [self._sent("", params, {k: m[k] for k in m.keys() - _OWN}) for m in old]
            return copies if "message_ids" in params else copies[0]
        if method in ("deleteMessage", "deleteMessages"):
            for number in numbers:
                self._messages.pop(int(number), None)
        elif "Message" in returns and "List" not in returns and "inline_message_id" not in params:
            return self._sent(method, params, old[0])
        results = {"List": [], "bool": True, "int": 1, "str": _ANYTHING["invite_link"]}
        for name, result in results.items():
            if name in returns:
                return result
        return {**self._anything(params), **old[0].get("poll", {})}

    def _sent(self, method: str, params: JSON, old: JSON) -> JSON:
        """The message that a call makes, out of an old one where there is one."""
        new = re.fullmatch("(?:send|editMessage)(Message|Text|Caption|ReplyMarkup)?(.*)", method)
        kind = _snake(new[2]).replace("live_location", "location") if new else ""
        if kind == "media":
            media, old = params["media"], {name: old[name] for name in old.keys() & _OWN}
            kind, params = media["type"], {**params, **media, media["type"]: media["media"]}
        content = {name: value for name, value in old.items() if name != "reply_markup" or not new}
        content.update((name, params[name]) for name in _COPIED if name in params)
        if "inline_keyboard" in (params.get("reply_markup") or {}):
            content["reply_markup"] = params["reply_markup"]
        if kind:
            given = params.get(kind)
            thing = self._anything(params)
            thing.update(given if isinstance(given, dict) else {"file_id": str(given)})
            content[kind] = [thing] if kind == "photo" else thing
        return self.message(self.chat(params.get("chat_id", 1)), self._me, content)

    def _anything(self, params: JSON) -> JSON:
        """Whatever pyTelegramBotAPI may look for in the result of a call with these params."""
        who = _user(params["user_id"]) if "user_id" in params else self._me
        values = {k: v for k, v in params.items() if isinstance(v, (str, int, float))}
        plain = {name: values[name] for name in values.keys() - _FILES}
        named = {"user": who, "creator": who, "chat": self.chat(params.get("chat_id", 1))}
        options = [
            {"persistent_id": str(number), "voter_count": 0, **_labelled(option)}
            for number, option in enumerate(params.get("options", []))
        ]
        ids = {"id": str(self.number()), "location": plain, "options": options}
        return {**_ANYTHING, **named, **plain, **ids}


@dataclass
class _Hook:
    """Answers the calls of bots that have a `Chat`; others go on where they went before."""

    before: Any

    def __call__(self, http_method: str, url: str, **request: Any) -> Any:
        *path, method = url.split("/")
        with _lock:
            known = [t for t in _telegrams.values() if {t.token, f"bot{t.token}"} & {*path}]
        if not known:
            send = self.before or _apihelper._get_req_session().request
            return send(http_method, url, **request)
        # Bots with the same token are told apart by whose handler runs here, else it is the newest.
        telegram = max(reversed(known), key=lambda telegram: telegram.run() is not None)
        sent = {**(request["params"] or {}), **(request["files"] or {})}
        params = {name: _decoded(name, value) for name, value in sent.items()}
        return _util.CustomRequestResponse(telegram.call(method, params))


_lock = threading.Lock()
_telegrams: WeakKeyDictionary[telebot.TeleBot, _Telegram] = WeakKeyDictionary()


def _telegram_of(bot: telebot.TeleBot) -> _Telegram:
    with _lock:
        if not isinstance(_apihelper.CUSTOM_REQUEST_SENDER, _Hook):
            _apihelper.CUSTOM_REQUEST_SENDER = _Hook(_apihelper.CUSTOM_REQUEST_SENDER)
        return _telegrams.setdefault(bot, _Telegram(bot.token))


def _user(user: Who) -> JSON:
    given = dict(user) if isinstance(user, Mapping) else {"id": user}
    return {"is_bot": False, "first_name": f"User {given['id']}", **given}


def _chat(chat: Any) -> JSON:
    given = dict(chat) if isinstance(chat, Mapping) else {"id": chat}
    name = str(given["id"])
    if name.startswith("@"):
        number = -(10**12) - zlib.crc32(name.encode())
        return {"id": number, "type": "channel", "title": name, "username": name[1:]}
    if int(name) > 0:
        described = {"type": "private", "first_name": f"User {name}"}
    else:
        group = "supergroup" if name.startswith("-100") else "group"
        described = {"type": group, "title": f"Group {name}"}
    return {**described, **given, "id": int(name)}


def _written(text: str) -> JSON:
    """A message's text, with the entities that Telegram finds commands in, in UTF-16 units."""
    entities = [
        {
            "type": "bot_command",
            "offset": len(text[: command.start()].encode("utf-16-le")) // 2,
            "length": len(command[0]),
        }
        for command in re.finditer(r"(?<!\S)/[a-zA-Z0-9_]+(@\w+)?", text)
    ]
    written = {"text": text, "entities": entities}
    return {name: value for name, value in written.items() if value}


def _labelled(button: Any) -> Any:
    return {"text": button} if isinstance(button, str) else button


def _buttons(message: JSON) -> list[JSON]:
    markup = message.get("reply_markup") or {}
    rows = markup.get("inline_keyboard") or markup.get("keyboard") or []
    return [_labelled(button) for row in rows for button in row]


def _decoded(name: str, value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "[") and name not in _NEVER_JSON:
        with suppress(ValueError):
            return json.loads(value)
    return value


def _snake(name: str) -> str:
    return re.sub("(?<!^)[A-Z]", lambda capital: f"_{capital[0]}", name).lower()


def _returns(method: str) -> set[str]:
    """What an API method returns: the names in pyTelegramBotAPI's annotation, or the likely."""
    function = getattr(telebot.TeleBot, _snake(method), None)
    declared = getattr(function, "__annotations__", {}).get("return")
    if declared is not None:
        return set(re.findall(r"\w+", str(declared)))
    if function is None and method.startswith("send"):
        return {"Message"}
    return set() if method.startswith("get") else {"bool"}


def _answers(method: str, params: JSON, result: Any) -> list[Answer]:
    if method == "answerInlineQuery":
        shown = [{**params, **found} for found in params["results"]]
        return [Answer(s.get("title") or s.get("caption") or "", method, s, result) for s in shown]
    media = params.get("media") or []
    parts = [params, *([media] if isinstance(media, dict) else media)]
    texts = [part[name] for part in parts for name in ("text", "caption") if part.get(name)]
    return [Answer(texts[0] if texts else "", method, params, result)]


_OWN = {"message_id", "date", "chat", "from", "reply_markup"}
_FILES = {"photo", "thumbnail", "cover", "media"}
_COPIED = {
    *("text", "caption", "entities", "caption_entities"),
    *("message_thread_id", "business_connection_id"),
}
_NEVER_JSON = {"text", "caption", "title", "description", "question", "explanation", "payload"}
# pyTelegramBotAPI's types ignore fields they don't know, so one object can stand for any of them.
_ANYTHING: JSON = {
    name: value
    for names, value in (
        ("name title description short_description question url start_parameter", ""),
        ("gifts transactions stickers boosts audios photos photo paid_media tasks blocks", []),
        ("total_count amount total_amount pending_update_count icon_color date", 0),
        ("value width height length duration star_count message_thread_id user_chat_id", 1),
        ("is_animated is_video is_enabled is_primary is_revoked is_access_restricted", False),
        ("is_anonymous has_custom_certificate creates_join_request can_manage_chat", False),
        ("can_delete_messages can_manage_video_chats can_restrict_members", False),
        ("can_promote_members can_change_info can_invite_users", False),
        ("file_id file_unique_id file_path inline_message_id", "1"),
        ("expiration_date", 1),
        ("status", "member"),
        ("type", "default"),
        ("sticker_type", "regular"),
        ("emoji", "🎲"),
        ("currency", "XTR"),
        ("invite_link", "https://t.me/+1"),
    )
    for name in names.split()
}
