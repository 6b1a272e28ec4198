"""How soon a whole fleet has stopped after the outcome that opens a breaker, and how carefully it tries again.

Trips: several upstreams, each with a breaker of its own, fail in turns for a while. The outcomes that the origin gave
are replayed through the breaker's rule (`windows.crossing_us`): the first at which it is met is the moment of the trip,
had everybody known everything at once. The figure is how much later the last request arrived that any worker had let
through; below 0 it was let through before.

Probes: upstreams fail, and then hang. How many requests were at the origin at once, of the whole fleet?
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ambassador.state.protocol import Rules
from loadtest.shared import windows
from loadtest.shared.bench import Bench, upstream
from loadtest.shared.driver import Stream
from loadtest.shared.findings import Findings
from loadtest.shared.windows import Outcome
from loadtest.shared.witness import HANG, Seen
from loadtest.waits import sleep_until

UPSTREAMS = 10
BASE_PER_S = 16.0
PRESSED_PER_S = 400.0
"""While it fails: so a request comes every 2.5 ms, which is how finely a trip is seen."""
FAILS_S = 0.45
WINDOW_S = 10.0
"""The default. Outcomes since the last closing fit into it. (Good ones are told up to 200 ms late, and stay in the
store's window for as much longer: with a window of 1 s that alone made trips 80 ms late in the median.)"""
CALM_S = 1.0
"""From the end of the ramp to the next failure."""
BEGIN_S = 2.0
PROBES = 3
RAMP_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trips:
    """One series. `open_s`: how long the breakers stay open; `rounds` of each upstream."""

    name: str
    open_s: float
    rounds: int
    most_ms: float
    muted: bool = False
    """Nothing that is published arrives."""

    @property
    def period_s(self) -> float:
        """From one failure of an upstream to its next: opened, probed, and ramped up."""
        return FAILS_S + self.open_s + RAMP_S + CALM_S + 0.3


TRIPS = (
    Trips(name="trip", open_s=0.3, rounds=10, most_ms=50),
    Trips(name="trip, no events", open_s=1.8, rounds=8, most_ms=1200, muted=True),
)


def rules(open_s: float) -> Rules:
    """The breakers' rules, as the store has them."""
    open_ms = round(open_s * 1000)
    return Rules(
        errors=0.5,
        slow=2.0,
        min_requests=20,
        window_ms=round(WINDOW_S * 1000),
        quorum=0.3,
        open_ms=open_ms,
        max_open_ms=open_ms,
        probes=PROBES,
    )


def make(
    open_s: float, origin_port: int, *, window_s: float = WINDOW_S, per_try: str = "10s"
) -> tuple[Mapping[str, object], Sequence[Mapping[str, object]]]:
    """Upstreams and routes: so many of each."""
    breaker = {
        "errors": "50%",
        "min_requests": 20,
        "window": f"{window_s:g}s",
        "quorum": "30%",
        "consecutive": 0,
        "open_for": f"{round(open_s * 1000)}ms",
        "probes": PROBES,
    }
    upstreams = {f"u{number}": upstream(origin_port, breaker=breaker) for number in range(UPSTREAMS)}
    routes = [
        {
            "name": f"r{number}",
            "match": {"path": f"/{number}/**"},
            "to": f"u{number}",
            "timeout": {"per_try": per_try, "total": "15s"},
            "retry": {"attempts": 0},
        }
        for number in range(UPSTREAMS)
    ]
    return upstreams, routes


def run(bench: Bench, trips: Trips, tell: Callable[[str], None], findings: Findings) -> None:
    """Measure a series of trips."""
    period = trips.period_s
    starts = [
        (BEGIN_S + turn * period + number * period / UPSTREAMS, number)
        for turn in range(trips.rounds)
        for number in range(UPSTREAMS)
    ]
    end = starts[-1][0] + FAILS_S + 0.5
    weights = (1.0,) * len(bench.gates)
    streams = [
        Stream(case=number, rate=BASE_PER_S, end_s=end, weights=weights) for number in range(UPSTREAMS)
    ]
    streams += [
        Stream(
            case=number,
            rate=PRESSED_PER_S,
            begin_s=at,
            end_s=at + FAILS_S,
            weights=weights,
        )
        for at, number in starts
    ]
    if trips.muted and bench.faults is not None:
        bench.faults.set(mute_events=True)
    tell(f"{trips.name}: {len(starts)} trips, {end:.0f} s")
    changes: dict[int, list[tuple[int, int]]] = {number: [] for number in range(UPSTREAMS)}
    owners: dict[int, tuple[str, int]] = {}

    def during(began: float) -> None:
        events = sorted(
            [(at, number, 500) for at, number in starts]
            + [(at + FAILS_S, number, 200) for at, number in starts]
        )
        for at, number, status in events:
            sleep_until(began + at)
            changes[number].append((bench.origin.call("behave", number, status), status))
        owners.update(bench.owners())

    outcome = bench.run(streams, during=during)
    delays, leaked, lost, unknown = [], 0, 0, sum(each.port not in owners for each in outcome.seen)
    for number in range(UPSTREAMS):
        seen = sorted((each for each in outcome.seen if each.case == number), key=lambda each: each.ended_ns)
        healed = None
        for at, status in changes[number]:
            if status == 200:
                healed = at
                continue
            trip = _trip(seen, healed, at, owners, trips, replicas=len(bench.replicas))
            if trip is None:
                lost += 1
            else:
                delays.append(trip[0])
                leaked += trip[1]
    errors = sum(each.status not in (200, 500, 503) for each in outcome.answers)
    p50, p99 = windows.percentile(delays, 0.5), windows.percentile(delays, 0.99)
    longest = max(delays, default=float("nan"))
    findings.add(
        {
            "case": trips.name, "trips": len(delays), "not_tripped": lost, "p50_ms": p50, "p99_ms": p99,
            "longest_ms": longest, "leaked": leaked, "errors": errors, "delays_ms": delays,
            "of_unknown_workers": unknown,
        },
        trips.name, str(len(delays)), str(lost), f"{p50:.1f}", f"{p99:.1f}", f"{longest:.1f}",
        f"{leaked / max(1, len(delays)):.1f}", str(errors),
    )  # fmt: skip
    findings.check(f"{trips.name}: p99", p99, trips.most_ms, " ms")
    findings.check(f"{trips.name}: trips that did not come", lost, 0)
    findings.check(f"{trips.name}: errors", errors, 0)


def new_findings() -> Findings:
    """For `run`."""
    return Findings(
        "breaker-trip",
        (
            "case",
            "trips",
            "not tripped",
            "p50 ms",
            "p99 ms",
            "longest ms",
            "let through late, a trip",
            "errors",
        ),
    )


def _trip(
    seen: Sequence[Seen],
    healed: int | None,
    since: int,
    owners: Mapping[int, tuple[str, int]],
    trips: Trips,
    *,
    replicas: int,
) -> tuple[float, int] | None:
    """How late the last request was at the trip that began to fail at `since`, in ms, and how many were late.

    `seen` are the upstream's, by their ends; it was well from `healed` on (None: always). None: there was no trip.
    """
    to_unix = time.time_ns() - time.monotonic_ns()
    open_ns = trips.open_s * 1e9
    closed = 0
    if healed is not None:
        # The first good answers after it was well are those of the probes that closed the circuit.
        good = [each.ended_ns for each in seen if healed < each.ended_ns < since and each.status == 200]
        if len(good) < PROBES:
            return None
        closed = good[PROBES - 1]
    outcomes = [
        Outcome((each.ended_ns + to_unix) // 1000, *owners[each.port], each.status == 500)
        for each in seen
        if closed < each.ended_ns < since + FAILS_S * 1e9 and each.port in owners
    ]
    workers = len(set(owners.values()))
    crossed_us = windows.crossing_us(outcomes, rules(trips.open_s), replicas=replicas, workers=workers)
    if crossed_us is None:
        return None
    crossed = crossed_us * 1000 - to_unix
    # Later ones may be probes.
    before_probes = crossed + min(open_ns * 0.9 - 30e6, 1.5e9)
    admitted = [each.arrived_ns for each in seen if since < each.arrived_ns < before_probes]
    if not admitted:
        return None
    last = max(admitted)
    return (last - crossed) / 1e6, sum(at > crossed for at in admitted)


# ----- probes -----

PROBED_WINDOW_S = 1.0
"""Short: what fails from `BEGIN_S` on must be half of it before `HANG_BEGIN_S`, or no breaker is half-open by then."""
HANG_BEGIN_S = 3.2
LATE_S = 5.0
"""A breaker may open so much later, on a busy machine, before its upstream hangs all the same."""
HEARD_S = 0.2
"""From when a breaker is told to be open to when no request that passed it before is on its way any more."""
HANG_S = 5.0
PER_TRY_S = 1.0
CLOSES_S = 3.0
LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class Hang:
    """When one upstream began to hang, and when it was well again (monotonic nanoseconds)."""

    begin_ns: int
    end_ns: int


def run_probes(bench: Bench, tell: Callable[[str], None], findings: Findings) -> None:
    """Have upstreams hang while their breakers are half-open, and then be slow."""
    tell("probes at a hanging upstream")
    weights = (1.0,) * len(bench.gates)
    end = HANG_BEGIN_S + LATE_S + HEARD_S + HANG_S + CLOSES_S
    streams = [Stream(case=number, rate=150, end_s=end, weights=weights) for number in range(UPSTREAMS)]
    hangs: list[Hang] = []
    away = False

    def during(began: float) -> None:
        nonlocal away
        sleep_until(began + BEGIN_S)
        _behave(bench, 500)
        sleep_until(began + HANG_BEGIN_S)
        # What a closed breaker lets through is no probe: 30 of those hung at once where it opened late.
        while not _all_open(bench) and time.monotonic() < began + HANG_BEGIN_S + LATE_S:
            time.sleep(LOOK_S / 5)
        time.sleep(HEARD_S)
        began_ns = _behave(bench, 200, HANG)
        until = time.monotonic() + HANG_S
        while time.monotonic() < until:
            away |= bench.metric("ambassador_state_up") < len(bench.replicas)
            time.sleep(LOOK_S)
        hangs.extend(map(Hang, began_ns, _behave(bench, 200, 0.2)))

    outcome = bench.run(streams, during=during)
    most, probes = most_probes(outcome.seen, hangs)
    closed = sum(
        any(
            each.status == 200 and 1e9 < each.due_ns - hang.end_ns < CLOSES_S * 1e9
            for each in outcome.answered(number)
        )
        for number, hang in enumerate(hangs)
    )
    allowed = most_allowed(len(bench.gates), away=away)
    findings.add(
        {
            "breakers": UPSTREAMS, "probes": probes, "most_at_once": most, "allowed": allowed, "store_away": away,
            "closed_again": closed,
        },
        str(UPSTREAMS), str(probes), str(most), str(allowed), str(closed),
    )  # fmt: skip
    findings.check("probes of the fleet at once", most, allowed)
    findings.check("probes that were seen", probes, UPSTREAMS, least=True)
    findings.check("breakers closed within 3 s of a healthy upstream", closed, UPSTREAMS, least=True)


def most_allowed(workers: int, *, away: bool) -> int:
    """So many probes may be at one upstream at once. `away`: some worker was without the store for a while.

    Each worker probes by itself then, unless it has a probe of the fleet's under way (contract 7.9).
    """
    return PROBES + workers - 1 if away else PROBES


def most_probes(seen: Sequence[Seen], hangs: Sequence[Hang]) -> tuple[int, int]:
    """How many requests were at one upstream at once that came while it hung, and how many came in all."""
    most = probes = 0
    for number, hang in enumerate(hangs):
        intervals = [
            (each.arrived_ns / 1e9, each.ended_ns / 1e9)
            for each in seen
            if each.case == number and hang.begin_ns < each.arrived_ns < hang.end_ns
        ]
        probes += len(intervals)
        most = max(most, windows.most_at_once(intervals))
    return most, probes


def _behave(bench: Bench, status: int, delay_s: float = 0.0) -> list[int]:
    """Have all upstreams answer so; since when each does."""
    return [bench.origin.call("behave", number, status, delay_s) for number in range(UPSTREAMS)]


def _all_open(bench: Bench) -> bool:
    """Whether every replica tells that every breaker has opened."""
    return all(
        breaker["state"] != "closed"
        for replica in bench.replicas
        for breaker in json.loads(replica.get("/api/breakers"))
    )


def new_probe_findings() -> Findings:
    """For `run_probes`."""
    return Findings(
        "half-open", ("breakers", "probes that hung", "most at once", "allowed", "closed again"), left=0
    )
