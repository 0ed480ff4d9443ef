"""Instructions that an update takes, as callgrind counts them: the same at every run.

`count` runs this module under ``valgrind --tool=callgrind``. It imports everything and parses the
updates once, and forks a worker for each cell. A worker makes its bot, handles some updates, and
forks a process that ends at once; then it handles the others, and ends. For each process that ends
valgrind says how much it executed since the beginning: the difference is what the updates took.
"""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

from tests.benchmarks.columns import COLUMNS, FIVE, ONE, OTHERS, THIRD, THREE, TTL
from tests.benchmarks.contenders import make
from tests.benchmarks.places import Place

ROOT = Path(__file__).parents[2]
BARE = "bare pyTelegramBotAPI"
WARM = 100  # updates that are handled before

#: What is counted: 100 lists of 10 would take minutes.
CELLS = [(BARE, ONE)]
CELLS += [("telesession, memory", column) for column in (ONE, TTL, FIVE, THREE, THIRD, OTHERS)]
CELLS += [("pyTelegramBotAPI, memory", column) for column in (ONE, FIVE, THREE)]

Cell = tuple[str, str]


def count(number: int) -> dict[Cell, float]:
    """The instructions per update of each of `CELLS`; nothing where there is no valgrind."""
    if shutil.which("valgrind") is None:
        return {}
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [sys.executable, "-m", "tests.benchmarks.instructions", str(number)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(f"callgrind failed:\n{finished.stderr}")
    executed = dict(re.findall(r"^==(\d+)== Collected : (\d+)$", finished.stderr, re.M))
    found = {}
    for line in finished.stdout.splitlines():
        place, worker, start = json.loads(line)
        found[CELLS[place]] = (int(executed[str(worker)]) - int(executed[str(start)])) / number
    return found


def main(number: int) -> None:
    bare = make(BARE, Place(""))
    updates = bare.updates(WARM + number, 42)
    gc.collect()
    gc.freeze()
    turns, given_back = os.pipe()
    workers = []
    for place, cell in enumerate(CELLS):  # all at once, so that each finds the same memory
        workers.append(os.fork())
        if not workers[-1]:
            os.read(turns, 1)
            failed = 1
            try:
                run(place, cell, updates)
                failed = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os.write(given_back, b".")
                os._exit(failed)
    os.write(given_back, b"." * (os.cpu_count() or 1))
    failures = [os.waitpid(worker, 0)[1] for worker in workers]
    sys.exit(any(failures))


def run(place: int, cell: Cell, updates: list[object]) -> None:
    """Handle the updates; say on stdout which process did, and which one ended before."""
    name, column = cell
    data, options = COLUMNS[column]
    contender = make(name, Place(""), **options)
    contender.put(42, data)
    contender.run(updates[-WARM:])
    del updates[-WARM:]
    start = os.fork()
    if not start:
        os._exit(0)
    os.waitpid(start, 0)
    contender.run(updates)
    if contender.errors:
        raise contender.errors[0]
    os.write(1, f"[{place}, {os.getpid()}, {start}]\n".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
