"""The config as Structs: what every other part reads, after `config.load` has checked and completed it.

All of it is canonical. Durations are seconds, sizes bytes, percents fractions, `off` is None. `listen` is folded into
`listeners`, `defaults` into the routes, an inline `to:` is an upstream with the route's name, so `Route.to` is always
the name of an upstream. A Config survives msgpack unchanged; that is how workers get it.

Strings that go on the wire are checked here once (tokens, no CR, LF or NUL) and are str until compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from msgspec import Meta, field

from ambassador.config.credentials import Auth, goes_bare, needs_guard
from ambassador.config.discover import Discover, Kubernetes, own_host
from ambassador.config.units import format_duration
from ambassador.extras import AUTH
from ambassador.proxy import egress, key_files, overload
from ambassador.proxy.clients.who import Client
from ambassador.proxy.policies import (
    breaker,
    cache,
    concurrency,
    cooldown,
    fault,
    headers,
    hedge,
    idempotency,
    limit,
    retry,
)
from ambassador.proxy.policies.redirect import Redirect
from ambassador.proxy.policies.respond import Respond
from ambassador.proxy.policies.rewrite import Rewrite
from ambassador.proxy.upstream import health, outlier, via
from ambassador.settings import (
    BalanceKey,
    Bytes,
    BytesPerSecond,
    Cidr,
    ClientName,
    Count,
    CountOrNone,
    EndpointUrl,
    Fraction,
    HostPattern,
    Internal,
    ListenAddress,
    MatchHeader,
    Method,
    Name,
    PathPattern,
    Regex,
    Seconds,
    SecondsOrNone,
    Secret,
    Section,
    StateUrl,
    ZoneName,
)
from ambassador.state.bridge import ANSWER_WITHIN_S as STATE_ANSWERS_WITHIN_S
from ambassador.state.scope import MAX_WAIT_S

__all__ = [
    "Admin",
    "Auth",
    "Client",
    "Config",
    "Connections",
    "Defaults",
    "Discover",
    "Document",
    "Drain",
    "Endpoint",
    "Fallback",
    "Fragment",
    "Kubernetes",
    "Listener",
    "ListenerLimits",
    "Match",
    "PathRegex",
    "Redirect",
    "Respond",
    "Rewrite",
    "Route",
    "State",
    "Telemetry",
    "Timeout",
    "Upstream",
    "ValueMatch",
]


class ListenerLimits(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client may use. Beyond a limit the answer has the code named here."""

    connections: Count = 10_000
    """Connections of this listener in each worker; more are answered `overloaded` and closed."""

    header_bytes: Bytes = 64 * 1024
    """Size of a request's head, or of its trailers (`header_too_large`)."""

    headers: Count = 100
    """Header lines of a request (`header_too_large`)."""

    uri: Bytes = 8 * 1024
    """Length of the request target (`uri_too_long`)."""

    body: Bytes | None = None
    """Size of a request's body (`body_too_large`)."""

    idle: Seconds = 75.0
    """How long a connection may wait between requests. nginx: 75 s."""

    header_timeout: Seconds = 10.0
    """How long a request's head may take from its first byte (`request_timeout`); and before it a TLS handshake, from
    the connection's first moment."""

    body_timeout: Seconds = 30.0
    """How long nothing may move, in either direction, while something is due (`request_timeout`)."""

    min_rate: BytesPerSecond | None = 256.0
    """The slowest transfer that is put up with, in bytes a second over 30 s."""

    requests_per_connection: Count | None = None
    """After so many requests a connection is closed, so that clients spread over new endpoints of the service."""


class Listener(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One address on which clients are served."""

    shorthand: ClassVar[str | None] = "address"
    later: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "protocol": ("http",),
        "mode": ("reverse",),
        "proxy_protocol": ("off", "false"),
        "to": (),
    }

    address: ListenAddress
    """`host:port`, `[v6]:port` or `unix:/path`. Port 0 lets the system choose one."""

    tls: key_files.ServerConfig | None = None
    """TLS with the clients. Unset: none."""

    trusted: tuple[Cidr, ...] = ()
    """Networks of load balancers whose `X-Forwarded-*` headers are kept and appended to; from others they are
    replaced."""

    half_close: Literal["continue", "cancel"] = "continue"
    """What a client's FIN after a complete request means: it still reads (`continue`), or it left (`cancel`)."""

    limits: ListenerLimits = ListenerLimits()
    """What one client may use."""


class Admin(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The admin API, metrics and dashboard."""

    shorthand: ClassVar[str | None] = "address"

    address: ListenAddress
    """`host:port`, `[v6]:port` or `unix:/path`, a socket that only the user of the service can open. Beyond loopback a
    `token` is required."""

    token: Secret | None = None
    """What `Authorization: Bearer` must hold: `env:NAME` or `file:/path`."""

    metrics: Literal["open", "token"] = "token"
    """Whether `/metrics` is open to everybody (`open`) or guarded like every other GET (`token`)."""


class State(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where replicas share what they count."""

    shorthand: ClassVar[str | None] = "url"

    url: StateUrl = "local"
    """`local`: shared by the workers of this host only. Or a Redis, by which all replicas share it:
    `redis://[user@]host[:port][/db]` (`unix:/path` by its socket), `redis+sentinel://host[:port],host/master[/db]`,
    `redis+cluster://host[:port],host`. `rediss` is TLS, with the server always verified (`?ca=FILE`, and
    `?cert=FILE&key=FILE` for a certificate of one's own)."""

    password: Secret | None = None
    """The password of the Redis: `env:NAME` or `file:/path`, read at each connecting. In the URL it is refused."""

    sentinel_password: Secret | None = None
    """The password of the Sentinels, where they ask for one (their user: `?sentinel_user=NAME` in the URL)."""

    prefix: Name = "amb"
    """What the keys in Redis begin with. Replicas share what has the same prefix."""

    secret_key: Secret | None = None
    """What the key is made of that fetched tokens in Redis are encrypted with (AES-256-GCM): `env:NAME` or
    `file:/path`, 16 characters or more, at random, the same for all replicas. Without one they are not put there, and
    each replica fetches its own."""

    on_loss: Literal["share", "closed", "open"] = "share"
    """What limits do while Redis is away: each replica admits its part of them (`share`), nothing beyond the tokens in
    hand (`closed`), or everything (`open`)."""

    max_wait: SecondsOrNone = MAX_WAIT_S
    """How long a request may wait for the store, over all its limits and attempts. Then it is decided as `on_loss`
    says."""

    expected_replicas: Count | None = None
    """Into how many parts limits fall when Redis is away before this replica has heard how many there are."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """A wait beyond which there is no answer any more."""
        if field == "max_wait" and value > STATE_ANSWERS_WITHIN_S:
            within = format_duration(STATE_ANSWERS_WITHIN_S)
            return f"is longer than {within}, after which the store counts as lost"
        return None

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Passwords for what asks for none."""
        if self.password is not None and self.url == "local":
            yield "password", "needs the 'url' of a Redis"
        if self.sentinel_password is not None and "+sentinel:" not in self.url:
            yield "sentinel_password", "needs a 'url' with Sentinels, 'redis+sentinel://…'"
        if self.secret_key is not None and self.url != "local" and not AUTH.is_installed:
            yield "secret_key", f"needs the extra '{AUTH.name}': {AUTH.hint}"


class Endpoint(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server of an upstream."""

    shorthand: ClassVar[str | None] = "url"

    url: EndpointUrl
    """`http://host:port`, `https://host:port` or `unix:/path`; a path in the URL is refused. After loading: scheme and
    host in lower case, the port always written."""

    weight: Annotated[CountOrNone, Meta(le=1000)] = 1
    """Share of the requests, in proportion to the other endpoints' weights. 0: drained, it takes no new requests, ends
    those that it has, and is checked all the same."""

    zone: Name | None = None
    """Where it is, for `zone_aware`: an availability zone, a data centre."""

    priority: Annotated[CountOrNone, Meta(le=127)] = 0
    """Endpoints of priority 1 get only what those of priority 0 fall short of, and so on; when these are back, so is
    the traffic. A level counts as whole down to 1/1.4 of its endpoints."""


class Connections(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Connections to an upstream's endpoints."""

    later: ClassVar[Mapping[str, tuple[str, ...]]] = {"max_age": ("off", "false")}

    max: Count = 256
    """Connections to each endpoint from each worker."""

    max_pending: CountOrNone = 1024
    """Requests that may wait for a connection; more are answered `overloaded`."""

    idle_timeout: Seconds = 30.0
    """How long an unused connection is kept. Shorter than the upstream's own, or requests meet a closing connection."""

    via: via.Config | None = None
    """An egress proxy through which they go, those of health checks too. Unset: none."""


Limits: TypeAlias = Annotated[tuple[limit.Config, ...], Meta(min_length=1)]


def _shared_names(limits: tuple[limit.Config, ...] | None) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for each in limits or ():
        if each.label in seen:
            yield "limit", f"has two limits with the name '{each.label}'; give each a 'name'"
        seen.add(each.label)


_BARE = (
    "is plaintext HTTP to another host, over which the credential of 'auth' is not sent; 'allow_plaintext: true' in"
    " 'auth' lets it"
)


class Upstream(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service: one or more endpoints that do the same."""

    later: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "protocol": ("auto", "http1"),
    }

    endpoints: Annotated[tuple[Endpoint, ...], Meta(extra={"form": "endpoints"})] = ()
    """The servers. A name's addresses are all tried within `connect` before an attempt has failed."""

    discover: Discover | None = None
    """Where the servers are found while the service runs, instead of `endpoints`."""

    balance: Literal["p2c", "round_robin", "least_request", "ring_hash"] = "p2c"
    """How an endpoint is chosen. `p2c`: of two at random the one with less in flight times latency, where failures and
    429 count as slow answers. `round_robin`: one after the other. `least_request`: the one with the fewest requests in
    flight from this worker. `ring_hash`: the same one for the same `hash`, unless it has 1.25 times its part in flight.
    All go by the weights."""

    hash: BalanceKey | None = None
    """What stays together with `ring_hash`: `header:NAME`, `cookie:NAME` or `client_ip`. Requests without it go
    anywhere."""

    zone_aware: bool = False
    """Whether endpoints of the service's own `zone` come first. The others get what those fall short of: nothing down
    to 1/1.4 of them."""

    slow_start: SecondsOrNone = 0.0
    """How long an endpoint that was added, or came back, takes from a tenth of its weight to the whole."""

    connections: Connections = Connections()
    """Bounds on connections to each endpoint."""

    tls: key_files.ClientConfig | None = None
    """TLS with the endpoints: with those whose URL is `https`, and with all that `discover` finds by `dns`, `srv` or
    `kubernetes`. Unset: `https` endpoints are verified by the system's authorities."""

    auth: Auth | None = None
    """What every attempt is given to prove who sends it. Unset: only what clients send."""

    limit: Limits | None = None
    """A quota of the remote service, or a list of them: every attempt is charged, retries too, directly before its
    first byte."""

    breaker: breaker.Config | None = None
    """When no attempts are made any more. `scope` is `upstream` or `endpoint`. Unset: no breaker."""

    health: health.Config | None = None
    """Active checks of every endpoint. Unset: none, and every endpoint counts as healthy."""

    outlier: outlier.Config | None = None
    """When an endpoint is left out that is worse than the others. Unset: never."""

    cooldown: cooldown.Config | None = None
    """Whether a 429 or 503 with `Retry-After` keeps every replica away for so long. Unset: no."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Endpoints in two ways, or in none; limits that share a name; a scope that an upstream has not; a `hash` that
        is missing, or too much; TLS that nobody speaks.
        """
        if not self.endpoints and self.discover is None:
            yield None, "needs one of 'endpoints' and 'discover'"
        if self.endpoints and self.discover is not None:
            yield "discover", "is in place of 'endpoints', and both are there"
        for number, endpoint in enumerate(self.endpoints):
            if goes_bare(self.auth, endpoint.url):
                yield f"endpoints.{number}", _BARE
            elif self.connections.via is not None and needs_guard(self.auth, endpoint.url):
                yield f"endpoints.{number}", _BARE.replace("another host", "the egress proxy")
            if self.connections.via is not None and endpoint.url.startswith("unix:"):
                yield f"endpoints.{number}", "is a unix socket, to which no egress proxy leads"
        yield from _shared_names(self.limit)
        if self.breaker is not None and self.breaker.scope == "route":
            yield "breaker", "'scope: route' belongs to the breaker of a route"
        if self.balance == "ring_hash" and self.hash is None:
            yield "balance", "'ring_hash' needs 'hash': header:NAME, cookie:NAME or client_ip"
        if self.hash is not None and self.balance != "ring_hash":
            yield "hash", f"belongs to 'balance: ring_hash', not to '{self.balance}'"
        if self.tls is not None and self.endpoints and not self.has_https:
            yield "tls", "has no effect: no endpoint is 'https://…'"

    @property
    def finds_https(self) -> bool:
        """Whether its source finds servers that speak TLS, and does not know of it."""
        return self.tls is not None and self.discover is not None and self.discover.file is None

    def found_url(self, url: str) -> str:
        """The URL of an endpoint that its source found, with the scheme that is spoken."""
        return f"https://{url.removeprefix('http://')}" if self.finds_https else url

    @property
    def own_host(self) -> str | None:
        """The `Host` of all its endpoints; None where each has its own."""
        return None if self.discover is None else own_host(self.discover, 443 if self.finds_https else 80)

    @property
    def has_https(self) -> bool:
        """Whether one of the endpoints that are written speaks TLS."""
        return any(endpoint.url.startswith("https://") for endpoint in self.endpoints)


class PathRegex(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A path pattern as a regular expression."""

    regex: Regex
    """Must match the whole path. Named groups, `(?P<id>…)`, become parameters."""


class ValueMatch(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a header or a query parameter must be. Exactly one of the fields is set."""

    shorthand: ClassVar[str | None] = "exact"

    exact: tuple[str, ...] | None = None
    """One of these values, compared byte for byte. A bare `"*"` is `present: true`."""

    regex: Regex | None = None
    """A regular expression that must match the whole value."""

    present: bool | None = None
    """Whether it must be there (true) or must be missing (false), whatever its value."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Not exactly one of the fields."""
        if bool(self.exact) + (self.regex is not None) + (self.present is not None) != 1:
            yield None, "needs exactly one of 'exact', 'regex' and 'present'"


class Match(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which requests a route takes: all that is written must hold."""

    host: tuple[HostPattern, ...] = ("*",)
    """One or more of: a host name, `*.suffix` (any name below it, not itself), `"*"`. Ports are ignored."""

    path: PathPattern | PathRegex | None = None
    """`/exact`, `/prefix/**` (on segment borders, `/prefix` included), `/v1/accounts/{id}` (one segment), or
    `{regex: …}`. Unset: every path."""

    methods: tuple[Method, ...] = ()
    """Methods. Unset: every method."""

    headers: dict[MatchHeader, ValueMatch] = field(default_factory=dict)
    """Headers (names in lower case after loading): a value, a list of values, `{regex: …}`, or `{present: true}`."""

    query: dict[str, ValueMatch] = field(default_factory=dict)
    """Query parameters, likewise."""

    client: tuple[ClientName, ...] = ()
    """Who asks: names of `clients`, or `"*"` for every client that is known. Unset: everybody."""


class Timeout(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long things may take. A bare duration is `total`."""

    shorthand: ClassVar[str | None] = "total"

    connect: Seconds = 1.0
    """Opening a connection, over all addresses of a name."""

    first_byte: Seconds | None = None
    """From the request's last byte to the answer's first, in one attempt."""

    per_try: Seconds | None = None
    """One attempt, from its start (of a body that is on its way, from its last byte) to the answer's head."""

    total: Seconds = 15.0
    """From the request's last byte to the answer's head, over all attempts."""

    total_body: Seconds | None = None
    """From the request's first byte to the answer's last. Streams live longer: off unless written."""

    idle: Seconds = 300.0
    """How long nothing may move in a body or a tunnel."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Parts that are longer than the whole."""
        for part in ("per_try", "first_byte"):
            value = getattr(self, part)
            if value is not None and value > self.total:
                yield (
                    part,
                    f"is longer than 'total' ({format_duration(self.total)}), so it would never end anything",
                )


class Fallback(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is answered when all attempts failed, or the breaker is open; not for a client's own errors. Of several the
    first that can: another upstream, the last good answer, the fixed one. `proxy-status` tells of it.
    """

    to: Annotated[str | None, Meta(extra={"form": "target"})] = None
    """The name of another upstream, a URL or a list of URLs, which has one attempt in what is left of `timeout`."""

    methods: Literal["idempotent", "all"] = "idempotent"
    """Methods for which `to` is asked: those that are `idempotent` (and any request with an `idempotency-key`), or
    `all`. Where the first upstream cannot have seen the request, every method is."""

    stale: Seconds | None = None
    """The last good answer to the same GET, if it came within this time: the same credentials and headers, and nothing
    that says `no-store`, `private` or `must-revalidate`. Each worker keeps what it has seen."""

    max: Bytes = 64 * 2**20
    """Bytes of such answers in each worker; one has an eighth of it at most."""

    respond: Respond | None = None
    """A fixed answer."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Nothing to fall back on."""
        if self.to is None and self.respond is None and self.stale is None:
            yield None, "needs 'to', 'stale' or 'respond'"


class Route(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which requests go where, and how. Exactly one of `to`, `redirect` and `respond` is set."""

    later: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        (
            "split",
            "migrate",
            "translate",
            "mirror",
        ),
        ("off", "false"),
    )

    name: Name
    """Names the route in metrics, logs and commands."""

    match: Match = Match()
    """Which requests. The first route of the file that matches takes the request."""

    to: Annotated[str | None, Meta(extra={"form": "target"})] = None
    """The name of an upstream, a URL or a list of URLs. After loading: the name of an upstream."""

    redirect: Redirect | None = None
    """Send the client elsewhere."""

    respond: Respond | None = None
    """Answer here."""

    rewrite: Rewrite | None = None
    """Change the path or the host on the way."""

    timeout: Timeout = Timeout()
    """How long things may take."""

    retry: retry.Config | None = retry.UNSET
    """Further attempts. Unset: one, on `connect` and `refused_stream`. `off`: none."""

    hedge: hedge.Config | None = None
    """A second attempt beside a slow one. Unset: none."""

    limit: Limits | None = None
    """How many requests may pass; one limit, or a list of which all must allow a request."""

    breaker: breaker.Config | None = None
    """When no attempts are made any more: by default for the whole upstream, whichever route they come from (`scope`).
    Unset: no breaker."""

    cache: cache.Config | None = None
    """Answers that are kept and given again, and identical requests that go up as one. Unset: neither."""

    idempotency: idempotency.Config | None = None
    """Repeats of a request with the same key get the answer of the first. Unset: each is carried out."""

    fallback: Fallback | None = None
    """What is answered when all attempts failed, or the breaker is open. Unset: the failure."""

    access: Annotated[tuple[ClientName, ...], Meta(min_length=1)] | None = None
    """Who may call: names of `clients`, or `"*"` for every client that is known. Others are answered 401 or 403. Unset,
    or `off`: everybody, known or not."""

    headers: headers.Config | None = None
    """Headers to set, add and remove."""

    concurrency: concurrency.Config | None = None
    """How many requests may be in progress at once, on each replica. Unset: any number."""

    fault: fault.Config | None = None
    """Delays and errors on purpose, for testing clients. Unset: none."""

    line: Annotated[int, Internal]
    """The line of its file where the route begins; 0 when it comes from the command line."""

    file: Annotated[str, Internal]
    """The file it is written in; empty when it comes from the command line."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Limits that share a name; a fallback to what has failed."""
        yield from _shared_names(self.limit)
        if self.fallback is not None and self.fallback.to is not None and self.fallback.to == self.to:
            yield "fallback", f"is '{self.to}', where the requests go already"


class Telemetry(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is told about requests."""

    later: ClassVar[Mapping[str, tuple[str, ...]]] = {"otlp": ("off", "false"), "trace_sample": ()}

    access_log: Annotated[str | None, Meta(extra={"form": "log_target"})] = "stdout"
    """`stdout`, a file, or `off`: one JSON line per request. Its `duration_ms` and `upstream_ms` are by a clock that is
    read once per batch of events, about a millisecond at most: what is answered within one, as most answers made here
    are, took 0."""

    sample: Fraction = 1.0
    """The share of successful requests that is logged; others always are."""

    debug_headers: bool = False
    """Whether answers carry `x-ambassador-upstream-ms` and `x-ambassador-attempts`."""


class Drain(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the service ends."""

    delay: SecondsOrNone = 5.0
    """How long it goes on accepting, not ready, so that load balancers notice."""

    timeout: Seconds = 20.0
    """How long requests then have to finish before they are cut."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole config of an instance."""

    version: Literal[1] = 1
    """The version of this format."""

    name: Name | None = None
    """The instance's name, the pseudonym in `via`. Unset: random for each start."""

    zone: ZoneName | None = None
    """Where this instance runs, for `zone_aware` upstreams: a name, or `env:NAME` for what that variable holds in the
    service's environment. Unset, or the variable is: all zones are alike."""

    listeners: tuple[Listener, ...]
    """The addresses on which clients are served. `listen: ADDRESS` is short for one or more of them."""

    admin: Admin | None = None
    """The admin API, metrics and dashboard. Unset: none."""

    workers: Annotated[Annotated[int, Meta(ge=1, le=1024)] | None, Meta(extra={"form": "workers"})] = None
    """Worker processes. `auto`, or unset: the CPUs this process may use."""

    control: Annotated[str | None, Meta(extra={"form": "control"})] = None
    """The control socket, `unix:/path`. Unset: `$XDG_RUNTIME_DIR/ambassador-PORT.sock`."""

    state: State = State()
    """Where replicas share what they count."""

    routes: tuple[Route, ...] = ()
    """In order; the first that matches takes the request."""

    upstreams: dict[Name, Upstream] = field(default_factory=dict)
    """The services behind, by name."""

    clients: dict[Name, Client] = field(default_factory=dict)
    """Who calls, by name, for `access`, `match.client`, `limit.per: client`, `{client}` in headers, and the logs. How a
    request with several proofs is judged: docs/how-to/clients.md."""

    telemetry: Telemetry = Telemetry()
    """Logs and metrics."""

    drain: Drain = Drain()
    """How the service ends."""

    egress: egress.Config | None = None
    """Where connections may go. Unset: anywhere, but names do not lead to link-local and metadata addresses."""

    overload: overload.Config | None = None
    """When a worker refuses a part of the requests, before any work. Unset: never."""


TARGETS: Final = ("to", "redirect", "respond")
"""What becomes of a route's requests: each route has one of these."""
EVERYWHERE: Final = ("access", "limit", "fault", "concurrency")
"""Policies of a route that hold whatever becomes of its requests, in the order in which they are met."""
ON_THE_WAY: Final = (
    "idempotency", "cache", "fallback", "timeout", "retry", "hedge", "breaker", "rewrite",
)  # fmt: skip
"""Policies of a route that have no effect where nothing is sent upstream."""
POLICIES: Final = (*EVERYWHERE, *ON_THE_WAY, "headers")
"""All of them: whoever goes through a route's policies goes by these lists."""


def policies_of(route: Route) -> tuple[str, ...]:
    """The policies that a route has, outermost first; those without an effect on it are none."""
    return tuple(
        key
        for key in POLICIES
        if getattr(route, key) is not None and (route.to is not None or key not in ON_THE_WAY)
    )


class Defaults(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every route has unless it says otherwise. Mappings are merged key by key."""

    timeout: Timeout = Timeout()
    """How long things may take."""

    retry: retry.Config | None = retry.UNSET
    """Further attempts."""

    limit: Limits | None = None
    """How many requests may pass, for each route by itself. A route's own list replaces it."""

    breaker: breaker.Config | None = None
    """When no attempts are made any more."""

    concurrency: concurrency.Config | None = None
    """How many requests may be in progress at once, for each route by itself."""

    headers: headers.Config | None = None
    """Headers to set, add and remove; those of the route win."""


class Document(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A config as it is written: with the short forms that loading folds away."""

    listen: tuple[Listener, ...] = ()
    """Short for `listeners`: an address, or a list of them."""

    listeners: tuple[Listener, ...] = ()
    """The addresses on which clients are served."""

    defaults: Defaults = Defaults()
    """What every route has unless it says otherwise."""

    include: tuple[str, ...] = ()
    """Files, with wildcards and relative to this one, whose `routes` and `upstreams` are added to those here, in the
    order of their names."""


class Fragment(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An included file."""

    version: Literal[1] = 1
    """The version of this format."""

    routes: tuple[Route, ...] = ()
    """Routes, after those of the file that includes this one."""

    upstreams: dict[Name, Upstream] = field(default_factory=dict)
    """The services behind, by name."""
