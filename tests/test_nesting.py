"""Sections 2.5, 5.3 and 5.4 of the contract: handlers in handlers, and stacks of sessions."""

import copy
import functools
import inspect
import json
import os
import threading
from contextlib import suppress

import pytest
import telebot
from telebot import types

from telesession import (
    SessionBusy,
    SessionClosed,
    SessionDataError,
    SessionError,
    SessionStoreError,
    keys,
    with_session,
)
from tests.helpers import (
    ADDING,
    CLEARING,
    REPLACING,
    Failure,
    any_of,
    content,
    count,
    doing,
    hiding,
    keep,
    run_together,
    says,
    wrapping,
)
from tests.stores import TIMEOUT, Leasing, WatchedClient, message, payload
from tests.updates import UPDATES, make

# What a nested handler may be called with: the update itself, or another one of the same session.
ON = pytest.mark.parametrize(
    "on", [lambda update: update, lambda update: message()], ids=["same update", "other update"]
)

COUNT = "message.session['n'] = message.session.get('n', 0) + 1"
READ = "message.session.get('n')"

# Of a session with {"n": 1}: what the outer handler does, what the nested one does, what the outer
# one does then, and what is stored in the end.
JOINING = [
    (COUNT, COUNT, COUNT, {"n": 4}),
    (REPLACING[0], COUNT, COUNT, {"n": 4}),
    *((READ, change, COUNT, {"n": 3}) for change in (*REPLACING, *ADDING)),
    *((READ, clearing, "pass", None) for clearing in CLEARING),
    *((clearing, READ, "pass", None) for clearing in CLEARING),
    ("message.session.clear()", COUNT, COUNT, {"n": 2}),
    ("message.session = None", COUNT, "pass", {"initial": 1, "n": 1}),
    ("del message.session", COUNT, COUNT, {"initial": 1, "n": 2}),
]


@ON
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize(("first", "nested", "then", "left"), JOINING)
def test_a_nested_handler_joins_the_open_session(on, fails, first, nested, then, left):
    """2.5 A decorated handler that calls another one with the same session joins the open one:
    same dict, one save, at the end of the outermost, whoever replaces or clears it. Then it is
    closed on both updates. 4.1 Where the outer handler catches what the nested one raises, it is
    as if that had done nothing."""
    if fails:
        then = "pass" if first.endswith(("None", "del message.session")) else then
        left = joined(on, False, first, "pass", then)
    assert joined(on, fails, first, nested, then) == left


def joined(on, fails, first, nested, then):
    """What is stored in the end."""
    store = WatchedClient({})
    session = with_session(store=store, initial=lambda: {"initial": 1})
    keep(store.client, n=1)
    update = message()
    other = on(update)

    @session
    def inner(message):
        doing(nested)(message)
        if fails:
            raise Failure

    @session
    def outer(message):
        doing(first)(message)
        with suppress(Failure):
            inner(other)
        seen = getattr(message, "session", None)
        assert seen is getattr(other, "session", None) or not seen
        doing(then)(message)
        assert store.writes == []

    outer(update)

    assert len(store.writes) == (content(store.client) != {"session:42:42": {"n": 1}})
    assert update.session is other.session
    with pytest.raises(SessionClosed):
        update.session["n"] = 0
    return content(store.client).get("session:42:42")


@ON
def test_nothing_is_kept_of_a_join_when_the_outermost_raises(session, store, on):
    """2.5, 4.1 When the outermost raises, changes of the joined handlers are lost too."""

    @session
    def outer(message):
        session(count)(on(message))
        raise Failure

    with pytest.raises(Failure):
        outer(message())

    assert store == {}


@ON
def test_handlers_join_any_number_of_times_at_any_depth(session, on):
    """2.5 Joining works for a handler that calls itself, and again and again with one update."""

    @session
    def handler(message, other, depth):
        count(message)
        for _ in range(2 if depth else 0):
            handler(other, other, depth - 1)
        return message.session["n"]

    update = message()

    assert handler(update, on(update), 3) == 15


@pytest.mark.parametrize(
    "change",
    [
        REPLACING[0],
        CLEARING[0],
        pytest.param("message.session = None"),
        pytest.param("del message.session"),
    ],
)
def test_a_nested_handler_joins_twice_with_another_update(store, change):
    """2.5 It is the same session each time, also where it was replaced or cleared before."""
    session = with_session(store=store, initial=lambda: {"n": 100})
    other = message()

    @session
    def outer(message):
        doing(change)(message)
        return [session(lambda message: message.session.get("n"))(other) for _ in range(2)]

    first, second = outer(message())

    assert first == second


def test_a_nested_handler_joins_with_a_copy_of_the_update(session):
    """2.5 Joining works with a copied message: how bots re-dispatch one with another text."""
    assert session(lambda message: session(count)(copy.copy(message)))(message()) == 1


def test_a_nested_handler_does_not_join_what_is_no_dict(session, store):
    """2.4, 2.5 What isn't a dict is refused, and the stored session stays as it was."""
    keep(store, n=1)

    @session
    def outer(message):
        message.session = "text"
        session(count)(message)

    with pytest.raises(SessionDataError):
        outer(message())

    assert content(store) == {"session:42:42": {"n": 1}}


def test_a_nested_stack_joins_what_is_open_and_opens_the_rest():
    """2.5, 5.6 Of a nested stack, what is open is joined, and the rest is saved with it."""
    store = WatchedClient({})
    session = with_session(store=store)
    cart = with_session(property="cart", store=store)

    @cart
    @session
    def inner(message):
        message.cart["tea"] = count(message)

    @session
    def outer(message):
        count(message)
        inner(message)
        assert store.writes == []

    outer(message())

    assert content(store.client) == {"cart:42:42": {"tea": 2}, "session:42:42": {"n": 2}}


def test_another_session_is_not_joined(session, store):
    """2.5 Only the same session is joined: another user's is opened beside it."""
    session(lambda update: (count(update), session(count)(message(user=43))))(message())

    assert content(store) == {"session:42:42": {"n": 1}, "session:43:43": {"n": 1}}


@pytest.mark.parametrize("own", ["of its own", {}, {"n": 1}], ids=repr)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_nested_handler_does_not_hide_an_attribute(store, own, replaced):
    """2.3, 2.5 Nor where it joins with another update, which has that attribute."""
    session = with_session(property="title", key=keys.chat, store=store)
    other = message()
    other.title = own

    @session
    def outer(update):
        if replaced:
            update.title = {"n": 2}
        update.title["m"] = 1
        with says(SessionError, "property='title'"):
            session(pytest.fail)(other)

    outer(message())

    assert other.title is own
    assert content(store) == {"title:42": {"n": 2, "m": 1} if replaced else {"m": 1}}


def test_one_property_can_hold_only_one_open_session(session, store):
    """2.3, 2.5 A nested handler can't put another session under a property that is in use."""
    by_chat = with_session(store=store, key=keys.chat)

    @session
    def outer(message):
        count(message)
        with pytest.raises(SessionError, match=r"its own property, or .* copy.copy\(update\)"):
            by_chat(count)(message)
        by_chat(count)(copy.copy(message))

    outer(message())

    assert content(store) == {"session:42:42": {"n": 1}, "session:42": {"n": 1}}


# Stacks (5.3)


def both(message):
    message.a["n"] = message.a.get("n", 0) + 1
    message.b["n"] = message.b.get("n", 0) + 1
    return message.a["n"], message.b["n"]


@pytest.fixture
def a(store):
    return with_session(property="a", key=keys.user, store=store)


@pytest.fixture
def b(store):
    return with_session(property="b", key=keys.chat, store=store)


def foreign(action):
    """A decorator that isn't ours: does ``action`` with the handler and the update."""

    def decorate(handler):
        return functools.wraps(handler)(lambda update: action(handler, update))

    return decorate


def test_a_stack_has_one_wrapper(a, b):
    """5.3 A stack of declarations has no nesting of wrappers; each part can be used alone."""

    def depth(message):
        return len(inspect.stack()), hasattr(message, "b")

    alone = a(depth)
    stack = b(alone)

    assert stack.__wrapped__ is alone.__wrapped__ is depth
    (of_one, has_b), (of_two, _) = alone(message()), stack(message())
    assert (of_one, has_b) == (of_two, False)


def test_a_stack_opens_all_its_sessions_together():
    """5.3 A stack opens all its sessions together, and saves them together."""
    calls = []

    class Recording(Leasing):
        def open(self, names, timeout, lease=None):
            calls.append(sorted(names))
            return super().open(names, timeout, lease)

        def commit(self, lease, changes):
            calls.append(sorted(name for name, *_ in changes))
            super().commit(lease, changes)

    store = Recording()
    a, b = (with_session(property=name, store=store) for name in "ab")

    assert b(a(both))(message()) == (1, 1)
    assert calls == [["a:42:42", "b:42:42"]] * 2


@pytest.mark.parametrize("decorate", [wrapping, hiding])
def test_a_foreign_decorator_keeps_working(store, a, b, decorate):
    """5.3 A foreign decorator keeps working, between two of ours, above them and below."""
    handler = decorate(a(decorate(b(decorate(both)))))

    assert [handler(message()), handler(message())] == [(1, 1), (2, 2)]
    assert content(store) == {"a:42": {"n": 2}, "b:42": {"n": 2}}


def swallow(handler, message):
    message.a["n"] = 1
    with suppress(Failure):
        handler(message, fails=True)


@any_of(
    {
        "calls it again": (lambda run, message: (run(message), run(message)), {"b:42": {"n": 2}}),
        "does not call it": (lambda run, message: None, {}),
        "passes another update": (lambda run, _: run(message(user=43)), {"b:43": {"n": 1}}),
        "swallows what it raises": (swallow, {"a:42": {"n": 1}}),
        "runs it in another thread": (
            lambda run, message: run_together(lambda: run(message)),
            {"b:42": {"n": 1}},
        ),
    }
)
def test_a_foreign_decorator_between_two_of_ours_can_do_as_it_likes(store, a, b, case):
    """5.3 What the handler did is saved each time it returned, for the update that it got."""
    action, kept = case

    @a
    @foreign(action)
    @b
    def handler(message, fails=False):
        message.b["n"] = message.b.get("n", 0) + 1
        if fails:
            raise Failure

    handler(message())

    assert content(store) == kept


def test_a_foreign_decorator_that_passes_another_kind_of_update(store, a):
    """5.3 The session below may have a key function that fails on other updates."""
    b = with_session(property="b", key=lambda message: message.text, store=store)
    redirect = foreign(lambda handler, query: handler(query.message))

    a(redirect(b(doing("message.b['n'] = 1"))))(make("callback_query", UPDATES["callback_query"]))

    assert content(store) == {"b:hello": {"n": 1}}


def test_a_nested_handler_joins_the_sessions_around_a_foreign_decorator(store, a, b):
    """2.5, 5.3 Joining works with the sessions on either side of it."""
    a(wrapping(b(lambda message: (both(message), a(b(both))(message)))))(message())

    assert content(store) == {"a:42": {"n": 2}, "b:42": {"n": 2}}


# Deadlocks (5.3, 5.4)


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("shared", [True, False], ids=["one store", "two stores"])
def test_opposite_orders_can_not_deadlock(shared):
    """5.3 A stack opens its sessions in an order that can't deadlock however two handlers stack
    them; and nothing is lost."""
    one, other = {}, {}
    a = with_session(property="a", store=one)
    b = with_session(property="b", store=one if shared else other)
    handlers = [a(b(both)), b(a(both))] * 4
    rounds = threading.Barrier(len(handlers))

    def work(handler):
        for _ in range(25):
            rounds.wait(TIMEOUT)  # or the threads would hardly ever meet
            handler(message())

    assert run_together(*(functools.partial(work, each) for each in handlers)) == [None] * 8
    assert content({**one, **other}) == {"a:42:42": {"n": 200}, "b:42:42": {"n": 200}}


@pytest.mark.parametrize("wraps", [True, False], ids=["wraps", "without wraps"])
def test_a_cycle_ends_at_once(store, wraps):
    """5.4 A decorator between two of ours makes two handlers of them, one in the other, that may
    come to wait for each other. One of them raises `SessionBusy`, not at the time-out."""
    a, b = (with_session(property=name, store=store, lock_timeout=10 * TIMEOUT) for name in "ab")
    barrier = threading.Barrier(2)

    def meet(handler, message):
        barrier.wait(TIMEOUT)  # from here on each waits for what the other has
        return handler(message)

    between = foreign(meet) if wraps else lambda handler: hiding(foreign(meet)(handler))
    outcomes = run_together(
        functools.partial(a(between(b(both))), message()),
        functools.partial(b(between(a(both))), message()),
    )

    assert {type(outcome) for outcome in outcomes} == {tuple, SessionBusy}


def test_who_waits_too_long_is_told(store):
    """5.4 Waiting longer than `lock_timeout` raises `SessionBusy`; the handler does not run."""
    session = with_session(store=store, lock_timeout=0.01)

    @session
    def handler(update):
        count(update)
        return run_together(lambda: session(count)(message()))

    [error] = handler(message())

    assert type(error) is SessionBusy
    assert content(store) == {"session:42:42": {"n": 1}}


def test_a_session_that_was_not_loaded_beside_one_that_could_not_be(store):
    """4.1 The part that opened both has failed; another part then finds what is stored."""
    store.update({"bad:42:42": "no JSON", "good:42:42": '{"n": 1}'})
    bad, good, session = (with_session(property=one, store=store) for one in ("bad", "good", "own"))

    @bad
    @good
    def part(message):
        pytest.fail("it has no session")

    @session
    def handler(update):
        with pytest.raises(SessionDataError, match="bad"):
            part(message())
        with good.open(key="42:42") as data:
            assert data == {"n": 1}
            data["n"] += 1

    handler(message())

    assert json.loads(store["good:42:42"]) == {"n": 2}


def test_a_stack_of_which_one_store_could_not_lease(caplog):
    """7 Nothing is said of a store that was not reached yet."""
    first, second = Leasing(), Leasing()
    one, two = with_session(property="one", store=first), with_session(property="two", store=second)

    def failing(*_):
        raise ConnectionError

    first.open = first.commit = second.commit = failing
    with pytest.raises(SessionStoreError, match="load"):
        one(two(lambda update: pytest.fail("it has no sessions")))(message())

    assert caplog.messages == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_inside_of_a_handler(store, session):
    """6.4 In the child the parent's handler is not there: one of the child's own is saved."""
    ended = []

    @session
    def forking(update):
        child = os.fork()
        if not child:
            try:
                session(count)(message())
                os._exit(0 if content(store) == {"session:42:42": {"n": 1}} else 1)
            finally:
                os._exit(2)
        ended.append(os.waitpid(child, 0)[1])

    forking(message())

    assert ended == [0]
    assert store == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("where", ["handler", "dispatch"])
def test_a_child_leaves_its_parents_handler(where):
    """6.4 As by `sys.exit`: what is leased, or left under `when`, is still the parent's."""
    store = Leasing()
    session = with_session(store=store)
    parent = os.getpid()

    def fork(update):
        child = os.fork()
        if not child:
            raise SystemExit
        assert os.waitpid(child, 0)[1] == 0
        with session.open(update) as data:
            data["n"] = 1

    bot = telebot.TeleBot("1:test", threaded=False)
    bot.register_message_handler(session.when(n=1)(pytest.fail))
    bot.register_message_handler(session(fork) if where == "handler" else fork)
    try:
        bot.process_new_updates([types.Update.de_json({"update_id": 1, "message": payload()})])
    finally:
        if os.getpid() != parent:
            os._exit(len(store.leases) != 1)
    assert store.kept == {"session:42:42": ('{"n":1}', None)}
    assert store.leases == {}


@pytest.mark.parametrize("shared", [True, False], ids=["one store", "two stores"])
def test_stacks_in_opposite_orders_lease_in_one_order(shared):
    """5.3 Two processes can't wait for each other: no lock of one process would see that."""
    asked = []

    class Noting(Leasing):
        def open(self, names, timeout, lease=None):
            asked.extend(names)
            return super().open(names, timeout, lease)

    first = Noting()
    second = first if shared else Noting()
    one, two = with_session(property="one", store=first), with_session(property="two", store=second)

    for stack in (lambda body: one(two(body)), lambda body: two(one(body))):
        asked.clear()
        stack(lambda update: None)(message())
        assert asked == ["one:42:42", "two:42:42"]
