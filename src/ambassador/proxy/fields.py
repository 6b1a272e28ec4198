"""Sorting the fields of a head in one pass: what goes on untouched, and what the proxy itself must understand.

The kind of a name is remembered by its exact bytes (one dictionary hit a field, 30 ns); the memory is bounded, and a
client that invents names costs one `lower` each.

Hop-by-hop fields (RFC 9110 7.6.1) never pass, nor those that `Connection` names, except for the fields that the
receiver or our own policies depend on: a client cannot have them removed (Apache CVE-2022-31813).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    from ambassador.messages import Field, Fields

_PLAIN: Final = 0
_KEPT: Final = 1  # understood here and passed on as it stands
_TAKEN: Final = 2  # understood here, and not passed on (or written anew)
_DROPPED: Final = 3

_HOP_BY_HOP: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade",
    b"http2-settings",
})  # fmt: skip

_REQUEST: Final = dict.fromkeys(_HOP_BY_HOP, _TAKEN) | {
    b"host": _TAKEN,
    b"content-length": _KEPT,
    b"expect": _TAKEN,
    b"via": _TAKEN,
    b"max-forwards": _TAKEN,
    b"x-forwarded-for": _TAKEN,
    b"x-forwarded-proto": _TAKEN,
    b"x-forwarded-host": _TAKEN,
    b"x-real-ip": _TAKEN,
    b"forwarded": _TAKEN,
    b"x-request-id": _TAKEN,
    b"traceparent": _TAKEN,
    b"tracestate": _TAKEN,
    b"x-request-deadline": _TAKEN,
    b"x-envoy-upstream-rq-timeout-ms": _TAKEN,
    b"grpc-timeout": _TAKEN,
    b"idempotency-key": _KEPT,
    b"x-ambassador-attempt": _TAKEN,
    b"proxy-authorization": _DROPPED,
    b"proxy-authenticate": _DROPPED,
}

_RESPONSE: Final = dict.fromkeys(_HOP_BY_HOP, _TAKEN) | {
    b"content-length": _KEPT,
    b"date": _KEPT,
    b"location": _KEPT,
    b"retry-after": _KEPT,
    b"proxy-status": _KEPT,
    b"x-request-id": _TAKEN,
    b"proxy-authenticate": _DROPPED,
    b"proxy-authentication-info": _DROPPED,
}

_PROTECTED: Final = frozenset({
    b"host", b"content-length", b"authorization", b"cookie", b"set-cookie", b"x-api-key", b"forwarded", b"via",
    b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id", b"x-request-deadline",
    b"traceparent", b"tracestate", b"content-type", b"content-encoding", b"date", b"location", b"idempotency-key",
    b"cache-control",
})  # fmt: skip
"""Fields that a `Connection` header cannot have removed."""

CREDENTIALS: Final = (b"authorization", b"x-api-key", b"cookie", b"proxy-authorization")
"""Fields by which a client shows who it is. The last is for the proxy: it never passes."""
FORWARDED: Final = b"x-forwarded-"
"""What begins like this says where a request came from: only of trusted peers it is believed."""
_REMEMBERED: Final = 2048
OWS: Final = b" \t"
"""Blanks around a value, which are no part of it (RFC 9110 5.5)."""


class Sorter:
    """One table of kinds (requests, responses) with its bounded memory of exact names."""

    __slots__ = ("_by_lower", "_forwarded", "_kinds")

    def __init__(self, by_lower: dict[bytes, int], *, forwarded: int = _PLAIN) -> None:
        """`forwarded`: the kind of names with the prefix FORWARDED that have none of their own."""
        self._by_lower = by_lower
        self._forwarded = forwarded
        self._kinds: dict[bytes, tuple[int, bytes]] = {}

    def sort(self, headers: Fields) -> tuple[Fields, dict[bytes, bytes]]:
        """(fields to pass on, in order; fields that are understood, by lower-case name and stripped).

        A name that comes several times is joined with ", " in the second; `Host` joined so never parses as a host.
        """
        passing: Fields = []
        special: dict[bytes, bytes] = {}
        kinds = self._kinds
        for field in headers:
            known = kinds.get(field[0])
            if known is None:
                known = self._learn(field[0])
            kind, name = known
            if kind == _PLAIN:
                passing.append(field)
            elif kind != _DROPPED:
                value = field[1].strip(OWS)
                special[name] = special[name] + b", " + value if name in special else value
                if kind == _KEPT:
                    passing.append(field)
        if b"connection" in special:
            passing = _without_nominated(passing, special[b"connection"])
        return passing, special

    def _learn(self, name: bytes) -> tuple[int, bytes]:
        lower = name.lower()
        kind = self._by_lower.get(lower, _PLAIN)
        if lower.startswith(FORWARDED) and kind == _PLAIN:
            kind = self._forwarded
        elif (lower.startswith(b"x-ambassador-") and kind == _PLAIN) or (
            b"_" in lower and self._is_alias(lower.replace(b"_", b"-"))
        ):
            kind = _DROPPED
        if len(self._kinds) >= _REMEMBERED:
            self._kinds.clear()
        known = self._kinds[name] = (kind, lower)
        return known

    def _is_alias(self, hyphenated: bytes) -> bool:
        """CGI and its heirs (WSGI, PHP) read `X_Forwarded_For` as `X-Forwarded-For`: what is taken or dropped under
        its own name is dropped under this one, and so is a second `Content_Length`.
        """
        kind = self._by_lower.get(hyphenated, _PLAIN)
        return (
            kind in (_TAKEN, _DROPPED)
            or hyphenated == b"content-length"
            or hyphenated.startswith((b"x-ambassador-", FORWARDED))
        )


REQUEST_FIELDS: Final = Sorter(_REQUEST, forwarded=_TAKEN)
RESPONSE_FIELDS: Final = Sorter(_RESPONSE)


def _without_nominated(passing: Fields, connection: bytes) -> Fields:
    lower = connection.lower()
    if lower in (b"keep-alive", b"close"):
        return passing
    named = {token.strip(OWS) for token in lower.split(b",")} - _PROTECTED
    return [field for field in passing if field[0].lower() not in named]


_MESSAGE: Final = frozenset({
    "accept", "accept-encoding", "cache-control", "content-encoding", "content-type", "date", "range", "trailer",
    "user-agent",
})  # fmt: skip


def proves_nothing(name: str) -> bool:
    """Whether a request's field of this name, lower case, has a meaning of its own: it is no place for a credential,
    since clients, and proxies before this one, write it as they need it.
    """
    lower = folded(name.encode())
    return (
        _REQUEST.get(lower, _DROPPED) != _DROPPED
        or lower.decode() in _MESSAGE
        or lower.startswith((b"x-ambassador-", FORWARDED))
    )


def never_goes_on(name: str) -> bool:
    """Whether no request has a field of this name, lower case, when it is signed for the upstream."""
    lower = name.encode()
    return lower in _HOP_BY_HOP or lower == b"expect" or _REQUEST.get(lower) == _DROPPED


def tokens(value: bytes) -> set[bytes]:
    """The members of a comma-separated list of tokens, lower case."""
    return {token.strip(OWS) for token in value.lower().split(b",")}


_TRAILERS_REFUSED: Final = (
    _HOP_BY_HOP
    | _PROTECTED
    | {
        b"expect", b"trailer", b"max-forwards", b"range", b"content-range", b"pragma", b"www-authenticate",
        b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range",
        b"x-real-ip",
    }
)  # fmt: skip


def folded(name: bytes) -> bytes:
    """A field's name in any case, and with `_` for `-`, which CGI and WSGI cannot tell apart."""
    return name.lower().replace(b"_", b"-")


def wire_lines(fields: Fields) -> bytes:
    """Fields as HTTP/1 writes them, each line ended."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def clean_trailers(trailers: Fields, barred: Collection[bytes] = ()) -> Fields:
    """Trailers without framing, routing, credential and hop-by-hop fields (RFC 9110 6.5.1), nor those whose names,
    `folded`, are `barred`: who reads trailers as headers must not find there what was taken out of the head.
    """
    if not trailers:
        return trailers
    return [field for field in trailers if folded(field[0]) not in barred and _is_clean_trailer(field)]


def _is_clean_trailer(field: Field) -> bool:
    name = folded(field[0])
    return name not in _TRAILERS_REFUSED and not name.startswith(
        (b"x-ambassador-", b"proxy-", b"x-forwarded-")
    )
