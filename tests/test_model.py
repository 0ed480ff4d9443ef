"""All or nothing, contract 2.4, 2.5, 3.4 and 4: random updates against a plain model.

Handlers run random programs on real messages. The model runs the same programs on dicts of its
own, and says what every handler has to find, what is written, and what is left in the end.
"""

import copy
import datetime
import math
import pickle
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from telesession import (
    KeyValueStore,
    MemoryStore,
    SessionClosed,
    SessionDataError,
    SessionStoreError,
    _locks,
    keys,
    with_session,
)
from tests.updates import GROUP, OTHER, PRIVATE, UPDATES, USER, make

USERS = {user["id"]: user for user in (USER, OTHER)}
CHATS = {chat["id"]: chat for chat in (PRIVATE, GROUP)}

#: Which sessions the handler of each name has, by property. The second is stacked on the first.
HANDLERS = {"user": ("session",), "chat": ("chat_session",), "both": ("session", "chat_session")}

INITIAL = {"session": dict, "chat_session": lambda: {"l": []}}


def name(property, user, chat):
    return f"session:{user}:{chat}" if property == "session" else f"chat_session:{chat}"


class Boom(Exception):
    pass


FAILURES = (Boom, SessionDataError, SessionStoreError)


class Unpicklable:
    """What no codec keeps."""

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise TypeError("can't be pickled")


class Clock:
    now = 0

    def __call__(self):
        return self.now


# Programs: what a handler does, step by step.

leaves = st.sampled_from([None, True, False, 0, 1, 2, "x", "y"])
json_values = st.recursive(
    leaves,
    lambda parts: (
        st.lists(parts, max_size=2) | st.dictionaries(st.sampled_from("ab"), parts, max_size=2)
    ),
    max_leaves=4,
)
python_values = st.sampled_from(
    # To JSON, the first ones look like other values.
    [(), (1, "x"), {1: []}, [("x",)], {3}, datetime.date(2024, 1, 1), math.inf]
)
values = st.one_of(json_values, json_values, json_values, python_values, st.builds(Unpicklable))
properties = st.sampled_from(HANDLERS["both"])
names = st.sampled_from("abl")
handlers = st.sampled_from(sorted(HANDLERS))

arguments = {
    "set": (properties, names, values),
    "append": (properties, names, values),
    "put": (properties, names, st.sampled_from("ab"), values),
    "pop": (properties, names),
    "clear": (properties,),
    "replace": (properties, st.dictionaries(names, json_values, max_size=2)),
    "none": (properties,),
    "del": (properties,),
    "misuse": (properties,),
    "tick": (st.integers(1, 4),),
    "raise": (),
}


@st.composite
def programs(draw, depth=2):
    """Steps, among them calls of other handlers, at most ``depth`` deep."""
    known = [*arguments, "set", "append", "put"] + ["call"] * 4 * (depth > 0)
    program = []
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 4, 6]))):
        step = draw(st.sampled_from(known))
        if step != "call":
            program.append((step, *map(draw, arguments[step])))
        else:
            user = draw(st.none() | st.sampled_from(sorted(USERS)))  # None is for the same update
            inner = draw(programs(depth - 1))
            program.append((step, draw(handlers), user, draw(st.booleans()), inner))
    return program


def perform(program, update, mine, clock, call):
    """Run a program on an update, real or of the model, whose sessions are ``mine``."""
    for step, *args in program:
        if step == "tick":
            clock.now += args[0]
            continue
        if step == "raise":
            raise Boom
        if step == "call":
            handler, user, catch, inner = args
            try:
                call(handler, user, inner)
            except FAILURES:
                if not catch:
                    raise
            continue
        property, *args = args
        if property not in mine:
            continue
        args = copy.deepcopy(args)
        if step == "none":
            setattr(update, property, None)
        elif step == "del":
            if getattr(update, property, None) is not None:
                delattr(update, property)
        elif step == "misuse":
            setattr(update, property, ["no", "dict"])
        elif step == "replace":
            setattr(update, property, args[0])
        else:
            if not isinstance(getattr(update, property, None), dict):
                setattr(update, property, {})
            change(getattr(update, property), step, *args)


def change(session, step, key=None, *args):
    if step == "set":
        session[key] = args[0]
    elif step == "append":
        if not isinstance(session.get(key), list):
            session[key] = []
        session[key].append(args[0])
    elif step == "put":
        if not isinstance(session.get(key), dict):
            session[key] = {}
        session[key][args[0]] = args[1]
    elif step == "pop":
        session.pop(key, None)
    elif step == "clear":
        session.clear()


def snapshot(update, mine):
    return [copy.deepcopy(dict(getattr(update, property))) for property in mine]


# The model.


def same(one, other):
    """Whether they are equal, in the types and the order of everything as well."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def json_keeps(value):
    if type(value) is dict:
        return all(type(key) is str and json_keeps(part) for key, part in value.items())
    if type(value) is list:
        return all(map(json_keeps, value))
    return value is None or type(value) in (bool, int, str)


def pickle_keeps(value):
    try:
        pickle.dumps(value)
    except TypeError:
        return False
    return True


class Cell:
    """A session that is open: one, however many updates it can be reached through."""

    def __init__(self, property, name, before):
        self.property = property
        self.name = name
        self.before = before  # None if it isn't stored
        self.start = INITIAL[property]() if before is None else before
        self.value = copy.deepcopy(self.start)


class View:
    """An update of the model."""

    def __init__(self, user, chat):
        vars(self).update(user=user, chat=chat, cells={})

    def __getattr__(self, property):
        return self.cells[property].value

    def __setattr__(self, property, value):
        self.cells[property].value = value

    def __delattr__(self, property):
        self.cells[property].value = None


class Model:
    def __init__(self, clock, ttls, keeps):
        self.clock = clock
        self.ttls = ttls
        self.keeps = keeps
        self.stored = {}  # name: (data, deadline)
        self.open = {}
        self.broken = ()  # properties whose store can't be written to
        self.seen = []
        self.must_write = Counter()
        self.may_write = Counter()

    def load(self, name):
        data, deadline = self.stored.get(name, (None, math.inf))
        return None if deadline <= self.clock.now else data

    def store(self, cell, data):
        ttl = self.ttls[cell.property]
        deadline = math.inf if ttl is None else self.clock.now + ttl
        self.stored[cell.name] = copy.deepcopy(data), deadline

    def handle(self, handler, update, program):
        wanted = {name(one, update.user, update.chat): one for one in HANDLERS[handler]}
        joined = [self.open[called] for called in wanted if called in self.open]
        if not all(isinstance(cell.value, (dict, type(None))) for cell in joined):
            raise SessionDataError  # before any of them is opened
        own = [
            Cell(wanted[called], called, self.load(called)) for called in wanted.keys() - self.open
        ]
        self.open.update((cell.name, cell) for cell in own)
        fresh = []
        for cell in joined:
            if cell.value is None:  # removed by the handler that has it open
                cell.value = INITIAL[cell.property]()
                fresh.append((cell, cell.value))
        update.cells.update((wanted[cell.name], cell) for cell in own + joined)
        self.seen.append(snapshot(update, HANDLERS[handler]))
        try:

            def call(handler, user, inner):
                self.handle(handler, View(user, update.chat) if user else update, inner)

            perform(program, update, HANDLERS[handler], self.clock, call)
            self.save(own)
        except Exception:
            for cell in own:
                self.leave_as_it_was(cell)
            raise
        finally:
            for cell, value in fresh:
                if cell.value is value and value == INITIAL[cell.property]():
                    cell.value = None  # nothing came of it, so it stays removed
            for cell in own:
                del self.open[cell.name]

    def save(self, own):
        for cell in own:
            cell.value = {} if cell.value is None else cell.value
            if type(cell.value) is not dict or not self.keeps[cell.property](cell.value):
                raise SessionDataError
        if any(cell.property in self.broken for cell in own):
            # The other session may have been written, and then put back as it was.
            self.may_write.update([cell.name for cell in own] * 2)
            raise SessionStoreError
        for cell in own:
            if same(cell.value, cell.start):
                self.leave_as_it_was(cell)
                # Pickle may make other bytes of the same content: see test_codecs.py.
                self.may_write[cell.name] += self.keeps[cell.property] is pickle_keeps
            elif not cell.value:
                self.stored.pop(cell.name, None)
                self.must_write[cell.name] += cell.before is not None
            else:
                self.store(cell, cell.value)
                self.must_write[cell.name] += 1

    def leave_as_it_was(self, cell):
        """It expires one ttl from now, and is not written for any other reason."""
        if cell.property in self.broken or cell.before is None:
            return
        if self.ttls[cell.property] is not None:
            self.store(cell, cell.before)
            self.may_write[cell.name] += 1


# The machine that drives both.


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


class AllOrNothing(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.stores = {}

    def make_stores(self, clock):
        raise NotImplementedError

    @initialize(ttls=st.sampled_from([(None, 4), (5, None), (4, 6), (6, 3)]))
    def declare(self, ttls):
        self.clock = Clock()
        self.written = Counter()
        self.seen = []
        self.stores = dict(zip(HANDLERS["both"], self.make_stores(self.clock)))
        for store in self.stores.values():
            store.written = self.written
        self.model = Model(
            self.clock,
            dict(zip(HANDLERS["both"], ttls)),
            {
                property: pickle_keeps if isinstance(store, MemoryStore) else json_keeps
                for property, store in self.stores.items()
            },
        )
        self.declarations = {
            property: with_session(
                property=property,
                key=key,
                ttl=self.model.ttls[property],
                store=self.stores[property],
                initial=INITIAL[property],
            )
            for property, key in zip(HANDLERS["both"], (keys.user_chat, keys.chat))
        }
        session, chat_session = self.declarations.values()
        self.handlers = {
            "user": session(self.handler("user")),
            "chat": chat_session(self.handler("chat")),
            "both": session(chat_session(self.handler("both"))),
        }

    def handler(self, handler):
        mine = HANDLERS[handler]

        def handle(message, program):
            def call(handler, user, inner):
                other = self.message(user, message.chat.id) if user else message
                self.handlers[handler](other, inner)

            self.seen.append(snapshot(message, mine))
            perform(program, message, mine, self.clock, call)

        return handle

    def message(self, user, chat):
        payload = {**UPDATES["message"], "from": USERS[user], "chat": CHATS[chat]}
        return make("message", payload)

    @rule(
        handler=handlers,
        user=st.sampled_from(sorted(USERS)),
        chat=st.sampled_from(sorted(CHATS)),
        program=programs(),
        broken=st.sampled_from([None] * 5 + list(HANDLERS["both"])),
    )
    def update(self, handler, user, chat, program, broken):
        store = self.stores.get(broken)
        self.model.broken = [one for one in self.stores if self.stores[one] is store]
        for one in self.stores.values():
            one.broken = one is store
        start = self.clock.now
        message = self.message(user, chat)
        outcome = self.outcome(self.handlers[handler], message, program)
        end, self.clock.now = self.clock.now, start

        view = View(user, chat)
        expected = self.outcome(self.model.handle, handler, view, program)

        assert outcome is expected
        assert self.clock.now == end
        assert len(self.seen) == len(self.model.seen)
        for found, wanted in zip(self.seen, self.model.seen):
            assert same(found, wanted), (found, wanted)
        self.check_written()
        if outcome is None:
            for property in HANDLERS[handler]:
                left = getattr(message, property)
                assert dict(left) == view.cells[property].value
                with pytest.raises(SessionClosed):
                    left["late"] = 1
        self.seen.clear()
        self.model.seen.clear()

    @staticmethod
    def outcome(function, *args):
        try:
            function(*args)
        except FAILURES as error:
            return type(error)
        return None

    def check_written(self):
        must, may = self.model.must_write, self.model.may_write
        for name in {*self.written, *must, *may}:
            assert must[name] <= self.written[name] <= must[name] + may[name], name
        self.written.clear()
        must.clear()
        may.clear()

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds):
        self.clock.now += seconds

    @precondition(lambda self: len({*self.stores.values()}) == 1)
    @rule(property=properties, ttl=st.sampled_from([None, 2, 6]))
    def change_ttl(self, property, ttl):
        """Not with two stores, where taking back a save sets the new ttl on what was there."""
        self.declarations[property].ttl = self.model.ttls[property] = ttl

    @invariant()
    def nothing_stays_locked(self):
        assert _locks.held() == 0

    def teardown(self):
        left = Counter()
        for property, store in self.stores.items():
            store.broken = False
            for called in {name(property, user, chat) for user in USERS for chat in CHATS}:
                lease, [payload] = store.open([called], 1)
                store.commit(lease, [])
                data = None if payload is None else store.codec.loads(payload)
                assert same(data, self.model.load(called)), called
                left[store] += data is not None
        for store, number in left.items():
            # And nothing else: what was emptied or has expired is really gone.
            assert len(store if isinstance(store, MemoryStore) else store.store) == number


class OnMemory(AllOrNothing):
    def make_stores(self, clock):
        return [RecordingMemory(clock=clock)] * 2


class OnKeyValue(AllOrNothing):
    def make_stores(self, clock):
        return [RecordingKeyValue({}, clock=clock)] * 2


class OnBoth(AllOrNothing):
    """Each session of the stack on a store of its own."""

    def make_stores(self, clock):
        return RecordingMemory(clock=clock), RecordingKeyValue({}, clock=clock)


budget = settings(deadline=None, max_examples=300, stateful_step_count=30)

TestOnMemory = OnMemory.TestCase
TestOnKeyValue = OnKeyValue.TestCase
TestOnBoth = OnBoth.TestCase

TestOnMemory.settings = TestOnKeyValue.settings = TestOnBoth.settings = budget


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
