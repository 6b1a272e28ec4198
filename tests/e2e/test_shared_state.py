"""Replicas that share a Redis: each sees the other, sees the Redis hang, die and come back, and serves meanwhile."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.control.service import Service, until
from tests.state.servers import Server, any_binary


class Replica(Service):
    """Two workers and an admin API."""

    def __init__(self, folder: Path, state: str) -> None:
        folder.mkdir()
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
  - {{name: mark, respond: 200}}
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

    def statuses(self, path: str, count: int) -> list[int]:
        """The answers to so many requests, each over a connection of its own."""
        return [self._status(path) for _ in range(count)]

    def _status(self, path: str) -> int:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status


@pytest.fixture
def redis() -> Iterator[Server]:
    with Server(any_binary()) as server:
        yield server


@pytest.fixture
def pair(tmp_path: Path, redis: Server) -> Iterator[tuple[Replica, Replica]]:
    with ExitStack() as stack:
        replicas = [stack.enter_context(Replica(tmp_path / name, redis.url)) for name in "ab"]
        for replica in replicas:
            replica.wait_until_up()
            replica.wait_for_workers(2)
        one, other = replicas
        yield one, other


def test_replicas_see_each_other_come_and_go(pair: tuple[Replica, Replica]) -> None:
    one, other = pair
    until(lambda: [each["workers"] for each in one.replicas().values()] == [2, 2])
    assert set(one.replicas()) == set(other.replicas())
    assert all(each["state_up"] for each in one.replicas().values())
    other.signal(15)
    assert other.end()[0] == 0
    until(lambda: len(one.replicas()) == 1)


def test_redis_that_hangs_or_dies_is_noticed_and_its_return_too(
    pair: tuple[Replica, Replica], redis: Server
) -> None:
    one, _ = pair
    until(lambda: one.state_up)
    redis.stop_running()
    until(lambda: not one.state_up)
    assert one.serves()
    redis.go_on()
    until(lambda: one.state_up)
    redis.kill()
    until(lambda: not one.state_up)
    assert one.serves()
    redis.start()
    until(lambda: one.state_up)
    until(lambda: len(one.replicas()) == 2)
    one.signal(15)
    assert one.end()[0] == 0


class Callers:
    """Clients of several replicas that ask for what is limited, one after the other, until they are stopped."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.admitted = 0
        self.refused = 0
        self.other: list[int] = []
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

    @property
    def answers(self) -> int:
        return self.admitted + self.refused + len(self.other)

    def wait_for_more(self, count: int) -> None:
        """Wait for so many answers more."""
        before = self.answers
        until(lambda: self.answers > before + count)

    def stop(self) -> float:
        """Returns how long they asked, in seconds: at most."""
        self._done.set()
        for thread in self._threads:
            thread.join()
        return time.monotonic() - self._started


def test_replicas_keep_to_one_limit(pair: tuple[Replica, Replica]) -> None:
    callers = Callers(pair)
    until(lambda: callers.answers > 1_000 and callers.refused > 100)
    seconds = callers.stop()
    assert callers.other == []
    assert callers.admitted <= 50 + 100 * seconds


def test_lower_limit_holds_in_all_replicas_until_their_configs_agree(
    pair: tuple[Replica, Replica], redis: Server
) -> None:
    one, other = pair

    def change(replica: Replica, limit: str) -> None:
        replica.configure(replica.control, redis.url, limit)
        assert replica.admin("POST", "/api/reload")[1]["ok"]

    def hold(rate: str, burst: int) -> bool:
        return all((each["rate"], each["burst"]) == (rate, burst) for it in pair for each in it.limits())

    until(lambda: len(one.replicas()) == len(other.replicas()) == 2)
    change(one, "{rate: 20/s, burst: 80}")
    until(lambda: hold("20/s", 50))
    callers = Callers(pair)
    until(lambda: callers.refused > 100)
    seconds = callers.stop()
    assert callers.admitted <= 50 + 20 * seconds
    change(other, "{rate: 20/s, burst: 80}")
    until(lambda: hold("20/s", 80))
    change(one, "{rate: 200/s, burst: 200}")
    until(lambda: one.statuses("/limited", 1) and hold("20/s", 80))
    other.signal(15)
    status, said = other.end()
    assert status == 0
    assert "replicas have different configs, and until they agree" in said
    until(lambda: [(each["rate"], each["burst"]) for each in one.limits()] == [("200/s", 200)])


def test_no_request_fails_because_redis_does(pair: tuple[Replica, Replica], redis: Server) -> None:
    one, other = pair
    until(lambda: len(one.replicas()) == len(other.replicas()) == 2)
    callers = Callers(pair)
    for harm, heal in ((redis.stop_running, redis.go_on), (redis.kill, redis.start)):
        until(lambda: one.state_up and other.state_up)
        harm()
        until(lambda: not one.state_up and not other.state_up)
        callers.wait_for_more(200)
        heal()
    until(lambda: one.state_up and other.state_up)
    callers.wait_for_more(200)
    seconds = callers.stop()
    assert callers.other == []
    # While it is away each replica has its half, and at each loss and return both may hold a burst.
    assert callers.admitted <= 5 * 50 + 1.1 * 100 * seconds


def test_replica_starts_without_its_redis(tmp_path: Path, redis: Server) -> None:
    redis.kill()
    with Replica(tmp_path / "a", redis.url) as replica:
        replica.wait_until_up()
        assert replica.serves()
        until(lambda: not replica.state_up)
        until(
            lambda: "Connection refused" in str(replica.admin("GET", "/api/status")[1]["state"]["warnings"])
        )
        redis.start()
        until(lambda: replica.state_up)


def test_reload_moves_to_another_store(tmp_path: Path, redis: Server) -> None:
    with Replica(tmp_path / "a", "local") as replica:
        replica.wait_until_up()
        replica.wait_for_workers(2)
        (only,) = replica.replicas().values()
        assert only["workers"] == 2
        replica.configure(replica.control, f"{{url: '{redis.url}', prefix: moved}}")
        assert replica.admin("POST", "/api/reload")[1]["ok"]
        until(lambda: redis.client().keys("moved:*"))
        until(lambda: replica.state == (redis.url, True))
        replica.configure(replica.control, "local")
        assert replica.admin("POST", "/api/reload")[1]["ok"]
        redis.kill()
        until(lambda: replica.state == ("local", True))
        assert replica.serves()
