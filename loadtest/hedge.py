"""Some answers are slow, whichever endpoint gives them: what does a hedge make of the latencies, and what does it cost?

A worker of the ambassador and two origins. Of their answers SLOW_SHARE take SLOW_S, all others WELL_S. Two routes to
them are asked alike, in an open loop at the same time, one of them with a hedge. Latencies count from the moment when
a request was due; what was sent beyond one attempt for each request is what the origins themselves wrote down.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest import processes
from loadtest.balance import latencies
from loadtest.shared import driver, replicas, witness
from loadtest.shared.apart import Apart
from loadtest.shared.driver import Answered, Driver, Gate, Stream
from loadtest.shared.findings import Findings
from loadtest.shared.windows import percentile
from loadtest.shared.witness import Seen, Witness
from loadtest.waits import sleep_until

RATE_PER_S = 200.0
WELL_S = 0.005
SLOW_S = 0.2
SLOW_SHARE = 0.015
MOST_EXTRA = 0.02
WARM_S = 15.0
"""For the percentile to be learned."""
MEASURED_S = 40.0
PLAIN, HEDGED = 0, 1
"""Cases of the origins."""


def new_findings() -> Findings:
    """For `run`."""
    return Findings("hedge", ("route", "requests", "p50", "p99", "longest", "extra attempts"))


def run(directory: Path, tell: Callable[[str], None]) -> Findings:
    """Measure. Raises StartError."""
    tell(f"{WARM_S + MEASURED_S:.0f} s")
    end_s = WARM_S + MEASURED_S
    with contextlib.ExitStack() as stack:
        origins = [stack.enter_context(Apart(Witness)) for _ in range(2)]
        for origin in origins:
            for case in (PLAIN, HEDGED):
                origin.call("behave", case, 200, WELL_S, SLOW_SHARE, SLOW_S)
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
                    routes=[
                        {"name": "plain", "match": {"path": f"/{PLAIN}/**"}, "to": "u"},
                        {
                            "name": "hedged",
                            "match": {"path": f"/{HEDGED}/**"},
                            "to": "u",
                            "hedge": {"after": "p95", "max": f"{MOST_EXTRA:.0%}"},
                        },
                    ],
                )
            )
        clients = stack.enter_context(Apart(Driver))
        clients.call("connect", [Gate(replica.port, pid) for pid in replica.workers()])
        streams = [
            Stream(case=case, rate=RATE_PER_S, end_s=end_s, weights=(1.0,)) for case in (PLAIN, HEDGED)
        ]
        began = clients.call("start", streams) / 1e9
        sleep_until(began + end_s)
        answers = list(driver.unpack(clients.call("wait")))
        seen = [each for origin in origins for each in witness.unpack(origin.call("take"))]
    found = new_findings()
    judge(began + WARM_S, began + end_s, answers, seen, found)
    return found


def judge(
    since: float, until: float, answers: Sequence[Answered], seen: Sequence[Seen], found: Findings
) -> None:
    """Add what was seen between two times of the monotonic clock to the findings."""
    p99 = []
    extra = 0.0
    for case, name in ((PLAIN, "without"), (HEDGED, "with a hedge")):
        of_case = [each for each in answers if each.case == case]
        took = latencies(of_case, since, until)
        attempts = sum(each.case == case for each in seen)
        extra = attempts / len(of_case) - 1.0
        p99.append(percentile(took, 0.99))
        found.add(
            {
                "route": name, "requests": len(took), "p50_ms": percentile(took, 0.50), "p99_ms": p99[-1],
                "longest_ms": max(took), "extra": extra,
                "errors": sum(each.status != 200 for each in of_case),
            },
            name, str(len(took)), f"{percentile(took, 0.50):.1f} ms", f"{p99[-1]:.1f} ms", f"{max(took):.0f} ms",
            f"{extra:.2%}",
        )  # fmt: skip
        found.check(f"{name}: errors", sum(each.status != 200 for each in of_case), 0)
    found.check("p99 with a hedge, of that without", 100 * p99[1] / p99[0], 50, " %")
    found.check("extra attempts, of requests", 100 * extra, 100 * MOST_EXTRA, " %")
