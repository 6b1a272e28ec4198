from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from ambassador.config.discover import Server
from ambassador.control.discovery.dns import LookUpFailed, Service, Services
from ambassador.control.discovery.srv import HEAVIEST, SrvWatch, servers_of


def record(host: str, port: int = 80, weight: int = 1, priority: int = 0) -> Service:
    return Service(host, port, weight, priority)


def test_every_record_is_a_server_with_weight_and_priority() -> None:
    records = [record("b.test", 9000, 5, 20), record("a.test", 8000, 3, 10)]
    assert servers_of(records) == (
        Server("http://a.test:8000", 3, "", 0),
        Server("http://b.test:9000", 5, "", 1),
    )


@pytest.mark.parametrize(
    ("weights", "ours"),
    [
        ((1, 2), (1, 2)),
        ((0, 0), (1, 1)),
        ((0, 10), (1, 1000)),
        ((65535, 6553), (1000, 100)),
        ((65535, 1), (1000, 1)),
    ],
)
def test_weights_keep_their_proportions(weights: tuple[int, ...], ours: tuple[int, ...]) -> None:
    made = servers_of(record(f"{at}.test", weight=weight) for at, weight in enumerate(weights))
    assert tuple(server.weight for server in made) == ours


def test_target_that_is_no_host_is_passed_over() -> None:
    assert [server.url for server in servers_of([record("a b"), record("a.test")])] == ["http://a.test:80"]


RECORDS = st.lists(
    st.builds(
        record,
        st.sampled_from(["a.test", "b.test", "c.test", "10.0.0.1"]),
        st.integers(1, 65535),
        st.integers(0, 65535),
        st.integers(0, 65535),
    ),
    max_size=200,
)


@given(RECORDS)
def test_servers_are_within_what_an_endpoint_can_have(records: list[Service]) -> None:
    servers = servers_of(records)
    assert len({server.url for server in servers}) == len(servers)
    assert all(1 <= server.weight <= HEAVIEST and 0 <= server.priority <= 127 for server in servers)
    assert [server.url for server in servers] == sorted(server.url for server in servers)
    if servers:
        assert min(server.priority for server in servers) == 0


class Heard:
    def __init__(self) -> None:
        self.told: list[tuple[float, list[str]]] = []
        self.troubles: list[str | None] = []

    async def tell(self, servers: tuple[Server, ...]) -> None:
        self.told.append((trio.current_time(), [server.url for server in servers]))

    def trouble(self, problem: str | None) -> None:
        self.troubles.append(problem)


async def heard_within(seconds: float, answers: list[Services | None], nursery: trio.Nursery) -> Heard:
    heard = Heard()
    left = iter(answers)

    async def ask(name: str) -> Services:
        assert name == "_http._tcp.test"
        answer = next(left, answers[-1])
        if answer is None:
            raise LookUpFailed("SRV: no answer")
        return answer

    asked: Callable[[str], Awaitable[Services]] = ask
    watch = SrvWatch("_http._tcp.test", asked, heard.tell, heard.trouble, chance=lambda: 1.0)
    nursery.start_soon(watch.run)
    await trio.sleep(seconds)
    nursery.cancel_scope.cancel()
    return heard


async def test_records_are_asked_again_before_they_end(autojump_clock: MockClock) -> None:
    answer = Services((record("a.test"),), 10.0)
    async with trio.open_nursery() as nursery:
        heard = await heard_within(25.0, [answer], nursery)
    assert heard.told == [(at, ["http://a.test:80"]) for at in (0.0, 9.5, 19.0)]


async def test_time_to_live_has_a_floor_and_a_ceiling(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        short = await heard_within(3.5, [Services((record("a.test"),), 0.0)], nursery)
    assert [at for at, _ in short.told] == [0.0, 1.0, 2.0, 3.0]
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        long = await heard_within(300.0, [Services((record("a.test"),), 86400.0)], nursery)
    assert [at - began for at, _ in long.told] == [0.0, 285.0]


async def test_failure_is_told_and_asked_again_later_and_later(autojump_clock: MockClock) -> None:
    answer = Services((record("a.test"),), 100.0)
    async with trio.open_nursery() as nursery:
        heard = await heard_within(20.0, [None, None, None, answer], nursery)
    assert heard.troubles == ["SRV: no answer"] * 3 + [None]
    assert [at for at, _ in heard.told] == [1.25 + 2.5 + 5.0]
