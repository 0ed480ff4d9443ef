"""6.4 `MongoStore`: which client and collection it takes, and what it asks of them."""

import gc
import os
import re
import warnings
import weakref

import pytest

from telesession import SessionBusy, SessionStoreError, with_session
from tests import mongo_stores, servers
from tests.helpers import any_of, says
from tests.mongo_stores import PAST, held
from tests.stores import NAME, found, put

pymongo = pytest.importorskip("pymongo")

from pymongo.monitoring import CommandListener  # noqa: E402
from pymongo.server_api import ServerApi  # noqa: E402

from telesession.mongo import MongoStore  # noqa: E402

pytestmark = pytest.mark.thorough

store = mongo_stores.store


# What is sent


class Listener(CommandListener):
    """The commands of a client, and what was answered."""

    def __init__(self):
        self.sent, self.answers = [], []

    def started(self, event):
        self.sent.append((event.command_name, dict(event.command)))

    def succeeded(self, event):
        self.answers.append((event.command_name, event.reply))

    def failed(self, event):
        self.answers.append((event.command_name, event.failure))


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def strict(mongo, mongo_url, listener):
    """A store whose client keeps to the Stable API, and is listened to."""
    api = ServerApi("1", strict=True, deprecation_errors=True)
    with pymongo.MongoClient(mongo_url, event_listeners=[listener], server_api=api) as client:
        yield MongoStore(client[mongo.database.name][mongo.name])


def operators(value):
    """The operators and variables of aggregation that a pipeline, or a projection, has."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from [key] if key.startswith("$") else []
            yield from operators(part) if key != "$literal" else []
    elif isinstance(value, list):
        for part in value:
            yield from operators(part)
    elif isinstance(value, str) and value.startswith("$$"):
        yield value


#: What MongoDB 5.0 has for updates, says the page Aggregation Pipeline Operators of its manual.
OPERATORS = {
    *("$set", "$cond", "$and", "$or", "$not", "$eq", "$ne", "$gt", "$lte", "$type", "$toLong"),
    *("$add", "$ifNull", "$literal", "$$NOW", "$$REMOVE"),
}


def test_commands(strict, listener):
    """6.4 What the docstring lists is sent, and nothing else: commands of the Stable API."""
    session = with_session(store=strict, ttl=60)
    with session.open(key="42:42") as data:
        data["n"] = 1
        (token,) = strict._renewer.held
        assert strict.renew([NAME], token)
    with session.open(key="7:7"):
        pass
    assert (list(session.keys()), session.peek(key="42:42")) == (["42:42"], {"n": 1})
    lease, _ = strict.open([NAME], 0)
    assert strict.acquire([NAME], "waiting", 0, {NAME: held(strict).beat}) == ['{"n":1}']
    strict.commit(lease, ())
    assert strict.write([NAME], "waiting", ())
    session.remove(key="42:42")
    assert not strict.write([NAME], "nobody's", [(NAME, "{}", None)])

    described = set(re.findall(r"\* ``(\w+)``|and ``(delete)``", MongoStore.__doc__))
    assert {name for name, _ in listener.sent} == {"".join(each) for each in described}
    used = set()
    for name, command in listener.sent:
        for each in command.get("updates", [command]):
            update = each.get("u", each.get("update"))
            used |= {*operators(update if name != "update" else each["u"])}
        used |= {*operators(command.get("fields", {}))}
        used |= {*operators(command.get("filter", {}).get("$expr", {}))}
    assert used == OPERATORS
    assert [answer for name, answer in listener.answers if not answer["ok"]] == []


def test_trips(strict, listener):
    """An update takes two round trips, and the first one of a store one more, for the index."""
    put({"n": 1}, store=strict)
    assert [name for name, _ in listener.sent] == ["createIndexes", "findAndModify", "update"]
    listener.sent.clear()
    put({"n": 2}, store=strict, ttl=60)
    found(store=strict)
    assert [name for name, _ in listener.sent] == ["findAndModify", "update"] * 2


def test_waiting_fetches_no_content(strict, mongo, listener):
    """Who waits is told who has the session, not what is in it; and changes nothing."""
    put({"n": "x" * 10_000}, store=strict)
    lease, _ = strict.open([NAME], 0)
    over = {"expires": PAST, "delete_at": "$lease.until"}  # its holder goes on with what it has
    mongo.update_one({"_id": NAME}, [{"$set": over}])
    before = mongo.find_one()
    listener.answers.clear()
    with pytest.raises(SessionBusy):
        strict.open([NAME], 0)
    ((_, answer),) = listener.answers
    assert answer["value"] == {"_id": NAME, "lease": {"token": lease.token, "beat": 1}}
    assert mongo.find_one() == before
    strict.commit(lease, ())


def test_no_cursor_stays_open(strict, mongo, listener, monkeypatch):
    """5.7 Each page comes in one answer."""
    monkeypatch.setattr("telesession.mongo._PAGE", 2)
    mongo.insert_many([{"_id": f"a:{number}", "session": {}} for number in range(4)])
    assert len(list(strict.names("a:"))) == 4
    assert [answer["cursor"]["id"] for _, answer in listener.answers] == [0, 0, 0]


def test_standalone(tmp_path):
    """6.4 All works on a server that is no member of a replica set."""
    with (
        servers.mongo_server(tmp_path, replica_set_name=None) as server,
        pymongo.MongoClient("127.0.0.1", server.port) as client,
    ):
        store = MongoStore(client.telesession.sessions)
        put({"n": 1}, store=store, ttl=60)
        assert found(store=store) == {"n": 1}
        put({}, store=store)
        assert client.telesession.sessions.find_one() is None


def test_other_index(store, mongo):
    """An index of that name that is another's is not changed."""
    mongo.create_index("delete_at", expireAfterSeconds=60)
    with says(SessionStoreError, "did not run", "Drop the index delete_at_1"):
        found(store=store)
    assert mongo.index_information()["delete_at_1"]["expireAfterSeconds"] == 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks where there are threads
def test_fork(store, mongo):
    """6.4 A store that was used before a fork works in the child, and after it in the parent."""
    session = with_session(store=store)
    with session.open(key="42:42") as data:
        data["n"] = 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pymongo's, of the fork
                with session.open(key="42:42") as data:
                    data["n"] += 1
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with session.open(key="42:42") as data:
        data["n"] += 1
    assert mongo.find_one()["session"] == {"n": 3}


# Misuse


def asynchronous(**options):
    if not hasattr(pymongo, "AsyncMongoClient"):
        pytest.skip("this pymongo has no asynchronous client")
    return pymongo.AsyncMongoClient(**options)


@any_of(
    {
        "a database": lambda client: client.telesession,
        "a client": lambda client: client,
        "asynchronous": lambda client: asynchronous(connect=False).a.b,
        "a name": lambda client: "sessions",
    }
)
def test_no_collection(mongo_client, case):
    """What is no collection is refused, with the cure."""
    with says(TypeError, "collection=", "pymongo.MongoClient().my_bot.sessions"):
        MongoStore(case(mongo_client))


def test_unanswered_writes(mongo):
    """A collection whose writes nobody answers is refused."""
    unanswered = mongo.with_options(write_concern=pymongo.WriteConcern(w=0))
    with says(ValueError, "collection=", "w=0"):
        MongoStore(unanswered)


@pytest.mark.parametrize("lease", [0, -1, True, "10", None, float("nan"), float("inf")], ids=repr)
def test_lease(mongo, lease):
    """So is a lease that is no time."""
    with says(TypeError if lease in (True, "10", None) else ValueError, f"lease={lease!r}"):
        MongoStore(mongo, lease=lease)


def test_long_times(mongo):
    """Any lease and ttl will do, even such as end later than MongoDB has dates."""
    store = MongoStore(mongo, lease=1e300)
    put({"n": 1}, store=store, ttl=1e300)
    assert found(store=store) == {"n": 1}


def test_same_place(mongo_client, mongo):
    """Stores of one collection are one: their handlers queue for each other."""
    one, other = MongoStore(mongo), MongoStore(mongo_client.telesession.sessions)
    assert one.identity is other.identity
    assert one.identity is not MongoStore(mongo_client.telesession.others).identity
    assert repr(one) == "MongoStore(telesession.sessions)"


def test_equal_clients():
    """pymongo has equal clients of one server: a store does not depend on whether another lives."""
    first, second = (pymongo.MongoClient("127.0.0.1", 1, connect=False) for _ in range(2))
    one, other = MongoStore(first.a.b), MongoStore(second.a.b)
    before = other.identity
    assert one.identity is before
    gone = weakref.ref(first)
    first.close()
    del first, one
    gc.collect()
    assert gone() is None
    assert other.identity is before
    second.close()
