"""Respond: a fixed answer, made here.

Phase ADMIT: nothing goes upstream. The body is encoded once; each answer gets its own list of headers, which later
hooks edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

from msgspec import field

from ambassador.messages import Reply
from ambassador.proxy import template
from ambassador.proxy.framing import refusals
from ambassador.settings import HeaderName, Section, Status, Template

if TYPE_CHECKING:
    from ambassador.messages import Fields, Request


class Respond(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer that every request of the route gets."""

    shorthand: ClassVar[str | None] = "status"

    status: Status = 200
    """The status."""

    body: str = ""
    """The body, sent as UTF-8. Without a `content-type` in `headers` it is `text/plain; charset=utf-8`."""

    headers: dict[HeaderName, Template] = field(default_factory=dict)
    """Headers of the answer. Values as in `headers` of the route."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """A header that is the proxy's own, or a body where there can be none."""
        for name, problem in refusals(self.headers):
            yield f"headers.{name}", problem
        if self.body and self.status in (204, 304):
            yield "body", f"an answer with status {self.status} has no body"


def responder(config: Respond) -> Callable[[Request], Reply]:
    """The hook that answers every request of the route. A header whose value cannot be made is left out."""
    status = config.status
    body = config.body.encode()
    made = [(name.encode(), template.compile(value)) for name, value in config.headers.items()]
    if body and not any(name.lower() == b"content-type" for name, _ in made):
        made.append((b"content-type", b"text/plain; charset=utf-8"))

    def respond(request: Request) -> Reply:
        headers: Fields = []
        for name, value in made:
            made_value = value if isinstance(value, bytes) else value(request)
            if made_value is not None:
                headers.append((name, made_value))
        return Reply(status, headers, body)

    return respond
