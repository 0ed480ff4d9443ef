"""The README's figures, from ``results.json``: between ``.. begin figures`` and ``.. end figures``.

    python -m tests.benchmarks.readme [--check]

writes them, or fails if they are not what is there.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.report import measured_on

ROOT = Path(__file__).parents[2]
README = ROOT / "README.rst"
RESULTS = Path(__file__).parent / "results" / "results.json"
MARKED = re.compile(r"(?<=^\.\. begin figures\n)(.*?)(?=^\.\. end figures$)", re.M | re.S)

#: What the README compares: each store of telesession, the row with its costs, and which of
#: pyTelegramBotAPI's storages one would use instead.
SHOWN = [
    ("memory", "cost", "memory"),
    ("Redis", "redis", "Redis"),
    ("SQLite", "disk", "pickle"),
    ("PostgreSQL", "disk", None),
]
PLOT = "lost_updates.svg"
HEAD = ["", "telesession", "kept", "pyTelegramBotAPI", "kept "]


def figures(results: Mapping[str, Any]) -> str:
    """What stands between the markers."""
    rows = results["rows"]

    def of(row: str, line: str, column: str) -> Any:
        return rows[row]["lines"].get(line, {})[rows[row]["columns"].index(column)]

    lines: dict[str, list[Any]] = {}
    for name, row, instead in SHOWN:
        ours, theirs = f"telesession, {name}", f"pyTelegramBotAPI, {instead}"
        lines[name] = [of(row, ours, "one counter"), of("kept", ours, "8 threads")]
        lines[name] += (
            [f"{instead}: {shown(of(row, theirs, 'one counter'))}"] if instead else ["n/a"]
        )
        lines[name] += [of("kept", theirs, "8 threads") if instead else "n/a"]
    table = [HEAD, *([name, *map(shown, line)] for name, line in lines.items())]
    image = (RESULTS.parent / PLOT).relative_to(ROOT).as_posix()
    return "\n".join(
        [
            "",
            *simple_table(table),
            "",
            "Microseconds for an update of one counter, also with pyTelegramBotAPI's storage; how",
            f"many of 200 are kept on 8 threads. Measured on {measured_on(results).split(';')[0]}.",
            "",
            f".. image:: {image}",
            f"   :alt: {rows['kept']['title']}",
            "",
            "",
        ]
    )


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def simple_table(rows: list[list[str]]) -> list[str]:
    """The lines of a table in reStructuredText; the first row is its head."""
    widths = [max(len(row[number]) or 1 for row in rows) for number in range(len(rows[0]))]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join((cell or "\\").ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    ]
    return [rule, lines[0], rule, *lines[1:], rule]


def main(check: bool) -> None:
    text = README.read_text(encoding="utf-8")
    if len(MARKED.findall(text)) != 1:
        sys.exit("README.rst must have '.. begin figures' and '.. end figures' once, on own lines")
    fresh = figures(json.loads(RESULTS.read_text(encoding="utf-8")))
    changed = MARKED.sub(lambda match: fresh, text)
    if check and changed != text:
        sys.exit(
            "README.rst does not say what results.json does: python -m tests.benchmarks.readme"
        )
    if not check:
        README.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] == ["--check"])
