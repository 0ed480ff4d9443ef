"""4.5, 4.7, 5.7 What is stored already: read as it is, upgraded, shown, or removed."""

from contextlib import suppress

import pytest

from telesession import MemoryStore, SessionDataError, with_session
from telesession.keyvalue import as_store
from tests import other_session
from tests.helpers import Failure, content, count, keep, run_together
from tests.other_session import exec_in
from tests.stores import GetSet, WatchedStore, found, message, put

pytestmark = pytest.mark.thorough

other = other_session.other


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


def test_peek_while_the_sessions_are_opening(store):
    """5.7 It is what is stored of one that is not loaded yet."""
    found = []
    b = with_session(property="b", store=store)
    a = with_session(property="a", store=store, initial=lambda: {"was": b.peek(key="42:42")})
    store["b:42:42"] = '{"n":1}'

    a(b(lambda update: found.append(update.a)))(message())

    assert found == [{"was": {"n": 1}}]


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
