"""The bodies of an exchange: what arrives of them and how it is framed, and what ends them before their time.

`a_plane` looks at the end of each test that no connection, slot in a queue or count is left.
"""

from __future__ import annotations

from math import inf

import pytest
import trio
import trio.testing

from ambassador.proxy.lane import WRITE, Link, Strand
from ambassador.proxy.listener import ListenerLimits
from ambassador.proxy.splice import MIN_SPLICE, Splice
from tests.proxy.harness import GET, OK, Origin, Plane, Talk, a_plane, config, until

POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
BODY = bytes(range(256)) * 4096
"""1 MiB: past the parsers, and large enough for a pipe."""


async def at_rest(plane: Plane) -> None:
    await until(lambda: plane.service.inflight == 0)


async def pass_time(clock: trio.testing.MockClock, seconds: float) -> None:
    """While everybody waits."""
    await trio.testing.wait_all_tasks_blocked(0.005)
    clock.jump(seconds)


def waits_for_a_client(plane: Plane) -> bool:
    """Whether something is to be written to one, who does not take it now."""
    return any(client.link.interest & WRITE for client in plane.listener._clients)


async def end_of(talk: Talk) -> bytes:
    """What comes before the end of a connection, by FIN or reset."""
    data = talk.left
    try:
        while more := await talk.some():
            data += more
    except trio.BrokenResourceError:
        pass
    return data


async def gets(talk: Talk, data: bytes) -> None:
    assert await talk.exactly(len(data)) == data


# Up


@pytest.mark.parametrize("size", [1, 65536, 65537, len(BODY)])
@pytest.mark.parametrize("first", [0, 1, 65536])
async def test_body_of_known_length_arrives_whole(origin: Origin, size: int, first: int) -> None:
    body = BODY[:size]
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        upstream = None
        for _ in range(2):
            await client.send(POST % size + body[:first])
            if upstream is None:
                upstream = await origin.accept()
            assert b"content-length: %d\r\n" % size in await upstream.head()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, body[first:])
                assert await upstream.exactly(size) == body
            await upstream.send(OK)
            assert await client.answer() == (200, b"ok")
        assert upstream is not None
        client.close()
        upstream.close()


async def test_body_of_unknown_length_goes_up_in_chunks_with_its_clean_trailers(origin: Origin) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(CHUNKED)
        upstream = await origin.accept()
        assert b"transfer-encoding: chunked\r\n" in await upstream.head()
        for piece in (b"a", b"bc"):
            await client.send(b"%x;x=y\r\n%b\r\n" % (len(piece), piece))
            await gets(upstream, b"%x\r\n%b\r\n" % (len(piece), piece))
        await client.send(b"0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n")
        await gets(upstream, b"0\r\nX-Sum: 1\r\n\r\n")
        await upstream.send(OK)
        assert await client.answer() == (200, b"ok")
        await at_rest(plane)
        assert plane.endpoint.pool.idle_count == 1
        client.close()
        upstream.close()


async def test_trailers_do_not_bring_back_what_a_route_or_clients_took_out(origin: Origin) -> None:
    changes = "{request: {set: {x-role: reader, x-client: '{client}'}, remove: [x-debug]}, response: {remove: [x-in]}}"
    text = config(origin.url, headers=changes) + (
        "\nclients: {a: {api_key: {header: x-token, keys: [env:NOBODY]}, forward: true},"
        " b: {jwt: {issuer: i, audience: j, jwks: 'https://id.test/', header: x-jwt}}}"
    )
    async with a_plane(text) as plane:
        client = await plane.connect()
        barred = b"X-Role: admin\r\nX_Client: a\r\nx-debug: 1\r\nX-Token: t\r\nx_jwt: t\r\n"
        await client.send(CHUNKED + b"1\r\na\r\n0\r\nX-Sum: 1\r\n" + barred + b"\r\n")
        upstream = await origin.accept()
        await upstream.head()
        await gets(upstream, b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n")
        await upstream.send(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nX-In: a\r\nX-Role: b\r\n\r\n"
        )
        await client.head()
        await gets(client, b"0\r\nX-Role: b\r\n\r\n")
        client.close()
        upstream.close()


async def test_small_body_is_sent_again_on_a_fresh_connection(origin: Origin) -> None:
    async with a_plane(config(origin.url, retry="{attempts: 0}")) as plane:
        client = await plane.connect()
        await client.send(GET)
        old = await origin.takes()
        await client.answer()
        await client.send(CHUNKED.replace(b"POST", b"PUT") + b"3\r\nabc\r\n")
        await old.head()
        await old.exactly(8)
        old.close()
        upstream = await origin.accept()
        assert b"PUT / " in await upstream.head()
        await client.send(b"2\r\nde\r\n0\r\n\r\n")
        await gets(upstream, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        await upstream.send(OK)
        assert await client.answer() == (200, b"ok")
        client.close()
        upstream.close()


async def test_body_beyond_the_buffer_is_not_sent_again(origin: Origin) -> None:
    async with a_plane(config(origin.url, retry="{attempts: 1, when: [connect], buffer: 4B}")) as plane:
        client = await plane.connect()
        await client.send(GET)
        old = await origin.takes()
        await client.answer()
        await client.send((POST % 10).replace(b"POST", b"PUT") + b"abcde")
        await old.head()
        await old.exactly(5)
        old.close()
        assert (await client.answer())[0] == 502
        client.close()


@pytest.mark.parametrize("small", [True, False])
async def test_answer_may_come_before_the_request_has_ended(origin: Origin, small: bool) -> None:
    size = 10 if small else len(BODY)
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(POST % size + b"ab")
        upstream = await origin.accept()
        await upstream.head()
        await upstream.exactly(2)
        await upstream.send(OK.replace(b"200 OK", b"429 Slow"))
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 429 ")
        await gets(client, b"ok")
        assert (b"connection: close" in head) is not small
        if small:
            await client.send(b"c" * 8 + GET)
            again = await origin.takes()  # the other connection carries half a request
            assert await client.answer() == (200, b"ok")
            again.close()
        else:
            assert await end_of(client) == b""
        await at_rest(plane)
        assert await end_of(upstream) == b""
        client.close()
        upstream.close()


@pytest.mark.parametrize("rule", ["{per_try: 1s, total: 3s}", "{first_byte: 1s, total: 3s}"])
async def test_clocks_of_an_attempt_run_from_the_last_byte_of_the_request(
    mock_clock: trio.testing.MockClock, origin: Origin, rule: str
) -> None:
    async with a_plane(config(origin.url, timeout=rule)) as plane:
        client = await plane.connect()
        await client.send(POST % 3 + b"a")
        upstream = await origin.accept()
        await upstream.head()
        await pass_time(mock_clock, 5.0)
        await client.send(b"bc")
        await upstream.exactly(3)
        await pass_time(mock_clock, 0.9)
        await upstream.send(OK)
        assert await client.answer() == (200, b"ok")
        await client.send(POST % 3 + b"a")
        await upstream.head()
        await pass_time(mock_clock, 5.0)
        await client.send(b"bc")
        await upstream.exactly(3)
        await pass_time(mock_clock, 1.1)
        assert (await client.answer())[0] == 504
        assert plane.counts.attempts == ["200", "timeout"]
        client.close()
        upstream.close()


@pytest.mark.parametrize("rule", ["", "{idle: 5s}", "{total_body: 5s}"])
async def test_client_that_sends_no_more_of_its_body_is_told(
    mock_clock: trio.testing.MockClock, origin: Origin, rule: str
) -> None:
    limits = ListenerLimits(body_timeout=30.0 if rule else 5.0)
    async with a_plane(config(origin.url, timeout=rule or "15s"), limits) as plane:
        client = await plane.connect()
        await client.send(POST % 10 + b"ab")
        upstream = await origin.accept()
        await upstream.head()
        await pass_time(mock_clock, 5.1)
        assert (await client.answer())[0] == 408
        await end_of(client)
        assert plane.counts.attempts == []
        client.close()
        upstream.close()


async def test_callers_deadline_holds_for_its_upload(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send((POST % 10).replace(b"\r\n\r\n", b"\r\ngrpc-timeout: 2S\r\n\r\n") + b"ab")
        upstream = await origin.accept()
        await upstream.head()
        await pass_time(mock_clock, 2.1)
        status, body = await client.answer()
        assert (status, b'"deadline_exceeded"' in body) == (504, True)
        client.close()
        upstream.close()


# To the head of the answer


@pytest.mark.parametrize("request_", [GET, POST % 10 + b"abc"])
async def test_early_hints_are_passed_on_when_they_come(origin: Origin, request_: bytes) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        upstream = None
        for _ in range(2):
            await client.send(request_)
            upstream = upstream or await origin.accept()
            await upstream.head()
            await upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n" + hints)
            assert await client.head() == hints
            if request_ is not GET:
                await client.send(b"d" * 7)
                await upstream.exactly(10)
            await upstream.send(OK)
            assert await client.answer() == (200, b"ok")
        assert upstream is not None
        client.close()
        upstream.close()


@pytest.mark.parametrize("on_idle", [False, True])
async def test_idle_says_nothing_of_the_wait_for_an_answer(
    mock_clock: trio.testing.MockClock, origin: Origin, on_idle: bool
) -> None:
    async with a_plane(config(origin.url, timeout="{total: 60s, idle: 2s}")) as plane:
        client = await plane.connect()
        upstream = None
        for _ in range(1 + on_idle):
            await client.send(GET)
            upstream = upstream or await origin.accept()
            await upstream.head()
            await pass_time(mock_clock, 50.0)
            await upstream.send(OK)
            assert await client.answer() == (200, b"ok")
        assert upstream is not None
        client.close()
        upstream.close()


@pytest.mark.parametrize("on_idle", [False, True])
async def test_total_body_holds_before_the_answer_begins(
    mock_clock: trio.testing.MockClock, origin: Origin, on_idle: bool
) -> None:
    async with a_plane(config(origin.url, timeout="{total: 60s, total_body: 2s}")) as plane:
        client = await plane.connect()
        if on_idle:
            await client.send(GET)
            upstream = await origin.takes()
            await client.answer()
        await client.send(GET)
        if not on_idle:
            upstream = await origin.accept()
        await upstream.head()
        await pass_time(mock_clock, 2.1)
        assert (await client.answer())[0] == 504
        client.close()
        upstream.close()


# Down


@pytest.mark.parametrize("size", [0, 1, 65536, 131072, len(BODY)])
async def test_answer_of_known_length_arrives_whole(origin: Origin, size: int) -> None:
    body = BODY[:size]
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        upstream = None
        for cut in (0, 1, size // 2):
            await client.send(GET)
            upstream = upstream or await origin.accept()
            await upstream.head()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(upstream.send, SIZED % size + body[:cut])
                await client.head()
                nursery.start_soon(upstream.send, body[cut:])
                assert await client.exactly(size) == body
        await at_rest(plane)
        assert upstream is not None
        assert plane.endpoint.pool.idle_count == 1
        assert len(plane.service.splices._idle) == (size >= MIN_SPLICE)  # the pipe was given back
        plane.service.splices.close()
        client.close()
        upstream.close()


async def test_answer_of_unknown_length_is_chunked(origin: Origin) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(GET)
        upstream = await origin.takes(b"HTTP/1.1 200 OK\r\n\r\nab")
        assert b"transfer-encoding: chunked" in await client.head()
        await gets(client, b"2\r\nab\r\n")
        await upstream.send(b"c")
        await gets(client, b"1\r\nc\r\n")
        upstream.close()
        await gets(client, b"0\r\n\r\n")
        client.close()


async def test_trailers_come_down_clean(origin: Origin) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(GET)
        upstream = await origin.takes(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-T: 1\r\nHost: evil\r\n\r\n"
        )
        await client.head()
        await gets(client, b"2\r\nab\r\n0\r\nX-T: 1\r\n\r\n")
        client.close()
        upstream.close()


async def test_answer_of_unknown_length_ends_with_the_connection_for_http_1_0(origin: Origin) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(b"GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n")
        upstream = await origin.takes(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
        )
        answer = await client.rest()
        assert b"chunked" not in answer
        assert answer.endswith(b"\r\n\r\nab")
        client.close()
        upstream.close()


@pytest.mark.parametrize(
    "answer",
    [
        SIZED % len(BODY) + BODY[:100],
        SIZED % 10 + b"abc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
    ],
)
async def test_answer_that_ends_early_never_looks_complete(origin: Origin, answer: bytes) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(GET)
        upstream = await origin.takes(answer)
        await client.head()
        upstream.close()
        assert await client.is_cut()
        await at_rest(plane)
        assert plane.counts.attempts == ["reset"]
        client.close()


async def test_answer_that_stops_is_cut(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    async with a_plane(config(origin.url, timeout="{idle: 5s}")) as plane:
        client = await plane.connect()
        await client.send(GET)
        upstream = await origin.takes(SIZED % 10 + b"abc")
        await client.head()
        await pass_time(mock_clock, 5.1)
        assert await client.is_cut()
        await at_rest(plane)
        assert plane.counts.attempts == ["timeout"]
        client.close()
        upstream.close()


@pytest.mark.parametrize("rule", ["", "{idle: 5s}", "{total_body: 5s}"])
async def test_client_that_takes_nothing_is_cut(
    mock_clock: trio.testing.MockClock, origin: Origin, rule: str
) -> None:
    limits = ListenerLimits(body_timeout=60.0 if rule else 5.0)
    async with a_plane(config(origin.url, timeout=rule or "15s"), limits) as plane:
        client = await plane.connect()
        await client.send(GET)
        upstream = await origin.accept()
        await upstream.head()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_in_vain, upstream, SIZED % (32 << 20) + BODY * 32)
            await client.head()
            while plane.service.inflight:
                # The kernel may take its time until it has really taken all that it will.
                await until(lambda: waits_for_a_client(plane) or not plane.service.inflight)
                await pass_time(mock_clock, 5.1)
        assert plane.counts.attempts == ["cancelled"]
        assert plane.service.connections == 0
        client.close()
        upstream.close()


async def _send_in_vain(talk: Talk, data: bytes) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await talk.send(data)


async def test_long_body_leaves_others_their_turn(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    length = 16 << 20
    turns = [0]
    move, pause, wait = Splice.move, Strand.pause, Strand.wait

    def counted(splice: Splice, source: Link, sink: Link, left: int) -> int:
        moved = move(splice, source, sink, left)
        turns[-1] += moved
        return moved

    async def paused(strand: Strand) -> None:
        turns.append(0)
        await pause(strand)

    async def waited(strand: Strand, deadline: float = inf) -> None:
        turns.append(0)
        await wait(strand, deadline)

    monkeypatch.setattr(Splice, "move", counted)
    monkeypatch.setattr(Strand, "pause", paused)
    monkeypatch.setattr(Strand, "wait", waited)
    async with a_plane(config(origin.url)) as plane, trio.open_nursery() as nursery:
        client = await plane.connect()
        await client.send(GET)
        upstream = await origin.takes(SIZED % length)
        nursery.start_soon(upstream.send, bytes(length))
        await client.head()
        taken = len(client.left)
        while taken < length:
            taken += len(await client.some())
        client.close()
        upstream.close()
    assert sum(turns) > length // 2
    assert max(turns) < 2 * 131072
