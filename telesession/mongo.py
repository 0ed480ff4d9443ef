"""`MongoStore`: sessions in MongoDB, for many processes. `leases` waits, renews and undoes."""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

try:
    import bson
    from pymongo import ReadPreference, ReturnDocument
    from pymongo.collection import Collection
    from pymongo.errors import (
        DocumentTooLarge,
        DuplicateKeyError,
        ExecutionTimeout,
        InvalidOperation,
        NotPrimaryError,
        OperationFailure,
        ServerSelectionTimeoutError,
        WriteConcernError,
    )
    from pymongo.read_concern import ReadConcern
except ImportError as error:
    raise ImportError('MongoStore needs pymongo: pip install "telesession[mongo]"') from error

from telesession.codecs import JSON
from telesession.errors import SessionStoreError
from telesession.leases import Beat, Held, LeasingStore, identity, milliseconds
from telesession.stores import Change, Payload

_PAGE = 1000  # names that one query reads
_DEEPEST = 50  # levels of a session that is kept as a document; MongoDB allows a hundred

_NEVER_SENT = (ServerSelectionTimeoutError, InvalidOperation, DocumentTooLarge)


class MongoStore(LeasingStore):
    """Sessions in a collection of MongoDB 5 or later, one document for each.

    ::

        {
            "_id": "session:42:42",
            "session": {"n": 1},
            "expires": ISODate(...),          # with a ttl
            "lease": {                        # while a handler runs
                "token": "...", "request": "...", "beat": 1, "until": ISODate(...),
            },
            "released": {"token": "...", "request": "..."},    # the last lease before that
            "delete_at": ISODate(...),        # the later of both times, for the TTL index
        }

    ``session`` is a document if that gives exactly the same JSON again, else the JSON as a string
    (for numbers of more than 64 bits, and keys with ``.`` or ``$``), and binary where the codec
    makes bytes. Times are by the server's clock, on a sharded cluster by that of the mongos. An
    expired session is not read again, and MongoDB deletes it within a minute, as it does with the
    document of a session that was never stored and whose process died.

    An update takes two round trips for each of its sessions, since MongoDB changes one document in
    one step. The store sends these commands, all of them in the Stable API:

    * ``createIndexes`` once, for the TTL index;
    * ``findAndModify`` with ``upsert`` and a pipeline, by ``_id`` alone, to lease and read;
    * ``update`` with a pipeline, to save, renew and release, and ``delete`` for sessions that are
      removed or were never stored, both by ``_id`` and token;
    * ``find`` on the primary, for `keys`, `peek`, and to see why a write found no lease.

    The store uses the collection's own write concern. With less than ``"majority"``, a failover can
    lose the latest saves, and leases. A client that was connected before a fork works in the child,
    but pymongo warns of it: make it in the worker.

    The collection needs no preparation. It may be sharded on ``_id``. Where its collation takes two
    sessions' names as equal, the second is refused. The client's user needs the role ``readWrite``.
    The tests run on SecantusDB, not on MongoDB itself, and refuse there what the documentation and
    the source of MongoDB 5.0 to 8 refuse. Amazon DocumentDB and Azure Cosmos DB are not promised to
    work: we know of no statement that they take pipelines in updates.

    Args:
        collection: a ``pymongo.collection.Collection``.
        lease: seconds (or a `timedelta`) after which a session is free again if its process died.

    Raises:
        TypeError, ValueError: for a collection that can't work.
    """

    def __init__(self, collection: "Collection[Any]", *, lease: float | timedelta = 10.0) -> None:
        super().__init__(lease)
        if not isinstance(collection, Collection):
            raise TypeError(
                f"collection={collection!r} is no (blocking) pymongo collection: give one such as "
                "pymongo.MongoClient().my_bot.sessions"
            )
        if not collection.write_concern.acknowledged:
            raise ValueError(
                f"collection={collection!r} has writes that the server does not answer (w=0): "
                "nobody could tell whether a session was saved. Give one with another write_concern"
            )
        self.collection = collection
        self._documents: Collection[dict[str, Any]] = collection.with_options(
            codec_options=bson.CodecOptions(document_class=dict),
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("local"),
        )
        self._indexed = False
        self._term = {
            "beat": {"$add": [_BEAT, 1]},
            "until": {"$add": ["$$NOW", milliseconds(self.lease)]},
        }

    @property
    def identity(self) -> object:
        return identity(self.collection.database.client, self.collection.full_name)

    def __repr__(self) -> str:
        return f"MongoStore({self.collection.full_name})"

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        return [[name] for name in sorted(names)]

    def acquire(
        self, names: Sequence[str], token: str, waited: float, stale: Mapping[str, Beat]
    ) -> Sequence[Payload | None]:
        (name,) = names
        if not self._indexed:
            self._documents.create_index("delete_at", expireAfterSeconds=0)
            self._indexed = True
        mine = {"$eq": ["$lease.token", token]}
        free = [_is_over("$lease.until"), mine]
        if name in stale:
            held = [["$lease.token", _BEAT], [{"$literal": part} for part in stale[name]]]
            free.append({"$eq": held})
        # A late copy of this request must not lease again what was released. A replica set ensures
        # that itself for retryable writes, by their transaction numbers.
        request = secrets.token_hex(4)
        lease = _if(
            {"$and": [{"$ne": ["$released.request", request]}, {"$or": free}]},
            {"token": token, "request": request, **self._term},
            "$lease",
        )
        gone = {"$and": [mine, _EXPIRED]}
        try:
            found = self._documents.find_one_and_update(
                {"_id": name},
                [
                    {"$set": {"lease": lease}},
                    {"$set": {part: _if(gone, "$$REMOVE", f"${part}") for part in _CONTENT}},
                    _DELETE_AT,
                ],
                {"lease.token": 1, "lease.beat": 1, "session": _if(mine, "$session", "$$REMOVE")},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:
            found = None
        if found is None:  # another process inserted the document at the same moment
            raise Held(name)
        self._check(found, name)
        holder = found.get("lease", {})
        if holder.get("token") != token:
            raise Held(name, str(holder.get("token", "")), holder.get("beat", 0))
        return [_payload(found.get("session"))]

    def renew(self, names: Sequence[str], token: str) -> bool:
        (name,) = names
        return self._update(
            _mine(name, token), {f"lease.{part}": value for part, value in self._term.items()}
        )

    def write(
        self, names: Sequence[str], token: str, changes: Sequence[Change], *, release: bool = True
    ) -> bool:
        (name,) = names
        mine = _mine(name, token)
        released = {
            "lease": "$$REMOVE",
            "released": {"token": token, "request": "$lease.request"},
        }
        if changes and changes[0][1] is not None:
            _, payload, ttl = changes[0]
            expires = "$$REMOVE" if ttl is None else {"$add": ["$$NOW", milliseconds(ttl)]}
            content = {"session": {"$literal": _readable(payload)}, "expires": expires}
            if not release:
                return self._update(mine, content)
            return self._update(mine, content | released) or self._released(name, token, False)
        if not release:
            removed = dict.fromkeys(_CONTENT, "$$REMOVE")
            return self._update(mine, removed) if changes else self.renew(names, token)
        if not changes:
            if self._update(mine | {"session": {"$exists": True}}, released):
                return True
            # A late copy of `acquire` may lease a stored session between these two commands.
            mine |= {"session": {"$exists": False}}
        deleted = self._documents.delete_one(mine).deleted_count
        return bool(deleted) or self._released(name, token, True)

    def names(self, prefix: str) -> Iterator[str]:
        name = {"$regex": "^" + re.escape(prefix)}
        while True:
            page = [
                found["_id"]
                for found in self._documents.find(
                    {"_id": name, **_THERE},
                    {"_id": 1},
                    sort=[("_id", 1)],
                    limit=-_PAGE,  # negative: one answer, without a cursor that stays open
                )
            ]
            if not page:
                return
            yield from page
            name["$gt"] = page[-1]

    def peek(self, name: str) -> Payload | None:
        found = self._documents.find_one({"_id": name, **_THERE}, {"session": 1})
        if found is None:
            return None
        self._check(found, name)
        return _payload(found.get("session"))

    def refused(self, error: Exception) -> bool:
        if isinstance(error, (WriteConcernError, ExecutionTimeout)):
            return False
        if isinstance(error, OperationFailure):
            return not error.has_error_label("RetryableWriteError")
        return isinstance(error, _NEVER_SENT)

    def cure(self, error: Exception) -> str:
        code = _NOT_PRIMARY if isinstance(error, NotPrimaryError) else getattr(error, "code", 0)
        return _CURES.get(code or 0, "")

    def _update(self, where: dict[str, Any], values: dict[str, Any]) -> bool:
        return bool(self._documents.update_one(where, [{"$set": values}, _DELETE_AT]).matched_count)

    def _released(self, name: str, token: str, removed: bool) -> bool:
        """Whether a write that found no lease is a copy of one that was done before."""
        found = self._documents.find_one({"_id": name}, {"released.token": 1})
        return removed if found is None else found.get("released") == {"token": token}

    def _check(self, found: dict[str, Any], name: str) -> None:
        if found["_id"] != name:
            raise SessionStoreError(
                f"{name!r}: {self!r} answers with the session of {found['_id']!r}, since the "
                "collection has a collation that takes both as equal. Give MongoStore a collection "
                "without a collation.",
                name,
            )


def _if(condition: Any, this: Any, other: Any) -> dict[str, Any]:
    return {"$cond": [condition, this, other]}


def _is(field: str, kind: str) -> dict[str, Any]:
    return {"$eq": [{"$type": field}, kind]}


def _is_over(field: str) -> dict[str, Any]:
    """A condition: the date has passed, or is missing.

    Dates are compared as numbers, since SecantusDB takes ``$$NOW`` to be equal to every date.
    """
    return {"$lte": [{"$toLong": field}, {"$toLong": "$$NOW"}]}


def _mine(name: str, token: str) -> dict[str, Any]:
    return {"_id": name, "lease.token": token}


_CONTENT = ("session", "expires")
_BEAT = {"$ifNull": ["$lease.beat", 0]}
_EXPIRED = {"$and": [_is("$expires", "date"), _is_over("$expires")]}
#: Matches documents with a stored session that has not expired.
_THERE: dict[str, Any] = {"session": {"$exists": True}, "$expr": {"$not": [_EXPIRED]}}
_FOR_GOOD = {"$and": [{"$not": [_is("$session", "missing")]}, {"$not": [_is("$expires", "date")]}]}
_LATER = _if(
    {"$gt": [{"$toLong": "$expires"}, {"$toLong": "$lease.until"}]}, "$expires", "$lease.until"
)
#: The last stage of every update, for the TTL index.
_DELETE_AT: dict[str, Any] = {"$set": {"delete_at": _if(_FOR_GOOD, "$$REMOVE", _LATER)}}

_NOT_PRIMARY = 10107
#: Advice by MongoDB's error codes.
_CURES = {
    13: "Give the client's user the role readWrite on that database. ",
    61: "Shard the collection on _id. ",
    **dict.fromkeys((85, 86), "Drop the index delete_at_1, which is not as MongoStore makes it. "),
    _NOT_PRIMARY: "Let the client find the primary: name the replica set, and leave out "
    "directConnection. ",
}


def _readable(payload: Payload | None) -> Any:
    """The payload as a document, if that gives exactly the same payload again; else unchanged."""
    try:
        content = JSON.loads(payload)
        if isinstance(content, dict) and _storable(content, _DEEPEST):
            again = bson.decode(bson.encode({"": content}))[""]
            return content if JSON.dumps(again) == payload else payload
    except (ValueError, OverflowError, RecursionError, bson.errors.BSONError):
        pass
    return payload


def _storable(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        if any(not key or key.startswith("$") or "." in key for key in value):
            return False
        value = list(value.values())
    if isinstance(value, list):
        return depth > 0 and all(_storable(part, depth - 1) for part in value)
    return True


def _payload(found: Any) -> Payload | None:
    if found is None or isinstance(found, (str, bytes)):
        return found
    try:
        return JSON.dumps(found)
    except (TypeError, ValueError):  # telesession can't have written it
        return b""
