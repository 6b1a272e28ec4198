"""Limits, quotas, breakers and cool-downs on the way of a request: both ways say the same, and no wait leaves anything.

The store is the one of a worker's supervisor, in this process, and answers when the test says so.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import ambassador.proxy.http1
from ambassador.proxy.exchange import Exchange
from ambassador.proxy.http1 import ClientConnection
from ambassador.proxy.lane import READ, WRITE, Strand
from ambassador.proxy.upstream.h1 import Http1Connection
from ambassador.proxy.upstream.pool import Pool
from ambassador.state.protocol import Force, Probe, Report, Verb
from tests.proxy.harness import GET, OK, Origin, Plane, Talk, a_plane, finished, until, unused_port
from tests.state.harness import OneStore

FAILED = b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno"
BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy"
PLAIN = b"HTTP/1.1 200 OK\r\ndate: x\r\ncontent-length: 2\r\n\r\nok"


class Shared(OneStore):
    """The store of a worker."""

    def __init__(self) -> None:
        super().__init__()
        self.scope = self.open_scope()

    async def until(self, condition: Callable[[], object]) -> None:
        """`harness.until`, with everything answered meanwhile."""

        def look() -> object:
            self.deliver()
            return condition()

        await until(look)

    def reported(self) -> tuple[int, int]:
        """Requests and failures that were told for breakers."""
        reports = [each for each in self.scope.asked if isinstance(each, Report)]
        return sum(each.requests for each in reports), sum(each.failures for each in reports)

    def probes(self, verb: Verb) -> list[Probe]:
        return [each for each in self.scope.asked if isinstance(each, Probe) and each.verb is verb]


@pytest.fixture
def shared() -> Shared:
    return Shared()


def config(
    *urls: str, upstream: str = "", route: str = "retry: {attempts: 0}", state: str = "max_wait: 20ms"
) -> str:
    """One upstream and one route, with more settings of each as YAML."""
    endpoints = ", ".join(f'"{url}"' for url in urls)
    return f"""\
version: 1
listen: 127.0.0.1:80
state: {{{state}}}
upstreams: {{u: {{endpoints: [{endpoints}]{upstream and ", " + upstream}}}}}
routes: [{{name: r, to: u, {route}}}]
"""


def the(plane: Plane, shared: Shared, name: str, to: str) -> None:
    """Hold a breaker `open` or `closed`, or let it go half-open (`auto` after `open`)."""
    rules = plane.breakers.breakers[name].gate.rules
    shared.store.perform(Force(name, to, rules), shared.clock.now_us)
    for event in shared.store.collect():
        shared.scope.publish(event)
    shared.deliver()


async def answers_with(origin: Origin, *answers: bytes) -> None:
    """Serve every connection: each request gets the next of the answers, later ones the last."""
    left = list(answers)
    await origin.serves(lambda _: left.pop(0) if len(left) > 1 else left[0])


@asynccontextmanager
async def a_world(plane: Plane, shared: Shared, origin: Origin, *answers: bytes) -> AsyncIterator[None]:
    """The store answers, and so does the origin."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        nursery.start_soon(answers_with, origin, *answers)
        yield
        nursery.cancel_scope.cancel()


# ----- both ways ------------------------------------------------------------------------------------------------------

_NEW_EACH_TIME = re.compile(
    rb'(x-request-id: |"request_id":"|traceparent: |date: |t=|retry-after: |content-length: )[^\r";]*'
)


async def no_ride(client: ClientConnection) -> Exchange | None:
    return None


async def seen_by_client(plane: Plane, requests: int, request: bytes) -> list[bytes]:
    """The answers to equal requests on one connection, without what is new each time."""
    client = await plane.connect()
    answers = []
    for _ in range(requests):
        await client.send(request)
        answers.append(_NEW_EACH_TIME.sub(rb"\1", b"".join(await client.whole())))
    client.close()
    return answers


BOTH_WAYS = {
    "limit": ({"route": "limit: {rate: 5/m, burst: 6}"}, [PLAIN], [200] * 4 + [429] * 4),
    "limits": (
        {"route": "limit: [{name: a, rate: 5/m, burst: 6}, {name: b, quota: 3/d}]"}, [PLAIN], [200] * 3 + [429] * 5
    ),
    "key": ({"route": "limit: {rate: 5/m, burst: 6, per: client_ip}"}, [PLAIN], [200] * 4 + [429] * 4),
    "quota": ({"upstream": "limit: {rate: 5/m, burst: 6}"}, [PLAIN], [200] * 4 + [429] * 4),
    "limit and quota": (
        {"route": "limit: {rate: 5/m, burst: 8}", "upstream": "limit: {rate: 3/m, burst: 5}"},
        [PLAIN], [200] * 4 + [429] * 4,
    ),
    "own breaker": (
        {"upstream": "breaker: {consecutive: 2, open_for: 60s}"}, [b"HTTP/1.1 what\r\n\r\n"],
        [502] * 2 + [503] * 6,
    ),
    "closed breaker": ({"upstream": "breaker: {errors: 50%}"}, [PLAIN, FAILED, PLAIN], [200, 500] + [200] * 6),
    "breakers": (
        {"upstream": "breaker: {scope: endpoint, consecutive: 3}", "route": "breaker: {consecutive: 2, scope: route}"},
        [PLAIN, b"HTTP/1.1 what\r\n\r\n"], [200] + [502] * 2 + [503] * 5,
    ),
    "idempotency without a key": ({"route": "idempotency: {}"}, [PLAIN], [200] * 8),
    "cool-down": (
        {"upstream": "cooldown: upstream"},
        [PLAIN, b"HTTP/1.1 429 No\r\ndate: x\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n"],
        [200, 429] + [503] * 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BOTH_WAYS)
@pytest.mark.parametrize("request_", [GET, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab"])
async def test_both_ways_are_the_same(
    mock_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    origin: Origin,
    case: str,
    request_: bytes,
) -> None:
    """Time stands still: on a slow machine a lease would be given up after `max_wait`, in one of the ways only."""
    settings, answers, statuses = BOTH_WAYS[case]
    told = []
    for _ in range(2):
        shared = Shared()
        settings = {"upstream": "", "route": "", **settings}
        route = ", ".join(filter(None, [settings["route"], "retry: {attempts: 0}"]))
        text = config(origin.url, upstream=settings["upstream"], route=route, state="max_wait: 250ms")
        async with a_plane(text, scopes=shared.scopes_of(0)) as plane:
            async with a_world(plane, shared, origin, *answers):
                seen = await seen_by_client(plane, 8, request_)
                await until(lambda: not plane.service.inflight)
            assert [int(each[9:12]) for each in seen] == statuses
            told.append((seen, plane.counts.settlements, plane.counts.attempts))
        monkeypatch.setattr(ambassador.proxy.http1, "ride", no_ride)
    assert told[0] == told[1]


# ----- waits ----------------------------------------------------------------------------------------------------------

Stage = Callable[[Plane, Shared, Origin], AbstractAsyncContextManager[Talk]]


@asynccontextmanager
async def waiting_for_a_lease(plane: Plane, shared: Shared, origin: Origin) -> AsyncIterator[Talk]:
    client = await plane.connect()
    await client.send(GET)
    await until(lambda: plane.leftovers()["waiting for tokens"])
    yield client
    client.close()


@asynccontextmanager
async def waiting_for_tokens(
    plane: Plane, shared: Shared, origin: Origin, request: bytes = GET
) -> AsyncIterator[Talk]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers_with, origin, OK)
        for _ in range(4):  # of a burst of 5
            await served(plane, shared)
        nursery.cancel_scope.cancel()
    client = await plane.connect()
    await client.send(request)
    await shared.until(lambda: plane.leftovers()["waiting for tokens"])
    yield client
    client.close()


@asynccontextmanager
async def waiting_for_a_quota_with_a_connection(
    plane: Plane, shared: Shared, origin: Origin
) -> AsyncIterator[Talk]:
    """A fresh one, which the pool counts."""
    client = await plane.connect()
    await client.send(GET)
    await until(lambda: plane.leftovers()["waiting for tokens"])
    assert plane.leftovers()["busy"] == 1
    yield client
    client.close()


@asynccontextmanager
async def waiting_for_a_quota_with_an_idle_connection(
    plane: Plane, shared: Shared, origin: Origin
) -> AsyncIterator[Talk]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers_with, origin, OK)
        await served(plane, shared)
        assert plane.endpoint.pool.idle_count == 1
        for account in next(iter(plane.service.table.limits)).limits[0].all_accounts():
            account.take(account.tokens(plane.lane.now), plane.lane.now)
        client = await plane.connect()
        await client.send(GET)
        await until(lambda: plane.leftovers()["waiting for tokens"])
        assert (plane.endpoint.pool.idle_count, plane.leftovers()["busy"]) == (0, 1)
        yield client
        client.close()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def waiting_for_a_probe(plane: Plane, shared: Shared, origin: Origin) -> AsyncIterator[Talk]:
    the(plane, shared, "u", "open")
    the(plane, shared, "u", "auto")
    client = await plane.connect()
    await client.send(GET)
    await until(lambda: plane.leftovers()["waiting for a probe"])
    yield client
    client.close()


async def served(plane: Plane, shared: Shared) -> None:
    """One request on a connection of its own."""
    client = await plane.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        await client.send(GET)
        assert (await client.answer())[0] == 200
        nursery.cancel_scope.cancel()
    client.close()
    await until(lambda: plane.service.connections == 0)


WAITS: dict[str, tuple[Stage, dict[str, str]]] = {
    "lease": (waiting_for_a_lease, {"route": "limit: {rate: 5/m, burst: 5}"}),
    "leases": (waiting_for_a_lease, {"route": "limit: [{name: a, rate: 5/m}, {name: b, quota: 5/d}]"}),
    "tokens": (waiting_for_tokens, {"route": "limit: {rate: 5/m, burst: 5, wait: 60s}"}),
    "quota": (waiting_for_a_quota_with_a_connection, {"upstream": "limit: {rate: 5/m}"}),
    "quota on idle": (waiting_for_a_quota_with_an_idle_connection, {"upstream": "limit: {rate: 50/m}"}),
    "probe": (waiting_for_a_probe, {"upstream": "breaker: {errors: 50%}"}),
}


def config_of(origin: Origin, settings: dict[str, str]) -> str:
    return config(
        origin.url,
        upstream=settings.get("upstream", ""),
        route=settings.get("route", "retry: {attempts: 0}"),
        state="max_wait: 250ms",
    )


@pytest.mark.parametrize("wait", WAITS)
async def test_cancellation_leaves_nothing_behind(
    wait: str, mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    stage, settings = WAITS[wait]
    async with a_plane(config_of(origin, settings), scopes=shared.scopes_of(0)) as plane:
        async with stage(plane, shared, origin):
            plane.clients.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await until(lambda: plane.service.connections == 0)
                assert not any(plane.leftovers().values()), plane.leftovers()
                shared.deliver()  # what comes too late finds nobody
                await until(lambda: not plane.lane._runnable)
                assert not any(plane.leftovers().values()), plane.leftovers()


@pytest.mark.parametrize("wait", WAITS)
async def test_client_that_leaves_leaves_nothing_behind_and_others_are_served(
    wait: str, mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    stage, settings = WAITS[wait]
    async with a_plane(config_of(origin, settings), scopes=shared.scopes_of(0)) as plane:
        async with stage(plane, shared, origin) as client:
            client.reset()
            await until(lambda: plane.service.connections == 0)
            assert not any(plane.leftovers().values()), plane.leftovers()
        for _ in range(15):
            shared.deliver()
            shared.clock.advance(4)
            mock_clock.jump(4)
            await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answers_with, origin, OK)
            await served(plane, shared)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wait", WAITS)
async def test_wait_that_ends_well_is_one_attempt(
    wait: str, mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    stage, settings = WAITS[wait]
    async with a_plane(config_of(origin, settings), scopes=shared.scopes_of(0)) as plane:
        async with stage(plane, shared, origin) as client, trio.open_nursery() as nursery:
            before = len(plane.counts.attempts)
            if stage is not waiting_for_a_quota_with_an_idle_connection:
                nursery.start_soon(answers_with, origin, OK)
            if stage is waiting_for_tokens:
                shared.clock.advance(13)
                mock_clock.jump(13)
            nursery.start_soon(shared.answers)
            assert await client.answer() == (200, b"ok")
            assert plane.counts.attempts[before:] == ["200"]
            nursery.cancel_scope.cancel()
        await until(lambda: plane.service.connections == 0)
        assert not any(plane.leftovers().values()), plane.leftovers()


# ----- a quota, with the connection at hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [GET, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab"])
@pytest.mark.parametrize("idle", [False, True])
async def test_connection_that_ends_while_its_quota_is_waited_for_is_replaced(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared, request_: bytes, *, idle: bool
) -> None:
    text = config(origin.url, upstream="limit: {rate: 50/m}", state="max_wait: 250ms")
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane:
        if idle:
            client = await plane.connect()
            await client.send(GET)
            await shared.until(lambda: plane.endpoint.pool.open)
            first = await origin.accept()
            await shared.until(lambda: not plane.leftovers()["waiting for tokens"])
            await first.head()
            await first.send(OK)
            assert await client.answer() == (200, b"ok")
            client.close()
            for account in next(iter(plane.service.table.limits)).limits[0].all_accounts():
                account.take(account.tokens(plane.lane.now), plane.lane.now)
        client = await plane.connect()
        await client.send(request_)
        await until(lambda: plane.leftovers()["waiting for tokens"])
        if not idle:
            first = await origin.accept()
        (policy,) = plane.service.table.limits
        spent = sum(account.spent for account in policy.limits[0].all_accounts())
        opened = plane.endpoint.pool.open
        first.close()
        if idle:
            await until(lambda: plane.endpoint.pool.open == opened - 1)
        else:
            await trio.testing.wait_all_tasks_blocked(0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shared.answers)
            nursery.start_soon(answers_with, origin, OK)
            assert await client.answer() == (200, b"ok")
            nursery.cancel_scope.cancel()
        assert plane.counts.attempts[-1] == "200"
        assert "reset" not in plane.counts.attempts
        assert sum(account.spent for account in policy.limits[0].all_accounts()) == spent + 1
        client.close()


async def test_request_sent_again_after_a_connection_closed_while_idle_is_charged_once(
    origin: Origin, shared: Shared
) -> None:
    text = config(origin.url, upstream="limit: {rate: 50/m}", state="max_wait: 250ms")
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes(PLAIN)
        assert await client.answer() == (200, b"ok")
        await client.send(GET)
        await talk.head()
        talk.close()
        talk = await origin.takes(PLAIN)
        assert await client.answer() == (200, b"ok")
        assert plane.counts.attempts == ["200", "200"]
        (policy,) = plane.service.table.limits
        assert sum(account.spent for account in policy.limits[0].all_accounts()) == 2
        client.close()
        talk.close()
        nursery.cancel_scope.cancel()


async def test_silent_store_holds_a_request_no_longer_than_promised_over_all_its_limits(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    text = config(origin.url, upstream="limit: {rate: 5/m, burst: 5}", route="limit: {rate: 5/m, burst: 5}")
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane:
        client = await plane.connect()
        await client.send(GET)
        route, upstream = plane.service.table.limits
        await until(lambda: route.waiting + upstream.waiting)
        began = trio.current_time()
        waits = 0
        while route.waiting + upstream.waiting:
            waits += 1
            ahead = plane.lane._next_due - trio.current_time()
            assert ahead > 0
            mock_clock.jump(ahead)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert waits >= 2
        assert 0.015 < trio.current_time() - began <= 0.02
        talk = await origin.takes(b"")
        await talk.send(OK)
        assert await client.answer() == (200, b"ok")
        client.close()
        talk.close()


async def test_time_that_a_quota_takes_is_not_the_upstreams(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    text = config(
        origin.url,
        upstream="limit: {rate: 5/m, burst: 5, wait: 60s}, breaker: {consecutive: 1}",
        route="timeout: {per_try: 2s, first_byte: 2s, total: 60s}",
    )
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane:
        async with waiting_for_tokens(plane, shared, origin) as client:
            mock_clock.jump(20)
            shared.clock.advance(20)
            await shared.until(lambda: not plane.leftovers()["waiting for tokens"])
            talk = await origin.takes(b"")
            mock_clock.jump(1.9)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await talk.send(OK)
            assert await client.answer() == (200, b"ok")
            assert not plane.breakers.breakers["u"].is_open
            talk.close()


DEADLINE = b"GET / HTTP/1.1\r\nhost: a\r\ngrpc-timeout: 10S\r\n\r\n"


@pytest.mark.parametrize(
    ("where", "request_", "total", "status", "code"),
    [
        ("upstream", GET, "10s", 429, b'"limited"'),
        ("upstream", DEADLINE, "60s", 504, b'"deadline_exceeded"'),
        ("route", DEADLINE, "60s", 504, b'"deadline_exceeded"'),
    ],
)
async def test_tokens_are_not_waited_for_beyond_the_requests_time(
    mock_clock: trio.testing.MockClock,
    origin: Origin,
    shared: Shared,
    *,
    where: str,
    request_: bytes,
    total: str,
    status: int,
    code: bytes,
) -> None:
    limit = "limit: {rate: 1/h, burst: 5, wait: 10h}"
    text = config(
        origin.url,
        upstream=limit if where == "upstream" else "",
        route=", ".join(filter(None, [f"timeout: {total}", limit if where == "route" else ""])),
    )
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane:
        async with waiting_for_tokens(plane, shared, origin, request_) as client:
            mock_clock.jump(10.1)
            answer = await client.answer()
            assert (answer[0], code in answer[1]) == (status, True)
        await until(lambda: plane.service.connections == 0)
        assert not any(plane.leftovers().values()), plane.leftovers()


# ----- retries --------------------------------------------------------------------------------------------------------


async def test_retry_is_charged_and_one_that_is_refused_leaves_the_earlier_answer(
    origin: Origin, shared: Shared
) -> None:
    text = config(
        origin.url,
        upstream="limit: {rate: 4/m, burst: 5}",
        route="retry: {attempts: 5, when: [503], backoff: 1ms..1ms}",
        state="max_wait: 250ms",
    )
    async with (
        a_plane(text, scopes=shared.scopes_of(0)) as plane,
        a_world(plane, shared, origin, OK, OK, BUSY),
    ):
        assert [int(each[9:12]) for each in await seen_by_client(plane, 2, GET)] == [200, 200]
        client = await plane.connect()
        await client.send(GET)
        assert await client.answer() == (503, b"busy")
        await client.send(GET)
        status, body = await client.answer()
        assert (status, b'"limited"' in body) == (429, True)
        assert plane.counts.attempts == ["200", "200", "503", "503"]
        client.close()


async def test_retries_end_when_the_breaker_opens(shared: Shared) -> None:
    text = config(
        f"http://127.0.0.1:{unused_port()}",
        upstream="breaker: {consecutive: 3}",
        route="retry: {attempts: 8, when: [connect], backoff: 1ms..1ms}",
    )
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        client = await plane.connect()
        await client.send(GET)
        status, body = await client.answer()
        assert (status, b'"connect_failed"' in body) == (503, True)
        assert plane.counts.attempts == ["connect"] * 3
        await client.send(GET)
        assert b'"breaker_open"' in (await client.answer())[1]
        assert plane.counts.attempts == ["connect"] * 3
        client.close()
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("mock_clock")
async def test_endpoint_in_its_ramp_sends_what_it_refuses_to_others(origin: Origin, shared: Shared) -> None:
    other = Origin()
    text = config(origin.url, other.url, upstream="breaker: {scope: endpoint}")
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        nursery.start_soon(answers_with, other, OK)
        plane.breakers.random = lambda: 0.99  # what a ramp refuses
        breakers = [endpoint.gate for endpoint in plane.endpoints if endpoint.gate is not None]
        await until(lambda: all(breaker.gate.row is not None for breaker in breakers))
        breakers[0].gate._own_closed(plane.lane.now, alone=False)
        plane.breakers.attend(breakers[0])
        assert [int(each[9:12]) for each in await seen_by_client(plane, 12, GET)] == [200] * 12
        assert plane.endpoints[0].pool.open == 0
        breakers[1].gate._own_closed(plane.lane.now, alone=False)
        plane.breakers.attend(breakers[1])
        (answer,) = await seen_by_client(plane, 1, GET)
        assert b'"breaker_open"' in answer
        assert plane.counts.attempts == ["200"] * 12
        await finished(plane)
        nursery.cancel_scope.cancel()
    other.close()


@pytest.mark.parametrize("ends", ["breaker", "endpoints"])
@pytest.mark.parametrize("answered", [True, False])
async def test_what_an_attempt_came_to_stands_where_the_next_is_ruled_out_during_the_back_off(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared, ends: str, *, answered: bool
) -> None:
    text = config(
        origin.url,
        upstream="breaker: {}",
        route="retry: {attempts: 1, when: [500, reset], backoff: 10s..10s}, timeout: 60s",
    )
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        client = await plane.connect()
        await client.send(GET)
        upstream = await origin.accept()
        await upstream.head()
        await (upstream.send(FAILED) if answered else upstream.send(b"HTTP/1.1 what\r\n\r\n"))
        await shared.until(lambda: plane.counts.attempts)
        if ends == "breaker":
            the(plane, shared, "u", "open")
        else:
            plane.service.table.upstreams["u"].set_endpoints([])
        mock_clock.jump(11)
        status, body = await client.answer()
        assert (status, body == b"no") == ((500, True) if answered else (502, False))
        assert len(plane.counts.attempts) == 1
        assert plane.counts.retries == []
        await finished(plane)
        client.close()
        upstream.close()
        nursery.cancel_scope.cancel()


# ----- what counts ----------------------------------------------------------------------------------------------------


async def test_answer_cut_inside_its_body_is_a_failure(origin: Origin, shared: Shared) -> None:
    text = config(origin.url, upstream="breaker: {consecutive: 2}")
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        breaker = plane.breakers.breakers["u"]
        for _ in range(2):
            assert not breaker.is_open
            client = await plane.connect()
            await client.send(GET)
            talk = await origin.takes(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
            await client.head()
            assert await client.exactly(3) == b"abc"
            talk.close()
            assert await client.is_cut()
            client.close()
        await until(lambda: breaker.is_open)
        assert plane.counts.attempts == ["reset", "reset"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/grpc+proto"])
async def test_stream_is_settled_at_its_head(origin: Origin, shared: Shared, kind: bytes) -> None:
    text = config(origin.url, upstream="breaker: {consecutive: 1}")
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes(
            b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
        )
        await client.head()
        breaker = plane.breakers.breakers["u"]
        await until(lambda: shared.reported() == (1, 0))
        talk.reset()
        assert await client.is_cut()
        await until(lambda: plane.counts.attempts)
        assert plane.counts.attempts == ["reset"]
        assert (shared.reported(), breaker.is_open) == ((1, 0), False)
        client.close()
        nursery.cancel_scope.cancel()


async def test_half_open_breaker_lets_one_probe_through(origin: Origin, shared: Shared) -> None:
    text = config(origin.url, upstream="breaker: {probes: 1}", state="max_wait: 250ms")
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        the(plane, shared, "u", "open")
        clients = [await plane.connect() for _ in range(3)]
        await clients[0].send(GET)
        assert b'"breaker_open"' in (await clients[0].answer())[1]
        the(plane, shared, "u", "auto")
        await clients[0].send(GET)
        talk = await origin.accept()
        await talk.head()
        for client in clients[1:]:
            await client.send(GET)
            status, body = await client.answer()
            assert (status, b'"breaker_open"' in body) == (503, True)
        await talk.send(OK)
        assert await clients[0].answer() == (200, b"ok")
        await until(lambda: shared.probes(Verb.OK))
        for end in (*clients, talk):
            end.close()
        nursery.cancel_scope.cancel()


async def test_probe_whose_lease_ends_while_the_worker_stands_still_is_not_sent(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = config(
        origin.url,
        upstream="breaker: {probes: 1}",
        route="retry: {attempts: 0}, timeout: {per_try: 1s, total: 15s}",
        state="max_wait: 250ms",
    )
    acquire = Pool.acquire

    async def stand_still(pool: Pool, strand: Strand, *args: Any, **more: Any) -> Http1Connection:
        connection = await acquire(pool, strand, *args, **more)
        mock_clock.jump(1.5)
        await strand.call(trio.lowlevel.checkpoint)
        return connection

    monkeypatch.setattr(Pool, "acquire", stand_still)
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        the(plane, shared, "u", "open")
        the(plane, shared, "u", "auto")
        client = await plane.connect()
        await client.send(GET)
        status, body = await client.answer()
        assert (status, b'"upstream_timeout"' in body) == (504, True)
        await until(lambda: shared.probes(Verb.LOST))
        assert plane.endpoint.pool.idle_count == 1  # one that had something sent would have been cut
        (await origin.accept()).close()
        await until(lambda: not plane.endpoint.pool.idle_count)
        client.close()
        nursery.cancel_scope.cancel()


PROBED = "retry: {attempts: 0}, timeout: {per_try: 1s, total: 15s}"


@asynccontextmanager
async def half_open(shared: Shared, origin: Origin, route: str = PROBED) -> AsyncIterator[Plane]:
    """A plane whose breaker lets one probe through."""
    text = config(origin.url, upstream="breaker: {probes: 1}", route=route, state="max_wait: 250ms")
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(shared.answers)
        the(plane, shared, "u", "open")
        the(plane, shared, "u", "auto")
        yield plane
        nursery.cancel_scope.cancel()


async def waits_for_a_body(plane: Plane) -> None:
    await until(lambda: any(client.link.interest & READ for client in plane.listener._clients))


async def test_probe_whose_head_came_in_time_is_good_however_long_its_body_takes(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    async with half_open(shared, origin) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await talk.head()
        await talk.send(OK[:-2])
        await client.head()
        mock_clock.jump(0.9)
        assert not shared.probes(Verb.OK)
        mock_clock.jump(0.2)
        await until(lambda: shared.probes(Verb.OK))
        mock_clock.jump(5.0)
        await talk.send(OK[-2:])
        assert await client.exactly(2) == b"ok"
        await until(lambda: plane.counts.attempts)
        assert plane.counts.attempts == ["200"]
        assert len(shared.probes(Verb.OK)) == 1
        assert not shared.probes(Verb.FAILED)
        client.close()
        talk.close()


async def test_probe_whose_head_does_not_come_in_time_has_failed(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    async with half_open(shared, origin, "retry: {attempts: 0}") as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await talk.head()
        mock_clock.jump(10.1)
        assert (await client.answer())[0] == 504
        await until(lambda: shared.probes(Verb.FAILED))
        client.close()
        talk.close()


async def test_upload_that_is_on_its_way_holds_up_no_probe(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    async with half_open(shared, origin) as plane:
        slow, other = await plane.connect(), await plane.connect()
        await slow.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n1234")
        await waits_for_a_body(plane)
        mock_clock.jump(5.0)
        assert not shared.probes(Verb.ASK)
        await slow.send(b"56789")
        talk = await origin.accept()
        await talk.head()
        await talk.exactly(9)
        await other.send(GET)
        assert (await other.answer())[0] == 503
        await talk.send(OK)
        assert await slow.answer() == (200, b"ok")
        await until(lambda: shared.probes(Verb.OK))
        for end in (slow, other, talk):
            end.close()


async def test_probe_that_its_client_holds_up_is_given_back_and_goes_on(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    async with half_open(shared, origin) as plane:
        client = await plane.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 70000\r\n\r\n" + bytes(69999))
        talk = await origin.accept()
        await talk.head()
        await talk.exactly(69999)
        assert not shared.probes(Verb.LOST)
        await waits_for_a_body(plane)
        mock_clock.jump(1.1)
        await until(lambda: shared.probes(Verb.LOST))
        mock_clock.jump(5.0)
        await client.send(b"x")
        await talk.exactly(1)
        await talk.send(OK)
        assert await client.answer() == (200, b"ok")
        assert not shared.probes(Verb.FAILED)
        client.close()
        talk.close()


async def test_probe_whose_client_takes_no_more_is_judged_by_its_head(
    mock_clock: trio.testing.MockClock, origin: Origin, shared: Shared
) -> None:
    async with half_open(shared, origin, "retry: {attempts: 0}") as plane, trio.open_nursery() as nursery:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await talk.head()
        nursery.start_soon(
            talk.send, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (32 << 20) + bytes(8 << 20)
        )
        await client.head()
        await until(lambda: any(each.link.interest & WRITE for each in plane.listener._clients))
        mock_clock.jump(1.1)
        await until(lambda: shared.probes(Verb.OK))
        assert plane.service.inflight == 1
        nursery.cancel_scope.cancel()
    client.close()
    talk.close()


async def test_probe_that_a_quota_refuses_is_given_back(origin: Origin, shared: Shared) -> None:
    text = config(
        origin.url, upstream="breaker: {probes: 1}, limit: {rate: 4/m, burst: 5}", state="max_wait: 250ms"
    )
    async with a_plane(text, scopes=shared.scopes_of(0)) as plane:
        async with a_world(plane, shared, origin, OK):
            assert [int(each[9:12]) for each in await seen_by_client(plane, 4, GET)] == [200] * 4
            the(plane, shared, "u", "open")
            the(plane, shared, "u", "auto")
            (answer,) = await seen_by_client(plane, 1, GET)
            assert b'"limited"' in answer
            await until(lambda: shared.probes(Verb.LOST))
            assert not shared.probes(Verb.FAILED)
