"""Bots that nothing reaches but a `telesession.testing.Chat`, and what they do."""

import pytest
import telebot
from telebot import apihelper, types


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever goes past the hook fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a call went to the network")

    monkeypatch.setattr(apihelper, "_get_req_session", refuse)


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    """No hook at the beginning, and what was there put back at the end."""
    monkeypatch.setattr(apihelper, "CUSTOM_REQUEST_SENDER", None)


@pytest.fixture
def make_bot():
    bots = []

    def make(**options):
        bots.append(telebot.TeleBot("42:test", num_threads=1, **options))
        return bots[-1]

    yield make
    for bot in bots:
        if bot.threaded:
            # Not stop_bot(), which waits until its workers look up.
            for worker in bot.worker_pool.workers:
                worker.stop()


@pytest.fixture
def bot(make_bot):
    return make_bot(threaded=False)


def record(bot, *names, **options):
    """Keep each update that the bot gets under these handlers' names."""
    seen = []
    for name in names:
        getattr(bot, f"{name}_handler")(func=lambda update: True, **options)(seen.append)
    return seen


def echo(bot):
    @bot.message_handler(func=lambda message: True)
    def handler(message):
        bot.send_message(message.chat.id, f"{message.from_user.id}: {message.text}")


def keyboard(**buttons):
    rows = [
        [types.InlineKeyboardButton(text, callback_data=data)] for text, data in buttons.items()
    ]
    return types.InlineKeyboardMarkup(rows)


@pytest.fixture
def shop(bot):
    """A bot that answers a message by buttons, and a click by an alert and an edit."""

    @bot.message_handler(func=lambda m: True)
    def offer(message):
        bot.send_message(message.chat.id, "buy?", reply_markup=keyboard(Yes="y", No="n"))

    @bot.callback_query_handler(func=lambda query: True)
    def clicked(query):
        where = query.message.chat.id, query.message.message_id
        bot.answer_callback_query(query.id, f"{query.from_user.id} {query.data}")
        if query.data == "y":
            bot.edit_message_text("sure?", *where, reply_markup=keyboard(Sure="s"))
        elif query.data == "s":
            bot.edit_message_text("done", *where)
        else:
            bot.delete_message(*where)

    return bot
