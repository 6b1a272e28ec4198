"""What there is to tell from the counters: all series, metric by metric.

Nothing is read before it is asked for, and then one block at a time, so whoever tells it can give way to others in
between: with 500 routes all of it takes 20 ms. Each block is read at once, from the totals and from every page that
lives at that moment; so a worker that ends meanwhile is counted once, whatever has been told by then.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

from ambassador.observe.metrics import (
    ACCESS,
    ATTEMPTS,
    BUCKETS,
    CACHE,
    CACHED,
    CLIENT,
    CLIENT_ACTIVE,
    CLIENT_OPENED,
    CODE_CLASSES,
    CPU,
    EGRESS,
    GC_RUNS,
    GC_TIME,
    HANDSHAKE_RESULTS,
    HANDSHAKES,
    INFLIGHT,
    LAG,
    LIMIT_EXPIRED,
    LIMIT_SLOTS,
    LIMIT_WAITS,
    LIMITED,
    LOG_DROPPED,
    NO_NAME,
    REASONS,
    REFUSALS,
    REPLAYED,
    REQUEST_BUCKETS,
    REQUEST_SUM,
    REQUESTS,
    RESIDENT,
    RESULTS,
    RETRIES,
    ROUTE_SLOTS,
    STATE_DOWN,
    STATE_OPS,
    TOKEN_EXPIRES,
    TOKEN_RESULTS,
    TOKENS,
    UPSTREAM_BUCKETS,
    UPSTREAM_IDLE,
    UPSTREAM_OPENED,
    WORKER_SLOTS,
    BlockKey,
    Page,
    Registry,
    Totals,
    summed,
)

Labels: TypeAlias = tuple[tuple[str, str], ...]


class Histogram(msgspec.Struct, frozen=True):
    """`buckets` by `metrics.BOUNDS` and one without a bound, each counted for itself; `sum` in seconds."""

    buckets: tuple[int, ...]
    sum: float


class Word(msgspec.Struct, frozen=True):
    """A label whose values are known, and a series for each of them.

    Those of the first `rare` are told only once they have counted something.
    """

    name: str
    values: tuple[str, ...]
    rare: int = 0


class Family(msgspec.Struct, frozen=True):
    """All series of one metric. A counter's `name` is without `_total`.

    A sample is its labels and its value; where there is a `word`, one count for each of its values. Samples can be
    taken once, and those of one family before those of the next.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    samples: Iterable[tuple[Labels, float | Histogram | Sequence[int]]]
    word: Word | None = None


class HealthFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream's endpoints, as active checks have them, and the checks made so far."""

    upstream: str
    healthy: int
    unhealthy: int
    passed: int
    failed: int


class CertificateFigures(msgspec.Struct, frozen=True):
    """A file of certificates: whose it is (`side`: client or upstream), and when the first of them ends, in unix
    seconds.
    """

    side: str
    name: str
    file: str
    expires: float


class KeySetFigures(msgspec.Struct, frozen=True):
    """The set of public keys of a client (`source`: a URL without its query, or a file), and whether it can be read."""

    client: str
    source: str
    up: bool


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor itself knows. `started` is in unix seconds."""

    version: str
    instance: str
    generation: int
    restarts: int
    workers: int
    started: float
    draining: bool = False
    breakers: Sequence[tuple[str, int]] = ()
    """Name and state of each: 0 closed, 1 open, 2 half-open."""
    health: Sequence[HealthFigures] = ()
    """Of each upstream with active checks."""
    ejections: Sequence[tuple[str, int, int]] = ()
    """Of each upstream with outlier detection: its name, endpoints that are ejected, ejections so far."""
    certificates: Sequence[CertificateFigures] = ()
    """Of each TLS section."""
    key_sets: Sequence[KeySetFigures] = ()
    """Of each client whose tokens are verified."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What one route has had to do with one upstream (`-` for none), in short, over all workers there have been.

    `errors` are answers of class 5xx, `unanswered` requests whose client left before; `seconds` is the sum over all.
    """

    route: str
    upstream: str
    requests: int
    errors: int
    unanswered: int
    retries: int
    seconds: float


class Reader:
    """The counters of all workers. `pages` are those of the living, and may come and go while something is read."""

    def __init__(self, registry: Registry, pages: Iterable[Page], totals: Totals) -> None:
        self._registry = registry
        self._pages = pages
        self._totals = totals

    def families(self, figures: Figures | None = None) -> Iterator[Family]:
        """Everything there is to tell.

        Series are shown from the moment their route is configured, with zeros, so that a rate sees the first request;
        a route's histograms, attempts and retries from its first request on, so that a thousand quiet routes cost
        little. What a route had from its cache, or repeated, is told of those that have one, or keys to repeat by.
        """
        yield from self._route_families()
        yield from self._limit_families()
        yield from self._token_families()
        yield from self._client_families()
        yield from self._egress_families()
        yield from self._worker_families()
        if figures is not None:
            yield from _supervisor_families(figures)

    def traffic(self) -> Iterator[Traffic]:
        """Every route in short, in the order in which they were first configured."""
        for labels, block in self._blocks():
            (_, route), (_, upstream) = labels
            yield Traffic(
                route=route,
                upstream=upstream,
                requests=sum(block[REQUESTS : REQUESTS + len(CODE_CLASSES)]),
                errors=block[REQUESTS + CODE_CLASSES.index("5xx")],
                unanswered=block[REQUESTS + CODE_CLASSES.index("none")],
                retries=sum(block[RETRIES : RETRIES + len(REASONS)]),
                seconds=block[REQUEST_SUM] / 1e6,
            )

    def _read(self, start: int, length: int) -> list[int]:
        slots = itertools.chain([self._totals.slots], (page.slots for page in self._pages))
        return summed(slots, start, start + length)

    def _blocks(self) -> Iterator[tuple[Labels, list[int]]]:
        for key, offset in list(self._registry.blocks.items()):
            if key.limit:
                continue
            yield (("route", key.route), ("upstream", key.upstream)), self._read(offset, ROUTE_SLOTS)

    def _route_families(self) -> Iterator[Family]:
        busy: list[tuple[Labels, list[int]]] = []
        routed: list[tuple[Labels, list[int]]] = []
        caching: list[tuple[Labels, list[int]]] = []
        replaying: list[tuple[Labels, int]] = []

        def requests() -> Iterator[tuple[Labels, Sequence[int]]]:
            """Reads the blocks, and keeps for the families after it what is worth telling."""
            for labels, block in self._blocks():
                key = BlockKey(labels[0][1], labels[1][1])
                cached = block[CACHE : CACHE + len(CACHED)]
                if key in self._registry.caching or any(cached):
                    caching.append((labels, cached))
                if key in self._registry.replaying or block[REPLAYED]:
                    replaying.append((labels, block[REPLAYED]))
                if any(block):
                    busy.append((labels, block))
                    if labels[1][1] != NO_NAME:
                        routed.append((labels, block))
                yield labels, block[REQUESTS : REQUESTS + len(CODE_CLASSES)]

        yield Family(
            "ambassador_requests",
            "counter",
            "Requests answered, by class of status.",
            requests(),
            Word("code_class", CODE_CLASSES, rare=2),
        )
        yield Family(
            "ambassador_request_seconds",
            "histogram",
            "From a request's first byte to its answer's last.",
            ((labels, _histogram(block, REQUEST_BUCKETS)) for labels, block in busy),
        )
        yield Family(
            "ambassador_upstream_seconds",
            "histogram",
            "An attempt, to its answer's last byte.",
            ((labels, _histogram(block, UPSTREAM_BUCKETS)) for labels, block in routed),
        )
        yield Family(
            "ambassador_attempts",
            "counter",
            "Attempts at an upstream, by how they ended.",
            ((labels, block[ATTEMPTS : ATTEMPTS + len(RESULTS)]) for labels, block in routed),
            Word("result", RESULTS),
        )
        yield Family(
            "ambassador_retries",
            "counter",
            "Attempts made after another had failed, by why.",
            ((labels, block[RETRIES : RETRIES + len(REASONS)]) for labels, block in routed),
            Word("reason", REASONS),
        )
        yield Family(
            "ambassador_cache_requests",
            "counter",
            "Requests at a route's cache, by what they got there.",
            caching,
            Word("result", CACHED),
        )
        yield Family(
            "ambassador_idempotent_replays",
            "counter",
            "Repeats with an idempotency key that got the answer of the first.",
            replaying,
        )

    def _limit_families(self) -> Iterator[Family]:
        limits = [(key, offset) for key, offset in self._registry.blocks.items() if key.is_limit]
        if not limits:
            return
        blocks = [(key, self._read(offset, LIMIT_SLOTS)) for key, offset in limits]
        yield Family(
            "ambassador_limited",
            "counter",
            "Requests that a limit refused.",
            [((("route", key.route), ("limit", key.limit)), block[LIMITED]) for key, block in blocks],
        )
        yield _single(
            "ambassador_limit_waits",
            "counter",
            "Requests that had to wait for a limit's tokens.",
            sum(block[LIMIT_WAITS] for _, block in blocks),
        )
        yield _single(
            "ambassador_limit_expired",
            "counter",
            "Tokens that a worker had leased and did not need in time.",
            sum(block[LIMIT_EXPIRED] for _, block in blocks),
        )

    def _token_families(self) -> Iterator[Family]:
        tokens = [(key, offset) for key, offset in self._registry.blocks.items() if key.limit == TOKENS]
        if not tokens:
            return
        yield Family(
            "ambassador_token_requests",
            "counter",
            "Requests for tokens to show to an upstream, by how they ended.",
            [
                ((("upstream", key.upstream),), self._read(offset, len(TOKEN_RESULTS)))
                for key, offset in tokens
            ],
            Word("result", TOKEN_RESULTS),
        )
        yield Family(
            "ambassador_token_expiry_seconds",
            "gauge",
            "When the token that is shown to an upstream expires, in unix seconds; 0: there is none.",
            [((("upstream", key.upstream),), self._latest(offset + TOKEN_EXPIRES)) for key, offset in tokens],
        )

    def _latest(self, slot: int) -> int:
        """The greatest value of a slot in the pages of the living."""
        return max((page.slots[slot] for page in self._pages if slot < len(page.slots)), default=0)

    def _client_families(self) -> Iterator[Family]:
        blocks = list(self._registry.blocks.items())
        refusing = [(key, offset) for key, offset in blocks if key.limit == ACCESS]
        clients = [(key, offset) for key, offset in blocks if key.limit == CLIENT]
        if refusing:
            yield Family(
                "ambassador_auth_failures",
                "counter",
                "Requests that a route's access refused, by why.",
                [((("route", key.route),), self._read(offset, len(REFUSALS))) for key, offset in refusing],
                Word("reason", REFUSALS, rare=len(REFUSALS) - 1),
            )
        if clients:
            yield Family(
                "ambassador_client_requests",
                "counter",
                "Requests by the client that was known to ask.",
                [((("client", key.route),), self._read(offset, 1)[0]) for key, offset in clients],
            )

    def _egress_families(self) -> Iterator[Family]:
        blocks = [(key, offset) for key, offset in list(self._registry.blocks.items()) if key.limit == EGRESS]
        if blocks:
            yield Family(
                "ambassador_egress_refused",
                "counter",
                "Connections to an upstream that were not made, or not to all of its addresses: egress refuses them.",
                [((("upstream", key.route),), self._read(offset, 1)[0]) for key, offset in blocks],
            )

    def _worker_families(self) -> list[Family]:
        slots = self._read(0, WORKER_SLOTS)
        lag = max((page.slots[LAG] for page in self._pages), default=0)
        sides = ("client", "upstream")
        states = [(("side", side), ("state", state)) for side in sides for state in ("active", "idle")]
        opened = zip(sides, slots[CLIENT_OPENED : UPSTREAM_OPENED + 1], strict=True)
        return [
            _single("ambassador_inflight", "gauge", "Requests that are not finished.", slots[INFLIGHT]),
            Family(
                "ambassador_connections",
                "gauge",
                "Connections that are open.",
                list(zip(states, slots[CLIENT_ACTIVE : UPSTREAM_IDLE + 1], strict=True)),
            ),
            Family(
                "ambassador_connections_opened",
                "counter",
                "Connections accepted from clients and made to upstreams.",
                [((("side", side),), value) for side, value in opened],
            ),
            Family(
                "ambassador_tls_handshakes",
                "counter",
                "TLS handshakes, by what came of them.",
                [
                    ((("side", side),), slots[at : at + len(HANDSHAKE_RESULTS)])
                    for side, at in zip(sides, (HANDSHAKES, HANDSHAKES + len(HANDSHAKE_RESULTS)), strict=True)
                ],
                Word("result", HANDSHAKE_RESULTS),
            ),
            _single(
                "ambassador_loop_lag_seconds",
                "gauge",
                "Longest recent turn of a worker's loop, of all workers.",
                lag / 1e6,
            ),
            _single(
                "ambassador_log_dropped", "counter", "Lines that the access log lost.", slots[LOG_DROPPED]
            ),
            _single(
                "ambassador_state_up",
                "gauge",
                "1 while every worker reaches the store that replicas share, else 0.",
                int(not slots[STATE_DOWN]),
            ),
            _single(
                "ambassador_state_ops", "counter", "Operations sent to stores of state.", slots[STATE_OPS]
            ),
            _single("ambassador_cpu_seconds", "counter", "CPU time of the workers.", slots[CPU] / 1e6),
            _single("ambassador_resident_bytes", "gauge", "Memory of the workers.", slots[RESIDENT]),
            _single(
                "ambassador_gc_pauses", "counter", "Runs of the workers' garbage collector.", slots[GC_RUNS]
            ),
            _single("ambassador_gc_pause_seconds", "counter", "Time of these runs.", slots[GC_TIME] / 1e6),
        ]


def _histogram(block: Sequence[int], start: int) -> Histogram:
    return Histogram(tuple(block[start : start + BUCKETS]), block[start + BUCKETS] / 1e6)


def _supervisor_families(figures: Figures) -> list[Family]:
    build = (("instance", figures.instance), ("version", figures.version))
    return [
        _single("ambassador_worker_restarts", "counter", "Workers that were replaced.", figures.restarts),
        _single(
            "ambassador_config_generation",
            "gauge",
            "The config that is served; 1 more each reload.",
            figures.generation,
        ),
        _single("ambassador_workers", "gauge", "Workers that are ready.", figures.workers),
        _single("ambassador_draining", "gauge", "1 while the service is ending.", int(figures.draining)),
        _single(
            "ambassador_start_time_seconds", "gauge", "When it was started, in unix seconds.", figures.started
        ),
        Family(
            "ambassador_breaker_state",
            "gauge",
            "0 closed, 1 open, 2 half-open.",
            [((("breaker", name),), state) for name, state in figures.breakers],
        ),
        *_health_families(figures.health),
        *_ejection_families(figures.ejections),
        *_certificate_families(figures.certificates),
        *_key_set_families(figures.key_sets),
        Family("ambassador_build", "info", "What this is.", [(build, 1)]),
    ]


def _health_families(health: Sequence[HealthFigures]) -> list[Family]:
    if not health:
        return []
    return [
        Family(
            "ambassador_endpoints",
            "gauge",
            "Endpoints of upstreams with active checks.",
            [((("upstream", each.upstream),), (each.healthy, each.unhealthy)) for each in health],
            Word("state", ("healthy", "unhealthy")),
        ),
        Family(
            "ambassador_health_checks",
            "counter",
            "Active checks of an upstream's endpoints.",
            [((("upstream", each.upstream),), (each.passed, each.failed)) for each in health],
            Word("result", ("passed", "failed")),
        ),
    ]


def _ejection_families(ejections: Sequence[tuple[str, int, int]]) -> list[Family]:
    if not ejections:
        return []
    return [
        Family(
            "ambassador_endpoints_ejected",
            "gauge",
            "Endpoints that are left out because they are worse than the others.",
            [((("upstream", name),), ejected) for name, ejected, _ in ejections],
        ),
        Family(
            "ambassador_ejections",
            "counter",
            "How often an endpoint was ejected.",
            [((("upstream", name),), total) for name, _, total in ejections],
        ),
    ]


def _certificate_families(certificates: Sequence[CertificateFigures]) -> list[Family]:
    if not certificates:
        return []
    labelled = {
        (("side", each.side), ("name", each.name), ("file", each.file)): each.expires for each in certificates
    }
    return [
        Family(
            "ambassador_certificate_expiry_seconds",
            "gauge",
            "When the first of a file's certificates ends, in unix seconds.",
            list(labelled.items()),
        )
    ]


def _key_set_families(key_sets: Sequence[KeySetFigures]) -> list[Family]:
    if not key_sets:
        return []
    return [
        Family(
            "ambassador_jwks_up",
            "gauge",
            "0 while a worker cannot read the set of keys that a client's tokens are verified with, or it has none, else 1.",
            [((("client", each.client), ("source", each.source)), int(each.up)) for each in key_sets],
        )
    ]


def _single(name: str, kind: Literal["counter", "gauge"], text: str, value: float) -> Family:
    return Family(name, kind, text, [((), value)])


def cumulative(buckets: Sequence[int]) -> list[int]:
    """How many were at most each bound, as the text formats have it; the last is the count of all."""
    return list(itertools.accumulate(buckets))
