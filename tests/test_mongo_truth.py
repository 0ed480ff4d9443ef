"""6.3, 6.4 `MongoStore`: what becomes of sessions in trouble, and is truly said of it."""

import re
import threading
import time
from datetime import datetime

import pytest

from telesession import SessionBusy, SessionLost, SessionStoreError, with_session
from tests import mongo_stores, servers
from tests.helpers import any_of, says, until
from tests.mongo_stores import PAST, contents, held
from tests.mongod import Proxy
from tests.stores import NAME, TIMEOUT, found, message, put, visit

pymongo = pytest.importorskip("pymongo")

from pymongo import errors  # noqa: E402

from telesession.mongo import MongoStore  # noqa: E402

pytestmark = pytest.mark.thorough

store = mongo_stores.store
stack = mongo_stores.stack


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


# Leases

FUTURE = datetime(2999, 1, 1)


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


def test_a_late_request_between_two_of_a_release(store):
    """6.3 What it leases is not deleted as if it had never been stored."""
    put({"n": 1}, store=store)
    update = store._update

    def late(where, values):
        done = update(where, values)
        store.acquire([NAME], "token-10000", 0, {})
        return done

    store._update = late
    store.write([NAME], "token-10000", ())

    assert store.peek(NAME) == '{"n":1}'
