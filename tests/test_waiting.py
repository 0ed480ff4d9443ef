"""Waiting for a session: the line, cycles in it, and when it is given up."""

import threading
import time

import pytest

from telesession import SessionBusy, _locks, keys, with_session
from tests.helpers import run_together, says, until
from tests.stores import TIMEOUT, message


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    until(lambda: _locks.held() == 0)
    assert not _locks._everyone.waiting


@pytest.fixture
def room(store):
    """A declaration whose sessions everybody locks before those of ``session``."""
    return with_session(property="room", key=keys.chat, store=store)


def waiting(number):
    """Wait until so many threads wait for a session."""
    until(lambda: len(_locks._everyone.waiting) == number)


class Calls:
    """Calls on threads of their own, each begun when the one before is in line."""

    def __init__(self):
        self.outcomes = []
        self._threads = []

    def begin(self, function, *arguments, waits=True):
        number, before = len(self.outcomes), len(_locks._everyone.waiting)
        self.outcomes.append(None)

        def run():
            try:
                self.outcomes[number] = function(*arguments)
            except Exception as error:
                self.outcomes[number] = error

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        if waits:
            waiting(before + 1)

    def end(self):
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "deadlock"
        return self.outcomes


class Holding:
    """A handler of user 42 that is inside until `go_on` is set, and does ``then`` first."""

    def __init__(self, declaration, then=lambda message: None):
        self._inside, self.go_on, self.end = (threading.Event() for _ in range(3))
        self._then = then
        self.handler = declaration(self._body)

    def _body(self, message):
        self._inside.set()
        assert self.go_on.wait(TIMEOUT)
        result = self._then(message)
        assert self.end.wait(TIMEOUT)
        return result

    def begin(self, calls):
        calls.begin(self.handler, message(), waits=False)
        assert self._inside.wait(TIMEOUT)


class TestTimeOut:
    def test_while_the_line_moves_nobody_times_out(self, store):
        """Contract 5.4: the last of the line waits longer than lock_timeout, behind others."""

        @with_session(store=store, lock_timeout=0.5)
        def handler(message):
            time.sleep(0.12)

        start = time.monotonic()
        assert run_together(*[lambda: handler(message())] * 8) == [None] * 8
        assert time.monotonic() - start > 0.5

    def test_one_holder_for_all_of_it(self, store, session):
        """Contract 5.4: the message names the time-out and how long the holder has had it, and
        every likely cause."""
        calls = Calls()
        holding = Holding(session)
        holding.begin(calls)
        waits = with_session(store=store, lock_timeout=0.05)(pytest.fail)
        words = ["'session:42:42'", "lock_timeout=0.05", "It has had it for 0.", "quicker"]
        words += ["longer", "thread", "timer", "future", "comes behind this one"]
        with says(SessionBusy, *words) as caught:
            waits(message())
        assert (caught.value.property, caught.value.key) == ("session", "42:42")
        holding.go_on.set()
        holding.end.set()
        assert calls.end() == [None]

    def test_each_has_its_own(self, store, session):
        """Contract 5.4: who has less patience leaves the line, and the others stay in it."""
        calls = Calls()
        holding = Holding(session)
        holding.begin(calls)
        calls.begin(with_session(store=store, lock_timeout=0.05)(pytest.fail), message())
        calls.begin(session(lambda message: "ran"), message())
        waiting(1)
        holding.go_on.set()
        holding.end.set()
        first, hasty, patient = calls.end()
        assert (first, type(hasty), patient) == (None, SessionBusy, "ran")


class TestCycles:
    def opening(self, room):
        def then(message):
            with room.open(message) as data:
                data["n"] = data.get("n", 0) + 1

        return then

    def test_who_gives_way_keeps_its_place(self, session, room):
        """Contract 5.2: only the one that would have closed a cycle goes before it."""
        calls, order = Calls(), []
        holding = Holding(session, self.opening(room))
        holding.begin(calls)
        for number in range(3):  # the first has the room, and waits for the session
            calls.begin(
                session(room(lambda message, number=number: order.append(number))), message()
            )
        calls.begin(room(lambda message: order.append("room")), message())
        holding.go_on.set()
        holding.end.set()
        assert calls.end() == [None] * 5
        assert order == [0, 1, 2, "room"]

    def test_who_gave_way_and_times_out(self, store, session, room):
        """Contract 5.5: nobody keeps a place in a line that it has left."""
        calls = Calls()
        holding = Holding(session, self.opening(room))
        holding.begin(calls)
        hasty = with_session(store=store, lock_timeout=0.2)
        calls.begin(hasty(room(pytest.fail)), message())
        holding.go_on.set()
        until(lambda: isinstance(calls.outcomes[1], SessionBusy))
        calls.begin(room(lambda message: message.room["n"]), message())
        holding.end.set()
        assert calls.end()[2] == 1

    def test_giving_way_again_and_again(self, store, session, room):
        """Contract 5.3, 5.4: stacks in both orders never fail beside a handler that opens more."""
        calls, handled = Calls(), []
        both = [session(room(handled.append)), room(session(handled.append))]
        crossing = session(self.opening(room))
        for number in range(60):
            calls.begin([*both, crossing][number % 3], message(), waits=False)
        assert calls.end() == [None] * 60
        assert len(handled) == 40
        assert room.peek(key=42) == {"n": 20}

    def test_the_one_that_closes_it(self, session, room):
        """Contract 5.4: where both have begun, it is told at once, and the other one goes on."""
        calls = Calls()
        one = Holding(session, self.opening(room))

        def open_session(message):
            with session.open(message):
                pass

        two = Holding(room, open_session)
        for holding in (one, two):
            holding.begin(calls)
        one.go_on.set()
        waiting(1)
        two.go_on.set()
        two.end.set()
        one.end.set()
        first, second = calls.end()
        assert first is None
        assert isinstance(second, SessionBusy)
        assert "'session:42:42'" in str(second)
        assert "'room:42'" in str(second)

    def test_waiting_for_a_cycle_that_is_being_told(self, session, room, monkeypatch):
        """Contract 5.4: who comes while the one that closed a cycle is on its way out waits."""
        calls, closing = Calls(), []
        told, go_on = threading.Event(), threading.Event()

        def open_session(message):
            closing.append(threading.get_ident())
            with session.open(message):
                pass

        free = _locks._Everyone.free

        def freed(everyone):
            free(everyone)
            if threading.get_ident() in closing and not told.is_set():
                told.set()
                assert go_on.wait(TIMEOUT)

        one, two = Holding(session, self.opening(room)), Holding(room, open_session)
        for holding in (one, two):
            holding.begin(calls)
        one.go_on.set()
        waiting(1)
        monkeypatch.setattr(_locks._Everyone, "free", freed)
        two.go_on.set()
        assert told.wait(TIMEOUT)
        calls.begin(session(lambda message: "ran"), message())
        go_on.set()
        two.end.set()
        one.end.set()
        first, second, third = calls.end()
        assert (first, type(second), third) == (None, SessionBusy, "ran")
