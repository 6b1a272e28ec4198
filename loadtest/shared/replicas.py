"""Starting replicas of the ambassador, and asking them."""

import contextlib
import http.client
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import processes
from loadtest.processes import Running

_PATIENCE_S = 60.0
"""On two cores that others use too, a replica took up to 15 s to start; then all had found each other within 3 s."""
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Replica:
    """One that runs."""

    name: str
    port: int
    admin_port: int
    pid: int
    log: Path

    def get(self, path: str) -> bytes:
        """What the admin API answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=5.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/api/status"))
        return found

    def workers(self) -> list[int]:
        """The processes of its workers, by slot."""
        return [worker["pid"] for worker in sorted(self.status()["workers"], key=lambda each: each["slot"])]

    def metric(self, name: str) -> float:
        """A metric, summed over its labels; 0 if there is none of that name."""
        return metric(self.get("/metrics").decode(), name)


def metric(text: str, name: str) -> float:
    """The sum of all samples of a name in Prometheus' text format."""
    return sum(float(found[3]) for found in _SAMPLE.finditer(text) if found[1] == name)


def configuration(
    name: str,
    *,
    port: int,
    admin_port: int,
    directory: Path,
    workers: int,
    state: object,
    upstreams: Mapping[str, object],
    routes: Sequence[Mapping[str, object]],
) -> dict[str, object]:
    """The configuration of one replica (JSON, which is YAML)."""
    return {
        "version": 1,
        "name": name,
        "listeners": [{"address": f"127.0.0.1:{port}", "limits": {"idle": "300s"}}],
        "admin": f"127.0.0.1:{admin_port}",
        "control": f"unix:{directory}/{name}.sock",
        "workers": workers,
        "telemetry": {"access_log": "off"},
        "drain": {"delay": "0s", "timeout": "1s"},
        "state": state,
        "upstreams": upstreams,
        "routes": routes,
    }


@contextlib.contextmanager
def running(
    count: int,
    *,
    workers: int,
    directory: Path,
    state: object,
    upstreams: Mapping[str, object],
    routes: Sequence[Mapping[str, object]],
    called: str = "replica",
) -> Iterator[list[Replica]]:
    """Start so many replicas with one config; they know each other when this begins. Raises StartError.

    `called`: what their names begin with. None passes on what came through one of its own name.
    """
    with contextlib.ExitStack() as stack:
        replicas = []
        for number in range(count):
            name = f"{called}-{number + 1}"
            port, admin_port = processes.free_ports(2)
            config = configuration(
                name,
                port=port,
                admin_port=admin_port,
                directory=directory,
                workers=workers,
                state=state,
                upstreams=upstreams,
                routes=routes,
            )
            path = directory / f"{name}.yaml"
            path.write_text(json.dumps(config, indent=1))
            command = [sys.executable, "-m", "ambassador", "run", "-c", str(path)]
            process: Running = stack.enter_context(
                processes.running(
                    name,
                    command,
                    port=port,
                    core=None,
                    directory=directory,
                    ready_path="/.well-known/ambassador/health",
                )
            )
            replicas.append(Replica(name, port, admin_port, process.pid, directory / f"{name}.log"))
        deadline = time.monotonic() + _PATIENCE_S
        while not all(_is_complete(replica, count, workers) for replica in replicas):
            if time.monotonic() > deadline:
                found = "; ".join(map(_found, replicas))
                raise processes.StartError(
                    f"replicas did not find each other in {_PATIENCE_S:.0f} s: {found}"
                )
            time.sleep(0.1)
        yield replicas


def _found(replica: Replica) -> str:
    """What a replica knows of itself and the others."""
    seen = json.loads(replica.get("/api/replicas"))
    ready = sum(worker["ready"] for worker in replica.status()["workers"])
    return f"{replica.name} has {ready} workers ready and sees {[each['workers'] for each in seen]}"


def _is_complete(replica: Replica, replicas: int, workers: int) -> bool:
    seen = json.loads(replica.get("/api/replicas"))
    ready = [worker for worker in replica.status()["workers"] if worker["ready"]]
    # Without a Redis each replica knows itself alone.
    return len(ready) == workers and (
        replicas == 1 or sorted(each["workers"] for each in seen) == [workers] * replicas
    )
