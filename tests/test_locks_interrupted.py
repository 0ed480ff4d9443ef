"""5.5 `Locks`: an exception at any line leaves nothing held, and nobody in line."""

import signal
import threading

import pytest

from telesession import SessionBusy, _locks
from telesession._locks import Locks
from tests import queues
from tests.helpers import until
from tests.interrupts import free, interruptions
from tests.queues import TIMEOUT, A, B, Holder, Visitor, assert_empty, held, wait_until_queued

table = queues.table
visitor = queues.visitor


class Interrupt(KeyboardInterrupt):
    pass


@pytest.fixture
def interrupted():
    """Press Ctrl-C when the main thread waits in the module of the locks, for two ticks now.

    What it gives is an event: as long as the test clears it, nothing is pressed.
    """
    stood = []
    armed = threading.Event()
    armed.set()

    def press(number, frame):
        here = frame, frame.f_lasti
        inside = frame.f_code.co_filename == _locks.__file__
        if inside and stood == [here] and armed.is_set():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Interrupt
        stood[:] = [here]

    before = signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    yield armed
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    stood.clear()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on Windows")
class TestInterrupt:
    """Ctrl-C while waiting leaves no one in the queue."""

    def test_it_is_passed_on(self, table, visitor, interrupted):
        first = visitor(A)
        with pytest.raises(Interrupt), held(table, A):
            pass
        first.leave().join()

        assert_empty(table)

    def test_the_next_one_gets_it(self, table, visitor, interrupted):
        first = visitor(A)
        interrupted.clear()
        behind = []

        def queue_behind():
            wait_until_queued(threading.main_thread())
            behind.append(visitor(A, waiting=True))
            interrupted.set()

        thread = threading.Thread(target=queue_behind)
        thread.start()
        with pytest.raises(Interrupt), held(table, A):
            pass
        thread.join(TIMEOUT)
        first.leave()

        assert behind[0].has.wait(TIMEOUT)


class Line:
    """Somebody has a lock until the thread of the test, and others behind it, wait for it."""

    def __init__(self, others=0):
        self.table = Locks()
        self.first = Holder(self.table).lock(A)
        self.first.thread = 0
        self.mine = Holder(self.table)
        self.others = others
        self.behind = []
        self.over = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        self.wait_for_line(1)
        for n in range(self.others):
            self.behind.append(Visitor(self.table, A).leave())
            self.wait_for_line(n + 2)
        self.first.leave()

    def wait_for_line(self, length):
        until(lambda: self.over or len(self.table.lines.get(A, ())) >= length)

    def check(self):
        """Nothing is left of the one who was interrupted, and the others came through."""
        self.over = True
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()
        assert len(self.behind) == self.others
        for one in self.behind:
            one.join()
            assert one.error is None
        assert_empty(self.table)
        assert free(_locks._everyone.mutex)


class Cycle(Line):
    """Somebody has a lock, and waits for the one that the thread of the test takes first."""

    def run(self):
        self.first.leave()
        with held(self.table, B) as holder:
            until(lambda: self.over or self.table.holder(A) is self.mine)
            holder.lock(A)


class Place(Line):
    """Somebody gave way to the thread of the test, and keeps the only place in the line."""

    def __init__(self):
        super().__init__()
        wait_until_queued(self.thread)
        self.mine.lock(B)

    def run(self):
        table = self.table
        table.hand_over(A, self.mine)
        self.mine.names.append(A)
        self.first.leave()
        with held(table, B, A, begun=False) as holder:
            assert table.holder(A) is table.holder(B) is holder


class TestInterruptedAnywhere:
    """An exception at any line leaves nothing held or queued, and the next one gets the lock."""

    def check(self, make, run):
        for subject in interruptions(make, run, _locks.__file__):
            subject.check()

    def locked(self, holder, *names):
        """What a visit does: it leaves once more where leaving was interrupted."""
        try:
            try:
                holder.lock(*names)
            finally:
                holder.leave()
        finally:
            holder.leave()

    def test_what_is_free(self):
        def run(line):
            yield
            self.locked(line.mine, B)

        self.check(Line, run)

    @pytest.mark.parametrize("others", [0, 1, 2])
    def test_in_a_line(self, others):
        def run(line):
            yield
            self.locked(line.mine, A)

        self.check(lambda: Line(others), run)

    def test_with_a_time_out(self):
        def run(line):
            line.mine.timeout = 1e-9
            line.table.hand_over(B, line.first)
            line.first.names.append(B)
            yield
            with pytest.raises(SessionBusy):
                self.locked(line.mine, B)

        self.check(Line, run)

    def test_closing_a_cycle(self):
        """The one that gives way is itself: what it has goes to the one who waits for it."""

        def run(cycle):
            cycle.mine.begun = False
            until(lambda: cycle.table.holder(B) is not None)
            cycle.mine.lock(A)
            wait_until_queued(cycle.thread)
            yield
            self.locked(cycle.mine, A, B)

        self.check(Cycle, run)

    def test_releasing_what_somebody_gave_way_with(self):
        def run(place):
            yield
            self.locked(place.mine)

        self.check(Place, run)
