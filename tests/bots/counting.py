"""A bot that counts the messages of each user: python counting.py PORT."""

import sys

import telebot

from telesession import with_session

telebot.apihelper.API_URL = f"http://127.0.0.1:{sys.argv[1]}/bot{{0}}/{{1}}"

bot = telebot.TeleBot("7:counting")


@bot.message_handler(func=lambda m: True)
@with_session()
def count(message):
    message.session["n"] = message.session.get("n", 0) + 1
    bot.send_message(message.chat.id, f"{message.from_user.id} {message.session['n']}")


bot.infinity_polling()
