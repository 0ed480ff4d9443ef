"""What an update costs: in time, round trips and memory."""

import contextlib
import copy
import gc
import random
import statistics
import tracemalloc
from collections.abc import Sequence
from typing import Any

import redis
import sqlalchemy

from tests.benchmarks.contenders import Contender, Data, bare_of
from tests.benchmarks.measure import COUNTER, USER, Bench, Lines, Table, compare, over_bare, timed
from tests.benchmarks.places import Place

SIZES: dict[str, Data] = {
    "one counter": COUNTER,
    "five fields": {
        "n": 0,
        "name": "Alice",
        "city": "Paris",
        "step": "confirm",
        "cart": [{"id": 1, "qty": 2}, {"id": 2, "qty": 1}],
    },
    "100 lists of 10": {"n": 0, "lists": [list(range(i, i + 10)) for i in range(100)]},
}


def costs(bench: Bench, names: Sequence[str], rounds: int, **options: Any) -> Lines:
    """The cost of each contender over its bare handler, for each size of session."""
    lines: Lines = {name: [] for name in names}
    bare = dict.fromkeys(bare_of(name) for name in names)
    with bench.contenders([*bare, *names], **options) as made:
        for data in SIZES.values():
            for contender in made.values():
                contender.put(USER, copy.deepcopy(data))
            found = compare(made, bench.steps(range(rounds)))
            for name in names:
                lines[name].append(over_bare(found, name))
    return lines


def cost(bench: Bench) -> Table:
    rounds = bench.pick(60, 8)
    names = ["telesession, memory", "floor", "pyTelegramBotAPI, memory", "aiogram, memory"]
    names += ["aiogram, memory, isolated", "aiogram without FSM"]
    lines = costs(bench, [*names, "python-telegram-bot, user_data"], rounds)
    unused = [-figure for figure in lines.pop("aiogram without FSM")]
    stacks = ["telesession, memory", "floor", "pyTelegramBotAPI, memory"]
    stacks += ["python-telegram-bot, user_data"]
    with (
        bench.contenders([*stacks, "bare pyTelegramBotAPI"], stack=3) as three,
        bench.contenders(["bare python-telegram-bot"]) as bare,
    ):
        for contender in three.values():
            contender.put(USER, COUNTER)
        found = compare({**three, **bare}, bench.steps(range(rounds)))
    for name, line in lines.items():
        line.append(over_bare(found, name) if name in found else None)
    ours, floor = lines["telesession, memory"], lines["floor"]
    shares = ", ".join(f"{one / other:.2f}" for one, other in zip(ours, floor))
    return Table(
        "Cost of an update in memory over a bare handler, by size of session",
        "µs; in brackets, over telesession's",
        [*SIZES, "three stacked counters"],
        lines,
        ratio_to="telesession, memory",
        notes=[
            "The floor is the key function, one uncontended lock, one TTLCache read and write, one "
            f"dump and one load. Telesession takes {shares} times as long (target: 1.25).",
            "aiogram's bare handler is one that does not use the FSM, in the default Dispatcher, "
            f"which costs it {unused[0]:.1f} µs more than a Dispatcher with disable_fsm=True does.",
            "python-telegram-bot hands out its own dict: nothing is copied, locked or written, and "
            "its three are user_data, chat_data and bot_data. aiogram has no stack.",
        ],
    )


def on_redis(bench: Bench) -> Table:
    ours, trips = "telesession, Redis", "two round trips"
    names = [ours, trips, "pyTelegramBotAPI, Redis", "aiogram, Redis", "aiogram, Redis, isolated"]
    lines = costs(bench, names, bench.pick(40, 5))
    with bench.contenders(names) as made:
        for name, contender in made.items():
            contender.put(USER, COUNTER)
            lines[name] += traffic(bench.place, contender)
    shares = ", ".join(f"{one / two:.2f}" for one, two in zip(lines[ours][:3], lines[trips]))
    return Table(
        "Cost of an update on Redis (Valkey) over a bare handler, by size of session",
        "µs; in brackets, over telesession's; and per update",
        [*SIZES, "round trips", "commands", "in Lua"],
        lines,
        ratio_to=ours,
        notes=[
            f"Telesession takes {shares} times as long as two bare round trips of the same "
            "payload, a GET and a SET (target: 1.25).",
            "Round trips are the server's total_reads_processed, commands the lines of MONITOR.",
        ],
    )


def traffic(place: Place, contender: Contender, times: int = 20) -> list[float]:
    """The server's count per update of reads from its sockets, commands, and commands in Lua."""
    updates = [contender.update(USER)] * times
    contender.run(updates)
    address: Any = {"port": place.redis_port, "decode_responses": True}
    with redis.Redis(**address) as client, redis.Redis(**address) as other:
        other.ping()  # so that it makes its connection now

        def reads() -> int:
            found: Any = client.info("stats")
            return int(found["total_reads_processed"])

        before = reads()
        contender.run(updates)
        trips = reads() - before - 1  # that is ours
        kinds = []
        with client.monitor() as monitor:
            contender.run(updates)
            other.echo("the end")
            for command in monitor.listen():
                if command["command"].endswith("the end"):
                    break
                kinds.append(command["client_type"])
    lua = kinds.count("lua")
    return [trips / times, (len(kinds) - lua) / times, lua / times]


def on_disk(bench: Bench) -> Table:
    names = ["telesession, SQLite", "telesession, SQLite, synchronous=NORMAL"]
    names += ["telesession, PostgreSQL", "pyTelegramBotAPI, pickle"]
    lines = costs(bench, names, bench.pick(30, 3))
    others = bench.pick(1000, 50)
    with bench.contenders([*names, "bare pyTelegramBotAPI"]) as made:
        for contender in bench.steps(list(made.values())):
            for user in range(USER, USER + others):
                contender.put(user, COUNTER)
        found = compare(made, bench.steps(range(bench.pick(30, 3))))
        for name, line in lines.items():
            line += [over_bare(found, name), statements(made[name])]
    return Table(
        "Cost of an update on PostgreSQL and SQLite over a bare handler, by size of session",
        "µs; in brackets, over that of telesession on SQLite; and SQL statements per update",
        [*SIZES, f"one counter, {others:,} users", "statements"],
        lines,
        ratio_to="telesession, SQLite",
        notes=[
            "The pickle storage reads and writes the sessions of all users for each update, and "
            "does not wait for the disk; SQLite with synchronous=NORMAL doesn't either.",
            "To PostgreSQL each statement is a round trip; there is none for BEGIN and COMMIT.",
        ],
    )


def statements(contender: Contender, times: int = 20) -> float | None:
    """How many statements an update sends to the database, if it is one that speaks SQL."""
    engine = getattr(contender, "engine", None)
    if engine is None:
        return None
    said: list[str] = []

    def listen(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        said.append(statement)

    updates = [contender.update(USER)] * times
    contender.run(updates)  # which may also remove what has expired
    sqlalchemy.event.listen(engine, "before_cursor_execute", listen)
    contender.run(updates)
    sqlalchemy.event.remove(engine, "before_cursor_execute", listen)
    return len(said) / times


def threads(bench: Bench) -> Table:
    rounds, times = bench.pick((10, 2000), (2, 400))
    blocking = ["telesession, memory", "pyTelegramBotAPI, memory", "bare pyTelegramBotAPI"]
    asynchronous = ["aiogram, memory, isolated", "python-telegram-bot, user_data"]
    lines: Lines = {name: [None] * 8 for name in blocking + asynchronous}
    for column, number in enumerate((1, 2, 8, 0)):
        names = blocking if number else asynchronous
        with bench.contenders(names, threads=number or 8) as made:
            found: dict[tuple[str, int], list[float]] = {}
            users = {0: [USER], 4: range(USER, USER + 1000)}
            updates = {}
            for name, contender in made.items():
                for many, group in users.items():
                    for user in group:
                        contender.put(user, COUNTER)
                    some = [contender.update(user) for user in group]
                    updates[name, many] = (some * times)[:times]
            for _ in bench.steps(range(rounds)):
                for (name, many), batch in updates.items():
                    found.setdefault((name, many), []).append(timed(made[name], batch))
        for (name, many), each in found.items():
            lines[name][many + column] = round(1e6 / statistics.median(each))
    ways = ["1 thread", "2 threads", "8 threads", "all at once"]
    return Table(
        "Updates per second in memory, of one user and of 1,000",
        "updates per second",
        [f"{who}, {way}" for who in ("one", "1,000") for way in ways],
        lines,
        notes=["Of these only telesession and aiogram with isolation keep all updates."],
    )


def stored(bench: Bench) -> Table:
    sizes = bench.pick((10**3, 10**4, 10**5, 10**6), (10**3, 10**4))
    names = ["telesession, memory", "pyTelegramBotAPI, memory"]
    picked: dict[tuple[str, int], list[float]] = {}
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(bench.contenders(["bare pyTelegramBotAPI"])).popitem()[1]
        made = {}
        for size in bench.steps(sizes):
            for name, contender in stack.enter_context(bench.contenders(names)).items():
                made[name, size] = contender
                for user in range(size):
                    contender.put(10**9 + user, COUNTER)
        gc.collect()
        gc.freeze()
        for _ in bench.steps(range(bench.pick(40, 10))):
            for (name, size), contender in made.items():
                updates = [bare.update(10**9 + random.randrange(size)) for _ in range(1000)]
                timed(bare, updates)  # so that they come from warm memory, and sessions from cold
                extra = -timed(bare, updates) + timed(contender, updates)
                picked.setdefault((name, size), []).append(extra)
        gc.unfreeze()
    lines: Lines = {
        name: [statistics.median(picked[name, size]) for size in sizes] for name in names
    }
    for line in lines.values():
        line.append(line[-1] / line[0])
    return Table(
        "Cost of an update over a bare handler, by number of sessions stored, one counter each",
        "µs, and the last over the first; updates of users at random",
        [*(f"{size:,}" for size in sizes), "ratio"],
        lines,
    )


def memory(bench: Bench) -> Table:
    number = bench.pick(100_000, 2000)
    names = ["telesession, memory", "pyTelegramBotAPI, memory", "aiogram, memory"]
    lines: Lines = {}
    for name in bench.steps([*names, "python-telegram-bot, user_data"]):
        with bench.contenders([name]) as made:
            gc.collect()
            tracemalloc.start()
            for user in range(10**9, 10**9 + number):
                made[name].put(user, {"n": 1})
            gc.collect()
            lines[name] = [round(tracemalloc.get_traced_memory()[0] / number)]
            tracemalloc.stop()
    return Table(
        f"Memory per stored session, of {number:,} with one counter each",
        "bytes; in brackets, over telesession's",
        ["bytes"],
        lines,
        ratio_to="telesession, memory",
    )
