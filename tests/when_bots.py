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


class AfterHandlers(BaseMiddleware):
    """A class middleware that calls a function with what a handler raised, or `None`."""

    update_types = ("message",)
    update_sensitive = False

    def __init__(self, after):
        self.after = after

    def pre_process(self, message, data):
        pass

    def post_process(self, message, data, exception):
        self.after(exception)


@contextlib.contextmanager
def handled(bot):
    """Expect a `Failure` that reaches whoever fed the bot, or its middlewares."""
    if not bot.use_class_middlewares:
        with pytest.raises(Failure):
            yield
        return
    seen = []
    bot.setup_middleware(AfterHandlers(seen.append))
    yield
    assert list(map(type, seen)) == [Failure]
