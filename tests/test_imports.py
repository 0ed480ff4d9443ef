"""The house: which module imports which, drawn from the source, annotations included."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import telesession

pytestmark = pytest.mark.thorough

HOME = Path(telesession.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text("utf-8")) for path in HOME.glob("*.py")}
CLIENTS = {"redis", "valkey", "sqlalchemy", "pymongo", "bson"}


def imported(tree):
    """The modules that a module imports anywhere, also in a function or for a type checker."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(modules):
    """By module of the package, those of the package that it imports."""
    prefix = "telesession."
    return {
        name: {
            other.removeprefix(prefix)
            for other in imported(tree)
            if other.removeprefix(prefix) in modules and other.startswith(prefix)
        }
        for name, tree in modules.items()
    }


def test_there_is_no_circle():
    """Every arrow points down."""
    arrows = graph(MODULES)
    del arrows["__init__"]

    assert arrows["declaration"] > {"_handler", "_visit"}
    TopologicalSorter(arrows).prepare()


def test_a_circle_is_found():
    """Also one that only a type checker would see."""
    source = "if TYPE_CHECKING:\n    from telesession.a import A"
    trees = {"a": ast.parse("from telesession import b"), "b": ast.parse(source)}

    with pytest.raises(CycleError):
        TopologicalSorter(graph(trees)).prepare()


def test_clients_are_imported_in_a_module_of_their_own():
    """6.5 Each optional client in the module of its store, and what is private to that."""
    found = {
        (name, top)
        for name, tree in MODULES.items()
        for other in imported(tree)
        if (top := other.partition(".")[0]) in CLIENTS
    }

    stores = {("mongo", "pymongo"), ("mongo", "bson")}
    stores |= {(name, "sqlalchemy") for name in ("sql", "_connections", "_statements")}
    assert found == {*stores, ("states", "redis")}


def test_importing_the_package_imports_none_of_them():
    """6.5 Importing telesession imports none of redis, sqlalchemy, pymongo or telebot."""
    code = "import sys, telesession; print(*sorted(sys.modules), sep='\\n')"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()

    assert {name.partition(".")[0] for name in loaded} & {*CLIENTS, "telebot"} == set()


def test_one_module_touches_the_slots_of_a_session():
    """`_visit` makes the notes, and `_session` shows them to nobody but in messages."""
    slots = {"_before", "_guests", "_stored", "_user", "_options"}
    touching = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in slots
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }

    assert touching <= {"_visit", "_session"}
