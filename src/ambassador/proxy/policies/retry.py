"""Retry: another attempt when one failed in a way that another can mend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from ambassador.settings import (
    BytesOrNone,
    CountOrNone,
    Fraction,
    Method,
    RetryCondition,
    Seconds,
    SecondsRange,
    Section,
)

KINDS = ("connect", "reset", "refused_stream", "timeout")
"""The failures without a status that `when` can name."""


class Budget(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many retries an upstream gets at most, so that retries cannot become the load that keeps it down."""

    later: ClassVar[Mapping[str, tuple[str, ...]]] = {"shared": ("false",)}
    shorthand: ClassVar[str | None] = "percent"

    percent: Fraction = 0.2
    """Retries in proportion to first attempts. Linkerd and Finagle: 20 %."""

    min_per_second: Annotated[float, Meta(ge=0)] = 10.0
    """Retries a second that are allowed whatever the proportion, so that a quiet route can retry at all."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a failed attempt is made again, how often, and after how long a wait."""

    shorthand: ClassVar[str | None] = "attempts"
    aliases: ClassVar[Mapping[str, str]] = {"on": "when"}

    attempts: Annotated[CountOrNone, Meta(le=10)] = 2
    """Extra attempts after the first. 0: none."""

    when: tuple[RetryCondition, ...] = ("connect", "refused_stream", "reset", "502-504")
    """What is tried again: `connect`, `reset`, `refused_stream`, `timeout`, statuses (`429`), ranges (`502-504`),
    classes (`5xx`)."""

    methods: Literal["idempotent", "all"] | tuple[Method, ...] = "idempotent"
    """Methods that are tried again: `idempotent` (GET, HEAD, OPTIONS, TRACE, PUT, DELETE, and any request with an
    `idempotency-key`), `all`, or a list. `connect` and `refused_stream` apply to every method, since the upstream
    has not seen the request."""

    backoff: SecondsRange = (0.025, 0.25)
    """Wait before a retry: a random time up to the first value, doubling with each attempt up to the second (full
    jitter). Envoy and Linkerd: 25 ms."""

    budget: Budget = Budget()
    """A bound on retries over all requests to the upstream."""

    buffer: BytesOrNone = 65536
    """A request body up to this size is kept so that it can be sent again; a longer one streams and is not replayed."""

    retry_after: Seconds | None = 300.0
    """The longest `Retry-After` of an upstream that is waited for. `off`: the header is not looked at."""

    @property
    def kinds(self) -> frozenset[str]:
        """The failures without a status that are tried again: a subset of `KINDS`."""
        return frozenset(self.when).intersection(KINDS)

    @property
    def statuses(self) -> frozenset[int]:
        """The statuses that are tried again, ranges and classes spelt out."""
        found: set[int] = set()
        for condition in self.when:
            if condition not in KINDS:
                low, high = status_range(condition)
                found.update(range(low, high + 1))
        return frozenset(found)


UNSET = Config(attempts=1, when=("connect", "refused_stream"))
"""What a route has that says nothing about retries: one more attempt where the upstream cannot have seen the first."""


def status_range(text: str) -> tuple[int, int]:
    """First and last status of `429`, `502-504` or `5xx`. ValueError if it is none of these."""
    if len(text) == 3 and text[1:].lower() == "xx" and text[0] in "12345":
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    low, _, high = text.partition("-")
    if not (_three_digits(low) and (_three_digits(high) or text == low)):
        raise ValueError(f"{text!r} is not a status, a range or a class of statuses")
    return int(low), int(high or low)


def _three_digits(text: str) -> bool:
    return len(text) == 3 and text.isascii() and text.isdigit()
