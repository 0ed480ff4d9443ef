"""How a handler of the suite of all stores goes wrong, and that it leaves no lock."""

import pytest

from telesession import _locks


@pytest.fixture(autouse=True)
def no_lock_left():
    """5.5 Nothing is kept for an idle session but what its store holds."""
    yield
    assert _locks.held() == 0


@pytest.fixture
def store(backend):
    return backend.store


class Boom(Exception):
    """What goes wrong in a handler, or in a client."""


def raising(body, error=Boom):
    """The body of a handler that does something and then fails."""

    def run(message):
        body(message)
        raise error

    return run


TTL = 60
