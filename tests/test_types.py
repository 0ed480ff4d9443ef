"""mypy --strict and pyright accept a typical bot, and find what is wrong in it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import telebot

import telesession.types
from tests.servers import unavailable

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


@pytest.mark.parametrize("name", telesession.types.__all__)
def test_at_run_time_they_are_telebots(name):
    """So isinstance, and what the bot makes of updates, agree with the annotations."""
    assert getattr(telesession.types, name) is getattr(telebot.types, name)
