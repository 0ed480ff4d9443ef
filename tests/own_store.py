"""A leasing store of the tests' own, in memory, which notes its calls and can fail."""

import threading
import time

import pytest

from telesession.leases import Held, LeasingStore
from tests.stores import TIMEOUT

A, B, C = NAMES = ["a:1", "b:1", "c:1"]


class OwnStore(LeasingStore):
    """What the docstring of `LeasingStore` asks for, in memory; it notes calls, and can fail."""

    def __init__(self, lease=10.0, grouped=False):
        super().__init__(lease)
        self.kept = {}  # name: (payload, when it expires)
        self.leased = {}  # name: (token, until by the server's clock, beat)
        self.ended = set()  # tokens that have let go
        self.clock = time.monotonic  # the server's
        self.calls = []
        self.failures = {}  # (operation, name): what to raise, once
        self.too_late = False  # whether writing fails after it was done
        self._grouped = grouped
        self._step = threading.Lock()

    def groups(self, names):
        return [[name] for name in sorted(names)] if self._grouped else [names]

    def acquire(self, names, token, waited, stale):
        with self._step:
            self._note("acquire", names)
            for name in names:
                holder, until, beat = self.leased.get(name, (token, 0, 0))
                gone = stale.get(name) == (holder, beat) or until <= self.clock()
                if holder != token and not gone:
                    raise Held(name, holder, beat)
            self._extend(names, token)
            return [self._read(name) for name in names]

    def renew(self, names, token):
        with self._step:
            self._note("renew", names)
            if not self._has(names, token):
                return False
            self._extend(names, token)
            return True

    def write(self, names, token, changes, *, release=True):
        with self._step:
            self._note("write", names, fail=not self.too_late)
            if not self._has(names, token):
                return token in self.ended  # it is sent for the second time
            for name, payload, ttl in changes:
                if payload is None:
                    self.kept.pop(name, None)
                else:
                    self.kept[name] = payload, None if ttl is None else time.monotonic() + ttl
            if release:
                self.ended.add(token)
                for name in names:
                    del self.leased[name]
            if self.too_late:
                self._fail("write", names)
            return True

    def _read(self, name):
        payload, expires = self.kept.get(name, (None, None))
        return None if expires is not None and expires <= time.monotonic() else payload

    def _has(self, names, token):
        return all(self.leased.get(name, ("",))[0] == token for name in names)

    def _extend(self, names, token):
        for name in names:
            _, _, beat = self.leased.get(name, ("", 0, 0))
            self.leased[name] = token, self.clock() + self.lease, beat + 1

    def _note(self, operation, names, fail=True):
        self.calls.append((operation, *names))
        if fail:
            self._fail(operation, names)

    def _fail(self, operation, names):
        for name in names:
            error = self.failures.pop((operation, name), None)
            if error:
                raise error

    # For tests

    def steal(self, name):
        """Have another process take the session, as it can when the lease ran out."""
        self.leased[name] = "thief-60000", time.monotonic() + TIMEOUT, 0

    def count(self, operation):
        return sum(call[0] == operation for call in self.calls)


@pytest.fixture
def store():
    return OwnStore()


@pytest.fixture
def grouped():
    """A store that handles each session in a step of its own."""
    store = OwnStore(grouped=True)
    store.kept = {name: (f"old {name}", None) for name in NAMES}
    return store


def renewer(store):
    """The thread that renews the leases of the store, while it has one."""
    return store._renewer._thread


def changed(*names):
    return [(name, f"new {name}", None) for name in names]


def failing(call, *errors, late=False):
    """The same, but it raises these first, if ``late`` when it is done."""
    left = list(errors)

    def run(*args, **kwargs):
        if left and not late:
            raise left.pop(0)
        answer = call(*args, **kwargs)
        if left:
            raise left.pop(0)
        return answer

    return run
