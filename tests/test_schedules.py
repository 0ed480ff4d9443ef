"""5.1, 5.2 The locks under a scheduler, in its short form: see ``tests/schedules.py``."""

import pytest

from tests.schedules import SCENARIOS, Fault, Stage, explore, explore_deeper

pytestmark = pytest.mark.thorough

by_name = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=by_name)
def test_every_schedule(scenario):
    """5.1, 5.2, 5.4, 5.5 One at a time, first come first served, nobody forgotten, nothing left."""
    assert explore(Stage(), scenario, scenario.short) > 1


# Lines of the module.
LOOKS = """\
        if name in self.lines:
            return self.holders.get(name)
"""
DELETES = """\
        if self.holders.get(name) is holder:
            del self.holders[name]
"""
RELEASES = """\
        if name in self.lines:
            self.grant(name, holder)
"""
ENTERS = """\
                places = [number for number, one in enumerate(line) if one.holder is waiter.holder]
                if places:
                    line[places[0]] = waiter
                else:
                    line.append(waiter)
"""
LOOKS_AGAIN = """\
                self._grant(waiter.name)  # it may have been released just before there was a line
"""
GIVES = """\
        if self.holders.setdefault(name, first.holder) is not first.holder:
            return
"""
LEAVES_AGAIN = """\
            if _everyone.waiting.get(holder.thread) is waiter:
                self._leave(waiter)
"""
GIVES_WAY = """\
            del self.holders[name]
        self._grant(name)
"""
MOVES = """\
            line.moved = time.monotonic()
"""
GOES_ROUND = "while wanted is not None and wanted not in seen:"

# What is done to them, in which scenario that shows, and as what.
FAULTS = {
    "newcomers don't look for a line": ((LOOKS, ""), "three, one lock", "overtakes"),
    "the line is looked for before the holder is deleted": (
        (DELETES + RELEASES, RELEASES + DELETES),
        "two, one lock",
        "nobody wakes",
    ),
    "no second look after entering the line": ((LOOKS_AGAIN, ""), "two, one lock", "nobody wakes"),
    "the second look before entering the line": (
        (ENTERS + LOOKS_AGAIN, LOOKS_AGAIN + ENTERS),
        "two, one lock",
        "nobody wakes|KeyError",  # the line was empty, and so forgotten
    ),
    "the last comes first": (
        (ENTERS, ENTERS.replace("append", "appendleft")),
        "three, one lock",
        "overtakes",
    ),
    "granted without a look at who has it": (
        (GIVES, "        self.holders[name] = first.holder\n"),
        "two, one lock",
        "both have|KeyError",  # it was another one's when it was deleted
    ),
    "the line is left only once": (
        (LEAVES_AGAIN, "            pass\n"),
        "two, one interrupted",
        "left:",
    ),
    "what is given way is granted to nobody": (
        (GIVES_WAY, GIVES_WAY.replace("        self._grant(name)\n", "")),
        "two, opposite orders, one gives way",
        "nobody wakes",
    ),
    "a time-out that goes on while the line moves": (
        (MOVES, "            pass\n"),
        "a line that moves",
        "raised SessionBusy",
    ),
    "the walk along those who wait goes round": (
        (GOES_ROUND, "while wanted is not None:"),
        "three, two of them in a cycle",
        "round in circles",
    ),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(case):
    """Where two lines of the module are in another order, or one is missing."""
    change, scenario, found = case
    stage = Stage(change)
    with pytest.raises(Fault, match=found):
        explore_deeper(stage, by_name[scenario], by_name[scenario].depth)
