"""Small faults in the core, one at a time: which of them do the quick tests find?

    python -m tests.mutants [--jobs 2] [MODULE | MODULE:LINE ...]

Each mutant is a copy of the package with one expression or statement of a module changed. It is
killed if a test fails, or hangs. The survivors are printed, with the place and the change.

The quick tests run once beforehand, to see which of them reach which lines. A mutant is tried with
those that reach its lines, quickest first, and after them with tests of threads and interrupts,
which take longer. Each try is a fork of this process, which has imported what takes long to import.
"""

import argparse
import ast
import contextlib
import importlib
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parent.parent
MODULES = ("_locks", "_visit", "_session", "_dispatch", "_handler")
#: What the quick tests don't find may be found by these.
MORE = ("locks_interrupted", "interrupts", "transactions", "waiting", "model")
#: These run `_locks` alone. (What else there is changes lines by their text: it fails on mutants.)
SCHEDULES = "tests/test_schedules.py::test_every_schedule"
#: What this process has imported beforehand, pytest can't rewrite, nor need it.
QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
LIMIT = 120  # seconds, after which a mutant counts as one that hangs
MEMORY = 2 * 2**30  # bytes, which one that goes round in circles may fill

_PAIRS = [(ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.Eq, ast.NotEq), (ast.Lt, ast.GtE)]
SWAPPED = {one: new for pair in [*_PAIRS, (ast.Gt, ast.LtE)] for one, new in (pair, pair[::-1])}


@dataclass
class Mutant:
    """A change of one place in a module."""

    module: str
    lines: range
    code: bytes
    what: str


def change(node: ast.AST) -> tuple[Any, str] | None:
    """The part of a node that a mutant replaces, and by what."""
    if isinstance(node, ast.Compare):
        swapped = [SWAPPED[type(node.ops[0])](), *node.ops[1:]]
        return node, f"({ast.unparse(ast.Compare(node.left, swapped, node.comparators))})"
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return node, f"({ast.unparse(ast.BoolOp(other, node.values))})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node, f"({ast.unparse(node.operand)})"
    if isinstance(node, (ast.If, ast.While)) and not isinstance(node.test, ast.Constant):
        return node.test, "False"
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return node, str(not node.value)
    if isinstance(node, ast.Return) and not isinstance(node.value, (ast.Constant, NoneType)):
        return node.value, "None"
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        return node, "pass"
    return None


def skipped(tree: ast.AST) -> Iterator[ast.AST]:
    """What is not changed: messages, definitions of modules and classes, and annotations."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Raise, ast.JoinedStr)):
            yield from ast.walk(node)
        elif isinstance(node, (ast.ClassDef, ast.Module, ast.AnnAssign)):
            yield from ast.iter_child_nodes(node)


def mutants(module: str) -> Iterator[Mutant]:
    """All mutants of a module."""
    source = (ROOT / "telesession" / f"{module}.py").read_bytes()
    starts = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]
    tree = ast.parse(source)
    left_alone = set(skipped(tree))
    for node in ast.walk(tree):
        if node in left_alone or (changed := change(node)) is None:
            continue
        part, new = changed
        begin = starts[part.lineno - 1] + part.col_offset
        end = starts[part.end_lineno - 1] + part.end_col_offset
        code = source[:begin] + new.encode() + source[end:]
        old = " ".join(source[begin:end].decode().split())
        what = f"{module}.py:{part.lineno}:{part.col_offset + 1}: {old}  ->  {new}"
        yield Mutant(module, range(part.lineno, part.end_lineno + 1), code, what)


class Choice:
    """A plugin of pytest that runs these tests, quickest first; else all, and notes their times."""

    def __init__(self, seconds: dict[str, float] | None) -> None:
        self.chosen = seconds
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if (chosen := self.chosen) is not None:
            some = [one for one in items if one.nodeid in chosen]
            items[:] = sorted(some, key=lambda one: chosen[one.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        if self.chosen is None:
            Path("seconds.json").write_text(json.dumps(self.seconds))


def fails(home: Path, limit: float, tests: dict[str, float] | None, *options: str) -> bool:
    """Whether a test fails, or hangs, with the package that is there: in a fork of this process."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.chdir(home)
            os.environ["PYTHONPATH"] = sys.path[0] = str(home)
            for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
                del sys.modules[name]
            for number in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            code = pytest.main(["-x", "-p", "no:cacheprovider", *QUIET, *options], [Choice(tests)])
        finally:
            os._exit(code)
    done = status = 0
    end = time.monotonic() + limit
    try:
        while not done and time.monotonic() < end:
            time.sleep(0.01)
            done, status = os.waitpid(child, os.WNOHANG)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # with what its tests have started
    return not done or status != 0


def record(home: Path) -> dict[str, dict[int, dict[str, float]]]:
    """By module and line, the quick tests that reach it, in seconds."""
    os.environ["COVERAGE_CORE"] = "ctrace"  # which counts a line again in each test
    cover = ("--cov=telesession", "--cov-context=test", "--cov-report=", "--cov-fail-under=0")
    if fails(home, LIMIT * 10, None, "-m", "not thorough", *cover):
        sys.exit("The tests fail without any mutant.")
    seconds = json.loads((home / "seconds.json").read_text())
    data = coverage.CoverageData(str(home / ".coverage"))
    data.read()
    reached: dict[str, dict[int, dict[str, float]]] = {}
    for module in MODULES:
        file = str(home / "telesession" / f"{module}.py")
        lines = reached[module] = {}
        for line, contexts in data.contexts_by_lineno(file).items():
            names = {one.rpartition("|")[0] for one in contexts}
            lines[line] = {name: seconds[name] for name in names if name}
            if "" in names:  # an import reaches it, and any test may depend on that
                others = seconds.keys() - names
                lines[line] |= {name: LIMIT + seconds[name] for name in others}
    return reached


def kills(task: tuple[Mutant, list[dict[str, float]]]) -> bool:
    """Whether tests find a mutant of what is here, those first that reach its lines."""
    mutant, reaching = task
    tests = {name: seconds for line in reaching for name, seconds in line.items()}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        home = shutil.copytree(Path.cwd(), Path(directory, "home"))
        for old in home.glob(f"telesession/__pycache__/{mutant.module}.*"):
            old.unlink()  # it may have the size and the second of this one
        (home / "telesession" / f"{mutant.module}.py").write_bytes(mutant.code)
        files = sorted({name.partition("::")[0] for name in tests})
        if files and fails(home, LIMIT, tests, *files):
            return True
        more = [str(path) for name in MORE for path in home.glob(f"tests/test_{name}*.py")]
        more += [SCHEDULES] * (mutant.module == "_locks")
        return fails(home, LIMIT, None, *more)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("places", nargs="*", metavar="MODULE or MODULE:LINE", default=MODULES)
    options = parser.parse_args()
    for name in ("telebot", "hypothesis", "sqlalchemy", "redis", "pymongo"):
        importlib.import_module(name)
    some = []
    for module, _, line in (place.partition(":") for place in options.places):
        some += [one for one in mutants(module) if line in ("", str(one.lines[0]))]
    survivors = 0
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory, "home")
        ignored = shutil.ignore_patterns(".*", "__pycache__", "results", "build", "dist")
        shutil.copytree(ROOT, home, ignore=ignored)
        reached = record(home)
        tasks = ((one, [reached[one.module].get(line, {}) for line in one.lines]) for one in some)
        os.chdir(home)
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            for mutant, killed in zip(some, pool.imap(kills, tasks)):
                survivors += not killed
                if not killed:
                    print(mutant.what, flush=True)
    print(f"{len(some)} mutants, {len(some) - survivors} killed, {survivors} survived")


if __name__ == "__main__":
    main()
