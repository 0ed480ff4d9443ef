"""The benchmarks run, and the README's figures are those of their results."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text(encoding="utf-8")

needs_bench = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tqdm", "aiogram", "telegram"))),
    reason="the extra 'bench' is not installed",
)


def run(module, *arguments, **environment):
    command = [sys.executable, "-m", module, *arguments]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 600}
    return subprocess.run(command, env={**os.environ, **environment}, **options)


def run_row(name, directory, **environment):
    arguments = ("--quick", "--only", name, "--out", str(directory))
    finished = run("tests.benchmarks", *arguments, **environment)
    assert finished.returncode == 0, finished.stderr
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))["rows"][name]


def test_readme_has_the_figures_of_the_results():
    """Nobody writes a figure into the README by hand, or forgets one there."""
    if ".. begin figures\n" not in README:
        pytest.skip("README.rst has no '.. begin figures' yet")
    finished = run("tests.benchmarks.readme", "--check")
    assert finished.returncode == 0, finished.stderr


@needs_bench
def test_the_cost_has_all_columns(tmp_path):
    """What an update costs is measured in every column, and compared to what others take; the row
    makes a table and JSON, with what it was measured on."""
    row = run_row("cost", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["quick"]
    assert results["versions"]["Python"]
    assert "telesession, memory" in (tmp_path / "results.rst").read_text(encoding="utf-8")
    assert {"with a ttl", "third of three when"} < set(row["columns"])
    assert None not in row["lines"]["telesession, memory"]
    assert not any("n/a" in note for note in row["notes"])


@needs_bench
def test_without_valgrind(tmp_path):
    """Where there is no valgrind the row of instructions says so, and the others are measured."""
    row = run_row("instructions", tmp_path, PATH=str(tmp_path))
    assert not any(figure for line in row["lines"].values() for figure in line)
    assert "not installed" in row["notes"][0]


@needs_bench
@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions(tmp_path):
    """Each line has its instructions; an update takes thousands."""
    row = run_row("instructions", tmp_path)
    assert all(figure > 1000 for figure in row["lines"]["telesession, memory"])
