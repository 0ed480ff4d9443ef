"""Sections 2.1 to 2.3 of the contract: what a handler finds on its update, and what it stays."""

import copy
import functools
import gc
import inspect
import pickle
import weakref
from collections import deque
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace

import pytest
import telebot
from telebot import apihelper, util
from telebot.handler_backends import BaseMiddleware, ContinueHandling

from telesession import SessionClosed, SessionError, _handler, keys, with_session
from telesession.testing import Chat
from tests.helpers import any_of, content, count, hiding, keep, nobody, wrapping
from tests.stores import message
from tests.updates import UPDATES, make


class Greeter(BaseMiddleware):
    update_types = ("message",)

    def pre_process(self, message, data):
        data["greeting"] = "hello"

    def post_process(self, message, data, exception):
        pass


@pytest.fixture
def bot(monkeypatch):
    # `Chat` sets it for the whole process.
    monkeypatch.setattr(apihelper, "CUSTOM_REQUEST_SENDER", None)
    bot = telebot.TeleBot("42:test", threaded=False, use_class_middlewares=True)
    bot.setup_middleware(Greeter())
    return bot


@pytest.mark.parametrize("update_type", util.update_types)
def test_a_session_is_on_every_update_type(bot, store, update_type):
    """2.1 On every update type that pyTelegramBotAPI hands to handlers, it is a `dict`."""
    name = {
        "inline_query": "inline_handler",
        "chosen_inline_result": "chosen_inline_handler",
    }.get(update_type, f"{update_type}_handler")
    update = UPDATES[update_type]
    seen = []

    @getattr(bot, name)(func=lambda update: True)
    @with_session(store=store, key=lambda update: "everybody")
    def handler(update):
        assert isinstance(update.session, dict)
        seen.append((type(update), count(update)))

    Chat(bot).update(**{update_type: update})
    Chat(bot).update(**{update_type: update})

    kind = type(make(update_type, update))
    assert seen == [(kind, 1), (kind, 2)]


def test_initial_gives_the_data_of_a_new_session(store):
    """2.1 `initial()` gives the data of a session that isn't stored yet, and of no other."""
    starts = iter([{"n": 100}, {"n": 200}])
    handler = with_session(store=store, initial=lambda: next(starts))(count)

    assert [handler(message()), handler(message()), handler(message(user=43))] == [101, 102, 201]
    assert content(store) == {"session:42:42": {"n": 102}, "session:43:43": {"n": 201}}


def described(message: "telebot.types.Message", *rest: int, bot: object = None) -> "str":
    """What it does."""


@any_of(
    {
        "once": lambda handler: with_session(handler),
        "twice": lambda handler: with_session(property="a")(with_session(handler)),
    }
)
def test_the_wrapper_looks_like_the_handler(case):
    """2.2 The wrapper is transparent: name, docstring, `inspect.signature`."""
    wrapper = case(described)

    assert (wrapper.__name__, wrapper.__module__) == ("described", __name__)
    assert wrapper.__doc__ == "What it does."
    assert inspect.signature(wrapper) == inspect.signature(described)


def test_a_builtin(session):
    """2.2 `inspect.signature` finds none of this one."""
    assert session(vars)(message())["session"] == {}


@pytest.mark.parametrize("value", [None, False, object()])
def test_the_return_value_is_passed_on(session, value):
    """2.2 The wrapper is transparent: return value."""
    assert session(lambda message: value)(message()) is value


def test_continue_handling_goes_on_to_the_next_handler(bot, session):
    """2.2 `ContinueHandling` reaches the bot; the message's next handler has its session."""
    seen = []

    @bot.message_handler(func=lambda m: True)
    @session
    def first(message):
        seen.append(count(message))
        return ContinueHandling()

    @bot.message_handler(func=lambda m: True)
    @session
    def second(message):
        seen.append(count(message))

    Chat(bot).send("hi")
    Chat(bot).send("hi")

    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_is_passed_on_as_it_is(session, kind):
    """2.2 The wrapper is transparent: exceptions. The session is closed all the same."""
    error = kind("mine")
    update = message()

    @session
    def handler(message):
        raise error

    with pytest.raises(kind) as caught:
        handler(update)

    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    with pytest.raises(SessionClosed):
        update.session["n"] = 1


def test_extra_arguments_of_the_bot_are_passed(bot, session):
    """2.2 Extra arguments: `pass_bot`, `data`, for which pyTelegramBotAPI reads the signature."""
    seen = []

    @bot.message_handler(func=lambda m: m.text == "all", pass_bot=True)
    @session
    def takes_all(message, data, bot):
        seen.append((count(message), data["greeting"], bot))

    @bot.message_handler(func=lambda m: m.text == "one")
    @session
    def takes_one(message, greeting):
        seen.append((count(message), greeting))

    Chat(bot).send("all")
    Chat(bot).send("one")

    assert seen == [(1, "hello", bot), (2, "hello")]


@any_of({"shown": count, "hidden": hiding(count)})
def test_a_call_without_an_update_is_a_type_error(session, case):
    """2.2 The wrapper is transparent: a call that can't work fails as it would without it."""
    with pytest.raises(TypeError, match="without its update"):
        session(case)()


class Database:
    """An object of the bot's own."""


@any_of(
    {
        type(value).__name__: (value, f"but with a {type(value).__name__}")
        for value in [
            Decimal(5),
            datetime(2026, 1, 1),
            deque([message()]),
            iter([message()]),
            ValueError("5"),
            Database(),
            object(),
        ]
    }
    | {"Update": (telebot.types.Update.de_json({"update_id": 1}), "such as update.message")}
)
def test_what_is_no_update_is_a_type_error(session, store, case):
    """2.2 Whatever its type, and also behind a number; nothing is left on it."""
    value, words = case

    with pytest.raises(TypeError, match=words):
        session(count)(value)
    with pytest.raises(TypeError, match=f"with 5, .*{type(value).__name__}"):
        session(lambda chat_id, other: None)(5, value)
    with pytest.raises(TypeError, match=r"peek\(message\)"):
        session.peek(value)

    assert (hasattr(value, "session"), store) == (False, {})


class Counter:
    def count(self, update):
        return count(update)

    __call__ = count


def handlers_of(session):
    """Every kind of callable, as the handler of a session."""

    class Handlers:
        method = session(Counter.count)

        @staticmethod
        @session
        def under_static(message):
            return count(message)

        @session
        @staticmethod
        def over_static(message):
            return count(message)

        @classmethod
        @session
        def under_class(cls, message):
            return count(message)

        @session
        @classmethod
        def over_class(cls, message):
            return count(message)

        @session
        def __call__(self, message):
            return count(message)

    return {
        "function": session(count),
        "method": Handlers().method,
        "bound method": session(Counter().count),
        "under @staticmethod": Handlers().under_static,
        "over @staticmethod": Handlers.over_static,
        "under @classmethod": Handlers.under_class,
        "over @classmethod": Handlers().over_class,
        "partial": session(functools.partial(Counter.count, Counter())),
        "callable object": session(Counter()),
        "decorated __call__": Handlers(),
        "stack": with_session(property="other", store={})(session(count)),
    }


@pytest.mark.parametrize("kind", handlers_of(with_session()))
def test_every_kind_of_callable_can_be_a_handler(bot, session, store, kind):
    """2.2 The wrapper is transparent: methods, static methods, whatever Python or a bot calls."""
    handler = handlers_of(session)[kind]
    bot.register_message_handler(handler, func=lambda m: True)

    assert [handler(message()), handler(message(user=43))] == [1, 1]
    Chat(bot, user=42).send("hi")

    assert content(store) == {"session:42:42": {"n": 2}, "session:43:43": {"n": 1}}


def stand_in():
    return SimpleNamespace(from_user=SimpleNamespace(id=42), chat=SimpleNamespace(id=42))


@any_of({"none": lambda handler: handler, "wrapping": wrapping, "hiding": hiding})
def test_the_update_is_found_however_it_is_given(session, case):
    """2.2 The wrapper is transparent: methods and keyword calls, whatever was wrapped before."""
    function, method = session(case(count)), session(case(Counter.count))

    assert function(message()) == 1
    assert function(update=message()) == 2
    assert method.__get__(Counter())(message()) == 3
    assert method.__get__(Counter())(update=message()) == 4


def test_of_two_updates_the_first_parameter_is_meant(session):
    """2.2 In whatever order the call names them."""

    @session
    def answer(update, question):
        return count(update)

    assert answer(question=message(user=43), update=message()) == 1
    assert answer(update=message(), question=message(user=43)) == 2
    assert answer(message(), question=message(user=43)) == 3


@pytest.mark.parametrize("make", [message, stand_in])
def test_a_decorator_may_take_other_arguments_than_what_it_wraps(session, make, monkeypatch):
    """2.2 Although it says, by functools.wraps, that they are the same."""
    monkeypatch.setattr(_handler, "_updates", set())  # as before the first update of a process

    def injecting(handler):
        return functools.wraps(handler)(lambda update: handler(update, database="db"))

    def dropping(handler):
        return functools.wraps(handler)(lambda bot, update: handler(update))

    @session
    @injecting
    def injected(update, database):
        return count(update), database

    assert injected(make()) == (1, "db")
    assert session(dropping(count))(5, make()) == 2


@with_session(property="other", store={})
@with_session(store={})
def answer(message, *args, **kwargs):
    answer.seen.append((count(message), args, kwargs))


def test_next_steps_keep_their_sessions_and_arguments(bot, tmp_path):
    """2.2 Extra arguments: next-step args. The wrapper is pickled by name, as
    `enable_save_next_step_handlers` does it."""
    assert copy.deepcopy(answer) is pickle.loads(pickle.dumps(answer)) is answer
    file = str(tmp_path / "step.save")
    restarted = telebot.TeleBot("42:test", threaded=False)
    for each in (bot, restarted):
        each.enable_save_next_step_handlers(delay=0, filename=file)
    answer.seen = []

    @bot.message_handler(func=lambda m: True)
    def ask(message):
        bot.register_next_step_handler(message, answer, 1, unit="kg")

    Chat(bot).send("ask")
    restarted.load_next_step_handlers(filename=file)
    Chat(restarted).send("5")
    Chat(bot).send("5")

    assert answer.seen == [(1, (1,), {"unit": "kg"}), (2, (1,), {"unit": "kg"})]


@pytest.mark.parametrize("name", ["text", "caption", "chat", "json", "de_json"])
@pytest.mark.parametrize("key", [keys.user_chat, nobody])
def test_an_attribute_of_the_update_is_never_overwritten(store, name, key):
    """2.3 An attribute that the update already has is refused, never overwritten."""
    update = message()
    before = getattr(update, name)
    ran = []

    with pytest.raises(SessionError, match=name):
        with_session(property=name, store=store, key=key)(ran.append)(update)

    assert getattr(update, name) == before
    assert (ran, store) == ([], {})


def test_an_attribute_from_a_middleware_is_never_overwritten(session, store):
    """2.3 Whoever put it there, and though it is a dict."""
    update = message()
    update.session = {"mine": True}

    with pytest.raises(SessionError, match="'session'"):
        session(count)(update)

    assert (update.session, store) == ({"mine": True}, {})


def test_a_stack_with_a_refused_property_saves_nothing(session, store):
    """2.3 In a stack the handler does not run, and the other session stays as it is."""
    keep(store, n=1)
    ran = []
    update = message()

    with pytest.raises(SessionError, match="'text'"):
        session(with_session(property="text", store=store)(ran.append))(update)

    assert (update.text, ran, content(store)) == ("hello", [], {"session:42:42": {"n": 1}})
    with pytest.raises(SessionClosed):
        update.session["n"] = 2
    assert session(count)(message()) == 2


def test_an_update_is_gone_when_nobody_has_it(session):
    """It doesn't wait for the garbage collector, though session and update know each other."""
    always, never = session(count), session.when(n=0)(count)
    update = message()
    gone = weakref.ref(update)
    gc.disable()
    try:
        always(update)
        never(update)
        del update
        assert gone() is None
    finally:
        gc.enable()
