"""`MongoStore`: sessions in a MongoDB collection, safe for many processes, over pymongo."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

try:
    import bson
    from pymongo import ReadPreference, ReturnDocument
    from pymongo.collection import Collection
    from pymongo.errors import DuplicateKeyError
except ImportError as error:
    raise ImportError('MongoStore needs pymongo: pip install "telesession[mongo]"') from error

from telesession.codecs import JSON
from telesession.leases import Beat, Held, LeasingStore, foreign, identity, milliseconds
from telesession.stores import Change, Payload

_PAGE = 1000  # names that are read at once
_DEEPEST = 50  # levels of a document, of which MongoDB allows a hundred


class MongoStore(LeasingStore):
    """Sessions in a collection of MongoDB 5 or later, one document for each.

    ::

        {
            "_id": "session:42:42",
            "session": {"n": 1},
            "expires": ISODate(...),          # with a ttl
            "lease": {"token": "...", "until": ISODate(...)},   # while a handler runs
            "delete_at": ISODate(...),        # the later of both, for the TTL index
        }

    ``session`` is a document if that gives the very same JSON again, else the JSON as a string
    (for numbers of more than 64 bits, and keys with ``.`` or ``$``), and binary where the codec
    makes bytes. Times are those of the server's clock. The TTL index is made when the collection
    is first used; what expired is not read again, and MongoDB deletes it within a minute.

    An update takes two round trips for each of its sessions: what MongoDB changes in one step is
    one document.

    Args:
        collection: a ``pymongo.collection.Collection``.
        lease: seconds (or a `timedelta`) after which a session is free again if its process died.
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
        )
        self._identity = identity(collection.database.client, collection.full_name)
        self._indexed = False
        self._until = {"$add": ["$$NOW", milliseconds(self.lease)]}

    @property
    def identity(self) -> object:
        return self._identity

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
        free = {"$or": [{"$eq": ["$lease.token", token]}, _is_over("$lease.until")]}
        content = {
            field: {"$cond": [_EXPIRED, "$$REMOVE", f"${field}"]}
            for field in ("session", "expires")
        }
        lease = {"lease": {"token": token, "until": self._until}}
        try:
            found = self._documents.find_one_and_update(
                {"_id": name, "$expr": free},
                [{"$set": content | lease}, _DELETE_AT],
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:  # it is there, and not free
            raise Held(name) from None
        if found is None:  # others inserted it at this very moment
            raise Held(name)
        return [_payload(name, found.get("session"))]

    def renew(self, names: Sequence[str], token: str) -> bool:
        (name,) = names
        return self._update(_mine(name, token), {"lease.until": self._until})

    def write(
        self, names: Sequence[str], token: str, changes: Sequence[Change], *, release: bool = True
    ) -> bool:
        (name,) = names
        mine = _mine(name, token)
        if changes and changes[0][1] is not None:
            _, payload, ttl = changes[0]
            expires = "$$REMOVE" if ttl is None else {"$add": ["$$NOW", milliseconds(ttl)]}
            content = {"session": {"$literal": _readable(payload)}, "expires": expires}
            return self._update(mine, content | (_RELEASED if release else {}))
        if not release:
            removed = {"session": "$$REMOVE", "expires": "$$REMOVE"}
            return self._update(mine, removed) if changes else self.renew(names, token)
        if not changes and self._update(mine | {"session": {"$exists": True}}, _RELEASED):
            return True
        return bool(self._documents.delete_one(mine).deleted_count)

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the stored sessions that begin with ``prefix``, each once."""
        name = {"$regex": "^" + re.escape(prefix)}
        while True:
            page = [
                found["_id"]
                for found in self._documents.find(
                    {"_id": name, **_THERE},
                    {"_id": 1},
                    sort=[("_id", 1)],
                    limit=_PAGE,
                    batch_size=_PAGE,  # no cursor stays open
                )
            ]
            yield from page
            if len(page) < _PAGE:
                return
            name["$gt"] = page[-1]

    def peek(self, name: str) -> Payload | None:
        """What is stored of a session, without a lease."""
        found = self._documents.find_one({"_id": name, **_THERE}, {"session": 1})
        return None if found is None else _payload(name, found.get("session"))

    def _update(self, where: dict[str, Any], values: dict[str, Any]) -> bool:
        return bool(self._documents.update_one(where, [{"$set": values}, _DELETE_AT]).matched_count)


def _has(field: str) -> dict[str, Any]:
    return {"$ne": [{"$type": field}, "missing"]}


def _is_over(field: str) -> dict[str, Any]:
    """Whether a date has passed; so has one that isn't there."""
    return {"$lte": [{"$toLong": field}, {"$toLong": "$$NOW"}]}


def _mine(name: str, token: str) -> dict[str, Any]:
    return {"_id": name, "lease.token": token, "$expr": {"$not": [_is_over("$lease.until")]}}


_EXPIRED = {"$and": [_has("$expires"), _is_over("$expires")]}
#: Of documents with a session that can be read.
_THERE: dict[str, Any] = {"session": {"$exists": True}, "$expr": {"$not": [_EXPIRED]}}
_RELEASED: dict[str, Any] = {"lease": "$$REMOVE"}
_FOR_GOOD = {"$and": [_has("$session"), {"$not": [_has("$expires")]}]}
_LATER = {"$toDate": {"$max": [{"$toLong": "$expires"}, {"$toLong": "$lease.until"}]}}
#: The last stage of every update.
_DELETE_AT: dict[str, Any] = {
    "$set": {"delete_at": {"$cond": [_FOR_GOOD, "$$REMOVE", _LATER]}},
}


def _readable(payload: Payload | None) -> Any:
    """A document, where that gives the very same payload again."""
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


def _payload(name: str, found: Any) -> Payload | None:
    if found is None or isinstance(found, (str, bytes)):
        return found
    try:
        if isinstance(found, dict):
            return JSON.dumps(found)
    except (TypeError, ValueError):
        pass
    raise foreign(
        [name],
        "the collection",
        "Give MongoStore a collection of its own, or correct or delete the document.",
    )
