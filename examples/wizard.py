"""A form with buttons, in a SQLite file: a name, an age, a city, and whether all that is right.

/back goes one question back, /cancel forgets the form, /start begins it anew, and /help says so, at
any question. End it (Ctrl-D) in the middle, and run it again: the question is still open.

``SESSIONS`` in the environment says which database, ``sqlite:///sessions.db`` if nothing does.
Needs ``pip install "telesession[sql]"``. Without BOT_TOKEN it chats in the terminal.
"""

import os
from typing import Any

import telebot

try:
    import sqlalchemy
except ImportError:
    raise SystemExit('This example needs SQLAlchemy: pip install "telesession[sql]"') from None

from telesession import terminal
from telesession.forms import Form, Goto, Invalid
from telesession.sql import SQLStore

bot = telebot.TeleBot(os.environ.get("BOT_TOKEN") or "1:terminal")
engine = sqlalchemy.create_engine(os.environ.get("SESSIONS") or "sqlite:///sessions.db")
form = Form(bot, "register", command="start", store=SQLStore(engine))


@form.question("What is your name?")
def name(text: str) -> str:
    return text


@form.question("How old are you?")
def age(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 130:
        raise Invalid("That is no age. A number, please, such as 36.")
    return int(text)


@form.question("Where do you live?", buttons=["London", "Paris"], content_types=["text"])
def city(text: str) -> str:
    return text


@form.question("{name}, {age}, from {city}. Is that right?", buttons=["yes", "no"])
def confirm(text: str) -> None:
    if text == "no":
        raise Goto("name")


@form.done
def done(update: Any, name: str, age: int, city: str) -> None:
    form.say(update, f"Thank you, {name}!")  # a real bot would put it into its database


@bot.message_handler(func=lambda message: True)
def no_form(message: Any) -> None:
    bot.send_message(message.chat.id, "/start begins the form.")


if __name__ == "__main__":
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot)
