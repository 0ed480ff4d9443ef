"""Forms of bots that really poll: killed between questions, and two of them on one database."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import telesession
from telesession import keys, with_session
from telesession.sql import SQLStore
from tests.botapi import BotAPI
from tests.updates import DATE

pytestmark = pytest.mark.thorough

SURVEY = Path(__file__).parent / "bots" / "survey.py"
TIMEOUT = 60


class Process:
    """A bot in a process of its own, that polls a server."""

    def __init__(self, server, url):
        self.server = server
        self._command = [sys.executable, str(SURVEY), str(server.port), url]
        # The very package under test, installed or not.
        home = str(Path(telesession.__file__).parents[1])
        self._environment = {**os.environ, "PYTHONPATH": home, "no_proxy": "127.0.0.1"}
        self._numbers = iter(range(100, 10**6))
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            self._command, env=self._environment, stderr=subprocess.DEVNULL
        )

    def kill(self):
        self._process.kill()
        self._process.wait(TIMEOUT)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill()

    def send(self, user, text):
        person = {"id": user, "is_bot": False, "first_name": f"User {user}"}
        chat = {"id": user, "type": "private", "first_name": f"User {user}"}
        message = {"message_id": next(self._numbers), "from": person, "chat": chat, "date": DATE}
        self.server.feed([{"message": {**message, "text": text}}])

    def said(self, since=0):
        """What it sent to whom."""
        calls = self.server.sent[since:]
        return [(int(p["chat_id"]), p["text"]) for method, p in calls if method == "sendMessage"]


def wait(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.001)


TALK = [
    ("/start", "Name?"),
    ("7", "Age?"),  # an answer to either of two questions
    ("old", "A number, please."),
    ("8", "City?"),
    ("/back", "Age?"),
    ("9", "City?"),
    ("Oslo", "Right?"),
    ("no", "Name?"),
    ("5", "Age?"),
    ("6", "City?"),
    ("Rome", "Right?"),
]


def test_killed_between_any_two_questions(sqlite, sqlite_url):
    """9.5 Killed as soon as each of 11 answers is saved, it goes on where it was.

    Telegram sends to the new process what the old one had not confirmed.
    """
    saved = with_session(property="form_7", key=keys.user_topic, store=SQLStore(sqlite))

    with BotAPI() as server, Process(server, sqlite_url) as bot:
        for number, (text, expected) in enumerate(TALK, start=1):
            before = len(server.sent)
            bot.send(42, text)
            wait(lambda: (42, expected) in bot.said(before))  # noqa: B023
            wait(lambda: len((saved.peek(key="42:42") or {}).get("handled", [])) == number)  # noqa: B023
            bot.kill()
            bot.start()
        before = len(server.sent)
        bot.send(42, "yes")
        wait(lambda: bot.said(before) == [(42, "5, 6, Rome")])


def test_two_processes_on_one_database(sqlite_url):
    """9.3 Each gets every other message of 50 users: all 50 forms are complete and right."""
    users = range(1, 51)
    with (
        BotAPI() as one,
        BotAPI() as two,
        Process(one, sqlite_url) as first,
        Process(two, sqlite_url) as second,
    ):
        for step, text in enumerate(["/start", "Ada {}", "{}", "Rome", "yes"], start=1):
            for user in users:
                bot = (first, second)[(user + step) % 2]
                bot.send(user, text.format(user))
            wait(lambda: len(first.said()) + len(second.said()) >= step * len(users))  # noqa: B023
        said = first.said() + second.said()
    asked = ["Name?", "Age?", "City?", "Right?"]
    assert sorted(said) == sorted(
        (user, text) for user in users for text in [*asked, f"Ada {user}, {user}, Rome"]
    )
