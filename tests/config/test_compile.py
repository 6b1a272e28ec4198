"""From a config to the table that requests meet."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from math import inf
from weakref import ref

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ambassador.config.compile import compile_steps, compile_table
from ambassador.config.discover import Discover, Found, Server
from ambassador.config.load import load_text
from ambassador.errors import Limited, NoEndpoint
from ambassador.messages import Reply, Request
from ambassador.proxy.lane import Lane
from ambassador.proxy.lasting import Lasting
from ambassador.proxy.plan import RoutePlan
from ambassador.proxy.policies.retry import SharedRetryBudget
from ambassador.proxy.service import Table
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.upstream import Upstream
from tests.proxy.harness import Counts, a_lane
from tests.state.fakes import no_scopes

HEAD = "version: 1\nlisten: 127.0.0.1:8080\n"


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    async with a_lane() as lane:
        yield lane


def table(lane: Lane, text: str, addresses: dict[str, list[str]] | None = None) -> Table:
    return compile_table(load_text(HEAD + text), lane, Counts(), addresses or {}, no_scopes())


def plan(table: Table, path: str = "/") -> RoutePlan:
    found = table.router.match("a", path, "GET", a_request(path))
    assert found is not None
    return found[0]


def a_request(path: str = "/") -> Request:
    request = Request("GET", path.encode(), [], 1)
    request.path, request.host = path.encode(), "a"
    return request


async def test_route_with_nothing_written_does_nothing(lane: Lane) -> None:
    compiled = plan(table(lane, "routes: [{name: r, to: 'http://e:9000'}]"))
    assert (compiled.admit, compiled.shape_request, compiled.shape_response) == ((), (), ())
    assert (compiled.rewrite, compiled.host, compiled.keep_host) == (None, None, False)
    assert (compiled.timeouts.total, compiled.timeouts.per_try) == (15.0, inf)
    assert compiled.retry is not None
    assert compiled.retry.attempts == 1


async def test_no_attempts_are_no_policy(lane: Lane) -> None:
    compiled = plan(table(lane, "routes: [{name: r, to: 'http://e:9000', retry: {attempts: 0}}]"))
    assert compiled.retry is None


async def test_upstream_is_one_for_all_its_routes(lane: Lane) -> None:
    compiled = table(
        lane,
        "upstreams: {u: {endpoints: [{url: 'http://e:1', weight: 3}]}}\n"
        "routes: [{name: r, match: {path: /x}, to: u}, {name: s, to: u}]",
    )
    assert plan(compiled, "/x").upstream is plan(compiled, "/y").upstream
    assert compiled.upstreams["u"].endpoints[0].weight == 3


UPSTREAM = """\
zone: {zone}
upstreams:
  u:
    endpoints:
      - {{url: "http://10.0.0.1:1", zone: a, weight: 2}}
      - {{url: "http://10.0.0.2:1", zone: b}}
      - {{url: "http://10.0.0.3:1", zone: b, priority: 1}}
    {keys}
routes: [{{name: r, to: u}}]
"""


def upstream(lane: Lane, keys: str, zone: str = "b") -> Upstream:
    return table(lane, UPSTREAM.format(keys=keys, zone=zone)).upstreams["u"]


async def test_endpoints_know_weight_zone_and_priority(lane: Lane) -> None:
    first, second, third = upstream(lane, "").endpoints
    assert [(each.weight, each.zone, each.priority) for each in (first, second, third)] == [
        (2, "a", 0),
        (1, "b", 0),
        (1, "b", 1),
    ]


async def test_own_zone_comes_first_where_that_is_asked_for(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(of: Upstream) -> set[str]:
        return {of.pick(()).zone for _ in range(50)}

    monkeypatch.setenv("WHERE", "a")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert chosen(upstream(lane, "zone_aware: true")) == {"b"}
    assert chosen(upstream(lane, "zone_aware: true", "env:WHERE")) == {"a"}
    assert chosen(upstream(lane, "zone_aware: true", "env:NOWHERE")) == {"a", "b"}
    assert chosen(upstream(lane, "zone_aware: false")) == {"a", "b"}


async def test_balance_is_what_is_written(lane: Lane) -> None:
    in_turn = upstream(lane, "balance: round_robin")
    urls = [in_turn.pick(()).url for _ in range(6)]
    assert urls.count("http://10.0.0.1:1") == 4
    hashed = upstream(lane, "{balance: ring_hash, hash: header:X-Id}".strip("{}").replace(", ", "\n    "))
    request = a_request()
    request.headers = [(b"X-ID", b"7")]
    assert hashed.key is not None
    key = hashed.key(request, "")
    assert key is not None
    assert len({hashed.pick((), key) for _ in range(50)}) == 1


async def test_next_table_knows_the_latencies_of_the_one_before(lane: Lane) -> None:
    text = UPSTREAM.format(keys="", zone="b")
    before, after = table(lane, text), table(lane, text)
    before.upstreams["u"].endpoints[1].settled(0.5, lane.now, failed=False)
    after.inherit(before)
    assert [each.ewma_s for each in after.upstreams["u"].endpoints] == [0.0, 0.5, 0.0]


async def test_next_table_knows_which_quotas_are_used_up(lane: Lane) -> None:
    text = "routes: [{name: r, respond: 200, limit: {quota: 5/d}}, {name: other, respond: 200, limit: {quota: 5/d}}]"
    scopes = no_scopes()
    before, after = (compile_table(load_text(HEAD + text), lane, Counts(), {}, scopes) for _ in range(2))
    old, other = (policy.limits[0].only for policy in before.limits)
    assert old is not None
    assert other is not None
    old.left, old.seen_at, old.window_ends = 0.0, lane.now, lane.now + 60.0
    after.inherit(before)
    known = [policy.limits[0].only for policy in after.limits]
    assert [key is not None and key.is_used_up(1.0, lane.now) for key in known] == [True, False]


async def test_changed_addresses_change_who_is_picked(lane: Lane) -> None:
    compiled = table(lane, "routes: [{name: r, to: ['http://e:9000', 'http://f:1']}]", {"e": ["10.0.0.1"]})
    of = compiled.upstreams["r"]
    first, second = of.endpoints
    assert {of.pick(()) for _ in range(50)} == {first}
    compiled.set_addresses("f", ["10.0.0.2"])
    assert {of.pick(()) for _ in range(50)} == {first, second}


async def test_answers_made_here(lane: Lane) -> None:
    compiled = table(
        lane,
        "routes: [{name: r, match: {path: /r}, redirect: 'https://b/'}, {name: s, respond: {status: 204}}]",
    )
    statuses = []
    for path in ("/r", "/s"):
        (hook,) = plan(compiled, path).admit
        reply = hook(a_request(path))
        assert isinstance(reply, Reply)
        statuses.append(reply.status)
    assert statuses == [308, 204]
    assert plan(compiled, "/r").upstream is None


async def test_host_is_kept_or_set(lane: Lane) -> None:
    compiled = table(
        lane,
        "routes: [{name: k, match: {path: /k}, to: 'http://e', rewrite: {host: keep}},"
        " {name: s, to: 'http://e', rewrite: {host: b.example}}]",
    )
    kept, given = plan(compiled, "/k"), plan(compiled, "/s")
    assert (kept.keep_host, kept.host) == (True, None)
    assert (given.keep_host, given.host) == (False, b"b.example")


async def test_headers_become_one_hook_a_side(lane: Lane) -> None:
    compiled = plan(
        table(lane, "routes: [{name: r, to: 'http://e', headers: {request: {set: {x-a: b}}}}]"),
    )
    (hook,) = compiled.shape_request
    assert compiled.shape_response == ()
    fields = [(b"X-A", b"before")]
    hook(a_request(), fields)
    assert fields == [(b"x-a", b"b")]


async def test_unmatched_requests_are_counted_apart(lane: Lane) -> None:
    asked: list[tuple[str, str]] = []

    class Asked(Counts):
        def route(self, route: str, upstream: str) -> Counts:
            asked.append((route, upstream))
            return self

    text = HEAD + "upstreams: {u: {endpoints: ['http://e:1']}}\nroutes: [{name: r, to: u}]"
    compile_table(load_text(text), lane, Asked(), {}, no_scopes())
    assert sorted(asked) == [("-", "-"), ("r", "u")]


async def test_a_table_is_compiled_in_steps(lane: Lane) -> None:
    text = "routes: [{name: a, match: {path: /a}, to: 'http://e:9000'}, {name: b, respond: 200}]"
    steps = compile_steps(load_text(HEAD + text), lane, Counts(), {}, no_scopes())
    for _ in range(3):  # one upstream, two routes
        next(steps)
    with pytest.raises(StopIteration) as done:
        next(steps)
    assert plan(done.value.value, "/b").name == "b"


async def test_a_table_that_is_replaced_goes_without_the_collector(lane: Lane) -> None:
    gc.collect()
    gc.disable()
    try:
        compiled = table(lane, "routes: [{name: r, to: ['http://e:9000', 'unix:/s']}]", {"e": ["10.0.0.1"]})
        pools = [weakref.ref(endpoint) for endpoint in compiled.upstreams["r"].endpoints]
        assert [ref() is not None for ref in pools] == [True, True]
        compiled.retire()
        del compiled
        assert [ref() for ref in pools] == [None, None]
    finally:
        gc.enable()


async def test_limits_of_routes_are_admitted_first_and_those_of_upstreams_charged(lane: Lane) -> None:
    compiled = table(
        lane,
        "upstreams: {u: {endpoints: ['http://e'], limit: 5/s}}\n"
        "routes: [{name: r, match: {path: /r}, to: u}, {name: s, respond: 200, limit: {rate: 1/s, status: 503}}]",
    )
    route, limited = plan(compiled, "/r"), plan(compiled, "/s")
    assert route.limit is None
    assert route.admit == ()
    assert route.upstream is not None
    assert route.upstream.charge is not None
    with pytest.raises(Limited):
        route.upstream.charge(a_request("/r"))
    assert limited.limit is not None
    assert len(limited.admit) == 2
    with pytest.raises(Limited) as caught:
        limited.admit[0](a_request("/s"))
    assert caught.value.status == 503
    assert [each.limits[0].id for each in compiled.limits] == ["@u/limit", "s/limit"]


async def test_limits_are_settled_by_the_state(lane: Lane) -> None:
    compiled = table(
        lane,
        "state: {url: local, on_loss: closed, max_wait: 5ms, expected_replicas: 3}\n"
        "routes: [{name: r, respond: 200, limit: 1/s}]",
    )
    (policy,) = compiled.limits
    source = policy.limits[0].source
    assert (source.on_loss, source.max_wait_s, source.parts, source.replica) == ("closed", 0.005, 3, None)


async def test_breakers_guard_plans_and_endpoints(lane: Lane) -> None:
    text = (
        "upstreams: {u: {endpoints: ['http://e:1', 'http://f:1'], breaker: {scope: endpoint}}}\n"
        "routes:\n- {name: r, match: {path: /r}, to: u, breaker: {scope: route}}\n"
        "- {name: s, match: {path: /s}, to: u, breaker: {}}\n- {name: t, match: {path: /t}, to: 'http://g'}"
    )
    made = table(lane, text)
    made.begin()
    assert [gate.name for gate in plan(made, "/r").gates] == ["route:r", "u"]
    assert [gate.name for gate in plan(made, "/s").gates] == ["u"]
    assert plan(made, "/t").gates == ()
    gates = [endpoint.gate for endpoint in made.upstreams["u"].endpoints]
    assert [gate.name for gate in gates if gate is not None] == ["u/e:1", "u/f:1"]


async def test_breaker_outlives_a_table_and_one_that_is_only_prepared_changes_nothing(lane: Lane) -> None:
    lasting = Lasting(lane)
    text = HEAD + "routes: [{name: r, to: 'http://e', breaker: {scope: endpoint}}]"
    tables = [
        compile_table(load_text(text), lane, Counts(), {}, no_scopes(), lasting=lasting) for _ in range(2)
    ]
    assert not lasting.breakers.breakers
    tables[0].begin()
    scopes = no_scopes()
    first = compile_table(load_text(text), lane, Counts(), {}, scopes, lasting=lasting)
    first.begin()
    second = compile_table(load_text(text), lane, Counts(), {}, scopes, lasting=lasting)
    assert second.upstreams["r"].endpoints[0].gate is None  # it counts for the table that is served
    second.begin()
    assert second.upstreams["r"].endpoints[0].gate is first.upstreams["r"].endpoints[0].gate


async def test_table_with_breakers_goes_when_it_is_replaced(lane: Lane) -> None:
    lasting, scopes = Lasting(lane), no_scopes()
    text = HEAD + (
        "upstreams: {u: {endpoints: ['http://e:1'], breaker: {scope: endpoint}, cooldown: endpoint}}\n"
        "routes: [{name: r, to: u}]"
    )

    def made() -> Table:
        made = compile_table(load_text(text), lane, Counts(), {}, scopes, lasting=lasting)
        made.begin()
        return made

    gone = ref(made().upstreams["u"])
    made()
    assert gone() is None


async def test_cooldown_and_shared_budget_are_made(lane: Lane) -> None:
    text = (
        "upstreams: {u: {endpoints: ['http://e:1'], cooldown: {}}}\n"
        "routes: [{name: r, to: u, retry: {budget: {shared: true}}}]"
    )
    made = table(lane, text)
    assert made.upstreams["u"].cooldown is not None
    retry = plan(made).retry
    assert retry is not None
    assert isinstance(retry.budget, SharedRetryBudget)


# Endpoints that are found while the service runs

FOUND = """\
upstreams: {u: {discover: {dns: "api.test:8080"}, connections: {max: 7}}, other: {endpoints: ["http://e:1"]}}
routes: [{name: r, to: u}, {name: s, to: other}]
"""
SOURCE = Discover(dns="api.test:8080")


def found(*urls: str, **addresses: tuple[str, ...]) -> Found:
    return Found(SOURCE, tuple(Server(url) for url in urls), addresses)


def take(table: Table, told: Found) -> list[str]:
    table.take_found(told.source, told.servers, told.addresses)
    return [endpoint.url for endpoint in table.upstreams["u"].endpoints]


async def test_table_begins_with_what_was_found(lane: Lane) -> None:
    config = load_text(HEAD + FOUND)
    told = [found("http://10.0.0.1:8080"), Found(Discover(file="/x"), (Server("http://f:1"),), {})]
    made = compile_table(config, lane, Counts(), {}, no_scopes(), found=told)
    assert [each.url for each in made.upstreams["u"].endpoints] == ["http://10.0.0.1:8080"]
    assert [each.url for each in made.upstreams["other"].endpoints] == ["http://e:1"]


async def test_table_without_anything_found_has_no_endpoint(lane: Lane) -> None:
    upstream = table(lane, FOUND).upstreams["u"]
    assert list(upstream.endpoints) == []
    assert upstream.pick_or_none() is None
    with pytest.raises(NoEndpoint):
        upstream.pick(())


async def test_location_of_what_was_found_is_the_clients_view(lane: Lane) -> None:
    made = table(lane, FOUND.replace("to: u}", "to: u, rewrite: {host: keep, prefix: /}}"))
    hook = plan(made).map_location
    assert hook is not None

    def seen(location: bytes) -> bytes:
        request = a_request()
        request.authority, request.scheme = b"client.test", "http"
        fields = [(b"location", location)]
        hook(request, fields)
        return fields[0][1]

    assert seen(b"http://api.test:8080/x") == b"http://client.test/x"
    assert seen(b"http://10.0.0.1:8080/x") == b"http://10.0.0.1:8080/x"
    take(made, found("http://10.0.0.1:8080"))
    assert seen(b"http://10.0.0.1:8080/x") == b"http://client.test/x"
    take(made, found("http://10.0.0.2:8080"))
    assert seen(b"http://10.0.0.1:8080/x") == b"http://10.0.0.1:8080/x"


async def test_source_that_nobody_has_changes_nothing(lane: Lane) -> None:
    made = table(lane, FOUND)
    made.take_found(Discover(file="/x"), (Server("http://f:1"),), {})
    assert list(made.upstreams["u"].endpoints) == []


async def test_endpoints_that_were_found_have_breakers_of_their_own(lane: Lane) -> None:
    text = HEAD + FOUND.replace("connections: {max: 7}", "breaker: {scope: endpoint, consecutive: 2}")
    lasting, scopes = Lasting(lane), no_scopes()
    breakers = lasting.breakers
    told = found("http://10.0.0.1:8080")
    made = compile_table(load_text(text), lane, Counts(), {}, scopes, found=[told], lasting=lasting)
    made.begin()
    take(made, found("http://10.0.0.1:8080", "http://10.0.0.2:8080"))
    first, second = made.upstreams["u"].endpoints
    assert set(breakers.breakers) == {"u/10.0.0.1:8080", "u/10.0.0.2:8080"}
    assert first.gate is breakers.breakers["u/10.0.0.1:8080"]
    assert second.gate is breakers.breakers["u/10.0.0.2:8080"]
    again = compile_table(
        load_text(text),
        lane,
        Counts(),
        {},
        scopes,
        found=[found("http://10.0.0.2:8080")],
        lasting=lasting,
    )
    again.begin()
    (kept,) = again.upstreams["u"].endpoints
    assert kept.gate is second.gate
    take(again, found())
    assert not breakers.breakers


URLS = st.lists(st.sampled_from([f"http://10.0.0.{last}:8080" for last in range(1, 7)]), unique=True)


@given(st.lists(URLS, max_size=12))
@settings(max_examples=30)
def test_endpoints_are_the_last_ones_told_and_those_that_stayed(lists: list[list[str]]) -> None:
    async def live() -> None:
        async with a_lane() as lane:
            made = table(lane, FOUND)
            upstream = made.upstreams["u"]
            ever: set[Endpoint] = set()
            for urls in lists:
                before = {endpoint.url: endpoint for endpoint in upstream.endpoints}
                assert take(made, found(*urls)) == urls
                for endpoint in upstream.endpoints:
                    assert before.get(endpoint.url, endpoint) is endpoint
                ever.update(upstream.endpoints)
                # Exactly those that are gone let go of their connections.
                assert {each for each in ever if not each.pool._retired} == set(upstream.endpoints)
                picked = upstream.pick_or_none()
                assert picked in upstream.endpoints if urls else picked is None

    trio.run(live)


async def test_answers_are_looked_at_for_what_retry_and_breakers_name(lane: Lane) -> None:
    made = table(
        lane,
        """\
upstreams:
  u: {endpoints: ["http://a:1", "http://b:1"], breaker: {scope: endpoint, failures: [{json: a=b}]}}
  v: {endpoints: ["http://c:1"]}
routes:
- {name: one, match: {path: /one}, to: u, retry: {when: [content]}, fallback: {to: v}}
- {name: two, match: {path: /two}, to: v, retry: {when: [{header: x=y}]}, fallback: {to: u}}
- {name: three, match: {path: /three}, to: v}
""",
    )
    one, two, three = (plan(made, path) for path in ("/one", "/two", "/three"))
    assert one.content is not None
    assert one.content.looks_inside
    assert one.elsewhere is not None
    assert one.elsewhere.content is None
    assert two.content is not None
    assert not two.content.looks_inside
    assert two.elsewhere is not None
    assert two.elsewhere.content is not None
    assert two.elsewhere.content.looks_inside
    assert three.content is None


def known_keys(lasting: Lasting) -> list[str]:
    return [key_set.source for key_set in lasting.key_sets]


async def test_key_sets_outlive_tables_that_use_them(lane: Lane) -> None:
    lasting = Lasting(lane)

    def table(*sources: str) -> Table:
        clients = ", ".join(
            f"c{at}: {{jwt: {{issuer: i, audience: a, jwks: '{source}'}}}}"
            for at, source in enumerate(sources)
        )
        text = f"clients: {{{clients}}}\nroutes: [{{name: r, respond: 200}}]"
        return compile_table(load_text(HEAD + text), lane, Counts(), {}, no_scopes(), lasting=lasting)

    table("https://a.test/jwks").begin()
    (first,) = lasting.key_sets
    second = table("https://a.test/jwks", "https://b.test/jwks")  # its keys are fetched before it is served
    assert known_keys(lasting) == ["https://a.test:443/jwks", "https://b.test:443/jwks"]
    assert not first.retired
    second.begin()
    assert next(iter(lasting.key_sets)) is first
    table("https://b.test/jwks").begin()
    assert (first.retired, known_keys(lasting)) == (True, ["https://b.test:443/jwks"])
