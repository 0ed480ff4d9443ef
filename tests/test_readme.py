"""The README can't lie: its Python blocks run, in order, as one program."""

import re
import subprocess
import sys
from pathlib import Path

import docutils.core
import pytest
import telebot

from telesession.memory import default_store

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text(encoding="utf-8")


def python_blocks():
    for block in re.finditer(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README, re.M):
        line = README[: block.start()].count("\n") + 3
        yield "\n" * (line - 1) + re.sub("^    ", "", block[1], flags=re.M)


def test_blocks_run_in_order(monkeypatch, tmp_path):
    """What the README shows works as it stands, its assertions included."""
    monkeypatch.setenv("BOT_TOKEN", "42:readme")
    monkeypatch.setattr(telebot.TeleBot, "infinity_polling", lambda bot: None)
    monkeypatch.chdir(tmp_path)
    default_store.clear()
    names = {"__name__": "readme"}
    blocks = list(python_blocks())
    assert len(blocks) >= 7
    for block in blocks:
        exec(compile(block, "README.rst", "exec"), names)
    names["on_disk"].close()
    names["mongo"].close()


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
