"""Bots of aiogram and python-telegram-bot, with the sessions that these come with."""

import asyncio
import json
from typing import Any

import aiogram
import redis.asyncio
import telegram
import telegram.ext
import telegram.request
from aiogram.client.session.base import BaseSession
from aiogram.fsm.context import FSMContext
from aiogram.fsm.storage.base import StorageKey
from aiogram.fsm.storage.memory import MemoryStorage, SimpleEventIsolation
from aiogram.fsm.storage.redis import RedisEventIsolation, RedisStorage

from tests.benchmarks.contenders import BOT, TOKEN, Contender, Data, count, update_json


class Asynchronous(Contender):
    """A bot on an event loop of its own."""

    def setup(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.begin())

    async def begin(self) -> None:
        """Make the bot and its handler."""

    async def feed(self, update: Any) -> None:
        """Have the dispatcher handle an update."""

    async def end(self) -> None:
        """Let go of connections."""

    async def work(self, data: Data, user: int) -> None:
        n = data.get("n", 0)
        await asyncio.sleep(self.pause(user))
        data["n"] = n + 1

    def run(self, updates: list[Any]) -> None:
        async def one_by_one() -> None:
            updates.reverse()
            while updates:
                try:
                    await self.feed(updates.pop())
                except Exception as error:
                    self.errors.append(error)

        async def at_once() -> None:
            done = await asyncio.gather(*map(self.feed, updates), return_exceptions=True)
            self.errors += [error for error in done if isinstance(error, BaseException)]

        self.loop.run_until_complete(at_once() if self.threads else one_by_one())

    def close(self) -> None:
        self.loop.run_until_complete(self.end())
        self.loop.close()


class NoNetwork(BaseSession):
    """What aiogram's Bot has for its connections to Telegram."""

    async def close(self) -> None:
        pass

    async def make_request(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("no handler here sends anything")

    async def stream_content(self, *arguments: Any, **options: Any) -> Any:
        yield b""


class Aiogram(Asynchronous):
    """aiogram's FSM context, by ``Dispatcher.feed_update``; by ``uses=False`` a bare handler."""

    kind: str | None = "memory"
    isolated = False
    lock_timeout = 60.0  # aiogram's default

    async def begin(self) -> None:
        self.bot = aiogram.Bot(TOKEN, session=NoNetwork())
        isolation: Any = SimpleEventIsolation() if self.isolated else None
        self.storage: Any = MemoryStorage()
        if self.kind == "redis":
            # with room for all that wait: each polls the lock on a connection
            pool = redis.asyncio.ConnectionPool.from_url(self.place.redis_url, max_connections=1000)
            self.storage = RedisStorage(redis.asyncio.Redis(connection_pool=pool))
            if self.isolated:
                limit = {"timeout": self.lock_timeout}
                isolation = RedisEventIsolation(self.storage.redis, lock_kwargs=limit)
        self.dispatcher = aiogram.Dispatcher(
            storage=self.storage, events_isolation=isolation, disable_fsm=self.kind is None
        )
        self.dispatcher.message.register(self.counting if self.uses else self.bare)

    async def bare(self, message: aiogram.types.Message) -> None:
        if self.pause:
            await asyncio.sleep(self.pause(message.from_user.id))

    async def counting(self, message: aiogram.types.Message, state: FSMContext) -> None:
        data = await state.get_data()
        if self.pause:
            await self.work(data, message.from_user.id)
        else:
            count(data, 0)
        await state.set_data(data)

    def update(self, user: int) -> Any:
        return aiogram.types.Update.model_validate(update_json(user), context={"bot": self.bot})

    async def feed(self, update: Any) -> None:
        await self.dispatcher.feed_update(self.bot, update)

    def key(self, user: int) -> StorageKey:
        return StorageKey(bot_id=self.bot.id, chat_id=user, user_id=user)

    def put(self, user: int, data: Data) -> None:
        self.loop.run_until_complete(self.storage.set_data(self.key(user), data))

    def get(self, user: int) -> Data:
        found: Data = self.loop.run_until_complete(self.storage.get_data(self.key(user)))
        return found

    async def end(self) -> None:
        await self.storage.close()


class NoRequests(telegram.request.BaseRequest):
    """What python-telegram-bot has for its connections to Telegram; it asks getMe at its start."""

    read_timeout = 1.0

    async def initialize(self) -> None:
        pass

    async def shutdown(self) -> None:
        pass

    async def do_request(self, url: str, *arguments: Any, **options: Any) -> tuple[int, bytes]:
        assert url.endswith("/getMe")
        return 200, json.dumps({"ok": True, "result": BOT}).encode()


class UserData(Asynchronous):
    """python-telegram-bot's ``user_data``, by ``Application.process_update``."""

    async def begin(self) -> None:
        builder = telegram.ext.ApplicationBuilder().token(TOKEN).updater(None).job_queue(None)
        builder = builder.request(NoRequests()).get_updates_request(NoRequests())
        self.application: Any = builder.concurrent_updates(bool(self.threads)).build()
        everything = telegram.ext.filters.ALL
        callback = self.callback if self.uses else self.bare
        callback = self.stacked if self.stack > 1 else callback
        self.application.add_handler(telegram.ext.MessageHandler(everything, callback))
        self.application.add_error_handler(self.collect)
        await self.application.initialize()

    async def bare(self, update: Any, context: Any) -> None:
        if self.pause:
            await asyncio.sleep(self.pause(update.effective_user.id))

    async def callback(self, update: Any, context: Any) -> None:
        if self.pause:
            await self.work(context.user_data, update.effective_user.id)
        else:
            count(context.user_data, 0)

    async def stacked(self, update: Any, context: Any) -> None:
        count(context.user_data, 0)
        count(context.chat_data, 0)
        count(context.bot_data, 0)

    async def collect(self, update: Any, context: Any) -> None:
        self.errors.append(context.error)

    def update(self, user: int) -> Any:
        return telegram.Update.de_json(update_json(user), self.application.bot)

    async def feed(self, update: Any) -> None:
        if self.threads:  # as the application does with what it fetches
            processor = self.application.update_processor
            await processor.process_update(update, self.application.process_update(update))
        else:
            await self.application.process_update(update)

    def put(self, user: int, data: Data) -> None:
        self.application.user_data[user].update(data)

    def get(self, user: int) -> Data:
        return dict(self.application.user_data[user])

    async def end(self) -> None:
        await self.application.shutdown()
