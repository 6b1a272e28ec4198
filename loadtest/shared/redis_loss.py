"""What clients see of a Redis that is lost, and what the limits still promise then.

Each fault lasts FAULT_S under load, or until a Sentinel has another master: a client that asks for more than its limit,
one that asks for little of the same, a steady one and new ones of a small limit, and requests without any limit. Then
Redis is well again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loadtest.shared import windows
from loadtest.shared.bench import Bench, Run, upstream
from loadtest.shared.driver import Answered, Stream
from loadtest.shared.findings import Findings
from loadtest.shared.limit_accuracy import route
from loadtest.waits import sleep_until

BEFORE_S = 4.0
FAULT_S = 5.0
AFTER_S = 4.0
RATE, BURST, DEMAND = 600.0, 600, 900.0
SMALL_RATE, SMALL_BURST = 10.0, 10
MAX_WAIT_S = 0.02
_PATIENCE_S = 6.0

LOUD, SMALL, FREE = range(3)
"""Cases. Keys of LOUD: 0 asks for DEMAND, 1 for little; SMALL: 0 is steady, from FRESH on each is new."""
FRESH = 10


class Marks(NamedTuple):
    """When the fault began and ended, and how many seconds later all workers counted together."""

    began: float
    healed: float
    back_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """`begin` does it; `end` undoes it, and returns when that was, with the number of the last connection before.

    `fails_over`: Sentinels undo it, and `end` waits for them; it needs a fleet of its own.
    """

    name: str
    begin: Callable[[Bench], None]
    end: Callable[[Bench], tuple[float, int]]
    fails_over: bool = False


def _kill(bench: Bench) -> None:
    assert bench.redis is not None
    bench.redis.kill()


def _start(bench: Bench) -> tuple[float, int]:
    assert bench.redis is not None
    return bench.redis.start(), 0


def _refuse(bench: Bench) -> None:
    assert bench.faults is not None
    bench.faults.call("refuse")


def _accept(bench: Bench) -> tuple[float, int]:
    assert bench.redis is not None
    assert bench.faults is not None
    last = bench.redis.last_client()
    bench.faults.call("accept_again")
    return time.monotonic(), last


def _hang(bench: Bench) -> None:
    assert bench.redis is not None
    bench.redis.hang()


def _go_on(bench: Bench) -> tuple[float, int]:
    assert bench.redis is not None
    at = bench.redis.go_on()
    return at, 0


def _swallow(bench: Bench) -> None:
    assert bench.faults is not None
    bench.faults.set(swallow_replies=True)


def _heal(bench: Bench) -> tuple[float, int]:
    assert bench.redis is not None
    assert bench.faults is not None
    last = bench.redis.last_client()
    bench.faults.call("heal")
    return time.monotonic(), last


def _ask_for_failover(bench: Bench) -> None:
    assert bench.sentinels is not None
    bench.sentinels.ask_for_failover()


def _find_heir(bench: Bench) -> tuple[float, int]:
    assert bench.sentinels is not None
    bench.redis = bench.sentinels.heir
    last = bench.redis.last_client()
    return bench.sentinels.wait_for_heir(), last


FAULTS: tuple[Fault, ...] = (
    Fault("killed", _kill, _start),
    Fault("refused", _refuse, _accept),
    Fault("hung", _hang, _go_on),
    Fault("replies swallowed", _swallow, _heal),
    Fault("failover, asked for", _ask_for_failover, _find_heir, fails_over=True),
    Fault("failover, master killed", _kill, _find_heir, fails_over=True),
)


def make(origin_port: int) -> tuple[Mapping[str, object], Sequence[Mapping[str, object]]]:
    """Upstreams and routes."""
    free = {"name": "free", "match": {"path": f"/{FREE}/**"}, "to": "origin"}
    return {"origin": upstream(origin_port)}, [
        route(LOUD, rate=RATE, burst=BURST),
        route(SMALL, rate=SMALL_RATE, burst=SMALL_BURST),
        free,
    ]


def streams(first_key: int) -> list[Stream]:
    """The load, with keys from there on."""
    end = BEFORE_S + FAULT_S + AFTER_S
    return [
        Stream(case=LOUD, rate=DEMAND, end_s=end, first_key=first_key),
        Stream(case=LOUD, rate=10, end_s=end, first_key=first_key + 1),
        Stream(case=SMALL, rate=1, end_s=end, first_key=first_key),
        Stream(case=SMALL, rate=20, end_s=end, first_key=first_key + FRESH, fresh=True),
        Stream(case=FREE, rate=200, end_s=end),
    ]


def new_findings() -> Findings:
    """What `run` adds to."""
    return Findings(
        "redis-loss",
        (
            "Redis", "own 5xx", "errors", "longest ms before", "since", "p99 ms before", "during", "from the 2nd s on",
            "use of the rate", "worst window beyond 1.1 rate × D", "of the burst", "quiet refused", "shared again s",
        ),
    )  # fmt: skip


def run(bench: Bench, faults: Sequence[Fault], tell: Callable[[str], None], findings: Findings) -> None:
    """One fault after the other."""
    for number, fault in enumerate(faults):
        tell(fault.name)
        first_key = number * 100_000
        marks: list[Marks] = []

        def during(began: float, fault: Fault = fault, marks: list[Marks] = marks) -> None:
            sleep_until(began + BEFORE_S)
            lost = time.monotonic()
            last = 0 if bench.redis is None else bench.redis.last_client()
            fault.begin(bench)
            if not fault.fails_over:
                sleep_until(began + BEFORE_S + FAULT_S)
            healed, after = fault.end(bench)
            back = _shared_again(bench, healed, last if fault.name == "hung" else after)
            marks.append(Marks(lost, healed, back))

        outcome = bench.run(streams(first_key), seed=number + 1, during=during)
        _judge(findings, fault, outcome, first_key, marks[0])


def _shared_again(bench: Bench, healed: float, after: int) -> float:
    """Seconds from then until every worker has had an operation done over a new connection."""
    assert bench.redis is not None
    while bench.redis.speakers(after) < len(bench.gates):
        if time.monotonic() > healed + _PATIENCE_S:
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - healed


def _p99_ms(answers: Sequence[Answered], begin: float, end: float) -> float:
    took = [each.took_ns / 1e6 for each in answers if begin <= each.due_ns / 1e9 < end]
    return windows.percentile(took, 0.99)


def _judge(findings: Findings, fault: Fault, outcome: Run, first_key: int, marks: Marks) -> None:
    began, healed, back = marks
    if fault.fails_over:
        # It was over before the figures that tell how one lives with it begin.
        healed = began + FAULT_S
    answers = outcome.answers
    own = sum(bool(each.made) and each.status >= 500 for each in answers)
    errors = sum(each.status not in (200, 429) for each in answers) - own
    slowest = max((each for each in answers if each.due_ns / 1e9 >= began), key=lambda each: each.took_ns)
    longest = slowest.took_ns / 1e6
    usual = max(each.took_ns / 1e6 for each in answers if outcome.began + 1.0 <= each.due_ns / 1e9 < began)
    before = _p99_ms(answers, outcome.began + 1.0, began)
    first = _p99_ms(answers, began, healed)
    later = _p99_ms(answers, began + 1.0, healed)
    times = outcome.admitted(LOUD, first_key)
    worst = windows.worst_window(times, RATE * 1.1)
    use = windows.used(times, RATE, began, healed)
    refused = [
        each for each in answers if each.status == 429 and not (each.case == LOUD and each.key == first_key)
    ]
    cells = {
        "fault": fault.name, "own_5xx": own, "errors": errors, "longest_ms": longest, "longest_ms_before": usual,
        "longest_at_s": slowest.due_ns / 1e9 - began, "longest_case": slowest.case, "p99_ms_before": before,
        "p99_ms_during": first, "p99_ms_later": later, "use": use, "worst_beyond": worst.beyond,
        "worst_length_s": worst.length, "quiet_refused": len(refused), "shared_again_s": back,
        "quiet_refusals": [[each.case, each.key, each.due_ns / 1e9 - began] for each in refused],
    }  # fmt: skip
    findings.add(
        cells,
        fault.name, str(own), str(errors), f"{usual:.1f}", f"{longest:.1f}", f"{before:.2f}", f"{first:.2f}", f"{later:.2f}",
        f"{use:.1%}", f"{worst.beyond:,.0f}", f"{worst.beyond / BURST:.0%}", str(len(refused)), f"{back:.2f}",
    )  # fmt: skip
    findings.check(f"{fault.name}: 5xx made by the ambassador", own, 0)
    findings.check(f"{fault.name}: errors", errors, 0)
    findings.check(
        f"{fault.name}: longest, beyond the longest before", longest - usual, MAX_WAIT_S * 1000, " ms"
    )
    findings.check(f"{fault.name}: p99 from the 2nd second on, beyond before", later - before, 2, " ms")
    findings.check(f"{fault.name}: worst window at 110 % of the rate", worst.beyond, BURST)
    findings.check(f"{fault.name}: quiet clients refused", len(refused), 0)
    findings.check(f"{fault.name}: shared counting back", back, 2, " s")
