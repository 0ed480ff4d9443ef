"""A bot, a handler of it that fails, and that no lock is left in the end."""

import pytest
import telebot

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
