"""`Locks`: one at a time, first come, first served, and nothing kept of it.

Handlers wait for each other in `test_stores`; here the table is alone, with threads that queue in
an order that the test makes: it looks into the table to see who waits.
"""

import random
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from telesession.locks import Locks

from telesession import SessionBusy
from telesession import locks as locks_module

TIMEOUT = 30  # seconds, a guard against tests that hang: none comes near it

A, B, C = "session:1@7", "session:2@7", "session:3@7"


@pytest.fixture
def table():
    """A table, of which nothing is left over in the end."""
    table = Locks()
    yield table
    assert_empty(table)


def assert_empty(table):
    """5.5 Neither locks, nor queues, nor who waits."""
    left = {name: value for name, value in vars(table).items() if isinstance(value, dict) and value}
    assert left == {}


def wait_until_queued(table, thread):
    """Wait until a thread is in a queue of the table, or has given up already."""
    deadline = time.monotonic() + TIMEOUT
    while thread.ident not in table._waiters and thread.is_alive():
        assert time.monotonic() < deadline, "it does not wait"
        time.sleep(0)


class Holder:
    """Takes locks for the thread that makes it."""

    def __init__(self, timeout=TIMEOUT):
        self.thread = threading.get_ident()
        self.timeout = timeout
        self.waits_since = 0.0
        self.had_to_wait = False

    def lock_timeout(self, key):
        self.had_to_wait = True
        return self.timeout


class Visitor:
    """A thread that takes locks, and gives them back when it is told to."""

    def __init__(self, table, *keys, timeout=TIMEOUT, log=None):
        self.table, self.keys, self.timeout = table, keys, timeout
        self.log = [] if log is None else log
        self.taken = None
        self.error = None
        self.has = threading.Event()  # all, or an error
        self._leave = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        self.holder = Holder(self.timeout)
        try:
            self.taken = self.table.acquire(self.keys, self.holder)
        except BaseException as error:
            self.error = error
            self.has.set()
            return
        self.log.append(self)
        self.has.set()
        self._leave.wait(TIMEOUT)
        self.table.release(self.taken)

    def leave(self):
        """Give back what it has, at once or as soon as it has it."""
        self._leave.set()
        return self

    def join(self):
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive(), "it hangs"


@pytest.fixture
def visitor(table):
    """Makes visitors, who all have left in the end."""
    visitors = []

    def visitor(*keys, waiting=False, **options):
        one = Visitor(table, *keys, **options)
        visitors.append(one)
        if waiting:
            wait_until_queued(table, one.thread)
        else:
            assert one.has.wait(TIMEOUT)
        return one

    yield visitor
    for each in visitors:
        each.leave()
    for each in visitors:
        each.join()


@contextmanager
def held(table, *keys):
    """By the thread of the test."""
    taken = table.acquire(keys, Holder())
    try:
        yield taken
    finally:
        table.release(taken)


class TestTaking:
    def test_what_is_free(self, table):
        holder = Holder()
        taken = table.acquire([A, B], holder)

        assert sorted(taken) == [A, B]
        assert len(table) == 2
        assert table.holder(A) is table.holder(B) is holder
        assert not holder.had_to_wait
        table.release(taken)

    def test_nothing(self, table):
        assert list(table.acquire([], Holder())) == []
        table.release([])

    def test_what_the_thread_has_already(self, table):
        """It belongs to the first, and is released by it alone."""
        outer, inner = Holder(), Holder()
        taken = table.acquire([A], outer)

        assert list(table.acquire([A, B], inner)) == [B]
        assert table.holder(A) is outer
        table.release([B])
        assert len(table) == 1
        table.release(taken)

    def test_what_was_released(self, table):
        for _ in range(3):
            with held(table, A, B):
                assert len(table) == 2
            assert len(table) == 0

    def test_different_keys_do_not_wait_for_each_other(self, table, visitor):
        everyone = [visitor(f"session:{n}@7") for n in range(8)]

        assert len(table) == 8
        assert not any(one.holder.had_to_wait for one in everyone)

    def test_one_key_is_held_by_one(self, table, visitor):
        first = visitor(A)
        second = visitor(A, waiting=True)
        assert not second.has.is_set()

        first.leave()
        assert second.has.wait(TIMEOUT)
        assert table.holder(A).thread == second.thread.ident


class TestOrder:
    """5.2 First come, first served."""

    def test_among_those_who_wait(self, visitor):
        served = []
        first = visitor(A, log=served)
        waiting = [visitor(A, waiting=True, log=served) for _ in range(8)]

        for each in [first, *waiting]:
            each.leave()
        for each in waiting:
            assert each.has.wait(TIMEOUT)

        assert served == [first, *waiting]

    def test_one_after_the_other(self, visitor):
        """Whoever leaves lets in the first of those who wait, and nobody else."""
        present = visitor(A)
        waiting = [visitor(A, waiting=True) for _ in range(4)]

        while waiting:
            assert not any(each.has.is_set() for each in waiting)
            present.leave()
            present = waiting.pop(0)
            assert present.has.wait(TIMEOUT)

    def test_a_newcomer_does_not_overtake(self, visitor):
        """Not even while who is to have it has not woken up yet."""
        served = []
        first = visitor(A, log=served)
        waiting = visitor(A, waiting=True, log=served)
        first.leave()
        newcomer = visitor(A, waiting=True, log=served)
        waiting.leave()
        assert newcomer.has.wait(TIMEOUT)

        assert served == [first, waiting, newcomer]

    def test_a_newcomer_does_not_slip_in(self, table, visitor):
        """Not even between the moments when a lock is free and when the next one has it."""
        first = visitor(A)
        waiting = visitor(A, waiting=True)
        with table._mutex:  # without which nobody gets what is waited for
            first.leave()
            while len(table):
                time.sleep(0)
            newcomer = Visitor(table, A)
            slipped_in = newcomer.has.wait(0.05)
        assert not slipped_in
        assert waiting.has.wait(TIMEOUT)
        newcomer.leave()
        waiting.leave()
        newcomer.join()

    def test_of_several_keys(self, table, visitor):
        """Who waits for one key has those before it in the order, and not those behind it."""
        middle = visitor(B)
        every = visitor(C, B, A, waiting=True)

        assert table.holder(A).thread == every.thread.ident
        assert table.holder(B).thread == middle.thread.ident
        assert len(table) == 2
        middle.leave()
        assert every.has.wait(TIMEOUT)
        assert sorted(every.taken) == [A, B, C]

    def test_stacks_in_opposite_orders(self, table):
        """5.3 However they are named, they are taken in one order: no deadlock."""
        start = threading.Barrier(4)
        errors = []

        def visit(*keys):
            start.wait(TIMEOUT)
            for _ in range(200):
                try:
                    with held(table, *keys):
                        pass
                except SessionBusy as error:
                    errors.append(error)

        orders = [(A, B, C), (C, B, A), (B, C, A), (C, A)]
        threads = [threading.Thread(target=visit, args=keys) for keys in orders]
        join_all(threads)

        assert errors == []


def join_all(threads):
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads), "deadlock"


class TestTimeOut:
    """5.4 Waiting longer than lock_timeout raises SessionBusy."""

    @pytest.mark.parametrize("timeout", [1e-9, 0.001])
    def test_it_is_over(self, table, visitor, timeout):
        visitor(A)

        with pytest.raises(SessionBusy, match=f"lock_timeout={timeout:g} "):
            table.acquire([A], Holder(timeout))

    def test_the_message(self, table, visitor):
        """It names the session, not the lock."""
        visitor(A)

        with pytest.raises(SessionBusy, match="'session:1' was in use by another handler"):
            table.acquire([A], Holder(0.001))

    def test_who_gave_up_does_not_get_it(self, table, visitor):
        first = visitor(A)
        with pytest.raises(SessionBusy):
            table.acquire([A], Holder(0.001))
        first.leave().join()

        assert_empty(table)

    def test_the_next_one_gets_it(self, visitor):
        first = visitor(A)
        impatient = visitor(A, waiting=True, timeout=0.05)
        patient = visitor(A, waiting=True)
        assert impatient.has.wait(TIMEOUT)
        assert isinstance(impatient.error, SessionBusy)

        first.leave()
        assert patient.has.wait(TIMEOUT)
        assert patient.error is None

    def test_the_ones_before_get_it(self, visitor):
        """The last of the queue gives up."""
        first = visitor(A)
        patient = visitor(A, waiting=True)
        impatient = visitor(A, waiting=True, timeout=0.05)
        assert impatient.has.wait(TIMEOUT)
        assert isinstance(impatient.error, SessionBusy)

        first.leave()
        assert patient.has.wait(TIMEOUT)
        assert patient.error is None

    def test_what_was_taken_before_is_given_back(self, table, visitor):
        visitor(B)
        with pytest.raises(SessionBusy):
            table.acquire([A, B, C], Holder(0.001))

        with held(table, A, C) as taken:
            assert sorted(taken) == [A, C]

    def test_what_the_thread_had_already_is_not(self, table, visitor):
        visitor(B)
        with held(table, A):
            with pytest.raises(SessionBusy):
                table.acquire([A, B], Holder(0.001))

            assert table.holder(A).thread == threading.get_ident()

    def test_it_can_be_tried_again(self, table, visitor):
        first = visitor(A)
        for _ in range(3):
            with pytest.raises(SessionBusy):
                table.acquire([A], Holder(0.001))
        first.leave().join()

        with held(table, A) as taken:
            assert list(taken) == [A]

    @pytest.mark.parametrize("timeout", [1e9, 1e300, 10**300])
    def test_it_may_be_longer_than_a_lock_can_wait(self, visitor, timeout):
        first = visitor(A)
        patient = visitor(A, waiting=True, timeout=timeout)
        first.leave()

        assert patient.has.wait(TIMEOUT)
        assert patient.error is None


class TestCycles:
    """5.4 A cycle raises at once, and not at the time-out, with another message."""

    def test_of_two_handlers(self, table):
        """Each has one session and wants the other's."""
        outcome = []
        ready = threading.Barrier(2)

        def other():
            with held(table, A):
                ready.wait(TIMEOUT)
                with held(table, B) as further:
                    outcome.append(list(further))

        thread = threading.Thread(target=other)
        with held(table, B):
            thread.start()
            ready.wait(TIMEOUT)
            wait_until_queued(table, thread)

            with pytest.raises(SessionBusy, match=r"'session:1' is held .* 'session:2'"):
                table.acquire([A], Holder())
        thread.join(TIMEOUT)

        assert outcome == [[B]]

    def test_of_three_handlers(self, table):
        """The one that would close it is told; the others go on, one after the other."""
        outcome = []
        ready = threading.Barrier(3)

        def other(has, wants):
            with held(table, has):
                ready.wait(TIMEOUT)
                with held(table, wants):
                    outcome.append(wants)

        threads = [threading.Thread(target=other, args=keys) for keys in ((A, B), (B, C))]
        with held(table, C):
            for thread in threads:
                thread.start()
            ready.wait(TIMEOUT)
            for thread in threads:
                wait_until_queued(table, thread)
            with pytest.raises(SessionBusy, match="'session:1' is held"):
                table.acquire([A], Holder())
        for thread in threads:
            thread.join(TIMEOUT)

        assert outcome == [C, B]

    def test_a_chain_is_none(self, table, visitor):
        """One waits for another that waits for a third, which goes on."""
        last = visitor(C)
        middle = visitor(B, C, waiting=True)
        first = visitor(A, B, waiting=True)

        last.leave()
        assert middle.has.wait(TIMEOUT)
        middle.leave()
        assert first.has.wait(TIMEOUT)
        assert [last.error, middle.error, first.error] == [None, None, None]


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
        inside = frame.f_code.co_filename == locks_module.__file__
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
        with pytest.raises(Interrupt):
            table.acquire([A], Holder())
        first.leave().join()

        assert_empty(table)

    def test_what_was_taken_before_is_given_back(self, table, visitor, interrupted):
        visitor(B)
        with pytest.raises(Interrupt):
            table.acquire([A, B], Holder())

        with held(table, A) as taken:
            assert list(taken) == [A]

    def test_the_next_one_gets_it(self, table, visitor, interrupted):
        first = visitor(A)
        interrupted.clear()
        behind = []

        def queue_behind():
            wait_until_queued(table, threading.main_thread())
            behind.append(visitor(A, waiting=True))
            interrupted.set()

        thread = threading.Thread(target=queue_behind)
        thread.start()
        with pytest.raises(Interrupt):
            table.acquire([A], Holder())
        thread.join(TIMEOUT)
        first.leave()

        assert behind[0].has.wait(TIMEOUT)

    def test_while_the_time_to_wait_is_asked_for(self, table, visitor):
        class Early(Holder):
            def lock_timeout(self, key):
                raise Interrupt

        first = visitor(A)
        with pytest.raises(Interrupt):
            table.acquire([A], Early())
        first.leave().join()

        assert_empty(table)


class TestStress:
    """Threads that take turns at every step lose nothing, and leave nothing behind."""

    THREADS = 8
    ROUNDS = 300

    def run(self, work):
        start = threading.Barrier(self.THREADS)
        errors = []

        def run(number):
            start.wait(TIMEOUT)
            try:
                work(random.Random(number))
            except BaseException as error:
                errors.append(error)

        join_all([threading.Thread(target=run, args=(n,)) for n in range(self.THREADS)])
        assert errors == []

    def test_counters(self, table, quick_switches):
        counts = {A: 0, B: 0, C: 0}
        expected = dict(counts)
        mutex = threading.Lock()

        def work(chance):
            for _ in range(self.ROUNDS):
                keys = chance.sample([A, B, C], chance.randint(1, 3))
                with held(table, *keys):
                    for key in keys:
                        n = counts[key]
                        counts[key] = n + 1
                with mutex:
                    for key in keys:
                        expected[key] += 1

        self.run(work)

        assert counts == expected

    def test_with_time_outs(self, table, quick_switches):
        """Some give up, at the very moment when they could have it."""
        counts = {A: 0, B: 0}
        succeeded = []

        def work(chance):
            for _ in range(self.ROUNDS):
                holder = Holder(chance.choice([1e-9, 1e-5, 1e-4, TIMEOUT]))
                try:
                    taken = table.acquire([B, A], holder)
                except SessionBusy:
                    continue
                for key in counts:
                    n = counts[key]
                    counts[key] = n + 1
                succeeded.append(holder)
                table.release(taken)

        self.run(work)

        assert counts == {A: len(succeeded), B: len(succeeded)}

    def test_nested_in_any_order(self, table, quick_switches):
        """Handlers that open further ones while they run: cycles raise, and nobody hangs."""
        counts = {A: 0, B: 0, C: 0}
        succeeded = {A: [], B: [], C: []}

        def work(chance):
            for _ in range(self.ROUNDS):
                outer, inner = chance.sample([A, B, C], 2)
                with held(table, outer):
                    try:
                        taken = table.acquire([inner], Holder())
                    except SessionBusy:
                        continue
                    n = counts[inner]
                    counts[inner] = n + 1
                    succeeded[inner].append(outer)
                    table.release(taken)

        self.run(work)

        assert counts == {key: len(each) for key, each in succeeded.items()}
        assert sum(counts.values()) > 0
