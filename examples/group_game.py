"""Guess the number, in a group: a session for the chat's game, stacked with one for each player.

The chat's session keeps the secret, the tries of all, and the group's record; a player's session
keeps their wins, in all chats. Two players who guess the number at once can't both win: one of them
is first, and the other is told that there is nothing to guess any more.

Without BOT_TOKEN it chats in the terminal, in a group: /play, then /guess 50; ``/as 2`` makes you
another player, ``/chat -2`` goes to another group.
"""

import os
import random
from typing import Any

import telebot

from telesession import keys, terminal, with_session

HIGHEST = 100

bot = telebot.TeleBot(os.environ.get("BOT_TOKEN") or "1:terminal")
game_session = with_session(property="game_session", key=keys.chat)
player_session = with_session(property="player_session", key=keys.user)


@bot.message_handler(commands=["play"])
@game_session
def play(message: Any) -> None:
    game = message.game_session
    if "secret" in game:
        bot.reply_to(message, f"We play already, {game['tries']} tries so far. /guess it!")
        return
    game.update(secret=random.randint(1, HIGHEST), tries=0)
    bot.send_message(message.chat.id, f"I think of a number from 1 to {HIGHEST}. /guess it!")


@bot.message_handler(commands=["guess"])
@game_session.when(lambda game: "secret" in game)
@player_session
def guess(message: Any) -> None:
    game, player = message.game_session, message.player_session
    number = telebot.util.extract_arguments(message.text) or ""
    if not number.isdecimal():
        bot.reply_to(message, "Guess a number: /guess 50")
        return
    game["tries"] += 1
    if int(number) != game["secret"]:
        bot.reply_to(message, "Higher!" if int(number) < game["secret"] else "Lower!")
        return
    game["record"] = min(game["tries"], game.get("record", game["tries"]))
    player["wins"] = player.get("wins", 0) + 1
    bot.reply_to(
        message,
        f"{message.from_user.first_name} has it, at try {game['tries']}! The record here is "
        f"{game['record']}. Your wins: {player['wins']}. /play again?",
    )
    del game["secret"], game["tries"]


@bot.message_handler(commands=["guess"])
def nothing_to_guess(message: Any) -> None:
    bot.reply_to(message, "There is nothing to guess. /play?")


@bot.message_handler(commands=["wins"])
@player_session
def show_wins(message: Any) -> None:
    bot.reply_to(message, f"Your wins: {message.player_session.get('wins', 0)}")


@bot.message_handler(content_types=["migrate_to_chat_id"])
def move(message: Any) -> None:
    """The group became a supergroup, with another id: the game goes with it."""
    with game_session.open(keys=[message.chat.id, message.migrate_to_chat_id]) as (before, now):
        now.update(before)
        before.clear()


@bot.message_handler(commands=["start", "help"])
def show_help(message: Any) -> None:
    bot.send_message(message.chat.id, "/play a game, /guess the number, or see your /wins.")


if __name__ == "__main__":
    if os.environ.get("BOT_TOKEN"):
        bot.infinity_polling()
    else:
        terminal.run(bot, chat=-1)
