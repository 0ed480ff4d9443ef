"""Random programs of handlers, and how they are run: for real, or by a model."""

import copy
import datetime
import math
import pickle

from hypothesis import strategies as st

from telesession import SessionDataError, SessionStoreError
from tests.updates import GROUP, OTHER, USER

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


UNREADABLE = object()
