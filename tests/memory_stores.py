"""A `MemoryStore` with a clock of its own, and what handlers do with it."""

import gc
import weakref

import pytest

from telesession import MemoryStore
from tests.stores import Clock

TTL = 60


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def save(store, *names, ttl=None):
    """Save sessions under these names, one after the other, as handlers would."""
    for name in names:
        update(store, name, ttl=ttl)


def update(store, name, content=b"content", ttl=None):
    """Open a session and save it."""
    lease, _ = store.open([name])
    store.commit(lease, [(name, content, ttl)])


def read(store, name):
    """Open a session and save nothing."""
    lease, (payload,) = store.open([name])
    store.commit(lease, [])
    return payload


def kept(store, *names):
    """Which of them are in the store; to look is no use of them."""
    return [name for name in names if name in store]


class Content(str):
    """A payload of which the test can see when it is gone."""


def watched(store, name, ttl=None):
    """Save a session, and give a function that tells whether its content is still in memory."""
    content = Content(name)
    update(store, name, content, ttl)
    reference = weakref.ref(content)
    del content

    def alive():
        gc.collect()
        return reference() is not None

    assert alive()
    return alive
