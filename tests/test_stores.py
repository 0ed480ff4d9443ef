"""3.4, 4.1, 4.2, 5.3, 5.5, 6.1 Every store of `BACKENDS` saves all that was changed, or none."""

import pytest

from telesession import SessionStoreError, with_session
from tests import store_suite
from tests.store_suite import TTL, Boom, raising
from tests.stores import NAME, Clock, WatchedClient, found, message, put, visit

no_lock_left = store_suite.no_lock_left
store = store_suite.store


class TestNames:
    """3.4 In a store a session is kept under "<property>:<key>"."""

    def test_property_and_key(self, backend):
        put({"n": 1}, store=backend.store)

        assert backend.raw(NAME) is not None
        assert backend.raw("session:42") is None

    def test_a_session_of_another_user_is_another_one(self, store):
        put({"n": 1}, store=store)

        @with_session(store=store)
        def handler(message):
            return dict(message.session)

        assert handler(message(user=43)) == {}
        assert handler(message(user=42)) == {"n": 1}

    def test_sessions_of_different_properties_never_mix(self, backend):
        """Even in a private chat, where user id and chat id are equal."""

        @with_session(store=backend.store, property="user", key=lambda m: m.from_user.id)
        @with_session(store=backend.store, property="room", key=lambda m: m.chat.id)
        def handler(message):
            before = dict(message.user), dict(message.room)
            message.user["mine"] = "user"
            message.room["mine"] = "room"
            return before

        assert handler(message()) == ({}, {})
        assert handler(message()) == ({"mine": "user"}, {"mine": "room"})
        assert backend.raw("user:42") != backend.raw("room:42")


CHANGES = {
    "a value added": lambda session: session.update(new=1),
    "a value replaced": lambda session: session.update(n=2),
    "a value deleted": lambda session: session.pop("n"),
    "a value deleted by del": lambda session: session.__delitem__("n"),
    "a list appended to": lambda session: session["cart"].append("milk"),
    "a list sorted": lambda session: session["cart"].sort(),
    "a dict in a list": lambda session: session["orders"][0].update(paid=True),
    "a list in a dict in a list": lambda session: session["orders"][0]["items"].clear(),
    "a dict in a dict": lambda session: session["deep"]["er"].setdefault("est", []).append(1),
    "an int for an equal float": lambda session: session.update(x=1),
    "an int for an equal bool": lambda session: session.update(on=1),
    "None": lambda session: session.update(n=None),
    "an equal dict under another key": lambda session: session.update(m=session.pop("deep")),
}


def content():
    """A session with something to change at every depth."""
    return {
        "n": 1,
        "x": 1.0,
        "on": True,
        "cart": ["tea", "bread"],
        "orders": [{"items": [1, 2]}],
        "deep": {"er": {}},
    }


change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


class TestAllOrNothing:
    """4.1 When the handler raises, nothing of its changes is kept, nested ones included."""

    def test_no_change_is_kept(self, store):
        put(content(), store=store)

        for change in CHANGES.values():
            with pytest.raises(Boom):
                visit(raising(lambda message: change(message.session)), store=store)  # noqa: B023

        assert repr(found(store=store)) == repr(content())

    @pytest.mark.parametrize(
        "change",
        [
            lambda message: message.session.clear(),
            lambda message: setattr(message, "session", None),
            lambda message: delattr(message, "session"),
            lambda message: setattr(message, "session", {"n": 2}),
        ],
        ids=["clear", "None", "del", "replaced"],
    )
    def test_the_session_is_neither_removed_nor_replaced(self, store, change):
        put(content(), store=store)

        with pytest.raises(Boom):
            visit(raising(change), store=store)

        assert found(store=store) == content()

    def test_no_session_comes_to_be(self, backend):
        with pytest.raises(Boom):
            visit(raising(lambda message: message.session.update(n=1)), store=backend.store)

        assert backend.raw(NAME) is None

    @pytest.mark.parametrize("error", [Boom("why"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
    def test_the_caller_gets_the_very_exception(self, store, error):
        with pytest.raises(type(error)) as caught:
            visit(raising(lambda message: message.session.update(n=1), error), store=store)

        assert caught.value is error
        assert found(store=store) == {}

    def test_nothing_is_written(self, backend):
        put(content(), store=backend.store)
        watch = backend.watched()

        with pytest.raises(Boom):
            visit(raising(lambda message: message.session.update(n=2)), store=watch.store)

        assert watch.writes == []

    def test_a_stack_keeps_none_of_its_sessions(self, store):
        @with_session(property="one", store=store)
        @with_session(property="two", store=store)
        def handler(message, error):
            before = dict(message.one), dict(message.two)
            message.one["n"] = message.two["n"] = error
            if error:
                raise Boom
            return before

        handler(message(), 0)
        with pytest.raises(Boom):
            handler(message(), 1)

        assert handler(message(), 0) == ({"n": 0}, {"n": 0})


class TestSaving:
    """4.2 Any change is saved, however deep. What did not change is not written."""

    @change
    def test_any_change_is_saved(self, store, change):
        put(content(), store=store)
        expected = content()
        change(expected)

        visit(lambda message: change(message.session), store=store)

        assert repr(found(store=store)) == repr(expected)

    def test_an_unchanged_session_is_not_written(self, backend):
        put(content(), store=backend.store)
        watch = backend.watched()

        def look(message):
            assert message.session["cart"][0] == "tea"
            assert message.session.get("nothing") is None
            message.session["cart"].append(message.session["cart"].pop())
            message.session["n"] = 1
            message.session["orders"] = [{"items": [1, 2]}]

        visit(look, store=watch.store)

        assert watch.calls == [("get", NAME)]

    def test_a_changed_session_is_written_once(self, backend):
        put(content(), store=backend.store)
        watch = backend.watched()

        def handler(message):
            for n in range(10):
                message.session["n"] = n

        visit(handler, store=watch.store)

        assert watch.calls == [("get", NAME), ("set", NAME)]

    def test_of_a_stack_only_what_changed_is_written(self, backend):
        watch = backend.watched()

        @with_session(property="one", store=watch.store)
        @with_session(property="two", store=watch.store)
        def handler(message):
            message.one["n"] = 1
            message.two["n"] = message.two.get("n", 0) + 1

        handler(message())
        del watch.calls[:]
        handler(message())

        assert watch.writes == [("set", "two:42:42")]

    @pytest.mark.parametrize(
        "handler",
        [
            lambda message: None,
            lambda message: message.session.get("n"),
            lambda message: (message.session.update(n=1), message.session.pop("n")),
            lambda message: setattr(message, "session", {}),
            lambda message: setattr(message, "session", None),
            lambda message: delattr(message, "session"),
        ],
        ids=["untouched", "read", "filled and emptied", "{}", "None", "del"],
    )
    def test_a_new_session_left_empty_is_not_stored(self, backend, handler):
        watch = backend.watched()

        visit(handler, store=watch.store)

        assert watch.writes == []
        assert backend.raw(NAME) is None

    def test_a_new_session_left_as_initial_made_it_is_not_stored(self, backend):
        watch = backend.watched()

        assert found(store=watch.store, initial=lambda: {"n": 7}) == {"n": 7}
        assert watch.writes == []
        assert backend.raw(NAME) is None

    def test_a_change_to_what_initial_made_is_saved(self, store):
        declared = {"store": store, "initial": lambda: {"cart": []}}
        visit(lambda message: message.session["cart"].append("tea"), **declared)

        assert found(**declared) == {"cart": ["tea"]}

    @pytest.mark.parametrize(
        "remove",
        [
            lambda message: message.session.clear(),
            lambda message: message.session.popitem(),
            lambda message: setattr(message, "session", {}),
            lambda message: setattr(message, "session", None),
            lambda message: delattr(message, "session"),
        ],
        ids=["clear", "the last value removed", "{}", "None", "del"],
    )
    def test_an_emptied_session_is_removed(self, backend, remove):
        """2.4 Clearing removes the session from the store; the next starts from initial()."""
        put({"n": 1}, store=backend.store)

        visit(remove, store=backend.store)

        assert backend.raw(NAME) is None
        assert found(store=backend.store, initial=lambda: {"n": 0}) == {"n": 0}

    def test_a_replaced_session_is_saved(self, store):
        put({"old": 1}, store=store)
        put({"new": [1]}, store=store)

        assert found(store=store) == {"new": [1]}


class TestStacks:
    """4.1 and 5.3: the sessions of a stack are saved together, or not at all."""

    @staticmethod
    def stack(one, two, three):
        @with_session(property="one", store=one)
        @with_session(property="two", store=two)
        @with_session(property="three", store=three)
        def handler(message, change=lambda *sessions: None):
            sessions = message.one, message.two, message.three
            before = [dict(session) for session in sessions]
            change(*sessions)
            return before

        return handler

    @staticmethod
    def fill(one, two, three):
        one["n"] = two["n"] = 1

    @staticmethod
    def change(one, two, three):
        one["n"] = 2
        two.clear()
        three["n"] = 3

    @pytest.mark.parametrize("number", [1, 2])
    def test_on_one_store(self, backend, number):
        """Whichever write fails, what was written before it is taken back."""
        watch = backend.watched()
        handler = self.stack(watch.store, watch.store, watch.store)
        handler(message(), self.fill)
        error = Boom()
        watch.fail("set", error, on=number)

        with pytest.raises(SessionStoreError) as caught:
            handler(message(), self.change)

        assert caught.value.__cause__ is error
        assert handler(message()) == [{"n": 1}, {"n": 1}, {}]
        assert backend.raw("three:42:42") is None
        handler(message(), self.change)
        assert handler(message()) == [{"n": 2}, {}, {"n": 3}]

    @pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
    def test_over_two_stores(self, backend, first):
        """The other store fails: what was written to this one, if anything, is taken back."""
        other = WatchedClient({})
        stores = (
            (backend.store, backend.store, other.store)
            if first
            else (other.store, backend.store, backend.store)
        )
        handler = self.stack(*stores)
        handler(message(), self.fill)
        error = Boom()
        other.fail("set", error, on=1)

        with pytest.raises(SessionStoreError) as caught:
            handler(message(), self.change)

        assert caught.value.__cause__ is error
        assert handler(message()) == [{"n": 1}, {"n": 1}, {}]
        handler(message(), self.change)
        assert handler(message()) == [{"n": 2}, {}, {"n": 3}]

    def test_this_store_fails_after_another(self, backend):
        watch = backend.watched()
        handler = self.stack({}, watch.store, watch.store)
        handler(message(), self.fill)
        watch.fail("set", Boom(), on=1)

        with pytest.raises(SessionStoreError):
            handler(message(), self.change)

        assert handler(message()) == [{"n": 1}, {"n": 1}, {}]

    def test_the_second_store_cannot_be_read(self, backend):
        other = WatchedClient({})
        handler = self.stack(backend.store, other.store, backend.store)
        handler(message(), self.fill)
        other.fail("get", Boom(), on=1)

        with pytest.raises(SessionStoreError):
            handler(message(), self.change)

        assert handler(message()) == [{"n": 1}, {"n": 1}, {}]

    def test_a_ttl_counts_on_for_what_was_taken_back(self, backend):
        clock, other = Clock(), WatchedClient({})
        store = backend.timed(clock)

        @with_session(property="one", store=store, ttl=TTL)
        @with_session(property="two", store=other.store)
        def handler(message, n=None):
            before = message.one.get("n")
            if n:
                message.one["n"] = message.two["n"] = n
            return before

        handler(message(), 1)
        other.fail("set", Boom(), on=1)
        with pytest.raises(SessionStoreError):
            handler(message(), 2)
        clock.advance(TTL - 10)
        assert handler(message()) == 1

        clock.advance(TTL)
        assert handler(message()) is None
