"""A question of a form: what it asks, what may be an answer, and whether that can work."""

import inspect
import re
import string
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from telebot import formatting, types, util

Answers: TypeAlias = dict[str, Any]
Text: TypeAlias = str | Callable[[Answers], str]
Buttons: TypeAlias = Sequence[str] | Callable[[Answers], Sequence[str]]
When: TypeAlias = Callable[[Answers], object]

#: All kinds of messages that pyTelegramBotAPI knows.
CONTENT = [*util.content_type_media, *util.content_type_service]


@dataclass
class Question:
    """What `Form.question` declares."""

    text: Text
    take: Callable[[Any], Any]  #: the decorated function
    buttons: Buttons
    when: When
    content_types: Sequence[str]
    options: dict[str, Any]  #: for ``bot.send_message``

    def check(self, told: str, send: Callable[..., object]) -> None:
        """Refuse what can't be asked."""
        if inspect.iscoroutinefunction(self.take) or not hasattr(self.take, "__name__"):
            raise TypeError(f"{told} has to be a plain function, whose name is the answer's name")
        for option in ("buttons", "content_types"):
            value = getattr(self, option)
            if isinstance(value, str):
                raise TypeError(f"{told}: {option}={value!r} has to be a list, [{value!r}]")
        if unknown := [kind for kind in self.content_types if kind not in CONTENT]:
            raise ValueError(f"{told}: pyTelegramBotAPI has no content_types={unknown}")
        if self.buttons and "reply_markup" in self.options:
            raise TypeError(f"{told} has buttons and a reply_markup: a message has one of them")
        try:
            inspect.signature(send).bind(0, "", **self.options)
        except TypeError as error:
            raise TypeError(f"{told}: bot.send_message {error}") from None
        try:
            inspect.signature(self.take).bind("")
        except TypeError as error:
            raise TypeError(f"{told} is called with the answer: {error}") from None

    def labels(self, answers: Answers) -> Sequence[str]:
        """The texts of its buttons."""
        return self.buttons(answers) if callable(self.buttons) else self.buttons


def markup(labels: dict[str, str]) -> types.InlineKeyboardMarkup:
    """Buttons, by their data."""
    made: Any = types.InlineKeyboardMarkup(row_width=2)
    made.add(*(types.InlineKeyboardButton(t, callback_data=d) for d, t in labels.items()))
    return made  # type: ignore[no-any-return]


class _Filler(string.Formatter):
    def __init__(self, parse_mode: str | None) -> None:
        self._parse_mode = parse_mode

    def format_field(self, value: Any, format_spec: str) -> Any:
        return "" if value is None else escaped(format(value, format_spec), self._parse_mode)


def filled(text: Text, answers: Answers, parse_mode: str | None) -> str:
    """A text with the answers that it names, as plain text whatever the parse mode."""
    if not isinstance(text, str):
        return text(answers)
    return _Filler(parse_mode).vformat(text, (), answers)


def escaped(text: str, parse_mode: str | None) -> str:
    known = {"html": formatting.escape_html, "markdownv2": formatting.escape_markdown}
    return known.get((parse_mode or "").lower(), str)(text)


def named(text: Text, told: str) -> list[str]:
    """The names in the braces of a text."""
    try:
        fields = [*string.Formatter().parse(text)] if isinstance(text, str) else []
    except ValueError as error:
        raise ValueError(f"the text of {told}: {error}. A brace itself is written twice") from None
    return [re.split(r"[.\[]", field)[0] for _, field, _, _ in fields if field is not None]


def check_types(told: str, function: Any, questions: dict[str, Question]) -> None:
    """Refuse a function that takes an answer as another type than its question returns."""
    wanted = _types(function)
    for name in wanted.keys() & questions:
        given = _types(questions[name].take).get("return")
        if not _fits(given, wanted[name]):
            raise TypeError(
                f"{told} takes {name} as {wanted[name]}, but its question gives {given}"
            )


def _types(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # what is imported for type checkers only can't be found
        return {}


def _fits(given: Any, wanted: Any) -> bool:
    """Whether one type may stand for the other; so it is where nobody can tell."""
    if typing.get_origin(given) or typing.get_origin(wanted):
        return True
    try:
        return issubclass(given, wanted) or (given is int and wanted is float)
    except TypeError:
        return True
