"""Exchanges through egress proxies: what they are asked, what becomes of their refusals, and what is left behind."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ambassador.config.load import load_text
from ambassador.config.problem import ConfigError
from ambassador.config.schema import Config as WholeConfig
from ambassador.config.secrecy import holds_secrets
from tests.proxy.egress_proxy import LOGIN, EgressProxy, SocksProxy, running
from tests.proxy.harness import GET, OK, Origin, Plane, a_plane, finished, until
from tests.proxy.secure import CA, SecureOrigin, server_context

HOST = "api.test"


@pytest.fixture
def ca(tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def password(tmp_path: Path) -> str:
    (tmp_path / "password").write_text(LOGIN[1])
    return f"file:{tmp_path / 'password'}"


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture
def secure() -> Iterator[SecureOrigin]:
    origin = SecureOrigin(server_context(HOST))
    yield origin
    origin.close()


def config(
    url: str, via: str, *, ca: str | None = None, rest: str = "", upstream: str = "", top: str = ""
) -> str:
    tls = "" if ca is None else f", tls: {{ca: {ca}}}"
    return (
        f"version: 1\nlisten: 127.0.0.1:80\n{top}\n"
        f"upstreams: {{u: {{endpoints: ['{url}']{tls}{upstream}, connections: {{max: 2, via: {via}}}}}}}\n"
        f"routes: [{{name: r, to: u{rest}}}]"
    )


def with_login(url: str, password: str) -> str:
    return f"{{url: '{url}', user: {LOGIN[0]}, password: '{password}'}}"


async def answer(plane: Plane, request: bytes = GET) -> tuple[int, bytes]:
    client = await plane.connect()
    await client.send(request)
    status, body = await client.answer()
    client.close()
    return status, body


@asynccontextmanager
async def served(origin: Origin, seen: list[bytes]) -> AsyncIterator[None]:
    """Every request is answered `ok`, and its head is kept."""

    def reply(head: bytes) -> bytes:
        seen.append(head)
        return OK

    async with trio.open_nursery() as nursery:
        nursery.start_soon(origin.serves, reply)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("make", [EgressProxy, SocksProxy])
@pytest.mark.parametrize("login", [False, True])
@pytest.mark.parametrize("piecemeal", [False, True])
async def test_https_goes_through_a_tunnel_that_is_used_again(
    secure: SecureOrigin, ca: str, password: str, make: type[EgressProxy], *, login: bool, piecemeal: bool
) -> None:
    seen: list[bytes] = []
    proxy = make(secure.address, login=login, piecemeal=piecemeal)
    via = with_login(proxy.url, password) if login else proxy.url
    async with (
        running(proxy),
        served(secure, seen),
        a_plane(config(f"https://{HOST}:8443", via, ca=ca)) as plane,
    ):
        client = await plane.connect()
        for _ in range(3):
            await client.send(GET)
            assert await client.answer() == (200, b"ok")
        client.close()
        await finished(plane)
    assert proxy.connections == 1
    (asked,) = proxy.heads
    if make is SocksProxy:
        assert asked == b"api.test:8443"
    else:
        assert asked.startswith(b"CONNECT api.test:8443 HTTP/1.1\r\nhost: api.test:8443\r\n")
    assert len(seen) == 3
    assert not any(b"proxy-" in head.lower() for head in seen)
    assert all(b"host: api.test:8443\r\n" in head for head in seen)


@pytest.mark.parametrize("login", [False, True])
async def test_http_through_an_http_proxy_has_the_whole_url(
    origin: Origin, password: str, *, login: bool
) -> None:
    seen: list[bytes] = []
    proxy = EgressProxy(origin.address, login=login)
    via = with_login(proxy.url, password) if login else proxy.url
    async with running(proxy), served(origin, seen), a_plane(config(f"http://{HOST}", via)) as plane:
        client = await plane.connect()
        await client.send(b"GET /a/b?c=d HTTP/1.1\r\nhost: other\r\nproxy-authorization: Basic evil\r\n\r\n")
        assert await client.answer() == (200, b"ok")
        await client.send(b"POST /p HTTP/1.1\r\nhost: other\r\ncontent-length: 4\r\n\r\nbody")
        assert await client.answer() == (200, b"ok")
        client.close()
        await finished(plane)
    get, post = proxy.heads
    assert get.startswith(b"GET http://api.test/a/b?c=d HTTP/1.1\r\nhost: api.test\r\n")
    assert post.startswith(b"POST http://api.test/p HTTP/1.1\r\n")
    assert proxy.connections == 1
    assert (get.lower().count(b"proxy-authorization"), b"evil" in get) == (int(login), False)
    assert not any(b"proxy-" in head.lower() for head in seen)


async def test_http_through_socks_is_a_request_as_usual(origin: Origin) -> None:
    seen: list[bytes] = []
    proxy = SocksProxy(origin.address)
    text = config("http://127.0.0.9:8080", proxy.url)
    async with running(proxy), served(origin, seen), a_plane(text) as plane:
        client = await plane.connect()
        for _ in range(3):
            await client.send(GET)
            assert await client.answer() == (200, b"ok")
        client.close()
    assert proxy.heads == [b"127.0.0.9:8080"]
    assert len(seen) == 3
    assert all(head.startswith(b"GET / HTTP/1.1\r\nhost: 127.0.0.9:8080\r\n") for head in seen)


@pytest.mark.parametrize(
    ("url", "make", "attempts"),
    [
        # it is tried again, as one that connects to nobody
        (f"https://{HOST}", EgressProxy, ["connect", "connect"]),
        (f"https://{HOST}", SocksProxy, ["connect", "connect"]),
        # the request has been sent
        (f"http://{HOST}", EgressProxy, ["reset"]),
    ],
)
async def test_refused_credentials_are_no_answer(
    secure: SecureOrigin,
    url: str,
    make: type[EgressProxy],
    attempts: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    proxy = make(secure.address, login=True)
    async with running(proxy), a_plane(config(url, proxy.url)) as plane:
        status, body = await answer(plane)
        await finished(plane)
    assert status == 503
    assert b'"connect_failed"' in body
    assert b"127.0.0.1" not in body
    assert plane.counts.attempts == attempts
    assert len([each for each in caplog.messages if "credentials" in each]) == 1


@pytest.mark.parametrize(("method", "sent"), [("POST", 1), ("PUT", 2)])
async def test_request_that_the_proxy_refuses_may_have_been_carried_out(
    origin: Origin, method: str, sent: int
) -> None:
    proxy = EgressProxy(origin.address, login=True)
    text = config(f"http://{HOST}", proxy.url, rest=", retry: {attempts: 1}")
    async with running(proxy), a_plane(text) as plane:
        status, _ = await answer(
            plane, b"%b / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi" % method.encode()
        )
    assert status == 503
    assert len(proxy.heads) == sent


@pytest.mark.parametrize(("field", "status"), [(b"x-a: b", 407), (b"proxy-authenticate: Basic realm=x", 503)])
async def test_407_without_a_challenge_is_an_answer_of_the_upstream(
    origin: Origin, field: bytes, status: int
) -> None:
    seen: list[bytes] = []

    def reply(head: bytes) -> bytes:
        seen.append(head)
        return b"HTTP/1.1 407 No\r\n%b\r\ncontent-length: 2\r\n\r\nok" % field

    proxy = EgressProxy(origin.address)
    async with (
        running(proxy),
        a_plane(config(f"http://{HOST}", proxy.url)) as plane,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(origin.serves, reply)
        assert (await answer(plane, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi"))[
            0
        ] == status
        nursery.cancel_scope.cancel()
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("closes_after", "learned"),
    [(1, True), (2, False)],  # one that answers twice keeps its connections
)
async def test_proxy_that_closes_behind_answers_gets_a_connection_for_each(
    origin: Origin, closes_after: int, *, learned: bool
) -> None:
    seen: list[bytes] = []
    proxy = EgressProxy(origin.address)
    proxy.closes_after = closes_after
    async with running(proxy), served(origin, seen), a_plane(config(f"http://{HOST}", proxy.url)) as plane:
        pool = plane.endpoint.pool
        assert pool.way is not None
        for _ in range(closes_after):
            assert (await answer(plane))[0] == 200
        await until(lambda: pool.open == 0)
        assert pool.way.closes is learned
        proxy.closes_after = None
        for at in range(2):
            assert (await answer(plane))[0] == 200
            await finished(plane)
            assert pool.idle_count == (not learned)
            assert proxy.connections == 2 + (at if learned else 0)


async def test_password_that_cannot_be_read_fails_the_connection(
    origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    for url in (f"https://{HOST}", f"http://{HOST}"):
        async with (
            running(EgressProxy(origin.address)) as proxy,
            a_plane(config(url, with_login(proxy.url, "file:/missing/password"))) as plane,
        ):
            status, body = await answer(plane)
            await finished(plane)
        assert (status, b"password" in body) == (503, True)
        assert not proxy.heads
    assert any("file:/missing/password: cannot be read" in each for each in caplog.messages)


# A proxy that does not do what it should


@asynccontextmanager
async def a_host(url: str, ca: str | None = None, **route: str) -> AsyncIterator[tuple[Plane, Origin]]:
    """A plane whose proxy is played by the test."""
    proxy = Origin()
    rest = "".join(f", {key}: {value}" for key, value in route.items())
    async with a_plane(config(url, proxy.url, ca=ca, rest=rest)) as plane:
        yield plane, proxy
        await finished(plane)
    proxy.close()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 503 Busy\r\n\r\n",
        b"\x16\x03\x03\0\2\2\x28",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
    ],
)
async def test_proxy_that_says_something_else_and_ends_is_a_failed_connection(said: bytes) -> None:
    async with a_host(f"https://{HOST}", retry="{attempts: 0}") as (plane, proxy):
        client = await plane.connect()
        await client.send(GET)
        talk = await proxy.accept()
        await talk.head()
        await talk.send(said)
        talk.close()
        status, body = await client.answer()
        assert status == 503
        assert b'"connect_failed"' in body
        assert b"evil" not in body
        client.close()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_connect_timeout_covers_the_proxy(said: bytes) -> None:
    timeout = "{connect: 50ms, total: 20s}"
    async with a_host(f"https://{HOST}", retry="{attempts: 0}", timeout=timeout) as (plane, proxy):
        client = await plane.connect()
        await client.send(GET)
        talk = await proxy.accept()
        await talk.head()
        await talk.send(said)
        assert (await client.answer())[0] == 503
        talk.close()
        client.close()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_client_that_leaves_meanwhile_leaves_nothing(said: bytes) -> None:
    async with a_host(f"https://{HOST}") as (plane, proxy):
        client = await plane.connect()
        await client.send(GET)
        talk = await proxy.accept()
        await talk.head()
        await talk.send(said)
        client.reset()
        try:
            assert (await talk.rest())[:1] in (b"", b"\x16")
        except trio.BrokenResourceError:
            pass
        await until(lambda: plane.endpoint.pool.open == 0)
        talk.close()


@pytest.mark.parametrize("said", [None, b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_cancelled_opening_leaves_nothing(said: bytes | None) -> None:
    async with a_host(f"https://{HOST}") as (plane, proxy), trio.open_nursery() as nursery:
        pool = plane.endpoint.pool

        async def acquire() -> None:
            strand = plane.lane.strand()
            try:
                await pool.acquire(strand, 9.0, plane.lane.now + 9.0)
            finally:
                await plane.lane.finish(strand)

        nursery.start_soon(acquire)
        talk = await proxy.accept()
        if said is not None:
            await talk.head()
            await talk.send(said)
        nursery.cancel_scope.cancel()
        talk.close()
    assert (pool.open, pool.idle_count) == (0, 0)


async def test_early_bytes_through_socks_are_not_the_answer(origin: Origin) -> None:
    evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"

    class Evil(SocksProxy):
        async def say(self, stream: trio.SocketStream, data: bytes) -> None:
            await super().say(stream, data if len(data) < 5 else data + evil)

    proxy = Evil(origin.address)
    async with running(proxy), a_plane(config(f"http://{HOST}", proxy.url)) as plane:
        status, body = await answer(plane)
        await finished(plane)
    assert (status, b"evil" in body) == (503, False)


async def test_hedge_opens_its_own_tunnel(secure: SecureOrigin, ca: str) -> None:
    proxy = EgressProxy(secure.address, piecemeal=True)
    route = ", hedge: {after: 20ms, max: 100%}"
    text = config(f"https://{HOST}", proxy.url, ca=ca, rest=route)
    async with running(proxy), a_plane(text) as plane:
        client = await plane.connect()
        await client.send(GET)
        first = await secure.takes()
        assert await client.answer() == (200, b"ok")
        await client.send(GET)
        await first.head()
        second = await secure.takes()
        assert await client.answer() == (200, b"ok")
        client.close()
        await finished(plane)
        for talk in (first, second):
            talk.close()
    assert len(proxy.heads) == 2


async def test_retry_takes_another_tunnel(secure: SecureOrigin, ca: str) -> None:
    proxy = EgressProxy(secure.address)
    text = config(f"https://{HOST}", proxy.url, ca=ca, rest=", retry: {attempts: 1, when: [reset]}")
    async with running(proxy), a_plane(text) as plane:
        client = await plane.connect()
        await client.send(GET)
        first = await secure.accept()
        await first.head()
        first.cut()
        second = await secure.takes()
        assert await client.answer() == (200, b"ok")
        client.close()
        second.close()
    assert len(proxy.heads) == 2


async def test_certificate_is_the_endpoints_own(ca: str) -> None:
    other = SecureOrigin(server_context("other.test"))
    proxy = EgressProxy(other.address)
    text = config(f"https://{HOST}", proxy.url, ca=ca, rest=", retry: {attempts: 0}")

    async def refused() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await other.accept()

    async with running(proxy), trio.open_nursery() as nursery, a_plane(text) as plane:
        nursery.start_soon(refused)
        status, body = await answer(plane)
        assert (status, b"certificate" in body) == (503, True)
    other.close()


# The config


def load(text: str) -> WholeConfig:
    return load_text(text)


@pytest.mark.parametrize(
    ("via", "why"),
    [
        ("http://me:secret@proxy:3128", "credentials do not belong into a URL"),
        ("https://proxy:3128", "not supported"),
        ("socks4://proxy:1080", "no egress proxy"),
        ("proxy:3128", "no egress proxy"),
        ("http://proxy", "has no port"),
        ("http://proxy:3128/path", "no egress proxy"),
        ("{url: 'http://proxy:3128', user: me}", "needs its 'password'"),
        ("{url: 'http://proxy:3128', password: 'env:P'}", "needs its 'user'"),
        ("{url: 'http://proxy:3128', user: 'a:b', password: 'env:P'}", "':'"),
        ("{url: 'http://proxy:3128', user: a, password: plainly}", "never the secret itself"),
    ],
)
def test_bad_proxies_are_refused(via: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        load(config(f"https://{HOST}", via))
    assert "secret@" not in str(refused.value)


def test_what_no_proxy_leads_to_is_refused() -> None:
    with pytest.raises(ConfigError, match="unix socket"):
        load(config("unix:/run/app.sock", "http://proxy:3128"))
    bearer = ", auth: {bearer: 'env:T'}"
    with pytest.raises(ConfigError, match="plaintext HTTP to the egress proxy"):
        load(config("http://127.0.0.1:80", "http://proxy:3128", upstream=bearer))
    load(config("https://a", "http://proxy:3128", upstream=bearer))
    load(config("http://a", "http://proxy:3128", upstream=bearer.replace("}", ", allow_plaintext: true}")))


def test_password_is_a_secret_of_the_config() -> None:
    via = "{url: 'socks5h://[::1]:1080', user: me, password: 'env:P'}"
    loaded = load(config(f"https://{HOST}", via))
    written = loaded.upstreams["u"].connections.via
    assert written is not None
    assert (written.url, written.place, written.is_socks) == ("socks5://[::1]:1080", ("::1", 1080), True)
    assert holds_secrets(loaded)


async def test_addresses_are_those_of_the_proxy() -> None:
    text = config(f"https://{HOST}", "http://proxy.test:3128")
    async with a_plane(text) as plane:
        assert not plane.endpoint.addresses
        plane.service.table.set_addresses(HOST, ["10.0.0.1"])
        assert not plane.endpoint.addresses
        plane.service.table.set_addresses("proxy.test", ["10.1.1.1"])
        assert plane.endpoint.addresses == ((socket.AF_INET, ("10.1.1.1", 3128)),)


@pytest.mark.parametrize(
    ("top", "proxy", "address", "reached"),
    [
        ("", "proxy.test", "169.254.1.1", False),
        ("", "proxy.test", "127.0.0.1", True),
        ("egress: {}", "proxy.test", "127.0.0.1", False),
        ("egress: {allow: [proxy.test]}", "proxy.test", "127.0.0.1", True),
        ("egress: {allow: [proxy.test]}", "proxy.test", "169.254.1.1", False),
        ("egress: {deny: [proxy.test]}", "proxy.test", "127.0.0.1", False),
        ("egress: {}", "127.0.0.1", "127.0.0.1", True),
        ("egress: {deny: [127.0.0.1]}", "127.0.0.1", "127.0.0.1", False),
    ],
)
@pytest.mark.parametrize("url", [f"https://{HOST}", f"http://{HOST}"])
async def test_egress_judges_the_proxy_as_an_endpoint(
    top: str, proxy: str, address: str, url: str, password: str, *, reached: bool
) -> None:
    peer = Origin()
    text = config(
        url,
        with_login(f"http://{proxy}:{peer.address[1]}", password),
        top=top,
        rest=", retry: {attempts: 0}, timeout: {total: 300ms}",
    )
    try:
        async with a_plane(text) as plane:
            plane.service.table.set_addresses("proxy.test", [address])
            assert bool(plane.endpoint.addresses) is reached
            if not reached:
                status, body = await answer(plane)
                assert (status, b"egress policy" in body) == (503, True)
    finally:
        peer.close()


@pytest.mark.parametrize(("deny", "url"), [("a.test", "https://a.test"), ("10.0.0.0/8", "https://10.0.0.1")])
async def test_egress_closes_what_is_written_behind_a_proxy_too(deny: str, url: str) -> None:
    text = config(url, "http://127.0.0.1:9", top=f"egress: {{deny: ['{deny}']}}")
    async with a_plane(text) as plane:
        status, body = await answer(plane)
        assert (status, b"egress policy" in body) == (503, True)


async def test_proxy_that_is_gone_fails_the_connection() -> None:
    proxy = Origin()
    text = config(f"https://{HOST}", proxy.url, rest=", retry: {attempts: 0}")
    proxy.close()
    async with a_plane(text) as plane:
        assert (await answer(plane))[0] == 503
