"""What a session holds, and how it is declared, where the cost of an update is measured."""

from typing import Any

from tests.benchmarks.contenders import Data

COUNTER: Data = {"n": 0}

SIZES: dict[str, Data] = {
    "one counter": COUNTER,
    "five fields": {
        "n": 0,
        "name": "Alice",
        "city": "Paris",
        "step": "confirm",
        "cart": [{"id": 1, "qty": 2}, {"id": 2, "qty": 1}],
    },
    "100 lists of 10": {"n": 0, "lists": [list(range(i, i + 10)) for i in range(100)]},
}

ONE, FIVE, LISTS = SIZES
TTL = "with a ttl"
THREE = "three stacked counters"
THIRD = "third of three when"
OTHERS = "one counter, others with a ttl"

#: By name, what is stored, and the options of the contender.
COLUMNS: dict[str, tuple[Data, dict[str, Any]]] = {
    ONE: (COUNTER, {}),
    TTL: (COUNTER, {"ttl": 3600.0}),
    FIVE: (SIZES[FIVE], {}),
    LISTS: (SIZES[LISTS], {}),
    THREE: (COUNTER, {"stack": 3}),
    THIRD: (COUNTER, {"whens": 3}),
    OTHERS: (COUNTER, {"others_ttl": 3600.0}),
}
