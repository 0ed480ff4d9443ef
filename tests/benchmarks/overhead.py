"""What a session costs: telesession beside pyTelegramBotAPI's own `retrieve_data`, in one run.

    python -m tests.benchmarks.overhead [--rounds 30] [--quick]

Every figure is the time of an update through the real dispatcher (`TeleBot`, not threaded) less
that of a bare handler in the same round. Rounds of all contenders alternate, so that a noisy
moment hits all of them; the median of the rounds counts. Ratios travel, absolute figures don't.
"""

import argparse
import gc
import itertools
import math
import pickle
import platform
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import cachetools
import telebot
import telebot.version
from telebot.storage import StateMemoryStorage
from telebot.types import Message, User

from telesession import MemoryStore, keys, with_session

BATCH = 1000

FIELDS = {
    "name": "Alice",
    "age": 30,
    "city": "Paris",
    "step": "confirm",
    "cart": [{"id": 1, "qty": 2}, {"id": 2, "qty": 1}],
}


def message(user: int = 42) -> Message:
    return Message.de_json(
        {
            "message_id": 1,
            "date": 1,
            "chat": {"id": user, "type": "private"},
            "from": {"id": user, "is_bot": False, "first_name": "Ann"},
            "text": "hi",
        }
    )


def make_bot() -> telebot.TeleBot:
    bot = telebot.TeleBot("1234567890:x", threaded=False, state_storage=StateMemoryStorage())
    bot._user = User(1234567890, True, "bot")  # saves retrieve_data a getMe
    return bot


def dispatch_time(bot: telebot.TeleBot, messages: list[Message]) -> float:
    start = time.perf_counter()
    bot._notify_command_handlers(bot.message_handlers, messages, "message")
    return (time.perf_counter() - start) / len(messages) * 1e6


def contender(handler: Callable[[Any], object]) -> telebot.TeleBot:
    bot = make_bot()
    bot.register_message_handler(handler)
    return bot


def compare(
    bots: dict[str, telebot.TeleBot], rounds: int, batches: Iterable[list[Message]]
) -> dict[str, float]:
    """The median microseconds per update of each contender."""
    batch = itertools.cycle(batches)
    times: dict[str, list[float]] = {name: [] for name in bots}
    gc.collect()
    for _ in range(rounds):
        messages = next(batch)
        for name, bot in bots.items():
            times[name].append(dispatch_time(bot, messages))
    return {name: statistics.median(figures) for name, figures in times.items()}


def bare(message: Message) -> None:
    pass


def count(data: dict[str, Any]) -> None:
    data["n"] = data.get("n", 0) + 1


def retrieving(bot: telebot.TeleBot, start: dict[str, Any]) -> telebot.TeleBot:
    """A bot whose handler counts in pyTelegramBotAPI's state data."""
    bot.set_state(42, "any", 42)
    bot.add_data(42, 42, **start)

    def handler(message: Message) -> None:
        with bot.retrieve_data(message.from_user.id, message.chat.id) as data:
            count(data)

    bot.register_message_handler(handler)
    return bot


def session_bot(start: dict[str, Any]) -> telebot.TeleBot:
    @with_session(store=MemoryStore(), initial=lambda: pickle.loads(pickle.dumps(start)))
    def handler(message: Any) -> None:
        count(message.session)

    return contender(handler)


def stacked_bot() -> telebot.TeleBot:
    store = MemoryStore()

    @with_session(store=store)
    @with_session(store=store, property="chat_session", key=keys.chat)
    @with_session(store=store, property="user_session", key=keys.user)
    def handler(message: Any) -> None:
        count(message.session)
        count(message.chat_session)
        count(message.user_session)

    return contender(handler)


def floor_bot(start: dict[str, Any]) -> telebot.TeleBot:
    """The least that a session in a TTLCache can cost, with nothing kept safe around it."""
    cache: cachetools.TTLCache[str, bytes] = cachetools.TTLCache(1_000_000, math.inf)
    cache["session:42:42"] = pickle.dumps(start)
    lock = threading.Lock()

    def handler(message: Any) -> None:
        name = f"session:{keys.user_chat(message)}"
        with lock:
            data = pickle.loads(cache[name])
            count(data)
            cache[name] = pickle.dumps(data)

    return contender(handler)


def cost_table(rounds: int) -> None:
    # few messages, since a bot's handler gets each one fresh from the parser, not from cold memory
    same = [[message() for _ in range(10)] * (BATCH // 10)]
    bots = {
        "bare": contender(bare),
        "counter floor": floor_bot({"n": 0}),
        "counter retrieve_data": retrieving(make_bot(), {"n": 0}),
        "counter telesession": session_bot({"n": 0}),
        "fields retrieve_data": retrieving(make_bot(), FIELDS),
        "fields telesession": session_bot(FIELDS),
        "stack telesession": stacked_bot(),
    }
    figures = compare(bots, rounds, same)
    cost = {name: figure - figures["bare"] for name, figure in figures.items()}
    rows = [
        ("one counter", "counter telesession", "counter retrieve_data", 1.0),
        ("five fields, a list of two dicts", "fields telesession", "fields retrieve_data", 0.6),
        ("three stacked counters / one", "stack telesession", "counter telesession", 2.2),
        ("one counter / floor", "counter telesession", "counter floor", 1.25),
    ]
    print(f"bare handler: {figures['bare']:.2f} us per update; over that, in us:\n")
    print(f"{'':34}{'telesession':>12}{'compared to':>26}{'ratio':>8}{'target':>8}")
    for label, ours, other, target in rows:
        against = f"{other} {cost[other]:.2f}"
        ratio = cost[ours] / cost[other]
        print(f"{label:34}{cost[ours]:12.2f}{against:>26}{ratio:8.2f}{target:8.2f}")


def memory_table(sessions: int) -> None:
    def ours() -> object:
        store = MemoryStore()
        handler = with_session(store=store)(lambda message: count(message.session))
        for user in range(sessions):
            handler(message(10**9 + user))
        return store

    def theirs() -> object:
        bot = make_bot()
        for user in range(10**9, 10**9 + sessions):
            bot.set_state(user, "any", user)
            with bot.retrieve_data(user, user) as data:
                count(data)
        return bot

    def size(fill: Callable[[], object]) -> float:
        gc.collect()
        tracemalloc.start()
        kept = fill()
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del kept
        return used / sessions

    a, b = size(ours), size(theirs)
    print(f"\nbytes per stored session, of {sessions:,}, one counter each:")
    print(f"telesession {a:.0f}, StateMemoryStorage {b:.0f}, ratio {a / b:.2f} (target 1.00)")


def scale_table(most: int, rounds: int) -> None:
    figures = {}
    for sessions in (1000, most):
        handler = with_session(store=MemoryStore())(lambda message: count(message.session))
        batches = [[message(user) for user in range(i, i + BATCH)] for i in range(0, 10_000, BATCH)]
        for user in range(sessions):
            handler(message(user))
        bots = {"bare": contender(bare), "ours": contender(handler)}
        gc.freeze()  # the stored sessions are no business of the collector while we measure
        found = compare(bots, rounds, batches[: max(1, min(sessions, 10_000) // BATCH)])
        gc.unfreeze()
        figures[sessions] = found["ours"] - found["bare"]
    few, many = figures.values()
    print("\nus per update over a bare handler, by sessions stored:")
    print(f"1,000: {few:.2f}, {most:,}: {many:.2f}, ratio {many / few:.2f} (target 1.30)")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a session costs.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, pyTelegramBotAPI {telebot.version.__version__}, "
        f"cachetools {cachetools.__version__}, {sys.platform} {platform.machine()}\n"
    )
    cost_table(options.rounds)
    memory_table(1000 if options.quick else 100_000)
    scale_table(2000 if options.quick else 1_000_000, options.rounds)


if __name__ == "__main__":
    main()
