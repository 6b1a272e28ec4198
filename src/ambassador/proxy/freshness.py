"""HTTP caching as arithmetic: what a shared cache may store, for how long it is fresh, and when it matches (RFC 9111).

Pure: times come as arguments. Where fields contradict each other or cannot be read, the answer counts as less fresh,
never as more. Section numbers are those of RFC 9111.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ambassador.messages import Fields

Directives: TypeAlias = "Mapping[bytes, bytes | None]"
"""The members of `Cache-Control`, by lower-case name."""

STORABLE: Final = frozenset({200, 203, 204, 300, 301, 302, 307, 308, 404, 410})
"""Answers that are stored: final, whole, and of no partial content."""
DEFAULT_STORABLE: Final = frozenset({200, 301, 308})
"""Of those, the ones that a configured lifetime holds for when they say nothing themselves. nginx: 200, 301, 302."""
_MEMBER: Final = re.compile(rb'[\s,]*([^\s,;="]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^\s,"]*))?[^,]*')
_AGES: Final = frozenset({b"max-age", b"s-maxage", b"min-fresh"})
_LARGEST_S: Final = 2**31  # 1.2.2: what cannot be held counts as this


def by_name(fields: Fields) -> dict[bytes, bytes]:
    """Fields by lower-case name, their values stripped; repeated ones joined with a comma (RFC 9110 5.3)."""
    found: dict[bytes, bytes] = {}
    for field in fields:
        name, value = field[0].lower(), field[1].strip(b" \t")
        found[name] = found[name] + b", " + value if name in found else value
    return found


def cache_control(value: bytes | None) -> dict[bytes, bytes | None]:
    """The directives of a `Cache-Control` field (5.2); None: there is none.

    An age that is there twice is the shorter one (4.2.1 lets a cache choose).
    """
    found: dict[bytes, bytes | None] = {}
    for match in _MEMBER.finditer(value or b""):
        name, argument = match[1].lower(), match[2]
        if argument is not None and argument.startswith(b'"'):
            argument = re.sub(rb"\\(.)", rb"\1", argument[1:-1])
        if name in found and name in _AGES:
            argument = min(argument, found[name], key=seconds)
        found[name] = argument
    return found


def seconds(value: bytes | None) -> int:
    """A number of seconds (1.2.2). What is none is 0: stale at once (4.2.1)."""
    if value is None or not value.isdigit():
        return 0
    return min(int(value), _LARGEST_S) if len(value) < 12 else _LARGEST_S


def date_s(value: bytes | None) -> float | None:
    """An HTTP date in unix seconds; None if it is none."""
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value.decode("ascii")).timestamp()
    except (ValueError, TypeError, OverflowError, UnicodeDecodeError):
        return None


def lifetime_s(directives: Directives, fields: Mapping[bytes, bytes], came: bytes) -> float | None:
    """How long an answer is fresh for a shared cache, from its making (4.2.1); None: it does not say.

    `no-cache` is 0: it may be used again only when validated. `came`: the HTTP date of its coming, for one that has no
    `Date` (RFC 9110 6.6.1).
    """
    if b"no-cache" in directives:
        return 0.0
    for name in (b"s-maxage", b"max-age"):
        if name in directives:
            return float(seconds(directives[name]))
    if b"expires" not in fields:
        return None
    expires, date = date_s(fields[b"expires"]), date_s(fields.get(b"date", came))
    if expires is None or date is None:
        return 0.0
    return max(0.0, expires - date)


def initial_age_s(fields: Mapping[bytes, bytes], *, wall_s: float, delay_s: float) -> float:
    """The age of an answer when it came (4.2.3). `delay_s`: how long after the request; `wall_s`: unix seconds."""
    date = date_s(fields.get(b"date"))
    apparent = 0.0 if date is None else max(0.0, wall_s - date)
    said = seconds(fields.get(b"age", b"").partition(b",")[0].strip())
    return max(apparent, said + delay_s)


def may_store(
    status: int, directives: Directives, fields: Mapping[bytes, bytes], *, authorized: bool
) -> bool:
    """Whether a shared cache may store an answer to GET (3), `authorized`: to a request with `Authorization` (3.5).

    Answers that set cookies, or that vary by what no field tells, are never stored.
    """
    if status not in STORABLE or not may_share(directives, fields):
        return False
    return not authorized or not directives.keys().isdisjoint((b"public", b"s-maxage", b"must-revalidate"))


def may_share(directives: Directives, fields: Mapping[bytes, bytes]) -> bool:
    """Whether an answer may be given to another request at all, even one with the same credentials at the same time."""
    return (
        directives.keys().isdisjoint((b"no-store", b"private"))
        and b"set-cookie" not in fields
        and b"set-cookie2" not in fields
        and b"content-range" not in fields
        and b"*" not in vary_names(fields)
    )


class Said:
    """What the head of an answer says of its being kept: read once, for all that ask."""

    __slots__ = ("date", "directives", "fields", "lifetime_s", "status")

    def __init__(
        self, status: int, fields: Fields, *, date: bytes, default_lifetime_s: float | None = None
    ) -> None:
        """`date`: the time of day when it came. `default_lifetime_s`: how long one is fresh that says nothing of it;
        None: not at all.
        """
        self.status = status
        self.fields = by_name(fields)
        self.directives = cache_control(self.fields.get(b"cache-control"))
        self.date = self.fields.get(b"date", date)
        lifetime = lifetime_s(self.directives, self.fields, date)
        if lifetime is None and status in DEFAULT_STORABLE:
            lifetime = default_lifetime_s
        self.lifetime_s = lifetime or 0.0

    def may_share(self) -> bool:
        """Whether it may be given to another request of the same client with the same credentials."""
        return may_share(self.directives, self.fields)

    def may_store(self, *, authorized: bool) -> bool:
        """Whether it may be kept, `authorized`: as the answer to a request with `Authorization`."""
        return may_store(self.status, self.directives, self.fields, authorized=authorized)

    def is_public(self, *, authorized: bool) -> bool:
        """Whether it may be given to others as it is: what a cache may keep, and need not ask about at once."""
        return self.lifetime_s > 0 and self.may_store(authorized=authorized)


def may_be_stale(directives: Directives) -> bool:
    """Whether an answer may be used when it is not fresh any more and cannot be validated (4.2.4)."""
    return directives.keys().isdisjoint((b"no-cache", b"must-revalidate", b"proxy-revalidate", b"s-maxage"))


def allows(directives: Directives, *, age_s: float, left_s: float) -> bool:
    """Whether a request with these directives takes an answer of this age that is fresh for so long (5.2.1)."""
    if b"no-cache" in directives:
        return False
    if b"max-age" in directives and age_s > seconds(directives[b"max-age"]):
        return False
    return b"min-fresh" not in directives or left_s >= seconds(directives[b"min-fresh"])


def vary_names(fields: Mapping[bytes, bytes]) -> tuple[bytes, ...]:
    """The request's fields that the answer depends on, lower case and in order (RFC 9110 12.5.5)."""
    names = {name.strip().lower() for name in fields.get(b"vary", b"").split(b",")}
    return tuple(sorted(names - {b""}))


def selected(
    names: Iterable[bytes], request: Mapping[bytes, bytes]
) -> tuple[tuple[bytes, bytes | None], ...]:
    """The values of a request's fields by which an answer is selected (4.1), without space around their members."""
    return tuple((name, _normal(request.get(name))) for name in names)


def _normal(value: bytes | None) -> bytes | None:
    return None if value is None else b",".join([part.strip() for part in value.split(b",")])


def is_unchanged(stored: Mapping[bytes, bytes], request: Mapping[bytes, bytes]) -> bool:
    """Whether a conditional request has the stored answer already: 304 (4.3.2; RFC 9110 13.1.2, 13.1.3)."""
    wanted = request.get(b"if-none-match")
    if wanted is not None:
        etag = stored.get(b"etag")
        if wanted == b"*":
            return True
        return etag is not None and _opaque(etag) in [_opaque(each) for each in _TAG.findall(wanted)]
    since, changed = date_s(request.get(b"if-modified-since")), date_s(stored.get(b"last-modified"))
    return since is not None and changed is not None and changed <= since


_TAG: Final = re.compile(rb'(?:W/)?"[^"]*"')


def _opaque(etag: bytes) -> bytes:
    return etag.removeprefix(b"W/")


def conditions(stored: Mapping[bytes, bytes]) -> Fields:
    """The fields that ask whether a stored answer still holds (4.3.1); none if it has no validator."""
    fields: Fields = []
    if b"etag" in stored:
        fields.append((b"if-none-match", stored[b"etag"]))
    if b"last-modified" in stored:
        fields.append((b"if-modified-since", stored[b"last-modified"]))
    return fields
