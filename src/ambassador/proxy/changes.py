"""Targets that requests of unsafe methods have changed (RFC 9111 4.4): what the replica's caches keep of them ends.

The worker that passes the answer on ends what its own caches keep, at once. The others are told by the replica's store:
a named value that nobody reads and that is gone in a moment, for the event that comes of it.

The rules that hold here
- Nothing waits for it: the others know about a round trip after the client.
- One message of a worker is under way at most, and what changes meanwhile goes with the next: so the store gets no more
  than one operation for each round trip, however many requests there are. `_MOST_WAITING` targets wait; beyond, those
  that have waited for longest are not told. RFC 9111 asks for nothing of all this: what is not told, as what a lost
  event would have told, ends with its freshness.
- Other replicas are not told.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from ambassador.proxy.freshness import by_name
from ambassador.proxy.shelf import target, uri_of
from ambassador.state.protocol import Put, decode_named

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ambassador.messages import Request, ResponseHead
    from ambassador.state.protocol import Answer, Event
    from ambassador.state.scope import Scope

_KIND: Final = "changed"
_TTL_MS: Final = 1000
_MOST_TOLD: Final = 256
"""Targets in one message, and `_MOST_BYTES` of them: hearing it takes a worker some 0.1 ms for each cache."""
_MOST_BYTES: Final = 32 * 1024
_MOST_WAITING: Final = 4096

_encode: Final = msgspec.msgpack.Encoder().encode
_DECODER: Final = msgspec.msgpack.Decoder(list[bytes])


class Cache(Protocol):
    """What keeps answers."""

    def forget(self, uris: Collection[bytes]) -> None:
        """Nothing of these targets holds any more."""


def changed(request: Request, head: ResponseHead) -> list[bytes]:
    """The targets that a request with this answer has changed: its own, and what the answer names on the same host."""
    uris = [uri_of(request)]
    fields = by_name(head.passing)
    for name in (b"location", b"content-location"):
        if name in fields:
            uris += _same_host(request.authority, fields[name])
    return uris


class Changes:
    """What one worker tells and hears. `teller` is unique to this worker and this life of it."""

    __slots__ = ("__weakref__", "_asking", "_caches", "_name", "_store", "_stores", "_waiting")

    def __init__(self, *, teller: str = "worker") -> None:
        self._name = f"{_KIND}:{teller}"
        self._caches: Sequence[Cache] = ()
        self._store: Scope | None = None
        self._stores: set[Scope] = set()
        self._waiting: dict[bytes, None] = {}
        self._asking = False

    def install(self, caches: Sequence[Cache], store: Scope) -> None:
        """These are the caches of the table that is served from now on, and `store` is the replica's."""
        self._caches = caches
        self._store = store if caches else None
        if caches and store not in self._stores:
            self._stores.add(store)
            store.listen("value", self._heard)

    def spoiler(self, caches: Sequence[Cache]) -> Callable[[Request, ResponseHead], None] | None:
        """What a table with these caches is to call for each change that passes; None: there is nothing to end."""
        return partial(self._spoil, caches) if caches else None

    def _spoil(self, caches: Sequence[Cache], request: Request, head: ResponseHead) -> None:
        uris = changed(request, head)
        for cache in caches:
            cache.forget(uris)
        for uri in uris:
            if len(uri) <= _MOST_BYTES:
                self._waiting[uri] = None
        while len(self._waiting) > _MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._tell()

    def _tell(self) -> None:
        if self._asking or not self._waiting:
            return
        if self._store is None:
            self._waiting.clear()
            return
        self._asking = True
        value = _encode(self._next())
        self._store.ask(Put(self._name, value, ttl_ms=_TTL_MS, publish=True), self._answered)

    def _next(self) -> list[bytes]:
        """As much as goes into a message, the first first."""
        uris: list[bytes] = []
        size = 0
        for uri in self._waiting:
            size += len(uri)
            if len(uris) == _MOST_TOLD or (uris and size > _MOST_BYTES):
                break
            uris.append(uri)
        for uri in uris:
            del self._waiting[uri]
        return uris

    def _answered(self, _: Answer | None) -> None:
        self._asking = False
        self._tell()

    def _heard(self, event: Event) -> None:
        if not event.name.startswith(f"{_KIND}:") or event.name == self._name:
            return
        try:
            uris = _DECODER.decode(decode_named(event.body).value)
        except msgspec.MsgspecError:
            return  # of another version
        for cache in self._caches:
            cache.forget(uris)


def _same_host(authority: bytes, reference: bytes) -> list[bytes]:
    """The target that a `Location` names, if it is on the same host (4.4). Of paths only absolute ones."""
    scheme, colon, rest = reference.partition(b"://")
    if colon:
        host, slash, path = rest.partition(b"/")
        if scheme.lower() not in (b"http", b"https") or host.lower() != authority.lower():
            return []
        reference = slash + path
    if not reference.startswith(b"/"):
        return []
    path, mark, query = reference.partition(b"#")[0].partition(b"?")
    return [target(authority, path, query if mark else None)]
