"""The README can't lie: its Python blocks run, in order, as one program."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import docutils.core
import pytest
import telebot

from telesession import SessionDataError, keys, with_session
from telesession._telegram import user_json
from telesession.memory import default_store
from telesession.testing import Chat

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text(encoding="utf-8")


def python_blocks(start=0):
    pattern = re.compile(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", re.M)
    for block in pattern.finditer(README, start):
        line = README[: block.start()].count("\n") + 3
        yield "\n" * (line - 1) + re.sub("^    ", "", block[1], flags=re.M)


@pytest.fixture
def readme(monkeypatch, tmp_path):
    """What there is after all blocks of the README have run, in order."""
    monkeypatch.setenv("BOT_TOKEN", "42:readme")
    monkeypatch.setattr(telebot.TeleBot, "infinity_polling", lambda bot: None)
    monkeypatch.chdir(tmp_path)
    default_store.clear()
    names = {"__name__": "readme"}
    for block in python_blocks():
        exec(compile(block, "README.rst", "exec"), names)
    default_store.clear()
    yield SimpleNamespace(**names)
    names["on_sqlite"].engine.dispose()
    default_store.clear()


def chats(readme):
    """User 1 in a private chat with the bot, and in a group; the first handler takes all texts."""
    readme.bot.message_handlers.pop(0)
    return Chat(readme.bot), Chat(readme.bot, chat=-100)


def test_blocks_run_in_order(readme):
    """What the README shows works as it stands, its assertions included."""
    assert len(list(python_blocks())) >= 10


def test_a_transfer(readme):
    """5.6 Both wallets, or none."""
    _, group = chats(readme)
    group.send("hi", user=2)
    theirs = {"message_id": 1, "date": 1, "chat": group.chat, "from": user_json(2), "text": "hi"}

    group.send("/pay", reply_to_message=theirs)
    group.send("/pay", user=2, reply_to_message=theirs)  # to oneself

    assert [readme.wallet.peek(key=user) for user in (1, 2)] == [{"coins": 95}, {"coins": 105}]


def test_a_broadcast(readme):
    """5.7 To all users, of whom those are forgotten who have blocked the bot."""
    chats(readme)
    for user in (1, 2):
        with readme.record.open(key=user) as data:
            data["n"] = 1

    def refuse(user, text):
        if user == "2":
            result = {"error_code": 403, "description": "Forbidden: bot was blocked by the user"}
            raise telebot.apihelper.ApiTelegramException("sendMessage", None, result)

    readme.bot.send_message = refuse
    readme.broadcast(None)

    assert list(readme.record.keys()) == ["1"]


def test_a_form(readme):
    """9.1 Answers are checked, and asked for once more where the user says so."""
    private, _ = chats(readme)
    assert private.send("/pizza") == ["How many pizzas?"]
    assert private.send("many") == ["A number, please."]
    assert private.send("2") == ["2 pizzas?"]
    assert private.click("no")[-1] == "How many pizzas?"
    assert private.send("3") == ["3 pizzas?"]
    assert private.click("yes")[-1] == "3 pizzas are on their way."


def test_a_conversation_by_hand(readme):
    """5.8 The handler is for one step."""
    private, _ = chats(readme)
    assert private.send("Ann") == []
    with readme.session.open(key="1:1") as data:
        data["step"] = "name"
    assert private.send("Ann") == ["Welcome, Ann."]
    assert private.send("Bob") == []


def test_a_filter_that_looks(readme):
    """5.7 It sees what is stored."""
    private, _ = chats(readme)
    (condition,) = re.findall(r"func=(lambda m: \(session\.peek.*?)``", README, re.S)

    @readme.bot.message_handler(commands=["sudo"], func=eval(condition, vars(readme)))
    def sudo(message):
        readme.bot.reply_to(message, "You may.")

    before = private.send("/sudo")
    with readme.session.open(key="1:1") as data:
        data["admin"] = True

    assert (before, private.send("/sudo")) == ([], ["You may."])


def test_starting_anew(readme):
    """4.5, 7.1 What can't be read is removed, and what could only not be saved is not."""
    default_store.commit(*unread(default_store, "session:1:1"))
    with readme.session.open(key="2:2") as data:
        data["n"] = 1
    private, _ = chats(readme)

    @readme.bot.message_handler(commands=["lambda"])
    @readme.session
    def keep_a_lambda(message):
        message.session["n"] = lambda: None

    assert private.send("/reset") == []
    assert "session:1:1" not in default_store
    with pytest.raises(SessionDataError):
        Chat(readme.bot, user=2).send("/lambda")
    assert readme.session.peek(key="2:2") == {"n": 1}


PAIRS = {
    "a dict": ("bot", [("/iam Ann", ["Hello, Ann!"]), ("/iam Bob", ["Hello, Bob!"])]),
    "an object": ("bot", [("/order", ["Which dish?"]), ("soup", ["Enjoy it! 1 ordered."])]),
    "states": ("form_bot", [("/go", ["a"]), ("on", ["b"])]),
}


@pytest.mark.parametrize("which", [0, 1], ids=["before", "after"])
@pytest.mark.parametrize("pair", PAIRS)
def test_coming_from(pair, which, monkeypatch, tmp_path):
    """8.1 What a bot had, and what it has here, in a bot of its own: the same answers."""
    monkeypatch.setenv("BOT_TOKEN", "42:readme")
    monkeypatch.chdir(tmp_path)
    section = next(python_blocks(README.index("Coming from...\n---")))
    parts = re.split(r"^# .*\b(?:before|after)\b.*\n", section, flags=re.M)[1:]
    number = 2 * list(PAIRS).index(pair)
    names = {"os": os, "telebot": telebot, "with_session": with_session, "keys": keys}
    names |= {"bot": telebot.TeleBot("1:test"), "session": with_session(store={})}
    for part in parts[number : number + 1 + which] if pair == "states" else [parts[number + which]]:
        exec(compile(part, "README.rst", "exec"), names)
    name, conversation = PAIRS[pair]
    bot = names[name]

    @bot.message_handler(func=lambda message: message.text in ("/go", "on"))
    def states(message):
        user = message.from_user.id
        bot.set_state(user, {None: "a", "a": "b"}[bot.get_state(user)])
        with bot.retrieve_data(user) as data:
            data["n"] = 1
        bot.send_message(user, bot.get_state(user))

    chat = Chat(bot)
    assert [(text, chat.send(text)) for text, _ in conversation] == conversation
    default_store.clear()


def test_files_are_brought_over(readme):
    """The line that README shows, on what the handler finds then."""
    id, fields = 5, {"name": "Ann"}
    (line,) = re.findall(r"``(with by_chat.open.*?)``", README)
    exec(line, {"by_chat": readme.by_chat, "id": id, "fields": fields})
    assert readme.by_chat.peek(key=5) == {"name": "Ann"}


def unread(store, name):
    """The lease of a session, and changes by which it can't be read any more."""
    lease, _ = store.open([name], 0)
    return lease, [(name, b"no pickle", None)]


def test_no_markup_errors():
    """The package index refuses a description with errors in its markup."""
    settings = {"halt_level": 2, "report_level": 2, "syntax_highlight": "none"}
    docutils.core.publish_string(README, writer="null", settings_overrides=settings)


def test_first_screen_is_a_bot_of_fifteen_lines():
    first = next(python_blocks()).strip().splitlines()
    assert len(first) <= 15


@pytest.mark.parametrize(
    "name", re.findall(r"``((?:examples|telesession)[/.][\w/.]+?)(?:\(|``)", README)
)
def test_names_exist(name):
    """Files and modules that the README names are there."""
    if "/" in name:
        assert (ROOT / name).exists()
    else:
        code = f"import pkgutil; pkgutil.resolve_name({name!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
