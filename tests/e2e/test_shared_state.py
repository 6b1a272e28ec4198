"""Replicas that share a Redis: each sees the other, sees the Redis hang, die and come back, and serves meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.service import until
from tests.e2e.pair import Callers, Replica, a_pair
from tests.state.servers import Server, any_binary


@pytest.fixture
def redis() -> Iterator[Server]:
    with Server(any_binary()) as server:
        yield server


@pytest.fixture
def pair(tmp_path: Path, redis: Server) -> Iterator[tuple[Replica, Replica]]:
    with a_pair(tmp_path, redis.url) as pair:
        yield pair


def test_replicas_see_each_other_come_and_go_and_keep_to_one_limit(pair: tuple[Replica, Replica]) -> None:
    one, other = pair
    with Callers(pair) as callers:
        until(lambda: callers.answers > 1_000 and callers.refused > 100)
    assert callers.other == []
    assert callers.admitted <= 50 + 100 * callers.seconds
    until(lambda: [each["workers"] for each in one.replicas().values()] == [2, 2])
    assert set(one.replicas()) == set(other.replicas())
    assert all(each["state_up"] for each in one.replicas().values())
    other.signal(15)
    assert other.end()[0] == 0
    until(lambda: len(one.replicas()) == 1)


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
    with Callers(pair) as callers:
        until(lambda: callers.refused > 100)
    assert callers.admitted <= 50 + 20 * callers.seconds
    change(other, "{rate: 20/s, burst: 80}")
    until(lambda: hold("20/s", 80))
    change(one, "{rate: 200/s, burst: 200}")
    until(lambda: one.statuses("/limited", 1) and hold("20/s", 80))
    other.signal(15)
    status, said = other.end()
    assert status == 0
    assert "replicas have different configs, and until they agree" in said
    until(lambda: [(each["rate"], each["burst"]) for each in one.limits()] == [("200/s", 200)])


def test_redis_that_hangs_or_dies_is_noticed_and_its_return_too_and_no_request_fails(
    pair: tuple[Replica, Replica], redis: Server
) -> None:
    one, other = pair
    until(lambda: len(one.replicas()) == len(other.replicas()) == 2)
    with Callers(pair) as callers:
        for harm, heal in ((redis.stop_running, redis.go_on), (redis.kill, redis.start)):
            until(lambda: one.state_up and other.state_up)
            harm()
            until(lambda: not one.state_up and not other.state_up)
            assert one.serves()
            callers.wait_for_more(200)
            heal()
        until(lambda: one.state_up and other.state_up)
        callers.wait_for_more(200)
    assert callers.other == []
    # While it is away each replica has its half, and at each loss and return both may hold a burst.
    assert callers.admitted <= 5 * 50 + 1.1 * 100 * callers.seconds
    until(lambda: len(one.replicas()) == 2)
    one.signal(15)
    assert one.end()[0] == 0


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
