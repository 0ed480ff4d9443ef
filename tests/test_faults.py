"""6.3, 6.4 What a user gets when something fails: the table of faults, each cell a test.

``pytest tests/test_faults.py -k "full and redis"`` runs one cell. `MATRIX` says what its test has
to see, and ``tests/faults.rst`` is made of it: ``python -m tests.faults --write``.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from telesession import JSON, MemoryStore, SessionError, with_session
from tests import fault_places, servers
from tests.fault_places import LEASE, PLACES, SLACK, PostgresPlace, RedisPlace, SQLitePlace, User
from tests.faults import (
    FAULTS,
    FORGETS,
    FREE,
    MATRIX,
    NO_SERVER,
    ONCE,
    OWN,
    PAGE,
    REFUSED,
    SAVED,
    STORES,
    UNKNOWN,
    UNMOVED,
    WAITS,
    ending,
    table,
)
from tests.interrupts import Interrupt, Interrupting
from tests.stores import TIMEOUT, found, message, put
from tests.worker import ROOT, Worker, connect

pytestmark = pytest.mark.thorough

places = fault_places.places
place = fault_places.place
user = fault_places.user


def test_page():
    """``tests/faults.rst`` shows this table, and no other."""
    assert PAGE.read_text(encoding="utf-8") == table(), "run python -m tests.faults --write"


def test_matrix_is_whole():
    """Every fault has a cell for every store."""
    assert list(MATRIX) == list(FAULTS)
    assert all(list(cells) == list(STORES) for cells in MATRIX.values())


def cells(fault: str) -> Any:
    """Run a test for every store of this row whose cell is tested."""
    return pytest.mark.parametrize(
        ("place", "expected"),
        [
            pytest.param(store, text, id=store)
            for store, text in MATRIX[fault].items()
            if text != NO_SERVER and not text.startswith("not tested") and store != "memory"
        ],
        indirect=["place"],
    )


# The faults


@cells("dies")
def test_dies(place, expected):
    before = {"n": 7, "text": "å" * 20_000}
    with connect(place.url, lease=LEASE) as store:
        put(before, store=store)
        with Worker(place.url, "hold", LEASE, 60) as holder:
            assert holder.read() == "ready"
            holder.go()
            assert holder.read() == "inside"
            holder.process.kill()
            holder.process.wait(TIMEOUT)
            start = time.monotonic()
            assert found(store=store) == before
            waited = time.monotonic() - start
    assert waited < LEASE + SLACK
    assert expected == FREE


_IN_MEMORY = """
import os, signal, sys
from telesession import with_session
from tests.stores import message

@with_session
def handler(message):
    n = message.session["n"] = message.session.get("n", 0) + 1
    print(n, flush=True)
    if n == 2:
        os.kill(os.getpid(), int(sys.argv[1]))

for _ in range(3):
    handler(message())
"""


@pytest.mark.skipif(os.name != "posix", reason="there are no signals")
@pytest.mark.parametrize("fault", ["dies", "stalls"])
def test_memory(fault):
    """Of a process that dies nothing is left; one that stalls has what it had."""
    number = signal.SIGKILL if fault == "dies" else signal.SIGSTOP

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", _IN_MEMORY, str(int(number))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    said = []
    for _ in range(2 if fault == "dies" else 1):
        with start() as process:
            said += [process.stdout.readline().strip() for _ in range(2)]
            if fault == "stalls":
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                process.send_signal(signal.SIGCONT)
            rest, _ = process.communicate(timeout=TIMEOUT)
            said += rest.split()
    outcome = {
        "1 2 1 2": "all sessions are gone",  # the second process finds nothing of the first
        "1 2 3": SAVED,
    }[" ".join(said)]
    assert outcome == MATRIX[fault]["memory"]


@cells("stalls")
def test_stalls(place, expected):
    with (
        connect(place.url, lease=LEASE) as store,
        Worker(place.url, "hold", LEASE, 0.1) as stalled,
    ):
        assert stalled.read() == "ready"
        stalled.go()
        assert stalled.read() == "inside"
        os.kill(stalled.process.pid, signal.SIGSTOP)
        try:
            put({"n": 2}, store=store)  # waits for the lease
        finally:
            os.kill(stalled.process.pid, signal.SIGCONT)
        said = stalled.read()
        assert (SAVED if said == "saved" else ending("save refused", said)) == expected
        assert found(store=store) == {"n": 2}


@cells("gone")
def test_gone(place, user, expected):
    assert user.sends() == SAVED
    try:
        outcomes = [user.sends(lambda session: place.stop()), user.sends()]
    finally:
        place.start()
    assert "; ".join(outcomes) == expected
    user.goes_on()


def restart(place, user):
    if isinstance(place, SQLitePlace):
        place.restart(0.2)
    else:
        place.stop()
        place.start()


@pytest.fixture
def patient(place, user, monkeypatch):
    """A user whose lease, and SQLite's timeout, is as long as by default."""
    monkeypatch.setattr(SQLitePlace, "options", {})
    user.use(place.store(user.stack, lease=10))
    return user


@cells("restarts-between")
def test_restarts_between(place, patient, expected):
    assert patient.sends() == SAVED
    restart(place, patient)
    assert patient.sends() == expected
    patient.goes_on()


@cells("restarts-inside")
def test_restarts_inside(place, patient, expected):
    assert patient.sends() == SAVED
    assert patient.sends(lambda session: restart(place, patient)) == expected
    patient.goes_on()


@cells("slow")
def test_slow(place, user, expected):
    """The server gets what it was sent, but late: after the lease, so that it is refused."""
    assert user.sends() == SAVED
    with contextlib.ExitStack() as stack:

        def freeze(session=None):
            stack.enter_context(place.frozen())
            nonlocal over
            over = time.monotonic() + 2 * LEASE
            if place.waits:
                threading.Timer(2 * LEASE, stack.close).start()

        def thaw():
            time.sleep(max(0.0, over - time.monotonic()))
            stack.close()

        over = 0.0
        freeze()
        before = user.sends()
        if place.waits:
            assert time.monotonic() >= over
            before += ", after waiting for it"
        thaw()
        user.goes_on()
        inside = user.sends(freeze)
        thaw()
    assert f"{before}; {inside}" == expected
    if "refused" in inside:  # or perhaps not: the server may have done it when it woke up
        user.saved = json.loads(user.store.peek(f"{user.property}:42:42"))["n"]
    user.goes_on()


@cells("full")
def test_full(place, user, expected):
    place.shrink(user.store, user.stack)
    assert user.sends() == SAVED

    def body(session):
        session["big"] = secrets.token_hex(4_000_000)
        place.fill(user.store)

    try:
        outcomes = [user.sends(body), user.sends()]
    finally:
        place.relieve(user.store)
    assert "; ".join(outcomes) == expected
    user.goes_on()


def test_memory_full():
    """The store is full of sessions: that of user 42 is not the oldest, that of user 1 is."""
    store = MemoryStore(maxsize=2)
    users = [1, 42, 43]

    @with_session(store=store)
    def handler(update):
        update.session["n"] = update.session.get("n", 0) + 1
        return update.session["n"]

    assert [handler(message(user)) for user in users] == [1, 1, 1]
    assert [handler(message(user)) for user in reversed(users)] == [2, 2, 1]
    assert MATRIX["full"]["memory"] == FORGETS


@cells("read-only")
def test_read_only(place, user, expected):
    assert user.sends() == SAVED
    try:
        outcomes = [user.sends(lambda session: place.forbid(user.store)), user.sends()]
    finally:
        place.allow(user.store)
    assert "; ".join(outcomes) == expected
    user.goes_on()


@pytest.fixture
def wired(place, request):
    """A user of the place behind a wire, if there is one; who has been there once."""
    with contextlib.ExitStack() as stack:
        place, wire = place.behind(stack)
        if isinstance(place, RedisPlace):
            place.retries = 3  # redis-py has some by default
        property = request.function.__name__.removeprefix("test_")
        user = User(place, property, stack)
        user.use(place.store(stack, lease=10))
        user.wire = wire
        assert user.sends() == SAVED
        yield user


@cells("retry")
def test_retry(place, wired, expected):
    """6.3, 6.4 The server has done what was asked; what is said of it is true."""

    def cut(session):
        wired.wire.cut = True

    name = f"{wired.property}:42:42"
    outcome = None
    try:
        outcome = wired.sends(cut)
    finally:
        stored = JSON.loads(wired.store.peek(name))["n"]
    if outcome == SAVED:
        assert stored == wired.saved
    else:
        assert outcome == REFUSED
        assert "is not known" in str(wired.error)
        assert stored in (wired.saved, wired.saved + 1)
        wired.saved = stored
    assert (ONCE if outcome == SAVED else UNKNOWN) in expected
    wired.goes_on()


@pytest.fixture(scope="module")
def clocked_places(tmp_path_factory):
    """As `places`, but with a clock that the test sets."""
    with contextlib.ExitStack() as stack:
        made = {}

        def place(name):
            if name not in made:
                clock = stack.enter_context(servers.server_clock())
                with clock.kept(preload=name != "mongo"):
                    opened = PLACES[name](tmp_path_factory.mktemp(name))
                    made[name] = stack.enter_context(opened), clock
            return made[name]

        yield place


@pytest.fixture
def clocked(request, clocked_places):
    place, clock = clocked_places(request.param)
    clock.step(0)
    return place, clock


def clocked_cells(fault):
    """As `cells`, for the places with a clock."""
    mark = cells(fault)
    return pytest.mark.parametrize(("clocked", "expected"), mark.args[1], indirect=["clocked"])


@contextlib.contextmanager
def holder(place, clock, lease, seconds):
    """A process that is about to have the session."""
    with clock.kept(preload=False):  # where the store is a file, that is the clock that counts
        worker = Worker(place.url, "hold", lease, seconds)
    with worker:
        assert worker.read() == "ready"
        yield worker


@clocked_cells("clock-back")
def test_clock_back(clocked, expected):
    """6.4 It blocks nobody for longer than a lease."""
    place, clock = clocked
    with holder(place, clock, LEASE, 60) as dies, holder(place, clock, LEASE, 0) as waits:
        dies.go()
        assert dies.read() == "inside"
        clock.step(-3600)
        dies.process.kill()
        dies.process.wait(TIMEOUT)
        start = time.monotonic()
        waits.go()
        assert waits.read() == "inside"
        assert time.monotonic() - start < LEASE + 3 * SLACK
        assert waits.read() == "saved"
    assert expected == WAITS


@clocked_cells("clock-back")
def test_clock_back_beside_a_live_one(clocked, expected):
    """6.4 A handler that goes on is not robbed by that."""
    place, clock = clocked
    lease = 4 * LEASE  # a busy machine may renew a shorter one too late
    with holder(place, clock, lease, 2 * lease) as has, holder(place, clock, lease, 0) as waits:
        has.go()
        assert has.read() == "inside"
        clock.step(-3600)
        waits.go()
        assert has.read() == "saved"
        assert [waits.read(), waits.read()] == ["inside", "saved"]
    assert expected == WAITS


@clocked_cells("clock-forward")
def test_clock_forward(clocked, expected):
    """6.4 It may cost the update that runs meanwhile, and never lets two in."""
    place, clock = clocked
    outcomes = []
    with holder(place, clock, 10, 0) as stores:  # MongoDB forgets the lease of a new session soon
        stores.go()
        assert [stores.read(), stores.read()] == ["inside", "saved"]
    for others in (False, True):
        clock.step(0)
        with holder(place, clock, 10, 1) as has, holder(place, clock, 10, 0) as comes:
            has.go()
            assert has.read() == "inside"
            clock.step(3600)
            if others:
                comes.go()
                assert [comes.read(), comes.read()] == ["inside", "saved"]
            said = has.read()
        outcomes.append(SAVED if said == "saved" else ending("save refused", said))
    assert "; ".join(outcomes) == expected


@pytest.mark.parametrize("fault", ["clock-back", "clock-forward"])
def test_memory_and_the_clock(fault, monkeypatch):
    """What expires does so when it should."""
    before, hour = time.time, -3600 if fault == "clock-back" else 3600
    session = with_session(store=MemoryStore(), ttl=60)
    with session.open(key=1) as data:
        data["n"] = 1
        monkeypatch.setattr(time, "time", lambda: before() + hour)
    assert session.peek(key=1) == {"n": 1}
    assert MATRIX[fault]["memory"] == UNMOVED


@cells("failover")
def test_failover(place, wired, expected, tmp_path):
    """6.4 The server that was demoted is left at the first error."""
    name = _name(place)
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(PLACES[name](tmp_path))
        place.demote(stack)
        _, aside = other.behind(stack)
        wired.wire.target = aside.target
        outcomes = [wired.sends()]
        wired.saved = 0  # the other server has nothing
        outcomes.append(wired.sends())
    assert "; ".join(outcomes) == expected


def _name(place):
    return {RedisPlace: "redis", PostgresPlace: "postgres"}[type(place)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@cells("fork")
def test_fork(place, expected):
    """6.4 It works in parent and child."""
    with connect(place.url, lease=LEASE) as store:
        put({}, store=store)
        with Worker(place.url, "fork", LEASE, 0) as forks:
            assert forks.read() == "ready"
            forks.go()
            said = [forks.read() for _ in range(6)]
            assert forks.process.wait(TIMEOUT) == 0
        assert said == ["inside", "leaving"] * 3
        assert found(store=store) == {"n": 3}
    assert expected == "saved, by both processes"


_FORKS = """
import os
from telesession import with_session
from tests.stores import message

@with_session
def handler(message):
    n = message.session["n"] = message.session.get("n", 0) + 1
    os.write(1, b"%d\\n" % n)

handler(message())
child = os.fork()
handler(message())
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_memory_fork():
    done = subprocess.run(
        [sys.executable, "-c", _FORKS], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (done.stdout.split(), done.returncode) == (["1", "2", "2"], 0), done.stderr
    assert MATRIX["fork"]["memory"] == "saved, by each process for itself"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on Windows")
@cells("interrupt")
def test_interrupt(place, wired, expected):
    """6.4 An answer that belongs to another request is never taken for ours."""
    assert _interrupted(wired.store, wired.wire) == expected


def test_memory_interrupt():
    assert _interrupted(MemoryStore(), None) == MATRIX["interrupt"]["memory"]


def _interrupted(store, wire):
    """Updates of some users, of which every third is interrupted, and what they find."""
    session = with_session(property="interrupt", store=store, lock_timeout=3 * LEASE)
    counts = dict.fromkeys(range(6), 0)
    for user in counts:
        with session.open(key=user) as data:
            data.update(user=user, n=0)
    hit = 0
    for number in range(12):
        user = number % 3
        try:
            with _interruption(wire, number), session.open(key=user) as data:
                data["n"] += 1
        except (Interrupt, SessionError):
            hit += 1
        for other in (3, 4, 5):  # whose sessions are not leased
            with session.open(key=other) as data:
                assert (data["user"], data["n"]) == (other, counts[other])
                data["n"] += 1
            counts[other] += 1
    assert hit > 6
    return OWN


@contextlib.contextmanager
def _interruption(wire, number):
    """An exception in the middle: while an answer is on its way, or at one of our lines."""
    if wire is None:
        with Interrupting(7 + 5 * number):
            yield
        return

    def ring(*_):
        # Late, so that the answer comes when the next one is waited for.
        threading.Timer(0.05, wire.flows.set).start()
        raise Interrupt

    before = signal.signal(signal.SIGALRM, ring)
    wire.flows.clear()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
