"""6.4 `RedisStore` on real servers: what the contract suite does not ask of every store."""

import contextlib
import functools
import itertools
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import types

import pytest
import redis
import redis.asyncio
import redis.sentinel
import valkey as valkey_py
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from valkey.cluster import ValkeyCluster

import telesession.redis as redis_store
from telesession import (
    SessionBusy,
    SessionDataError,
    SessionError,
    SessionLost,
    SessionStoreError,
    with_session,
)
from telesession.leases import Held
from telesession.redis import RedisStore
from tests import servers
from tests.helpers import count, run_together, says, until
from tests.interrupts import TELESESSION, Alarm, Interrupt, Interrupting
from tests.stores import NAME, TIMEOUT, found, message, put, visit

pytestmark = pytest.mark.thorough

#: Whether redis-py sends a request again by itself, where no answer came.
RETRIES = int(redis.__version__.partition(".")[0]) >= 6
KEY = "telesession:{%s:42:42}"
DATA, LEASE, WAKE = KEY % "session", KEY % "session" + ":lease", KEY % "session" + ":wake"
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(scope="module", params=["Valkey", "Redis"])
def valkey_port(request, tmp_path_factory):
    """The port of a server of either kind."""
    binary = servers.redis_binary if request.param == "Redis" else None
    with servers.valkey_server(tmp_path_factory.mktemp("server"), binary=binary) as server:
        yield server.port


@pytest.fixture
def connect():
    """Makes clients that don't try twice."""
    with contextlib.ExitStack() as stack:
        once = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None}
        yield lambda port, **more: stack.enter_context(redis.Redis(port=port, **{**once, **more}))


@pytest.fixture
def store(valkey):
    return RedisStore(valkey)


@pytest.fixture
def rival(connect, valkey_port):
    """A store of the same sessions that competes on the server, as another process does."""
    return RedisStore(connect(valkey_port))


@pytest.fixture
def own(tmp_path, request):
    """A server for one test, with the options of its parameter."""
    with servers.valkey_server(tmp_path, *getattr(request, "param", ())) as server:
        yield server


@pytest.fixture
def unwoken_never(monkeypatch):
    """Whoever waits looks again only if the server wakes it."""
    monkeypatch.setattr(redis_store, "_LONGEST_WAIT", TIMEOUT * 10)


def blocked(client, number=1):
    """Wait until the server has that many clients wait."""
    until(lambda: client.info("clients")["blocked_clients"] == number)


def leases(client):
    return list(client.scan_iter("*:lease"))


def kept(client):
    """All keys, but for those that tell for a minute which token let go."""
    return {key for key in client.scan_iter() if b":done:" not in key}


def stack(store, *properties, **options):
    """A handler that counts in sessions of these properties, and tells what they were before."""

    def handler(message, body=lambda message: None, by=1):
        counts = [getattr(message, property).get("n", 0) for property in properties]
        for property, n in zip(properties, counts, strict=True):
            getattr(message, property)["n"] = n + by
        body(message)
        return counts

    for property in reversed(properties):
        handler = with_session(property=property, store=store, **options)(handler)
    return handler


@contextlib.contextmanager
def monitored(client, lua=False):
    """What the server gets meanwhile, by its own account, with what scripts call or without."""
    commands = []
    port = client.get_connection_kwargs()["port"]
    with redis.Redis(port=port) as other, other.monitor() as monitor:
        yield commands
        client.echo("the end")
        for each in monitor.listen():
            command = each["command"].split()[0]
            if command == "ECHO":
                break
            # `blocked` asks for INFO
            if (lua or each["client_type"] != "lua") and command != "INFO":
                commands.append(command)


@pytest.mark.parametrize("ttl", [None, 60])
@pytest.mark.parametrize("properties", [["one"], ["one", "two", "three"]], ids=len)
def test_two_round_trips(valkey, store, properties, ttl):
    """An update costs two commands, stacked or not, whether it changes something or nothing."""
    handler = stack(store, *properties, ttl=ttl)
    handler(message())  # hands the server the scripts

    for by in (1, 0):
        with monitored(valkey) as commands:
            handler(message(), by=by)
        assert commands == ["EVALSHA", "EVALSHA"]


def not_run(store, cause):
    """An update fails for that reason, before its handler runs."""
    ran = []
    with says(SessionStoreError, NAME, "handler did not run", cause):
        visit(ran.append, store=store)
    assert ran == []


def made(kind, **options):
    """A client with those options; skips where the installed version doesn't know them."""
    try:
        return kind(**options)
    except TypeError as error:
        pytest.skip(f"the installed client says: {error}")


class TestServerTrouble:
    """A clear error each time, and work goes on once the server is well, without a restart."""

    def test_connection_refused(self, own, connect):
        store = RedisStore(connect(own.port))
        own.stop()
        not_run(store, "ConnectionError")
        own.start()
        assert stack(store, "session")(message()) == [0]

    @pytest.mark.parametrize("own", [DURABLE], indirect=True, ids=["durable"])
    def test_restarted(self, own, connect):
        """Sessions that are on disk are there again, and so are leases: the save is taken."""
        handler = stack(RedisStore(connect(own.port)), "session")

        for n in range(3):
            assert handler(message(), lambda _: (own.stop(), own.start())) == [n]
            own.stop()
            own.start()

    def test_killed_in_the_middle_of_a_handler(self, own, connect):
        """The save is refused: there is no server, or none that knows of the lease."""
        handler = stack(RedisStore(connect(own.port)), "session")
        with says(SessionStoreError, NAME, "was not saved", "ConnectionError"):
            handler(message(), lambda _: own.stop())
        own.start()
        with says(SessionLost, NAME, "was not saved"):
            handler(message(), lambda _: (own.stop(), own.start()))
        assert [handler(message()) for _ in range(2)] == [[0], [1]]

    @pytest.mark.parametrize("decode", [True, False], ids=["str", "bytes"])
    @pytest.mark.parametrize(
        "value",
        [["hunter2"], b"\xff\xfe hunter2", b"hunter2", b"", b"@base64@hunter2!", b"@hunter2"],
        ids=["list", "no UTF-8", "no JSON", "empty", "no base64", "no head"],
    )
    def test_what_others_wrote(self, valkey, valkey_port, connect, value, decode):
        """It is left as it is, the handler does not run, and nothing of its stack stays leased."""
        store = RedisStore(connect(valkey_port, decode_responses=decode))
        others = stack(store, "before", "after")
        others(message())
        valkey.rpush(DATA, *value) if isinstance(value, list) else valkey.set(DATA, value)
        before, ran = valkey.dump(DATA), []

        for handler in (stack(store, "session"), stack(store, "before", "session", "after")):
            with says(SessionStoreError if isinstance(value, list) else SessionDataError, NAME):
                handler(message(), ran.append)

        assert ran == leases(valkey) == []
        assert valkey.dump(DATA) == before
        assert others(message()) == [1, 1]

    @pytest.mark.parametrize("own", [("--replicaof", "127.0.0.1", "1")], indirect=True, ids=[""])
    def test_a_read_only_replica(self, own, connect):
        not_run(RedisStore(connect(own.port)), "ReadOnlyError")

    def test_no_memory(self, own, connect):
        """At load the handler does not run; later the save of the whole stack is refused.

        What is leased is let go of in the background, where that needs no memory.
        """
        store = RedisStore(connect(own.port), lease=3)
        handler = stack(store, "session", "other")
        handler(message())

        def full(message):
            store.client.config_set("maxmemory", 1)

        def removing(message):
            del message.other
            full(message)

        for body in (full, removing):
            with says(SessionStoreError, NAME, "was not saved", "OutOfMemoryError", "maxmemory"):
                handler(message(), body)
            until(lambda: leases(store.client) == [])
            not_run(store, "OutOfMemoryError")
            store.client.config_set("maxmemory", 0)
            assert store.client.mget(DATA, KEY % "other") == [b'{"n":1}'] * 2

        assert handler(message()) == [1, 1]
        store.acquire([NAME], "token", 0, {})
        store.client.config_set("maxmemory", 1)
        assert store.renew([NAME], "token")

    def test_scripts_flushed(self, valkey, store):
        """Between updates, and in the middle of one."""
        for n in range(3):
            assert stack(store, "session")(message(), lambda _: valkey.script_flush()) == [n]
            valkey.script_flush()


class TestLeases:
    """Whoever holds the lease writes; nobody else does."""

    def test_protocol(self, valkey, store):
        """Each step is for all its sessions or none, by the whole token of their holder."""
        mine, his, both = "a" * 16, "a" * 15 + "b", ["one", "two"]
        lease, wake = "telesession:{two}:lease", "telesession:{two}:wake"
        for _ in range(2):  # as a client does whose first answer got lost
            assert store.acquire(both, mine, 0, {}) == [None, None]
            assert 9000 < valkey.pttl(lease) <= 10_000
        for names in (both, ["two"], ["three", "two"]):
            with pytest.raises(Held, match=names[0] if names == both else "two"):
                store.acquire(names, his, 0, {})
            assert not store.renew(names, his)
            assert not store.write(names, his, ())
        assert valkey.get(lease).startswith(mine.encode() + b" ")
        assert valkey.get(lease).endswith(b"!")
        assert valkey.pttl(lease) > 0
        valkey.pexpire(lease, 100)
        assert store.renew(both, mine)
        assert 9000 < valkey.pttl(lease) <= 10_000
        for release in (False, True):
            assert store.write(both, mine, [("one", "1", None)], release=release)
        assert not store.renew(both, mine)
        assert store.write(both, mine, [("one", "2", None)])  # as a client does once more
        assert valkey.mget("telesession:{one}", "telesession:{two}", lease) == [b"1", None, None]
        for _ in range(2):  # as nobody waits who would take it
            store.acquire(["two"], mine, 1, {})
            store.write(["two"], mine, ())
            assert valkey.llen(wake) == 1

    def test_a_lease_that_was_lost(self, valkey, store, rival):
        """What others wrote and leased meanwhile stands, and the rest of the stack is let go."""
        handler = stack(store, "other", "session", "third")

        def body(message):
            valkey.delete(LEASE)
            run_together(lambda: put({"n": 7}, store=rival))
            valkey.set(LEASE, "another's!")

        with says(SessionLost, "other:42:42", NAME, "was not saved"):
            handler(message(), body)

        assert valkey.get(DATA) == b'{"n":7}'
        assert valkey.get(LEASE) == b"another's!"
        assert kept(valkey) == {each.encode() for each in (DATA, LEASE)}

    def test_that_others_wrote_the_same(self, valkey, store, rival):
        """As two that count do: what the other wrote is not taken back for it."""

        def body(message):
            valkey.delete(LEASE)
            run_together(lambda: put({"n": 1}, store=rival))

        with says(SessionLost, NAME):
            stack(store, "session")(message(), body)

        assert valkey.get(DATA) == b'{"n":1}'

    @pytest.mark.parametrize("lease", [1e-5, 1e306])
    def test_of_any_length(self, valkey, lease):
        store = RedisStore(valkey, lease=lease)
        store.acquire(["one"], "token", 0, {})
        store.renew(["one"], "token")
        store.write(["one"], "token", ())
        until(lambda: kept(valkey) == set())

    @pytest.mark.parametrize(
        ("ttl", "least", "most"),
        [(60, 59_000, 60_000), (None, -1, -1), (1e300, 10**13, 10**14), (1e-9, -2, 1)],
    )
    def test_expiry_is_the_servers(self, valkey, store, ttl, least, most):
        for n in range(2):
            put({"n": n}, store=store, ttl=ttl)
            assert least <= valkey.pttl(DATA) <= most
            valkey.pexpire(DATA, 1000)

    def test_nothing_is_left(self, valkey, store):
        """Of 1,000 users, for some of whom others have waited: no key, lease or wake list.

        For a minute it is known who let go (5.5).
        """
        handler = stack(store, "session", ttl=0.5)

        def waited_for(message):
            valkey.append(leases(valkey)[0], "!")

        for user in range(100, 1100):
            handler(message(user), waited_for if user % 50 == 0 else lambda message: None)

        until(lambda: kept(valkey) == set())
        pipe = valkey.pipeline(transaction=False)
        for key in valkey.scan_iter():
            pipe.pttl(key)
        assert set(pipe.execute()) <= {-2, *range(60_001)}  # -2 is gone meanwhile


class Sent:
    """What a store sends through its client, so that it can be sent once more."""

    def __init__(self, store):
        self.commands = []
        self.call = store.client.execute_command
        store.client.execute_command = self

    def __call__(self, *command, **options):
        answer = self.call(*command, **options)  # not noted if the server lacks the script
        self.commands.append(command)
        return answer

    def again(self, number):
        """The answer to a late copy, but for the number that comes back."""
        return self.call(*self.commands[number])[1]


class TestTruth:
    """Told once, in time, and truly (6.3)."""

    @pytest.mark.parametrize("known", [True, False], ids=["never reached", "no answer"])
    def test_a_silent_server(self, own, connect, known):
        """Where it was asked, nobody knows; where no connection is made, nothing was saved."""
        client = connect(own.port, socket_timeout=0.3)
        store = RedisStore(client)
        stack(store, "session")(message())

        def silent(message):
            if known:
                client.connection_pool.disconnect()
            own.process.send_signal(signal.SIGSTOP)

        outcome = "was not saved" if known else "is not known"
        try:
            with says(SessionStoreError, NAME, outcome, "TimeoutError"):
                stack(store, "session")(message(), silent)
        finally:
            own.process.send_signal(signal.SIGCONT)
        until(lambda: leases(client) == [])
        assert found(store=store) == {"n": 1 if known else 2}

    def test_asked_once(self, valkey, valkey_port, connect, store):
        """Whether loading or saving fails, the client is asked for that once."""
        client = connect(valkey_port)
        put({"n": 1}, store=store)
        failing, asked = RedisStore(client), []

        def fails(*command, **options):
            asked.append(threading.get_ident())
            raise redis.TimeoutError

        client.execute_command = fails
        not_run(failing, "TimeoutError")
        assert asked.count(threading.get_ident()) == 1
        del client.execute_command

        def body(message):
            client.execute_command = fails
            asked.clear()
            count(message)

        with says(SessionStoreError, NAME, "is not known", "TimeoutError"):
            visit(body, store=failing)
        assert asked.count(threading.get_ident()) == 1
        del client.execute_command
        until(lambda: leases(valkey) == [])  # let go of in the background

    @pytest.mark.parametrize(
        ("error", "refused"),
        [
            (redis.ReadOnlyError(), True),
            (redis.ResponseError(), True),
            (valkey_py.exceptions.NoPermissionError(), True),
            (redis.ConnectionError("closed by server"), False),
            (redis.TimeoutError(), False),
            (valkey_py.TimeoutError(), False),
        ],
        ids=repr,
    )
    def test_refused(self, store, error, refused):
        assert store.refused(error) is refused

    def test_text_that_no_server_can_be_sent(self, valkey, store):
        codec = types.SimpleNamespace(dumps=lambda data: "\ud800", loads=lambda text: {"n": 1})
        with says(SessionStoreError, NAME, "was not saved", "UnicodeEncodeError"):
            put({"n": 1}, store=store, codec=codec)
        until(lambda: kept(valkey) == set())

    def test_without_sha1(self):
        """A machine in FIPS mode has SHA-1 only where it protects nothing."""
        code = """
import hashlib
sha1 = hashlib.sha1
def refuse(*data, usedforsecurity=True):
    if usedforsecurity:
        raise ValueError("disabled for FIPS")
    return sha1(*data)
hashlib.sha1 = refuse
import telesession.redis
"""
        subprocess.run([sys.executable, "-c", code], check=True)


class TestSentTwice:
    """A request that the client sends twice counts once (6.3, 6.4)."""

    @pytest.fixture
    def sent(self, store):
        return Sent(store)

    @pytest.mark.parametrize("others", ["had it", "have it", "nobody"])
    def test_write(self, valkey, store, sent, rival, others):
        """The copy is told that it is done, and does nothing, whoever has had the session since."""
        store.acquire([NAME], "mine", 0, {})
        store.write([NAME], "mine", [(NAME, "1", None)])
        if others != "nobody":
            rival.acquire([NAME], "his", 0, {})
        if others == "had it":
            rival.write([NAME], "his", [(NAME, "2", None)])
        before = valkey.get(DATA), valkey.get(LEASE)
        assert sent.again(1) == 1
        assert store.write([NAME], "mine", [(NAME, "1", None)])
        assert (valkey.get(DATA), valkey.get(LEASE)) == before

    def test_write_that_was_refused(self, store, sent, rival):
        store.acquire([NAME], "mine", 0, {})
        store.client.delete(LEASE)
        rival.acquire([NAME], "his", 0, {})
        assert not store.write([NAME], "mine", [(NAME, "1", None)])
        refused = sent.commands[-1]
        assert not store.write([NAME], "mine", ())  # lets go, as is done then
        rival.write([NAME], "his", ())
        assert sent.call(*refused)[1] == 0
        assert not store.write([NAME], "mine", [(NAME, "1", None)])
        assert store.peek(NAME) is None

    @pytest.mark.parametrize("arrived", [True, False])
    def test_acquire(self, valkey, store, sent, rival, arrived):
        """What comes after its token let go leases nothing, whether it had been there before."""
        store.acquire([NAME], "mine", 0, {})
        if not arrived:
            valkey.delete(LEASE)
            rival.acquire([NAME], "his", 0, {})
        assert store.write([NAME], "mine", ()) is arrived
        if not arrived:
            rival.write([NAME], "his", ())
        with pytest.raises(redis.ResponseError):
            sent.again(0)
        assert leases(valkey) == []
        assert store.acquire([NAME], "mine", 0, {}) == [None]  # which is no copy

    def test_let_go(self, valkey, store, sent):
        """A copy takes no lease away that its token has taken since."""
        store.acquire([NAME], "mine", 0, {})
        store.write([NAME], "mine", ())
        store.acquire([NAME], "mine", 0, {})
        assert sent.again(1) == 1
        assert len(leases(valkey)) == 1
        assert store.write([NAME], "mine", [(NAME, "1", None)])
        assert store.peek(NAME) == "1"

    def test_that_a_lease_was_lost_after_an_earlier_one(self, store):
        """That the token once let go is no reason to take a later write for a copy."""
        store.acquire([NAME], "mine", 0, {})
        store.write([NAME], "mine", ())
        store.acquire([NAME], "mine", 0, {})
        store.client.delete(LEASE)
        assert not store.write([NAME], "mine", [(NAME, "1", None)])

    def test_renew(self, valkey, store, sent):
        store.acquire([NAME], "mine", 0, {})
        store.renew([NAME], "mine")
        store.write([NAME], "mine", ())
        assert sent.again(1) == 0
        assert leases(valkey) == []

    @pytest.mark.skipif(not RETRIES, reason="this redis-py sends no request again by itself")
    @pytest.mark.parametrize("error", [redis.ConnectionError, redis.TimeoutError])
    def test_the_clients_retry(self, valkey_port, connect, store, rival, error):
        """The answer to the save is lost, and others have the session before it is sent again."""
        client = connect(valkey_port, retry=Retry(NoBackoff(), 1))
        parse, lost = client.parse_response, []

        def parse_response(connection, command, **options):
            answer = parse(connection, command, **options)
            if lost == [1]:
                lost.append(2)
                run_together(lambda: visit(count, store=rival))
                raise error
            return answer

        client.parse_response = parse_response

        def handler(message):
            count(message)
            lost.append(1)

        visit(count, store=store)
        visit(handler, store=RedisStore(client))
        assert found(store=store) == {"n": 3}


def pooled(package, client, **options):
    """A client whose pool has one connection, for which all wait."""
    pool = package.BlockingConnectionPool(max_connections=1, **options)
    return client(connection_pool=pool)


POOLS = {
    "redis": redis.Redis,
    "redis, RESP2": functools.partial(redis.Redis, protocol=2),
    "redis, one connection": functools.partial(redis.Redis, single_connection_client=True),
    "redis, a pool of one": functools.partial(pooled, redis, redis.Redis),
    "valkey": valkey_py.Valkey,
    "valkey, a pool of one": functools.partial(pooled, valkey_py, valkey_py.Valkey),
}


@pytest.fixture(params=POOLS)
def any_client(request, valkey, valkey_port):
    with POOLS[request.param](port=valkey_port) as client:
        yield client


class TestAnswers:
    """An answer that belongs to another request is never taken for ours (6.4)."""

    @staticmethod
    def fill(store, users):
        for user in users:
            plant(store, f"session:{user}:{user}", payload=f'{{"user":{user}}}')

    @staticmethod
    def check(store, user):
        """A handler of that user finds the session of that user."""
        visited = stack(store, "session")
        held = []
        visited(message(user), lambda message: held.append(message.session["user"]))
        assert held == [user]

    def test_interrupted(self, any_client):
        """Between a command and its answer: the next handlers find their own sessions, at once."""
        store = RedisStore(any_client, lease=2)
        users = range(1, 6)
        self.fill(store, users)

        def trace(frame, event, argument):
            if event == "call" and frame.f_code.co_name == "parse_response":
                sys.setprofile(None)
                raise Interrupt

        for user in users:
            with contextlib.suppress(Interrupt):
                sys.setprofile(trace)
                self.check(store, user)
                raise AssertionError("it is not interrupted")
            for other in users:
                self.check(store, other)

    @pytest.mark.parametrize("request_", ["open", "peek", "names"])
    def test_somebody_else_was_interrupted(self, any_client, request_):
        """The bot itself, at a command on the same client: it is refused, once."""
        if any_client.connection and not RETRIES:
            pytest.skip("this redis-py does not connect again by itself")
        store = RedisStore(any_client)
        self.fill(store, [1, 2])
        pool = any_client.connection_pool
        what = () if RETRIES and isinstance(any_client, redis.Redis) else ("BLPOP",)
        connection = any_client.connection or pool.get_connection(*what)
        connection.send_command("BLPOP", "nothing there", 0.2)
        if not any_client.connection:
            pool.release(connection)
        requests = {
            "open": lambda: self.check(store, 1),
            "peek": lambda: with_session(store=store).peek(message(1)),
            "names": lambda: list(with_session(store=store).keys()),
        }
        with says(SessionStoreError, "session", "ConnectionError"):
            requests[request_]()
        requests[request_]()
        self.check(store, 2)

    # Where a client is collected meanwhile, its __del__ is interrupted.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("error", [Interrupt, Alarm])
    def test_interrupted_anywhere(self, valkey, valkey_port, connect, error):
        """In telesession or the client: others find their own, and all or nothing is saved."""
        users = [1, 2, 3]
        places = (TELESESSION, redis.client.__file__, redis.connection.__file__)
        self.fill(RedisStore(valkey), users)
        for number in itertools.count(0 if error is Alarm else 23, 47):
            store = RedisStore(connect(valkey_port), lease=5)
            handler = stack(store, "session", "other", lock_timeout=TIMEOUT)
            handler(message(1))
            before = valkey.mget("telesession:{session:1:1}", "telesession:{other:1:1}")
            interrupting = Interrupting(number, places, error)
            with contextlib.suppress(error, SessionError), interrupting:
                handler(message(1))
            counts = [json.loads(each)["n"] for each in before]
            after = valkey.mget("telesession:{session:1:1}", "telesession:{other:1:1}")
            assert [json.loads(each)["n"] for each in after] in (counts, [n + 1 for n in counts])
            for user in users:
                self.check(store, user)
            if not interrupting.where:
                break
        assert number > 50


class TestDemoted:
    """A server that was demoted behind its name is left at the first error (6.4)."""

    def test_its_connections_are_closed(self, own, any_client):
        port = own.port
        kind = type(any_client)
        options = {**any_client.connection_pool.connection_kwargs, "port": port}
        pool = type(any_client.connection_pool)(**options)
        client = kind(connection_pool=pool, single_connection_client=bool(any_client.connection))
        store = RedisStore(client)
        stack(store, "session")(message())
        before = client.client_id()
        with redis.Redis(port=port) as other:
            other.replicaof("127.0.0.1", 1)
            not_run(store, "ReadOnlyError")
            assert client.client_id() != before
            other.replicaof("NO", "ONE")
        assert stack(store, "session")(message()) == [1]

    def test_those_in_use_are_not(self, valkey, any_client):
        """An error of one thread does not disturb others."""
        store = RedisStore(any_client)
        store.acquire([NAME], "token", 0, {})
        pool = any_client.connection_pool
        if any_client.connection or isinstance(getattr(pool, "pool", None), queue.Queue):
            pytest.skip("there is one connection only")
        waiting = threading.Thread(target=store.wait, args=(NAME, 0.2, 0.1))
        waiting.start()
        blocked(valkey)
        valkey.rpush("telesession:{x:1}", 1)
        with says(SessionStoreError, "x:1", "ResponseError"):
            with_session(property="x", store=store).peek(key="1")
        assert valkey.info("clients")["blocked_clients"] == 1
        waiting.join(TIMEOUT)


class TestClock:
    """A holder that stands still is gone, whatever the server's clock says (6.4)."""

    def test_of_the_protocol(self, valkey, store):
        """A lease may be taken that is exactly the one that was seen; others wake nobody."""
        store.acquire([NAME], "his-300", 0, {})
        with pytest.raises(Held) as first:
            store.acquire([NAME], "mine", 0, {})
        with pytest.raises(Held) as second:
            store.acquire(["other", NAME], "mine", 0, {"other": ("x", "y")})
        assert first.value.token == "his-300"
        assert (second.value.name, second.value.beat) == (NAME, first.value.beat)
        store.renew([NAME], "his-300")
        with pytest.raises(Held) as third:
            store.acquire([NAME], "mine", 0, {NAME: first.value.beat})
        assert third.value.beat != first.value.beat
        store.acquire(["other", NAME], "mine", 0, {NAME: third.value.beat})
        assert not store.write([NAME], "his-300", [(NAME, "1", None)])
        assert store.write(["other", NAME], "mine", ())

    def test_set_back(self, valkey, rival):
        """The lease of one that died lasts an hour then; an update waits for its length."""
        rival.acquire([NAME], "dead-300", 0, {})
        valkey.pexpire(LEASE, 3_600_000)
        start = time.monotonic()
        visit(count, store=rival, lock_timeout=TIMEOUT)
        assert 0.3 <= time.monotonic() - start < TIMEOUT / 3


class TestWaiting:
    """Who waits for a session that another process has is woken by the server."""

    @staticmethod
    def behind(store, body, *stores):
        """Have handlers on ``stores`` wait for one on ``store``, which does ``body`` meanwhile."""
        threads = [
            threading.Thread(target=visit, args=(count,), kwargs={"store": each}, daemon=True)
            for each in stores
        ]

        def handler(message):
            for thread in threads:
                thread.start()
            body()
            count(message)

        visit(handler, store=store)
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "not woken"
        assert found(store=store) == {"n": len(stores) + 1}

    @pytest.mark.parametrize("number", [1, 5])
    def test_one_by_one(self, valkey, valkey_port, connect, store, unwoken_never, number):
        """All get their turn, none asks without need, and soon nothing is left."""
        rivals = [RedisStore(connect(valkey_port)) for _ in range(number)]
        assert [found(store=each) for each in (store, *rivals)] == [{}] * (number + 1)  # connects

        with monitored(valkey) as commands:
            self.behind(store, lambda: blocked(valkey, number), *rivals)

        assert sorted(commands) == ["BLPOP"] * number + ["EVALSHA"] * (3 * number + 4)
        assert 0 < valkey.pttl(WAKE) <= 1000
        assert leases(valkey) == []

    def test_on_a_cluster(self, valkey_cluster, valkey_cluster_port, unwoken_never):
        node = valkey_cluster.get_redis_connection(valkey_cluster.get_node_from_key(DATA))
        with ValkeyCluster("127.0.0.1", valkey_cluster_port) as client:
            self.behind(RedisStore(valkey_cluster), lambda: blocked(node), RedisStore(client))

    def test_no_longer_than_lock_timeout(self, store, rival):
        store.acquire([NAME], "somebody's", 0, {})
        with says(SessionBusy, NAME, "another process", "lock_timeout"):
            visit(count, store=rival, lock_timeout=0.05)

        store.write([NAME], "somebody's", ())
        assert found(store=rival) == {}

    def test_longer_than_the_socket_timeout(self, valkey, valkey_port, connect, store):
        """For a client that takes a server to be gone that says nothing for a second."""
        valkey.config_resetstat()

        def looked():
            return valkey.info("commandstats").get("cmdstat_blpop", {"calls": 0})["calls"] > 3

        rival = RedisStore(connect(valkey_port, socket_timeout=1))
        self.behind(store, lambda: until(looked), rival)

    def test_with_a_single_connection(self, request, valkey, valkey_port, store):
        """Who waits hands it to the other handlers now and then."""
        pool = redis.BlockingConnectionPool(port=valkey_port, max_connections=1)
        request.addfinalizer(pool.disconnect)
        with redis.Redis(connection_pool=pool) as client:
            rival = RedisStore(client)

            def body():
                blocked(valkey)
                stack(rival, "other")(message())

            self.behind(store, body, rival)


class TestCluster:
    """What belongs together has one slot; what has several slots is saved together all the same."""

    @pytest.mark.parametrize("prefix", ["", "{", "}", "my{bot}:", "a}b{c", "\x00é"])
    def test_one_slot(self, valkey_cluster, prefix):
        """For data, lease and wake list, whatever stands in their keys."""
        store = RedisStore(valkey_cluster, prefix=prefix)
        for key in ("a{b}c", "}{", "{}", "}", "{", "é \n\x00", "*?[a]", ":lease", "x" * 999):
            data = f"{prefix}{{session:{key}}}"
            handler = stack(store, "session", key=lambda message, key=key: key)
            assert handler(message()) == [0]
            assert handler(message(), lambda _, k=data: valkey_cluster.append(k + ":lease", "!"))
            keys = [data, data + ":lease", data + ":wake"]
            assert [valkey_cluster.exists(each) for each in keys] == [1, 0, 1]
            assert len(set(map(valkey_cluster.keyslot, keys))) == 1

    @pytest.mark.parametrize("before", [0, 1], ids=["new", "stored"])
    @pytest.mark.parametrize("lost", ["one", "two", "three"])
    def test_several_slots(self, valkey_cluster, lost, before):
        """Whichever lease is lost, nothing is saved, and nothing stays leased."""
        store = RedisStore(valkey_cluster)
        assert len(store.groups(["one:42:42", "two:42:42", "three:42:42"])) == 3
        handler = stack(store, "one", "two", "three", ttl=60)
        for _ in range(before):
            handler(message())

        with says(SessionLost, "one:42:42", "two:42:42", "three:42:42"):
            handler(message(), lambda _: valkey_cluster.delete(KEY % lost + ":lease"))

        assert len(kept(valkey_cluster)) == 3 * before  # no lease, and nothing new
        assert handler(message()) == [before] * 3
        assert 59_000 < valkey_cluster.pttl(KEY % "one") <= 60_000


NAMES = [
    f"user_a:{key}"
    for key in ("1", "{b}", "}", "{", "a}b", "*", "?[a]", "é 😀\n\x00", ":lease", "}:lease", "\\")
]
ALIKE = ["userXa:1", "User_A:1", "user_a", "user_ab:1", "xuser_a:1", "user_a1:"]


def plant(store, *names, ttl=None, payload='{"n":1}'):
    for name in names:
        lease, _ = store.open([name], TIMEOUT)
        store.commit(lease, [(name, payload, ttl)])


class TestListing:
    """The names of what is stored, and what is stored, without a lease."""

    @pytest.mark.parametrize("prefix", ["telesession:", "", "my{bot}:", "a*[b]\\?"])
    @pytest.mark.parametrize("cluster", [False, True], ids=["single", "cluster"])
    def test_exactly_those(self, valkey, valkey_cluster, cluster, prefix):
        """Whatever stands in names and prefixes, and whatever else is stored."""
        client = valkey_cluster if cluster else valkey
        store, other = RedisStore(client, prefix=prefix), RedisStore(client, prefix="aX[b]\\?")
        plant(store, *NAMES, *ALIKE)
        plant(other, "user_a:other")
        plant(store, "user_a:over", ttl=0.001)
        leased, _ = store.open(["user_a:1", "user_a:never stored"], 0)
        for end in (b"x", b"\xff}"):  # what others have there
            client.set(prefix.encode() + b"{user_a:" + end, 1)
        until(lambda: not client.exists(f"{prefix}{{user_a:over}}"))

        assert sorted(store.names("user_a:")) == sorted(NAMES)
        assert sorted(store.names("User_A:")) == ["User_A:1"]
        assert sorted(store.names("user_a:*")) == ["user_a:*"]
        assert sorted(store.names("user_a:?")) == ["user_a:?[a]"]
        assert sorted(store.names("")) == sorted(NAMES + ALIKE)
        assert list(other.names("user_a:")) == ["user_a:other"]
        store.commit(leased, ())

    @pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 2}], ids=str)
    @pytest.mark.parametrize("kind", [redis.Redis, valkey_py.Valkey])
    def test_any_client(self, valkey, valkey_port, kind, options):
        valkey.set(b"telesession:{user_a:\xff}", "others'")
        with made(kind, port=valkey_port, **options) as client:
            store = RedisStore(client)
            plant(store, *NAMES)
            assert sorted(store.names("user_a:")) == sorted(NAMES)
            assert [store.peek(name) for name in NAMES] == ['{"n":1}'] * len(NAMES)

    @pytest.mark.parametrize("options", [{}, {"decode_responses": True}], ids=str)
    @pytest.mark.parametrize("kind", [RedisCluster, ValkeyCluster])
    def test_any_client_of_a_cluster(self, valkey_cluster, valkey_cluster_port, kind, options):
        """On all its servers, many to a server."""
        names = [f"user_a:{number}" for number in range(5000)]
        pipe = valkey_cluster.pipeline()
        for name in names:
            pipe.set(f"telesession:{{{name}}}", "1")
        pipe.execute()
        with kind("127.0.0.1", valkey_cluster_port, **options) as client:
            store = RedisStore(client)
            assert sorted(store.names("user_a:")) == sorted(names)
            assert {store.peek(name) for name in names[:50]} == {"1"}
            assert store.peek("user_a:none") is None

    def test_many(self, valkey, store):
        """Of 100,000 each comes once, page by page, and they are not in memory together."""
        pipe = valkey.pipeline(transaction=False)
        for number in range(100_000):
            pipe.set(f"telesession:{{session:{number}}}", "1")
        pipe.execute()
        found, names = bytearray(100_000), store.names("session:")
        next(names)
        with monitored(valkey) as commands:
            next(names)
        assert commands == []
        tracemalloc.start()
        for name in store.names("session:"):
            found[int(name.removeprefix("session:"))] += 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert set(found) == {1}
        assert peak < 3_000_000

    def test_repeated(self, valkey, store, monkeypatch):
        """What a server repeats, as it does when many keys have gone meanwhile, comes once."""
        names = [f"session:{number}" for number in range(3000)]
        plant(store, *names)
        call, answers = valkey.execute_command, []

        def twice(*args, **kwargs):
            number, (cursor, keys) = call(*args, **kwargs)
            answers.append(keys)
            return [number, [cursor, [*keys, *answers[-2:][0], *keys[:10]]]]

        monkeypatch.setattr(valkey, "execute_command", twice)
        assert sorted(store.names("session:")) == sorted(names)
        assert len(answers) > 2

    def test_peek(self, valkey, store):
        """Reads in one command: no lease, no other expiry, and while others have it leased."""
        assert store.peek(NAME) is None
        lease, _ = store.open([NAME], 0)
        assert store.peek(NAME) is None
        store.commit(lease, [(NAME, b"\xff", 60)])
        valkey.pexpire(DATA, 5000)
        lease, _ = store.open([NAME], 0)
        with monitored(valkey, lua=True) as commands:
            assert store.peek(NAME) == b"\xff"
        assert commands == ["EVALSHA", "GET"]  # the script does nothing else
        assert valkey.pttl(DATA) <= 5000
        assert len(leases(valkey)) == 1
        store.commit(lease, [(NAME, "x", 0.001)])
        until(lambda: store.peek(NAME) is None)

    @pytest.mark.parametrize("decode", [True, False], ids=["str", "bytes"])
    def test_peek_at_what_others_wrote(self, valkey, valkey_port, connect, decode):
        store = RedisStore(connect(valkey_port, decode_responses=decode))
        for value in (b"\xff hunter2", b"@base64@hunter2!"):
            valkey.set(DATA, value)
            with says(SessionDataError, NAME):
                store.peek(NAME)
            assert list(store.names("session:")) == [NAME]


class TestClients:
    """Any blocking client of redis-py or valkey-py, as its user made it."""

    @pytest.mark.parametrize("codec", [None, pickle], ids=["json", "pickle"])
    @pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 2}], ids=str)
    @pytest.mark.parametrize("kind", [redis.Redis, valkey_py.Valkey])
    def test_round_trip(self, valkey, valkey_port, kind, options, codec):
        content = {"text": "é😀\x00", "n": [1.0, 10**30, None]}
        valkey.script_flush()
        with made(kind, port=valkey_port, **options) as client:
            put(content, store=RedisStore(client), codec=codec)
            assert found(store=RedisStore(client), codec=codec) == content

        assert valkey.get(DATA).startswith(b"@base64@" if codec else b'{"text":')

    @pytest.mark.parametrize("prefix", ["é:", "my{bot}:"])
    @pytest.mark.parametrize("kind", [redis.Redis, valkey_py.Valkey])
    def test_any_encoding(self, valkey_port, kind, store, prefix):
        """A client that has another encoding, or hides what it can't encode, stores the same."""
        options = {"encoding": "latin-1", "encoding_errors": "replace", "decode_responses": True}
        text = types.SimpleNamespace(
            dumps=functools.partial(json.dumps, ensure_ascii=False), loads=json.loads
        )
        with kind(port=valkey_port, **options) as client:
            here = RedisStore(client, prefix=prefix)
            put({"text": "é😀"}, store=here, codec=text)
            assert found(store=here, codec=text) == {"text": "é😀"}
            assert list(here.names("")) == [NAME]
        there = RedisStore(store.client, prefix=prefix)
        assert found(store=there, codec=text) == {"text": "é😀"}

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks where there are threads
    def test_fork_after_use(self, any_client):
        """Children and parent go on, each with connections of its own."""
        handler = stack(RedisStore(any_client), "session")
        handler(message())
        children = []
        for _ in range(2):
            children.append(os.fork())
            if not children[-1]:
                try:
                    for _ in range(20):
                        handler(message())
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
        for _ in range(20):
            handler(message())
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert handler(message()) == [61]

    def test_sentinel(self, valkey, valkey_port):
        """What `master_for` gives works; what `slave_for` gives is refused."""
        sentinel = redis.sentinel.Sentinel([])
        sentinel.discover_master = lambda name: ("127.0.0.1", valkey_port)
        with sentinel.master_for("bot") as client:
            put({"n": 1}, store=RedisStore(client))
            assert found(store=RedisStore(client)) == {"n": 1}
        for client in (sentinel, sentinel.slave_for("bot")):
            with says((TypeError, ValueError)[client is not sentinel], "client="):
                RedisStore(client)

    def test_prefix_and_identity(self, valkey, rival):
        """Stores of one pool and prefix share locks; each prefix has sessions of its own."""
        store, other = RedisStore(valkey, prefix="one:"), RedisStore(valkey, prefix="two:")
        same = RedisStore(redis.Redis(connection_pool=valkey.connection_pool), prefix="one:")
        put({"n": 1}, store=store)
        put({"n": 2}, store=other)

        assert found(store=same) == {"n": 1}
        assert kept(valkey) == {b"one:{session:42:42}", b"two:{session:42:42}"}
        assert store.identity is same.identity
        assert len({id(each.identity) for each in (store, other, RedisStore(valkey), rival)}) == 4
        assert repr(store) == "RedisStore(Redis, prefix='one:')"

    @pytest.mark.parametrize(
        ("client", "options", "error", "words"),
        [
            (redis.Redis, {}, TypeError, ["client=", "redis.Redis()"]),
            (RedisCluster, {}, TypeError, ["client=", "redis.Redis()"]),
            ({}, {}, TypeError, ["client={}", "redis.Redis()"]),
            (redis.asyncio.Redis(), {}, TypeError, ["asynchronous", "blocking client"]),
            (redis.Redis(), {"prefix": b"x"}, TypeError, ["prefix=b'x'", "str"]),
            (redis.Redis(), {"prefix": "my{}:"}, ValueError, ["prefix='my{}:'"]),
            (redis.Redis(), {"lease": 0}, ValueError, ["lease=0", "positive"]),
            (redis.Redis(), {"lease": True}, TypeError, ["lease=True", "number of seconds"]),
            (redis.Redis(), {"lease": "x"}, TypeError, ["lease='x'", "number of seconds"]),
        ],
    )
    def test_misuse(self, client, options, error, words):
        with says(error, *words):
            RedisStore(client, **options)
