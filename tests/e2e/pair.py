"""A pair of replicas that share a store, and clients that ask both of them for what is limited."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.control.service import Service, until

S = TypeVar("S", bound=Service)


class Replica(Service):
    """Two workers and an admin API. `behind` is what its upstream `failing` is, and `breaker` how that is guarded."""

    def __init__(
        self,
        folder: Path,
        state: str,
        behind: str = "http://127.0.0.1:1",
        breaker: str = "{min_requests: 5}",
    ) -> None:
        folder.mkdir()
        self._behind = behind
        self._breaker = breaker
        self.file = folder / "amb.yaml"
        self.configure(folder / "c.sock", state)
        super().__init__(["ambassador", "run", "-c", str(self.file)], folder / "c.sock")

    def configure(self, control: Path, state: str, limit: str = "{rate: 100/s, burst: 50}") -> None:
        self.file.write_text(
            f"""\
version: 1
listen: 127.0.0.1:0
control: "unix:{control}"
workers: 2
state: {state}
drain: {{delay: 0s, timeout: 3s}}
telemetry: {{access_log: off}}
routes:
  - {{name: limited, match: {{path: /limited}}, respond: 200, limit: {limit}}}
  - name: failing
    match: {{path: /failing}}
    to: failing
    retry: {{attempts: 0}}
    timeout: {{per_try: 1s}}
  - {{name: held, match: {{path: /held}}, to: held}}
  - {{name: mark, respond: 200}}
upstreams:
  failing: {{endpoints: ["{self._behind}"], breaker: {self._breaker}}}
  held: {{endpoints: ["http://127.0.0.1:1"], breaker: {{errors: 50%}}}}
"""
        )

    def replicas(self) -> dict[str, dict[str, Any]]:
        return {each["id"]: each for each in self.admin("GET", "/api/replicas")[1]}

    def limits(self) -> list[dict[str, Any]]:
        limits: list[dict[str, Any]] = self.admin("GET", "/api/limits")[1]
        return limits

    @property
    def state(self) -> tuple[str, bool]:
        state = self.status()["state"]
        return state["backend"], state["up"]

    @property
    def state_up(self) -> bool:
        return self.state[1]

    def serves(self) -> bool:
        return self.statuses("/", 1) == [200]

    def kill_worker(self, slot: int) -> None:
        """At once, as a crash would."""
        os.kill(self.pids()[slot], signal.SIGKILL)

    def statuses(self, path: str, count: int) -> list[int]:
        """The answers to so many requests, each over a connection of its own."""
        return [self._status(path) for _ in range(count)]

    def _status(self, path: str) -> int:
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=10)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status


class Callers:
    """Clients of several replicas that ask for what is limited, one after the other, until they are stopped."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.admitted = 0
        self.refused = 0
        self.other: list[int] = []
        self.seconds = 0.0
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(replica,)) for replica in replicas for _ in range(2)
        ]
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def _ask(self, replica: Replica) -> None:
        while not self._done.is_set():
            (status,) = replica.statuses("/limited", 1)
            with self._lock:
                if status == 200:
                    self.admitted += 1
                elif status == 429:
                    self.refused += 1
                else:
                    self.other.append(status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def answers(self) -> int:
        return self.admitted + self.refused + len(self.other)

    def wait_for_more(self, count: int) -> None:
        """Wait for so many answers more."""
        before = self.answers
        until(lambda: self.answers > before + count)

    def stop(self) -> None:
        """End them; `seconds` is how long they asked, at most."""
        self._done.set()
        for thread in self._threads:
            thread.join()
        self.seconds = time.monotonic() - self._started


@contextmanager
def two_replicas(make: Callable[[str], S]) -> Iterator[tuple[S, S]]:
    """What `make` starts by the names `a` and `b`, with two workers each, when both are up."""
    with ExitStack() as stack:
        one = make("a")
        stack.enter_context(one)
        other = make("b")
        stack.enter_context(other)
        for replica in (one, other):
            replica.wait_until_up()
            replica.wait_for_workers(2)
        yield one, other


@contextmanager
def a_pair(
    folder: Path, state: str, *behind: str, breaker: str = "{min_requests: 5}"
) -> Iterator[tuple[Replica, Replica]]:
    """Two that share a store. `behind`: of each, what its upstream `failing` is."""
    urls = dict(zip("ab", behind or ("http://127.0.0.1:1",) * 2, strict=True))
    with two_replicas(lambda name: Replica(folder / name, state, urls[name], breaker)) as pair:
        yield pair
