"""Where sessions are kept while we measure: servers of our own, and a directory."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass
class Place:
    """The addresses of all stores, which another process can be told."""

    directory: str
    redis_port: int = 0
    postgres_url: str = ""

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis_port}"

    @property
    def sqlite_url(self) -> str:
        return f"sqlite:///{self.directory}/sessions.db"

    @property
    def pickle_path(self) -> str:
        return f"{self.directory}/pickle/states.pkl"


@contextlib.contextmanager
def place(*needed: str) -> Iterator[Place]:
    """A new directory and, where ``needed``, new servers: ``"redis"``, ``"postgres"``."""
    import pytest  # not above: the processes that are told an address need it not

    from tests import servers

    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="telesession-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)  # PostgreSQL is not run by root
        found = Place(str(directory))
        try:
            if "redis" in needed:
                found.redis_port = stack.enter_context(servers.valkey_server(directory)).port
            if "postgres" in needed:
                server = stack.enter_context(servers.postgres_server(directory / "postgres"))
                found.postgres_url = server.url
        except pytest.skip.Exception as missing:
            raise SystemExit(f"{missing}: pip install -e '.[bench]'") from None
        yield found
