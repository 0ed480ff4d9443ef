"""The fake Telegram of a bot that is driven without a network; users reach it through `testing`.

Half of this makes plausible results for API calls, so that pyTelegramBotAPI can parse them.
"""

import functools
import json
import mimetypes
import re
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
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
    """One API call of the bot: a `str`, the text or caption that it sent, or "".

    An answered inline query is one `Answer` per result: its title, with its fields in ``params``.
    """

    method: str  #: the API method, for example "sendMessage"
    params: JSON  #: the call's parameters, with JSON decoded and files
    result: Any  #: the result that the bot got, in JSON: a message with its ``message_id``, or True

    def __new__(cls, text: str, method: str, params: JSON, result: Any) -> "Answer":
        self = super().__new__(cls, text)
        self.method, self.params, self.result = method, params, result
        return self

    @property
    def buttons(self) -> list[str]:
        """The texts of the inline or reply buttons, row by row."""
        return [button["text"] for button in buttons_of(self.params)]


@dataclass(eq=False)
class _Run:
    """One update on its way through a bot."""

    thread: int
    answers: list[Answer] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)


class Telegram:
    """The Telegram of one bot: it sends updates, answers API calls, and keeps chats and messages.

    A message is replaced, never changed, since another thread may be turning it into JSON.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        number = token.partition(":")[0]
        # 1 is the default user of a `Chat`, who can't be the bot, too.
        number = number if number.isdecimal() and int(number) != 1 else "1000000000"
        self._me = user_json({"id": int(number), "first_name": "Bot"})
        self._me.update(is_bot=True, username="test_bot")
        self._chats: dict[int, JSON] = {}
        self._messages: dict[int, JSON] = {}
        self._files: dict[str, tuple[JSON, str, bytes]] = {}  # description, path, content
        self._pending: list[Answer] = []
        self.refusals: list[tuple[JSON, str, JSON]] = []  #: chat, method and the error's JSON
        self.meeting: threading.Barrier | None = None  #: at which concurrent calls meet
        self._runs: list[_Run] = []
        self._settings: tuple[bool, Any] = (True, None)
        self._lock = threading.RLock()

    def dispatch(self, bot: Any, fields: JSON) -> list[Answer]:
        """Have the bot handle an update in this thread; return its calls, or raise its error."""
        update = _types.Update.de_json(json.dumps({"update_id": self.number(), **fields}))
        run = _Run(threading.get_ident())
        # A test's fixture may have removed the hook, but no call may reach the real Telegram.
        _apihelper.CUSTOM_REQUEST_SENDER = _apihelper.CUSTOM_REQUEST_SENDER or _Hook(None)
        with self._lock:
            if not self._runs:
                self._settings = bot.threaded, bot.exception_handler
                bot.threaded, bot.exception_handler = False, self
            self._runs.append(run)
        try:
            bot.process_new_updates([update])
        except Exception as error:
            if error not in run.errors:  # a middleware's: only polling calls the handler for those
                self.handle(error)
        finally:
            with self._lock:
                self._runs.remove(run)
                if not self._runs:  # the last of overlapping runs restores the bot's settings
                    bot.threaded, bot.exception_handler = self._settings
        if run.errors:
            raise run.errors.pop(0)  # popped, so that nothing here keeps the error alive
        return run.answers

    def handle(self, exception: Exception) -> bool:
        """Be the bot's ``exception_handler``: class middlewares hide errors from other hooks."""
        own, run = self._settings[1], self.run()
        handled = own is not None and bool(own.handle(exception))
        if run and not handled:
            run.errors.append(exception)
        return handled

    def run(self) -> _Run | None:
        """This thread's run; the innermost, if a handler uses a `Chat` itself."""
        with self._lock:
            here = [run for run in self._runs if run.thread == threading.get_ident()]
            return here[-1] if here else None

    def number(self) -> int:
        return next(_numbers)  # atomic, since it is one call in C

    def chat(self, chat: Any) -> JSON:
        """A chat by its id, a number or text, or by "@username"; a chat in JSON is remembered."""
        described = _chat(chat)
        with self._lock:
            if isinstance(chat, Mapping):
                self._chats[described["id"]] = described
            return self._chats.get(described["id"], described)

    def message(self, chat: JSON, sender: JSON, content: JSON) -> JSON:
        who = {"sender_chat": chat} if chat["type"] == "channel" else {"from": sender}
        head = {"message_id": self.number(), "date": int(time.time()), "chat": chat, **who}
        if "message_thread_id" in content and (chat.get("is_forum") or chat["type"] == "private"):
            head["is_topic_message"] = True
        message = {**head, **content}
        if message.get("reply_to_message"):  # one level only, as Telegram sends it
            replied = dict(message["reply_to_message"])
            replied.pop("reply_to_message", None)
            message["reply_to_message"] = replied
        return message

    def keep(self, message: JSON) -> JSON:
        with self._lock:
            self._messages[message["message_id"]] = message
        return message

    def messages(self, chat: JSON) -> list[JSON]:
        """The messages of a chat, oldest first."""
        with self._lock:
            return [m for m in self._messages.values() if m["chat"]["id"] == chat["id"]]

    def known(self, message: JSON) -> JSON:
        """The present state of a message; a message from before a restart becomes known."""
        with self._lock:
            return self._messages.setdefault(message["message_id"], message)

    def old(self, chat: JSON, data: str) -> JSON:
        """A bot's message from before a restart that has a button with the data."""
        markup = {"inline_keyboard": [[{"text": data, "callback_data": data}]]}
        content = {"text": "of before a restart", "reply_markup": markup}
        return self.keep(self.message(chat, self._me, content))

    def file(self, kind: str, given: Any) -> JSON:
        """The fields of a message with a file, which a test gives by id, by content or in JSON."""
        suffix, told = _FILES[kind]
        if isinstance(given, (Mapping, list)):
            return {kind: given}
        if isinstance(given, str):
            unknown = {"file_id": given, "file_unique_id": given, **told}, "", b""
            with self._lock:
                thing, _, _ = self._files.get(given, unknown)
        else:
            name, content = _read(given)
            number = self.number()
            ids = {"file_id": f"{kind}-{number}", "file_unique_id": f"unique-{number}"}
            thing = {**ids, "file_size": len(content), **told}
            if kind in _NAMED:
                thing["file_name"] = name or f"file_{number}{suffix}"
                guessed, _ = mimetypes.guess_type(thing["file_name"])
                thing["mime_type"] = guessed or "application/octet-stream"
            path = f"{kind}s/file_{number}{Path(name).suffix or suffix}"
            with self._lock:
                self._files[ids["file_id"]] = thing, path, content
        if kind == "animation":  # the Bot API adds a document, for bots without animations
            return {kind: thing, "document": {k: thing[k] for k in thing.keys() - told.keys()}}
        return {kind: [thing] if kind == "photo" else thing}

    def download(self, path: str) -> bytes | None:
        """The content of the file with this ``file_path``; `None` if there is no such file."""
        with self._lock:
            return next((found[2] for found in self._files.values() if found[1] == path), None)

    def take_pending(self, chat: JSON) -> list[Answer]:
        with self._lock:
            taken = [answer for answer in self._pending if _is_in(chat, answer.params)]
            self._pending = [each for each in self._pending if not _is_in(chat, each.params)]
        return taken

    def call(self, method: str, params: JSON) -> Any:
        """Answer an API call, and add it to the answers of the update whose handler made it."""
        if meeting := self.meeting:
            with suppress(threading.BrokenBarrierError):
                meeting.wait(_PATIENCE)
        with self._lock:
            for chat, refused, refusal in self.refusals:
                if snake(method) == refused and _is_in(chat, params):
                    text = json.dumps({"ok": False, **refusal})
                    return _util.CustomRequestResponse(text, refusal["error_code"])
            result = self._result(method, params)
            if not method.startswith("get"):
                run = self.run()
                kept = run.answers if run else self._pending
                kept.extend(_answers(method, params, result))
            text = json.dumps({"ok": True, "result": result}, default=str)
        return _util.CustomRequestResponse(text)

    def _result(self, method: str, params: JSON) -> Any:
        returns = _returns(method)
        numbers = params.get("message_ids") or [params.get("message_id", 0)]
        old = [self._messages.get(int(n), {"message_id": int(n)} if n else {}) for n in numbers]
        if method == "getMe":
            return self._me
        if method == "getChat":
            return self.chat(params["chat_id"])
        if method == "getFile" and params["file_id"] in self._files:
            thing, path, _ = self._files[params["file_id"]]
            names = ("file_id", "file_unique_id", "file_size")
            return {**{name: thing[name] for name in names}, "file_path": path}
        if method == "sendMediaGroup":
            group = {**params, "media_group_id": str(self.number())}
            return [self._sent("sendMedia", {**group, "media": m}, {}) for m in params["media"]]
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
        """The message that a call makes, from an old message where it edits or copies one."""
        new = re.fullmatch("(?:send|editMessage)(Message|Text|Caption|ReplyMarkup)?(.*)", method)
        kind = snake(new[2]).replace("live_location", "location") if new else ""
        if kind == "media":
            media, old = params["media"], {name: old[name] for name in old.keys() & _OWN}
            kind, params = media["type"], {**params, **media, media["type"]: media["media"]}
        content = {name: value for name, value in old.items() if name != "reply_markup" or not new}
        content.update((name, params[name]) for name in _COPIED if name in params)
        if "inline_keyboard" in (params.get("reply_markup") or {}):
            content["reply_markup"] = params["reply_markup"]
        chat = self.chat(params.get("chat_id", 1))
        reply = params.get("reply_parameters") or {"message_id": params.get("reply_to_message_id")}
        replied = self._messages.get(int(reply.get("message_id") or 0))
        if replied:
            content["reply_to_message"] = replied
        if "date" in content and method.startswith("edit"):
            content["edit_date"] = int(time.time())
        if kind in _FILES:
            given = params.get(kind)
            uploaded = str(given).removeprefix("attach://")
            content.update(self.file(kind, params.get(uploaded, given)))
        elif kind:
            given = params.get(kind)
            thing = self._anything(params)
            thing.update(given if isinstance(given, dict) else {"file_id": str(given)})
            names = _FIELDS.get(kind, thing)
            content[kind] = {name: thing[name] for name in names if name in thing}
        return self.keep(self.message(chat, self._me, content))

    def _anything(self, params: JSON) -> JSON:
        """A result with all fields that pyTelegramBotAPI may read for a call with these params."""
        who = user_json(params["user_id"]) if "user_id" in params else self._me
        plain = {k: v for k, v in params.items() if isinstance(v, (str, int, float))}
        plain.pop("photo", None)  # the name of an upload, and in results a list
        named = {"user": who, "creator": who, "chat": self.chat(params.get("chat_id", 1))}
        options = [
            {"persistent_id": str(number), "voter_count": 0, **_labelled(option)}
            for number, option in enumerate(params.get("options", []))
        ]
        place = {name: plain[name] for name in _FIELDS["location"] if name in plain}
        kind = {"type": params.get("type", "regular")} if options else {}
        ids = {"id": str(self.number()), "location": place, "options": options, **kind}
        return {**_ANYTHING, **named, **plain, **ids}


@dataclass
class _Hook:
    """Answers the calls of bots that have a `Chat`; passes the others on as before."""

    before: Any

    def __call__(self, http_method: str, url: str, **request: Any) -> Any:
        *path, method = url.split("/")
        known = [each for name in path for each in _known(name.removeprefix("bot"))]
        if not known:
            send = self.before or _apihelper._get_req_session().request
            return send(http_method, url, **request)
        # Of bots with the same token, take the one whose handler runs here, else the newest.
        telegram = max(reversed(known), key=lambda telegram: telegram.run() is not None)
        sent = {**(request["params"] or {}), **(request["files"] or {})}
        params = {name: _decoded(name, value) for name, value in sent.items()}
        return telegram.call(method, params)


_lock = threading.Lock()
_numbers = count(1)  # for all bots, so that after a "restart" no id comes twice
_telegrams: WeakKeyDictionary[telebot.TeleBot, Telegram] = WeakKeyDictionary()


def _known(token: str) -> list[Telegram]:
    with _lock:
        return [telegram for telegram in _telegrams.values() if telegram.token == token]


@functools.cache
def _hook_downloads() -> None:
    """Wrap ``bot.download_file`` to look here first, since pyTelegramBotAPI has no hook for it."""
    before = _apihelper.download_file

    @functools.wraps(before)
    def download_file(token: str, file_path: str) -> Any:
        known = _known(token)
        if not known:
            return before(token, file_path)
        for telegram in known:
            if (content := telegram.download(file_path)) is not None:
                return content
        missing = _util.CustomRequestResponse("", 404, "Not Found")
        raise _apihelper.ApiHTTPException("Download file", missing)

    _apihelper.download_file = download_file


def telegram_of(bot: telebot.TeleBot) -> Telegram:
    with _lock:
        _hook_downloads()
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


def written(text: str, kind: str = "text") -> JSON:
    """A text or caption, with entities for its commands, in UTF-16 units as Telegram has them."""
    entities = [
        {
            "type": "bot_command",
            "offset": len(text[: command.start()].encode("utf-16-le")) // 2,
            "length": len(command[0]),
        }
        for command in re.finditer(r"(?<!\S)/[a-zA-Z0-9_]+(@\w+)?", text)
    ]
    written = {kind: text, "entities" if kind == "text" else "caption_entities": entities}
    return {name: value for name, value in written.items() if value}


def _is_in(chat: JSON, params: JSON) -> bool:
    """Whether a call with these params may be about this chat."""
    return str(params.get("chat_id", chat["id"])) == str(chat["id"])


def _read(given: Any) -> tuple[str, bytes]:
    """The name and content of a file, given as a path, bytes, an open file, or a name and these."""
    name = ""
    if isinstance(given, tuple):
        name, given = given[:2]
    if isinstance(given, Path):
        return name or given.name, given.read_bytes()
    if not isinstance(given, (bytes, bytearray)):
        if not hasattr(given, "read"):
            raise TypeError(
                f"{given!r} is no file: give bytes, a path, an open file, or its file_id"
            )
        name = name or Path(str(getattr(given, "name", ""))).name
        start = given.tell() if given.seekable() else None
        content = given.read()
        if start is not None:
            given.seek(start)
        given = content.encode() if isinstance(content, str) else content
    return name, bytes(given)


def _labelled(button: Any) -> Any:
    return {"text": button} if isinstance(button, str) else button


def buttons_of(message: JSON) -> list[JSON]:
    markup = message.get("reply_markup") or {}
    rows = markup.get("inline_keyboard") or markup.get("keyboard") or []
    return [_labelled(button) for row in rows for button in row]


def _decoded(name: str, value: Any) -> Any:
    """A parameter as Telegram understands it: JSON is decoded, a number may stand for a text."""
    if name in _TEXTS:
        return str(value)
    if isinstance(value, str) and value[:1] in ("{", "["):
        with suppress(ValueError):
            return json.loads(value, object_hook=_with_texts)
    return value


def _with_texts(found: JSON) -> JSON:
    numbers = (int, float)
    return {k: str(v) if k in _TEXTS and type(v) in numbers else v for k, v in found.items()}


def snake(name: str) -> str:
    return re.sub("(?<!^)[A-Z]", lambda capital: f"_{capital[0]}", name).lower()


def _returns(method: str) -> set[str]:
    """The types that an API method returns, by pyTelegramBotAPI's annotation, or a guess."""
    function = getattr(telebot.TeleBot, snake(method), None)
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
_PATIENCE = 0.1  # seconds that a call waits for others, which may be blocked or make no call
_COPIED = {
    *("text", "caption", "entities", "caption_entities"),
    *("message_thread_id", "business_connection_id", "media_group_id"),
}
_TEXTS = {
    *("text", "caption", "title", "description", "question", "explanation", "payload"),
    "callback_data",
}
_NAMED = {"document", "video", "audio", "animation"}
#: By kind of file: the suffix of its name, and its fields besides the id.
_FILES: dict[str, tuple[str, JSON]] = {
    "photo": (".jpg", {"width": 800, "height": 800}),
    "document": ("", {}),
    "video": (".mp4", {"width": 1280, "height": 720, "duration": 1}),
    "animation": (".mp4", {"width": 320, "height": 240, "duration": 1}),
    "video_note": (".mp4", {"length": 240, "duration": 1}),
    "audio": (".mp3", {"duration": 1}),
    "voice": (".oga", {"duration": 1, "mime_type": "audio/ogg"}),
    "sticker": (
        ".webp",
        {"type": "regular", "width": 512, "height": 512, "is_animated": False, "is_video": False},
    ),
}
FILES = _FILES.keys()
#: By kind of content that a bot sends: the fields that Telegram has of it, where it knows them.
_FIELDS = {
    "contact": ("phone_number", "first_name", "last_name", "vcard"),
    "dice": ("emoji", "value"),
    "location": ("latitude", "longitude", "horizontal_accuracy", "live_period", "heading"),
    "venue": ("location", "title", "address", "foursquare_id", "google_place_id"),
    "poll": (
        *("id", "question", "options", "total_voter_count", "is_closed", "is_anonymous", "type"),
        *("allows_multiple_answers", "allows_revoting", "members_only", "open_period"),
    ),
}
# pyTelegramBotAPI's types ignore fields they don't know, so one object can stand for any of them.
_ANYTHING: JSON = {
    name: value
    for names, value in (
        ("name title description short_description question url start_parameter", ""),
        ("gifts transactions stickers boosts audios photos photo paid_media tasks blocks", []),
        ("total_count amount total_amount pending_update_count icon_color date", 0),
        ("total_voter_count", 0),
        ("value width height duration message_thread_id user_chat_id", 1),
        ("is_animated is_video is_enabled is_primary is_revoked is_access_restricted", False),
        ("is_anonymous has_custom_certificate creates_join_request can_manage_chat", False),
        ("can_delete_messages can_manage_video_chats can_restrict_members", False),
        ("can_promote_members can_change_info can_invite_users is_closed", False),
        ("allows_multiple_answers allows_revoting members_only", False),
        ("file_id file_unique_id file_path inline_message_id", "1"),
        ("expiration_date", 1),
        ("status", "member"),
        ("type", "default"),
        ("sticker_type", "regular"),
        ("emoji", "🎲"),
        ("invite_link", "https://t.me/+1"),
    )
    for name in names.split()
}
