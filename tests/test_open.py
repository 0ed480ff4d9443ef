"""5.6 `Declaration.open`: a session outside a handler, as safe as inside."""

import threading

import pytest

from telesession import (
    MemoryStore,
    SessionBusy,
    SessionClosed,
    SessionDataError,
    SessionError,
    SessionUnavailable,
    _locks,
    keys,
    with_session,
)
from tests.helpers import Failure, count, nobody, run_together, says
from tests.stores import TIMEOUT, Bot, Clock, found, message, payload, put
from tests.updates import UPDATES, make

BY = pytest.mark.parametrize(
    "how", [{"key": "42:42"}, {"update": message()}], ids=["key", "update"]
)


@BY
def test_read_and_write(store, session, how):
    """By the key, or by an update whose session it is."""
    put({"n": 1}, store=store)

    with session.open(**how) as data:
        data["n"] += 1

    assert store == {"session:42:42": '{"n":2}'}


@BY
def test_the_update_is_left_alone(session, how):
    """No attribute is set on it: it may be another handler's."""
    with session.open(**how):
        pass
    assert not hasattr(how.get("update"), "session")


def test_a_new_session(store):
    """Starts with what initial gives; unchanged it is not stored, and cleared it is removed."""
    session = with_session(store=store, initial=lambda: {"n": 0})

    with session.open(key=7) as data:
        assert data == {"n": 0}
    assert store == {}
    with session.open(key=7) as data:
        data["n"] += 1
    assert store == {"session:7": '{"n":1}'}
    with session.open(key=7) as data:
        data.clear()
    assert store == {}


def test_all_or_nothing(store, session):
    """Whatever is raised inside is raised outside, and nothing is saved."""
    put({"cart": []}, store=store)

    def fail():
        with session.open(key="42:42") as data:
            data["cart"].append(1)
            raise Failure

    with pytest.raises(Failure):
        fail()

    assert store == {"session:42:42": '{"cart":[]}'}


def test_what_cannot_be_kept(store, session):
    with says(SessionDataError, "session['at']"), session.open(key="42:42") as data:
        data["at"] = {1, 2}
    assert store == {}


def test_afterwards_it_is_closed(session):
    with session.open(key="42:42") as data:
        data["n"] = 1
    assert data["n"] == 1
    with pytest.raises(SessionClosed):
        data["n"] = 2


def test_ttl_counts_from_the_end():
    clock = Clock()
    store = MemoryStore(clock=clock)
    session = with_session(store=store, ttl=60)
    put({"n": 1}, store=store, ttl=60)

    clock.advance(59)
    with session.open(key="42:42"):
        pass
    clock.advance(59)
    assert found(store=store) == {"n": 1}


def test_inside_a_handler_it_is_joined(store, session):
    """The same dict, saved once, by the handler."""

    @session
    def handler(message):
        message.session["n"] = 1
        with session.open(message) as data, session.open(key="42:42") as again:
            assert data is again is message.session
            data["n"] += 1
        assert store == {}
        message.session["n"] += 1

    handler(message())
    assert store == {"session:42:42": '{"n":3}'}


@pytest.mark.parametrize(
    ("replacement", "left"), [({"m": 2}, '{"m":2}'), (None, None)], ids=["replaced", "removed"]
)
def test_replaced_inside(store, session, replacement, left):
    """What the handler puts in the place of its session while it is joined stands."""
    put({"n": 1}, store=store)

    @session
    def handler(message):
        with session.open(message):
            message.session = replacement

    handler(message())
    assert store.get("session:42:42") == left


def test_a_handler_inside(store, session):
    """A handler that is called while the session is open joins it."""
    with session.open(key="42:42") as data:
        session(count)(message())
        assert data == {"n": 1}
        session(count)(message())
        assert store == {}
    assert store == {"session:42:42": '{"n":2}'}


def test_another_user_inside_a_handler(store, session):
    """Two sessions of one property, one on the update and one beside it."""

    @session
    def pay(message):
        with session.open(key="43:43") as other:
            other["coins"] = other.get("coins", 0) + 1
        message.session["coins"] = -1

    pay(message())
    assert store == {"session:42:42": '{"coins":-1}', "session:43:43": '{"coins":1}'}


def test_opposite_orders_are_told(session):
    """Two handlers that pay each other could wait for ever: one of them is told at once."""
    meet = threading.Barrier(2)

    def pay(payer, payee):
        with session.open(key=payer):
            meet.wait(TIMEOUT)
            with session.open(key=payee):
                pass

    outcomes = run_together(lambda: pay(1, 2), lambda: pay(2, 1))
    assert sorted(map(type, outcomes), key=str) == sorted([SessionBusy, type(None)], key=str)


def test_a_session_that_is_open_while_the_next_is_loaded(store):
    """What gives the first data of a stack's second session can use its first one."""
    a = with_session(property="a", store=store)

    def initial():
        with a.open(key="42:42") as data:
            data["n"] = data.get("n", 0) + 1
            return dict(data)

    b = with_session(property="b", store=store, initial=initial)
    found = []

    @a
    @b
    def handler(update):
        found.append((dict(update.a), dict(update.b)))
        update.a["n"] += 1

    handler(message())

    assert found == [({"n": 1}, {"n": 1})]
    assert store == {"a:42:42": '{"n":2}'}
    assert _locks.held() == 0


@pytest.mark.parametrize("how", ["handler", "block", "block inside of a handler", "apart"])
def test_a_session_that_is_just_being_opened(store, how):
    """What gives its first data can't open it, and is told so."""

    def initial():
        with session.open(key="42:42") as data:
            return data

    session = with_session(store=store, initial=initial)
    other = with_session(property="other", store=store)

    def body(update):
        with session.open(update, apart=how == "apart"):
            pytest.fail("it can't be open")

    with says(SessionBusy, "'session:42:42'", "just being opened") as caught:
        if how == "handler":
            session(pytest.fail)(message())
        elif how == "block":
            body(message())
        else:
            other(body)(message())
    assert (caught.value.property, caught.value.key) == ("session", "42:42")
    assert _locks.held() == 0
    assert store == {}


def test_no_session(store):
    """An update for which the key function gives None has none to open."""
    with (
        says(SessionUnavailable, "user_chat", "Poll"),
        with_session(store=store).open(make("poll", UPDATES["poll"])),
    ):
        pass
    with says(SessionUnavailable, "nobody"), with_session(store=store, key=nobody).open(message()):
        pass
    with says(SessionUnavailable, "key=None"), with_session(store=store).open(key=None):
        pass


@pytest.mark.parametrize(
    ("args", "options"),
    [((), {}), ((message(),), {"key": "42:42"}), (("42:42",), {}), ((None,), {}), (({},), {})],
    ids=["nothing", "both", "a key by position", "None", "JSON"],
)
def test_misuse(session, args, options):
    with says(TypeError, "open(key='42:99')"), session.open(*args, **options):
        pass


@pytest.mark.parametrize("key", ["", True, 1.5, b"x", {}])
def test_a_wrong_key(session, key):
    with says(SessionError, repr(key)), session.open(key=key):
        pass


@pytest.mark.parametrize("busy", ["drop", lambda update: pytest.fail("asked")])
def test_it_waits_whatever_busy_says(store, busy):
    """Nobody is there whom the block could be left to."""
    session = with_session(store=store, busy=busy)
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        with session.open(key=7) as data:
            inside.set()
            assert go_on.wait(TIMEOUT)
            data["n"] = 1

    def follow():
        assert inside.wait(TIMEOUT)
        threading.Timer(0.01, go_on.set).start()
        with session.open(key=7) as data:
            return data["n"]

    assert run_together(hold, follow) == [None, 1]


def test_while_eight_workers_handle_updates(store):
    """A thread adds to a session by its key: nothing is lost, and nobody waits for ever."""
    bot = Bot(8)
    session = with_session(store=MemoryStore(), key=keys.user)

    @bot.any_handler
    @session
    def handler(message):
        count(message)

    def add():
        for _ in range(200):
            with session.open(key=42) as data:
                data["n"] = data.get("n", 0) + 1

    bot.feed([payload()] * 200)
    assert run_together(add, add) == [None, None]
    bot.run([])

    assert bot.errors == []
    with session.open(key=42) as data:
        assert data == {"n": 600}
