"""What a route is at run time: bound functions and numbers, made once when a config is loaded.

`config.compile` makes these; an exchange reads them. Nothing changes after that but counters of the upstream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ambassador.proxy.upstream.balance import pick

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from ambassador.messages import Fields, Reply, Request
    from ambassador.proxy.policies.retry import RetryPolicy
    from ambassador.proxy.upstream.endpoint import Endpoint

    AdmitHook = Callable[[Request], Reply | Awaitable[Reply | None] | None]
    ShapeHook = Callable[[Request, Fields], None]


class RouteMetrics(Protocol):
    """Where an exchange counts. Each call is one or two additions in shared memory."""

    def settled(self, status_class: int, seconds: float) -> None:
        """A request ended: `status_class` 1..5, over its whole life."""

    def attempt(self, result: str, seconds: float) -> None:
        """An attempt ended, from its first byte to the answer's end."""

    def retry(self, reason: str) -> None:
        """An attempt follows another because of `reason`."""


class Upstream:
    """A service: its endpoints and how one is picked."""

    __slots__ = ("_random", "endpoints", "name")

    def __init__(self, name: str, endpoints: Sequence[Endpoint], random: Callable[[], float]) -> None:
        self.name = name
        self.endpoints = endpoints
        self._random = random

    def pick(self, tried: Collection[Endpoint]) -> Endpoint:
        """An endpoint for the next attempt, not one of `tried` if there is another. Raises `NoEndpoint`."""
        return pick(self.endpoints, tried, self._random)


class Timeouts:
    """Seconds; infinity where there is no limit."""

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
        self.total = total
        self.total_body = total_body
        self.idle = idle


class RoutePlan:
    """One route. `upstream` is None where `admit` always answers (redirect, respond)."""

    __slots__ = (
        "admit", "host", "keep_host", "map_location", "metrics", "name", "retry", "rewrite", "shape_request", "shape_response",
        "timeouts", "upstream",
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
        rewrite: Callable[[Request], bytes] | None = None,
        host: bytes | None = None,
        keep_host: bool = False,
        shape_request: Sequence[ShapeHook] = (),
        shape_response: Sequence[ShapeHook] = (),
        map_location: ShapeHook | None = None,
    ) -> None:
        self.name = name
        self.upstream = upstream
        self.timeouts = timeouts
        self.retry = retry
        self.metrics = metrics
        self.admit = admit
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
