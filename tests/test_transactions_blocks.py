"""4.1, 5.6 What is opened in a block: when it is saved, and what outlives its handler."""

import gc
import tracemalloc
import weakref
from contextlib import suppress

import pytest

from telesession import MemoryStore, SessionClosed, SessionStoreError, _locks, keys, with_session
from tests import other_session
from tests.helpers import Failure, content, count, keep
from tests.stores import Leasing, WatchedStore, message

pytestmark = pytest.mark.thorough

other = other_session.other


# Apart (5.6)


def test_a_block_apart_saves_what_was_opened_in_it(session, store, other):
    """5.6 Also where it has joined all sessions of its own: what is opened in it is saved at its
    end."""

    @session
    def handler(message):
        count(message)
        with session.open(message, apart=True) as mine, other.open(key="1:1") as theirs:
            mine["n"] += 1
            theirs["n"] = 1
        assert content(store) == {"other:1:1": {"n": 1}}
        raise Failure

    with pytest.raises(Failure):
        handler(message())

    assert content(store) == {"other:1:1": {"n": 1}}


def test_what_a_block_apart_changed_of_a_part_is_taken_back_with_the_block_around_it(
    session, store, other
):
    """4.1, 5.6 A session that an earlier part opened belongs to the outermost. It was changed in
    a block apart that was saved, in a block that raises."""
    mine = with_session(property="mine", store=store)

    @session
    def outer(update):
        other(lambda update: None)(update)
        with suppress(Failure), session.open(update, apart=True):
            with mine.open(key="1:1", apart=True) as data:
                data["n"] = 1
                other(lambda update: update.other.update(n=1))(update)
            raise Failure

    outer(message())

    assert content(store) == {"mine:1:1": {"n": 1}}


@pytest.mark.parametrize("ends", ["later", "never"])
def test_a_block_that_outlives_its_handler(session, store, other, ends):
    """4.1, 5.6 A generator that is not used up: what it had begun is taken back with the end of
    the handler, and it can change nothing any more."""
    keep(store, n=1)
    left = []

    def generator(update):
        with session.open(update) as mine, other.open(key="1:1") as theirs:
            mine["n"] = theirs["n"] = 5
            yield
            for data in (mine, theirs):
                with pytest.raises(SessionClosed):
                    data["n"] = 6
        yield

    @session
    def handler(update):
        update.session["m"] = 1
        left.append(generator(update))
        next(left[0])

    handler(message())
    assert content(store) == {"session:42:42": {"n": 1, "m": 1}}
    if ends == "later":
        next(left[0])
    left.clear()
    gc.collect()

    assert content(store) == {"session:42:42": {"n": 1, "m": 1}}
    assert _locks.held() == 0
    assert session(count)(message()) == 2


def test_a_block_that_outlives_a_handler_that_fails(session, store, other):
    """2.6, 4.1 Its end, whenever it comes, opens nothing again."""
    update, left = message(), []

    def generator():
        with session.open(update) as mine, other.open(key="1:1"):
            mine["n"] = 5
            yield

    @session
    def fails(_):
        left.append(generator())
        next(left[0])
        raise Failure

    with pytest.raises(Failure):
        fails(update)
    assert _locks.held() == 0
    left.clear()
    gc.collect()

    with pytest.raises(SessionClosed):
        update.session["n"] = 6
    assert update.session == {}
    assert store == {}


def test_a_block_apart_that_outlives_its_handler(session, other, store):
    """5.6 What it had begun is not saved when it ends, after others have written."""
    left = []

    def generator():
        with other.open(key="1:1", apart=True) as data:
            data["n"] = 1
            yield
        yield

    @session
    def handler(update):
        left.append(generator())
        next(left[0])

    handler(message())
    with other.open(key="1:1") as data:
        data["n"] = 5
    next(left[0])

    assert content(store) == {"other:1:1": {"n": 5}}


@pytest.mark.parametrize("how", ["open", "call"])
def test_nothing_stays_for_the_garbage_collector(session, other, how):
    """5.5 An update is gone at once, with all that a handler had of it."""

    @other
    def part(update):
        update.other["n"] = 1

    @session
    def handler(update):
        count(update)
        for _ in range(2):
            if how == "call":
                part(update)
            else:
                with session.open(update), other.open(update) as data:
                    data["n"] = 1

    gc.disable()
    try:
        update = message()
        gone = weakref.ref(update)
        handler(update)
        del update
        assert gone() is None
    finally:
        gc.enable()


# Stores that fail, and several of them


def test_a_part_that_could_not_read_a_second_store_is_tried_again():
    """5.6 What it has leased on the first store stays in the lease of the outermost, to whose end
    it is locked, and is joined then."""
    first, second = Leasing(), WatchedStore(Leasing())
    outer, a, b = (
        with_session(property=name, store=store)
        for name, store in (("outer", first), ("a", first), ("b", second))
    )
    tries = []

    @a
    @b
    def both(message):
        message.a["n"] = message.b["n"] = 1

    @outer
    def handler(message):
        message.outer["n"] = 1
        second.fail("get", OSError(), on=1)
        for _ in range(2):
            try:
                both(message)
            except SessionStoreError as error:
                tries.append(error)
                second.heal()

    handler(message())

    assert len(tries) == 1
    assert sorted(first.kept) == ["a:42:42", "outer:42:42"]
    assert second.inner.kept["b:42:42"][0] == '{"n":1}'
    assert first.leases == second.inner.leases == {}


def test_a_loop_of_blocks_apart_keeps_nothing(session):
    """5.6 Each is saved and let go of at its end, also inside a handler that has a session."""
    store = MemoryStore()
    many = with_session(property="many", store=store)

    def loop(number):
        for key in range(number):
            with many.open(key=f"{key % 10}:1", apart=True) as data:
                data["l"] = [0] * 1000
            assert _locks.held() == 1

    @session
    def handler(update):
        count(update)
        gc.disable()
        tracemalloc.start()
        try:
            loop(100)
            before = tracemalloc.get_traced_memory()[0]
            loop(1000)
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
            gc.enable()

    assert handler(message()) < 50_000


def test_a_block_apart_joins_what_the_handler_has(session, store):
    """5.6 What the handler has stays the handler's: it is saved or not at its end."""

    @session
    def handler(update):
        with session.open(update, apart=True) as data, session.open(key="1:1", apart=True) as more:
            data["n"] = more["n"] = 1
        assert update.session == {"n": 1}
        assert content(store) == {"session:1:1": {"n": 1}}
        with suppress(Failure), session.open(update, apart=True) as data:
            data["n"] = 2
            raise Failure
        assert update.session == {"n": 1}

    handler(message())

    assert content(store) == {"session:1:1": {"n": 1}, "session:42:42": {"n": 1}}


def test_several_keys_of_one_session(session, store):
    """5.6 In the order that was asked for; equal ones are refused, also as text and number."""
    keep(store, n=1)

    with session.open(keys=["2:2", "42:42", "1:1"]) as (b, mine, a):
        assert mine == {"n": 1}
        a["n"], b["n"] = "a", "b"
    by_user = with_session(property="by_user", key=keys.user, store=store)
    for declaration, equal in ((session, ["1:1", "1:1"]), (by_user, [1, "1"])):
        with pytest.raises(ValueError, match="once"), declaration.open(keys=equal):
            pass
    with suppress(Failure), session.open(keys=["1:1", "2:2"]) as both:
        both[0]["n"] = both[1]["n"] = 0
        raise Failure

    assert content(store) == {
        "session:42:42": {"n": 1},
        "session:1:1": {"n": "a"},
        "session:2:2": {"n": "b"},
    }
