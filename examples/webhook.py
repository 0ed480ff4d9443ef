"""A bot behind a webhook: several processes serve it, and share its sessions in a database.

``BOT_TOKEN=... WEBHOOK_URL=https://... python examples/webhook.py`` tells Telegram where it is.
Behind whatever does the HTTPS, this serves it::

    BOT_TOKEN=... gunicorn -w 4 --threads 8 --pythonpath examples webhook:app

Two workers may get two messages of one user at once; the session makes one of them wait.
``SESSIONS`` says which database it is in, ``sqlite:///sessions.db`` if nothing does.

Telegram sends an update again when it got no answer in time, so the session remembers which
messages it has counted. Whoever finds the address can't make up updates: each has to come with a
secret, here one that is made from the token.

Needs ``pip install "telesession[sql]" flask gunicorn``. Without BOT_TOKEN it serves on this machine
only, posts itself a burst of messages, some of them twice, says what came of them, and ends.
"""

import hashlib
import hmac
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import telebot

try:
    import flask
    import gunicorn  # noqa: F401 (serves it, in processes of its own)
    import sqlalchemy
except ImportError as error:
    needed = 'pip install "telesession[sql]" flask gunicorn'
    raise SystemExit(f"This example needs {error.name}: {needed}") from None

from telesession import with_session
from telesession.sql import SQLStore
from telesession.testing import Chat

TOKEN = os.environ.get("BOT_TOKEN")
SECRET = hashlib.sha256((TOKEN or "").encode()).hexdigest()
HEADER = "X-Telegram-Bot-Api-Secret-Token"

app = flask.Flask(__name__)
bot = telebot.TeleBot(TOKEN or "1:webhook", threaded=False)  # the server has the threads
chat = None if TOKEN else Chat(bot)
engine = sqlalchemy.create_engine(os.environ.get("SESSIONS") or "sqlite:///sessions.db")
session = with_session(store=SQLStore(engine))


@bot.message_handler(func=lambda message: True)
@session
def count(message: Any) -> None:
    counted = message.session.get("counted", [])
    if message.message_id not in counted:
        message.session["counted"] = [*counted[-99:], message.message_id]
        message.session["n"] = message.session.get("n", 0) + 1
        bot.reply_to(message, f"{message.session['n']} messages")


@app.post("/")
def webhook() -> Any:
    if not hmac.compare_digest(flask.request.headers.get(HEADER, "").encode(), SECRET.encode()):
        flask.abort(403)
    update = flask.request.get_json()
    if chat:
        return chat.update(**update)  # what the bot would have sent, for those who try it out
    bot.process_new_updates([telebot.types.Update.de_json(update)])
    return ""  # after the session was saved; had that failed, Telegram would send it again


def post(url: str, update: Any) -> Any:
    body = json.dumps(update).encode()
    headers = {"Content-Type": "application/json", HEADER: SECRET}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
        return json.load(answer)


def made_up(messages: int) -> list[Any]:
    """Updates with messages of four users, in any order, every tenth twice in a row."""
    first = time.time_ns() // 1_000_000  # no earlier run had users with these ids
    updates = []
    for number in random.sample(range(messages), messages):
        user = {"id": first + number % 4, "is_bot": False, "first_name": "Somebody"}
        where = {"id": user["id"], "type": "private", "first_name": "Somebody"}
        message = {"message_id": number, "date": 0, "chat": where, "from": user, "text": "hi"}
        updates += [{"update_id": number, "message": message}] * (1 if number % 10 else 2)
    return updates


def try_out(messages: int) -> None:
    """Serve from four processes, post a burst of messages, and tell what came of them."""
    posts = made_up(messages)
    with socket.create_server(("127.0.0.1", 0), backlog=len(posts)) as here:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "-w", "4", "--threads", "4", "--preload"),
                *("-b", f"fd://{here.fileno()}", "--log-level", "critical"),
                *("--pythonpath", str(Path(__file__).parent.absolute()), "webhook:app"),
            ],
            pass_fds=[here.fileno()],
        )
        try:
            with ThreadPoolExecutor(16) as threads:
                url = f"http://127.0.0.1:{here.getsockname()[1]}/"
                answers = list(threads.map(lambda update: post(url, update), posts))
        finally:
            server.terminate()  # it ends when its handlers have
            server.wait()
    told = [0] * messages
    for update, texts in zip(posts, answers):
        told[update["update_id"]] += len(texts)
    users = sorted({update["message"]["from"]["id"] for update in posts})
    counted = [(session.peek(key=f"{user}:{user}") or {"n": 0})["n"] for user in users]
    for n in counted:
        print(f"A user wrote, and the bot answered: 1 messages, ..., {n} messages")
    print(f"{len(posts)} posts of {messages} messages: ", end="")
    print(f"{sum(counted)} counted, {told.count(1)} answered once")


if __name__ == "__main__":
    if TOKEN:
        bot.set_webhook(os.environ["WEBHOOK_URL"], secret_token=SECRET)
    else:
        try_out(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
