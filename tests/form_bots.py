"""A bot with a survey, and what its users do."""

from types import SimpleNamespace

import pytest
import telebot

from telesession import MemoryStore
from telesession.forms import Form, Goto, Invalid

HELP = "Please answer, or go /back, or /cancel."
FORGOTTEN = ["Forgotten. /start begins again."]


def survey(store=None, bot=None, slow=lambda text: None, **options):
    """A bot with a form of all kinds of questions, and a catch-all; what was done is in `done`."""
    bot = bot or telebot.TeleBot("1:test")
    form = Form(
        bot, "survey", command="start", store=MemoryStore() if store is None else store, **options
    )
    found = SimpleNamespace(bot=bot, form=form, done=[], also=lambda update: None)

    @form.question("Name?")
    def name(text):
        slow(text)
        return text

    @form.question("Age?")
    def age(text):
        if not text.isdecimal():
            raise Invalid("A number, please.")
        return int(text)

    @form.question("School, {name}?", when=lambda answers: answers["age"] < 18)
    def school(text):
        return text

    @form.question("City?", buttons=["Oslo", "Rome"])
    def city(text):
        return text

    @form.question("{name}, {age}, {city}, {school}. Right?", buttons=["yes", "no"])
    def right(text):
        if text != "yes":
            raise Goto("name")

    @form.done
    def done(update, name, age, city, school):
        found.done.append((name, age, city, school))
        found.also(update)

    @bot.message_handler(func=lambda message: True, content_types=["text", "photo"])
    def other(message):
        bot.send_message(message.chat.id, "other")

    found.name, found.age = name, age
    return found


@pytest.fixture
def bot():
    return telebot.TeleBot("1:test")


@pytest.fixture
def form(bot):
    """A form without questions yet."""
    return Form(bot, "small", command="start", store=MemoryStore())


def talk(chat, *texts):
    """Send one text after the other; what is answered to the last."""
    for text in texts:
        answers = chat.send(text)
    return answers


def clicked(answers):
    """What a click showed, and what was sent after it."""
    first, *others = answers
    assert first.method == "answerCallbackQuery"
    return first.params.get("text"), others


def content(found, key="1:1"):
    return found.form.session.peek(key=key)


def naming(name, function):
    """A function of that name."""

    def take(text):
        return function(text)

    take.__name__ = name
    return take


def click(chat, answer, data, user=None):
    """Click on a message that may not be the newest."""
    who = chat.user if user is None else {"id": user, "is_bot": False, "first_name": "X"}
    query = {"id": "1", "from": who, "message": answer.result, "chat_instance": "1"}
    return chat.update(callback_query={**query, "data": data})
