"""Redirect: an answer that sends the client elsewhere.

Phase ADMIT: nothing goes upstream. Parameters are put in as the path spells them, percent-escapes kept. A target that
is a path never begins with two slashes, whatever the request's path: clients would read a host there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from msgspec import Meta

from ambassador.errors import BadRequest
from ambassador.messages import Reply
from ambassador.proxy import template
from ambassador.settings import Host, Section, Template

if TYPE_CHECKING:
    from ambassador.messages import Request

Target: TypeAlias = "Callable[[Request], bytes]"


class Redirect(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to, and with which status. `location` says it whole; else `scheme`, `host`, `port` and `path` replace
    those parts of the request's own URL.
    """

    shorthand: ClassVar[str | None] = "location"

    location: Template | None = None
    """The whole target: a URL, or a path on the same host. Values as in `headers`. Sent as it is, without the
    request's query."""

    scheme: Literal["http", "https"] | None = None
    """The scheme of the target."""

    host: Host | None = None
    """The host of the target."""

    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    """The port of the target; unset: the scheme's own when `scheme` or `host` is given, else the request's."""

    path: Template | None = None
    """The path of the target. Values as in `headers`."""

    query: Literal["keep", "drop"] = "keep"
    """Whether the request's query goes along."""

    status: Literal[301, 302, 303, 307, 308] = 308
    """The status: 308 and 301 are remembered by clients, 307 and 302 are not; 307 and 308 keep the method."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """No target, or two."""
        parts = [part for part in ("scheme", "host", "port", "path") if getattr(self, part) is not None]
        if self.location is None and not parts:
            yield None, "needs 'location', or one of 'scheme', 'host', 'port' and 'path'"
        if self.location is not None and parts:
            yield parts[0], f"'location' is the whole target, so '{parts[0]}' has no place"
        if self.path is not None and not self.path.startswith("/"):
            yield "path", "must begin with '/'"


def redirector(config: Redirect) -> Callable[[Request], Reply]:
    """The hook that answers with the redirect. Raises BadRequest in a request for which no target can be made."""
    status = config.status
    target = _parts_target(config) if config.location is None else _location_target(config.location)

    def redirect(request: Request) -> Reply:
        return Reply(status, [(b"location", target(request))])

    return redirect


def _location_target(location: str) -> Target:
    value = _value(location)
    if location.startswith("//"):  # the config means a host
        return value
    return lambda request: _one_slash(value(request))


def _value(text: str) -> Target:
    made = template.compile(text, decode=False)
    if isinstance(made, bytes):
        return lambda _request: made

    def value(request: Request) -> bytes:
        result = made(request)
        if result is None:
            raise BadRequest("the redirect's target cannot be made from this request")
        return result

    return value


def _one_slash(target: bytes) -> bytes:
    return b"/" + target.lstrip(b"/") if target.startswith(b"//") else target


def _parts_target(config: Redirect) -> Target:
    origin = _origin(config)
    path = _path if config.path is None else _value(config.path)
    keep_query = config.query == "keep"

    def target(request: Request) -> bytes:
        query = b"?" + request.query if keep_query and request.query is not None else b""
        begin = origin(request)
        return begin + (path(request) if begin else _one_slash(path(request))) + query

    return target


def _path(request: Request) -> bytes:
    return request.path


def _origin(config: Redirect) -> Target:
    """Scheme and authority of the target; nothing where they stay, so that a TLS terminator in front is not undone."""
    if config.scheme is None and config.host is None and config.port is None:
        return lambda _request: b""
    own_port = config.scheme is None and config.host is None

    def origin(request: Request) -> bytes:
        host = config.host or request.host
        if not host:
            raise BadRequest("a redirect needs the Host header")
        port = config.port or (request.port if own_port else None)
        authority = host if port is None else f"{host}:{port}"
        return f"{config.scheme or request.scheme}://{authority}".encode()

    return origin
