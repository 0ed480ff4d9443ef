"""The contract, in `contract.rst`, and the tests that cite its numbers know each other."""

import re
from pathlib import Path

import docutils.core
import pytest

HERE = Path(__file__).parent
CONTRACT = (HERE / "contract.rst").read_text(encoding="utf-8")
#: Each promise by its number.
PROMISES = dict(re.findall(r"^(\d\.\d+)\n((?:    .*\n)+)", CONTRACT, re.M))
#: A docstring of a test, or of a module of them, begins with the numbers that it is about.
CITED = re.compile(r'"""(?:Sections? )?(\d\.\d+(?:(?:, | and | to )\d\.\d+)*)')


def cited(path):
    """The numbers that the docstrings in a file begin with."""
    found = set()
    for numbers in CITED.findall(path.read_text(encoding="utf-8")):
        for first, last in re.findall(r"(\d\.\d+)(?: to (\d\.\d+))?", numbers):
            section, number = first.split(".")
            end = (last or first).split(".")[1]
            found |= {f"{section}.{each}" for each in range(int(number), int(end) + 1)}
    return found


FILES = {path.stem: cited(path) for path in sorted(HERE.glob("test_*.py"))}


@pytest.mark.parametrize("file", FILES)
def test_numbers_that_tests_cite(file):
    """They are in the contract."""
    assert FILES[file] <= PROMISES.keys()


@pytest.mark.parametrize("number", PROMISES)
def test_promises(number):
    """Each is cited by a test of each file that it names."""
    named = re.search(r"\*([^*]+)\*\n$", PROMISES[number])
    assert named, "name the files that test it, in italics, at the end"
    if number == "8.2":  # it is kept by what .ci/run installs
        return
    for file in re.findall(r"test_\w+", named[1]):
        assert number in FILES[file], f"tests/{file}.py cites {number} nowhere"


def test_no_markup_errors():
    """It can be read as a page."""
    settings = {"halt_level": 2, "report_level": 2, "syntax_highlight": "none"}
    docutils.core.publish_string(CONTRACT, writer="null", settings_overrides=settings)
