"""5.1, 6.4 What several processes do to one store, for every store that leases."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from telesession import SessionBusy, with_session
from tests.helpers import count, says
from tests.stores import TIMEOUT, message
from tests.worker import ROOT, Crowd, Worker, connect

pytestmark = pytest.mark.thorough

SERVERS = {
    "redis-store": ("valkey", "valkey_port", "redis://127.0.0.1:{}"),
    "redis-cluster": ("valkey_cluster", "valkey_cluster_port", "redis+cluster://127.0.0.1:{}"),
    "sqlite": ("sqlite", "sqlite_url", "{}"),
    "postgres": ("postgres", "postgres_url", "{}"),
    "mariadb": ("mariadb", "mariadb_url", "{}"),
    "mongo": ("mongo", "mongo_url", "{}"),
}


def empty(request, name):
    """Where that store is, which has nothing stored."""
    client, where, form = SERVERS[name]
    request.getfixturevalue(client)
    return form.format(request.getfixturevalue(where))


@pytest.fixture(params=SERVERS)
def url(request):
    """Where each of the stores is, empty."""
    return empty(request, request.param)


@pytest.fixture(scope="module")
def crowds():
    found = []
    yield found
    for crowd in found:
        crowd.end()


@pytest.fixture
def crowd(crowds, request):
    """Four other processes."""
    if not crowds:
        crowds.append(Crowd(4))
    failed = request.session.testsfailed
    yield crowds[0]
    if request.session.testsfailed > failed:  # nobody knows what they are doing now
        crowds.pop().end()


def one_more(store, **options):
    """Count a message of user 42 from this process."""
    return with_session(store=store, **options)(count)(message())


def content(store, user=42):
    """What a handler of this process finds."""
    return with_session(store=store)(lambda update: dict(update.session))(message(user))


def test_increments(url, crowd):
    """4 processes count 100 messages of one session each: there are 400."""
    busy = crowd(url, *[["increments", 100, 1, 1]] * 4)
    start = time.monotonic()
    for worker in busy:
        worker.go()
    for worker in busy:
        assert worker.read()["counted"] == {"0": 100}
    seconds = time.monotonic() - start
    with connect(url) as store:
        assert content(store) == {"n": 400}
    print(f"{seconds:.2f} s")


def test_many_users(url, crowd):
    """4 processes with 8 threads each count messages of 50 users: every user's number is right."""
    busy = crowd(url, *[["increments", 10, 8, 50]] * 4)
    for worker in busy:
        worker.go()
    expected = Counter()
    for worker in busy:
        expected.update({int(user): n for user, n in worker.read()["counted"].items()})
    assert expected.total() == 320
    with connect(url) as store:
        assert {user: content(store, user + 42)["n"] for user in expected} == expected


def test_killed_holder(url):
    """A process dies in its handler: lease + 1 s later others have what was last saved, whole."""
    with connect(url, lease=0.5) as store:
        before = {"held": 7, "text": "å" * 50_000, "list": list(range(1000))}

        @with_session(store=store)
        def save(update):
            update.session = before

        save(message())
        with Worker(url, "hold", 0.5, 60) as holder:
            assert holder.read() == "ready"
            holder.go()
            assert holder.read() == "inside"
            with says(SessionBusy, "'session:42:42'", "another process"):
                one_more(store, lock_timeout=0.05)
            holder.process.kill()
            killed = time.monotonic()
            assert content(store) == before
            assert time.monotonic() - killed < 0.5 + 1


def test_long_handler(url, crowd):
    """A handler takes three times its lease: no handler of other processes is inside as well."""
    lease = 1.0
    long, *others = crowd(url, ["hold", lease, lease * 3], *[["spans", lease, 5]] * 3)
    long.go()
    assert long.read() == "inside"
    entered = time.monotonic()
    for worker in others:
        worker.go()
    assert long.read() == "saved"
    spans = sorted(span for worker in others for span in worker.read())
    # It said that it is inside when it was, and says no more until it has slept.
    assert spans[0][0] - entered > lease * 2
    assert all(left <= entered for (_, left), (entered, _) in itertools.pairwise(spans))
    with connect(url) as store:
        assert content(store) == {"held": 1 + 15}


def test_stopped_process(url, crowd):
    """A process that stalled past its lease does not save over what others wrote meanwhile."""
    (stalled,) = crowd(url, ["hold", 0.3, 0.6])
    stalled.go()
    assert stalled.read() == "inside"
    os.kill(stalled.process.pid, signal.SIGSTOP)
    try:
        with connect(url, lease=0.3) as store:
            assert [one_more(store), one_more(store)] == [1, 2]
            os.kill(stalled.process.pid, signal.SIGCONT)
            assert stalled.read() == "SessionLost"
            assert content(store) == {"n": 2}
    finally:
        os.kill(stalled.process.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("lease", "seconds", "how", "status"),
    [(600, 0, "well", 0), (0.2, 0.4, "raising", 3)],
    ids=["quick", "long and raising"],
)
def test_ending(sqlite_url, lease, seconds, how, status):
    """A process ends when it is done, whatever became of its handlers: no thread holds it."""
    with Worker(sqlite_url, "end", lease, seconds, how) as worker:
        assert worker.read() == "ready"
        worker.go()
        assert worker.process.wait(TIMEOUT) == status
    with connect(sqlite_url) as store:
        one_more(store, lock_timeout=0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_fork(request):
    """A forked child renews its own leases: its handlers may take long, and nothing is lost."""
    url = empty(request, "redis-store")
    lease = 1.0
    with Worker(url, "fork", lease, lease * 2) as worker:
        assert worker.read() == "ready"
        worker.go()
        said = [worker.read() for _ in range(6)]
        assert worker.process.wait(TIMEOUT) == 0
    assert said == ["inside", "leaving"] * 3
    with connect(url) as store:
        assert content(store) == {"n": 3}


def said_by(script, *arguments):
    """The words that a process of its own prints."""
    command = [sys.executable, "-c", script, *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    print(finished.stderr)
    return finished.stdout.split()


_FORK_INSIDE = """
import os, sys, threading, time
from telesession import MemoryStore, with_session
from tests.stores import message

busy = print if sys.argv[1] == "function" else sys.argv[1]
session = with_session(store=MemoryStore(), lock_timeout=5, busy=busy)
parent, inside = os.getpid(), threading.Event()

@session
def handler(update):
    if os.getpid() != parent:
        os._exit(7)
    inside.set()
    time.sleep(60)

threading.Thread(target=handler, args=[message(43)], daemon=True).start()
inside.wait()
with session.open(key="42:42") as mine:
    mine["n"] = 1
    child = os.fork()
    if child == 0:
        with session.open(key="42:42") as data:
            print(data, flush=True)
        handler(message(43))
    print(os.WEXITSTATUS(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("busy", ["wait", "drop", "function"])
def test_what_a_forked_child_finds_locked(busy):
    """Nothing: handlers of its parent's threads never end there. And it joins none of them."""
    assert said_by(_FORK_INSIDE, busy) == ["{}", "7"]


_FORK_BESIDE = """
import os, threading, time
from telesession import with_session
from tests.stores import message

parent, inside = os.getpid(), threading.Event()

class Slow(dict):
    def get(self, key):
        if os.getpid() == parent:
            inside.set()
            time.sleep(60)

session = with_session(store=Slow())
threading.Thread(target=session(print), args=[message(43)], daemon=True).start()
inside.wait()
child = os.fork()
if child == 0:
    session(lambda update: os._exit(7))(message())
print(os.WEXITSTATUS(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_while_a_store_is_called():
    """A store of one thread at a time has none in the child."""
    assert said_by(_FORK_BESIDE) == ["7"]
