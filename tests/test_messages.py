"""7.1 Kind to beginners: a message says what was wrong and what to do, and shows no session.

Those of wrong options are in `test_declaration`.
"""

import errno
import functools
import inspect
import json
import os
import pickle
import sys
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
import sqlalchemy
import telebot

from telesession import (
    MemoryStore,
    SessionClosed,
    SessionDataError,
    SessionError,
    SessionStoreError,
    SessionUnavailable,
    errors,
    keys,
    with_session,
)
from telesession.sql import SQLStore
from tests.helpers import SECRET, any_of, count, doing, says
from tests.stores import NAME, message, visit
from tests.updates import UPDATES, VARIANTS, make


def handle(body="pass", update=None, **options):
    """Handle an update with ``body``, under ``with_session(**options)``; give the update."""
    update = update or message()
    with_session(**options)(doing(body))(update)
    return update


def by_chat_name(update):
    return update.chat.title.lower()


def by_nobody(update):
    return ""


def two_sessions_under_one_property():
    by_chat = with_session(key=keys.chat, store={})
    with_session(store={})(lambda update: by_chat(doing("pass"))(update))(message())


def change_a_closed_session():
    update = handle(f"message.cart.update(password='{SECRET}')", property="cart", store={})
    doing(f"message.cart['password'] = '{SECRET}'")(update)


INLINE = VARIANTS["inline query without a chat type"]

# What goes wrong, the error, and what its message says.
MESSAGES = {
    "an attribute of the update": (
        lambda: handle(property="options", update=make("poll", UPDATES["poll"])),
        SessionError,
        ["property='options'", "Poll", "already", "another property"],
    ),
    "another session's property": (
        two_sessions_under_one_property,
        SessionError,
        ["'session'", "Message", "'session:42:42'", "still open", "its own property"],
    ),
    "set to no dict": (
        lambda: handle(f"message.session = ['{SECRET}']", store={}),
        SessionDataError,
        ["'session'", "'session:42:42'", "list", "Set it to a dict, or to None"],
    ),
    "closed": (
        change_a_closed_session,
        SessionClosed,
        ["'cart:42:42'", "after its handler returned", "thread", "with declaration.open(update)"],
    ),
    "a key that is none": (
        lambda: handle(property="cart", key=by_nobody),
        SessionError,
        ["by_nobody", "'cart'", "gave ''", "Message", "str", "int", "None"],
    ),
    "a key function that fails": (
        lambda: handle(property="cart", key=by_chat_name),
        SessionError,
        ["by_chat_name", "'cart'", "Message", "AttributeError", "return None"],
    ),
    "no session": (
        lambda: handle("message.session['n']", update=make(*INLINE)),
        SessionUnavailable,
        [
            "'session'",
            "InlineQuery",
            "user_chat",
            "isinstance(update.session, dict)",
            "telesession.keys.user",
        ],
    ),
    "no session, assigned": (
        lambda: handle(f"message.session = '{SECRET}'", update=make(*INLINE)),
        SessionUnavailable,
        [
            "'session'",
            "InlineQuery",
            "user_chat",
            "isinstance(update.session, dict)",
            "telesession.keys.user",
        ],
    ),
    "initial": (
        lambda: handle(initial=list, store={}),
        SessionDataError,
        ["initial=list", "a list", "'session:42:42'", "new dict"],
    ),
    "a session that contains itself": (
        lambda: handle("message.session['me'] = message.session", store={}),
        SessionDataError,
        ["session['me']", "'session:42:42'", "contains itself", "codec=JSON", "flatter"],
    ),
}


@any_of(MESSAGES)
def test_what_goes_wrong_in_a_handler(case):
    """The message names the property, the key or the session, the reason and the cure."""
    misuse, kind, words = case

    with says(kind, *words):
        misuse()


@pytest.mark.parametrize(
    ("make_store", "value", "place", "what", "cure"),
    [
        (dict, (SECRET,), "", "tuple", "JSON keeps"),
        (dict, float("nan"), "", "float", "JSON keeps"),
        (dict, {1: SECRET}, "[1]", "key of type int", "JSON keeps"),
        (dict, [{}, {"deep": {SECRET}}], "[1]['deep']", "set", "JSON keeps"),
        (MemoryStore, threading.Lock(), "", "lock", "codec=pickle"),
        (MemoryStore, [{}, {"deep": lambda: SECRET}], "[1]['deep']", "function", "pickle keeps"),
    ],
)
def test_a_value_that_can_not_be_kept(make_store, value, place, what, cure):
    """4.3 The message names the path, the type and the session, and the cure fits the codec."""
    session = with_session(store=make_store())

    words = [
        f"session['a b']{place} ",
        what,
        "'session:42:42'",
        "convert",
        "Nothing was saved",
        cure,
    ]
    with says(SessionDataError, *words) as caught:
        session(lambda message: message.session.update({"a b": value}))(message())

    assert ("JSON" in str(caught.value)) == (make_store is dict)


def nest(message):
    for _ in range(1_000 if sys.version_info < (3, 12) else 100_000):  # what C code can recurse
        message.session["deep"] = [message.session.get("deep")]


@pytest.mark.parametrize("codec", [None, pickle])
def test_what_is_nested_too_deeply(codec):
    """4.3 The message says so, and not that lists can't be kept."""
    with says(SessionDataError, "session['deep'] ", "nested too deeply", "flatter") as caught:
        with_session(store={}, codec=codec)(nest)(message())

    assert "type list" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("codec", [None, pickle])
def test_a_state_of_the_bot_itself(codec):
    """4.3 A state would come back unequal: the message says what to store instead."""
    words = ["session['state'] ", "State", "pyTelegramBotAPI", "Form.name.name", "Nothing was"]
    with says(SessionDataError, *words):
        handle(
            "message.session['state'] = __import__('telebot').handler_backends.State()",
            store={},
            codec=codec,
        )


def test_a_long_key():
    """7.1 Keys are content, too: a message shows no more than their beginning."""
    with says(SessionDataError, "session['a note: aaaa", "...]") as caught:
        handle(f"message.session['a note: ' + 'a' * 40 + '{SECRET}'] = {{1}}", store={})

    assert "a" * 20 not in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "codec", "named"),
    [
        (f'{{"password": "{SECRET}"', None, "codec=JSON"),
        (f'["{SECRET}"]', None, "codec=JSON"),
        (f'{{"password": "{SECRET}"}}', pickle, "codec=pickle"),
        (f"@never@{SECRET}", None, "store"),
        (b"\xff" + SECRET.encode(), None, "'session:42:42'"),
        ([SECRET], None, "'session:42:42'"),
    ],
)
def test_stored_data_that_can_not_be_read(stored, codec, named):
    """4.5 The message names the session and what failed, says that it was left, and what to do."""
    store = {"session:42:42": stored}

    with says(SessionDataError, "'session:42:42'", named, "left as it is", "store"):
        handle("message.session['ran'] = True", store=store, codec=codec)

    assert store == {"session:42:42": stored}


class FailingStore(dict):
    """Shows what it keeps, as dicts do, and fails to do what it is told to fail to."""

    fails_to = ""

    def answer(self, operation):
        if operation == self.fails_to:
            raise ConnectionError(f"no answer; {dict(self)}")

    def get(self, key):
        self.answer("get")
        return super().get(key)

    def set(self, key, value):
        self.answer("set")
        return self.fails_to != "accept"

    def delete(self, key):
        self.answer("delete")


def failing(operation):
    store = FailingStore({"session:42:42": json.dumps({"password": SECRET})})
    store.fails_to = operation
    return store


@pytest.mark.parametrize(
    ("operation", "body", "words"),
    [
        ("get", "pass", ["load", "ConnectionError", "The handler did not run"]),
        ("set", "message.session['n'] = 1", ["save", "ConnectionError", "is not known"]),
        ("delete", "del message.session", ["save", "ConnectionError", "is not known"]),
        ("accept", "message.session['n'] = 1", ["not saved", "False", "log"]),
    ],
)
def test_a_failing_store(operation, body, words):
    """6.3 The message names the user's own store, of which there may be several, the session and
    the client's error, and says what it means."""
    with says(SessionStoreError, "FailingStore", "'session:42:42'", *words):
        handle(body, store=failing(operation))


def test_a_stack_on_a_failing_store():
    """6.3 The message names all sessions that could not be loaded."""
    store = failing("get")
    cart = with_session(property="cart", key=keys.chat, store=store)

    with says(SessionStoreError, "'cart:42'", "'session:42:42'"):
        cart(with_session(store=store)(doing("pass")))(message())


def test_a_store_that_fails_after_the_handler_did(caplog):
    """6.3 The handler's own error matters more, so this is logged: the log names the session, and
    doesn't show its content."""
    with pytest.raises(ZeroDivisionError):
        handle("1 / 0", store=failing("set"), ttl=60)

    [record] = caplog.records
    assert "'session:42:42'" in record.getMessage()
    assert SECRET not in caplog.text


def test_the_errors_say_what_they_are_for():
    """7.1 Every error has a docstring, for those who look it up."""
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass)]

    assert len(classes) == 7
    assert all(each.__doc__ and issubclass(each, SessionError) for each in classes)


class Gone(dict):
    """A store whose client can't reach its server."""

    def get(self, key):
        try:
            raise ConnectionRefusedError(errno.ECONNREFUSED, SECRET)
        except OSError:
            raise LookupError(SECRET)  # noqa: B904


def test_a_server_that_is_not_there():
    """6.3 The message says what the system says, in the system's own words."""
    refused = os.strerror(errno.ECONNREFUSED)

    with says(SessionStoreError, NAME, "did not run", f"with LookupError ({refused})."):
        visit(print, store=Gone())


def test_errors_that_go_round_in_a_circle():
    one, other = LookupError(SECRET), LookupError(SECRET)
    one.__cause__, other.__cause__ = other, one

    def fail(key):
        raise one

    circle = type("Circle", (dict,), {"get": lambda self, key: fail(key)})
    with says(SessionStoreError, NAME, "with LookupError."):
        visit(print, store=circle())


DECLARED = with_session(property="cart", store={})


class Handlers:
    """Methods as they are written, with mistakes and without."""

    @DECLARED
    def by_another_name(this, message):  # noqa: N805
        this.last = message.cart
        return message.cart

    @DECLARED
    def right(self, message):
        pass

    @DECLARED
    def without_self(message):  # noqa: N805
        pass


def enter(block):
    with block:
        pass


# What a beginner writes, the error, and what its message says.
MISTAKES = {
    "declaration[key]": (lambda: DECLARED["n"], TypeError, ["message.cart['n'] = 1"]),
    "declaration[key] = ...": (
        lambda: DECLARED.__setitem__("n", 1),
        TypeError,
        ["declaration", "message.cart['n'] = 1", "with session.open(message) as data:"],
    ),
    "declaration.get": (lambda: DECLARED.get("n", 0), AttributeError, ["message.cart['n'] = 1"]),
    "declaration(declaration)": (
        lambda: with_session(DECLARED),
        TypeError,
        ["not above the one of 'cart'", "write both above the handler"],
    ),
    "declaration.n = ...": (
        lambda: setattr(DECLARED, "n", 1),
        AttributeError,
        ["'n' can't be set", "message.cart['n'] = 1"],
    ),
    "declaration.lock_timeout = ...": (
        lambda: setattr(DECLARED, "lock_timeout", 5),
        AttributeError,
        ["'lock_timeout' can't be set", "options are given to with_session"],
    ),
    "key in declaration": (lambda: "n" in DECLARED, TypeError, ["message.cart['n'] = 1"]),
    "with declaration": (
        lambda: enter(DECLARED),
        TypeError,
        ["with session.open(message) as data:"],
    ),
    "with declaration(message)": (
        lambda: enter(DECLARED(message())),
        TypeError,
        ["with session.open(message) as data:"],
    ),
    "@declaration()": (lambda: DECLARED(), TypeError, ["@session", "without parentheses"]),
    "session.n = 1": (
        lambda: handle("message.cart.n = 1", property="cart", store={}),
        AttributeError,
        ["write cart['n']"],
    ),
    "session.n": (
        lambda: handle("message.cart.n", property="cart", store={}),
        AttributeError,
        ["write cart['n']"],
    ),
    "a mock": (
        lambda: DECLARED(count)(MagicMock()),
        TypeError,
        ["MagicMock", "attribute of every name", "Mock(spec=telebot.types.Message", "Chat(bot)"],
    ),
    "JSON": (lambda: DECLARED(count)({"text": SECRET}), TypeError, ["a dict", "de_json"]),
    "a list": (
        lambda: DECLARED(count)([message()]),
        TypeError,
        ["but with a list of Message.", "takes one update at a time"],
    ),
    "nothing": (lambda: DECLARED(count)(), TypeError, ["called without its update."]),
    "None": (lambda: DECLARED(count)(None), TypeError, ["but with None", "menu(call)"]),
    "no self": (
        lambda: Handlers().without_self(message()),
        TypeError,
        ["Handlers.without_self", "its first parameter is self"],
    ),
    "no self, and a stand-in": (
        lambda: Handlers().without_self(SimpleNamespace(chat=SimpleNamespace(id=1))),
        TypeError,
        ["Handlers.without_self", "its first parameter is self"],
    ),
    "no object": (
        lambda: Handlers.right(message()),
        TypeError,
        ["Handlers.right", "bot.register_message_handler(thing.right)"],
    ),
    "len(declaration)": (lambda: len(DECLARED), TypeError, ["message.cart['n'] = 1"]),
    "open(keys=...), one text": (
        lambda: enter(DECLARED.open(keys="1:99")),
        TypeError,
        ["open(keys=['1:99', '2:99'])"],
    ),
    "open(keys=...), a generator": (
        lambda: enter(DECLARED.open(keys=(f"{user}:99" for user in (1, 2)))),
        TypeError,
        ["a list of keys, not a generator", "open(keys=[*keys])"],
    ),
    "open(keys=...), a set": (
        lambda: enter(DECLARED.open(keys={"1:99", "2:99"})),
        TypeError,
        ["a list of keys, not a set", "open(keys=[*keys])"],
    ),
    "open(keys=...), updates": (
        lambda: enter(DECLARED.open(keys=["1:99", message()])),
        TypeError,
        ["no Message for a key", "open(keys=[session.key(message), session.key(reply)])"],
    ),
    "open of two updates": (
        lambda: enter(DECLARED.open(message(), message())),
        TypeError,
        ["one update", "open(keys=[session.key(message), session.key(reply)])"],
    ),
    "open(key=...), an update": (
        lambda: enter(DECLARED.open(key=message())),
        TypeError,
        ["no Message for a key", "write open(message)"],
    ),
    "peek(key=...), an update": (
        lambda: DECLARED.peek(key=make("callback_query", UPDATES["callback_query"])),
        TypeError,
        ["no CallbackQuery for a key", "write peek(message)"],
    ),
    "open(message.from_user)": (
        lambda: enter(DECLARED.open(message().from_user)),
        TypeError,
        ["open(message)", "open(key='42:99')", "A User is no update"],
    ),
    "open(message.from_user), keyed by the user": (
        lambda: enter(with_session(key=keys.user).open(message().from_user)),
        TypeError,
        ["open(message)", "open(key=message.from_user.id)", "A User is no update"],
    ),
    "remove(message.chat), keyed by the chat": (
        lambda: with_session(key=keys.chat).remove(message().chat),
        TypeError,
        ["remove(message)", "remove(key=message.chat.id)", "A Chat is no update"],
    ),
}


@any_of(MISTAKES)
def test_what_beginners_write(case):
    """1.4, 2.2 The message says what was meant, and what to write."""
    mistake, kind, words = case

    with says(kind, *words):
        mistake()


def test_a_method_whose_self_has_another_name():
    """2.2 The update is found wherever it is, and nothing is left on the object."""
    handlers = Handlers()

    assert handlers.by_another_name(message()) == {}
    assert vars(handlers) == {"last": {}}


@any_of(
    {
        "spec": lambda: Mock(spec=telebot.types.Message, from_user=Mock(id=1), chat=Mock(id=1)),
        "namespace": lambda: SimpleNamespace(
            from_user=SimpleNamespace(id=1), chat=SimpleNamespace(id=1)
        ),
    }
)
def test_a_stand_in_that_works(case):
    """2.2 What the message about mocks tells to write: both are the same user's."""
    handler = with_session(store={})(count)

    assert [handler(case()), handler(case())] == [1, 2]


@pytest.mark.parametrize(("key", "name"), [(keys.user, "from_user"), (keys.chat, "chat")])
def test_a_stand_in_behind_one_of_a_bot(key, name):
    """2.2 The update is the one with a user or a chat."""
    update = SimpleNamespace(**{name: SimpleNamespace(id=1)})
    handler = with_session(store={}, key=key)(lambda bot, update: count(update))

    assert [handler(SimpleNamespace(), update), handler(SimpleNamespace(), update)] == [1, 2]


@dataclass
class Signing:
    """A codec that shows its key when it is printed."""

    key: str

    def dumps(self, data):
        raise ValueError

    loads = dumps


def wrong_key(secret, update):
    return 1.5


@any_of(
    {
        "a codec that refuses": ({"codec": Signing(SECRET)}, {}, "codec=Signing "),
        "a codec that can't read": (
            {"codec": Signing(SECRET)},
            {"session:42:42": "{}"},
            "codec=Signing[.]",
        ),
        "a key function": (
            {"key": functools.partial(wrong_key, SECRET)},
            {},
            "function wrong_key ",
        ),
    }
)
def test_what_options_hold_is_not_shown(case):
    """7 Their names are, or those of their classes."""
    options, stored, words = case

    with pytest.raises(SessionError, match=words) as caught:
        with_session(store=stored, **options)(count)(message())
    assert SECRET not in str(caught.value)


def test_what_a_declaration_does_not_have():
    """1.3 Words about sessions are for what dicts have; all else fails as it always does."""
    with says(AttributeError, "'Declaration' object has no attribute 'message_handler'"):
        _ = DECLARED.message_handler
    assert not hasattr(DECLARED, "__next__")
    assert DECLARED


def test_bare_when():
    """1.4 Without its parentheses it is told at decoration."""
    with says(TypeError, "parentheses", "@session.when(step='name')"):

        @DECLARED.when
        def handler(message):
            pass

    with says(TypeError, "parentheses"):

        @DECLARED.when  # a comment
        @with_session(store={})
        def stacked(message):
            pass


def test_a_condition_that_is_a_function_of_its_own():
    """1.4 Only what stands there is told from its source, which may be missing."""

    def is_ready(session):
        return True

    for condition in (is_ready, lambda session: True, eval("lambda s: s"), len):
        DECLARED.when(condition)


@pytest.mark.parametrize("call", ["open", "peek", "remove"])
@pytest.mark.parametrize("key", [keys.user_chat, keys.user_topic, keys.user_chat_inline])
def test_a_users_id_where_keys_are_pairs(caplog, call, key):
    """5.6 A bot may have reasons of its own: it works, and the log says so once."""
    session = with_session(property="cart", key=key, store={})

    for given in (5, "5"):
        enter(session.open(key=given)) if call == "open" else getattr(session, call)(key=given)

    [record] = caplog.records
    for word in ("'cart'", "the key 5,", key.__name__, "'42:-100'", "no handler would find"):
        assert word in record.getMessage()


@pytest.mark.parametrize(
    ("key", "given"),
    [(keys.user_chat, "42:42"), (keys.user, 42), (keys.chat, "42@connection"), (len, 42)],
)
def test_keys_that_may_be_right(caplog, key, given):
    """5.6 Nothing is said of those, nor of what a function of the user's own may give."""
    with with_session(key=key, store={}).open(key=given):
        pass

    assert caplog.text == ""


def test_a_path_that_is_not_there(tmp_path):
    """6.3 SQLite's own words name no file."""
    path = tmp_path / "nowhere" / "sessions.db"
    session = with_session(store=SQLStore(sqlalchemy.create_engine(f"sqlite:///{path}")))
    words = ["can't open", f"'{path}'", "directory", "sqlite:////"]

    with says(SessionStoreError, *words) as caught:
        session(count)(message())
    assert (caught.value.property, caught.value.key) == ("session", "42:42")
    with says(SessionStoreError, *words):
        session.peek(message())
    with says(SessionStoreError, *words) as caught:
        list(session.keys())
    assert caught.value.property == "session"

    path.parent.mkdir()
    assert session(count)(message()) == 1
