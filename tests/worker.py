"""A process of its own that handles updates, for tests of what several of them do to one store.

``python -m tests.worker URL TASK [ARGUMENTS]``; see `Worker`, which starts one, and `Crowd`.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from telesession import with_session
from tests.routing import routing
from tests.stores import TIMEOUT, message

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def connect(url: str, **options: Any) -> Iterator[Any]:
    """The leasing store that lives at ``url``."""
    scheme = url.partition(":")[0]
    if scheme == "mongodb":
        import pymongo

        from telesession.mongo import MongoStore

        with pymongo.MongoClient(url) as client:
            yield MongoStore(client.telesession.sessions, **options)
    elif scheme.startswith("redis"):
        import redis
        from redis.cluster import RedisCluster

        from telesession.redis import RedisStore

        cluster = scheme == "redis+cluster"
        kind = RedisCluster if cluster else redis.Redis
        with kind.from_url(url.replace("redis+cluster", "redis")) as client:
            yield RedisStore(client, **options)
    else:
        import sqlalchemy as sa

        from telesession.sql import SQLStore

        engine = sa.create_engine(url, pool_size=16)
        if scheme == "sqlite" and "FAKETIME_TIMESTAMP_FILE" in os.environ:
            sa.event.listen(engine, "connect", _step)
        yield SQLStore(engine, **options)
        engine.dispose()


def _step(connection: Any, record: Any) -> None:
    """Give SQLite the clock that `servers.ServerClock` sets."""
    file = Path(os.environ["FAKETIME_TIMESTAMP_FILE"])

    def now(_: str) -> float:
        return (time.time() + float(file.read_text())) / 86400 + 2440587.5

    connection.create_function("julianday", 1, now)


class Worker:
    """A process that does a task on the store at ``url``.

    It says "ready" when it is about to begin, waits for a line, and ends with what it made of it.
    """

    def __init__(self, url: str, task: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker", url, task, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self) -> Any:
        """The next thing that it says."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        assert line, f"the worker ended with {self.process.wait(TIMEOUT)}"
        return json.loads(line)

    def go(self) -> None:
        self.process.stdin.write("\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def workers(number: int, url: str, task: str, *arguments: object) -> Iterator[list[Worker]]:
    """That many workers, which have all begun when the body runs."""
    with contextlib.ExitStack() as stack:
        all = [stack.enter_context(Worker(url, task, *arguments)) for _ in range(number)]
        for worker in all:
            assert worker.read() == "ready"
        for worker in all:
            worker.go()
        yield all


class Crowd:
    """Workers that do one task after the other, which saves starting them for each."""

    def __init__(self, number: int) -> None:
        self._workers = [Worker("", "serve") for _ in range(number)]

    def __call__(self, url: str, *tasks: Sequence[object]) -> list[Worker]:
        """Give a task with its arguments to as many workers; return when all are about to begin."""
        busy = self._workers[: len(tasks)]
        for worker, task in zip(busy, tasks, strict=True):
            worker.process.stdin.write(json.dumps([url, *map(str, task)]))  # type: ignore[union-attr]
            worker.go()
        for worker in busy:
            assert worker.read() == "ready"
        return busy

    def end(self) -> None:
        for worker in self._workers:
            worker.__exit__()


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def ready() -> None:
    say("ready")
    sys.stdin.readline()


# Tasks


def increments(url: str, times: str, threads: str, users: str) -> None:
    """Count messages: ``times`` of them on each of ``threads``, of random users; say how many."""
    counted: dict[int, int] = {}
    with connect(url) as store:

        @with_session(store=store)
        def count(update: Any) -> None:
            n = update.session.get("n", 0)
            time.sleep(random.random() * 0.003)
            update.session["n"] = n + 1

        def run() -> None:
            for _ in range(int(times)):
                user = random.randrange(int(users))
                count(message(user + 42))
                with mutex:
                    counted[user] = counted.get(user, 0) + 1

        mutex = threading.Lock()
        crowd = [threading.Thread(target=run) for _ in range(int(threads))]
        ready()
        start = time.monotonic()
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
    say({"seconds": time.monotonic() - start, "counted": counted})


def hold(url: str, lease: str, seconds: str) -> None:
    """Have the session of user 42 for so many seconds, and say so; then say how that went."""
    with connect(url, lease=float(lease)) as store:

        @with_session(store=store, lock_timeout=10)
        def handler(update: Any) -> None:
            update.session["held"] = update.session.get("held", 0) + 1
            say("inside")
            time.sleep(float(seconds))

        ready()
        try:
            handler(message())
            say("saved")
        except Exception as error:
            say(type(error).__name__)


def spans(url: str, lease: str, times: str) -> None:
    """Add to the session of user 42 so often, and tell from when to when each handler had it."""
    inside: list[tuple[float, float]] = []
    with connect(url, lease=float(lease)) as store:

        @with_session(store=store)
        def handler(update: Any) -> None:
            entered = time.monotonic()
            update.session["held"] = update.session.get("held", 0) + 1
            time.sleep(random.random() * 0.005)
            inside.append((entered, time.monotonic()))

        ready()
        for _ in range(int(times)):
            handler(message())
    say(inside)


def end(url: str, lease: str, seconds: str, how: str) -> None:
    """Handle a message for so many seconds, then end: well, or by an exception of the handler."""
    manager = connect(url, lease=float(lease))

    @with_session(store=manager.__enter__())
    def handler(update: Any) -> None:
        time.sleep(float(seconds))
        if how == "raising":
            raise SystemExit(3)

    ready()
    handler(message())


def fork(url: str, lease: str, seconds: str) -> None:
    """Handle a message here and, after a fork, in both processes; each takes so many seconds."""
    with connect(url, lease=float(lease)) as store:

        @with_session(store=store)
        def handler(update: Any) -> None:
            update.session["n"] = update.session.get("n", 0) + 1
            say("inside")
            time.sleep(float(seconds))
            say("leaving")

        ready()
        handler(message())
        child = os.fork()
        try:
            handler(message())
        except Exception as error:
            say(type(error).__name__)
        if not child:
            os._exit(0)
        os.waitpid(child, 0)


def retrievals(url: str, times: str) -> None:
    """Count so often in the data of user 42, by blocks as pyTelegramBotAPI has them."""
    from telesession.states import StateStorage

    with connect(url) as store:
        storage = StateStorage(with_session(store=store))
        ready()
        for _ in range(int(times)):
            with storage.get_interactive_data(42, 42) as data:
                data["n"] = data.get("n", 0) + 1
    say(int(times))


def route(url: str, threads: str, times: str) -> None:
    """Handle updates that handlers under `when` count by turns; say how that went."""
    with connect(url) as store:
        ready()
        say(routing(store, int(threads), int(times)))


def serve(url: str) -> None:
    """Do the tasks that come as lines."""
    for line in sys.stdin:
        signal.alarm(2 * TIMEOUT)  # ends it where it hangs
        url, task, *arguments = json.loads(line)
        globals()[task](url, *arguments)


if __name__ == "__main__":
    globals()[sys.argv[2]](sys.argv[1], *sys.argv[3:])
