"""Replicas that share a Redis: each sees the other, sees the Redis hang, die and come back, and serves meanwhile."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
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

    def configure(self, control: Path, state: str) -> None:
        self.file.write_text(
            f"""\
version: 1
listen: 127.0.0.1:0
control: "unix:{control}"
workers: 2
state: {state}
drain: {{delay: 0s, timeout: 3s}}
telemetry: {{access_log: off}}
routes: [{{name: mark, respond: 200}}]
"""
        )

    def replicas(self) -> dict[str, dict[str, Any]]:
        return {each["id"]: each for each in self.admin("GET", "/api/replicas")[1]}

    @property
    def state_up(self) -> bool:
        up: bool = self.status()["state"]["up"]
        return up

    def serves(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        connection.request("GET", "/")
        status = connection.getresponse().status
        connection.close()
        return status == 200


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


def test_replica_starts_without_its_redis(tmp_path: Path, redis: Server) -> None:
    redis.kill()
    with Replica(tmp_path / "a", redis.url) as replica:
        replica.wait_until_up()
        assert replica.serves()
        until(lambda: not replica.state_up)
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
        until(lambda: replica.status()["state"] == {"backend": redis.url, "up": True})
        replica.configure(replica.control, "local")
        assert replica.admin("POST", "/api/reload")[1]["ok"]
        redis.kill()
        until(lambda: replica.status()["state"] == {"backend": "local", "up": True})
        assert replica.serves()
