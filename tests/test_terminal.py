"""`telesession.terminal`: a chat with a bot by hand."""

import io

import pytest
import telebot
from telebot.types import InlineKeyboardButton, InlineKeyboardMarkup

from telesession import terminal

INLINE = telebot.types.InlineQueryResultArticle


@pytest.fixture
def bot():
    bot = telebot.TeleBot("42:terminal")

    @bot.message_handler(commands=["fail"])
    def fail(message):
        raise ValueError("on purpose")

    @bot.message_handler(func=lambda message: True)
    def ask(message):
        buttons = InlineKeyboardMarkup([[InlineKeyboardButton("Yes", callback_data="y")]])
        bot.send_message(message.chat.id, f"{message.from_user.id} sure?", reply_markup=buttons)

    @bot.edited_message_handler(func=lambda message: True)
    def edited(message):
        bot.send_chat_action(message.chat.id, "typing")
        bot.send_message(message.chat.id, f"edited to {message.text}")

    @bot.callback_query_handler(func=lambda call: True)
    def clicked(call):
        bot.answer_callback_query(call.id)
        bot.send_message(call.message.chat.id, f"got {call.data}")

    @bot.inline_handler(lambda query: True)
    def inline(query):
        text = telebot.types.InputTextMessageContent("x")
        bot.answer_inline_query(query.id, [INLINE("1", f"found {query.query}", text)])

    return bot


def chat(bot, typed, **options):
    terminal.run(bot, lines=io.StringIO(typed), **options)


def test_messages_clicks_queries_and_edits(bot, capsys):
    """Everything a user does in a chat can be done in the terminal."""
    chat(bot, "hi\n/click Yes\n/inline cats\n/edit ho\n")
    shown = capsys.readouterr().out.splitlines()[1:]
    assert shown == [
        "user 1> hi",
        "bot> 1 sure?",
        "     [Yes]",
        "user 1> /click Yes",
        "bot> got y",
        "user 1> /inline cats",
        "bot> found cats",
        "user 1> /edit ho",
        "bot> (sendChatAction)",
        "bot> edited to ho",
    ]


def test_error_in_a_handler_is_shown(bot, capsys):
    """A handler's error is printed with its traceback, and the chat goes on."""
    chat(bot, "/fail\nhi\n")
    shown = capsys.readouterr()
    assert "ValueError: on purpose" in shown.err
    assert "bot> 1 sure?" in shown.out


def test_groups(bot, capsys):
    """/chat goes to a group, where /click finds that group's buttons only."""
    chat(bot, "hi\n/chat -5\n/click Yes\n/chat\n/click Yes\n")
    shown = capsys.readouterr().out
    assert shown.count("bot> got y") == 1
    assert "no inline button" in shown


def test_prompt_on_a_real_terminal(bot, capsys):
    """Whoever types sees a prompt, and not their own line a second time."""

    class Keyboard(io.StringIO):
        def isatty(self):
            return True

    terminal.run(bot, lines=Keyboard("hi\n"))
    assert "user 1> bot> 1 sure?" in capsys.readouterr().out
