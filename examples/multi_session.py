"""A bot with two sessions: one for each user in a chat, stacked with one for the chat.

In a group, each user has a count of their own, and all of them share the chat's. In the terminal
you are in a group; ``/as 2`` makes you another of its users, ``/chat -2`` goes to another group.
"""

import os
from typing import Any

import telebot

from telesession import keys, terminal, with_session

bot = telebot.TeleBot(os.environ.get("BOT_TOKEN") or "1:terminal")


@bot.message_handler(func=lambda message: True)
@with_session(property="session", key=keys.user_chat)
@with_session(property="chat_session", key=keys.chat)
def count(message: Any) -> None:
    message.session["n"] = message.session.get("n", 0) + 1
    message.chat_session["n"] = message.chat_session.get("n", 0) + 1
    bot.reply_to(
        message,
        f"{message.session['n']} messages of yours, {message.chat_session['n']} of all here",
    )


if __name__ == "__main__":
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot, chat=-1)
