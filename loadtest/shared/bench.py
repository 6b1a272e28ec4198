"""What every scenario needs, put together: Redis behind a fault proxy, replicas, their origin and their clients."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest import procfs
from loadtest.shared import driver, replicas, witness
from loadtest.shared.apart import Apart
from loadtest.shared.driver import Answered, Driver, Gate, Stream
from loadtest.shared.fault_proxy import FaultProxy
from loadtest.shared.redis_server import Redis
from loadtest.shared.replicas import Replica
from loadtest.shared.sentinels import Sentinels
from loadtest.shared.witness import Seen, Witness

SETTLE_S = 0.3
"""Before a load: what the last one left is over."""


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a load. `began` and all times of its parts: the monotonic clock, `began` in seconds."""

    began: float
    answers: list[Answered]
    seen: list[Seen]

    def admitted(self, case: int, key: int | None = None) -> list[float]:
        """When requests arrived at the origin, in seconds of the monotonic clock."""
        return [
            each.arrived_ns / 1e9
            for each in self.seen
            if each.case == case and (key is None or each.key == key)
        ]

    def answered(self, case: int | None = None, key: int | None = None) -> list[Answered]:
        return [
            each
            for each in self.answers
            if (case is None or each.case == case) and (key is None or each.key == key)
        ]


@dataclass(slots=True)
class Bench:
    """All that runs. `redis` and `faults` are None with the memory store; `redis` is the master behind `sentinels`."""

    replicas: list[Replica]
    origin: Apart
    clients: Apart
    redis: Redis | None
    faults: Apart | None
    gates: list[Gate]
    sentinels: Sentinels | None = None

    def connect(self) -> None:
        """Connect the clients to the workers there are, each its own."""
        self.gates = [Gate(replica.port, pid) for replica in self.replicas for pid in replica.workers()]
        self.clients.call("connect", self.gates)

    def run(
        self, streams: Sequence[Stream], *, seed: int = 1, during: Callable[[float], None] | None = None
    ) -> Run:
        """Drive a load to its end. `during` is called meanwhile, with when it began."""
        time.sleep(SETTLE_S)
        self.origin.call("take")
        began = self.clients.call("start", streams, seed) / 1e9
        if during is not None:
            during(began)
        answers = list(driver.unpack(self.clients.call("wait")))
        return Run(began, answers, list(witness.unpack(self.origin.call("take"))))

    def metric(self, name: str) -> float:
        """Over all replicas."""
        return sum(replica.metric(name) for replica in self.replicas)

    def owners(self) -> dict[int, tuple[str, int]]:
        """Whose each connection to the origin is: its own port, to replica and slot."""
        origin_port = self.origin.call("port")
        return {
            own: (replica.name, slot)
            for replica in self.replicas
            for slot, pid in enumerate(replica.workers())
            for own, peer in procfs.connections(pid)
            if peer == origin_port
        }


def upstream(origin_port: int, **more: object) -> dict[str, object]:
    """The origin, as an upstream of the config."""
    return {
        "endpoints": [f"http://127.0.0.1:{origin_port}"],
        "connections": {"max": 256, "idle_timeout": "300s"},
        **more,
    }


@contextlib.contextmanager
def running(
    directory: Path,
    *,
    shared: bool,
    make: Callable[[int], tuple[Mapping[str, object], Sequence[Mapping[str, object]]]],
    state: Mapping[str, object] | None = None,
    watched: bool = False,
) -> Iterator[Bench]:
    """Start everything. `shared`: two replicas of two workers and Redis behind the proxy (or, `watched`, with a replica
    of its own and a Sentinel, and no proxy); else one replica of two, and its own store. `make` gives upstreams and
    routes for the port of the origin; `state` is added to the config's. Raises StartError.
    """
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(Apart(Witness))
        upstreams, routes = make(origin.call("port"))
        server, faults, sentinels, config = None, None, None, dict(state or {})
        if watched:
            sentinels = Sentinels(directory, stack)
            server = sentinels.master
            config["url"] = sentinels.url
        elif shared:
            server = Redis(directory)
            stack.callback(server.kill)
            server.start()
            faults = stack.enter_context(Apart(FaultProxy, ("127.0.0.1", server.port)))
            config["url"] = f"redis://127.0.0.1:{faults.call('listening_on')}/0"
        fleet = stack.enter_context(
            replicas.running(
                2 if shared else 1,
                workers=2,
                directory=directory,
                state=config or "local",
                upstreams=upstreams,
                routes=routes,
            )
        )
        bench = Bench(fleet, origin, stack.enter_context(Apart(Driver)), server, faults, [], sentinels)
        bench.connect()
        try:
            yield bench
        except BaseException:
            for replica in fleet:
                print(f"--- {replica.name}\n{replica.log.read_text()[-3000:]}")
            raise
