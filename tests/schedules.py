"""Schedules: two and three threads go through `_locks` line by line, in every order up to a depth.

::

    python -m tests.schedules                # every scenario, as deep as it takes minutes
    python -m tests.schedules --depth 1      # all of them at that depth
    python -m tests.schedules --opcodes      # threads take turns within a line, too

A thread is stopped before each line of the module (by `sys.settrace`), and one of them goes on at a
time. The module gets locks and a clock that the scheduler knows, so it knows who can go on, and a
time-out comes when the schedule says so. A schedule is the list of the choices that were made; the
next one changes the last choice that could be another one, and everything is run anew.

The depth of a schedule is how often something happened that need not have: another thread went on
though this one could have, a time-out came while others could go on, an exception came out of a
line. Who goes on where a thread has to wait, or is at its end, costs nothing. All schedules up to a
depth are run. In each, after every line:

- at most one has a lock (mutual exclusion);
- nobody got it before one who was in line already when they came (first come, first served);

and in the end everybody has come through (no lost wake-up), and the tables are empty.
"""

import argparse
import contextlib
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from telesession import SessionBusy, _locks

PATH = "<the locks on stage>"  # of the module's code, as the threads run it
NEVER = 1e9  # seconds: a time-out that no schedule lets come
TICK = 2.0**-10  # seconds; a power of two, so that the clock is exact
LONGEST = 2000  # steps, after which a schedule goes round in circles

GO, TIME_OUT, INTERRUPT = "goes on", "times out", "is interrupted"

A, B = "a", "b"


class Fault(AssertionError):
    """A schedule in which a promise was broken."""


class Interrupt(BaseException):
    """What a signal handler raises."""


class _Abort(BaseException):
    """Ends the threads of a schedule in which a fault was found."""


class _Gate:
    """In the place of `threading.Lock`."""

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage
        self._locked = False

    def locked(self) -> bool:
        return self._locked

    def free(self) -> bool:
        return not self._locked

    def acquire(self, timeout: float = -1) -> bool:
        if self._locked and timeout != 0:
            run = self._stage.run
            deadline = run.clock + timeout if 0 < timeout < NEVER / 2 else None
            if run.wait(self, deadline) == TIME_OUT:
                assert deadline is not None
                run.clock = max(run.clock, deadline)
        if self._locked:
            return False
        self._locked = True
        return True

    def release(self) -> None:
        if not self._locked:
            raise RuntimeError("release unlocked lock")
        self._locked = False


class _Mutex:
    """In the place of `threading.RLock`."""

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage
        self._owner: _Thread | None = None
        self._count = 0

    def free(self) -> bool:
        return self._owner is None

    def __enter__(self) -> None:
        run = self._stage.run
        if self._owner is not run.current:
            while self._owner is not None:
                run.wait(self, None)
            self._owner = run.current
        self._count += 1
        run.current.trace_again()

    def release(self) -> None:
        if self._owner is not self._stage.run.current:
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = None

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Stage:
    """A copy of the module, perhaps with other lines, whose locks and clock are the scheduler's."""

    def __init__(self, *changes: tuple[str, str], opcodes: bool = False) -> None:
        source = Path(_locks.__file__).read_text()
        for old, new in changes:
            assert source.count(old) == 1, f"{old!r} is there {source.count(old)} times"
            source = source.replace(old, new)
        self.opcodes = opcodes
        self.run: Run
        self.module: Any = types.ModuleType("telesession._locks_on_stage")
        exec(compile(source, PATH, "exec"), vars(self.module))
        self.module.threading = types.SimpleNamespace(
            Lock=lambda: _Gate(self), RLock=lambda: _Mutex(self), TIMEOUT_MAX=threading.TIMEOUT_MAX
        )
        self.module.time = types.SimpleNamespace(monotonic=lambda: self.run.clock)
        self.module.stand_in = contextlib.nullcontext
        self.module.PATIENCE = TICK


class _Thread:
    """One of the threads; it goes on when it is woken, and plays a part in every run."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.run: Run | None = None
        self.wake = threading.Lock()
        self.wake.acquire()
        threading.Thread(target=self._live, daemon=True).start()

    def join_in(self, run: "Run", part: "Part") -> None:
        self.run, self.part = run, part
        self.done = False
        self.action = GO
        self.waits: _Gate | _Mutex | None = None
        self.deadline: float | None = None
        self.spared = not part.interrupted  #: whether no exception comes any more
        self.line = 0
        self.visitor: Visitor | None = None  #: who has something from the beginning
        self._traced = True

    def _live(self) -> None:
        while True:
            self.wake.acquire()
            if self.run is None:
                return
            self.run.play(self)

    def end(self) -> None:
        self.run = None
        self.wake.release()

    def can(self, clock: float) -> str | None:
        """What it can do next, without anybody's help."""
        if self.waits is None or self.waits.free():
            return GO
        if self.deadline is not None and self.deadline <= clock:
            return TIME_OUT
        return None

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != PATH:
            return None
        assert self.run is not None
        if self.run.stage.opcodes:
            frame.f_trace_opcodes = True
            return self._opcode
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self._stop(frame)
        return self._line

    def _opcode(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self._stop(frame)
        return self._opcode

    def _stop(self, frame: FrameType) -> None:
        self.line = frame.f_lineno
        assert self.run is not None
        try:
            self.run.stop(self)
        except BaseException:
            self._traced = False  # that is what an exception out of a trace function means
            raise

    def trace_again(self) -> None:
        """After an exception out of its trace function, stop at lines as before."""
        if self._traced:
            return
        assert self.run is not None
        self._traced = True
        sys.settrace(self.trace)
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename == PATH:
                frame.f_trace = self.trace(frame, "call", None)
            frame = frame.f_back


class Visitor:
    """Takes locks as a visit does."""

    since = 0.0

    def __init__(self, run: "Run", thread: _Thread, begun: bool = True) -> None:
        self.run = run
        self.thread = thread.number
        self.begun = begun  #: whether it has loaded something, so that it can't give way
        self.names: list[str] = []
        self.came = 0

    def gives_way(self) -> bool:
        return not self.begun

    def lock(self, *names: str, timeout: float = NEVER) -> None:
        table = self.run.table
        waited = True
        while waited:
            waited = False
            for name in names:
                if name not in self.names:
                    self.names.append(name)
                if table.holder(name) is self:
                    continue
                self.came = self.run.steps
                if table.take(name, self) is not self:
                    table.wait(name, self, timeout)
                    waited = True
        self.begun = True

    def stay(self, seconds: float = 0.0) -> None:
        """Be the only one who has these locks."""
        run = self.run
        for name in self.names:
            if name in run.inside:
                run.fail(f"{self.thread} and {run.inside[name].thread} both have {name!r}")
            run.inside[name] = self
        if seconds:
            sleeping = _Gate(run.stage)
            sleeping.acquire()
            sleeping.acquire(timeout=seconds)
        run.stop(run.current, spared=True)  # others may come
        for name in self.names:
            del run.inside[name]

    def leave(self) -> None:
        self.run.current.trace_again()
        while self.names:
            self.run.table.release(self.names[-1], self)
            self.names.pop()


@dataclass(frozen=True)
class Part:
    """What one of the threads does."""

    has: str = ""  #: the lock that it has from the beginning
    wants: str = A  #: the locks that it takes, one after the other
    timeout: float = NEVER
    seconds: float = 0.0  #: for which it has them
    rounds: int = 1
    interrupted: bool = False  #: whether an exception comes, once and at any line
    hands_over: bool = False  #: to another visit on the same thread
    may_be: tuple[str, ...] = ()  #: what may happen to it: "overdue" or "cycle"

    def play(self, run: "Run", thread: _Thread) -> None:
        for _ in range(self.rounds):
            visitor = thread.visitor or Visitor(run, thread, begun=False)
            thread.visitor = None
            try:
                try:
                    visitor.lock(*self.wants, timeout=self.timeout)
                    visitor.stay(self.seconds)
                    if self.hands_over:
                        visitor = self._hand_over(visitor, thread)
                        visitor.stay()
                finally:
                    visitor.leave()
            finally:
                if visitor.names:
                    visitor.leave()

    def _hand_over(self, visitor: Visitor, thread: _Thread) -> Visitor:
        other = Visitor(visitor.run, thread)
        other.came = visitor.came
        other.names[:] = visitor.names
        for name in visitor.names:
            visitor.run.table.hand_over(name, other)
        visitor.leave()
        other.names.sort()
        return other


@dataclass(frozen=True)
class Scenario:
    """What the threads do, and how deep they do it in minutes, and in seconds."""

    name: str
    parts: tuple[Part, ...]
    depth: int
    short: int
    punctual: bool = False  #: whether a time-out comes when it is due, and not at any moment
    one_through: bool = False  #: whether one at least has to come through


class Run:
    """One schedule of a scenario."""

    def __init__(
        self,
        stage: Stage,
        scenario: Scenario,
        threads: Sequence[_Thread],
        trail: list[list[int]],
        depth: int,
    ) -> None:
        self.stage = stage
        self.scenario = scenario
        self.threads = threads
        self.trail = trail  #: the choices: which was made, of how many
        self.left = depth
        self.made = 0
        self.steps = 0
        self.clock = 1.0
        self.fault: str | None = None
        self.story: list[str] = []  #: who went on where, at each change
        self.inside: dict[str, Visitor] = {}
        self.busy: dict[int, str] = {}
        self.current: _Thread = threads[0]
        self.over = threading.Lock()
        self.over.acquire()
        stage.run = self
        stage.module._everyone._reset()
        self.table = stage.module.Locks()
        self._had: dict[str, Any] = {}
        self._entered: dict[Any, int] = {}
        self._lines: dict[str, Any] = {}
        for thread, part in zip(threads, scenario.parts):
            thread.join_in(self, part)
            if part.has:
                thread.visitor = Visitor(self, thread)
                thread.visitor.names.append(part.has)
                self.table.take(part.has, thread.visitor)

    def perform(self) -> None:
        """Let the threads play it, to the end or to a fault."""
        self._next(None)
        self.over.acquire()
        everyone = self.stage.module._everyone
        if self.fault is None and (
            len(self.table) or everyone.waiting or not everyone.mutex.free()
        ):
            self.fault = f"left: {vars(self.table)}, {everyone.waiting}, {everyone.mutex._count}"
        through = len(self.threads) - len(self.busy)
        if self.fault is None and self.scenario.one_through and not through:
            self.fault = "nobody has come through"

    def play(self, thread: _Thread) -> None:
        if self.fault is None:
            sys.settrace(thread.trace)
            try:
                thread.part.play(self, thread)
            except _Abort:
                pass
            except SessionBusy as error:
                kind = "overdue" if "lock_timeout=" in str(error) else "cycle"
                self.busy[thread.number] = kind
                if kind not in thread.part.may_be and self.fault is None:
                    self.fault = f"{thread.number} raised {error!r}"
            except Interrupt:
                pass
            except BaseException as error:
                self.fault = self.fault or f"{thread.number} raised {error!r}"
            finally:
                sys.settrace(None)
        thread.done = True
        if self.fault is None:
            self._watch()
        self._next(thread)

    def stop(self, thread: _Thread, spared: bool = False) -> None:
        """Between two lines of a thread: perhaps another one goes on here."""
        if self.fault is not None:
            raise _Abort
        self.steps += 1
        self._watch()
        if self.steps > LONGEST:
            self.fail("it goes round in circles")
        if self.left:
            before, thread.spared = thread.spared, thread.spared or spared
            self._next(thread)
            thread.spared = before
            self._resumed(thread)

    def wait(self, lock: _Gate | _Mutex, deadline: float | None) -> str:
        """The current thread can't go on; what ended that."""
        if self.fault is not None:
            raise _Abort
        thread = self.current
        thread.trace_again()
        thread.waits, thread.deadline = lock, deadline
        self._next(thread)
        thread.waits = thread.deadline = None
        return self._resumed(thread)

    def fail(self, why: str) -> None:
        self.fault = self.fault or why
        raise _Abort

    def _resumed(self, thread: _Thread) -> str:
        if self.fault is not None:
            raise _Abort
        action, thread.action = thread.action, GO
        if action == INTERRUPT:
            thread.spared = True
            raise Interrupt
        return action

    def _next(self, thread: _Thread | None) -> None:
        """Choose who goes on, and let it; come back when ``thread`` is the one who does."""
        chosen = self._choose(thread)
        if chosen is None:
            self.over.release()
            return
        if chosen is not thread:
            self.current = chosen
            chosen.wake.release()
            if thread is not None and not thread.done:
                thread.wake.acquire()

    def _choose(self, thread: _Thread | None) -> _Thread | None:
        if self.fault is not None:
            return next((one for one in self.threads if not one.done), None)
        clock = self.clock
        alive = [one for one in self.threads if not one.done]
        able = [(one, action) for one in alive if (action := one.can(clock))]
        timed = [one for one in alive if one.deadline is not None and one.can(clock) is None]
        if not able:
            if not timed:
                if alive:
                    numbers = [one.number for one in alive]
                    self.fault = f"nobody wakes {numbers}"
                return alive[0] if alive else None
            first = min(one.deadline or 0.0 for one in timed)
            able = [(one, TIME_OUT) for one in timed if one.deadline == first]
            timed = []
        free = len(able)
        options = able
        if thread is not None and not thread.done and any(one is thread for one, _ in able):
            options = [pair for pair in able if pair[0] is thread]
            free = 1
            options += [pair for pair in able if pair[0] is not thread]
        if self.left:
            if not self.scenario.punctual:
                options += [(one, TIME_OUT) for one in timed]
            options += [(one, INTERRUPT) for one in alive if not one.spared and one.line]
        else:
            options = options[:free]
        index = 0
        if len(options) > 1:
            if self.made == len(self.trail):
                self.trail.append([0, len(options)])
            index, count = self.trail[self.made]
            assert count == len(options), "it went another way than before"
            self.made += 1
        self.left -= index >= free
        chosen, chosen.action = options[index][0], options[index][1]
        if chosen is not thread or chosen.action != GO:
            before = "" if thread is None else f"{thread.number} at line {thread.line}, then "
            self.story.append(f"{before}{chosen.number} {chosen.action}")
        return chosen

    def _watch(self) -> None:
        """After each line: who is in line, and did the right one get the lock?"""
        table = self.table
        for name in (A, B):
            line = table.lines.get(name)
            if line:
                self._note(name, line)
            holder = table.holders.get(name)
            if holder is not self._had.get(name):
                self._had[name] = holder
                if holder is None:
                    continue
                mine = [self._entered[one] for one in line or () if one.holder is holder]
                since = mine[0] if mine else holder.came + 1  # when it was sure to have come
                for waiter in line or ():
                    if self._entered[waiter] < since:
                        self.fault = f"{holder.thread} overtakes {waiter.holder.thread}"
                        return

    def _note(self, name: str, line: Any) -> None:
        """Note since when those in a line are in it; a new one who had kept a place, since then."""
        entered = self._entered
        for waiter in line:
            if waiter not in entered:
                kept = [
                    at
                    for one, at in entered.items()
                    if one.place and one.name == name and one.holder is waiter.holder
                ]
                entered[waiter] = kept[-1] if kept else self.steps
        if self._lines.get(name) is not line:
            self._lines[name] = line
            if any(one.place for one in line):  # one gave way to another, which was behind it
                entered.update(zip(line, sorted(entered[one] for one in line)))


@contextlib.contextmanager
def _crew(size: int) -> Iterator[list[_Thread]]:
    threads = [_Thread(number) for number in range(1, size + 1)]
    try:
        yield threads
    finally:
        for thread in threads:
            thread.end()


def explore(stage: Stage, scenario: Scenario, depth: int) -> int:
    """Run all schedules up to a depth; how many they are. Raises `Fault` for the first bad one."""
    trail: list[list[int]] = []
    with _crew(len(scenario.parts)) as threads:
        for number in range(1, sys.maxsize):
            run = Run(stage, scenario, threads, trail, depth)
            run.perform()
            if run.fault is not None:
                raise Fault(f"{scenario.name}, schedule {number}: {run.fault}: {run.story}")
            while trail and trail[-1][0] == trail[-1][1] - 1:
                trail.pop()
            if not trail:
                return number
            trail[-1][0] += 1
    raise AssertionError


def explore_deeper(stage: Stage, scenario: Scenario, depth: int) -> None:
    """Run the schedules of each depth in turn: the first `Fault` is one of the least depth."""
    for each in range(depth + 1):
        explore(stage, scenario, each)


SCENARIOS = [
    Scenario("two, one lock, twice", (Part(rounds=2), Part(rounds=2)), 2, 1),
    Scenario("two, one lock", (Part(), Part()), 3, 2),
    Scenario("three, one lock", (Part(), Part(), Part()), 2, 1),
    Scenario("two, one times out", (Part(), Part(timeout=1.0, may_be=("overdue",))), 3, 2),
    Scenario(
        "three, one times out", (Part(), Part(timeout=1.0, may_be=("overdue",)), Part()), 2, 1
    ),
    Scenario("two, one interrupted", (Part(), Part(interrupted=True)), 3, 2),
    Scenario("three, one interrupted", (Part(), Part(interrupted=True), Part()), 2, 1),
    Scenario(
        "a line that moves",
        (Part(A, "", seconds=0.75), Part(seconds=0.75), Part(timeout=1.0)),
        1,
        1,
        punctual=True,
    ),
    Scenario("two, opposite orders, one gives way", (Part(A, B), Part(wants=B + A)), 2, 1),
    Scenario(
        "three, opposite orders, one gives way",
        (Part(A, B), Part(wants=B + A), Part(wants=A)),
        1,
        0,
    ),
    Scenario(
        "three, two in one order, one in the other",
        (Part(B, A), Part(wants=A + B), Part(wants=A + B)),
        1,
        0,
    ),
    Scenario(
        "three, a cycle, one interrupted",
        (Part(A, B, interrupted=True), Part(wants=B + A), Part(wants=B)),
        1,
        0,
    ),
    Scenario(
        "two, opposite orders, a cycle",
        (Part(A, B, may_be=("cycle",)), Part(B, A, may_be=("cycle",))),
        2,
        1,
        one_through=True,
    ),
    Scenario(
        "three, two of them in a cycle",
        (Part(A, B, may_be=("cycle",)), Part(B, A, may_be=("cycle",)), Part(wants=A)),
        1,
        0,
    ),
    Scenario("two, one hands over", (Part(hands_over=True), Part()), 3, 2),
    Scenario("three, one hands over", (Part(hands_over=True), Part(), Part()), 2, 1),
]


def main(arguments: Sequence[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depth", type=int, help="of all scenarios")
    parser.add_argument("--short", action="store_true", help="as deep as the tests go")
    parser.add_argument("--opcodes", action="store_true", help="stop within lines, too")
    parser.add_argument("--only", default="", help="scenarios with this in their name")
    options = parser.parse_args(arguments)
    stage = Stage(opcodes=options.opcodes)
    chosen = [scenario for scenario in SCENARIOS if options.only in scenario.name]
    total = 0
    right = True
    for scenario in chosen:
        depth = options.depth
        if depth is None:
            depth = scenario.short if options.short else scenario.depth
        began = time.monotonic()
        try:
            count = explore(stage, scenario, depth)
        except Fault as fault:
            right = False
            print(fault, flush=True)
            continue
        total += count
        took = time.monotonic() - began
        print(f"{scenario.name:42} depth {depth} {count:9,} schedules {took:7.1f} s", flush=True)
    print(f"{'together':42}         {total:9,} schedules")
    return right


if __name__ == "__main__":
    sys.exit(not main())
