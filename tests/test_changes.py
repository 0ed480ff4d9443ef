"""Sections 2.4 and 2.6 of the contract: replacing, clearing, and what remains of a session."""

import copy
import json
import operator
import pickle
from contextlib import suppress

import pytest

from telesession import JSON, MemoryStore, SessionClosed, SessionDataError, with_session
from telesession._session import Copied
from tests.helpers import (
    ADDING,
    CHANGING,
    CLEARING,
    REPLACING,
    Failure,
    any_of,
    content,
    count,
    doing,
    keep,
    run_together,
)
from tests.stores import message

# Replacing and clearing (2.4)


@pytest.mark.parametrize(
    ("change", "left"),
    [
        *((change, {"n": 2}) for change in REPLACING),
        *((change, {"old": 1, "n": 2}) for change in ADDING),
    ],
)
def test_a_session_can_be_replaced(store, change, left):
    """2.4 Replacing works: `message.session = {...}`."""
    session = with_session(store=store, initial=lambda: {"initial": 1})
    keep(store, old=1)
    update = message()

    session(doing(change))(update)

    assert content(store) == {"session:42:42": left}
    assert update.session == left


def test_a_session_can_be_replaced_by_another_one(store):
    """2.4 Replacing works with whatever is a dict, such as another session; each keeps its own."""

    @with_session(property="mine", store=store)
    @with_session(property="other", store=store)
    def handler(message):
        message.other["n"] = message.other.get("n", 0) + 1
        message.mine = message.other

    handler(message())
    handler(message())

    assert content(store) == {"mine:42:42": {"n": 2}, "other:42:42": {"n": 2}}


@pytest.mark.parametrize("make_store", [dict, MemoryStore])
@pytest.mark.parametrize("clearing", CLEARING)
def test_a_session_can_be_cleared(make_store, clearing):
    """2.4 `message.session.clear()`, `= None` and `del message.session` all remove the session
    from the store, and the next update starts from `initial()`."""
    store = make_store()
    session = with_session(store=store, initial=lambda: {"n": 100})
    session(count)(message())
    session(count)(message(user=43))
    update = message()

    session(doing(clearing))(update)

    assert ("session:42:42" in store, "session:43:43" in store) == (False, True)
    assert update.session == {}
    assert session(count)(message()) == 101


@pytest.mark.parametrize("change", [*CLEARING, REPLACING[0]])
def test_replacing_and_clearing_are_undone_when_the_handler_raises(session, store, change):
    """2.4, 4.1 When the handler raises, replacing and clearing are no exception: nothing is kept,
    and the next handler of the update opens what was there."""
    keep(store, n=1)
    update = message()

    @session
    def handler(message):
        doing(change)(message)
        raise Failure

    with pytest.raises(Failure):
        handler(update)

    assert content(store) == {"session:42:42": {"n": 1}}
    with pytest.raises(SessionClosed):
        update.session["n"] = 5
    assert session(count)(update) == 2


@pytest.mark.parametrize("wrong", ["'text'", "[('n', 1)]", "object()"])
def test_only_a_dict_can_replace_a_session(session, store, wrong):
    """2.4 What isn't a dict can't be a session: refused, and the stored one stays as it was."""
    keep(store, n=1)
    update = message()

    with pytest.raises(SessionDataError, match="'session'"):
        session(doing(f"message.session = {wrong}"))(update)

    assert content(store) == {"session:42:42": {"n": 1}}
    assert session(count)(update) == 2


# Closed sessions (2.6)


def replacing_count(message):
    message.session = {"n": count(message)}


def failing_count(message):
    count(message)
    raise Failure


@pytest.mark.parametrize("handler", [count, replacing_count, failing_count])
@pytest.mark.parametrize("change", CHANGING)
def test_a_closed_session_can_not_be_changed(session, store, handler, change):
    """2.6 After the handler returned, changing its session raises `SessionClosed`."""
    update = message()
    with suppress(Failure):
        session(handler)(update)
    stored = dict(store)

    with pytest.raises(SessionClosed):
        doing(change)(update)

    assert update.session == {"n": 1}
    assert store == stored


def deep_content():
    return {"cart": ["tea", ["milk"]], "address": {"city": "London", "lines": [{"n": 1}]}}


@pytest.mark.parametrize(
    "change",
    [
        "message.session['cart'].append('jam')",
        "message.session['cart'].extend('jam')",
        "message.session['cart'].insert(0, 'jam')",
        "message.session['cart'].remove('tea')",
        "message.session['cart'].pop()",
        "message.session['cart'].sort(key=str)",
        "message.session['cart'].reverse()",
        "message.session['cart'].clear()",
        "message.session['cart'][0] = 'jam'",
        "message.session['cart'] += ['jam']",
        "del message.session['cart'][0]",
        "message.session['cart'].__imul__(2)",
        "message.session['cart'][-1].append('jam')",
        "message.session['cart'][1:][0].append('jam')",
        "[*message.session['cart']][1].append('jam')",
        "message.session['pair'][0].append('jam')",  # in a tuple
        "message.session['address'].update(city='Paris')",
        "message.session['address']['lines'][0]['n'] = 2",
        "message.session.get('address').pop('city')",
        "[*message.session.values()][0].clear()",
        "dict(message.session.items())['address'].clear()",
    ],
)
def test_what_a_closed_session_holds_can_not_be_changed(change):
    """2.6 Changing a session after its handler returned raises `SessionClosed`, however deep."""
    update = message()
    before = {**deep_content(), "pair": ([],)}
    with_session(initial=before.copy, store=MemoryStore())(lambda message: None)(update)

    with pytest.raises(SessionClosed):
        doing(change)(update)

    assert update.session == before


def test_a_closed_session_can_be_read():
    """2.6 After the handler returned, its session can still be read from the update, as any dict
    of dicts and lists."""
    update, content = message(), deep_content()
    with_session(initial=deep_content)(lambda message: None)(update)
    closed = update.session
    cart, address = closed["cart"], closed["address"]

    assert closed == {**closed} == dict(closed) == closed | {} == content
    assert (closed.get("cart"), closed.get("x", 0), "x" in closed) == (content["cart"], 0, False)
    assert (len(closed), [*closed], [*reversed(closed)]) == (2, [*content], [*reversed(content)])
    assert [*closed.items()] == [*zip(closed.keys(), closed.values())] == [*content.items()]
    assert repr(closed) == str(closed) == repr(content)
    assert "'London'" in str(update)
    with pytest.raises(KeyError):
        closed["x"]

    assert (isinstance(cart, list), isinstance(address, dict)) == (True, True)
    assert (cart[0], cart[:1], len(cart), "tea" in cart) == ("tea", ["tea"], 2, True)
    assert [*cart] == cart == content["cart"]
    assert operator.add(cart, ["jam"]) == [*content["cart"], "jam"]
    assert json.loads(json.dumps(address, indent=1)) == address == content["address"]


@any_of(
    {
        "copy()": lambda value: value.copy(),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda value: pickle.loads(pickle.dumps(value)),
        "json": lambda value: json.loads(json.dumps(value)),
    }
)
def test_a_copy_of_a_session_is_plain(session, case):
    """2.6 Copies of a session and of its parts, open or closed, are plain and can be changed."""
    update = message()

    @session
    def handler(message):
        message.session.update(cart=["tea"], address={"city": "London"})
        return case(message.session)

    for copied in (handler(update), case(update.session)):
        assert type(copied) in (dict, Copied)
        copied["n"] = 1
        assert copied == {"cart": ["tea"], "address": {"city": "London"}, "n": 1}
    assert type(case(update.session["cart"])) is list
    assert type(case(update.session["address"])) is dict


@any_of(
    {
        "copy": lambda value: value.copy(),
        "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    }
)
def test_a_copy_of_a_set_is_plain(case):
    """2.6 Of one in a closed session."""
    update = message()
    with_session(initial=lambda: {"tags": {1}}, store=MemoryStore())(lambda message: None)(update)

    copied = case(update.session["tags"])
    copied.add(2)
    assert (type(copied), copied, update.session["tags"]) == (set, {1, 2}, {1})


@any_of(
    {
        "part of a closed session": lambda message: message.closed["address"],
        "list of a closed session": lambda message: message.closed["cart"],
        "closed session": lambda message: message.closed,
        "open session": lambda message: message.open,
    }
)
def test_what_a_session_holds_can_be_kept_in_another(store, case):
    """2.6 A session is a `dict`: it and what it holds can be saved wherever a dict can."""
    update = message()
    with_session(initial=deep_content, property="closed")(lambda message: None)(update)

    @with_session(initial=deep_content, property="open")
    @with_session(store=store)
    def handler(message):
        message.session["kept"] = case(message)

    handler(update)

    assert content(store) == {"session:42:42": {"kept": case(update)}}


def test_a_thread_that_outlives_its_handler_can_not_change_the_session(session, store):
    """2.6 A thread that outlives the handler can still read, and is told that it can't change."""
    held = session(lambda message: (count(message), message.session)[1])(message())

    read, changed = run_together(lambda: held["n"], lambda: held.update(n=2))

    assert (read, type(changed)) == (1, SessionClosed)
    assert content(store) == {"session:42:42": {"n": 1}}


def test_the_next_handler_of_an_update_opens_its_session_anew(session):
    """2.6 A closed session gives way to the one of the next handler of the update."""
    update = message()
    handler = session(count)

    assert [handler(update), handler(message()), handler(update)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("body", "times"),
    [
        pytest.param(lambda update: update.session.get("n"), (1, 0), id="a look"),
        pytest.param(lambda update: update.session.update(n=2), (2, 1), id="a change"),
    ],
)
def test_a_large_session_is_decoded_once_and_checked_once(body, times):
    """4.2 What a codec costs: loads, and dumps, of an update."""

    class Counting:
        def __init__(self):
            self.loaded = self.dumped = 0

        def loads(self, data):
            self.loaded += 1
            return JSON.loads(data)

        def dumps(self, data):
            self.dumped += 1
            return JSON.dumps(data)

    codec = Counting()
    session = with_session(store={}, codec=codec)
    with session.open(message()) as data:
        data.update(n=1, lists=[[number] for number in range(100)])
    codec.loaded = codec.dumped = 0
    session(body)(message())
    assert (codec.loaded, codec.dumped) == times
