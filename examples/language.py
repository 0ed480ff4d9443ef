"""A bot that speaks the user's language: guessed at first, changed by buttons, kept in a session.

The session is the user's (``keys.user``), so the choice holds in all chats. The buttons have
``busy="drop"``: of a double click, the second is ignored while the first is handled, rather than
handled after it. Both declarations have the same property, key and store, so the same sessions.

Without BOT_TOKEN it chats in the terminal: /language, then ``/click Deutsch``.
"""

import os
from typing import Any

import telebot
from telebot.types import InlineKeyboardButton, InlineKeyboardMarkup

from telesession import keys, terminal, with_session

TEXTS = {
    "en": {
        "language": "English",
        "hello": "Hello, {name}! Change my /language?",
        "choose": "We speak English. Another language?",
        "chosen": "English it is.",
    },
    "de": {
        "language": "Deutsch",
        "hello": "Hallo, {name}! Eine andere Sprache? /language",
        "choose": "Wir sprechen Deutsch. Eine andere Sprache?",
        "chosen": "Also Deutsch.",
    },
    "fr": {
        "language": "Français",
        "hello": "Bonjour, {name} ! Changer de langue ? /language",
        "choose": "Nous parlons français. Une autre langue ?",
        "chosen": "Le français, alors.",
    },
}
BUTTONS = InlineKeyboardMarkup(
    [[InlineKeyboardButton(TEXTS[code]["language"], callback_data=code) for code in TEXTS]]
)

bot = telebot.TeleBot(os.environ.get("BOT_TOKEN") or "1:terminal")
session = with_session(key=keys.user)
session_of_click = with_session(key=keys.user, busy="drop")


def language_of(update: Any) -> str:
    """What the user chose, else what their Telegram speaks ("de-AT", or None), else English."""
    guessed = (update.from_user.language_code or "").partition("-")[0]
    return update.session.get("language") or (guessed if guessed in TEXTS else "en")


@bot.message_handler(commands=["language"])
@session
def ask_language(message: Any) -> None:
    texts = TEXTS[language_of(message)]
    bot.send_message(message.chat.id, texts["choose"], reply_markup=BUTTONS)


@bot.message_handler(func=lambda message: True)
@session
def greet(message: Any) -> None:
    texts = TEXTS[language_of(message)]
    bot.reply_to(message, texts["hello"].format(name=message.from_user.first_name))


@bot.callback_query_handler(func=lambda call: call.data in TEXTS)
@session_of_click
def choose_language(call: Any) -> None:
    texts, changed = TEXTS[call.data], call.data != language_of(call)
    call.session["language"] = call.data
    bot.answer_callback_query(call.id, texts["chosen"])
    if changed:  # Telegram refuses to edit a text into itself
        where = call.message.chat.id, call.message.message_id
        bot.edit_message_text(texts["choose"], *where, reply_markup=BUTTONS)


if __name__ == "__main__":
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot)
