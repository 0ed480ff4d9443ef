"""Forms: several questions, one after the other.

::

    from telesession.forms import Form, Goto, Invalid

    form = Form(bot, "register", command="start")

    @form.question("What is your name?")
    def name(text):
        return text

    @form.question("How old are you?")
    def age(text):
        if not text.isdecimal():
            raise Invalid("A number, please.")
        return int(text)

    @form.question("{name}, {age}. Right?", buttons=["yes", "no"])
    def confirm(text):
        if text == "no":
            raise Goto("name")

    @form.done
    def done(update, name, age):
        form.say(update, f"Welcome, {name}.")

An answer is taken, and the next question asked, while the user's session is locked: of two quick
messages, the second answers the second question.
"""

import contextlib
import functools
import inspect
import itertools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, overload
from weakref import WeakKeyDictionary, WeakValueDictionary

import telebot
from telebot import types, util
from telebot.apihelper import ApiTelegramException

from telesession import JSON, Declaration, keys, with_session
from telesession._checks import is_bare
from telesession._questions import (
    CONTENT,
    Answers,
    Buttons,
    Question,
    Text,
    When,
    check_types,
    escaped,
    filled,
    markup,
    named,
)

__all__ = ["Form", "Goto", "Invalid"]

_OfText = TypeVar("_OfText", bound=Callable[[str], object])
_OfAny = TypeVar("_OfAny", bound=Callable[[Any], object])
_Done = TypeVar("_Done", bound=Callable[..., object])

_TEXTS = {
    "cancelled": "Forgotten.{again}",
    "help": "Please answer, or go {back}, or {cancel}.",
    "over": "That question is not open for you.",
    "changed": "The questions have changed meanwhile.",
}


class Invalid(Exception):
    """Raised by a question: the answer is not taken, the text says why, the question stays open."""


class Goto(Exception):
    """Raised by a question: nothing is kept of the answer, and the question named is asked next.

    If that is an earlier one, the answers from there on are taken back; if it is a later one, those
    between are not asked.
    """


class Form:
    """Several questions to a user; what becomes of the answers is in `done`.

    Its handlers are registered here. Put it above the bot's catch-alls: pyTelegramBotAPI tries
    handlers in the order in which they were registered, so one above the form that takes all texts
    or all clicks would get the answers.

    Every user has a form of their own in each chat and topic. If another form of the bot is begun
    in the middle (with the same store and key), the one that asked last gets the answers, and the
    other one asks again when that is over. What Telegram sends twice, after a crash, counts once;
    an album counts as its first message; what is edited counts as it was. If a question can't be
    sent, the error is raised, and it is asked again at whatever the user does next. A process that
    is killed after it has sent a question, before that is saved, leaves the form at the one before.

    Args:
        bot: whose handlers these are.
        name: of the form, unique in its bot. The store and the buttons know the form by it.
        command: begins the form, or begins it anew; `None` where only `begin` does.
        ttl: seconds (or a `timedelta`) until an open form whose user writes no more is forgotten.
        store: where open forms are kept, as for `with_session`.
        key: whose answers count, as for `with_session`; no form is begun where it gives `None`.
        also: declarations of sessions which questions and `done` find on the update, and which
            are saved together with the form.
        back, cancel, help: what a user writes to go one question back, to end the form and to be
            helped: a command (``"/back"``), any other text, or several in a list. A click on a
            button is an answer, whatever its text.
        texts: what the form says, other than by default, each as for `question`:
            ``"cancelled"``, ``"help"`` (also to what can't be an answer), ``"over"`` (to a click
            that doesn't count), ``"changed"`` (the open question is not there any more).

    The session that keeps open forms is declared as ``form.session``.

    Raises:
        TypeError, ValueError: for what can't work.
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
        if not isinstance(bot, telebot.TeleBot):
            raise TypeError(f"bot must be a telebot.TeleBot, not {bot!r}")
        if len(f"form:{name}:999".encode()) > 64:
            raise ValueError(f"name={name!r} is too long: a button of Telegram keeps 64 bytes")
        if isinstance(also, Declaration):
            raise TypeError("also has to be a list of declarations, such as also=[profile]")
        if unknown := texts.keys() - _TEXTS:
            raise TypeError(f"texts={unknown} are never said: there are {', '.join(_TEXTS)}")
        self._forms = _forms.setdefault(bot, WeakValueDictionary())
        if name in self._forms:
            raise ValueError(f"the bot has a form {name!r} already: give each a name of its own")
        self._bot, self._name = bot, name
        self._questions: dict[str, Question] = {}
        self._done: Callable[..., object] | None = None
        begin = f"/{command.lstrip('/')}" if command else ()
        self._orders = _orders(begin=begin, back=back, cancel=cancel, help=help)
        ways = {"back": [*_words(back), ""][0], "cancel": [*_words(cancel), ""][0]}
        ways["again"] = f" {begin} begins again." if begin else ""
        said = {n: escaped(text.format(**ways), bot.parse_mode) for n, text in _TEXTS.items()}
        self._texts: dict[str, Text] = {**said, **texts}
        self.session = with_session(property=f"form_{bot.bot_id}", ttl=ttl, store=store, key=key)
        # Decorated, so that where it raises nothing is left of what it did.
        self._taken: Callable[..., str | None] = functools.reduce(
            lambda inner, one: one(inner), also, self.session(self._take)
        )
        answers = bot.message_handler(func=self._may_take, content_types=CONTENT)
        answers(_raising(self.session.when(self._takes)(self._message)))
        prefix = f"form:{name}"
        clicks = bot.callback_query_handler(
            lambda call: call.message and (call.data or "").rpartition(":")[0] == prefix
        )
        clicks(_raising(self.session(self._click)))
        self._forms[name] = self

    @overload
    def question(
        self,
        text: Text,
        *,
        content_types: Sequence[str],
        buttons: Buttons = (),
        when: When | None = None,
        **options: Any,
    ) -> Callable[[_OfAny], _OfAny]: ...
    @overload
    def question(
        self, text: Text, *, buttons: Buttons = (), when: When | None = None, **options: Any
    ) -> Callable[[_OfText], _OfText]: ...
    def question(
        self,
        text: Text,
        *,
        content_types: Sequence[str] | None = None,
        buttons: Buttons = (),
        when: When | None = None,
        **options: Any,
    ) -> Callable[[Any], Any]:
        """A decorator for the function that takes the answer; its name is the question's name.

        The function gets the text of the message or of the button that was clicked, or typed, or
        the message itself if that is of another kind. It returns the value to keep, which has to
        be one that the store can keep, or raises `Invalid` or `Goto`. It stays a plain function,
        to be called and tested.

        ::

            @form.question("Which school, {name}?", when=lambda answers: answers["age"] < 18)
            def school(text):
                return text

            @form.question("A photo of you?", content_types=["photo"], buttons=["skip"])
            def photo(answer):
                return None if answer == "skip" else answer.photo[-1].file_id

        Args:
            text: may name earlier questions in braces, for their answers (nothing for one that was
                not asked); or a function of the answers so far, which are a dict by name.
            content_types: what may be an answer, as for ``message_handler``: by default a text, or
                nothing but the buttons where there are some.
            buttons: their texts, or a function of the answers so far.
            when: a function of the answers so far, whether to ask. The answer to what is not asked
                is `None`.
            options: for ``bot.send_message``, such as ``parse_mode`` or ``reply_markup``.

        Raises:
            TypeError, ValueError: at decoration, for what can't be asked.
        """

        if is_bare("question", text):
            raise TypeError('question has parentheses, and asks: @form.question("Your name?")')

        def decorate(take: Any) -> Any:
            name = getattr(take, "__name__", "")
            told = f"question {name!r} of the form {self._name!r}"
            asked = when or (lambda answers: True)
            kinds = (() if buttons else ("text",)) if content_types is None else content_types
            question = Question(text, take, buttons, asked, kinds, options)
            question.check(told, self._bot.send_message)
            if name in self._questions or self._done:
                raise ValueError(f"{told} is there already, or stands below @form.done")
            self._check_names(f"the text of {told}", named(text, told))
            self._questions[name] = question
            return take

        return decorate

    def done(self, function: _Done) -> _Done:
        """A decorator for what is called when all is answered; it goes below all questions.

        The function gets the update, and those answers by name that it has parameters for. The
        form is over, and all is saved, when it returns. If it raises, nothing is saved, and the
        form stays at its last question; it may raise `Invalid` and `Goto`, too.

        Raises:
            TypeError: at decoration, if a parameter is called as no question is, or is of another
                type than its question returns.
        """
        told = f"{getattr(function, '__name__', function)} of the form {self._name!r}"
        if not self._questions:
            raise TypeError(f'{told} has no @form.question("Your name?") above it')
        parameters = [*inspect.signature(function).parameters.values()]
        if not parameters or parameters[0].name in self._questions:
            raise TypeError(f"{told} takes the update first, and then answers by name")
        wanted = [one.name for one in parameters[1:] if one.kind is not one.VAR_KEYWORD]
        self._check_names(told, wanted)
        if len(wanted) < len(parameters) - 1:  # there is a **answers
            wanted = [*self._questions]
        for name, text in self._texts.items():
            self._check_names(f"the text {name!r} of the form {self._name!r}", named(text, name))
        check_types(told, function, self._questions)
        self._done = lambda update, answers: function(
            update, **{name: answers.get(name) for name in wanted}
        )
        return function

    def begin(self, update: Any) -> None:
        """Begin the form as its command does: for the user of any update, such as a click.

        Raises:
            SessionUnavailable: the key function gives no key for this update.
            Exception: the first question can't be sent.
        """
        with self.session.open(update) as session:
            if error := self._begin(update, session):
                raise error

    def say(self, update: Any, text: str, **options: Any) -> Any:
        """Send a text to the chat and topic of an update; in a group, as a reply to the user.

        Args:
            update: a message, a click, or another update that has a chat.
            text: what to send.
            options: for ``bot.send_message``.
        """
        message = _message_of(update)
        if isinstance(message, types.Message):
            if message.is_topic_message:
                options.setdefault("message_thread_id", message.message_thread_id)
            if topic := message.direct_messages_topic:
                options.setdefault("direct_messages_topic_id", topic.topic_id)
            to = message if message is update else message.reply_to_message
            if to and message.chat.type != "private":
                reply = types.ReplyParameters(to.message_id, allow_sending_without_reply=True)
                options.setdefault("reply_parameters", reply)
        return self._bot.send_message(message.chat.id, text, **options)

    def _order(self, message: Any) -> str | None:
        """What a message tells the form to do; "" for an answer, `None` for another's command."""
        text = (message.text or "").strip().casefold()
        command = re.match(r"(/\w+)(?:@(\w+))?(?!\S)", text)
        if not command:
            return self._orders.get(text, "")
        if command[2] and command[2] != str(self._bot.user.username).casefold():
            return None
        return self._orders.get(command[1])

    def _may_take(self, message: Any) -> bool:
        kind = message.content_type
        if kind == "text":
            return not message.text.startswith("/") or self._order(message) is not None
        questions = self._questions.values()
        return kind in util.content_type_media or any(kind in q.content_types for q in questions)

    def _takes(self, session: dict[str, Any], message: Any) -> bool:
        if self._order(message) == "begin" or _mark(message) in session.get("handled", ()):
            return True
        asking = self._asking(session)
        return asking is not None and asking["form"] == self._name

    def _asking(self, session: dict[str, Any]) -> Any:
        """The form that asked last, of those that the bot has."""
        known = [one for one in session.get("open", ()) if one["form"] in self._forms]
        return known[-1] if known else None

    def _own(self, session: dict[str, Any]) -> Any:
        return next((one for one in session.get("open", ()) if one["form"] == self._name), None)

    # What follows returns the error of a question that could not be sent: what led to it is saved.

    def _message(self, message: Any) -> Exception | None:
        session = getattr(message, self.session.property)
        mark, handled = _mark(message), session.get("handled", [])
        if mark in handled:
            return None
        session["handled"] = [*handled[-99:], mark]  # Telegram sends up to 100 again
        order = self._order(message)
        if order == "begin":
            return self._begin(message, session)
        form = self._own(session)
        if order == "cancel":
            self._say(message, form, "cancelled")
            return self._close(message, session, form)
        earlier = [one for one in form["path"] if one in self._questions]
        if order == "back" and earlier:
            self._go(form, earlier[-1])
            return self._ask(message, session, form, earlier[-1])
        question = self._questions.get(form["at"])
        if question and form["asked"] and order != "back":
            typed = (message.text or "").strip().casefold()
            label = [one for one in form["buttons"].values() if one.casefold() == typed]
            if not order and (label or message.content_type in question.content_types):
                text = message.text if message.content_type == "text" else message
                return self._step(message, session, form, [*label, text][0])
            self._say(message, form, "help")
        return self._ask_again(message, session, form)

    def _click(self, call: Any) -> Exception | None:
        session = getattr(call, self.session.property) or {}
        form = self._own(session)
        ours = form and form["asked"] in (None, _place(call.message))
        with contextlib.suppress(ApiTelegramException):  # it may be too late to answer the click
            self._bot.answer_callback_query(call.id, None if ours else self._text(form, "over"))
        if not ours:
            return None
        label = form["buttons"].get(call.data)
        if label is None or not form["asked"] or form["at"] not in self._questions:
            return self._ask_again(call, session, form)
        return self._step(call, session, form, label)

    def _begin(self, update: Any, session: Any) -> Exception | None:
        if not self._done:
            raise TypeError(f"the form {self._name!r} has no @form.done, for what becomes of it")
        form: Any = {"form": self._name, "at": "", "asked": None, "answers": {}, "path": []}
        others = [one for one in session.get("open", ()) if one["form"] != self._name]
        session["open"] = [*others, form]
        return self._step(update, session, form)

    def _step(self, update: Any, session: Any, form: Any, answer: Any = None) -> Exception | None:
        """Take an answer, if there is one, and ask the next question, or be done."""
        try:
            following = self._taken(update, form, answer)
            if following is None:  # a session of `also` was busy, and is not waited for
                return None
        except Invalid as why:
            self._prompt(update, str(why))
            return None
        except Goto as to:
            following = str(to)
            self._go(form, following)
        if following:
            return self._ask(update, session, form, following)
        return self._close(update, session, form)

    def _take(self, update: Any, form: Any, answer: Any) -> str:
        """Keep an answer; give the name of the next question, or call ``done`` and give ""."""
        answers = form["answers"]
        if form["at"] in self._questions:
            answers[form["at"]] = self._questions[form["at"]].take(answer)
            form["path"].append(form["at"])
        for name, question in self._questions.items():
            if name not in answers and question.when(self._before(name, answers)):
                self._check_kept(form)
                return name
        assert self._done is not None
        self._done(update, answers)
        return ""

    def _check_kept(self, form: Any) -> None:
        """Refuse an answer that the store can't keep, before the next question is sent."""
        codec = getattr(self.session.store, "codec", JSON)
        property = self.session.property
        trial = with_session(property=property, store={}, codec=codec, key=keys.everyone)
        with trial.open(key="everyone", apart=True) as session:
            session["open"] = [form]

    def _before(self, name: str, answers: Answers) -> Answers:
        """The answers to the questions before one."""
        earlier = itertools.takewhile(lambda one: one != name, self._questions)
        return {one: answers.get(one) for one in earlier}

    def _go(self, form: Any, name: str) -> None:
        """Take back the answers to a question and those after it; leave out those before it."""
        if name not in self._questions:
            raise ValueError(
                f"question {form['at']!r} of the form {self._name!r} raised Goto({name!r}), and "
                f"there are {', '.join(self._questions)}"
            )
        earlier = self._before(name, form["answers"])
        jumped = [*itertools.dropwhile(lambda one: one != form["at"], earlier)]
        kept = {*form["answers"], *jumped}
        form["answers"] = {one: answer for one, answer in earlier.items() if one in kept}
        form["path"] = [one for one in form["path"] if one in earlier] + jumped[:1]

    def _ask(self, update: Any, session: Any, form: Any, name: str) -> Exception | None:
        question = self._questions[name]
        answers, options = self._before(name, form["answers"]), dict(question.options)
        text = filled(question.text, answers, options.get("parse_mode", self._bot.parse_mode))
        labels = enumerate(question.labels(answers))
        buttons = {f"form:{self._name}:{number}": str(label) for number, label in labels}
        if buttons:
            options["reply_markup"] = markup(buttons)
        form.update(at=name, asked=None, buttons=buttons)
        session["open"] = [*(one for one in session["open"] if one is not form), form]
        try:
            form["asked"] = _place(self._prompt(update, text, **options))
        except Exception as error:  # nobody knows whether it has arrived: it will be asked again
            return error
        return None

    def _ask_again(self, update: Any, session: Any, form: Any) -> Exception | None:
        if form["at"] in self._questions:
            return self._ask(update, session, form, form["at"])
        self._say(update, form, "changed")
        return self._step(update, session, form)

    def _close(self, update: Any, session: Any, form: Any) -> Exception | None:
        """Forget the form, and have the one in the middle of which it was begun ask again."""
        session["open"] = [one for one in session["open"] if one is not form]
        if asking := self._asking(session):
            return self._forms[asking["form"]]._ask_again(update, session, asking)
        session.clear()
        if getattr(update, "media_group_id", None):
            session["handled"] = [_mark(update)]  # the rest of the album is still to come
        return None

    def _text(self, form: Any, what: str) -> str:
        answers = form["answers"] if form else {}
        given = {name: answers.get(name) for name in self._questions}
        return filled(self._texts[what], given, self._bot.parse_mode)

    def _say(self, update: Any, form: Any, what: str) -> None:
        self.say(update, self._text(form, what))

    def _prompt(self, update: Any, text: str, **options: Any) -> Any:
        """Say what wants an answer: in a group a reply to it, since the bot may see no others."""
        if _message_of(update).chat.type != "private":
            options.setdefault("reply_markup", types.ForceReply(selective=True))
        return self.say(update, text, **options)

    def _check_names(self, where: str, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self._questions]:
            raise TypeError(
                f"{where} names {', '.join(map(repr, unknown))}, and the questions above it are "
                f"{', '.join(self._questions) or 'none'}"
            )


_forms: WeakKeyDictionary[telebot.TeleBot, WeakValueDictionary[str, Form]] = WeakKeyDictionary()


def _words(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _orders(**given: str | Sequence[str]) -> dict[str, str]:
    """What a user may write, and what it tells the form to do."""
    orders: dict[str, str] = {}
    for order, words in given.items():
        for word in _words(words):
            if orders.setdefault(word.casefold(), order) != order:
                raise ValueError(f"{order}={words!r}: {word!r} has another meaning already")
    return orders


def _message_of(update: Any) -> Any:
    """The message that a click is on; any other update itself."""
    return getattr(update, "message", None) or update


def _place(message: Any) -> str:
    return f"{message.chat.id}:{message.message_id}"


def _mark(message: Any) -> str:
    """What is the same for a message that is sent twice, and for all of an album.

    Ids alone are not: in a terminal, or a test, they begin anew with each process.
    """
    text = zlib.crc32((message.text or "").encode())
    return message.media_group_id or f"{message.message_id}:{message.date}:{text}"


def _raising(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Raise the error that a handler returns so that what it did is saved."""

    def handle(update: Any) -> Any:
        result = handler(update)
        if isinstance(result, Exception):
            raise result
        return result

    return handle
