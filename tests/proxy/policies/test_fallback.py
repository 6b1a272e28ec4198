"""Fallbacks: which failures they are for, what is tried in which order, and what the client is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ambassador.config.load import load_string
from ambassador.errors import (
    BreakerOpen,
    ConnectFailed,
    NoEndpoint,
    Overloaded,
    ProxyError,
    Unauthenticated,
    UpstreamProtocol,
    UpstreamReset,
    UpstreamTimeout,
)
from ambassador.messages import Request
from ambassador.proxy.credentials import Credential
from ambassador.proxy.policies.fallback import FAILED, Fallback
from tests.proxy.harness import GET, Origin, Plane, Talk, a_plane, config, finished, until, unused_port

ELSEWHERE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother"
POST = b"POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nabcd"


def failed(status: int) -> bytes:
    return b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status


# Which failures


def a_request(method: str, *, keyed: bool = False) -> Request:
    request = Request(method, b"/", [], 1)
    request.special = {b"idempotency-key": b"k"} if keyed else {}
    return request


@pytest.mark.parametrize("failure", [ConnectFailed(), NoEndpoint(), BreakerOpen(), Overloaded()])
def test_what_was_not_seen_goes_elsewhere_whatever_the_method(failure: ProxyError) -> None:
    assert Fallback().may_send(a_request("POST"), failure)


@pytest.mark.parametrize("failure", [UpstreamReset(), UpstreamTimeout(), UpstreamProtocol(), None])
def test_what_may_have_been_acted_on_goes_elsewhere_only_if_that_does_no_harm(
    failure: ProxyError | None,
) -> None:
    assert not Fallback().may_send(a_request("POST"), failure)
    assert Fallback().may_send(a_request("PUT"), failure)
    assert Fallback().may_send(a_request("POST", keyed=True), failure)
    assert Fallback(all_methods=True).may_send(a_request("POST"), failure)


@given(st.frozensets(st.integers(200, 599)))
def test_client_errors_are_never_failures_of_the_upstream(retried: frozenset[int]) -> None:
    statuses = Fallback(retried=retried).statuses
    assert statuses >= FAILED
    assert min(statuses) >= 500
    assert statuses - FAILED <= retried


# On the way of a request


@pytest.fixture
def other() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


DEAD = f"http://127.0.0.1:{unused_port()}"
FIXED = "respond: {status: 200, body: sorry}"


@asynccontextmanager
async def asking(plane: Plane, request: bytes = GET) -> AsyncIterator[Talk]:
    client = await plane.connect()
    await client.send(request)
    yield client
    await finished(plane)
    client.close()


async def told(client: Talk, size: int) -> tuple[int, bytes, bytes]:
    """Status, body of a size, and `proxy-status`."""
    head = await client.head()
    status = [
        line.partition(b": ")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"proxy-status")
    ]
    return int(head[9:12]), await client.exactly(size), b"".join(status)


@pytest.mark.parametrize("request_", [GET, POST])
async def test_other_upstream_answers_when_the_first_cannot_be_reached(
    other: Origin, request_: bytes
) -> None:
    async with (
        a_plane(config(DEAD, fallback=f"{{to: '{other.url}'}}")) as plane,
        asking(plane, request_) as client,
    ):
        talk = await other.accept()
        head = await talk.head()
        assert b"x-ambassador-attempt: 3" in head
        assert request_ is GET or await talk.exactly(4) == b"abcd"
        await talk.send(ELSEWHERE)
        assert await told(client, 5) == (
            200, b"other", b'test; error=connection_refused; details="connect_failed"; attempts=3; fallback=to'
        )  # fmt: skip
        assert plane.counts.attempts == ["connect", "connect", "200"]
        talk.close()


@pytest.mark.parametrize("status", sorted(FAILED))
async def test_other_upstream_answers_instead_of_a_failed_answer(
    origin: Origin, other: Origin, status: int
) -> None:
    async with a_plane(config(origin.url, fallback=f"{{to: '{other.url}'}}")) as plane:
        for _ in range(2):  # the second by the short way
            async with asking(plane) as client:
                talk = await origin.takes(failed(status))
                away = await other.takes(ELSEWHERE)
                note = b"test; received-status=%d; attempts=2; fallback=to" % status
                assert await told(client, 5) == (200, b"other", note)
                talk.close()
                away.close()
        assert plane.counts.attempts == [str(status), "200"] * 2


@pytest.mark.parametrize("status", [200, 404, 429, 501])
async def test_answer_that_is_no_failure_is_passed_on(origin: Origin, status: int) -> None:
    async with a_plane(config(origin.url, fallback=f"{{{FIXED}}}")) as plane, asking(plane) as client:
        talk = await origin.takes(failed(status))
        assert await told(client, 2) == (status, b"no", b"")
        talk.close()


async def test_post_that_may_have_been_acted_on_is_not_sent_elsewhere(origin: Origin, other: Origin) -> None:
    async with (
        a_plane(config(origin.url, fallback=f"{{to: '{other.url}'}}")) as plane,
        asking(plane, POST) as client,
    ):
        talk = await origin.accept()
        await talk.head()
        await talk.exactly(4)
        await talk.send(failed(503))
        assert await told(client, 2) == (503, b"no", b"")
        talk.close()


async def test_attempt_elsewhere_is_the_only_one(origin: Origin, other: Origin) -> None:
    text = config(
        origin.url, fallback=f"{{to: '{other.url}'}}", retry="{attempts: 1, when: [503], backoff: 1ms}"
    )
    async with a_plane(text) as plane, asking(plane) as client:
        talk = await origin.takes(failed(503))
        await talk.head()
        await talk.send(failed(503))
        away = await other.takes(failed(503))
        note = b"test; received-status=503; attempts=3; fallback=to"
        assert await told(client, 2) == (503, b"no", note)
        assert plane.counts.retries == ["503"]
        talk.close()
        away.close()


@pytest.mark.parametrize("answer", [failed(503), b"", b"SSH\r\n\r\n"])
async def test_fixed_answer_comes_when_the_other_upstream_fails_too(
    origin: Origin, other: Origin, answer: bytes
) -> None:
    text = config(origin.url, fallback=f"{{to: '{other.url}', {FIXED}}}")
    async with a_plane(text) as plane, asking(plane) as client:
        talk = await origin.takes(failed(502))
        away = await other.takes(answer)
        away.close()
        note = b"test; received-status=502; attempts=2; fallback=respond"
        assert await told(client, 5) == (200, b"sorry", note)
        assert plane.counts.attempts[0] == "502"
        assert len(plane.counts.attempts) == 2
        talk.close()


async def test_failure_elsewhere_is_told_when_nothing_else_is_left(origin: Origin) -> None:
    async with a_plane(config(origin.url, fallback=f"{{to: '{DEAD}'}}")) as plane, asking(plane) as client:
        talk = await origin.takes(failed(503))
        status, body = await client.answer()
        assert (status, b'"connect_failed"' in body) == (503, True)
        assert plane.counts.attempts == ["503", "connect"]
        talk.close()


async def test_fixed_answer_has_the_place_of_an_open_breaker(origin: Origin) -> None:
    text = config(origin.url, breaker="{consecutive: 1}", fallback=f"{{{FIXED}}}", retry="off")
    async with a_plane(text) as plane:
        async with asking(plane) as client:
            talk = await origin.accept()
            talk.close()
            assert (await told(client, 5))[:2] == (200, b"sorry")
        async with asking(plane) as client:
            assert await told(client, 5) == (
                200, b"sorry", b'test; error=destination_unavailable; details="breaker_open"; fallback=respond'
            )  # fmt: skip


async def test_timeout_leaves_the_fixed_answer_and_no_time_for_another_attempt(
    mock_clock: trio.testing.MockClock, origin: Origin, other: Origin
) -> None:
    text = config(origin.url, timeout="2s", fallback=f"{{to: '{other.url}', {FIXED}}}")
    async with a_plane(text) as plane, asking(plane) as client:
        talk = await origin.accept()
        await talk.head()
        mock_clock.jump(2.1)
        assert (await told(client, 5))[:2] == (200, b"sorry")
        assert plane.counts.attempts == ["timeout"]
        talk.close()


async def test_part_of_the_timeout_is_left_for_the_other_upstream(
    mock_clock: trio.testing.MockClock, origin: Origin, other: Origin
) -> None:
    text = config(origin.url, timeout="{per_try: 1s, total: 3s}", fallback=f"{{to: '{other.url}'}}")
    async with a_plane(text) as plane, asking(plane) as client:
        talk = await origin.accept()
        await talk.head()
        mock_clock.jump(1.1)
        away = await other.takes(ELSEWHERE)
        assert (await told(client, 5))[:2] == (200, b"other")
        talk.close()
        away.close()


async def test_callers_own_deadline_is_no_failure_of_the_upstream(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    request = b"GET / HTTP/1.1\r\nhost: a\r\ngrpc-timeout: 1S\r\n\r\n"
    async with (
        a_plane(config(origin.url, fallback=f"{{{FIXED}}}")) as plane,
        asking(plane, request) as client,
    ):
        talk = await origin.accept()
        await talk.head()
        mock_clock.jump(1.1)
        status, body = await client.answer()
        assert (status, b'"deadline_exceeded"' in body) == (504, True)
        talk.close()


async def test_answer_that_breaks_off_is_cut_and_not_mended(origin: Origin) -> None:
    async with a_plane(config(origin.url, fallback=f"{{{FIXED}}}")) as plane, asking(plane) as client:
        talk = await origin.takes(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await client.head()
        talk.close()
        assert await client.is_cut()


async def test_body_that_is_gone_is_not_sent_elsewhere(origin: Origin, other: Origin) -> None:
    request = b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"
    async with a_plane(config(origin.url, fallback=f"{{to: '{other.url}'}}")) as plane:
        async with asking(plane, request + b"x" * 100_000) as client:
            talk = await origin.accept()
            await talk.head()
            await talk.exactly(100_000)
            await talk.send(failed(503))
            assert await told(client, 2) == (503, b"no", b"")
            talk.close()


async def test_client_that_leaves_during_the_attempt_elsewhere_leaves_nothing_behind(
    origin: Origin, other: Origin
) -> None:
    async with a_plane(config(origin.url, fallback=f"{{to: '{other.url}'}}")) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes(failed(503))
        away = await other.accept()
        await away.head()
        client.reset()
        await until(lambda: plane.service.connections == 0)
        await finished(plane)
        talk.close()
        away.close()


async def test_cancelled_during_the_attempt_elsewhere_leaves_nothing_behind(
    origin: Origin, other: Origin
) -> None:
    async with a_plane(config(origin.url, fallback=f"{{to: '{other.url}'}}")) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes(failed(503))
        away = await other.accept()
        await away.head()
        plane.clients.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: plane.service.connections == 0)
            await finished(plane)
        talk.close()
        away.close()
        client.close()


# The last good answer


def good(*fields: bytes, body: bytes = b"good") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (lines, len(body), body)


def get(*fields: bytes, method: bytes = b"GET") -> bytes:
    return b"%b / HTTP/1.1\r\nhost: a\r\n%b\r\n" % (method, b"".join(field + b"\r\n" for field in fields))


STALE = "{stale: 10m}"


async def exchange(plane: Plane, talk: Talk, request: bytes, answer: bytes, size: int) -> bytes:
    """A request that goes up on a connection that is there: what its client sees, head and body."""
    async with asking(plane, request) as client:
        await talk.head()
        await talk.send(answer)
        return await client.head() + await client.exactly(size)


@asynccontextmanager
async def seen(
    origin: Origin, answer: bytes, request: bytes = GET, **route: str
) -> AsyncIterator[tuple[Plane, Talk]]:
    """A plane that has seen an answer, and its connection to the origin."""
    route = {"fallback": STALE, "retry": "off", "breaker": "{min_requests: 1000}", **route}
    async with a_plane(config(origin.url, **route)) as plane:
        async with asking(plane, request) as client:
            talk = await origin.takes(answer)
            await client.head()
        yield plane, talk
        talk.close()


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_last_good_answer_is_given_with_its_age(
    mock_clock: trio.testing.MockClock, origin: Origin, method: bytes
) -> None:
    async with seen(origin, good(b"cache-control: max-age=5", b"x: y", b"age: 3")) as (plane, talk):
        mock_clock.jump(20)
        body = b"" if method == b"HEAD" else b"good"
        answer = await exchange(plane, talk, get(method=method), failed(503), len(body))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n" + body)
        assert b"\r\nage: 23\r\n" in answer
        assert b"\r\nproxy-status: test; received-status=503; fallback=stale\r\n" in answer
        assert b"\r\nx: y\r\n" in answer


async def test_last_good_answer_is_the_last_one_and_not_older_than_it_may_be(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with seen(origin, good(), fallback="{stale: 25s}") as (plane, talk):
        await exchange(plane, talk, GET, good(body=b"better"), 6)
        await exchange(plane, talk, GET, failed(404), 2)
        mock_clock.jump(24)
        assert (await exchange(plane, talk, GET, failed(500), 6)).endswith(b"better")
        mock_clock.jump(2)
        assert b" 500 " in await exchange(plane, talk, GET, failed(500), 2)


@pytest.mark.parametrize(
    "field",
    [
        b"cache-control: no-store", b"cache-control: private", b"cache-control: max-age=1, must-revalidate",
        b"cache-control: s-maxage=1", b"cache-control: no-cache", b"set-cookie: a=b", b"vary: *",
    ],
)  # fmt: skip
async def test_answer_that_forbids_it_is_no_last_good_one(origin: Origin, field: bytes) -> None:
    async with seen(origin, good(field)) as (plane, talk):
        assert b" 503 " in await exchange(plane, talk, GET, failed(503), 2)


@pytest.mark.parametrize(
    "field", [b"authorization: Bearer 2", b"cookie: a=2", b"x-api-key: 2", b"x-host: evil"]
)
async def test_last_good_answer_never_crosses_credentials(origin: Origin, field: bytes) -> None:
    own = get(field.replace(b"2", b"1"))
    async with seen(origin, good(), own) as (plane, talk):
        assert b" 503 " in await exchange(plane, talk, GET, failed(503), 2)
        if own != get(field):
            assert b" 503 " in await exchange(plane, talk, get(field), failed(503), 2)
        assert b" 200 " in await exchange(plane, talk, own, failed(503), 4)


async def test_last_good_answer_is_selected_by_vary(origin: Origin) -> None:
    async with seen(origin, good(b"vary: accept"), get(b"accept: a")) as (plane, talk):
        assert b" 503 " in await exchange(plane, talk, get(b"accept: b"), failed(503), 2)
        assert b" 200 " in await exchange(plane, talk, get(b"accept: a"), failed(503), 4)


async def test_posts_and_ranges_have_no_last_good_answer(origin: Origin) -> None:
    async with seen(origin, good()) as (plane, talk):
        assert b" 503 " in await exchange(
            plane, talk, get(b"content-length: 0", method=b"POST"), failed(503), 2
        )
        assert b" 503 " in await exchange(plane, talk, get(b"range: bytes=0-1"), failed(503), 2)


async def test_fixed_answer_comes_where_there_is_no_last_good_one(origin: Origin) -> None:
    async with seen(origin, good(), fallback=f"{{stale: 1m, {FIXED}}}") as (plane, talk):
        assert (await exchange(plane, talk, GET, failed(503), 4)).endswith(b"good")
        answer = await exchange(plane, talk, get(b"cookie: a=b"), failed(503), 5)
        assert answer.endswith(b"sorry")
        assert b"fallback=respond" in answer


async def test_last_good_answer_comes_after_the_other_upstream(origin: Origin, other: Origin) -> None:
    async with seen(origin, good(), fallback=f"{{to: '{other.url}', stale: 1m}}") as (plane, talk):
        async with asking(plane) as client:
            await talk.head()
            await talk.send(failed(503))
            away = await other.takes(failed(503))
            assert await told(client, 4) == (
                200,
                b"good",
                b"test; received-status=503; attempts=2; fallback=stale",
            )
            away.close()


async def test_what_the_cache_has_validated_since_is_the_last_good_answer(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    answer = good(b"cache-control: max-age=5", b'etag: "1"')
    async with seen(origin, answer, cache="from-response", fallback="{stale: 25s}") as (plane, talk):
        mock_clock.jump(20)
        renewed = b"HTTP/1.1 304 Not Modified\r\ncache-control: max-age=5\r\n\r\n"
        await exchange(plane, talk, GET, renewed, 4)
        mock_clock.jump(20)
        assert b"\r\nage: 20\r\n" in await exchange(plane, talk, GET, failed(503), 4)


async def test_last_good_answer_has_the_place_of_a_timeout(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with seen(origin, good(), timeout="2s") as (plane, talk), asking(plane) as client:
        await talk.head()
        mock_clock.jump(2.1)
        status, body, note = await told(client, 4)
        assert (status, body) == (200, b"good")
        assert note == b'test; error=http_response_timeout; details="upstream_timeout"; fallback=stale'


# In the config

FILE = "version: 1\nlisten: 127.0.0.1:80\nupstreams: {u: {endpoints: ['http://a:1']}}\nroutes:\n  - {name: r, %s}\n"


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ("to: u, fallback: {}", "needs 'to', 'stale' or 'respond'"),
        ("to: u, fallback: {to: u}", "is 'u', where the requests go already"),
        ("to: u, fallback: {to: w}", "there is no upstream 'w'"),
        ("respond: 200, fallback: {respond: 200}", "'fallback' has no effect with 'respond'"),
        ("to: u, fallback: {respond: {headers: {a: '{param.id}'}}}", "has no parameter 'id'"),
    ],
)
def test_fallback_that_cannot_be_is_refused(route: str, problem: str) -> None:
    (found,) = load_string(FILE % route).errors
    assert problem in found.message


def test_urls_of_a_fallback_become_an_upstream() -> None:
    config = load_string(FILE % "to: u, fallback: {to: 'http://b:2'}").require()
    assert config.routes[0].fallback is not None
    assert config.routes[0].fallback.to == "r.fallback"
    assert [endpoint.url for endpoint in config.upstreams["r.fallback"].endpoints] == ["http://b:2"]


def test_upstream_of_a_fallback_is_used() -> None:
    text = (
        FILE.replace("}}\nroutes", "}, w: {endpoints: ['http://b:1']}}\nroutes")
        % "to: u, timeout: {per_try: 1s}, fallback: {to: w}"
    )
    assert load_string(text).problems == ()


class OfCaller(Credential):
    """Made of what the caller sends; `late`: that it is not good for it is only known after a while."""

    def __init__(self, *, late: bool) -> None:
        super().__init__("other", ["authorization"])
        self._late = late

    def in_hand(self, request: Request) -> bool:
        if not self._late:
            raise Unauthenticated("there is no token")
        return False

    async def fetched(self, request: Request) -> None:
        raise Unauthenticated("the token is not accepted")


@pytest.fixture(params=[False, True], ids=["at once", "late"])
def of_caller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OfCaller:
    credential = OfCaller(late=request.param)
    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: credential)
    return credential


def to_where_callers_must_be_known(first: str, other: str, more: str = "") -> str:
    """A config whose route goes to one upstream, and falls back on one that wants the caller's token."""
    return (
        "version: 1\nlisten: 127.0.0.1:80\n"
        f"upstreams: {{u: {{endpoints: ['{other}'], auth: {{bearer: 'env:HOME'}}}}}}\n"
        f"routes: [{{name: test, to: '{first}', retry: off, fallback: {{to: u{more}}}}}]"
    )


@pytest.mark.parametrize("failure", [503, None], ids=["answer", "error"])
async def test_fixed_answer_is_for_callers_that_the_other_upstream_does_not_know(
    origin: Origin, other: Origin, of_caller: OfCaller, failure: int | None
) -> None:
    text = to_where_callers_must_be_known(origin.url if failure else DEAD, other.url, f", {FIXED}")
    async with a_plane(text) as plane, asking(plane) as client:
        talk = await origin.takes(failed(failure)) if failure else None
        assert (await told(client, 5))[:2] == (200, b"sorry")
        if talk is not None:
            talk.close()


async def test_failure_stays_one_for_callers_that_the_other_upstream_does_not_know(
    other: Origin, of_caller: OfCaller
) -> None:
    async with a_plane(to_where_callers_must_be_known(DEAD, other.url)) as plane, asking(plane) as client:
        status, body = await client.answer()
        assert (status, b'"connect_failed"' in body) == (503, True)


async def test_failed_answer_is_passed_on_to_callers_without_a_token_for_the_other_upstream(
    origin: Origin, other: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: OfCaller(late=False))
    text = to_where_callers_must_be_known(origin.url, other.url)
    async with a_plane(text) as plane, asking(plane) as client:
        talk = await origin.takes(failed(503))
        assert (await told(client, 2))[:2] == (503, b"no")
        talk.close()
