"""What Telegram is to a bot that is driven without a network; `telesession.testing` is the door.

Half of this makes plausible results for API calls, so that pyTelegramBotAPI can parse them.
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
        return [button["text"] for button in buttons_of(self.params)]


@dataclass(eq=False)
class _Run:
    """One update on its way through a bot."""

    thread: int
    answers: list[Answer] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)


class Telegram:
    """What Telegram is to one bot: updates in, API calls out, with the chats and messages of both.

    A message is replaced, never changed: another thread may be turning it into JSON.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        number = token.partition(":")[0]
        self._me = user_json({"id": int(number) if number.isdecimal() else 1, "first_name": "Bot"})
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
            raise run.errors.pop(0)  # so that the error, and what it holds, is not kept here
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
        chat = self.chat(params.get("chat_id", 1))
        if "message_thread_id" in content and chat.get("is_forum"):
            content["is_topic_message"] = True
        replied = self._messages.get((params.get("reply_parameters") or {}).get("message_id", 0))
        if replied:  # one level of it, as in life
            content["reply_to_message"] = {**replied, "reply_to_message": None}
        if kind:
            given = params.get(kind)
            thing = self._anything(params)
            thing.update(given if isinstance(given, dict) else {"file_id": str(given)})
            content[kind] = [thing] if kind == "photo" else thing
        return self.message(chat, self._me, content)

    def _anything(self, params: JSON) -> JSON:
        """Whatever pyTelegramBotAPI may look for in the result of a call with these params."""
        who = user_json(params["user_id"]) if "user_id" in params else self._me
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
_telegrams: WeakKeyDictionary[telebot.TeleBot, Telegram] = WeakKeyDictionary()


def telegram_of(bot: telebot.TeleBot) -> Telegram:
    with _lock:
        if not isinstance(_apihelper.CUSTOM_REQUEST_SENDER, _Hook):
            _apihelper.CUSTOM_REQUEST_SENDER = _Hook(_apihelper.CUSTOM_REQUEST_SENDER)
        return _telegrams.setdefault(bot, Telegram(bot.token))


def user_json(user: Who) -> JSON:
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


def written(text: str) -> JSON:
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


def buttons_of(message: JSON) -> list[JSON]:
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
