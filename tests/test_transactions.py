"""Sections 4.1, 4.2, 4.7, 5.6 and 5.7 of the contract: what is saved or taken back together."""

import copy
import gc
import pickle
import time
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from telesession import (
    MemoryStore,
    SessionClosed,
    SessionDataError,
    SessionError,
    SessionStoreError,
    _locks,
    keys,
    with_session,
)
from telesession.keyvalue import as_store
from tests.helpers import (
    CHANGING,
    CLEARING,
    REPLACING,
    Failure,
    content,
    count,
    doing,
    keep,
    run_together,
)
from tests.stores import Bot, GetSet, Leasing, WatchedStore, found, message, payload, put

pytestmark = pytest.mark.thorough


@dataclass
class Thing:
    """An object of the bot's own, which pickle keeps."""

    items: list[Any]


class Committing(Leasing):
    """Notes what is written together."""

    def __init__(self):
        super().__init__()
        self.commits = []

    def commit(self, lease, changes):
        self.commits.append({name for name, *_ in changes})
        super().commit(lease, changes)


def exec_in(block, work=lambda: None):
    with block:
        work()


@pytest.fixture
def other(store):
    """Another session than the handler's."""
    return with_session(property="other", store=store)


# What can't be read (4.5)


def test_what_a_part_could_not_read_is_left_as_it_is(session, store, other):
    """4.5 Data that can't be read is never wiped, however often a handler tries, and also where
    a removal of it is taken back."""
    store["other:1:1"] = "nonsense"

    @session
    def handler(message):
        count(message)
        for _ in range(3):
            with pytest.raises(SessionDataError), other.open(key="1:1"):
                pass
        with suppress(Failure), other.open(key="2:2"):
            other.remove(key="1:1")
            raise Failure
        with pytest.raises(SessionDataError), other.open(key="1:1"):
            pass

    handler(message())

    assert store == {"session:42:42": '{"n":1}', "other:1:1": "nonsense"}


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
    """2.4, 5.6 Not before, and only if something came of it."""
    keep(store, n=1)

    @session
    def handler(update):
        update.session = None
        for change in ({}, {"n": 5}):
            with session.open(update) as data:
                with session.open(update) as same:
                    same.update(change)
                assert update.session is None
                assert data is same
        assert update.session == {"n": 5}

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


def test_a_session_that_is_loaded_late_is_taken_back_as_well(session, store, other):
    """4.1, 2.6 One that an earlier part did not get to load, since another could not be read."""
    store["other:42:42"] = "nonsense"
    keep(store, n=1)
    before = dict(store)
    update = message()

    def fails(message):
        count(message)
        message.session = ["no", "dict"]

    @with_session(property="outer", store=store)
    def outer(_):
        with pytest.raises(SessionDataError):
            session(other(count))(message())
        with pytest.raises(SessionDataError):
            session(fails)(update)
        assert update.session == {"n": 1}

    outer(message())

    assert store == before
    with pytest.raises(SessionClosed):
        update.session["n"] = 0


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


# All or none (5.6)

PLACES = pytest.mark.parametrize("make", [MemoryStore, dict, GetSet, Leasing])


def left(session, key):
    with session.open(key=key) as data:
        return dict(data)


@PLACES
def test_no_money_out_of_nothing(make):
    """5.6 What a handler opened is saved with its session, or not at all."""
    wallet = with_session(key=keys.user, store=make(), initial=lambda: {"n": 10})

    @wallet
    def pay(message, fails):
        with wallet.open(key=43) as theirs:
            message.session["n"] -= 10
            theirs["n"] += 10
        with pytest.raises(SessionClosed):
            theirs["n"] += 10
        if fails:
            raise Failure

    with pytest.raises(Failure):
        pay(message(), fails=True)
    assert (left(wallet, 42), left(wallet, 43)) == ({"n": 10}, {"n": 10})
    pay(message(), fails=False)
    assert (left(wallet, 42), left(wallet, 43)) == ({"n": 0}, {"n": 20})


@pytest.mark.parametrize("inner", ["block", "handler"])
@pytest.mark.parametrize("outer", ["block", "handler"])
def test_one_commit_for_all_that_was_opened(outer, inner):
    """5.6 On one store, in one step, at the end of the outermost. It stays locked until then."""
    store = Committing()
    session = with_session(key=keys.user, store=store)

    def more():
        if inner == "handler":
            session(count)(message(user=43))
        else:
            with session.open(key=43) as data:
                data["n"] = 1
        assert store.leases != {}
        assert store.commits == []
        busy = with_session(key=keys.user, store=store, busy="drop")
        assert run_together(lambda: busy(count)(message(user=43))) == [None]

    if outer == "handler":
        session(lambda message: (count(message), more()))(message())
    else:
        with session.open(key=42) as data:
            data["n"] = 1
            more()

    assert store.commits == [{"session:42", "session:43"}]
    assert store.leases == {}


@pytest.mark.parametrize("failing", ["first", "second"])
@pytest.mark.parametrize("make", [lambda: MemoryStore(), lambda: Leasing()])
def test_all_or_none_on_several_stores(make, failing):
    """5.6 Where the second store can't save, the first has what it had before."""
    stores = {"first": WatchedStore(make()), "second": WatchedStore(make())}
    first, second = (with_session(property=name, store=stores[name]) for name in stores)

    @first
    def handler(message, n):
        message.first["n"] = n
        with second.open(message) as data:
            data["n"] = n

    handler(message(), 1)
    stores[failing].fail("set", OSError())
    with pytest.raises(SessionStoreError) as caught:
        handler(message(), 2)
    stores[failing].heal()

    assert caught.value.property == failing
    assert left(first, "42:42") == left(second, "42:42") == {"n": 1}
    handler(message(), 3)
    assert left(first, "42:42") == left(second, "42:42") == {"n": 3}


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("place", ["memory", "sqlite", "valkey"])
def test_mutual_transfers_all_succeed(request, place):
    """5.6 60 of 60 transfers of 10 users on 8 threads, and no coin is made or lost."""
    if place == "memory":
        store = MemoryStore()
    elif place == "sqlite":
        store = pytest.importorskip("telesession.sql").SQLStore(request.getfixturevalue(place))
    else:
        store = pytest.importorskip("telesession.redis").RedisStore(request.getfixturevalue(place))
    wallet = with_session(key=keys.user, store=store, initial=lambda: {"n": 100})
    bot = Bot(threads=8)

    @bot.any_handler
    def pay(message):
        payer, payee = map(int, message.text.split())
        with wallet.open(keys=[payer, payee]) as (mine, theirs):
            mine["n"] -= 1
            theirs["n"] += 1

    # Each pair in both orders, one right after the other.
    pairs = [(user, (user + 1 + step) % 10) for step in range(3) for user in range(10)]
    bot.run([payload(text=text) for a, b in pairs for text in (f"{a} {b}", f"{b} {a}")])

    assert bot.errors == []
    assert [wallet.peek(key=user) for user in range(10)] == [{"n": 100}] * 10


# Parts that raise (4.1)


def whole():
    """Data with one of each kind that is put back in place."""
    return {
        "n": 1,
        "l": [1, [2]],
        "d": {"a": {"b": 1}},
        "s": {1, 2},
        "t": ([1], 2),
        "o": Thing([1]),
    }


def spoil(data):
    data["l"][1].append(3)
    data["l"].insert(0, 0)
    del data["d"]["a"]["b"]
    data["d"]["x"] = data["l"]
    data["s"] ^= {2, 3}
    data["t"][0].append(2)
    data["o"].items.append(2)
    data["more"] = 1


@pytest.mark.parametrize("how", [*REPLACING, *CLEARING, *CHANGING, "pass"])
@pytest.mark.parametrize("within", ["handler", "other message", "block", "block of a block"])
def test_a_part_that_raises_is_taken_back_in_place(within, how):
    """4.1 Whatever it did: the same dicts, lists and sets have what they had, in this order.
    Objects of other types are as they were, too."""
    store = MemoryStore()
    session = with_session(store=store, initial=whole)

    def fails(update):
        spoil(update.session)
        doing(how)(update)
        raise Failure

    def block(update):
        with session.open(update) as data:
            assert data is update.session
            fails(update)

    @session
    def outer(update):
        same = update.session
        parts = [same, same["l"], same["l"][1], same["d"], same["d"]["a"], same["s"]]
        other = message()
        part = {
            "handler": lambda: session(fails)(update),
            "other message": lambda: session(fails)(other),
            "block": lambda: block(update),
            "block of a block": lambda: exec_in(session.open(update), lambda: block(update)),
        }[within]
        with pytest.raises(Failure):
            part()
        now = update.session
        assert list(map(id, parts)) == list(
            map(id, [now, now["l"], now["l"][1], now["d"], now["d"]["a"], now["s"]])
        )
        assert list(now.items()) == list(whole().items())
        assert getattr(other, "session", now) is now
        now["l"].append("kept")

    outer(message())

    assert session.peek(key="42:42") == {**whole(), "l": [1, [2], "kept"]}


@pytest.mark.parametrize("order", ["before", "in the part", "both"])
def test_a_part_that_raises_where_the_session_is_replaced(session, store, order):
    """4.1 What the handler had put in its place before is what there is again, in place."""
    keep(store, n=1)

    @session
    def outer(update):
        if order != "in the part":
            update.session = {"n": 2, "l": [1]}
        same, items = update.session, update.session.get("l")

        @session
        def fails(update):
            if order != "before":
                update.session = {"n": 3}
            update.session.setdefault("l", []).append(2)
            raise Failure

        for update_of_the_part in (update, message()):
            with pytest.raises(Failure):
                fails(update_of_the_part)
            assert update.session is same
            assert same.get("l") is items
        update.session["m"] = 1

    outer(message())

    left = {"n": 1, "m": 1} if order == "in the part" else {"n": 2, "l": [1], "m": 1}
    assert content(store) == {"session:42:42": left}


@pytest.mark.parametrize("catches", ["inner", "outer"])
def test_a_part_in_a_part(session, store, other, catches):
    """4.1 What is taken back is the part that raised and what it called, and no more."""

    @session
    def outer(update):
        count(update)
        with suppress(Failure), other.open(key="1:1") as data:
            data["n"] = 1
            count(update)
            try:
                with other.open(key="1:1") as same, other.open(key="2:2") as more:
                    same["n"] = more["n"] = 2
                    count(update)
                    raise Failure
            except Failure:
                if catches == "outer":
                    raise
            assert data == {"n": 1}
        count(update)

    outer(message())

    kept = {"other:1:1": {"n": 1}} if catches == "inner" else {}
    number = 3 if catches == "inner" else 2
    assert content(store) == {"session:42:42": {"n": number}, **kept}


def test_what_a_part_did_to_the_sessions_around_it_is_taken_back(session, store, other):
    """4.1 Also to those that it had not joined, but could reach."""

    @session
    def outer(update):
        with suppress(Failure), other.open(key="1:1"):
            count(update)
            raise Failure
        update.session["m"] = 1

    outer(message())

    assert content(store) == {"session:42:42": {"m": 1}}


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


# Upgrades (4.7)


@pytest.mark.parametrize("make", [MemoryStore, dict, GetSet])
def test_stored_sessions_are_brought_to_the_form_of_today(make):
    """4.7 Before anything else sees them; stored when the session is next written; not for new
    ones; shown by `peek`."""
    store = make()
    put({"n": 1}, store=store)
    watched = WatchedStore(as_store(store))
    session = with_session(
        store=watched, initial=lambda: {"new": 1}, upgrade=lambda data: data.setdefault("cart", [])
    )
    seen = []
    look = session(lambda update: seen.append(dict(update.session)))

    look(message())
    look(message(user=43))
    assert session.peek(key="42:42") == {"n": 1, "cart": []}
    assert seen == [{"n": 1, "cart": []}, {"new": 1}]
    assert {call for call, _ in watched.calls} == {"get", "peek"}

    session(count)(message())
    assert found(store=store) == {"n": 2, "cart": []}


def test_an_upgrade_that_fails(store):
    """4.7 The handler does not run, the session stays as it is, and can be removed."""
    keep(store, n=1)
    before = dict(store)
    session = with_session(store=store, upgrade=lambda data: data["missing"])

    for call in (session(count), session.peek, lambda update: exec_in(session.open(update))):
        with pytest.raises(SessionDataError, match="upgrade") as caught:
            call(message())
        assert type(caught.value.__cause__) is KeyError
        assert (caught.value.property, caught.value.key) == ("session", "42:42")
    assert store == before
    session.remove(key="42:42")
    assert store == {}


# What can't be read, and removal (4.5, 5.7)


@pytest.mark.parametrize("inside", [False, True])
def test_what_can_not_be_read_is_removed(session, store, other, inside):
    """4.5, 5.7 `exception_handler` finds in the error what to remove; a handler may remove it,
    too, and start anew."""
    store["session:42:42"] = "nonsense"

    with pytest.raises(SessionDataError) as caught:
        session(count)(message())
    assert (caught.value.property, caught.value.key) == ("session", "42:42")
    assert store == {"session:42:42": "nonsense"}

    def repair(_):
        session.remove(key=caught.value.key)
        return session(count)(message())

    assert (other(repair) if inside else repair)(message()) == 1
    assert content(store) == {"session:42:42": {"n": 1}}


def test_removing_in_a_handler_that_has_the_session(session, store):
    """5.7 It is `= None`: removed with what else the handler does, and not if it raises."""
    keep(store, n=1)

    @session
    def handler(update, fails):
        session.remove(update)
        assert update.session == {}
        assert session.peek(update) is None
        if fails:
            raise Failure

    with pytest.raises(Failure):
        handler(message(), fails=True)
    assert content(store) == {"session:42:42": {"n": 1}}
    handler(message(), fails=False)
    assert store == {}


def test_peek_in_a_handler_is_a_copy_of_what_it_has(session, store):
    """5.7 And elsewhere of what is stored, without waiting for the handler."""
    keep(store, n=1, l=[])

    @session
    def handler(update):
        update.session["n"] = 2
        mine = session.peek(update)
        mine["l"].append(1)
        assert update.session == {"n": 2, "l": []}
        assert run_together(lambda: session.peek(key="42:42")) == [{"n": 1, "l": []}]
        update.session = {"n": 3}
        return session.peek(key="42:42")

    assert handler(message()) == {"n": 3}


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


def adding(session, update):
    def join(number):
        with session.open(key=f"{number}:1") as data:
            data["n"] = number

    return join


@pytest.mark.parametrize("how", [same_update, copied_update, replacing, opening, failing, adding])
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


# Several stores (4.1, 6.3)


@pytest.mark.parametrize("trouble", ["the store fails, too", "others wrote since", "none"])
def test_what_stays_saved_where_another_store_fails(trouble):
    """6.3 What one store saved before another one failed is taken back. Where that can't be, the
    message says which sessions stay saved."""
    saved = []

    class Failing(Leasing):
        def open(self, names, timeout, lease=None):
            if trouble == "the store fails, too" and saved:
                raise ConnectionError
            return super().open(names, timeout, lease)

        def commit(self, lease, changes):
            if changes and saved == [self]:
                return super().commit(lease, changes)  # what was there before
            saved.append(self)
            if len(saved) == 2:
                if trouble == "others wrote since":
                    (name,) = saved[0].kept
                    saved[0].kept[name] = "others'", None
                super().commit(lease, ())
                raise ConnectionError("hunter2")
            return super().commit(lease, changes)

    a, b = (with_session(property=name, store=Failing()) for name in "ab")

    @a
    @b
    def handler(message):
        message.a["n"] = message.b["n"] = 1

    with pytest.raises(SessionStoreError) as caught:
        handler(message())

    first = saved[0]
    left = "" if trouble == "none" else f"'{next(iter(first.kept))}': saved before"
    assert left in str(caught.value)
    assert ("could not be taken back" in str(caught.value)) == (trouble != "none")
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert "hunter2" not in str(caught.value)
    assert saved[1].kept == {}
    assert bool(first.kept) == (trouble != "none")
