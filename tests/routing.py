"""A bot whose handlers under `when` take turns, with all that may come between them."""

import threading
from collections import Counter
from typing import Any

import telebot
from telebot import types
from telebot.handler_backends import BaseMiddleware, ContinueHandling

from telesession import keys, with_session
from tests.stores import TIMEOUT, payload


def routing(store: Any, threads: int, times: int, middlewares: bool = True) -> dict[str, int]:
    """Feed updates of one user, so many on each thread.

    Gives how many were ``handled``, how many reached no handler (``lost``), and how often each
    thing in between was done; the session counts the same, as ``n`` and by name.
    """
    bot = telebot.TeleBot("1:test", threaded=False, use_class_middlewares=middlewares)
    inner = telebot.TeleBot("1:test", threaded=False)
    session = with_session(store=store)
    record = with_session(property="record", key=keys.user, store=store)
    done: Counter[str] = Counter()
    mutex = threading.Lock()

    def note(what: str) -> None:
        with mutex:
            done[what] += 1

    def add(data: Any, what: str) -> None:
        data[what] = data.get(what, 0) + 1
        note(what)

    def opens_another(message: Any) -> bool:
        with record.open(message) as data:
            add(data, "opened another")
        return True

    def opens_the_same(message: Any) -> bool:
        with session.open(message) as data:
            add(data, "opened")
        return True

    @session
    def look(message: Any) -> bool:
        add(message.session, "called")
        return True

    def feeds(message: Any) -> bool:
        inner.process_new_updates([update()])
        return True

    def goes_on(message: Any) -> Any:
        return ContinueHandling()

    def counts(message: Any) -> None:
        message.session["n"] = message.session.get("n", 0) + 1
        note("handled")

    def fed(message: Any) -> Any:
        add(message.session, "fed")
        return ContinueHandling()

    @record
    def records(message: Any) -> Any:
        add(message.record, "recorded")
        return ContinueHandling()

    @session
    def touches(message: Any) -> Any:
        add(message.session, "touched")
        return ContinueHandling()

    never = session.when(n=-1)(goes_on)
    inner.register_message_handler(never)
    inner.register_message_handler(session.when(lambda data: True)(fed))
    bot.register_message_handler(never)
    bot.register_message_handler(never, func=opens_another)
    bot.register_message_handler(never, func=opens_the_same)
    bot.register_message_handler(session.when(lambda data: data.get("n", 0) % 2 == 0)(counts))
    bot.register_message_handler(goes_on, func=opens_another)
    bot.register_message_handler(records)
    bot.register_message_handler(never, func=look)
    bot.register_message_handler(never, func=feeds)
    bot.register_message_handler(session.when(lambda data: data.get("n", 0) % 2 == 1)(counts))
    bot.register_message_handler(lambda message: note("lost"))
    if middlewares:

        class Middleware(BaseMiddleware):  # type: ignore[misc]
            update_types = ("message",)
            update_sensitive = False

            def pre_process(self, message: Any, data: Any) -> None:
                with session.open(message) as opened:
                    add(opened, "before")

            def post_process(self, message: Any, data: Any, exception: Any) -> None:
                with session.open(message) as opened:
                    add(opened, "after")

        bot.setup_middleware(Middleware())

    def run() -> None:
        for _ in range(times):
            bot.process_new_updates([update()])

    crowd = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "deadlock"
    return {"lost": 0, **done}


def update() -> Any:
    return types.Update.de_json({"update_id": 1, "message": payload()})
