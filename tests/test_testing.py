"""`telesession.testing`: what a user of a `Chat` can send, and what the bot gets of it."""

import inspect
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import telebot
from telebot import apihelper, types

from telesession import keys, with_session
from telesession.testing import Chat
from tests import testing_bots
from tests.testing_bots import echo, record

pytestmark = pytest.mark.thorough

no_network = testing_bots.no_network
hook = testing_bots.hook
make_bot = testing_bots.make_bot
bot = testing_bots.bot


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


def test_a_file_in_json_stays_as_it_is(bot):
    seen = record(bot, "message", content_types=["document", "photo"])
    small = {"file_id": "s", "file_unique_id": "S", "width": 1, "height": 1}
    Chat(bot).send(document={"file_id": "d", "file_unique_id": "D"})
    Chat(bot).send(photo=[small, {**small, "file_id": "l"}])
    assert seen[0].document.file_id == "d"
    assert [size.file_id for size in seen[1].photo] == ["s", "l"]


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


@pytest.mark.skipif(
    not hasattr(telebot.TeleBot, "message_reaction_handler"), reason="this version has no reactions"
)
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
