"""The form of wizard.py with pyTelegramBotAPI's next-step handlers, which survives a restart.

Run it, answer a question or two, end it (Ctrl-D), run it again, and answer the next one. The
answers are in sessions in SQLite, and pyTelegramBotAPI keeps in a file which function takes the
next message; both are in the directory ``FORM_DIR`` of the environment, or else in this one. The
file is pickled, so every step is a function of this module, found again by its name.

pyTelegramBotAPI keeps one next step for a chat, whoever writes, hence private chats only. It
writes the file a second late (the end of the process waits for that), so a bot that is killed may
take the next message for an answer to the last question; and until a step is through, it knows of
no next one, so that a second quick message is no answer. wizard.py has neither problem.

Needs ``pip install "telesession[sql]"``. Without BOT_TOKEN it chats in the terminal.
"""

import os
from pathlib import Path
from typing import Any

import telebot

try:
    import sqlalchemy
except ImportError:
    raise SystemExit('This example needs SQLAlchemy: pip install "telesession[sql]"') from None

from telesession import terminal, with_session
from telesession.sql import SQLStore

DIRECTORY = Path(os.environ.get("FORM_DIR") or ".").absolute()
NEXT_STEPS = (DIRECTORY / "next_steps.pickle").as_posix()  # pyTelegramBotAPI splits it at "/"

bot = telebot.TeleBot(os.environ.get("BOT_TOKEN") or "1:terminal")
bot.enable_save_next_step_handlers(delay=1, filename=NEXT_STEPS)
engine = sqlalchemy.create_engine(f"sqlite:///{DIRECTORY / 'form.db'}")
session = with_session(store=SQLStore(engine))


def ask(message: Any, step: str) -> None:
    question, take_answer = STEPS[step]
    bot.send_message(message.chat.id, question.format(**message.session))
    bot.register_next_step_handler(message, take_answer)


@bot.message_handler(commands=["start"], chat_types=["private"])
@session
def start(message: Any) -> None:
    message.session.clear()
    ask(message, "name")


@bot.message_handler(chat_types=["private"])
def no_form(message: Any) -> None:
    bot.send_message(message.chat.id, "/start begins the form.")


def is_answer(message: Any, step: str, previous: str) -> bool:
    """Whether the message answers the question; a next step gets commands and photos, too."""
    command = telebot.util.extract_command(message.text or "")
    if command == "start":
        start(message)
    elif command == "cancel":
        message.session.clear()
        bot.send_message(message.chat.id, "Forgotten. /start begins again.")
    elif command == "back":
        ask(message, previous)
    elif command or not message.text:
        bot.send_message(message.chat.id, "Please answer, or go /back, or /cancel.")
        ask(message, step)
    else:
        return True
    return False


@session
def take_name(message: Any) -> None:
    if is_answer(message, "name", previous="name"):
        message.session["name"] = message.text
        ask(message, "age")


@session
def take_age(message: Any) -> None:
    if is_answer(message, "age", previous="name"):
        if message.text.isdecimal() and 0 < int(message.text) < 130:
            message.session["age"] = int(message.text)
            ask(message, "city")
        else:
            bot.send_message(message.chat.id, "That is no age. A number, please, such as 36.")
            ask(message, "age")


@session
def take_city(message: Any) -> None:
    if is_answer(message, "city", previous="age"):
        message.session["city"] = message.text
        ask(message, "confirm")


@session
def confirm(message: Any) -> None:
    if is_answer(message, "confirm", previous="city"):
        answer = message.text.lower()
        if answer == "yes":  # here a real bot would put the form into its database
            bot.send_message(message.chat.id, f"Thank you, {message.session['name']}!")
            message.session.clear()
        else:
            ask(message, "name" if answer == "no" else "confirm")


STEPS = {
    "name": ("What is your name?", take_name),
    "age": ("How old are you?", take_age),
    "city": ("Where do you live?", take_city),
    "confirm": ("{name}, {age}, from {city}. Is that right? (yes or no)", confirm),
}

if __name__ == "__main__":
    bot.load_next_step_handlers(NEXT_STEPS, del_file_after_loading=False)
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot)
