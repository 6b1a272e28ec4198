"""Exchanges over TLS: what is cut never looks whole, deadlines hold, connections are used again, nothing is left."""

from __future__ import annotations

import datetime as dt
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from ambassador.observe.metrics import HANDSHAKE_RESULTS, HANDSHAKES, WORKER_SLOTS, Page
from ambassador.proxy.listener import ListenerLimits
from ambassador.proxy.service import Service
from tests.proxy.harness import GET, OK, Plane, Talk, a_plane, finished, until
from tests.proxy.secure import (
    CA,
    Holder,
    SecureOrigin,
    SecureTalk,
    client_context,
    secure_connect,
    server_context,
)

BODY = bytes(range(256)) * 4096


@pytest.fixture
def ca(tmp_path: Path) -> str:
    """The file of the authority that origins' certificates are from."""
    path = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def origin() -> Iterator[SecureOrigin]:
    origin = SecureOrigin()
    yield origin
    origin.close()


def config(ca: str, *urls: str, connections: str = "", **route: str) -> str:
    settings = "".join(f", {key}: {value}" for key, value in route.items())
    bounds = f", connections: {connections}" if connections else ""
    return (
        "version: 1\nlisten: 127.0.0.1:80\n"
        f"upstreams: {{u: {{endpoints: [{', '.join(urls)}], tls: {{ca: {ca}}}{bounds}}}}}\n"
        f"routes: [{{name: r, to: u{settings}}}]"
    )


@asynccontextmanager
async def secure_plane(
    text: str, limits: ListenerLimits | None = None, *, context: ssl.SSLContext | None = None
) -> AsyncIterator[Plane]:
    async with a_plane(text, limits, tls=Holder(context or server_context())) as plane:
        yield plane


async def asked(plane: Plane, origin: SecureOrigin, request: bytes = GET) -> tuple[SecureTalk, SecureTalk]:
    """A client whose request has arrived at the origin: both."""
    client = await secure_connect(plane)
    await client.send(request)
    up = await origin.accept()
    await up.head()
    return client, up


# Both sides


async def test_request_and_answer_pass_and_connections_are_used_again(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client = await secure_connect(plane)
        await client.send(GET)
        up = await origin.accept()
        head = await up.head()
        assert b"\r\nx-forwarded-proto: https\r\n" in head
        assert b"host: 127.0.0.1:%d\r\n" % origin.address[1] in head
        await up.send(OK)
        assert await client.answer() == (200, b"ok")
        for _ in range(3):
            await client.send(GET)
            await up.head()
            await up.send(OK)
            assert await client.answer() == (200, b"ok")
        assert plane.endpoint.pool.open == 1
        client.close()
        up.close()


async def test_requests_in_one_record_are_all_answered(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin, GET * 3)
        await up.send(OK)
        for _ in range(2):
            await up.head()
            await up.send(OK)
        for _ in range(3):
            assert await client.answer() == (200, b"ok")
        client.close()
        up.close()


async def test_requests_in_records_sent_at_once_are_all_answered(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client = await secure_connect(plane)
        up: SecureTalk | None = None
        for _ in range(2):  # the second time on the short way
            for _ in range(3):
                await client.send(GET)
            up = up or await origin.accept()
            for _ in range(3):
                await up.head()
                await up.send(OK)
            for _ in range(3):
                assert await client.answer() == (200, b"ok")
        assert up is not None
        client.close()
        up.close()


async def test_request_in_a_record_for_each_byte_is_answered(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client = await secure_connect(plane)
        for byte in GET:
            await client.send(bytes([byte]))
        up = await origin.takes()
        assert await client.answer() == (200, b"ok")
        client.close()
        up.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_megabyte_passes_both_ways(origin: SecureOrigin, ca: str, *, chunked: bool) -> None:
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(BODY)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY

    async def whole(talk: Talk) -> bytes:
        """The body, whatever its framing."""
        if not chunked:
            return await talk.exactly(len(BODY))
        got = b""
        while True:
            while b"\r\n" not in talk.left:
                talk.left += await talk.some()
            size, _, talk.left = talk.left.partition(b"\r\n")
            piece = await talk.exactly(int(size, 16) + 2)
            if not int(size, 16):
                return got
            got += piece[:-2]

    async with secure_plane(config(ca, origin.url)) as plane:
        client = await secure_connect(plane)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"PUT / HTTP/1.1\r\nhost: a\r\n%b\r\n\r\n%b" % (framing, body))
            up = await origin.accept()
            await up.head()
            assert await whole(up) == BODY
            nursery.start_soon(up.send, b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (framing, body))
            await client.head()
            assert await whole(client) == BODY
        await finished(plane)
        assert plane.endpoint.pool.idle_count == 1
        client.close()
        up.close()


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
    ],
)
async def test_answer_without_a_body_ends_with_its_head(
    origin: SecureOrigin, ca: str, method: str, answer: bytes
) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin, b"%b / HTTP/1.1\r\nhost: a\r\n\r\n" % method.encode())
        await up.send(answer)
        assert (await client.head()).startswith(answer[:12])
        await client.send(GET)
        await up.head()
        await up.send(OK)
        assert await client.answer() == (200, b"ok")
        client.close()
        up.close()


async def test_plain_client_of_a_secure_upstream_and_the_other_way_round(
    origin: SecureOrigin, ca: str
) -> None:
    async with a_plane(config(ca, origin.url)) as plane:
        plain = await plane.connect()
        up: SecureTalk | None = None
        for _ in range(2):
            await plain.send(GET)
            up = up or await origin.accept()
            assert b"\r\nx-forwarded-proto: http\r\n" in await up.head()
            await up.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY))
            assert await plain.answer() == (200, BODY)
        assert up is not None
        plain.close()
        up.close()


# What is cut


CUT = {
    "length": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart",
    "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n",
    "close": b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\npart",
}


@pytest.mark.parametrize("framing", CUT)
async def test_answer_that_is_cut_is_cut_for_the_client_too(
    origin: SecureOrigin, ca: str, framing: str
) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        await up.send(CUT[framing])
        assert (await client.head()).startswith(b"HTTP/1.1 200")
        while b"part" not in client.left:
            client.left += await client.some()
        up.cut()
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()
        await finished(plane)
        assert plane.counts.attempts == ["reset"]
        client.close()


async def test_answer_that_ends_with_the_connection_is_whole_after_a_goodbye(
    origin: SecureOrigin, ca: str
) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        await up.send(CUT["close"])
        await up.goodbye()
        await client.head()
        while not client.left.endswith(b"0\r\n\r\n"):
            client.left += await client.some()
        assert client.left == b"4\r\npart\r\n0\r\n\r\n"
        await finished(plane)
        assert plane.counts.attempts == ["200"]
        client.close()


async def test_goodbye_without_a_fin_ends_an_answer(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        ssl_object, outgoing = up.stream._ssl_object, up.stream._outgoing
        await up.send(CUT["close"][:-4])
        ssl_object.write(CUT["close"][-4:])
        with pytest.raises(ssl.SSLWantReadError):
            ssl_object.unwrap()
        await up.transport.send_all(outgoing.read())
        await client.head()
        while not client.left.endswith(b"0\r\n\r\n"):
            client.left += await client.some()
        await finished(plane)
        assert plane.counts.attempts == ["200"]
        client.close()
        up.close()


@pytest.mark.parametrize("is_cut", [True, False])
async def test_client_of_http_1_0_can_tell_a_cut_from_an_end(
    origin: SecureOrigin, ca: str, *, is_cut: bool
) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin, b"GET / HTTP/1.0\r\nhost: a\r\n\r\n")
        await up.send(CUT["close"])
        await client.head()
        if is_cut:
            up.cut()
            with pytest.raises(trio.BrokenResourceError):
                await client.rest()
        else:
            await up.goodbye()
            assert await client.rest() == b"part"
        client.close()


async def test_request_that_is_cut_cancels_its_attempt(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin, b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\npart")
        client.cut()
        await finished(plane)
        await until(lambda: plane.endpoint.pool.open == 0)
        up.close()


async def test_client_that_said_goodbye_after_its_request_is_answered(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        with pytest.raises((trio.TooSlowError, trio.BusyResourceError)):
            with trio.fail_after(0.05):
                await client.stream.unwrap()
        await up.send(OK)
        await finished(plane)
        assert plane.counts.attempts == ["200"]
        client.close()
        up.close()


# Connections that wait


async def test_tickets_that_come_late_do_not_cost_an_idle_connection(ca: str) -> None:
    context = server_context()
    context.num_tickets = 0
    origin = SecureOrigin(context)
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        await up.send(OK)
        await client.answer()
        assert plane.endpoint.pool.idle_count == 1
        client.close()
        up.close()
    origin.close()


@pytest.mark.parametrize("way", ["goodbye", "cut", "data"])
async def test_idle_connection_that_ends_or_speaks_is_dropped(
    origin: SecureOrigin, ca: str, way: str
) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        await up.send(OK)
        await client.answer()
        if way == "goodbye":
            await up.goodbye()
        elif way == "cut":
            up.cut()
        else:
            await up.send(OK)
        await until(lambda: plane.endpoint.pool.open == 0)
        await client.send(GET)
        again = await origin.takes()
        assert await client.answer() == (200, b"ok")
        client.close()
        up.close()
        again.close()


async def test_answer_with_another_behind_it_costs_the_connection(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        await up.send(OK)
        await client.answer()
        await client.send(GET)
        await up.head()
        await up.send(OK + OK)
        assert await client.answer() == (200, b"ok")
        await until(lambda: plane.endpoint.pool.open == 0)
        client.close()
        up.close()


async def test_connection_resumes_the_session_of_the_last(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        for resumed in (False, True):
            client, up = await asked(plane, origin)
            session = up.stream._ssl_object.session_reused
            assert session is resumed
            await up.send(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            await client.answer()
            await until(lambda: plane.endpoint.pool.open == 0)
            client.close()
            up.close()


# Handshakes with upstreams


async def refused(plane: Plane) -> bytes:
    """What a client is told."""
    client = await secure_connect(plane)
    await client.send(GET)
    head = await client.head()
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    body = await client.exactly(size)
    assert head.startswith(b"HTTP/1.1 503")
    client.close()
    await finished(plane)
    return head + body


async def serve_refused(origin: SecureOrigin) -> None:
    """Accept connections whose handshakes fail."""
    while True:
        try:
            talk = await origin.accept()
        except trio.BrokenResourceError:
            continue
        talk.close()


@pytest.mark.parametrize(
    ("context", "why"),
    [
        (lambda: server_context(ca=trustme.CA()), b"TLS: unable to get local issuer certificate"),
        (lambda: server_context("localhost"), b"TLS: the certificate is for another name"),
        (lambda: server_context("10.0.0.1"), b"TLS: the certificate is for another name"),
    ],
    ids=["authority", "name", "address"],
)
async def test_certificate_that_does_not_fit_is_refused_with_the_reason(
    ca: str, context: object, why: bytes
) -> None:
    assert callable(context)
    origin = SecureOrigin(context())
    async with secure_plane(config(ca, origin.url)) as plane:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_refused, origin)
            told = await refused(plane)
            nursery.cancel_scope.cancel()
        assert why in told
        assert b'"connect_failed"' in told
        assert b"tls_certificate_error" in told
        assert set(plane.counts.attempts) == {"connect"}
    origin.close()


async def test_certificate_of_the_past_is_refused_with_the_reason(ca: str) -> None:
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1", not_after=past).configure_cert(context)
    origin = SecureOrigin(context)
    async with secure_plane(config(ca, origin.url)) as plane:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_refused, origin)
            assert b"TLS: certificate has expired" in await refused(plane)
            nursery.cancel_scope.cancel()
    origin.close()


async def test_upstream_without_tls_is_told_of(ca: str) -> None:
    origin = SecureOrigin()

    async def answer_plainly() -> None:
        while True:
            talk = Talk(await origin._listener.accept())
            await talk.some()
            await talk.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            talk.close()

    async with secure_plane(config(ca, origin.url)) as plane:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_plainly)
            assert b"TLS: " in await refused(plane)
            nursery.cancel_scope.cancel()
    origin.close()


async def test_handshake_that_hangs_is_over_within_the_connect_timeout(
    ca: str, mock_clock: trio.testing.MockClock
) -> None:
    origin = SecureOrigin()
    text = config(ca, origin.url, timeout="{connect: 2s}", retry="off")
    async with secure_plane(text) as plane:
        client = await secure_connect(plane)
        await client.send(GET)
        silent = await origin._listener.accept()
        await until(lambda: plane.endpoint.pool.open == 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(2.1)
        status, body = await client.answer()
        assert status == 503
        assert b"within the connect timeout" in body
        await silent.aclose()
        client.close()
    origin.close()


async def test_client_that_leaves_during_the_handshake_ends_the_attempt(ca: str) -> None:
    origin = SecureOrigin()
    async with secure_plane(config(ca, origin.url)) as plane:
        client = await secure_connect(plane)
        await client.send(GET)
        silent = await origin._listener.accept()
        client.reset()
        await finished(plane)
        await until(lambda: plane.endpoint.pool.open == 0)
        await silent.aclose()
    origin.close()


@asynccontextmanager
async def a_second_attempt(
    origin: SecureOrigin, ca: str, mock_clock: trio.testing.MockClock
) -> AsyncIterator[tuple[Plane, SecureTalk, SecureTalk]]:
    """A plane whose second attempt is about to connect, its client, and the origin's side of the first attempt."""
    text = config(ca, origin.url, hedge="{after: 50ms, max: 100%}", retry="off")
    async with secure_plane(text) as plane:
        client, first = await asked(plane, origin)
        await first.send(OK)
        await client.answer()
        await client.send(GET)
        await first.head()
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(0.06)
        yield plane, client, first


async def test_attempt_beside_another_shakes_hands_without_waiting(
    origin: SecureOrigin, ca: str, mock_clock: trio.testing.MockClock
) -> None:
    async with a_second_attempt(origin, ca, mock_clock) as (plane, client, first):
        second = await origin.accept()
        await second.head()
        await second.send(OK)
        assert await client.answer() == (200, b"ok")
        await finished(plane)
        assert plane.counts.attempts[1:] == ["cancelled", "200"]
        client.close()
        first.close()
        second.close()


async def test_attempt_beside_another_is_dropped_where_its_handshake_fails(
    origin: SecureOrigin, ca: str, mock_clock: trio.testing.MockClock
) -> None:
    async with a_second_attempt(origin, ca, mock_clock) as (plane, client, first):
        second = await origin._listener.accept()
        await second.aclose()
        await until(lambda: "connect" in plane.counts.attempts)
        await first.send(OK)
        assert await client.answer() == (200, b"ok")
        await finished(plane)
        client.close()
        first.close()


# Handshakes with clients


async def test_client_that_speaks_plain_http_is_told_and_the_connection_closed(
    origin: SecureOrigin, ca: str
) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client = await plane.connect()
        await client.send(GET)
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert answer.endswith(b"\r\n\r\nThis port is for https; the request was http\n")
        client.close()


async def test_client_that_says_nothing_is_closed_in_time(
    origin: SecureOrigin, ca: str, mock_clock: trio.testing.MockClock
) -> None:
    async with secure_plane(config(ca, origin.url), ListenerLimits(header_timeout=3.0)) as plane:
        silent = await plane.connect()
        slow = await plane.connect()
        await slow.send(b"\x16\x03\x01")
        await until(lambda: plane.listener.connections == 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(2.9)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert plane.listener.connections == 2
        mock_clock.jump(0.2)
        assert await silent.rest() == b""
        assert await slow.rest() == b""
        await until(lambda: plane.listener.connections == 0)
        silent.close()
        slow.close()


async def test_clients_that_come_at_once_are_served_a_few_a_turn(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        service, asked_for = plane.service, list[bool]()
        may_shake_hands = Service.may_shake_hands

        def counted(service: Service) -> bool:
            asked_for.append(may_shake_hands(service))
            return asked_for[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Service, "may_shake_hands", counted)
            clients: list[SecureTalk] = []

            async def comes() -> None:
                clients.append(await secure_connect(plane))

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(comes)
        assert service.connections == len(clients) == 20
        assert asked_for.count(True) == 20
        for client in clients:
            client.close()


async def test_client_whose_turn_does_not_come_in_time_is_closed(
    origin: SecureOrigin, ca: str, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "may_shake_hands", lambda _: mock_clock.jump(1.0))
    async with secure_plane(config(ca, origin.url), ListenerLimits(header_timeout=3.0)) as plane:
        client = await plane.connect()
        await client.send(b"\x16\x03\x01")
        assert await client.is_cut()
        client.close()


async def test_handshakes_that_fail_are_told_of_but_not_each(
    origin: SecureOrigin, ca: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ambassador")
    async with secure_plane(config(ca, origin.url)) as plane:
        for _ in range(5):
            client = await plane.connect()
            await client.send(b"\x16\x03\x01\x00\x05hello")
            await client.rest()
            client.close()
        await until(lambda: plane.listener.connections == 0)
        assert len(caplog.records) == 1
        assert caplog.records[0].getMessage().startswith("a TLS handshake with the client 127.0.0.1 failed: ")


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\xff\xff" + bytes(65535),
        b"\x80\x2e\x01\x03\x01" + bytes(60),
        b"\x00" * 100,
        b"\x16\x03\x01\x00\x04\x01\x00\xff\xff",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x05hello",
    ],
    ids=["long record", "SSLv2", "zeros", "long hello", "alert", "data"],
)
async def test_junk_in_place_of_a_handshake_costs_its_own_connection_only(
    origin: SecureOrigin, ca: str, mock_clock: trio.testing.MockClock, junk: bytes
) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        other = await secure_connect(plane)
        client = await plane.connect()
        await client.send(junk)
        await client.stream.send_eof()
        await client.is_cut()
        client.close()
        await until(lambda: plane.listener.connections == 1)
        await other.send(GET)
        up = await origin.takes()
        assert await other.answer() == (200, b"ok")
        other.close()
        up.close()


async def test_connection_that_only_looks_is_not_told_of(
    origin: SecureOrigin, ca: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ambassador")
    async with secure_plane(config(ca, origin.url)) as plane:
        client = await plane.connect()
        await client.stream.send_eof()
        assert await client.rest() == b""
        client.close()
        assert caplog.records == []


async def test_client_without_the_certificate_that_is_required_is_refused(
    origin: SecureOrigin, ca: str
) -> None:
    context = server_context(client_ca=CA)
    async with secure_plane(config(ca, origin.url), context=context) as plane:
        client = await secure_connect(plane)  # of TLS 1.3 the client is done before the server has looked
        with pytest.raises(trio.BrokenResourceError) as raised:
            await client.some()
        assert "CERTIFICATE_REQUIRED" in repr(raised.value.__cause__)
        client.close()


async def test_upstream_that_wants_another_certificate_says_why(ca: str) -> None:
    origin = SecureOrigin(server_context(client_ca=CA))
    async with secure_plane(config(ca, origin.url, retry="off")) as plane:
        client = await secure_connect(plane)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_refused, origin)
            await client.send(GET)
            status, body = await client.answer()
            nursery.cancel_scope.cancel()
        assert status in (502, 503)
        assert b"certificate required" in body or status == 502  # the alert, or the reset that overtook it
        client.close()
    origin.close()


async def test_names_of_the_client_are_known_to_its_connection(origin: SecureOrigin, ca: str) -> None:
    context = server_context(client_ca=CA)
    certificate = CA.issue_cert("caller.internal")
    async with secure_plane(config(ca, origin.url), context=context) as plane:
        client = await secure_connect(plane, client_context(certificate=certificate))
        await client.send(GET)
        up = await origin.takes()
        await client.answer()
        (connection,) = plane.listener._clients
        assert connection.peer.names == (("DNS", "caller.internal"),)
        client.close()
        up.close()


async def test_connection_ends_with_the_certificate_of_its_client(origin: SecureOrigin, ca: str) -> None:
    certificate = client_context(certificate=CA.issue_cert("caller.internal"))
    async with secure_plane(config(ca, origin.url), context=server_context(client_ca=CA)) as plane:
        idle, busy = await secure_connect(plane, certificate), await secure_connect(plane, certificate)
        await busy.send(GET)
        up = await origin.accept()
        await up.head()
        await until(lambda: len(plane.listener._clients) == 2)
        await until(lambda: all(each.peer.validity for each in plane.listener._clients))
        await until(lambda: sum(each.idle for each in plane.listener._clients) == 1)
        for each in plane.listener._clients:
            each._expire()
        assert await idle.rest() == b""
        await up.send(OK)
        assert await busy.answer() == (200, b"ok")
        await busy.send(GET)
        assert await busy.rest() == b""
        for talk in (idle, busy, up):
            talk.close()


async def test_session_that_outlives_its_certificate_is_not_served(
    origin: SecureOrigin, ca: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = client_context(certificate=CA.issue_cert("caller.internal"))
    async with secure_plane(config(ca, origin.url), context=server_context(client_ca=CA)) as plane:
        monkeypatch.setattr(Service, "wall_s", lambda _: 1e11)
        client = await secure_connect(plane, certificate)
        await client.send(GET)
        assert await client.rest() == b""
        client.close()


async def test_connection_to_a_server_is_not_used_after_the_end_of_its_certificate(
    origin: SecureOrigin, ca: str
) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        await up.send(OK)
        assert await client.answer() == (200, b"ok")
        (connection,) = plane.endpoint.pool._idle
        connection.outlive()
        await client.send(GET)
        second = await origin.accept()
        await second.head()
        await second.send(OK)
        assert await client.answer() == (200, b"ok")
        for talk in (client, up, second):
            talk.close()


async def test_next_connection_gets_the_context_that_is_there_then(origin: SecureOrigin, ca: str) -> None:
    other = trustme.CA()
    holder = Holder(server_context())
    async with a_plane(config(ca, origin.url), tls=holder) as plane:
        first = await secure_connect(plane)
        holder.context = server_context(ca=other)
        second = await secure_connect(plane, client_context(other))
        talk: SecureTalk | None = None
        for client in (first, second):
            await client.send(GET)
            talk = talk or await origin.accept()
            await talk.head()
            await talk.send(OK)
            assert await client.answer() == (200, b"ok")
        assert talk is not None
        for each in (first, second, talk):
            each.close()


async def test_more_connections_than_allowed_are_closed_before_a_handshake(
    origin: SecureOrigin, ca: str
) -> None:
    async with secure_plane(config(ca, origin.url), ListenerLimits(connections=1)) as plane:
        first = await secure_connect(plane)
        second = await plane.connect()
        assert await second.rest() == b""
        first.close()
        second.close()


# The end


async def test_early_answer_is_seen_by_a_client_that_goes_on_writing(ca: str, origin: SecureOrigin) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client = await secure_connect(plane)
        await client.send(b"GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n" + b"x" * 50_000)
        data = b""
        while b"bad_request" not in data:
            data += await client.some()
        assert data.startswith(b"HTTP/1.1 400")
        client.close()


async def test_idle_connections_are_closed_with_a_goodbye(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        await up.send(OK)
        await client.answer()
        await until(lambda: all(each.idle for each in plane.listener._clients))
        plane.listener.close_idle()
        assert await client.some() == b""
        client.close()
        up.close()


async def test_idle_client_is_closed_with_a_goodbye_in_time(
    origin: SecureOrigin, ca: str, mock_clock: trio.testing.MockClock
) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        await up.send(OK)
        await client.answer()
        await until(lambda: all(each.idle for each in plane.listener._clients))
        mock_clock.jump(76.0)
        assert await client.some() == b""
        client.close()
        up.close()


STAGES = ("before", "handshake", "upstream's handshake", "head", "body", "answer's body", "idle")


@pytest.mark.parametrize("stage", STAGES)
async def test_cancellation_leaves_nothing_behind(origin: SecureOrigin, ca: str, stage: str) -> None:
    talks: list[Talk] = []
    async with secure_plane(config(ca, origin.url)) as plane:  # cancels its clients, and looks what is left
        if stage in ("before", "handshake"):
            talk = await plane.connect()
            talks.append(talk)
            if stage == "handshake":
                await talk.send(b"\x16\x03\x01\x02\x00")
            await until(lambda: plane.listener.connections == 1)
        else:
            client = await secure_connect(plane)
            talks.append(client)
            await client.send(
                b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\npart" if stage == "body" else GET
            )
            if stage == "upstream's handshake":
                talks.append(Talk(await origin._listener.accept()))
            else:
                up = await origin.accept()
                talks.append(up)
                await up.head()
                if stage == "answer's body":
                    await up.send(CUT["length"])
                    await client.head()
                elif stage == "idle":
                    await up.send(OK)
                    await client.answer()
        await trio.testing.wait_all_tasks_blocked(0.01)
    for each in talks:
        each.close()


@pytest.mark.parametrize("secure", [True, False])
async def test_answer_that_ends_with_the_connection_is_cut_where_the_worker_ends_first(
    origin: SecureOrigin, ca: str, *, secure: bool
) -> None:
    async with a_plane(config(ca, origin.url), tls=Holder(server_context()) if secure else None) as plane:
        client = await (secure_connect(plane) if secure else plane.connect())
        await client.send(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n")
        up = await origin.takes(CUT["close"])
        await client.head()
        plane.clients.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            assert await client.is_cut()
            client.close()
            up.close()


async def test_slow_client_holds_the_upstream_back_and_gets_all(origin: SecureOrigin, ca: str) -> None:
    async with secure_plane(config(ca, origin.url)) as plane:
        client, up = await asked(plane, origin)
        client.transport.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        body = BODY * 8
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                up.send, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            (connection,) = plane.listener._clients
            await until(lambda: connection.blocked is not None)
            assert await client.answer() == (200, body)
        client.close()
        up.close()


async def test_handshakes_are_counted_on_both_sides(origin: SecureOrigin, ca: str) -> None:
    page = Page.create(WORKER_SLOTS * 8)
    async with secure_plane(config(ca, origin.url, retry="off")) as plane:
        plane.service.metrics = page.worker()
        client, up = await asked(plane, origin)
        await up.send(OK)
        assert await client.answer() == (200, b"ok")
        up.close()  # the next request needs a connection of its own
        await until(lambda: plane.endpoint.pool.open == 0)
        await client.send(GET)
        second = await origin._listener.accept()
        await second.aclose()
        assert (await client.answer())[0] == 503
        client.close()
        plain = await plane.connect()
        await plain.send(GET)
        await plain.rest()
        plain.close()
        counted = list(page.slots[HANDSHAKES : HANDSHAKES + 2 * len(HANDSHAKE_RESULTS)])
    assert counted == [1, 0, 1, 1, 0, 1]
    page.close()
