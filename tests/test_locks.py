"""5.1 to 5.5 `Locks`: one at a time, first come, first served, and nothing kept of it.

Handlers wait for each other in `test_stores_updates`; here the table is alone, with threads that
queue in an order that the test makes: it looks into the table to see who waits. `test_schedules`
has them take turns at every line.
"""

import itertools
import random
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from telesession import SessionBusy, _locks
from telesession._locks import Locks, locks_of
from tests import queues
from tests.helpers import until
from tests.queues import TIMEOUT, A, B, C, Holder, Visitor, assert_empty, held, wait_until_queued

table = queues.table
visitor = queues.visitor


class TestTaking:
    def test_what_is_free(self, table):
        holder = Holder(table).lock(A, B)

        assert len(table) == 2
        assert table.holder(A) is table.holder(B) is holder
        assert not holder.waited
        holder.leave()
        assert table.holder(A) is None

    def test_what_another_one_has(self, table):
        """It is told who has it, also where that is one of the same thread."""
        outer, inner = Holder(table).lock(A), Holder(table)

        assert table.take(A, inner) is outer
        assert table.holder(A) is outer
        outer.leave()

    def test_what_somebody_waits_for(self, table, visitor):
        """It is told who has it, and doesn't get it."""
        first = visitor(A)
        visitor(A, waiting=True)

        assert table.take(A, Holder(table)) is first.holder

    def test_only_who_has_it_releases_it(self, table):
        """So to release once more does no harm."""
        outer, inner = Holder(table).lock(A), Holder(table)
        table.release(A, inner)
        assert table.holder(A) is outer

        table.release(A, outer)
        assert table.take(A, inner) is inner
        table.release(A, outer)
        assert table.holder(A) is inner
        table.release(A, inner)

    def test_what_was_released(self, table):
        for _ in range(3):
            with held(table, A, B):
                assert len(table) == 2
            assert len(table) == 0

    def test_different_names_do_not_wait_for_each_other(self, table, visitor):
        everyone = [visitor(f"session:{n}") for n in range(8)]

        assert len(table) == 8
        assert not any(one.holder.waited for one in everyone)

    def test_different_tables_do_not_wait_for_each_other(self, table, visitor):
        visitor(A)
        other = Locks()

        with held(other, A) as holder:
            assert not holder.waited

    def test_one_name_is_held_by_one(self, table, visitor):
        first = visitor(A)
        second = visitor(A, waiting=True)
        assert not second.has.is_set()

        first.leave()
        assert second.has.wait(TIMEOUT)
        assert table.holder(A) is second.holder
        assert len(table) == 1  # the line is gone with the last who waited

    def test_handed_over(self, table, visitor):
        """Who waits goes on waiting, for the other one now."""
        first, second = Holder(table).lock(A), Holder(table)
        waiting = visitor(A, waiting=True)

        table.hand_over(A, second)
        first.leave()
        assert table.holder(A) is second
        assert not waiting.has.is_set()
        table.release(A, second)
        assert waiting.has.wait(TIMEOUT)
        assert table.holder(A) is waiting.holder

    def test_a_place_has_one_table(self):
        """It is there for as long as somebody uses it, and counts among what is held."""
        place, other = {}, {}
        table = locks_of(place)

        assert locks_of(place) is table
        assert locks_of(other) is not table
        before = _locks.held()
        with held(table, A):
            assert _locks.held() == before + 1
        assert _locks.held() == before


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
        with _locks._everyone.mutex:  # without which nobody gets what is waited for
            first.leave()
            until(lambda: table.holder(A) is None)
            newcomer = Visitor(table, A)
            slipped_in = newcomer.has.wait(0.05)
        assert not slipped_in
        assert waiting.has.wait(TIMEOUT)
        newcomer.leave()
        waiting.leave()
        newcomer.join()

    def test_of_several_names(self, table, visitor):
        """Who waits for one name has those before it in the order, and not those behind it."""
        middle = visitor(B)
        every = visitor(A, B, C, waiting=True)

        assert table.holder(A) is every.holder
        assert table.holder(B) is middle.holder
        assert table.holder(C) is None
        middle.leave()
        assert every.has.wait(TIMEOUT)
        assert [table.holder(name) for name in (A, B, C)] == [every.holder] * 3


def join_all(threads):
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads), "deadlock"


class TestTimeOut:
    """5.4 Waiting longer than lock_timeout for the same holder raises SessionBusy."""

    @pytest.mark.parametrize("timeout", [1e-9, 0.001])
    def test_it_is_over(self, table, visitor, timeout):
        visitor(A)

        message = pytest.raises(SessionBusy, match=f"lock_timeout={timeout:g} ")
        with message, held(table, A, timeout=timeout):
            pass

    def test_the_message(self, table, visitor):
        """It names the session, and says for how long the one who has it has had it."""
        visitor(A).holder.since = time.monotonic() - 100

        with pytest.raises(SessionBusy) as caught, held(table, A, timeout=0.001):
            pass
        assert "'session:1' was in use by another handler for all of" in str(caught.value)
        assert "It has had it for 100 seconds." in str(caught.value)
        assert (caught.value.property, caught.value.key) == ("session", "1")

    def test_who_gave_up_does_not_get_it(self, table, visitor):
        first = visitor(A)
        with pytest.raises(SessionBusy), held(table, A, timeout=0.001):
            pass
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

    def test_what_it_has_already_is_still_its_own(self, table, visitor):
        """Its visit lets go of that."""
        visitor(B)
        with held(table, A) as holder:
            holder.timeout = 0.001
            with pytest.raises(SessionBusy):
                holder.lock(B)

            assert table.holder(A) is holder

    def test_it_can_be_tried_again(self, table, visitor):
        first = visitor(A)
        for _ in range(3):
            with pytest.raises(SessionBusy), held(table, A, timeout=0.001):
                pass
        first.leave().join()

        with held(table, A) as holder:
            assert table.holder(A) is holder

    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock that the test moves, and that knows how often each thread has read it."""

        def monotonic():
            clock.read[threading.get_ident()] += 1
            return clock.now

        clock = SimpleNamespace(now=1.0, read=Counter(), monotonic=monotonic)
        monkeypatch.setattr(_locks, "time", clock)
        return clock

    def test_while_the_line_moves_nobody_times_out(self, clock, visitor):
        """However long that takes in all."""

        def look():
            read = clock.read[patient.thread.ident]
            until(lambda: clock.read[patient.thread.ident] > read + 3 or patient.has.is_set())

        everyone = [visitor(A), *(visitor(A, waiting=True) for _ in range(4))]
        patient = visitor(A, waiting=True, timeout=0.02)
        clock.now += 0.002  # that is longer than it waits without a stand-in
        look()
        for present, following in itertools.pairwise(everyone):
            clock.now += 0.015
            present.leave()
            assert following.has.wait(TIMEOUT)
            look()
            assert not patient.has.is_set()

        clock.now += 0.03
        assert patient.has.wait(TIMEOUT)
        assert isinstance(patient.error, SessionBusy)

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
            with held(table, A) as holder:
                ready.wait(TIMEOUT)
                holder.lock(B)
                outcome.append(list(holder.names))

        thread = threading.Thread(target=other)
        with held(table, B) as holder:
            thread.start()
            ready.wait(TIMEOUT)
            wait_until_queued(thread)

            with pytest.raises(SessionBusy, match=r"'session:1' is held .* 'session:2'"):
                holder.lock(A)
        thread.join(TIMEOUT)

        assert outcome == [[A, B]]

    def test_of_three_handlers(self, table):
        """The one that would close it is told; the others go on, one after the other."""
        outcome = []
        ready = threading.Barrier(3)

        def other(has, wants):
            with held(table, has) as holder:
                ready.wait(TIMEOUT)
                holder.lock(wants)
                outcome.append(wants)

        threads = [threading.Thread(target=other, args=names) for names in ((A, B), (B, C))]
        with held(table, C) as holder:
            for thread in threads:
                thread.start()
            ready.wait(TIMEOUT)
            for thread in threads:
                wait_until_queued(thread)
            with pytest.raises(SessionBusy, match="'session:1' is held"):
                holder.lock(A)
        for thread in threads:
            thread.join(TIMEOUT)

        assert outcome == [C, B]

    def test_over_two_tables(self, table):
        """Sessions of two stores can wait for each other, too."""
        other_table = Locks()
        ready = threading.Barrier(2)

        def other():
            with held(table, A) as holder:
                ready.wait(TIMEOUT)
                with held(other_table, A):
                    assert table.holder(A) is holder

        thread = threading.Thread(target=other)
        with held(other_table, A):
            thread.start()
            ready.wait(TIMEOUT)
            wait_until_queued(thread)
            with pytest.raises(SessionBusy, match="is held by a handler that waits"):
                Holder(table).lock(A)
        thread.join(TIMEOUT)
        assert_empty(other_table)

    def test_with_itself(self, table):
        """What the thread has already can't be waited for."""
        with held(table, A), pytest.raises(SessionBusy, match="neither could ever go on"):
            Holder(table).lock(A)

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


class TestGivingWay:
    """5.3 A visit that has not begun lets go of what it has, and locks it again afterwards."""

    def test_to_one_who_has_begun(self, table, visitor):
        """The cycle is broken, whoever closes it; nobody is told anything."""
        with held(table, A) as holder:
            beginning = visitor(B, A, waiting=True, begun=False)
            assert table.holder(B) is beginning.holder

            holder.lock(B)
            assert table.holder(B) is holder
            assert not beginning.has.is_set()

        assert beginning.has.wait(TIMEOUT)
        assert beginning.error is None
        assert table.holder(A) is table.holder(B) is beginning.holder

    def test_by_the_one_who_closes_the_cycle(self, table, visitor):
        ready = threading.Event()
        outcome = []

        def other():
            with held(table, A) as holder:
                ready.set()
                until(lambda: table.holder(B) is not None)
                holder.lock(B)
                outcome.append("first")

        thread = threading.Thread(target=other)
        thread.start()
        assert ready.wait(TIMEOUT)
        with held(table, B, begun=False) as holder:
            wait_until_queued(thread)
            holder.lock(B, A)
            outcome.append("second")
            assert table.holder(A) is table.holder(B) is holder
        thread.join(TIMEOUT)

        assert outcome == ["first", "second"]

    def test_those_in_line_come_first(self, table, visitor):
        """What is let go of goes to the first who waits for it."""
        served = []
        with held(table, A) as holder:
            beginning = visitor(B, A, waiting=True, begun=False, log=served)
            waiting = visitor(B, waiting=True, log=served)
            thread = threading.Thread(target=lambda: served.append(waiting.leave()))
            until(lambda: len(table.lines[B]) == 1)
            thread.start()
            holder.lock(B)
            served.append(holder)
            thread.join(TIMEOUT)
        assert beginning.has.wait(TIMEOUT)

        assert beginning.error is None
        assert served.index(waiting) < served.index(holder) < served.index(beginning)

    def test_what_it_has_again_can_be_handed_over(self, table, visitor):
        """It has kept its place in the line only until then."""
        with held(table, A) as holder:
            beginning = visitor(B, A, waiting=True, begun=False)
            holder.lock(B)
            table.release(B, holder)
            assert table.holder(B) is beginning.holder
            table.hand_over(B, holder)
            table.release(B, holder)
            assert table.holder(B) is None

    def test_what_it_gave_up_to_have(self, table, visitor):
        """It has again what it let go of, until it leaves."""
        holder = Holder(table, timeout=0.05, begun=False).lock(B)
        other = visitor(A, B, waiting=True)
        with pytest.raises(SessionBusy, match="lock_timeout"):
            holder.lock(A)
        assert table.holder(B) is other.holder

        other.leave().join()
        assert table.holder(B) is holder
        holder.leave()

    def test_once_more(self, table, visitor):
        """What it let go of and has again may close the next cycle, of which nobody is told."""
        with held(table, C) as holder:
            other = visitor(A, C, B, waiting=True)
            beginning = visitor(B, A, waiting=True, begun=False)
            holder.lock(B)
            table.release(C, holder)
            until(lambda: len(table.lines[B]) == 2)  # the place of one, and the other
        assert other.has.wait(TIMEOUT)
        assert not beginning.has.is_set()
        other.leave()
        assert beginning.has.wait(TIMEOUT)

        assert [other.error, beginning.error] == [None, None]

    def test_again_and_again(self, table, quick_switches):
        """Those who begin lock in one order, and those who have begun in another."""
        start = threading.Barrier(8)
        errors = []

        def visit(*names, begun):
            start.wait(TIMEOUT)
            for _ in range(100):
                try:
                    with held(table, *names, begun=begun) as holder:
                        assert all(table.holder(name) is holder for name in names)
                except Exception as error:
                    errors.append(error)

        orders = [((C, A), True)] * 2 + [((A, B, C), False)] * 6
        join_all(
            [
                threading.Thread(target=visit, args=names, kwargs={"begun": begun})
                for names, begun in orders
            ]
        )

        assert errors == []


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
                names = sorted(chance.sample([A, B, C], chance.randint(1, 3)))
                with held(table, *names):
                    for name in names:
                        n = counts[name]
                        counts[name] = n + 1
                with mutex:
                    for name in names:
                        expected[name] += 1

        self.run(work)

        assert counts == expected

    def test_with_time_outs(self, table, quick_switches):
        """Some give up, at the very moment when they could have it."""
        counts = {A: 0, B: 0}
        succeeded = []

        def work(chance):
            for _ in range(self.ROUNDS):
                timeout = chance.choice([1e-9, 1e-5, 1e-4, TIMEOUT])
                try:
                    with held(table, A, B, timeout=timeout) as holder:
                        for name in counts:
                            n = counts[name]
                            counts[name] = n + 1
                        succeeded.append(holder)
                except SessionBusy:
                    continue

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
                        with held(table, inner):
                            n = counts[inner]
                            counts[inner] = n + 1
                            succeeded[inner].append(outer)
                    except SessionBusy:
                        continue

        self.run(work)

        assert counts == {name: len(each) for name, each in succeeded.items()}
        assert sum(counts.values()) > 0
