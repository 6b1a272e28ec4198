"""Respond: a fixed answer, made here."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from ambassador.settings import HeaderName, Section, Status, Template


class Respond(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer that every request of the route gets."""

    shorthand: ClassVar[str | None] = "status"

    status: Status = 200
    """The status."""

    body: str = ""
    """The body, sent as UTF-8. Without a `content-type` in `headers` it is `text/plain; charset=utf-8`."""

    headers: dict[HeaderName, Template] = field(default_factory=dict)
    """Headers of the answer. Values as in `headers` of the route."""
