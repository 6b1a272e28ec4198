"""What clients notice when endpoints die, and when they return: real processes, killed with SIGKILL.

Two scenarios, with health checks, outlier ejection and retries, and without a breaker:
- `death`: one of four endpoints dies under load. Nothing that had not begun to be answered may fail.
- `outage`: all four die, and return. How long after the first of them answers are clients answered, and not refused
  any more?

The load comes from threads with a connection each, paced to a rate; every request is a GET and is sent once.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest import processes
from loadtest.waits import PATIENCE_S, wait_for

ENDPOINTS = 4
RATE = 500.0
CLIENTS = 10
BACK_WITHIN_S = 1.0
"""The target: from the first answers of an endpoint to those of the ambassador."""

CONFIG = """\
version: 1
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin}
control: unix:{directory}/control.sock
workers: 2
telemetry: {{access_log: off}}
drain: {{delay: 0s, timeout: 2s}}
upstreams:
  service:
    endpoints: [{endpoints}]
    health: {{path: /, every: 1s}}
    outlier: {{}}
routes:
  - {{name: main, to: service, retry: {{attempts: 2, when: [connect, reset, 502-504]}}}}
"""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it was sent and when that was over (seconds of time.monotonic), and its status; 0: none."""

    sent: float
    ended: float
    status: int

    @property
    def failed(self) -> bool:
        """It was not answered with 200."""
        return self.status != 200


class Load:
    """Requests at a steady rate over `clients` connections, until `stop`.

    `tls`: what they are made with. `fresh` of the clients have a new connection for every request.
    """

    def __init__(
        self,
        port: int,
        *,
        rate: float = RATE,
        clients: int = CLIENTS,
        tls: ssl.SSLContext | None = None,
        fresh: int = 0,
    ) -> None:
        self._port = port
        self._tls = tls
        self._gap = clients / rate
        self._over = threading.Event()
        self._found: list[list[Request]] = [[] for _ in range(clients)]
        self._threads = [
            threading.Thread(
                target=self._client,
                args=(index * self._gap / clients, found),
                kwargs={"fresh": index < fresh},
                daemon=True,
            )
            for index, found in enumerate(self._found)
        ]
        for thread in self._threads:
            thread.start()

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=PATIENCE_S, context=self._tls)

    def _client(self, offset: float, found: list[Request], *, fresh: bool) -> None:
        connection = self._connection()
        due = time.monotonic() + offset
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._gap, time.monotonic() - 1.0)  # what is late by more is not caught up with
            sent = time.monotonic()
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            found.append(Request(sent, time.monotonic(), status))
            if fresh:
                connection.close()
        connection.close()

    @property
    def requests(self) -> list[Request]:
        """Those that are over, by when they were sent."""
        return sorted((each for found in self._found for each in list(found)), key=lambda each: each.sent)

    def stop(self) -> list[Request]:
        """No more; what there was."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        return self.requests


@dataclass(slots=True)
class Scene:
    """A running ambassador and its endpoints, which may be dead."""

    port: int
    admin_port: int
    directory: Path
    ports: Sequence[int]
    endpoints: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def kill(self, ports: Sequence[int]) -> None:
        """The end of these endpoints, without a word."""
        for port in ports:
            os.kill(self.endpoints[port].pid, signal.SIGKILL)
        for port in ports:
            self.endpoints.pop(port).wait()

    def start(self, ports: Sequence[int]) -> None:
        """Start these endpoints; does not wait for them."""
        for port in ports:
            command = [sys.executable, "-m", "loadtest.mortal", str(port)]
            self.endpoints[port] = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def upstream(self) -> list[dict[str, object]]:
        """The endpoints, as the admin API has them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/api/upstreams")
            endpoints: list[dict[str, object]] = json.loads(connection.getresponse().read())[0]["endpoints"]
            return endpoints
        finally:
            connection.close()

    def healthy(self) -> int:
        """How many endpoints are healthy."""
        return sum(bool(each["healthy"]) for each in self.upstream())

    def in_use(self) -> int:
        """How many are healthy, and not ejected."""
        return sum(bool(each["healthy"]) and not each["ejected_until"] for each in self.upstream())


@contextlib.contextmanager
def scene(directory: Path) -> Iterator[Scene]:
    """A running ambassador before four endpoints. Raises StartError."""
    port, admin_port, *ports = processes.free_ports(2 + ENDPOINTS)
    made = Scene(port, admin_port, directory, ports)
    config = directory / "ambassador.yaml"
    config.write_text(
        CONFIG.format(
            port=port,
            admin=admin_port,
            directory=directory,
            endpoints=", ".join(f"http://127.0.0.1:{each}" for each in ports),
        )
    )
    command = [sys.executable, "-m", "ambassador", "run", "-c", str(config)]
    try:
        made.start(ports)
        for each in ports:
            wait_for(lambda each=each: _accepts(each), "an endpoint")  # type: ignore[misc]
        with processes.running("ambassador", command, port=port, core=None, directory=directory):
            yield made
    finally:
        made.kill(list(made.endpoints))


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Death:
    """What became of the requests while one endpoint died. `slowest_s`: of those sent after that."""

    requests: int
    failed: int
    slowest_s: float

    def text(self) -> str:
        """For people."""
        return (
            f"death: 1 of {ENDPOINTS} endpoints killed under {RATE:g} requests/s: {self.failed} of {self.requests} "
            f"requests failed, the slowest took {self.slowest_s * 1000:.0f} ms"
        )


def death(directory: Path, *, before_s: float = 2.0, after_s: float = 3.0) -> Death:
    """One endpoint dies under load."""
    with scene(directory) as made:
        load = Load(made.port)
        time.sleep(before_s)
        died = time.monotonic()
        made.kill(made.ports[:1])
        time.sleep(after_s)
        requests = load.stop()
    return Death(
        requests=len(requests),
        failed=sum(each.failed for each in requests),
        slowest_s=max(each.ended - each.sent for each in requests if each.sent > died),
    )


@dataclass(frozen=True, slots=True)
class Outage:
    """How long after the first endpoint answered again until a client was answered (`back_s`), until the last refusal
    (`clean_s`; 0: there was none), and until every endpoint was healthy and not ejected (`healthy_s`).
    """

    back_s: float
    clean_s: float
    healthy_s: float

    def text(self) -> str:
        """For people."""
        clean = f"the last refusal {self.clean_s * 1000:.0f} ms after" if self.clean_s > 0 else "none refused"
        return (
            f"outage: all {ENDPOINTS} endpoints killed and started again: the first client is answered "
            f"{self.back_s * 1000:.0f} ms after the first endpoint is, {clean}, all are in use after "
            f"{self.healthy_s * 1000:.0f} ms"
        )


def measure_return(requests: Sequence[Request], answered_at: float, healthy_at: float) -> Outage:
    """What an outage was like for clients. `answered_at`: when the first endpoint answered again."""
    good = [each.ended for each in requests if not each.failed and each.ended >= answered_at]
    bad = [each.ended for each in requests if each.failed and each.sent >= answered_at]
    return Outage(
        back_s=min(good) - answered_at,
        clean_s=max(bad, default=answered_at) - answered_at,
        healthy_s=healthy_at - answered_at,
    )


def outage(directory: Path, *, dead_s: float = 3.0) -> Outage:
    """All endpoints die under load, and return."""
    with scene(directory) as made:
        load = Load(made.port)
        time.sleep(1.0)
        made.kill(made.ports)
        wait_for(lambda: made.healthy() == 0, "the end of every endpoint's health")
        time.sleep(dead_s)
        made.start(made.ports)
        wait_for(lambda: any(_accepts(port) for port in made.ports), "the first endpoint")
        answered_at = time.monotonic()
        wait_for(lambda: made.in_use() == ENDPOINTS, "every endpoint's health, and the end of every ejection")
        healthy_at = time.monotonic()
        time.sleep(1.0)
        return measure_return(load.stop(), answered_at, healthy_at)
