from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from ambassador.control import http_client
from ambassador.control.http_client import CallFailed, Place, TooSlow, can_connect, get, get_status, post
from ambassador.proxy.egress import Config as EgressConfig
from ambassador.proxy.egress import Egress
from ambassador.proxy.upstream.passage import Passage
from ambassador.proxy.upstream.via import Config as Via
from tests.proxy.egress_proxy import LOGIN, EgressProxy, SocksProxy, running

Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve, path: Path | None = None) -> AsyncIterator[Place]:
    async with trio.open_nursery() as nursery:
        if path is None:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            place = Place("127.0.0.1", listeners[0].socket.getsockname()[1])
        else:
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            await sock.bind(str(path))
            sock.listen()
            listeners = [trio.SocketListener(sock)]
            place = Place(path=str(path))
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield place
        nursery.cancel_scope.cancel()


def answering(head: bytes, seen: list[bytes] | None = None) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        got = b""
        while b"\r\n\r\n" not in got:
            got += await stream.receive_some(4096)
        if seen is not None:
            seen.append(got)
        await stream.send_all(head)
        await stream.aclose()

    return serve


async def ask(place: Place, timeout_s: float = 20.0) -> int:
    return await get_status(place, "/up?deep=1", authority=b"a.test:81", agent=b"test", timeout_s=timeout_s)


async def test_get_status_sends_target_and_host_and_returns_the_status() -> None:
    seen: list[bytes] = []
    async with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n", seen)) as place:
        assert await ask(place) == 204
    assert seen[0].startswith(b"GET /up?deep=1 HTTP/1.1\r\n")
    assert b"host: a.test:81\r\n" in seen[0].lower()
    assert b"connection: close\r\n" in seen[0].lower()


async def test_get_status_does_not_wait_for_the_body() -> None:
    async with server(answering(b"HTTP/1.1 503 No\r\ncontent-length: 1000000\r\n\r\n")) as place:
        assert await ask(place) == 503


async def test_get_status_reaches_a_unix_socket(tmp_path: Path) -> None:
    async with server(answering(b"HTTP/1.1 200 OK\r\n\r\n"), tmp_path / "s") as place:
        assert str(place) == f"unix:{tmp_path}/s"
        assert await ask(place) == 200
        await can_connect(place, timeout_s=20.0)


@pytest.mark.parametrize("answer", [b"SSH-2.0-x\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n"])
async def test_get_status_fails_where_no_answer_comes(answer: bytes) -> None:
    async with server(answering(answer)) as place:
        with pytest.raises(CallFailed, match=r"not HTTP|reset"):
            await ask(place)


async def test_get_status_fails_where_nobody_listens() -> None:
    async with server(answering(b"")) as place:
        pass
    with pytest.raises(CallFailed, match="cannot connect"):
        await ask(place)
    with pytest.raises(CallFailed, match="cannot connect"):
        await can_connect(place, timeout_s=20.0)


async def test_get_status_is_bounded_in_time() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with server(silent) as place:
        with pytest.raises(CallFailed, match=r"no answer within 0\.01 s"):
            await ask(place, 0.01)
        await can_connect(place, timeout_s=20.0)


def test_place_shows_an_address_as_it_is_written() -> None:
    assert str(Place("10.0.0.1", 80)) == "10.0.0.1:80"
    assert str(Place("::1", 80)) == "[::1]:80"


# Answers with a body


def saying(*parts: bytes, ended: trio.Event | None = None, hold: bool = False) -> Serve:
    """Each part is sent by itself; `hold`: then nothing comes for ever."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(4096)
            for part in parts:
                await stream.send_all(part)
                await trio.lowlevel.checkpoint()
            if hold:
                await stream.receive_some(1)
        if ended is not None:
            ended.set()

    return serve


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_get_gives_status_headers_and_body() -> None:
    seen: list[bytes] = []
    head = b"HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Length: 2\r\n\r\nno"
    async with server(answering(head, seen)) as place:
        async with get(
            f"http://{place}", "/a?b=c", [(b"accept", b"text/plain")], timeout_s=20, idle_s=20
        ) as answer:
            assert (answer.status, await answer.body()) == (404, b"no")
            assert (b"X-A", b"b") in answer.headers
    assert seen[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"\r\nhost: %b\r\n" % str(place).encode() in seen[0].lower()
    assert b"\r\naccept: text/plain\r\n" in seen[0]


async def test_get_gives_lines_however_they_are_cut() -> None:
    parts = [CHUNKED, b"4\r\none\n\r\n2\r\ntw\r\n", b"2\r\no\n\r\n", b"3\r\nend\r\n0\r\n\r\n"]
    async with server(saying(*parts)) as place:
        async with get(f"http://{place}", "/", timeout_s=20, idle_s=20) as answer:
            assert [await answer.line() for _ in range(5)] == [b"one", b"two", b"end", None, None]


async def test_get_closes_the_connection_of_an_answer_that_is_left() -> None:
    ended = trio.Event()
    flood = saying(b"HTTP/1.1 200 OK\r\n\r\n" + b"line\n" * 1000, ended=ended, hold=True)
    async with server(flood) as place:
        async with get(f"http://{place}", "/", timeout_s=20, idle_s=20) as answer:
            assert await answer.line() == b"line"
        await ended.wait()


async def test_get_that_is_cancelled_closes_its_connection() -> None:
    ended = trio.Event()
    reading = trio.Event()
    async with server(saying(CHUNKED, ended=ended, hold=True)) as place:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                async with get(f"http://{place}", "/", timeout_s=20, idle_s=20) as answer:
                    reading.set()
                    await answer.line()

            nursery.start_soon(read)
            await reading.wait()
            nursery.cancel_scope.cancel()
        await ended.wait()


async def read_lines(place: Place, *, timeout_s: float = 20, idle_s: float = 20, limit: int = 50) -> None:
    async with get(f"http://{place}", "/", timeout_s=timeout_s, idle_s=idle_s) as answer:
        while await answer.line(limit) is not None:
            pass


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "closed without an answer"),
        ([b"SMTP ready\r\n\r\n"], r"not HTTP/1\.1"),
        ([CHUNKED, b"5\r\nabc"], r"not a whole answer of HTTP/1\.1"),
        ([CHUNKED, b"50\r\n" + b"x" * 80], "longer than 50 bytes"),
    ],
)
async def test_get_fails_where_no_whole_answer_comes(parts: list[bytes], why: str) -> None:
    async with server(saying(*parts)) as place:
        with pytest.raises(CallFailed, match=why):
            await read_lines(place)


@pytest.mark.parametrize(
    "parts",
    [
        [b'{"access_token":"CANARY"}\r\n\r\n'],
        [b"HTTP/1.1 200 OK\r\nCANARY\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: CANARY\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: CANARY\r\n\r\n"],
        [b"HTTP/1.1 CANARY OK\r\n\r\n"],
        [CHUNKED, b"CANARY\r\n\r\n"],
    ],
)
async def test_call_that_is_not_answered_in_http_does_not_quote_what_came(parts: list[bytes]) -> None:
    async with server(saying(*parts)) as place:
        for why in (read_lines, _post):
            with pytest.raises(CallFailed, match=r"not .*HTTP") as failed:
                await why(place)
            assert "CANARY" not in str(failed.value)


async def _post(place: Place) -> None:
    await post(f"http://{place}", "/", [], b"", timeout_s=20, limit=1000)


async def test_get_fails_where_a_body_is_larger_than_its_limit() -> None:
    async with server(saying(CHUNKED, b"50\r\n" + b"x" * 80)) as place:
        with pytest.raises(CallFailed, match="longer than 50 bytes"):
            async with get(f"http://{place}", "/", timeout_s=20, idle_s=20) as answer:
                await answer.body(50)


async def test_get_is_bounded_in_time_to_the_head_and_between_parts_of_the_body() -> None:
    async with server(saying(hold=True)) as place:
        with pytest.raises(CallFailed, match="no answer within"):
            await read_lines(place, timeout_s=0.02)
    async with server(saying(CHUNKED, hold=True)) as place:
        with pytest.raises(CallFailed):
            await read_lines(place, idle_s=0.02)


async def test_get_says_why_it_cannot_connect() -> None:
    async with server(saying()) as place:
        pass
    with pytest.raises(CallFailed, match="refused"):
        await read_lines(place)


async def test_get_knows_a_server_by_its_certificate() -> None:
    ca = trustme.CA()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)

    async def serve(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, serving, server_side=True, https_compatible=True)
        try:
            await stream.receive_some(4096)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except trio.BrokenResourceError:
            pass
        await trio.aclose_forcefully(stream)

    async with server(serve) as place:
        async with get(f"https://{place}", "/", tls=trusting, timeout_s=20, idle_s=20) as answer:
            assert await answer.body() == b"ok"
        with pytest.raises(CallFailed, match="local issuer"):
            async with get(f"https://{place}", "/", timeout_s=20, idle_s=20):
                pass


async def test_post_sends_its_content_and_gives_the_whole_answer() -> None:
    seen: list[bytes] = []
    answer = b"HTTP/1.1 201 Made\r\nX-A: b\r\nRetry-After: 5\r\ncontent-length: 4\r\n\r\nmade"
    async with server(answering(answer, seen)) as place:
        found = await post(f"http://{place}", "/t?a=b", [(b"x-c", b"d")], b"e=f", timeout_s=20, limit=4)
    assert (found.status, found.body) == (201, b"made")
    assert (found.header(b"retry-after"), found.header(b"x-none")) == (b"5", b"")
    assert seen[0].startswith(b"POST /t?a=b HTTP/1.1\r\n")
    assert {b"x-c: d", b"content-length: 3"} <= set(seen[0].split(b"\r\n"))


async def test_post_takes_no_more_of_an_answer_than_its_limit() -> None:
    async with server(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12345")) as place:
        with pytest.raises(CallFailed, match="longer than 4 bytes"):
            await post(f"http://{place}", "/", [], b"", timeout_s=20, limit=4)


@pytest.mark.parametrize("parts", [[], [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12"]])
async def test_post_is_bounded_in_time_to_the_end_of_the_body(parts: list[bytes]) -> None:
    async with server(saying(*parts, hold=True)) as place:
        with pytest.raises(TooSlow, match=r"no answer within 0\.05 s"):
            await post(f"http://{place}", "/", [], b"", timeout_s=0.05, limit=10)


async def test_own_calls_go_where_egress_lets_them() -> None:
    closed = Egress(EgressConfig())
    async with server(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")) as place:
        for rules, host in [
            (Egress(), "localhost"),
            (Egress(EgressConfig(allow=("localhost",))), "localhost"),
            (closed, "127.0.0.1"),  # it is written
        ]:
            origin = f"http://{host}:{place.port}"
            async with get(origin, "/", timeout_s=9.0, idle_s=9.0, egress=rules) as incoming:
                assert await incoming.body() == b"ok"
            assert (await post(origin, "/", [], b"", timeout_s=9.0, limit=9, egress=rules)).body == b"ok"
        for host, rules in [
            ("localhost", closed),
            ("127.0.0.1", Egress(EgressConfig(deny=("127.0.0.0/8",)))),
        ]:
            with pytest.raises(CallFailed, match="egress"):
                await post(f"http://{host}:{place.port}", "/", [], b"", timeout_s=9.0, limit=9, egress=rules)


@pytest.mark.parametrize("make", [EgressProxy, SocksProxy])
@pytest.mark.parametrize("login", [False, True])
async def test_own_calls_go_through_an_egress_proxy(make: type[EgressProxy], *, login: bool) -> None:
    seen: list[bytes] = []
    served = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", seen)
    shown = {"user": LOGIN[0], "password": "file:/p"} if login else {}
    async with server(served) as place, running(make((place.address, place.port), login=login)) as proxy:
        via = Via(url=proxy.url, **shown)
        through = Passage(via, LOGIN[1], "http://id.test:8080")
        origin = "http://id.test:8080"
        answer = await post(origin, "/t?a=1", [], b"form", timeout_s=20, limit=99, through=through)
        assert answer.body == b"ok"
        async with get(origin, "/t?a=1", timeout_s=20, idle_s=20, through=through) as incoming:
            assert await incoming.body(9) == b"ok"
        if login:
            without = Passage(Via(url=proxy.url), None, origin)
            with pytest.raises(CallFailed, match="credentials"):
                await post(origin, "/", [], b"", timeout_s=20, limit=99, through=without)
    whole = [b"POST http://id.test:8080/t?a=1 HTTP/1.1", b"GET http://id.test:8080/t?a=1 HTTP/1.1"]
    asked = [b"id.test:8080"] * 2 if make is SocksProxy else whole
    assert [head.split(b"\r\n")[0] for head in proxy.heads[:2]] == asked
    assert [each.split(b" ")[1] for each in seen] == [b"/t?a=1"] * 2
    assert all(b"host: id.test:8080\r\n" in each.lower() for each in seen)
    assert not any(b"proxy-authorization" in each.lower() for each in seen)


async def test_own_calls_verify_whoever_is_behind_an_egress_proxy() -> None:
    authority, context, trusted = (
        trustme.CA(),
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(),
    )
    authority.issue_cert("id.test").configure_cert(context)
    authority.configure_trust(trusted)

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # who does not trust us leaves
            secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            await secure.receive_some()
            await secure.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await secure.aclose()

    async with server(serve) as place, running(EgressProxy((place.address, place.port))) as proxy:
        for name, why in (("id.test", None), ("other.test", "(?i)hostname mismatch")):
            origin = f"https://{name}"
            through = Passage(Via(url=proxy.url), None, origin)
            with pytest.raises(CallFailed, match=why) if why else contextlib.nullcontext():
                await post(origin, "/", [], b"a", tls=trusted, timeout_s=20, limit=99, through=through)
    assert [head.split(b" ")[:2] for head in proxy.heads] == [
        [b"CONNECT", b"id.test:443"], [b"CONNECT", b"other.test:443"]
    ]  # fmt: skip


async def test_own_calls_reach_an_egress_proxy_where_egress_lets_them() -> None:
    served = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    trio.socket.set_custom_hostname_resolver(Names("127.0.0.1"))
    async with server(served) as place, running(EgressProxy((place.address, place.port))) as proxy:
        port = proxy.sock.getsockname()[1]

        async def call(config: EgressConfig | None, url: str = "http://proxy.test") -> bytes:
            origin = "http://id.test"
            through = Passage(Via(url=f"{url}:{port}"), None, origin)
            options = {"timeout_s": 20, "limit": 9, "egress": Egress(config), "through": through}
            return (await post(origin, "/", [], b"", **options)).body  # type: ignore[arg-type]

        assert await call(None) == await call(EgressConfig(allow=("proxy.test",))) == b"ok"
        assert await call(EgressConfig(), "http://127.0.0.1") == b"ok", "written as an address"
        for closing in (
            EgressConfig(),
            EgressConfig(allow=("id.test",)),
            EgressConfig(deny=("proxy.test",)),
            EgressConfig(allow=("proxy.test",), deny=("id.test",)),
            EgressConfig(allow=("proxy.test",), deny=("127.0.0.1",)),
        ):
            with pytest.raises(CallFailed, match="egress"):
                await call(closing)
    assert proxy.connections == 3


async def test_own_calls_say_when_the_egress_proxy_is_what_fails() -> None:
    async with server(answering(b"")) as place:
        pass
    origin = "https://id.test"
    for url, why in (
        (f"http://{place}", "the egress proxy cannot be reached"),
        ("http://nobody.invalid:1", "nobody.invalid: "),
    ):
        with pytest.raises(CallFailed, match=why):
            await post(
                origin, "/", [], b"", timeout_s=20, limit=9, through=Passage(Via(url=url), None, origin)
            )
    refusing = answering(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n")
    async with server(refusing) as place:
        through = Passage(Via(url=f"http://{place}"), None, origin)
        with pytest.raises(CallFailed, match="refuses the connection with status 403"):
            await post(origin, "/", [], b"", timeout_s=20, limit=9, through=through)


async def test_what_is_for_this_host_only_goes_through_no_egress_proxy() -> None:
    async with running(EgressProxy(("127.0.0.1", 1))) as proxy:
        origin = "http://127.0.0.1:1"
        through = Passage(Via(url=proxy.url), None, origin)
        with pytest.raises(CallFailed, match="this host only"):
            await post(origin, "/", [], b"", timeout_s=20, limit=9, only_loopback=True, through=through)
    assert not proxy.connections


class Names(trio.abc.HostnameResolver):
    """Every name leads to `addresses`."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(  # noqa: PLR0917 - as trio has it
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self._addresses]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("addresses", "reached"),
    [(["127.0.0.1"], True), (["127.0.0.2"], False), (["127.0.0.2", "127.0.0.1"], True)],
)
async def test_call_in_plaintext_is_for_the_loopback_addresses_of_a_name(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch, *, reached: bool
) -> None:
    seen: list[bytes] = []
    monkeypatch.setattr(http_client, "is_loopback", lambda address: address == "127.0.0.1")
    async with server(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", seen)) as place:
        earlier = trio.socket.set_custom_hostname_resolver(Names(*addresses))
        try:
            url = f"http://localhost:{place.port}"
            if reached:
                answer = await post(url, "/", [], b"secret", timeout_s=9, limit=9, only_loopback=True)
                assert answer.body == b"ok"
            else:
                with pytest.raises(CallFailed, match="localhost is not on this host"):
                    await post(url, "/", [], b"secret", timeout_s=9, limit=9, only_loopback=True)
        finally:
            trio.socket.set_custom_hostname_resolver(earlier)
    assert len(seen) == reached
