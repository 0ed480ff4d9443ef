"""mypy --strict and pyright accept a typical bot, and find what is wrong in it."""

import ast
import inspect
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import telebot

import telesession.types
from telesession import with_session
from tests.servers import unavailable
from tests.updates import UPDATES, make

pytestmark = pytest.mark.thorough

BOT = Path(__file__).parent / "typed_bot.py"

# pyTelegramBotAPI's decorators have no annotations, which --strict alone would not allow.
MYPY = ["mypy", "--strict", "--allow-untyped-decorators", "--no-incremental"]
# The distribution of pyright that needs nothing but PyPI.
PYRIGHT = ["basedpyright", "--pythonpath", sys.executable]


@pytest.mark.parametrize("checker", [MYPY, PYRIGHT], ids=["mypy", "pyright"])
def test_a_typical_bot(checker):
    """`tests/typed_bot.py` has a mark at each line that must be wrong, and none at any other."""
    name, *options = checker
    program = shutil.which(name, path=Path(sys.executable).parent)
    if program is None:
        unavailable(f"{name} is not installed")
    finished = subprocess.run(
        [program, *options, str(BOT)],
        cwd=BOT.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


#: What type checkers see, and of that what the installed version has.
CLASSES = {
    node.name
    for node in ast.walk(ast.parse(inspect.getsource(telesession.types)))
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
}
KNOWN = sorted(name for name in CLASSES if hasattr(telebot.types, name))


@pytest.mark.parametrize("name", KNOWN)
def test_at_run_time_they_are_telebots(name):
    """So isinstance, and what the bot makes of updates, agree with the annotations."""
    assert getattr(telesession.types, name) is getattr(telebot.types, name)


@pytest.mark.parametrize("kind", telebot.util.update_types)
def test_every_update_has_its_type(kind):
    """Whatever pyTelegramBotAPI hands to handlers can be annotated."""
    name = type(make(kind, UPDATES[kind])).__name__

    assert name in CLASSES


def test_there_are_no_other_types():
    """Each is one of an update."""
    kinds = {type(make(kind, UPDATES[kind])).__name__ for kind in telebot.util.update_types}

    assert set(KNOWN) == kinds


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads")
def test_the_options_are_the_same_for_a_typed_dict():
    """1.1 Type checkers see each option that there is, also beside a `TypedDict`."""

    def call():
        """Has the name by which `typing` keeps the overloads."""

    call.__module__, call.__qualname__ = "telesession.declaration", "_WithSession.__call__"
    _, typed, _ = typing.get_overloads(call)
    given, known = (dict(inspect.signature(each).parameters) for each in (typed, with_session))
    del given["self"]

    assert list(given) == list(known)
    for name in given.keys() - {"initial", "upgrade"}:
        assert given[name].annotation == known[name].annotation


class Profile(typing.TypedDict, total=False):
    """What is in a session."""

    name: str


def test_a_typed_dict_at_run_time():
    """1.1 It gives an empty dict, like any other ``initial``."""
    profile = with_session(property="profile", initial=Profile, store={})

    with profile.open(key="42:42") as data:
        assert data == {}
        data["name"] = "Ada"

    assert profile.peek(key="42:42") == {"name": "Ada"}
    assert telesession.Declaration[Profile] is not None
