"""`RedisStore`: sessions on Redis or Valkey, for many processes. `leases` waits and renews."""

import hashlib
import inspect
import itertools
import re
import secrets
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from importlib import resources
from typing import Any

from telesession._forks import per_process
from telesession.keyvalue import compose, payload_of
from telesession.leases import Beat, Held, LeasingStore, identity, milliseconds
from telesession.stores import Change, Payload

_LONGEST_WAIT = 0.2  # seconds to wait for a wake-up; a holder that died sends none
_REMEMBERED = 60_000  # milliseconds; by redis-py's defaults a request may be sent for 59 seconds
_PAGE = 1000  # keys that the server looks at in one go
_RECENT = 5000  # names that are recognised if the server repeats them


class _Script:
    def __init__(self, name: str) -> None:
        self.text = resources.files("telesession").joinpath("lua", name).read_text("utf-8")
        # not for security, so that Python in FIPS mode allows SHA-1
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_ACQUIRE, _RENEW, _WRITE, _ASK = map(_Script, ("acquire.lua", "renew.lua", "write.lua", "ask.lua"))


class RedisStore(LeasingStore):
    """Sessions on a Redis (6 or later) or Valkey server, or a cluster of them.

    An update takes two round trips, however many sessions are stacked on it: one leases and reads
    the sessions, the other writes and releases them. The server wakes handlers that wait for a
    session. On a cluster a session and its lease share a slot; a stack whose sessions have several
    slots takes two round trips or more for each slot.

    Sessions are strings under ``<prefix>{<property>:<key>}``: JSON as it is, and bytes, such as
    pickles, as base64 behind ``@base64@``. They expire by the server's own expiry. Further keys
    are ``...:lease`` while a handler runs; ``...:done:<token>`` for a minute afterwards, by which a
    request that the client sends twice counts once; and ``...:wake`` for at most a second.

    The server has to be the primary, with ``maxmemory-policy noeviction``, its default: under other
    policies it may evict sessions. ``appendonly`` and ``appendfsync`` decide what a crash loses.
    An ACL user needs ``EVAL``, ``EVALSHA``, ``BLPOP``, and the commands of the
    scripts (``GET``, ``SET``, ``DEL``, ``APPEND``, ``EXISTS``, ``RPUSH``, ``PEXPIRE``, and
    ``SCAN`` for `Declaration.keys`). A store that was used before a fork works in the children.

    After an error, or an exception out of a signal handler, the store closes the client's idle
    connections; those in use stay open.

    Args:
        client: a ``redis.Redis``, ``valkey.Valkey``, or the ``RedisCluster`` or ``ValkeyCluster``
            of the same packages, or what ``Sentinel.master_for`` gives. The client's options decide
            how often, and for how long, a request is tried. While an update waits for a session
            that another process has, it uses one of the client's connections.
        prefix: the beginning of all keys of the store.
        lease: seconds (or a `timedelta`) after which a session is free again if its process died.

    Raises:
        TypeError, ValueError: for a client that can't work: an asynchronous one, a pipeline, one
            for replicas.

    >>> import redis
    >>> RedisStore(redis.Redis(), prefix="my-bot:")
    RedisStore(Redis, prefix='my-bot:')
    """

    def __init__(
        self, client: Any, *, prefix: str = "telesession:", lease: float | timedelta = 10.0
    ) -> None:
        super().__init__(lease)
        # a cluster client has no pool of its own
        pool = getattr(client, "connection_pool", None) or getattr(client, "nodes_manager", None)
        call = getattr(client, "execute_command", None)
        known = hasattr(client, "evalsha") and not hasattr(client, "command_stack")
        if not (call and pool and known) or isinstance(client, type):
            raise TypeError(f"client={client!r} is no Redis client: give redis.Redis() or the like")
        if inspect.iscoroutinefunction(call):
            raise TypeError(
                f"client={type(client).__module__}.{type(client).__name__} is asynchronous: "
                "telesession is for blocking bots, give the blocking client of the same package"
            )
        if not getattr(pool, "is_master", True):
            raise ValueError(f"client={client!r} is for replicas: give Sentinel.master_for(...)")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix={prefix!r} must be a str")
        if "{}" in prefix:  # with an empty first tag, a cluster hashes the whole key
            raise ValueError(f"prefix={prefix!r} must not contain '{{}}': leave that out")
        self.client = client
        self.prefix = prefix
        self._milliseconds = milliseconds(self.lease)
        self._pool: Any = pool
        self._slot = getattr(client, "keyslot", None)
        per_process(self, RedisStore._reset)

    def _reset(self) -> None:
        # request numbers of 15 digits, from a random start, unlike those of other processes
        self._numbers = itertools.count(10**14 + secrets.randbelow(8 * 10**14))
        self._close_own()  # a forked child would share the connection with its parent

    @property
    def identity(self) -> object:
        return identity(self._pool, self.prefix)

    def __repr__(self) -> str:
        return f"RedisStore({type(self.client).__name__}, prefix={self.prefix!r})"

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        if self._slot is None or len(names) == 1:
            return [names]
        slots: dict[int, list[str]] = {}
        for name in names:
            slots.setdefault(self._slot(self._data(name)), []).append(name)
        return [slots[slot] for slot in sorted(slots)]

    def acquire(
        self, names: Sequence[str], token: str, waited: float, stale: Mapping[str, Beat]
    ) -> Sequence[Payload | None]:
        keys: list[bytes] = []
        for name in names:
            data = self._data(name)
            keys += data, data + _LEASE, data + _done(token)
        over = [" ".join(stale.get(name, ())) for name in names] if stale else ()
        asked = self._milliseconds, "!" if waited else "", *over
        place, *found = self._call(_ACQUIRE, token, keys, *asked)
        if place:
            holder, _, beat = found[0].decode().partition(" ")
            raise Held(names[place - 1], holder, beat)
        return [payload_of(each) for each in found]

    def renew(self, names: Sequence[str], token: str) -> bool:
        keys = [self._data(name) + _LEASE for name in names]
        return bool(self._call(_RENEW, token, keys, self._milliseconds)[0])

    def write(
        self, names: Sequence[str], token: str, changes: Sequence[Change], *, release: bool = True
    ) -> bool:
        planned = {name: (payload, ttl) for name, payload, ttl in changes}
        keys: list[bytes] = []
        arguments: list[bytes | str | int] = [_REMEMBERED if release else ""]
        for name in names:
            data = self._data(name)
            keys += data, data + _LEASE, data + _WAKE, data + _done(token)
            if name not in planned:
                arguments += "", ""
                continue
            payload, ttl = planned[name]
            if payload is None:
                arguments += "del", ""
            else:
                arguments.append("never" if ttl is None else milliseconds(ttl))
                arguments.append(compose(payload, None).encode())
        return bool(self._call(_WRITE, token, keys, *arguments)[0])

    def wait(self, name: str, limit: float, waited: float) -> None:
        timeout = self._pool.connection_kwargs.get("socket_timeout") or _LONGEST_WAIT * 2
        limit = max(0.001, min(limit, timeout / 2, _LONGEST_WAIT))
        if self._send("BLPOP", self._data(name) + _WAKE, limit) is None:
            time.sleep(0.001)  # lets other threads get a connection of a pool that is too small

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the stored sessions that begin with ``prefix``.

        Each comes once, unless a cluster moves it to another server meanwhile.
        """
        # only keys of sessions end in a brace, those of leases don't
        pattern = re.sub(r"[*?\[\]\\]", r"\\\g<0>", f"{self.prefix}{{{prefix}") + "*}"
        # SCAN repeats keys when the server's hash table shrinks. Its order is such that the keys
        # which share a bucket of the smaller table come close together, so it is enough to remember
        # the latest names.
        recent: set[str] = set()
        earlier: set[str] = set()
        for key in self._scan(pattern.encode()):
            try:
                name = key.decode()[len(self.prefix) + 1 : -1]
            except UnicodeDecodeError:  # telesession did not write it
                continue
            if name in recent or name in earlier:
                continue
            if len(recent) == _RECENT:
                recent, earlier = set(), recent
            recent.add(name)
            yield name

    def peek(self, name: str) -> Payload | None:
        key = self._data(name)
        return payload_of(self._call(_ASK, "", [key], "GET", key)[0])

    def refused(self, error: Exception) -> bool:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"ResponseError", "UnicodeEncodeError"}:  # of whichever package the client is
            return True
        # A client gets a connection before it sends a command; a cluster's client may get several.
        return self._slot is None and any(
            frame.f_code.co_name == "get_connection"
            for frame, _ in traceback.walk_tb(error.__traceback__)
        )

    def cure(self, error: Exception) -> str:
        return _CURES.get(type(error).__name__, "")

    def _scan(self, pattern: bytes) -> Iterator[bytes]:
        """The keys that match, on one primary of a cluster after the other."""
        cluster = self._slot is not None
        for node in self.client.get_primaries() if cluster else [None]:
            where = {"target_nodes": node} if cluster else {}
            cursor = b"0"
            while True:
                asked = "SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE
                ((cursor, keys),) = self._call(_ASK, "", [], *asked, **where)
                yield from keys
                if cursor == b"0":
                    break

    def _data(self, name: str) -> bytes:
        return f"{self.prefix}{{{name}}}".encode()

    def _call(
        self,
        script: _Script,
        token: str,
        keys: Sequence[bytes],
        *arguments: bytes | str | int,
        **where: Any,
    ) -> list[Any]:
        """Run a script, and return its answer after checking that it answers this request.

        An exception out of a signal handler can leave an answer unread on a connection; the client
        then takes it for the answer to the next request. So scripts repeat the request's number.
        """
        request = f"{token} {next(self._numbers)}".encode()
        asked = len(keys), *keys, request, *arguments
        try:
            answer = self._send("EVALSHA", script.sha, *asked, **where)
        except Exception as error:
            if type(error).__name__ != "NoScriptError":
                raise
            answer = self._send("EVAL", script.text, *asked, **where)
        if isinstance(answer, list) and answer[:1] == [request]:
            return answer[1:]
        self._close_idle()
        raise ConnectionError("the client gave the answer to another request")

    def _send(self, *command: bytes | str | float, **where: Any) -> Any:
        try:
            return self.client.execute_command(*command, NEVER_DECODE=True, **where)
        except BaseException as error:
            # The answer may still come on its connection, or the server may have been demoted.
            if type(error).__name__ != "NoScriptError":
                self._close_idle()
            raise

    def _close_idle(self) -> None:
        """Close the idle connections, so that the next requests open new ones."""
        self._close_own()
        pools = [self._pool]
        if self._slot is not None:
            clients = [node.redis_connection for node in self.client.get_nodes()]
            pools = [client.connection_pool for client in clients if client is not None]
        for pool in pools:
            queue = getattr(pool, "pool", None)  # a BlockingConnectionPool has one
            if queue is None:
                pool.disconnect(inuse_connections=False)
                continue
            with queue.mutex:
                for connection in filter(None, queue.queue):
                    connection.disconnect()

    def _close_own(self) -> None:
        connection = getattr(self.client, "connection", None)  # of a single-connection client
        if connection is not None:
            connection.disconnect()


def _done(token: str) -> bytes:
    return f":done:{token}".encode()


_LEASE, _WAKE = b":lease", b":wake"

_CURES = {
    "ReadOnlyError": "That server is a replica: give the client the address of the primary. ",
    "OutOfMemoryError": "Raise the server's maxmemory, or have it keep less. ",
    "NoPermissionError": "Allow the client's user that command, and keys with that prefix. ",
    "MaxConnectionsError": "Let the client's pool have more connections. ",
}
