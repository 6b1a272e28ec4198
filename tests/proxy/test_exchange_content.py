"""Answers that say themselves that they failed: who goes by it, and that all the others pass on as they were."""

from __future__ import annotations

import gzip

import pytest
import trio
import trio.testing

from ambassador.state.protocol import Report
from tests.proxy.harness import GET, Origin, Talk, a_plane, config, finished, until
from tests.proxy.stores import SharedStore

ERROR = b'{"status": "error"}'
RULE = "{json: status=error}"
RETRY = {"retry": f"{{attempts: 1, when: [{RULE}], backoff: 1ms}}"}
BREAKER = {"retry": "off", "breaker": f"{{failures: [5xx, {RULE}]}}"}


def answer(body: bytes, *fields: bytes) -> bytes:
    lines = b"".join(b"%b\r\n" % field for field in fields)
    return b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (lines, len(body), body)


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


FAILED = answer(ERROR)
FINE = answer(b'{"status": "fine"}')


async def serves(talk: Talk, *answers: bytes) -> None:
    """Answer so many requests of one connection."""
    for each in answers:
        await talk.head()
        await talk.send(each)


@pytest.mark.parametrize(
    ("rule", "failed"),
    [
        (RULE, FAILED),
        (RULE, chunked(b'{"sta', b'tus": "err', b'or"}')),
        (RULE, answer(gzip.compress(ERROR), b"content-encoding: gzip")),
        ("{header: x-status=error}", answer(b"", b"X-Status: error")),
        ('{body: "<(soap:)?Fault>"}', answer(b"<soap:Body><soap:Fault>", b"content-type: text/xml")),
    ],
)
async def test_failure_by_content_is_retried(origin: Origin, rule: str, failed: bytes) -> None:
    route = {"retry": f"{{attempts: 1, when: [{rule}], backoff: 1ms}}"}
    async with a_plane(config(origin.url, **route)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await serves(talk, failed, FINE)
        assert await client.answer() == (200, b'{"status": "fine"}')
        await finished(plane)
        assert plane.counts.attempts == ["content", "200"]
        assert plane.counts.retries == ["content"]
        client.close()
        talk.close()


@pytest.mark.parametrize("piece", [1, 7, 40])
async def test_answer_in_pieces_is_judged_whole(origin: Origin, piece: int) -> None:
    async with a_plane(config(origin.url, **RETRY)) as plane:
        client = await plane.connect()
        talk: Talk | None = None
        for failed in (FAILED, chunked(ERROR[:9], ERROR[9:])):
            await client.send(GET)
            talk = talk or await origin.accept()
            await talk.head()
            for at in range(0, len(failed), piece):
                await talk.send(failed[at : at + piece])
                await trio.testing.wait_all_tasks_blocked(0.001)
            await serves(talk, FINE)
            assert (await client.answer())[1] == b'{"status": "fine"}'
        client.close()
        assert talk is not None
        talk.close()


async def test_last_failure_is_passed_on_as_it_is(origin: Origin) -> None:
    async with a_plane(config(origin.url, **RETRY)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await serves(talk, FAILED, FAILED)
        assert await client.answer() == (200, ERROR)
        await finished(plane)
        assert plane.counts.attempts == ["content"] * 2
        assert plane.counts.settlements == [2]
        client.close()
        talk.close()


async def test_post_is_not_retried_for_its_answer(origin: Origin) -> None:
    async with a_plane(config(origin.url, **RETRY)) as plane:
        client = await plane.connect()
        await client.send(GET.replace(b"GET", b"POST"))
        talk = await origin.accept()
        await serves(talk, FAILED)
        assert await client.answer() == (200, ERROR)
        client.close()
        talk.close()


async def test_word_content_means_what_the_breaker_names(origin: Origin) -> None:
    route = {"retry": "{attempts: 1, when: [content], backoff: 1ms}", "breaker": f"{{failures: [{RULE}]}}"}
    shared = SharedStore(1)
    async with a_plane(config(origin.url, **route), scopes=shared.scopes_of(0)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await serves(talk, FAILED, FINE)
        assert await client.answer() == (200, b'{"status": "fine"}')
        client.close()
        talk.close()


async def test_breaker_goes_by_its_own_conditions(origin: Origin) -> None:
    shared = SharedStore(1)
    route = {**RETRY, "breaker": "{failures: [5xx, {header: x-s=bad}]}"}
    async with a_plane(config(origin.url, **route), scopes=shared.scopes_of(0)) as plane:
        shared.deliver()
        client = await plane.connect()
        talk = None
        for answers in ([FAILED, FAILED], [answer(b"", b"x-s: bad")]):
            await client.send(GET)
            talk = talk or await origin.accept()
            await serves(talk, *answers)
            await client.answer()
        await finished(plane)

        def reported() -> tuple[int, int]:
            shared.deliver()
            told = [each for each in shared.scopes[0].asked if isinstance(each, Report)]
            return sum(each.requests for each in told), sum(each.failures for each in told)

        await until(lambda: reported() == (3, 1))
        client.close()
        assert talk is not None
        talk.close()


async def test_endpoint_learns_of_it(origin: Origin) -> None:
    async with a_plane(config(origin.url, origin.url.replace("127.0.0.1", "127.0.0.2"), **BREAKER)) as plane:
        client = await plane.connect()
        for endpoint in plane.endpoints:
            endpoint.weight = 1
        plane.endpoints[1].ejected_until = 1e12
        next(iter(plane.service.table.upstreams.values())).refresh()
        await client.send(GET)
        talk = await origin.accept()
        await serves(talk, FAILED)
        assert await client.answer() == (200, ERROR)
        await finished(plane)
        assert [endpoint.failures for endpoint in plane.endpoints] == [1, 0]
        client.close()
        talk.close()


async def test_fallback_is_for_it(origin: Origin) -> None:
    route = {**BREAKER, "fallback": "{respond: {status: 203, body: instead}}"}
    async with a_plane(config(origin.url, **route)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await serves(talk, FAILED)
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 203")
        assert b"received-status=200; fallback=respond" in head
        await client.exactly(7)
        await finished(plane)
        assert plane.counts.attempts == ["content"]
        client.close()
        talk.close()


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 200_000, 3_000_000])
@pytest.mark.parametrize("in_chunks", [False, True])
async def test_long_answer_is_passed_on_whole(origin: Origin, size: int, in_chunks: bool) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with a_plane(config(origin.url, **BREAKER)) as plane:
        for _ in range(2):
            client = await plane.connect()
            await client.send(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))

            async def give() -> None:
                talk = await origin.accept()
                await talk.head()
                await talk.send(chunked(body[:10], body[10:]) if in_chunks else answer(body))
                talk.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(give)
                _, _, rest = (await client.rest()).partition(b"\r\n\r\n")
            if in_chunks:
                assert rest.endswith(b"0\r\n\r\n")
                assert len(rest) > size
            else:
                assert rest == body
            client.close()


async def test_long_answer_is_judged_by_its_beginning(origin: Origin) -> None:
    beginning = b'{"status": "error", "text": "'
    async with a_plane(config(origin.url, **RETRY)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await talk.head()
        await talk.send(answer(beginning + b"x" * 500_000)[:70_000])
        second = await origin.takes(FINE)
        assert await client.answer() == (200, b'{"status": "fine"}')
        for each in (client, talk, second):
            each.close()


@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/grpc"])
async def test_stream_is_not_held_up(origin: Origin, kind: bytes) -> None:
    async with a_plane(config(origin.url, **BREAKER)) as plane:
        client = await plane.connect()
        await client.send(GET)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n\r\n" % kind
        talk = await origin.takes(head)
        assert (await client.head()).startswith(b"HTTP/1.1 200")
        client.close()
        talk.close()


async def test_late_body_is_judged_by_what_is_there(
    origin: Origin, mock_clock: trio.testing.MockClock
) -> None:
    async with a_plane(config(origin.url, **BREAKER, timeout="2s")) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await talk.head()
        whole = answer(b'{"status": "error"}')
        await talk.send(whole[:-1])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not client.left
        mock_clock.jump(3)
        assert (await client.head()).startswith(b"HTTP/1.1 200")
        await talk.send(whole[-1:])
        assert await client.exactly(len(ERROR)) == ERROR
        await finished(plane)
        assert plane.counts.attempts == ["content"]
        client.close()
        talk.close()


async def test_answer_that_breaks_off_while_it_is_looked_at_is_a_reset(origin: Origin) -> None:
    route = {"retry": f"{{attempts: 1, when: [reset, {RULE}], backoff: 1ms}}"}
    async with a_plane(config(origin.url, **route)) as plane:
        client = await plane.connect()
        for broken in (FAILED, chunked(ERROR)):
            await client.send(GET)
            for whole in (broken[:-1], broken):
                talk = await origin.takes(whole[:-3])
                talk.close()
            status, _ = await client.answer()
            assert status == 502
        await finished(plane)
        assert plane.counts.attempts == ["reset"] * 4
        client.close()


async def test_client_that_leaves_while_its_answer_is_looked_at(origin: Origin) -> None:
    async with a_plane(config(origin.url, **BREAKER)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes(FAILED[:-1])
        await until(lambda: plane.endpoint.inflight)
        await trio.testing.wait_all_tasks_blocked(0.01)
        client.reset()
        assert await talk.is_cut()
        await finished(plane)
        assert plane.counts.settlements == [4]
        talk.close()


async def test_early_answer_is_looked_at_while_the_body_goes_up(origin: Origin) -> None:
    async with a_plane(config(origin.url, **BREAKER)) as plane:
        client = await plane.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabcde")
        talk = await origin.accept()
        await talk.head()
        assert await talk.exactly(5) == b"abcde"
        await talk.send(FAILED[:-1])
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send(b"fghij")
        assert await talk.exactly(5) == b"fghij"
        await talk.send(FAILED[-1:])
        assert await client.answer() == (200, ERROR)
        await finished(plane)
        assert plane.counts.attempts == ["content"]
        client.close()
        talk.close()


async def test_cancellation_while_an_answer_is_looked_at_leaves_nothing(origin: Origin) -> None:
    async with a_plane(config(origin.url, **BREAKER)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes(FAILED[:-1])
        await trio.testing.wait_all_tasks_blocked(0.01)
        plane.clients.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            assert await talk.is_cut()
        client.close()
        talk.close()
