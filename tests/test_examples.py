"""Each example runs as it is, as a user would run it: in the terminal, without a token.

What their conversations come to is in ``test_conversations.py``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SETTINGS = ("BOT_TOKEN", "FORM_DIR", "REDIS_URL", "SESSIONS")  # what the examples look for


@pytest.fixture
def run(tmp_path):
    """Type something into an example, started in a directory of this test's own."""

    def run(example, typed, **environment):
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        return subprocess.run(
            [sys.executable, ROOT / "examples" / example],
            input=typed,
            env={**kept, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def answers(finished):
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return [line[5:] for line in finished.stdout.splitlines() if line.startswith("bot> ")]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_ends_with_the_input(run, example):
    """End of input ends every example with exit status 0."""
    assert answers(run(example.name, "")) == []


def test_no_example_hides_a_module():
    """Python looks for a script's imports beside it first, the standard library's included."""
    assert [path.stem for path in EXAMPLES if path.stem in sys.stdlib_module_names] == []


@pytest.mark.parametrize(
    ("example", "missing", "cure"),
    [
        ("persistent.py", "sqlalchemy", 'pip install "telesession[sql]"'),
        ("register_next_step.py", "sqlalchemy", 'pip install "telesession[sql]"'),
        ("workers.py", "redis", 'pip install "telesession[redis]"'),
    ],
)
def test_an_example_without_its_extra(example, missing, cure):
    """It says what to install, and shows no traceback."""
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_path(sys.argv[1])"
    finished = subprocess.run(
        [sys.executable, "-c", code, ROOT / "examples" / example],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 1
    assert cure in finished.stderr
    assert "Traceback" not in finished.stderr


class TestInTheTerminal:
    def test_counter_counts_each_user(self, run):
        """Counts of two users are separate."""
        finished = run("counter.py", "hi\nhello\n/as 2\nhi\n/as 1\nhi\n")
        assert answers(finished) == ["1 messages", "2 messages", "1 messages", "3 messages"]

    def test_multi_session_counts_users_and_chats(self, run):
        """Users of a group count apart and together; another group starts anew."""
        finished = run("multi_session.py", "hi\n/as 2\nhi\n/chat -2\nhi\n")
        assert answers(finished) == [
            "1 messages of yours, 1 of all here",
            "1 messages of yours, 2 of all here",
            "1 messages of yours, 1 of all here",
        ]

    def test_survives_mistakes(self, run):
        """A line that the terminal can't follow is explained, and the chat goes on."""
        finished = run("counter.py", "/as nobody\n/click Yes\n\nhi\n")
        assert "no inline button 'Yes'" in finished.stdout
        assert answers(finished) == ["1 messages"]

    def test_persistent_counts_on_after_a_restart(self, run):
        assert answers(run("persistent.py", "hi\nhi\n")) == ["1 messages", "2 messages"]
        assert answers(run("persistent.py", "hi\n")) == ["3 messages"]

    def test_workers_lose_nothing(self, run, valkey_port, valkey):
        """A hundred messages at once, handled by four processes, all count."""
        url = f"redis://localhost:{valkey_port}"
        first, _, last = answers(run("workers.py", "hi\nburst\nhi\n", REDIS_URL=url))
        assert first.startswith("1 messages, says worker")
        assert last.startswith("102 messages, says worker")

    def test_register_next_step_asks_on_after_a_restart(self, run, tmp_path):
        """The next run knows the open question, and the answers to those before."""
        (tmp_path / "kept").mkdir()
        for typed, answered in [
            ("/start\nAda\n", ["What is your name?", "How old are you?"]),
            ("36\n/back\n37\n", ["Where do you live?", "How old are you?", "Where do you live?"]),
            ("London\n", ["Ada, 37, from London. Is that right? (yes or no)"]),
        ]:
            assert answers(run("register_next_step.py", typed, FORM_DIR="kept")) == answered
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]

    def test_group_game_starts_in_a_group(self, run):
        shown = answers(run("group_game.py", "/play\n/as 2\n/play\n/chat -2\n/guess 5\n"))
        assert shown == [
            "I think of a number from 1 to 100. /guess it!",
            "We play already, 0 tries so far. /guess it!",
            "There is nothing to guess. /play?",
        ]
