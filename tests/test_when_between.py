"""5.8 `Declaration.when`: nothing is lost by what comes between two handlers that are tried."""

import contextlib
import threading

import pytest
import telebot
from telebot import types
from telebot.handler_backends import ContinueHandling

from telesession import (
    MemoryStore,
    SessionBusy,
    SessionClosed,
    SessionDataError,
    SessionStoreError,
    _dispatch,
    _locks,
    keys,
    with_session,
)
from tests import when_bots
from tests.helpers import Failure, count, run_together, until
from tests.routing import update
from tests.stores import TIMEOUT, Clock, Leasing, payload, put
from tests.updates import UPDATES
from tests.when_bots import handled, raising

nothing_left = when_bots.nothing_left
bot = when_bots.bot


class TestInBetween:
    """Contract 5.8: an `open` of the same session works on it, and is saved in the end."""

    @pytest.fixture(params=[False, True], ids=["no middlewares", "class middlewares"])
    def bot(self, request):
        return telebot.TeleBot("1:test", threaded=False, use_class_middlewares=request.param)

    def opening(self, session, name):
        def opens(message):
            with session.open(message) as data:
                data[name] = data.get(name, 0) + 1
            return ContinueHandling()

        return opens

    def leaving(self, bot, a, b):
        """Handlers that leave two sessions, and one with a block that changes both."""
        bot.register_message_handler(a.when(n=2)(pytest.fail))
        bot.register_message_handler(b.when(n=2)(pytest.fail))

        @bot.message_handler()
        def between(message):
            with a.open(message) as mine, b.open(message) as more:
                mine["n"] = more["n"] = 1
            return ContinueHandling()

    def test_no_handler_comes(self, bot, store, session):
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(self.opening(session, "opened"))
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.process_new_updates([update()])
        assert store == {"session:42:42": '{"opened":1}'}

    def test_a_handler_raises(self, bot, store, session):
        """It had no session: what was saved before it is saved."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(self.opening(session, "opened"))
        bot.register_message_handler(raising)
        with handled(bot):
            bot.process_new_updates([update()])
        assert store == {"session:42:42": '{"opened":1}'}

    def test_a_handler_with_the_session_raises(self, bot, store, session):
        """Its own changes are lost, and no others."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(self.opening(session, "opened"))

        @bot.message_handler()
        @session.when(opened=1)
        def fails(message):
            message.session["n"] = 1
            raise Failure

        with handled(bot):
            bot.process_new_updates([update()])
        assert store == {"session:42:42": '{"opened":1}'}

    def test_an_open_that_raises(self, bot, store, session):
        """Nothing of the block is kept, and the next handler finds the session as it was."""
        store["session:42:42"] = '{"list":[1]}'
        found = []
        bot.register_message_handler(session.when(n=1)(pytest.fail))

        @bot.message_handler()
        def between(message):
            with contextlib.suppress(Failure), session.open(message) as data:
                data["list"].append(2)
                raise Failure
            return ContinueHandling()

        bot.register_message_handler(session(lambda message: found.append(dict(message.session))))
        bot.process_new_updates([update()])
        assert found == [{"list": [1]}]
        assert store == {"session:42:42": '{"list":[1]}'}

    @pytest.mark.parametrize("shared", [True, False], ids=["one store", "two stores"])
    @pytest.mark.parametrize("after", ["nothing", "raises", "has it", "has it and raises"])
    def test_an_open_of_a_condition(self, bot, store, session, shared, after):
        """Of another session, as where a condition counts tries; it is no change of its own."""
        tries = with_session(property="tries", store=store if shared else {})

        def counting(data, message):
            with tries.open(message) as opened:
                opened["n"] = opened.get("n", 0) + 1
            data["lost"] = True
            return False

        found = []
        bot.register_message_handler(session.when(counting)(pytest.fail))
        if "has it" in after:
            bot.register_message_handler(
                tries(lambda m: (found.append(dict(m.tries)), "raises" in after and raising(m)))
            )
        elif after == "raises":
            bot.register_message_handler(raising)
        with handled(bot) if "raises" in after else contextlib.nullcontext():
            bot.process_new_updates([update()])

        assert found == ([{"n": 1}] if "has it" in after else [])
        assert tries.store == {"tries:42:42": '{"n":1}'}
        assert session.peek(update().message) is None

    def test_an_open_of_a_condition_without_a_bot(self, store, session):
        """It is saved at once."""
        tries = with_session(property="tries", store=store)
        opens = self.opening(tries, "n")

        session.when(lambda _, message: not opens(message))(pytest.fail)(update().message)

        assert store == {"tries:42:42": '{"n":1}'}

    def test_an_open_changes_the_state(self, bot, store, session):
        """The handlers behind it are asked by what it has now."""
        ran = []
        bot.register_message_handler(session.when(opened=1)(pytest.fail))
        bot.register_message_handler(self.opening(session, "opened"))
        bot.register_message_handler(session.when(opened=1)(ran.append))
        bot.process_new_updates([update()])
        assert len(ran) == 1

    def test_a_filter_calls_a_handler(self, bot, session):
        """That joins, and leaves the session locked."""
        held = []

        def asks(message):
            session(count)(message)
            held.append(_locks.held())

        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(pytest.fail, func=asks)
        bot.process_new_updates([update()])
        assert held == [1]

    @pytest.mark.parametrize("leaves", [False, True], ids=["", "leaves another one"])
    def test_a_bot_in_between(self, bot, store, session, leaves):
        """Its handlers join, and leave the session locked; what they leave ends with it."""
        other = with_session(property="other", store=store)
        inner, found = telebot.TeleBot("1:test", threaded=False), []
        if leaves:
            inner.register_message_handler(other.when(n=1)(pytest.fail))
        inner.register_message_handler(session(count))

        def feeds(message):
            inner.process_new_updates([update()])
            found.append((_locks.held(), dict(store)))
            return ContinueHandling()

        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(feeds)
        bot.register_message_handler(other.when(n=1)(pytest.fail))
        bot.process_new_updates([update()])
        assert found == [(1, {})]
        assert store == {"session:42:42": '{"n":1}'}
        assert _locks.held() == 0

    def test_an_open_that_an_interrupt_kept_from_ending(self, bot, store, session):
        """It ends with the dispatch, unsaved."""
        block = session.open(key="7:7")
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(lambda message: block.__enter__().update(n=1))
        bot.process_new_updates([update()])
        assert (_locks.held(), _dispatch.innermost, store) == (0, {}, {})

    def test_some_can_not_be_saved(self, bot):
        """Then none is saved, and all are unlocked."""

        class Failing(dict):
            def __setitem__(self, name, payload):
                if not name.startswith("one:"):
                    raise OSError
                super().__setitem__(name, payload)

        store = Failing()
        for name in ("one", "two", "three"):
            session = with_session(property=name, store=store)
            bot.register_message_handler(session.when(n=1)(pytest.fail))
            bot.register_message_handler(self.opening(session, "opened"))
        with pytest.raises(SessionStoreError, match="two:42:42"):
            bot.process_new_updates([update()])
        assert store == {}
        assert _locks.held() == 0

    def test_a_session_of_another_user(self, bot, store, session):
        """Is one of its own: saved at the end of its block."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))

        @bot.message_handler()
        def between(message):
            with session.open(key="43:43") as data:
                data["n"] = 1
            assert store == {"session:43:43": '{"n":1}'}
            return ContinueHandling()

        bot.register_message_handler(session(count))
        bot.process_new_updates([update()])
        assert sorted(store) == ["session:42:42", "session:43:43"]

    @pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
    def test_what_is_opened_beside_it(self, bot, fails):
        """5.6, 5.8 In a block of the session that was left, another one is opened: both are
        saved in one step when the dispatch ends, or none where the block raises."""
        kept = {}

        class Committing(Leasing):
            def commit(self, lease, changes):
                kept.update({name: payload for name, payload, _ in changes})
                commits.append({name for name, _, _ in changes})
                super().commit(lease, changes)

        commits, store = [], Committing()
        session, other = (with_session(property=name, store=store) for name in ("a", "b"))
        bot.register_message_handler(session.when(n=1)(pytest.fail))

        @bot.message_handler()
        def between(message):
            with contextlib.suppress(Failure), session.open(message) as mine:
                mine["n"] = 1
                with other.open(message) as more:
                    more["n"] = 2
                with other.open(message) as more:
                    more["n"] += 1
                if fails:
                    raise Failure
            with pytest.raises(SessionClosed):
                more["n"] = 4
            assert commits == []
            return ContinueHandling()

        seen = []
        bot.register_message_handler(session.when(n=2)(pytest.fail))
        bot.register_message_handler(other.when(lambda data: seen.append(dict(data)))(pytest.fail))
        bot.process_new_updates([update()])
        assert seen == [{} if fails else {"n": 3}]
        saved = set() if fails else {"a:42:42", "b:42:42"}
        assert [one for one in commits if one] == [saved] * bool(saved)
        assert set(kept) == saved
        assert store.leases == {}

    @pytest.mark.parametrize("shared", [True, False], ids=["one store", "two stores"])
    def test_what_two_handlers_left_is_saved_together(self, shared):
        """5.6, 5.8 A block opens both, and the second save fails: nothing is saved."""
        saves = []

        class Failing(Leasing):
            def commit(self, lease, changes):
                if changes:
                    saves.append(changes)
                    if len(saves) == 2:
                        raise Failure
                super().commit(lease, changes)

        one = Failing()
        stores = one, one if shared else Failing()
        a, b = (with_session(property=name, store=store) for name, store in zip("ab", stores))
        bot = telebot.TeleBot("1:test", threaded=False)
        self.leaving(bot, a, b)

        with pytest.raises(SessionStoreError):
            bot.process_new_updates([update()])
        assert [(store.kept, store.leases) for store in stores] == [({}, {})] * 2

    def test_one_of_two_that_were_left_is_handled(self, bot, store):
        """5.8 What a block changed of the other one is saved when the dispatch ends."""
        a, b = (with_session(property=name, store=store) for name in "ab")
        self.leaving(bot, a, b)

        @bot.message_handler()
        @a.when(n=1)
        def handler(message):
            message.a["n"] = 2
            return ContinueHandling()

        bot.process_new_updates([update()])
        assert store == {"a:42:42": '{"n":2}', "b:42:42": '{"n":1}'}

    def test_what_was_taken_over_stays_locked(self, bot, store):
        """5.4 A handler that would close a cycle of waiting is told, and does not give way."""
        a, b, c = (with_session(property=name, store=store) for name in "abc")
        opened, reached, order = threading.Event(), threading.Event(), []
        bot.register_message_handler(a.when(n=2)(pytest.fail))
        bot.register_message_handler(b.when(n=2)(pytest.fail))

        @bot.message_handler()
        @a
        @b
        def handler(message):
            reached.set()
            until(lambda: a._options.locks.lines)
            with pytest.raises(SessionBusy), c.open(message):
                pass
            order.append("handled")
            message.a["n"] = 1

        def other_thread():
            with c.open(key="42:42"):
                opened.set()
                reached.wait(TIMEOUT)
                with a.open(key="42:42") as data:
                    order.append(dict(data))

        thread = threading.Thread(target=other_thread)
        thread.start()
        opened.wait(TIMEOUT)
        bot.process_new_updates([update()])
        thread.join(TIMEOUT)
        assert order == ["handled", {"n": 1}]

    def test_a_handler_after_a_miss_raises(self):
        """4.6, 5.8 The session lives for another ttl, since an update opened it."""
        clock = Clock()
        store = MemoryStore(clock=clock)
        session = with_session(store=store, ttl=60)
        bot = telebot.TeleBot("1:test", threaded=False)
        bot.register_message_handler(session.when(n=2)(pytest.fail))
        bot.register_message_handler(session(raising))
        put({"n": 1}, store=store, ttl=60)
        for _ in range(2):
            clock.advance(40)
            with pytest.raises(Failure):
                bot.process_new_updates([update()])
        assert session.peek(key="42:42") == {"n": 1}

    def test_a_removal_that_is_not_saved(self, bot):
        """6.3, 5.8 The caller hears of it, also where the codec makes an empty text of no data."""

        class Words:
            dumps = staticmethod(" ".join)
            loads = staticmethod(lambda text: dict.fromkeys(text.split(), 1))

        class Failing(Leasing):
            def commit(self, lease, changes):
                super().commit(lease, changes)
                if changes:
                    raise Failure

        store = Failing()
        store.kept["session:42:42"] = "one two", None
        session = with_session(store=store, codec=Words)
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(lambda message: session.remove(message))
        with pytest.raises(SessionStoreError, match="failed to save"):
            bot.process_new_updates([update()])

    def test_a_handler_raises_after_a_block_that_raised(self, bot, store, session):
        """4.1, 5.8 What the block had saved before, and only that, is what is left."""
        store["session:42:42"] = '{"n":0}'
        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(self.opening(session, "n"))

        @bot.message_handler()
        def between(message):
            with contextlib.suppress(Failure), session.open(key="43:43"):
                with session.open(message) as data:
                    data["n"] = 5
                raise Failure
            return ContinueHandling()

        @bot.message_handler()
        @session
        def fails(message):
            assert message.session == {"n": 1}
            message.session["n"] = 6
            raise Failure

        with handled(bot):
            bot.process_new_updates([update()])
        assert store == {"session:42:42": '{"n":1}'}

    def test_a_dispatch_in_a_handler_that_fails(self, bot, store, session):
        """5.6, 5.9 What its handlers did belongs to the handler around, also where a session of
        theirs was in use before."""
        busy = with_session(property="busy", key=keys.everyone, store=store, busy="drop")
        other = with_session(property="other", store=store)

        @bot.message_handler()
        @session.when(step=None)
        def outer(message):
            message.session["step"] = "in"
            with contextlib.suppress(Failure):
                inner.process_new_updates([update()])
            raise Failure

        inner = telebot.TeleBot("1:test", threaded=False)
        inner.register_message_handler(busy.when(n=1)(pytest.fail))
        inner.register_message_handler(other.when(n=None)(lambda m: m.other.update(n=1)))

        def feed():
            with handled(bot):
                bot.process_new_updates([update()])

        with busy.open(key="everyone"):
            assert run_together(feed) == [None]
        assert store == {}

    def test_a_handler_goes_on_after_a_dispatch_in_it(self, bot, store, session):
        """5.6, 5.9 What it opens is its own part, though the dispatch was refused a session."""
        busy = with_session(property="busy", key=keys.everyone, store=store, busy="drop")
        other = with_session(property="other", store=store)
        inner = telebot.TeleBot("1:test", threaded=False)
        inner.register_message_handler(busy.when(n=1)(pytest.fail))

        @bot.message_handler()
        @session
        def outer(message):
            inner.process_new_updates([update()])
            with session.open(message) as data, other.open(message) as more:
                data["n"] = more["n"] = 1
            assert store == {}
            raise Failure

        def feed():
            with handled(bot):
                bot.process_new_updates([update()])

        with busy.open(key="everyone"):
            assert run_together(feed) == [None]
        assert store == {}

    def test_a_dispatch_in_a_handler_without_a_session(self, bot, store, session):
        """Each leaves what it has tried; nothing is lost or stays locked."""
        inner = telebot.TeleBot("1:test", threaded=False)
        inner.register_message_handler(session.when(n=1)(pytest.fail))
        inner.register_message_handler(session(count))
        bot.register_message_handler(session.when(n=1)(pytest.fail))

        @bot.message_handler()
        def between(message):
            inner.process_new_updates(
                [types.Update.de_json({"update_id": 1, "message": payload(43)})]
            )
            inner.process_new_updates([update()])
            return ContinueHandling()

        bot.register_message_handler(session.when(n=1)(count))
        bot.process_new_updates([update()])
        assert store == {"session:42:42": '{"n":2}', "session:43:43": '{"n":1}'}

    @pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
    @pytest.mark.parametrize("changed", ["ab", "b"])
    def test_a_stack_of_what_two_dispatches_have_left(self, bot, fails, changed):
        """4.1, 5.8 One session was left by the inner dispatch, one by that around it: a handler
        with both changes all or nothing."""
        store, was = Leasing(), ('{"m":1}', None)
        store.kept = {"a:42:42": was, "b:42:42": was}
        a, b = (with_session(property=name, store=store) for name in "ab")

        @b
        @a
        def both(message):
            for name in changed:
                getattr(message, name)["n"] = 1
            if fails:
                raise Failure

        inner = telebot.TeleBot("1:test", threaded=False)
        inner.register_message_handler(b.when(n=1)(pytest.fail))
        inner.register_message_handler(both)
        bot.register_message_handler(a.when(n=1)(pytest.fail))

        @bot.message_handler()
        def between(message):
            with contextlib.suppress(Failure):
                inner.process_new_updates([update()])

        bot.process_new_updates([update()])
        saved = [name for name in sorted(store.kept) if store.kept[name] != was]
        assert saved == [f"{name}:42:42" for name in changed if not fails]
        assert store.leases == {}

    def test_what_could_not_be_read_in_between(self, bot, store, session):
        """4.5 It can't be read by a later handler either, and is left as it is."""
        other = with_session(property="other", store=store)
        store["other:42:42"] = "nonsense"
        bot.register_message_handler(session.when(n=1)(pytest.fail))

        @bot.message_handler()
        def between(message):
            with pytest.raises(SessionDataError), session.open(message), other.open(message):
                pass
            return ContinueHandling()

        ran = []
        bot.register_message_handler(session(other(ran.append)))
        with contextlib.suppress(SessionDataError):  # class middlewares have it logged
            bot.process_new_updates([update()])
        assert ran == []
        assert store == {"other:42:42": "nonsense"}

    @pytest.mark.parametrize("stacked", [False, True], ids=["alone", "in a stack"])
    def test_a_part_that_fails_in_a_later_handler(self, bot, store, session, stacked):
        """4.1 What it changed of the handler's session is taken back."""
        other = with_session(property="other", store=store)
        third = with_session(property="third", store=store)

        @session
        def handler(message):
            message.session["n"] = 2
            with contextlib.suppress(Failure), third.open(message):
                message.session["n"] = 3
                raise Failure

        bot.register_message_handler(session.when(n=1)(pytest.fail))
        bot.register_message_handler(other(handler) if stacked else handler)
        bot.process_new_updates([update()])
        assert store == {"session:42:42": '{"n":2}'}

    def test_a_block_after_one_that_raised(self, bot, store, session):
        """4.1, 5.8 What it changes is saved when the dispatch ends."""
        bot.register_message_handler(session.when(n=1)(pytest.fail))

        @bot.message_handler()
        def between(message):
            for n in (1, 2):
                with contextlib.suppress(Failure), session.open(message) as data:
                    data["n"] = n
                    if n == 1:
                        raise Failure

        bot.process_new_updates([update()])
        assert store == {"session:42:42": '{"n":2}'}

    @pytest.mark.parametrize("opened", [False, True], ids=["", "opened in between"])
    def test_another_declaration_of_the_session(self, bot, store, opened):
        """1.1 Each handler has a new session as its own declaration says, but for what a block
        has changed in between."""
        first, second = (with_session(store=store, initial=lambda n=n: {n: 1}) for n in "ab")
        found = []
        bot.register_message_handler(first.when(b=1)(pytest.fail))
        if opened:
            bot.register_message_handler(self.opening(first, "n"))
        bot.register_message_handler(second(lambda message: found.append(dict(message.session))))
        bot.process_new_updates([update()])
        assert found == [{"a": 1, "n": 1} if opened else {"b": 1}]

    def test_another_update_of_the_session(self, bot, store):
        """2.4 A handler that is called with the message of a click replaces the session."""
        per_chat = with_session(key=keys.chat, store=store)

        @per_chat
        def menu(message):
            message.session = {"page": 1}

        def opens(call):
            with per_chat.open(call):
                return ContinueHandling()

        bot.register_callback_query_handler(per_chat.when(n=1)(pytest.fail), func=None)
        bot.register_callback_query_handler(opens, func=None)
        bot.register_callback_query_handler(lambda call: menu(call.message), func=None)
        click = {**UPDATES["callback_query"]}
        bot.process_new_updates([types.Update.de_json({"update_id": 1, "callback_query": click})])
        assert list(store.values()) == ['{"page":1}']

    def test_a_dispatch_in_a_handler(self, bot, store, session):
        """A handler feeds the bot: all of it works on the session of the one around."""
        bot.register_message_handler(session.when(step="in")(count))

        @bot.message_handler()
        @session.when(step=None)
        def outer(message):
            message.session["step"] = "in"
            bot.process_new_updates([update()])
            assert message.session == {"step": "in", "n": 1}

        bot.process_new_updates([update()])
        assert store == {"session:42:42": '{"step":"in","n":1}'}
