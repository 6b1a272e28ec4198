"""Whether limits hold, how much of them can be used, and what they ask of the store.

Each case is a limit of its own, with a loud client (key 0) that asks for a part or a multiple of it, and a quiet one
(key 1) at QUIET_PER_S, which must never be refused. What was admitted is what arrived at the origin.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ambassador.state.holding import KEY_OPS, Terms, terms
from loadtest.shared import windows
from loadtest.shared.bench import Bench, Run, upstream
from loadtest.shared.driver import Stream
from loadtest.shared.findings import Findings
from loadtest.waits import sleep_until

QUIET_PER_S = 5.0
"""Where something presses. Elsewhere 1: each request of a client so quiet waits for its lease, which is by design."""
WARM_S = 1.5
"""Until then the burst is spent; the use of the rate is measured afterwards."""
SECONDS = 6.0
EVEN = (1.0, 1.0, 1.0, 1.0)
SKEWED = (12.0, 3.0, 2.0, 1.0)
_SETTLED_S = 1.3
"""Workers write their metrics down once a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One limit and its load. `demand` is in requests a second; `happens` in the middle of it."""

    name: str
    rate: float
    burst: int
    demand: float
    weights: tuple[float, ...] = EVEN
    happens: Callable[[Bench], None] | None = None
    uses: bool = False
    """What is demanded exceeds the limit, which is to be used in full."""
    needs_redis: bool = False
    delay_ms: float = 0.0
    """What Redis takes to answer, in the middle; ± 40 % by chance."""

    @property
    def quiet(self) -> float:
        """Requests a second of the quiet client."""
        return QUIET_PER_S if self.uses or self.happens is not None else 1.0


def _flush_all(bench: Bench) -> None:
    assert bench.redis is not None
    bench.redis.client.flushall()


def _flush_scripts(bench: Bench) -> None:
    assert bench.redis is not None
    bench.redis.client.script_flush()


def _kill_worker(bench: Bench) -> None:
    os.kill(bench.gates[0].pid, signal.SIGKILL)


CASES: tuple[Case, ...] = (
    Case(name="half of it", rate=1000, burst=1000, demand=500),
    Case(name="under, 300/s", rate=300, burst=300, demand=240),
    Case(name="under, skewed", rate=1000, burst=1000, demand=800, weights=SKEWED),
    Case(name="at", rate=1000, burst=1000, demand=1000),
    Case(name="over", rate=1000, burst=1000, demand=3000, uses=True),
    Case(name="over, skewed", rate=1000, burst=1000, demand=3000, weights=SKEWED, uses=True),
    Case(name="a little over", rate=1000, burst=200, demand=1200, uses=True),
    Case(name="over, burst of 200 ms", rate=1000, burst=200, demand=2000, uses=True),
    Case(name="over, burst of 50 ms", rate=1000, burst=50, demand=2000, uses=True),
    Case(name="the same, skewed", rate=1000, burst=50, demand=2000, weights=SKEWED, uses=True),
    Case(name="a little over, burst of 50 ms", rate=1000, burst=50, demand=1200, uses=True),
    Case(name="over, FLUSHALL", rate=1000, burst=1000, demand=2000, happens=_flush_all, needs_redis=True),
    Case(
        name="over, SCRIPT FLUSH",
        rate=1000,
        burst=1000,
        demand=2000,
        happens=_flush_scripts,
        needs_redis=True,
    ),
    Case(name="over, a worker killed", rate=1000, burst=1000, demand=2000, happens=_kill_worker),
)


def make(
    cases: Sequence[Case], origin_port: int
) -> tuple[Mapping[str, object], Sequence[Mapping[str, object]]]:
    """Upstreams and routes: a route for each case."""
    routes = [route(number, rate=case.rate, burst=case.burst) for number, case in enumerate(cases)]
    return {"origin": upstream(origin_port)}, routes


def route(number: int, *, rate: float, burst: int) -> dict[str, object]:
    """The route of one case."""
    return {
        "name": f"case-{number}",
        "match": {"path": f"/{number}/**"},
        "to": "origin",
        "limit": {"rate": f"{rate:g}/s", "burst": burst, "per": "header:x-key"},
    }


def run(bench: Bench, cases: Sequence[Case], tell: Callable[[str], None]) -> Findings:
    """Carry them out, one after the other."""
    findings = Findings(
        "limit-accuracy",
        (
            "case", "limit", "asked/s", "admitted/s", "use of the rate", "worst window beyond rate × D",
            "of the burst", "its D s", "waited", "p99 ms", "longest", "quiet refused", "errors",
        ),
        left=2,
    )  # fmt: skip
    for number, case in enumerate(cases):
        tell(case.name)
        weights = case.weights[: len(bench.gates)]
        streams = [
            Stream(case=number, rate=case.demand, end_s=SECONDS, weights=weights),
            Stream(case=number, rate=case.quiet, end_s=SECONDS, weights=weights, first_key=1),
        ]
        time.sleep(_SETTLED_S)
        waits = bench.metric("ambassador_limit_waits_total")
        happens = case.happens

        def during(began: float, happens: Callable[[Bench], None] | None = happens) -> None:
            if happens is not None:
                sleep_until(began + SECONDS / 2)
                happens(bench)

        _slow_down(bench, case.delay_ms)
        outcome = bench.run(streams, seed=number + 1, during=during)
        _slow_down(bench, 0.0)
        time.sleep(_SETTLED_S)
        waited = (bench.metric("ambassador_limit_waits_total") - waits) / len(outcome.answers)
        _judge(findings, case, number, outcome, waited)
        if case.happens is _kill_worker:
            bench.connect()
    return findings


def _slow_down(bench: Bench, delay_ms: float) -> None:
    """Half of a delay each way."""
    if bench.faults is not None:
        way_s = delay_ms / 2000
        bench.faults.set(delay_s=0.6 * way_s, jitter_s=0.8 * way_s)


def _judge(findings: Findings, case: Case, number: int, outcome: Run, waited: float) -> None:
    times = outcome.admitted(number, 0)
    worst = windows.worst_window(times, case.rate)
    use = windows.used(times, case.rate, outcome.began + WARM_S, outcome.began + SECONDS)
    refused = [each for each in outcome.answered(number, 1) if each.status == 429]
    quiet = len(refused)
    took = [each.took_ns / 1e6 for each in outcome.answers]
    p99, longest = windows.percentile(took, 0.99), max(took)
    errors = sum(each.status not in (200, 429) for each in outcome.answers)
    tolerance = case.rate * 0.01 if case.burst <= case.rate * 0.05 else 0.0
    figures: dict[str, object] = {
        "case": case.name,
        "rate": case.rate,
        "burst": case.burst,
        "asked_per_s": len(outcome.answered(number, 0)) / SECONDS,
        "admitted_per_s": len(times) / SECONDS,
        "use": use,
        "worst_beyond": worst.beyond,
        "worst_length_s": worst.length,
        "worst_admitted": worst.admitted,
        "waited": waited,
        "quiet_refusals": [
            {"after_s": each.due_ns / 1e9 - outcome.began, "took_ms": each.took_ns / 1e6} for each in refused
        ],
        "p99_ms": p99,
        "longest_ms": longest,
        "errors": errors,
    }
    findings.add(
        figures,
        case.name,
        f"{case.rate:g}/s, {case.burst}",
        f"{len(outcome.answered(number, 0)) / SECONDS:,.0f}",
        f"{len(times) / SECONDS:,.0f}",
        f"{use:.1%}",
        f"{worst.beyond:,.1f}",
        f"{worst.beyond / case.burst:.1%}",
        f"{worst.length:.3f}",
        f"{waited:.1%}",
        f"{p99:.1f}",
        f"{longest:.0f}",
        str(quiet),
        str(errors),
    )
    findings.check(f"{case.name}: worst window", worst.beyond, case.burst + tolerance)
    findings.check(f"{case.name}: quiet client refused", quiet, 0)
    if case.uses:
        findings.check(f"{case.name}: use of the rate", use * 100, 97, " %", least=True)
    elif case.rate >= 300 and case.demand < case.rate:
        findings.check(f"{case.name}: requests that waited", waited * 100, 5, " %")
    if case.happens is not _kill_worker:
        findings.check(f"{case.name}: errors", errors, 0)


# ----- what is asked of the store -----


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """A load over so many keys, each with the limit."""

    name: str
    rate: float
    burst: int
    keys: int
    demand: float


KEYS: tuple[Keys, ...] = (
    Keys(name="one key, under", rate=10_000, burst=10_000, keys=1, demand=500),
    Keys(name="one key, under", rate=10_000, burst=10_000, keys=1, demand=5000),
    Keys(name="one key, then over", rate=1000, burst=1000, keys=1, demand=500),
    Keys(name="one key, then over", rate=1000, burst=1000, keys=1, demand=5000),
    Keys(name="60 keys", rate=1000, burst=1000, keys=60, demand=500),
    Keys(name="60 keys", rate=1000, burst=1000, keys=60, demand=5000),
    Keys(name="1,000 keys", rate=1000, burst=1000, keys=1000, demand=4000),
    Keys(name="10,000 keys", rate=1000, burst=1000, keys=10_000, demand=4000),
)


def make_keys(
    loads: Sequence[Keys], origin_port: int
) -> tuple[Mapping[str, object], Sequence[Mapping[str, object]]]:
    """Upstreams and routes of the loads over many keys."""
    routes = [route(number, rate=load.rate, burst=load.burst) for number, load in enumerate(loads)]
    return {"origin": upstream(origin_port)}, routes


def most_operations(limit: Terms, keys_of_worker: int) -> float:
    """Key operations a second that one worker may ask for (the 60 % are those of a token's life)."""
    return max(KEY_OPS, keys_of_worker / (0.6 * limit.life_s))


def _idle_operations(bench: Bench) -> float:
    """What workers ask their stores a second without any load, as they write it down."""
    time.sleep(_SETTLED_S)
    before, at = bench.metric("ambassador_state_ops_total"), time.monotonic()
    time.sleep(3.0)
    return (bench.metric("ambassador_state_ops_total") - before) / (time.monotonic() - at)


def run_keys(bench: Bench, loads: Sequence[Keys], tell: Callable[[str], None]) -> Findings:
    """Count what each load asks of the store."""
    findings = Findings(
        "key-operations",
        (
            "keys",
            "limit",
            "asked/s",
            "key operations/s",
            "of each worker",
            "at most",
            "Redis calls/s",
            "a request",
        ),
        left=2,
    )
    workers = len(bench.gates)
    idle = _idle_operations(bench)
    seconds = 5.0
    found: dict[str, list[float]] = {}
    for number, load in enumerate(loads):
        tell(f"{load.name}, {load.demand:g}/s")
        stream = Stream(case=number, rate=load.demand, end_s=seconds, keys=load.keys, weights=EVEN[:workers])
        before, at = bench.metric("ambassador_state_ops_total"), time.monotonic()
        scripts, leases = (bench.redis.scripts, bench.redis.leases) if bench.redis is not None else (0, 0)
        outcome = bench.run([stream], seed=number + 1)
        if bench.redis is None:
            time.sleep(_SETTLED_S)
            more = bench.metric("ambassador_state_ops_total") - before
            operations, calls = max(0.0, more - idle * (time.monotonic() - at)) / seconds, 0.0
        else:
            operations = (bench.redis.leases - leases) / seconds
            calls = (bench.redis.scripts - scripts) / seconds
        asked = len(outcome.answers) / seconds
        most = most_operations(terms(load.rate, load.burst), load.keys)
        figures: dict[str, object] = {
            "keys": load.keys, "rate": load.rate, "burst": load.burst, "asked_per_s": asked,
            "operations_per_s": operations, "most_per_worker": most, "calls_per_s": calls,
        }  # fmt: skip
        findings.add(
            figures,
            load.name,
            f"{load.rate:g}/s, {load.burst}",
            f"{asked:,.0f}",
            f"{operations:,.0f}",
            f"{operations / workers:,.0f}",
            f"{most:,.0f}",
            f"{calls:,.0f}",
            f"{operations / asked:.2f}",
        )
        findings.check(
            f"{load.name} at {load.demand:g}/s: operations of a worker", operations / workers, most
        )
        findings.check(f"{load.name} at {load.demand:g}/s: operations a request", operations / asked, 1.0)
        found.setdefault(load.name, []).append(operations)
    for name, ratio in _ratios(found):
        findings.check(f"{name}: operations at 5,000/s ÷ at 500/s", ratio, 1.2)
    return findings


def _ratios(found: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, float]]:
    for name, operations in found.items():
        if len(operations) == 2 and operations[0] > 0:
            yield name, operations[1] / operations[0]
