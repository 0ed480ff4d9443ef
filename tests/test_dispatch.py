"""5.8 `telesession._dispatch`: where pyTelegramBotAPI's internals have changed, and forks."""

import functools
import inspect
import os

import pytest
import telebot
from telebot.handler_backends import ContinueHandling

from telesession import (
    _dispatch,
    _handler,
    _locks,
    with_session,
)
from telesession.testing import Chat
from tests import when_bots
from tests.helpers import content, count, run_together
from tests.routing import update
from tests.stores import Bot, payload

nothing_left = when_bots.nothing_left
bot = when_bots.bot


class TestWithoutTheInternals:
    """What `when` is without the two private methods of pyTelegramBotAPI that it wraps."""

    METHODS = "_run_middlewares_and_handler", "_test_message_handler"

    def test_this_version_has_them(self):
        for name in self.METHODS:
            method = getattr(telebot.TeleBot, name)
            assert inspect.isfunction(inspect.unwrap(method))
        parameters = list(inspect.signature(telebot.TeleBot._test_message_handler).parameters)
        assert len(parameters) == 3

    def test_they_are_called(self, bot, session):
        """A dispatch is noticed: the session is locked from one handler to the next."""
        held = []
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(lambda message: held.append(_locks.held()))
        Chat(bot).send("hi")
        assert held == [1]

    def test_the_first_one_is_declared_by_a_handler(self, monkeypatch, store, session):
        """So that its dispatch isn't noticed, and only the next one is."""
        for name in self.METHODS:
            method = inspect.unwrap(getattr(telebot.TeleBot, name))
            monkeypatch.setattr(telebot.TeleBot, name, method)
        monkeypatch.setattr(_handler, "watch", functools.cache(_dispatch.watch.__wrapped__))
        bot = telebot.TeleBot("1:test", threaded=False)

        @bot.message_handler()
        def declares(message):
            bot.register_message_handler(session.when(n=None)(count))
            return ContinueHandling()

        bot.process_new_updates([update()])
        assert store == {"session:42:42": '{"n":1}'}

    @pytest.fixture(params=[METHODS, METHODS[:1], METHODS[1:]], ids=["both", *METHODS])
    def bare(self, request, monkeypatch):
        """A bot of a version that has them, or one of them, under other names."""

        class Bare(telebot.TeleBot):
            pass

        bot = Bare("1:test", threaded=False)
        for name in self.METHODS:
            method = inspect.unwrap(getattr(telebot.TeleBot, name))
            monkeypatch.setattr(telebot.TeleBot, name, method)
            if name in request.param:
                monkeypatch.delattr(telebot.TeleBot, name)
                setattr(bot, name, functools.partial(method, bot))
        monkeypatch.setattr(_handler, "watch", _dispatch.watch.__wrapped__)
        return bot

    def test_each_handler_lets_go(self, bare, store, session):
        """The right one runs, and nothing is locked in between, or left."""
        held, ran = [], []
        bare.register_message_handler(session.when(n=1)(pytest.fail))

        @bare.message_handler()
        def between(message):
            held.append(_locks.held())
            return ContinueHandling()

        bare.register_message_handler(
            session.when(n=None)(lambda message: ran.append(count(message)))
        )
        bare.register_message_handler(pytest.fail)
        bare.process_new_updates([update()])
        assert (held, ran) == ([0], [1])
        assert not all(hasattr(telebot.TeleBot, name) for name in self.METHODS)
        assert store == {"session:42:42": '{"n":1}'}

    def test_each_handler_has_its_session_alone(self, bare, store, session):
        """200 of 200 increments on 8 threads."""
        bare.register_message_handler(session.when(lambda data: False)(pytest.fail))
        bare.register_message_handler(session.when(lambda data: True)(count))

        def run():
            for _ in range(25):
                bare.process_new_updates([update()])

        assert run_together(*[run] * 8) == [None] * 8
        assert store == {"session:42:42": '{"n":200}'}


def test_a_handler_of_more_sessions_saves_when_it_returns(store):
    """5.8 It takes over what a `when` left, so that no later handler has to end first."""
    one, two = (with_session(property=each, store=store) for each in ("one", "two"))
    bot, seen = Bot(1), []

    @bot.any_handler
    @one.when(step="another")
    def missed(message):
        pytest.fail("it is for another step")

    @bot.any_handler
    @one
    @two
    def more(message):
        message.one["n"] = message.two["n"] = 1
        return ContinueHandling()

    @bot.any_handler
    def last(message):
        seen.append(content(store))

    bot.run([payload()])

    assert seen == [{"one:42:42": {"n": 1}, "two:42:42": {"n": 1}}]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_inside_of_a_dispatch(session):
    """In the child the parent's dispatch is not there, so that nothing is left for its end."""
    bot, ended = telebot.TeleBot("1:test", threaded=False), []

    def forking(message):
        child = os.fork()
        if not child:
            try:
                session.when(n=1)(pytest.fail)(message)
                os._exit(_locks.held())
            finally:
                os._exit(9)
        ended.append(os.waitpid(child, 0)[1])

    bot.register_message_handler(session.when(n=1)(pytest.fail))
    bot.register_message_handler(forking)
    bot.process_new_updates([update()])

    assert ended == [0]
