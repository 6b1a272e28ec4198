"""What a route is at run time: bound functions and numbers, made once when a config is loaded.

`config.compile` makes these; an exchange reads them. Nothing changes after that but counters of the upstream.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol

from ambassador.proxy.upstream.balance import pick, standing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from ambassador.messages import Fields, Reply, Request
    from ambassador.proxy.policies.breaker import Breaker
    from ambassador.proxy.policies.cooldown import Cooldown
    from ambassador.proxy.policies.limit import LimitPolicy
    from ambassador.proxy.policies.retry import RetryPolicy
    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.state.scope import Clock

    AdmitHook = Callable[[Request], Reply | Awaitable[Reply | None] | None]
    ShapeHook = Callable[[Request, Fields], None]


class RouteMetrics(Protocol):
    """Where an exchange counts. Each call is one or two additions in shared memory."""

    def settled(self, status_class: int, seconds: float) -> None:
        """A request ended: `status_class` 1..5, over its whole life."""

    def attempt(self, result: str, seconds: float) -> None:
        """An attempt ended, from its first byte to the answer's end."""

    def single(self, status: int, seconds: float, attempt_seconds: float) -> None:
        """A request ended that took one attempt."""

    def retry(self, reason: str) -> None:
        """An attempt follows another because of `reason`."""


class Upstream:
    """A service: its endpoints and how one is picked."""

    __slots__ = (
        "__weakref__", "_clock", "_followers", "_random", "charge", "cooldown", "endpoints", "make_endpoint", "measured", "name",
        "only", "shut",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        random: Callable[[], float],
        clock: Clock | None = None,
        *,
        charge: Callable[[Request], Awaitable[None] | None] | None = None,
        make_endpoint: Callable[[str], Endpoint] | None = None,
    ) -> None:
        self.name = name
        self.charge = charge
        """Charges an attempt to the upstream's own limits, directly before its first byte: as an ADMIT hook. None: it
        has none."""
        self.make_endpoint = make_endpoint
        """Makes an endpoint for a URL as `schema.Endpoint.url` has it, for `set_endpoints`. None: they never change."""
        self._followers: list[Callable[[Upstream], None]] = []
        self.endpoints: Sequence[Endpoint] = ()
        self.only: Endpoint | None = None
        """The one endpoint that there is: nothing to pick."""
        self.measured = False
        """Whether the outcome of every attempt is told to its endpoint (`Endpoint.settled`)."""
        self.shut = 0
        """Endpoints whose breaker is not simply closed, and those that are paused: while it is 0, all are alike."""
        self.cooldown: Cooldown | None = None
        self._random = random
        self._clock = clock
        self._take(endpoints)

    def pick(self, tried: Collection[Endpoint]) -> Endpoint:
        """An endpoint for the next attempt, not one of `tried` if there is another. Raises `NoEndpoint`."""
        return pick(self._standing() if self.shut else self.endpoints, tried, self._random)

    def pick_or_none(self) -> Endpoint | None:
        """An endpoint for a first attempt, None when there is none."""
        if not self.endpoints:
            return None
        return pick(self._standing() if self.shut else self.endpoints, (), self._random)

    def refresh(self) -> None:
        """Work out again who is to be picked: health, ejection, outlier watch, zone or priority of an endpoint changed.

        Not for breakers and pauses, which `shut` counts.
        """
        self.measured = len(self.endpoints) > 1 or any(each.outlier is not None for each in self.endpoints)

    def follow(self, told: Callable[[Upstream], None]) -> None:
        """Have `told` called after each `set_endpoints`, before anything is picked: it knows endpoints by urls."""
        self._followers.append(told)

    def set_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        """These are the endpoints from now on, made by `make_endpoint`; none are allowed.

        One whose URL is known stays the same object, with its connections, counts and latency, and takes weight, zone
        and priority of the new one. What is gone takes no new requests; those in flight on it end undisturbed.
        """
        known = {endpoint.url: endpoint for endpoint in self.endpoints}
        kept = []
        for endpoint in endpoints:
            old = known.pop(endpoint.url, None)
            if old is not None:
                old.weight, old.zone, old.priority = endpoint.weight, endpoint.zone, endpoint.priority
            kept.append(old or endpoint)
        self._take(kept)
        for tell in self._followers:
            tell(self)
        for gone in known.values():
            gone.pool.retire()

    def _take(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self.only = endpoints[0] if len(endpoints) == 1 else None
        self.refresh()

    def _standing(self) -> Sequence[Endpoint]:
        assert self._clock is not None
        return standing(self.endpoints, self._clock.now)


class Timeouts:
    """Seconds; infinity where there is no limit. `total` is never longer than `total_body`, which ends an answer whose
    head has not come as well.
    """

    __slots__ = ("connect", "first_byte", "idle", "per_try", "total", "total_body")

    def __init__(
        self,
        *,
        connect: float,
        first_byte: float,
        per_try: float,
        total: float,
        total_body: float,
        idle: float,
    ) -> None:
        self.connect = connect
        self.first_byte = first_byte
        self.per_try = per_try
        self.total = min(total, total_body)
        self.total_body = total_body
        self.idle = idle


class RoutePlan:
    """One route. `upstream` is None where `admit` always answers (redirect, respond)."""

    __slots__ = (
        "admit", "answer_within_s", "deadline", "deadline_at", "gates", "host", "keep_host", "limit", "map_location",
        "metrics", "name", "retried", "retry", "rewrite", "shape_request", "shape_response", "timeouts", "upstream",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        upstream: Upstream | None,
        timeouts: Timeouts,
        retry: RetryPolicy | None,
        metrics: RouteMetrics,
        admit: Sequence[AdmitHook] = (),
        limit: LimitPolicy | None = None,
        rewrite: Callable[[Request], bytes] | None = None,
        host: bytes | None = None,
        keep_host: bool = False,
        shape_request: Sequence[ShapeHook] = (),
        shape_response: Sequence[ShapeHook] = (),
        map_location: ShapeHook | None = None,
        gates: tuple[Breaker, ...] = (),
    ) -> None:
        self.name = name
        self.upstream = upstream
        self.timeouts = timeouts
        self.answer_within_s = min(timeouts.total, timeouts.per_try, timeouts.first_byte, timeouts.total_body)
        """How long a first attempt may wait for the head of its answer."""
        self.deadline_at = -1.0
        self.deadline = b""
        """What ends the head of a plain request that began at `deadline_at`."""
        self.retry = retry
        self.retried = frozenset[int]() if retry is None else retry.statuses
        self.metrics = metrics
        self.admit = admit
        self.limit = limit
        """The route's limits, which have a hook in `admit`: what answers say of them."""
        self.rewrite = rewrite
        """Gives the path to forward; None: the normalised path as it is."""
        self.host = host
        """The Host to send; None: the endpoint's own."""
        self.keep_host = keep_host
        """Send the client's Host."""
        self.shape_request = shape_request
        self.shape_response = shape_response
        self.map_location = map_location
        """Called for answers with a `Location`, before the other response hooks."""
        self.gates = gates
        """Breakers of the route and of its upstream, outermost first; those of endpoints are `Endpoint.gate`."""

    def set_deadline(self, now: float, wall_s: float) -> None:
        """Work out `deadline` for requests that begin now: one line for all of a batch of the lane."""
        self.deadline_at = now
        total = self.timeouts.total
        self.deadline = (
            b"\r\n\r\n" if total == inf else b"\r\nx-request-deadline: %.3f\r\n\r\n" % (wall_s + total)
        )
