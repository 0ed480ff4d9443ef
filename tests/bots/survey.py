"""A bot with a form, on a SQLite database: python survey.py PORT URL."""

import sys

import sqlalchemy
import telebot

from telesession.forms import Form, Goto, Invalid
from telesession.sql import SQLStore

QUESTIONS = ["Name?", "Age?", "City?", "Right?"]


def survey(bot, **options):
    """A form with a free text, a checked one, a choice, and a confirmation."""
    form = Form(bot, "survey", command="start", **options)

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
        form.say(update, f"{name} {age} {city}")

    return form


if __name__ == "__main__":
    port, url = sys.argv[1:]
    telebot.apihelper.API_URL = f"http://127.0.0.1:{port}/bot{{0}}/{{1}}"
    bot = telebot.TeleBot("7:survey")
    survey(bot, store=SQLStore(sqlalchemy.create_engine(url), lease=1.0))
    bot.infinity_polling()
