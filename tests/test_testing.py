"""`telesession.testing`: what a bot sees of a `Chat`, and what a `Chat` sees of the bot."""

import inspect
import io
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import telebot
from telebot import apihelper, types
from telebot.handler_backends import BaseMiddleware, CancelUpdate

from telesession import keys, with_session
from telesession.testing import Answer, Chat

pytestmark = pytest.mark.thorough

TIMEOUT = 10


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever goes past the hook fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a call went to the network")

    monkeypatch.setattr(apihelper, "_get_req_session", refuse)


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    """No hook at the beginning, and what was there put back at the end."""
    monkeypatch.setattr(apihelper, "CUSTOM_REQUEST_SENDER", None)


@pytest.fixture
def make_bot():
    bots = []

    def make(**options):
        bots.append(telebot.TeleBot("42:test", num_threads=1, **options))
        return bots[-1]

    yield make
    for bot in bots:
        if bot.threaded:
            # Not stop_bot(), which waits until its workers look up.
            for worker in bot.worker_pool.workers:
                worker.stop()


@pytest.fixture
def bot(make_bot):
    return make_bot(threaded=False)


@pytest.fixture
def threaded(make_bot):
    return make_bot(threaded=True)


def record(bot, *names, **options):
    """Keep each update that the bot gets under these handlers' names."""
    seen = []
    for name in names:
        getattr(bot, f"{name}_handler")(func=lambda update: True, **options)(seen.append)
    return seen


def echo(bot):
    @bot.message_handler(func=lambda message: True)
    def handler(message):
        bot.send_message(message.chat.id, f"{message.from_user.id}: {message.text}")


def in_threads(*functions):
    """Run them at once; give what they returned, in their order."""
    results = [None] * len(functions)

    def run(number, function):
        results[number] = function()

    threads = [threading.Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    return results


# --- messages ---


def test_a_message_is_answered_by_the_bots_texts(bot):
    echo(bot)

    assert Chat(bot).send("hi") == ["1: hi"]


def test_without_a_handler_there_is_no_answer(bot):
    assert Chat(bot).send("hi") == []


def test_a_chat_is_the_private_one_of_user_1(bot):
    seen = record(bot, "message")

    Chat(bot).send("hi")

    [message] = seen
    assert isinstance(message, types.Message)
    assert (message.chat.id, message.chat.type, message.from_user.id) == (1, "private", 1)
    assert (message.text, message.content_type, message.entities) == ("hi", "text", None)
    assert not message.from_user.is_bot
    assert message.date > 0


def test_users_and_chats_can_be_described_in_json(bot):
    seen = record(bot, "message")
    user = {"id": 5, "first_name": "Ann", "language_code": "de"}

    Chat(bot, user=user, chat={"id": -100, "title": "Friends", "is_forum": True}).send("hi")

    [message] = seen
    assert (message.from_user.first_name, message.from_user.language_code) == ("Ann", "de")
    assert (message.chat.title, message.chat.type) == ("Friends", "supergroup")
    assert message.chat.is_forum
    assert bot.get_chat(-100).title == "Friends"


def test_several_users_write_in_one_group(bot):
    seen = record(bot, "message")
    group = Chat(bot, user=7, chat=-5)

    group.send("a")
    group.send("b", user=8)
    Chat(bot, user=9, chat=-5).send("c")

    assert [message.from_user.id for message in seen] == [7, 8, 9]
    assert {(message.chat.id, message.chat.type) for message in seen} == {(-5, "group")}


def test_commands_are_marked_as_telegram_marks_them(bot):
    seen = record(bot, "message")

    Chat(bot).send("/start@test_bot 🎲 /help a/b")

    entities = [(e.type, e.offset, e.length) for e in seen[0].entities]
    assert entities == [("bot_command", 0, 15), ("bot_command", 19, 5)]


def test_filters_of_the_bot_decide_who_answers(bot):
    @bot.message_handler(commands=["start"])
    def start(message):
        bot.reply_to(message, "welcome")

    @bot.message_handler(content_types=["contact"], chat_types=["private"])
    def contact(message):
        bot.reply_to(message, message.contact.first_name)

    chat = Chat(bot)

    assert chat.send("/start") == ["welcome"]
    assert chat.send("start") == []
    assert chat.send(contact={"phone_number": "1", "first_name": "Ann"}) == ["Ann"]


def test_fields_of_a_message_can_be_given(bot):
    seen = record(bot, "message")

    Chat(bot, chat=-100).send("hi", message_thread_id=3, is_topic_message=True)

    assert (seen[0].message_thread_id, seen[0].is_topic_message) == (3, True)


def test_next_steps_and_replies_are_handled(bot):
    def ask(message):
        question = bot.send_message(message.chat.id, "name?")
        bot.register_next_step_handler(question, greet)

    def greet(message):
        sent = bot.send_message(message.chat.id, f"hello {message.text}")
        bot.register_for_reply(sent, lambda reply: bot.send_message(reply.chat.id, "replied"))

    bot.message_handler(commands=["ask"])(ask)
    chat = Chat(bot)

    assert chat.send("/ask") == ["name?"]
    [greeting] = chat.send("Ann")
    assert greeting == "hello Ann"
    assert chat.send("and you?") == []
    assert chat.send("thanks", reply_to_message=greeting.result) == ["replied"]


def test_an_edit_changes_the_newest_message_of_the_user(bot):
    seen = record(bot, "message", "edited_message")
    # Its id is that of the bot, whose messages are not the user's.
    chat = Chat(bot, user=42, chat=-100)
    chat.send("/first")
    chat.send("second", user=8)
    bot.send_message(-100, "of the bot")

    chat.edit("new")
    chat.edit("newer")

    first, _, edited, again = seen
    assert (edited.text, edited.entities, again.text) == ("new", None, "newer")
    assert edited.message_id == again.message_id == first.message_id
    assert edited.edit_date


def test_an_edit_of_nothing_is_an_error(bot):
    with pytest.raises(LookupError, match="user 1 "):
        Chat(bot).edit("new")


def test_ids_are_unique_for_a_bot_and_increase(bot):
    seen = []
    bot.message_handler(func=lambda m: True)(
        lambda m: seen.extend([m.message_id, bot.reply_to(m, "ok").message_id])
    )
    updates = []
    process = bot.process_new_updates
    bot.process_new_updates = lambda got: (updates.extend(got), process(got))

    for user in (1, 2, 1):
        Chat(bot, user=user).send("hi")

    assert sorted(set(seen)) == seen
    numbers = [update.update_id for update in updates]
    assert sorted(set(numbers)) == numbers
    assert bot.last_update_id == numbers[-1]


def test_only_a_telebot_has_chats():
    with pytest.raises(TypeError, match="'1:test'"):
        Chat("1:test")


@pytest.mark.parametrize("token", ["1:test", "01:test", "2:test", "test", "123456789:AAE"])
def test_the_user_is_not_the_bot(token):
    """Where a token has the user's number, or none, the bot has another."""
    lax = {"validate_token": False}  # of pyTelegramBotAPI's versions, those that check it know it
    known = inspect.signature(telebot.TeleBot).parameters
    bot = telebot.TeleBot(token, threaded=False, **(lax if "validate_token" in known else {}))
    chat = Chat(bot)

    assert chat.user["id"] == 1
    assert bot.get_me().id != chat.user["id"]
    assert Chat(bot, user=1).user == chat.user


def test_a_private_chat_has_the_names_of_its_user(bot):
    chat = Chat(bot, user={"id": 5, "first_name": "Ann", "last_name": "Lee", "username": "ann"})

    names = {"first_name": "Ann", "last_name": "Lee", "username": "ann"}
    assert chat.chat == {"id": 5, "type": "private", **names}


def test_a_message_may_be_a_reply_to_an_answer_or_to_any_message(bot):
    seen = record(bot, "message")
    group = Chat(bot, chat=-100)

    @bot.message_handler(commands=["ask"])
    def ask(message):
        bot.reply_to(message, "name?")

    bot.message_handlers.insert(0, bot.message_handlers.pop())
    [question] = group.send("/ask")
    group.send("Ann", reply_to_message=question)
    group.send("me, too", user=8, reply_to_message=group.messages[-1])

    ann, other = seen
    assert (ann.reply_to_message.text, ann.reply_to_message.from_user.id) == ("name?", 42)
    assert (other.reply_to_message.text, other.reply_to_message.from_user.id) == ("Ann", 1)
    assert other.reply_to_message.reply_to_message is None


def test_the_messages_of_a_chat(bot):
    """The users' and the bot's, in their order; edited ones as they are, deleted ones not."""
    echo(bot)
    group = Chat(bot, chat=-100)
    group.send("a")
    sent = group.send("b", user=8)[0].result
    Chat(bot).send("elsewhere")
    group.edit("c")
    bot.delete_message(-100, sent["message_id"])

    assert [message["text"] for message in group.messages] == ["c", "1: a", "b"]


def test_posts_of_a_channel(bot):
    seen = record(bot, "channel_post", "edited_channel_post")
    channel = Chat(bot, chat={"id": -1001, "type": "channel", "title": "News"})

    channel.send("one")
    channel.edit("two")

    assert [(post.text, post.from_user, post.sender_chat.id) for post in seen] == [
        ("one", None, -1001),
        ("two", None, -1001),
    ]


def test_a_message_that_is_not_sent(bot):
    """What takes a message can be asked of any user here: `peek`, `open`, a key function."""
    session = with_session(store={})
    seen = record(bot, "message")
    group = Chat(bot, chat=-100)
    with session.open(group.message(user=8)) as theirs:
        theirs["n"] = 1

    assert session.key(group.message()) == "1:-100"
    assert session.peek(key="8:-100") == session.peek(group.message(user=8)) == {"n": 1}
    assert keys.user_topic(group.message(message_thread_id=3, is_topic_message=True)) == "1:-100:3"
    assert (group.message("hi").text, group.message("hi").content_type) == ("hi", "text")
    assert (seen, group.messages) == ([], [])


# --- files ---


def download(bot):
    """Have the bot answer a file by what is in it."""

    @bot.message_handler(content_types=telebot.util.content_type_media)
    def handler(message):
        found = getattr(message, message.content_type)
        found = found[-1] if message.content_type == "photo" else found
        path = bot.get_file(found.file_id).file_path
        bot.reply_to(message, f"{message.content_type} {bot.download_file(path).decode()}")


KINDS = ["photo", "document", "video", "animation", "audio", "voice", "video_note", "sticker"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_can_be_downloaded(bot, kind):
    download(bot)

    assert Chat(bot).send(**{kind: b"content"}) == [f"{kind} content"]


def test_files_are_given_as_one_has_them(bot, tmp_path):
    seen = record(bot, "message", content_types=["document"])
    path = tmp_path / "cv.pdf"
    path.write_bytes(b"content")
    chat = Chat(bot)
    stream = io.BytesIO(b"content")
    stream.name = "/home/ann/cv.pdf"

    with path.open("rb") as file:
        for given in (path, file, stream, ("cv.pdf", b"content"), ("cv.pdf", io.BytesIO(b"x"))):
            chat.send(document=given)
        assert file.read() == b"content"

    documents = [message.document for message in seen]
    assert [(d.file_name, d.mime_type) for d in documents] == [("cv.pdf", "application/pdf")] * 5
    assert [document.file_size for document in documents] == [7, 7, 7, 7, 1]
    assert len({document.file_id for document in documents}) == 5
    assert len({document.file_unique_id for document in documents}) == 5
    assert Path(bot.get_file(documents[0].file_id).file_path).suffix == ".pdf"


def test_a_file_of_before_has_its_id(bot):
    seen = record(bot, "message", content_types=["document"])
    chat = Chat(bot)
    chat.send(document=("cv.pdf", b"content"))

    chat.send(document=seen[0].document.file_id)
    bot.send_document(1, seen[0].document.file_id)

    again, by_the_bot = seen[1].document, chat.messages[-1]["document"]
    assert (again.file_id, again.file_name) == (seen[0].document.file_id, "cv.pdf")
    assert by_the_bot["file_name"] == "cv.pdf"


def test_a_file_of_the_bot_can_be_downloaded(bot):
    Chat(bot)
    sent = [
        bot.send_photo(1, io.BytesIO(b"0")).photo[-1],
        bot.send_document(1, types.InputFile(io.BytesIO(b"1"))).document,
        bot.send_document(1, b"2", visible_file_name="cv.pdf").document,
        *(m.photo[-1] for m in bot.send_media_group(1, [types.InputMediaPhoto(io.BytesIO(b"3"))])),
    ]

    paths = [bot.get_file(each.file_id).file_path for each in sent]
    assert [bot.download_file(path) for path in paths] == [b"0", b"1", b"2", b"3"]
    assert sent[2].file_name == "cv.pdf"


def test_a_file_that_is_not_there(bot):
    """It is what Telegram answers, and nothing goes to the network."""
    Chat(bot)

    with pytest.raises(apihelper.ApiHTTPException, match="404"):
        bot.download_file("nowhere")


def test_other_bots_download_where_they_did(bot, monkeypatch):
    class Session:
        def get(self, url, proxies):
            assert url == "https://api.telegram.org/file/bot9:other/path"
            return SimpleNamespace(status_code=200, content=b"theirs")

    monkeypatch.setattr(apihelper, "_get_req_session", Session)
    Chat(bot)

    assert telebot.TeleBot("9:other", threaded=False).download_file("path") == b"theirs"


@pytest.mark.parametrize("given", [7, None, object()])
def test_what_is_no_file(bot, given):
    with pytest.raises(TypeError, match="is no file: give bytes, a path"):
        Chat(bot).send(document=given)


def test_a_text_beside_a_file_is_its_caption(bot):
    seen = record(bot, "message", "edited_message", content_types=["photo"])
    chat = Chat(bot)

    chat.send("/look at this", photo=b"...")
    chat.edit("and /this")
    chat.send(photo=b"...", caption="/see")
    chat.edit("/new", photo=b"new")

    sent, edited, other, new = seen
    assert [(m.caption, m.caption_entities[0].length) for m in (other, new)] == [
        ("/see", 4),
        ("/new", 4),
    ]
    assert other.photo[0].file_id != new.photo[0].file_id
    assert (sent.text, sent.caption, edited.text, edited.caption) == (
        *(None, "/look at this"),
        *(None, "and /this"),
    )
    assert [(e.offset, e.length) for e in sent.caption_entities] == [(0, 5)]
    assert [(e.offset, e.length) for e in edited.caption_entities] == [(4, 5)]
    assert sent.entities is edited.entities is None


def test_an_album(bot):
    """As many messages, one after the other, that belong together; the first has the text."""
    seen = []

    @bot.message_handler(content_types=["photo", "video"])
    def handler(message):
        seen.append(message)
        bot.reply_to(message, "ok")

    group = Chat(bot, chat=-100)

    group.album([b"1", {"video": b"2", "caption": "two"}, {"photo": b"3"}], "All", user=8)
    group.album([b"4"])

    assert [message.content_type for message in seen] == ["photo", "video", "photo", "photo"]
    assert [message.caption for message in seen] == ["All", "two", None, None]
    assert [message.from_user.id for message in seen] == [8, 8, 8, 1]
    one, two, three, other = (message.media_group_id for message in seen)
    assert one == two == three != other
    assert [each.get("text") for each in group.messages[:6]] == [None] * 3 + ["ok"] * 3


def test_answers_to_an_album(bot):
    download(bot)

    assert Chat(bot).album([b"1", {"document": b"2"}]) == ["photo 1", "document 2"]


def test_a_user_shares_their_contact(bot):
    seen = record(bot, "message", content_types=["contact"])
    ann = {"id": 5, "first_name": "Ann", "last_name": "Lee"}
    group = Chat(bot, chat=-100)

    group.send(contact="+44123", user=ann)
    group.send(contact={"phone_number": "+1", "first_name": "Bob"}, user=ann)

    own, others = (message.contact for message in seen)
    assert (own.phone_number, own.first_name, own.last_name, own.user_id) == (
        *("+44123", "Ann", "Lee"),
        5,
    )
    assert (others.phone_number, others.user_id) == ("+1", None)


# --- answers ---


def test_an_answer_is_the_call_that_made_it(bot):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        keyboard = types.InlineKeyboardMarkup()
        keyboard.row(types.InlineKeyboardButton("A", callback_data="a"))
        keyboard.row(types.InlineKeyboardButton("B", url="https://example.org"))
        bot.send_message(message.chat.id, "[1]", reply_markup=keyboard, parse_mode="HTML")

    [answer] = Chat(bot).send("hi")

    assert isinstance(answer, Answer)
    assert (answer, answer.method, answer.buttons) == ("[1]", "sendMessage", ["A", "B"])
    assert answer.params["chat_id"] == "1"
    assert answer.params["parse_mode"] == "HTML"
    assert answer.params["text"] == "[1]"
    assert answer.params["reply_markup"]["inline_keyboard"][0][0]["callback_data"] == "a"
    assert answer.result["text"] == "[1]"


def test_an_answer_shows_reply_buttons(bot):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        keyboard = types.ReplyKeyboardMarkup(row_width=2)
        keyboard.add("yes", "no", types.KeyboardButton("maybe"))
        bot.send_message(message.chat.id, "?", reply_markup=keyboard)

    [answer] = Chat(bot).send("hi")

    assert answer.buttons == ["yes", "no", "maybe"]


def test_calls_are_answers_unless_they_only_read(bot):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        assert bot.user.username
        bot.get_chat(message.chat.id)
        bot.send_chat_action(message.chat.id, "typing")
        photo = bot.send_photo(message.chat.id, io.BytesIO(b"..."), caption="look")
        bot.edit_message_caption("look!", photo.chat.id, photo.message_id)
        bot.delete_message(photo.chat.id, photo.message_id)

    answers = Chat(bot).send("hi")

    assert answers == ["", "look", "look!", ""]
    methods = ["sendChatAction", "sendPhoto", "editMessageCaption", "deleteMessage"]
    assert [answer.method for answer in answers] == methods
    assert isinstance(answers[1].params["photo"], io.BytesIO)


def test_media_have_their_caption(bot):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        media = [types.InputMediaPhoto("a"), types.InputMediaVideo("b", caption="two")]
        sent = bot.send_media_group(message.chat.id, media)
        new = types.InputMediaDocument("c", caption="new")
        edited = bot.edit_message_media(new, message.chat.id, sent[0].message_id)
        bot.send_message(message.chat.id, [m.content_type for m in (*sent, edited)])
        assert edited.document.file_id == "c"

    assert Chat(bot).send("hi") == ["two", "new", "['photo', 'video', 'document']"]


def test_each_update_has_its_own_answers(bot):
    echo(bot)
    chat = Chat(bot)

    assert [chat.send(text) for text in "ab"] == [["1: a"], ["1: b"]]
    assert chat.pending() == []


# --- buttons ---


def keyboard(**buttons):
    rows = [
        [types.InlineKeyboardButton(text, callback_data=data)] for text, data in buttons.items()
    ]
    return types.InlineKeyboardMarkup(rows)


@pytest.fixture
def shop(bot):
    """A bot that answers a message by buttons, and a click by an alert and an edit."""

    @bot.message_handler(func=lambda m: True)
    def offer(message):
        bot.send_message(message.chat.id, "buy?", reply_markup=keyboard(Yes="y", No="n"))

    @bot.callback_query_handler(func=lambda query: True)
    def clicked(query):
        where = query.message.chat.id, query.message.message_id
        bot.answer_callback_query(query.id, f"{query.from_user.id} {query.data}")
        if query.data == "y":
            bot.edit_message_text("sure?", *where, reply_markup=keyboard(Sure="s"))
        elif query.data == "s":
            bot.edit_message_text("done", *where)
        else:
            bot.delete_message(*where)

    return bot


@pytest.mark.parametrize("button", ["Yes", "y"])
def test_a_button_is_clicked_by_its_label_or_its_data(shop, button):
    chat = Chat(shop)
    chat.send("hi")

    alert, edit = chat.click(button)

    assert (alert, alert.method) == ("1 y", "answerCallbackQuery")
    assert (edit, edit.method, edit.buttons) == ("sure?", "editMessageText", ["Sure"])


def test_a_click_comes_from_a_message_of_the_bot(bot):
    seen = record(bot, "callback_query")
    chat = Chat(bot, user=7, chat=-100)
    old, new = (bot.send_message(-100, text, reply_markup=keyboard(Go="go")) for text in "ab")

    chat.click("Go")
    chat.click("Go", user=8)

    by_default, by_another = seen
    assert by_default.message.message_id == new.message_id != old.message_id
    assert (by_default.message.text, by_default.message.chat.id) == ("b", -100)
    assert (by_default.message.from_user.id, by_default.message.from_user.is_bot) == (42, True)
    assert (by_default.from_user.id, by_another.from_user.id) == (7, 8)
    assert by_default.id != by_another.id


def test_the_clicked_message_is_where_and_what_it_was_sent(bot):
    seen = record(bot, "callback_query")

    @bot.message_handler(func=lambda m: True)
    def handler(message):
        bot.reply_to(message, "ok", reply_markup=keyboard(Go="go"))

    chat = Chat(bot, chat={"id": -100, "is_forum": True})
    chat.send("question", message_thread_id=3, is_topic_message=True)
    chat.send("answer", reply_to_message=chat.send("again")[0].result)
    bot.send_message(-100, "ok", message_thread_id=3, reply_markup=keyboard(Topic="topic"))

    chat.click("Go")
    chat.click("Topic")

    replying, in_topic = (query.message for query in seen)
    assert replying.reply_to_message.text == "answer"
    assert replying.reply_to_message.reply_to_message is None
    assert (in_topic.message_thread_id, in_topic.is_topic_message) == (3, True)


def test_edited_buttons_count_and_removed_ones_do_not(shop):
    chat = Chat(shop)
    chat.send("hi")
    chat.click("Yes")

    with pytest.raises(LookupError, match=r"'Yes' .*\['Sure'\]"):
        chat.click("Yes")
    assert chat.click("Sure")[1] == "done"
    with pytest.raises(LookupError, match=r"'Sure' .*\[\]"):
        chat.click("Sure")


def test_buttons_of_deleted_messages_and_of_other_chats_are_not_there(shop):
    chat = Chat(shop)
    chat.send("hi")
    Chat(shop, user=2).send("hi")
    chat.click("No")

    with pytest.raises(LookupError):
        chat.click("No")


def test_an_edited_markup_alone_counts(bot):
    sent = bot_message(bot, reply_markup=keyboard(Old="old"))
    chat = Chat(bot)

    bot.edit_message_reply_markup(1, sent.message_id, reply_markup=keyboard(New="new"))
    assert chat.click("New") == []

    bot.edit_message_reply_markup(1, sent.message_id)
    with pytest.raises(LookupError, match=r"\[\]"):
        chat.click("New")


def test_a_button_without_data_can_not_be_clicked(bot):
    button = types.InlineKeyboardButton("Site", url="https://example.org")
    bot_message(bot, reply_markup=types.InlineKeyboardMarkup([[button]]))

    with pytest.raises(LookupError, match=r"\['Site'\]"):
        Chat(bot).click("Site")


def bot_message(bot, **options):
    Chat(bot)
    return bot.send_message(1, "text", **options)


@pytest.mark.parametrize("make", ["inline", "reply"])
def test_a_label_that_is_a_number(bot, make):
    """Telegram takes a number for a text, and gives it back as one."""
    seen = record(bot, "callback_query")
    if make == "inline":
        row = [types.InlineKeyboardButton(n, callback_data=n + 100) for n in (14, 15)]
        row[0].text = 14.5
        markup = types.InlineKeyboardMarkup([row])
    else:
        markup = types.ReplyKeyboardMarkup()
        markup.keyboard = [[{"text": 14.5}, {"text": 15}]]
    sent = bot_message(bot, reply_markup=markup)
    chat = Chat(bot)
    [answer] = chat.pending()

    assert answer.buttons == ["14.5", "15"]
    if make == "inline":
        chat.click("15")
        chat.click("114")
        assert [query.data for query in seen] == ["115", "114"]
        shown = sent.reply_markup.keyboard[0][1]
        assert (shown.text, shown.callback_data) == ("15", "115")


def test_a_text_that_is_a_number(bot):
    sent = bot_message(bot, reply_markup=None)
    assert bot.edit_message_text(15, 1, sent.message_id).text == "15"
    assert bot.send_message(1, 15).text == "15"


def test_a_button_of_before_a_restart_is_clicked_by_its_data(bot):
    seen = record(bot, "callback_query")
    chat = Chat(bot, chat=-100)

    chat.click(data="menu")
    bot.edit_message_text("again", -100, chat.messages[-1]["message_id"])

    [query] = seen
    assert (query.data, query.message.chat.id, query.message.from_user.id) == ("menu", -100, 42)
    assert [message["text"] for message in chat.messages] == ["again"]


def test_data_is_looked_for_first(bot):
    """The button that the bot has sent is the one, where there is one."""
    seen = record(bot, "callback_query")
    buttons = keyboard(**{"15": "day:15", "Day 15": "15"})
    sent = bot_message(bot, reply_markup=buttons)
    chat = Chat(bot)

    chat.click(data="15")
    chat.click("15")

    assert [query.data for query in seen] == ["15", "day:15"]
    assert {query.message.message_id for query in seen} == {sent.message_id}


def test_an_older_message_can_be_clicked(bot):
    seen = record(bot, "callback_query")

    @bot.message_handler(func=lambda m: True)
    def handler(message):
        bot.reply_to(message, "?", reply_markup=keyboard(Go=message.text))

    chat = Chat(bot)
    [[old], [_]] = chat.send("old"), chat.send("new")

    chat.click("Go", message=old)
    chat.click("Go", message=old.result)
    chat.click(data="gone", message=old)
    with pytest.raises(LookupError, match=r"'Yes' .*\['Go'\]"):
        chat.click("Yes", message=old)

    assert [query.data for query in seen] == ["old", "old", "gone"]
    assert {query.message.message_id for query in seen} == {old.result["message_id"]}


def test_a_message_of_before_a_restart_can_be_clicked(make_bot):
    """What the bot had sent is taken along; as the bot edits it then, it is."""
    first, second = make_bot(threaded=False), make_bot(threaded=False)
    before = bot_message(first, reply_markup=keyboard(Go="go")).json
    seen = record(second, "callback_query")
    chat = Chat(second)

    chat.click("Go", message=before)
    second.edit_message_text("new", 1, before["message_id"], reply_markup=keyboard(On="on"))
    chat.click("On", message=before)

    assert [(query.data, query.message.text) for query in seen] == [("go", "text"), ("on", "new")]


# --- several at once ---


def unsafe(bot):
    """Count in a dict, and tell Telegram in between."""
    counts = {}

    @bot.message_handler(func=lambda message: True)
    def handler(message):
        n = counts.get(message.chat.id, 0)
        bot.send_chat_action(message.chat.id, "typing")
        counts[message.chat.id] = n + 1
        bot.send_message(message.chat.id, n + 1)

    return counts


def test_a_race_is_seen(bot):
    """Handlers that nothing keeps apart meet where they call Telegram, every time."""
    counts = unsafe(bot)

    for number in range(1, 6):
        answers = Chat(bot).together("a", "b")
        assert [each[-1] for each in answers] == [str(number)] * 2
    assert counts == {1: 5}


def test_a_session_has_no_race(bot):
    session = with_session(store={})

    @bot.message_handler(func=lambda message: True)
    @session
    def handler(message):
        n = message.session.get("n", 0)
        bot.send_chat_action(message.chat.id, "typing")
        message.session["n"] = n + 1
        bot.send_message(message.chat.id, n + 1)

    answers = Chat(bot).together("a", "b", "c")

    assert sorted(each[-1] for each in answers) == ["1", "2", "3"]
    assert session.peek(key="1:1") == {"n": 3}


def test_whatever_a_user_does_can_be_done_together(shop):
    ann, bob = Chat(shop), Chat(shop, user=2)
    ann.send("hi")
    bob.send("hi")

    clicks = ann.together(lambda: ann.click("Yes"), lambda: bob.click("No"), "hi")

    assert clicks == [["1 y", "sure?"], ["2 n", ""], ["buy?"]]


def test_what_is_raised_together_is_raised_when_all_have_ended(bot):
    counts = unsafe(bot)
    chat = Chat(bot)
    before = sys.getswitchinterval()

    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        chat.together(fail, "a")

    assert counts == {1: 1}
    assert sys.getswitchinterval() == before
    assert chat.send("b")[-1] == "2"


# --- refusals ---


@pytest.mark.parametrize("method", ["send_message", "sendMessage"])
def test_telegram_refuses_a_call(bot, method):
    echo(bot)
    chat, other = Chat(bot), Chat(bot, user=2)

    with chat.refuse(method):
        with pytest.raises(apihelper.ApiTelegramException, match="blocked by the user") as caught:
            chat.send("hi")
        assert other.send("hi") == ["2: hi"]
        bot.send_chat_action(1, "typing")

    assert caught.value.error_code == 403
    assert chat.send("hi") == ["1: hi"]
    assert [message["text"] for message in chat.messages] == ["hi", "hi", "1: hi"]


def test_telegram_refuses_in_its_own_words(bot):
    errors = []

    @bot.message_handler(func=lambda message: True)
    def handler(message):
        try:
            bot.reply_to(message, "hi")
        except apihelper.ApiTelegramException as error:
            errors.append(error)

    chat = Chat(bot)
    with chat.refuse("sendMessage", "Too Many Requests", code=429, retry_after=5):
        assert chat.send("hi") == []

    assert (errors[0].error_code, errors[0].description) == (429, "Too Many Requests")
    assert errors[0].result_json["parameters"] == {"retry_after": 5}


def test_a_call_without_a_chat_is_refused(shop):
    chat = Chat(shop)
    chat.send("hi")

    with (
        chat.refuse("answer_callback_query", "Bad Request: query is too old", code=400),
        pytest.raises(apihelper.ApiTelegramException, match="query is too old"),
    ):
        chat.click("Yes")


@pytest.mark.parametrize("method", ["send_mesage", "reply_to", "sendmessage"])
def test_a_call_that_there_is_not(bot, method):
    """A slip in its name would else refuse nothing; so would what calls another by itself."""
    with pytest.raises(TypeError, match=f"'{method}' .*'sendMessage'"), Chat(bot).refuse(method):
        pass


# --- inline queries and other updates ---


def test_inline_results_are_answers(bot):
    seen = record(bot, "chosen_inline")

    @bot.inline_handler(func=lambda query: True)
    def handler(query):
        content = types.InputTextMessageContent("sent")
        page = int(query.offset or 0)
        results = [
            types.InlineQueryResultArticle("1", f"{query.query} {page}", content),
            types.InlineQueryResultPhoto("2", "url", "thumbnail", caption="photo"),
        ]
        bot.answer_inline_query(query.id, results, cache_time=0)

    chat = Chat(bot)
    article, photo = chat.inline("cats")

    assert (article, photo) == ("cats 0", "photo")
    assert (article.method, article.params["id"]) == ("answerInlineQuery", "1")
    assert article.params["cache_time"] == 0
    assert chat.inline("cats", offset="50")[0] == "cats 50"

    chat.choose(photo)
    assert (seen[0].result_id, seen[0].query, seen[0].from_user.id) == ("2", "cats", 1)


def test_an_inline_query_tells_its_chat_type(bot):
    seen = record(bot, "inline")

    Chat(bot).inline("a")
    Chat(bot, chat=-100).inline("a", user=8)

    assert [query.chat_type for query in seen] == ["sender", "supergroup"]
    assert seen[1].from_user.id == 8


def test_any_update_can_be_sent(bot):
    seen = record(bot, "poll_answer", "message_reaction", "my_chat_member")
    chat = Chat(bot, user=7)
    poll = bot.send_poll(7, "Tea?", ["yes", "no"]).poll
    vote = {"option_ids": [0], "option_persistent_ids": [poll.options[0].persistent_id]}

    chat.update(poll_answer={**vote, "poll_id": poll.id, "user": chat.user})
    place = {"chat": chat.chat, "user": chat.user, "date": 0}
    chat.update(message_reaction={**place, "message_id": 1, "old_reaction": [], "new_reaction": []})

    answered, reacted = seen
    assert (answered.poll_id, answered.user.id) == (poll.id, 7)
    assert (reacted.chat.id, reacted.user.id) == (7, 7)


# --- threads ---


def test_handlers_run_in_the_callers_thread_and_the_pool_is_given_back(threaded):
    idents = []
    threaded.message_handler(func=lambda m: True)(lambda m: idents.append(threading.get_ident()))
    chat = Chat(threaded)

    chat.send("hi")

    assert idents == [threading.get_ident()]
    assert threaded.threaded
    done = threading.Event()
    threaded.message_handlers.clear()
    threaded.message_handler(func=lambda m: True)(
        lambda m: (idents.append(threading.get_ident()), done.set())
    )
    message = {"message_id": 1, "date": 0, "chat": chat.chat, "text": "from elsewhere"}
    threaded.process_new_messages([types.Message.de_json(message)])
    assert done.wait(TIMEOUT)
    assert idents[1] != idents[0]


def test_chats_of_one_bot_run_in_parallel_each_with_its_own_answers(threaded):
    together = threading.Barrier(4, timeout=TIMEOUT)

    @threaded.message_handler(func=lambda m: True)
    def handler(message):
        for turn in range(20):
            together.wait()  # breaks if handlers take turns
            threaded.send_message(message.chat.id, f"{message.text} {turn}")

    chats = [Chat(threaded, user=user) for user in (1, 2, 3, 4)]

    results = in_threads(*(lambda chat=chat: chat.send(str(chat.user["id"])) for chat in chats))

    assert results == [[f"{user} {turn}" for turn in range(20)] for user in (1, 2, 3, 4)]
    assert (threaded.threaded, threaded.exception_handler) == (True, None)


def test_a_bot_stays_set_up_until_the_last_overlapping_update_is_done(threaded):
    first_in, second_done = threading.Event(), threading.Event()

    @threaded.message_handler(regexp="first")
    def first(message):
        first_in.set()
        assert second_done.wait(TIMEOUT)
        # Dispatched by the bot in the midst of the first update, after the second one ended.
        threaded.process_new_messages([types.Message.de_json(message.json | {"text": "inner"})])

    idents = []
    threaded.message_handler(regexp="inner")(lambda m: idents.append(threading.get_ident()))

    def second():
        assert first_in.wait(TIMEOUT)
        Chat(threaded, user=2).send("second")
        second_done.set()

    def send_first():
        Chat(threaded).send("first")
        return [threading.get_ident()]

    assert in_threads(send_first, second)[0] == idents
    assert threaded.threaded


def test_a_handler_may_use_a_chat_itself(bot):
    @bot.message_handler(regexp="outer")
    def outer(message):
        bot.send_message(message.chat.id, "before")
        inner = Chat(bot, user=2).send("inner")
        bot.send_message(message.chat.id, f"after {inner}")

    @bot.message_handler(regexp="inner")
    def inner(message):
        bot.send_message(message.chat.id, "in")

    assert Chat(bot).send("outer") == ["before", "after ['in']"]


def test_calls_from_a_thread_of_the_handler_are_pending(bot):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        def later():
            results.append(bot.send_message(message.chat.id, f"late {message.text}"))

        thread = threading.Thread(target=later)
        thread.start()
        thread.join(TIMEOUT)
        bot.send_message(message.chat.id, "now")

    results = []
    chat, other = Chat(bot), Chat(bot, user=2)

    assert chat.send("a") == ["now"]
    assert other.send("b") == ["now"]
    assert [message.text for message in results] == ["late a", "late b"]
    assert other.pending() == ["late b"]
    assert chat.pending() == ["late a"]
    assert chat.pending() == []


# --- exceptions ---


class Handler(telebot.ExceptionHandler):
    def __init__(self, handles):
        self.handles, self.asked = handles, []

    def handle(self, exception):
        self.asked.append(exception)
        return self.handles


def failing(bot, error):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        bot.send_message(message.chat.id, "before")
        raise error

    return bot


MODES = [
    {"threaded": threaded, "use_class_middlewares": middlewares}
    for threaded in (True, False)
    for middlewares in (True, False)
]


@pytest.mark.parametrize("mode", MODES)
def test_what_a_handler_raises_reaches_the_caller(make_bot, mode):
    error = KeyError("x")
    bot = failing(make_bot(**mode), error)

    with pytest.raises(KeyError) as caught:
        Chat(bot).send("hi")

    assert caught.value is error
    assert bot.threaded == mode["threaded"]


@pytest.mark.parametrize("handles", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_bots_exception_handler_is_asked_first(make_bot, mode, handles):
    error, handler = KeyError("x"), Handler(handles)
    bot = failing(make_bot(exception_handler=handler, **mode), error)
    chat = Chat(bot)

    if handles:
        assert chat.send("hi") == ["before"]
    else:
        with pytest.raises(KeyError):
            chat.send("hi")

    assert handler.asked == [error]
    assert bot.exception_handler is handler


@pytest.mark.parametrize("handles", [True, False])
def test_what_a_typed_middleware_raises_is_treated_alike(make_bot, monkeypatch, handles):
    monkeypatch.setattr(apihelper, "ENABLE_MIDDLEWARE", True)
    error, handler = KeyError("x"), Handler(handles)
    bot = make_bot(threaded=False, exception_handler=handler)

    @bot.middleware_handler(update_types=["message"])
    def middleware(bot, message):
        raise error

    if handles:
        assert Chat(bot).send("hi") == []
    else:
        with pytest.raises(KeyError):
            Chat(bot).send("hi")
    assert handler.asked == [error]


def test_class_middlewares_run_around_the_handler(make_bot):
    class Middleware(BaseMiddleware):
        update_types = ("message",)

        def pre_process(self, message, data):
            data["name"] = "Ann"
            return CancelUpdate() if message.text == "stop" else None

        def post_process(self, message, data, exception):
            bot.send_message(message.chat.id, f"after {exception}")

    bot = make_bot(threaded=False, use_class_middlewares=True)
    bot.setup_middleware(Middleware())

    @bot.message_handler(func=lambda m: True)
    def handler(message, data):
        bot.send_message(message.chat.id, data["name"])

    assert Chat(bot).send("hi") == ["Ann", "after None"]
    assert Chat(bot).send("stop") == []


def test_an_error_leaves_the_next_update_alone(bot):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        bot.send_message(message.chat.id, str(1 / int(message.text)))

    chat = Chat(bot)

    with pytest.raises(ZeroDivisionError):
        chat.send("0")
    assert chat.send("1") == ["1.0"]


# --- the hook ---


def response(result):
    return telebot.util.CustomRequestResponse(json.dumps({"ok": True, "result": result}))


def test_calls_of_other_bots_go_to_the_hook_that_was_there(bot):
    urls = []

    def before(method, url, params=None, files=None, timeout=None, proxies=None):
        urls.append(url)
        return response({"id": 9, "is_bot": True, "first_name": "Other"})

    apihelper.CUSTOM_REQUEST_SENDER = before
    Chat(bot)

    assert telebot.TeleBot("9:other", threaded=False).get_me().first_name == "Other"
    assert bot.get_me().id == 42
    assert urls == ["https://api.telegram.org/bot9:other/getMe"]


def test_calls_of_other_bots_go_to_telegram_where_there_was_no_hook(bot, monkeypatch):
    class Session:
        def request(self, method, url, params, files, timeout, proxies):
            assert (method, url) == ("post", "https://api.telegram.org/bot9:other/sendMessage")
            assert params["text"] == "hi"
            return response({"message_id": 77, "date": 0, "chat": {"id": 1, "type": "private"}})

    monkeypatch.setattr(apihelper, "_get_req_session", Session)
    Chat(bot)

    assert telebot.TeleBot("9:other", threaded=False).send_message(1, "hi").message_id == 77


def test_a_hook_set_later_comes_first(bot):
    echo(bot)
    chat = Chat(bot)
    ours = apihelper.CUSTOM_REQUEST_SENDER

    def blocked(method, url, **request):
        if not url.endswith("/sendMessage"):
            return ours(method, url, **request)
        refusal = {"ok": False, "error_code": 403, "description": "Forbidden: bot was blocked"}
        return telebot.util.CustomRequestResponse(json.dumps(refusal), 403)

    apihelper.CUSTOM_REQUEST_SENDER = blocked

    with pytest.raises(apihelper.ApiTelegramException, match="Forbidden"):
        chat.send("hi")


def test_an_update_that_there_is_not(bot):
    """A slip in its name would else be an update that no handler is for."""
    with pytest.raises(TypeError, match=r"mesage: .* no such update"):
        Chat(bot).update(mesage={}, poll={})


def test_a_hook_taken_away_is_back_for_the_next_update(bot):
    echo(bot)
    chat = Chat(bot)
    apihelper.CUSTOM_REQUEST_SENDER = None

    assert chat.send("hi") == ["1: hi"]


def test_bots_with_one_token_are_told_apart(make_bot):
    one, two = make_bot(threaded=False), make_bot(threaded=False)
    echo(one)
    echo(two)
    chat, newer = Chat(one), Chat(two, user=2)
    one.send_message(1, "out of the blue")

    assert chat.send("a") == ["1: a"]
    assert newer.send("b") == ["2: b"]
    assert chat.pending() == []


def test_other_api_urls_are_recognised(bot, monkeypatch):
    monkeypatch.setattr(apihelper, "API_URL", "http://localhost/bot{0}/test/{1}")
    Chat(bot)

    assert bot.get_me().is_bot


# --- the Bot API ---


def test_the_bot_knows_itself_without_a_network(bot):
    Chat(bot)

    assert bot.user.id == bot.get_me().id == 42
    assert bot.user.is_bot


def test_chats_and_members_are_those_asked_for(bot):
    Chat(bot, user={"id": 5, "first_name": "Ann"})

    assert bot.get_chat(5).first_name == "Ann"
    assert bot.get_chat("-100").type == "supergroup"
    assert bot.get_chat("@news").username == "news"
    member = bot.get_chat_member(-100, 5)
    assert (member.user.id, member.status) == (5, "member")


@pytest.mark.parametrize(
    ("method", "args", "content", "expected"),
    [
        ("send_photo", ["f"], lambda m: m.photo[0].file_id, "f"),
        ("send_document", ["f"], lambda m: m.document.file_id, "f"),
        ("send_video_note", ["f"], lambda m: m.video_note.file_id, "f"),
        ("send_location", [1.5, 2.5], lambda m: m.location.latitude, 1.5),
        ("send_venue", [1.5, 2.5, "Home", "St"], lambda m: m.venue.location.longitude, 2.5),
        ("send_contact", ["123", "Ann"], lambda m: m.contact.phone_number, "123"),
        ("send_poll", ["Tea?", ["yes", "no"]], lambda m: m.poll.options[1].text, "no"),
        ("send_dice", ["🎯"], lambda m: m.dice.emoji, "🎯"),
    ],
)
def test_a_sent_message_has_its_content(bot, method, args, content, expected):
    Chat(bot)

    message = getattr(bot, method)(1, *args)

    assert message.content_type == method.removeprefix("send_")
    assert content(message) == expected


def test_copied_and_forwarded_messages_keep_their_content(bot):
    Chat(bot)
    sent = bot.send_message(1, "text", reply_markup=keyboard(Go="go"))

    forwarded = bot.forward_message(2, 1, sent.message_id)
    copies = bot.copy_messages(3, 1, [sent.message_id, forwarded.message_id])

    assert (forwarded.text, forwarded.chat.id, forwarded.reply_markup) == ("text", 2, None)
    ids = [sent.message_id, forwarded.message_id, *(copy.message_id for copy in copies)]
    assert sorted(set(ids)) == ids


def test_an_edited_message_stays_itself(bot):
    sent = bot_message(bot)

    edited = bot.edit_message_text("new", 1, sent.message_id)
    unknown = bot.edit_message_text("new", 1, 12345)
    inline = bot.edit_message_text("new", inline_message_id="x")

    assert (edited.message_id, edited.text) == (sent.message_id, "new")
    assert (unknown.message_id, unknown.text) == (12345, "new")
    assert inline is True


def test_a_live_location_moves(bot):
    Chat(bot)
    sent = bot.send_location(1, 1.5, 2.5, live_period=60)

    assert bot.edit_message_live_location(3.5, 2.5, 1, sent.message_id).location.latitude == 3.5


def test_a_stopped_poll_is_the_one_that_was_sent(bot):
    Chat(bot)
    sent = bot.send_poll(1, "Tea?", ["yes", "no"])

    poll = bot.stop_poll(1, sent.message_id)

    assert (poll.id, poll.question) == (sent.poll.id, "Tea?")


@pytest.mark.parametrize(
    ("method", "returns"),
    [("setAnything", bool), ("sendHologram", dict), ("getAnything", dict), ("anything", bool)],
)
def test_a_call_unknown_to_the_harness_gets_a_likely_result(bot, method, returns):
    chat = Chat(bot)

    result = apihelper._make_request(bot.token, method, params={"chat_id": 1, "text": "hi"})

    assert type(result) is returns
    assert chat.pending() == ([] if method.startswith("get") else ["hi"])
    if method == "sendHologram":
        assert types.Message.de_json(result).text == "hi"
