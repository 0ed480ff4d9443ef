"""A bot with a form, on any database of SQLAlchemy: python survey.py PORT URL."""

import sys

import sqlalchemy
import telebot

from telesession.forms import Form, Goto, Invalid
from telesession.sql import SQLStore

port, url = sys.argv[1:]
telebot.apihelper.API_URL = f"http://127.0.0.1:{port}/bot{{0}}/{{1}}"

bot = telebot.TeleBot("7:survey")
store = SQLStore(sqlalchemy.create_engine(url))
form = Form(bot, "survey", command="start", store=store)


@form.question("Name?")
def name(text):
    return text


@form.question("Age?")
def age(text):
    if not text.isdecimal():
        raise Invalid("A number, please.")
    return int(text)


@form.question("City?", buttons=["Oslo", "Rome"])
def city(text):
    return text


@form.question("Right?", buttons=["yes", "no"])
def right(text):
    if text != "yes":
        raise Goto("name")


@form.done
def done(update, name, age, city):
    form.say(update, f"{name}, {age}, {city}")


bot.infinity_polling()
