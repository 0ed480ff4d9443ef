"""A form over several messages: a name, an age, a city, and whether all that is right.

/back goes one question back, /cancel forgets the form, /start begins it anew, at any question.
The session keeps the answers and the question that is open, and ``session.when(step=...)`` looks
at that while the session is locked: of two quick messages, the second answers the second question.

Without BOT_TOKEN it chats in the terminal.
"""

import os
from typing import Any

import telebot

from telesession import terminal, with_session

QUESTIONS = {
    "name": "What is your name?",
    "age": "How old are you?",
    "city": "Where do you live?",
    "confirm": "{name}, {age}, from {city}. Is that right? (yes or no)",
}

bot = telebot.TeleBot(os.environ.get("BOT_TOKEN") or "1:terminal")
session = with_session(ttl=24 * 3600)  # a form that nobody finishes is forgotten


def ask(message: Any, step: str) -> None:
    message.session["step"] = step
    bot.send_message(message.chat.id, QUESTIONS[step].format(**message.session))


@bot.message_handler(commands=["start"])
@session
def start(message: Any) -> None:
    message.session.clear()
    ask(message, "name")


@bot.message_handler(commands=["cancel"])
@session.when(lambda form: "step" in form)
def cancel(message: Any) -> None:
    message.session.clear()
    bot.send_message(message.chat.id, "Forgotten. /start begins again.")


@bot.message_handler(commands=["back"])
@session.when(lambda form: "step" in form)
def back(message: Any) -> None:
    steps = list(QUESTIONS)
    ask(message, steps[max(0, steps.index(message.session["step"]) - 1)])


@bot.message_handler(regexp="^/")
@session.when(lambda form: "step" in form)
def unknown_command(message: Any) -> None:
    bot.send_message(message.chat.id, "Please answer, or go /back, or /cancel.")


@bot.message_handler(func=lambda message: True)
@session.when(step="name")
def take_name(message: Any) -> None:
    message.session["name"] = message.text
    ask(message, "age")


@bot.message_handler(func=lambda message: True)
@session.when(step="age")
def take_age(message: Any) -> None:
    if not message.text.isdecimal() or not 0 < int(message.text) < 130:
        bot.send_message(message.chat.id, "That is no age. A number, please, such as 36.")
        return
    message.session["age"] = int(message.text)
    ask(message, "city")


@bot.message_handler(func=lambda message: True)
@session.when(step="city")
def take_city(message: Any) -> None:
    message.session["city"] = message.text
    ask(message, "confirm")


@bot.message_handler(func=lambda message: True)
@session.when(step="confirm")
def confirm(message: Any) -> None:
    answer = message.text.lower()
    if answer == "yes":  # here a real bot would put the form into its database
        bot.send_message(message.chat.id, f"Thank you, {message.session['name']}!")
        message.session.clear()
    else:
        ask(message, "name" if answer == "no" else "confirm")


@bot.message_handler(func=lambda message: True)
def no_form(message: Any) -> None:
    bot.send_message(message.chat.id, "/start begins the form.")


if __name__ == "__main__":
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot)
