"""Small faults in the core, one at a time: which of them do the quick tests find?

    python -m tests.mutants [--only MODULE] [--every N] [--jobs 2]

Each mutant is a copy of the package with one expression of `_locks`, `_visit`, `_session` or
`_dispatch` changed. It is killed if a test fails, or hangs. The survivors are printed.
"""

import argparse
import ast
import concurrent.futures
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = ("_locks", "_visit", "_session", "_dispatch")
TESTS = ("nesting", "open", "changes", "handler", "no_session", "when", "busy", "locks")
TESTS += ("tasks", "messages")
#: What those don't find may be found by these, which take longer.
MORE = ("transactions", "waiting", "interrupts", "schedules")
LIMIT = 180  # seconds, after which a mutant counts as one that hangs

SWAPPED: dict[type, type] = {
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], ast.AST]]]:
    """What can be done to a node: in words, and the function that does it to a copy."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:

        def compare(found: ast.AST) -> ast.AST:
            assert isinstance(found, ast.Compare)
            found.ops[0] = SWAPPED[type(found.ops[0])]()
            return found

        yield "another comparison", compare
    elif isinstance(node, ast.BoolOp):

        def combine(found: ast.AST) -> ast.AST:
            assert isinstance(found, ast.BoolOp)
            found.op = SWAPPED[type(found.op)]()
            return found

        yield "and for or", combine
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "no not", lambda found: found.operand  # type: ignore[attr-defined]
    elif isinstance(node, (ast.If, ast.While)) and not isinstance(node.test, ast.Constant):

        def never(found: ast.AST) -> ast.AST:
            assert isinstance(found, (ast.If, ast.While))
            found.test = ast.BoolOp(ast.And(), [ast.Constant(False), found.test])
            return found

        yield "never", never
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "the other", lambda found: ast.Constant(not found.value)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "return None", lambda found: ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "left out", lambda found: ast.Pass()


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Where and how a module is changed, and what becomes of it."""
    tree = ast.parse(source)
    skipped = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Raise, ast.ClassDef, ast.Module, ast.AnnAssign))
        for child in ast.iter_child_nodes(node)
        for part in (ast.walk(child) if isinstance(node, ast.Raise) else [child])
    }
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        for how, change in changes(node):
            mutant = copy.deepcopy(tree)
            found = list(ast.walk(mutant))[number]
            line = source.splitlines()[found.lineno - 1].strip()  # type: ignore[attr-defined]
            where = f"{found.lineno}: {how}: {line}"  # type: ignore[attr-defined]
            new = change(found)
            if new is not found:
                for parent in ast.walk(mutant):
                    for field, value in ast.iter_fields(parent):
                        if value is found:
                            setattr(parent, field, new)
                        elif isinstance(value, list) and any(one is found for one in value):
                            setattr(parent, field, [new if one is found else one for one in value])
            yield where, ast.unparse(ast.fix_missing_locations(mutant))


def killed(module: str, code: str) -> bool:
    """Whether the tests find a mutant of a module."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        for part in ("telesession", "tests"):
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / part, home / part, ignore=ignored)
        shutil.copy(ROOT / "setup.cfg", home)
        (home / "telesession" / f"{module}.py").write_text(code, "utf-8")
        return _fails(home, TESTS, "not thorough") or _fails(home, MORE, "")


def _fails(home: Path, names: Sequence[str], marks: str) -> bool:
    """Whether one of these tests fails, or hangs, with the package that is there."""
    paths = [str(path) for name in names for path in home.glob(f"tests/test_{name}*.py")]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", marks]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *paths],
            cwd=home,
            env={**os.environ, "PYTHONPATH": str(home)},
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--only", choices=MODULES)
    parser.add_argument("--every", type=int, default=1, help="only each Nth mutant")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    total = survivors = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for module in [options.only] if options.only else MODULES:
            source = (ROOT / "telesession" / f"{module}.py").read_text("utf-8")
            some = list(mutants(source))[:: options.every]
            results = pool.map(killed, [module] * len(some), [code for _, code in some])
            for (where, _), found in zip(some, results):
                total += 1
                if not found:
                    survivors += 1
                    print(f"{module}.py:{where}", flush=True)
    print(f"{total} mutants, {total - survivors} killed, {survivors} survived")


if __name__ == "__main__":
    main()
