"""A bot that counts the messages of each user in each chat.

With BOT_TOKEN in the environment it polls Telegram. Without, it chats in the terminal: each line
is a message, ``/as 2`` makes you another user with a count of their own.
"""

import os
from typing import Any

import telebot

from telesession import terminal, with_session

bot = telebot.TeleBot(os.environ.get("BOT_TOKEN") or "1:terminal")


@bot.message_handler(func=lambda message: True)
@with_session()
def count(message: Any) -> None:
    message.session["n"] = message.session.get("n", 0) + 1
    bot.reply_to(message, f"{message.session['n']} messages")


if __name__ == "__main__":
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot)
