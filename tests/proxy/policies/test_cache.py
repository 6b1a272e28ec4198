"""The cache of a route: what is given again and to whom, and requests that go up as one.

`a_plane` looks at the end of each test that no connection, slot in a queue or count is left.
"""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack, ExitStack
from email.utils import formatdate

import pytest
import trio
import trio.testing

from ambassador.config.load import load_string
from ambassador.messages import Request, ResponseHead
from ambassador.proxy.freshness import Said
from ambassador.proxy.plan import RoutePlan
from ambassador.proxy.policies.cache import Cache, Config, Flight, Found, Visit
from ambassador.proxy.soonest import Soonest
from tests.proxy.harness import Origin, Plane, Talk, a_plane, config, finished, until
from tests.proxy.stores import SharedStore

DATE = b"Fri, 27 Nov 2026 06:44:34 GMT"


def get(path: bytes = b"/", *fields: bytes, method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\nhost: a\r\n%b\r\n" % (
        method,
        path,
        b"".join(each + b"\r\n" for each in fields),
    )


def ok(body: bytes = b"ok", *fields: bytes, status: bytes = b"200 OK") -> bytes:
    lines = b"".join(each + b"\r\n" for each in fields)
    return b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, lines, len(body), body)


FRESH = b"cache-control: max-age=60"
GET = get()


class World:
    """A plane, its origin, and all that was opened."""

    def __init__(self, plane: Plane, origin: Origin, stack: ExitStack) -> None:
        self.plane = plane
        self.origin = origin
        self.stack = stack
        self.upstream: Talk | None = None

    async def client(self, request: bytes = b"", ip: str = "127.0.0.1") -> Talk:
        client = Talk(await trio.open_tcp_stream(*self.plane.address, local_address=ip))
        self.stack.callback(client.close)
        if request:
            await client.send(request)
        return client

    async def accepts(self) -> Talk:
        """A further connection to the origin, with the head of its request read."""
        talk = await self.accepts_any()
        self.head = await talk.head()
        return talk

    async def asked(self) -> Talk:
        """The next request, on the connection of the last if that is there still; where one is under way at a time."""
        found: list[Talk] = []
        async with trio.open_nursery() as nursery:

            async def on(talk: Talk) -> None:
                try:
                    self.head = await talk.head()
                except (AssertionError, trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # it has ended, so there is another
                found.append(talk)
                nursery.cancel_scope.cancel()

            async def accept() -> None:
                await on(await self.accepts_any())

            if self.upstream is not None:
                nursery.start_soon(on, self.upstream)
            nursery.start_soon(accept)
        (self.upstream,) = found
        return self.upstream

    async def accepts_any(self) -> Talk:
        talk = await self.origin.accept()
        self.stack.callback(talk.close)
        return talk

    async def fetch(self, request: bytes, answer: bytes, size: int) -> bytes:
        """Have a request go up and be answered; the head that the client saw."""
        client = await self.client(request)
        await (await self.asked()).send(answer)
        head = await client.head()
        await client.exactly(size)
        await finished(self.plane)
        return head

    async def kept(self, request: bytes, body: bytes) -> bytes:
        """A request that must not go up: the head of its answer."""
        before = len(self.plane.counts.attempts)
        client = await self.client(request)
        head = await client.head()
        assert await client.exactly(len(body)) == body
        await finished(self.plane)
        assert len(self.plane.counts.attempts) == before
        return head


class a_world:  # noqa: N801 - a context manager, as the harness names its own
    """A world with a route that has a cache."""

    def __init__(self, origin: Origin, cache: str = "{ttl: from-response}", **route: str) -> None:
        self._context = a_plane(config(origin.url, cache=cache, retry="off", **route))
        self._origin = origin
        self._stack = ExitStack()

    async def __aenter__(self) -> World:
        return World(await self._context.__aenter__(), self._origin, self._stack)

    async def __aexit__(self, *error: object) -> None:
        self._stack.close()
        await self._context.__aexit__(*error)  # type: ignore[arg-type]


# What is given again


async def test_fresh_answer_is_given_again(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    async with a_world(origin) as world:
        head = await world.fetch(
            GET,
            ok(b"ok", FRESH, b'ETag: "1"', b"date: " + formatdate(usegmt=True).encode(), b"x: y", b"Age: 2"),
            2,
        )
        assert b"\r\ncache-status: test; fwd=miss\r\n" in head
        mock_clock.jump(10)
        head = await world.kept(GET, b"ok")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\ncache-status: test; hit; ttl=" in head
        assert head.count(b"\r\nage: ") == 1
        assert b"\r\nx: y\r\n" in head
        assert head.lower().count(b"\r\ndate: ") == 1
        assert b"\r\nx-request-id: " in head


async def test_stale_answer_goes_up_again(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    async with a_world(origin) as world:
        await world.fetch(GET, ok(b"one", FRESH), 3)
        mock_clock.jump(61)
        head = await world.fetch(GET, ok(b"two", FRESH), 3)
        assert b"cache-status: test; fwd=stale\r\n" in head
        await world.kept(GET, b"two")


async def test_validated_answer_is_given_again(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    async with a_world(origin) as world:
        await world.fetch(GET, ok(b"one", FRESH, b'etag: "1"', b"last-modified: " + DATE), 3)
        mock_clock.jump(61)
        client = await world.client(GET)
        talk = await world.asked()
        assert b'\r\nif-none-match: "1"\r\nif-modified-since: ' + DATE in world.head
        await talk.send(
            b'HTTP/1.1 304 Not Modified\r\netag: "1"\r\ncache-control: max-age=60\r\nx: new\r\n\r\n'
        )
        head = await client.head()
        assert await client.exactly(3) == b"one"
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"cache-status: test; fwd=stale; fwd-status=304\r\n" in head
        assert b"\r\nx: new\r\n" in head
        await finished(world.plane)
        await world.kept(GET, b"one")
        assert world.plane.counts.attempts == ["200", "304"]


async def test_no_cache_is_validated_each_time(origin: Origin) -> None:
    async with a_world(origin) as world:
        await world.fetch(GET, ok(b"one", b"cache-control: no-cache", b'etag: "1"'), 3)
        client = await world.client(GET)
        talk = await world.asked()
        assert b'if-none-match: "1"' in world.head
        await talk.send(ok(b"two", b"cache-control: no-cache", b'etag: "2"'))
        assert await client.answer() == (200, b"two")


async def test_client_that_has_it_gets_304(origin: Origin) -> None:
    async with a_world(origin) as world:
        await world.fetch(GET, ok(b"ok", FRESH, b'etag: "1"', b"content-type: text/plain"), 2)
        head = await world.kept(get(b"/", b'if-none-match: W/"1"'), b"")
        assert head.startswith(b"HTTP/1.1 304 ")
        assert b'etag: "1"' in head
        assert b"content-length" not in head.lower()
        assert b"content-type" not in head.lower()
        await world.kept(get(b"/", b'if-none-match: "2"'), b"ok")


async def test_head_is_answered_from_a_get(origin: Origin) -> None:
    async with a_world(origin) as world:
        await world.fetch(GET, ok(b"ok", FRESH), 2)
        head = await world.kept(get(method=b"HEAD"), b"")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"content-length: 2\r\n" in head


async def test_head_alone_is_not_kept(origin: Origin) -> None:
    async with a_world(origin) as world:
        await world.fetch(
            get(method=b"HEAD"), b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n%b\r\n\r\n" % FRESH, 0
        )
        await world.fetch(GET, ok(b"ok", FRESH), 2)


async def test_configured_lifetime_is_for_answers_that_say_nothing(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_world(origin, "30s") as world:
        await world.fetch(GET, ok(b"ok"), 2)
        await world.kept(GET, b"ok")
        mock_clock.jump(31)
        await world.fetch(GET, ok(b"ok", b"cache-control: max-age=0"), 2)
        await world.fetch(GET, ok(b"ok", b"cache-control: no-store"), 2)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (GET, ok(b"ok")),
        (GET, ok(b"ok", b"cache-control: no-store, max-age=60")),
        (GET, ok(b"ok", b"cache-control: private, max-age=60")),
        (GET, ok(b"ok", FRESH, b"set-cookie: a=b")),
        (GET, ok(b"ok", FRESH, b"vary: *")),
        (GET, ok(b"ok", FRESH, status=b"500 No")),
        (get(b"/", b"authorization: Bearer x"), ok(b"ok", FRESH)),
        (get(b"/", b"cache-control: no-store"), ok(b"ok", FRESH)),
        (get(b"/", b"range: bytes=0-1"), ok(b"ok", FRESH)),
        (get(b"/", b"if-match: *"), ok(b"ok", FRESH)),
        (get(b"/", b"content-length: 1") + b"x", ok(b"ok", FRESH)),
        (get(method=b"OPTIONS"), ok(b"ok", FRESH)),
    ],
)
async def test_what_is_not_for_others_is_not_given_again(
    origin: Origin, request_: bytes, answer: bytes
) -> None:
    async with a_world(origin) as world:
        for _ in range(2):
            client = await world.client(request_)
            talk = await world.asked()
            if request_.endswith(b"x"):
                await talk.exactly(1)
            await talk.send(answer)
            assert (await client.answer())[1] == b"ok"
            await finished(world.plane)


@pytest.mark.parametrize(
    "field",
    [
        b"authorization: Bearer 1", b"cookie: a=1", b"x-api-key: 1", b"x-host: evil", b"x-original-url: /admin",
        b"x-anything: 1", b"origin: http://evil",
    ],
)  # fmt: skip
async def test_credentials_and_unknown_headers_have_answers_of_their_own(
    origin: Origin, field: bytes
) -> None:
    async with a_world(origin) as world:
        public = b"cache-control: public, max-age=60"
        await world.fetch(get(b"/", field), ok(b"poison", public), 6)
        await world.fetch(GET, ok(b"good", public), 4)
        await world.kept(GET, b"good")
        await world.kept(get(b"/", field), b"poison")
        await world.fetch(get(b"/", field + b"x"), ok(b"other", public), 5)


async def test_forwarded_headers_of_strangers_reach_neither_the_upstream_nor_the_key(origin: Origin) -> None:
    async with a_world(origin) as world:
        request = get(b"/", b"x-forwarded-host: evil", b"x-forwarded-for: 1.2.3.4", b"forwarded: host=evil")
        await world.fetch(request, ok(b"ok", FRESH), 2)
        assert b"evil" not in world.head
        await world.kept(GET, b"ok")


async def test_hosts_and_queries_have_answers_of_their_own(origin: Origin) -> None:
    async with a_world(origin) as world:
        await world.fetch(get(b"/x?a=1"), ok(b"one", FRESH), 3)
        await world.fetch(get(b"/x?a=2"), ok(b"two", FRESH), 3)
        await world.fetch(get(b"/x?a=1").replace(b"host: a", b"host: b"), ok(b"three", FRESH), 5)
        await world.kept(get(b"/x?a=1"), b"one")
        await world.kept(get(b"/x?a=1").replace(b"host: a", b"Host: b"), b"three")


async def test_vary_selects(origin: Origin) -> None:
    async with a_world(origin) as world:
        for language in (b"de", b"en"):
            await world.fetch(
                get(b"/", b"accept-language: " + language), ok(language, FRESH, b"vary: accept-language"), 2
            )
        await world.kept(get(b"/", b"accept-language: de"), b"de")
        await world.kept(get(b"/", b"accept-language: en", b"accept: x"), b"en")
        await world.fetch(GET, ok(b"no", FRESH, b"vary: accept-language"), 2)


async def test_ignored_headers_do_not_matter(origin: Origin) -> None:
    async with a_world(origin, "{ttl: from-response, ignore: [X-Correlation-Id]}") as world:
        await world.fetch(get(b"/", b"x-correlation-id: 1"), ok(b"ok", FRESH), 2)
        await world.kept(get(b"/", b"x-correlation-id: 2"), b"ok")


async def test_requests_can_ask_for_younger_answers(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_world(origin) as world:
        await world.fetch(GET, ok(b"one", FRESH, b"etag: x"), 3)
        mock_clock.jump(20)
        await world.kept(get(b"/", b"cache-control: max-age=30"), b"one")
        head = await world.fetch(get(b"/", b"cache-control: max-age=10"), ok(b"two", FRESH), 3)
        assert b"fwd=request" in head
        await world.fetch(get(b"/", b"pragma: no-cache"), ok(b"six", FRESH), 3)
        await world.kept(get(b"/", b"cache-control: only-if-cached"), b"six")


async def test_request_that_takes_nothing_but_what_is_kept_is_told_that_there_is_none(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client(get(b"/other", b"cache-control: only-if-cached"))
        head, body = await client.whole()
        assert head.startswith(b"HTTP/1.1 504 ")
        assert b'\r\nproxy-status: test; error=proxy_internal_response; details="not_cached"\r\n' in head
        assert b"\r\ncache-status: test; detail=only-if-cached\r\n" in head
        assert b"\r\ncontent-type: application/problem+json\r\n" in head
        problem = json.loads(body)
        assert (problem["code"], problem["status"], problem["route"]) == ("not_cached", 504, "r")
        await client.send(GET)
        await (await world.asked()).send(ok())
        assert await client.answer() == (200, b"ok")


async def test_expiry_without_a_date_is_from_when_the_answer_came(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_world(origin) as world:
        expires = b"expires: " + formatdate(time.time() + 100, usegmt=True).encode()
        await world.fetch(GET, ok(b"one", expires), 3)
        await world.kept(GET, b"one")
        mock_clock.jump(200)
        await world.fetch(GET, ok(b"two", expires), 3)


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH"])
async def test_change_ends_what_is_kept(origin: Origin, method: bytes) -> None:
    async with a_world(origin) as world:
        for path in (b"/", b"/new", b"/else"):
            await world.fetch(get(path), ok(b"one", FRESH), 3)
        await world.fetch(get(method=method), ok(b"no", status=b"409 No"), 2)
        await world.kept(GET, b"one")
        await world.fetch(get(method=method), ok(b"ok", b"location: http://a/new#x"), 2)
        await world.fetch(GET, ok(b"two", FRESH), 3)
        await world.fetch(get(b"/new"), ok(b"two", FRESH), 3)
        await world.kept(get(b"/else"), b"one")


async def test_change_by_another_route_ends_what_is_kept(origin: Origin) -> None:
    text = (
        f"version: 1\nlisten: 127.0.0.1:80\nupstreams: {{u: {{endpoints: ['{origin.url}']}}}}\nroutes:\n"
        "  - {name: writes, to: u, match: {methods: POST}}\n"
        "  - {name: reads, to: u, cache: from-response}\n"
    )
    async with a_plane(text) as plane:
        with ExitStack() as stack:
            world = World(plane, origin, stack)
            await world.fetch(GET, ok(b"one", FRESH), 3)
            await world.fetch(get(method=b"POST"), ok(b"ok"), 2)
            await world.fetch(GET, ok(b"two", FRESH), 3)
            await world.fetch(get(method=b"POST"), ok(b"ok"), 2)
            await world.fetch(GET, ok(b"six", FRESH), 3)


async def test_change_ends_what_other_workers_keep(origin: Origin) -> None:
    shared, text = SharedStore(2), config(origin.url, cache="{}", retry="off")
    async with AsyncExitStack() as stack:
        worlds = []
        for number in range(2):
            plane = await stack.enter_async_context(a_plane(text, scopes=shared.scopes_of(number)))
            plane.lasting.changes._name = f"changed:{number}"  # the worker gives it one of its own
            worlds.append(World(plane, origin, stack.enter_context(ExitStack())))
        one, two = worlds
        for world in worlds:
            await world.fetch(GET, ok(b"one", FRESH), 3)
        await one.fetch(get(method=b"PUT"), ok(b"ok"), 2)
        await two.kept(GET, b"one")  # it has not heard yet
        shared.deliver()
        await two.fetch(GET, ok(b"two", FRESH), 3)


async def test_answer_from_before_a_change_is_not_kept(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_world(origin) as world:
        reader = await world.client(GET)
        first = await world.accepts()
        mock_clock.jump(1)
        writer = await world.client(get(method=b"PUT"))
        second = await world.accepts()
        await second.send(ok())
        await writer.answer()
        mock_clock.jump(1)
        await first.send(ok(b"old", FRESH))
        assert await reader.answer() == (200, b"old")
        await finished(world.plane)
        client = await world.client(GET)
        await until(lambda: world.plane.endpoint.inflight == 1)
        client.reset()
        await finished(world.plane)


async def test_headers_of_the_route_are_set_anew(origin: Origin) -> None:
    async with a_world(origin, headers="{response: {set: {x-id: '{request_id}'}}}") as world:
        await world.fetch(GET, ok(b"ok", FRESH), 2)
        assert b"\r\nx-id: mine\r\n" in await world.kept(get(b"/", b"x-request-id: mine"), b"ok")


async def test_requests_are_counted_by_what_they_got(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_world(origin) as world:
        await world.fetch(GET, ok(b"one", FRESH, b'etag: "1"'), 3)
        await world.kept(GET, b"one")
        mock_clock.jump(61)
        leader = await world.client(GET)
        talk = await world.asked()
        (other,) = await joined(world, 1)
        await talk.send(b'HTTP/1.1 304 No\r\netag: "1"\r\ncache-control: max-age=60\r\n\r\n')
        for client in (leader, other):
            assert await client.answer() == (200, b"one")
        client = await world.client(get(b"/else", b"cache-control: only-if-cached"))
        assert (await client.answer())[0] == 504
        await world.fetch(get(method=b"POST"), ok(b"ok"), 2)
        await world.fetch(get(b"/", b"range: bytes=0-1"), ok(b"ok"), 2)
        assert world.plane.counts.cache == ["miss", "hit", "validated", "coalesced", "miss"]


# How answers are recorded


@pytest.mark.parametrize("size", [0, 10, 70_000, 600_000])
async def test_bodies_of_any_size_are_recorded_as_they_pass(origin: Origin, size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    body = body[:size]
    async with a_world(origin, "{max: 8MiB, ttl: from-response}") as world:
        for path in (b"/1", b"/2"):  # the second with a head that was seen before
            client = await world.client(get(path))
            talk = await world.asked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk.send, ok(body, FRESH))
                assert await client.answer() == (200, body)
            await finished(world.plane)
            await world.kept(get(path), body)


async def test_chunked_body_is_recorded_and_has_a_length_then(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client(GET)
        talk = await world.asked()
        await talk.send(b"HTTP/1.1 200 OK\r\n%b\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n" % FRESH)
        assert b"chunked" in await client.head()
        await talk.send(b"2\r\nde\r\n0\r\n\r\n")
        assert await client.exactly(20) == b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        await finished(world.plane)
        assert b"content-length: 5\r\n" in await world.kept(GET, b"abcde")


async def test_answer_with_trailers_is_not_kept(origin: Origin) -> None:
    async with a_world(origin) as world:
        for _ in range(2):
            client = await world.client(GET)
            talk = await world.asked()
            await talk.send(
                b"HTTP/1.1 200 OK\r\n%b\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\r\n\r\n" % FRESH
            )
            await client.head()
            await client.exactly(11)
            await finished(world.plane)


@pytest.mark.parametrize("sized", [True, False])
async def test_answer_that_is_too_large_passes_and_is_not_kept(origin: Origin, sized: bool) -> None:
    body = b"x" * 100_000
    async with a_world(origin, "{max: 64KiB}") as world:
        for _ in range(2):
            client = await world.client(GET)
            talk = await world.accepts()
            head = b"HTTP/1.1 200 OK\r\n%b\r\nconnection: close\r\n" % FRESH
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    talk.send, head + (b"content-length: 100000\r\n" if sized else b"") + b"\r\n" + body
                )
                await client.head()
                if sized:
                    assert await client.exactly(100_000) == body
            talk.close()
            if not sized:
                assert len(await client.exactly(100_000)) == 100_000
            client.close()
            await finished(world.plane)


async def test_answer_that_breaks_off_is_not_kept(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client(GET)
        talk = await world.accepts()
        await talk.send(b"HTTP/1.1 200 OK\r\n%b\r\ncontent-length: 10\r\n\r\nhalf" % FRESH)
        await client.head()
        talk.close()
        assert await client.is_cut()
        await finished(world.plane)
        assert the_cache(world).shelf.recording == 0
        await world.fetch(GET, ok(b"whole", FRESH), 5)
        assert the_cache(world).shelf.recording == 0


# Requests that go up as one


async def joined(world: World, count: int, request: bytes = GET, ip: str = "127.0.0.1") -> list[Talk]:
    """Clients that wait for the request of another."""
    before = waiting(world)
    clients = [await world.client(request, ip) for _ in range(count)]
    await until(lambda: waiting(world) == before + count)
    return clients


def the_cache(world: World) -> Cache:
    cache = world.plane.service.table.router.match("a", "/", "GET", Request("GET", b"/", [], 1))[0].cache  # type: ignore[index]
    assert isinstance(cache, Cache)
    return cache


def waiting(world: World) -> int:
    return sum(len(flight.waiting) for flight in the_cache(world).flights.values())


@pytest.mark.parametrize("cache", ["{ttl: from-response}", "{coalesce: true}"])
async def test_identical_requests_go_up_as_one(origin: Origin, cache: str) -> None:
    async with a_world(origin, cache) as world:
        leader = await world.client(GET)
        talk = await world.asked()
        others = await joined(world, 5)
        await talk.send(ok(b"ok"))
        assert await leader.answer() == (200, b"ok")
        for other in others:
            head = await other.head()
            assert b"cache-status: test; fwd=miss; collapsed\r\n" in head
            assert await other.exactly(2) == b"ok"
        await finished(world.plane)
        assert world.plane.counts.attempts == ["200"]
        assert len(the_cache(world).shelf) == 0
        await world.fetch(GET, ok(b"new"), 3)


ELSEWHERE = "127.0.0.2"


@pytest.mark.parametrize("cache", ["{ttl: from-response}", "{coalesce: true}"])
async def test_answer_for_all_is_shared_by_clients(origin: Origin, cache: str) -> None:
    async with a_world(origin, cache) as world:
        leader = await world.client(GET)
        talk = await world.asked()
        (other,) = await joined(world, 1, ip=ELSEWHERE)
        await talk.send(ok(b"ok", FRESH))
        assert await leader.answer() == (200, b"ok")
        assert b"collapsed" in await other.head()
        assert await other.exactly(2) == b"ok"


@pytest.mark.parametrize(
    "fields", [(), (b"cache-control: max-age=0",), (b"cache-control: public",), (b'etag: "1"',)]
)
@pytest.mark.parametrize("cache", ["{ttl: from-response}", "{coalesce: true}"])
async def test_answer_that_is_not_for_all_stays_with_its_client(
    origin: Origin, cache: str, fields: tuple[bytes, ...]
) -> None:
    async with a_world(origin, cache) as world:
        leader = await world.client(GET)
        talk = await world.accepts()
        (same,) = await joined(world, 1)
        others = await joined(world, 2, ip=ELSEWHERE)
        await talk.send(ok(b"one", *fields)[:-1])
        second = await world.accepts()  # as soon as the head says so; one of them leads
        await until(lambda: waiting(world) == 2)
        await talk.send(b"e")
        assert await leader.answer() == (200, b"one")
        assert await same.answer() == (200, b"one")
        again = await world.client(GET)  # other clients do not even wait, for a while
        await talk.head()
        await talk.send(ok(b"new", *fields))
        assert await again.answer() == (200, b"new")
        await second.send(ok(b"two", *fields))
        for other in others:
            assert await other.answer() == (200, b"two")
        await finished(world.plane)
        assert the_cache(world).flights == {}


async def test_validated_answer_that_is_not_for_all_stays_with_its_client(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    fields = (b"cache-control: no-cache", b'etag: "1"')
    async with a_world(origin) as world:
        await world.fetch(GET, ok(b"one", *fields), 3)
        mock_clock.jump(11)
        leader = await world.client(GET)
        talk = await world.asked()
        (same,) = await joined(world, 1)
        (other,) = await joined(world, 1, ip=ELSEWHERE)
        await talk.send(b'HTTP/1.1 304 No\r\netag: "1"\r\ncache-control: no-cache\r\n\r\n')
        assert await leader.answer() == (200, b"one")
        assert await same.answer() == (200, b"one")
        await talk.head()
        await talk.send(ok(b"two", *fields))
        assert await other.answer() == (200, b"two")


async def test_answer_that_is_no_more_to_be_kept_when_validated_is_for_nobody_else(origin: Origin) -> None:
    async with a_world(origin) as world:
        await world.fetch(GET, ok(b"one", b"cache-control: max-age=0", b'etag: "1"'), 3)
        leader = await world.client(GET)
        talk = await world.asked()
        (same,) = await joined(world, 1)
        await talk.send(b'HTTP/1.1 304 No\r\netag: "1"\r\ncache-control: private\r\n\r\n')
        assert await leader.answer() == (200, b"one")
        await talk.head()
        await talk.send(ok(b"two", FRESH))
        assert await same.answer() == (200, b"two")


def test_clients_with_a_name_are_told_apart_by_it_and_not_by_address() -> None:
    cache = Cache(Config(), Clock())

    def look(name: str | None, ip: str) -> object:
        request = Request("GET", b"/", [], 1)
        request.client, request.client_ip = name, ip
        visit = cache.visit(request, [])
        assert visit is not None
        found = visit.look()
        if found is None:
            visit.hear(ResponseHead(200, []), Said(200, [], date=DATE), 0.0)
        return found

    assert look("a", "1") is None
    assert isinstance(look("a", "2"), Flight)
    assert look("b", "1") is None
    assert look(None, "1") is None
    assert isinstance(look(None, "1"), Flight)
    assert look(None, "2") is None
    assert isinstance(look(None, "2"), Flight)


async def test_coalescing_alone_keeps_nothing(origin: Origin) -> None:
    async with a_world(origin, "{coalesce: true}") as world:
        await world.fetch(GET, ok(b"one", FRESH), 3)
        await world.fetch(GET, ok(b"two", FRESH), 3)


async def test_coalescing_can_be_switched_off(origin: Origin) -> None:
    async with a_world(origin, "{ttl: from-response, coalesce: false}") as world:
        clients = [await world.client(GET) for _ in range(2)]
        for talk in [await world.accepts(), await world.accepts()]:
            await talk.send(ok())
        for client in clients:
            assert await client.answer() == (200, b"ok")


@pytest.mark.parametrize(
    "field",
    [b"authorization: 1", b"cookie: 1", b"x-api-key: 1", b"cache-control: no-cache", b"if-none-match: *"],
)
async def test_different_requests_never_go_up_as_one(origin: Origin, field: bytes) -> None:
    async with a_world(origin) as world:
        first = await world.client(GET)
        one = await world.accepts()
        second = await world.client(get(b"/", field))
        two = await world.accepts()
        await one.send(ok(b"one"))
        await two.send(ok(b"two"))
        assert await first.answer() == (200, b"one")
        assert await second.answer() == (200, b"two")


async def test_who_vary_tells_apart_goes_up_himself(origin: Origin) -> None:
    async with a_world(origin) as world:
        leader = await world.client(get(b"/", b"accept: a"))
        talk = await world.accepts()
        (same,) = await joined(world, 1, get(b"/", b"accept: a"))
        (other,) = await joined(world, 1, get(b"/", b"accept: b"))
        await talk.send(ok(b"a", b"vary: accept"))
        assert await leader.answer() == (200, b"a")
        assert await same.answer() == (200, b"a")
        await talk.head()
        await talk.send(ok(b"b", b"vary: accept"))
        assert await other.answer() == (200, b"b")


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"ok", b"cache-control: private"),
        ok(b"ok", b"cache-control: no-store"),
        ok(b"ok", b"cache-control: no-cache"),
        ok(b"ok", b"set-cookie: a=b"),
        ok(b"ok", status=b"403 No"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 90000000\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nok",
    ],
)
async def test_answer_that_is_not_for_others_holds_nobody(origin: Origin, answer: bytes) -> None:
    async with a_world(origin) as world:
        leader = await world.client(GET)
        first = await world.accepts()
        others = await joined(world, 2)
        await first.send(answer)
        await leader.head()
        # Those who waited go up at once, on the leader's connection where that is free again.
        async with trio.open_nursery() as nursery:
            for served in (first, origin):
                nursery.start_soon(served.serves, lambda _: ok(b"mine"))
            for other in others:
                assert await other.answer() == (200, b"mine")
            late = await world.client(GET)  # others do not even wait, for a while
            assert await late.answer() == (200, b"mine")
            assert waiting(world) == 0
            nursery.cancel_scope.cancel()
        leader.reset()
        await finished(world.plane)


async def test_body_that_turns_out_too_large_holds_nobody(origin: Origin) -> None:
    async with a_world(origin, "{max: 64KiB}") as world:
        leader = await world.client(GET)
        first = await world.accepts()
        (other,) = await joined(world, 1)
        await first.send(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2001\r\n" + b"x" * 8193 + b"\r\n"
        )
        await leader.head()
        second = await world.accepts()
        await second.send(ok(b"mine"))
        assert await other.answer() == (200, b"mine")
        leader.reset()
        await finished(world.plane)


async def test_body_that_takes_long_holds_nobody(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    async with a_world(origin) as world:
        leader = await world.client(GET)
        first = await world.accepts()
        (other,) = await joined(world, 1)
        mock_clock.jump(5)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await first.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await leader.head()
        mock_clock.jump(1.1)
        second = await world.accepts()
        await second.send(ok(b"mine"))
        assert await other.answer() == (200, b"mine")
        await first.send(b"-whole")
        assert await leader.exactly(10) == b"half-whole"


async def test_another_takes_over_from_a_client_that_leaves(origin: Origin) -> None:
    async with a_world(origin) as world:
        leader = await world.client(GET)
        await world.accepts()
        others = await joined(world, 3)
        leader.reset()
        second = await world.accepts()
        await until(lambda: waiting(world) == 2)
        await second.send(ok(b"ok"))
        for other in others:
            assert await other.answer() == (200, b"ok")
        await finished(world.plane)
        assert world.plane.endpoint.pool.open == 1


@pytest.mark.parametrize("how", ["fails", "answers 500", "breaks off", "has failed by its content"])
async def test_all_go_up_at_once_when_the_one_in_front_has_failed(origin: Origin, how: str) -> None:
    """Else each would lose the time of those before him; and who comes then does not even wait."""
    route = {"breaker": "{failures: [5xx, {header: x-outcome=error}]}"} if "content" in how else {}
    async with a_world(origin, **route) as world:
        leader = await world.client(GET)
        first = await world.accepts()
        others = await joined(world, 3)
        if how == "fails":
            first.close()
            assert (await leader.answer())[0] == 502
        elif how == "breaks off":
            await first.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
            await leader.head()
            first.close()
            assert await leader.exactly(4) == b"half"
        elif how == "answers 500":
            await first.send(ok(b"no", b"connection: close", status=b"500 No"))
            assert await leader.answer() == (500, b"no")
        else:
            await first.send(ok(b"no", b"connection: close", b"x-outcome: error", FRESH))
            assert await leader.answer() == (200, b"no")
        talks = [await world.accepts() for _ in range(3)]  # none of them is answered yet
        others.append(await world.client(GET))
        talks.append(await world.accepts())
        assert waiting(world) == 0
        for talk in talks:
            await talk.send(ok(b"ok"))
        for other in others:
            assert await other.answer() == (200, b"ok")
        await finished(world.plane)


async def test_nobody_waits_for_leaders_without_end(origin: Origin) -> None:
    async with a_world(origin) as world:
        leader = await world.client(GET)
        await world.accepts()
        others = await joined(world, 4)
        leader.reset()
        await world.accepts()
        await until(lambda: waiting(world) == 3)
        others[0].reset()  # who leads now: the first to notice
        talks = [await world.accepts() for _ in range(3)]
        for each in talks:
            await each.send(ok(b"ok"))
        for client in others[1:]:
            assert await client.answer() == (200, b"ok")


def the_plan(world: World) -> RoutePlan:
    """That of the only route."""
    found = world.plane.service.table.router.match("a", "/", "GET", Request("GET", b"/", [], 1))
    assert found is not None
    return found[0]


async def test_wait_leaves_time_for_an_attempt_of_ones_own(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    """The one in front may be stuck where another is answered at once."""
    async with a_world(origin, timeout="10s") as world:
        leader = await world.client(GET)
        stuck = await world.accepts()
        the_plan(world).soonest.fastest_s = 2.0
        mock_clock.jump(2)
        (other,) = await joined(world, 1)
        mock_clock.jump(4.9)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert waiting(world) == 1
        mock_clock.jump(0.2)
        second = await world.accepts()
        await second.send(ok(b"mine"))
        assert await other.answer() == (200, b"mine")
        await stuck.send(ok(b"late"))
        assert await leader.answer() == (200, b"late")


async def test_wait_is_longer_than_half_of_the_time_where_answers_are_fast(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_world(origin, timeout="4s") as world:
        leader = await world.client(GET)
        talk = await world.accepts()
        (other,) = await joined(world, 1)
        mock_clock.jump(2.5)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert waiting(world) == 1
        await talk.send(ok(b"ok"))
        assert await leader.answer() == (200, b"ok")
        assert await other.answer() == (200, b"ok")


class SixSeconds(Soonest):
    """What a route has learned that is never answered sooner."""

    def least_s(self, _now: float, _answered: int) -> float:
        return 6.0


async def test_wait_goes_on_where_an_attempt_of_ones_own_would_be_in_vain(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_world(origin, timeout="10s") as world:
        the_plan(world).soonest = SixSeconds()
        leader = await world.client(GET)
        talk = await world.accepts()
        mock_clock.jump(1)
        (other,) = await joined(world, 1)
        mock_clock.jump(6)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert waiting(world) == 1
        await talk.send(ok(b"ok"))
        assert await leader.answer() == (200, b"ok")
        assert await other.answer() == (200, b"ok")


async def test_who_waits_may_leave(origin: Origin) -> None:
    async with a_world(origin) as world:
        leader = await world.client(GET)
        talk = await world.asked()
        gone, stays = await joined(world, 2)
        gone.reset()
        await until(lambda: waiting(world) == 1)
        await talk.send(ok(b"ok"))
        assert await leader.answer() == (200, b"ok")
        assert await stays.answer() == (200, b"ok")


@pytest.mark.parametrize(
    ("field", "code"), [(b"grpc-timeout: 2S", b'"deadline_exceeded"'), (b"accept: x", b'"upstream_timeout"')]
)
async def test_who_waits_has_a_deadline_of_his_own(
    mock_clock: trio.testing.MockClock, origin: Origin, field: bytes, code: bytes
) -> None:
    async with a_world(origin, timeout="10s") as world:
        leader = await world.client(GET)
        talk = await world.accepts()
        mock_clock.jump(1)
        (other,) = await joined(world, 1, get(b"/", field))
        total_s = 2 if b"deadline" in code else 10
        mock_clock.jump(total_s * 7 / 8 + 0.01)  # no answer of late: an eighth is kept for an attempt
        await world.accepts()
        if b"deadline" not in code:
            await talk.send(ok())
            assert await leader.answer() == (200, b"ok")
        mock_clock.jump(total_s / 8)
        status, body = await other.answer()
        assert (status, code in body) == (504, True)
        if b"deadline" in code:
            await talk.send(ok())
            assert await leader.answer() == (200, b"ok")


async def test_deadline_of_the_one_in_front_says_nothing_of_the_answer(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_world(origin, timeout="10s") as world:
        leader = await world.client(get(b"/", b"grpc-timeout: 1S"))
        await world.accepts()
        others = await joined(world, 2)
        mock_clock.jump(1.1)
        assert (await leader.answer())[0] == 504
        second = await world.accepts()
        await until(lambda: waiting(world) == 1)
        await second.send(ok(b"ok"))
        for other in others:
            assert await other.answer() == (200, b"ok")


async def test_cancelled_waits_leave_nothing_behind(origin: Origin) -> None:
    async with a_world(origin) as world:
        await world.client(GET)
        await world.asked()
        await joined(world, 2)
        cache = the_cache(world)
        world.plane.clients.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: world.plane.service.connections == 0)
            assert not any(world.plane.leftovers().values())
            assert cache.flights == {}


async def test_nobody_joins_what_began_before_a_change(origin: Origin) -> None:
    async with a_world(origin) as world:
        leader = await world.client(GET)
        first = await world.accepts()
        writer = await world.client(get(method=b"PUT"))
        second = await world.accepts()
        await second.send(ok())
        await writer.answer()
        later = await world.client(GET)
        await second.head()
        await second.send(ok(b"new"))
        assert await later.answer() == (200, b"new")
        await first.send(ok(b"old"))
        assert await leader.answer() == (200, b"old")


async def test_fallback_is_nobody_elses_answer(origin: Origin) -> None:
    other = Origin()
    text = config(origin.url, cache="from-response", retry="off", fallback=f"{{to: '{other.url}'}}")
    async with a_plane(text) as plane:
        with ExitStack() as stack:
            world = World(plane, origin, stack)
            for _ in range(2):
                client = await world.client(GET)
                await (await world.asked()).send(ok(b"no", status=b"503 No"))
                away = await other.takes(ok(b"other", FRESH))
                stack.callback(away.close)
                assert await client.answer() == (200, b"other")
                away.close()
                await finished(plane)
    other.close()


# In the config


@pytest.mark.parametrize(
    ("written", "stores", "joins", "ttl"),
    [
        ("{}", True, True, None),
        ("from-response", True, True, "from-response"),
        ("30s", True, True, 30.0),
        ("{max: 1MiB}", True, True, None),
        ("{coalesce: true}", False, True, None),
        ("{coalesce: false, ttl: 1s}", True, False, 1.0),
    ],
)
def test_forms_of_the_config(written: str, stores: bool, joins: bool, ttl: object) -> None:
    found = load_string(config("http://a:1", cache=written)).require().routes[0].cache
    assert found is not None
    assert (found.stores, found.joins, found.ttl) == (stores, joins, ttl)


def test_cache_that_does_nothing_is_refused() -> None:
    (found,) = load_string(config("http://a:1", cache="{coalesce: false}")).errors
    assert "nothing is stored" in found.message


# Bounds


class Clock:
    now = 0.0


def test_memory_of_changes_is_bounded_and_forgets_towards_caution() -> None:
    clock = Clock()
    cache = Cache(Config(), clock)
    for number in range(2000):
        clock.now = number
        cache.forget([b"/%d" % number])
    assert cache.has_changed(b"/1999", 1999.0)
    assert not cache.has_changed(b"/1999", 1999.5)
    assert cache.has_changed(b"/never", 975.0)
    assert not cache.has_changed(b"/never", 976.0)


def test_memory_of_what_is_not_for_others_is_bounded_and_ends() -> None:
    clock = Clock()
    cache = Cache(Config(), clock)
    for names in (cache.apart, cache.by_client):
        for number in range(2000):
            names.add((b"%d" % number, b""))
        assert (b"0", b"") not in names
        assert (b"1999", b"") in names
    clock.now = 10.0
    assert (b"1999", b"") not in cache.apart


def test_first_to_look_leads_and_the_next_waits() -> None:
    cache = Cache(Config(), Clock())

    def visit() -> object:
        request = Request("GET", b"/", [], 1)
        found = cache.visit(request, [])
        assert found is not None
        return found.look()

    assert visit() is None
    assert isinstance(visit(), Flight)
    assert not isinstance(visit(), Found)


def test_answer_that_has_landed_is_not_joined() -> None:
    """A client that reads slowly has its answer for long; requests that come meanwhile are not of its flight."""
    cache = Cache(Config(coalesce=True), Clock())

    def visit() -> Visit:
        found = cache.visit(Request("GET", b"/", [], 1), [])
        assert found is not None
        return found

    first, second = visit(), visit()
    assert first.look() is None
    flight = second.look()
    assert isinstance(flight, Flight)
    assert first.hear(ResponseHead(200, []), Said(200, [], date=DATE), 0.0) is None
    assert first.wants_body()
    first.take(b"ok")
    assert flight.answer is not None
    third = visit()
    assert third.look() is None
    first.withdraw()
    assert isinstance(visit().look(), Flight)
    third.withdraw()
    assert cache.flights == {}
