"""6.3, 6.4 `LeasingStore`: sessions of several groups, and those that are opened later."""

import time

import pytest

from telesession import SessionBusy, SessionDataError, SessionLost, SessionStoreError
from tests import own_store
from tests.helpers import says, until
from tests.own_store import NAMES, A, B, C, OwnStore, changed, failing
from tests.stores import TIMEOUT

pytestmark = pytest.mark.thorough

store = own_store.store
grouped = own_store.grouped


# A step for each


def test_groups(grouped):
    """Sessions of several groups are leased in their order, and let go of when all are written."""
    lease, found = grouped.open([C, A, B], 0)
    assert found == ["old c:1", "old a:1", "old b:1"]
    grouped.commit(lease, changed(C, A))
    assert [call[1] for call in grouped.calls] == [A, B, C] * 3
    assert {name: payload for name, (payload, _) in grouped.kept.items()} == {
        A: "new a:1",
        B: "old b:1",
        C: "new c:1",
    }
    assert grouped.leased == {}


@pytest.mark.parametrize("taken", NAMES)
def test_one_group_is_held(grouped, taken):
    """While one can't be had, none of the others is kept from those that need only it."""
    grouped.steal(taken)
    with says(SessionBusy, repr(taken)):
        grouped.open(NAMES, 0)
    assert list(grouped.leased) == [taken]


@pytest.mark.parametrize(
    "error", [ConnectionError(), SessionDataError(), KeyboardInterrupt()], ids=repr
)
def test_one_group_is_not_read(grouped, error):
    """A group that can't be read leaves none leased."""
    grouped.failures["acquire", B] = error
    with pytest.raises(type(error)):
        grouped.open(NAMES, 0)
    assert grouped.leased == {}


def test_one_group_is_not_let_go_of_in_between(grouped, monkeypatch):
    """What an update failed to let go of while it waited stays its own, once it has all."""
    grouped.steal(B)
    grouped.failures["write", A] = ConnectionError()
    grouped.wait = lambda name, limit, waited: grouped.leased.pop(name)
    monkeypatch.setattr(grouped._renewer, "_start", int)  # its turn comes below
    lease, _ = grouped.open(NAMES, TIMEOUT)
    grouped._renewer._look()
    assert list(grouped.leased) == NAMES
    grouped.commit(lease, changed(A))

    assert grouped.kept[A] == ("new a:1", None)
    assert not grouped.leased


@pytest.mark.parametrize("lost", NAMES)
@pytest.mark.parametrize("changes", [changed(*NAMES), []], ids=["write", "nothing to write"])
def test_one_group_is_lost(grouped, lost, changes):
    """None is saved if one is lost; the others are let go of."""
    before = dict(grouped.kept)
    lease, _ = grouped.open(NAMES, 0)
    grouped.steal(lost)
    if changes:
        with says(SessionLost, repr(lost)):
            grouped.commit(lease, changes)
    else:
        grouped.commit(lease, changes)
    assert grouped.kept == before
    assert list(grouped.leased) == [lost]


@pytest.mark.parametrize("late", [False, True], ids=["before", "after it was done"])
@pytest.mark.parametrize("error", [ConnectionError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("broken", NAMES)
def test_one_group_is_not_written(grouped, broken, error, late):
    """None is saved if writing one fails, even if that one was saved in truth."""
    del grouped.kept[C]  # one that is new goes again
    before = dict(grouped.kept)
    lease, _ = grouped.open(NAMES, 0)
    grouped.too_late = late
    grouped.failures["write", broken] = error
    with pytest.raises(type(error)):
        grouped.commit(lease, changed(*NAMES))
    assert grouped.kept == before
    if isinstance(error, Exception):  # the server is asked to take back, and for nothing else now
        assert list(grouped.leased) == NAMES[NAMES.index(broken) + 1 :]
    grouped.commit(lease, ())
    until(lambda: not grouped.leased)
    assert grouped.kept == before


@pytest.mark.parametrize("late", [False, True], ids=["before", "after it was done"])
def test_what_can_not_be_taken_back(grouped, late):
    """It is named, with what is known of each session."""
    lease, _ = grouped.open(NAMES, 0)
    write, calls = grouped.write, 0

    def breaking(names, token, changes, *, release=True):
        nonlocal calls
        calls += 1
        if calls == 1 or (calls == 2 and late):
            write(names, token, changes, release=release)
        if calls > 1:
            raise ConnectionError("hunter2")
        return True

    grouped.write = breaking
    words = "ConnectionError", "'a:1': saved.", "'b:1': perhaps saved.", "other", "were not saved"
    with says(SessionStoreError, *words) as caught:
        grouped.commit(lease, changed(*NAMES))
    assert caught.value.property == "a"
    assert "hunter2" not in str(caught.value)
    kept = [payload.split()[0] for payload, _ in map(grouped.kept.get, NAMES)]
    assert kept == ["new", "new" if late else "old", "old"]


def test_lost_and_not_taken_back(grouped):
    """Also where others have taken one of them, and the server then failed."""
    lease, _ = grouped.open(NAMES, 0)
    grouped.steal(B)
    grouped.write = failing_later(grouped.write, 2)
    with says(SessionStoreError, "SessionLost", "'a:1': saved.", "The other") as caught:
        grouped.commit(lease, changed(*NAMES))
    assert "perhaps" not in str(caught.value)
    assert isinstance(caught.value.__cause__, SessionLost)


def failing_later(call, after):
    """The same so many times, and then it always fails."""
    number = 0

    def run(*args, **kwargs):
        nonlocal number
        number += 1
        if number > after:
            raise ConnectionError
        return call(*args, **kwargs)

    return run


@pytest.mark.parametrize("broken", NAMES)
def test_one_group_is_refused(grouped, broken):
    """6.3 A group that was not written for sure is not taken back; those before it are."""
    before = dict(grouped.kept)
    lease, _ = grouped.open(NAMES, 0)
    grouped.refused = lambda error: True
    grouped.failures["write", broken] = ConnectionError()
    grouped.calls.clear()
    with pytest.raises(ConnectionError):
        grouped.commit(lease, changed(A, C))
    assert grouped.kept == before
    written = NAMES[: NAMES.index(broken)]
    tried = [*written, broken, *(name for name in written if name != B)]
    assert grouped.calls == [("write", name) for name in tried]


@pytest.mark.parametrize("writing", NAMES)
def test_the_only_group_that_is_written(grouped, writing):
    """Where only one is written, there is nothing to take back: the server is not asked again."""
    before = dict(grouped.kept)
    lease, _ = grouped.open(NAMES, 0)
    grouped.failures["write", writing] = ConnectionError()
    with pytest.raises(ConnectionError):
        grouped.commit(lease, changed(writing))
    assert grouped.kept == before
    assert grouped.calls[-1] == ("write", writing)
    assert grouped.count("write") == NAMES.index(writing) + 1


def test_letting_go_fails(grouped):
    """A server that fails while it is told to let go is not told of the next session."""
    lease, _ = grouped.open(NAMES, 0)
    write = grouped.write

    def releasing(names, token, changes, *, release=True):
        if release:
            grouped.calls.append(("let go", *names))
            raise ConnectionError
        return write(names, token, changes, release=release)

    grouped.write = releasing
    grouped.commit(lease, changed(A))  # it is saved, whatever becomes of the leases
    assert grouped.kept[A] == ("new a:1", None)
    assert grouped.count("let go") == 1
    grouped.commit(lease, ())
    assert grouped.count("let go") == 1


# A lease that grows


def test_grows(store):
    """What is opened with a lease is written by the same step."""
    store.kept = {name: (name, None) for name in NAMES}
    lease, _ = store.open([B], 0)
    grown, found = store.open([C, A], 0, lease)
    assert grown is lease
    assert found == [C, A]
    assert {token for token, _, _ in store.leased.values()} == {lease.token}
    store.calls.clear()
    store.commit(lease, changed(*NAMES))
    assert store.calls == [("write", B, C, A)]
    assert store.kept == {name: (f"new {name}", None) for name in NAMES}
    assert store.leased == {}


@pytest.mark.parametrize("broken", NAMES)
def test_grows_by_groups(grouped, broken):
    """All groups are written in their order, and taken back if one can't be."""
    before = dict(grouped.kept)
    lease, _ = grouped.open([C], 0)
    grouped.open([B, A], 0, lease)
    grouped.failures["write", broken] = KeyboardInterrupt()
    grouped.calls.clear()
    with pytest.raises(KeyboardInterrupt):
        grouped.commit(lease, changed(*NAMES))
    assert grouped.calls[0] == ("write", A)
    assert grouped.kept == before
    assert grouped.leased == {}


@pytest.mark.parametrize("grouped", [False, True], ids=["one step", "a step for each"])
@pytest.mark.parametrize("error", [None, ConnectionError(), KeyboardInterrupt()], ids=repr)
def test_does_not_grow(grouped, error):
    """Where the others can't be had, the lease is as it was: renewed, and good for a save."""
    store = OwnStore(0.3, grouped=grouped)
    lease, _ = store.open([A], 0)
    if error is None:
        store.steal(C)
        with says(SessionBusy, "'c:1'"):
            store.open([B, C], 0.05, lease)
    else:
        store.failures["acquire", C] = error
        with pytest.raises(type(error)):
            store.open([B, C], 0, lease)
    failed = isinstance(error, ConnectionError)
    assert sorted(store.leased) == [A] + [B] * (failed and grouped) + [C] * (not error)
    time.sleep(0.5)
    store.calls.clear()
    store.commit(lease, changed(A))
    assert list(store.kept) == [A]
    assert ("write", A) in store.calls
    until(lambda: A not in store.leased and B not in store.leased)
    assert failed or not any(name in call for call in store.calls for name in (B, C))


@pytest.mark.parametrize("grouped", [False, True], ids=["one step", "a step for each"])
@pytest.mark.parametrize("refused", [False, True], ids=["perhaps done", "refused"])
def test_only_what_may_be_leased_is_released(grouped, refused):
    """Where the server refused, nothing is leased of that step."""
    store = OwnStore(0.6, grouped=grouped)
    store.refused = lambda error: refused
    store.failures["acquire", B] = ConnectionError()
    with pytest.raises(ConnectionError):
        store.open([A, B], 0)
    store._renewer._look()
    until(lambda: not store._renewer._owed)
    released = {name for call, *names in store.calls for name in names if call == "write"}
    assert released == ({A, B} if not refused else {A} if grouped else set())


@pytest.mark.parametrize("grouped", [False, True], ids=["one step", "a step for each"])
def test_grows_at_the_second_try(grouped):
    """What failed to be added, and then was, is not let go of in the background."""
    store = OwnStore(0.6, grouped=grouped)
    lease, _ = store.open([A], 0)
    acquire = store.acquire
    store.acquire = failing(acquire, ConnectionError(), late=True)
    with pytest.raises(ConnectionError):
        store.open([B], 0, lease)
    store.acquire = acquire
    store.open([B], 0, lease)
    for _ in range(3):
        store._renewer._look()
    assert sorted(store.leased) == [A, B]
    store.commit(lease, changed(A, B))
    assert sorted(store.kept) == [A, B]
    until(lambda: not store._renewer._owed)


def test_interrupted_while_it_waits_to_grow():
    """As by Ctrl-C, in a store that waits by itself."""
    store = OwnStore(0.3)
    lease, _ = store.open([A], 0)
    store.steal(B)
    store.wait = failing(store.wait, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        store.open([B], TIMEOUT, lease)
    time.sleep(0.5)
    store.commit(lease, changed(A))
    assert store.kept[A] == ("new a:1", None)
