"""`telesession.terminal`: a chat with a bot by hand."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import telebot
from telebot.types import InlineKeyboardButton, InlineKeyboardMarkup

from telesession import terminal

pytestmark = pytest.mark.thorough

COUNTER = Path(__file__).parent.parent / "examples" / "counter.py"
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


@pytest.mark.parametrize("line", ["/as", "/as --5", "/as -5", "/as 0", "/as nobody", "/as 2 3"])
def test_as_needs_a_user(bot, capsys, line):
    """What is no user's number changes nothing, and the line says what is needed."""
    chat(bot, f"{line}\nhi\n")
    shown = capsys.readouterr()
    assert "(/as needs a user's number: /as 2)" in shown.out
    assert "bot> 1 sure?" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("line", ["/chat --5", "/chat 5", "/chat -0", "/chat here"])
def test_chat_needs_a_group(bot, capsys, line):
    chat(bot, f"/chat -7\n{line}\nhi\n")
    shown = capsys.readouterr()
    assert "(/chat needs a group's number, which is negative: /chat -100)" in shown.out
    assert "user 1 in -7> hi" in shown.out
    assert shown.err == ""


def test_the_prompt_says_where_one_is(bot, capsys):
    """In a group it names the group, and in the private chat nothing more."""
    chat(bot, "hi\n/chat\nhi\n/as 3\n/chat -6\nho\n", chat=-5)
    prompts = [line for line in capsys.readouterr().out.splitlines() if line.startswith("user ")]
    assert prompts == [
        "user 1 in -5> hi",
        "user 1 in -5> /chat",
        "user 1> hi",
        "user 1> /as 3",
        "user 3> /chat -6",
        "user 3 in -6> ho",
    ]


def test_click_alone(bot, capsys):
    """It lists what could be clicked."""
    chat(bot, "/click\nhi\n/click\n")
    shown = capsys.readouterr().out
    assert "(click which button? There is none in this chat.)" in shown
    assert "(click which button? There are ['Yes'].)" in shown


def test_help(bot, capsys):
    """All lines of the terminal's own are listed; the bot may have a /help, too."""

    @bot.message_handler(commands=["help"])
    def ignored(message):
        raise AssertionError("the handler for all messages comes first")

    chat(bot, "/help\n")
    shown = capsys.readouterr().out
    for command in ("/as 2", "/chat -100", "/click Yes", "/inline cats", "/edit hello", "/help"):
        assert f"    {command} " in shown
    assert "bot> 1 sure?" in shown


def test_ctrl_c_in_a_handler(bot, capsys):
    """It ends the chat, and shows no traceback."""

    @bot.message_handler(content_types=["text"])
    def interrupted(message):
        raise KeyboardInterrupt

    bot.message_handlers.insert(0, bot.message_handlers.pop())
    chat(bot, "hi\nhi\n")
    shown = capsys.readouterr()
    assert shown.out.count("user 1> hi") == 1
    assert shown.err == ""


class Terminal:
    """`examples/counter.py` on a terminal of its own."""

    def __init__(self):
        import pty

        self.here, there = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if name != "BOT_TOKEN"}
        environment["TERM"] = "xterm"
        self.process = subprocess.Popen(
            [sys.executable, COUNTER], stdin=there, stdout=there, stderr=there, env=environment
        )
        os.close(there)
        self.shown = ""

    def type(self, keys):
        os.write(self.here, keys.encode())

    def wait_for(self, text):
        while text not in self.shown:
            try:
                read = os.read(self.here, 1000)
            except OSError:  # how Linux tells that the other side has closed it
                read = b""
            assert read, self.shown
            self.shown += read.decode()

    def end(self):
        try:
            return self.process.wait(timeout=30)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.here)


@pytest.mark.skipif(sys.platform == "win32", reason="has no pty")
@pytest.mark.parametrize("end", ["Ctrl-C", "Ctrl-D"])
def test_keys(end):
    """The arrow up brings the last line back; Ctrl-C and Ctrl-D end it quietly."""
    pytest.importorskip("readline")
    terminal = Terminal()
    try:
        terminal.wait_for("user 1> ")
        terminal.type("hello\r")
        terminal.wait_for("bot> 1 messages")
        terminal.type("\x1b[A\r")
        terminal.wait_for("bot> 2 messages")
        terminal.wait_for("user 1> ")
        for _ in range(30):  # one that comes just before it waits for a line is not seen
            if end == "Ctrl-D":
                terminal.type("\x04")
            else:  # what the shell's terminal makes of the key; this one controls no process
                terminal.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                terminal.process.wait(1)
                break
    finally:
        code = terminal.end()
    assert code == 0
    assert terminal.shown.count("user 1> hello") == 2
    assert "Traceback" not in terminal.shown
