"""A fleet as deploy/compose runs it: what its replicas share holds while one dies, one drains and one comes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import Counter, Fleet, Load, Replica, excess, load
from tests.e2e.programs import needs, wait_until
from tests.e2e.raw import upstream
from tests.state.servers import Server, any_binary

RATE, BURST = 40, 40
LIMITED_CLIENTS = 4
OURS = {"limited": 429, "breaker_open": 503}
"""What a client may be told instead of the origin's answer."""


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def fleet(counter: Counter) -> Iterator[Fleet]:
    """Three replicas, a place for a fourth, and HAProxy in front."""
    with upstream() as origin, Server(any_binary()) as redis:
        for path in ("/limited", "/steady", "/fragile"):
            origin.on(path, counter)

        def changes(config: dict[str, Any]) -> None:
            ((name, service),) = config["upstreams"].items()
            service["endpoints"] = [origin.url]
            breaker = service["breaker"] | {"open_for": "1s"}
            config["upstreams"]["fragile"] = service | {"breaker": breaker}
            config["state"]["max_wait"] = (
                "250ms"  # on a busy host the store decides for longer, before a share does
            )
            (route,) = config["routes"]
            limit = route.pop("limit") | {"rate": f"{RATE}/s", "burst": BURST}
            config["routes"] = [
                route | {"name": "limited", "match": {"path": "/limited"}, "limit": limit},
                route | {"name": "fragile", "match": {"path": "/fragile"}, "to": "fragile"},
                route | {"name": "steady", "to": name},
            ]

        # Not tmp_path: the path of a Unix socket may have 107 bytes only.
        with tempfile.TemporaryDirectory(prefix="amb-") as directory:
            with Fleet(Path(directory), redis.url, 4, changes) as fleet:
                fleet.start(0, 1, 2)
                fleet.start_haproxy()
                yield fleet


def fragile_says(replica: Replica, status: int, code: str = "") -> bool:
    """Several connections, which reach both workers, are all told the same."""
    answers = [replica.ask("/fragile") for _ in range(8)]
    return all(answer.status == status and code.encode() in answer.body for answer in answers)


def wait_for_breaker(fleet: Fleet, *, is_open: bool) -> None:
    """Until every replica refuses, or passes on what the origin says."""
    for replica in fleet.replicas.values():
        if is_open:
            wait_until(lambda it=replica: fragile_says(it, 503, '"breaker_open"'), "the open breaker")  # type: ignore[misc]
        else:
            wait_until(lambda it=replica: fragile_says(it, 200), "the recovery")  # type: ignore[misc]


def wait_for_agreement(fleet: Fleet) -> None:
    """Until every replica knows of the same life of a closed breaker."""

    def agree() -> bool:
        views = [
            each
            for it in fleet.replicas.values()
            for each in it.get("/api/breakers")
            if each["name"] == "fragile"
        ]
        assert len(views) == len(fleet.replicas)
        return len({(each["state"], each["epoch"]) for each in views}) == 1 and views[0]["state"] == "closed"

    wait_until(agree, "the same epoch everywhere")


def wait_for_members(fleet: Fleet, count: int) -> None:
    """Until every replica knows of so many."""
    for replica in fleet.replicas.values():
        wait_until(lambda it=replica: len(it.get("/api/replicas")) == count, f"{count} replicas")  # type: ignore[misc]


def wait_for_limit(clients: Load) -> None:
    """Until 50 more requests were limited."""
    before = len(clients.of("/limited"))
    wait_until(
        lambda: sum(request.code == "limited" for request in clients.of("/limited")[before:]) >= 50,
        "the limit",
    )


@needs("haproxy")
def test_fleet_keeps_its_promises_while_replicas_come_and_go(fleet: Fleet, counter: Counter) -> None:
    with load(fleet.url) as clients:
        clients.add("/limited", LIMITED_CLIENTS, 0.01)
        clients.add("/steady", 2, 0.02)
        clients.add("/fragile", 2, 0.01)
        wait_for_members(fleet, 3)
        wait_for_limit(clients)
        counter.status = "500 No"
        wait_for_breaker(fleet, is_open=True)

        killed, drained = fleet.replicas.pop(0), fleet.replicas.pop(1)
        killed.look()
        before = time.monotonic()
        killed.kill()
        after = time.monotonic()
        drained.drain()
        fleet.start(3)
        wait_for_breaker(fleet, is_open=True)  # the new one has heard of it
        drained.wait_for_end()
        counter.status = "200 OK"
        wait_for_breaker(fleet, is_open=False)
        wait_for_agreement(fleet)
        wait_for_members(fleet, 2)
        wait_for_limit(clients)

    for replica in fleet.replicas.values():
        replica.look()
    failed = [
        each
        for each in clients.requests
        if each.status not in (200, 500) and OURS.get(each.code or "") != each.status
    ]
    assert all(each.sent <= after and each.ended >= before for each in failed), failed
    assert {each.status for each in clients.of("/limited") if each not in failed} == {200, 429}
    assert {each.status for each in clients.of("/steady") if each not in failed} == {200}
    sent = {each.number: each.sent for each in clients.requests}
    # On a host that is too busy the store is late at times, and the replicas' shares decide: that much is allowed, and
    # what was just under way in the one that was killed.
    late = sum(replica.fallback for replica in (killed, drained, *fleet.replicas.values()))
    assert excess(RATE, BURST, sent, counter.of("/limited")) <= (late + LIMITED_CLIENTS if late else 0)
