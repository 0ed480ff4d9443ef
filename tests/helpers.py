"""What the tests of declarations, handlers and messages have in common."""

import functools
import json
import re
import threading
import time
import tracemalloc
from contextlib import contextmanager

import pytest

from tests.stores import TIMEOUT

SECRET = "hunter2"  # what sessions contain, and no message shows


class Failure(Exception):
    """What a handler of these tests raises."""


def count(update):
    update.session["n"] = update.session.get("n", 0) + 1
    return update.session["n"]


def nobody(update):
    """A key function for which no update has a session."""


def keep(store, **data):
    """Have ``data`` stored as the session of user 42."""
    store["session:42:42"] = json.dumps(data)


def content(store):
    """What a mapping keeps, decoded."""
    return {name: json.loads(text) for name, text in store.items()}


def doing(code):
    """A handler that does what ``code`` says."""
    program = compile(code, code, "exec")

    def handler(message):
        exec(program, {"message": message})

    return handler


# Each leaves {"n": 2} of whatever there was.
REPLACING = [
    "message.session = {'n': 2}",
    "message.session = {}; message.session['n'] = 2",
    "message.session = {'n': 1}; message.session = {'n': 2}",
    "message.session = __import__('collections').OrderedDict(n=2)",
    "message.session.clear(); message.session['n'] = 2",
    "del message.session; message.session = {'n': 2}",
    "message.session = None; message.session = {'n': 2}",
]

# Each adds {"n": 2} to what there was.
ADDING = [
    "message.session |= {'n': 2}",
    "message.session = message.session | {'n': 2}",
    "message.session['n'] = 2; message.session = message.session",
]

# Each leaves nothing of a session that holds only an "n".
CLEARING = [
    "message.session.clear()",
    "message.session = None",
    "del message.session",
    "message.session = {}",
    "message.session.popitem()",
    "message.session['n'] = 2; message.session.clear()",
    "message.session = {'n': 2}; del message.session",
]

CHANGING = [
    "message.session['n'] = 2",
    "del message.session['n']",
    "message.session |= {'n': 2}",
    "message.session.update(n=2)",
    "message.session.setdefault('m', 2)",
    "message.session.setdefault('n', 2)",
    "message.session.pop('n')",
    "message.session.pop('m', None)",
    "message.session.popitem()",
    "message.session.clear()",
]


def wrapping(handler):
    """A decorator that isn't ours."""

    @functools.wraps(handler)
    def between(*args, **kwargs):
        return handler(*args, **kwargs)

    return between


def hiding(handler):
    """A decorator that isn't ours, and shows nothing of what it wraps."""
    return lambda *args, **kwargs: handler(*args, **kwargs)


def shown(value):
    """An id that is the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(value))


def any_of(cases):
    """Parametrize by a dict of cases, whose names become the ids."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


@contextmanager
def says(kind, *words):
    """Expect an error whose message is one line, has all ``words``, and shows no session."""
    with pytest.raises(kind) as caught:
        yield caught
    assert type(caught.value) is kind
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert SECRET not in text
    assert "\n" not in text


def until(condition):
    """Wait for what another thread, or a server, is about to do."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def peak_of_listing(names, number):
    """List ``session:0`` and so on, each of which comes once; the most bytes needed at one time."""
    found = bytearray(number)
    tracemalloc.start()
    try:
        for name in names:
            found[int(name.removeprefix("session:"))] += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert set(found) == {1}
    return peak


def run_together(*functions):
    """Run each in a thread, all starting at once; give what they returned or raised."""
    start = threading.Barrier(len(functions))
    outcomes = [None] * len(functions)

    def run(number, function):
        start.wait(TIMEOUT)
        try:
            outcomes[number] = function()
        except Exception as error:
            outcomes[number] = error

    threads = [
        threading.Thread(target=run, args=numbered, daemon=True)
        for numbered in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "deadlock"
    return outcomes
