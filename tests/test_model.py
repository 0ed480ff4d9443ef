"""2.4, 2.5, 3.4, 4.1, 5.6, 5.7 All or nothing: random updates against a plain model.

Handlers run random programs on real messages. The model runs the same programs on dicts of its
own, and says what every handler has to find, what is written, and what is left in the end.
"""

import contextlib
import copy
import math
import os
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from telesession import KeyValueStore, MemoryStore, SessionClosed, _locks, keys, with_session
from tests.model import Model, which, whose
from tests.programs import (
    CHATS,
    FAILURES,
    HANDLERS,
    INITIAL,
    PROPERTIES,
    UNREADABLE,
    UPGRADE,
    USERS,
    WHO,
    Clock,
    Scope,
    handlers,
    key_of,
    name,
    owners,
    perform,
    pickle_keeps,
    programs,
    properties,
    same,
    snapshot,
    some,
)
from tests.stores import GetSet
from tests.updates import UPDATES, make

pytestmark = pytest.mark.thorough


class Recording:
    """A store that notes the names of what it writes, and can be made to fail."""

    written = None
    broken = False

    def commit(self, lease, changes):
        if self.broken:
            raise OSError("the store is down")
        super().commit(lease, changes)
        self.written.update(name for name, _, _ in changes)


class RecordingMemory(Recording, MemoryStore):
    pass


class RecordingKeyValue(Recording, KeyValueStore):
    pass


class World:
    """The handlers and declarations of telesession that the model is compared with."""

    def __init__(self, stores, clock, ttls):
        self.clock = clock
        self.seen = []
        self.messages = []
        self.written = Counter()
        self.stores = dict(zip(PROPERTIES, stores))
        for store in self.stores.values():
            store.written = self.written
        self.model = Model(clock, dict(zip(PROPERTIES, ttls)), self.stores)
        self.declarations = {
            property: with_session(
                property=property,
                key=key,
                ttl=self.model.ttls[property],
                store=self.stores[property],
                initial=INITIAL[property],
                upgrade=UPGRADE[property],
            )
            for property, key in zip(PROPERTIES, (keys.chat, keys.user_chat))
        }
        chat_session, session = self.declarations.values()
        self.handlers = {
            "user": session(self.handler("user")),
            "chat": chat_session(self.handler("chat")),
            "both": session(chat_session(self.handler("both"))),
        }

    def handler(self, handler):
        mine = HANDLERS[handler]

        def handle(message, program, scope):
            self.seen.append(snapshot(message, mine))
            perform(program, scope.on(message, mine), self)

        return handle

    def call(self, handler, message, program, scope):
        update = which(message, scope, self.messages)
        if update is None:
            user, chat = whose(message)
            payload = {**UPDATES["message"], "from": USERS[user], "chat": CHATS[chat]}
            update = make("message", payload)
        self.messages.append(update)
        self.handlers[handler](update, program, scope)

    def open(self, property, several, apart, program, scope):
        declaration = self.declarations[property]
        wanted = list(dict.fromkeys(key_of(property, *who) for who in several))
        found = []
        try:
            with contextlib.ExitStack() as stack:
                if len(wanted) == 1:
                    found.append(stack.enter_context(declaration.open(key=wanted[0], apart=apart)))
                else:
                    found += stack.enter_context(declaration.open(keys=wanted, apart=apart))
                self.seen.append(copy.deepcopy([dict(one) for one in found]))
                perform(program, scope.within(found), self)
        finally:
            self.seen.append(list(map(self.closed, found)))

    def remove(self, property, who, scope):
        self.declarations[property].remove(key=key_of(property, *who))

    def peek(self, property, who):
        return self.declarations[property].peek(key=key_of(property, *who))

    def closed(self, session):
        try:
            session.update()
        except SessionClosed:
            return True
        return False

    def kept(self, session):
        """Whether it is in use, and not only what an update once showed in its place."""
        return type(session).__name__ == "Session"

    def run(self, step, broken):
        """Have one update handled, or one block, in both worlds."""
        model, store = self.model, self.stores.get(broken)
        model.broken = [one for one in self.stores if self.stores[one] is store]
        for one in self.stores.values():
            one.broken = one is store
        start = self.clock.now
        outcome = self.outcome(self, step)
        end, self.clock.now = self.clock.now, start
        expected = self.outcome(model, step)

        for found, wanted in zip(self.seen, model.seen):
            assert same(found, wanted), (found, wanted)
        assert outcome is expected
        assert self.clock.now == end
        assert len(self.seen) == len(model.seen)
        self.check_written()
        for message, view in zip(self.messages, model.views):
            for property in view.shown:
                left = getattr(message, property, None)
                if outcome is None and left is not None:
                    called = name(property, view.user, view.chat)
                    cells = [cell for cell in model.all_cells if cell.name == called]
                    assert not cells or any(same(dict(left), cell.data) for cell in cells)
                if isinstance(left, dict):
                    with pytest.raises(SessionClosed):
                        left["late"] = 1
        for one in (self.seen, self.messages, model.seen, model.views):
            one.clear()
        assert _locks.held() == 0

    @staticmethod
    def outcome(world, step):
        try:
            perform([step], Scope(), world)
        except FAILURES as error:
            return type(error)
        return None

    def check_written(self):
        must, may = self.model.must_write, self.model.may_write
        for one in {*self.written, *must, *may}:
            assert must[one] <= self.written[one] <= must[one] + may[one], one
        self.written.clear()
        must.clear()
        may.clear()

    def spoil(self, property, who):
        """Have something stored that nobody can read."""
        store, called = self.stores[property], name(property, *who)
        store.broken = False
        lease, _ = store.open([called], 1)
        store.commit(lease, [(called, "nonsense", None)])
        self.model.stored[called] = UNREADABLE, math.inf
        self.written.clear()

    def check_left(self):
        left = Counter()
        for property, store in self.stores.items():
            store.broken = False
            for called in {name(property, *who) for who in WHO}:
                lease, [payload] = store.open([called], 1)
                store.commit(lease, [])
                wanted = self.model.load(called)
                left[store] += payload is not None
                if wanted is UNREADABLE:
                    assert payload == "nonsense"
                    continue
                data = None if payload is None else store.codec.loads(payload)
                if data and wanted and self.model.keeps[property] is pickle_keeps:
                    # It may have been written again, see above, and is upgraded then.
                    for one in (data, wanted):
                        with contextlib.suppress(ValueError):
                            UPGRADE[property](one)
                assert same(data, wanted), (called, data, wanted)
        for store, number in left.items():
            # And nothing else: what was emptied or has expired is really gone.
            if isinstance(store, MemoryStore):
                assert len(store) == number
            elif isinstance(store.store, dict):
                assert len(store.store) == number


class AllOrNothing(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.world = None

    def make_stores(self, clock):
        raise NotImplementedError

    @initialize(ttls=st.sampled_from([(None, 4), (5, None), (4, 6), (6, 3)]))
    def declare(self, ttls):
        clock = Clock()
        self.world = World(self.make_stores(clock), clock, ttls)

    @rule(
        handler=handlers,
        who=owners,
        program=programs(),
        broken=st.sampled_from([None] * 5 + list(PROPERTIES)),
    )
    def update(self, handler, who, program, broken):
        self.world.run(("call", False, handler, who, program), broken)

    @rule(property=properties, several=some, program=programs(), apart=st.booleans())
    def block(self, property, several, program, apart):
        self.world.run(("open", False, property, several, apart, program), None)

    @rule(property=properties, who=owners)
    def remove(self, property, who):
        self.world.run(("remove", property, who, False), None)

    @rule(property=properties, who=owners)
    def spoil(self, property, who):
        self.world.spoil(property, who)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds):
        self.world.clock.now += seconds

    @precondition(lambda self: len({*self.world.stores.values()}) == 1)
    @rule(property=properties, ttl=st.sampled_from([None, 2, 6]))
    def change_ttl(self, property, ttl):
        """Not with two stores, where taking back a save sets the new ttl on what was there."""
        self.world.declarations[property].ttl = self.world.model.ttls[property] = ttl

    @invariant()
    def nothing_stays_locked(self):
        assert _locks.held() == 0

    def teardown(self):
        if self.world is not None:
            self.world.check_left()


class OnMemory(AllOrNothing):
    def make_stores(self, clock):
        return [RecordingMemory(clock=clock)] * 2


class OnKeyValue(AllOrNothing):
    def make_stores(self, clock):
        return [RecordingKeyValue({}, clock=clock)] * 2


class OnGetSet(AllOrNothing):
    def make_stores(self, clock):
        return [RecordingKeyValue(GetSet(), clock=clock)] * 2


class OnBoth(AllOrNothing):
    """Each session of the stack on a store of its own."""

    def make_stores(self, clock):
        return RecordingMemory(clock=clock), RecordingKeyValue({}, clock=clock)


# The same examples each time. MODEL_EXAMPLES=5000 looks at so many others.
examples = int(os.environ.get("MODEL_EXAMPLES", 0))
budget = settings(
    deadline=None,
    max_examples=examples or 60,
    stateful_step_count=30,
    derandomize=not examples,
)

TestOnMemory = OnMemory.TestCase
TestOnKeyValue = OnKeyValue.TestCase
TestOnGetSet = OnGetSet.TestCase
TestOnBoth = OnBoth.TestCase

TestOnMemory.settings = TestOnKeyValue.settings = TestOnGetSet.settings = budget
TestOnBoth.settings = budget


def test_a_session_is_handed_on_with_the_update_that_joined_it():
    """As a callback's handler that shows a menu of the chat, which shows a page of it."""
    stored = {}
    per_chat = with_session(key=keys.chat, store=stored)

    @per_chat
    def click(call):
        menu(call.message)

    @per_chat
    def menu(message):
        page(message)

    @per_chat
    def page(message):
        message.session["page"] = 1

    click(make("callback_query", UPDATES["callback_query"]))

    assert stored == {"session:42": '{"page":1}'}


@pytest.mark.parametrize(
    ("replacer", "messages"),
    [
        pytest.param("middle", (0, 1, 1), id="then handed on with its own update"),
        pytest.param("middle", (0, 1, 2), id="then handed on with another update"),
        pytest.param("inner", (0, 1, 2), id="two calls deep"),
    ],
)
def test_whoever_replaces_a_session_replaces_it_for_all(replacer, messages):
    stored = {}
    per_chat = with_session(key=keys.chat, store=stored)
    three = [make("message", UPDATES["message"]) for _ in range(3)]
    first, second, third = (three[number] for number in messages)

    @per_chat
    def outer(message):
        message.session["n"] = 10
        middle(second)
        message.session["n"] += 1

    @per_chat
    def middle(message):
        if replacer == "middle":
            message.session = {"n": 20}
        inner(third)
        message.session["n"] += 1

    @per_chat
    def inner(message):
        if replacer == "inner":
            message.session = {"n": 20}
        message.session["n"] += 1

    outer(first)

    assert stored == {"session:42": '{"n":23}'}
