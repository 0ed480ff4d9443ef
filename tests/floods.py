"""Floods: users who send more than a slow handler takes, and what becomes of all the others.

::

    python -m tests.floods                                # 1000 floods in memory
    python -m tests.floods --store redis --times 200      # or sqlite

First the figure of the contract's 5.2, a few times in each of its forms: 20 messages of one user to
a handler of 100 ms on two threads, and one of another user behind them. Then floods of random
users, with handlers that raise, stack, nest, wait for a next step, or route by `when`, and with a
bot that is stopped in the middle. No update may be lost, run twice, or overtake one of the same
user that reached the decorator before it; and in the end no thread, lock or memory is left.

Each flood has a seed, which is told where something is wrong: ``--seed N --times 1`` does it again.
The exit status is 1 if anything is.
"""

import argparse
import contextlib
import functools
import gc
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from telebot.handler_backends import BaseMiddleware

from telesession import MemoryStore, SessionBusy, _dispatch, _locks, _workers, keys, with_session
from tests import servers
from tests.helpers import Failure
from tests.stores import TIMEOUT, Bot, payload

FLOODERS = 42, 44
OTHER = 43
MESSAGES = 20
HANDLER = 0.1  # seconds that a handler takes
#: What memory blocks may grow by after the first fifth of all floods, or this, if that is more.
GROWTH, SLACK = 1.02, 3000


class Middleware(BaseMiddleware):  # type: ignore[misc]
    """A class middleware: how often it was called before and after handlers."""

    update_types = ("message",)
    update_sensitive = False

    def __init__(self) -> None:
        self.before: list[str] = []
        self.after: list[str] = []

    def pre_process(self, message: Any, data: Any) -> None:
        self.before.append(message.text)

    def post_process(self, message: Any, data: Any, exception: Any) -> None:
        self.after.append(message.text)


def bot_with(threads: int, middleware: Middleware | None) -> Bot:
    if middleware is None:
        return Bot(threads)
    bot = Bot(threads, use_class_middlewares=True)
    bot._bot.setup_middleware(middleware)
    return bot


class Figure:
    """What 5.2 says of users who flood a slow handler, in one of its forms.

    Args:
        store: of the sessions.
        when: whether the handler is found by the session's state.
        middlewares: whether the bot has class middlewares.
        flooders: how many users flood it, in turn.
        handler: the seconds that the handler takes.
    """

    def __init__(
        self,
        store: Any,
        *,
        when: bool = False,
        middlewares: bool = False,
        flooders: int = 1,
        handler: float = HANDLER,
    ) -> None:
        middleware = Middleware() if middlewares else None
        bot = bot_with(1 + flooders, middleware)  # one thread more than they keep busy
        session = with_session(store=store)
        order: dict[int, list[str]] = defaultdict(list)
        began: list[float] = []
        enough = threading.Event()

        def slow(message: Any) -> None:
            if message.from_user.id == OTHER:
                began.append(time.monotonic())
                enough.set()
            else:
                enough.wait(handler)  # once the other one's turn has come, the rest may be quick
            order[message.from_user.id].append(message.text)
            message.session["n"] = message.session.get("n", 0) + 1

        if when:
            bot.any_handler(session.when(step="another")(_never))
            bot.any_handler(session.when(lambda data: "step" not in data)(slow))
        else:
            bot.any_handler(session(slow))
        users = FLOODERS[:flooders]
        numbers = [str(number) for number in range(MESSAGES // flooders)]
        bot.feed([payload(user, text) for text in numbers for user in users])
        fed = time.monotonic()
        bot.feed([payload(OTHER, "other")])
        bot.run([])
        #: seconds for which the other user had to wait
        self.waited = began[0] - fed if began else float("inf")
        #: what was not as it should be
        self.wrong = [f"raised {error!r}" for error in bot.errors]
        for user in users:
            # Who comes when a handler is done may meet, at the decorator, one who comes at once.
            if order[user] != numbers and self.waited < handler:
                self.wrong.append(f"messages of {user} were handled in the order {order[user]}")
            with session.open(key=f"{user}:{user}") as data:
                if data != {"n": len(numbers)}:
                    self.wrong.append(f"of {user} there is {data}")
        if middleware is not None:
            fed_texts = sorted([*numbers * flooders, "other"])
            if not fed_texts == sorted(middleware.before) == sorted(middleware.after):
                self.wrong.append("a middleware was not called once for each message")


def _never(message: Any) -> None:
    raise AssertionError("this handler is for no message")


FORMS: list[dict[str, Any]] = [
    {"when": when, "middlewares": middlewares, "flooders": flooders}
    for when in (False, True)
    for middlewares in (False, True)
    for flooders in (1, 2)
]


class Arrivals:
    """In which order updates reach the decorator, told apart even where two do so at once.

    Whoever reaches it keeps the others of the same name out until it is in line, or inside.
    """

    def __init__(self) -> None:
        self.order: dict[Any, list[int]] = defaultdict(list)
        self._gates: dict[Any, threading.Lock] = defaultdict(threading.Lock)
        self._mine = threading.local()

    def __call__(self, group: str, decorated: Callable[..., Any]) -> Callable[..., Any]:
        """A decorated handler whose updates are noted when they come, once each."""

        @functools.wraps(decorated)
        def arriving(message: Any, *more: Any, **named: Any) -> Any:
            name = group, message.from_user.id
            number = int(message.text.split()[0])
            if number not in self.order[name]:
                gate = self._gates[name]
                assert gate.acquire(timeout=TIMEOUT)
                self._mine.gate = gate
                self.order[name].append(number)
            try:
                return decorated(message, *more, **named)
            finally:
                self.inside()

        return arriving

    def inside(self) -> None:
        """The update of this thread is in line, or has its session."""
        gate = getattr(self._mine, "gate", None)
        if gate is not None:
            self._mine.gate = None
            gate.release()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Notice when updates are in line."""
        enter = _locks.Locks._enter

        def entered(locks: Any, waiter: Any) -> None:
            try:
                enter(locks, waiter)
            finally:
                self.inside()

        _locks.Locks._enter = entered  # type: ignore[method-assign]
        try:
            yield
        finally:
            _locks.Locks._enter = enter  # type: ignore[method-assign]


#: What a message's second word may ask for, and how often it does.
KINDS = {"count": 6, "raise": 2, "ask": 1, "state": 6, "stack": 3, "nested": 2, "crossing": 2}
#: Those that have the user's session first, and those that have the room first.
GROUPS = {
    "session": {"count", "raise", "ask", "answer", "state", "crossing"},
    "room": {"stack", "nested"},
}


class Flood:
    """One random flood; `wrong` tells what was not as it should be."""

    def __init__(self, store: Any, seed: int) -> None:
        self._random = chance = random.Random(seed)
        self._arrivals = Arrivals()
        self._ran: dict[Any, list[int]] = defaultdict(list)
        self._kept: dict[int, list[int]] = defaultdict(list)
        self._failed: list[int] = []
        self._session = with_session(store=store, lock_timeout=TIMEOUT)
        self._room = with_session(store=store, property="room", key=keys.chat, lock_timeout=TIMEOUT)
        self._middleware = Middleware() if chance.random() < 0.5 else None
        self._bot = bot_with(chance.randint(1, 4), self._middleware)
        self._register()
        users = range(100, 100 + chance.choice([1, 2, 2, 3, 8]))
        kinds = chance.choices(list(KINDS), list(KINDS.values()), k=chance.randint(10, 60))
        self._fed = [
            payload(chance.choice(users), f"{number} {kind}") for number, kind in enumerate(kinds)
        ]
        stop = chance.choice([None, None, "outside", "inside"])
        self.wrong: list[str] = []
        with self._arrivals.watching():
            self._feed(stop)
        self._check(stop)

    def _feed(self, stop: str | None) -> None:
        fed, bot = self._fed, self._bot
        middle = self._random.randrange(len(fed))
        if stop == "inside":
            fed[middle]["text"] = f"{middle} stop"
        if stop is None:
            for start in range(0, len(fed), 7):
                bot.feed(fed[start : start + 7])
                time.sleep(self._random.choice([0, 0, 0.002]))
            bot.run([])
            return
        bot.feed(fed[: middle + 1])
        time.sleep(self._random.random() * 0.01)
        if stop == "outside":
            stopping = threading.Thread(target=bot._bot.stop_bot, daemon=True)
            stopping.start()
            bot.feed(fed[middle + 1 :])
            stopping.join(TIMEOUT)
            if stopping.is_alive():
                self.wrong.append("stop_bot hangs")
        else:
            bot.feed(fed[middle + 1 :])
            # A handler that is never reached stops nobody: the bot may be fed with its message
            # while another one of that chat waits for its next step.
            deadline = time.monotonic() + TIMEOUT
            while any(worker.is_alive() for worker in bot._bot.worker_pool.workers):
                if self._idle():
                    bot._bot.stop_bot()
                if time.monotonic() > deadline:
                    self.wrong.append("a worker doesn't end after stop_bot")
                    break
                time.sleep(0.001)

    def _idle(self) -> bool:
        pool = self._bot._bot.worker_pool
        return pool.tasks.empty() and _locks.held() == 0

    def _register(self) -> None:
        session, room, bot = self._session, self._room, self._bot._bot
        arriving = self._arrivals

        def asks(kind: str) -> Callable[[Any], bool]:
            return lambda message: message.text.endswith(f" {kind}")

        def register(kind: str, group: str, handler: Callable[..., Any]) -> None:
            bot.register_message_handler(arriving(group, handler), func=asks(kind))

        def count(message: Any) -> None:
            self._body(message, "session")

        def fail(message: Any) -> None:
            self._body(message, "session", fail=True)

        def ask(message: Any) -> None:
            self._body(message, "session")
            # pyTelegramBotAPI hands a message to all that wait for it, so only one does
            if not bot.next_step_backend.handlers.get(message.chat.id):
                bot.register_next_step_handler(message, arriving("session", session(answer)))

        def answer(message: Any) -> None:
            self._body(message, "session")

        def stop(message: Any) -> None:
            self._body(message, "session")
            bot.stop_bot()

        def state(message: Any) -> None:
            self._body(message, "session", state=1 - message.session.get("state", 0))

        def stack(message: Any) -> None:
            self._body(message, "room")

        inner = session(lambda message: message.session.update(inner=True))

        def nested(message: Any) -> None:
            self._body(message, "room", nested=inner)

        def crossing(message: Any) -> None:
            self._body(message, "session", nested=self._open_room)

        register("count", "session", session(count))
        register("raise", "session", session(fail))
        register("ask", "session", session(ask))
        register("stop", "session", session(stop))
        register("state", "session", session.when(state=2)(_never))
        register("state", "session", session.when(state={None, 0})(state))
        register("state", "session", session.when(lambda data: data["state"] == 1)(state))
        register("stack", "room", session(room(stack)))
        register("nested", "room", room(nested))
        register("crossing", "session", session(crossing))

    def _open_room(self, message: Any) -> None:
        with self._room.open(message) as data:
            data["crossed"] = True

    def _body(
        self,
        message: Any,
        group: str,
        *,
        fail: bool = False,
        state: int | None = None,
        nested: Callable[[Any], object] | None = None,
    ) -> None:
        self._arrivals.inside()
        user, number = message.from_user.id, int(message.text.split()[0])
        self._ran[group, user].append(number)
        mine = getattr(message, group)
        mine.setdefault("seen", []).append(number)
        time.sleep(self._random.choice([0, 0, 0, 0.0005, 0.002]))
        try:
            if fail:
                raise Failure
            if nested is not None:
                nested(message)
        except (Failure, SessionBusy):
            self._failed.append(number)
            raise
        if state is not None:
            mine["state"] = state
        self._kept[group, user].append(number)  # type: ignore[index]

    def _check(self, stop: str | None) -> None:
        wrong, bot = self.wrong, self._bot
        ran = Counter(number for numbers in self._ran.values() for number in numbers)
        arrived = {number for numbers in self._arrivals.order.values() for number in numbers}
        if twice := [number for number, times in ran.items() if times > 1]:
            wrong.append(f"run twice: {twice}")
        expected = arrived if stop else set(range(len(self._fed)))
        if lost := expected ^ set(ran):
            wrong.append(f"lost: {sorted(lost)}")
        for name, order in self._arrivals.order.items():
            if self._ran[name] != order:
                wrong.append(f"{name}: came as {order}, ran as {self._ran[name]}")
        if len(bot.errors) != len(self._failed):
            wrong.append(f"{len(self._failed)} handlers raised, and {bot.errors} were told")
        for error in bot.errors:
            if not isinstance(error, (Failure, SessionBusy)):
                wrong.append(f"raised {error!r}")
        for (group, user), numbers in self._kept.items():  # type: ignore[misc]
            declaration = self._session if group == "session" else self._room
            key = f"{user}:{user}" if group == "session" else user  # type: ignore[has-type]
            stored = (declaration.peek(key=key) or {}).get("seen")
            if stored != numbers:
                wrong.append(f"{group} of {user} has {stored}, not {numbers}")  # type: ignore[has-type]
        middleware = self._middleware
        if middleware and Counter(middleware.before) != Counter(middleware.after):
            wrong.append("a middleware was not called after each handler")
        if _locks.held() or _dispatch.innermost or _dispatch.running or _workers._shifts.needs:
            wrong.append("something is left locked or linked")


def floods(make_store: Callable[[], Any], seeds: range) -> Iterator[str]:
    """Do one flood for each seed; what was wrong, and whether anything is left after all."""
    threads = blocks = 0
    for number, seed in enumerate(seeds):
        if number == max(len(seeds) // 5, 5):
            threads, blocks = _left()
        store = make_store()
        for wrong in Flood(store, seed).wrong:
            yield f"seed {seed}: {wrong}"
        empty(store)
    if not threads:
        return
    deadline = time.monotonic() + TIMEOUT
    while True:
        now_threads, now_blocks = _left()
        if now_threads <= threads:
            break
        if time.monotonic() > deadline:
            yield f"{now_threads} threads instead of {threads}"
            break
        time.sleep(0.05)
    if now_blocks > max(blocks * GROWTH, blocks + SLACK):
        yield f"memory grew from {blocks} to {now_blocks} blocks"


def empty(store: Any) -> None:
    for declared in (with_session(store=store), with_session(store=store, property="room")):
        for key in list(declared.keys()):
            declared.remove(key=key)


def _left() -> tuple[int, int]:
    gc.collect()
    return threading.active_count(), sys.getallocatedblocks()


@contextlib.contextmanager
def stores(kind: str) -> Iterator[Callable[[], Any]]:
    """What makes a store of that kind, which is empty."""
    with contextlib.ExitStack() as stack:
        if kind == "memory":
            yield MemoryStore
            return
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if kind == "sqlite":
            import sqlalchemy

            from telesession.sql import SQLStore

            engine = sqlalchemy.create_engine(f"sqlite:///{directory / 'sessions.sqlite'}")
            stack.callback(engine.dispose)
            store: Any = SQLStore(engine)
        else:
            import redis

            from telesession.redis import RedisStore

            server = stack.enter_context(servers.valkey_server(directory))
            store = RedisStore(redis.Redis(port=server.port, socket_timeout=10))
        yield lambda: store


def main(arguments: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(
        prog="python -m tests.floods", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--store", choices=["memory", "sqlite", "redis"], default="memory")
    parser.add_argument("--seed", type=int, default=1, help="of the first flood")
    given = parser.parse_args(arguments)
    right = True
    with stores(given.store) as make_store:
        for form in FORMS if given.times > 1 else []:
            figures = []
            for _ in range(5):
                store = make_store()
                figures.append(figure := Figure(store, **form))
                empty(store)
                for wrong in figure.wrong:
                    right = False
                    print(form, wrong, flush=True)
            waited = [figure.waited * 1000 for figure in figures]
            middle = statistics.median(waited)
            print(f"{form}: waits {middle:.1f} ms, at most {max(waited):.1f} ms", flush=True)
            right &= middle < HANDLER / 10 * 1000
        began = time.monotonic()
        for wrong in floods(make_store, range(given.seed, given.seed + given.times)):
            right = False
            print(wrong, flush=True)
        print(f"{given.times} floods in {time.monotonic() - began:.0f} s")
    return right


if __name__ == "__main__":
    sys.exit(not main())
