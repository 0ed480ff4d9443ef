"""4.1, 4.2, 5.6, 6.3 What is saved or taken back together, on one store and on several."""

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from telesession import (
    MemoryStore,
    SessionClosed,
    SessionDataError,
    SessionStoreError,
    keys,
    with_session,
)
from tests import other_session
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
from tests.other_session import exec_in
from tests.stores import Bot, GetSet, Leasing, WatchedStore, message, payload

pytestmark = pytest.mark.thorough

other = other_session.other


@dataclass
class Thing:
    """An object of the bot's own, which pickle keeps."""

    items: list[Any]


class Pair(NamedTuple):
    one: list[Any]
    other: int


class Committing(Leasing):
    """Notes what is written together."""

    def __init__(self):
        super().__init__()
        self.commits = []

    def commit(self, lease, changes):
        self.commits.append({name for name, *_ in changes})
        super().commit(lease, changes)


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
        "p": Pair([1], 2),
        "o": Thing([1]),
        "od": OrderedDict(a=1, b=2),
    }


def parts_of(data):
    """What is put back in place."""
    of_tuples = [data["t"][0], data["p"].one]
    return [
        data,
        data["l"],
        data["l"][1],
        data["d"],
        data["d"]["a"],
        data["s"],
        *of_tuples,
        data["od"],
    ]


def spoil(data):
    data["l"][1].append(3)
    data["l"].insert(0, 0)
    del data["d"]["a"]["b"]
    data["d"]["x"] = data["l"]
    data["s"] ^= {2, 3}
    data["t"][0].append(2)
    data["p"].one.append(2)
    data["o"].items.append(2)
    data["od"].move_to_end("a")
    data["od"]["c"] = data["od"].pop("b")
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
        parts = parts_of(same)
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
        assert list(map(id, parts)) == list(map(id, parts_of(now)))
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


def test_after_a_save_that_failed_the_store_is_only_asked_to_let_go():
    """6.3 Not to begin a new ttl of a session that may have been saved."""
    asked = []

    class Failing(Leasing):
        def commit(self, lease, changes):
            asked.append([name for name, _, _ in changes])
            super().commit(lease, changes)
            if len(asked) == 2:
                raise ConnectionError

    store = Failing()
    session = with_session(store=store, ttl=60)
    session(count)(message())

    with pytest.raises(SessionStoreError):
        session(count)(message())

    assert asked == [["session:42:42"], ["session:42:42"], []]


def test_a_new_session_of_a_part_stays_as_initial_gave_it():
    """4.2 It is not stored, whatever containers are in it."""
    store = MemoryStore()
    session = with_session(store=store)
    other = with_session(property="other", store=store, initial=lambda: {"cart": [{"n": {1}}]})

    @session
    def handler(update):
        with other.open(update):
            pass
        other(lambda message: None)(update)

    handler(message())

    assert len(store) == 0
