"""A bot, a handler of it that fails, and that no lock is left in the end."""

import contextlib

import pytest
import telebot
from telebot.handler_backends import BaseMiddleware

from telesession import _locks
from tests.helpers import Failure, until


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    until(lambda: _locks.held() == 0)


@pytest.fixture
def bot():
    return telebot.TeleBot("1:test")


def raising(message):
    raise Failure


@contextlib.contextmanager
def handled(bot):
    """Expect a `Failure` that reaches whoever fed the bot, or its middlewares."""
    if not bot.use_class_middlewares:
        with pytest.raises(Failure):
            yield
        return
    seen = []

    class Middleware(BaseMiddleware):
        update_types = ("message",)
        update_sensitive = False

        def pre_process(self, message, data):
            pass

        def post_process(self, message, data, exception):
            seen.append(type(exception))

    bot.setup_middleware(Middleware())
    yield
    assert seen == [Failure]


#: What an update does to its session in `routing`, beside being handled.
EACH = ("opened", "before", "after")
