"""The request target: split, normalise, and the authority that goes with it (contract 7.14, RFC 3986, RFC 9112 3.2).

The normalised path is the one that is matched *and* forwarded, so that what a route was chosen for is what the
upstream sees. The rules, in the order they are applied:

- Raw control bytes, spaces, bytes over 0x7e, `#`, `?` and backslash are refused. A backslash is a slash to some servers
  and a letter to others, and no client sends it raw (browsers turn it into a slash).
- A percent escape must be two hex digits. Unreserved characters (RFC 3986 2.3) are decoded, so `%2e%2e` is `..`; every
  other escape is kept, with upper-case hex: `%2F`, `%5C` and `%00` are never decoded.
- Printable characters that RFC 3986 does not allow raw (`"<>[]^{|}` and the grave accent) are escaped, so that one path
  has one spelling.
- `.` and `..` segments are resolved; climbing above the root is refused. `//` is kept, and the empty segment between
  counts as a segment.
- `..;x` and `.;x` are refused: servers that strip path parameters read them as dot segments, after us.

`normalise` is idempotent. Every refusal is `errors.BadRequest`. The query is kept as it came; control characters,
spaces and fragments in it, which would break the request line, are refused.

Measured (CPython 3.11, one core): `normalise` 0.24 µs and `split_target` 0.1 to 0.18 µs for `/v1/accounts/42` without
and with a query, `authority_host` 0.04 µs from its cache; a path with an escape and a dot segment costs 1.7 µs.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from ambassador.errors import BadRequest

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

# What the fast path lets through untouched is RFC 3986's pchar and "/", without escapes and dot segments.
_NEEDS_WORK = re.compile(rb"[^A-Za-z0-9\-._~!$&'()*+,;=:@/]|/\.\.?(?:[/;]|\Z)")
_REFUSED = re.compile(rb"[\x00-\x20\x7f-\xff#?\\]")
_ESCAPABLE = re.compile(rb'%.{0,2}|["<>\[\]^`{|}]', re.DOTALL)
_DOT_SEGMENT = re.compile(rb"/\.\.?(?:/|\Z)")
_DOT_WITH_PARAMETERS = re.compile(rb"/\.\.?;")
_BREAKS_TARGET = re.compile(rb"[\x00-\x20\x7f#]")

_REG_NAME = re.compile(rb"[A-Za-z0-9_~-]+(?:\.[A-Za-z0-9_~-]+)*\.?")
_AUTHORITY = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/?#\\]+))(?::([0-9]{0,5}))?")
# RFC 1035 2.3.4: 255 octets on the wire, 253 as text, and the dot at the end.
_LONGEST_HOST = 254


def _replacements() -> dict[bytes, bytes]:
    table: dict[bytes, bytes] = {}
    for code in range(256):
        upper = b"%%%02X" % code
        plain = bytes([code]) if code in _UNRESERVED else upper
        high, low = upper[1:2], upper[2:3]
        for first in {high, high.lower()}:
            for second in {low, low.lower()}:
                table[b"%" + first + second] = plain
    for code in b'"<>[]^`{|}':
        table[bytes([code])] = b"%%%02X" % code
    return table


_REPLACEMENTS = _replacements()


def normalise(path: bytes) -> bytes:
    """The one spelling of `path` (no query) that is matched and forwarded; see the module's rules.

    Raises BadRequest for a path that is malformed, ambiguous, or climbs above the root.
    """
    if path[:1] != b"/":
        raise BadRequest("the path must begin with a slash")
    if _NEEDS_WORK.search(path) is None:
        return path
    return _normalise_slowly(path)


def _normalise_slowly(path: bytes) -> bytes:
    refused = _REFUSED.search(path)
    if refused is not None:
        raise BadRequest(f"the path holds the byte 0x{refused[0][0]:02x}, which must be percent-encoded")
    path = _ESCAPABLE.sub(_replace, path)
    if _DOT_WITH_PARAMETERS.search(path) is not None:
        raise BadRequest("the path holds a dot segment with parameters")
    if _DOT_SEGMENT.search(path) is not None:
        path = _resolve_dots(path)
    return path


def _replace(match: re.Match[bytes]) -> bytes:
    try:
        return _REPLACEMENTS[match[0]]
    except KeyError:
        raise BadRequest("the path holds an invalid percent escape") from None


def _resolve_dots(path: bytes) -> bytes:
    """Resolve `.` and `..` as RFC 3986 5.2.4 does, but refuse to climb above the root."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if not kept:
                raise BadRequest("the path climbs above the root")
            kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


def split_target(target: bytes) -> tuple[bytes | None, bytes, bytes | None]:
    """Split a request target into (authority, path, query); neither is decoded or normalised.

    origin-form (`/a?b`) has no authority; absolute-form (`http://host/a?b`, `https` too) has one, which replaces
    `Host` and is to be checked by `authority_host`; asterisk-form gives the path `*`, which only OPTIONS may use and
    which `normalise` refuses. The query is None without a `?`. Raises BadRequest for anything else, so also for the
    authority-form of CONNECT.
    """
    if target[:1] == b"/":
        authority = None
        rest = target
    elif target == b"*":
        return None, target, None
    else:
        authority, rest = _split_absolute(target)
    path, mark, query = rest.partition(b"?")
    if not mark:
        return authority, path, None
    if _BREAKS_TARGET.search(query) is not None:
        raise BadRequest("the query holds a control character, a space or a fragment")
    return authority, path, query


def _split_absolute(target: bytes) -> tuple[bytes, bytes]:
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise BadRequest("the request target is neither a path nor an http URL")
    end = re.search(rb"[/?#]", rest)
    if end is None:
        return rest, b"/"
    authority, tail = rest[: end.start()], rest[end.start() :]
    return authority, tail if tail[:1] == b"/" else b"/" + tail


@lru_cache(maxsize=1024)  # a client beside us speaks to few hosts; errors are not kept, and keys are short
def authority_host(value: bytes) -> tuple[str, int | None]:
    """The host, lower case and without a dot at the end, and the port (None: not said) of a `Host` or authority.

    IPv6 literals come back in brackets and compressed (`[::1]`). Raises BadRequest for an empty host, userinfo, a path,
    spaces, percent-encoding, zone identifiers, empty labels, and ports other than 1..65535.
    """
    match = _AUTHORITY.fullmatch(value)
    if match is None:
        raise BadRequest("the host is malformed")
    literal, name, digits = match.groups()
    return _ipv6_host(literal) if literal is not None else _named_host(name), _port(digits)


def _named_host(name: bytes) -> str:
    if len(name) > _LONGEST_HOST or _REG_NAME.fullmatch(name) is None:
        raise BadRequest("the host is malformed")
    return name.decode("ascii").lower().removesuffix(".")


def _ipv6_host(literal: bytes) -> str:
    try:
        return f"[{ipaddress.IPv6Address(literal.decode('ascii')).compressed}]"
    except ValueError:
        raise BadRequest("the host is not an IPv6 address") from None


def _port(digits: bytes | None) -> int | None:
    if not digits:  # "host:" is allowed by RFC 3986 3.2.3 and means the default port
        return None
    port = int(digits)
    if not 1 <= port <= 65535:
        raise BadRequest("the host's port is out of range")
    return port
