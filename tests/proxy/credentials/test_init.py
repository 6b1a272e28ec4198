"""What all credentials have in common, over a real plane: what the upstream sees, and what it never does."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import trio

from ambassador.config.credentials import compile_credential
from ambassador.config.load import load_text
from ambassador.errors import CredentialUnavailable
from ambassador.messages import Request, RequestHead
from ambassador.proxy.credentials import Credential, Fixed, Means
from ambassador.proxy.listener import ListenerLimits
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.upstream import Upstream
from ambassador.secret import Secrets
from tests.proxy.credentials.stage import ANSWER, FAILED, REFUSED, a_stage, asks, authed, begun, fields, seen
from tests.proxy.harness import OK, Origin, a_plane, finished, until


async def test_client_cannot_send_what_the_upstream_is_shown(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("ours")
    async with a_stage(origin, authed(origin.url, f"{{bearer: 'file:{tmp_path}/t'}}")) as stage:
        client, upstream = await begun(stage)
        for lines in (
            (),
            (b"authorization: Bearer theirs",),
            (b"Authorization: Basic x", b"AUTHORIZATION: Bearer theirs"),
            (b"Authorization: Bearer theirs", b"connection: keep-alive, authorization"),
            (b"connection: authorization",),
            (b"connection: close, Authorization",),
        ):
            head = await seen(client, upstream, asks(*lines))
            assert fields(head, b"authorization") == [b"Bearer ours"]
            assert b"theirs" not in head


SPELLINGS = (b"authorization", b"Authorization", b"AUTHORIZATION", b"aUTHORIZATION")
NOMINATIONS = (
    b"", b"connection: authorization\r\n", b"Connection: keep-alive, Authorization,\r\n",
    b"connection: x\r\nconnection:  ,authorization , x\r\n", b"proxy-connection: authorization\r\n", b"te: authorization\r\n",
)  # fmt: skip
VALUES = (b"Bearer theirs", b"", b" \tBasic dGhlaXJz\t", b"Bearer ours theirs", b"theirs, Bearer theirs")


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_that_a_client_sends_is_seen_in_place_of_ours(
    origin: Origin, tmp_path: Path, seed: int
) -> None:
    """However it is spelt, repeated, nominated or placed, by both ways of a request."""
    chance = random.Random(seed)
    (tmp_path / "t").write_text("ours")
    async with a_stage(origin, authed(origin.url, f"{{bearer: 'file:{tmp_path}/t'}}")) as stage:
        client, upstream = await begun(stage)
        for _ in range(60):
            lines = [
                b"%b: %b\r\n" % (chance.choice(SPELLINGS), chance.choice(VALUES))
                for _ in range(chance.randint(0, 3))
            ]
            lines += [chance.choice(NOMINATIONS), b"x: 1\r\n", b"host: a\r\n"]
            chance.shuffle(lines)
            request = b"GET /%d HTTP/1.1\r\n%b\r\n" % (chance.randint(0, 1), b"".join(lines))
            for _ in range(2):
                head = await seen(client, upstream, request)
                assert fields(head, b"authorization") == [b"Bearer ours"], request
                assert b"theirs" not in head, request
                assert b"dGhlaXJz" not in head, request


async def test_names_are_told_apart_as_gateways_tell_them(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("ours")
    auth = f"{{header: {{name: X-Api-Key, value: 'file:{tmp_path}/t'}}}}"
    async with a_stage(origin, authed(origin.url, auth)) as stage:
        client, upstream = await begun(stage)
        head = await seen(client, upstream, asks(b"x-api-key: a", b"X_Api_Key: b", b"x-api_key: c", b"y: d"))
        assert fields(head, b"x-api-key") == [b"ours"]
        assert fields(head, b"y") == [b"d"]


async def test_secret_that_changed_is_sent_from_then_on(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("one")
    async with a_stage(origin, authed(origin.url, f"{{bearer: 'file:{tmp_path}/t'}}")) as stage:
        client, upstream = await begun(stage)
        assert fields(await seen(client, upstream, asks()), b"authorization") == [b"Bearer one"]
        (tmp_path / "t").write_text("two")
        stage.plane.lasting.means.secrets.refresh()
        assert fields(await seen(client, upstream, asks()), b"authorization") == [b"Bearer two"]
        assert fields(await seen(client, upstream, asks()), b"authorization") == [b"Bearer two"]


@pytest.mark.parametrize("content", [None, "", "two\nlines", "nul\0"])
async def test_secret_that_cannot_be_had_is_a_coded_answer_and_nothing_is_sent(
    origin: Origin, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "t").write_text(content)
    async with a_stage(origin, authed(origin.url, f"{{bearer: 'file:{tmp_path}/t'}}")) as stage:
        client = await stage.client()
        for _ in range(2):
            await client.send(asks())
            status, body = await client.answer()
            assert status == 503
            assert b'"credential_unavailable"' in body
            assert b"upstream u" in body
            assert str(tmp_path).encode() not in body
            assert b"lines" not in body
        (tmp_path / "t").write_text("late")
        stage.plane.lasting.means.secrets.refresh()
        await client.send(asks())
        upstream = await stage.upstream()
        assert fields(await upstream.head(), b"authorization") == [b"Bearer late"]
        await upstream.send(ANSWER)
        assert (await client.answer())[0] == 200
        assert stage.plane.counts.attempts == ["200"]


async def test_secret_that_cannot_be_had_leaves_it_to_the_fallback(origin: Origin, tmp_path: Path) -> None:
    config = authed(
        origin.url,
        f"{{bearer: 'file:{tmp_path}/t'}}",
        route=", fallback: {to: other}",
        upstreams=f", other: {{endpoints: [{origin.url}]}}",
    )
    async with a_stage(origin, config) as stage:
        client = await stage.client()
        await client.send(asks(b"authorization: Bearer theirs"))
        upstream = await stage.upstream()
        head = await upstream.head()
        assert fields(head, b"authorization") == [
            b"Bearer theirs"
        ]  # the other upstream is shown nothing of ours
        await upstream.send(ANSWER)
        assert (await client.answer())[0] == 200


async def test_credential_is_not_sent_in_plaintext_to_where_a_name_leads(
    origin: Origin, tmp_path: Path
) -> None:
    (tmp_path / "t").write_text("ours")
    config = authed(f"http://localhost:{origin.address[1]}", f"{{bearer: 'file:{tmp_path}/t'}}")
    async with a_stage(origin, config) as stage:
        stage.plane.service.table.set_addresses("localhost", ("192.0.2.1", "2001:db8::1"))
        client = await stage.client()
        await client.send(asks())
        status, body = await client.answer()
        assert (status, b"plaintext" in body) == (503, True)
        assert "plaintext" in stage.plane.service.table.upstreams["u"].why_not(stage.plane.endpoint)
        stage.plane.service.table.set_addresses("localhost", ("192.0.2.1", "127.0.0.1"))
        await client.send(asks())
        upstream = await stage.upstream()
        assert fields(await upstream.head(), b"authorization") == [b"Bearer ours"]
        await upstream.send(ANSWER)
        assert (await client.answer())[0] == 200


async def test_answer_to_a_trace_shows_no_credential(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("ours")
    async with a_stage(origin, authed(origin.url, f"{{bearer: 'file:{tmp_path}/t'}}")) as stage:
        client, upstream = await begun(stage)
        for _ in range(2):
            head = await seen(
                client, upstream, b"TRACE /x HTTP/1.1\r\nhost: a\r\nauthorization: theirs\r\n\r\n"
            )
            assert fields(head, b"authorization") == []


async def test_trailer_cannot_pass_for_the_credential(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("ours")
    auth = f"{{header: {{name: x-key, value: 'file:{tmp_path}/t'}}}}"
    async with a_stage(origin, authed(origin.url, auth)) as stage:
        client, upstream = await begun(stage)
        start = b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        await client.send(start + b"1\r\na\r\n0\r\nX-Key: theirs\r\nx-sum: 1\r\n\r\n")
        assert fields(await upstream.head(), b"x-key") == [b"ours"]
        assert await upstream.exactly(21) == b"1\r\na\r\n0\r\nx-sum: 1\r\n\r\n"
        await upstream.send(ANSWER)
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("auth", ["{{bearer: 'file:{}'}}", "{{header: {{name: x-key, value: 'file:{}'}}}}"])
async def test_all_clients_are_one_to_an_upstream_that_is_shown_ours(
    origin: Origin, tmp_path: Path, auth: str
) -> None:
    """A pause that it asks for is for the credential that it was shown."""
    (tmp_path / "t").write_text("ours")
    config = authed(origin.url, auth.format(tmp_path / "t")).replace("auth:", "cooldown: credential, auth:")
    async with a_stage(origin, config) as stage:
        client = await stage.client()
        await client.send(asks(b"authorization: Bearer ann"))
        upstream = await stage.upstream()
        await upstream.head()
        await upstream.send(ANSWER.replace(b"200 OK", b"429 Slow\r\nretry-after: 9"))
        assert (await client.answer())[0] == 429
        await client.send(asks(b"authorization: Bearer bob"))
        status, body = await client.answer()
        assert (status, b"breaker_open" in body) == (503, True)


async def test_answers_that_are_kept_are_for_all_callers_of_the_route(origin: Origin, tmp_path: Path) -> None:
    """What the upstream is shown is the route's, so nothing in the cache is of one caller only."""
    (tmp_path / "t").write_text("ours")
    config = authed(origin.url, f"{{bearer: 'file:{tmp_path}/t'}}", route=", cache: {ttl: 60s}")
    async with a_stage(origin, config) as stage:
        client = await stage.client()
        await client.send(asks())
        upstream = await stage.upstream()
        await upstream.head()
        await upstream.send(OK)
        assert await client.answer() == (200, b"ok")
        await client.send(asks())
        assert await client.answer() == (200, b"ok")
        head = await seen(client, upstream, asks(b"authorization: Bearer theirs"))  # may see something else
        assert fields(head, b"authorization") == [b"Bearer ours"]
        assert stage.plane.counts.attempts == ["200", "200"]


class Renewed(Credential):
    """A token that is fetched, and may be fetched again once it was refused."""

    renewable = True

    def __init__(self, *, waits: bool = False) -> None:
        super().__init__("u", ["authorization"])
        self.number = 1
        self.waits = waits
        self.refusals = 0

    def in_hand(self, request: Request) -> bool:
        return not self.waits

    async def fetched(self, request: Request) -> None:
        assert request.waiter is not None
        request.waiter.wake()
        await request.waiter.rest(float("inf"))
        self.waits = False

    def put(self, request: Request, head: RequestHead, endpoint: Endpoint) -> None:
        self.replace(head, (b"authorization", b"%d" % self.number))

    def refused(self, request: Request, began: float) -> bool:
        self.refusals += 1
        self.number += 1
        return True


async def test_upstream_that_says_401_is_asked_once_more_with_a_fresh_one(
    origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewed = Renewed()
    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: renewed)
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}", route=", retry: off")) as stage:
        client = await stage.client()
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody")
        upstream = await stage.upstream()
        assert fields(await upstream.head(), b"authorization") == [b"1"]
        assert await upstream.exactly(4) == b"body"
        await upstream.send(REFUSED)
        assert fields(await upstream.head(), b"authorization") == [b"2"]
        assert await upstream.exactly(4) == b"body"
        await upstream.send(ANSWER)
        assert (await client.answer())[0] == 200
        await client.send(asks())
        for number in (b"2", b"3"):
            assert fields(await upstream.head(), b"authorization") == [number]
            await upstream.send(REFUSED)
        assert (await client.answer())[0] == 401  # not asked for ever
        assert renewed.refusals == 2
        await finished(stage.plane)
        assert stage.plane.counts.attempts == ["401", "200", "401", "401"]


async def test_renewed_attempt_is_no_retry(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: Renewed())
    route = ", retry: {attempts: 1, when: [503], backoff: 1ms..1ms}"
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}", route=route)) as stage:
        client = await stage.client()
        await client.send(asks())
        upstream = await stage.upstream()
        for answer, mark in ((REFUSED, []), (FAILED, []), (ANSWER, [b"2"])):
            assert fields(await upstream.head(), b"x-ambassador-attempt") == mark
            await upstream.send(answer)
        assert (await client.answer())[0] == 200


async def test_request_that_cannot_be_sent_again_has_the_next_one_shown_another(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = Renewed()
    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: renewed)
    route = ", retry: {buffer: 1B, attempts: 1}"
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}", route=route)) as stage:
        client = await stage.client()
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody")
        upstream = await stage.upstream()
        await upstream.head()
        await upstream.exactly(4)
        await upstream.send(REFUSED)
        assert (await client.answer())[0] == 401
        assert renewed.refusals == 1
        assert fields(await seen(client, upstream, asks()), b"authorization") == [b"2"]


@pytest.mark.parametrize("waits", [False, True])
async def test_refusal_is_passed_on_where_there_is_no_other_credential(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    class Gone(Renewed):
        def in_hand(self, request: Request) -> bool:
            if self.refusals and not self.waits:
                raise self.unavailable()
            return not self.refusals

        async def fetched(self, request: Request) -> None:
            await super().fetched(request)
            raise self.unavailable()

    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: Gone(waits=waits))
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        client = await stage.client()
        await client.send(asks())
        upstream = await stage.upstream()
        await upstream.head()
        await upstream.send(REFUSED)
        assert (await client.answer())[0] == 401
        await finished(stage.plane)
        assert stage.plane.counts.attempts == ["401"]


async def test_refusal_is_told_with_the_time_at_which_the_attempt_began(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[float] = []

    class Timed(Renewed):
        varies = False

        def line(self) -> bytes:
            began.append(stage.plane.lane.now)
            return b"\r\nauthorization: 1"

        def refused(self, request: Request, began_at: float) -> bool:
            began.append(began_at)
            return False

    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: Timed())
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        client, upstream = await begun(stage)
        began.clear()
        await client.send(asks())
        await upstream.head()
        await upstream.send(REFUSED)
        assert (await client.answer())[0] == 401
        assert len(began) == 2, "it went the short way"
        assert began[0] == began[1]


async def test_attempt_begins_when_the_credential_is_there(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[float] = []
    began: list[float] = []

    class Slow(Renewed):
        async def fetched(self, request: Request) -> None:
            waiter = request.waiter
            assert waiter is not None
            until_s = lane.now + 0.02
            while lane.now < until_s:
                await waiter.rest(until_s)
            self.waits = False
            came.append(lane.now)

        def refused(self, request: Request, began_at: float) -> bool:
            began.append(began_at)
            return False

    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: Slow(waits=True))
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        lane = stage.plane.lane
        client = await stage.client()
        await client.send(asks())
        upstream = await stage.upstream()
        await upstream.head()
        await upstream.send(REFUSED)
        assert (await client.answer())[0] == 401
        assert began == came


async def test_wait_for_a_credential_ends_with_the_request(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never(Renewed):
        async def fetched(self, request: Request) -> None:
            assert request.waiter is not None
            while True:
                await request.waiter.rest(float("inf"))

    never = Never(waits=True)
    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: never)
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}", route=", timeout: 30ms")) as stage:
        client = await stage.client()
        await client.send(asks())
        assert (await client.answer())[0] == 504
        await client.send(asks())
        await until(lambda: stage.plane.service.inflight == 1)
        client.reset()
        await finished(stage.plane)


async def test_credential_that_is_fetched_is_waited_for(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: Renewed(waits=True))
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        client = await stage.client()
        await client.send(asks())
        upstream = await stage.upstream()
        assert fields(await upstream.head(), b"authorization") == [b"1"]
        await upstream.send(ANSWER)
        assert (await client.answer())[0] == 200


def test_fixed_credential_is_made_again_only_when_a_secret_changes(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_text("one")
    secrets = Secrets(logging.getLogger("test"))
    secret = secrets.get(f"file:{file}")
    made: list[str] = []

    def make() -> str:
        made.append(secret.value)
        return secret.value

    credential = Fixed("u", "X-Key", [secret], make)
    assert credential.problem() is None
    assert credential.line() == credential.line() == b"\r\nX-Key: one"
    assert made == ["one"]
    file.write_text("two")
    secrets.refresh()
    assert credential.line() == b"\r\nX-Key: two"
    file.write_text("bad\r\nx: y")
    secrets.refresh()
    assert credential.line() is None
    assert credential.problem() == "the credential for upstream u cannot be the value of a header"
    with pytest.raises(CredentialUnavailable) as raised:
        credential.in_hand(Request("GET", b"/", [], 1))
    assert "bad" not in raised.value.detail
    assert "two" not in repr(credential)


def test_upstream_without_a_credential_is_shown_what_clients_send() -> None:
    assert Upstream("u", [], lambda: 0.5).credential is None


class Reader(Credential):
    """Looks at bodies of up to eight bytes."""

    reads = 8

    def __init__(self) -> None:
        super().__init__("u", ["x-body"])

    def put(self, request: Request, head: RequestHead, endpoint: Endpoint) -> None:
        self.replace(head, (b"x-body", repr(head.body).encode()))


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: Reader())


async def test_body_that_is_signed_is_waited_for(origin: Origin, reader: None) -> None:
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        client = await stage.client()
        for start, pieces, body in (
            (b"content-length: 4", [b"bo", b"dy"], b"body"),
            (b"transfer-encoding: chunked", [b"2\r\nbo\r\n", b"2\r\ndy\r\n0\r\n\r\n"], b"body"),
            (b"content-length: 0", [], b""),
        ):
            await client.send(
                b"POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n" + start + b"\r\n\r\n"
            )
            if pieces:
                assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
            for piece in pieces:
                await until(lambda: not stage.plane.lane._runnable)
                await client.send(piece)
            upstream = stage.talks[1] if len(stage.talks) > 1 else await stage.upstream()
            head = await upstream.head()
            assert fields(head, b"x-body") == [repr(body).encode()]
            assert fields(head, b"content-length") == [b"%d" % len(body)]
            assert await upstream.exactly(len(body)) == body
            await upstream.send(ANSWER)
            assert (await client.answer())[0] == 200


async def test_body_that_is_too_long_to_be_signed_is_not_waited_for(origin: Origin, reader: None) -> None:
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        client = await stage.client()
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n01")
        upstream = await stage.upstream()
        assert fields(await upstream.head(), b"x-body") == [b"None"]
        await client.send(b"23456789")
        assert await upstream.exactly(10) == b"0123456789"
        await upstream.send(ANSWER)
        assert (await client.answer())[0] == 200
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n")
        await client.send(b"5\r\n56789\r\n")
        head = await upstream.head()
        assert fields(head, b"x-body") == [b"None"]
        assert fields(head, b"transfer-encoding") == [b"chunked"]
        await client.send(b"0\r\n\r\n")
        assert await upstream.exactly(20) == b"a\r\n0123456789\r\n0\r\n\r\n"
        await upstream.send(ANSWER)
        assert (await client.answer())[0] == 200


async def test_client_that_leaves_while_its_body_is_waited_for_leaves_nothing_behind(
    origin: Origin, reader: None
) -> None:
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        client = await stage.client()
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbo")
        await until(lambda: stage.plane.service.inflight == 1)
        client.reset()
        await finished(stage.plane)


async def test_retry_is_signed_anew_with_the_whole_body(origin: Origin, reader: None) -> None:
    retried = authed(
        origin.url,
        "{bearer: 'env:HOME'}",
        route=", retry: {attempts: 1, when: [503], methods: all, backoff: 1ms}",
    )
    async with a_stage(origin, retried) as stage:
        client = await stage.client()
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbo")
        await until(lambda: stage.plane.service.inflight == 1)
        await client.send(b"dy")
        upstream = await stage.upstream()
        for said in (ANSWER.replace(b"200 OK", b"503 No"), ANSWER):
            assert fields(await upstream.head(), b"x-body") == [b"b'body'"]
            assert await upstream.exactly(4) == b"body"
            await upstream.send(said)
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("waits_for", ["the body", "the credential"])
async def test_worker_that_ends_meanwhile_leaves_nothing_behind(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, waits_for: str
) -> None:
    class Never(Renewed):
        async def fetched(self, request: Request) -> None:
            assert request.waiter is not None
            while True:
                await request.waiter.rest(float("inf"))

    credential = Reader() if waits_for == "the body" else Never(waits=True)
    monkeypatch.setattr("ambassador.config.compile.compile_credential", lambda *_: credential)
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        client = await stage.client()
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbo")
        await until(lambda: stage.plane.service.inflight == 1)
        stage.plane.clients.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: stage.plane.service.connections == 0)
            assert not any(stage.plane.leftovers().values()), stage.plane.leftovers()


async def test_callers_deadline_holds_while_its_body_is_waited_for(origin: Origin, reader: None) -> None:
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        client = await stage.client()
        await client.send(
            b"POST /x HTTP/1.1\r\nhost: a\r\nx-envoy-upstream-rq-timeout-ms: 30\r\ncontent-length: 4\r\n\r\nbo"
        )
        status, body = await client.answer()
        assert (status, b"deadline_exceeded" in body) == (504, True)


async def test_client_that_stops_in_its_body_is_told_that_it_came_too_late(
    origin: Origin, reader: None
) -> None:
    config = authed(origin.url, "{bearer: 'env:HOME'}")
    async with a_plane(config, ListenerLimits(body_timeout=0.03)) as plane:
        client = await plane.connect()
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbo")
        status, body = await client.answer()
        assert (status, b"request_timeout" in body) == (408, True)
        client.close()


async def test_body_that_is_malformed_is_refused_before_anything_is_sent(
    origin: Origin, reader: None
) -> None:
    async with a_stage(origin, authed(origin.url, "{bearer: 'env:HOME'}")) as stage:
        client = await stage.client()
        await client.send(
            b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nbo\r\nzz\r\n"
        )
        status, body = await client.answer()
        assert (status, b"bad_request" in body) == (400, True)


EXPECTING = b"PUT /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("auth", "status"),
    [
        ("{{hmac: {{key: 'file:{good}', buffer: 4KiB}}}}", 413),
        (
            "{{aws_sigv4: {{service: execute-api, region: a, access_key: 'file:{good}', secret_key: 'file:{good}', buffer: 4KiB}}}}",
            413,
        ),
        ("{{bearer: 'file:{bad}'}}", 503),
        ("{{jwt: {{key: 'file:{bad}', claims: {{iss: a}}}}}}", 503),
    ],
)
async def test_refusal_that_is_known_comes_before_the_body(
    origin: Origin, tmp_path: Path, auth: str, status: int
) -> None:
    (tmp_path / "good").write_text("k" * 40)
    (tmp_path / "bad").write_bytes(b"a\r\nb")
    text = authed(origin.url, auth.format(good=tmp_path / "good", bad=tmp_path / "bad"))
    async with a_stage(origin, text) as stage:
        client = await stage.client()
        await client.send(EXPECTING % 5000)
        assert (await client.answer())[0] == status


async def test_fallback_asks_for_the_body_that_the_credential_was_in_the_way_of(
    origin: Origin, tmp_path: Path
) -> None:
    (tmp_path / "bad").write_bytes(b"a\r\nb")
    text = f"""
version: 1
listen: 127.0.0.1:80
upstreams:
  shown: {{endpoints: ['{origin.url}'], auth: {{bearer: 'file:{tmp_path}/bad'}}}}
  other: {{endpoints: ['{origin.url}']}}
routes: [{{name: r, to: shown, fallback: {{to: other}}}}]
"""
    async with a_stage(origin, text) as stage:
        client = await stage.client()
        await client.send(EXPECTING % 4)
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"body")
        upstream = await stage.upstream()
        await upstream.head()
        assert await upstream.exactly(4) == b"body"
        await upstream.send(ANSWER)
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    ("auth", "why"),
    [
        ("{{bearer: 'file:{bad}'}}", "cannot be the value of a header, as upstream u wants it"),
        (
            "{{header: {{name: x-key, value: 'file:{bad}'}}}}",
            "cannot be the value of a header, as upstream u wants it",
        ),
        (
            "{{jwt: {{key: 'file:{bad}', algorithm: RS256, claims: {{iss: a}}}}}}",
            "is no key for RS256 (upstream u)",
        ),
        ("{{hmac: {{key: 'file:{bad}', encoding: base64}}}}", "is not base64, as upstream u wants it"),
        (
            "{{aws_sigv4: {{service: s3, region: a, access_key: 'file:{bad}', secret_key: 'file:{bad}'}}}}",
            "cannot be the value of a header, as upstream u wants it",
        ),
    ],
)
def test_secret_that_cannot_be_used_is_logged_once_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, auth: str, why: str
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"CANARY\r\nCANARY")
    config = load_text(authed("http://127.0.0.1:1", auth.format(bad=bad)))
    written = config.upstreams["u"].auth
    assert written is not None
    credential = compile_credential(written, "u", Means(Secrets(), lambda: 0.0, None))
    for _ in range(3):
        assert credential.problem() is not None
    assert caplog.messages == [f"file:{bad}: {why}"]
