"""A bot that remembers, in a SQLite file, what it counted before it was ended.

Run it, send messages, end it (Ctrl-D), run it again: it counts on. ``SESSIONS`` in the environment
says which database, ``sqlite:///sessions.db`` if nothing does; any that SQLAlchemy knows will do.
Needs ``pip install "telesession[sql]"``. Without BOT_TOKEN it chats in the terminal.
"""

import os
from typing import Any

import telebot

try:
    import sqlalchemy
except ImportError:
    raise SystemExit('This example needs SQLAlchemy: pip install "telesession[sql]"') from None

from telesession import terminal, with_session
from telesession.sql import SQLStore

bot = telebot.TeleBot(os.environ.get("BOT_TOKEN") or "1:terminal")
engine = sqlalchemy.create_engine(os.environ.get("SESSIONS") or "sqlite:///sessions.db")


@bot.message_handler(func=lambda message: True)
@with_session(store=SQLStore(engine))
def count(message: Any) -> None:
    message.session["n"] = message.session.get("n", 0) + 1
    bot.reply_to(message, f"{message.session['n']} messages")


if __name__ == "__main__":
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot)
