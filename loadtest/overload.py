"""More comes than can be served: does an adaptive limit find what the upstream can do, and what does refusing cost?

An upstream that works on so many requests at once, each for SERVICE_S, and lets all others wait in a queue without end.
Two workers of the ambassador with `concurrency: {adaptive: true}` are asked for LOAD times what it can do, in an open
loop. Its capacity halves and doubles, once by fewer servers and once by slower ones. Meanwhile health is asked for.
Then the CPU time of a request that is refused is compared with that of one that is served, by a worker that wrk keeps
busy.
"""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from loadtest import origin, processes, procfs, wrk
from loadtest.scenarios import Scenario
from loadtest.shared import driver, replicas
from loadtest.shared.apart import Apart
from loadtest.shared.driver import Answered, Driver, Gate, Stream
from loadtest.shared.findings import Findings
from loadtest.shared.witness import HANG, Witness
from loadtest.waits import sleep_until

SERVERS = 24
SERVICE_S = 0.1
LOAD = 3.0
SETTLES_S = 5.0
"""After a change, before it counts."""
MEASURED_S = 8.0
PHASE_S = SETTLES_S + MEASURED_S
MOST_LATENCY = 2.0
LEAST_THROUGHPUT = 0.9
HEALTH_MS = 100.0
CPU_S = 4
HEALTH = "/.well-known/ambassador/health"


class Servers:
    """When each request that arrives is answered: first come, first served, by so many servers."""

    def __init__(self, servers: int, service_s: float) -> None:
        self._free = [0.0] * servers
        self._service_s = service_s

    def change(self, servers: int, service_s: float, now: float) -> None:
        """Work on with so many; what has arrived keeps its time."""
        free = sorted(self._free)
        self._free = (free + [now] * servers)[:servers]
        self._service_s = service_s

    def delay_s(self, now: float) -> float:
        """How long the request takes that arrives now."""
        first = min(range(len(self._free)), key=self._free.__getitem__)
        self._free[first] = max(now, self._free[first]) + self._service_s
        return self._free[first] - now

    def get(self, _case: int, _default: object) -> tuple[int, float, float, float]:
        """As the witness asks how to behave."""
        return 200, self.delay_s(time.monotonic()), 0.0, 0.0


class Bounded(Witness):
    """An origin with so many servers."""

    def __init__(self, servers: int, service_s: float) -> None:
        super().__init__()
        self.servers = Servers(servers, service_s)
        self._behaviour = self.servers  # type: ignore[assignment]

    def change(self, servers: int, service_s: float) -> None:
        """Have other servers from now on."""
        self.servers.change(servers, service_s, time.monotonic())


@dataclass(frozen=True, slots=True)
class Phase:
    """What the upstream is for PHASE_S."""

    name: str
    servers: int
    service_s: float

    @property
    def capacity(self) -> float:
        """Requests a second."""
        return self.servers / self.service_s


WHOLE = Phase("all servers", SERVERS, SERVICE_S)
CASES = (
    (WHOLE, Phase("half of the servers", SERVERS // 2, SERVICE_S), Phase("all again", SERVERS, SERVICE_S)),
    (WHOLE, Phase("twice as slow", SERVERS, 2 * SERVICE_S), Phase("as quick again", SERVERS, SERVICE_S)),
)


def new_findings() -> Findings:
    """For `run`."""
    return Findings(
        "overload", ("the upstream", "can do", "served", "latency", "of what it takes", "refused")
    )


def run(directory: Path, tell: Callable[[str], None]) -> Findings:
    """Measure all of it. Raises StartError and WrkError."""
    found = new_findings()
    longest_ms = 0.0
    for number, phases in enumerate(CASES):
        tell(f"{phases[1].name}: {PHASE_S * len(phases):.0f} s")
        place = directory / f"adaptive-{number}"
        place.mkdir()
        longest_ms = max(longest_ms, _adaptive(place, phases, found))
    found.check("health under overload", longest_ms, HEALTH_MS, " ms")
    tell(f"cost of refusals: {3 * CPU_S} s")
    place = directory / "cost"
    place.mkdir()
    served_us, refused_us = _costs(place)
    found.add(
        {"served_us": served_us, "refused_us": refused_us},
        "CPU of a request",
        "",
        f"{served_us:.0f} µs",
        "",
        "",
        f"{refused_us:.0f} µs",
    )
    found.check("CPU of a refusal, of that of an answer", 100 * refused_us / served_us, 100, " %")
    return found


def _adaptive(directory: Path, phases: Sequence[Phase], found: Findings) -> float:
    """The longest answer to a health check, in milliseconds."""
    end_s = PHASE_S * len(phases)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(Apart(Bounded, phases[0].servers, phases[0].service_s))
        first = processes.prioritised() if processes.may_prioritise() else contextlib.nullcontext()
        with first:
            [replica] = stack.enter_context(
                replicas.running(
                    1,
                    workers=2,
                    directory=directory,
                    state="local",
                    upstreams={"u": {"endpoints": [f"http://127.0.0.1:{upstream.call('port')}"]}},
                    routes=[
                        {
                            "name": "r",
                            "match": {"path": "/0/**"},
                            "to": "u",
                            "concurrency": {"adaptive": True},
                        }
                    ],
                )
            )
        clients = stack.enter_context(Apart(Driver))
        clients.call("connect", [Gate(replica.port, pid) for pid in replica.workers()])
        streams = [
            Stream(
                case=0,
                rate=LOAD * phase.capacity,
                begin_s=number * PHASE_S,
                end_s=(number + 1) * PHASE_S,
                weights=(1.0, 1.0),
            )
            for number, phase in enumerate(phases)
        ]
        began = clients.call("start", streams) / 1e9
        # Apart and first, as the clients are: what it waits for is to be the ambassador.
        checker = stack.enter_context(Apart(Checker, replica.port))
        for number, phase in enumerate(phases):
            sleep_until(began + number * PHASE_S)
            upstream.call("change", phase.servers, phase.service_s)
        sleep_until(began + end_s)
        took_ms: list[float] = checker.call("stop")
        answers = list(driver.unpack(clients.call("wait")))
    for number, phase in enumerate(phases):
        judge(phase, began + number * PHASE_S + SETTLES_S, answers, found)
    return max(took_ms)


def judge(phase: Phase, since: float, answers: Sequence[Answered], found: Findings) -> None:
    """Add what came of the requests that were due in the MEASURED_S after `since`."""
    due = [each for each in answers if since <= each.due_ns / 1e9 < since + MEASURED_S]
    served = [each for each in due if each.status == 200]
    latency = fmean(each.took_ns / 1e9 for each in served) / phase.service_s if served else float("inf")
    throughput = len(served) / MEASURED_S / phase.capacity
    refused = sum(each.status == 503 for each in due)
    found.add(
        {
            "phase": phase.name,
            "capacity": phase.capacity,
            "throughput": throughput,
            "latency": latency,
            "refused": refused,
        },
        phase.name,
        f"{phase.capacity:.0f}/s",
        f"{len(served) / MEASURED_S:.0f}/s",
        f"{latency * phase.service_s * 1000:.0f} ms",
        f"{latency:.2f}",
        f"{refused / max(1, len(due)):.0%}",
    )
    found.check(f"{phase.name}: latency, of what an answer takes", latency, MOST_LATENCY)
    found.check(
        f"{phase.name}: throughput, of what can be done",
        100 * throughput,
        100 * LEAST_THROUGHPUT,
        " %",
        least=True,
    )


class Checker:
    """Asks for the health of a client listener ten times a second, on a new connection each time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._took_ms: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def stop(self) -> list[float]:
        """Ask no more: milliseconds of each answer; infinity for one that was none."""
        self._over.set()
        self._thread.join()
        return self._took_ms

    def close(self) -> None:
        """Nothing is left to close."""

    def _ask(self) -> None:
        while not self._over.wait(0.1):
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5.0)
            try:
                connection.request("GET", HEALTH)
                well = connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                well = False
            finally:
                connection.close()
            self._took_ms.append((time.monotonic() - began) * 1000 if well else float("inf"))


def _costs(directory: Path) -> tuple[float, float]:
    """CPU of a request that is served, and of one that is refused, in microseconds."""
    with contextlib.ExitStack() as stack:
        origin_port = stack.enter_context(origin.serving(directory / "origin", None))
        hangs = stack.enter_context(Apart(Witness))
        hangs.call("behave", 1, 200, HANG)
        [replica] = stack.enter_context(
            replicas.running(
                1,
                workers=1,
                directory=directory,
                state="local",
                upstreams={
                    "quick": {"endpoints": [f"http://127.0.0.1:{origin_port}"]},
                    "hangs": {"endpoints": [f"http://127.0.0.1:{hangs.call('port')}"]},
                },
                routes=[
                    {
                        "name": "full",
                        "match": {"path": "/1/**"},
                        "to": "hangs",
                        "timeout": "300s",
                        "concurrency": {"max": 1, "queue": 0},
                    },
                    {"name": "free", "match": {"path": "/**"}, "to": "quick", "concurrency": {"max": 100}},
                ],
            )
        )
        held = stack.enter_context(socket.create_connection(("127.0.0.1", replica.port)))
        held.sendall(b"GET /1/0 HTTP/1.1\r\nHost: a\r\n\r\n")
        return tuple(_cost(path, replica.pid, replica.port, directory) for path in ("/", "/1/0"))  # type: ignore[return-value]


def _cost(path: str, pid: int, port: int, directory: Path) -> float:
    scenario = Scenario(name="overload", about="", path=path, connections=32)
    wrk.run(scenario, port=port, duration_s=1, core=None, directory=directory)
    before = procfs.read_cpu(pid)
    result = wrk.run(scenario, port=port, duration_s=CPU_S, core=None, directory=directory)
    return procfs.read_cpu(pid).since(before).total_s * 1e6 / result.requests
