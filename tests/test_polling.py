import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

import telesession
from tests.botapi import BotAPI
from tests.updates import DATE

COUNTING = Path(__file__).parent / "bots" / "counting.py"
ENDING = COUNTING.with_name("ending.py")
README = Path(__file__).parent.parent / "README.rst"

USERS = range(1, 51)
MESSAGES_EACH = 20
TIMEOUT = 60


def shuffled_messages():
    senders = [user for user in USERS for _ in range(MESSAGES_EACH)]
    random.Random(42).shuffle(senders)
    for message_id, user in enumerate(senders, start=1):
        yield {
            "message": {
                "message_id": message_id,
                "from": {"id": user, "is_bot": False, "first_name": f"User {user}"},
                "chat": {"id": user, "type": "private", "first_name": f"User {user}"},
                "date": DATE,
                "text": "hello",
            }
        }


def environment():
    return {
        **os.environ,
        # The very package under test, installed or not.
        "PYTHONPATH": str(Path(telesession.__file__).parents[1]),
        "no_proxy": "127.0.0.1",
    }


def wait_for_answers(server, process, n):
    deadline = time.monotonic() + TIMEOUT
    # In short turns, to see early that the process died.
    while not server.wait_sent(n, timeout=0.5):
        assert process.poll() is None, "the bot's process died"
        assert time.monotonic() < deadline, f"{len(server.sent)} of {n} answers"


def test_a_polling_bot_loses_and_doubles_no_message(tmp_path):
    """Real polling: a `TeleBot.infinity_polling()` in a process of its own, against an HTTP
    Bot API server on loopback: 1,000 messages of 50 users in random order (seeded), answers
    checked one by one, none lost, none doubled, every user's counts in order."""
    errors = tmp_path / "stderr"
    messages = list(shuffled_messages())

    with BotAPI() as server, errors.open("w") as stderr:
        server.feed(messages)
        process = subprocess.Popen(
            [sys.executable, str(COUNTING), str(server.port)], env=environment(), stderr=stderr
        )
        try:
            wait_for_answers(server, process, len(messages))
        except AssertionError as error:
            raise AssertionError(f"{error}; its stderr:\n{errors.read_text()}") from None
        finally:
            process.terminate()
            process.wait(timeout=10)
        sent = server.sent

    answers = defaultdict(list)
    for method, params in sent:
        assert method == "sendMessage"
        answers[int(params["chat_id"])].append(params["text"])
    # A session is locked until its handler has sent the answer, so even with two worker threads
    # the answers to one user arrive in the order of the counts.
    assert answers == {user: [f"{user} {n}" for n in range(1, MESSAGES_EACH + 1)] for user in USERS}


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM that could be handled")
def test_a_bot_that_is_ended_loses_and_doubles_no_message(tmp_path, sqlite_url):
    """4.1 As the README has it: what the bot had got is handled, Telegram knows that, and keeps
    the rest for the next run."""
    messages = list(shuffled_messages())[:40]
    command = [sys.executable, str(ENDING)]
    expected = sorted(str(each["message"]["message_id"]) for each in messages)

    with BotAPI() as server:
        command += [str(server.port), sqlite_url]
        server.feed(messages[:30])
        process = subprocess.Popen(command, env=environment())
        try:
            wait_for_answers(server, process, 5)
            process.send_signal(signal.SIGTERM)
            assert len(server.sent) < 20
            server.feed(messages[30:])
            assert process.wait(timeout=TIMEOUT) == 0
            handled = [params["text"] for _, params in server.sent]
            kept = [str(each["message"]["message_id"]) for each in server.pending]
            assert sorted(handled + kept) == expected
            process = subprocess.Popen(command, env=environment())
            wait_for_answers(server, process, len(messages))
        finally:
            process.kill()
            process.wait(timeout=TIMEOUT)
        assert sorted(params["text"] for _, params in server.sent) == expected


def test_the_bot_that_is_ended_is_that_of_the_readme():
    """The lines that end it are those that the README shows."""
    shown = re.search(
        r"    signal\.signal\(.*?long_polling_timeout=1\).*?\n", README.read_text(), re.S
    )
    lines = [re.sub(r" +#.*", "", line).strip() for line in shown[0].splitlines()]

    assert "\n".join(lines) in re.sub("^ +", "", ENDING.read_text(), flags=re.M)
