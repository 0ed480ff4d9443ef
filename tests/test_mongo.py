"""6.4 `MongoStore`: what is in the database, how it is listed, and when it goes."""

import json
import pickle
import time
import tracemalloc
from datetime import datetime, timedelta

import pytest

from telesession import SessionDataError, SessionLost, SessionStoreError, with_session
from tests import mongo_stores
from tests.helpers import SECRET, any_of, says, until
from tests.mongo_stores import contents
from tests.stores import NAME, found, message, put, visit

bson = pytest.importorskip("bson")
pymongo = pytest.importorskip("pymongo")

from telesession.mongo import MongoStore  # noqa: E402

pytestmark = pytest.mark.thorough

store = mongo_stores.store
stack = mongo_stores.stack


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

    with_session(store=store).remove(message())
    assert mongo.find_one() is None


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
        with_session(store=store).peek(message())


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


# Names


@pytest.fixture
def folding(mongo):
    """A store whose collection has a collation that does not tell ``a`` from ``A``."""
    folding = mongo.database["folding"]  # SecantusDB remembers the collation of a dropped name
    folding.drop()
    mongo.database.create_collection(folding.name, collation={"locale": "en", "strength": 2})
    return MongoStore(folding)


def test_names_that_the_collation_takes_as_equal(folding):
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
        until(lambda: not folding.collection.find_one({"lease": {"$exists": True}}))
        with a.open(key="a") as data:
            assert data == {"n": 1}
    with a.open(key="a"), says(SessionStoreError, "collation"), other.open(key="A"):
        pytest.fail("it has the session of another")
    assert (list(a.keys()), a.peek(key="a")) == (["a"], {"n": 1})
