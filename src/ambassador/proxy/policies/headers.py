"""Headers: set, add and remove headers of requests and answers."""

from __future__ import annotations

from msgspec import field

from ambassador.settings import HeaderName, Section, Template


class Changes(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes to one message's headers: first `remove`, then `set`, then `add`."""

    set: dict[HeaderName, Template] = field(default_factory=dict)
    """Headers that replace all of the same name."""

    add: dict[HeaderName, Template] = field(default_factory=dict)
    """Headers that are added to those of the same name."""

    remove: tuple[HeaderName, ...] = ()
    """Names of headers that are taken out."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Headers of the request that goes upstream and of the answer that goes to the client.

    Values may hold `{client}`, `{request_id}`, `{route}` and `{param.NAME}` (a parameter of the path pattern);
    `{{` and `}}` are braces."""

    request: Changes | None = None
    """Changes to the request, made for each attempt."""

    response: Changes | None = None
    """Changes to the answer."""
