"""What the connections of a worker share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime

import pytest
import trio.testing

from ambassador.config.compile import compile_table
from ambassador.config.load import load_text
from ambassador.proxy.lane import Lane
from ambassador.proxy.service import Service
from tests.proxy.harness import Counts, a_lane, config
from tests.state.fakes import no_scopes


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    async with a_lane() as lane:
        yield lane


@pytest.fixture
async def service(lane: Lane) -> Service:
    table = compile_table(load_text(config("http://a:80", "http://b:81")), lane, Counts(), {}, no_scopes())
    return Service(lane, table, name="amb", access_log=None)


async def test_date_follows_the_lane(
    mock_clock: trio.testing.MockClock, lane: Lane, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = 1_700_000_000.25
    monkeypatch.setattr("time.time", lambda: wall)
    assert service.wall_s() == wall
    assert parsedate_to_datetime(service.http_date().decode()).timestamp() == 1_700_000_000
    mock_clock.jump(0.5)
    lane.tick()
    assert service.wall_s() == pytest.approx(wall + 0.5)
    wall += 1.0
    mock_clock.jump(0.5)
    lane.tick()
    assert parsedate_to_datetime(service.http_date().decode()).timestamp() == 1_700_000_001


async def test_health_says_when_it_drains(service: Service) -> None:
    assert (service.health_reply("GET").status, service.health_reply("HEAD").body) == (200, b"ok\n")
    service.draining = True
    assert (service.health_reply("GET").status, service.health_reply("HEAD").body) == (503, b"draining\n")


async def test_health_is_asked_for_with_get_or_head(service: Service) -> None:
    for method in ("POST", "PUT", "OPTIONS", "TRACE"):
        reply = service.health_reply(method)
        assert (reply.status, dict(reply.headers)[b"allow"]) == (405, b"GET, HEAD")


async def test_addresses_reach_every_endpoint_of_the_name(service: Service) -> None:
    service.table.set_addresses("a", ["10.0.0.1"])
    (upstream,) = service.table.upstreams.values()
    first, second = upstream.endpoints
    assert [where for _, where in first.addresses] == [("10.0.0.1", 80)]
    assert second.addresses == ()


async def test_a_few_handshakes_begin_in_each_turn(lane: Lane, service: Service) -> None:
    for _ in range(2):
        lane.turns += 1
        assert [service.may_shake_hands() for _ in range(6)] == [True] * 4 + [False] * 2
