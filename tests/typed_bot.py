"""A typical bot, for `tests/test_types.py` to show to type checkers; what must be wrong is marked.

Marks that are not needed are errors as well, so each of them is an assertion. (What the decorators
of the bot return has no type: so functions that are called below are not decorated with them.)
"""

# ruff: noqa: PGH003
# pyright: standard, reportUnnecessaryTypeIgnoreComment=error

from typing import Any, TypedDict

import telebot
from telebot import types
from telebot.handler_backends import ContinueHandling
from typing_extensions import assert_type

from telesession import Declaration, MemoryStore, keys, with_session
from telesession.forms import Form, Goto, Invalid
from telesession.types import CallbackQuery, InlineQuery, Message

bot = telebot.TeleBot("1:test")


class Answers(TypedDict, total=False):
    """What is in the session called "form"."""

    name: str
    age: int


class FormMessage(types.Message):
    """A message with a session of another name, and of a known content."""

    form: Answers
    session: dict[str, Any]


class FullForm(TypedDict):
    """One that can't be empty, so that a function has to make it."""

    step: str


session = with_session(ttl=60, store=MemoryStore())
profile = with_session(property="profile", initial=Answers, key=keys.user, ttl=60)
full = with_session(property="full", initial=lambda: FullForm(step="name"))
assert_type(profile, Declaration[Answers])
assert_type(full, Declaration[FullForm])
form = with_session(property="form", key=keys.user, busy="drop")
assert_type(session, Declaration)
assert_type(session.ttl, float | None)


@bot.message_handler(func=lambda message: True)
@with_session()
def count(message: Message) -> None:
    message.session["n"] = message.session.get("n", 0) + 1
    bot.reply_to(message, f"{message.session['n']} messages")
    message.session = {}
    message.sesion = {}  # type: ignore[attr-defined] # pyright: ignore


@form
@session
def ask(message: FormMessage, more: int = 0) -> ContinueHandling | None:
    assert_type(message.form.get("age"), int | None)
    message.form["name"] = message.text or ""
    message.form["age"] = "30"  # type: ignore[typeddict-item] # pyright: ignore
    message.form["nmae"] = ""  # type: ignore[typeddict-unknown-key] # pyright: ignore
    message.session["form"] = True
    return ContinueHandling() if more else None


@session.when(step="name")
def when_value(message: Message) -> str:
    return f"{message.session['step']}, {message.from_user}"


@session.when(lambda s, message: message.text == s["answer"], step={"name", "age"})
def when_either(message: Message) -> None:
    message.session["step"] = None


@bot.callback_query_handler(func=lambda query: True)
@session.when(lambda s: s.get("n", 0) > 1, step=None)
def when_condition(query: CallbackQuery) -> None:
    query.session.clear()


@profile.when(lambda p: p.get("age", 0) >= 18, name=None)
@profile.when(lambda p, message: p.get("name") == message.text)
def when_typed(message: FormMessage) -> int:
    return message.form.get("age", 0)


@with_session
def inline(query: InlineQuery, bot: telebot.TeleBot) -> bool:
    return bool(query.session)


class Handlers:
    """Methods are handlers, too."""

    @session
    def handle(self, message: Message) -> int:
        return int(message.session["n"])


def outside(message: Message) -> None:
    """The decorator keeps the signature, so wrong calls are found."""
    assert_type(ask(message, 1), ContinueHandling | None)  # type: ignore[arg-type] # pyright: ignore
    assert_type(when_value(message), str)
    assert_type(Handlers().handle(message), int)
    when_value()  # type: ignore[call-arg] # pyright: ignore
    inline(message, bot)  # type: ignore[arg-type] # pyright: ignore
    with session.open(message) as one, session.open(key="42:99") as two:
        assert_type(one, dict[str, Any])
        two["n"] = one.get("n")
    with session.open(keys=["42:99", "43:99"], apart=True) as several:
        assert_type(several, list[dict[str, Any]])
    assert_type(session.peek(message), dict[str, Any] | None)
    assert_type([*session.keys()], list[str])
    session.remove(key="42:99")
    with profile.open(message) as mine:
        assert_type(mine, Answers)
        mine["age"] = 30
        mine["age"] = "30"  # type: ignore[typeddict-item] # pyright: ignore
        mine["nmae"] = ""  # type: ignore[typeddict-unknown-key] # pyright: ignore
    with profile.open(keys=[42, 43]) as (here, there):
        here["age"] = there.get("age", 30)
        there["step"] = ""  # type: ignore[typeddict-unknown-key] # pyright: ignore
    assert_type(profile.peek(key=42), Answers | None)
    assert_type(full.peek(message), FullForm | None)
    assert_type(when_typed(message), int)  # type: ignore[arg-type] # pyright: ignore
    session.open(message, key="42:99")  # type: ignore[call-overload] # pyright: ignore
    session.open(key=None)  # type: ignore[call-overload] # pyright: ignore
    session.peek()  # type: ignore[call-overload] # pyright: ignore
    session.remove(keys=["42:99"])  # type: ignore[call-overload] # pyright: ignore
    session["n"] = 1  # type: ignore[index] # pyright: ignore
    session.get("n")  # type: ignore[attr-defined] # pyright: ignore


with_session(busy=lambda call: bot.answer_callback_query(call.id, "One moment"))
with_session(upgrade=lambda data: data.setdefault("cart", []))
assert_type(with_session(ttl=60), Declaration)
assert_type(with_session(initial=dict), Declaration)
assert_type(with_session(initial=lambda: {"n": 0}), Declaration)
assert_type(with_session(), Declaration[dict[str, Any]])
with_session(upgrade=lambda data: data.setdefault("age", 30), initial=Answers)
with_session(initial=FullForm)  # type: ignore[arg-type] # pyright: ignore
with_session(initial=Form, busy="later")  # type: ignore[call-overload] # pyright: ignore
with_session(initial=Form, colour="red")  # type: ignore[call-overload] # pyright: ignore
with_session(ttl="60")  # type: ignore[call-overload] # pyright: ignore
with_session(busy="later")  # type: ignore[call-overload] # pyright: ignore
with_session(colour="red")  # type: ignore[call-overload] # pyright: ignore
bot.register_message_handler(ask, commands=["form"])
bot.register_inline_handler(inline, lambda query: True, pass_bot=True)

survey = Form(bot, "survey", command="start", ttl=60, store=MemoryStore(), also=[session])


@survey.question("Name?", parse_mode="HTML")
def name(text: str) -> str:
    return text


@survey.question("Age, {name}?", buttons=["18"], when=lambda answers: answers["name"] != "")
def age(text: str) -> int:
    if not text:
        raise Invalid("Please!")
    raise Goto("name")


@survey.question(lambda answers: f"Photo, {answers['name']}?", content_types=["photo"])
def photo(answer: Message) -> str | None:
    return answer.photo[-1].file_id if answer.photo else None


@survey.done
def done(update: Message | CallbackQuery, name: str, age: int) -> None:
    survey.say(update, f"{name}, {age}")


def questions(message: Message) -> None:
    """They stay functions, with the types that they have."""
    assert_type(name("Ada"), str)
    assert_type(age("36"), int)
    assert_type(photo(message), str | None)
    assert_type(survey.session, Declaration)
    age(36)  # type: ignore[arg-type] # pyright: ignore
    done(message, "Ada", age="36")  # type: ignore[arg-type] # pyright: ignore
    survey.begin(message)
    survey.question("Number?")(5)  # type: ignore[type-var] # pyright: ignore
    survey.question("Number?", buttons=5)  # type: ignore[arg-type] # pyright: ignore


Form(bot, "survey", commands=["start"])  # type: ignore[call-arg] # pyright: ignore
