"""What the workers say of their upstreams, as one list (contract 7.17). Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec


class ConnectionCounts(msgspec.Struct, kw_only=True, gc=False):
    """Connections to one endpoint."""

    idle: int
    active: int


class EndpointStatus(msgspec.Struct, kw_only=True, gc=False):
    """One endpoint. `ejected_until` is in unix seconds; `ewma_ms` None: not measured; `why` it gets no requests."""

    url: str
    address: str | None
    healthy: bool
    ejected_until: float | None
    weight: int
    zone: str | None
    priority: int
    inflight: int
    ewma_ms: float | None
    connections: ConnectionCounts
    why: str | None


class UpstreamStatus(msgspec.Struct, kw_only=True, gc=False, omit_defaults=True):
    """`/api/upstreams`: one upstream.

    `source`: where its endpoints are found, left out where they are configured; `problem`: why it says nothing new,
    left out while it does.
    """

    name: str
    endpoints: list[EndpointStatus]
    source: str | None = None
    problem: str | None = None


_ENCODER: Final = msgspec.json.Encoder()
_LINE: Final = msgspec.json.Decoder(UpstreamStatus)


def answer(upstreams: list[UpstreamStatus]) -> bytes:
    """What a worker answers: a line of JSON for each upstream, so that they can be read one by one."""
    return _ENCODER.encode_lines(upstreams)


class UpstreamSums:
    """Adds up what workers answer: counts are added, latencies averaged, what one has against an endpoint holds, the
    rest is the first one's.

    Nothing but the sums is kept: to let go of 4,000 records at once would take milliseconds.
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, EndpointStatus]] = {}
        self._latencies: dict[tuple[str, str], list[float]] = {}

    def add(self, answers: Iterable[bytes]) -> Iterator[None]:
        """Add all workers' answers, a step for each upstream."""
        for line in itertools.chain.from_iterable(map(bytes.splitlines, answers)):
            self._add(_LINE.decode(line))
            yield

    def upstreams(self) -> Iterator[UpstreamStatus]:
        """Each upstream that a worker knows."""
        for name, endpoints in self._sums.items():
            for url, endpoint in endpoints.items():
                known = self._latencies.get((name, url))
                endpoint.ewma_ms = round(sum(known) / len(known), 3) if known else None
            yield UpstreamStatus(name=name, endpoints=list(endpoints.values()))

    def _add(self, upstream: UpstreamStatus) -> None:
        sums = self._sums.setdefault(upstream.name, {})
        for endpoint in upstream.endpoints:
            total = sums.setdefault(endpoint.url, endpoint)
            if total is not endpoint:
                total.inflight += endpoint.inflight
                total.connections.idle += endpoint.connections.idle
                total.connections.active += endpoint.connections.active
                total.healthy = total.healthy and endpoint.healthy
                total.why = total.why or endpoint.why
                until = max(total.ejected_until or 0.0, endpoint.ejected_until or 0.0)
                total.ejected_until = until or None
            if endpoint.ewma_ms:
                self._latencies.setdefault((upstream.name, endpoint.url), []).append(endpoint.ewma_ms)
