"""Answers that are kept: what one is, what it is found by, and a bounded place for them.

An answer depends on all of the request that the upstream sees. So it is found by the target, by who asks, and by every
field that goes upstream, except those that by their standards say nothing about the answer, or of which `Vary` tells.
A field that nobody has heard of is part of the key: who sends a poisoned one gets it back, and nobody else does.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from ambassador.messages import ResponseHead
from ambassador.proxy import freshness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ambassador.messages import Fields, Request

_UNKEYED: Final = frozenset({
    b"accept", b"accept-charset", b"accept-encoding", b"accept-language", b"user-agent", b"referer", b"from", b"dnt",
    b"priority", b"cache-control", b"pragma", b"if-none-match", b"if-modified-since", b"content-length",
})  # fmt: skip
"""What content is negotiated by is told by `Vary`; the rest is about the client, or about the cache."""
_UNKEYED_FORWARDED: Final = frozenset({b"x-forwarded-for", b"x-real-ip"})
"""Else nobody would find what another has asked for."""
_NOT_KEPT: Final = frozenset({b"age", b"proxy-status", b"cache-status", b"content-length", b"warning"})
_NOT_RENEWED: Final = _NOT_KEPT | {b"content-encoding", b"content-type", b"content-range"}
_OVERHEAD: Final = 1024
"""Bytes of the objects around an answer, about."""
_PER_KEY: Final = 8
"""Variants of one answer, by `Vary`."""
_PART: Final = 8
"""One answer has at most so great a part of the place."""


class Key:
    """What an answer is found by: `uri` is the target, `who` a hash of all else, `fields` what `Vary` may name."""

    __slots__ = ("fields", "uri", "who")

    def __init__(self, request: Request, forwarded: Fields, ignored: frozenset[bytes] = frozenset()) -> None:
        """`forwarded`: what is told upstream of where the request comes from. `ignored`: names that the config says do
        not matter, lower case.
        """
        self.uri = uri_of(request)
        self.fields = freshness.by_name(request.headers)
        for name in request.spent:  # no part of what the upstream sees
            self.fields.pop(name, None)
        keyed = []
        for name, value in request.passing:
            lower = name.lower()
            if lower not in _UNKEYED and lower not in ignored:
                keyed.append((lower, value))
        keyed += [field for field in forwarded if field[0] not in _UNKEYED_FORWARDED]
        keyed.sort(key=lambda field: field[0])
        digest = hashlib.blake2b(digest_size=16)
        digest.update(b"%d %b\n" % (request.client is not None, (request.client or "").encode()))
        for name, value in keyed:
            digest.update(b"%d %d %b%b" % (len(name), len(value), name, value))
        self.who = digest.digest()


def uri_of(request: Request) -> bytes:
    """The target of a request, as it is written in the keys."""
    return target(request.authority, request.path, request.query)


def target(authority: bytes, path: bytes, query: bytes | None) -> bytes:
    """A target: the authority as the client wrote it but for its case, path and query."""
    return b"%b%b" % (authority.lower(), path if query is None else b"%b?%b" % (path, query))


class Kept:
    """An answer that is kept, whole. Ages are in seconds, times of the lane's clock."""

    __slots__ = (
        "_initial_age_s",
        "_since",
        "body",
        "head",
        "key",
        "said",
        "size",
        "vary",
    )

    def __init__(
        self,
        key: Key,
        head: ResponseHead,
        body: bytes,
        said: freshness.Said,
        *,
        now: float,
        age_s: float,
    ) -> None:
        """`said`: what `head` says. `age_s`: how old it was at `now`."""
        self.key = key
        self.body = body
        self.said = said
        self._take_head(head)
        self._since, self._initial_age_s = now, age_s
        self.vary = freshness.selected(freshness.vary_names(said.fields), key.fields)
        texts = [*self.head.passing, *key.fields.items()]
        self.size = (
            _OVERHEAD + len(body) + len(key.uri) + sum(len(name) + len(value) for name, value in texts)
        )

    def _take_head(self, head: ResponseHead) -> None:
        date = self.said.date
        passing = [field for field in head.passing if field[0].lower() not in _NOT_KEPT]
        if b"date" not in head.special:  # RFC 9110 6.6.1: who receives it without says when that was
            passing.append((b"date", date))
        if head.status != 204:
            passing.append((b"content-length", b"%d" % len(self.body)))
        self.head = ResponseHead(head.status, passing)
        self.head.reason = head.reason
        self.head.passing = passing
        self.head.special = {**head.special, b"date": head.special.get(b"date", date)}

    def renewed(
        self, head: ResponseHead, *, now: float, age_s: float, date: bytes, default_lifetime_s: float | None
    ) -> Kept:
        """The same answer after a 304 with this head (4.3.4): its fields replace those of their names (3.2)."""
        news = {name.lower() for name, _ in head.passing} - _NOT_RENEWED
        both = ResponseHead(self.head.status, [])
        both.reason = self.head.reason
        both.passing = [field for field in self.head.passing if field[0].lower() not in news | {b"date"}]
        both.passing += [field for field in head.passing if field[0].lower() in news]
        both.special = {name: value for name, value in self.head.special.items() if name != b"date"}
        if b"date" in head.special:
            both.special[b"date"] = head.special[b"date"]
        said = freshness.Said(both.status, both.passing, date=date, default_lifetime_s=default_lifetime_s)
        return Kept(self.key, both, self.body, said, now=now, age_s=age_s)

    def age_s(self, now: float) -> float:
        """Its age (4.2.3)."""
        return self._initial_age_s + now - self._since

    def left_s(self, now: float) -> float:
        """For how long it is fresh still; negative: since when it is stale."""
        return self.said.lifetime_s - self.age_s(now)

    def held_s(self, now: float) -> float:
        """Since when the upstream has not said anything else."""
        return now - self._since

    def answers(self, fields: Mapping[bytes, bytes]) -> bool:
        """Whether it is the variant for a request with these fields (4.1)."""
        return all(freshness.selected((name,), fields)[0][1] == value for name, value in self.vary)


class Shelf:
    """A place for answers, at most `most` bytes of them. What was not asked for the longest time goes first."""

    __slots__ = ("_by_uri", "_groups", "most", "recording", "size")

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0
        self.recording = 0
        """Bytes of bodies that are being recorded for it: at most as many again."""
        self._groups: OrderedDict[tuple[bytes, bytes], list[Kept]] = OrderedDict()
        self._by_uri: dict[bytes, set[bytes]] = {}

    @property
    def most_each(self) -> int:
        """The longest body of an answer that is kept, in bytes."""
        return self.most // _PART

    def find(self, key: Key) -> Kept | None:
        """The answer to a request, fresh or not."""
        name = (key.uri, key.who)
        for kept in self._groups.get(name, ()):
            if kept.answers(key.fields):
                self._groups.move_to_end(name)
                return kept
        return None

    def put(self, kept: Kept) -> None:
        """Keep an answer, in the place of what answered the same request before."""
        key = kept.key
        name = (key.uri, key.who)
        group = self._groups.get(name, [])
        for old in [each for each in group if each.answers(key.fields)]:
            self._remove(old)
        if kept.size > self.most:
            return
        group = self._groups.setdefault(name, [])
        if len(group) >= _PER_KEY:
            self._remove(group[0])
            group = self._groups.setdefault(name, [])
        group.append(kept)
        self._groups.move_to_end(name)
        self._by_uri.setdefault(key.uri, set()).add(key.who)
        self.size += kept.size
        while self.size > self.most:
            oldest = next(iter(self._groups.values()))
            self._remove(oldest[0])

    def forget(self, uri: bytes) -> None:
        """Nothing of this target holds any more."""
        for who in list(self._by_uri.get(uri, ())):
            for kept in list(self._groups[uri, who]):
                self._remove(kept)

    def _remove(self, kept: Kept) -> None:
        name = (kept.key.uri, kept.key.who)
        group = self._groups[name]
        group.remove(kept)
        self.size -= kept.size
        if not group:
            del self._groups[name]
            users = self._by_uri[kept.key.uri]
            users.discard(kept.key.who)
            if not users:
                del self._by_uri[kept.key.uri]

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))


class Shelves:
    """All shelves of a worker, by name: they outlive its tables.

    What stands on a shelf holds only for what it was made for. `terms` says what that is: with other terms, or another
    bound, the table that is being made has an empty shelf.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, Shelf]] = {}

    def get(self, name: str, terms: object, most: int) -> Shelf:
        """The shelf of this name, for a table that is being made."""
        known = self._known.get(name)
        return known[1] if known is not None and known[0] == terms and known[1].most == most else Shelf(most)

    def install(self, shelves: Mapping[str, tuple[object, Shelf]]) -> None:
        """These are the shelves of the table that is served from now on, with their terms."""
        self._known = dict(shelves)


class Recording:
    """The body of an answer while it passes, for one or more shelves.

    `takers`: each with who gets the body in the end, or None as soon as it is clear that there is none: it is longer
    than the shelf takes, or all that is being recorded for the shelf is more than it holds.
    """

    __slots__ = ("_pieces", "_size", "_takers")

    def __init__(self, takers: list[tuple[Shelf, Callable[[bytes | None], None]]]) -> None:
        self._takers = takers
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes | memoryview) -> bool:
        """Take a piece. False: nobody wants any of it any more."""
        before = self._size
        self._size += len(data)
        for taker in tuple(self._takers):
            shelf, take = taker
            if self._size > shelf.most_each or shelf.recording + len(data) > shelf.most:
                self._takers.remove(taker)
                shelf.recording -= before
                take(None)
            else:
                shelf.recording += len(data)
        if not self._takers:
            self._pieces.clear()
            return False
        self._pieces.append(bytes(data))
        return True

    def end(self, *, whole: bool) -> None:
        """That was all. `whole`: and it can be kept."""
        body = b"".join(self._pieces) if whole else None
        for take in self._let_go():
            take(body)

    def abandon(self) -> None:
        """The end will not come; whoever waits for it learns of that otherwise."""
        self._let_go()

    def _let_go(self) -> list[Callable[[bytes | None], None]]:
        takers, self._takers = self._takers, []
        for shelf, _ in takers:
            shelf.recording -= self._size
        self._pieces.clear()
        return [take for _, take in takers]
