"""Chat with a bot in the terminal, without a token or a network: a front end of `testing`.

Each line that is typed, or piped in, is a message to the bot; the bot's answers are printed.
Some lines are commands to the terminal itself::

    /as 2           be user 2 from now on
    /chat -100      go to the group -100; /chat alone goes back to the user's private chat
    /click Yes      click the inline button "Yes"
    /inline cats    type an inline query
    /edit hello     edit the last message
    /help           list these lines; the bot gets it, too, and may have a /help of its own

Where Python has `readline`, the arrow keys edit a line and bring back earlier lines. The end of
input (Ctrl-D, or Ctrl-Z and Enter on Windows) or Ctrl-C ends the chat.
"""

import contextlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from telesession.testing import Answer, Chat

_HELP = [line for line in (__doc__ or "").splitlines() if line.startswith("    /")]


def run(bot: Any, *, chat: int | None = None, lines: TextIO | None = None) -> None:
    """Chat with ``bot`` as user 1, until the end of input.

    Args:
        bot: any `telebot.TeleBot`; it does not poll.
        chat: the id of a group to start in; by default the private chat with the bot.
        lines: the source of the lines; by default standard input.

    An error in a handler is printed with its traceback, and the chat goes on.
    """
    user = 1
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (edits the lines that input reads)
    print("This is a chat with the bot, without Telegram. You are user 1; /help lists what to do.")
    while True:
        try:
            line = _read(lines, f"user {user}{'' if chat is None else f' in {chat}'}> ")
            command, _, argument = line.partition(" ")
            if line == "/chat":
                chat = None
            elif command == "/as" and _number(argument) > 0:
                user = _number(argument)
            elif command == "/chat" and _number(argument) < 0:
                chat = _number(argument)
            elif command in _NEEDED:
                print(_NEEDED[command])
            elif line:
                _do(Chat(bot, user=user, chat=chat), line)
        except (EOFError, KeyboardInterrupt):
            break
    if (lines or sys.stdin).isatty():
        print()  # ends the prompt's line


def _read(lines: TextIO | None, prompt: str) -> str:
    """The next line; `EOFError` at the end."""
    stream = lines or sys.stdin
    if stream is sys.stdin and stream.isatty():
        return input(prompt).strip()
    if stream.isatty():
        print(prompt, end="", flush=True)
    line = stream.readline()
    if not line:
        raise EOFError
    line = line.strip()
    if line and not stream.isatty():
        print(f"{prompt}{line}")
    return line


def _number(argument: str) -> int:
    """The number that was typed, or 0."""
    try:
        return int(argument)
    except ValueError:
        return 0


def _do(chat: Chat, line: str) -> None:
    command, _, argument = line.partition(" ")
    commands: dict[str, Callable[[str], list[Answer]]] = {
        "/click": chat.click,
        "/inline": chat.inline,
        "/edit": chat.edit,
    }
    if line == "/help":
        print(*_HELP, sep="\n")
    try:
        answers = commands[command](argument) if command in commands else chat.send(line)
    except Exception as error:
        if type(error) is LookupError:  # raised by `Chat`: no such button, nothing to edit
            print(f"({error})")
        else:
            traceback.print_exc()
        return
    answers += chat.pending()  # sent by timers and threads since the last line
    if not answers:
        print("(no answer)")
    for answer in answers:
        if answer:
            print(f"bot> {answer}")
        elif answer.method != "answerCallbackQuery":
            print(f"bot> ({answer.method})")
        if answer.buttons:
            print("     " + " ".join(f"[{button}]" for button in answer.buttons))


_NEEDED = {
    "/as": "(/as needs a user's number: /as 2)",
    "/chat": "(/chat needs a group's number, which is negative: /chat -100)",
}
