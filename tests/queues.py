"""Threads that queue for locks in an order that the test makes."""

import threading
import time
from contextlib import contextmanager

import pytest

from telesession import _locks
from telesession._locks import Locks

TIMEOUT = 30  # seconds, a guard against tests that hang: none comes near it

A, B, C = "session:1", "session:2", "session:3"


@pytest.fixture
def table():
    """A table, of which nothing is left over in the end."""
    table = Locks()
    yield table
    assert_empty(table)


def assert_empty(table):
    """5.5 Neither locks, nor lines, nor who waits."""
    assert (table.holders, table.lines, _locks._everyone.waiting) == ({}, {}, {})


def wait_until_queued(thread):
    """Wait until a thread is in a line, or has given up already."""
    deadline = time.monotonic() + TIMEOUT
    while thread.ident not in _locks._everyone.waiting and thread.is_alive():
        assert time.monotonic() < deadline, "it does not wait"
        time.sleep(0)


class Holder:
    """Takes locks for the thread that makes it, as a visit does: in the order that it is given."""

    since = 0.0

    def __init__(self, table, timeout=TIMEOUT, begun=True):
        self.table = table
        self.timeout = timeout
        self.begun = begun  #: whether it has loaded something, so that it can't give way
        self.thread = threading.get_ident()
        self.names = []
        self.waited = False

    def gives_way(self):
        return not self.begun

    def lock(self, *names):
        """Lock them all: while it waits for one, others that it has may be taken from it."""
        waited = True
        while waited:
            waited = False
            for name in names:
                if name not in self.names:
                    self.names.append(name)
                if self.table.holder(name) is not self and self.table.take(name, self) is not self:
                    self.waited = waited = True
                    self.table.wait(name, self, self.timeout)
        return self

    def leave(self):
        while self.names:
            self.table.release(self.names[-1], self)
            self.names.pop()


class Visitor:
    """A thread that takes locks, and gives them back when it is told to."""

    def __init__(self, table, *names, timeout=TIMEOUT, begun=True, log=None):
        self.table, self.names, self.timeout, self.begun = table, names, timeout, begun
        self.log = [] if log is None else log
        self.error = None
        self.has = threading.Event()  # all, or an error
        self._leave = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        self.holder = Holder(self.table, self.timeout, self.begun)
        try:
            self.holder.lock(*self.names)
            self.log.append(self)
            self.has.set()
            self._leave.wait(TIMEOUT)
        except BaseException as error:
            self.error = error
        finally:
            self.holder.leave()
            self.has.set()

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

    def visitor(*names, waiting=False, **options):
        one = Visitor(table, *names, **options)
        visitors.append(one)
        if waiting:
            wait_until_queued(one.thread)
        else:
            assert one.has.wait(TIMEOUT)
        return one

    yield visitor
    for each in visitors:
        each.leave()
    for each in visitors:
        each.join()


@contextmanager
def held(table, *names, **options):
    """By the thread of the test."""
    holder = Holder(table, **options)
    try:
        yield holder.lock(*names)
    finally:
        holder.leave()
