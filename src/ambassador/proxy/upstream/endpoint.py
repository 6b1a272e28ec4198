"""An endpoint: one server of an upstream, its addresses, its connections, what is in flight to it, how it answers.

The estimate of latency is the geometric mean of two moving averages. One is peak-sensitive (Finagle, `PeakEwma`): an
answer that is slower replaces it at once, faster ones bring it down with a time constant of 10 s. It alone compares the
slowest answers of late: where a moment's pause of the worker or its host slows all endpoints alike, ten times slower is
soon the same as the others (`loadtest balance` on a busy host: up to 10 % of the requests went there). So the other is
a plain one, over 1 s. Every moment without an answer lowers the estimate, so that one which is shunned is tried again.

Failures count as slow answers: else a server that fails at once would be the fastest of all (Linkerd's load biaser,
which takes 5 s for a 429). A few are tolerated, and no answer at all to the estimate: one failure by chance would cost
an endpoint its traffic for 20 s, and those who count failures, breakers and outlier detection, would never see enough.
"""

from __future__ import annotations

import ipaddress
import socket
from math import exp, inf, log, nan, sqrt
from typing import TYPE_CHECKING, Final, Protocol

from ambassador.proxy.loopback import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ambassador.proxy.policies.breaker import Breaker
    from ambassador.proxy.upstream.connect import Address
    from ambassador.proxy.upstream.pool import Pool

DECAY_S: Final = 10.0
"""Time constant of the estimate of latency: of its peaks, and while there is no answer. Finagle and Linkerd: 10 s."""
_MEAN_S: Final = 1.0
"""Time constant of the plain average."""
_HALF: Final = DECAY_S / 2
_FASTEST_S: Final = 1e-5
"""Answers of one turn of the lane take no time at all; their logarithm must exist."""
_TOLERATED: Final = 5
"""From so many on failures count as slow answers; a good answer makes up for one. Envoy's consecutive errors: 5."""
_WORSE: Final = 8.0
"""By so much a failure then raises the estimate, and in a row soon to the worst."""
_LEAST_PENALTY_S: Final = 0.01
"""As slow as a failure counts at least; a tolerated one that is no slower says nothing."""
_WORST_S: Final = 5.0
"""As slow as a failure counts at most. Linkerd: 5 s."""


class Outlier(Protocol):
    """Who watches an endpoint for being worse than the others (`outlier`)."""

    def settled(self, now: float, *, failed: bool) -> None:
        """An attempt came to its end; as `Endpoint.settled`."""

    def recovered(self) -> None:
        """Active checks say that it is well, after they said that it is not."""


class Endpoint:
    """`url` as configured; `host` and `port`, or `path` of a unix socket. `weight` 0: drained. `default_port`: the
    one that Host leaves out.

    `priority` 0 is used first; `zone` is empty where it has none. `added_at` is a time of the lane's clock.
    """

    __slots__ = (
        "_refusal",
        "added_at",
        "addresses",
        "authority",
        "count_refusal",
        "dialled",
        "ejected_until",
        "failures",
        "gate",
        "guarded",
        "healthy",
        "host",
        "inflight",
        "level",
        "mean_s",
        "outlier",
        "panic",
        "path",
        "paused_until",
        "peak_s",
        "pool",
        "port",
        "priority",
        "refusals",
        "sampled_at",
        "scheme",
        "share",
        "url",
        "weight",
        "why",
        "withheld",
        "zone",
    )  # fmt: skip

    def __init__(
        self,
        url: str,
        *,
        host: str,
        port: int,
        path: str | None = None,
        default_port: int = 80,
        weight: int = 1,
        zone: str = "",
        priority: int = 0,
        added_at: float = -inf,
        guarded: bool = False,
        refusal: Callable[[str], str | None] | None = None,
        count_refusal: Callable[[], None] | None = None,
        through: tuple[str, int] | None = None,
    ) -> None:
        self.url = url
        self.host, self.port, self.path = host, port, path
        self.weight = weight
        self.share: float = weight
        """Its weight for now: less while it starts slowly."""
        self.zone, self.priority = zone, priority
        self.scheme = "https" if default_port == 443 else "http"
        """How it is spoken to, which the URL of one that was found does not say."""
        self.dialled = through or (host, port)
        """The host and port of which the addresses are dialled: its own, or those of an egress proxy."""
        self.guarded, self.withheld = guarded, False
        """Only loopback addresses are dialled: what it is sent is not for others to see, and it is plaintext. And
        whether the name has others, which are not used."""
        self._refusal, self.count_refusal = refusal, count_refusal
        """Why it must not be dialled at an address (`proxy.egress`). And what counts a connection that was not made, or
        had fewer addresses to try, because of that."""
        self.refusals: Sequence[str] = ()
        """Why it is not dialled at some: for logs and the admin API, not for clients."""
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
        self.peak_s = self.mean_s = 0.0
        """The peak-sensitive average of its latency, to the answer's head, as of `sampled_at`, and the plain one. 0:
        there is none yet."""
        self.failures = 0
        """Those that no good answer has made up for, up to `_TOLERATED`: then it is failing, and they count as slow."""
        self.sampled_at = 0.0
        self.level = nan
        """`DECAY_S * ln(estimate) + sampled_at`: when the estimate will have decayed to 1 s. So that of two endpoints
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
            self.authority = name if port == default_port else b"%b:%d" % (name, port)
            self.resolve([self.dialled[0]])
        self.pool: Pool

    def settled(
        self, seconds: float, now: float, *, failed: bool, limited: bool = False, abandoned: bool = False
    ) -> None:
        """An attempt came to its end, or to its answer's head: after so many seconds, at `now` (the lane's clock).

        `failed`: no answer, or one that says that the server cannot (5xx). `limited`: it says that it would not just
        now (429), which counts as a slow answer but speaks of the caller, not of the server. `abandoned`: nobody waited
        for the end, so that all that is known is how long it took. Call it only where `Upstream.measured`.
        """
        if self.outlier is not None and not abandoned:
            self.outlier.settled(now, failed=failed)
        since = now - self.sampled_at
        peak, mean = self.peak_s, self.mean_s
        if since > 0:
            kept = exp(-since / DECAY_S)
            kept_of_mean = _MEAN_S / (_MEAN_S + since)  # as good as exp, and no call
        else:
            kept = kept_of_mean = 1.0
        sample = seconds
        failing = self.failures == _TOLERATED
        if failed or limited:
            self.failures = min(_TOLERATED, self.failures + 1)
            if self.failures == _TOLERATED:
                sample = max(seconds, min(_WORST_S, max(_LEAST_PENALTY_S, _WORSE * peak * kept)))
                failing = True
            elif seconds <= mean or seconds <= _LEAST_PENALTY_S:
                return
        elif self.failures and not abandoned:
            self.failures -= 1
            if failing:
                mean = sample  # it is back
                failing = False
        mean = sample + (mean - sample) * kept_of_mean if mean and not failing else max(sample, mean)
        peak = sample if sample >= peak else sample + (peak - sample) * kept
        if mean < _FASTEST_S:  # noqa: PLR1730 - `max` takes 0.05 µs
            mean = _FASTEST_S
        if peak < _FASTEST_S:  # noqa: PLR1730
            peak = _FASTEST_S
        self.peak_s, self.mean_s, self.sampled_at = peak, mean, now
        self.level = now + _HALF * log(peak * mean)

    @property
    def ewma_s(self) -> float:
        """The estimate of its latency as of the last answer; 0: there is none yet."""
        return sqrt(self.peak_s * self.mean_s)

    def latency_s(self, now: float) -> float | None:
        """The estimate as of `now`; None where there is none."""
        return self.ewma_s * exp(-max(0.0, now - self.sampled_at) / DECAY_S) or None

    def go_on_from(self, other: Endpoint) -> None:
        """Take over latency and age from the same server's endpoint of the table before.

        Whoever says that it is unhealthy or ejected says so again, if it still does.
        """
        self.peak_s, self.mean_s = other.peak_s, other.mean_s
        self.sampled_at, self.level, self.failures = other.sampled_at, other.level, other.failures
        self.added_at = other.added_at

    def resolve(self, addresses: Sequence[str]) -> None:
        """Set the IP addresses that the name has now; what is not an address is passed over.

        What is kept is what is dialled: nothing is resolved again in between.
        """
        found: list[Address] = []
        refusals: list[str] = []
        self.withheld = False
        for text in addresses:
            try:
                address = ipaddress.ip_address(text.strip("[]"))
            except ValueError:
                continue
            refused = None if self._refusal is None else self._refusal(text)
            if refused is not None:
                refusals.append(refused)
            elif self.guarded and not (is_loopback(text) and self.dialled[0] == self.host):
                self.withheld = True
            elif address.version == 4:
                found.append((socket.AF_INET, (str(address), self.dialled[1])))
            else:
                found.append((socket.AF_INET6, (str(address), self.dialled[1], 0, 0)))
        self.addresses = tuple(found)
        self.refusals = tuple(refusals)
