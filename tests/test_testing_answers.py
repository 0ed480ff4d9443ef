"""`telesession.testing`: what a `Chat` sees of a bot's calls, and what can be clicked."""

import io

import pytest
import telebot
from telebot import apihelper, types

from telesession.testing import Answer, Chat
from tests import testing_bots
from tests.testing_bots import echo, keyboard, record

pytestmark = pytest.mark.thorough

no_network = testing_bots.no_network
hook = testing_bots.hook
make_bot = testing_bots.make_bot
bot = testing_bots.bot
shop = testing_bots.shop


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


def test_a_thread_of_an_ordinary_group_is_no_topic(bot):
    Chat(bot, chat=-100)
    sent = bot.send_message(-100, "ok", message_thread_id=3)
    assert (sent.message_thread_id, sent.is_topic_message) == (3, None)


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


@pytest.mark.skipif(
    not hasattr(telebot.TeleBot, "copy_messages"), reason="this version copies one at a time"
)
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
