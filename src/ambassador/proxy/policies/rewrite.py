"""Rewrite: the path and the host that the upstream sees, and the way back for `Location` (contract 7.15).

Phase SHAPE. The matched prefix is the literal beginning of the route's path pattern: all of `/v1/x`, `/v1` of `/v1/**`,
`/v1/accounts` of `/v1/accounts/{id}` (so that nothing the client said is lost), nothing of a regular expression.

What a regular expression makes of a path must still be a normalised path: one that a client's captured text turns into
a dot segment is refused, since it would lead out of where the config sends it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from ambassador.errors import BadRequest
from ambassador.proxy import path_regex
from ambassador.proxy.path import authority_host, normalise
from ambassador.settings import Host, Path, Regex, Section

if TYPE_CHECKING:
    from ambassador.messages import Fields, Request

KEEP = "keep"
"""The value of `host` that sends the client's own."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LITERAL = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-F]{2})*")
_ABSOLUTE = re.compile(rb"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


class Rewrite(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the request's target changes on its way. `prefix` and `regex` exclude each other. A `Location` of the
    upstream's own address becomes the client's view of it; without a `rewrite` it passes as it is.
    """

    prefix: Path | None = None
    """What takes the place of the matched prefix: with `path: /old/**` and `prefix: /new`, `/old/a` becomes `/new/a`.
    The prefix is the literal part of the path pattern, before the first parameter."""

    host: Host | None = None
    """The `Host` that is sent: a name, or `keep` for the client's own. Unset: the endpoint's."""

    regex: tuple[Regex, str] | None = None
    """`[pattern, substitution]`: every match in the path is replaced; `\\1` or `\\g<name>` is what a group matched."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Two rewrites, or one that cannot be."""
        if self.prefix is not None and self.regex is not None:
            yield "regex", "'prefix' and 'regex' exclude each other"
        if self.regex is not None:
            try:
                _regex_rewriter(*self.regex)
            except ValueError as error:
                yield "regex", f"cannot be used: {error}"


def path_rewriter(config: Rewrite | None, pattern: str | None) -> Callable[[Request], bytes] | None:
    """What gives the path to forward; None where it stays as it is. `pattern`: the route's path, None if it is unset
    or a regular expression.

    Raises ValueError for a regular expression or a substitution that cannot be used.
    """
    if config is None:
        return None
    if config.regex is not None:
        return _regex_rewriter(*config.regex)
    if config.prefix is not None:
        return _prefix_rewriter(literal_prefix(pattern), config.prefix)
    return None


def literal_prefix(pattern: str | None) -> str:
    """What `rewrite.prefix` replaces in paths of `pattern`: its segments before the first parameter or `/**`, without a
    slash at the end; empty for None.
    """
    if pattern is None:
        return ""
    segments = pattern.split("/")
    variable = (index for index, segment in enumerate(segments) if segment == "**" or segment[:1] == "{")
    return "/".join(segments[: next(variable, len(segments))]).rstrip("/")


def _prefix_rewriter(old: str, new: str) -> Callable[[Request], bytes]:
    cut = len(old)
    begin = new.rstrip("/").encode()

    def rewrite(request: Request) -> bytes:
        return begin + request.path[cut:] or b"/"

    return rewrite


def _regex_rewriter(pattern: str, substitution: str) -> Callable[[Request], bytes]:
    matcher = path_regex.compile(pattern, whole=False)
    parts = path_regex.substitution(substitution, matcher)
    for part in parts:
        if isinstance(part, str) and _LITERAL.fullmatch(part) is None:
            raise path_regex.Refused(f"the substitution holds {part!r}, which is not a path")

    def rewrite(request: Request) -> bytes:
        path = matcher.replace(request.path.decode("ascii"), parts).encode("ascii") or b"/"
        if normalise(path) != path:
            raise BadRequest("the path cannot be rewritten")
        return path

    return rewrite


def location_rewriter(
    config: Rewrite | None,
    pattern: str | None,
    endpoints: Sequence[str],
    found: Callable[[], Sequence[HasUrl]] | None = None,
) -> Callable[[Request, Fields], None] | None:
    """The hook that turns `Location` of the upstream's own address into the client's view of it; None for a route
    without `rewrite`, and where it leaves host and path as they are or the path cannot be put back (`host: keep`
    without a prefix). It is of use in answers with a 3xx status and 201.

    `endpoints`: the upstream's URLs; `found` gives further ones, always the same object until they change. Own
    addresses are these and the `Host` that is sent. Their scheme and authority become the request's; a path under
    `prefix` gets the matched prefix back, also in a `Location` that is only a path. Another path keeps its spelling.
    """
    if config is None or (config.host == KEEP and config.prefix is None):
        return None
    prefix = config.prefix
    own = _own_addresses(config, endpoints)
    others = _Found(found) if found is not None else own
    back = _way_back(literal_prefix(pattern), prefix.rstrip("/")) if prefix is not None else _unchanged

    def rewrite(request: Request, fields: Fields) -> None:
        for index, (name, value) in enumerate(fields):
            if len(name) == 8 and name.lower() == b"location":
                fields[index] = (name, _client_view(value, request, (own, others), back))

    return rewrite


class HasUrl(Protocol):
    """An endpoint."""

    @property
    def url(self) -> str:
        """As `settings.EndpointUrl`."""


class _Found:
    """The addresses of endpoints that come and go, read again when they have."""

    __slots__ = ("_addresses", "_endpoints", "_seen")

    def __init__(self, endpoints: Callable[[], Sequence[HasUrl]]) -> None:
        self._endpoints = endpoints
        self._seen: Sequence[HasUrl] | None = None
        self._addresses: frozenset[tuple[str, int] | None] = frozenset()

    def __contains__(self, address: object) -> bool:
        now = self._endpoints()
        if now is not self._seen:
            self._seen = now
            self._addresses = _addresses(each.url for each in now)
        return address is not None and address in self._addresses


def _addresses(urls: Iterable[str]) -> frozenset[tuple[str, int] | None]:
    return frozenset(
        _address(urlsplit(url).scheme, urlsplit(url).netloc.encode()) for url in urls if "://" in url
    )


def _own_addresses(config: Rewrite, endpoints: Sequence[str]) -> frozenset[tuple[str, int]]:
    addresses = set(_addresses(endpoints))
    if config.host not in (None, KEEP):
        addresses |= {_address(scheme, str(config.host).encode()) for scheme in _DEFAULT_PORTS}
    return frozenset(address for address in addresses if address is not None)


def _address(scheme: str, authority: bytes) -> tuple[str, int] | None:
    try:
        host, port = authority_host(authority)
    except BadRequest:
        return None
    return host, port or _DEFAULT_PORTS[scheme]


def _client_view(
    location: bytes,
    request: Request,
    own: Iterable[Container[tuple[str, int] | None]],
    back: Callable[[bytes], bytes],
) -> bytes:
    absolute = _ABSOLUTE.fullmatch(location)
    if absolute is not None:
        scheme, authority, rest = absolute.groups()
        address = _address(scheme.decode("ascii").lower(), authority)
        if not any(address in each for each in own):
            return location
        origin = request.scheme.encode() + b"://" + request.authority if request.authority else b""
        return origin + back(rest or b"/")
    if location[:1] == b"/" and location[:2] != b"//":
        return back(location)
    return location


def _unchanged(target: bytes) -> bytes:
    return target


def _way_back(old: str, new: str) -> Callable[[bytes], bytes]:
    begin = old.encode()
    under = re.compile(re.escape(new.encode()) + rb"(?=[/?#]|\Z)")

    def back(target: bytes) -> bytes:
        found = under.match(target)
        if found is None:
            return target
        rest = target[found.end() :]
        return begin + rest if begin or rest[:1] == b"/" else b"/" + rest

    return back
