"""Each example runs as it is, as a user would run it: in the terminal, without a token.

What their conversations come to is in ``test_conversations.py``.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import unavailable

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SETTINGS = ("BOT_TOKEN", "FORM_DIR", "REDIS_URL", "SESSIONS")  # what the examples look for


def check_webhook():
    for name in ("flask", "gunicorn"):
        if importlib.util.find_spec(name) is None:
            unavailable(f"{name} is not installed")


@pytest.fixture
def run(tmp_path):
    """Type something into an example, started in a directory of this test's own."""

    def run(example, typed, *arguments, **environment):
        if example == "webhook.py":
            check_webhook()
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        return subprocess.run(
            [sys.executable, ROOT / "examples" / example, *arguments],
            input=typed,
            env={**kept, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
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
        ("states.py", "sqlalchemy", 'pip install "telesession[sql]"'),
        ("wizard.py", "sqlalchemy", 'pip install "telesession[sql]"'),
        ("workers.py", "redis", 'pip install "telesession[redis]"'),
        ("webhook.py", "flask", 'pip install "telesession[sql]" flask gunicorn'),
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

    def test_wizard_asks_on_after_a_restart(self, run):
        """In SQLite: what is open stays open."""
        assert answers(run("wizard.py", "/start\nAda\n"))[-1] == "How old are you?"
        assert answers(run("wizard.py", "36\nRome\n"))[-1] == "Ada, 36, from Rome. Is that right?"
        assert answers(run("wizard.py", "yes\n")) == ["Thank you, Ada!"]

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

    def test_states_asks_on_after_a_restart(self, run):
        """8.1 The state and what was answered are in the database."""
        for typed, answered in [
            ("/start\nAda\n", ["What is your name?", "How old are you?"]),
            ("old\n", ["That is no age. A number, please, such as 36."]),
            ("36\n36\n/cancel\n", ["Ada, 36. Thank you!"]),
            ("/start\n/cancel\n", ["What is your name?", "Forgotten. /start begins again."]),
        ]:
            assert answers(run("states.py", typed)) == answered

    def test_group_game_starts_in_a_group(self, run):
        shown = answers(run("group_game.py", "/play\n/as 2\n/play\n/chat -2\n/guess 5\n"))
        assert shown == [
            "I think of a number from 1 to 100. /guess it!",
            "We play already, 0 tries so far. /guess it!",
            "There is nothing to guess. /play?",
        ]


class TestWebhook:
    """`examples/webhook.py`, served by four processes of gunicorn."""

    def check(self, finished, posts):
        answers(finished)
        last = finished.stdout.splitlines()[-1]
        assert re.fullmatch(
            rf"{posts + posts // 10} posts of {posts} messages: "
            rf"{posts} counted, {posts} answered once",
            last,
        )

    def test_every_message_counts_once(self, run, tmp_path):
        """5.1 On SQLite, where no two processes have the session at once; posted twice, or not."""
        self.check(run("webhook.py", ""), 100)
        self.check(run("webhook.py", "", "50"), 50)
        assert (tmp_path / "sessions.db").exists()

    @pytest.mark.thorough
    def test_a_long_burst(self, run):
        """5.1 Four workers, two hundred messages for each."""
        self.check(run("webhook.py", "", "800"), 800)

    @pytest.mark.thorough
    def test_another_database(self, run, postgres_url, postgres):
        self.check(run("webhook.py", "", "400", SESSIONS=postgres_url), 400)

    def test_who_has_no_secret(self, tmp_path, monkeypatch):
        """What doesn't come with it is refused, and no handler runs; what does is handled."""
        check_webhook()
        for name in SETTINGS:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        spec = importlib.util.spec_from_file_location("webhook", ROOT / "examples" / "webhook.py")
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        client = example.app.test_client()
        [update] = example.made_up(1)[:1]
        for secret in ({}, {example.HEADER: "x"}, {example.HEADER: "ä"}):
            assert client.post("/", json=update, headers=secret).status_code == 403
        right = {example.HEADER: example.SECRET}
        assert client.post("/", json=update, headers=right).get_json() == ["1 messages"]
        assert client.post("/", json=update, headers=right).get_json() == []
        example.engine.dispose()
