"""Those that keep sessions, each behind its own dispatcher, and all with one interface.

What is to be measured is the same for all of them: the handler counts in its session, and may take
a while between reading and writing. The classes are imported when they are made, since a process
that has one should not wait for the libraries of all.
"""

import pkgutil
from collections.abc import Callable
from typing import Any

from tests.benchmarks.places import Place

TOKEN = "1234567890:AAFakeTokenOfABotThatDoesNotExist00"
BOT = {"id": 1234567890, "is_bot": True, "first_name": "Bot", "username": "a_bot"}

Data = dict[str, Any]
Pause = Callable[[int], float]  #: for how many seconds the handler of that user's update pauses


def update_json(user: int) -> Data:
    """A message of a user in the private chat with the bot, as Telegram sends it."""
    person = {"id": user, "is_bot": False, "first_name": "Ann"}
    chat = {"id": user, "type": "private", "first_name": "Ann"}
    message = {"message_id": 1, "date": 1, "chat": chat, "from": person, "text": "hi"}
    return {"update_id": user, "message": message}


def count(data: Data, user: int) -> None:
    data["n"] = data.get("n", 0) + 1


class Contender:
    """A bot that counts the updates of each user in a session; what stands here are its options."""

    threads = 0  #: an asynchronous bot takes all updates at once if this is not 0
    pause: Pause | None = None  #: without it the handler does not pause
    stack = 1  #: how many sessions the handler has, and counts in
    uses = True  #: whether it uses any at all

    def __init__(self, place: Place, **options: Any) -> None:
        self.place = place
        self.errors: list[BaseException] = []  #: what handlers raised
        for name, value in options.items():
            getattr(type(self), name)  # there has to be such an option
            setattr(self, name, value)
        self.setup()

    def setup(self) -> None:
        """Make the bot and its handler."""

    def update(self, user: int) -> Any:
        """An update of ``user``, in the bot's own type."""
        raise NotImplementedError

    def updates(self, times: int, user: int) -> list[Any]:
        """New updates of ``user``: as in life, no dispatcher is given the same object again."""
        return [self.update(user) for _ in range(times)]

    def run(self, updates: list[Any]) -> None:
        """Have the dispatcher handle updates; returns when that is done.

        Without threads each one comes alone and is dropped when it is handled, as in life: what a
        session left on it goes with it.
        """
        raise NotImplementedError

    def put(self, user: int, data: Data) -> None:
        """Store the session of ``user``; all of them, where several are stacked."""

    def get(self, user: int) -> Data:
        """The session of ``user`` as it is stored."""
        return {}

    def close(self) -> None:
        """Let go of threads and connections."""


_TELESESSION = "blocking:Telesession"
_RETRIEVE_DATA = "blocking:RetrieveData"
_STATES = "blocking:States"
_AIOGRAM = "asynchronous:Aiogram"
_USER_DATA = "asynchronous:UserData"

#: By name, the class and its options.
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "telesession, memory": (_TELESESSION, {"kind": "memory"}),
    "telesession, Redis": (_TELESESSION, {"kind": "redis"}),
    "telesession, SQLite": (_TELESESSION, {"kind": "sqlite"}),
    "telesession, SQLite, synchronous=NORMAL": (_TELESESSION, {"kind": "sqlite, normal"}),
    "telesession, PostgreSQL": (_TELESESSION, {"kind": "postgres"}),
    "StateStorage, memory": (_STATES, {"kind": "memory"}),
    "StateStorage, Redis": (_STATES, {"kind": "redis"}),
    "StateStorage, SQLite": (_STATES, {"kind": "sqlite"}),
    "pyTelegramBotAPI, memory": (_RETRIEVE_DATA, {"kind": "memory"}),
    "pyTelegramBotAPI, pickle": (_RETRIEVE_DATA, {"kind": "pickle"}),
    "pyTelegramBotAPI, Redis": (_RETRIEVE_DATA, {"kind": "redis"}),
    "aiogram, memory": (_AIOGRAM, {"kind": "memory"}),
    "aiogram, memory, isolated": (_AIOGRAM, {"kind": "memory", "isolated": True}),
    "aiogram, Redis": (_AIOGRAM, {"kind": "redis"}),
    "aiogram, Redis, isolated": (_AIOGRAM, {"kind": "redis", "isolated": True}),
    "python-telegram-bot, user_data": (_USER_DATA, {}),
    "floor": ("blocking:Floor", {}),
    "two round trips": ("blocking:RoundTrips", {}),
    "bare sqlite3": ("blocking:BareSQL", {"kind": "sqlite"}),
    "bare psycopg": ("blocking:BareSQL", {"kind": "postgres"}),
    "bare pyTelegramBotAPI": ("blocking:Bare", {}),
    "bare aiogram": (_AIOGRAM, {"kind": "memory", "uses": False}),
    "aiogram without FSM": (_AIOGRAM, {"kind": None, "uses": False}),
    "bare python-telegram-bot": (_USER_DATA, {"uses": False}),
}


def make(name: str, place: Place, **options: Any) -> Contender:
    """The contender of that name, with further options of its class."""
    where, own = CONTENDERS[name]
    made: Contender = pkgutil.resolve_name(f"tests.benchmarks.{where}")(place, **own, **options)
    return made


def bare_of(name: str) -> str:
    """The bare handler in the same dispatcher."""
    for library in ("aiogram", "python-telegram-bot"):
        if library in name:
            return f"bare {library}"
    return "bare pyTelegramBotAPI"
