"""Fault: delays and errors that are made here on purpose, to try what clients make of them.

Phase ADMIT, behind the limits: what is aborted never counts against an upstream or its breaker, and is not mended by a
retry or a fallback. A delay comes first and is part of the route's `total`; a client that leaves, or its own deadline,
ends it. Which requests are hit is drawn for each by itself. Semantics of Envoy's fault filter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from ambassador.errors import InjectedFault
from ambassador.settings import Fraction, Seconds, Section, Status

if TYPE_CHECKING:
    from ambassador.messages import Request, Waiter
    from ambassador.state.scope import Clock


class Delay(Section, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"for_": "for"}):
    """How many requests are held up, and for how long."""

    percent: Fraction = 1.0
    """The share of requests that wait."""

    for_: Seconds
    """How long each of them waits."""


class Abort(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many requests are refused, and with which status."""

    percent: Fraction = 1.0
    """The share of requests that are refused."""

    status: Status = 503
    """The status of the answer; its code is `fault`."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Faults for testing clients. Nothing is sent upstream for a request that is aborted."""

    delay: Delay | None = None
    """Hold some requests up. One that is also aborted waits first."""

    abort: Abort | None = None
    """Refuse some requests."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Nothing to do."""
        if self.delay is None and self.abort is None:
            yield None, "needs 'delay', 'abort' or both"


def injector(
    config: Config, clock: Clock, random: Callable[[], float]
) -> Callable[[Request], Awaitable[None] | None]:
    """The hook that delays and refuses requests of a route. Raises `InjectedFault` in one that is aborted.

    `random` gives numbers in [0, 1); it is asked once for each of the two faults that is set.
    """
    delay, abort = config.delay, config.abort
    failure = None if abort is None else InjectedFault.with_status(abort.status)

    def refuse() -> None:
        if failure is not None:
            raise failure("the config of this route asks for it")

    async def wait(waiter: Waiter, seconds: float, *, aborted: bool) -> None:
        until = clock.now + seconds
        while clock.now < until:
            await waiter.rest(until)
        if aborted:
            refuse()

    def inject(request: Request) -> Awaitable[None] | None:
        delayed = delay is not None and random() < delay.percent
        aborted = abort is not None and random() < abort.percent
        waiter = request.waiter
        if delayed and delay is not None and waiter is not None:
            return wait(waiter, delay.for_, aborted=aborted)
        if aborted:
            refuse()
        return None

    return inject
