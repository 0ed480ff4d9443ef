"""Sections 3.1, 3.3 and 3.4 of the contract: what a key is, and what there is without one."""

import copy
import pickle
from contextlib import suppress

import pytest
from telebot import util

from telesession import SessionError, SessionUnavailable, keys, with_session
from tests.helpers import CHANGING, Failure, any_of, content, count, doing, keep, nobody, says
from tests.stores import GetSet, message
from tests.updates import UPDATES, make


@pytest.fixture
def without(store):
    return with_session(store=store, key=nobody)


@pytest.mark.parametrize("key", ["a:b", " ", "ключ", 1, 0, -1001, 10**30])
def test_a_key_is_a_str_or_an_int(store, key):
    """3.1, 3.4 `key(update)` gives a `str` or `int`; the store has it under `<property>:<key>`."""
    update = message()

    assert with_session(key={update: key}.get, store=store)(count)(update) == 1
    assert content(store) == {f"session:{key}": {"n": 1}}


def test_a_key_of_a_type_of_ones_own(store):
    """3.1 A `str` of a subclass is one."""

    class Room(str):
        pass

    session = with_session(store=store)
    room = with_session(property="room", key=lambda update: Room("a"), store=store)

    @room
    @session
    def handler(update):
        count(update)
        update.room["n"] = 5

    handler(message())

    assert content(store) == {"room:a": {"n": 5}, "session:42:42": {"n": 1}}


@pytest.mark.parametrize("key", ["", True, False, 1.5, b"a", (1, 2), [], object()])
def test_any_other_key_is_an_error(store, key):
    """3.1 Anything else, and `""`, is an error."""
    ran = []

    with pytest.raises(SessionError, match="the key function"):
        with_session(key=lambda update: key, store=store)(ran.append)(message())

    assert (ran, store) == ([], {})


def test_a_wrong_key_is_quoted_as_a_short_text(store):
    """7 It may be content, such as the whole message."""
    session = with_session(key=lambda update: update.json, store=store)

    with pytest.raises(SessionError, match=r"gave {'message_id': .{,20}\.\.\. for"):
        session(print)(message())
    with pytest.raises(SessionError, match=r"the key \['secret, secr.{,20}\.\.\. was given"):
        session.peek(key=["secret, " * 20])


@pytest.mark.parametrize("update_type", util.update_types)
def test_without_a_session_the_handler_runs(without, update_type):
    """3.3 With no session, the handler runs, `update.<property>` is falsy, and using it raises
    `SessionUnavailable`, which names the update type, the key function and the cure."""
    update = make(update_type, UPDATES[update_type])

    assert without(lambda update: bool(update.session))(update) is False
    assert not update.session  # afterwards too
    with says(
        SessionUnavailable, type(update).__name__, "nobody", "`isinstance(update.session, dict)`"
    ):
        without(count)(update)


@pytest.mark.parametrize(
    "use",
    [
        *CHANGING,
        "message.session['n']",
        "message.session.get('n', 0)",
        "'n' in message.session",
        "len(message.session)",
        "list(message.session)",
        "reversed(message.session)",
        "dict(message.session)",
        "{**message.session}",
        "message.session.items()",
        "message.session | {}",
        "{} | message.session",
        "message.session.anything",
        "message.session._anything",
        "message.session.anything = 1",
        "hasattr(message.session, 'n')",
    ],
)
def test_every_use_of_no_session_raises(without, use):
    """3.3 Using `update.<property>` where there is no session raises `SessionUnavailable`."""
    with pytest.raises(SessionUnavailable, match="nobody"):
        without(doing(use))(message())


@pytest.mark.parametrize("wrong", [{"n": 1}, {}, 1, "text", []])
def test_assigning_where_there_is_no_session_raises_after_the_handler(without, store, wrong):
    """3.3 What nobody saves is not lost in silence."""
    update = message()
    ran = []

    @without
    def handler(message):
        message.session = wrong
        ran.append(message)

    for _ in range(2):
        with pytest.raises(SessionUnavailable, match="nobody"):
            handler(update)

    assert (len(ran), store) == (2, {})
    with pytest.raises(SessionUnavailable):
        update.session.get("n")


def test_no_session_can_be_looked_at(without):
    """3.3 A bot may log it, and print its message."""
    shown = without(lambda message: [repr(message.session), str(message.session), str(message)])

    assert all("no session" in text for text in shown(message()))


@any_of(
    {
        "copy": lambda message: copy.copy(message.session),
        "deepcopy": copy.deepcopy,
        "pickle": lambda message: pickle.loads(pickle.dumps(message)),
    }
)
def test_an_update_without_a_session_can_be_copied(without, case):
    """3.3 The handler may do anything with the update but use the session."""
    without(case)(message())


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize(
    "left", ["message.session = None", "del message.session", "message.session = {'n': 2}"]
)
def test_the_next_handler_of_an_update_without_a_session_runs_too(without, left, fails):
    """3.3 With no session, the handler runs, whatever the one before left on the update. Clearing
    what isn't there is no use of it."""
    update = message()

    @without
    def handler(message):
        doing(left)(message)
        if fails:
            raise Failure

    with suppress(Failure, SessionUnavailable):
        handler(update)
    assert without(lambda message: bool(message.session))(update) is False


def test_a_handler_without_a_session_may_call_one_that_has_one(without, session):
    """2.5, 3.3 With no session the handler runs, also around one that has a session."""
    assert without(lambda message: session(count)(message))(message()) == 1


def test_a_handler_with_a_session_may_call_one_without(session, store):
    """3.3 It runs, using its `update.<property>` raises, and the first one's session is saved."""
    ran = []

    @with_session(property="other", key=nobody, store=store)
    def part(update):
        with pytest.raises(SessionUnavailable):
            update.other["n"] = 1
        ran.append(update)

    @session
    def handler(update):
        part(update)
        count(update)

    update = message()
    handler(update)

    assert ran == [update]
    assert content(store) == {"session:42:42": {"n": 1}}


@pytest.mark.parametrize("outermost", ["absent", "session"])
def test_a_stack_may_have_one_session_of_two(session, store, outermost):
    """3.3 With no session for one declaration of a stack, the other works; an assignment to what
    isn't there keeps it from being saved."""
    absent = with_session(property="absent", key=nobody, store=store)
    keep(store, n=1)

    def handler(message, assigns=False):
        assert not message.absent
        count(message)
        if assigns:
            message.absent = {"n": 1}

    outer, inner = (absent, session) if outermost == "absent" else (session, absent)
    handler = outer(inner(handler))
    handler(message())
    with pytest.raises(SessionUnavailable):
        handler(message(), assigns=True)

    assert content(store) == {"session:42:42": {"n": 2}}


def test_peek_finds_nothing():
    """5.7 It asks the store for nothing, either."""
    store = GetSet()
    store.get = pytest.fail

    assert with_session(store=store, key=nobody).peek(message()) is None


def test_sessions_of_different_properties_never_mix(store):
    """3.4 Even on one store in a private chat, where user id and chat id are equal."""

    @with_session(property="profile", key=keys.user, store=store)
    @with_session(property="room", key=keys.chat, store=store)
    def handler(message):
        message.profile["n"], message.room["n"] = 1, 2

    handler(message())

    assert content(store) == {"profile:42": {"n": 1}, "room:42": {"n": 2}}
