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

from tests.benchmarks.report import measured_on, rst_of

ROOT = Path(__file__).parents[2]
README = ROOT / "README.rst"
RESULTS = Path(__file__).parent / "results" / "results.json"
MARKED = re.compile(r"(?<=^\.\. begin figures\n)(.*?)(?=^\.\. end figures$)", re.M | re.S)

#: The rows that the README shows, of those that there are figures of, each with its columns, or all
#: of them; and the plot behind it.
SHOWN: dict[str, tuple[list[str], str]] = {
    "kept": (["2 threads", "8 threads", "all at once"], "lost_updates.svg"),
    "processes": (["kept, one by one", "s, one by one", "kept, concurrent", "s, concurrent"], ""),
    "cost": ([], "cost_by_size.svg"),
    "instructions": ([], ""),
    "redis": ([], ""),
    "disk": ([], ""),
    "flood": ([], ""),
    "killed": ([], ""),
    "stored": ([], ""),
    "memory": ([], ""),
}


def figures(results: Mapping[str, Any]) -> str:
    """What stands between the markers."""
    parts = [f"Measured in one run on {measured_on(results)}"]
    for name, (columns, plot) in SHOWN.items():
        row = results["rows"].get(name)
        if row is None:
            continue
        parts += [f"*{row['title']}* ({row['unit']}):", rst_of(row, columns), *row["notes"]]
        if plot:
            image = f".. image:: {(RESULTS.parent / plot).relative_to(ROOT).as_posix()}"
            parts.append(f"{image}\n   :alt: {row['title']}")
    return "\n" + "\n\n".join(parts) + "\n\n"


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
