"""Redirect: an answer that sends the client elsewhere."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from ambassador.settings import Host, Section, Template


class Redirect(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to, and with which status. `location` says it whole; else `scheme`, `host`, `port` and `path` replace
    those parts of the request's own URL."""

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
