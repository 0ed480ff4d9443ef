"""A process with a contender of its own, for rows about several of them, or about their death.

``python -m tests.benchmarks.process PLACE``; see `Process`, which starts one.
"""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import make
from tests.benchmarks.places import Place

ROOT = Path(__file__).parents[2]


class Process:
    """A process that does tasks, each with a new contender; killed at the end of the body."""

    def __init__(self, place: Place) -> None:
        given = json.dumps(dataclasses.asdict(place))
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.process", given],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def give(self, name: str, options: dict[str, Any], task: str, times: int) -> None:
        """Give it a task for the contender ``name``; it says "ready" when it is about to begin."""
        self.popen.stdin.write(json.dumps([name, options, task, times]))
        self.go()

    def read(self) -> Any:
        """The next thing that it says."""
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.popen.args} ended with {self.popen.wait()}")
        return json.loads(line)

    def go(self) -> None:
        """Have it begin, once it has said "ready"."""
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exception: object) -> None:
        self.popen.kill()
        self.popen.communicate()


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def hold(user: int) -> float:
    say("inside")
    return 600


def main(place: str) -> None:
    for line in sys.stdin:
        name, options, task, times = json.loads(line)
        pause = hold if task == "hold" else lambda user: random.random() * 0.003
        contender = make(name, Place(**json.loads(place)), pause=pause, **options)
        updates = contender.updates(times, 42)
        say("ready")
        sys.stdin.readline()
        contender.run(updates)
        say({"errors": len(contender.errors)})
        contender.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
