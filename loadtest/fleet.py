"""Simulates rate limits over a fleet: `python -m loadtest fleet`.

The store's bucket and the workers' holdings are the service's own (`ambassador.state.bucket`, `.holding`); everything
around them is a list of events on a clock of its own. No sockets, no processes: a thousand workers fit into one.

A worker's requests come as a Poisson stream. One that finds no token waits for the lease that is out, or causes one;
what the store's answer does not cover is refused, as `mode: strict` does without `wait`. Each way between worker and
store takes half of the round trip, RTT_S where the scenario says nothing else. Nobody falls back on anything: where the
store is far away the service makes requests wait less than is shown here.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from ambassador.state import bucket
from ambassador.state.holding import Holding, Load, terms
from ambassador.state.protocol import Lease, Leased
from loadtest import report

RTT_S = 0.001
WORKERS = (4, 64, 1024)
REQUESTS = 100_000
"""About so many are simulated in each scenario, within the bounds of its length."""
MOST_OF_BUSY = 64
"""With more workers 60 busy keys are over a million requests a second, which takes minutes to simulate."""
SCHEMA = 2
COSTLY = (
    ("cost 4", "10/s, burst 20, each takes 4, 300 %", 10.0, 20, (4,)),
    ("cost 8", "10/s, burst 20, each takes 8, 300 %", 10.0, 20, (8,)),
    ("cost 10", "100/s, burst 100, each takes 10, 300 %", 100.0, 100, (10,)),
    ("mixed costs", "10/s, burst 20, of 8 one takes 8, the others 1, 300 %", 10.0, 20, (1,) * 7 + (8,)),
)
"""Name, load, rate, burst and costs of the scenarios in which requests cost more than one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is simulated. `demand` is in parts of the limit; `keys` share nothing; `skew` is the exponent of Zipf's law
    by which the demand is spread over workers (0: evenly). `shortest_s` and `longest_s` bound the simulated time.
    """

    name: str
    about: str
    workers: int
    rate: float
    burst: int
    demand: float
    skew: float = 0.0
    keys: int = 1
    costs: tuple[int, ...] = (1,)
    """What a request takes: one of these, all as often. `rate`, `burst` and `demand` are in tokens."""
    rtt_s: float = RTT_S
    jitter: float = 0.0
    """By how much of itself each way takes more or less, at most."""
    shortest_s: float = 4.0
    longest_s: float = 2000.0

    @property
    def seconds(self) -> float:
        """How long it is simulated."""
        wanted = REQUESTS * self.mean_cost / (self.rate * self.demand * self.keys)
        return min(self.longest_s, max(self.shortest_s, wanted))

    @property
    def mean_cost(self) -> float:
        """Tokens that a request takes on average."""
        return sum(self.costs) / len(self.costs)


def scenarios(workers: int) -> list[Scenario]:
    """What is simulated with so many workers."""
    rate = 100.0 * workers
    busy = Scenario(
        name="busy keys",
        about="60 keys, each at 8 %",
        workers=workers,
        rate=250.0 * workers,
        burst=250 * workers,
        demand=1 / 12,
        keys=60,
        shortest_s=1.0,
    )
    return [
        Scenario(
            name="under", about="80 % of the limit", workers=workers, rate=rate, burst=int(rate), demand=0.8
        ),
        Scenario(
            name="at", about="100 % of the limit", workers=workers, rate=rate, burst=int(rate), demand=1.0
        ),
        Scenario(
            name="over", about="300 % of the limit", workers=workers, rate=rate, burst=int(rate), demand=3.0
        ),
        Scenario(
            name="skewed under",
            about="80 %, spread by Zipf's law",
            workers=workers,
            rate=rate,
            burst=int(rate),
            demand=0.8,
            skew=1.0,
        ),
        Scenario(
            name="skewed over",
            about="300 %, spread by Zipf's law",
            workers=workers,
            rate=rate,
            burst=int(rate),
            demand=3.0,
            skew=1.0,
        ),
        Scenario(
            name="small burst", about="20/s, burst 20, 300 %", workers=workers, rate=20, burst=20, demand=3.0
        ),
        Scenario(
            name="tiny burst", about="10/s, burst 2, 300 %", workers=workers, rate=10, burst=2, demand=3.0
        ),
        Scenario(
            name="cold keys",
            about="1000 keys of 10/s, each at 20 %",
            workers=workers,
            rate=10,
            burst=10,
            demand=0.2,
            keys=1000,
        ),
        Scenario(
            name="far store",
            about="80 %, 30 ms ± 40 % to the store",
            workers=workers,
            rate=250.0 * workers,
            burst=250 * workers,
            demand=0.8,
            rtt_s=0.03,
            jitter=0.4,
        ),
        *(
            Scenario(name=name, about=about, workers=workers, rate=rate, burst=burst, demand=3.0, costs=costs)
            for name, about, rate, burst, costs in COSTLY
        ),
        *([busy] if workers <= MOST_OF_BUSY else []),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a scenario."""

    scenario: Scenario
    seconds: float
    requests: int
    asked: int
    """Tokens that they would take, as are the next two."""
    admitted: int
    possible: int
    """What a single bucket of the whole limit, asked by everybody for nothing, would have admitted: the smaller of the
    demand and burst + rate * time, over all keys."""
    excess: float
    """The most that was admitted in any window beyond burst + rate * length, of all keys: never above 0."""
    fairness: float
    """Jain's index over the workers, of the part of its tokens that each had admitted: 1 is perfectly fair."""
    greatest: float
    """The part of the requests of the greatest cost that was admitted, in parts of that of all tokens."""
    waited: float
    """Part of the requests that waited for the store, for one round trip mostly."""
    expired: float
    """Leased tokens that nobody spent in time, in parts of all that were leased."""
    operations: float
    """Leases a second, of the whole fleet."""


class _Worker:
    """One worker: what it holds of each key, and who waits for it."""

    __slots__ = ("admitted", "asked", "holdings", "load", "rate", "waiting")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.load = Load()
        self.holdings: dict[int, Holding] = {}
        self.waiting: dict[int, deque[tuple[int, bool]]] = {}
        """Of each key, what each takes, and whether a lease was sent that counts it."""
        self.asked = 0
        self.admitted = 0
        """Tokens."""


class Simulation:
    """One scenario, run once. The same seed gives the same outcome."""

    def __init__(self, scenario: Scenario, seed: int = 1) -> None:
        self._scenario = scenario
        self._random = random.Random(seed)
        self._terms = terms(scenario.rate, scenario.burst)
        self._workers = [_Worker(rate) for rate in _spread(scenario)]
        self._buckets: dict[int, bucket.Bucket] = {}
        self._events: list[tuple[float, int, int, int, Lease | Leased | None, Lease | None]] = []
        self._number = 0
        self._operations = 0
        self._waited = 0
        self._times: dict[int, list[tuple[float, int]]] = {}
        self._requests: Counter[int] = Counter()
        """By what they take."""
        self._admitted: Counter[int] = Counter()

    def run(self) -> Outcome:
        """Simulate it."""
        end = self._scenario.seconds
        for number, worker in enumerate(self._workers):
            if worker.rate:
                self._at(self._random.expovariate(worker.rate), number, 0)
        while self._events and self._events[0][0] < end:
            now, _, number, key, what, asked = heapq.heappop(self._events)
            if what is None:
                self._at(now + self._random.expovariate(self._workers[number].rate), number, 0)
                self._arrives(now, number)
            elif isinstance(what, Lease):
                self._at(now + self._way_s(), number, key, self._perform(key, what, now), what)
            else:
                assert asked is not None
                self._answered(now, number, key, what, asked)
        return self._outcome(end)

    def _at(
        self,
        time: float,
        worker: int,
        key: int,
        what: Lease | Leased | None = None,
        asked: Lease | None = None,
    ) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, worker, key, what, asked))

    def _way_s(self) -> float:
        scenario = self._scenario
        way_s = scenario.rtt_s / 2
        return way_s * (1 + scenario.jitter * (2 * self._random.random() - 1)) if scenario.jitter else way_s

    def _perform(self, key: int, lease: Lease, now: float) -> Leased:
        self._operations += 1
        now_us = int(now * 1e6)
        found = self._buckets.get(key)
        if found is None:
            found = self._buckets[key] = bucket.first(lease, now_us, None)
        return found.lease(lease, now_us)

    def _arrives(self, now: float, number: int) -> None:
        worker = self._workers[number]
        costs = self._scenario.costs
        cost = costs[0] if len(costs) == 1 else self._random.choice(costs)
        worker.asked += cost
        self._requests[cost] += 1
        key = self._random.randrange(self._scenario.keys) if self._scenario.keys > 1 else 0
        holding = worker.holdings.get(key)
        if holding is None:
            holding = worker.holdings[key] = Holding(str(key), self._terms, now)
            worker.waiting[key] = deque()
        queue = worker.waiting[key]
        if not queue and holding.take(cost, now):
            self._admit(worker, key, cost, now)
            self._ask(now, number, key, holding)
            return
        holding.arrive(cost)
        if not queue:
            holding.starve(cost)
        if now < holding.held_until and not holding.asking:
            return
        lacks = cost - holding.tokens(now)
        if not holding.asking and holding.retry_after_s(lacks, now) > 0.0 and now - holding.seen_at < 1.0:
            return
        self._waited += 1
        queue.append((cost, False))
        self._ask(now, number, key, holding)

    def _admit(self, worker: _Worker, key: int, cost: int, now: float) -> None:
        worker.admitted += cost
        self._admitted[cost] += 1
        self._times.setdefault(key, []).append((now, cost))

    def _ask(self, now: float, number: int, key: int, holding: Holding) -> None:
        worker = self._workers[number]
        queue = worker.waiting[key]
        first = queue[0][0] if queue else 1
        fresh = sum(cost for cost, counted in queue if not counted)
        lease = holding.ask(
            now,
            worker.load,
            waiting=float(sum(cost for cost, _ in queue)),
            fresh=float(fresh or (first if queue else 0)),
            first=float(first),
        )
        if lease is not None:
            worker.waiting[key] = deque((cost, True) for cost, _ in queue)
            self._at(now + self._way_s(), number, key, lease)

    def _answered(self, now: float, number: int, key: int, answer: Leased, asked: Lease) -> None:
        worker = self._workers[number]
        holding = worker.holdings[key]
        holding.answered(answer, asked, now, self._random.random(), worker.load)
        queue = worker.waiting[key]
        while queue and holding.take(queue[0][0], now):
            cost, _ = queue.popleft()
            holding.unarrive(cost)
            self._admit(worker, key, cost, now)
        if queue and now < holding.held_until:
            queue.clear()
        self._ask(now, number, key, holding)

    def _outcome(self, seconds: float) -> Outcome:
        scenario, workers = self._scenario, self._workers
        parts = [worker.admitted / worker.asked for worker in workers if worker.asked]
        holdings = [holding for worker in workers for holding in worker.holdings.values()]
        leased = sum(holding.leased for holding in holdings)
        asked = sum(worker.asked for worker in workers)
        admitted = sum(worker.admitted for worker in workers)
        requests = self._requests.total()
        greatest = max(self._requests)
        most = (scenario.burst + scenario.rate * seconds) * scenario.keys
        return Outcome(
            scenario=scenario,
            seconds=seconds,
            requests=requests,
            asked=asked,
            admitted=admitted,
            possible=int(min(asked, most)),
            excess=max(excess(times, scenario.rate) for times in self._times.values()) - scenario.burst,
            fairness=jain(parts),
            greatest=self._admitted[greatest] / self._requests[greatest] / (admitted / asked),
            waited=self._waited / requests,
            expired=sum(holding.expired for holding in holdings) / leased,
            operations=self._operations / seconds,
        )


def _spread(scenario: Scenario) -> list[float]:
    """What each worker is asked, requests a second."""
    weights = [1 / (number + 1) ** scenario.skew for number in range(scenario.workers)]
    whole = scenario.rate * scenario.demand * scenario.keys / scenario.mean_cost
    return [whole * weight / sum(weights) for weight in weights]


def excess(taken: Sequence[tuple[float, int]], rate: float) -> float:
    """The most that was admitted in any window beyond rate * its length: `taken` are times in order, and tokens."""
    most, least = 0.0, float("inf")
    count = 0
    for time, cost in taken:
        least = min(least, count - rate * time)
        count += cost
        most = max(most, count - rate * time - least)
    return most


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all are the same, 1/n when one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def run(workers: Sequence[int]) -> Iterator[Outcome]:
    """All scenarios with each number of workers."""
    for count in workers:
        for scenario in scenarios(count):
            yield Simulation(scenario).run()


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as Markdown."""
    heads = [
        "workers", "scenario", "load", "admitted of possible", "over, of the burst", "Jain", "waited", "expired",
        "leases/s", "requests/s",
    ]  # fmt: skip
    rows = (
        [
            f"{outcome.scenario.workers:,}",
            outcome.scenario.name,
            outcome.scenario.about,
            f"{outcome.admitted / outcome.possible:.1%}",
            f"{outcome.excess / outcome.scenario.burst:+.1%}",
            f"{outcome.fairness:.3f}",
            f"{outcome.waited:.1%}",
            f"{outcome.expired:.1%}",
            f"{outcome.operations:,.0f}",
            f"{outcome.requests / outcome.seconds:,.0f}",
        ]
        for outcome in outcomes
    )
    return report.table(heads, rows, left=(1, 2))


def document(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The outcomes for JSON."""
    return {"schema": SCHEMA, "rtt_s": RTT_S, "outcomes": [asdict(outcome) for outcome in outcomes]}


def never_over(outcomes: Sequence[Outcome]) -> bool:
    """Whether the promise was kept: bursts under 5 may exceed by what comes in 50 ms (contract of `limit`)."""
    return all(
        outcome.excess <= (outcome.scenario.rate * 0.05 if outcome.scenario.burst < 5 else 1e-6)
        for outcome in outcomes
    )
