"""An upstream fails every time: how many attempts does it see for each request?

Behind one replica with a retry budget in each worker, behind a fleet with one budget in Redis, behind two and three
ambassadors one behind another. Requests come in an open loop; attempts are what the origin itself wrote down. A budget
allows 20 % of the requests, 10 retries more at once and 1 a second later: little, so that a share too much is seen.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest import store
from loadtest.shared import driver, replicas, witness
from loadtest.shared.apart import Apart
from loadtest.shared.driver import Driver, Gate, Stream
from loadtest.shared.findings import Findings
from loadtest.shared.witness import Witness

RATE_PER_S = 200.0
LASTS_S = 10.0
SHARE = 0.2
AT_ONCE = 10
PER_SECOND = 1
_LATER_S = 3.0
"""Beyond the last request: for what is still tried then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Who is in front of the origin. `budgets`: how many there are."""

    name: str
    replicas: int = 1
    workers: int = 1
    depth: int = 1
    shared: bool = False
    budgets: int = 1


CASES = (
    Case(name="each worker's budget", workers=2, budgets=2),
    Case(name="a fleet's budget", replicas=2, workers=2, shared=True),
    Case(name="two deep", depth=2),
    Case(name="three deep", depth=3),
)


def new_findings() -> Findings:
    """For `run`."""
    return Findings("storms", ("in front", "requests", "attempts", "attempts/request", "allowed"))


def run(directory: Path, tell: Callable[[str], None]) -> Findings:
    """Measure. Raises StartError."""
    found = new_findings()
    for number, case in enumerate(CASES):
        tell(f"{case.name}, {LASTS_S:.0f} s")
        inside = directory / str(number)
        inside.mkdir()
        judge(case, *_measure(case, inside), found)
    return found


def _measure(case: Case, directory: Path) -> tuple[int, int]:
    """Requests, and attempts that the origin saw."""
    budget = {"percent": f"{SHARE:.0%}", "min_per_second": PER_SECOND, "shared": case.shared}
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(Apart(Witness))
        origin.call("behave", 0, 503)
        state = stack.enter_context(store.serving(directory, None)) if case.shared else "local"
        port = origin.call("port")
        for level in range(case.depth):
            inside = directory / f"level-{level}"
            inside.mkdir()
            route = {
                "name": "r",
                "to": f"http://127.0.0.1:{port}",
                "retry": {"attempts": 3, "backoff": "1ms..2ms", "budget": budget},
            }
            running = replicas.running(
                case.replicas,
                workers=case.workers,
                directory=inside,
                state=state,
                upstreams={},
                routes=[route],
                called=f"level-{level}",
            )
            outermost = stack.enter_context(running)
            port = outermost[0].port
        gates = [Gate(each.port, pid) for each in outermost for pid in each.workers()]
        clients = stack.enter_context(Apart(Driver))
        clients.call("connect", gates)
        weights = (1.0,) * len(gates)
        clients.call("start", [Stream(case=0, rate=RATE_PER_S, end_s=LASTS_S, weights=weights)])
        requests = sum(1 for _ in driver.unpack(clients.call("wait")))
        return requests, sum(1 for _ in witness.unpack(origin.call("take")))


def judge(case: Case, requests: int, attempts: int, found: Findings) -> None:
    """Add what was seen to the findings."""
    allowed = (1 + SHARE) * requests + case.budgets * (AT_ONCE + PER_SECOND * (LASTS_S + _LATER_S))
    found.add(
        {"in_front": case.name, "requests": requests, "attempts": attempts, "allowed": allowed},
        case.name, str(requests), str(attempts), f"{attempts / requests:.3f}", f"{allowed / requests:.3f}",
    )  # fmt: skip
    found.check(f"{case.name}: attempts", attempts, allowed)
    found.check(f"{case.name}: requests that came through", attempts, requests, least=True)
