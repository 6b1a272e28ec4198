"""An endpoint: one server of an upstream, its addresses, its connections, what is in flight to it, how it answers.

Latency is a peak-sensitive moving average (Finagle, `PeakEwma`): an answer that is slower than the estimate replaces
it at once, a faster one brings it down with a time constant of 10 s, and so does every moment without an answer, so
that one which is shunned is tried again. A failure counts as a slow answer: else a server that fails at once would be
the fastest of all (Linkerd's load biaser, which takes 5 s for a 429).
"""

from __future__ import annotations

import ipaddress
import socket
from math import exp, inf, log, nan
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ambassador.proxy.policies.breaker import Breaker
    from ambassador.proxy.upstream.connect import Address
    from ambassador.proxy.upstream.pool import Pool

DECAY_S: Final = 10.0
"""Time constant of the estimate of latency. Finagle and Linkerd: 10 s."""
_FASTEST_S: Final = 1e-5
"""Answers of one turn of the lane take no time at all; their logarithm must exist."""
_WORSE: Final = 8.0
"""By so much a failure raises the estimate. Failures in a row reach the worst soon; one by chance is forgotten after
21 s without another."""
_LEAST_PENALTY_S: Final = 0.01
_WORST_S: Final = 5.0
"""As slow as a failure counts at most. Linkerd: 5 s."""


class Outlier(Protocol):
    """Who watches an endpoint for being worse than the others (`outlier`)."""

    def settled(self, seconds: float, now: float, *, failed: bool) -> None:
        """An attempt came to its end; as `Endpoint.settled`."""

    def recovered(self) -> None:
        """Active checks say that it is well, after they said that it is not."""


class Endpoint:
    """`url` as configured; `host` and `port`, or `path` of a unix socket. `weight` is at least 1.

    `priority` 0 is used first; `zone` is empty where it has none. `added_at` is a time of the lane's clock.
    """

    __slots__ = (
        "added_at", "addresses", "authority", "ejected_until", "ewma_s", "gate", "healthy", "host", "inflight",
        "level", "outlier", "panic", "path", "paused_until", "pool", "port", "priority", "sampled_at", "share",
        "url", "weight", "why", "zone",
    )  # fmt: skip

    def __init__(
        self,
        url: str,
        *,
        host: str,
        port: int,
        path: str | None = None,
        weight: int = 1,
        zone: str = "",
        priority: int = 0,
        added_at: float = -inf,
    ) -> None:
        self.url = url
        self.host = host
        self.port = port
        self.path = path
        self.weight = weight
        self.share: float = weight
        """Its weight for now: less while it starts slowly."""
        self.zone = zone
        self.priority = priority
        self.added_at = added_at
        """When it came, or came back: from then on `slow_start` counts. -inf: it was always there."""
        self.healthy = True
        """What active checks say; call `Upstream.refresh` after a change."""
        self.ejected_until = 0.0
        """It was worse than the others and gets nothing until this time of the lane's clock; call `Upstream.refresh`
        after a change (that it has passed needs none)."""
        self.why = ""
        """Why it is not healthy, or ejected, for people."""
        self.outlier: Outlier | None = None
        """Who hears of every outcome (`outlier`)."""
        self.ewma_s = 0.0
        """The estimate of its latency, to the answer's head, as of `sampled_at`. 0: there is none yet."""
        self.sampled_at = 0.0
        self.level = nan
        """`DECAY_S * ln(ewma_s) + sampled_at`: when the estimate will have decayed to 1 s. So that of two endpoints
        the lower one is the faster one, at any time, without a look at the clock. NaN: no estimate yet."""
        self.inflight = 0
        """Attempts of this worker that have not ended."""
        self.gate: Breaker | None = None
        """Its own breaker (`breaker.scope: endpoint`)."""
        self.panic = False
        """Too many of its upstream's endpoints are open: its own breaker is passed by."""
        self.paused_until = 0.0
        """It asked for a pause (`cooldown.scope: endpoint`), until this time of the lane's clock."""
        self.addresses: Sequence[Address] = ()
        if path is not None:
            self.addresses = ((socket.AF_UNIX, path),)
            self.authority = b"localhost"
        else:
            name = (f"[{host}]" if ":" in host else host).encode("ascii")
            self.authority = name if port == 80 else b"%b:%d" % (name, port)
            self.resolve([host])
        self.pool: Pool

    def settled(self, seconds: float, now: float, *, failed: bool, limited: bool = False) -> None:
        """An attempt came to its end, or to its answer's head: after so many seconds, at `now` (the lane's clock).

        `failed`: no answer, or one that says that the server cannot (5xx). `limited`: it says that it would not just
        now (429), which counts as a slow answer but speaks of the caller, not of the server. Call it only where
        `Upstream.measured`.
        """
        since = now - self.sampled_at
        kept = exp(-since / DECAY_S) if since > 0 else 1.0
        estimate = self.ewma_s
        sample = seconds
        if failed or limited:
            sample = max(seconds, min(_WORST_S, max(_LEAST_PENALTY_S, _WORSE * estimate * kept)))
        if sample >= estimate:
            estimate = sample
        else:
            estimate = estimate * kept + sample * (1.0 - kept)
        if estimate < _FASTEST_S:  # noqa: PLR1730 - `max` takes 0.05 µs
            estimate = _FASTEST_S
        self.ewma_s = estimate
        self.sampled_at = now
        self.level = now + DECAY_S * log(estimate)
        if self.outlier is not None:
            self.outlier.settled(seconds, now, failed=failed)

    def latency_s(self, now: float) -> float | None:
        """The estimate as of `now`; None where there is none."""
        return self.ewma_s * exp(-max(0.0, now - self.sampled_at) / DECAY_S) if self.ewma_s else None

    def go_on_from(self, other: Endpoint) -> None:
        """Take over latency and age from the same server's endpoint of the table before.

        Whoever says that it is unhealthy or ejected says so again, if it still does.
        """
        self.ewma_s, self.sampled_at, self.level = other.ewma_s, other.sampled_at, other.level
        self.added_at = other.added_at

    def resolve(self, addresses: Sequence[str]) -> None:
        """Set the IP addresses that the name has now; what is not an address is passed over."""
        found: list[Address] = []
        for text in addresses:
            try:
                address = ipaddress.ip_address(text.strip("[]"))
            except ValueError:
                continue
            if address.version == 4:
                found.append((socket.AF_INET, (str(address), self.port)))
            else:
                found.append((socket.AF_INET6, (str(address), self.port, 0, 0)))
        self.addresses = tuple(found)
