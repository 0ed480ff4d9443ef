"""Tables as JSON and as reStructuredText, with what they were measured on."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import sqlite3
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who only reads results needs no libraries
    from tests.benchmarks.measure import Bench, Table

PACKAGES = ["telesession", "pyTelegramBotAPI", "aiogram", "python-telegram-bot", "cachetools"]
PACKAGES += ["redis", "SQLAlchemy", "psycopg"]


def versions(bench: "Bench") -> dict[str, str]:
    found = {"Python": platform.python_version()}
    found |= {package: importlib.metadata.version(package) for package in PACKAGES}
    found["SQLite"] = sqlite3.sqlite_version
    if bench.place.redis_port:
        import redis

        with redis.Redis(port=bench.place.redis_port) as client:
            info: Any = client.info("server")
            found["Valkey"] = info.get("valkey_version", info["redis_version"])
    if bench.place.postgres_url:
        import sqlalchemy

        engine = sqlalchemy.create_engine(bench.place.postgres_url)
        with engine.connect() as connection:
            version = connection.exec_driver_sql("SHOW server_version").scalar_one()
            found["PostgreSQL"] = str(version).split()[0]
        engine.dispose()
    return found


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            named = [
                line.partition(":")[2].strip() for line in lines if line.startswith("model name")
            ]
        model = named[0] if named else model
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform()}


def as_json(
    bench: "Bench", tables: "Mapping[str, Table]", took: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "quick": bench.quick,
        "machine": machine(),
        "versions": versions(bench),
        "rows": {
            name: {
                **dataclasses.asdict(table),
                "ratios": table.ratios() if table.ratio_to else {},
                "took": round(took[name], 1),
            }
            for name, table in tables.items()
        },
    }


def figure(value: Any, ratio: float | None = None) -> str:
    """A figure with as many digits as it deserves, and in brackets its ratio."""
    if value is None:
        return "n/a"
    if value == 0 or float(value).is_integer():
        text = f"{int(value):,}"
    elif abs(value) >= 100:
        text = f"{value:,.0f}"
    elif abs(value) >= 10:
        text = f"{value:.1f}"
    else:
        text = f"{value:.2f}" if abs(value) >= 0.095 else f"{value:.4f}"
    return text if ratio is None else f"{text} ({ratio:.2f})"


def rst_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose cells stand on one line each."""
    widths = [max(map(len, column)) for column in zip(head, *body)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in body]
    title = "  ".join(cell.ljust(width) for cell, width in zip(head, widths))
    return "\n".join(line.rstrip() for line in [rule, title, rule, *lines, rule])


def rst_of(row: Mapping[str, Any], columns: Sequence[str] = (), lines: Sequence[str] = ()) -> str:
    """A table of `as_json`, or some of its columns and lines."""
    head = list(columns or row["columns"])
    places = [row["columns"].index(column) for column in head]
    body = []
    for name in lines or row["lines"]:
        ratios = row["ratios"].get(name) if name != row["ratio_to"] else None
        cells = [
            figure(row["lines"][name][place], ratios[place] if ratios else None) for place in places
        ]
        body.append([name, *cells])
    return rst_table(["\\", *head], body)


def measured_on(results: Mapping[str, Any]) -> str:
    where = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{results['date']}, {where['cpu']}, {where['cores']} cores; {packages}."


def as_rst(results: Mapping[str, Any]) -> str:
    parts = ["Benchmarks\n==========", measured_on(results)]
    if results["quick"]:
        parts.append("**Measured with --quick: only good to see that it runs.**")
    for row in results["rows"].values():
        parts.append(f"{row['title']}\n{'-' * len(row['title'])}")
        parts += [f"In {row['unit']}.", rst_of(row)]
        parts += ["\n".join(f"* {note}" for note in row["notes"])] if row["notes"] else []
    return "\n\n".join(parts) + "\n"
