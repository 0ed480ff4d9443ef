"""5.1 Tasks of an event loop, and greenlets: other threads of control than those of `threading`."""

import asyncio
import json
import subprocess
import sys

import pytest
import telebot
from telebot import types

from telesession import SessionBusy, _dispatch, _locks
from tests.helpers import TIMEOUT, content, keep
from tests.stores import message, payload


@pytest.fixture(autouse=True)
def idle():
    yield
    assert _locks.held() == 0
    assert _dispatch.innermost == {}
    assert _dispatch.running == {}


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, TIMEOUT))


def feed(bot, user=42):
    update = types.Update.de_json(json.dumps({"update_id": 1, "message": payload(user)}))
    bot.process_new_updates([update])


class TestTasks:
    """What a task has open, another one of its thread can't join, and all else works."""

    def test_what_an_interrupt_kept_open(self, session, store):
        """It ends with what the task has open around it, unsaved."""

        async def main():
            inner = session.open(key="7:7", apart=True)
            with session.open(key="42:42") as data:
                data["n"] = 1
                inner.__enter__()["n"] = 1
            assert (_locks.held(), _dispatch.innermost) == (0, {})

        run(main())
        assert content(store) == {"session:42:42": {"n": 1}}

    def test_what_another_task_has_open_is_refused(self, session, store):
        """With the reason; the first one's update is not lost."""

        async def add(open_now, go_on):
            with session.open(key="42:42") as data:
                n = data.get("n", 0)
                open_now.set()
                await go_on.wait()
                data["n"] = n + 1

        async def main():
            open_now, go_on = asyncio.Event(), asyncio.Event()
            first = asyncio.create_task(add(open_now, go_on))
            await open_now.wait()
            with pytest.raises(SessionBusy, match=r"another task .*to_thread"):
                await add(open_now, go_on)
            with pytest.raises(SessionBusy, match="another task"):
                session.remove(key="42:42")
            with pytest.raises(SessionBusy, match="another task"):
                session(lambda update: None)(message())
            go_on.set()
            await first

        run(main())
        assert content(store) == {"session:42:42": {"n": 1}}

    def test_peek_while_another_task_has_it(self, session, store):
        """It is what is stored, not what the other task is about to save."""
        keep(store, n=1)

        async def look():
            assert session.peek(key="42:42") == {"n": 1}

        async def main():
            with session.open(key="42:42") as data:
                data["n"] = 2
                assert session.peek(key="42:42") == {"n": 2}
                await asyncio.create_task(look())

        run(main())

    def test_different_keys_at_once(self, session, store):
        async def add(key, seconds):
            with session.open(key=key) as data:
                n = data.get("n", 0)
                await asyncio.sleep(seconds)
                data["n"] = n + 1

        async def main():
            for _ in range(2):
                pauses = (0.003, 0.001, 0.002, 0.0)
                await asyncio.gather(*(add(f"{n}:{n}", one) for n, one in enumerate(pauses)))

        run(main())
        assert content(store) == {f"session:{n}:{n}": {"n": 2} for n in range(4)}

    def test_a_block_that_fails_beside_others(self, session, store):
        """All or nothing, for each of them by itself: nobody is the others' part."""

        async def add(key, fails):
            with session.open(key=key) as data:
                data["n"] = 1
                await asyncio.sleep(0.001)
                with session.open(key=f"{key}-more") as more:
                    more["n"] = 1
                    await asyncio.sleep(0.001)
                if fails:
                    raise ValueError(key)

        async def main():
            found = await asyncio.gather(
                *(add(key, key in "bd") for key in "abcd"), return_exceptions=True
            )
            assert list(map(type, found)) == [type(None), ValueError] * 2

        run(main())
        assert sorted(store) == ["session:a", "session:a-more", "session:c", "session:c-more"]

    def test_a_task_that_is_cancelled(self, session, store):
        async def hang(open_now):
            with session.open(key="42:42") as data:
                data["n"] = 1
                open_now.set()
                await asyncio.sleep(TIMEOUT)

        async def main():
            open_now = asyncio.Event()
            task = asyncio.create_task(hang(open_now))
            await open_now.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with session.open(key="42:42") as data:
                assert data == {}
                data["n"] = 2

        run(main())
        assert content(store) == {"session:42:42": {"n": 2}}

    def test_a_block_inside_a_block_of_one_task(self, session, store):
        """It is joined, and belongs to the outer one, also while other tasks run."""

        async def other():
            with session.open(key="7:7") as data:
                await asyncio.sleep(0.001)
                data["n"] = 1

        async def main():
            task = asyncio.create_task(other())
            with session.open(key="42:42") as data:
                await asyncio.sleep(0)
                with session.open(key="42:42") as again, session.open(key="8:8") as more:
                    again["n"] = more["n"] = 2
                    assert data == {"n": 2}
                    await task
                assert "session:7:7" in store
                assert "session:8:8" not in store

        run(main())
        assert sorted(store) == ["session:42:42", "session:7:7", "session:8:8"]

    def test_bots_fed_from_coroutines(self, session, store):
        """A webhook in an asynchronous framework, with ``threaded=False``."""
        bot = telebot.TeleBot("42:test", threaded=False)
        bot.register_message_handler(session.when(n=5)(print), func=lambda message: True)

        @bot.message_handler(func=lambda message: True)
        @session
        def count(update):
            update.session["n"] = update.session.get("n", 0) + 1
            with session.open(key="7:7") as data:
                data["n"] = data.get("n", 0) + 1

        async def hook(user):
            await asyncio.sleep(0)
            feed(bot, user)

        async def main():
            with session.open(key="1:1") as data:  # of another task than those of the updates
                await asyncio.gather(*(hook(user) for user in (42, 43, 42, 43)))
                data["n"] = 1

        run(main())
        assert content(store) == {
            "session:1:1": {"n": 1},
            "session:7:7": {"n": 4},
            "session:42:42": {"n": 2},
            "session:43:43": {"n": 2},
        }

    def test_a_task_that_outlives_a_dispatch(self, session, store):
        """It keeps its block, and the dispatch ends as ever, with what `when` left."""
        bot = telebot.TeleBot("42:test", threaded=False)
        loop = asyncio.new_event_loop()
        bot.register_message_handler(session.when(n=5)(print))

        async def add(go_on):
            with session.open(key="7:7") as data:
                await go_on.wait()
                data["n"] = 1

        async def start():
            go_on = asyncio.Event()
            task = asyncio.create_task(add(go_on))
            await asyncio.sleep(0)
            return go_on, task

        async def finish(go_on, task):
            go_on.set()
            await task

        started = []
        bot.register_message_handler(lambda _: started.extend(loop.run_until_complete(start())))
        try:
            feed(bot)
            count = session(lambda update: update.session.update(n=update.session.get("n", 0) + 1))
            count(message())
            count(message())
            loop.run_until_complete(finish(*started))
        finally:
            loop.close()
        assert content(store) == {"session:42:42": {"n": 2}, "session:7:7": {"n": 1}}

    def test_threads_of_a_loop(self, session, store):
        """One that waits in another thread holds nobody up; they come one after the other."""

        def add():
            with session.open(key="42:42") as data:
                data["n"] = data.get("n", 0) + 1

        async def main():
            await asyncio.gather(*(asyncio.to_thread(add) for _ in range(20)))
            with session.open(key="42:42") as data:
                waiting = asyncio.create_task(asyncio.to_thread(add))
                await asyncio.sleep(0.01)
                assert not waiting.done()
                data["n"] += 1
            await waiting

        run(main())
        assert content(store) == {"session:42:42": {"n": 22}}

    def test_a_loop_inside_a_handler(self, session, store):
        """Its tasks are the handler's own: they join its sessions."""

        @session
        def handler(update):
            async def work(seconds):
                with session.open(update) as data:
                    data["n"] = data.get("n", 0) + 1
                await asyncio.sleep(seconds)
                with session.open(key="7:7") as data:
                    data["n"] = data.get("n", 0) + 1

            async def main():
                await asyncio.gather(work(0.002), work(0.001))

            asyncio.run(main())
            assert update.session == {"n": 2}
            assert store == {}

        handler(message())
        assert content(store) == {"session:42:42": {"n": 2}, "session:7:7": {"n": 2}}

    def test_a_handler_in_a_block_of_its_task(self, session, store):
        """The block is around it, whatever other tasks have open meanwhile."""
        handler = session(lambda update: update.session.update(n=update.session["n"] + 1))

        async def other(open_now, go_on):
            with session.open(key="7:7"):
                open_now.set()
                await go_on.wait()

        async def main():
            open_now, go_on = asyncio.Event(), asyncio.Event()
            with session.open(key="42:42") as data:
                data["n"] = 1
                task = asyncio.create_task(other(open_now, go_on))
                await open_now.wait()
                handler(message())
                assert data == {"n": 2}
            assert content(store) == {"session:42:42": {"n": 2}}
            go_on.set()
            await task

        run(main())


GREENLETS = """
import sys
late = "late" in sys.argv
if not late:
    from gevent import monkey
    monkey.patch_all()
import json, threading, time
import telebot
from telebot import types
from telesession import MemoryStore, _dispatch, _locks, keys, with_session
session = with_session(store={}, key=keys.chat, lock_timeout=20)
counted = with_session(lock_timeout=20)
if late:
    from gevent import monkey
    monkey.patch_all()
import gevent

bot = telebot.TeleBot("1:x", threaded=False)
lost = []

def asks_telegram(message):
    time.sleep(0.001)
    return True

@bot.message_handler(func=lambda message: True)
@session.when(lambda s: s.get("n", 0) % 2 == 0)
@with_session(property="more", lock_timeout=20)
def even(message):
    time.sleep(0.001)
    message.session["n"] = message.session.get("n", 0) + 1

@bot.message_handler(func=asks_telegram)
@session.when(lambda s: s.get("n", 0) % 2 == 1)
def odd(message):
    n = message.session["n"]
    time.sleep(0.001)
    with session.open(message) as data:
        data["n"] = n + 1

@bot.message_handler(func=lambda message: True)
def nobody(message):
    lost.append(message)

def feed(number):
    user = {"id": 1, "is_bot": False, "first_name": "A"}
    message = {"message_id": number, "date": 1, "chat": {"id": 1, "type": "private"},
               "from": user, "text": "x"}
    bot.process_new_updates([types.Update.de_json({"update_id": number, "message": message})])

def add():
    with counted.open(key="1") as data:
        n = data.get("n", 0)
        time.sleep(0.001)
        data["n"] = n + 1

threads = [threading.Thread(target=feed, args=(number,)) for number in range(20)]
for thread in threads:
    thread.start()
jobs = [gevent.spawn(add) for _ in range(20)]
gevent.joinall(jobs, timeout=20, raise_error=True)
for thread in threads:
    thread.join(20)
result = [session.peek(key=1)["n"], counted.peek(key="1")["n"], len(lost)]
print(json.dumps([*result, _locks.held(), len(_dispatch.innermost), len(_dispatch.running)]))
"""


@pytest.mark.parametrize("patched", ["early", "late"])
def test_greenlets(patched):
    """One at a time where gevent patched the threads before telesession was imported, or after."""
    pytest.importorskip("gevent", reason="gevent is not installed")
    process = subprocess.run(
        [sys.executable, "-c", GREENLETS, patched],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == [20, 20, 0, 0, 0, 0]
