"""What a `Chat` makes is what Telegram sends: each object's fields, as the Bot API documents them.

The tables are those of Bot API 10.3 (https://core.telegram.org/bots/api), for the objects that a
`Chat` can make. Fields of a message that only updates in JSON can have are left out.
"""

import io
import json
from pathlib import Path

import pytest
import telebot
from telebot import types

from telesession.testing import Chat

pytestmark = pytest.mark.thorough

# A name with "?" is optional, with "*" an array, with "**" one of arrays.
TABLES = """
Update: update_id Integer, message? Message, edited_message? Message, channel_post? Message,
    edited_channel_post? Message, inline_query? InlineQuery, chosen_inline_result?
    ChosenInlineResult, callback_query? CallbackQuery
User: id Integer, is_bot Boolean, first_name String, last_name? String, username? String,
    language_code? String, is_premium? Boolean
Chat: id Integer, type String, title? String, username? String, first_name? String, last_name?
    String, is_forum? Boolean, is_direct_messages? Boolean
Message: message_id Integer, message_thread_id? Integer, from? User, sender_chat? Chat, date
    Integer, chat Chat, is_topic_message? Boolean, reply_to_message? Message, via_bot? User,
    edit_date? Integer, media_group_id? String, text? String, entities*? MessageEntity, animation?
    Animation, audio? Audio, document? Document, photo*? PhotoSize, sticker? Sticker, video? Video,
    video_note? VideoNote, voice? Voice, caption? String, caption_entities*? MessageEntity,
    contact? Contact, dice? Dice, poll? Poll, venue? Venue, location? Location, reply_markup?
    InlineKeyboardMarkup
MessageEntity: type String, offset Integer, length Integer, url? String, user? User, language?
    String, custom_emoji_id? String
CallbackQuery: id String, from User, message? Message, inline_message_id? String, chat_instance
    String, data? String, game_short_name? String
InlineQuery: id String, from User, query String, offset String, chat_type? String, location?
    Location
ChosenInlineResult: result_id String, from User, location? Location, inline_message_id? String,
    query String
PhotoSize: file_id String, file_unique_id String, width Integer, height Integer, file_size? Integer
Animation: file_id String, file_unique_id String, width Integer, height Integer, duration Integer,
    thumbnail? PhotoSize, file_name? String, mime_type? String, file_size? Integer
Audio: file_id String, file_unique_id String, duration Integer, performer? String, title? String,
    file_name? String, mime_type? String, file_size? Integer, thumbnail? PhotoSize
Document: file_id String, file_unique_id String, thumbnail? PhotoSize, file_name? String,
    mime_type? String, file_size? Integer
Video: file_id String, file_unique_id String, width Integer, height Integer, duration Integer,
    thumbnail? PhotoSize, cover*? PhotoSize, start_timestamp? Integer, file_name? String,
    mime_type? String, file_size? Integer
VideoNote: file_id String, file_unique_id String, length Integer, duration Integer, thumbnail?
    PhotoSize, file_size? Integer
Voice: file_id String, file_unique_id String, duration Integer, mime_type? String, file_size?
    Integer
Sticker: file_id String, file_unique_id String, type String, width Integer, height Integer,
    is_animated Boolean, is_video Boolean, thumbnail? PhotoSize, emoji? String, set_name? String,
    custom_emoji_id? String, needs_repainting? Boolean, file_size? Integer
Contact: phone_number String, first_name String, last_name? String, user_id? Integer, vcard? String
Dice: emoji String, value Integer
Location: latitude Float, longitude Float, horizontal_accuracy? Float, live_period? Integer,
    heading? Integer, proximity_alert_radius? Integer
Venue: location Location, title String, address String, foursquare_id? String, foursquare_type?
    String, google_place_id? String, google_place_type? String
Poll: id String, question String, options* PollOption, total_voter_count Integer, is_closed Boolean,
    is_anonymous Boolean, type String, allows_multiple_answers Boolean, allows_revoting Boolean,
    members_only Boolean, open_period? Integer, close_date? Integer
PollOption: persistent_id String, text String, voter_count Integer
InlineKeyboardMarkup: inline_keyboard** InlineKeyboardButton
InlineKeyboardButton: text String, url? String, callback_data? String, switch_inline_query? String,
    pay? Boolean
File: file_id String, file_unique_id String, file_size? Integer, file_path? String
"""
SIMPLE = {"Integer": int, "String": str, "Boolean": bool, "Float": float}
CONTENT = {
    *("text", "animation", "audio", "document", "photo", "sticker", "video", "video_note", "voice"),
    *("contact", "dice", "poll", "venue", "location"),
}


def tables():
    """By type: its fields by name, each with its type, whether it may lack, and how deep it is."""
    found = {}
    for line in TABLES.replace("\n    ", " ").strip().splitlines():
        name, _, fields = line.partition(": ")
        found[name] = {}
        for field in fields.split(", "):
            marked, kind = field.split()
            plain = marked.rstrip("?*")
            found[name][plain] = kind, "?" in marked, marked.count("*")
    return found


KNOWN = tables()


def check(kind, value, path):
    """Fail where a value is not of a type of the Bot API."""
    if kind in SIMPLE:
        assert type(value) is SIMPLE[kind], path
        return
    fields = KNOWN[kind]
    assert value.keys() <= fields.keys(), f"{path}: {value.keys() - fields.keys()}"
    for name, (of, optional, depth) in fields.items():
        if name not in value:
            assert optional, f"{path} has no {name}"
            continue
        items = [value[name]]
        for _ in range(depth):
            assert all(type(item) is list and item for item in items), f"{path}.{name}"
            items = [one for item in items for one in item]
        for item in items:
            check(of, item, f"{path}.{name}")
    if kind == "Message":
        content = CONTENT & value.keys()
        assert len(content - {"document"} or content) == 1, f"{path} has {content}"
        assert ("sender_chat" in value) == (value["chat"]["type"] == "channel"), path
        assert ("from" in value) != ("sender_chat" in value), path
        assert ("caption" in value) <= ("text" not in value), path
        assert not (value.get("reply_to_message") or {}).get("reply_to_message"), path
    if kind == "Chat":
        named = {"private": "first_name"}.get(value["type"], "title")
        assert named in value, path
        assert (value["id"] > 0) == (value["type"] == "private"), path


@pytest.fixture
def bot():
    """A bot that answers whatever it gets with buttons."""
    bot = telebot.TeleBot("1:test", threaded=False)
    buttons = types.InlineKeyboardMarkup()
    buttons.row(
        types.InlineKeyboardButton(15, callback_data=15),
        types.InlineKeyboardButton("Go", callback_data="go"),
    )
    bot.buttons = buttons

    @bot.message_handler(content_types=telebot.util.content_type_media)
    @bot.channel_post_handler(content_types=telebot.util.content_type_media)
    def answer(message):
        bot.reply_to(message, "?", reply_markup=buttons)

    @bot.inline_handler(lambda query: True)
    def found(query):
        text = types.InputTextMessageContent("x")
        bot.answer_inline_query(query.id, [types.InlineQueryResultArticle("1", "one", text)])

    return bot


@pytest.fixture
def updates(monkeypatch):
    """The updates that bots get, in JSON."""
    seen = []
    parse = types.Update.de_json
    monkeypatch.setattr(types.Update, "de_json", lambda text: seen.append(text) or parse(text))
    return seen


CHATS = {
    "private": {},
    "a user with all names": {
        "user": {"id": 5, "first_name": "A", "last_name": "B", "username": "c", "is_premium": True}
    },
    "group": {"chat": -5},
    "supergroup": {"chat": -1001},
    "forum": {"chat": {"id": -1001, "is_forum": True}},
    "channel": {"chat": {"id": -1002, "type": "channel", "title": "News"}},
}


def kept(directory):
    path = directory / "cv.pdf"
    path.write_bytes(b"...")
    return path


ACTS = {
    "text": lambda chat, _: chat.send("hi"),
    "command": lambda chat, _: chat.send("/start@test_bot now"),
    "topic": lambda chat, _: chat.send("hi", message_thread_id=3),
    "photo": lambda chat, _: chat.send("/look at this", photo=b"..."),
    "document": lambda chat, path: chat.send(document=kept(path)),
    "unnamed document": lambda chat, _: chat.send(document=b"..."),
    "video": lambda chat, _: chat.send(video=io.BytesIO(b"...")),
    "animation": lambda chat, _: chat.send(animation=b"..."),
    "audio": lambda chat, _: chat.send(audio=("song.ogg", b"...")),
    "voice": lambda chat, _: chat.send(voice=b"..."),
    "video note": lambda chat, _: chat.send(video_note=b"..."),
    "sticker": lambda chat, _: chat.send(sticker=b"..."),
    "a file by its id": lambda chat, _: chat.send(video="one of long ago"),
    "contact": lambda chat, _: chat.send(contact="+44123"),
    "album": lambda chat, _: chat.album([b"1", {"video": b"2"}], "two"),
    "reply": lambda chat, _: chat.send("yes", reply_to_message=chat.send("hi")[0]),
    "reply to a reply": lambda chat, _: chat.send("no", reply_to_message=chat.messages[-1]),
    "edit": lambda chat, _: chat.send("hi") + chat.edit("/ho"),
    "edited caption": lambda chat, _: chat.send("a", photo=b"...") + chat.edit("b"),
    "click": lambda chat, _: chat.send("hi") + chat.click("15") + chat.click("Go"),
    "old click": lambda chat, _: chat.click(data="of last year"),
    "inline": lambda chat, _: chat.choose(chat.inline("cats")[0]),
}


@pytest.mark.parametrize("where", CHATS)
@pytest.mark.parametrize("act", ACTS)
def test_what_users_do(bot, updates, tmp_path, act, where):
    """Every object has the fields that it must have, and no others, each of its type."""
    chat = Chat(bot, **CHATS[where])
    chat.send("first")

    ACTS[act](chat, tmp_path)

    assert len(updates) > 1
    for text in updates:
        check("Update", json.loads(text), act)


SENT = {
    "text": lambda bot, to: bot.send_message(to, 15, reply_markup=bot.buttons),
    "photo": lambda bot, to: bot.send_photo(to, b"...", 15, reply_markup=bot.buttons),
    "photo by its address": lambda bot, to: bot.send_photo(
        to, "https://example.org/", reply_markup=bot.buttons
    ),
    "document": lambda bot, to: bot.send_document(
        to, b"...", visible_file_name="cv.pdf", reply_markup=bot.buttons
    ),
    "animation": lambda bot, to: bot.send_animation(to, b"...", reply_markup=bot.buttons),
    "contact": lambda bot, to: bot.send_contact(to, "+44", "A", reply_markup=bot.buttons),
    "dice": lambda bot, to: bot.send_dice(to, reply_markup=bot.buttons),
    "location": lambda bot, to: bot.send_location(to, 1.5, 2.5, reply_markup=bot.buttons),
    "venue": lambda bot, to: bot.send_venue(to, 1.5, 2.5, "A", "B", reply_markup=bot.buttons),
    "poll": lambda bot, to: bot.send_poll(to, "Tea?", ["Yes", "No"], reply_markup=bot.buttons),
    "edited": lambda bot, to: bot.edit_message_text(
        "new", to, bot.send_message(to, "old").message_id, reply_markup=bot.buttons
    ),
}


@pytest.mark.parametrize("where", ["private", "channel"])
@pytest.mark.parametrize("sent", SENT)
def test_clicks_on_what_the_bot_sent(bot, updates, sent, where):
    """The message of a click is as Telegram would show it; a button's label is text."""
    chat = Chat(bot, **CHATS[where])

    SENT[sent](bot, chat.chat["id"])
    chat.click("15")

    [query] = [json.loads(text)["callback_query"] for text in updates]
    check("CallbackQuery", query, sent)
    assert query["data"] == "15"
    assert ("edit_date" in query["message"]) == (sent == "edited")


def test_a_file(bot):
    """What getFile gives is a File."""
    chat = Chat(bot)
    chat.send(document=b"...")
    file_id = chat.messages[0]["document"]["file_id"]

    found = telebot.apihelper.get_file(bot.token, file_id)

    check("File", found, "getFile")
    assert Path(found["file_path"]).name


def test_the_check_finds_what_is_wrong():
    """A field too many, one that lacks, and one of another type are found."""
    good = {"id": 1, "is_bot": False, "first_name": "A"}
    check("User", good, "")

    for wrong in ({**good, "name": ""}, {"id": 1, "is_bot": False}, {**good, "is_bot": 0}):
        with pytest.raises(AssertionError):
            check("User", wrong, "")
