"""What is asked of every proxy: the scenarios and the routes they need. Pure data."""

from dataclasses import dataclass
from typing import Literal

MANY_ROUTES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of load.

    `path` is what is asked for, `connections` how many of them are held by the generator, `body_bytes` what a POST
    carries (None: a GET), `close` whether each request has a connection of its own, `routes` how many prefix routes
    stand before (and include) the one that is hit; 1 means a single route for everything. `memory` marks the
    scenario that measures idle connections in place of CPU time, `bulk` the one that measures latencies, alone and
    beside a large download; the download has an upstream of its own, behind `bulk.PATH`. `policies`: the route has a
    limit, a breaker, retries with a budget, two endpoints and an access log; only proxies that have all of these take
    part. `store`: those that can share what they count through Redis. `tls`: both sides speak it. `handshakes`: every
    request has a connection of its own, with a full handshake, or by resuming a session.
    """

    name: str
    about: str
    path: str = "/"
    connections: int = 32
    body_bytes: int | None = None
    close: bool = False
    routes: int = 1
    memory: bool = False
    bulk: bool = False
    policies: bool = False
    store: bool = False
    tls: bool = False
    handshakes: Literal["full", "resumed"] | None = None

    def prefixes(self) -> list[str]:
        """The path prefixes of the routes, each with a slash at both ends, in the order of the file."""
        if self.routes == 1:
            return ["/"]
        return [f"/svc-{number:03}/" for number in range(self.routes)]


def _last_prefix() -> str:
    return f"/svc-{MANY_ROUTES - 1:03}/"


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(name="plain", about="GET, 92 bytes of JSON, 32 connections"),
    Scenario(
        name="post4k", about="POST of 4 KiB, a short answer, 32 connections", path="/post", body_bytes=4096
    ),
    Scenario(name="body64k", about="GET of 64 KiB, 32 connections", path="/64k"),
    Scenario(name="body1m", about="GET of 1 MiB, 32 connections", path="/1m"),
    Scenario(
        name="manyroutes",
        about=f"GET, 92 bytes, {MANY_ROUTES} prefix routes, the last one hit, 32 connections",
        path=f"{_last_prefix()}items",
        routes=MANY_ROUTES,
    ),
    Scenario(name="light", about="GET, 92 bytes, one connection", connections=1),
    Scenario(name="churn", about="GET, 92 bytes, a new connection for every request", close=True),
    Scenario(name="tls", about="GET, 92 bytes, 32 connections, TLS 1.3 on both sides", tls=True),
    Scenario(
        name="handshakes",
        about="GET, 92 bytes, a new TLS connection for every request",
        connections=8,
        tls=True,
        handshakes="full",
    ),
    Scenario(
        name="handshakes-resumed",
        about="the same, each resuming the session of the one before",
        connections=8,
        tls=True,
        handshakes="resumed",
    ),
    Scenario(
        name="policies",
        about="GET, 92 bytes, 32 connections; limit, breaker, retry budget, two endpoints, access log",
        policies=True,
    ),
    Scenario(
        name="policies-redis",
        about="the same, with limit and breaker shared through Redis (Envoy's stay its own)",
        policies=True,
        store=True,
    ),
    # One connection: more, each with the next request at once, keep the core busy even without the download, and then
    # the p50 says how the core is shared, not how long a small request waits for its turn.
    Scenario(
        name="bulk",
        about="p50 of GET, 92 bytes, one connection, alone and beside one large download",
        connections=1,
        bulk=True,
    ),
    Scenario(name="idle", about="memory of 5,000 idle connections, after one request on each", memory=True),
)
