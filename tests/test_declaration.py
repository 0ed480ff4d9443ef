"""Section 1 of the contract: what `with_session` takes, shows and refuses."""

import base64
import doctest
import functools
import inspect
import json
import pickle
from datetime import timedelta
from unittest.mock import Mock

import pytest

from telesession import MemoryStore, declaration, keys, with_session
from telesession.memory import default_store
from tests.helpers import any_of, count, says, shown
from tests.stores import Clock, message


@pytest.fixture(autouse=True)
def empty_default_store():
    default_store.clear()
    yield
    default_store.clear()


@any_of(
    {
        "@with_session": with_session,
        "@with_session()": lambda handler: with_session()(handler),
        "kept": with_session(ttl=60),
    }
)
def test_every_form_of_declaration_works(case):
    """1.1 `@with_session`, `@with_session()` and a declaration kept and used many times work."""
    first, second = case(count), case(lambda message: count(message))

    assert [first(message()), second(message()), first(message())] == [1, 2, 3]
    assert first(message(user=43)) == 1


def test_options_are_given_by_keyword():
    """1.1 All by keyword, with the defaults that the contract lists."""
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(with_session).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }

    assert options == {
        "property": "session",
        "key": keys.user_chat,
        "ttl": None,
        "store": None,
        "initial": dict,
        "upgrade": None,
        "codec": None,
        "lock_timeout": 60.0,
        "busy": "wait",
    }


def test_declarations_without_a_store_share_one():
    """1.2 Two handlers that each say `@with_session()` see the same session, and only they."""
    with_session(store={})(count)(message())
    with_session(store=MemoryStore())(count)(message())
    assert len(default_store) == 0

    handlers = with_session(count), with_session()(count), with_session(ttl=60)(count)

    assert [handler(message()) for handler in handlers] == [1, 2, 3]


def test_a_declaration_shows_what_was_declared():
    """1.3 A declaration shows `.property`, `.key`, `.store` and `.ttl`."""
    store = {}
    declared = with_session(property="cart", key=keys.chat, store=store, ttl=5)

    assert (declared.property, declared.key, declared.ttl) == ("cart", keys.chat, 5)
    assert declared.store is store
    assert with_session().store is default_store


@pytest.mark.parametrize("name", ["property", "key", "store"])
def test_what_a_declaration_shows_is_read_only(name):
    """1.3 `.property`, `.key` and `.store` are for reading."""
    with pytest.raises(AttributeError):
        setattr(with_session(), name, None)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(1000, 1000), (0.5, 0.5), (timedelta(milliseconds=1500), 1.5), (None, None)],
)
def test_a_ttl_is_read_as_it_was_written(given, seconds):
    """1.3 `.ttl`: seconds in, the same seconds out."""
    declared, changed = with_session(ttl=given), with_session(ttl=7)
    changed.ttl = given

    assert declared.ttl == changed.ttl == seconds


def test_a_new_ttl_counts_from_the_next_save():
    """1.3 A new ttl counts from the next save, and not before."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    declared = with_session(store=store, ttl=10)
    declared(count)(message())
    declared(count)(message(user=43))

    declared.ttl = 100
    declared(count)(message())

    clock.advance(11)
    assert ("session:42:42" in store, "session:43:43" in store) == (True, False)
    clock.advance(90)
    assert "session:42:42" not in store


async def coroutine(update):
    pass


def generator(update):
    yield


async def async_generator(update):
    yield


class Async:
    async def __call__(self, update):
        pass

    async def method(self, update):
        pass


class Base64:
    def dumps(self, data):
        return base64.b64encode(pickle.dumps(data))

    def loads(self, payload):
        return pickle.loads(base64.b64decode(payload))


class AsyncCodec(Base64):
    async def dumps(self, data):
        return super().dumps(data)


NO_TIMES = [0, -1, float("inf"), float("nan"), 10**400, timedelta(0)]

# What fails, and how: (option, error, cure), with the values that fail so.
MISUSE = {
    ("propetry", TypeError, "did you mean 'property'?"): ["cart"],
    ("db", TypeError, "property, key, ttl, store, initial, upgrade, codec, lock_timeout"): [1],
    ("property", ValueError, "give a public Python identifier"): ["my cart", "", "class", "_cart"],
    ("property", TypeError, "must be a str, such as 'session'"): [5, None],
    ("ttl", ValueError, "must be a positive, finite number of seconds"): NO_TIMES,
    ("ttl", TypeError, "must be a number of seconds or a timedelta"): [True, "60"],
    ("lock_timeout", ValueError, "must be a positive, finite number of seconds"): [0],
    ("lock_timeout", TypeError, "must be a number of seconds or a timedelta"): [None],
    ("key", TypeError, "give a plain function, such as telesession.keys."): ["user", 42, None],
    ("key", TypeError, "is a coroutine function: give a plain function"): [coroutine, Async()],
    ("key", TypeError, "can't be called with an update: give"): [lambda: 1, lambda a, b: 1],
    ("initial", TypeError, "can't be called without arguments: give"): [lambda message: {}],
    ("initial", TypeError, "all sessions would share: give a function"): [{}, {"n": 0}],
    ("initial", TypeError, "can't be called: give a plain function, such as dict"): [[], None],
    ("initial", TypeError, "is a coroutine function: give a plain function"): [coroutine],
    ("upgrade", TypeError, "is a generator function: give a plain function"): [generator],
    ("store", TypeError, "item access"): [object(), "redis://localhost"],
    ("codec", TypeError, "give an object that has both, such as the module pickle"): ["json"],
    ("codec", TypeError, "plain functions of one argument"): [Base64, AsyncCodec()],
}


@pytest.mark.parametrize(
    ("option", "value", "kind", "cure"),
    [(option, value, kind, cure) for (option, kind, cure), v in MISUSE.items() for value in v],
)
def test_a_wrong_option_fails_at_decoration(option, value, kind, cure):
    """1.4 Misuse fails at decoration, with the option, the value and the cure in the message."""
    with says(kind, f"{option}={value!r}", cure):
        with_session(**{option: value})


class Strange:
    __signature__ = "none"

    def __call__(self, *args):
        return {}


@functools.wraps(lambda database, *args: {})
def injecting(*args):
    """As a decorator makes of a function that takes one argument more."""
    return {}


@pytest.mark.parametrize(
    "function",
    [injecting, Strange(), Mock(), dict, functools.partial(max, 1)],
    ids=["wrapped", "strange", "mock", "class", "partial"],
)
def test_what_may_be_called_is_taken(function):
    """1.4 What its signature doesn't tell is seen when it is called."""
    with_session(key=function, initial=function).when(function)


@pytest.mark.parametrize("wrong", [*NO_TIMES, True, "60"])
def test_a_wrong_ttl_fails_when_it_is_set(wrong):
    """1.4 Misuse of `.ttl` fails as at decoration, and leaves the ttl that was there."""
    declared = with_session(ttl=60)

    with pytest.raises((TypeError, ValueError), match="ttl="):
        declared.ttl = wrong

    assert declared.ttl == 60


@pytest.mark.parametrize("given", [(60,), ("cart",), ({},), (count, 60)])
def test_an_option_by_position_fails_at_decoration(given):
    """1.4 Misuse fails at decoration, also where it is a function that could be a handler."""
    with says(TypeError, "by keyword", "with_session(ttl=60)"):
        with_session(*given)


def test_a_key_function_of_ours_by_position():
    """1.4 What was meant is known."""
    with says(TypeError, "by keyword", "with_session(key=keys.chat)"):
        with_session(keys.chat)


def test_a_key_function_of_the_users_own_by_position():
    """1.4 It is seen when it is put above a handler: the handler is no update."""
    with says(TypeError, "count", "by keyword", "with_session(key=...)"):
        with_session(lambda update: update.text)(count)


@any_of(
    {
        "coroutine function": coroutine,
        "generator function": generator,
        "async generator function": async_generator,
        "partial": functools.partial(coroutine),
        "method": Async().method,
        "callable object": Async(),
        "static method": staticmethod(coroutine),
    }
)
def test_a_handler_that_is_no_plain_function_fails_at_decoration(case):
    """1.4 A coroutine or (async) generator function is refused as the handler."""
    with says(TypeError, "blocking", "plain functions (def, without yield)"):
        with_session()(case)


def test_no_handler_at_all_fails_at_decoration():
    """1.4 with_session goes above a function."""
    with says(TypeError, "above a handler function", "5"):
        with_session()(5)


@any_of(
    {
        "next to each other": lambda: with_session(with_session(count)),
        "with another between": lambda: with_session(
            with_session(property="a")(with_session(count))
        ),
    }
)
def test_one_property_twice_in_a_stack_fails_at_decoration(case):
    """1.4 One property twice in a stack is refused."""
    with says(ValueError, "property='session'", "twice", "count", "property of its own"):
        case()


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": timedelta(days=1), "lock_timeout": 5},
        {"property": "match"},
        {"property": "корзина"},
        {"codec": json},
        {"codec": Base64()},
        {"key": functools.partial(keys.user)},
    ],
    ids=shown,
)
def test_what_is_no_misuse_is_not_refused(options):
    """1.4 Only misuse fails: a soft keyword, a word in any script, whatever can be called."""
    with_session(**options)(lambda update: None)(message())


def test_a_property_is_the_attribute_that_python_reads():
    """1.3, 3.4 Python composes the accents of names in a program, but not those of texts."""
    store = {}
    declared = with_session(property="cafe\u0301", store=store)

    @declared
    def handler(message):
        message.café["n"] = 1

    handler(message())

    assert declared.property == "caf\u00e9"
    assert list(store) == ["caf\u00e9:42:42"]


def test_the_examples_of_the_calls():
    """Those in the docstrings run."""
    result = doctest.testmod(declaration)
    assert (result.failed, result.attempted > 8) == (0, True)
