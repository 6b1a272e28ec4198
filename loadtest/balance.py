"""One of four endpoints is bad: what does the whole see of it, and how much does the bad one still get?

A worker of the ambassador, four origins that answer after 5 ms, requests in an open loop. While they go on, one origin
turns ten times slower, or answers 500 or 429 at once, and later is as it was. Latencies count from the moment when a
request was due; shares are what each origin itself wrote down.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest import processes
from loadtest.shared import driver, replicas, witness
from loadtest.shared.apart import Apart
from loadtest.shared.driver import Answered, Driver, Gate, Stream
from loadtest.shared.findings import Findings
from loadtest.shared.replicas import Replica
from loadtest.shared.windows import percentile
from loadtest.shared.witness import Seen, Witness
from loadtest.waits import sleep_until

ORIGINS = 4
RATE_PER_S = 400.0
WELL_S = 0.005
"""How long a good answer takes."""
WARM_S = 2.0
GOOD_S = 10.0
"""So long all are well,"""
BAD_S = 15.0
"""so long one is not,"""
AFTER_S = 75.0
"""and so long it is well again: it is tried when its estimate has decayed."""
WINDOW_S = 1.0
"""Shares are taken over as much."""
MOST_SLOWER = 1.5
MOST_SHARE = 0.05
WITHIN_S = 2.0
BACK_SHARE = 0.15
"""Of an even quarter: from then on it counts as back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What becomes of one origin."""

    name: str
    status: int
    delay_s: float


TROUBLES = (
    Trouble(name="10 x slower", status=200, delay_s=10 * WELL_S),
    Trouble(name="instant 500", status=500, delay_s=0.0),
    Trouble(name="instant 429", status=429, delay_s=0.0),
)


def new_findings() -> Findings:
    header = (
        "one of four",
        "p50 before",
        "p99 before",
        "p50 then",
        "p99 then",
        "its share: all",
        "after 2 s",
        "back",
    )
    return Findings("balance", header)


def run(directory: Path, troubles: Sequence[Trouble], tell: Callable[[str], None]) -> Findings:
    """Measure each trouble with an ambassador of its own. Raises StartError."""
    found = new_findings()
    for number, trouble in enumerate(troubles):
        with _running(directory / str(number)) as (replica, origins):
            began, answers, seen = _drive(replica, origins, trouble)
        judge(trouble, began, answers, seen, found)
        tell(f"{trouble.name}: {', '.join(found.rows[-1][1:])}")
    return found


@contextlib.contextmanager
def _running(directory: Path) -> Iterator[tuple[Replica, list[Apart]]]:
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        origins = [stack.enter_context(Apart(Witness)) for _ in range(ORIGINS)]
        for origin in origins:
            origin.call("behave", 0, 200, WELL_S)
        urls = [f"http://127.0.0.1:{origin.call('port')}" for origin in origins]
        # Before all others, like the origins and the clients: what else runs on the machine is not to be measured.
        first = processes.prioritised() if processes.may_prioritise() else contextlib.nullcontext()
        with first:
            [replica] = stack.enter_context(
                replicas.running(
                    1,
                    workers=1,
                    directory=directory,
                    state="local",
                    upstreams={"u": {"endpoints": urls}},
                    routes=[{"name": "r", "to": "u", "retry": {"attempts": 0}}],
                )
            )
        yield replica, origins


def _drive(
    replica: Replica, origins: Sequence[Apart], trouble: Trouble
) -> tuple[float, list[Answered], list[list[Seen]]]:
    """Returns when the load began (seconds of the monotonic clock), its answers, and what each origin saw."""
    end_s = WARM_S + GOOD_S + BAD_S + AFTER_S
    with Apart(Driver) as clients:
        clients.call("connect", [Gate(replica.port, pid) for pid in replica.workers()])
        stream = Stream(case=0, rate=RATE_PER_S, end_s=end_s, weights=(1.0,))
        began = clients.call("start", [stream]) / 1e9
        sleep_until(began + WARM_S + GOOD_S)
        origins[0].call("behave", 0, trouble.status, trouble.delay_s)
        sleep_until(began + WARM_S + GOOD_S + BAD_S)
        origins[0].call("behave", 0, 200, WELL_S)
        answers = list(driver.unpack(clients.call("wait")))
    return began, answers, [list(witness.unpack(origin.call("take"))) for origin in origins]


def judge(
    trouble: Trouble,
    began: float,
    answers: Sequence[Answered],
    seen: Sequence[Sequence[Seen]],
    found: Findings,
) -> None:
    """Add what a run says to the findings. `seen[0]` is of the origin that was in trouble."""
    good_at = began + WARM_S
    bad_at = good_at + GOOD_S
    well_at = bad_at + BAD_S
    before = latencies(answers, good_at, bad_at)
    then = latencies(answers, bad_at, well_at)
    arrivals = [[each.arrived_ns / 1e9 for each in some] for some in seen]
    all_share = share(arrivals, bad_at, well_at)
    windows = [
        share(arrivals, bad_at + WITHIN_S + number * WINDOW_S, bad_at + WITHIN_S + (number + 1) * WINDOW_S)
        for number in range(int((BAD_S - WITHIN_S) / WINDOW_S))
    ]
    back_s = next(
        (
            number * WINDOW_S
            for number in range(int(AFTER_S / WINDOW_S))
            if share(arrivals, well_at + number * WINDOW_S, well_at + (number + 1) * WINDOW_S) >= BACK_SHARE
        ),
        None,
    )
    found.add(
        {
            "trouble": trouble.name,
            "p50_before_ms": percentile(before, 0.50),
            "p99_before_ms": percentile(before, 0.99),
            "p50_then_ms": percentile(then, 0.50),
            "p99_then_ms": percentile(then, 0.99),
            "share": all_share,
            "most_share_later": max(windows),
            "back_s": back_s,
        },
        trouble.name,
        *(f"{percentile(some, part / 100):.1f} ms" for some in (before, then) for part in (50, 99)),
        f"{all_share:.1%}",
        f"{max(windows):.1%}",
        "-" if back_s is None else f"{back_s:.0f} s",
    )
    if trouble.status == 200:
        slower = percentile(then, 0.99) / percentile(before, 0.99)
        found.check(f"{trouble.name}: p99 against that without", slower, MOST_SLOWER, "×")
    found.check(
        f"{trouble.name}: its share from 2 s on, in any second", 100 * max(windows), 100 * MOST_SHARE, " %"
    )


def latencies(answers: Sequence[Answered], since: float, until: float) -> list[float]:
    """Milliseconds of the requests that were due then."""
    return [each.took_ns / 1e6 for each in answers if since <= each.due_ns / 1e9 < until]


def share(arrivals: Sequence[Sequence[float]], since: float, until: float) -> float:
    """The part of all requests that arrived then which came to the first origin; 0 if there were none."""
    counts = [sum(since <= at < until for at in some) for some in arrivals]
    return counts[0] / sum(counts) if sum(counts) else 0.0
