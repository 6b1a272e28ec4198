"""Active health checks: their settings, and what a row of results makes of an endpoint. Pure.

The supervisor makes the checks (`control/health.py`), once for all workers of a replica; a worker is told which
endpoints are unhealthy, and marks them (`Marks`).

Rise, fall and the shorter pause while something changes are HAProxy's (`rise`, `fall`, `fastinter`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from ambassador.proxy.statuses import spelt_out
from ambassador.settings import Count, Path, Seconds, Section, StatusRange

if TYPE_CHECKING:
    from ambassador.proxy.upstream.endpoint import Outlier

HURRY_S: Final = 0.25
"""From one check to the next while an endpoint is changing, and while nothing of its upstream is healthy."""

_PATH: Final = "/healthz"
_EXPECT: Final = ("200-399",)
_JITTER: Final = 0.1
"""Pauses are up to this share shorter or longer, so that replicas do not fall into step."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether an endpoint is asked, now and then, if it is well. One that is not gets no requests."""

    shorthand: ClassVar[str | None] = "path"
    later: ClassVar[Mapping[str, tuple[str, ...]]] = {"grpc": ("off", "false")}

    path: Path = _PATH
    """What is asked for, with GET."""

    tcp: bool = False
    """Only whether a connection can be made; `path` and `expect` do not apply."""

    every: Seconds = 5.0
    """From one check to the next, ±10 %. It is 250 ms while an endpoint is changing, and while no endpoint of the
    upstream is healthy."""

    timeout: Seconds = 1.0
    """How long a check may take, connecting too. Longer counts as failed."""

    rise: Count = 2
    """Checks in a row that must succeed until an unhealthy endpoint is healthy again."""

    fall: Count = 3
    """Checks in a row that must fail until a healthy endpoint is unhealthy. Endpoints begin healthy."""

    expect: tuple[StatusRange, ...] = _EXPECT
    """The statuses of a healthy endpoint: `200`, `200-399`, `2xx`."""

    @property
    def statuses(self) -> frozenset[int]:
        """`expect` spelt out."""
        return spelt_out(self.expect, ())

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """What only makes sense with HTTP."""
        if self.tcp:
            for key, default in (("path", _PATH), ("expect", _EXPECT)):
                if getattr(self, key) != default:
                    yield key, "says nothing with 'tcp: true', which only connects"


class Standing:
    """What the checks of one endpoint have shown, of which every result is told to `took`."""

    __slots__ = ("_fall", "_rise", "_streak", "healthy", "known")

    def __init__(self, *, rise: int, fall: int) -> None:
        self._rise = rise
        self._fall = fall
        self._streak = 0
        self.healthy = True
        self.known = False
        """A check has ended, and `healthy` is more than an assumption."""

    def took(self, *, passed: bool) -> bool:
        """Take a result; whether `healthy` has changed."""
        if not self.known and passed:
            self.known = True  # the assumption was right: nothing has to be shown first
        if passed == self.healthy:
            self._streak = 0
            return False
        self._streak += 1
        if self._streak < (self._rise if passed else self._fall):
            return False
        self.known = True
        self.healthy = passed
        self._streak = 0
        return True

    @property
    def changing(self) -> bool:
        """The last results speak against `healthy`, or there is none that speaks for it."""
        return self._streak > 0 or not self.known


def pause_s(config: Config, standing: Standing, *, bleak: bool, least_s: float, chance: float) -> float:
    """Seconds from the beginning of a check to that of the next.

    `bleak`: nothing of the upstream is healthy. `least_s`: what it is at least, since there are many endpoints;
    `chance`: in [0, 1).
    """
    every = min(config.every, HURRY_S) if bleak or standing.changing else config.every
    return max(every, least_s) * (1 - _JITTER + 2 * _JITTER * chance)


class Endpoint(Protocol):
    """One server."""

    @property
    def url(self) -> str:
        """Its name."""

    @property
    def outlier(self) -> Outlier | None:
        """Who may have ejected it."""

    healthy: bool
    why: str


class Upstream(Protocol):
    """A service."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Its servers."""

    def follow(self, told: Callable[[Upstream], None]) -> None:
        """Have `told` called when these are others."""

    def refresh(self) -> None:
        """Work out anew who is picked."""


class Marks:
    """The unhealthy endpoints that a worker knows of, by upstream and url, each with the reason.

    One for a worker's life: what is known outlives the tables.
    """

    __slots__ = ("_unhealthy", "_upstreams")

    def __init__(self, unhealthy: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._unhealthy = dict(unhealthy or {})
        self._upstreams: dict[str, Upstream] = {}

    def install(self, upstreams: Iterable[Upstream]) -> None:
        """These are the upstreams with checks of the table that is served from now on."""
        self._upstreams = {upstream.name: upstream for upstream in upstreams}
        for upstream in self._upstreams.values():
            upstream.follow(self._mark)
            self._mark(upstream)

    def learn(self, unhealthy: Mapping[str, Mapping[str, str]]) -> None:
        """These, and no others, are unhealthy now of the upstreams that are named."""
        self._unhealthy.update(unhealthy)
        for name in unhealthy:
            if name in self._upstreams:
                self._mark(self._upstreams[name])

    def _mark(self, upstream: Upstream) -> None:
        unhealthy = self._unhealthy.get(upstream.name, {})
        changed = False
        for endpoint in upstream.endpoints:
            why = unhealthy.get(endpoint.url)
            if why is not None or not endpoint.healthy:
                changed |= endpoint.healthy != (why is None)
                endpoint.healthy, endpoint.why = why is None, why or ""
                if why is None and endpoint.outlier is not None:
                    endpoint.outlier.recovered()
        if changed:
            upstream.refresh()
