"""A form in pyTelegramBotAPI's own manner, with states, that remembers in a SQLite file.

One line is telesession's: ``state_storage=StateStorage(session)``. Answer a question, end the bot
(Ctrl-D), run it again: it goes on where it was. A ``state=`` filter is asked before its handler has
the session, so two quick messages may answer one question; ``wizard.py`` is safe from that.

``SESSIONS`` in the environment says which database, ``sqlite:///sessions.db`` if nothing does.
Needs ``pip install "telesession[sql]"``. Without BOT_TOKEN it chats in the terminal.
"""

import os
from typing import Any

import telebot
from telebot import custom_filters
from telebot.handler_backends import State, StatesGroup

try:
    import sqlalchemy
except ImportError:
    raise SystemExit('This example needs SQLAlchemy: pip install "telesession[sql]"') from None

from telesession import terminal, with_session
from telesession.sql import SQLStore
from telesession.states import StateStorage


class Form(StatesGroup):
    name = State()
    age = State()


engine = sqlalchemy.create_engine(os.environ.get("SESSIONS") or "sqlite:///sessions.db")
session = with_session(property="form", store=SQLStore(engine), ttl=24 * 3600)
token = os.environ.get("BOT_TOKEN") or "1:terminal"
bot: Any = telebot.TeleBot(token, state_storage=StateStorage(session))
bot.add_custom_filter(custom_filters.StateFilter(bot))
bot.add_custom_filter(custom_filters.IsDigitFilter())


@bot.message_handler(commands=["start"])
def start(message: Any) -> None:
    bot.set_state(message.from_user.id, Form.name, message.chat.id)
    bot.send_message(message.chat.id, "What is your name?")


@bot.message_handler(state=[Form.name, Form.age], commands=["cancel"])
def cancel(message: Any) -> None:
    bot.delete_state(message.from_user.id, message.chat.id)
    bot.send_message(message.chat.id, "Forgotten. /start begins again.")


@bot.message_handler(state=Form.name)
def take_name(message: Any) -> None:
    bot.add_data(message.from_user.id, message.chat.id, name=message.text)
    bot.set_state(message.from_user.id, Form.age, message.chat.id)
    bot.send_message(message.chat.id, "How old are you?")


@bot.message_handler(state=Form.age, is_digit=True)
def take_age(message: Any) -> None:
    with bot.retrieve_data(message.from_user.id, message.chat.id) as data:
        bot.send_message(message.chat.id, f"{data['name']}, {message.text}. Thank you!")
    bot.delete_state(message.from_user.id, message.chat.id)


@bot.message_handler(state=Form.age)
def no_age(message: Any) -> None:
    bot.send_message(message.chat.id, "That is no age. A number, please, such as 36.")


if __name__ == "__main__":
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot)
