"""An exception out of a signal handler, at every line of the core: nothing is left behind.

::

    python -m tests.interrupts_everywhere                   # all; takes some minutes
    python -m tests.interrupts_everywhere nested --events line

Each scenario is run once for every line that it comes to in telesession, and an exception is
raised there: one like Ctrl-C's, and one like that of an alarm. Then no lock, line, lease, visit or
dispatch may be left; what is stored is what was stored before or what the whole of an update
stores; no update shows an open session; and the next updates, in this thread and in another, are
saved. With ``call`` and ``return`` the exception is also raised where functions begin and end.

What is asked of it in `contextlib` is part of `open`, so lines there count, too.
"""

import argparse
import contextlib
import functools
import gc
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import telebot
from telebot import types

from telesession import (
    KeyValueStore,
    MemoryStore,
    SessionBusy,
    SessionError,
    _clients,
    _dispatch,
    _forks,
    _locks,
    _workers,
    keyvalue,
    with_session,
)
from telesession._session import Session
from telesession.stores import Payload
from tests.helpers import Failure
from tests.interrupts import TELESESSION, TIMEOUT, Alarm, Interrupt, Interrupting, free
from tests.stores import Clock, Leasing, message, payload

PLACES = (TELESESSION, contextlib.__file__)
KINDS = ("memory", "dict", "leasing")
ALL = ("line", "call", "return")
TTL = 60.0
LEASED = "AssertionError: a lease is left"
HALF = "AssertionError: half of it was saved"
KEYVALUE = [str(module.__file__) for module in (keyvalue, _clients, _forks)]


class Listing(Leasing):
    """One that can tell what it has."""

    def names(self, prefix: str) -> Iterator[str]:
        return (name for name in list(self.kept) if name.startswith(prefix))

    def peek(self, name: str) -> Payload | None:
        return self._read(name)


class World:
    """Two stores of one kind, declarations on them, and what was shown on which update."""

    def __init__(self, kind: str) -> None:
        self.clock = Clock()
        self.stores = [self._store(kind), self._store(kind)]
        one, two = self.stores
        self.a = with_session(property="a", store=one, lock_timeout=TIMEOUT)
        self.b = with_session(property="b", store=one, ttl=TTL, lock_timeout=TIMEOUT)
        self.c = with_session(property="c", store=one, lock_timeout=TIMEOUT)
        self.other = with_session(property="other", store=two, lock_timeout=TIMEOUT)
        self.declarations = [self.a, self.b, self.c, self.other]
        self.messages: list[Any] = []
        self.states: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []
        self.over = threading.Event()  #: what other threads are in the middle of shall end
        for declaration in self.declarations:
            with declaration.open(key="42:42") as data:
                data.update(n=1, deep=[1])
        self.mark()

    def _store(self, kind: str) -> Any:
        if kind == "memory":
            return MemoryStore(clock=self.clock)
        if kind == "dict":
            return KeyValueStore({}, clock=self.clock)
        return Listing(self.clock)

    def message(self, text: str = "hello") -> Any:
        self.messages.append(message())
        self.messages[-1].text = text
        return self.messages[-1]

    def stored(self) -> Any:
        """What is stored of all sessions, but for what other threads made of them."""
        contents: list[dict[str, Any]] = []
        for store in self.stores:
            content = {name: store.codec.loads(store.peek(name)) for name in store.names("")}
            for data in content.values():
                data.pop("behind", None)
            contents.append(content)
        return contents

    def mark(self, **changes: Any) -> None:
        """What is stored now, with changes of ``a``, may be what an interrupted run leaves."""
        self.states.append(self.stored())
        if changes:
            self.states[-1][0]["a:42:42"].update(changes)

    def thread(self, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                self.errors.append(error)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def behind(self) -> None:
        """What other threads do."""
        with self.a.open(key="42:42") as data:
            data["behind"] = data.get("behind", 0) + 1

    def hold(self, release: threading.Event | None = None) -> None:
        """Have another thread hold session ``a`` until ``release``, or all is over."""
        held = threading.Event()

        def work() -> None:
            with self.a.open(key="42:42"):
                held.set()
                assert (release or self.over).wait(TIMEOUT)

        self.thread(work)
        assert held.wait(TIMEOUT)

    def check(self, states: Collection[Any]) -> None:
        """Assert that nothing is left of a run, which may have been interrupted."""
        self.over.set()
        for thread in self.threads:
            thread.join(TIMEOUT / 3)
            assert not thread.is_alive(), "another thread is stuck"
        assert self.errors == []
        assert _locks.held() == 0, "a lock or line is left"
        assert _locks._everyone.waiting == {}
        assert _dispatch.innermost == {}
        assert _dispatch.running == {}
        assert free(_locks._everyone.mutex)
        assert free(_workers._shifts.mutex)
        for shift in _workers._shifts._of.values():
            assert shift.waiting == 0
        for store in self.stores:
            assert not getattr(store, "leases", None), "a lease is left"
        for update in self.messages:
            for declaration in self.declarations:
                shown = getattr(update, declaration.property, None)
                assert not isinstance(shown, Session), "an update shows an open session"
        assert self.stored() in states, "half of it was saved"
        self._check_next()

    def _check_next(self) -> None:
        """The next updates, here and in another thread, are handled and saved."""
        counted: list[int] = []

        @self.a
        @self.b
        @self.other
        def handler(update: Any) -> None:
            for session in (update.a, update.b, update.other):
                session["next"] = session.get("next", 0) + 1
                counted.append(session["next"])

        def elsewhere() -> None:
            try:
                handler(message())
            except BaseException as error:
                self.errors.append(error)

        handler(message())
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        assert self.errors == []
        assert counted == [1, 1, 1, 2, 2, 2]
        for declaration in (self.a, self.b, self.other):
            assert (declaration.peek(key="42:42") or {})["next"] == 2
            assert "42:42" in list(declaration.keys())
        self.clock.advance(TTL + 1)
        assert self.b.peek(key="42:42") is None


# What is done while it is interrupted


def changes(*declarations: Any) -> Any:
    """A handler that changes the sessions of a stack of declarations."""

    def handler(update: Any) -> None:
        for declaration in declarations:
            session = getattr(update, declaration.property)
            session["n"] = session.get("n", 0) + 1
            session.setdefault("deep", []).append(2)

    return functools.reduce(lambda wrapped, one: one(wrapped), declarations, handler)


def looks(world: World) -> None:
    world.b(lambda update: update.b["n"])(world.message())


def changed(world: World) -> None:
    changes(world.a)(world.message())


def with_ttl(world: World) -> None:
    changes(world.b)(world.message())


def new(world: World) -> None:
    session = with_session(property="fresh", store=world.stores[0], initial=lambda: {"i": 1})
    changes(session)(world.message())


def cleared(world: World) -> None:
    world.a(lambda update: update.a.clear())(world.message())


def replaced(world: World) -> None:
    @world.a
    @world.b
    def handler(update: Any) -> None:
        update.a = {"n": 2}
        update.b = None

    handler(world.message())


def fails(world: World) -> None:
    @world.a
    @world.b
    def handler(update: Any) -> None:
        update.a["n"] = 2
        update.b["deep"].append(1)
        raise Failure

    with contextlib.suppress(Failure):
        handler(world.message())


def replaced_and_fails(world: World) -> None:
    @world.a
    def handler(update: Any) -> None:
        update.a = {"n": 2}
        raise Failure

    with contextlib.suppress(Failure):
        handler(world.message())


def no_session(world: World) -> None:
    session = with_session(property="none", key=lambda update: None, store=world.stores[0])
    session(changes(world.a))(world.message())


def upgraded(world: World) -> None:
    upgrade = with_session(
        property="a", store=world.stores[0], upgrade=lambda data: data.setdefault("new", 1)
    )
    upgrade(lambda update: None)(world.message())


def stack(world: World) -> None:
    changes(world.a, world.b, world.c)(world.message())


def stack_on_two_stores(world: World) -> None:
    changes(world.a, world.b, world.other)(world.message())


def joins(world: World) -> None:
    inner = changes(world.a)

    @world.a
    @world.b
    def handler(update: Any) -> None:
        inner(update)
        update.a["n"] += 1
        update.b["n"] += 1

    handler(world.message())


def joins_and_adds(world: World) -> None:
    inner = changes(world.a, world.c, world.other)

    @world.a
    @world.b
    def handler(update: Any) -> None:
        update.a = {"n": 7}
        inner(update)
        update.b["n"] += 1

    handler(world.message())


def joins_with_another_update(world: World) -> None:
    inner = world.a(lambda update: setattr(update, "a", {"n": 8}))

    @world.a
    def handler(update: Any) -> None:
        inner(world.message())
        update.a["more"] = 1

    handler(world.message())


def opens_inside(world: World) -> None:
    @world.a
    def handler(update: Any) -> None:
        update.a["n"] = 2
        with world.a.open(key="7:7") as data:
            data["n"] = 1
        with world.other.open(update) as data, world.a.open(update) as mine:
            data["n"] = mine["n"] = 3

    handler(world.message())


def part_fails(world: World) -> None:
    @world.a
    @world.b
    def handler(update: Any) -> None:
        update.a["n"] = 2
        with contextlib.suppress(Failure), world.a.open(update) as mine:
            with world.c.open(update) as data:
                data["n"] = 5
            mine["deep"].append(2)
            update.b["n"] = 5
            raise Failure
        assert (update.a, update.b) == ({"n": 2, "deep": [1]}, {"n": 1, "deep": [1]})
        update.b["n"] = 3

    handler(world.message())


def part_is_cut_short(world: World) -> None:
    """What comes in a part is caught around it: the rest is saved."""

    @world.a
    def handler(update: Any) -> None:
        update.a["n"] = 2
        try:
            with world.a.open(key="7:7") as data, world.other.open(update) as other:
                data["n"] = update.a["deep"] = other["n"] = 4
        except (Interrupt, Alarm, SessionError):
            pass

    world.mark(n=2)

    handler(world.message())


def opened(world: World) -> None:
    with world.a.open(key="42:42") as data:
        data["n"] += 1


def opened_together(world: World) -> None:
    with world.a.open(keys=["42:42", "1:1"]) as (one, two):
        one["n"], two["n"] = 3, 4


def opened_inside(world: World) -> None:
    with world.a.open(key="42:42") as data, world.b.open(key="42:42") as more:
        data["n"] = more["n"] = 5


def apart(world: World) -> None:
    @world.a
    def handler(update: Any) -> None:
        update.a["n"] = 2
        with world.a.open(key="7:7", apart=True) as data:
            data["n"] = 1
        world.mark()
        with world.a.open(key="8:8", apart=True) as data:
            data["n"] = 1
        world.mark()

    handler(world.message())


def removed(world: World) -> None:
    world.a.remove(key="42:42")


def removed_inside(world: World) -> None:
    @world.a
    def handler(update: Any) -> None:
        world.a.remove(update)
        world.b.remove(update)

    handler(world.message())


def only_looked_at(world: World) -> None:
    @world.a
    def handler(update: Any) -> None:
        assert world.a.peek(update) == {"n": 1, "deep": [1]}
        assert world.b.peek(update)
        assert list(world.c.keys()) == ["42:42"]

    handler(world.message())


def _bot(**handlers: Any) -> Any:
    bot = telebot.TeleBot("42:test", threaded=False)
    for handler in handlers.values():
        bot.register_message_handler(handler, func=lambda message: True)
    return bot


def _feed(world: World, bot: telebot.TeleBot) -> None:
    update = types.Update.de_json({"update_id": 1, "message": payload()})
    world.messages.append(update.message)
    bot.process_new_updates([update])


def when(world: World) -> None:
    """A miss by a value, a miss by a function, a match that needs more, all on one bot."""

    bot = _bot(
        one=world.a.when(n=5)(world.b(print)),
        two=world.a.when(lambda session: session["n"] == 6)(changes(world.b)),
        three=world.a.when(n=1)(changes(world.c, world.other)),
    )
    _feed(world, bot)


def when_none(world: World) -> None:
    bot = _bot(one=world.a.when(n=5)(print), two=world.a.when(lambda s: False)(print))
    _feed(world, bot)


def when_others_open(world: World) -> None:
    """Filters and handlers work on what a handler under `when` has left."""
    bot = _bot(one=world.a.when(n=5)(print))

    def asks(update: Any) -> bool:
        with world.a.open(update) as data:
            data["asked"] = True
        return False

    def works(update: Any) -> Any:
        with world.a.open(update) as data, world.b.open(update) as more:
            data["worked"] = more["worked"] = True
        world.mark()
        return telebot.handler_backends.ContinueHandling()

    world.mark(asked=True)
    bot.register_message_handler(print, func=asks)
    bot.register_message_handler(works, func=lambda message: True)
    bot.register_message_handler(world.a.when(n=6)(print), func=lambda message: True)
    _feed(world, bot)


def when_one_fails(world: World) -> None:
    bot = _bot(one=world.a.when(n=5)(print))

    def works(update: Any) -> Any:
        with world.a.open(update) as data:
            data["worked"] = True
        raise Failure

    bot.register_message_handler(works, func=lambda message: True)
    with contextlib.suppress(Failure):
        _feed(world, bot)


def when_two_are_left(world: World) -> None:
    """What is opened of both, on two stores, is saved together when the dispatch ends."""
    bot = _bot(one=world.a.when(n=5)(print), two=world.other.when(n=5)(print))

    def works(update: Any) -> None:
        with world.a.open(update) as data, world.other.open(update) as more:
            data["worked"] = more["worked"] = True

    bot.register_message_handler(works)
    _feed(world, bot)


def when_in_a_dispatch(world: World) -> None:
    """A handler has a session that its dispatch left, and one of the dispatch around it."""
    inner = _bot(one=world.c.when(n=5)(print), two=world.a(changes(world.c)))
    bot = _bot(one=world.a.when(n=5)(print), two=lambda update: _feed(world, inner))
    _feed(world, bot)


def waits(world: World) -> Iterator[None]:
    """Another thread has the session, and lets go when we are in line; more come behind us."""
    release = threading.Event()
    world.hold(release)

    def behind() -> None:
        while not _waiting() and not world.over.is_set():
            pass
        _in_line(world, 2, world.behind, release)

    world.thread(behind)
    yield
    changes(world.a, world.b)(world.message())


def _waiting() -> int:
    return len(_locks._everyone.waiting)


def _in_line(world: World, count: int, work: Callable[[], object], release: Any) -> None:
    def until() -> None:
        while _waiting() < count and not world.over.is_set():
            pass
        release.set()

    thread = threading.Thread(target=until, daemon=True)
    thread.start()
    work()
    thread.join(TIMEOUT)


def hands_over(world: World) -> None:
    """Others wait for the session that we let go of."""

    @world.a
    def handler(update: Any) -> None:
        update.a["n"] = 2
        for number in (1, 2):
            world.thread(world.behind)
            while _waiting() < number:
                pass

    handler(world.message())


def times_out(world: World) -> Iterator[None]:
    world.hold()
    session = with_session(property="a", store=world.stores[0], lock_timeout=0.01)
    handler = changes(session, world.b)
    yield
    try:
        handler(world.message())
    except SessionBusy:
        pass


def dropped(world: World) -> Iterator[None]:
    world.hold()
    session = with_session(property="a", store=world.stores[0], busy="drop")
    handler = session(changes(world.b))
    yield
    handler(world.message())


def dropped_in_a_dispatch(world: World) -> Iterator[None]:
    world.hold()
    told: list[Any] = []
    session = with_session(property="a", store=world.stores[0], busy=told.append)
    bot = _bot(one=session.when(n=1)(print), two=session.when(n=2)(world.b(print)))
    yield
    _feed(world, bot)
    assert len(told) == 1


def gives_way(world: World) -> Iterator[None]:
    """A thread that has what we want wants what we have locked already."""
    ready = threading.Event()

    @world.b
    def handler(update: Any) -> None:
        ready.set()
        while not _waiting() and not world.over.is_set():
            pass
        with world.a.open(key="42:42") as data:
            data["behind"] = 1

    world.thread(lambda: handler(message()))
    assert ready.wait(TIMEOUT)
    yield
    changes(world.a, world.b)(world.message())


def cycle(world: World) -> Iterator[None]:
    """Two handlers wait for each other: the one that closes the cycle is told."""
    ready = threading.Event()

    def other() -> None:
        @world.b
        def handler(update: Any) -> None:
            ready.set()
            with world.a.open(key="42:42") as data:
                data["behind"] = 1

        handler(message())

    yield

    @world.a
    def handler(update: Any) -> None:
        update.a["n"] = 2
        world.thread(other)
        while not _waiting():
            pass
        with contextlib.suppress(SessionBusy), world.b.open(update) as data:
            data["n"] = 2

    handler(world.message())


SCENARIOS: dict[str, Callable[[World], Iterator[None] | None]] = {
    scenario.__name__: scenario
    for scenario in (
        *(looks, changed, with_ttl, new, cleared, replaced, fails, replaced_and_fails),
        *(no_session, upgraded, stack, stack_on_two_stores, joins, joins_and_adds),
        *(joins_with_another_update, opens_inside, part_fails, part_is_cut_short),
        *(opened, opened_together, opened_inside, apart, removed, removed_inside, only_looked_at),
        *(when, when_none, when_others_open, when_one_fails, when_two_are_left),
        when_in_a_dispatch,
        *(waits, hands_over, times_out, dropped, dropped_in_a_dispatch, gives_way, cycle),
    )
}


def ready(scenario: Any, world: World) -> Iterator[None]:
    """The steps of a scenario: what is prepared, and what is interrupted."""
    steps = scenario(world) if inspect.isgeneratorfunction(scenario) else None
    if steps is not None:
        next(steps)
    yield
    if steps is None:
        scenario(world)
    else:
        next(steps, None)


def interrupt(
    scenario: str,
    kind: str,
    error: type[BaseException] = Interrupt,
    events: Collection[str] = ("line",),
    first: int = 0,
    step: int = 1,
) -> Iterator[tuple[str, str]]:
    """Run a scenario, interrupted at one event after the other; where, and what is wrong then."""
    run = SCENARIOS[scenario]
    world = World(kind)
    steps = ready(run, world)
    next(steps)
    next(steps, None)
    world.mark()
    world.over.set()
    states = world.states
    world.check(states)
    for number in itertools.count(first, step):
        world = World(kind)
        steps = ready(run, world)
        next(steps)
        interrupting = Interrupting(number, PLACES, error, events)
        wrong = ""
        try:
            with interrupting:
                next(steps, None)
        except BaseException as raised:
            if not interrupting.where or not _comes_of(raised, error):
                wrong = f"{type(raised).__name__}: {raised}"
        del steps
        if not wrong:
            try:
                world.check(states)
            except BaseException as raised:
                wrong = f"{type(raised).__name__}: {raised}"
                _repair()
        if error is Alarm and _as_of_a_store(kind, interrupting.where, wrong):
            wrong = ""
        yield interrupting.where, wrong
        if not interrupting.where:
            return


def _as_of_a_store(kind: str, where: str, wrong: str) -> bool:
    """Whether an alarm's exception can't be told from a store's own.

    Leases of a store that fails to let go run out. A store that fails to save may have saved, and
    is not asked again.
    """
    saving = kind == "dict" and any(file in where for file in KEYVALUE)
    return (wrong == LEASED and "in commit_or_log," in where) or (wrong == HALF and saving)


def _comes_of(raised: BaseException | None, error: type[BaseException]) -> bool:
    """Whether an exception is the one that was raised in between, or comes of that."""
    while raised is not None:
        if isinstance(raised, error):
            return True
        raised = raised.__cause__ or raised.__context__
    return False


def _repair() -> None:
    """Forget what is left, so that what follows can be looked at."""
    gc.collect()
    for table in list(_locks._tables.values()):
        table._reset()
    _locks._everyone._reset()
    _workers._shifts._reset()
    _dispatch.innermost.clear()
    _dispatch.running.clear()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", nargs="*", help="parts of the names of scenarios")
    parser.add_argument("--events", nargs="*", choices=ALL, default=ALL)
    parser.add_argument("--store", nargs="*", choices=KINDS, default=KINDS)
    options = parser.parse_args(argv)
    names = [
        name
        for name in SCENARIOS
        if not options.scenario or any(part in name for part in options.scenario)
    ]
    total = bad = 0
    for name, kind, error in itertools.product(names, options.store, (Interrupt, Alarm)):
        count = 0
        for where, wrong in interrupt(name, kind, error, options.events):
            count += 1
            if wrong:
                bad += 1
                print(f"{name}, {kind}, {error.__name__}: {where or 'at the end'}: {wrong}")
        print(f"{name}, {kind}, {error.__name__}: {count}", flush=True)
        total += count
    print(f"{total} interrupts, {bad} left something wrong")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
