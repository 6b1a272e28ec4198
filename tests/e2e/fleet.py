"""The topology of deploy/compose as plain processes: Redis, replicas, HAProxy in front, and an origin that counts.

The settings are read from the files of deploy/compose; only what containers have and processes have not is put in
their place (addresses, and a list of servers where compose asks its DNS).
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from tests.e2e.origins import answers, free_port
from tests.e2e.programs import (
    AMBASSADOR,
    Ambassador,
    Running,
    announcement,
    is_ready,
    program,
    start,
    wait_until,
)
from tests.e2e.raw import Message, Wire, answer, fetch

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose"
WORKERS = 2
DRAIN_DELAY_S = 2.5
"""Longer than HAProxy's checks take to see that a replica drains."""


# ----- what runs ------------------------------------------------------------------------------------------------------


class Replica(Ambassador):
    """One `ambassador run` with two workers."""

    fallback = 0
    """What its limits had admitted without the store's tokens when it was last asked."""

    def ask(self, path: str) -> Message:
        """A request to this replica, past HAProxy, on a connection of its own."""
        return fetch(self.url, path)

    def get(self, path: str) -> Any:
        """What the admin API says, from JSON."""
        return json.loads(self.admin_get(path))

    def look(self) -> None:
        """Note `fallback`, as long as it answers."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.fallback = sum(limit["fallback"] for limit in self.get("/api/limits"))

    def kill(self) -> None:
        """The supervisor and its workers at once, as a host that fails."""
        self.running.kill_group()
        self.running.process.wait()

    def drain(self) -> None:
        """Begin to."""
        self.running.process.send_signal(signal.SIGTERM)

    def wait_for_end(self) -> None:
        """Of a drain: it exits with 0 and has logged no stack."""
        wait_until(self._is_over, "the end of the drain")
        assert self.running.end() == 0, self.running.output()
        assert "Traceback" not in self.running.stderr.read_text(), self.running.output()

    def _is_over(self) -> bool:
        self.look()
        return self.running.process.poll() is not None


class Fleet:
    """Replicas by number, all of which HAProxy knows from the start, as it knows the slots of a template."""

    def __init__(
        self, directory: Path, state: str, places: int, changes: Callable[[dict[str, Any]], None]
    ) -> None:
        self._directory = directory
        self._state = state
        self._changes = changes
        self._ports = [free_port() for _ in range(places)]
        self._stack = contextlib.ExitStack()
        self.replicas: dict[int, Replica] = {}
        """Those that live."""
        self.haproxy: Running | None = None
        self.url = ""
        """HAProxy's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.haproxy is not None:
            sys.stderr.write(self.haproxy.output())  # for the report of a failure
        for replica in self.replicas.values():
            replica.kill()
        self._stack.close()

    def start(self, *numbers: int) -> None:
        """Start replicas, and wait until all workers of theirs are ready."""
        runnings = {number: self._start(number) for number in numbers}
        for number, running in runnings.items():
            self.replicas[number] = self._wait_for(number, running)

    def _start(self, number: int) -> Running:
        directory = self._directory / str(number)
        directory.mkdir()
        config = self.config(self._ports[number], directory)
        (directory / "ambassador.yaml").write_text(json.dumps(config))
        running = start(
            [*AMBASSADOR, "run", "-c", "ambassador.yaml", "--json"], directory, f"replica{number}"
        )
        self._stack.callback(running.kill_group)
        return running

    def _wait_for(self, number: int, running: Running) -> Replica:
        said = wait_until(lambda: announcement(running), "the announcement")
        directory = self._directory / str(number)
        replica = Replica(
            running,
            directory / "ambassador.yaml",
            url=str(said["listeners"][0]).rstrip("/"),
            admin=str(said["admin"]).rstrip("/"),
            control=f"unix:{directory}/control.sock",
            urls=[],
        )
        wait_until(lambda: is_ready(replica), "readiness")
        return replica

    def config(self, port: int, directory: Path) -> dict[str, Any]:
        """That of compose, for a process on this host."""
        config: dict[str, Any] = yaml.safe_load((COMPOSE / "ambassador.yaml").read_text())
        (listener,) = config["listeners"]
        listener["address"] = f"127.0.0.1:{port}"
        listener["trusted"] = ["127.0.0.0/8"]
        config |= {"admin": "127.0.0.1:0", "control": f"unix:{directory}/control.sock"}
        assert config["workers"] == WORKERS
        config["state"]["url"] = self._state
        config["drain"] = {"delay": f"{DRAIN_DELAY_S}s", "timeout": "5s"}
        self._changes(config)
        return config

    def start_haproxy(self) -> None:
        """In front of all places; returns when it has found those that are up."""
        port = free_port()
        file = self._directory / "haproxy.cfg"
        file.write_text(haproxy_config((COMPOSE / "haproxy.cfg").read_text(), port, self._ports))
        binary = program("haproxy")
        assert binary is not None
        running = self.haproxy = start([binary, "-db", "-f", str(file)], self._directory, "haproxy")
        self._stack.callback(running.end)
        self.url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(port, running), "HAProxy")


def haproxy_config(text: str, port: int, ports: list[int]) -> str:
    """Compose's, listening on `port`, with a server for each of `ports` instead of what its DNS says."""

    def put(pattern: str, replacement: str, text: str) -> str:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count == 1, f"{pattern} is there {count} times"
        return text

    servers = "\n".join(f"    server replica{number} 127.0.0.1:{each}" for number, each in enumerate(ports))
    text = put(r"^    maxconn \d+$", "    maxconn 1000", text)  # more needs more descriptors than a user has
    text = put(r"^    bind :80$", f"    bind 127.0.0.1:{port}", text)
    text = put(r"^resolvers network\n(    .*\n)+", "", text)
    text = put(r" resolvers network init-addr \S+$", "", text)
    return put(r"^    server-template .*$", servers, text)


# ----- who asks, and who answers --------------------------------------------------------------------------------------


@dataclass
class Request:
    """One request of a client. Times are of the monotonic clock, which is the origin's as well."""

    number: int
    path: str
    sent: float
    ended: float = 0.0
    status: int = 0
    """0: no answer came."""
    code: str | None = None
    """Of an answer that an ambassador made."""
    error: str = ""


@dataclass
class Counter:
    """What comes to the origin: each request's first arrival."""

    arrived: dict[str, dict[int, float]] = field(default_factory=dict)
    status: str = "200 OK"
    """What it answers on `/fragile`."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, wire: Wire, request: Message) -> None:
        """Count and answer."""
        now = time.monotonic()
        number, path = request.get("x-number"), request.target
        if number is not None:
            with self._lock:
                self.arrived.setdefault(path, {}).setdefault(int(number), now)
        wire.send(answer(b"ok", self.status if path == "/fragile" else "200 OK"))

    def of(self, path: str) -> dict[int, float]:
        """The first arrivals of requests with this path, by number."""
        with self._lock:
            return dict(self.arrived.get(path, {}))


class Load:
    """Clients that ask one after the other, each on its own connection, and never ask twice for the same."""

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")
        self._numbers = itertools.count()
        self._done = threading.Event()
        self._threads: list[threading.Thread] = []
        self.requests: list[Request] = []

    def add(self, path: str, clients: int, pause_s: float) -> None:
        """More clients; each waits for `pause_s` between two requests."""
        for _ in range(clients):
            thread = threading.Thread(target=self._ask, args=(path, pause_s))
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        """Have all finish what they are at."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    def of(self, path: str) -> list[Request]:
        """Those that have ended."""
        return [request for request in list(self.requests) if request.path == path]

    def _ask(self, path: str, pause_s: float) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        connection.auto_open = 0
        while not self._done.wait(pause_s):
            request = Request(next(self._numbers), path, time.monotonic())
            try:
                if connection.sock is None:
                    connection.connect()
                connection.request("GET", path, headers={"x-number": str(request.number)})
                response = connection.getresponse()
                body = response.read()
                request.status = response.status
                if response.headers.get("content-type") == "application/problem+json":
                    request.code = json.loads(body)["code"]
            except (OSError, http.client.HTTPException) as error:
                request.error = repr(error)
                connection.close()
            request.ended = time.monotonic()
            self.requests.append(request)
        connection.close()


@contextlib.contextmanager
def load(url: str) -> Iterator[Load]:
    """A `Load` that ends with the block."""
    running = Load(url)
    try:
        yield running
    finally:
        running.end()


def excess(rate: float, burst: int, sent: dict[int, float], arrived: dict[int, float]) -> float:
    """By how much requests went beyond `burst + rate * D` in the worst window: below 0 nowhere.

    A request was admitted somewhere between being sent and arriving. So of any window those count that were sent in it
    and arrived in it, whatever the delays: this never blames a limit that held.
    """
    times = sorted((sent[number], when) for number, when in arrived.items())
    worst = -float(burst)
    for first in range(0, len(times), max(1, len(times) // 300)):
        begin = times[first][0]
        inside = sorted(when for _, when in times[first:])
        for count, when in enumerate(inside, 1):
            worst = max(worst, count - burst - rate * (when - begin))
    return worst
