"""Each example runs as it is, as a user would run it: in the terminal, without a token."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(example, typed):
    environment = {name: value for name, value in os.environ.items() if name != "BOT_TOKEN"}
    return subprocess.run(
        [sys.executable, ROOT / "examples" / example],
        input=typed,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def answers(finished):
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return [line[5:] for line in finished.stdout.splitlines() if line.startswith("bot> ")]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_ends_with_the_input(example):
    """End of input ends every example with exit status 0."""
    assert answers(run(example.name, "")) == []


def test_counter_counts_each_user():
    """Counts of two users are separate."""
    finished = run("counter.py", "hi\nhello\n/as 2\nhi\n/as 1\nhi\n")
    assert answers(finished) == ["1 messages", "2 messages", "1 messages", "3 messages"]


def test_multi_session_counts_users_and_chats():
    """Users of a group count apart and together; another group starts anew."""
    finished = run("multi_session.py", "hi\n/as 2\nhi\n/chat -2\nhi\n")
    assert answers(finished) == [
        "1 messages of yours, 1 of all here",
        "1 messages of yours, 2 of all here",
        "1 messages of yours, 1 of all here",
    ]


def test_terminal_survives_mistakes():
    """A line that the terminal can't follow is explained, and the chat goes on."""
    finished = run("counter.py", "/as nobody\n/click Yes\n\nhi\n")
    assert "no inline button 'Yes'" in finished.stdout
    assert answers(finished) == ["1 messages"]
