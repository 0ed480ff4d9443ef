"""What mongod refuses and SecantusDB takes: a proxy between the tests' clients and SecantusDB.

No MongoDB can be installed for the tests, so SecantusDB stands in, which speaks as MongoDB does. It
refuses much by itself, with mongod's codes: unknown operators, variables and options, wrong numbers
of arguments, ``$toDate`` of an int32, what is not in the Stable API. What it takes more kindly than
mongod is refused here. The rules are for such commands as `telesession.mongo.MongoStore` sends.

As a program it runs SecantusDB and the proxy::

    python tests/mongod.py '{"port": 27017, "storage_path": "data"}'

In a test, a further `Proxy` before it can lose answers, and send requests twice::

    with Proxy(server.port) as proxy:
        proxy.lose = "update"
"""

import contextlib
import datetime
import json
import os
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bson

Command = dict[str, Any]

_HEAD = struct.Struct("<iiii")  # length, request, the request that is answered, kind
_OP_MSG = 2013
_MOST_LEVELS = 200
_NAMES = {
    15: "Overflow",
    20: "IllegalOperation",
    61: "ShardKeyNotFound",
    224: "QueryFeatureNotAllowed",
}


class Refused(Exception):
    """A command that mongod refuses, with its code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# Rules


def expr_in_upsert(command: Command) -> None:
    """``$expr`` is not allowed in the query of an upsert, at any depth (QueryFeatureNotAllowed).

    ``src/mongo/db/ops/parsed_update.cpp`` (3.6 to 7.0) and ``parsed_update_base.cpp`` (since 7.1);
    ``jstests/core/expr.js``.
    """
    for query, _, upsert in _updates(command):
        if upsert and _mentions(query, "$expr"):
            raise Refused(224, "$expr is not allowed in the query predicate for an upsert")


def field_names(command: Command) -> None:
    """A field that is set has a name in all of its parts, without ``$`` in front.

    ``FieldPath`` in ``src/mongo/db/pipeline/field_path.cpp``.
    """
    for stage in _set_stages(command):
        for path in stage:
            if "" in path.split("."):
                raise Refused(40352, "FieldPath cannot be constructed with empty string")
            if any(part.startswith("$") for part in path.split(".")):
                raise Refused(16410, "FieldPath field names may not start with '$'.")


def conflicting_paths(command: Command) -> None:
    """A stage sets a field or parts of it, not both.

    ``ProjectionSpecValidator`` in ``src/mongo/db/exec/add_fields_projection_executor.cpp`` (5.0 to
    8.0); the same in ``src/mongo/db/pipeline/parsed_aggregation_projection.cpp`` before.
    """
    for stage in _set_stages(command):
        for path in stage:
            for other in stage:
                if other.startswith(f"{path}."):
                    raise Refused(
                        40176,
                        "Invalid $set :: caused by :: specification contains two conflicting "
                        f"paths. Cannot specify both '{other}' and '{path}'",
                    )


def expression_of_one_operator(command: Command) -> None:
    """An object with an operator in it has nothing else.

    ``Expression::parseObject`` in ``src/mongo/db/pipeline/expression.cpp``.
    """
    for expression in _expressions(command):
        _check_expression(expression)


def _check_expression(value: Any) -> None:
    if isinstance(value, list):
        for part in value:
            _check_expression(part)
    elif isinstance(value, Mapping):
        if len(value) > 1 and any(key.startswith("$") for key in value):
            raise Refused(15983, "An object representing an expression must have exactly one field")
        for key, part in value.items():
            if key != "$literal":
                _check_expression(part)


def depth(command: Command) -> None:
    """A message has at most 200 levels (Overflow).

    ``BSONDepth::kDefaultMaxAllowableDepth`` in ``src/mongo/bson/bson_depth.h``; ``_pushFrame`` in
    ``src/mongo/bson/bson_validate.cpp``.
    """
    level: list[Any] = [command]
    for _ in range(_MOST_LEVELS):
        level = [
            part
            for each in level
            for part in (each.values() if isinstance(each, Mapping) else each)
            if isinstance(part, (Mapping, list))
        ]
        if not level:
            return
    raise Refused(15, "BSONObj exceeds maximum nested object depth")


def shard_key(command: Command) -> None:
    """What changes one document names its shard key, here ``_id`` (ShardKeyNotFound).

    On a collection that is sharded on ``_id``: ``cluster_find_and_modify_cmd.cpp`` in
    ``src/mongo/s/commands`` and ``chunk_manager_targeter.cpp`` in ``src/mongo/s``, up to 7.0; the
    page findAndModify of the manual, "Sharded Collections". For pipelines only: tests use modifiers
    to change what is stored.
    """
    queries = [query for query, update, _ in _updates(command) if isinstance(update, list)]
    if "delete" in command:
        queries += [each["q"] for each in command["deletes"] if each["limit"]]
    for query in queries:
        if isinstance(query.get("_id", {}), Mapping):
            raise Refused(61, "Query for sharded findAndModify must contain the shard key")


def transaction_number(command: Command) -> None:
    """A standalone refuses retryable writes (IllegalOperation).

    ``initializeOperationSessionInfo`` in ``src/mongo/db/initialize_operation_session_info.cpp``.
    """
    if "txnNumber" in command:
        raise Refused(20, "Transaction numbers are only allowed on a replica set member or mongos")


#: Refused in the answer to a statement of ``update`` or ``delete``, else in the command's.
STATEMENTS = (
    expr_in_upsert,
    field_names,
    conflicting_paths,
    expression_of_one_operator,
    shard_key,
)


def _updates(command: Command) -> Iterator[tuple[Command, Any, bool]]:
    if "findAndModify" in command:
        yield command.get("query", {}), command.get("update"), command.get("upsert", False)
    for each in command.get("updates", ()) if "update" in command else ():
        yield each["q"], each["u"], each.get("upsert", False)


def _set_stages(command: Command) -> Iterator[Command]:
    for _, update, _ in _updates(command):
        for stage in update if isinstance(update, list) else ():
            for name in ("$set", "$addFields"):
                if name in stage:
                    yield stage[name]


def _expressions(command: Command) -> Iterator[Any]:
    for stage in _set_stages(command):
        yield from stage.values()
    yield from command.get("fields", {}).values()
    yield from command.get("projection", {}).values()
    if "$expr" in command.get("filter", {}):
        yield command["filter"]["$expr"]


def _mentions(value: Any, key: str) -> bool:
    if isinstance(value, Mapping):
        return key in value or any(_mentions(part, key) for part in value.values())
    return isinstance(value, list) and any(_mentions(part, key) for part in value)


class Collations:
    """A collection's collation counts where a command names none, for ``_id`` as well.

    The pages Collation and create of the manual. SecantusDB uses a collation only if the command
    names it, and for an ``_id`` only within ``$and``.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Command] = {}

    def inherit(self, command: Command) -> bool:
        """Note a new collection's, or give a command its collection's; whether it was changed."""
        name = next(iter(command))
        place = command["$db"], command[name]
        if name == "create" and "collation" in command:
            self._of[place] = command["collation"]
        if name not in ("find", "findAndModify", "update", "delete") or place not in self._of:
            return False
        for part in command.get("updates") or command.get("deletes") or [command]:
            part.setdefault("collation", self._of[place])
            for key in ("query", "filter", "q"):
                if part.get(key):
                    part[key] = {"$and": [part[key]]}
        return True


# The proxy


class Proxy(socketserver.ThreadingTCPServer):
    """Passes messages on to the server on another port of loopback, and its answers back.

    Args:
        upstream: that server's port.
        port: its own, or any that is free.
        standalone: whether the server stands for one without a replica set.
        rules: whether to refuse what mongod refuses.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, upstream: int, port: int = 0, *, standalone: bool = False, rules: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.upstream = upstream
        self.port = int(self.server_address[1])
        self.rules = rules
        self.standalone = standalone
        self.collations = Collations()
        self.lose = ""  #: the name of a command; its next answer is lost
        self.twice = ""  #: the same, where the next request comes twice, and has the later answer

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def renamed(self, answer: bytes) -> bytes:
        """The server's answer, with the proxy's address for its own, which clients would use."""
        theirs, ours = (b"127.0.0.1:%d" % port for port in (self.upstream, self.port))
        assert len(theirs) == len(ours)
        return answer.replace(theirs, ours)

    def check(self, command: Command) -> None:
        """Raise `Refused` for what mongod refuses."""
        depth(command)
        if self.standalone:
            transaction_number(command)
        for rule in STATEMENTS:
            rule(command)


class _Connection(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with (
            contextlib.suppress(OSError, EOFError),
            socket.create_connection(("127.0.0.1", self.server.upstream)) as upstream,
        ):
            for each in (self.request, upstream):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._skip = self._lost = 0
            threading.Thread(target=self._answers, args=(upstream,), daemon=True).start()
            try:
                while True:
                    self._ask(_message(self.request), upstream)
            finally:
                upstream.shutdown(socket.SHUT_RDWR)

    def _ask(self, message: bytes, upstream: socket.socket) -> None:
        _, request, _, kind = _HEAD.unpack_from(message)
        if kind == _OP_MSG:
            command = _command(message)
            name = next(iter(command))
            if self.server.rules:
                try:
                    self.server.check(command)
                except Refused as refused:
                    self.request.sendall(_op_msg(request, _refusal(name, refused)))
                    return
                if self.server.collations.inherit(command):
                    message = _op_msg(0, command, request)
            if name == self.server.twice:
                self.server.twice = ""
                self._skip = 1
                upstream.sendall(message)
            if name == self.server.lose:
                self.server.lose = ""
                self._lost = 1
        upstream.sendall(message)

    def _answers(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                answer = self.server.renamed(_message(upstream))
                if self._skip:
                    self._skip = 0
                elif self._lost:
                    break
                else:
                    self.request.sendall(answer)
        for each in (self.request, upstream):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _refusal(name: str, refused: Refused) -> Command:
    error = {"code": refused.code, "errmsg": str(refused)}
    if name in ("update", "delete") and refused.code not in (15, 20):
        return {"ok": 1.0, "n": 0, "nModified": 0, "writeErrors": [{"index": 0, **error}]}
    return {"ok": 0.0, "codeName": _NAMES.get(refused.code, f"Location{refused.code}"), **error}


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, _HEAD.size)
    return head + _exactly(source, _HEAD.unpack(head)[0] - _HEAD.size)


def _exactly(source: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = source.recv(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _command(message: bytes) -> Command:
    """The command of an OP_MSG: a document, and sequences of documents that belong to it."""
    command: Command = {}
    place = _HEAD.size + 4
    while place < len(message):
        kind, size = message[place], _size(message, place + 1)
        section = message[place + 1 : place + 1 + size]
        if kind == 0:
            command = {**bson.decode(section), **command}
        else:
            name, _, documents = section[4:].partition(b"\0")
            command[name.decode()] = bson.decode_all(documents)
        place += 1 + size
    return command


def _size(message: bytes, place: int) -> int:
    return int(struct.unpack_from("<i", message, place)[0])


def _op_msg(answered: int, document: Command, request: int = 0) -> bytes:
    body = struct.pack("<iB", 0, 0) + bson.encode(document)
    return _HEAD.pack(_HEAD.size + len(body), request, answered, _OP_MSG) + body


def _step(file: Path) -> None:
    """Give the server's commands the clock that `servers.ServerClock` sets."""
    from secantus import aggregate, commands, storage

    class Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, datetime.datetime)

    class Stepped(datetime.datetime, metaclass=Kind):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=float(file.read_text()))

    for module in (aggregate, commands, storage):
        module._dt = SimpleNamespace(**{**vars(datetime), "datetime": Stepped})


def main() -> None:
    from secantus import SecantusDBServer

    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        _step(Path(os.environ["FAKETIME_TIMESTAMP_FILE"]))
    options = json.loads(sys.argv[1])
    server = SecantusDBServer(**{**options, "port": 0})
    server.start()
    standalone = options.get("replica_set_name", "") is None
    Proxy(server.port, options["port"], standalone=standalone, rules=True).serve_forever()


if __name__ == "__main__":
    main()
