"""Chat with a bot in the terminal, without a token and without a network.

Each line that is typed, or piped in, is a message to the bot; what the bot answers is printed.
Some lines are for the terminal itself::

    /as 2           be user 2 from now on
    /chat -100      go to the group -100; /chat alone goes back to the user's private chat
    /click Yes      click the inline button "Yes"
    /inline cats    type an inline query
    /edit hello     edit the last message

End of input (Ctrl-D) ends it.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from telesession.testing import Answer, Chat


def run(bot: Any, *, chat: int | None = None, lines: TextIO | None = None) -> None:
    """Chat with ``bot`` as user 1, until the end of input.

    Args:
        bot: any `telebot.TeleBot`; it does not poll.
        chat: the id of a group to start in; by default the private chat with the bot.
        lines: where lines come from; by default standard input.

    An error in a handler is printed with its traceback, and the chat goes on.
    """
    lines = lines or sys.stdin
    user = 1
    prompt = lines.isatty()
    print("This is a chat with the bot, without Telegram. You are user 1; /as 2 makes you user 2.")
    while True:
        if prompt:
            print(f"user {user}> ", end="", flush=True)
        line = lines.readline()
        if not line:
            break
        line = line.strip()
        if line and not prompt:
            print(f"user {user}> {line}")
        command, _, argument = line.partition(" ")
        if command in ("/as", "/chat"):
            if not argument.lstrip("-").isdecimal() and line != "/chat":
                print(f"({command} needs a number: {command} 2)")
            elif command == "/as":
                user = int(argument)
            else:
                chat = int(argument) if argument else None
        elif line:
            _do(Chat(bot, user=user, chat=chat), line)
    if prompt:
        print()


def _do(chat: Chat, line: str) -> None:
    command, _, argument = line.partition(" ")
    commands: dict[str, Callable[[str], list[Answer]]] = {
        "/click": chat.click,
        "/inline": chat.inline,
        "/edit": chat.edit,
    }
    try:
        answers = commands[command](argument) if command in commands else chat.send(line)
    except Exception as error:
        if type(error) is LookupError:  # the chat's own: no such button, nothing to edit
            print(f"({error})")
        else:
            traceback.print_exc()
        return
    answers += chat.pending()  # of timers and threads, since the last line
    if not answers:
        print("(no answer)")
    for answer in answers:
        if answer:
            print(f"bot> {answer}")
        elif answer.method != "answerCallbackQuery":
            print(f"bot> ({answer.method})")
        if answer.buttons:
            print("     " + " ".join(f"[{button}]" for button in answer.buttons))
