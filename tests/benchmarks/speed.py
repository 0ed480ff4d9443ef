"""What an update costs: in time, round trips and memory."""

import contextlib
import copy
import gc
import itertools
import random
import statistics
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import redis

from telesession._connections import Say
from tests.benchmarks import blocking, instructions
from tests.benchmarks.columns import (
    COLUMNS,
    COUNTER,
    FIVE,
    ONE,
    OTHERS,
    SIZES,
    THIRD,
    THREE,
    TTL,
)
from tests.benchmarks.contenders import Contender, bare_of
from tests.benchmarks.measure import USER, Bench, Lines, Table, compare, over_bare, timed
from tests.benchmarks.places import Place

#: The lines of what is in memory, each with its columns.
IN_MEMORY: dict[str, list[str]] = {
    "telesession, memory": list(COLUMNS),
    "floor": [*SIZES, THREE],
    "StateStorage, memory": [*SIZES, THREE],
    "pyTelegramBotAPI, memory": [*SIZES, THREE],
    "aiogram, memory": list(SIZES),
    "aiogram, memory, isolated": list(SIZES),
    "python-telegram-bot, user_data": [*SIZES, THREE],
}


def costs(bench: Bench, names: Sequence[str], rounds: int) -> Lines:
    """The cost of each contender over its bare handler, for each size of session."""
    lines: Lines = {name: [] for name in names}
    bare = dict.fromkeys(bare_of(name) for name in names)
    with bench.contenders([*bare, *names]) as made:
        for data in SIZES.values():
            for contender in made.values():
                contender.put(USER, copy.deepcopy(data))
            found = compare(made, bench.steps(range(rounds)))
            for name in names:
                lines[name].append(over_bare(found, name, bare_of(name)))
    return lines


def cost(bench: Bench) -> Table:
    no_fsm, ours, theirs = "aiogram without FSM", "telesession, memory", "pyTelegramBotAPI, memory"
    bare = {bare_of(name): [ONE] for name in IN_MEMORY} | {no_fsm: [ONE]}
    with bench.cells({**bare, **IN_MEMORY}) as made:
        # short rounds, and many: the more of them are over before something disturbs
        found = compare(made, bench.steps(range(bench.pick(200, 16))), seconds=0.005)

    def figure(name: str, column: str) -> float | None:
        key = name, column
        return over_bare(found, key, (bare_of(name), ONE)) if key in found else None

    lines: Lines = {name: [figure(name, column) for column in COLUMNS] for name in IN_MEMORY}
    unused = over_bare(found, ("bare aiogram", ONE), (no_fsm, ONE))
    share = shares(lines)
    return Table(
        "Cost of an update in memory over a bare handler",
        "µs; in brackets, over telesession's",
        list(COLUMNS),
        lines,
        ratio_to=ours,
        notes=[
            "Telesession over pyTelegramBotAPI's retrieve_data of one counter: one counter "
            f"{share(ours, ONE, theirs, ONE)} (target: 1.2), three stacked "
            f"{share(ours, THREE, theirs, ONE)} (3.0), the third of three when "
            f"{share(ours, THIRD, theirs, ONE)} (3.8); five fields over retrieve_data of the same "
            f"{share(ours, FIVE, theirs, FIVE)} (0.7).",
            f"A counter with a ttl over one without: {share(ours, TTL, ours, ONE)} (target: 1.6); "
            "one without, on a store where others have a ttl, over one where none has: "
            f"{share(ours, OTHERS, ours, ONE)} (1).",
            "The floor is the key function, one uncontended lock, one TTLCache read and write, one "
            "dump and one load. Telesession takes "
            + ", ".join(f"{share(ours, size, 'floor', size)}" for size in SIZES)
            + " times as long (target for the last: below 1.14).",
            "Each update is parsed anew, before the clock starts, comes alone, and is dropped when "
            "it is handled. A figure is the fastest round, "
            "less the fastest one of a bare handler; of one handler also for the third of three.",
            "aiogram's bare handler is one that does not use the FSM, in the default Dispatcher, "
            f"which costs it {unused:.1f} µs more than a Dispatcher with disable_fsm=True does.",
            "python-telegram-bot hands out its own dict: nothing is copied, locked or written, and "
            "its three are user_data, chat_data and bot_data. aiogram has no stack.",
        ],
    )


def shares(lines: Lines) -> Callable[[str, str, str, str], str]:
    """What says how many times as long one figure is as another, by line and column."""

    def share(name: str, column: str, other: str, its: str) -> str:
        places = list(COLUMNS)
        one, two = lines[name][places.index(column)], lines[other][places.index(its)]
        return "n/a" if one is None or not two else f"{one / two:.2f}"

    return share


def counted(bench: Bench) -> Table:
    """The row `instructions`."""
    number = bench.pick(10_000, 20)
    bare, ours, theirs = instructions.BARE, "telesession, memory", "pyTelegramBotAPI, memory"
    found = instructions.count(number)
    columns = [column for column in COLUMNS if (ours, column) in instructions.CELLS]
    lines: Lines = {
        name: [
            found[name, column] - (found[bare, ONE] if name != bare else 0)
            if (name, column) in found
            else None
            for column in columns
        ]
        for name in (bare, ours, theirs)
    }
    return Table(
        f"Instructions per update, of a loop of {number:,}, over a bare handler",
        "instructions, and all of them for the bare handler; in brackets, over telesession's",
        columns,
        lines,
        ratio_to=ours,
        notes=[
            "Counted by valgrind --tool=callgrind with PYTHONHASHSEED=0; what parses an update is "
            "not counted."
            if found
            else "valgrind is not installed here, so nothing was counted."
        ],
    )


def on_redis(bench: Bench) -> Table:
    ours, trips = "telesession, Redis", "two round trips"
    names = [ours, trips, "StateStorage, Redis", "pyTelegramBotAPI, Redis"]
    names += ["aiogram, Redis", "aiogram, Redis, isolated"]
    lines = costs(bench, names, bench.pick(40, 5))
    with bench.contenders(names) as made:
        for name, contender in made.items():
            contender.put(USER, COUNTER)
            lines[name] += traffic(bench.place, contender)
    share = ", ".join(f"{one / two:.2f}" for one, two in zip(lines[ours][:3], lines[trips]))
    return Table(
        "Cost of an update on Redis (Valkey) over a bare handler, by size of session",
        "µs; in brackets, over telesession's; and per update",
        [*SIZES, "round trips", "commands", "in Lua"],
        lines,
        ratio_to=ours,
        notes=[
            f"Telesession takes {share} times as long as two bare round trips of the same "
            "payload, a GET and a SET (target: 1.3, and 1.7 for the lists).",
            "Round trips are the server's total_reads_processed, commands the lines of MONITOR.",
        ],
    )


def traffic(place: Place, contender: Contender, times: int = 20) -> list[float]:
    """The server's count per update of reads from its sockets, commands, and commands in Lua."""
    contender.run(contender.updates(times, USER))
    address: Any = {"port": place.redis_port, "decode_responses": True}
    with redis.Redis(**address) as client, redis.Redis(**address) as other:
        other.ping()  # so that it makes its connection now

        def reads() -> int:
            found: Any = client.info("stats")
            return int(found["total_reads_processed"])

        before = reads()
        contender.run(contender.updates(times, USER))
        trips = reads() - before - 1  # that is ours
        kinds = []
        with client.monitor() as monitor:
            contender.run(contender.updates(times, USER))
            other.echo("the end")
            for command in monitor.listen():
                if command["command"].endswith("the end"):
                    break
                kinds.append(command["client_type"])
    lua = kinds.count("lua")
    return [trips / times, (len(kinds) - lua) / times, lua / times]


def on_disk(bench: Bench) -> Table:
    names = ["telesession, SQLite", "telesession, SQLite, synchronous=NORMAL"]
    names += ["bare sqlite3", "telesession, PostgreSQL", "bare psycopg"]
    names += ["StateStorage, SQLite", "pyTelegramBotAPI, pickle"]
    lines = costs(bench, names, bench.pick(30, 3))
    others = bench.pick(1000, 50)
    with bench.contenders([*names, "bare pyTelegramBotAPI"]) as made:
        for contender in bench.steps(list(made.values())):
            for user in range(USER, USER + others):
                contender.put(user, COUNTER)
        found = compare(made, bench.steps(range(bench.pick(30, 3))))
        for name, line in lines.items():
            line += [over_bare(found, name, bare_of(name)), statements(made[name])]

    def share(name: str, other: str) -> str:
        return ", ".join(f"{one / two:.2f}" for one, two in zip(lines[name][:3], lines[other]))

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
            "The bare drivers are given the same statements on one connection, and wait for the "
            "disk once; they lock nothing, and look at nothing. By size of session, telesession on "
            f"SQLite takes {share(names[0], 'bare sqlite3')} times as long as bare sqlite3 (target "
            f"for one counter: 1.5), with synchronous=NORMAL {share(names[1], names[-1])} times as "
            "long as the pickle storage with one user (1.0), and on PostgreSQL "
            f"{share(names[3], 'bare psycopg')} times as long as bare psycopg (1.4).",
        ],
    )


def statements(contender: Contender, times: int = 20) -> float | None:
    """How many statements an update of ours sends to the database, if it is one of SQL."""
    if not isinstance(contender, blocking.Telesession) or contender.engine is None:
        return None
    said: list[str] = []
    word = Say.word

    def listen(self: Say, text: str, *parameters: Any) -> None:
        said.append(text)
        word(self, text, *parameters)

    contender.run(contender.updates(times, USER))  # which may also remove what has expired
    with mock.patch.object(Say, "word", listen):
        contender.run(contender.updates(times, USER))
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
            for contender, group in itertools.product(made.values(), users.values()):
                for user in group:
                    contender.put(user, COUNTER)
            for _ in bench.steps(range(rounds)):
                for (name, contender), (many, group) in itertools.product(
                    made.items(), users.items()
                ):
                    users_of_each = itertools.islice(itertools.cycle(group), times)
                    updates = [contender.update(user) for user in users_of_each]
                    gc.collect()
                    found.setdefault((name, many), []).append(timed(contender, updates))
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
    without: list[float] = []
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
                gc.collect()
                timed(bare, updates[:])  # so that they are in warm memory, and sessions in cold
                without.append(timed(bare, updates[:]))
                picked.setdefault((name, size), []).append(timed(contender, updates[:]))
        gc.unfreeze()
    least = min(without)
    lines: Lines = {name: [min(picked[name, size]) - least for size in sizes] for name in names}
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
