"""The states of pyTelegramBotAPI, kept in sessions: `StateStorage`.

::

    session = with_session(store=SQLStore(engine))
    bot = telebot.TeleBot(token, state_storage=StateStorage(session))

A bot with ``bot.set_state``, ``state=`` filters, `StateContext`, ``bot.add_data`` and
``bot.retrieve_data`` goes on as it is, and handlers under ``@session`` and ``@session.when`` work
on the same data: ``message.session["name"]`` is what ``bot.add_data(..., name="Ann")`` has kept,
and ``message.session["_state"]`` is the state. So a bot can move one handler at a time.
"""

import contextlib
import json
import pickle
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, TypeAlias

from telebot.storage import StateStorageBase

from telesession.declaration import Declaration
from telesession.errors import SessionClosed, SessionUnavailable

STATE = "_state"  #: where a session has its state


class StateCall(SimpleNamespace):
    """Stands for a message of the user for whom a call such as ``bot.set_state`` is."""


class StateStorage(StateStorageBase):
    """A ``state_storage`` for `telebot.TeleBot`, which keeps states and their data in sessions.

    Data and state of a user are a session of the declaration, with its key function, store, ttl,
    codec and lock. What is called in a handler that has the session joins it: the states are saved
    with the session, or taken back with it. A ``with bot.retrieve_data(...)`` block holds the lock,
    and what is raised in it is raised by it, with nothing of the block saved. All else is as with
    the storages of pyTelegramBotAPI: without a state (or a session) there is nothing that data
    could be added to.

    A filter (``state=Form.name``) is asked before its handler has the lock, so of two quick
    messages both may be taken for the answer to one question. ``when`` decides under the lock::

        @bot.message_handler(func=lambda m: True)
        @session.when(_state=Form.name)
        def take_name(message): ...

    In forums, a declaration with ``key=keys.user_topic`` has a state for each topic, as the
    storages of pyTelegramBotAPI have; with the default key, a state is for the whole chat. Those
    who write as channels share one state, as there, which is no handler's session: pyTelegramBotAPI
    hands on only the user that Telegram sends for all of them.

    Args:
        session: how the sessions are declared. Each bot has a declaration of its own, with another
            ``property`` where they share a store.

    Raises (all methods):
        SessionError: as `Declaration.open` and `Declaration.peek`.
        ValueError: the storage is used by a second bot, or data is called ``_state``.
    """

    def __init__(self, session: Declaration) -> None:
        super().__init__()
        if not isinstance(session, Declaration):
            raise TypeError(
                f"StateStorage({session!r}) takes a declaration: StateStorage(with_session())"
            )
        self._session = session
        self._bot_id: int | None = None

    def set_state(self, chat_id: int, user_id: int, state: Any, *place: Any, **named: Any) -> bool:
        """Set the state: a text, a number, or a `State`, which stands for its name."""
        with self._open(chat_id, user_id, *place, **named) as session:
            session[STATE] = getattr(state, "name", state)
        return True

    def get_state(self, chat_id: int, user_id: int, *place: Any, **named: Any) -> Any:
        """The state as it is stored, or as this thread has it open; `None` if there is none."""
        return self._peek(chat_id, user_id, *place, **named).get(STATE)

    def delete_state(self, chat_id: int, user_id: int, *place: Any, **named: Any) -> bool:
        """Remove state and data; whether there were any."""
        with self._open(chat_id, user_id, *place, **named) as session:
            known = bool(session)
            session.clear()
        return known

    def get_data(self, chat_id: int, user_id: int, *place: Any, **named: Any) -> dict[str, Any]:
        """A copy of the data, without the state."""
        return _data(self._peek(chat_id, user_id, *place, **named))

    def set_data(
        self, chat_id: int, user_id: int, key: str, value: Any, *place: Any, **named: Any
    ) -> bool:
        """Add to the data; `RuntimeError` where there is neither state nor session."""
        with self._open(chat_id, user_id, *place, **named) as session:
            if session:
                _change(session, {}, {key: value})
        if not session:
            try:
                _change(session, {}, {key: value})  # a handler has it open, and nothing in it yet
            except SessionClosed:
                raise RuntimeError(
                    f"user {user_id} has no state in chat {chat_id} that {key!r} could be added "
                    "to: call bot.set_state first"
                ) from None
        return True

    def reset_data(self, chat_id: int, user_id: int, *place: Any, **named: Any) -> bool:
        """Remove the data, but for the state; whether there was a state or session."""
        return self.save(chat_id, user_id, {}, *place, **named)

    def save(
        self, chat_id: int, user_id: int, data: dict[str, Any], *place: Any, **named: Any
    ) -> bool:
        """Put other data in the place of all there is; whether there was a state or session."""
        with self._open(chat_id, user_id, *place, **named) as session:
            known = bool(session)
            if known:
                _change(session, _data(session), data)
        return known

    def get_interactive_data(
        self, chat_id: int, user_id: int, *place: Any, **named: Any
    ) -> "_Data":
        """What ``bot.retrieve_data`` gives: a block with the data, which holds the lock.

        Without ``with``, its ``data`` is a copy of what is stored.
        """
        where = (chat_id, user_id, *place)
        return _Data(partial(self.get_data, *where, **named), self._block(*where, **named))

    @contextlib.contextmanager
    def _block(self, *place: Any, **named: Any) -> Iterator[dict[str, Any]]:
        with self._open(*place, **named) as session:
            known = bool(session)
            before = _data(session)
            data = dict(before)
            yield data
            if session:
                _change(session, before, data)
        if not (known or session):
            with contextlib.suppress(SessionClosed):
                _change(session, before, data)  # a handler has it open, and nothing in it yet

    def _open(self, *place: Any, **named: Any) -> contextlib.AbstractContextManager[dict[str, Any]]:
        return self._session.open(self._message(*place, **named))

    def _peek(self, *place: Any, **named: Any) -> dict[str, Any]:
        return self._session.peek(self._message(*place, **named)) or {}

    def _message(
        self,
        chat_id: int,
        user_id: int,
        business_connection_id: str | None = None,
        message_thread_id: int | None = None,
        bot_id: int | None = None,
    ) -> StateCall:
        """What the key function is asked for, as for a message of that user."""
        if bot_id is not None and self._bot_id not in (None, bot_id):
            raise ValueError(
                f"the StateStorage of bot {self._bot_id} is used by bot {bot_id}. Give each bot a "
                f"StateStorage of its own, over with_session(property=...) with a property of its "
                "own"
            )
        self._bot_id = bot_id or self._bot_id
        return StateCall(
            chat=SimpleNamespace(id=chat_id, type="private" if chat_id == user_id else "group"),
            # No sender_chat, so that a key function looks who an anonymous admin is.
            from_user=None if user_id is None else SimpleNamespace(id=user_id, is_bot=False),
            business_connection_id=business_connection_id,
            message_thread_id=message_thread_id,
            is_topic_message=message_thread_id is not None,
        )


class _Data:
    """The data of a user: to be changed in a ``with`` block, or a copy to be read."""

    def __init__(
        self,
        read: Callable[[], dict[str, Any]],
        block: contextlib.AbstractContextManager[dict[str, Any]],
    ) -> None:
        self._read = read
        self._block = block

    @cached_property
    def data(self) -> dict[str, Any]:
        return self._read()

    def __enter__(self) -> dict[str, Any]:
        self.data = self._block.__enter__()
        return self.data

    def __exit__(self, *raised: Any) -> bool | None:
        return self._block.__exit__(*raised)


def _data(session: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in session.items() if key != STATE}


def _change(session: dict[str, Any], before: dict[str, Any], data: dict[str, Any]) -> None:
    """Change in a session what was changed in its data; others may have changed the rest."""
    if STATE in data:
        raise ValueError(
            f"data can't be called {STATE!r}: there is the state. Give it another name"
        )
    for key in before.keys() - data.keys():
        session.pop(key, None)
    for key, value in data.items():
        if key not in before or value is not before[key]:
            session[key] = value


def take_over(old: Any, new: StateStorage, bot_id: int | None = None) -> int:
    """Bring over what another storage has kept: to be called once, before the bot begins.

    ::

        states.take_over(StatePickleStorage("states.pkl"), storage)

    ``old`` stays as it is, and is read in all forms in which pyTelegramBotAPI has written it. A
    session that there is already stays as well, so a call that failed can be repeated.

    Args:
        old: a `StatePickleStorage` or a `StateRedisStorage`, made as the bot has made it.
        new: where states are kept from now on.
        bot_id: whose states, if several bots have kept theirs in ``old``.

    Returns:
        How many sessions were brought over.

    Raises:
        ValueError: there are states of several bots, and no ``bot_id``.
        SessionDataError: there is a value that the codec can't keep.
        SessionError: as `Declaration.open`.
    """
    found = list(_pickled(old) if hasattr(old, "file_path") else _on_redis(old))
    bots = {of for _, of, _ in found if of is not None}
    if bot_id is None and len(bots) > 1:
        raise ValueError(f"there are states of several bots: give one of {sorted(bots)} as bot_id")
    session, taken = new._session, 0
    for place, of, record in found:
        message = new._message(*place)
        if None in (bot_id, of) or bot_id == of:
            with contextlib.suppress(SessionUnavailable):  # a state of nobody
                if session.peek(message) is None:
                    with session.open(message, apart=True) as data:
                        _change(data, {}, record["data"])
                        data[STATE] = getattr(record["state"], "name", record["state"])
                    taken += 1
    return taken


#: What pyTelegramBotAPI has kept: chat, user, business connection and topic; the bot; the record.
_Found: TypeAlias = tuple[tuple[Any, ...], Any, dict[str, Any]]


def _pickled(old: Any) -> Iterator[_Found]:
    with open(old.file_path, "rb") as file:
        kept = pickle.load(file)
    for key, value in kept.items():
        if not {"state", "data"} <= value.keys():  # until 4.22
            for user, record in value.items():
                yield (key, user), None, record
        elif isinstance(key, str):
            yield (*_places(old, key), value)
        else:  # until 4.3
            yield (key, key), None, value


def _on_redis(old: Any) -> Iterator[_Found]:
    client = old.redis
    if not hasattr(client, "scan_iter"):  # a pool, until 4.22
        import redis

        client = redis.Redis(connection_pool=client)
    for name in client.scan_iter(match=f"{old.prefix}*"):
        key = _text(name)
        of = _text(client.type(name))
        if of == "hash":
            record = {_text(field): _text(value) for field, value in client.hgetall(name).items()}
            data = json.loads(record.get("data") or "{}")
            yield (*_places(old, key), {"state": record.get("state"), "data": data})
        elif of == "string":  # until 4.22
            chat = int(key[len(old.prefix) :].lstrip("_"))
            for user, kept in json.loads(client.get(name)).items():
                yield (chat, int(user)), None, kept


def _places(old: Any, key: str) -> tuple[tuple[Any, ...], Any]:
    """What a key names: bot, business connection and topic, if there are such; chat; user."""
    prefix, separator = getattr(old, "prefix", "telebot"), getattr(old, "separator", ":")
    parts = key[len(prefix) :].split(separator)[1:]
    *before, chat, user = (int(part) if _is_number(part) else part for part in parts)
    bot = before.pop(0) if before else None
    topic = next((part for part in before if isinstance(part, int)), None)
    connection = next((part for part in before if isinstance(part, str)), None)
    return (chat, None if user == "None" else user, connection, topic), bot


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
