"""`tests.mongod`: what mongod refuses is refused, with its code; what it takes goes through."""

import pytest

from tests import servers
from tests.helpers import any_of
from tests.mongod import Proxy

pytestmark = pytest.mark.thorough

pymongo = pytest.importorskip("pymongo")

TRUE = {"$expr": {"$eq": [1, 1]}}


def upsert(query, update=({"$set": {"a": 1}},)):
    return lambda mongo: mongo.find_one_and_update(query, list(update), upsert=True)


def setting(*stages, **query):
    query = query or {"_id": 1}
    return lambda mongo: mongo.update_one(query, [{"$set": stage} for stage in stages])


def nested(levels):
    return {"a": nested(levels - 1)} if levels else 1


REFUSED = {
    "$expr in an upsert": (224, upsert({"_id": 1, **TRUE})),
    "deep in its query": (224, upsert({"_id": 1, "$and": [{"$or": [TRUE]}]})),
    "in an upsert by update": (
        224,
        lambda mongo: mongo.update_one({"_id": 1, **TRUE}, [{"$set": {"a": 1}}], upsert=True),
    ),
    "a field and its part": (40176, setting({"lease": 1, "lease.token": 2})),
    "a part and its field": (40176, setting({"lease.token.x": 2, "lease": 1})),
    "no name": (40352, setting({"": 1})),
    "no name in a path": (40352, setting({"a..b": 1})),
    "an operator's name": (16410, setting({"a.$b": 1})),
    "two operators": (15983, setting({"a": {"$add": [1], "$eq": [1, 1]}})),
    "an operator and a field": (15983, setting({"a": [{"b": {"c": 1, "$add": [1]}}]})),
    "the same in a projection": (
        15983,
        lambda mongo: mongo.find_one({}, {"a": {"$eq": [1, 1], "b": 1}}),
    ),
    "too deep": (15, setting({"a": {"$literal": nested(200)}})),
    "no shard key": (61, upsert({"a": 1})),
    "a shard key that may be many": (61, setting({"a": 1}, _id={"$in": [1]})),
    "no shard key to delete": (61, lambda mongo: mongo.delete_one({"a": 1})),
    # SecantusDB itself
    "$toDate of an int32": (241, setting({"a": {"$toDate": 1}})),
    "an unknown operator": (168, setting({"a": {"$now": {}}})),
    "an unknown variable": (17276, setting({"a": "$$NOWHERE"})),
    "too few arguments": (16020, setting({"a": {"$cond": [True, 1]}})),
    "another _id": (66, setting({"_id": 2})),
}


@any_of(REFUSED)
def test_refused(mongo, case):
    """The code is mongod's, and nothing is done."""
    code, command = case
    mongo.insert_one({"_id": 1})
    with pytest.raises(pymongo.errors.OperationFailure) as caught:
        command(mongo)
    assert caught.value.code == code
    assert list(mongo.find()) == [{"_id": 1}]


TAKEN = {
    "$expr in an update": setting({"a": 1}, _id=1, **TRUE),
    "$expr in a find": lambda mongo: mongo.find_one(TRUE),
    "$expr as a value": upsert({"_id": 1}, [{"$set": {"a": {"$literal": TRUE}}}]),
    "fields that begin alike": setting({"lease": 1, "leased.token": 1}),
    "one after the other": setting({"lease": 1}, {"lease.token": 1}),
    "operators as a value": setting({"a": {"$literal": {"$add": 1, "b": 1}}}),
    "deep": setting({"a": {"$literal": nested(150)}}),
    "modifiers of any document": lambda mongo: mongo.update_one({"x": 1}, {"$set": {"a.b": 1}}),
}


@any_of(TAKEN)
def test_taken(mongo, case):
    """What is only like that goes through."""
    mongo.insert_one({"_id": 1})
    case(mongo)


def test_standalone(tmp_path):
    """A server without a replica set refuses transaction numbers; pymongo sends it none."""
    with (
        servers.mongo_server(tmp_path, replica_set_name=None) as server,
        pymongo.MongoClient("127.0.0.1", server.port) as client,
        client.start_session() as session,
    ):
        client.db.c.insert_one({"_id": 1})
        with pytest.raises(pymongo.errors.OperationFailure) as caught:
            client.db.command("ping", txnNumber=1, session=session)
        assert caught.value.code == 20


def test_address(mongo_url, mongo_client):
    """A client that looks for the members of the replica set finds the proxy."""
    port = int(mongo_url.rpartition(":")[2].partition("/")[0])
    with pymongo.MongoClient("127.0.0.1", port) as client:
        assert client.db.command("hello")["me"] == f"127.0.0.1:{port}"
        assert client.nodes == {("127.0.0.1", port)}


def test_collation(mongo_client):
    """A collection's collation counts for commands that name none."""
    database = mongo_client["telesession"]
    mongo = database["collated"]  # SecantusDB remembers the collation of a dropped name
    mongo.drop()
    database.create_collection(mongo.name, collation={"locale": "en", "strength": 2})
    mongo.insert_one({"_id": "A"})
    assert mongo.find_one({"_id": "a"}) == {"_id": "A"}
    assert mongo.find_one_and_update({"_id": "a"}, [{"$set": {"n": 1}}], upsert=True) == {
        "_id": "A"
    }
    assert mongo.update_one({"_id": "a"}, {"$set": {"n": 2}}).matched_count == 1
    assert mongo.find_one({"_id": "a"}, collation={"locale": "simple"}) is None
    assert mongo.delete_one({"_id": "a"}).deleted_count == 1


def test_troubles(mongo_url, mongo):
    """A further proxy loses an answer, or sends a request twice, once."""
    port = int(mongo_url.rpartition(":")[2].partition("/")[0])
    with (
        Proxy(port) as proxy,
        pymongo.MongoClient(
            "127.0.0.1", proxy.port, directConnection=True, retryWrites=False
        ) as client,
    ):
        collection = client[mongo.database.name][mongo.name]
        proxy.twice = "update"
        for _ in range(2):
            collection.update_one({"_id": 1}, {"$inc": {"n": 1}}, upsert=True)
        assert mongo.find_one() == {"_id": 1, "n": 3}
        proxy.lose = "update"
        with pytest.raises(pymongo.errors.AutoReconnect):
            collection.update_one({"_id": 1}, {"$inc": {"n": 1}})
        assert collection.find_one() == {"_id": 1, "n": 4}
