"""All rows that are measured."""

from collections.abc import Callable

from tests.benchmarks import safety, speed
from tests.benchmarks.measure import Bench, Table

#: By name: what makes the table, and the servers that it needs.
ROWS: dict[str, tuple[Callable[[Bench], Table], tuple[str, ...]]] = {
    "kept": (safety.kept, ("redis", "postgres")),
    "processes": (safety.processes, ("redis", "postgres")),
    "cost": (speed.cost, ()),
    "instructions": (speed.counted, ()),
    "redis": (speed.on_redis, ("redis",)),
    "disk": (speed.on_disk, ("postgres",)),
    "threads": (speed.threads, ()),
    "stored": (speed.stored, ()),
    "memory": (speed.memory, ()),
    "flood": (safety.flood, ()),
    "killed": (safety.killed, ("redis", "postgres")),
}
