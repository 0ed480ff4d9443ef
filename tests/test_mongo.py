"""6.4 `MongoStore`: what is in the database, and what becomes of sessions in trouble."""

import gc
import json
import os
import pickle
import re
import threading
import time
import tracemalloc
import warnings
import weakref
from datetime import datetime, timedelta

import pytest

from telesession import (
    SessionBusy,
    SessionDataError,
    SessionLost,
    SessionStoreError,
    with_session,
)
from telesession.leases import Held
from tests import servers
from tests.helpers import SECRET, any_of, says, until
from tests.mongod import Proxy
from tests.stores import NAME, TIMEOUT, found, message, put, visit

bson = pytest.importorskip("bson")
pymongo = pytest.importorskip("pymongo")

from pymongo import errors  # noqa: E402
from pymongo.monitoring import CommandListener  # noqa: E402
from pymongo.server_api import ServerApi  # noqa: E402

from telesession.mongo import MongoStore  # noqa: E402

pytestmark = pytest.mark.thorough


@pytest.fixture
def store(mongo):
    return MongoStore(mongo)


def nested(levels):
    return {"deep": nested(levels - 1)} if levels else {"bottom": 1}


# What is stored


def test_document(store, mongo):
    """A person can read what is stored: the session, and which handler saved it."""
    content = {"name": "Zoë", "cart": [{"id": 1, "price": 2.5}], "open": True, "note": None}
    put(content, store=store)
    (stored,) = mongo.find()
    released = stored.pop("released")
    assert stored == {"_id": NAME, "session": content}
    assert {name: type(value) for name, value in released.items()} == {"token": str, "request": str}


READABLE = {
    "floats": {"list": [1.0, -0.0, 0.1, 1e300, 5e-324, -1.5]},
    "integers": {"list": [0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63)]},
    "unicode": {"ключ": "Zoë 😀 \x00 \u2028", "\x1f": "~"},
    "empty parts": {"dict": {}, "list": [], "text": ""},
    "order": {"z": 1, "a": {"y": 2, "b": 3}},
    "deep": nested(40),
    "names of ours": {"_id": 1, "lease": {"token": "x"}, "session": 2, "delete_at": 3},
}
AS_TEXT = {
    "big integers": {"list": [2**70, -(2**64), 2**63]},
    "dotted keys": {"a.b": 1},
    "keys of operators": {"inner": {"$set": 1}},
    "an empty key": {"": 1},
    "a key with a zero": {"a\0b": 1},
    "half a character": {"text": "\ud800"},
    "very deep": nested(150),
}


@any_of({**READABLE, **AS_TEXT})
def test_round_trip(store, mongo, case):
    """A session comes back exactly, whatever JSON can say; where BSON can't, it is kept as JSON."""
    put(case, store=store)
    stored = mongo.find_one()["session"]
    assert type(stored) is (str if case in AS_TEXT.values() else dict)
    assert json.dumps(found(store=store)) == json.dumps(case)
    assert json.dumps(json.loads(stored) if type(stored) is str else stored) == json.dumps(case)


def test_other_codecs(store, mongo):
    """Bytes that a codec makes are kept as they are."""
    content = {"tags": {"a", "b"}, 1: (2, 3)}
    put(content, store=store, codec=pickle)
    assert pickle.loads(mongo.find_one()["session"]) == content
    assert found(store=store, codec=pickle) == content


@pytest.mark.parametrize("text", ['{"n": 1}', '{"n":1.00}', '{"n":1,"n":2}', "[1]", "~signed~"])
def test_text_of_other_codecs(store, mongo, text):
    """So is their text, unless it is what our own JSON says as well."""
    store.commit(store.open([NAME], 0)[0], [(NAME, text, None)])
    lease, payloads = store.open([NAME], 0)
    store.commit(lease, ())
    assert payloads == [mongo.find_one()["session"]] == [text]


def test_edited(store, mongo):
    """What somebody writes into the database by hand is what the handler finds."""
    put({"n": 1}, store=store)
    mongo.update_one({"_id": NAME}, {"$set": {"session.n": 2, "session.new": {"a.b": [2**40]}}})
    assert found(store=store) == {"n": 2, "new": {"a.b": [2**40]}}
    mongo.insert_one({"_id": "session:42:42 ", "session": {"n": 3}})
    assert found(store=store, key=lambda update: "42:42 ") == {"n": 3}


@any_of(
    {
        "a date": {"at": datetime(2026, 1, 1)},
        "an id": {"list": [bson.ObjectId()]},
        "bytes": {"raw": b"hunter2"},
        "a decimal": {"price": bson.Decimal128("1.5")},
        "not a number": {"n": float("nan")},
        "a list": [SECRET],
        "a number": 42,
        "a date only": datetime(2026, 1, 1),
        "text": SECRET,
    }
)
def test_edited_into_something_else(store, mongo, case):
    """What JSON can't say is reported and left as it is; no lease stays."""
    mongo.insert_one({"_id": NAME, "session": case})
    before = bson.encode(mongo.find_one())
    with says(SessionDataError, repr(NAME)):
        visit(lambda update: pytest.fail("it ran"), store=store)
    after = mongo.find_one()
    del after["released"]
    assert bson.encode(after) == before


# What is deleted


def test_index(store, mongo):
    """The first use of the collection makes its TTL index."""
    found(store=store)
    indexes = {name: dict(index) for name, index in mongo.index_information().items()}
    assert list(indexes) == ["_id_", "delete_at_1"]
    assert indexes["delete_at_1"]["expireAfterSeconds"] == 0


def test_times(store, mongo):
    """A document is to be deleted when its session is over and its lease is."""
    during = []

    def body(update):
        during.append(mongo.find_one())
        update.session["n"] = len(during)

    for ttl in (None, None, 5, 5, 60, 60, None, None):
        visit(body, store=store, ttl=ttl)
        after = mongo.find_one()
        assert "lease" not in after
        if ttl is None:
            assert after.keys() == {"_id", "session", "released"}
        else:
            now = datetime.now(bson.tz_util.utc).replace(tzinfo=None)
            assert abs(after["expires"] - now - timedelta(seconds=ttl)) < timedelta(seconds=2)
            assert after["delete_at"] == after["expires"]
    new, *others = during
    assert new["delete_at"] == new["lease"]["until"]
    assert "session" not in new
    expected = ["", "", "until", "until", "expires", "expires", ""]
    for each, last in zip(others, expected, strict=True):
        times = {"until": each["lease"]["until"], "expires": each.get("expires")}
        assert each.get("delete_at") == times.get(last)


def test_expires_while_the_handler_runs(mongo):
    """A document is not deleted under a handler that takes longer than ttl, lease and sweeps."""
    store = MongoStore(mongo, lease=0.5)
    put({"n": 1}, store=store, ttl=0.2)

    def body(update):
        time.sleep(1.2)
        update.session["n"] = update.session.get("n", 0) + 1

    visit(body, store=store, ttl=60)
    assert found(store=store, ttl=60) == {"n": 2}


def test_nothing_is_left(mongo):
    """100 users and as many processes that died leave no document behind."""
    count = with_session(store=MongoStore(mongo), ttl=1)(lambda update: update.session.update(n=1))
    dying = MongoStore(mongo, lease=0.5)
    for user in range(100):
        count(message(user + 1))
        dying.acquire([f"dead:{user}"], "token", 0, {})
    assert mongo.count_documents({}) > 0
    until(lambda: not mongo.count_documents({}))


# What is stored, without a lease


NAMES = [
    f"user_a:{key}"
    for key in (
        "1",
        "{b}",
        "}",
        ".*",
        "*",
        "$",
        "^",
        "\\",
        "?[a]",
        "é 😀\n",
        "\n",
        "(",
        "|",
        "a-b #",
    )
]
ALIKE = ["userXa:1", "User_A:1", "user_a", "user_ab:1", "xuser_a:1", "x\nuser_a:1", "user_a1:"]


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
def test_names(store, mongo, monkeypatch, page):
    """Exactly those of a prefix that are stored, however the pages fall."""
    monkeypatch.setattr("telesession.mongo._PAGE", page)
    assert list(store.names("user_a:")) == []
    mongo.insert_many([{"_id": name, "session": {}} for name in NAMES + ALIKE])
    past, future = datetime(2020, 1, 1), datetime(2999, 1, 1)
    mongo.insert_many(
        [
            {"_id": "user_a:over", "session": {}, "expires": past, "delete_at": future},
            {"_id": "user_a:later", "session": {}, "expires": future},
            {"_id": bson.ObjectId(), "session": {}},
        ]
    )
    leases = [store.open([name], 0)[0] for name in ("user_a:1", "user_a:never stored")]
    expected = sorted([*NAMES, "user_a:later"])
    assert sorted(store.names("user_a:")) == expected
    assert sorted(store.names("User_A:")) == ["User_A:1"]
    assert sorted(store.names("user_a:.*")) == ["user_a:.*"]
    assert sorted(store.names("")) == sorted(expected + ALIKE)
    for lease in leases:
        store.commit(lease, ())


def test_many_names(store, mongo):
    """Each comes once, page by page, and they are not in memory together."""
    mongo.insert_many([{"_id": f"session:{number}", "session": {}} for number in range(2500)])
    found, names = bytearray(2500), store.names("session:")
    found[int(next(names).removeprefix("session:"))] += 1
    put({"n": 1}, store=store)  # others, and the one who iterates, can write meanwhile
    tracemalloc.start()
    for name in names:
        if name != NAME:
            found[int(name.removeprefix("session:"))] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(found) == {1}
    assert peak < 3_000_000


def test_reading_asks_the_primary(mongo):
    """Secondaries are late: what was just saved may be missing there."""
    secondary = mongo.with_options(read_preference=pymongo.ReadPreference.SECONDARY)
    store = MongoStore(secondary)
    assert store._documents.read_preference == pymongo.ReadPreference.PRIMARY
    assert store.collection is secondary


def test_peek(store, mongo):
    """Reads without a lease, and leaves all as it is; also while others have it leased."""
    assert store.peek(NAME) is None
    lease, _ = store.open([NAME], 0)
    assert store.peek(NAME) is None
    store.commit(lease, [(NAME, '{"n":1}', 60)])
    lease, _ = store.open([NAME], 0)
    before = mongo.find_one()
    assert store.peek(NAME) == '{"n":1}'
    assert mongo.find_one() == before
    mongo.update_one({}, {"$set": {"expires": datetime(2020, 1, 1)}})
    assert store.peek(NAME) is None
    store.commit(lease, [(NAME, b"\xff", None)])
    assert store.peek(NAME) == b"\xff"
    mongo.update_one({}, {"$set": {"session": [1]}})
    with says(SessionDataError, repr(NAME)):
        store.peek(NAME)


# Several at once


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


def test_stack(stack, mongo):
    """Sessions of a stack are saved together, and removed."""
    assert contents(mongo) == {"a": 1, "b": 2, "c": 3}

    @stack
    def change(update):
        update.a["n"], update.c = 11, None

    change(message())
    assert contents(mongo) == {"a": 11, "b": 2}


@any_of(
    {
        "taken": {"$set": {"lease.token": "thief"}},
        "removed": {"$unset": {"lease": 1}},
    }
)
@pytest.mark.parametrize("lost", "abc")
def test_one_of_a_stack_is_lost(stack, mongo, lost, case):
    """None of a stack is saved when one of its sessions was lost; the others are free again."""

    @stack
    def change(update):
        update.a["n"], update.b, update.c["n"] = 11, None, 33
        mongo.update_one({"_id": f"{lost}:42:42"}, case)

    with says(SessionLost, f"'{lost}:42:42'"):
        change(message())
    mongo.update_one({"_id": f"{lost}:42:42"}, {"$unset": {"lease": 1}})
    assert contents(mongo) == {"a": 1, "b": 2, "c": 3}


def test_lease_that_ran_out(stack, mongo):
    """6.4 What nobody has taken is saved, although the leases ran out by the server's clock."""

    @stack
    def change(update):
        update.a["n"], update.b, update.c["n"] = 11, None, 33
        mongo.update_many({}, {"$set": {"lease.until": datetime(2020, 1, 1)}})

    change(message())
    assert contents(mongo) == {"a": 11, "c": 33}


def test_handler_that_lost_its_document(store, mongo):
    """A session whose document somebody deleted under the handler does not come back."""
    put({"n": 1}, store=store)

    def body(update):
        update.session["n"] = 2
        mongo.delete_many({})

    with says(SessionLost, repr(NAME)):
        visit(body, store=store)
    assert mongo.find_one() is None


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


# Leases


FUTURE = datetime(2999, 1, 1)
PAST = datetime(2020, 1, 1)


def held(store, name=NAME, token="waiting", **stale):
    with pytest.raises(Held) as caught:
        store.acquire([name], token, 0, stale)
    return caught.value


def test_held(store):
    """6.4 Who has a session is told, and every renewal changes the beat."""
    assert store.acquire([NAME], "a", 0, {}) == [None]
    beats = [held(store).beat]
    for _ in range(3):
        assert store.renew([NAME], "a")
        beats.append(held(store).beat)
    assert store.acquire([NAME], "a", 0, {}) == [None]  # the same request once more
    beats.append(held(store).beat)
    assert [token for token, _ in beats] == ["a"] * 5
    assert len(set(beats)) == 5


def test_clock_set_back(store, mongo):
    """6.4 A lease that stands still is taken, however far ahead the server's clock has it end."""
    store.acquire([NAME], "gone", 0, {})
    mongo.update_one({}, {"$set": {"lease.until": FUTURE}})
    seen = held(store).beat
    assert held(store, token="b", **{NAME: ("gone", seen[1] + 1)}).beat == seen
    assert held(store, token="b", **{NAME: ("other", seen[1])}).beat == seen
    assert store.acquire([NAME], "b", 0, {NAME: seen}) == [None]
    assert held(store, token="c", **{NAME: seen}).token == "b"
    assert not store.renew([NAME], "gone")
    assert not store.write([NAME], "gone", [(NAME, "{}", None)])


def test_holder_that_is_alive(store, mongo):
    """One that was renewed since is not."""
    store.acquire([NAME], "alive", 0, {})
    seen = held(store).beat
    store.renew([NAME], "alive")
    assert held(store, **{NAME: seen}).token == "alive"


def test_process_that_died(mongo_url, mongo):
    """6.4 A waiter comes to it by itself, in the time of the holder's lease."""
    with pymongo.MongoClient(mongo_url) as client:
        dead = MongoStore(client[mongo.database.name][mongo.name], lease=0.3)
        dead.acquire([NAME], dead._token(), 0, {})
        mongo.update_one({}, {"$set": {"lease.until": FUTURE}})
        start = time.monotonic()
        assert found(store=MongoStore(mongo), lock_timeout=TIMEOUT) == {}
        assert time.monotonic() - start >= 0.3


def test_clock_set_forward(store, mongo):
    """A lease that is over by the server's clock may be taken; until then it may be renewed."""
    store.acquire([NAME], "a", 0, {})
    mongo.update_one({}, {"$set": {"lease.until": PAST, "delete_at": FUTURE}})
    assert store.renew([NAME], "a")
    assert held(store).token == "a"
    mongo.update_one({}, {"$set": {"lease.until": PAST, "delete_at": FUTURE}})
    assert store.acquire([NAME], "b", 0, {}) == [None]
    assert not store.renew([NAME], "a")


def test_let_go_of(store, mongo):
    """A renewal brings nothing back that was let go of, nor does a late copy of a request."""
    put({"n": 1}, store=store)
    store.acquire([NAME], "a", 0, {})
    assert store.write([NAME], "a", ())
    before = mongo.find_one()
    assert not store.renew([NAME], "a")
    assert not store.write([NAME], "a", [(NAME, "{}", None)], release=False)
    assert mongo.find_one() == before


def test_late_copy_of_a_lease(store, mongo, monkeypatch):
    """6.4 The very request that leased a session does nothing once it was let go of."""
    put({"n": 1}, store=store)
    with monkeypatch.context() as same:
        same.setattr("telesession.mongo.secrets.token_hex", lambda size: "same")
        store.acquire([NAME], "a", 0, {})
        assert store.write([NAME], "a", ())
        before = mongo.find_one()
        assert held(store, token="a").token == ""
    assert mongo.find_one() == before
    assert store.acquire([NAME], "a", 0, {}) == ['{"n":1}']  # another request of the same token


CHANGES = {
    "saved": [(NAME, '{"n":2}', None)],
    "removed": [(NAME, None, None)],
    "unchanged": [],
}


@any_of(CHANGES)
@pytest.mark.parametrize("before", ["stored", "new"])
def test_write_that_comes_twice(store, mongo, case, before):
    """6.4 A write that lets go is done once, and is right the second time as well."""
    if before == "stored":
        put({"n": 1}, store=store)
    store.acquire([NAME], "a", 0, {})
    assert store.write([NAME], "a", case)
    first = mongo.find_one()
    assert store.write([NAME], "a", case)
    assert mongo.find_one() == first
    assert (first is None) == (case == CHANGES["removed"] or (before == "new" and not case))
    store.acquire([NAME], "b", 0, {})  # what others do meanwhile, it does not undo
    assert store.write([NAME], "a", ()) or first is None
    assert held(store).token == "b"
    assert store.write([NAME], "b", [(NAME, '{"n":3}', None)])
    assert not store.write([NAME], "a", [(NAME, '{"n":2}', None)])
    assert found(store=store) == {"n": 3}


@pytest.fixture
def proxy(mongo_url):
    """A proxy that loses answers, and sends requests twice."""
    with Proxy(int(re.search(r":(\d+)/", mongo_url)[1])) as proxy:
        yield proxy


LOST_ANSWER = {"findAndModify": "did not run", "update": "is not known"}


@pytest.mark.parametrize("retry", [True, False], ids=["retried", "not retried"])
@pytest.mark.parametrize("command", ["findAndModify", "update", "delete"])
@pytest.mark.parametrize("trouble", ["twice", "lose"])
def test_request(mongo, proxy, trouble, command, retry):
    """6.3, 6.4 A request that comes twice counts once; of a lost answer the message is true."""
    with pymongo.MongoClient(
        "127.0.0.1", proxy.port, directConnection=True, retryWrites=retry
    ) as client:
        store = MongoStore(client[mongo.database.name][mongo.name])
        put({"n": 1}, store=store)
        other = with_session(property="other", store=store)

        @other
        @with_session(store=store)
        def handler(update):
            update.session = {"n": update.session["n"] + 1}
            if command == "delete":
                update.session = None

        setattr(proxy, trouble, command)
        if trouble == "lose" and not retry and command != "delete":  # that one lets go only
            with says(SessionStoreError, LOST_ANSWER[command]):
                handler(message())
        else:
            handler(message())
        assert not getattr(proxy, trouble)
        until(lambda: not mongo.find_one({"lease": {"$exists": True}}))
        stored = mongo.find_one({"_id": NAME}, {"_id": 0, "session": 1})
        if command == "delete":
            assert stored is None
        else:
            assert stored["session"]["n"] in (1, 2)
            if trouble == "twice" or retry:
                assert stored["session"]["n"] == 2
    assert not mongo.find_one({"_id": {"$ne": NAME}})


def test_two_store_objects(mongo_url, mongo, store):
    """6.4 A handler that would wait for itself, through another client, is told at once."""
    with pymongo.MongoClient(mongo_url.replace("127.0.0.1", "localhost")) as client:
        session = with_session(store=store)
        again = with_session(store=MongoStore(client[mongo.database.name][mongo.name]))
        start = time.monotonic()
        with (
            session.open(key="42:42"),
            says(SessionBusy, "another store object"),
            again.open(key="42:42"),
        ):
            pytest.fail("it has what it has")
        assert time.monotonic() - start < TIMEOUT


# Names


@pytest.fixture
def folding(mongo):
    """A store whose collection has a collation that does not tell ``a`` from ``A``."""
    mongo.database.create_collection(mongo.name, collation={"locale": "en", "strength": 2})
    return MongoStore(mongo)


def test_names_that_the_collation_takes_as_equal(folding, mongo):
    """6.4 Sessions never mix: the second is refused, and the first left as it is."""
    a, other = (with_session(store=folding, key=lambda update: "a") for _ in range(2))
    with a.open(key="a") as data:
        data["n"] = 1
    for _ in range(2):
        with (
            says(SessionStoreError, "'session:A'", "'session:a'", "collation"),
            other.open(key="A"),
        ):
            pytest.fail("it has the session of another")
        with says(SessionStoreError, "collation"):
            other.peek(key="A")
        until(lambda: not mongo.find_one({"lease": {"$exists": True}}))
        with a.open(key="a") as data:
            assert data == {"n": 1}
    with a.open(key="a"), says(SessionStoreError, "collation"), other.open(key="A"):
        pytest.fail("it has the session of another")
    assert (list(a.keys()), a.peek(key="a")) == (["a"], {"n": 1})


# Trouble


@pytest.fixture
def server(tmp_path):
    with servers.mongo_server(tmp_path) as server:
        yield server


def test_server_trouble(server):
    """A server that is gone is reported; when it is back, work goes on as if nothing was."""
    client = pymongo.MongoClient(
        "127.0.0.1", server.port, directConnection=True, serverSelectionTimeoutMS=1500
    )
    with client:
        store = MongoStore(client.telesession.sessions, lease=1)

        def handle(n, *trouble):
            def body(update):
                update.session["n"] = n
                for each in trouble:
                    each()

            visit(body, store=store)

        handle(1)
        server.stop()
        with says(SessionStoreError, repr(NAME), "did not run") as caught:
            handle(2, pytest.fail)
        assert isinstance(caught.value.__cause__, pymongo.errors.PyMongoError)
        server.start()
        assert found(store=store) == {"n": 1}

        with says(SessionStoreError, repr(NAME)) as caught:
            handle(3, server.stop)
        known = store.refused(caught.value.__cause__)  # whether the client saw it before it wrote
        assert ("was not saved" if known else "is not known") in str(caught.value)
        server.start()
        assert found(store=store) == {"n": 1}  # when the lease of that handler is over

        handle(4, server.stop, lambda: time.sleep(1.2), server.start)
        assert found(store=store) == {"n": 4}  # nobody has taken it meanwhile

    client = pymongo.MongoClient("127.0.0.1", server.port, directConnection=True)
    with client:
        store = MongoStore(client.telesession.sessions)
        handle(5, server.stop, server.start)
        assert found(store=store) == {"n": 5}


def test_failures_are_told_once(server):
    """6.3 Loading and saving each ask a client once whose server is gone, also for a stack."""
    client = pymongo.MongoClient(
        "127.0.0.1", server.port, directConnection=True, serverSelectionTimeoutMS=500
    )
    with client:
        store = Asking(client.telesession.sessions)
        a, b = (with_session(property=name, store=store) for name in "ab")

        @a
        @b
        def handler(update):
            update.a["n"] = update.b["n"] = 1
            server.stop()
            time.sleep(1.1)  # after that, pymongo looks whether its connections are there
            store.asked.clear()

        with says(SessionStoreError, "'a:42:42', 'b:42:42'", "was not saved"):
            handler(message())
        assert store.asked == ["a:42:42"]
        store.asked.clear()
        with says(SessionStoreError, "did not run"):
            handler(message())
        assert store.asked == ["a:42:42"]
        server.start()
        until(lambda: not client.telesession.sessions.find_one({"lease": {"$exists": True}}))


class Asking(MongoStore):
    """One that notes what its client is asked for in the handler's thread."""

    def __init__(self, collection):
        super().__init__(collection)
        self.asked, self._thread = [], threading.get_ident()

    def _ask(self, names):
        if threading.get_ident() == self._thread:
            self.asked += names

    def acquire(self, names, *arguments):
        self._ask(names)
        return super().acquire(names, *arguments)

    def write(self, names, *arguments, **options):
        self._ask(names)
        return super().write(names, *arguments, **options)


def failure(code, *labels):
    return errors.OperationFailure("no", code, {"errorLabels": list(labels)})


@any_of(
    {
        "refused": (True, failure(13)),
        "never reached": (True, errors.ServerSelectionTimeoutError()),
        "a closed client": (True, errors.InvalidOperation()),
        "too large": (True, errors.DocumentTooLarge("large")),
        "no answer": (False, errors.AutoReconnect()),
        "no answer in time": (False, errors.NetworkTimeout()),
        "no longer the primary": (False, errors.NotPrimaryError()),
        "may be tried again": (False, failure(91, "RetryableWriteError")),
        "given up by the server": (False, errors.ExecutionTimeout("late", 50)),
        "written, and not confirmed": (False, errors.WriteConcernError("late", 64)),
        "the same in time": (False, errors.WTimeoutError("late", 64)),
        "no room in the pool": (False, errors.WaitQueueTimeoutError()),
    }
)
def test_refused(store, case):
    """6.3 Only where nothing can have been done, the message says so."""
    refused, error = case
    assert store.refused(error) is refused


def test_too_large(store, mongo):
    """What MongoDB has no room for is not saved, and says so; what was stored stays."""
    put({"n": 1}, store=store)
    with says(SessionStoreError, repr(NAME), "was not saved"):
        put({"text": "x" * 2**24}, store=store)
    assert found(store=store) == {"n": 1}
    until(lambda: not mongo.find_one({"lease": {"$exists": True}}))


@any_of(
    {
        "a role": (failure(13), "readWrite"),
        "a shard key": (failure(61), "_id"),
        "a secondary": (errors.NotPrimaryError("not primary"), "directConnection"),
        "anything else": (failure(1), ""),
        "no answer": (errors.AutoReconnect(), ""),
    }
)
def test_cure(store, case):
    """The message says what to do where that is known."""
    error, cure = case
    assert cure in store.cure(error)
    assert bool(store.cure(error)) == bool(cure)


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
