"""Notes that are taken in the private chat with the bot, and found there by inline queries.

Each message is a note. Type the bot's name and a word, there too, and it offers the notes with
that word, those used most first. The notes are in the private chat's session, and
``keys.user_chat_inline`` gives it to inline queries typed in that chat. Typed elsewhere, where
others look on, a query has no session, and the notes stay private.

@BotFather has to be told ``/setinline`` and ``/setinlinefeedback`` (100%). Without BOT_TOKEN it
chats in the terminal: ``/inline milk`` types a query.
"""

import os
from typing import Any

import telebot
from telebot.types import (
    InlineQueryResultArticle,
    InlineQueryResultsButton,
    InputTextMessageContent,
)

from telesession import keys, terminal, with_session

bot = telebot.TeleBot(os.environ.get("BOT_TOKEN") or "1:terminal")


def private_chat(chosen: Any) -> str:
    """The key of the user's private chat with the bot: Telegram gives it the id of the user."""
    return f"{chosen.from_user.id}:{chosen.from_user.id}"


session = with_session(key=keys.user_chat_inline)
private_session = with_session(key=private_chat)  # the same, for updates that tell no chat


@bot.message_handler(commands=["notes", "start"], chat_types=["private"])
@session
def show_notes(message: Any) -> None:
    notes = [f"{note['text']} ({note['uses']})" for note in message.session.get("notes", [])]
    bot.send_message(message.chat.id, "\n".join(notes) or "No notes yet. Write me one.")


@bot.message_handler(func=lambda message: not message.via_bot, chat_types=["private"])
@session
def take_note(message: Any) -> None:  # a chosen note comes as a message, too: via this bot
    message.session.setdefault("notes", []).append({"text": message.text, "uses": 0})
    bot.reply_to(message, "Noted.")


@bot.inline_handler(lambda query: True)
@session
def find_notes(query: Any) -> None:
    notes = list(enumerate(query.session["notes"] if query.session else []))
    notes.sort(key=lambda numbered: -numbered[1]["uses"])
    found = [
        InlineQueryResultArticle(str(number), note["text"], InputTextMessageContent(note["text"]))
        for number, note in notes
        if query.query.lower() in note["text"].lower()
    ]
    button = InlineQueryResultsButton("Your notes, in our own chat", start_parameter="notes")
    bot.answer_inline_query(
        query.id,
        found[:50],  # Telegram takes no more
        cache_time=0,
        is_personal=True,
        button=button,
    )


@bot.chosen_inline_handler(lambda chosen: True)
@private_session
def count_use(chosen: Any) -> None:
    chosen.session["notes"][int(chosen.result_id)]["uses"] += 1


if __name__ == "__main__":
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot)
