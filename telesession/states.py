"""`StateStorage`: keeps the states of pyTelegramBotAPI in sessions, which a `Declaration` opens.

::

    session = with_session(store=SQLStore(engine))
    bot = telebot.TeleBot(token, state_storage=StateStorage(session))

A bot with ``bot.set_state``, ``state=`` filters, `StateContext`, ``bot.add_data`` and
``bot.retrieve_data`` works without other changes, and handlers under ``@session`` or
``@session.when`` share its data: what ``bot.add_data(..., name="Ann")`` sets is
``message.session["name"]``, and the state is ``message.session["_state"]``. So one handler after
the other can be changed to sessions.
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

STATE = "_state"  #: the key of a session under which the state is


class StateCall(SimpleNamespace):
    """Stands for a message of the user that a call such as ``bot.set_state`` names."""


class StateStorage(StateStorageBase):
    """A ``state_storage`` for `telebot.TeleBot`, which keeps states and their data in sessions.

    Data and state of a user are a session of the declaration, with its key function, store, ttl,
    codec and lock. A call in a handler that has the session joins it: the state is saved with the
    session, or undone with it. A ``with bot.retrieve_data(...)`` block holds the lock; an exception
    in the block leaves the block, and then nothing of it is saved. The rest is as with the storages
    of pyTelegramBotAPI: without a state (or a session), data can't be added.

    A filter (``state=Form.name``) runs before its handler has the lock, so two quick messages may
    both be taken as the answer to one question. ``when`` decides under the lock::

        @bot.message_handler(func=lambda m: True)
        @session.when(_state=Form.name)
        def take_name(message): ...

    In forums, a declaration with ``key=keys.user_topic`` has a state for each topic, as the
    storages of pyTelegramBotAPI have; with the default key, a state is for the whole chat. Users
    who write as channels share one state, as they do there, and no handler has it as its session:
    pyTelegramBotAPI hands on only the one user that Telegram sends for all of them.

    Args:
        session: the declaration of the sessions. Each bot needs a declaration of its own, with
            another ``property`` where bots share a store.

    Raises (all methods):
        SessionError: as `Declaration.open` and `Declaration.peek` raise it.
        ValueError: a second bot uses the storage, or data has the name ``_state``.
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
        """The state in the stored session, or in the open one of this thread; else `None`."""
        return self._peek(chat_id, user_id, *place, **named).get(STATE)

    def delete_state(self, chat_id: int, user_id: int, *place: Any, **named: Any) -> bool:
        """Remove state and data; returns whether there were any."""
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
        """Set one value of the data; `RuntimeError` if there is neither state nor session."""
        with self._open(chat_id, user_id, *place, **named) as session:
            if session:
                _change(session, {}, {key: value})
        if not session:
            try:
                _change(session, {}, {key: value})  # allowed if a handler has it open, still empty
            except SessionClosed:
                raise RuntimeError(
                    f"user {user_id} has no state in chat {chat_id} that {key!r} could be added "
                    "to: call bot.set_state first"
                ) from None
        return True

    def reset_data(self, chat_id: int, user_id: int, *place: Any, **named: Any) -> bool:
        """Remove the data, but not the state; returns whether there was a state or session."""
        return self.save(chat_id, user_id, {}, *place, **named)

    def save(
        self, chat_id: int, user_id: int, data: dict[str, Any], *place: Any, **named: Any
    ) -> bool:
        """Replace the data, but not the state; returns whether there was a state or session."""
        with self._open(chat_id, user_id, *place, **named) as session:
            known = bool(session)
            if known:
                _change(session, _data(session), data)
        return known

    def get_interactive_data(
        self, chat_id: int, user_id: int, *place: Any, **named: Any
    ) -> "_Data":
        """The result of ``bot.retrieve_data``: a block with the data, which holds the lock.

        Without ``with``, its ``data`` is a copy of the stored data.
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
                _change(session, before, data)  # allowed if a handler has it open, still empty

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
        """An update for the key function, like a message of that user."""
        if bot_id is not None and self._bot_id not in (None, bot_id):
            raise ValueError(
                f"the StateStorage of bot {self._bot_id} is used by bot {bot_id}. Give each bot a "
                f"StateStorage of its own, over with_session(property=...) with a property of its "
                "own"
            )
        self._bot_id = bot_id or self._bot_id
        return StateCall(
            chat=SimpleNamespace(id=chat_id, type="private" if chat_id == user_id else "group"),
            # No sender_chat, so that key functions recognise an anonymous admin by the user's id.
            from_user=None if user_id is None else SimpleNamespace(id=user_id, is_bot=False),
            business_connection_id=business_connection_id,
            message_thread_id=message_thread_id,
            is_topic_message=message_thread_id is not None,
        )


class _Data:
    """The data of a user: in a ``with`` block to change it, otherwise a copy to read."""

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
    """Apply the changes from ``before`` to ``data`` to a session, and keep its other changes."""
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
    """Copy the states of another storage; call it once, before the bot starts.

    ::

        states.take_over(StatePickleStorage("states.pkl"), storage)

    ``old`` stays as it is, and is read in all formats that pyTelegramBotAPI has written. Sessions
    that exist already stay as they are, too, so a call that failed can be repeated.

    Args:
        old: a `StatePickleStorage` or a `StateRedisStorage`, with the bot's own arguments.
        new: the storage of the bot from now on.
        bot_id: the bot whose states are copied, if several bots have states in ``old``.

    Returns:
        How many sessions were copied.

    Raises:
        ValueError: there are states of several bots, and no ``bot_id``.
        SessionDataError: the codec can't keep a value.
        SessionError: as `Declaration.open` raises it.
    """
    found = list(_pickled(old) if hasattr(old, "file_path") else _on_redis(old))
    bots = {of for _, of, _ in found if of is not None}
    if bot_id is None and len(bots) > 1:
        raise ValueError(f"there are states of several bots: give one of {sorted(bots)} as bot_id")
    session, taken = new._session, 0
    for place, of, record in found:
        message = new._message(*place)
        if None in (bot_id, of) or bot_id == of:
            with contextlib.suppress(SessionUnavailable):  # a state without a user
                if session.peek(message) is None:
                    with session.open(message, apart=True) as data:
                        _change(data, {}, record["data"])
                        data[STATE] = getattr(record["state"], "name", record["state"])
                    taken += 1
    return taken


#: A state of pyTelegramBotAPI: chat, user, business connection and topic; the bot; the record.
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
    """The parts of a key: chat, user, business connection and topic; and the bot."""
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
