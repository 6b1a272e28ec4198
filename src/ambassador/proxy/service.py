"""What all connections of a worker share: the table in force, the instance's name, logs, counters, the time of day."""

from __future__ import annotations

import random
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, Protocol

from ambassador.errors import BadRequest, NoRoute, Overloaded
from ambassador.messages import Reply
from ambassador.observe.trace import Tracer
from ambassador.proxy.forwarding import Via
from ambassador.proxy.path import authority_host, normalise, split_target
from ambassador.proxy.splice import SplicePool

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from ambassador.messages import Request
    from ambassador.observe.access_log import AccessLog
    from ambassador.observe.metrics import WorkerMetrics
    from ambassador.proxy.clients.who import Clients
    from ambassador.proxy.lane import Lane
    from ambassador.proxy.plan import RouteMetrics, RoutePlan
    from ambassador.proxy.policies.limit import LimitPolicy
    from ambassador.proxy.routing import Router
    from ambassador.proxy.upstream.upstream import Upstream
    from ambassador.proxy.upstream.via import Proxy

    Taker = Callable[[Sequence["Server"], Mapping[str, Sequence[str]]], None]


_HANDSHAKES_A_TURN: Final = 4
"""A signature takes 0.1 ms (P-256) to 1 ms (RSA): of 64 clients that come at once, requests would wait for all."""


class Server(Protocol):
    """An endpoint that was found while the service runs; as `upstream.endpoint.Endpoint` has these."""

    @property
    def url(self) -> str:
        """`http://host:port`, or `unix:/path`."""

    @property
    def weight(self) -> int:
        """At least 1."""

    @property
    def zone(self) -> str:
        """Empty where it has none."""

    @property
    def priority(self) -> int:
        """0 is used first."""


class Table:
    """One generation of the config, compiled. Requests keep the table they began with."""

    __slots__ = (
        "_begins",
        "_proxies",
        "_takers",
        "clients",
        "debug_headers",
        "limits",
        "router",
        "unrouted",
        "upstreams",
    )

    def __init__(
        self,
        router: Router[RoutePlan],
        upstreams: Mapping[str, Upstream],
        *,
        unrouted: RouteMetrics,
        limits: Sequence[LimitPolicy] = (),
        takers: Mapping[Hashable, Sequence[Taker]] | None = None,
        debug_headers: bool = False,
        clients: Clients | None = None,
        proxies: Sequence[Proxy] = (),
        begins: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._begins = begins
        self._takers = takers or {}
        self._proxies = proxies
        self.router = router
        self.upstreams = upstreams
        self.unrouted = unrouted
        """Counts requests that no route took."""
        self.limits = limits
        """All there are, of routes and of upstreams."""
        self.debug_headers = debug_headers
        self.clients = clients
        """Who may ask; None: nobody is to be told from others."""

    def locate(self, request: Request) -> RoutePlan:
        """The route that takes a request, which learns its host, path, query and parameters.

        Raises `BadRequest`, `NoRoute`.
        """
        authority, path, request.query = split_target(request.target)
        if authority is not None:
            request.authority = authority
            request.lines = None
        if request.authority or request.minor:
            request.host, request.port = authority_host(request.authority)
        if path == b"*":
            if request.method != "OPTIONS":
                raise BadRequest("only OPTIONS has the target *")
            request.path = b"/*"
        else:
            request.path = normalise(path)
        found = self.router.match(request.host, request.path.decode("ascii"), request.method, request)
        if found is None:
            raise NoRoute(f"no route takes {request.method} on host {request.host or '-'!r} and this path")
        plan, request.params = found
        return plan

    def set_addresses(self, host: str, addresses: Sequence[str]) -> None:
        """A name has other addresses now."""
        for proxy in self._proxies:
            if proxy.host == host:
                proxy.addresses = addresses
        for upstream in self.upstreams.values():
            found = [endpoint for endpoint in upstream.endpoints if endpoint.dialled[0] == host]
            for endpoint in found:
                endpoint.resolve(addresses)
            if found:
                upstream.refresh()

    def inherit(self, other: Table) -> None:
        """Go on with what is known from the table before: of endpoints, whose upstreams have the same names, and of
        calendar quotas.
        """
        quotas = {limit.id: limit for policy in other.limits for limit in policy.limits}
        for policy in self.limits:
            for limit in policy.limits:
                if limit.id in quotas:
                    limit.inherit(quotas[limit.id])
        for name, upstream in self.upstreams.items():
            if name in other.upstreams:
                upstream.inherit(other.upstreams[name])

    def take_found(
        self, source: Hashable, servers: Sequence[Server], addresses: Mapping[str, Sequence[str]]
    ) -> None:
        """A source has found these servers (`config.discover`), whose names have these addresses."""
        for take in self._takers.get(source, ()):
            take(servers, addresses)

    def begin(self) -> None:
        """It is served from now on: what policies share with the table before and with other workers is taken up."""
        begins, self._begins = self._begins, ()
        for begin in begins:
            begin()

    def retire(self) -> None:
        """No request begins with this table any more: unused connections go, and leased tokens are given back."""
        for limit in self.limits:
            limit.retire()
        for upstream in self.upstreams.values():
            for endpoint in upstream.endpoints:
                endpoint.pool.retire()


class Service:
    """One worker's data plane. `random` gives numbers in [0, 1)."""

    __slots__ = (
        "_date",
        "_date_at",
        "_handshakes",
        "_overload",
        "_turn",
        "_wall_offset",
        "access_log",
        "connections",
        "draining",
        "inflight",
        "lane",
        "lingering",
        "metrics",
        "name",
        "random",
        "shedding",
        "splices",
        "table",
        "tracer",
        "via",
    )  # fmt: skip

    def __init__(
        self,
        lane: Lane,
        table: Table,
        *,
        name: str,
        access_log: AccessLog | None,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self.lane = lane
        self.table = table
        self.name = name
        self.access_log = access_log
        self.metrics = metrics
        self.via = Via(name)
        self.tracer = Tracer()
        self.splices = SplicePool()
        self.random: Callable[[], float] = random.random
        self.inflight = 0
        """Requests that are not finished."""
        self.connections = 0
        """Client connections that are open."""
        self._turn = 0
        self._handshakes = 0
        self.lingering = 0
        """Connections that are read on after an early answer, until their clients have sent what they were sending."""
        self.shedding = 0.0
        """The part of the requests that is refused since the worker is overloaded."""
        self._overload = ("", False)
        self.draining = False
        """Answers say `Connection: close`."""
        self._wall_offset = 0.0
        self._date = b""
        self._date_at = 0.0

    def wall_s(self) -> float:
        """The time of day in unix seconds, exact to the lane's batch."""
        if self.lane.now >= self._date_at:
            self._read_wall()
        return self.lane.now + self._wall_offset

    def http_date(self) -> bytes:
        """The `Date` field's value for now."""
        if self.lane.now >= self._date_at:
            self._read_wall()
        return self._date

    def _read_wall(self) -> None:
        wall = time.time()
        self._wall_offset = wall - self.lane.now
        self._date = formatdate(wall, usegmt=True).encode()
        self._date_at = self.lane.now + 1.0 - wall % 1.0

    def health_reply(self, method: str) -> Reply:
        """The answer to load balancers (contract 7.12), who ask with GET or HEAD."""
        plain = [(b"content-type", b"text/plain"), (b"cache-control", b"no-store")]
        if method not in ("GET", "HEAD"):
            return Reply(405, [*plain, (b"allow", b"GET, HEAD")], b"method not allowed\n")
        if self.draining:
            return Reply(503, plain, b"draining\n")
        return Reply(200, plain, b"ok\n")

    def may_shake_hands(self) -> bool:
        """Whether another TLS handshake is to begin in this turn of the lane."""
        if self.lane.turns != self._turn:
            self._turn, self._handshakes = self.lane.turns, 0
        self._handshakes += 1
        return self._handshakes <= _HANDSHAKES_A_TURN

    def shed(self, part: float, why: str = "", *, closes: bool = False) -> None:
        """Refuse this part of the requests from now on. `closes`: their connections are closed as well."""
        self.shedding = part
        self._overload = (why, closes)

    def refusal(self) -> Overloaded | None:
        """What a request is told while `shedding`, if it is one of that part."""
        if self.random() >= self.shedding:
            return None
        error = Overloaded(self._overload[0])
        error.closes = self._overload[1]
        return error
