"""What is kept of many updates at once, who waits for whom, and what a death leaves behind."""

import contextlib
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.columns import COUNTER
from tests.benchmarks.measure import USER, Bench, Lines, Table
from tests.benchmarks.process import Process

SERVED = ["telesession, Redis", "telesession, SQLite", "telesession, PostgreSQL"]
STATES = ["StateStorage, Redis", "StateStorage, SQLite"]
BLOCKING = ["telesession, memory", *SERVED, "StateStorage, memory", *STATES]
BLOCKING += ["pyTelegramBotAPI, memory"]
BLOCKING += ["pyTelegramBotAPI, pickle", "pyTelegramBotAPI, Redis"]
ASYNCHRONOUS = ["aiogram, memory", "aiogram, memory, isolated", "aiogram, Redis"]
ASYNCHRONOUS += ["aiogram, Redis, isolated", "python-telegram-bot, user_data"]

NO_THREADS = "aiogram and python-telegram-bot have no threads: there all updates are tasks at once."
ISOLATED = "“isolated” is SimpleEventIsolation in memory, and RedisEventIsolation on Redis."


def slowly(user: int) -> float:
    return random.random() * 0.003


def kept(bench: Bench) -> Table:
    times, rounds = bench.pick((200, 3), (10, 1))
    places = [(name, place) for name in BLOCKING for place in (0, 1)]
    places += [(name, 2) for name in ASYNCHRONOUS]
    lines: Lines = {name: [None] * 6 for name in BLOCKING + ASYNCHRONOUS}
    for name, place in bench.steps(places):
        with bench.contenders([name], threads=(2, 8, 8)[place], pause=slowly) as made:
            contender = made[name]
            found, seconds = [], []
            for _ in range(rounds):
                updates = contender.updates(times, USER)
                contender.put(USER, COUNTER)
                start = time.perf_counter()
                contender.run(updates)
                seconds.append(time.perf_counter() - start)
                found.append(contender.get(USER)["n"])
        lines[name][place] = statistics.median(found)
        lines[name][3 + place] = statistics.median(seconds)
    ways = ["2 threads", "8 threads", "all at once"]
    return Table(
        f"Updates kept of {times} of one user, whose handler reads, sleeps 0 to 3 ms, and writes",
        "updates; seconds for all of them",
        ways + [f"s, {way}" for way in ways],
        lines,
        notes=[NO_THREADS, ISOLATED],
    )


def processes(bench: Bench) -> Table:
    number, times = bench.pick((4, 100), (2, 10))
    names = [*SERVED, *STATES, "pyTelegramBotAPI, pickle", "pyTelegramBotAPI, Redis"]
    names += ["aiogram, Redis, isolated"]
    lines: Lines = {name: [] for name in names}
    ways = {"one by one": 0, "concurrent": 2}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Process(bench.place)) for _ in range(number)]
        for way, name in bench.steps([(way, name) for way in ways for name in names]):
            lines[name] += counted(bench, workers, name, times, ways[way])
    return Table(
        f"Updates kept of {number * times}: {number} processes, {times} each",
        "updates; updates whose handler failed; seconds from the barrier",
        [f"{figure}, {way}" for way in ways for figure in ("kept", "failed", "s")],
        lines,
        notes=["Concurrent is two threads in each process or, with aiogram, all updates at once."],
    )


def counted(
    bench: Bench, workers: Sequence[Process], name: str, times: int, threads: int
) -> list[float]:
    """What was kept of the updates that all workers handled, how many failed, and the seconds."""
    with bench.contenders([name]) as made:
        made[name].put(USER, COUNTER)
        for worker in workers:
            worker.give(name, {"threads": threads}, "increments", times)
        for worker in workers:
            worker.read()
        start = time.perf_counter()
        for worker in workers:
            worker.go()
        errors = sum(worker.read()["errors"] for worker in workers)
        seconds = time.perf_counter() - start
        try:
            found = made[name].get(USER).get("n", 0)
        except Exception:
            if "pickle" not in name:
                raise
            found = 0  # several processes wrote the file at once
        Path(bench.place.pickle_path).unlink(missing_ok=True)
        return [found, errors, seconds]


def flood(bench: Bench) -> Table:
    rounds, number, seconds = bench.pick((3, 20, 0.1), (1, 20, 0.01))
    names = ["bare pyTelegramBotAPI", "telesession, memory", "pyTelegramBotAPI, memory"]
    names += ["aiogram, memory, isolated"]
    lines: Lines = {}
    for name in bench.steps([*names, "python-telegram-bot, user_data"]):
        each = [one_flood(bench, name, number, seconds) for _ in range(rounds)]
        waits, found = zip(*each)
        bare = name.startswith("bare")
        lines[name] = [statistics.median(waits), None if bare else statistics.median(found)]
    return Table(
        f"The wait of another user, whose message comes after {number} of one that take "
        f"{seconds * 1000:.0f} ms each; 2 threads",
        f"seconds until the other's handler runs; updates kept of the {number}",
        ["s", "kept"],
        lines,
        notes=[NO_THREADS],
    )


def one_flood(bench: Bench, name: str, number: int, seconds: float) -> tuple[float, int]:
    """For how long the other user waited, and how many updates of the first one were kept."""
    waits: list[float] = []

    def pause(user: int) -> float:
        if user == USER:
            return seconds
        waits.append(time.perf_counter() - start)
        return 0

    with bench.contenders([name], threads=2, pause=pause) as made:
        contender = made[name]
        contender.put(USER, COUNTER)
        contender.put(USER + 1, COUNTER)
        updates = [*contender.updates(number, USER), contender.update(USER + 1)]
        start = time.perf_counter()
        contender.run(updates)
        return waits[0], contender.get(USER).get("n", 0)


def killed(bench: Bench) -> Table:
    rounds, lease = bench.pick((3, 2), (1, 1))
    options: dict[str, Any] = {name: ({"lease": lease}, 10) for name in SERVED}
    options["aiogram, Redis, isolated"] = ({"lock_timeout": lease}, 60)
    lines: Lines = {}
    for name, (given, default) in bench.steps(list(options.items())):
        found = []
        for _ in range(rounds):
            with bench.contenders([name], **given) as made, Process(bench.place) as holder:
                holder.give(name, given, "hold", 1)
                before, after = made[name].updates(2, USER)
                made[name].run([before])
                holder.read()
                holder.go()
                holder.read()  # it is inside
                holder.popen.kill()
                start = time.perf_counter()
                made[name].run([after])
                found.append(time.perf_counter() - start)
        lines[name] = [statistics.median(found), max(found), lease, default]
    return Table(
        "Time until a session is free again after kill -9 of the process whose handler has it",
        "seconds",
        ["median", "longest", "lease, or lock timeout", "its default"],
        lines,
        notes=["pyTelegramBotAPI's storages lock nothing, so there is nothing to wait for."],
    )
