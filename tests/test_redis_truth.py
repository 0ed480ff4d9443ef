"""6.3, 6.4 `RedisStore` on real servers: it says what is true, whatever is lost or comes twice."""

import contextlib
import itertools
import json
import queue
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
import redis
import valkey as valkey_py
from redis.backoff import NoBackoff
from redis.retry import Retry

from telesession import SessionError, SessionStoreError, with_session
from telesession.leases import Held
from telesession.redis import RedisStore
from tests import redis_servers
from tests.helpers import count, run_together, says, until
from tests.interrupts import TELESESSION, Alarm, Interrupt, Interrupting
from tests.redis_servers import DATA, LEASE, blocked, kept, leases, not_run, plant, stack
from tests.stores import NAME, TIMEOUT, found, message, put, visit

pytestmark = pytest.mark.thorough

valkey_port = redis_servers.valkey_port
connect = redis_servers.connect
store = redis_servers.store
rival = redis_servers.rival
own = redis_servers.own
any_client = redis_servers.any_client

#: Whether redis-py sends a request again by itself, where no answer came.
RETRIES = int(redis.__version__.partition(".")[0]) >= 6


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
