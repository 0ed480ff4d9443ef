"""What updates do to sessions, by a plain model: nested transactions on dicts of its own."""

import copy
import json
import math
from collections import Counter

from telesession import MemoryStore, SessionDataError, SessionStoreError
from tests.programs import (
    HANDLERS,
    INITIAL,
    UNREADABLE,
    UPGRADE,
    WHO,
    json_keeps,
    name,
    parts,
    perform,
    pickle_keeps,
    same,
    snapshot,
)


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
        self.value = self.data  # what its views show: its data, or what was put in their place
        self.views = []  # of the frames that work on it
        self.user = None  # the innermost of these frames

    @property
    def now(self):
        """Its value or, if a program put another one in its place since, that one."""
        shown = (view.shown.get(self.property) for view in self.views)
        return next((one for one in shown if one is not self.value), self.value)

    def show(self, value):
        self.value = value
        for view in self.views:
            view.shown[self.property] = value

    def reset(self):
        self.show(self.data)
        self.views = []
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
        self.blocks = {}  # by name, what a block got
        self.own = []
        self.joins = []
        self.stores = []
        self.saving = False


class Saved:
    """How a cell is, to be put back in place."""

    def __init__(self, cell):
        self.cell = cell
        self.loaded, self.user, self.read = cell.loaded, cell.user, cell.read
        self.start = cell.start
        self.value, self.views = cell.now, cell.views
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
        self.cell.show(self.value)
        self.cell.views = self.views


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
            shown = cell.now
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
        before = {cell: Saved(cell) for cell in self.cells.values()}
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
            cell.views = [] if frame.view is None else [frame.view]
            cell.show(cell.data)
            frame.blocks[cell.name] = cell.data
            cell.user = frame
            frame.own.append(cell)
        for cell in joins:
            if not cell.loaded:
                self.fill(cell, blank)
            user, views = cell.user, cell.views
            shown = cell.now
            fresh = shown is None or (user is None and not cell.data)
            if fresh:
                cell.data.clear()
                cell.data.update(INITIAL[cell.property]())
                shown = cell.data
            elif not isinstance(shown, dict):
                raise SessionDataError
            frame.joins.append((cell, user, views, fresh))
            if frame.view is not None and frame.view not in views:
                cell.views = [*views, frame.view]
            cell.show(shown)
            frame.blocks[cell.name] = shown
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
        for cell, user, views, fresh in reversed(frame.joins):
            shown = cell.now
            if fresh and shown is cell.data and shown == INITIAL[cell.property]():
                cell.data.clear()
                shown = None
            if user is None or user.view is None:
                kept = cell.data if user is None else user.blocks[cell.name]
                refill(kept, shown)
                shown = kept
            cell.show(shown)
            cell.views = views
            cell.user = user
        if frame.root is frame:
            self.save(frame)
            return
        for cell in frame.own:
            refill(cell.data, cell.now)
            cell.show(cell.data)
            cell.views = []
            cell.user = None

    def take_back(self, frame, before):
        for cell in self.cells.values():
            if cell in before and before[cell].loaded:
                before[cell].restore()
            elif cell.root is not frame:
                cell.reset()
        if frame.root is frame and not frame.saving:
            for cell in self.cells.values():
                if cell.root is frame:
                    self.leave_as_it_was(cell)

    def save(self, frame):
        own = {}
        for cell in self.cells.values():
            if cell.root is frame and cell.loaded:
                data = cell.now
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
