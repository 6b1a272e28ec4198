"""One measurement after another: rounds over proxies over scenarios, in turns.

In each turn a proxy is started afresh on its core, warmed up, measured alone and ended, so that none disturbs another;
the origin stays. Turns of the same scenario follow each other, and the order of the proxies rotates by round, so
that a slow drift of the machine meets all of them alike.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from loadtest import bulk, handshakes, identity, idle, origin, processes, procfs, store, wrk
from loadtest.job import Job, Proxy
from loadtest.scenarios import Scenario

WARM_UP_S = 1
SETTLE_S = 1.0  # for memory: time-outs of the last request and deferred frees are over by then
REST_WITHIN_S = 10.0  # on a busy machine a start takes long beyond its first answer
_LOOK_S = 0.2
_TICK_S = 0.01  # what the kernel counts in
MIN_BULK_MB_S = 10.0  # a download that gets less does not disturb anybody
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One measured turn of the bulk scenario: latencies of small requests alone, then beside one download.

    `alone_p50_us` and `beside_p50_us` are medians in microseconds, `bulk_mb_s` what the download got meanwhile in MB/s,
    `others` as in `Load`, over both parts.
    """

    scenario: str
    proxy: str
    round: int
    alone_p50_us: float = 0.0
    beside_p50_us: float = 0.0
    bulk_mb_s: float = 0.0
    others: float = 0.0
    problem: str | None = None

    @property
    def p50_ratio(self) -> float:
        """How many times the p50 alone the p50 beside the download is."""
        return self.beside_p50_us / self.alone_p50_us if self.alone_p50_us else 0.0


Measurement = Load | Memory | Beside
_Measure = Callable[["Plan", Job, Proxy, str, int], Measurement]


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
                    if proxy.has_policies or not scenario.policies:
                        yield scenario, number + 1, proxy, binary

    def estimate_s(self) -> float:
        """About how long all turns take."""
        turn_s = self.duration_s + WARM_UP_S + 1.0
        return sum(
            4.0 if scenario.memory else turn_s + self.duration_s * scenario.bulk
            for scenario, *_ in self.turns()
        )


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
            access_log=directory / "access.log" if plan.access_log or scenario.policies else None,
        )
        measure, kind = _MEASURES[scenario.memory, scenario.bulk]
        measurement: Measurement
        try:
            with contextlib.ExitStack() as held:
                if scenario.store:
                    url = held.enter_context(store.serving(directory, plan.cores.generator))
                    job = replace(job, store_url=url)
                if scenario.tls:
                    job = held.enter_context(_secured(job, plan.cores.generator))
                measurement = measure(plan, job, proxy, binary, number)
        except (processes.StartError, wrk.WrkError, idle.IdleError, bulk.BulkError) as error:
            measurement = kind(scenario=scenario.name, proxy=proxy.name, round=number, problem=str(error))
        tell(measurement)
        measurements.append(measurement)
    return measurements


@contextlib.contextmanager
def _secured(job: Job, core: int | None) -> Iterator[Job]:
    """The same job with TLS on both sides: an origin that speaks it, and a certificate. Raises StartError."""
    made = identity.make(job.directory)
    with origin.serving(job.directory / "secure", core, made) as port:
        yield replace(job, tls=made, upstream_port=port)


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


def _load(plan: Plan, job: Job, duration_s: int) -> wrk.Result:
    if job.scenario.handshakes is not None and job.tls is not None:
        return handshakes.run(
            job.scenario,
            port=job.port,
            duration_s=duration_s,
            core=plan.cores.generator,
            identity=job.tls,
        )
    return wrk.run(
        job.scenario,
        port=job.port,
        duration_s=duration_s,
        core=plan.cores.generator,
        directory=job.directory,
        env=None if job.tls is None else job.tls.client_env,
    )


def _measure_load(plan: Plan, job: Job, proxy: Proxy, binary: str, number: int) -> Load:
    scenario, core = job.scenario, plan.cores.proxy
    launch = proxy.configure(job, binary)
    with processes.running(
        proxy.name,
        launch.command,
        port=job.port,
        core=core,
        directory=job.directory,
        env=launch.env,
        ready_path=ready_path(scenario),
        tls=scenario.tls,
    ) as server:
        _load(plan, job, WARM_UP_S)
        _rest(server.pid)
        cpu, busy_s, started = procfs.read_cpu(server.pid), _core_busy_s(core), time.monotonic()
        result = _load(plan, job, plan.duration_s)
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


def _rest(pid: int) -> None:
    """Wait until a tree that nobody loads does nothing any more: what it began at its start is no part of a request."""
    until = time.monotonic() + REST_WITHIN_S
    while time.monotonic() < until:
        before = procfs.read_cpu(pid)
        time.sleep(_LOOK_S)
        if procfs.read_cpu(pid).since(before).total_s <= _TICK_S:
            return


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


def _measure_beside(plan: Plan, job: Job, proxy: Proxy, binary: str, number: int) -> Beside:
    """What small requests need of the generator's core comes before the download's two ends, which share it.

    Else what rises beside the download is the waiting for that core: 5 to 50 times the p50, with any proxy.
    """
    core, generator = plan.cores.proxy, plan.cores.generator
    with contextlib.ExitStack() as held:
        bulk_port = held.enter_context(origin.serving(job.directory / "bulk", generator))
        with processes.prioritised():
            port = held.enter_context(origin.serving(job.directory / "small", generator))
        job = replace(job, upstream_port=port, bulk_port=bulk_port)
        launch = proxy.configure(job, binary)
        server = held.enter_context(
            processes.running(
                proxy.name, launch.command, port=job.port, core=core, directory=job.directory, env=launch.env
            )
        )
        with processes.prioritised():
            _load(plan, job, WARM_UP_S)
        cpu, busy_s, started = procfs.read_cpu(server.pid), _core_busy_s(core), time.monotonic()
        with processes.prioritised():
            alone = _load(plan, job, plan.duration_s)
        with processes.pinned(generator):
            download = held.enter_context(bulk.download(job.port))
        before, since = download.bytes, time.monotonic()
        with processes.prioritised():
            beside = _load(plan, job, plan.duration_s)
        bulk_mb_s = (download.bytes - before) / (time.monotonic() - since) / 1e6
        spent = procfs.read_cpu(server.pid).since(cpu)
        others_s = max(0.0, _core_busy_s(core) - busy_s - spent.total_s)
        wall_s = time.monotonic() - started
    return Beside(
        scenario=job.scenario.name,
        proxy=proxy.name,
        round=number,
        alone_p50_us=alone.p50_s * 1e6,
        beside_p50_us=beside.p50_s * 1e6,
        bulk_mb_s=bulk_mb_s,
        others=others_s / wall_s,
        problem=problem_of(alone) or problem_of(beside) or starved(bulk_mb_s),
    )


def starved(bulk_mb_s: float) -> str | None:
    """Why a turn does not count in which the download all but stood still."""
    return f"the download got only {bulk_mb_s:.1f} MB/s" if bulk_mb_s < MIN_BULK_MB_S else None


_MEASURES: Final[dict[tuple[bool, bool], tuple[_Measure, type[Measurement]]]] = {
    (False, False): (_measure_load, Load),
    (True, False): (_measure_memory, Memory),
    (False, True): (_measure_beside, Beside),
}
"""By the scenario's marks `memory` and `bulk`: who measures, and what comes of it."""


def _core_busy_s(core: int | None) -> float:
    return procfs.read_core_busy_s(core) if core is not None else 0.0
