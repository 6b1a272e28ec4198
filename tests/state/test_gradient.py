"""The adaptive limit against upstreams that are simulated: so many servers, a queue in front of them, open arrivals."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.state.gradient import BEGIN, DIP_EVERY_S, ENOUGH, WINDOW_S, Adaptive

REPORT_S = 0.1


@dataclass
class Change:
    """From `at` on the upstream has so many servers, which take so long for each request."""

    at: float
    servers: int
    service_s: float


@dataclass
class Ended:
    at: float
    took_s: float


class Simulation:
    """`load` times what the upstream can do arrives at random; what the limit does not admit is refused."""

    def __init__(
        self, changes: list[Change], *, load: float = 3.0, spread: float = 0.0, seed: int = 1
    ) -> None:
        self.limit = Adaptive(4, 1000, 0)
        self.ended: list[Ended] = []
        self._changes = deque(changes)
        self._load = load
        self._spread = spread
        self._random = random.Random(seed)
        self._serving: list[tuple[float, int, float]] = []
        self._queue: deque[float] = deque()
        self._numbers = itertools.count()
        self._since = 0.0
        self._samples: list[float] = []

    @property
    def inflight(self) -> int:
        return len(self._serving) + len(self._queue)

    def run(self, until: float) -> None:
        now, arrival, report = 0.0, 0.0, REPORT_S
        while now < until:
            times = [
                arrival,
                report,
                *(end for end, _, _ in self._serving[:1]),
                *(c.at for c in [*self._changes][:1]),
            ]
            now = min(times)
            if self._changes and self._changes[0].at <= now:
                self._now = self._changes.popleft()
            elif self._serving and self._serving[0][0] <= now:
                _, _, began = heapq.heappop(self._serving)
                self.ended.append(Ended(now, now - began))
                if began >= self._since:
                    self._samples.append(now - began)
            elif report <= now:
                report += REPORT_S
                wanted = self.limit.limit if self._load > 1 else self.inflight
                if self.limit.take(self._samples, 0, wanted, round(now * 1e6)):
                    self._since = now
                self._samples = []
            else:
                arrival += self._random.expovariate(self._load * self._now.servers / self._now.service_s)
                if self.inflight < self.limit.limit:
                    self._queue.append(now)
            while self._queue and len(self._serving) < self._now.servers:
                service = self._now.service_s * (1 + self._spread * self._random.uniform(-1, 1))
                heapq.heappush(self._serving, (now + service, next(self._numbers), self._queue.popleft()))

    def between(self, begin: float, end: float, now: Change) -> tuple[float, float]:
        """Throughput as a part of what the upstream can do, and latency as a multiple of what it takes."""
        some = [each for each in self.ended if begin <= each.at < end]
        latency = sum(each.took_s for each in some) / len(some)
        return len(some) / (end - begin) * now.service_s / now.servers, latency / now.service_s


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize(("servers", "service_s"), [(40, 0.1), (100, 0.05), (10, 0.02)])
@pytest.mark.parametrize("how", ["fewer", "slower"])
def test_limit_follows_a_capacity_that_halves_and_doubles(
    servers: int, service_s: float, spread: float, how: str
) -> None:
    """From 5 s after each change: latency within twice what the upstream takes, throughput within 90 %."""
    whole = Change(0.0, servers, service_s)
    half = Change(15.0, servers // 2, service_s) if how == "fewer" else Change(15.0, servers, 2 * service_s)
    again = Change(30.0, servers, service_s)
    simulation = Simulation([whole, half, again], spread=spread)
    simulation.run(45.0)
    for change in (whole, half, again):
        throughput, latency = simulation.between(change.at + 5, change.at + 15, change)
        assert throughput >= 0.9
        assert latency <= 2.0


def test_limit_that_is_not_in_use_stays() -> None:
    simulation = Simulation([Change(0.0, 100, 0.05)], load=0.02)
    simulation.run(20.0)
    assert simulation.limit.limit == BEGIN
    assert simulation.limit.base_s == pytest.approx(0.05)


def feed(limit: Adaptive, seconds: float, latency: float, *, start_us: int = 0, drops: int = 0) -> int:
    """A limit in full use sees this latency for so long; the time afterwards."""
    now_us = start_us
    while now_us < start_us + seconds * 1e6:
        now_us += 50_000
        limit.take([latency] * ENOUGH, drops, limit.limit, now_us)
    return now_us


def test_limit_grows_while_latency_stays() -> None:
    limit = Adaptive(4, 300, 0)
    feed(limit, 2.5, 0.02)
    assert limit.limit == 300


def test_limit_falls_by_half_at_most_in_a_window() -> None:
    limit = Adaptive(4, 1000, 0)
    now_us = feed(limit, 1.0, 0.02)
    before = limit.limit
    assert limit.take([2.0] * ENOUGH, 0, before, now_us + 200_000)
    assert before / 2 <= limit.limit < 0.7 * before


def test_limit_dips_now_and_then_and_returns() -> None:
    limit = Adaptive(4, 100, 0)
    now_us = feed(limit, DIP_EVERY_S, 0.02)
    seen = set()
    for _ in range(100):
        now_us = feed(limit, 0.05, 0.02 * max(1.0, limit.limit / 80), start_us=now_us)
        seen.add(limit.limit)
    assert min(seen) < 80 < max(seen)


def test_limit_measures_again_when_the_upstream_itself_is_slower() -> None:
    limit = Adaptive(4, 100, 0)
    now_us = feed(limit, 1.0, 0.02)
    feed(limit, 2.5, 0.06, start_us=now_us)
    assert limit.base_s == pytest.approx(0.06, rel=0.1)


def test_refusals_of_the_upstream_take_a_tenth_off() -> None:
    limit = Adaptive(4, 1000, 0)
    limit.take([0.01] * 10, 20, 20, 200_000)
    assert limit.limit == BEGIN * 9 // 10
    for step in range(50):
        limit.take([], ENOUGH, 20, 400_000 + step * 200_000)
    assert limit.limit == 4


def test_few_samples_wait_for_more() -> None:
    limit = Adaptive(4, 1000, 0)
    assert not limit.take([0.1] * (ENOUGH - 1), 0, 20, round(WINDOW_S * 1e6))
    assert limit.base_s is None
    limit.take([0.1], 0, 20, round(WINDOW_S * 1e6))
    assert limit.base_s == 0.1


def test_bounds_can_change() -> None:
    limit = Adaptive(4, 1000, 0)
    limit.bound(30, 40)
    assert limit.limit == 30
    limit.bound(2, 5)
    assert limit.limit == 5


REPORTS = st.lists(
    st.tuples(
        st.lists(st.floats(0, 100), max_size=60), st.integers(0, 50), st.integers(0, 2000), st.integers(0, 10_000_000)
    ),
    max_size=60,
)  # fmt: skip


@given(st.integers(1, 50), st.integers(1, 2000), REPORTS)
def test_limit_stays_within_its_bounds_whatever_is_told(
    least: int, most: int, reports: list[tuple[list[float], int, int, int]]
) -> None:
    limit = Adaptive(least, most, 0)
    now_us = 0
    for samples, drops, in_use, passed_us in reports:
        now_us += passed_us
        before = limit.limit
        changed = limit.take(samples, drops, in_use, now_us)
        assert least <= limit.limit <= max(least, most)
        assert changed == (limit.limit != before)
