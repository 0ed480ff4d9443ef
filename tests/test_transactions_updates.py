"""2.4 to 2.7 What an update shows of a session that is joined, replaced, or copied with it."""

import copy
import pickle
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from telesession import MemoryStore, SessionClosed, SessionError, with_session
from tests import other_session
from tests.helpers import REPLACING, Failure, content, count, doing, keep
from tests.stores import message

pytestmark = pytest.mark.thorough

other = other_session.other


# Replaced sessions (2.4, 2.5)


@pytest.mark.parametrize(
    ("before", "left"),
    [("pass", {"n": 2}), ("message.session = None", {"n": 1}), ("message.session = {}", {"n": 1})],
)
def test_a_handler_in_a_block_of_a_handler_has_its_session(session, store, before, left):
    """2.5, 5.6 With the same message or another one, also where the handler had replaced or
    removed the session before the block."""
    keep(store, n=1)

    for on in (lambda update: update, lambda update: message()):
        store_before = dict(store)

        @session
        def handler(update, on=on):
            doing(before)(update)
            with session.open(update) as data:
                session(count)(on(update))
                assert data == left

        handler(message())
        assert content(store) == {"session:42:42": left}
        store.update(store_before)


@pytest.mark.parametrize("before", ["pass", "message.session = None"])
def test_a_session_that_is_replaced_around_a_block_is_what_was_put_there(session, store, before):
    """2.4, 5.6 What the handler puts on its message in a block counts, and whoever is called then
    joins it."""

    @session
    def handler(update):
        doing(before)(update)
        with session.open(update):
            update.session = {"n": 10}
            session(count)(message())
            with session.open(update) as data:
                data["n"] += 1

    handler(message())

    assert content(store) == {"session:42:42": {"n": 12}}


def test_a_session_that_was_removed_is_back_when_the_block_ends(session, store):
    """2.4, 5.6 Only if something came of it."""
    keep(store, n=1)

    @session
    def handler(update):
        update.session = None
        for change in ({}, {"n": 5}):
            with session.open(update) as data:
                with session.open(update) as same:
                    same.update(change)
                assert data is same is update.session
            assert update.session == (change or None)

    handler(message())

    assert content(store) == {"session:42:42": {"n": 5}}


@pytest.mark.parametrize("on", [lambda update: update, lambda update: message()])
def test_a_block_has_what_a_handler_in_it_put_in_the_place(session, store, on):
    """2.5, 5.6 What the block got is what the message shows again, with the new content."""

    @session
    def handler(update):
        with session.open(update) as data:
            session(doing("message.session = {'n': 5}"))(on(update))
            assert update.session is data
            data["n"] += 1
        update.session["n"] += 1

    handler(message())

    assert content(store) == {"session:42:42": {"n": 7}}


def test_a_message_that_is_handed_back_shows_what_was_put_there(session, store):
    """2.5 The outermost handler's message, handled two calls deeper, where both have replaced the
    session."""

    @session
    def outer(first):
        first.session = {"n": 10}
        session(lambda second: (setattr(second, "session", {"n": 20}), inner(first)))(message())
        count(first)

    inner = session(count)
    outer(message())

    assert content(store) == {"session:42:42": {"n": 22}}


@pytest.mark.parametrize("how", REPLACING)
def test_a_message_is_handled_again_after_it_failed(session, store, other, how):
    """4.1 Whatever the part had put in the place of the session, it is as it was before."""
    keep(store, n=1)
    update = message()

    @session
    def fails(message):
        doing(how)(message)
        raise Failure

    @other
    def outer(_):
        for _ in range(2):
            with suppress(Failure):
                fails(update)
            with pytest.raises(SessionClosed):
                update.session["n"] = 0
        session(count)(update)

    outer(message())

    assert content(store) == {"session:42:42": {"n": 2}}


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_all_messages_that_showed_a_session_are_closed_in_the_end(session, other, fails):
    """2.6 Also those that showed a dict which was put in its place, in parts that failed or not."""
    first, second, third = (message() for _ in range(3))

    @session
    def middle(second):
        second.session = {"n": 1}
        session(count)(third)
        if fails:
            raise Failure

    @other
    def outer(_):
        session(lambda first: None)(first)
        with suppress(Failure):
            middle(second)

    outer(message(user=43))

    for update in (first, second, third):
        assert update.session == ({} if fails else {"n": 2})
        with pytest.raises(SessionClosed):
            update.session["n"] = 0


# Copied updates (2.7)

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda update: pickle.loads(pickle.dumps(update)),
}


@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("change", ["pass", *REPLACING])
def test_a_copied_update_is_an_update_like_any_other(session, store, how, change):
    """2.7 Copied while the session is open, or after, and handled then or later, it has the session
    as it is stored by then, or as it is in the handler that has it open."""
    keep(store, n=1)
    copies = []

    @session
    def handler(update):
        doing(change)(update)
        before = update.session["n"]
        copies.append(how(update))
        assert session(count)(how(update)) == before + 1
        assert update.session["n"] == before + 1
        return before + 1

    update = message()
    number = handler(update)
    copies.append(how(update))
    copies.append(how(copies[-1]))
    if change != "pass":
        del copies[0]  # the dict that it has is anybody's: see the next test

    for each in copies:
        number += 1
        assert session(count)(each) == number
    assert content(store)["session:42:42"]["n"] == number


@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_a_copied_update_of_another_user(session, store, how, fails):
    """2.7 Copied while the session is open, and handled in the name of another user."""

    @session
    def as_another(update):
        count(update)
        if fails:
            raise Failure

    @session
    def outer(update):
        copied = how(update)
        copied.from_user = copied.chat = SimpleNamespace(id=43, type="private", is_bot=False)
        with suppress(Failure):
            as_another(copied)
        count(update)

    outer(message())

    theirs = {} if fails else {"session:43:43": {"n": 1}}
    assert content(store) == {"session:42:42": {"n": 1}, **theirs}


def test_an_update_that_a_bot_puts_an_open_session_on_is_no_copy(session, store):
    """2.3 It is refused, as ever."""
    update = message()

    with session.open(key="43:43") as update.session:
        with pytest.raises(SessionError, match="still open"):
            session(count)(update)
        count(update)

    assert content(store) == {"session:43:43": {"n": 1}}


def test_a_dict_that_a_copy_has_is_not_taken_for_a_session(session, store):
    """2.3, 2.7 Where the copied update had another dict in the session's place, one can't tell it
    from an attribute of the bot's own."""
    update = message()
    update.session = {"n": 1}

    with pytest.raises(SessionError, match="another property"):
        session(count)(copy.deepcopy(update))
    assert store == {}


@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
def test_a_copied_update_that_had_no_session(how):
    """2.7, 3.3 Nor has the copy."""
    seen = []
    absent = with_session(key=lambda update: None)(lambda update: seen.append(bool(update.session)))
    update = message()

    absent(update)
    absent(how(update))

    assert seen == [False, False]


def test_an_update_that_was_kept_in_its_own_session():
    """2.7 As a bot keeps what is to be done once the user has logged in."""
    store = MemoryStore()
    session = with_session(store=store)

    @session
    def report(update):
        if "name" not in update.session:
            update.session["pending"] = update
            return None
        return f"{update.text} for {update.session['name']}"

    @session
    def login(update):
        update.session["name"] = "Ann"
        return report(update.session.pop("pending"))

    assert report(message()) is None
    assert login(message()) == "hello for Ann"
    assert session.peek(key="42:42") == {"name": "Ann"}


# Costs (2.5, 5.6)


def replace(message):
    message.session = {"n": message.session.get("n", 0) + 1}


def same_update(session, update):
    join = session(count)
    return lambda number: join(update)


def copied_update(session, update):
    join = session(count)
    return lambda number: join(copy.copy(update))


def replacing(session, update):
    join = session(replace)
    return lambda number: join(copy.copy(update))


def opening(session, update):
    def join(number):
        with session.open(update) as data:
            data["n"] = number

    return join


def failing(session, update):
    def join(number):
        with suppress(Failure), session.open(update) as data:
            data["l"] = [number]
            raise Failure

    return join


def failing_with_a_copy(session, update):
    @session
    def fails(copied):
        raise Failure

    def join(number):
        with suppress(Failure):
            fails(copy.copy(update))

    return join


def adding(session, update):
    def join(number):
        with session.open(key=f"{number}:1") as data:
            data["n"] = number

    return join


HOW = [same_update, copied_update, replacing, opening, failing, failing_with_a_copy, adding]


@pytest.mark.parametrize("how", HOW)
def test_the_ten_thousandth_join_costs_as_the_first(how):
    """2.5 Also with copies of the message, and with dicts in the session's place."""
    session = with_session(store=MemoryStore())
    took = []

    @session
    def outer(update):
        join = how(session, update)
        for thousand in range(10):
            before = time.thread_time()
            for number in range(1000):
                join(1000 * thousand + number)
            took.append(time.thread_time() - before)

    outer(message())

    assert min(took[-3:]) < 2 * min(took[:3])
