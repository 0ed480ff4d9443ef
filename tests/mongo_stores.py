"""A `MongoStore`, a handler of three sessions in it, and sessions that others hold."""

from datetime import datetime

import pytest

from telesession import with_session
from telesession.leases import Held
from tests.stores import NAME, message

pytest.importorskip("pymongo")

from telesession.mongo import MongoStore

PAST = datetime(2020, 1, 1)


@pytest.fixture
def store(mongo):
    return MongoStore(mongo)


@pytest.fixture
def stack(store):
    """Decorates a handler of three sessions, and puts them as 1, 2 and 3."""
    declarations = [with_session(property=name, store=store, ttl=60) for name in "abc"]

    def decorated(handler):
        for declaration in declarations:
            handler = declaration(handler)
        return handler

    @decorated
    def save(update):
        update.a, update.b, update.c = ({"n": n} for n in (1, 2, 3))

    save(message())
    return decorated


def contents(mongo):
    assert not mongo.find_one({"lease": {"$exists": True}}), "one is still leased"
    return {each["_id"][0]: each["session"]["n"] for each in mongo.find()}


def held(store, name=NAME, token="waiting", **stale):
    with pytest.raises(Held) as caught:
        store.acquire([name], token, 0, stale)
    return caught.value
