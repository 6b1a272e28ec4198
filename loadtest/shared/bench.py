"""What every scenario needs, put together: Redis behind a fault proxy, replicas, their origin and their clients."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from loadtest import processes, procfs, store
from loadtest.shared import driver, replicas, witness
from loadtest.shared.apart import Apart
from loadtest.shared.driver import Answered, Driver, Gate, Stream
from loadtest.shared.fault_proxy import FaultProxy
from loadtest.shared.replicas import Replica
from loadtest.shared.witness import Seen, Witness

_POLL_S = 0.01
SETTLE_S = 0.3
"""Before a load: what the last one left is over."""


class Redis:
    """A server whose place stays when it is killed. In memory only."""

    def __init__(self, directory: Path) -> None:
        binary = store.find()
        if binary is None:
            raise processes.StartError(f"shared state needs Redis or Valkey: {store.INSTALL}")
        [self.port] = processes.free_ports(1)
        self._log = directory / "redis.log"
        self._command = [
            binary, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no",
            "--dir", str(directory),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, socket_timeout=5.0)

    def start(self) -> float:
        """Returns when it answers: then."""
        first = processes.prioritised() if processes.may_prioritise() else contextlib.nullcontext()
        with self._log.open("ab") as log, first:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 10.0
        while True:
            with contextlib.suppress(redis.RedisError):
                self.client.ping()
                return time.monotonic()
            if time.monotonic() > deadline:
                raise processes.StartError(f"Redis did not start:\n{self._log.read_text()}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """As a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """It stops, and its connections stay."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> float:
        self._signal(signal.SIGCONT)
        return time.monotonic()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def calls(self, *names: str) -> int:
        """How often these commands were carried out so far, inside of scripts too."""
        stats: dict[str, Any] = self.client.info("commandstats")
        return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in names)

    @property
    def scripts(self) -> int:
        """Scripts that were called: each for one batch of operations of one kind and shard."""
        return self.calls("evalsha", "eval")

    @property
    def leases(self) -> int:
        """Key operations of limits: each writes its bucket, with SET. (So do births of data, 64 in all.)"""
        return self.calls("set")

    def last_client(self) -> int:
        """The number of the connection that was made last: this one."""
        return int(self.client.client_id())

    def speakers(self, after: int) -> int:
        """Connections made after that one that have called a script last."""
        clients: list[dict[str, str]] = self.client.client_list()
        return sum(int(each["id"]) > after and each["cmd"].startswith("eval") for each in clients)


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
    """All that runs. `redis` and `faults` are None with the memory store."""

    replicas: list[Replica]
    origin: Apart
    clients: Apart
    redis: Redis | None
    faults: Apart | None
    gates: list[Gate]

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


def wait_until(began: float, seconds: float) -> None:
    """Sleep until so long after the beginning."""
    time.sleep(max(0.0, began + seconds - time.monotonic()))


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
) -> Iterator[Bench]:
    """Start everything. `shared`: two replicas of two workers and Redis behind the proxy; else one replica of two, and
    its own store. `make` gives upstreams and routes for the port of the origin; `state` is added to the config's.
    Raises StartError.
    """
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(Apart(Witness))
        upstreams, routes = make(origin.call("port"))
        server, faults, config = None, None, dict(state or {})
        if shared:
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
        bench = Bench(fleet, origin, stack.enter_context(Apart(Driver)), server, faults, [])
        bench.connect()
        try:
            yield bench
        except BaseException:
            for replica in fleet:
                print(f"--- {replica.name}\n{replica.log.read_text()[-3000:]}")
            raise
