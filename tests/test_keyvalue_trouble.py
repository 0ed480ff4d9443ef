"""4.1, 6.3 `KeyValueStore`: what is saved where a client fails, or is interrupted."""

import dbm.dumb
import shelve
import subprocess
import sys
import threading
import time
from types import MappingProxyType

import pytest

from telesession import KeyValueStore, SessionStoreError
from telesession.keyvalue import parse
from tests.interrupts import free, interruptions
from tests.keyvalue_clients import Client, save
from tests.stores import TIMEOUT, Clock


class TestSeveral:
    """4.1 Several sessions are saved all or none."""

    BEFORE = MappingProxyType({"a": "old", "b": "@1e12@old", "c": "old", "other": "x"})
    CHANGES = (("a", "new", None), ("b", None, None), ("new", b"new", 60), ("c", "new", 60))
    CLOCK = Clock(1000)

    def open(self, client, **options):
        store = KeyValueStore(client, clock=self.CLOCK, **options)
        return store, store.open([name for name, _, _ in self.CHANGES])[0]

    @pytest.mark.parametrize("number", [1, 2, 3])
    @pytest.mark.parametrize("written", [False, True])
    def test_what_was_written_is_taken_back(self, number, written):
        """Also what may have been written by the one that failed."""
        kept = dict(self.BEFORE)
        client = Failing(kept, number, written=written)
        store, lease = self.open(client)

        with pytest.raises(OSError, match="disk"):
            store.commit(lease, self.CHANGES)

        assert {**kept, "c": parse(kept["c"])[1]} == self.BEFORE
        assert parse(kept["c"])[0] in (None, 1060)

    def test_a_single_one_is_not_asked_for_again(self):
        client = Failing(dict(self.BEFORE), 1)
        store, lease = self.open(client)
        asked = len(client.calls)
        with pytest.raises(OSError, match="disk"):
            store.commit(lease, self.CHANGES[:1])

        assert client.calls[asked:] == [("set", "a")]

    def test_what_cannot_be_taken_back_is_named(self):
        kept = dict(self.BEFORE)
        client = Failing(kept, 2, forever=True)
        store, lease = self.open(client)
        with pytest.raises(SessionStoreError) as caught:
            store.commit(lease, self.CHANGES)

        assert kept["a"] == "new"
        assert "'a', 'b': saved. 'new': perhaps saved." in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert client.calls[-2:] == [("set", "new"), ("set", "b")]  # and no more of them

    def test_a_false_answer(self):
        kept = dict(self.BEFORE)
        client = Client(
            get=kept.get,
            set=lambda key, value: key != "new" and kept.update({key: value}),
            delete=kept.__delitem__,
        )
        store, lease = self.open(client)
        with pytest.raises(SessionStoreError, match="'new' was not saved"):
            store.commit(lease, self.CHANGES)

        assert kept == self.BEFORE

    def test_a_lease_is_extended(self):
        kept = dict(self.BEFORE)
        client = Failing(kept, 2, written=True)
        store, _ = self.open(client)
        lease, _ = store.open(["a"])
        same, payloads = store.open(["b", "c"], 0, lease)
        assert same is lease
        assert payloads == ["old", "old"]
        with pytest.raises(OSError, match="disk"):
            store.commit(lease, [("a", "new", None), ("b", "new", None)])

        assert kept == self.BEFORE

    def test_a_lease_that_could_not_be_extended(self):
        store = KeyValueStore(Broken({"a": "old"}))
        lease, _ = store.open(["a"])
        before = dict(lease)
        with pytest.raises(OSError, match="disk"):
            store.open(["c", "b"], 0, lease)

        assert lease == before

    def test_a_shelf(self, tmp_path):
        with shelve.Shelf(dbm.dumb.open(str(tmp_path / "shelf"))) as shelf:
            shelf["a"] = "old"
            store, lease = self.open(shelf)
            store._sync = Answers(OSError("disk"), None)
            with pytest.raises(OSError, match="disk"):
                store.commit(lease, self.CHANGES)

            assert dict(shelf) == {"a": "old"}


class Broken(dict):
    """It can't read what is called b."""

    def get(self, key, default=None):
        if key == "b":
            raise OSError("disk")
        return super().get(key, default)


class Answers:
    """Gives, or raises, one after the other."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self):
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer


class Failing:
    """Its set of that number fails, and with ``forever`` all calls after that."""

    def __init__(self, kept, number, *, written=False, forever=False):
        self.kept = kept
        self.number = number
        self.written, self.forever = written, forever
        self.error = OSError("disk full")
        self.calls = []

    def get(self, key):
        self.calls.append(("get", key))
        return self.kept.get(key)

    def set(self, key, value):
        self.calls.append(("set", key))
        self.number -= 1
        if self.number == 0 or (self.number < 0 and self.forever):
            if self.written:
                self.kept[key] = value
            raise self.error
        self.kept[key] = value

    def delete(self, key):
        self.calls.append(("delete", key))
        del self.kept[key]


class TestInterrupted:
    """An exception out of a signal handler may come at any line."""

    CHANGES = MappingProxyType(
        {
            "new": [("new", "1", None)],
            "existing": [("a", "1", 60)],
            "removed": [("a", None, None)],
            "several": [("a", "1", None), ("b", None, None), ("new", b"2", 60), ("c", "3", 60)],
            "none": [],
        }
    )

    def make(self):
        return KeyValueStore({"a": "old", "b": "old", "c": "old"}, clock=Clock(1000))

    def check(self, store, *states):
        assert free(store._mutex.current())
        assert {name: store.peek(name) for name in store.names("")} in states
        for name in ("a", "new"):
            save(store, name)
            assert store.open([name])[1] == ["content"]

    @pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
    def test_commit(self, changes):
        before = dict(self.make().store)
        after = {**before, **{name: payload for name, payload, _ in changes}}
        after = {name: payload for name, payload in after.items() if payload is not None}

        def commit(store):
            lease, _ = store.open([name for name, _, _ in changes])
            yield
            store.commit(lease, changes)

        for store in interruptions(self.make, commit):
            store.commit({}, [])
            self.check(store, before, after)

    @pytest.mark.parametrize(
        "use",
        [
            lambda store: store.open(["a", "none"]),
            lambda store: store.open(["b"], 0, {"a": "old"}),
            lambda store: list(store.names("")),
            lambda store: store.peek("a"),
        ],
        ids=["open", "extend", "names", "peek"],
    )
    def test_other_uses(self, use):
        def run(store):
            yield
            use(store)

        for store in interruptions(self.make, run):
            self.check(store, dict(self.make().store))

    def test_a_commit_that_fails(self):
        """Whatever is left then, the store can be used."""

        def commit(store):
            store, lease = store, store.open(["a", "b"])[0]
            yield
            with pytest.raises(OSError, match="disk"):
                store.commit(lease, [("a", "1", None), ("b", "1", None)])

        for store in interruptions(lambda: KeyValueStore(Failing({}, 2)), commit):
            assert free(store._mutex.current())
            store.store.number = -1  # it has failed, or will not
            save(store, "a")
            assert store.peek("a") == "content"


class TestGreenlets:
    """5.1 gevent may patch the threads after telesession was imported, and the store was made."""

    def test_a_mutex_of_the_kind_that_is_there_now(self, monkeypatch):
        kept = {}
        one, two = KeyValueStore(kept), KeyValueStore(kept, clock=time.time)
        before = one._mutex.current()
        assert before is two._mutex.current()
        monkeypatch.setattr(threading, "Lock", lambda: None)

        assert one._mutex.current() is two._mutex.current()
        assert one._mutex.current() is not before
        assert KeyValueStore({})._mutex.current() is not one._mutex.current()

    def test_a_client_that_yields(self):
        pytest.importorskip("gevent")
        done = subprocess.run(
            [sys.executable, "-c", GREENLETS], capture_output=True, text=True, timeout=TIMEOUT
        )

        assert done.stdout == "done\n", done.stderr


GREENLETS = """
from telesession import KeyValueStore
import time

class Kept:
    kept, inside = {}, 0
    def get(self, key):
        return self.slow(lambda: self.kept.get(key))
    def set(self, key, value):
        return self.slow(lambda: self.kept.update({key: value}))
    def slow(self, call):
        self.inside += 1
        assert self.inside == 1
        time.sleep(0.01)
        self.inside -= 1
        return call()

store = KeyValueStore(Kept())
store.commit(store.open(["a"])[0], [("a", "1", None)])

from gevent import monkey
monkey.patch_all()
import gevent

def use(name):
    store.commit(store.open([name])[0], [(name, "1", None)])
    assert store.peek(name) == "1"

gevent.joinall([gevent.spawn(use, f"{n}") for n in range(5)], raise_error=True)
print("done")
"""
