"""The benchmarks run, and the README's figures are those of their results."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text(encoding="utf-8")

needs_bench = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tqdm", "aiogram", "telegram"))),
    reason="the extra 'bench' is not installed",
)


def run(module, *arguments):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_readme_has_the_figures_of_the_results():
    """Nobody writes a figure into the README by hand, or forgets one there."""
    if ".. begin figures\n" not in README:
        pytest.skip("README.rst has no '.. begin figures' yet")
    finished = run("tests.benchmarks.readme", "--check")
    assert finished.returncode == 0, finished.stderr


@needs_bench
def test_a_row_runs(tmp_path):
    """A row makes a table and JSON, with what it was measured on."""
    finished = run("tests.benchmarks", "--quick", "--only", "memory", "--out", str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["quick"]
    assert results["versions"]["Python"]
    lines = results["rows"]["memory"]["lines"]
    assert lines["telesession, memory"][0] > 100
    assert len(lines) == 4
    assert "telesession, memory" in (tmp_path / "results.rst").read_text(encoding="utf-8")
