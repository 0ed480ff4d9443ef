"""A bot that keeps its states in sessions, and a group of states."""

import pytest
import telebot
from telebot import custom_filters
from telebot.handler_backends import State, StatesGroup

from telesession.states import StateStorage


class Form(StatesGroup):
    name = State()
    age = State()


def bot_with(storage, token="1:test", **options):
    bot = telebot.TeleBot(token, state_storage=storage, threaded=False, **options)
    bot.add_custom_filter(custom_filters.StateFilter(bot))
    bot.add_custom_filter(custom_filters.IsDigitFilter())
    return bot


@pytest.fixture
def storage(session):
    return StateStorage(session)


@pytest.fixture
def bot(storage):
    return bot_with(storage)
