"""Bots of pyTelegramBotAPI, with our sessions and with its own."""

import json
import logging
import math
import pickle
import queue
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import cachetools
import redis
import telebot
import telebot.storage
from telebot import types

from telesession import MemoryStore, keys, with_session
from telesession.states import StateStorage
from tests.benchmarks.contenders import BOT, TOKEN, Contender, Data, count, update_json

logging.getLogger("TeleBot").setLevel(logging.CRITICAL)  # errors are collected, not printed

Handler = Callable[[Any], object]


class Collector(telebot.ExceptionHandler):
    """What pyTelegramBotAPI calls for a handler that raised."""

    def __init__(self, errors: list[BaseException]) -> None:
        self.errors = errors

    def handle(self, exception: BaseException) -> bool:
        self.errors.append(exception)
        return True


class Bare(Contender):
    """A handler without a session; the base of what runs in pyTelegramBotAPI."""

    def setup(self) -> None:
        self.bot = telebot.TeleBot(
            TOKEN,
            threaded=bool(self.threads),
            num_threads=max(self.threads, 1),
            state_storage=self.storage(),
            exception_handler=Collector(self.errors),
        )
        self.bot._user = types.User(**BOT)  # saves retrieve_data a getMe
        self.work: Callable[[Data, int], None] = count if self.pause is None else self.slowly
        for handler in self.handlers():
            self.bot.register_message_handler(handler)
        if self.threads:
            self.done: queue.SimpleQueue[None] = queue.SimpleQueue()
            pool: Any = self.bot.worker_pool
            self.put_task, pool.put = pool.put, self.put_counted

    def put_counted(self, task: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        def counted() -> None:
            try:
                task(*args, **kwargs)
            finally:
                self.done.put(None)

        self.put_task(counted)

    def storage(self) -> Any:
        return telebot.storage.StateMemoryStorage()

    def handlers(self) -> list[Handler]:
        return [self.handler()]

    def handler(self) -> Handler:
        pause = self.pause

        def handler(message: Any) -> None:
            if pause:
                time.sleep(pause(message.from_user.id))

        return handler

    def slowly(self, data: Data, user: int) -> None:
        n = data.get("n", 0)
        time.sleep(self.pause(user))
        data["n"] = n + 1

    def update(self, user: int) -> Any:
        return types.Update.de_json(update_json(user))

    def run(self, updates: list[Any]) -> None:
        if self.threads:
            self.bot.process_new_updates(updates)
            for _ in updates:  # the worker threads are not asked: there may be more of them by now
                self.done.get()
        else:
            updates.reverse()
            while updates:
                self.bot.process_new_updates([updates.pop()])

    def close(self) -> None:
        if self.threads:
            workers: Any = list(self.bot.worker_pool.workers)
            for worker in workers:
                worker.stop()
            for _ in workers:  # they would look twice a second only
                self.put_task(lambda: None)


class Telesession(Bare):
    """Our own: ``with_session`` on one of our stores."""

    kind = "memory"
    lease = 10.0
    ttl: float | None = None
    whens = 1  #: how many handlers under ``when`` there are, of which the last one matches
    others_ttl: float | None = None  #: of another session, which is on the same store
    engine: Any = None

    def setup(self) -> None:
        if self.kind == "memory":
            self.store: Any = MemoryStore()
        elif self.kind == "redis":
            from telesession.redis import RedisStore

            self.store = RedisStore(redis.Redis.from_url(self.place.redis_url), lease=self.lease)
        else:
            import sqlalchemy

            from telesession.sql import SQLStore

            url = self.place.postgres_url if self.kind == "postgres" else self.place.sqlite_url
            self.engine = sqlalchemy.create_engine(url, pool_size=16)
            if self.kind == "sqlite, normal":
                sqlalchemy.event.listen(self.engine, "connect", self.no_waiting)
            self.store = SQLStore(self.engine, lease=self.lease)
        if self.others_ttl is not None:
            with with_session(property="other", ttl=self.others_ttl, store=self.store).open(
                key="other"
            ) as other:
                count(other, 0)
        super().setup()

    @staticmethod
    def no_waiting(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = NORMAL")

    def handlers(self) -> list[Handler]:
        if self.whens == 1:
            return [self.handler()]
        session = with_session(ttl=self.ttl, store=self.store)
        self.declarations = [session]
        return [session.when(step=step)(self.counting()) for step in range(1, self.whens + 1)]

    @staticmethod
    def counting() -> Handler:
        def handler(message: Any) -> None:
            count(message.session, 0)

        return handler

    def handler(self) -> Handler:
        session = with_session(ttl=self.ttl, store=self.store)
        self.declarations = [session]
        work = self.work

        @session
        def handler(message: Any) -> None:
            work(message.session, message.from_user.id)

        if self.stack == 1:
            return handler
        in_chat = with_session(property="chat_session", key=keys.chat, store=self.store)
        of_user = with_session(property="user_session", key=keys.user, store=self.store)
        self.declarations += [in_chat, of_user]

        @session
        @in_chat
        @of_user
        def stacked(message: Any) -> None:
            count(message.session, 0)
            count(message.chat_session, 0)
            count(message.user_session, 0)

        return stacked

    def put(self, user: int, data: Data) -> None:
        message = types.Message.de_json(update_json(user)["message"])
        for declaration in self.declarations:
            with declaration.open(message) as session:
                session.clear()
                session.update(data)
                if self.whens > 1:
                    session["step"] = self.whens

    def get(self, user: int) -> Data:
        with self.declarations[0].open(key=f"{user}:{user}") as session:
            return dict(session)

    def close(self) -> None:
        super().close()
        if self.engine is not None:
            self.engine.dispose()


class RetrieveData(Bare):
    """pyTelegramBotAPI's own: ``retrieve_data`` on one of its state storages."""

    kind = "memory"

    def storage(self) -> Any:
        if self.kind == "redis":
            return telebot.storage.StateRedisStorage(redis_url=self.place.redis_url)
        if self.kind == "pickle":
            return telebot.storage.StatePickleStorage(self.place.pickle_path)
        return super().storage()

    def handler(self) -> Handler:
        bot, work = self.bot, self.work

        def handler(message: Any) -> None:
            user = message.from_user.id
            with bot.retrieve_data(user, message.chat.id) as data:
                work(data, user)

        def stacked(message: Any) -> None:  # for a user in a chat, for the chat, for the user
            user, chat = message.from_user.id, message.chat.id
            with (
                bot.retrieve_data(user, chat) as data,
                bot.retrieve_data(-1, chat) as in_chat,
                bot.retrieve_data(user, -1) as of_user,
            ):
                count(data, 0)
                count(in_chat, 0)
                count(of_user, 0)

        return handler if self.stack == 1 else stacked

    def put(self, user: int, data: Data) -> None:
        storage: Any = self.bot.current_states
        bot_id = self.bot.bot_id
        for of_user, chat in [(user, user), (-1, user), (user, -1)][: self.stack]:
            storage.set_state(chat, of_user, "any", bot_id=bot_id)
            storage.save(chat, of_user, dict(data), bot_id=bot_id)

    def get(self, user: int) -> Data:
        found: Data = self.bot.current_states.get_data(user, user, bot_id=self.bot.bot_id)
        return found


class States(RetrieveData, Telesession):
    """The same blocks on our sessions, by `StateStorage`."""

    def storage(self) -> Any:
        return StateStorage(with_session(store=self.store))


class Floor(Bare):
    """The least that a session in a `TTLCache` can cost, with nothing kept safe around it.

    The key function, one uncontended lock, one read and write of the cache, one dump and one load.
    """

    def setup(self) -> None:
        self.cache: Any = cachetools.TTLCache(10_000_000, math.inf)
        super().setup()

    def handler(self) -> Handler:
        cache, lock = self.cache, threading.Lock()
        keyed = [keys.user_chat, keys.chat, keys.user][: self.stack]

        def handler(message: Any) -> None:
            for key in keyed:
                name = f"session:{key(message)}"
                with lock:
                    data = pickle.loads(cache[name])
                    count(data, 0)
                    cache[name] = pickle.dumps(data)

        return handler

    def put(self, user: int, data: Data) -> None:
        for key in (f"{user}:{user}", user):
            self.cache[f"session:{key}"] = pickle.dumps(data)


class BareSQL(Bare):
    """The statements of an update of ours on a bare connection of the driver, and no SQLAlchemy.

    It counts in the session as the others do; SQLite waits for the disk once.
    """

    kind = "sqlite"

    def setup(self) -> None:
        import sqlalchemy

        from telesession.sql import SQLStore

        sqlite = self.kind == "sqlite"
        url = self.place.sqlite_url if sqlite else self.place.postgres_url
        self.engine = sqlalchemy.create_engine(url)
        store = SQLStore(self.engine, table="bare")
        self.with_store = with_session(store=store)
        with self.with_store.open(key="0"):  # makes the table
            pass
        (self.lease,), _ = store._sql.lease(1)
        self.save = store._sql.save
        if sqlite:
            import sqlite3

            path = self.engine.url.database or ""
            self.connection: Any = sqlite3.connect(path, isolation_level=None)
        else:
            import psycopg

            address = url.replace("+psycopg", "")
            self.connection = psycopg.connect(address, autocommit=True)
        super().setup()

    def handler(self) -> Handler:
        execute, lease, save = self.connection.execute, self.lease, self.save
        sqlite = self.kind == "sqlite"

        def handler(message: Any) -> None:
            token = secrets.token_hex(8)
            name = f"session:{message.from_user.id}:{message.chat.id}"
            if sqlite:
                execute("PRAGMA synchronous = NORMAL")
            values = {"key0": name, "holder": token}
            ((_, payload, *_),) = execute(lease.text, lease.parameters(values)).fetchall()
            data = json.loads(payload)
            count(data, 0)
            content = json.dumps(data, separators=(",", ":"))
            values = {"key": name, "holder": token, "content": content, "ttl": None}
            if sqlite:
                execute("PRAGMA synchronous = FULL")
            execute(save.text, save.parameters(values))

        return handler

    def put(self, user: int, data: Data) -> None:
        with self.with_store.open(key=f"{user}:{user}") as session:
            session.clear()
            session.update(data)

    def close(self) -> None:
        super().close()
        self.connection.close()
        self.engine.dispose()


class RoundTrips(Bare):
    """Two bare round trips to Redis with a session's payload, which nobody encodes or decodes."""

    def handler(self) -> Handler:
        self.client = client = redis.Redis.from_url(self.place.redis_url)

        def handler(message: Any) -> None:
            client.set("payload", client.get("payload"))

        return handler

    def put(self, user: int, data: Data) -> None:
        self.client.set("payload", json.dumps(data, separators=(",", ":")))
