"""2.4, 2.5, 3.4, 4.1, 5.6, 5.7 All or nothing: random updates against a plain model.

Handlers run random programs on real messages. The model runs the same programs on dicts of its
own, and says what every handler has to find, what is written, and what is left in the end.
"""

import contextlib
import copy
import datetime
import json
import math
import os
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
from tests.stores import GetSet
from tests.updates import GROUP, OTHER, UPDATES, USER, make

pytestmark = pytest.mark.thorough

USERS = {user["id"]: user for user in (USER, OTHER)}
CHATS = {chat["id"]: chat for chat in (GROUP, {**GROUP, "id": -1002})}
WHO = [(user, chat) for user in sorted(USERS) for chat in sorted(CHATS)]

#: Which sessions the handler of each name has, by property. The second is stacked on the first.
HANDLERS = {"user": ("session",), "chat": ("chat_session",), "both": ("chat_session", "session")}
PROPERTIES = HANDLERS["both"]

INITIAL = {"session": dict, "chat_session": lambda: {"l": []}}


def upgrade(data):
    if data.get("b") == 2:
        raise ValueError("of a time that nobody remembers")
    data.setdefault("u", [])


UPGRADE = {"session": upgrade, "chat_session": lambda data: None}


def key_of(property, user, chat):
    return f"{user}:{chat}" if property == "session" else chat


def name(property, user, chat):
    return f"{property}:{key_of(property, user, chat)}"


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
properties = st.sampled_from(PROPERTIES)
#: A session in the program's reach: of its update, or of one further out; or of an open block.
targets = st.one_of(
    st.tuples(st.sampled_from([0, 0, 0, 1, 2]), properties),
    st.tuples(st.sampled_from([0, 0, 1, 2]), st.none()),
)
names = st.sampled_from("abl")
handlers = st.sampled_from(sorted(HANDLERS))
owners = st.sampled_from(WHO)
some = st.lists(owners, min_size=1, max_size=2)

arguments = {
    "set": (targets, names, values),
    "append": (targets, names, values),
    "put": (targets, names, st.sampled_from("ab"), values),
    "pop": (targets, names),
    "alias": (targets, names, names),
    "clear": (targets,),
    "replace": (properties, st.dictionaries(names, json_values, max_size=2)),
    "none": (properties,),
    "del": (properties,),
    "misuse": (properties,),
    "tick": (st.integers(1, 4),),
    "raise": (),
    "peek": (properties, owners),
    "remove": (properties, owners, st.booleans()),
}


@st.composite
def programs(draw, depth=3):
    """Steps, among them calls of other handlers and open blocks, at most ``depth`` deep."""
    known = [*arguments, "set", "append", "put"] + ["call", "open"] * 3 * (depth > 0)
    program = []
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 4, 6]))):
        step = draw(st.sampled_from(known))
        if step == "call":
            # The message is the same one, the one around that, one of before, or another one.
            message = draw(st.sampled_from(["same", "back", 0, 1]) | owners)
            program.append((step, draw(st.booleans()), draw(handlers), message))
        elif step == "open":
            apart = draw(st.booleans())
            program.append((step, draw(st.booleans()), draw(properties), draw(some), apart))
        else:
            program.append((step, *map(draw, arguments[step])))
        if step in ("call", "open"):
            program[-1] += (draw(programs(depth - 1)),)
    return program


class Scope:
    """What a program can reach: the updates and the blocks around it, the innermost first."""

    def __init__(self, updates=(), blocks=()):
        self.updates = updates  # each with the properties that it has
        self.blocks = blocks

    def on(self, update, mine):
        return Scope([(update, mine), *self.updates], self.blocks)

    def within(self, found):
        return Scope(self.updates, [*found, *self.blocks])

    def find(self, how_far, property):
        """A session; `None` if there is none."""
        if property is None:
            return self.blocks[how_far] if how_far < len(self.blocks) else None
        if how_far >= len(self.updates) or property not in self.updates[how_far][1]:
            return None
        update = self.updates[how_far][0]
        if not isinstance(getattr(update, property, None), dict):
            if how_far:
                return None
            setattr(update, property, {})
        return getattr(update, property)

    def all(self):
        shown = [getattr(update, one, None) for update, mine in self.updates[:1] for one in mine]
        return [*shown, *self.blocks]


def perform(program, scope, world):
    """Run a program in the real world, or in that of the model."""
    for step, *args in program:
        if step in ("call", "open", "remove"):
            attempt(step, args, scope, world)
            continue
        if step == "tick":
            world.clock.now += args[0]
        elif step == "raise":
            raise Boom
        elif step == "peek":
            try:
                world.seen.append(copy.deepcopy(world.peek(*args)))
            except SessionDataError as error:
                world.seen.append(type(error))
        elif step in ("none", "del", "misuse", "replace"):
            property, *args = copy.deepcopy(args)
            if not scope.updates or property not in scope.updates[0][1]:
                continue
            update = scope.updates[0][0]
            if step == "del":
                if getattr(update, property, None) is not None:
                    delattr(update, property)
            else:
                setattr(update, property, {"none": None, "misuse": ["no", "dict"]}.get(step, *args))
        else:
            session = scope.find(*args[0])
            if session is not None and not world.closed(session):
                change(session, step, *copy.deepcopy(args[1:]))


def attempt(step, args, scope, world):
    """Have a part, which may fail without taking the program with it."""
    before = [(each, parts(each)) for each in scope.all() if world.kept(each)]
    catch = args.pop(2) if step == "remove" else args.pop(0)
    try:
        getattr(world, step)(*args, scope)
    except FAILURES as error:
        if not catch:
            raise
        world.seen.append(type(error))
        for each, contents in before:
            assert list(map(id, parts(each))) == list(map(id, contents)), "not in place"
    world.seen.append(copy.deepcopy([plain(each) for each in scope.all()]))


def plain(value):
    return dict(value) if isinstance(value, dict) else value


def parts(value):
    """The dicts, lists and sets that it consists of, each once."""
    found, todo = {}, [value]
    while todo:
        one = todo.pop()
        if isinstance(one, (dict, list, set)) and id(one) not in found:
            found[id(one)] = one
            todo += dict.values(one) if isinstance(one, dict) else one
    return list(found.values())


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
    elif step == "alias":
        if args[0] in session:
            session[key] = session[args[0]]
    elif step == "pop":
        session.pop(key, None)
    elif step == "clear":
        session.clear()


def snapshot(update, mine):
    return copy.deepcopy([dict(getattr(update, property)) for property in mine])


# The model: nested transactions on dicts.


def same(one, other):
    """Whether they are equal, in the types and the order of everything as well."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def as_shown(found, wanted):
    """What is wanted, with `{}` for `None` where that was found: a removed session that a block
    around has is shown as the block's dict, which is empty."""
    if not isinstance(wanted, list) or not isinstance(found, list) or len(wanted) != len(found):
        return wanted
    return [{} if two is None and one == {} else two for one, two in zip(found, wanted)]


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


UNREADABLE = object()


class Cell:
    """A session that is open: one, however many updates it can be reached through."""

    def __init__(self, property, name, stored, root):
        self.property = property
        self.name = name
        self.stored = stored  # None if it isn't
        self.root = root  # the frame that saves it
        self.known = True  # whether its store was asked
        self.loaded = False
        self.read = False  # in contrast to one that is to be removed, whatever it is
        self.start = None
        self.data = {}
        self.user = None  # the innermost frame that works on it

    def reset(self):
        self.data.clear()
        if self.loaded and not self.read and self.stored is None:
            self.read, self.start = True, INITIAL[self.property]()
        if self.read:
            self.data.update(copy.deepcopy(self.start))
        self.loaded = self.loaded and self.read
        self.user = None


class View:
    """An update of the model."""

    def __init__(self, user, chat):
        vars(self).update(user=user, chat=chat, shown={})

    def __getattr__(self, property):
        return self.shown.get(property)

    def __setattr__(self, property, value):
        self.shown[property] = value

    def __delattr__(self, property):
        self.shown[property] = None


class Frame:
    """A handler that runs, or a block."""

    def __init__(self, view, root):
        self.view = view  # None in a block
        self.root = root or self
        self.blocks = {}  # by name, what a block shows
        self.own = []
        self.joins = []
        self.stores = []
        self.saving = False

    def value(self, cell):
        """What it shows; a block has what was put in the place of its dict around it."""
        if self.view is not None:
            return self.view.shown.get(cell.property)
        for joined, user, was, *_ in self.joins:
            if joined is cell and value(user, cell) is not was:
                return value(user, cell)
        return self.blocks[cell.name]

    def keeper(self, cell):
        """The frame whose update has the session; `None` if it is kept in place."""
        if self.view is not None:
            return self
        for joined, user, was, *_ in self.joins:
            if joined is cell and value(user, cell) is not was:
                return user.keeper(cell)
        return None

    def show(self, cell, value):
        if self.view is None:
            self.blocks[cell.name] = value
        else:
            self.view.shown[cell.property] = value


def value(user, cell):
    return cell.data if user is None else user.value(cell)


class Saved:
    """How a cell is, to be put back in place."""

    def __init__(self, cell, views):
        self.cell = cell
        self.loaded, self.user, self.read = cell.loaded, cell.user, cell.read
        self.start = cell.start
        self.value = value(cell.user, cell)
        self.shown = [(view, view.shown.get(cell.property)) for view in views]
        containers = {id(one): one for each in (cell.data, self.value) for one in parts(each)}
        self.contents = []
        for one in containers.values():
            memo = dict(containers)
            content = list(one.items()) if isinstance(one, dict) else list(one)
            self.contents.append((one, copy.deepcopy(content, memo)))

    def restore(self):
        for one, content in self.contents:
            one.clear()
            (one.extend if isinstance(one, list) else one.update)(content)
        self.cell.loaded, self.cell.user, self.cell.read = self.loaded, self.user, self.read
        self.cell.start = self.start
        for view, shown in self.shown:
            view.shown[self.cell.property] = shown


class Model:
    def __init__(self, clock, ttls, stores):
        self.clock = clock
        self.ttls = ttls
        self.stores = stores
        self.keeps = {
            property: pickle_keeps if isinstance(store, MemoryStore) else json_keeps
            for property, store in stores.items()
        }
        self.stored = {}  # name: (data, deadline)
        self.cells = {}
        self.frames = []
        self.broken = ()  # properties whose store can't be written to
        self.seen = []
        self.views = []
        self.must_write = Counter()
        self.may_write = Counter()

    # What programs do

    def call(self, handler, message, program, scope):
        view = which(message, scope, self.views) or View(*whose(message))
        self.views.append(view)
        mine = HANDLERS[handler]

        def body(frame):
            self.seen.append(snapshot(view, mine))
            perform(program, scope.on(view, mine), self)

        self.visit({name(one, view.user, view.chat): one for one in mine}, view, body)

    def open(self, property, several, apart, program, scope):
        wanted = list(dict.fromkeys(name(property, *who) for who in several))
        found = []

        def body(frame):
            found.extend(frame.blocks[one] for one in wanted)
            self.seen.append(copy.deepcopy(found))
            perform(program, scope.within(found), self)

        try:
            self.visit(dict.fromkeys(sorted(wanted), property), None, body, apart)
        finally:
            self.seen.append(list(map(self.closed, found)))

    def remove(self, property, who, scope):
        wanted = name(property, *who)
        self.visit({wanted: property}, None, lambda frame: frame.blocks[wanted].clear(), blank=True)

    def peek(self, property, who):
        cell = self.cells.get(name(property, *who))
        if cell is not None and cell.loaded:
            shown = value(cell.user, cell)
            return (dict(shown) if isinstance(shown, dict) else {}) or None
        stored = self.load(name(property, *who))
        return None if stored is None else self.upgraded(property, stored)

    def closed(self, session):
        return any(session is one for one in self.shut)

    def kept(self, session):
        return False

    # How they are run

    @property
    def shut(self):
        return [cell.data for cell in self.all_cells if cell.user is None]

    def visit(self, wanted, view, body, apart=False, blank=False):
        around = self.frames[-1] if self.frames else None
        if around is None:
            self.all_cells = []
        frame = Frame(view, None if around is None or apart else around.root)
        views = [one.view for one in self.frames if one.view is not None]
        before = {cell: Saved(cell, views) for cell in self.cells.values()}
        self.frames.append(frame)
        try:
            self.enter(frame, wanted, blank, first=around is None and view is not None)
            body(frame)
            self.finish(frame)
        except Exception:
            self.take_back(frame, before)
            raise
        finally:
            self.frames.pop()
            for cell in list(self.cells.values()):
                if cell.root is frame:
                    cell.user = None
                    del self.cells[cell.name]

    def enter(self, frame, wanted, blank, first):
        joins = [self.cells[one] for one in wanted if one in self.cells]
        added = []
        for one, property in wanted.items():
            if one not in self.cells:
                cell = self.cells[one] = Cell(property, one, self.load(one), frame.root)
                added.append(cell)
                self.all_cells.append(cell)
                if self.stores[property] not in frame.root.stores:
                    frame.root.stores.append(self.stores[property])
        together = first and len(frame.root.stores) == 1
        for cell in added:
            cell.known = not together
        for cell in added:
            cell.known = True
            self.fill(cell, blank)
            frame.show(cell, cell.data)
            cell.user = frame
            frame.own.append(cell)
        for cell in joins:
            if not cell.loaded:
                self.fill(cell, blank)
            user = cell.user
            was = shown = value(user, cell)
            fresh = shown is None or (user is None and not cell.data)
            if fresh:
                cell.data.clear()
                cell.data.update(INITIAL[cell.property]())
                shown = cell.data
            elif not isinstance(shown, dict):
                raise SessionDataError
            keeper = None if user is None else user.keeper(cell)
            frame.joins.append((cell, user, was, fresh, keeper))
            frame.show(cell, shown)
            cell.user = frame

    def fill(self, cell, blank):
        if not blank and cell.stored is not None:
            cell.data.update(self.upgraded(cell.property, cell.stored))
        elif not blank:
            cell.data.update(INITIAL[cell.property]())
        cell.loaded = True
        cell.read = not blank
        cell.start = copy.deepcopy(cell.data)

    def upgraded(self, property, stored):
        if stored is UNREADABLE:
            raise SessionDataError
        data = copy.deepcopy(stored)
        try:
            UPGRADE[property](data)
        except ValueError:
            raise SessionDataError from None
        return data

    def finish(self, frame):
        for cell, user, was, fresh, keeper in reversed(frame.joins):
            shown = frame.value(cell)
            if fresh and shown is cell.data and shown == INITIAL[cell.property]():
                cell.data.clear()
                shown = None
            if keeper is not None:
                keeper.show(cell, shown)
            else:
                refill(was, shown)
                shown = was
            if frame.view is not None:
                frame.show(cell, shown)
            cell.user = user
        if frame.root is frame:
            self.save(frame)
            return
        for cell in frame.own:
            refill(cell.data, frame.value(cell))
            frame.show(cell, cell.data)
            cell.user = None

    def take_back(self, frame, before):
        for cell in self.cells.values():
            if cell in before and before[cell].loaded:
                before[cell].restore()
            elif cell.root is not frame:
                cell.reset()
        if frame.view is not None and all(one.view is not frame.view for one in self.frames[:-1]):
            for cell, _, was, *_ in frame.joins:
                frame.show(cell, was)
        if frame.root is frame and not frame.saving:
            for cell in self.cells.values():
                if cell.root is frame:
                    self.leave_as_it_was(cell)

    def save(self, frame):
        own = {}
        for cell in self.cells.values():
            if cell.root is frame and cell.loaded:
                data = cell.data if cell.user is None else frame.value(cell)
                data = {} if data is None else data
                if type(data) is not dict or not self.keeps[cell.property](data):
                    raise SessionDataError
                own[cell] = data
        frame.saving = True
        for number, store in enumerate(frame.stores):
            if any(self.stores[property] is store for property in self.broken):
                for cell in own:  # what was saved is put back as it was
                    if self.stores[cell.property] in frame.stores[:number]:
                        self.leave_as_it_was(cell)
                        self.may_write[cell.name] += 2
                raise SessionStoreError
        for cell, data in own.items():
            if cell.read and same(data, cell.start):
                self.leave_as_it_was(cell, data)
                # Pickle may make other bytes of the same content: see test_codecs.py.
                self.may_write[cell.name] += self.keeps[cell.property] is pickle_keeps
            elif not data:
                self.stored.pop(cell.name, None)
                self.must_write[cell.name] += cell.stored is not None
            else:
                self.store(cell, data)
                self.must_write[cell.name] += 1
            if data is not cell.data:
                refill(cell.data, data)

    # What is stored

    def load(self, name):
        data, deadline = self.stored.get(name, (None, math.inf))
        return None if deadline <= self.clock.now else data

    def store(self, cell, data):
        ttl = self.ttls[cell.property]
        deadline = math.inf if ttl is None else self.clock.now + ttl
        if data is not UNREADABLE:
            as_json = self.keeps[cell.property] is json_keeps
            data = json.loads(json.dumps(data)) if as_json else copy.deepcopy(data)
        self.stored[cell.name] = data, deadline

    def leave_as_it_was(self, cell, data=None):
        """It expires one ttl from now, and is not written for any other reason."""
        if cell.property in self.broken or cell.stored is None or not cell.known:
            return
        if self.ttls[cell.property] is not None:
            self.store(cell, cell.stored)
            self.may_write[cell.name] += 1
        if data is not None and self.keeps[cell.property] is pickle_keeps:
            # The same content with its parts shared in another way is another one to pickle.
            self.stored[cell.name] = copy.deepcopy(data), self.stored[cell.name][1]


def which(message, scope, before):
    """The message that there is already with which a handler is called; `None` for another one."""
    if isinstance(message, int) and before:
        return before[-1 - message % len(before)]
    if isinstance(message, str) and scope.updates:
        return scope.updates[min(message == "back", len(scope.updates) - 1)][0]
    return None


def whose(message):
    return message if isinstance(message, tuple) else WHO[0]


def refill(target, shown):
    if shown is not None and not isinstance(shown, dict):
        raise SessionDataError
    if shown is not target:
        content = dict(shown or {})
        target.clear()
        target.update(content)


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
            assert same(found, as_shown(found, wanted)), (found, wanted)
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
    max_examples=examples or 100,
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
