"""A Bot API server on loopback, for bots that really poll: in this process or in one of their own.

::

    with BotAPI() as server:
        telebot.apihelper.API_URL = server.url
        server.feed([{"message": {...}}])
        assert server.wait_sent(1, timeout=5)
        method, params = server.sent[0]
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

BOT = {"id": 7, "is_bot": True, "first_name": "Bot", "username": "the_bot"}


class Call(NamedTuple):
    """A method that the bot called; its parameters are text, as they came."""

    method: str
    params: dict[str, str]


class BotAPI:
    """Feeds updates to a bot that polls, and records what the bot does with them.

    It serves one bot, whatever the token: the updates are one queue.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pending: list[dict] = []
        self._last_update_id = 0
        self._sent: list[Call] = []
        self._last_message_id = 0
        self._closing = False
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        """What `telebot.apihelper.API_URL` has to be."""
        return f"http://127.0.0.1:{self.port}/bot{{0}}/{{1}}"

    def __enter__(self) -> "BotAPI":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def feed(self, updates: Iterable[dict]) -> None:
        """Queue updates, each `{type: payload}`: as with Telegram, the server numbers them."""
        with self._changed:
            for update in updates:
                self._last_update_id += 1
                self._pending.append({**update, "update_id": self._last_update_id})
            self._changed.notify_all()

    @property
    def sent(self) -> list[Call]:
        """What the bot did, in the order of arrival: all calls but those that serve polling."""
        with self._changed:
            return self._sent.copy()

    @property
    def pending(self) -> list[dict]:
        """The updates that the bot hasn't confirmed yet."""
        with self._changed:
            return self._pending.copy()

    def wait_sent(self, n: int, timeout: float) -> bool:
        """Wait for `n` calls at least; False if there are less after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._sent) >= n, timeout)

    def call(self, method: str, params: dict[str, str]) -> Any:
        """The result of one call."""
        if method == "getMe":
            return BOT
        if method == "getUpdates":
            return self._get_updates(
                offset=int(params.get("offset", 0)),
                limit=int(params.get("limit", 100)),
                timeout=float(params.get("timeout", 0)),
            )
        if method == "deleteWebhook":
            if params.get("drop_pending_updates", "").lower() == "true":
                self._confirm(self._last_update_id + 1)
            return True
        with self._changed:
            self._sent.append(Call(method, params))
            self._changed.notify_all()
            if method.startswith("send") and method != "sendChatAction":
                return self._message(params)
        return True

    def _get_updates(self, offset: int, limit: int, timeout: float) -> list[dict]:
        with self._changed:
            if offset < 0 and self._pending:
                offset = self._pending[offset:][0]["update_id"]
            self._confirm(offset)
            self._changed.wait_for(lambda: self._pending or self._closing, timeout)
            return self._pending[: min(limit, 100)]

    def _confirm(self, offset: int) -> None:
        with self._changed:
            self._pending = [each for each in self._pending if each["update_id"] >= offset]

    def _message(self, params: dict[str, str]) -> dict:
        self._last_message_id += 1
        chat_id = int(params["chat_id"])
        return {
            "message_id": self._last_message_id,
            "from": BOT,
            "chat": {"id": chat_id, "type": "private" if chat_id > 0 else "supergroup"},
            "date": int(time.time()),
            "text": params.get("text", ""),
        }


class _Server(ThreadingHTTPServer):
    # So that server_close() waits for the threads of the connections.
    daemon_threads = False

    def __init__(self, api: BotAPI) -> None:
        self.api = api
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        # A kept-alive connection reads until the bot closes it, and the bot may outlive the server.
        for connection in self._connections.copy():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A bot whose process ends leaves its long poll behind, which is no fault here.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: with Nagle's algorithm, the second would wait 40 ms for the
    # delayed acknowledgement of the first.
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        # pyTelegramBotAPI puts all but files in the query; the next request comes after the body.
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        method = url.path.rpartition("/")[2]
        params = dict(parse_qsl(url.query, keep_blank_values=True))
        body = json.dumps({"ok": True, "result": self.server.api.call(method, params)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass
