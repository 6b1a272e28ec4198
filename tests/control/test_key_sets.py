from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from ambassador.control.http_client import CallFailed
from ambassador.control.key_sets import feed, fetch_url
from ambassador.proxy.clients.key_sets import COOL_DOWN_S, EARLY, FRESH_S, KEPT_S, KeySet, KeySets
from ambassador.proxy.egress import Config as EgressConfig
from ambassador.proxy.egress import Egress
from ambassador.proxy.upstream.via import Config as Via
from tests.control.test_http_client import answering, server
from tests.proxy.clients.tokens import jwks
from tests.proxy.egress_proxy import LOGIN, EgressProxy, running

URL = "https://id.test:443/jwks"
LOG = logging.getLogger("test.key_sets")


class TrioClock:
    @property
    def now(self) -> float:
        return trio.current_time()

    def tick(self) -> None:
        """It is never late."""


class Server:
    """An identity server: what it answers next, and when it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.document = jwks("ec")
        self.error: str | None = None

    async def fetch(self, url: str, ca: str | None, via: Via | None) -> bytes:
        assert url.partition("?")[0] == URL
        self.asked.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise CallFailed(self.error)
        return self.document


@asynccontextmanager
async def fed(
    server: Server, known: tuple[bytes, float] | None = None, told: list[tuple[str, bytes]] | None = None
) -> AsyncIterator[KeySets]:
    key_sets = KeySets(TrioClock())

    def tell(key_set: KeySet, document: bytes) -> None:
        if told is not None:
            told.append((key_set.source, document))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(feed, key_sets, log=LOG, fetch=server.fetch, known=lambda _: known, tell=tell)
        )
        yield key_sets
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads and the mock clock do not know of each other."""

    async def run(work, *args, **_):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run)


async def test_a_url_is_fetched_when_it_is_new_and_before_it_is_old(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server()
    async with fed(server) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(1)
        assert [key.key_id for key in key_set.keys] == ["ec-1"]
        assert (key_set.wanted, key_set.version) == (False, 1)
        await trio.sleep(FRESH_S * EARLY)
        assert len(server.asked) == 2
        assert key_set.version == 1  # the same document
        server.document = jwks("rsa")
        await trio.sleep(FRESH_S * EARLY)
        assert key_set.version == 2
        assert [key.key_id for key in key_set.keys] == ["rsa-1"]


async def test_what_is_asked_for_is_fetched_at_once(autojump_clock: trio.testing.MockClock) -> None:
    server = Server()
    async with fed(server) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(COOL_DOWN_S + 1)
        server.document = jwks("rsa")
        assert key_set.ask()
        await trio.sleep(0.1)
        assert len(server.asked) == 2
        assert [key.key_id for key in key_set.keys] == ["rsa-1"]


async def test_keys_at_hand_are_used_while_the_source_is_away(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    async with fed(server) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(1)
        server.error = "away"
        await trio.sleep(FRESH_S)
        assert len(key_set.keys) == 1
        assert key_set.problem == "away"
        assert len(server.asked) > 4  # it is tried again and again
        assert len(server.asked) < 20
        assert caplog.messages == [f"jwks {URL}: away, the keys at hand are used"]
        server.error = None
        await trio.sleep(60)
        assert key_set.problem == ""


@pytest.mark.parametrize(
    "document", [b"", b"<html>", b'{"keys":{}}', b'{"keys":[{"kty":"RSA"}]}', b'{"keys":[1]}']
)
async def test_what_is_no_set_changes_nothing(
    document: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server()
    async with fed(server) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(1)
        server.document = document
        await trio.sleep(FRESH_S)
        assert [key.key_id for key in key_set.keys] == ["ec-1"]
        assert key_set.problem


@pytest.mark.parametrize("document", [b'{"keys":[]}', b'{"keys":[{"kty":"oct","k":"AA"}]}'])
async def test_set_without_keys_withdraws_those_at_hand(
    document: bytes, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    async with fed(server) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(1)
        server.document = document
        await trio.sleep(3 * FRESH_S)
        assert (key_set.keys, key_set.is_empty, key_set.version) == ((), True, 2)
        assert key_set.failing_since == pytest.approx(FRESH_S * EARLY, abs=1.0)
        assert caplog.messages == [f"jwks {URL}: has no key that verifies signatures, tokens are refused"]
        server.document = jwks("rsa")
        await trio.sleep(FRESH_S)
        assert [key.key_id for key in key_set.keys] == ["rsa-1"]
        assert (key_set.problem, key_set.failing_since) == ("", None)


async def test_keys_that_were_too_old_are_taken_again_when_the_source_is_back_with_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server()
    async with fed(server) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(1)
        server.error = "away"
        await trio.sleep(KEPT_S + FRESH_S)
        assert not key_set.keys
        server.error = None
        await trio.sleep(FRESH_S)
        assert [key.key_id for key in key_set.keys] == ["ec-1"]


async def test_a_file_is_read_again_when_it_changes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    file = tmp_path / "jwks.json"
    async with fed(Server()) as key_sets:
        key_set = key_sets.get(f"file:{file}")
        await trio.sleep(0.5)
        assert key_set.problem == "cannot be read: No such file or directory"
        file.write_bytes(jwks("ec"))
        await trio.sleep(1.1)
        assert [key.key_id for key in key_set.keys] == ["ec-1"]
        file.write_bytes(jwks("rsa"))
        await trio.sleep(1.1)
        assert [key.key_id for key in key_set.keys] == ["rsa-1"]
        file.unlink()
        await trio.sleep(1.1)
        assert [key.key_id for key in key_set.keys] == ["rsa-1"]


async def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks("ec"))
    async with fed(Server()) as key_sets:
        key_set = key_sets.get(f"file:{file}")
        await trio.sleep(0.5)
        file.unlink()
        os.mkfifo(file)
        await trio.sleep(1.1)
        assert key_set.problem == "is not a file"
        assert [key.key_id for key in key_set.keys] == ["ec-1"]


async def test_keys_that_others_had_are_used_while_the_source_is_away(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    server.error = "away"
    async with fed(server, (jwks("rsa"), trio.current_time() - KEPT_S / 2)) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(1)
        assert [key.key_id for key in key_set.keys] == ["rsa-1"]
        assert caplog.messages == [f"jwks {URL}: away, the keys at hand are used"]
        await trio.sleep(KEPT_S / 2 - 100)
        assert key_set.keys
        await trio.sleep(200)
        assert not key_set.keys, "a day has passed since others had read them"


@pytest.mark.parametrize("known", [(b"{", 0.0), (jwks("rsa"), -KEPT_S)])
async def test_keys_that_are_none_or_too_old_are_not_taken_from_others(
    known: tuple[bytes, float], autojump_clock: trio.testing.MockClock
) -> None:
    server = Server()
    server.error = "away"
    async with fed(server, known) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(1)
        assert key_set.keys == ()


async def test_what_the_source_has_comes_before_what_others_had(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fed(Server(), (jwks("rsa"), trio.current_time())) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(1)
        assert [key.key_id for key in key_set.keys] == ["ec-1"]


async def test_what_is_read_is_told_when_it_changes_and_once_a_minute(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks("ec"))
    told: list[tuple[str, bytes]] = []
    async with fed(Server(), told=told) as key_sets:
        key_sets.get(f"file:{file}")
        await trio.sleep(30.5)
        file.write_bytes(b"{")
        await trio.sleep(2)
        file.write_bytes(jwks("rsa"))
        await trio.sleep(2)
        assert told == [(f"file:{file}", jwks("ec")), (f"file:{file}", jwks("rsa"))]
        await trio.sleep(60)
        assert told[2:] == [(f"file:{file}", jwks("rsa"))]


async def test_a_set_that_is_retired_is_fed_no_more(autojump_clock: trio.testing.MockClock) -> None:
    server = Server()
    async with fed(server) as key_sets:
        key_sets.get(URL)
        await trio.sleep(1)
        key_sets.install([])
        await trio.sleep(10 * FRESH_S)
        assert len(server.asked) == 1


async def test_fetch_url_brings_the_document() -> None:
    seen: list[bytes] = []
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    async with server(answering(answer, seen)) as place:
        assert await fetch_url(f"http://127.0.0.1:{place.port}/realms/main/certs?a=1", None) == b"{}"
    assert seen[0].startswith(b"GET /realms/main/certs?a=1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + b" " * 300000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}",
        b"nonsense\r\n\r\n",
    ],
)
async def test_fetch_url_takes_nothing_else(answer: bytes) -> None:
    async with server(answering(answer)) as place:
        with pytest.raises(CallFailed):
            await fetch_url(f"http://127.0.0.1:{place.port}/", None)


async def test_fetch_url_goes_through_an_egress_proxy(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(LOGIN[1])
    async with running(EgressProxy(("127.0.0.1", 1), login=True)) as proxy:
        via = Via(url=proxy.url, user=LOGIN[0], password=f"file:{tmp_path}/password")
        with pytest.raises(CallFailed, match="egress proxy"):
            await fetch_url("https://id.test:8443/jwks", None, None, via)
        missing = Via(url=proxy.url, user=LOGIN[0], password=f"file:{tmp_path}/nothing")
        with pytest.raises(CallFailed, match="the egress proxy's password"):
            await fetch_url("https://id.test:8443/jwks", None, None, missing)
        with pytest.raises(CallFailed, match=r"egress: egress\.deny closes id\.test"):
            await fetch_url("https://id.test/jwks", None, Egress(EgressConfig(deny=("id.test",))), via)
    (head,) = proxy.heads
    assert head.startswith(b"CONNECT id.test:8443 HTTP/1.1\r\n")
    assert b"proxy-authorization: " in head


async def test_fetch_url_tells_of_authorities_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CallFailed, match=r"^ca '.*/ca\.pem' cannot be read: No such file"):
        await fetch_url("https://127.0.0.1:1/", str(tmp_path / "ca.pem"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CallFailed, match=r"' is not a file$"):
        await fetch_url("https://127.0.0.1:1/", str(tmp_path / "pipe"))


@pytest.mark.parametrize("kind", ["[]", "{}", '["RSA"]', "1"])
async def test_a_key_of_an_odd_type_ends_nothing(autojump_clock: trio.testing.MockClock, kind: str) -> None:
    server = Server()
    async with fed(server) as key_sets:
        key_set = key_sets.get(URL)
        await trio.sleep(1)
        server.document = b'{"keys": [{"kty": %b, "kid": "q"}]}' % kind.encode()
        await trio.sleep(FRESH_S * EARLY)
        assert key_set.problem == "holds no key that can be understood"
        assert [key.key_id for key in key_set.keys] == ["ec-1"]
        server.document = jwks("rsa")
        await trio.sleep(FRESH_S)
        assert [key.key_id for key in key_set.keys] == ["rsa-1"]


async def test_query_of_a_source_is_not_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    server.document = b"no keys"
    async with fed(server) as key_sets:
        key_sets.get(f"{URL}?key=CANARY")
        await trio.sleep(1)
    assert any(URL in message for message in caplog.messages)
    assert "CANARY" not in caplog.text
