"""The table of faults: what a user gets when something fails, for each store.

`MATRIX` says what the tests of `test_faults` have to see, and ``tests/faults.rst`` is made of it:
``python -m tests.faults --write``.
"""

import sys
import textwrap
from pathlib import Path

STORES = {
    "memory": "``MemoryStore``",
    "redis": "``RedisStore``",
    "sqlite": "SQLite",
    "postgres": "PostgreSQL",
    "mariadb": "MariaDB",
    "mongo": "``MongoStore``",
}

FAULTS = {
    "dies": "the bot's process is killed in a handler",
    "stalls": "the bot's process stalls for longer than its lease",
    "gone": "the server dies in the middle of a handler, and stays dead; the next update",
    "restarts-between": "the server is killed and starts again between two updates",
    "restarts-inside": "the same in the middle of a handler, within its lease",
    "slow": "the server does not answer for longer than the lease: before a handler; in the middle",
    "full": "memory or disk is full: what does not fit; the next update, which would",
    "read-only": "the server becomes read-only in the middle of a handler; the next update",
    "retry": "the answer to a save is lost, and the client's connection with it",
    "clock-back": "the bot's process is killed in a handler, and the clock steps back an hour",
    "clock-forward": "the clock steps forward an hour in the middle of a handler; and others come",
    "failover": "another server takes over behind the same name; the next updates",
    "fork": "the process forks after it used the store",
    "interrupt": "an exception out of a signal handler between a command and its answer",
}


def ending(what: str, kind: str) -> str:
    return f"{what}: ``{kind}``"


SAVED = "saved"
NOT_RUN = ending("handler not run", "SessionStoreError")
REFUSED = ending("save refused", "SessionStoreError")
LOST = ending("save refused", "SessionLost")
FREE = "nothing saved is lost; the next update waits for *lease* at most"
FORGETS = "saved, and the session least recently used is gone, see ``maxsize``"
NO_SERVER = "has no server"
UNMOVED = "nothing: its clock can't be set"
ONCE = "saved once"
UNKNOWN = "``SessionStoreError``, which says that it is not known"
WAITS = "the next update waits for *lease* at most"
OWN = "each user's updates find what is theirs"

#: What the test of a cell observes, in its words; or why there is no test, after "not tested".
MATRIX: dict[str, dict[str, str]] = {
    "dies": {"memory": "all sessions are gone", **dict.fromkeys(list(STORES)[1:], FREE)},
    "stalls": {"memory": SAVED, **dict.fromkeys(list(STORES)[1:], LOST)},
    "gone": {
        "memory": NO_SERVER,
        "redis": f"{REFUSED}; {NOT_RUN}",
        "sqlite": f"{REFUSED}; {NOT_RUN}",
        "postgres": f"{REFUSED}; {NOT_RUN}",
        "mariadb": f"{REFUSED}; {NOT_RUN}",
        "mongo": f"{REFUSED}; {NOT_RUN}",
    },
    "restarts-between": {"memory": NO_SERVER, **dict.fromkeys(list(STORES)[1:], SAVED)},
    "restarts-inside": {"memory": NO_SERVER, **dict.fromkeys(list(STORES)[1:], SAVED)},
    "slow": {
        "memory": NO_SERVER,
        "redis": f"{NOT_RUN}; {REFUSED}",
        "sqlite": f"{NOT_RUN}; {REFUSED}",
        "postgres": f"{SAVED}, after waiting for it; {SAVED}",
        "mariadb": f"{NOT_RUN}; {REFUSED}",
        "mongo": f"{NOT_RUN}; {REFUSED}",
    },
    "full": {
        "memory": FORGETS,
        "redis": f"{REFUSED}; {NOT_RUN}",
        "sqlite": f"{REFUSED}; {SAVED}",
        "postgres": f"{REFUSED}; {SAVED}",
        "mariadb": "not tested: MariaDB 10.11 may end itself, and has to be started again",
        "mongo": "not tested: there is no MongoDB here whose disk could be filled",
    },
    "read-only": {
        "memory": NO_SERVER,
        "redis": f"{REFUSED}; {NOT_RUN}",
        "sqlite": f"{REFUSED}; {NOT_RUN}",
        "postgres": f"{REFUSED}; {NOT_RUN}",
        "mariadb": f"{REFUSED}; {NOT_RUN}",
        "mongo": "not tested: there is no MongoDB here with a secondary",
    },
    "retry": {
        "memory": NO_SERVER,
        "redis": ONCE,
        "sqlite": NO_SERVER,
        "postgres": f"{ONCE}, or {UNKNOWN}",
        "mariadb": f"{ONCE}, or {UNKNOWN}",
        "mongo": f"{ONCE}, or {UNKNOWN}",
    },
    "clock-back": {"memory": UNMOVED, **dict.fromkeys(list(STORES)[1:], WAITS)},
    "clock-forward": {
        "memory": UNMOVED,
        "redis": f"{LOST}; {LOST}",
        **dict.fromkeys(list(STORES)[2:], f"{SAVED}; {LOST}"),
    },
    "failover": {
        "memory": NO_SERVER,
        "redis": f"{NOT_RUN}; {SAVED}",
        "sqlite": NO_SERVER,
        "postgres": f"{NOT_RUN}; {SAVED}",
        "mariadb": "not tested: its administrator may write where it is read-only",
        "mongo": "not tested: there is no MongoDB here with a secondary",
    },
    "fork": {
        "memory": "saved, by each process for itself",
        **dict.fromkeys(list(STORES)[1:], "saved, by both processes"),
    },
    "interrupt": dict.fromkeys(STORES, OWN),
}

NOTES = """\
In every case, what was saved before stands, and when the fault is over the bot goes on without a
restart: its next update is saved, after waiting for *lease* at most. Each is a test:
``pytest tests/test_faults.py -k "full and redis"``.

* ``RedisStore``: on Valkey with ``appendonly yes`` and ``appendfsync always``. Without persistence
  a restart loses all sessions, and the save of a handler that ran meanwhile is refused
  (``SessionLost``).
* SQLite: there is no server that could die. Another process locks the file instead, for good, for a
  moment, and for longer than the connection's timeout. The file itself must not be replaced while
  processes have it open, as SQLite's documentation says.
* ``MongoStore``: on SecantusDB, which speaks as MongoDB does.

Clients of Redis, MariaDB and MongoDB have a timeout in these tests; psycopg has none, and waits.
"""


HEAD = [
    "Fault by fault",
    "==============",
    "",
    "What an update gets when something fails, for each store; ``tests/faults.py`` makes this",
    "page, and ``tests/test_faults.py`` tests it.",
    "",
]


def table() -> str:
    """What ``tests/faults.rst`` says."""
    lines = [*HEAD, NOTES]
    for fault, what in FAULTS.items():
        stores: dict[str, list[str]] = {}
        for store, outcome in MATRIX[fault].items():
            stores.setdefault(outcome, []).append(STORES[store])
        lines += [f"**{what[0].upper()}{what[1:]}**", ""]
        for outcome, same in stores.items():
            lines += textwrap.wrap(
                f"* {', '.join(same)}: {outcome}",
                100,
                subsequent_indent="  ",
                break_on_hyphens=False,
                break_long_words=False,
            )
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


PAGE = Path(__file__).with_name("faults.rst")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(table(), encoding="utf-8")
    else:
        print(table())
