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


class TokenStatus(msgspec.Struct, kw_only=True, gc=False):
    """The token that an upstream is shown, where it is fetched; of several callers', the last one's.

    `valid_for_s` None: there is none. `problem`: why the last one could not be had; None once there is another.
    `next_try_s`: the token service is not asked before.
    """

    valid_for_s: float | None
    problem: str | None
    next_try_s: float | None


class UpstreamStatus(msgspec.Struct, kw_only=True, gc=False, omit_defaults=True):
    """`/api/upstreams`: one upstream.

    `source`: where its endpoints are found, left out where they are configured; `problem`: why it says nothing new,
    left out while it does. `token`: left out where none is fetched. `credential`: why it cannot be shown what it wants,
    left out while it can.
    """

    name: str
    endpoints: list[EndpointStatus]
    source: str | None = None
    problem: str | None = None
    token: TokenStatus | None = None
    credential: str | None = None


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
        self._tokens: dict[str, TokenStatus] = {}
        self._credentials: dict[str, str] = {}
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
            yield UpstreamStatus(
                name=name,
                endpoints=list(endpoints.values()),
                token=self._tokens.get(name),
                credential=self._credentials.get(name),
            )

    def _add(self, upstream: UpstreamStatus) -> None:
        sums = self._sums.setdefault(upstream.name, {})
        if upstream.token is not None:
            known = self._tokens.get(upstream.name)
            self._tokens[upstream.name] = upstream.token if known is None else _joined(known, upstream.token)
        if upstream.credential is not None:
            self._credentials[upstream.name] = upstream.credential
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


def _joined(one: TokenStatus, other: TokenStatus) -> TokenStatus:
    """What two workers say: the token that lasts longest is what others take too; a problem is one if any has it."""
    valid = [each.valid_for_s for each in (one, other) if each.valid_for_s is not None]
    tries = [each.next_try_s for each in (one, other) if each.next_try_s is not None]
    return TokenStatus(
        valid_for_s=max(valid, default=None),
        problem=one.problem or other.problem,
        next_try_s=min(tries, default=None),
    )
