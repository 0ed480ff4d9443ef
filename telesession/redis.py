"""`RedisStore`: sessions on a Redis or Valkey server or cluster, safe for many processes."""

import contextlib
import functools
import hashlib
import inspect
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from importlib import resources
from typing import Any

from telesession.keyvalue import compose, parse
from telesession.leases import Beat, Held, LeasingStore, foreign, identity, milliseconds
from telesession.stores import Change, Payload

_LONGEST_WAIT = 0.2  # seconds to wait to be woken; a holder that died wakes nobody
_PAGE = 1000  # keys that the server looks at in one go
_RECENT = 5000  # names that are known again if the server repeats them


class _Script:
    def __init__(self, name: str) -> None:
        self.text = resources.files("telesession").joinpath("lua", name).read_text("utf-8")
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()


_ACQUIRE, _RENEW, _WRITE = map(_Script, ("acquire.lua", "renew.lua", "write.lua"))


class RedisStore(LeasingStore):
    """Sessions on a Redis (6 or later) or Valkey server, or a cluster of them.

    An update takes two round trips, however many sessions are stacked on it: one leases and reads
    them, the other writes them and lets go. Who waits for a session is woken by the server. On a
    cluster a session and its lease share a slot; a stack whose sessions have several slots takes
    two round trips or more for each of them.

    Sessions are strings, ``<prefix>{<property>:<key>}``: JSON as it is, and bytes, such as
    pickles, as base64 behind ``@base64@``. They expire by the server's own expiry. Beside them are
    ``...:lease`` while a handler runs and, for at most a second, ``...:wake``.

    Args:
        client: a ``redis.Redis``, ``valkey.Valkey``, or the ``RedisCluster`` or ``ValkeyCluster``
            of the same packages. While an update waits for a session that another process has,
            it uses one of the client's connections.
        prefix: what the keys of all sessions begin with.
        lease: seconds (or a `timedelta`) after which a session is free again if its process died.

    >>> import redis
    >>> RedisStore(redis.Redis(), prefix="my-bot:")
    RedisStore(Redis, prefix='my-bot:')
    """

    def __init__(
        self, client: Any, *, prefix: str = "telesession:", lease: float | timedelta = 10.0
    ) -> None:
        super().__init__(lease)
        call = getattr(client, "evalsha", None)
        if call is None or isinstance(client, type) or hasattr(client, "command_stack"):
            raise TypeError(f"client={client!r} is no Redis client: give redis.Redis() or the like")
        if inspect.iscoroutinefunction(getattr(client, "execute_command", None)):
            raise TypeError(
                f"client={type(client).__module__}.{type(client).__name__} is asynchronous: "
                "telesession is for blocking bots, give the blocking client of the same package"
            )
        if not isinstance(prefix, str):
            raise TypeError(f"prefix={prefix!r} must be a str")
        if "{}" in prefix:  # a cluster would then take no part of a key for its hash tag
            raise ValueError(f"prefix={prefix!r} must not contain '{{}}': leave that out")
        self.client = client
        self.prefix = prefix
        self._milliseconds = milliseconds(self.lease)
        # a cluster client has no pool of its own
        self._pool = getattr(client, "connection_pool", None) or client.nodes_manager
        self._slot = getattr(client, "keyslot", None)

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
        keys = [key for name in names for key in (self._data(name), self._lease(name))]
        with _reading(names):
            found = self._call(_ACQUIRE, keys, token, self._milliseconds, int(waited > 0))
            if isinstance(found, int):
                raise Held(names[found - 1])
            return [_payload(one) for one in found]

    def renew(self, names: Sequence[str], token: str) -> bool:
        keys = [self._lease(name) for name in names]
        return bool(self._call(_RENEW, keys, token, self._milliseconds))

    def write(
        self, names: Sequence[str], token: str, changes: Sequence[Change], *, release: bool = True
    ) -> bool:
        planned = {name: (payload, ttl) for name, payload, ttl in changes}
        keys: list[str] = []
        arguments: list[str | int] = []
        for name in names:
            keys += self._data(name), self._lease(name), self._wake(name)
            if name not in planned:
                arguments += "", "", ""
                continue
            payload, ttl = planned[name]
            if payload is None:
                arguments += "del", "", ""
            else:
                arguments += "set", compose(payload, None), "" if ttl is None else milliseconds(ttl)
        return bool(self._call(_WRITE, keys, token, int(release), *arguments))

    def wait(self, name: str, limit: float, waited: float) -> None:
        timeout = self._pool.connection_kwargs.get("socket_timeout") or _LONGEST_WAIT * 2
        limit = max(0.001, min(limit, timeout / 2, _LONGEST_WAIT))
        if self.client.blpop([self._wake(name)], timeout=limit) is None:
            time.sleep(0.001)  # else others never get the connection, where a pool has too few

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the stored sessions that begin with ``prefix``.

        Each comes once, but for those that are moved to another server of a cluster meanwhile.
        """
        # the brace at the end leaves out leases and wake lists
        pattern = re.sub(r"[*?\[\]\\]", r"\\\g<0>", f"{self.prefix}{{{prefix}") + "*}"
        # A server repeats keys when its table has shrunk. It reads a table in such an order that
        # what is in one place of a smaller table was read at one time, so that it is enough to
        # remember the latest.
        recent: set[str] = set()
        earlier: set[str] = set()
        for key in self._scan(pattern):
            try:
                name = key.decode()[len(self.prefix) + 1 : -1]
            except UnicodeDecodeError:  # not ours
                continue
            if name in recent or name in earlier:
                continue
            if len(recent) == _RECENT:
                recent, earlier = set(), recent
            recent.add(name)
            yield name

    def peek(self, name: str) -> Payload | None:
        """What is stored of a session, without a lease."""
        key = self._data(name)
        # a cluster's client may be set to read from replicas, which are late
        where = {} if self._slot is None else {"target_nodes": self.client.get_node_from_key(key)}
        with _reading([name]):
            return _payload(self.client.execute_command("GET", key, **where))

    def _scan(self, pattern: str) -> Iterator[bytes]:
        """The keys, of one server of a cluster after the other."""
        scan: Callable[..., Any] = functools.partial(
            self.client.scan, match=pattern, count=_PAGE, NEVER_DECODE=True
        )
        cursor: Any
        if self._slot is None:
            cursor = None
            while cursor != 0:
                cursor, keys = scan(cursor or 0)
                yield from keys
            return
        for node in self.client.get_primaries():
            cursor = None
            while cursor != 0:
                cursors, keys = scan(cursor or 0, target_nodes=node)
                cursor = cursors[node.name]
                yield from keys

    def _data(self, name: str) -> str:
        return f"{self.prefix}{{{name}}}"

    def _lease(self, name: str) -> str:
        return f"{self.prefix}{{{name}}}:lease"

    def _wake(self, name: str) -> str:
        return f"{self.prefix}{{{name}}}:wake"

    def _call(self, script: _Script, keys: list[str], *arguments: str | int) -> Any:
        try:
            return self.client.evalsha(script.sha, len(keys), *keys, *arguments)
        except Exception as error:
            if type(error).__name__ != "NoScriptError":  # of whichever package the client is
                raise
        return self.client.eval(script.text, len(keys), *keys, *arguments)


@contextlib.contextmanager
def _reading(names: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError:  # a name that no client can send
        raise
    except ValueError as error:  # no UTF-8, for one; some clients decode it themselves
        raise foreign(
            names, "the server", "Give RedisStore a prefix of its own, or delete the key."
        ) from error


def _payload(found: str | bytes | None) -> Payload | None:
    if found is None:
        return None
    return parse(found if isinstance(found, str) else found.decode())[1]
