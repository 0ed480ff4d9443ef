"""Forms: several questions to a user, one after the other, each with a function for its answer.

Keeping and locking the answers is left to a `Declaration`, so two quick messages answer two
questions.

::

    from telesession.forms import Form, Goto, Invalid

    form = Form(bot, "pizza", command="pizza")

    @form.question("How many pizzas?")
    def pizzas(text):
        if not text.isdecimal():
            raise Invalid("A number, please.")
        return int(text)

    @form.question("{pizzas} pizzas?", buttons=["yes", "no"])
    def right(text):
        if text == "no":
            raise Goto("pizzas")

    @form.done
    def done(update, pizzas):
        form.say(update, f"{pizzas} pizzas are on their way.")
"""

import contextlib
import inspect
import itertools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, TypeAlias, TypeVar

import telebot
from telebot import types, util

from telesession import Declaration, keys, with_session

__all__ = ["Form", "Goto", "Invalid"]

Answers: TypeAlias = dict[str, Any]
Text: TypeAlias = str | Callable[[Answers], str]
_Function = TypeVar("_Function", bound=Callable[..., object])


class Invalid(Exception):
    """Raised by a question: the answer is not taken, the text says why, the question stays open."""


class Goto(Exception):
    """Raised by a question: the question named is next.

    Answers are forgotten from the earlier of the two questions on.
    """


class Form:
    """Several questions to a user; what becomes of the answers is in `done`.

    Making it registers its handlers: make it above the bot's catch-alls, or those get the answers.
    A user has one form open in each chat and topic: another one that the bot begins, with the same
    store and key, takes its place. What Telegram sends twice, after a crash, counts once. If a
    question can't be sent, the error is raised, and it is asked again at the next update.

    Args:
        bot, name: each form of a bot has another name, a short one, since buttons carry 64 bytes.
        command: begins the form, or begins it anew; `None` where only `begin` does.
        ttl, store, key: as for `with_session`: an open form whose user writes no more is forgotten
            after ttl (seconds, or a `timedelta`); no form is begun where the key is `None`.
        also: declarations of sessions that questions and `done` find on the update; saved with it.
        back, cancel, help: what a user writes for that: a command, any other text, or a list.
        texts: what the form says, each as for `question`: ``"cancelled"``, ``"help"``, ``"over"``
            (to a click that doesn't count), ``"changed"`` (the open question is not there).
    """

    def __init__(
        self,
        bot: telebot.TeleBot,
        name: str,
        *,
        command: str | None = None,
        ttl: float | timedelta | None = 24 * 3600,
        store: Any = None,
        key: Callable[[Any], keys.Key] = keys.user_topic,
        also: Sequence[Declaration] = (),
        back: str | Sequence[str] = "/back",
        cancel: str | Sequence[str] = "/cancel",
        help: str | Sequence[str] = "/help",
        texts: Mapping[str, Text] = {},
    ) -> None:
        self._bot, self._name = bot, name
        self._questions: dict[str, Any] = {}
        self._done: Any = None
        self._kinds = {*util.content_type_media}
        begin = f"/{command.lstrip('/')}" if command else ()
        given = {"begin": begin, "back": back, "cancel": cancel, "help": help}
        words = {order: [one] if isinstance(one, str) else [*one] for order, one in given.items()}
        self._orders = {word.casefold(): order for order in words for word in words[order]}
        first = {order: [*words[order], ""][0] for order in words}
        self._texts: dict[str, Text] = {
            "cancelled": f"Forgotten. {begin} begins again." if begin else "Forgotten.",
            "help": "Please answer, or go {back}, or {cancel}.".format(**first),
            "over": "That question is not open for you.",
            "changed": "The questions have changed meanwhile.",
            **texts,
        }
        property = f"form_{bot.token.partition(':')[0]}"  # bots may share a store
        self.session = with_session(property=property, ttl=ttl, store=store, key=key)
        self._taken = self.session(self._take)  # decorated, so that an error undoes its changes
        for one in also:
            self._taken = one(self._taken)
        message = self.session.when(self._takes)(self._message)
        click = self.session(self._click)
        kinds = [*util.content_type_media, *util.content_type_service]
        bot.register_message_handler(lambda m: _raised(message(m)), kinds, func=self._order)
        bot.register_callback_query_handler(
            lambda call: _raised(click(call)),
            lambda call: call.message and (call.data or "").rpartition(":")[0] == f"form:{name}",
        )

    def question(
        self,
        text: Text,
        *,
        content_types: Sequence[str] | None = None,
        buttons: Sequence[str] | Callable[[Answers], Sequence[str]] = (),
        when: Callable[[Answers], object] = lambda answers: True,
        **options: Any,
    ) -> Callable[[_Function], _Function]:
        """A decorator for the function that takes the answer; its name is the question's name.

        It gets the text of the message or button, or the message itself if that is of another
        kind, and returns the value to keep in the store, or raises `Invalid` or `Goto`.

        Args:
            text: may name earlier questions in braces, for their answers (nothing for one that was
                not asked); or a function of the answers so far, which are a dict by name.
            content_types: what may be an answer, as for ``message_handler``: by default a text, or
                nothing but the buttons where there are some.
            buttons: their texts, or a function of the answers so far.
            when: a function of the answers so far, whether to ask. What is not asked is `None`.
            options: for ``bot.send_message``, such as ``parse_mode``.
        """
        inspect.signature(self._bot.send_message).bind(0, text, **options)
        kinds = (() if buttons else ("text",)) if content_types is None else content_types

        def decorate(take: _Function) -> _Function:
            name = take.__name__
            if name in self._questions:
                raise ValueError(f"the form {self._name!r} has two questions {name!r}")
            self._check(f"the text of {name}", _named(text))
            self._questions[name] = SimpleNamespace(
                text=text, take=take, kinds=kinds, buttons=buttons, when=when, options=options
            )
            self._kinds.update(kinds)
            return take

        return decorate

    def done(self, function: _Function) -> _Function:
        """A decorator for what is called when all is answered; it goes below all questions.

        It gets the update, and the answers that it has parameters for. If it raises, nothing is
        saved, and the form stays at its last question; it may raise `Invalid` and `Goto`, too.
        """
        _, *asked = inspect.signature(function).parameters.values()  # the first is the update
        wanted = [one.name for one in asked if one.kind is not one.VAR_KEYWORD]
        self._check(function.__name__, wanted)
        for what, text in self._texts.items():
            self._check(f"the text {what!r}", _named(text))
        wanted = wanted if len(wanted) == len(asked) else [*self._questions]  # for **answers
        self._done = lambda update, answers: function(update, **{n: answers[n] for n in wanted})
        return function

    def begin(self, update: Any) -> None:
        """Begin the form as its command does: for the user of any update, such as a click."""
        with self.session.open(update) as session:
            _raised(self._begin(update, session))

    def say(self, update: Any, text: str, **options: Any) -> Any:
        """``bot.send_message`` to the chat and topic of an update; in a group, as a reply."""
        message = getattr(update, "message", None) or update
        if getattr(message, "is_topic_message", None):
            options.setdefault("message_thread_id", message.message_thread_id)
        asker = message if message is update else getattr(message, "reply_to_message", None)
        if asker and message.chat.type != "private":
            return self._bot.reply_to(asker, text, **options)
        return self._bot.send_message(message.chat.id, text, **options)

    def _order(self, message: Any) -> str | None:
        """What a message tells the form to do, or `None` if it is for others."""
        text = (message.text or "").strip().casefold()
        command = re.match(r"(/\w+)(?:@(\w+))?(?!\S)", text)
        if not command:
            return self._orders.get(text, "take") if message.content_type in self._kinds else None
        others = command[2] and command[2] != str(self._bot.user.username).casefold()
        return None if others else self._orders.get(command[1])

    def _takes(self, session: dict[str, Any], message: Any) -> bool:
        open = session.get("form") == self._name or self._order(message) == "begin"
        return open or _mark(message) in session.get("handled", ())

    # If a question can't be sent, the methods below return the error instead of raising it, so that
    # the answer before it is saved.

    def _message(self, message: Any) -> Exception | None:
        session = getattr(message, self.session.property)
        mark, handled = _mark(message), session.get("handled", [])
        if mark in handled:
            return None
        error = self._obey(message, session, self._order(message))
        if session or message.media_group_id:  # the rest of an album may be still to come
            session["handled"] = [*handled[-99:], mark]  # Telegram sends up to 100 again
        return error

    def _obey(self, message: Any, session: Any, order: str | None) -> Exception | None:
        if order == "begin":
            return self._begin(message, session)
        if order == "cancel":
            self.say(message, self._text("cancelled", session))
            session.clear()
            return None
        earlier = [name for name in session["path"][:-1] if name in self._questions]
        if order == "back" and earlier:
            return self._go(message, session, earlier[-1])
        answer, question = None, self._questions.get(session["path"][-1])
        if order == "take":
            labels = {label.casefold(): label for label in session["buttons"].values()}
            answer = labels.get((message.text or "").strip().casefold())
            if not answer and (not question or message.content_type in question.kinds):
                answer = message.text or message
        if answer is None and order != "back":
            self.say(message, self._text("help", session))
        return self._step(message, session, answer)

    def _click(self, call: Any) -> Exception | None:
        session = getattr(call, self.session.property) or {}
        place = f"{call.message.chat.id}:{call.message.message_id}"
        ours = session.get("form") == self._name and session["asked"] in (None, place)
        with contextlib.suppress(telebot.apihelper.ApiTelegramException):  # it may be too old
            self._bot.answer_callback_query(call.id, None if ours else self._text("over", session))
        return self._step(call, session, session["buttons"].get(call.data)) if ours else None

    def _begin(self, update: Any, session: Any) -> Exception | None:
        if not self._done:
            raise TypeError(f"the form {self._name!r} has no @form.done, for what becomes of it")
        session.update(form=self._name, path=[""], answers={}, asked=None, buttons={})
        return self._step(update, session, None)

    def _step(self, update: Any, session: Any, answer: Any) -> Exception | None:
        """Take an answer and ask the next question, or be done; without one, ask again."""
        at = session["path"][-1]
        if at in self._questions and (answer is None or not session["asked"]):
            return self._ask(update, session, at)
        if at and at not in self._questions:
            self.say(update, self._text("changed", session))
        try:
            name = self._taken(update, answer)
        except Invalid as why:
            self._prompt(update, str(why))
            return None
        except Goto as to:
            return self._go(update, session, str(to), at)
        return self._ask(update, session, name) if name else None

    def _take(self, update: Any, answer: Any) -> str | None:
        """Keep an answer; give the name of the next question, or end the form."""
        session = getattr(update, self.session.property)
        at, answers = session["path"][-1], session["answers"]
        if at in self._questions:
            answers[at] = self._questions[at].take(answer)
        for name, question in self._questions.items():
            if name not in answers and question.when(self._before(name, answers)):
                return name
        session.clear()  # now, since `done` may begin another form
        self._done(update, self._before("", answers))
        return None

    def _before(self, name: str, answers: Answers) -> Answers:
        """The answers to the questions before one, or to all."""
        earlier = itertools.takewhile(lambda one: one != name, self._questions)
        return {one: answers.get(one) for one in earlier}

    def _go(self, update: Any, session: Any, name: str, at: str = "") -> Exception | None:
        """Ask a question, keeping no answer from there on; from ``at`` to there all are `None`."""
        if name not in self._questions:
            raise ValueError(f"{at} raised Goto({name!r}); there are {', '.join(self._questions)}")
        earlier = self._before(name, session["answers"])
        kept = {*session["answers"], *itertools.dropwhile(lambda one: one != at, earlier)}
        session["answers"] = {one: answer for one, answer in earlier.items() if one in kept}
        return self._ask(update, session, name)

    def _ask(self, update: Any, session: Any, name: str) -> Exception | None:
        question, answers = self._questions[name], self._before(name, session["answers"])
        text, options = _filled(question.text, answers), dict(question.options)
        labels = question.buttons(answers) if callable(question.buttons) else question.buttons
        buttons = {f"form:{self._name}:{number}": str(one) for number, one in enumerate(labels)}
        if buttons:
            data = {label: {"callback_data": data} for data, label in buttons.items()}
            options["reply_markup"] = util.quick_markup(data)
        path = [*(one for one in session["path"] if one in answers), name]
        session.update(path=path, asked=None, buttons=buttons)
        try:
            sent = self._prompt(update, text, **options)
        except Exception as error:  # nobody knows whether it has arrived: it will be asked again
            return error
        session["asked"] = f"{sent.chat.id}:{sent.message_id}"
        return None

    def _prompt(self, update: Any, text: str, **options: Any) -> Any:
        """Say what wants an answer: in a group a reply to it, since the bot may see no others."""
        if (getattr(update, "message", None) or update).chat.type != "private":
            options.setdefault("reply_markup", types.ForceReply(selective=True))
        return self.say(update, text, **options)

    def _text(self, what: str, session: Any) -> str:
        return _filled(self._texts[what], self._before("", session.get("answers", {})))

    def _check(self, where: str, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self._questions]:
            there = ", ".join(self._questions) or "none"
            raise TypeError(f"{where} names {unknown}, and the questions above it are {there}")


def _filled(text: Text, answers: Answers) -> str:
    shown = {name: "" if answer is None else answer for name, answer in answers.items()}
    return text.format(**shown) if isinstance(text, str) else text(answers)


def _named(text: Text) -> list[str]:
    return re.findall(r"{(\w*)", text.replace("{{", "")) if isinstance(text, str) else []


def _mark(message: Any) -> str:
    """The same for a message that is sent again, and for all of an album."""
    text = zlib.crc32((message.text or "").encode())  # in tests, ids begin anew with each process
    return message.media_group_id or f"{message.message_id}:{message.date}:{text}"


def _raised(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result
