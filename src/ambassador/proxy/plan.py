"""What a route is at run time: bound functions and numbers, made once when a config is loaded.

`config.compile` makes these; an exchange reads them. Nothing changes after that but its upstream.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol

from ambassador.proxy.methods import SAFE
from ambassador.proxy.soonest import Soonest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ambassador.messages import Fields, Reply, Request, ResponseHead
    from ambassador.proxy.content import Contents
    from ambassador.proxy.policies.access import Access
    from ambassador.proxy.policies.breaker import Breaker
    from ambassador.proxy.policies.cache import Cache
    from ambassador.proxy.policies.fallback import Fallback
    from ambassador.proxy.policies.hedge import Hedge
    from ambassador.proxy.policies.limit import LimitPolicy
    from ambassador.proxy.policies.retry import RetryPolicy
    from ambassador.proxy.upstream.upstream import Upstream

    AdmitHook = Callable[[Request], Reply | Awaitable[Reply | None] | None]
    ShapeHook = Callable[[Request, Fields], None]
    SpoilHook = Callable[[Request, ResponseHead], None]


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

    def cached(self, result: str) -> None:
        """A request was at the route's cache: `hit`, `validated`, `coalesced` or `miss`."""

    def replayed(self) -> None:
        """A repeat with an idempotency key got the answer of the first."""

    @property
    def answered(self) -> int:
        """Attempts that were answered so far, with whatever status."""


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
    """One route. `upstream` is None where `admit` always answers (redirect, respond). `barred_up` and `barred_down` are
    the names, `folded`, that no trailer has that goes on.
    """

    __slots__ = (
        "access", "admit", "answer_within_s", "barred_down", "barred_up", "cache", "content", "credential", "elsewhere", "ending", "ending_at", "failing", "fallback", "gates", "hedge", "host",
        "keep_host", "keeps", "limit", "map_location", "metrics", "name", "of_caller", "retry", "rewrite", "shape_request", "shape_response", "soonest", "spoil", "timeouts", "upstream",
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
        fallback: Fallback | None = None,
        elsewhere: RoutePlan | None = None,
        cache: Cache | None = None,
        spoil: SpoilHook | None = None,
        hedge: Hedge | None = None,
        content: Contents | None = None,
        access: Access | None = None,
        barred_up: frozenset[bytes] = frozenset(),
        barred_down: frozenset[bytes] = frozenset(),
    ) -> None:
        self.name = name
        self.upstream = upstream
        self.timeouts = timeouts
        self.answer_within_s = min(timeouts.total, timeouts.per_try, timeouts.first_byte, timeouts.total_body)
        """How long a first attempt may wait for the head of its answer."""
        self.ending_at = -1.0
        self.ending = b""
        """What ends the head of a plain request that began at `ending_at`: its deadline, the upstream's credential."""
        self.retry = retry
        self.fallback = fallback
        """What to do when all attempts failed."""
        self.elsewhere = elsewhere
        """The same towards the upstream that is then asked once, if there is one."""
        self.cache = cache
        self.spoil = spoil
        """Called when a request of this route has changed something: what caches keep of it ends."""
        self.keeps = spoil is not None or self.keeps_of("GET")
        """Whether anything of an answer may be kept, or end what is."""
        self.failing = frozenset[int]() if retry is None else retry.statuses
        """Statuses with which an answer is perhaps not the one to give."""
        if fallback is not None:
            self.failing |= fallback.statuses
        self.credential = None if upstream is None else upstream.credential
        if self.credential is not None and self.credential.renewable:
            self.failing |= {401}
        self.of_caller = any(
            each is not None and each.of_caller
            for each in (self.credential, None if elsewhere is None else elsewhere.credential)
        )
        """An upstream is shown something that is made of the caller's `Authorization`."""
        self.metrics = metrics
        self.access = access
        """Who may call; asked before `admit`. None: everybody."""
        self.admit = admit
        self.limit = limit
        """The route's limits, which have a hook in `admit`: what answers say of them."""
        self.rewrite = rewrite
        """Gives the path to forward; None: the normalised path as it is."""
        self.host = host
        """The Host to send; None: the endpoint's own."""
        self.keep_host = keep_host
        """Send the client's Host."""
        self.shape_request, self.shape_response = shape_request, shape_response
        self.barred_up, self.barred_down = barred_up, barred_down
        self.map_location = map_location
        """Called for answers with a `Location`, before the other response hooks."""
        self.gates = gates
        """Breakers of the route and of its upstream, outermost first; those of endpoints are `Endpoint.gate`."""
        self.hedge = hedge
        self.content = content
        """What an answer is looked at for before it is passed on."""
        self.soonest = Soonest()
        """What an attempt takes at least."""

    def cannot_finish(self, left_s: float, now: float) -> bool:
        """Whether an attempt that has so many seconds left is sure not to be answered in time."""
        return left_s <= 0 or left_s < self.soonest.least_s(now, self.metrics.answered)

    def keeps_of(self, method: str) -> bool:
        """Whether an answer to this method may be kept, or end what is."""
        if method not in SAFE:
            return self.spoil is not None
        return self.cache is not None or (self.fallback is not None and self.fallback.last_good is not None)

    def end_heads(self, now: float, wall_s: float) -> bool:
        """Work out `ending` for requests that begin now: the same for all of a batch of the lane. False: the upstream's
        credential is not in hand.
        """
        credential = b""
        if self.credential is not None:
            line = self.credential.line()
            if line is None:
                return False
            credential = line
        self.ending_at = now
        total = self.timeouts.total
        deadline = b"" if total == inf else b"\r\nx-request-deadline: %.3f" % (wall_s + total)
        self.ending = b"%b%b\r\n\r\n" % (deadline, credential)
        return True
