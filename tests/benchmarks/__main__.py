"""Telesession beside what users would pick instead, measured in one run.

    python -m tests.benchmarks [--quick] [--only ROW] [--out DIRECTORY]

A whole run takes some minutes and writes ``results.json``, ``results.rst`` and plots. A part of it,
or a quick one, is printed, and written where ``--out`` says.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

try:
    import aiogram  # noqa: F401
    import telegram  # noqa: F401
    from tqdm import tqdm
except ImportError as missing:
    raise SystemExit(f"{missing}: pip install -e '.[bench]'") from None

from tests.benchmarks.measure import Bench
from tests.benchmarks.places import place
from tests.benchmarks.plots import PLOTS
from tests.benchmarks.report import as_json, as_rst
from tests.benchmarks.rows import ROWS

RESULTS = Path(__file__).parent / "results"


def measure(names: list[str], quick: bool) -> dict[str, Any]:
    needed = {server for name in names for server in ROWS[name][1]}
    with place(*needed) as found:
        bench, tables, took = Bench(found, quick), {}, {}
        progress = tqdm(names, dynamic_ncols=True)
        for name in progress:
            progress.set_description(name)
            start = time.perf_counter()
            tables[name] = ROWS[name][0](bench)
            took[name] = time.perf_counter() - start
        return as_json(bench, tables, took)


def write(results: dict[str, Any], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    content = {"results.json": json.dumps(results, indent=1, ensure_ascii=False) + "\n"}
    content["results.rst"] = as_rst(results)
    for name, (row, plot) in PLOTS.items():
        if row in results["rows"]:
            content[name] = plot(results["rows"])
    for name, text in content.items():
        (directory / name).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    parser.add_argument(
        "--only", action="append", choices=ROWS, metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--out", type=Path, help=f"where a whole run goes to {RESULTS}")
    options = parser.parse_args()
    results = measure(options.only or list(ROWS), options.quick)
    print(as_rst(results))
    whole = not (options.quick or options.only)
    if options.out or whole:
        write(results, options.out or RESULTS)


if __name__ == "__main__":
    main()
