"""4.1, 5.1, 5.5 An exception out of a signal handler, at any line, leaves nothing behind.

The full form, on more kinds of stores and events, is ``python -m tests.interrupts_everywhere``.
"""

import signal
import threading
import time

import pytest

from telesession import MemoryStore, _dispatch, _locks, with_session
from tests import interrupts_everywhere
from tests.interrupts import Alarm, Interrupt
from tests.store_suite import raising
from tests.stores import Leasing, message

pytestmark = pytest.mark.thorough

# All of them on the strictest store, and some on the others.
SHORT = [
    *(("leasing", name) for name in interrupts_everywhere.SCENARIOS),
    *(("memory", name) for name in ("with_ttl", "stack_on_two_stores", "hands_over")),
    *(("dict", name) for name in ("changed", "stack_on_two_stores")),
]


@pytest.mark.parametrize(("kind", "scenario"), SHORT)
def test_at_some_lines(kind, scenario):
    """Every 17th line of a path, from another one on for each scenario."""
    first = len(scenario) % 17
    error = (Interrupt, Alarm)[first % 2]
    found = list(interrupts_everywhere.interrupt(scenario, kind, error, first=first, step=17))
    assert len(found) > 3
    assert [one for one in found if one[1]] == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on Windows")
def test_real_alarms():
    """They come between any two instructions of a handler's path; the next update is right."""
    session = with_session(store=MemoryStore(), lock_timeout=1)

    @session
    def handler(update):
        update.session["n"] = update.session.get("n", 0) + 1
        with session.open(key="7:7") as data:
            data["n"] = update.session["n"]
        return update.session["n"]

    def ring(*_):
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    armed = False
    before = signal.signal(signal.SIGALRM, ring)
    deadline = time.monotonic() + 2
    done = hit = 0
    update = message()
    try:
        while time.monotonic() < deadline and hit < 500:
            delay = 5e-6 + (hit * 7919 % 1000) * 1e-7
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, delay)
                handler(update)
                while armed:  # it was quicker than the alarm
                    pass
            except Interrupt:
                hit += 1
            finally:
                armed = False
            assert _locks.held() == 0
            assert _dispatch.innermost == {}
            one, seven = session.peek(update) or {}, session.peek(key="7:7") or {}
            assert one == seven
            assert one.get("n", 0) >= done
            done = one.get("n", 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hit > 20
    assert handler(message()) == done + 1
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(handler(message())))
    thread.start()
    thread.join(10)
    assert elsewhere == [done + 2]


@pytest.mark.parametrize("stacked", [False, True], ids=["one session", "two stores"])
def test_each_release_is_interrupted(stacked):
    """As by somebody who presses Ctrl-C once more: the locks are free nevertheless."""
    session = with_session(store=Interrupted())
    handler = session(raising(lambda update: None))
    if stacked:
        handler = with_session(property="other", store=Interrupted())(handler)
    with pytest.raises(KeyboardInterrupt):
        handler(message())
    assert _locks.held() == 0
    assert _dispatch.innermost == {}


class Interrupted(Leasing):
    def commit(self, lease, changes):
        super().commit(lease, changes)
        raise KeyboardInterrupt
