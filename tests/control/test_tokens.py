"""Asking token services: real connections, real TLS, answers of every kind."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from ambassador.control.tokens import MOST_AT_ONCE, TokenServices
from ambassador.proxy.tokens.answer import (
    CONNECT,
    FAILED,
    MALFORMED,
    MOST_BYTES,
    REFUSED,
    TIMEOUT,
    Failure,
    Granted,
)
from ambassador.proxy.tokens.request import Question
from ambassador.proxy.upstream.passage import Passage
from ambassador.proxy.upstream.via import Config as Via
from tests.control.test_http_client import Names
from tests.proxy.egress_proxy import EgressProxy, running

Serve = Callable[[trio.abc.Stream], Awaitable[None]]
GRANT = b'{"access_token":"t","token_type":"Bearer","expires_in":60}'


def http(body: bytes = GRANT, status: bytes = b"200 OK", *lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *lines, b"", body))


def saying(answer: bytes, seen: list[bytes] | None = None) -> Serve:
    async def serve(stream: trio.abc.Stream) -> None:
        got = b""
        with contextlib.suppress(trio.BrokenResourceError):  # who does not trust us leaves
            while b"grant_type=x" not in got:
                data = await stream.receive_some(4096)
                if not data:
                    return
                got += data
            if seen is not None:
                seen.append(got)
            await stream.send_all(answer)
            await stream.aclose()

    return serve


@asynccontextmanager
async def service(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        if tls is None:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield f"http://127.0.0.1:{port}/token?tenant=1"
        else:
            nursery.start_soon(trio.serve_listeners, serve, [trio.SSLListener(listener, tls)])
            yield f"https://localhost:{port}/token"
        nursery.cancel_scope.cancel()


async def ask(
    url: str,
    *,
    ca: str | None = None,
    timeout_s: float = 20.0,
    only_loopback: bool = False,
    through: Passage | None = None,
) -> Granted | Failure:
    question = Question(url, ((b"x-a", b"b"),), b"grant_type=x", ca, timeout_s, only_loopback, through)
    answers: list[Granted | Failure] = []
    async with trio.open_nursery() as nursery:
        TokenServices("test/1", nursery).ask(question, answers.append)
        assert not answers, "never inside of the call"
    (answer,) = answers
    return answer


async def test_question_is_posted_and_its_answer_read() -> None:
    seen: list[bytes] = []
    async with service(saying(http(), seen)) as url:
        assert await ask(url) == Granted("t", 60.0)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /token?tenant=1 HTTP/1.1\r\n")
    lines = head.lower().split(b"\r\n")
    assert {b"x-a: b", b"user-agent: test/1", b"content-length: 12", b"connection: close"} <= set(lines)
    assert body == b"grant_type=x"


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (http(b'{"error":"invalid_client"}', b"401 No"), REFUSED),
        (http(b"", b"500 No"), FAILED),
        (http(b"", b"302 Found", b"location: http://127.0.0.1:1/"), MALFORMED),
        (http(b"<html>"), MALFORMED),
        (http(b" " * (MOST_BYTES + 1)), CONNECT),
        (b"SSH-2.0-x\r\n\r\n", CONNECT),
        (b"", CONNECT),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", CONNECT),
    ],
)
async def test_every_answer_is_told_for_what_it_is(answer: bytes, result: str) -> None:
    async with service(saying(answer)) as url:
        found = await ask(url)
    assert isinstance(found, Failure)
    assert found.result == result


async def test_question_goes_through_an_egress_proxy() -> None:
    seen: list[bytes] = []
    async with service(saying(http(), seen)) as url:
        port = int(url.split(":")[2].partition("/")[0])
        async with running(EgressProxy(("127.0.0.1", port))) as proxy:
            through = Passage(Via(url=proxy.url), None, "http://id.test/token")
            assert await ask("http://id.test/token", through=through) == Granted("t", 60.0)
    assert proxy.heads[0].startswith(b"POST http://id.test/token HTTP/1.1\r\n")
    assert len(seen) == 1


async def test_retry_after_is_heard() -> None:
    async with service(saying(http(b"", b"503 No", b"Retry-After: 9"))) as url:
        found = await ask(url)
    assert isinstance(found, Failure)
    assert found.after_s == 9.0


async def test_service_that_says_nothing_is_given_up() -> None:
    async def silent(_: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with service(silent) as url:
        found = await ask(url, timeout_s=0.05)
    assert isinstance(found, Failure)
    assert found.result == TIMEOUT


@pytest.mark.parametrize("host", ["127.0.0.1:1", "[::1]:1", f"{'a' * 64}.test"])
async def test_service_that_is_not_there_is_told(host: str) -> None:
    found = await ask(f"http://{host}/token")
    assert isinstance(found, Failure)
    assert found.result == CONNECT


async def test_service_is_known_by_its_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with service(saying(http()), server) as url:
        assert await ask(url, ca=str(tmp_path / "ca.pem")) == Granted("t", 60.0)
        os.mkfifo(tmp_path / "pipe")
        for ca in (None, str(tmp_path / "nothing.pem"), str(tmp_path / "pipe")):
            found = await ask(url, ca=ca)
            assert isinstance(found, Failure)
            assert found.result == CONNECT
        other = await ask(url.replace("localhost", "127.0.0.1"), ca=str(tmp_path / "ca.pem"))
        assert isinstance(other, Failure)
        assert other.result == CONNECT


async def test_only_so_many_are_asked_at_once() -> None:
    under_way = most = 0
    release = trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if most >= MOST_AT_ONCE:
            release.set()
        await release.wait()
        under_way -= 1
        await saying(http())(stream)

    answers: list[Granted | Failure] = []
    async with service(serve) as url, trio.open_nursery() as nursery:
        services = TokenServices("test/1", nursery)
        for _ in range(2 * MOST_AT_ONCE):
            services.ask(Question(url, (), b"grant_type=x", None, 20.0), answers.append)
    assert answers == [Granted("t", 60.0)] * 2 * MOST_AT_ONCE
    assert most == MOST_AT_ONCE


async def test_question_without_a_place_is_given_up_when_nobody_waits_for_it_any_more(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def hang(_: TokenServices, question: Question) -> Failure:
        nonlocal asked
        asked += 1
        await trio.sleep(question.timeout_s)
        return Failure(TIMEOUT, "no answer")

    monkeypatch.setattr(TokenServices, "_result", hang)
    answers: list[Granted | Failure] = []
    async with trio.open_nursery() as nursery:
        services = TokenServices("test", nursery)
        for _ in range(2 * MOST_AT_ONCE):
            services.ask(Question("https://id.test/", (), b"", None, 20.0), answers.append)
        await trio.sleep(5.1)
        assert [each.result for each in answers if isinstance(each, Failure)] == [FAILED] * MOST_AT_ONCE
    assert asked == MOST_AT_ONCE
    assert len(answers) == 2 * MOST_AT_ONCE


async def test_question_in_plaintext_is_for_this_host_alone() -> None:
    seen: list[bytes] = []
    async with service(saying(http(), seen)) as url:
        earlier = trio.socket.set_custom_hostname_resolver(Names("192.0.2.1"))
        try:
            found = await ask(url.replace("127.0.0.1", "localhost"), only_loopback=True)
        finally:
            trio.socket.set_custom_hostname_resolver(earlier)
        assert isinstance(found, Failure)
        assert found.result == CONNECT
        assert isinstance(await ask(url, only_loopback=True), Granted)
    assert len(seen) == 1
