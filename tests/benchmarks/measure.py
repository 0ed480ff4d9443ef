"""How it is measured.

Rounds of all contenders alternate, so that a noisy moment hits all of them, and the median of the
rounds counts. The cost of a session is the time of an update through the dispatcher, less that of a
bare handler of the same dispatcher in the same round. Ratios travel, absolute figures don't.
"""

import contextlib
import dataclasses
import gc
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from tests.benchmarks.contenders import Contender, Data, bare_of, make
from tests.benchmarks.places import Place

USER = 42
COUNTER: Data = {"n": 0}
Lines = dict[str, list[Any]]  #: by contender, its figures


@dataclasses.dataclass
class Table:
    """Figures of several contenders: one line for each, one figure or None in each column."""

    title: str
    unit: str
    columns: list[str]
    lines: dict[str, list[Any]]
    ratio_to: str = ""  #: the line that the others are to be compared to
    notes: list[str] = dataclasses.field(default_factory=list)

    def ratios(self) -> dict[str, list[float | None]]:
        """Each figure over that of the line `ratio_to`."""
        base = self.lines.get(self.ratio_to, [None] * len(self.columns))
        return {
            name: [
                one / other if one is not None and other else None for one, other in zip(line, base)
            ]
            for name, line in self.lines.items()
        }


@dataclasses.dataclass
class Bench:
    """Where we measure, and how thoroughly."""

    place: Place
    quick: bool

    def steps(self, items: Sequence[Any]) -> Iterable[Any]:
        """The items, with a progress bar."""
        return tqdm(items, leave=False, dynamic_ncols=True)

    def pick(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    @contextlib.contextmanager
    def contenders(self, names: Iterable[str], **options: Any) -> Iterator[dict[str, Contender]]:
        with contextlib.ExitStack() as stack:
            made = {}
            for name in names:
                made[name] = make(name, self.place, **options)
                stack.callback(made[name].close)
            yield made


def compare(
    contenders: dict[str, Contender], rounds: Sequence[int], seconds: float = 0.02
) -> dict[str, list[float]]:
    """Microseconds per update of each contender, in each round."""
    updates = {}
    for name, contender in contenders.items():
        some = [contender.update(USER) for _ in range(10)]
        contender.run(some)
        fastest = min(timed(contender, some) for _ in range(3))
        # few updates, since a bot's handler gets each one fresh from the parser
        updates[name] = some * max(1, min(200, round(seconds * 1e6 / fastest / 10)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.freeze()  # what was imported is no business of the collector while we measure
    for _ in rounds:
        for name, contender in contenders.items():
            found[name].append(timed(contender, updates[name]))
    gc.unfreeze()
    for name, contender in contenders.items():
        if contender.errors:
            raise RuntimeError(f"{name} failed") from contender.errors[0]
    return found


def timed(contender: Contender, updates: Sequence[Any]) -> float:
    start = time.perf_counter()
    contender.run(updates)
    return (time.perf_counter() - start) / len(updates) * 1e6


def over_bare(found: dict[str, list[float]], name: str) -> float:
    bare = found[bare_of(name)]
    return statistics.median(one - other for one, other in zip(found[name], bare))
