"""A bot that ends as the README says: python ending.py PORT DATABASE. Messages take a moment."""

import signal
import sys
import time

import sqlalchemy
import telebot

from telesession import with_session
from telesession.sql import SQLStore

telebot.apihelper.API_URL = f"http://127.0.0.1:{sys.argv[1]}/bot{{0}}/{{1}}"

bot = telebot.TeleBot("7:ending")


@bot.message_handler(func=lambda m: True)
@with_session(store=SQLStore(sqlalchemy.create_engine(sys.argv[2])))
def count(message):
    message.session["n"] = message.session.get("n", 0) + 1
    time.sleep(0.1)
    bot.send_message(message.chat.id, f"{message.message_id}")


signal.signal(signal.SIGTERM, lambda *_: bot.stop_polling())
bot.infinity_polling(long_polling_timeout=5)
while not bot.worker_pool.tasks.empty():
    time.sleep(0.1)
bot.stop_bot()
bot.get_updates(bot.last_update_id + 1, limit=1, long_polling_timeout=1)
