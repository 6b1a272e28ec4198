"""What a fleet's store may suffer while clients ask: no request fails, the limit holds nearly, circuits survive."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.service import until
from tests.e2e.pair import Callers, Replica, a_pair
from tests.state.servers import (
    ClusterServers,
    Sentinels,
    Server,
    any_binary,
    free_port,
    slot_of,
    wait_until,
)

RATE, BURST = 100, 50


@contextlib.contextmanager
def full(server: Server) -> Iterator[None]:
    """OOM."""
    server.client().config_set("maxmemory", "1mb")
    yield
    server.client().config_set("maxmemory", 0)


@contextlib.contextmanager
def cannot_save(server: Server) -> Iterator[None]:
    """MISCONF: where its file should be is a directory, and it writes no more until it has saved."""
    client, obstacle = server.client(), server.directory / "dump.rdb"
    obstacle.mkdir()
    client.config_set("save", "3600 1")

    def saved(status: str) -> bool:
        with contextlib.suppress(Exception):  # one is under way
            client.bgsave()
        return bool(client.info("persistence")["rdb_last_bgsave_status"] == status)

    wait_until(lambda: saved("err"), "saving fails")
    yield
    obstacle.rmdir()
    wait_until(lambda: saved("ok"), "it saves")


@contextlib.contextmanager
def read_only(server: Server) -> Iterator[None]:
    """READONLY: a failover made it a replica."""
    server.client().replicaof("127.0.0.1", free_port())
    yield
    server.client().replicaof("no", "one")


@contextlib.contextmanager
def without_rights(server: Server) -> Iterator[None]:
    """NOPERM: the user may call scripts no more."""
    server.client().execute_command("ACL", "SETUSER", "default", "-evalsha")
    yield
    server.client().execute_command("ACL", "SETUSER", "default", "+evalsha")


@contextlib.contextmanager
def loading(server: Server) -> Iterator[None]:
    """LOADING: it has been started again, and reads what it had saved."""
    client = server.client()
    for number in range(2000):
        client.set(f"fill:{number}", b"x" * 100)
    client.save()
    server.kill()
    server.start("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024", wait=False)
    wait_until(lambda: server.client().info("persistence")["loading"], "it loads")
    yield
    wait_until(lambda: server.client().config_set("key-load-delay", 0), "it takes the setting")


FAULTS: list[Callable[[Server], contextlib.AbstractContextManager[None]]] = [
    full,
    cannot_save,
    read_only,
    without_rights,
    loading,
]


def both_up(pair: tuple[Replica, Replica]) -> bool:
    return all(replica.state_up for replica in pair)


def both_down(pair: tuple[Replica, Replica]) -> bool:
    return not any(replica.state_up for replica in pair)


def count_alike(pair: tuple[Replica, Replica]) -> bool:
    return both_up(pair) and all(len(replica.replicas()) == 2 for replica in pair)


def breakers(replica: Replica) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in replica.admin("GET", "/api/breakers")[1]}


def held(replica: Replica, name: str, state: str) -> bool:
    forced = breakers(replica)[name]["forced"]
    return forced is not None and forced["state"] == state


def fail(replica: Replica) -> bool:
    """Have what cannot be reached be asked for, by a replica's workers."""
    return set(replica.statuses("/failing", 20)) == {503}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, tuple[Replica, Replica]]]:
    """One server, and two replicas that share it: who uses them leaves both well."""
    folder = tmp_path_factory.mktemp("pair")
    with Server(any_binary()) as server, a_pair(folder, server.url) as pair:
        yield server, pair


def test_server_that_cannot_serve_costs_no_request(single: tuple[Server, tuple[Replica, Replica]]) -> None:
    server, pair = single
    until(lambda: count_alike(pair))
    with Callers(pair) as callers:
        for fault in FAULTS:
            with fault(server):
                until(lambda: both_down(pair))
                callers.wait_for_more(100)
            until(lambda: count_alike(pair))
            callers.wait_for_more(100)
    assert callers.other == []
    # Each replica has its half meanwhile, and at each loss and return both may hold a burst.
    assert callers.admitted <= (1 + 2 * len(FAULTS)) * BURST + 1.1 * RATE * callers.seconds


@pytest.mark.parametrize("dies", [False, True], ids=["asked for", "the master dies"])
def test_failover_costs_no_request_and_circuits_survive(tmp_path: Path, dies: bool) -> None:
    with contextlib.closing(Sentinels(any_binary())) as sentinels, a_pair(tmp_path, sentinels.url) as pair:
        one, other = pair
        until(lambda: count_alike(pair))
        override = {"state": "open", "for": "10m", "reason": "by hand"}
        assert one.admin("POST", "/api/breakers/held", override)[0] == 200
        until(lambda: held(other, "held", "open"))
        until(lambda: fail(one) and fail(other) and breakers(one)["failing"]["epoch"])
        tripped = breakers(one)["failing"]["epoch"]
        sentinels.master().client().wait(1, 5000)
        with Callers(pair) as callers:
            callers.wait_for_more(200)
            if dies:
                old = sentinels.master()
                old.kill()
                wait_until(lambda: sentinels.master() is not old, "the Sentinel has another master")
            else:
                sentinels.fail_over()
            until(lambda: count_alike(pair))
            callers.wait_for_more(200)
        assert callers.other == []
        assert callers.admitted <= 3 * BURST + 1.1 * RATE * callers.seconds
        # A worker that comes now knows them from the new master.
        pid = one.pids()[0]
        one.kill_worker(0)
        until(lambda: one.pids().get(0) not in (None, pid) and one.state_up)
        for replica in pair:
            until(lambda it=replica: held(it, "held", "open"))  # type: ignore[misc]
            assert breakers(replica)["held"]["forced"]["reason"] == "by hand"
            assert breakers(replica)["failing"]["epoch"] >= tripped
            assert set(replica.statuses("/held", 4)) == {503}
        assert other.admin("POST", "/api/breakers/held", {"state": "auto", "reason": "over"})[0] == 200
        until(lambda: not breakers(one)["held"]["forced"])


def test_circuits_survive_a_wiped_store(
    single: tuple[Server, tuple[Replica, Replica]], tmp_path: Path
) -> None:
    server, pair = single
    one, other = pair
    until(lambda: count_alike(pair))
    override = {"state": "open", "for": "10m", "reason": "by hand"}
    assert one.admin("POST", "/api/breakers/held", override)[0] == 200
    until(lambda: held(other, "held", "open"))
    until(lambda: fail(one) and fail(other) and breakers(one)["failing"]["epoch"])
    tripped = breakers(one)["failing"]["epoch"]
    with Callers(pair) as callers:
        server.client().flushall()
        callers.wait_for_more(200)
        for replica in pair:
            replica.statuses("/failing", 4)
        # Back in the store, for whoever comes.
        until(lambda: len(server.client().keys("*:cb:*")) == 2)
    assert callers.other == []
    for replica in pair:
        assert held(replica, "held", "open")
        assert breakers(replica)["failing"]["epoch"] >= tripped
    with Replica(tmp_path / "c", server.url) as third:
        third.wait_until_up()
        until(lambda: held(third, "held", "open") and breakers(third)["failing"]["epoch"] >= tripped)


def test_slots_that_move_cost_no_request(tmp_path: Path) -> None:
    with contextlib.closing(ClusterServers(any_binary())) as cluster, a_pair(tmp_path, cluster.url) as pair:
        until(lambda: count_alike(pair))
        with Callers(pair) as callers:
            callers.wait_for_more(200)
            for tag in [*range(0, 64, 4), *buckets(cluster)]:
                slot = slot_of(tag)
                source = cluster.owner(slot)
                target = next(server for server in cluster.servers if server is not source)
                cluster.begin_move(slot, target)
                while cluster.move_keys(slot, target, 1):
                    pass
                callers.wait_for_more(10)
                cluster.end_move(slot, target)
            until(lambda: count_alike(pair))
    assert callers.other == []
    assert callers.admitted <= 3 * BURST + 1.1 * RATE * callers.seconds


def buckets(cluster: ClusterServers) -> set[int]:
    """The shards that hold the limits of routes."""
    return {
        int(key.split(b"{s")[1][:2])
        for client, _ in cluster.clients_of_tags()
        for key in client.keys("*:rl:limited/*")
    }


def test_cluster_whose_master_dies_goes_on_with_its_replica(tmp_path: Path) -> None:
    with contextlib.closing(ClusterServers(any_binary())) as cluster, a_pair(tmp_path, cluster.url) as pair:
        until(lambda: count_alike(pair))
        with Callers(pair) as callers:
            callers.wait_for_more(200)
            (tag,) = buckets(cluster)
            victim = cluster.owner(slot_of(tag))
            heir = cluster.add_replica(victim)
            victim.client().wait(1, 5000)
            victim.kill()
            wait_until(lambda: heir.client().role()[0] == b"master", "the replica is promoted")
            callers.wait_for_more(100)
            until(lambda: count_alike(pair))
            callers.wait_for_more(200)
    assert callers.other == []
    assert callers.admitted <= 3 * BURST + 1.1 * RATE * callers.seconds


def test_user_without_channels_costs_seconds_and_says_so(tmp_path: Path) -> None:
    """Since Redis 7 a user has none unless it is given some."""
    with Server(any_binary()) as server:
        server.client().execute_command("ACL", "SETUSER", "default", "resetchannels")
        with a_pair(tmp_path, server.url) as pair:
            one, other = pair
            until(lambda: count_alike(pair))
            override = {"state": "open", "for": "10m", "reason": "by hand"}
            status, told = one.admin("POST", "/api/breakers/held", override)
            assert (status, told["fleet"], told["detail"]) == (200, True, "held open for 10m")
            until(lambda: held(other, "held", "open"))
            until(lambda: warned(one, "may not subscribe"))
            assert both_up(pair)
        refused = server.client().acl_log(128)
        assert sum(int(entry["count"]) for entry in refused) < 200


def warned(replica: Replica, text: str) -> bool:
    return any(text in warning for warning in replica.admin("GET", "/api/status")[1]["state"]["warnings"])
