"""How it is measured.

Rounds of all contenders alternate, so that a noisy moment hits all of them. Each round has updates
of its own, parsed before the clock starts. The cost of a session is the time of an update through
the dispatcher in the fastest round, less that of a bare handler of the same dispatcher in its own
fastest round: noise only adds, and the fastest round has the least. Ratios travel, absolute figures
don't.
"""

import contextlib
import copy
import dataclasses
import gc
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from tests.benchmarks.columns import COLUMNS
from tests.benchmarks.contenders import Contender, make
from tests.benchmarks.places import Place

USER = 42
Lines = dict[str, list[Any]]  #: by contender, its figures
Cell = tuple[str, str]  #: the name of a contender, and one of `COLUMNS`
Key = TypeVar("Key", bound=Hashable)


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

    @contextlib.contextmanager
    def cells(self, lines: Mapping[str, Iterable[str]]) -> Iterator[dict[Cell, Contender]]:
        """A contender for each of the columns of each line, with what it is to have stored."""
        with contextlib.ExitStack() as stack:
            made = {}
            for name, columns in lines.items():
                for column in columns:
                    data, options = COLUMNS[column]
                    one = stack.enter_context(self.contenders([name], **options))[name]
                    one.put(USER, copy.deepcopy(data))
                    made[name, column] = one
            yield made


def compare(
    contenders: Mapping[Key, Contender], rounds: Iterable[int], seconds: float = 0.02
) -> dict[Key, list[float]]:
    """Microseconds per update of each contender, in each round."""
    sizes = {}
    for key, contender in contenders.items():
        contender.run(contender.updates(10, USER))
        fastest = min(timed(contender, contender.updates(10, USER)) for _ in range(3))
        sizes[key] = max(10, min(200, round(seconds * 1e6 / fastest)))
    found: dict[Key, list[float]] = {key: [] for key in contenders}
    gc.collect()
    gc.freeze()  # what was imported is no business of the collector while we measure
    for _ in rounds:
        for key, contender in contenders.items():
            updates = contender.updates(sizes[key], USER)
            gc.collect()  # for what was parsed, of which the collector would see to some
            found[key].append(timed(contender, updates))
    gc.unfreeze()
    for key, contender in contenders.items():
        if contender.errors:
            raise RuntimeError(f"{key} failed") from contender.errors[0]
    return found


def timed(contender: Contender, updates: list[Any]) -> float:
    number, start = len(updates), time.perf_counter()
    contender.run(updates)
    return (time.perf_counter() - start) / number * 1e6


def over_bare(found: Mapping[Key, Sequence[float]], key: Key, bare: Key) -> float:
    return min(found[key]) - min(found[bare])
