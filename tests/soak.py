"""A soak: a real bot's workers handle updates for a long time, and then every counter is right.

::

    python -m tests.soak                                    # a million updates of 100,000 users
    python -m tests.soak --store valkey --updates 200000    # over restarts and kills of the server
    python -m tests.soak --store sqlite --updates 100000    # beside another process' locks

Updates are handled by the worker pool of a real `telebot.TeleBot`, 8 threads: it is fed with
messages instead of polling, and finds the handlers by their filters. Each kind of update does
something else with sessions (see `Handlers`): plain, raising, stacked, nested, `open`, a short ttl,
waiting in line, `busy` and `when`; one in ten updates belongs to a burst of a single user. On
Valkey the server is ended, or killed, in the middle of it, and starts again; SQLite's file is
locked instead, for longer than its connections wait.

An update that fails because of the server is handled again until it succeeds, so every update has
to count exactly once. Only where a *save* failed can nobody say whether it had arrived before the
connection broke: such a session may have counted once more for each of these, which are reported.

The exit status is 1 if a counter is wrong, an update got lost, memory grew, or anything is left: a
lock, a lease, a session on its way to another handler, a thread that stood in, a connection.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import logging
import os
import pickle
import random
import re
import sqlite3
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import telebot
from telebot import types

from telesession import (
    MemoryStore,
    SessionLost,
    SessionStoreError,
    _dispatch,
    _locks,
    _workers,
    keys,
    with_session,
)
from tests import servers
from tests.helpers import Failure
from tests.updates import DATE

THREADS = 8
WORKERS = THREADS + _workers.LIMIT  # with those that stand in, each of which may have a connection
LEASE = 2.0  # seconds: for as long a session is busy whose server forgot to tell that it is leased
BRIEF = 0.5  # seconds, the ttl of sessions that expire in between
SOME = 2000  # users that use sessions of more than two declarations
SHARED = 16  # sessions that all users share
BURST = 20
# Updates between two full collections: with so many sessions in memory Python puts them off until
# hundreds of MiB of messages wait for one, whose peak would hide what grows.
COLLECT = 10_000
PATIENCE = 120  # seconds in which all that was fed is done
# What memory may grow by after the first fifth. Blocks tell of a leak; bytes also of fragmentation,
# since sessions that were made in one go are then replaced one here and one there.
GROWTH = 1.1, 1.01
SLACK = 12 * 2**20, 5_000  # or this, where that is more

#: The kinds of updates, and how many there are of each.
KINDS = {"count": 6, "fail": 2, "stack": 4, "nested": 2, "open": 2}
KINDS |= {"brief": 2, "line": 2, "once": 2, "step": 2, "none": 1}
#: Those whose sessions several users share.
FEW = "brief", "line", "once", "step"


@dataclass
class Ledger:
    """What has to be in the store."""

    counts: Counter[str] = field(default_factory=Counter)  #: by the session's name
    doubts: Counter[str] = field(default_factory=Counter)  #: saves that may have been done or not
    handled: Counter[str] = field(default_factory=Counter)  #: by the kind of update
    refusals: Counter[str] = field(default_factory=Counter)  #: these saves, by the error
    suspects: dict[str, str] = field(default_factory=dict)  #: wrong, unless a save failed
    unsaved: set[str] = field(default_factory=set)  #: sessions of which a save failed
    retried: int = 0
    problems: list[str] = field(default_factory=list)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *names: str, kind: str = "") -> None:
        with self.mutex:
            for name in names:
                self.counts[name] += 1
            if kind:
                self.handled[kind] += 1

    def note(self, problem: str) -> None:
        with self.mutex:
            if len(self.problems) < 20:
                self.problems.append(problem)

    def failed(self, error: Exception, counted: Sequence[str] = ()) -> bool:
        """Whether an update is to be handled again after this error.

        ``counted`` are the properties in which it counts, as often as it does.
        """
        if not isinstance(error, (SessionStoreError, SessionLost)):
            self.note(f"unexpected: {type(error).__name__}: {error}")
            return False
        names = re.findall(r"'(\w+:\d+)'", str(error))
        with self.mutex:
            self.retried += 1
            self.unsaved.update(names)
            if "not known" in str(error):
                self.refusals[type(error).__name__] += 1
                for name in names:
                    self.doubts[name] += max(1, counted.count(name.partition(":")[0]))
        time.sleep(random.uniform(0.01, 0.05))
        return True


def one_more(session: Any, pause: float = 0.02) -> None:
    n = session.get("n", 0)
    if random.random() < pause:
        time.sleep(0.0003)  # so that others get their chance to do wrong
    session["n"] = n + 1


def some(message: Any) -> int:
    """The key of sessions that several users share."""
    return int(message.from_user.id) % SOME


class Handlers:
    """The bot's handlers: one for each of `KINDS`, but several for "step"."""

    def __init__(self, bot: Any, store: Any, ledger: Ledger) -> None:
        self.bot, self.ledger = bot, ledger
        self.briefs = array("q", bytes(8 * SOME)), array("d", bytes(8 * SOME))

        def declare(property: str, key: Callable[[Any], Any] = keys.user, **options: Any) -> Any:
            return with_session(property=property, key=key, store=store, **options)

        self.counter = declare("counter")
        self.hour = declare("hour", ttl=3600)
        self.shared = declare("shared", ttl=7200)
        self.brief = declare("brief", some, ttl=BRIEF)
        self.line = declare("line", some)
        self.once = declare("once", some, busy=lambda message: None)
        self.steps = declare("steps", some, ttl=1800)
        for kind in KINDS:
            for handler in getattr(self, f"make_{kind}")():
                self.register(kind, handler)

    def register(self, kind: str, handler: Any) -> None:
        self.bot.message_handler(func=lambda message: message.text == kind)(handler)

    def retrying(self, kind: str, handler: Callable[[Any], Any], *properties: str) -> Any:
        """``handler``, again and again until the store has done its part; then it counts."""

        def run(message: Any) -> Any:
            while True:
                try:
                    result = handler(message)
                except Failure:
                    self.ledger.add(kind=kind)
                    return None
                except Exception as error:
                    if self.ledger.failed(error, properties):
                        continue
                    return None
                if isinstance(result, telebot.handler_backends.ContinueHandling):
                    return result
                user = message.from_user.id
                self.ledger.add(*(f"{each}:{user}" for each in properties), kind=kind)
                return None

        return run

    def make_count(self) -> Iterator[Any]:
        yield self.retrying("count", self.counter(lambda m: one_more(m.counter)), "counter")

    def make_fail(self) -> Iterator[Any]:
        """What it counts is not to be kept, in neither session of the stack."""

        @self.counter
        @self.hour
        def fail(message: Any) -> None:
            one_more(message.counter)
            message.hour = {"n": -1}
            raise Failure

        yield self.retrying("fail", fail)

    def make_stack(self) -> Iterator[Any]:
        @self.counter
        @self.hour
        def stack(message: Any) -> None:
            one_more(message.counter)
            one_more(message.hour)

        yield self.retrying("stack", stack, "counter", "hour")

    def make_nested(self) -> Iterator[Any]:
        """A handler whose session others join, one of which raises, and that opens further ones."""

        @self.hour
        @self.counter
        def inner(message: Any, fails: bool) -> None:
            one_more(message.hour)
            if fails:
                raise Failure
            one_more(message.counter)

        @self.counter
        def nested(message: Any) -> None:
            user = message.from_user.id
            one_more(message.counter)
            with contextlib.suppress(Failure):
                inner(message, True)
            inner(message, False)
            with self.counter.open(key=user) as again:
                one_more(again)
            with self.shared.open(key=user % SHARED) as shared:
                one_more(shared)

        def run(message: Any) -> None:
            nested(message)
            user = message.from_user.id
            self.ledger.add(f"hour:{user}", f"shared:{user % SHARED}")

        yield self.retrying("nested", run, "counter", "counter", "counter")

    def make_open(self) -> Iterator[Any]:
        def outside(message: Any) -> None:
            with self.counter.open(message) as session:
                one_more(session)

        yield self.retrying("open", outside, "counter")

    def make_brief(self) -> Iterator[Any]:
        """A session with a short ttl is the last one, or gone because its time is over."""
        counts, times = self.briefs
        suspects = self.ledger.suspects

        @self.brief
        def brief(message: Any) -> None:
            now = time.monotonic()
            user, n = some(message), message.brief.get("n", 0)
            name, last = f"brief:{user}", counts[user]
            if n == 0 and last and now - times[user] < BRIEF * 0.98:
                suspects[name] = f"{name} is gone after {now - times[user]:.3f} s"
            if n and n != last:
                suspects[name] = f"{name} has counted {n}, not {last}"
            message.brief["n"] = counts[user] = n + 1
            times[user] = time.monotonic()

        yield self.retrying("brief", brief)

    def make_line(self) -> Iterator[Any]:
        """Updates that wait in line, while other threads stand in for those of the bot."""
        handler = self.line(lambda message: one_more(message.line, 0.3))

        def run(message: Any) -> None:
            handler(message)
            self.ledger.add(f"line:{some(message)}")

        yield self.retrying("line", run)

    def make_once(self) -> Iterator[Any]:
        """Updates that are not handled where another one of the session is."""
        handler = self.once(lambda message: one_more(message.once, 0.3) or True)

        def run(message: Any) -> None:
            if handler(message):
                self.ledger.add(f"once:{some(message)}")

        yield self.retrying("once", run)

    def make_step(self) -> Iterator[Any]:
        """Three handlers of which the session's state chooses one."""
        for number in range(3):
            handler = self.steps.when(lambda session, n=number: session.get("n", 0) % 3 == n)(
                lambda message: one_more(message.steps)
            )

            def step(message: Any, handler: Any = handler) -> Any:
                result = handler(message)
                if result is None:
                    self.ledger.add(f"steps:{some(message)}")
                return result

            yield self.retrying("step", step)

        def last(message: Any) -> None:
            # the one for it had failed to save, and it was saved all the same
            self.bot.process_new_messages([message])

        yield last

    def make_none(self) -> Iterator[Any]:
        """A session's handler is not for any state, and nobody takes what it leaves."""
        yield self.retrying("none", self.steps.when(lambda session: False)(lambda message: None))
        yield lambda message: self.ledger.add(kind="none")


class Soak:
    """One run. It is the bot's exception handler, too."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.updates, self.users = options.updates, options.users
        self.seconds = options.seconds
        self.restarts = options.restarts
        self.store_name = options.store
        self.random = random.Random(options.seed)
        self.ledger = Ledger()
        self.planned: Counter[str] = Counter()
        self.fed = 0
        self.early: tuple[int, int] | None = None
        self.server: Any = None
        self.client: Any = None
        self.engine: Any = None

    def handle(self, error: Exception) -> bool:
        """What pyTelegramBotAPI does with an error: there is none that `retrying` lets through."""
        self.ledger.note(f"not caught: {type(error).__name__}: {error}")
        return True

    # What happens

    def run(self) -> bool:
        self.start = time.monotonic()
        before = _resources()
        logger = logging.getLogger("telesession")
        level = logger.level
        logger.setLevel(logging.ERROR)  # that the server is gone is no news here
        try:
            with contextlib.ExitStack() as stack:
                store = self._store(stack)
                bot = telebot.TeleBot("42:soak", num_threads=THREADS, exception_handler=self)
                self.handlers = Handlers(bot, store, self.ledger)
                try:
                    self._feed(bot)
                    self._drain(bot)
                finally:
                    bot.worker_pool.close()
                self.taken = time.monotonic() - self.start
                self._check_counts(store)
                self._check_idle(store)
                del store, self.handlers, bot
            self._check_resources(before)
        finally:
            logger.setLevel(level)
        self._say(self._verdict())
        for problem in self.ledger.problems:
            self._say(f"  {problem}")
        return not self.ledger.problems

    def _store(self, stack: contextlib.ExitStack) -> Any:
        if self.store_name == "memory":
            return MemoryStore(maxsize=10 * self.users + 10 * SOME)
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="telesession-"))
        if self.store_name == "sqlite":
            return self._sqlite(Path(directory, "sessions.sqlite"), stack)
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        from telesession.redis import RedisStore

        # What was answered has been given to the disk, so even a kill loses none of it.
        durable = ("--appendonly", "yes", "--appendfsync", "always")
        self.server = stack.enter_context(servers.valkey_server(Path(directory), *durable))
        self.client = stack.enter_context(
            redis.Redis(port=self.server.port, socket_timeout=10, retry=Retry(NoBackoff(), 1))
        )
        return RedisStore(self.client, lease=LEASE)

    def _sqlite(self, file: Path, stack: contextlib.ExitStack) -> Any:
        import sqlalchemy

        from telesession.sql import SQLStore

        options = {"connect_args": {"timeout": 0.5}, "pool_size": WORKERS}
        self.engine = sqlalchemy.create_engine(f"sqlite:///{file}", **options)
        stack.callback(self.engine.dispose)
        return SQLStore(self.engine, lease=LEASE)

    def _disturb(self, gently: bool) -> None:
        """End the server, or lock the file, while the workers go on."""
        if self.server:
            (self.server.end if gently else self.server.stop)()
            self.server.start()
        else:
            with contextlib.closing(sqlite3.connect(self.engine.url.database)) as other:
                other.execute("BEGIN IMMEDIATE")
                time.sleep(0.7)

    def _feed(self, bot: Any) -> None:
        queue = bot.worker_pool.tasks
        restarts = [(n + 1) / (self.restarts + 1) for n in range(self.restarts)]
        plan, said = self._plan(), self.start
        done = 0.0
        while done < 1:
            bot.process_new_messages([next(plan) for _ in range(min(200, self.updates - self.fed))])
            if self.fed % COLLECT < 200:
                gc.collect()
            while queue.qsize() > 400:
                time.sleep(0.005)
            now = time.monotonic()
            done = self.fed / self.updates
            if self.seconds:
                done = max(done, (now - self.start) / self.seconds)
            if not self.early and done >= 0.2 and self.fed >= self.users + len(FEW) * SOME:
                self.early = self._footprint()  # all sessions are there that there will be
            if self.store_name != "memory" and restarts and done >= restarts[0]:
                del restarts[0]
                self._disturb(gently=bool(len(restarts) % 2))  # or by kill -9
            if now - said >= 5:
                said = now
                self._say(
                    f"{done:4.0%} {self.fed:,} updates, {self.fed / (now - self.start):,.0f}/s, "
                    f"{self.ledger.retried:,} retried, {_memory() >> 20:,} MiB"
                )

    def _plan(self) -> Iterator[Any]:
        """The messages: first all users once, so that from then on no sessions are new."""
        kinds = self.random.choices(list(KINDS), list(KINDS.values()), k=9973)
        while True:
            if self.fed < self.users:
                yield self._message(self.fed, "stack")
                continue
            if self.fed < self.users + len(FEW) * SOME:
                yield self._message(self.fed, FEW[(self.fed - self.users) // SOME])
                continue
            user = self.random.randrange(self.users)
            if self.random.random() >= 0.1 / BURST:
                yield self._message(user, kinds[self.fed % len(kinds)])
                continue
            same = self.random.choice([None, *KINDS])
            for _ in range(BURST):
                yield self._message(user, same or kinds[self.fed % len(kinds)])

    def _message(self, user: int, kind: str) -> Any:
        self.fed += 1
        self.planned[kind] += 1
        sender = types.User(user, False, "User")
        message = types.Message(self.fed, sender, DATE, types.Chat(user, "private"), "text", {}, "")
        message.text = kind
        return message

    def _settle(self) -> None:
        """Wait until all that was fed is done; the bot's workers are idle then."""
        deadline = time.monotonic() + PATIENCE
        while self.ledger.handled.total() < self.fed:
            if time.monotonic() > deadline:
                break  # what is missing will be told
            time.sleep(0.01)

    def _footprint(self) -> tuple[int, int]:
        """What is in memory while no update is handled: bytes, and Python's own blocks."""
        self._settle()
        gc.collect()
        with contextlib.suppress(Exception):  # what threads freed in turns is not given back else
            ctypes.CDLL(None).malloc_trim(0)
        return _memory(), sys.getallocatedblocks()

    def _drain(self, bot: Any) -> None:
        self._settle()
        if self.early:
            self.late = self._footprint()
        threading.Thread(target=bot.worker_pool.close, daemon=True).start()
        for worker in bot.worker_pool.workers:
            worker.join(PATIENCE / THREADS)
            if worker.is_alive():
                self.ledger.note(f"{worker.name} hangs")

    # What is right at the end

    def _check_counts(self, store: Any) -> None:
        ledger = self.ledger
        if self.early:
            for early, late, growth, slack in zip(
                self.early, self.late, GROWTH, SLACK, strict=True
            ):
                if late > max(early * growth, early + slack):
                    ledger.note("memory has grown")
        for name, suspicion in ledger.suspects.items():
            if name not in ledger.unsaved:
                ledger.note(suspicion)
        for kind, number in self.planned.items():
            if ledger.handled[kind] != number:
                ledger.note(f"{number} updates of kind {kind}: {ledger.handled[kind]} handled")
        time.sleep(BRIEF)
        stored = dict(self._stored(store))
        self.wrong = self.arrived = 0
        for name in ledger.counts.keys() | stored.keys():
            expected, n = ledger.counts[name], stored.get(name, 0)
            if expected <= n <= expected + ledger.doubts[name]:
                self.arrived += n - expected
                continue
            self.wrong += 1
            ledger.note(f"{name} has counted {n}, not {expected}")
        self.sessions = len(stored)

    def _stored(self, store: Any) -> Iterator[tuple[str, int]]:
        """The counters, read without what handlers read them with."""
        if self.engine is not None:
            with contextlib.closing(sqlite3.connect(self.engine.url.database)) as connection:
                there = "SELECT name, payload FROM telesession WHERE coalesce(expires, 1e99) > ?"
                for name, payload in connection.execute(there, (time.time(),)):
                    yield name, json.loads(payload)["n"] if payload else 0
            return
        if self.client is None:
            for name in list(store._entries):
                if name in store:
                    yield name, pickle.loads(store._entries[name].payload)["n"]
            return
        deadline = time.monotonic() + LEASE + 1  # of those whose holder was cut off, and wake lists
        while time.monotonic() < deadline:
            if not any(key.endswith((b":lease", b":wake")) for key in self.client.scan_iter()):
                break
            time.sleep(0.1)
        names = list(self.client.scan_iter(count=1000))
        for first in range(0, len(names), 1000):
            some = names[first : first + 1000]
            for key, payload in zip(some, self.client.mget(some), strict=True):
                name = key.decode().removeprefix("telesession:{").removesuffix("}")
                if key.endswith(b"}"):
                    yield name, json.loads(payload)["n"] if payload else 0
                elif b":done:" not in key:  # no session: a lease, or a list to wake others
                    yield name, -1

    def _check_idle(self, store: Any) -> None:
        left = {
            "locks": _locks.held(),
            "waiting for locks": len(_locks._everyone.waiting),
            "visits": len(_dispatch.innermost) + len(_dispatch.running),
        }
        if self.engine is not None:
            with contextlib.closing(sqlite3.connect(self.engine.url.database)) as connection:
                held = "SELECT count(*) FROM telesession WHERE leased_until IS NOT NULL"
                (left["leases"],) = connection.execute(held).fetchone()
            left["leases to renew"] = len(store._renewer.held)
        elif self.client is None:
            left["sessions over"] = len(store._entries) - len(store)
        else:
            left["leases"] = len(list(self.client.scan_iter("*:lease", count=1000)))
            left["leases to renew"] = len(store._renewer.held)
            left["connections"] = max(0, len(self.client.client_list()) - WORKERS - 2)
        self._note_left(left)

    def _check_resources(self, before: dict[str, int]) -> None:
        deadline = (
            time.monotonic() + 3 * LEASE
        )  # the thread that renews leases ends some time later
        while (now := _resources()) != before and time.monotonic() < deadline:
            time.sleep(0.05)
        self._note_left({kind: now[kind] - before[kind] for kind in now})

    def _note_left(self, left: dict[str, int]) -> None:
        for kind, number in left.items():
            if number > 0:
                self.ledger.note(f"left over: {number} {kind}")

    def _verdict(self) -> str:
        ledger = self.ledger
        memory = "not compared"
        if self.early:
            (early, blocks), (late, more) = self.early, self.late
            memory = f"{early / 2**20:.1f} MiB after a fifth and {late / 2**20:.1f} at the end, "
            memory += f"{blocks:,} and {more:,} blocks"
        kinds = (
            "nothing left over"
            if not any("left" in each for each in ledger.problems)
            else "LEFTOVERS"
        )
        doubts = ", ".join(f"{number} {kind}" for kind, number in ledger.refusals.items())
        doubts = f"{ledger.refusals.total()} saves in doubt ({doubts or 'no error'})"
        trouble = {"valkey": "restarts", "sqlite": "locks of the file"}.get(self.store_name)
        where = self.store_name + (f" with {self.restarts} {trouble}" if trouble else "")
        return (
            f"soak {'FAILED' if ledger.problems else 'ok'}: {self.fed:,} updates of "
            f"{self.users:,} users on {where}, {THREADS} threads, {self.taken:.0f} s "
            f"({self.fed / self.taken:,.0f}/s); {self.sessions:,} sessions, "
            f"{self.wrong} wrong counters; {ledger.retried} tries failed, {doubts}, "
            f"which had counted {self.arrived} times all the same; "
            f"memory {memory}; {kinds}"
        )

    def _say(self, text: str) -> None:
        print(text, flush=True)


def _memory() -> int:
    """What this process has in memory, in bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _resources() -> dict[str, int]:
    files = Path("/proc/self/fd")
    return {
        "threads": threading.active_count(),
        "files or connections": len(list(files.iterdir())) if files.exists() else 0,
    }


def main(arguments: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--store", choices=["memory", "valkey", "sqlite"], default="memory")
    parser.add_argument("--seconds", type=float, help="end earlier, after so long")
    parser.add_argument("--restarts", type=int, default=10, help="of the server, or locks")
    parser.add_argument("--seed", type=int, default=42)
    return Soak(parser.parse_args(arguments)).run()


if __name__ == "__main__":
    sys.exit(not main())
