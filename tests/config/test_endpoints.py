"""Endpoints: what they dial, what they have of their upstream, and which are made when others are found."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from ambassador.config.compile import compile_table
from ambassador.config.discover import Found, Server
from ambassador.config.load import load_text
from ambassador.errors import ConnectFailed
from ambassador.proxy.lane import Lane
from ambassador.proxy.service import Table
from tests.config.test_compile import FOUND, HEAD, SOURCE, found, table, take
from tests.proxy.harness import Counts, a_lane
from tests.state.fakes import no_scopes


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    async with a_lane() as lane:
        yield lane


async def test_endpoints_have_addresses_as_far_as_known(lane: Lane) -> None:
    compiled = table(
        lane,
        "routes: [{name: r, to: ['http://e:9000', 'http://f:9000', 'http://[::1]:9000', 'unix:/run/e']}]",
        {"e": ["10.0.0.1", "10.0.0.2"]},
    )
    (upstream,) = compiled.upstreams.values()
    assert [list(endpoint.addresses) for endpoint in upstream.endpoints] == [
        [(socket.AF_INET, ("10.0.0.1", 9000)), (socket.AF_INET, ("10.0.0.2", 9000))],
        [],
        [(socket.AF_INET6, ("::1", 9000, 0, 0))],
        [(socket.AF_UNIX, "/run/e")],
    ]


async def test_new_connections_ask_for_the_addresses_of_their_own_endpoint(lane: Lane) -> None:
    compiled = table(lane, "routes: [{name: r, to: ['http://10.0.0.1:1', 'http://10.0.0.2:2']}]")
    (upstream,) = compiled.upstreams.values()
    assert [endpoint.pool._addresses() for endpoint in upstream.endpoints] == [
        endpoint.addresses for endpoint in upstream.endpoints
    ]


async def test_endpoint_that_stays_keeps_its_connections_and_counts(lane: Lane) -> None:
    made = table(lane, FOUND)
    take(made, found("http://10.0.0.1:8080", "http://10.0.0.2:8080"))
    first, second = made.upstreams["u"].endpoints
    second.inflight = 3
    assert take(made, found("http://10.0.0.2:8080", "http://10.0.0.3:8080")) == [
        "http://10.0.0.2:8080",
        "http://10.0.0.3:8080",
    ]
    assert made.upstreams["u"].endpoints[0] is second
    assert second.inflight == 3
    assert first.pool._retired
    assert not second.pool._retired
    assert take(made, found()) == []
    assert second.pool._retired


async def test_endpoint_that_was_found_sends_the_name_as_host(lane: Lane) -> None:
    made = table(lane, FOUND)
    take(made, found("http://10.0.0.1:8080"))
    (endpoint,) = made.upstreams["u"].endpoints
    assert endpoint.authority == b"api.test:8080"
    assert endpoint.addresses == ((socket.AF_INET, ("10.0.0.1", 8080)),)
    assert endpoint.pool._max_open == 7


async def test_endpoint_that_was_found_takes_weight_zone_and_priority(lane: Lane) -> None:
    made = table(lane, FOUND)
    take(made, found("http://10.0.0.1:8080"))
    changed = Found(SOURCE, (Server("http://10.0.0.1:8080", 5, "z", 2),), {})
    before = made.upstreams["u"].endpoints[0]
    take(made, changed)
    assert made.upstreams["u"].endpoints[0] is before
    assert (before.weight, before.zone, before.priority) == (5, "z", 2)


async def test_name_that_was_found_has_its_addresses(lane: Lane) -> None:
    made = table(lane, FOUND)
    take(made, Found(SOURCE, (Server("http://a.test:80"),), {"a.test": ("10.0.0.5",)}))
    (endpoint,) = made.upstreams["u"].endpoints
    assert endpoint.addresses == ((socket.AF_INET, ("10.0.0.5", 80)),)
    made.set_addresses("a.test", ["10.0.0.6"])
    assert endpoint.addresses == ((socket.AF_INET, ("10.0.0.6", 80)),)


NAMES = "upstreams: {u: {endpoints: ['http://e:80', 'http://10.0.0.9:80']}}\nroutes: [{name: r, to: u}]"


def dialled(compiled: Table) -> dict[str, list[str]]:
    return {
        endpoint.url: [str(where[0]) for _, where in endpoint.addresses]
        for endpoint in compiled.upstreams["u"].endpoints
    }


async def test_names_do_not_lead_to_metadata_services(lane: Lane) -> None:
    compiled = table(lane, NAMES, {"e": ["169.254.169.254", "127.0.0.1"]})
    assert dialled(compiled) == {"http://e:80": ["127.0.0.1"], "http://10.0.0.9:80": ["10.0.0.9"]}
    compiled.set_addresses("e", ["::ffff:169.254.169.254"])
    assert dialled(compiled)["http://e:80"] == []


async def test_egress_closes_special_ranges_to_names(lane: Lane) -> None:
    for egress, expected in [
        ("{}", []),
        ("{allow: [e]}", ["10.0.0.1"]),
        ("{allow: ['10.0.0.0/8']}", ["10.0.0.1"]),
        ("{allow: [e], deny: ['10.0.0.1']}", []),
    ]:
        compiled = table(lane, f"egress: {egress}\n" + NAMES, {"e": ["10.0.0.1"]})
        assert dialled(compiled) == {"http://e:80": expected, "http://10.0.0.9:80": ["10.0.0.9"]}
    compiled = table(lane, "egress: {deny: [10.0.0.9]}\n" + NAMES, {"e": ["8.8.8.8"]})
    assert dialled(compiled) == {"http://e:80": ["8.8.8.8"], "http://10.0.0.9:80": []}


async def test_what_is_found_is_judged_as_what_a_name_resolves_to(lane: Lane) -> None:
    for egress, expected in [
        ("", ["127.0.0.1"]),
        ("egress: {}", []),
        ("egress: {allow: [s.internal]}", ["127.0.0.1"]),
    ]:
        text = egress + "\nupstreams: {u: {discover: {dns: 's.internal:80'}}}\nroutes: [{name: r, to: u}]"
        compiled = table(lane, text)
        (source,) = [each.discover for each in load_text(HEAD + text).upstreams.values()]
        assert source is not None
        compiled.take_found(source, [Server("http://127.0.0.1:80"), Server("http://169.254.169.254:80")], {})
        assert dialled(compiled) == {"http://127.0.0.1:80": expected, "http://169.254.169.254:80": []}


async def test_refused_connections_are_counted_and_reveal_no_address(lane: Lane) -> None:
    counts = Counts()
    text = HEAD + "routes: [{name: r, to: 'http://e:80'}]"
    compiled = compile_table(load_text(text), lane, counts, {"e": ["169.254.169.254"]}, no_scopes())
    upstream = compiled.upstreams["r"]
    (endpoint,) = upstream.endpoints
    with pytest.raises(ConnectFailed, match="egress") as failed:
        await endpoint.pool.acquire(lane.strand(), 1.0, lane.now + 1.0)
    assert "169.254" not in failed.value.detail
    assert counts.closed == ["r"]
    assert endpoint.pool.open == 0
    assert "169.254.169.254" in upstream.why_not(endpoint)  # the admin API's
    endpoint.resolve(["169.254.169.254", "127.0.0.1"])
    upstream.refresh()
    assert len(endpoint.pool._addresses()) == 1
    assert counts.closed == ["r", "r"]
