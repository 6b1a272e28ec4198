"""One measurement after another: rounds over proxies over scenarios, in turns.

In each turn a proxy is started afresh on its core, warmed up, measured alone and ended, so that none disturbs another;
the origin stays. Turns of the same scenario follow each other, and the order of the proxies rotates by round, so
that a slow drift of the machine meets all of them alike.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest import idle, processes, procfs, wrk
from loadtest.job import Job, Proxy
from loadtest.scenarios import Scenario

WARM_UP_S = 1
SETTLE_S = 1.0  # for memory: time-outs of the last request and deferred frees are over by then
MAX_OTHERS = 0.05  # a twentieth of the core taken by somebody else changes caches and the rate visibly


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Where processes run; None: anywhere (a machine with one core, where figures mean little)."""

    proxy: int | None
    generator: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One measured turn. CPU times are of the whole process tree, in microseconds per answered request.

    `busy` is the proxy's share of its core, `others` what other programs took of the same core. `problem` says why
    the turn does not count, None when it does.
    """

    scenario: str
    proxy: str
    round: int
    requests: int = 0
    user_us: float = 0.0
    system_us: float = 0.0
    rate: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    busy: float = 0.0
    others: float = 0.0
    errors: int = 0
    problem: str | None = None

    @property
    def cpu_us(self) -> float:
        """User and system time per request."""
        return self.user_us + self.system_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One measured turn of the idle scenario, in KiB and without the kernel's socket buffers.

    `per_connection_kib` is the growth of the tree's PSS divided by the connections; `worker_kib` the RSS of the
    process that did the work and `tree_kib` the RSS of all processes, both before the first connection.
    """

    scenario: str
    proxy: str
    round: int
    per_connection_kib: float = 0.0
    worker_kib: int = 0
    tree_kib: int = 0
    problem: str | None = None


Measurement = Load | Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure: proxies with their programs' paths, and how."""

    proxies: Sequence[tuple[Proxy, str]]
    scenarios: Sequence[Scenario]
    rounds: int
    duration_s: int
    connections: int
    access_log: bool
    cores: Cores
    directory: Path

    def turns(self) -> Iterator[tuple[Scenario, int, Proxy, str]]:
        """Scenario by scenario, round by round, the proxies in rotating order."""
        for scenario in self.scenarios:
            for number in range(self.rounds):
                first = number % len(self.proxies)
                for proxy, binary in (*self.proxies[first:], *self.proxies[:first]):
                    yield scenario, number + 1, proxy, binary

    def estimate_s(self) -> float:
        """About how long all turns take."""
        turn_s = self.duration_s + WARM_UP_S + 1.0
        return sum(4.0 if scenario.memory else turn_s for scenario, *_ in self.turns())


def run(plan: Plan, upstream_port: int, tell: Callable[[Measurement], None]) -> list[Measurement]:
    """Measure all turns, telling each as it is done; a failure is a measurement with its problem."""
    measurements: list[Measurement] = []
    for count, (scenario, number, proxy, binary) in enumerate(plan.turns()):
        directory = plan.directory / f"turn-{count:03}"
        directory.mkdir()
        port, admin_port = processes.free_ports(2)
        job = Job(
            scenario=scenario,
            port=port,
            upstream_port=upstream_port,
            admin_port=admin_port,
            directory=directory,
            access_log=directory / "access.log" if plan.access_log else None,
        )
        measure = _measure_memory if scenario.memory else _measure_load
        kind = Memory if scenario.memory else Load
        measurement: Measurement
        try:
            measurement = measure(plan, job, proxy, binary, number)
        except (processes.StartError, wrk.WrkError, idle.IdleError) as error:
            measurement = kind(scenario=scenario.name, proxy=proxy.name, round=number, problem=str(error))
        tell(measurement)
        measurements.append(measurement)
    return measurements


def ready_path(scenario: Scenario) -> str:
    """A path that every proxy with this scenario's routes answers a GET on with 200."""
    return scenario.path if scenario.routes > 1 else "/"


def problem_of(result: wrk.Result) -> str | None:
    """Why a run of the generator does not count."""
    if result.errors:
        return f"{result.bad_status} answers not 2xx, {result.socket_errors} socket errors"
    if not result.requests:
        return "no request was answered"
    return None


def _measure_load(plan: Plan, job: Job, proxy: Proxy, binary: str, number: int) -> Load:
    scenario, core = job.scenario, plan.cores.proxy

    def load(duration_s: int) -> wrk.Result:
        return wrk.run(
            scenario,
            port=job.port,
            duration_s=duration_s,
            core=plan.cores.generator,
            directory=job.directory,
        )

    launch = proxy.configure(job, binary)
    with processes.running(
        proxy.name,
        launch.command,
        port=job.port,
        core=core,
        directory=job.directory,
        env=launch.env,
        ready_path=ready_path(scenario),
    ) as server:
        load(WARM_UP_S)
        cpu, busy_s, started = procfs.read_cpu(server.pid), _core_busy_s(core), time.monotonic()
        result = load(plan.duration_s)
        spent = procfs.read_cpu(server.pid).since(cpu)
        wall_s = time.monotonic() - started
        others_s = max(0.0, _core_busy_s(core) - busy_s - spent.total_s)
    answered = max(result.requests, 1)
    return Load(
        scenario=scenario.name,
        proxy=proxy.name,
        round=number,
        requests=result.requests,
        user_us=spent.user_s / answered * 1e6,
        system_us=spent.system_s / answered * 1e6,
        rate=result.requests / result.duration_s,
        p50_us=result.p50_s * 1e6,
        p99_us=result.p99_s * 1e6,
        busy=spent.total_s / wall_s,
        others=others_s / wall_s,
        errors=result.errors,
        problem=problem_of(result),
    )


def _measure_memory(plan: Plan, job: Job, proxy: Proxy, binary: str, number: int) -> Memory:
    launch = proxy.configure(job, binary)
    processes.raise_descriptor_limit()
    with processes.running(
        proxy.name,
        launch.command,
        port=job.port,
        core=plan.cores.proxy,
        directory=job.directory,
        env=launch.env,
    ) as server:
        time.sleep(SETTLE_S)
        fresh = {stat.pid: stat for stat in procfs.read_tree(server.pid)}
        rss = {pid: procfs.read_memory(pid).rss_kib for pid in fresh}
        # A first small crowd fills what is made once (caches, lazily loaded code): it is no part of a connection.
        with idle.connections(job.port, plan.connections // 50):
            pass
        time.sleep(SETTLE_S)
        before = procfs.read_tree_memory(server.pid)
        with idle.connections(job.port, plan.connections):
            time.sleep(SETTLE_S)
            after = procfs.read_tree_memory(server.pid)
            now = {stat.pid: stat for stat in procfs.read_tree(server.pid)}
    worker = procfs.busiest(fresh, now)
    return Memory(
        scenario=job.scenario.name,
        proxy=proxy.name,
        round=number,
        per_connection_kib=(after.pss_kib - before.pss_kib) / plan.connections,
        worker_kib=rss.get(worker, 0),
        tree_kib=sum(rss.values()),
    )


def _core_busy_s(core: int | None) -> float:
    return procfs.read_core_busy_s(core) if core is not None else 0.0
