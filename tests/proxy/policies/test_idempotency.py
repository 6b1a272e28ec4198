"""Requests that are repeated with their key: carried out once, whoever asks and whatever the store suffers."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Generator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ambassador.errors import AlreadyDone, KeyReused, ProxyError
from ambassador.messages import Reply, Request
from ambassador.proxy.policies.idempotency import (
    MARK_S,
    BodyDigest,
    Claim,
    Config,
    Idempotency,
    Mark,
    Record,
    Repeat,
    decode,
    head_of,
    name_of,
)
from ambassador.state.memory import MemoryStore
from ambassador.state.protocol import Get, Named, Put
from ambassador.state.scope import Scopes
from tests.proxy.harness import Origin, Plane, Talk, a_plane, config, finished, until, unused_port
from tests.proxy.stores import SharedStore

CREATED = b"HTTP/1.1 201 Created\r\nLocation: /1\r\nSet-Cookie: a=b\r\ncontent-length: 4\r\n\r\nmade"
BROKEN = b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno"
ROUTE = {"idempotency": "{}", "retry": "off"}


def post(
    key: str = "k", body: bytes = b"pay", path: str = "/", *fields: str, length: int | None = None
) -> bytes:
    lines = "".join(f"{field}\r\n" for field in (f"idempotency-key: {key}", *fields))
    size = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nhost: a\r\n{lines}content-length: {size}\r\n\r\n".encode() + body


def test_key_belongs_to_the_callers_token_where_the_upstream_is_shown_one_made_of_it() -> None:
    requests = [
        Request("POST", b"/", [(b"authorization", token)], 1, proof=(b"authorization",), client="app")
        for token in (b"Bearer a", b"Bearer b")
    ]
    assert len({name_of("r", request, b"k") for request in requests}) == 1
    assert len({name_of("r", request, b"k", of_caller=True) for request in requests}) == 2


class World:
    """Workers with a store, and an origin that answers when it is told."""

    def __init__(self, shared: SharedStore, planes: list[Plane]) -> None:
        self.shared = shared
        self.planes = planes

    async def client(self, worker: int = 0) -> Talk:
        return await self.planes[worker].connect()


@asynccontextmanager
async def a_world(
    origin: Origin | str, workers: int = 1, scopes: list[Scopes] | None = None, **route: str
) -> AsyncIterator[World]:
    shared = SharedStore(workers)
    url = origin if isinstance(origin, str) else origin.url
    async with AsyncExitStack() as stack:
        planes = [
            await stack.enter_async_context(
                a_plane(
                    config(url, **{**ROUTE, **route}),
                    scopes=scopes[worker] if scopes else shared.scopes_of(worker),
                )
            )
            for worker in range(workers)
        ]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shared.answers)
            yield World(shared, planes)
            nursery.cancel_scope.cancel()


async def turns() -> None:
    """Everybody else does what can be done now (the store's answers never end)."""
    for _ in range(300):
        await trio.lowlevel.checkpoint()


async def problem(client: Talk) -> tuple[int, str, bytes]:
    """Status, code and head of an answer made here."""
    head, body = await client.whole()
    return int(head[9:12]), json.loads(body)["code"], head.lower()


async def carried_out(origin: Origin, body: bytes = b"pay", answer: bytes = CREATED) -> Talk:
    talk = await origin.accept()
    await talk.head()
    assert await talk.exactly(len(body)) == body
    await talk.send(answer)
    return talk


async def test_repeat_gets_the_answer_of_the_first_from_any_worker(origin: Origin) -> None:
    async with a_world(origin, 2) as world:
        one, other = await world.client(), await world.client(1)
        await one.send(post())
        talk = await carried_out(origin)
        first = await one.head()
        assert await one.exactly(4) == b"made"
        assert b"idempotent-replayed" not in first
        for client in (other, one):
            await client.send(post())
            head = await client.head()
            assert head.startswith(b"HTTP/1.1 201")
            assert b"Location: /1\r\nSet-Cookie: a=b\r\nidempotent-replayed: true\r\n" in head
            assert head.count(b"x-request-id") == head.count(b"date: ") == head.count(b"content-length") == 1
            assert await client.exactly(4) == b"made"
        assert [plane.counts.replays for plane in world.planes] == [1, 1]
        for each in (one, other, talk):
            each.close()


async def test_repeat_while_the_first_is_in_flight_is_told_so(origin: Origin) -> None:
    async with a_world(origin, 2) as world:
        one, other = await world.client(), await world.client(1)
        await one.send(post())
        talk = await origin.accept()
        await talk.head()
        await other.send(post())
        status, code, head = await problem(other)
        assert (status, code) == (409, "key_in_use")
        assert b"retry-after: 1\r\n" in head
        await talk.send(CREATED)
        assert await one.answer() == (201, b"made")
        await other.send(post())
        assert await other.answer() == (201, b"made")
        for each in (one, other, talk):
            each.close()


@pytest.mark.parametrize(
    "request_",
    [
        post(body=b"pax"), post(body=b"payy"), post(body=b"pa"), post(path="/b"), post(path="/?a"), post(body=b""),
        post().replace(b"POST", b"PUT"), post().replace(b"host: a", b"host: b"),
        b"POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\ntransfer-encoding: chunked\r\n\r\n3\r\npax\r\n0\r\n\r\n",
    ],
)  # fmt: skip
async def test_another_request_with_the_key_is_refused(origin: Origin, request_: bytes) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        talk = await carried_out(origin)
        await client.answer()
        await client.send(request_)
        assert (await problem(client))[:2] == (422, "key_reused")
        client.close()
        talk.close()


async def test_how_a_body_is_framed_does_not_matter(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        talk = await carried_out(origin)
        await client.answer()
        await client.send(
            b"POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\ntransfer-encoding: chunked\r\n\r\n1\r\np\r\n"
        )
        await turns()
        await client.send(b"2\r\nay\r\n0\r\n\r\n")
        assert await client.answer() == (201, b"made")
        client.close()
        talk.close()


@pytest.mark.parametrize(
    "fields", [["authorization: Bearer other"], ["x-api-key: other"], ["cookie: id=other"]]
)
async def test_other_credentials_have_other_keys(origin: Origin, fields: list[str]) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post("k", b"pay", "/", "authorization: Bearer one"))
        talk = await carried_out(origin)
        await client.answer()
        await client.send(post("k", b"pay", "/", *fields))
        await talk.head()
        await talk.exactly(3)
        await talk.send(CREATED.replace(b"made", b"new!"))
        assert await client.answer() == (201, b"new!")
        client.close()
        talk.close()


async def test_requests_without_a_key_are_all_carried_out(origin: Origin) -> None:
    async with a_world(origin) as world:
        client, talk = await world.client(), None
        for request in (post().replace(b"idempotency-key: k\r\n", b""), post().replace(b"POST", b"DELETE")):
            for _ in range(2):
                await client.send(request)
                talk = talk or await origin.accept()
                await talk.head()
                await talk.exactly(3)
                await talk.send(CREATED)
                assert await client.answer() == (201, b"made")
        assert not [each for each in world.shared.scopes[0].asked if isinstance(each, Put)]
        client.close()
        assert talk is not None
        talk.close()


async def test_an_upstreams_failure_is_the_answer(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        talk = await carried_out(origin, answer=BROKEN)
        assert await client.answer() == (500, b"no")
        await client.send(post())
        assert await client.answer() == (500, b"no")
        client.close()
        talk.close()


LATER = b"HTTP/1.1 503 Later\r\nRetry-After: 1\r\ncontent-length: 2\r\n\r\nno"
MANY = b"HTTP/1.1 429 Many\r\ncontent-length: 2\r\n\r\nno"
UNSURE = b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno"


@pytest.mark.parametrize("answer", [LATER, MANY], ids=["503", "429"])
async def test_answer_that_says_that_nothing_was_carried_out_uses_up_no_key(
    origin: Origin, answer: bytes
) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        talk = await carried_out(origin, answer=answer)
        assert (await client.answer())[1] == b"no"
        await client.send(post())
        await talk.head()
        assert await talk.exactly(3) == b"pay"
        await talk.send(CREATED)
        assert await client.answer() == (201, b"made")
        client.close()
        talk.close()


@pytest.mark.parametrize(("first", "kept"), [(UNSURE, True), (LATER, False)], ids=["unsure", "refused"])
async def test_refusal_after_an_attempt_that_may_have_been_carried_out_is_kept(
    origin: Origin, first: bytes, *, kept: bool
) -> None:
    retry = "{attempts: 1, when: [503], backoff: 1ms, retry_after: 2s}"
    async with a_world(origin, retry=retry) as world:
        client = await world.client()
        await client.send(post())
        talk = await carried_out(origin, answer=first)
        await talk.head()
        assert await talk.exactly(3) == b"pay"
        await talk.send(MANY)
        assert (await client.answer())[0] == 429
        await client.send(post())
        if not kept:
            await talk.head()
            assert await talk.exactly(3) == b"pay"
            await talk.send(CREATED)
        assert (await client.answer())[0] == (429 if kept else 201)
        client.close()
        talk.close()


async def test_answer_before_a_retry_that_cannot_be_made_is_the_one_for_repeats(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    retry = "{attempts: 1, when: [500], backoff: 1ms, retry_after: 60s}"
    late = BROKEN.replace(b"\r\n\r\n", b"\r\nretry-after: 5\r\n\r\n")
    async with a_world(origin, retry=retry) as world:
        (plane,) = world.planes
        (upstream,) = plane.service.table.upstreams.values()
        client = await world.client()
        await client.send(post())
        talk = await carried_out(origin, answer=late)
        await until(lambda: plane.counts.attempts)
        upstream.set_endpoints([])
        mock_clock.jump(8)
        for _ in range(2):
            assert await client.answer() == (500, b"no")
            await client.send(post())
        assert await client.answer() == (500, b"no")
        client.close()
        talk.close()


async def test_what_never_went_up_uses_up_no_key() -> None:
    async with a_world(f"http://127.0.0.1:{unused_port()}") as world:
        client = await world.client()
        for _ in range(2):
            await client.send(post())
            assert (await problem(client))[:2] == (503, "connect_failed")
        client.close()


class HeldBack:
    """A first whose answer has come from the origin and waits for the store, which answers when the test says so."""

    def __init__(self, shared: SharedStore, client: Talk, plane: Plane) -> None:
        self.shared = shared
        self.client = client
        self.plane = plane

    @property
    def is_answered(self) -> bool:
        return self.client.stream.socket.fileno() >= 0 and self.plane.service.inflight == 0


@asynccontextmanager
async def held_back(origin: Origin, answer: bytes = CREATED) -> AsyncIterator[HeldBack]:
    shared = SharedStore(1)
    async with a_plane(config(origin.url, **ROUTE), scopes=shared.scopes_of(0)) as plane:
        client = await plane.connect()
        await client.send(post())
        await until(lambda: shared.scopes[0].pending)
        shared.deliver()
        talk = await carried_out(origin, answer=answer)
        await until(lambda: shared.scopes[0].pending)
        await turns()
        yield HeldBack(shared, client, plane)
        client.close()
        talk.close()


@pytest.mark.parametrize("answer", [CREATED, BROKEN])
async def test_answer_is_with_the_store_before_it_is_passed_on(origin: Origin, answer: bytes) -> None:
    async with held_back(origin, answer) as held:
        assert not held.is_answered
        assert held.plane.endpoint.inflight == 0  # the upstream is not held up
        held.shared.deliver()
        assert (await held.client.answer())[1] == answer.partition(b"\r\n\r\n")[2]
        await finished(held.plane)


async def test_store_that_is_late_holds_no_answer_for_longer(
    origin: Origin, mock_clock: trio.testing.MockClock
) -> None:
    async with held_back(origin) as held:
        mock_clock.jump(0.02)
        assert await held.client.answer() == (201, b"made")
        assert held.shared.scopes[0].pending
        held.shared.deliver()
        await held.client.send(post())
        await until(lambda: held.shared.scopes[0].pending)
        held.shared.deliver()
        assert await held.client.answer() == (201, b"made")


async def test_store_that_is_lost_holds_no_answer(origin: Origin) -> None:
    async with held_back(origin) as held:
        held.shared.scopes[0].drop()
        held.shared.deliver()
        assert await held.client.answer() == (201, b"made")


async def test_client_that_leaves_while_its_answer_is_held_back_leaves_nothing(origin: Origin) -> None:
    async with held_back(origin) as held:
        held.client.reset()
        await turns()
        held.shared.deliver()
        await finished(held.plane)


async def test_cancellation_while_an_answer_is_held_back_leaves_nothing(origin: Origin) -> None:
    async with held_back(origin) as held:
        held.plane.clients.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: held.plane.service.connections == 0)
        held.shared.deliver()


async def test_answer_that_streams_is_known_before_its_head_is_passed_on(origin: Origin) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    async with held_back(origin, head + b"4\r\ndata\r\n0\r\n\r\n") as held:
        assert not held.is_answered
        held.shared.deliver()
        await held.client.head()
        assert await held.client.exactly(14) == b"4\r\ndata\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "keys",
    [[""], ["  "], ["a", "a"], ["a", "b"], ["", "a"]],
    ids=["empty", "blank", "twice the same", "two", "empty and another"],
)
async def test_key_that_is_none_is_refused(origin: Origin, keys: list[str]) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        lines = "".join(f"Idempotency-Key: {key}\r\n" for key in keys)
        await client.send(f"POST / HTTP/1.1\r\nhost: a\r\n{lines}content-length: 0\r\n\r\n".encode())
        status, code, head = await problem(client)
        assert (status, code) == (400, "bad_request")
        assert b"\r\nproxy-status: " in head
        assert not world.shared.scopes[0].asked
        client.close()


async def test_what_may_have_been_done_is_not_done_again(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        talk = await origin.accept()
        await talk.head()
        talk.close()
        assert (await problem(client))[:2] == (502, "upstream_reset")
        await client.send(post())
        status, code, head = await problem(client)
        assert (status, code) == (502, "upstream_reset")
        assert b"idempotent-replayed: true" in head
        client.close()


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
async def test_order_that_an_idle_connection_took_before_its_end_is_not_sent_again(
    origin: Origin, method: bytes
) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post("first"))
        talk = await carried_out(origin)
        await client.answer()
        await client.send(post("second").replace(b"POST", method))
        await talk.head()
        assert await talk.exactly(3) == b"pay"
        talk.close()
        assert (await problem(client))[:2] == (502, "upstream_reset")
        client.close()


async def test_answer_that_is_too_long_is_only_known(origin: Origin) -> None:
    async with a_world(origin, idempotency="{max: 10B}") as world:
        client = await world.client()
        long = b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000
        await client.send(post())

        async def give() -> None:
            (await carried_out(origin, b"pay", long)).close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give)
            assert (await client.answer())[1] == b"x" * 200_000
        await client.send(post())
        assert (await problem(client))[:2] == (409, "already_done")
        await client.send(post(body=b"pax"))
        assert (await problem(client))[:2] == (422, "key_reused")
        client.close()


async def test_answer_in_chunks_is_kept(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        talk = await carried_out(origin, answer=head + b"4\r\nmade\r\n0\r\n\r\n")
        await client.head()
        assert await client.exactly(14) == b"4\r\nmade\r\n0\r\n\r\n"
        await client.send(post())
        assert await client.answer() == (200, b"made")
        client.close()
        talk.close()


async def test_client_that_leaves_finds_its_answer_when_it_comes_back(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        talk = await origin.accept()
        await talk.head()
        await talk.exactly(3)
        client.reset()
        await turns()
        await talk.send(CREATED[:-1])
        await turns()
        await talk.send(CREATED[-1:])
        await finished(world.planes[0])
        again = await world.client()
        await again.send(post())
        assert await again.answer() == (201, b"made")
        again.close()
        talk.close()


async def test_client_that_leaves_before_its_mark_is_there_frees_the_key(origin: Origin) -> None:
    shared = SharedStore(1)
    async with a_plane(config(origin.url, **ROUTE), scopes=shared.scopes_of(0)) as plane:
        client = await plane.connect()
        await client.send(post())
        await until(lambda: shared.scopes[0].pending)
        client.reset()
        await finished(plane)
        shared.deliver()
        shared.clock.advance(0.01)
        name = next(each.name for each in shared.scopes[0].asked if isinstance(each, Put))
        found = shared.store.perform(Get(name), shared.clock.now_us)
        assert isinstance(found, Named)
        assert found.version == 0


async def test_body_of_any_size_is_digested_as_it_passes(origin: Origin) -> None:
    body = bytes(range(256)) * 4000
    async with a_world(origin) as world:
        client = await world.client()

        async def upload(data: bytes) -> None:
            await client.send(post(body=data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload, body)
            talk = await carried_out(origin, body)
            assert await client.answer() == (201, b"made")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload, body)
            assert await client.answer() == (201, b"made")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload, body[:-1] + b"x")
            assert (await problem(client))[:2] == (422, "key_reused")
        client.close()
        talk.close()


async def test_early_answer_is_compared_by_what_was_seen(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post(body=b"abc", length=6))
        talk = await origin.accept()
        await talk.head()
        await talk.exactly(3)
        await talk.send(CREATED)
        assert await client.answer() == (201, b"made")
        await client.send(b"def")
        await finished(world.planes[0])
        again = await world.client()
        await again.send(post(body=b"abcxyz"))
        assert await again.answer() == (201, b"made")
        await again.send(post(body=b"abxdef"))
        assert (await problem(again))[:2] == (422, "key_reused")
        for each in (client, again, talk):
            each.close()


async def test_cancellation_while_a_mark_is_waited_for_leaves_nothing(origin: Origin) -> None:
    shared = SharedStore(1)
    async with a_plane(config(origin.url, **ROUTE), scopes=shared.scopes_of(0)) as plane:
        client = await plane.connect()
        await client.send(post())
        await until(lambda: shared.scopes[0].pending)
        plane.clients.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: plane.service.connections == 0)
        shared.deliver()
        client.close()


# ----- the store is lost ----------------------------------------------------------------------------------------------


async def test_lost_store_refuses(origin: Origin) -> None:
    async with a_world(origin) as world:
        world.shared.scopes[0].go_down()
        client = await world.client()
        await client.send(post())
        assert (await problem(client))[:2] == (503, "state_unavailable")
        await client.send(post().replace(b"idempotency-key: k\r\n", b""))
        talk = await carried_out(origin)
        assert await client.answer() == (201, b"made")
        client.close()
        talk.close()


async def test_replicas_own_store_takes_over(origin: Origin) -> None:
    fleet, replica = SharedStore(1), SharedStore(1)
    scopes = Scopes(fleet.scopes[0], replica.scopes[0])
    text = "state: redis://127.0.0.1:1\n" + config(origin.url, **{**ROUTE, "idempotency": "{on_loss: local}"})
    async with a_plane(text, scopes=scopes) as plane:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.answers)
            nursery.start_soon(replica.answers)
            fleet.scopes[0].go_down()
            client = await plane.connect()
            await client.send(post())
            talk = await carried_out(origin)
            assert await client.answer() == (201, b"made")
            await client.send(post())
            assert await client.answer() == (201, b"made")
            fleet.scopes[0].come_up()
            await client.send(post())  # what was done meanwhile is still known here
            assert await client.answer() == (201, b"made")
            client.close()
            talk.close()
            nursery.cancel_scope.cancel()


# ----- parts ----------------------------------------------------------------------------------------------------------


def a_request(method: str = "POST", path: bytes = b"/", **fields: str) -> Request:
    request = Request(
        method, path, [(name.replace("_", "-").encode(), text.encode()) for name, text in fields.items()], 1
    )
    request.path, request.host = path, "a"
    return request


def test_names_tell_nothing_and_differ() -> None:
    names = {
        name_of("r", a_request(), b"key"),
        name_of("s", a_request(), b"key"),
        name_of("r", a_request(), b"kez"),
        name_of("r", a_request(authorization="key"), b""),
        name_of("r", a_request(authorization="x"), b"key"),
        name_of("r", a_request(cookie="x"), b"key"),
        name_of("r", a_request(cookie="x", authorization="x"), b"key"),
    }
    assert len(names) == 7
    assert not [name for name in names if "key" in name.removeprefix("idempotency:")]
    assert name_of("r", a_request(accept="x"), b"key") in names


def test_heads_differ_by_method_path_query_and_host() -> None:
    requests = [a_request(), a_request("PUT"), a_request(path=b"/b"), a_request(), a_request()]
    requests[3].query, requests[4].host = b"", "b"
    requests.append(a_request())
    requests[5].query = b"x"
    assert len({head_of(request) for request in requests}) == 5  # no query, and an empty one, are one


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x91\x07", b"\x90" * 3000])
def test_value_that_nobody_understands_counts_as_in_flight(value: bytes) -> None:
    assert decode(value) is None


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=5), st.integers(0, 45))
def test_digest_does_not_depend_on_the_pieces(body: bytes, cuts: list[int], most: int) -> None:
    whole, pieces = BodyDigest(), BodyDigest(most)
    whole.see(body[:most])
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    for start, end in itertools.pairwise(edges):
        pieces.see(memoryview(body)[start:end])
    assert pieces.value() == whole.value()
    assert pieces.size == len(body)


@given(st.binary(max_size=12), st.binary(max_size=12), st.booleans())
def test_repeat_is_the_same_request_or_refused(first: bytes, second: bytes, whole: bool) -> None:
    digest = BodyDigest()
    digest.see(first)
    repeat = Repeat(Record(b"h", len(first), digest.value(), whole, 200, [], b"x"))
    for at in range(len(second)):
        if not repeat.see(second[at : at + 1]):
            break
    same = second == first if whole else second.startswith(first)
    if same:
        repeat.check()
    else:
        with pytest.raises(KeyReused):
            repeat.check()


def test_repeat_without_a_body_to_give() -> None:
    with pytest.raises(AlreadyDone, match="answered with 201"):
        Repeat(Record(b"h", 0, BodyDigest().value(), True, 201, [], None)).check()


# ----- one claim, whatever its store does -----------------------------------------------------------------------------


class Lane:
    """A clock with timers."""

    def __init__(self, shared: SharedStore) -> None:
        self._time = shared.time

    @property
    def now(self) -> float:
        return self._time.now

    def arm(self, timer: object) -> None:
        self._time.arm(timer)

    def disarm(self, timer: object) -> None:
        if timer in self._time.timers:
            self._time.timers.remove(timer)


class OneClaim(RuleBasedStateMachine):
    """A claim whose store loses questions and answers, goes away and comes back, and lets time pass.

    No record is there before its answer was kept, and none other than that; once nothing is lost any more, the mark of
    a request in flight is held, and the record of one that was answered is there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared = SharedStore(1)
        self.scope = self.shared.scopes[0]
        policy = Idempotency(
            Config(), route="r", clock=Lane(self.shared), fleet=self.scope, replica=self.scope
        )
        put = Put("n", b"\x92\x00\xc4\x01h", ttl_ms=15_000, expect=0)
        named = self.shared.store.perform(put, self.shared.clock.now_us)
        assert isinstance(named, Named)
        self.claim = Claim(policy, self.scope, "n", b"h", named)
        self.over = False

    def found(self) -> Mark | Record | None:
        named = self.shared.store.perform(Get("n"), self.shared.clock.now_us)
        assert isinstance(named, Named)
        return decode(named.value) if named.version else None

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.shared.advance(seconds)
        self.shared.deliver()

    @rule(lose=st.booleans())
    def harm_one(self, lose: bool) -> None:
        (self.scope.lose if lose else self.scope.drop)()

    @rule()
    def keep(self) -> None:
        if not self.over:
            self.over = True
            self.claim.keep(200, [(b"a", b"b"), (b"date", b"x")], b"ok", whole=True)

    @invariant()
    def holds(self) -> None:
        found = self.found()
        assert isinstance(found, Mark | Record | None)
        if isinstance(found, Record):
            assert self.over
            assert (found.status, found.fields, found.body) == (200, [(b"a", b"b")], b"ok")

    def teardown(self) -> None:
        """Nothing is lost any more: the record is there at last, or the mark is held."""
        self.scope._lost = self.scope._dropped = 0
        if not self.over:
            for _ in range(10):
                self.pass_time(5.0)
            assert isinstance(self.found(), Mark)
            self.keep()
        for _ in range(5):
            self.pass_time(1.0)
        assert isinstance(self.found(), Record)


TestOneClaim = OneClaim.TestCase


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_record_is_stored_though_no_answer_came_to_the_last_renewals(dropped: int) -> None:
    """The first was carried out, the next ones not: the version that stands was never heard of."""
    machine = OneClaim()
    machine.harm_one(lose=True)
    machine.pass_time(5.0)
    for _ in range(dropped):
        machine.harm_one(lose=False)
        machine.pass_time(5.0)
    machine.keep()
    machine.teardown()


def test_key_is_freed_though_no_answer_came_to_the_last_renewal() -> None:
    machine = OneClaim()
    machine.harm_one(lose=True)
    machine.pass_time(5.0)
    machine.claim.free()
    machine.pass_time(1.0)
    assert machine.found() is None


def test_claim_takes_no_mark_of_another_claim_of_the_same_request_for_its_own() -> None:
    machine = OneClaim()
    machine.scope.drop(4)
    for _ in range(4):
        machine.pass_time(5.0)  # its mark's time is over
    for version in (0, 1):
        put = Put("n", b"\x93\x00\xc4\x01h\x07", ttl_ms=15_000, expect=version)
        other = machine.shared.store.perform(put, machine.shared.clock.now_us)
        assert isinstance(other, Named)
        assert other.done
    machine.keep()
    machine.pass_time(1.0)
    assert isinstance(machine.found(), Mark)


# ----- one key at several workers -------------------------------------------------------------------------------------


class Pause:
    """What a request that rests gives to whoever drives it."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class FakeWaiter:
    """Rests until it is driven on."""

    async def rest(self, until: float) -> None:
        await Pause()

    def wake(self) -> None:
        """It is looked at anyway."""


class Attempted:
    """A request with the key at one worker: in its look at the store, then in flight, refused or answered."""

    def __init__(self, policy: Idempotency) -> None:
        self.request = a_request(idempotency_key="k")
        self.request.waiter = FakeWaiter()
        looking = policy.hook(self.request)
        assert looking is not None
        self._looking: Generator[None, None, Reply | None] | None = looking.__await__()
        self.reply: Reply | ProxyError | None = None
        self.over = False

    @property
    def in_flight(self) -> bool:
        return self.request.keeper is not None and not self.over

    def go_on(self) -> None:
        if self._looking is None:
            return
        try:
            next(self._looking)
        except StopIteration as done:
            self.reply, self._looking = done.value, None
        except ProxyError as error:
            self.reply, self._looking = error, None

    def leave(self) -> None:
        """The client, before anything has gone up."""
        if self._looking is not None:
            self._looking.close()
            self._looking = None
        self.request.end(0, 0.0)
        self.over = True


class OneKey(RuleBasedStateMachine):
    """Requests with one key at three workers, whose store loses questions and answers: one of them is in flight at a
    time, and once one was answered, none is any more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared = SharedStore(3)
        lane = Lane(self.shared)
        self.policies = [
            Idempotency(Config(), route="r", clock=lane, fleet=scope, replica=scope)
            for scope in self.shared.scopes
        ]
        self.requests: list[Attempted] = []
        self.answered = False

    def drive(self) -> None:
        for each in self.requests:
            each.go_on()

    def deliver_all(self) -> None:
        for scope in self.shared.scopes:
            scope._lost = scope._dropped = 0
        for _ in range(4):
            self.shared.deliver()
            self.drive()

    @rule(worker=st.integers(0, 2))
    def ask(self, worker: int) -> None:
        self.requests.append(Attempted(self.policies[worker]))
        self.drive()

    @rule(worker=st.integers(0, 2))
    def deliver(self, worker: int) -> None:
        self.shared.scopes[worker].deliver(1)
        self.drive()

    @rule(worker=st.integers(0, 2), lose=st.booleans())
    def harm_one(self, worker: int, lose: bool) -> None:
        scope = self.shared.scopes[worker]
        (scope.lose if lose else scope.drop)()

    @rule(seconds=st.sampled_from([0.01, 1.0, 4.0]))
    def pass_time(self, seconds: float) -> None:
        self.deliver_all()
        self.shared.advance(seconds)
        self.deliver_all()

    @rule(at=st.integers(0, 50))
    def leave(self, at: int) -> None:
        if self.requests:
            self.requests[at % len(self.requests)].leave()

    @rule()
    def answer(self) -> None:
        for each in self.requests:
            if each.in_flight and each.request.keeper is not None:
                each.request.keeper.reached = True
                each.request.keeper.keep(201, [], b"made", whole=True)
                each.request.end(201, 0.1)
                each.over = self.answered = True

    @invariant()
    def one_at_a_time(self) -> None:
        in_flight = [each for each in self.requests if each.in_flight]
        assert len(in_flight) <= (0 if self.answered else 1)

    def teardown(self) -> None:
        self.deliver_all()
        self.answer()
        if self.answered:
            self.pass_time(1.0)
            self.pass_time(1.0)
            self.ask(0)
            self.deliver_all()
            reply = self.requests[-1].reply
            assert isinstance(reply, Repeat)
            assert (reply.status, reply.body) == (201, b"made")
        for each in self.requests:
            each.leave()


TestOneKey = OneKey.TestCase


def a_claim(shared: SharedStore, config: Config | None = None) -> Claim:
    scope = shared.scopes[0]
    policy = Idempotency(
        config or Config(), route="r", clock=Lane(shared), fleet=scope, replica=shared.scopes[-1]
    )
    named = shared.store.perform(Put("n", b"m", ttl_ms=15_000, expect=0), shared.clock.now_us)
    assert isinstance(named, Named)
    return Claim(policy, scope, "n", b"h", named)


def stored(shared: SharedStore) -> Named:
    named = shared.store.perform(Get("n"), shared.clock.now_us)
    assert isinstance(named, Named)
    return named


def test_mark_of_a_dead_worker_is_over_in_time() -> None:
    shared = SharedStore(1)
    a_claim(shared)
    shared.time.timers.clear()  # it is dead
    shared.advance(MARK_S - 1)
    assert stored(shared).version
    shared.advance(1.1)
    assert not stored(shared).version


def test_request_that_ends_before_anything_went_up_frees_its_key() -> None:
    shared = SharedStore(1)
    claim = a_claim(shared)
    claim.end(503, 0.1)
    shared.deliver()
    shared.advance(0.01)
    assert not stored(shared).version


async def test_key_that_was_freed_is_free_at_once() -> None:
    shared = SharedStore(1)
    scope = shared.scopes[0]
    policy = Idempotency(Config(), route="r", clock=Lane(shared), fleet=scope, replica=scope)
    for _ in range(3):
        attempted = Attempted(policy)
        while attempted.request.keeper is None:
            shared.deliver()
            attempted.go_on()
        attempted.request.keeper.free()
        attempted.request.keeper.free()
        shared.deliver()
        attempted.request.end(503, 0.1)
    assert not scope.pending


def test_request_that_ends_without_an_answer_keeps_its_key_for_a_while() -> None:
    shared = SharedStore(1)
    claim = a_claim(shared)
    claim.reached = True
    claim.end(0, 0.1)
    shared.advance(MARK_S - 1)
    shared.deliver()
    assert stored(shared).version
    shared.advance(1.1)
    assert not stored(shared).version


def test_claim_that_another_has_taken_over_writes_nothing() -> None:
    shared = SharedStore(1)
    claim = a_claim(shared)
    other = shared.store.perform(Put("n", b"other", ttl_ms=60_000), shared.clock.now_us)
    assert isinstance(other, Named)
    claim.keep(200, [], b"", whole=True)
    shared.deliver()
    assert stored(shared).value == b"other"


def test_store_that_has_forgotten_gets_the_record() -> None:
    shared = SharedStore(1)
    claim = a_claim(shared)
    shared.time.timers.clear()
    shared.advance(MARK_S + 1)
    claim.keep(200, [], b"x" * 70_000, whole=True)
    shared.deliver()
    found = decode(stored(shared).value)
    assert isinstance(found, Record)
    assert found.body is None


def test_head_that_is_too_long_is_not_kept() -> None:
    shared = SharedStore(1)
    claim = a_claim(shared)
    claim.keep(200, [(b"a", b"x" * 30_000)], b"x" * 60_000, whole=True)
    shared.deliver()
    found = decode(stored(shared).value)
    assert isinstance(found, Record)
    assert (found.body, found.fields) == (None, [])


def test_store_without_room_still_learns_that_it_was_done() -> None:
    shared = SharedStore(1)
    shared.store = MemoryStore(shared.clock.now_us, max_bytes=1000)
    claim = a_claim(shared)
    claim.keep(201, [(b"a", b"b")], b"x" * 2000, whole=True)
    shared.deliver()
    found = decode(stored(shared).value)
    assert isinstance(found, Record)
    assert (found.status, found.body, found.fields) == (201, None, [])


async def test_repeat_whose_body_does_not_come_is_given_up(
    origin: Origin, mock_clock: trio.testing.MockClock
) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        talk = await carried_out(origin)
        assert await client.answer() == (201, b"made")
        await client.send(post(body=b"pa", length=3))
        await turns()
        mock_clock.jump(31)
        assert (await problem(client))[:2] == (408, "request_timeout")
        client.close()
        talk.close()


async def test_repeat_whose_client_leaves_inside_its_body_leaves_nothing(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        talk = await carried_out(origin)
        assert await client.answer() == (201, b"made")
        await client.send(post(body=b"pa", length=3))
        await turns()
        client.reset()
        await finished(world.planes[0])
        talk.close()


async def test_repeat_that_waits_to_be_asked_for_its_body_is_asked(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        talk = await carried_out(origin)
        assert await client.answer() == (201, b"made")
        await client.send(post("k", b"", "/", "expect: 100-continue", length=3))
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"pay")
        assert await client.answer() == (201, b"made")
        client.close()
        talk.close()


async def test_stream_is_passed_on_at_once_and_not_kept(origin: Origin) -> None:
    async with a_world(origin) as world:
        client = await world.client()
        await client.send(post())
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        talk = await carried_out(origin, answer=head + b"4\r\ndata\r\n")
        await client.head()
        await client.exactly(9)
        await talk.send(b"0\r\n\r\n")
        await client.exactly(5)
        await client.send(post())
        assert (await problem(client))[:2] == (409, "already_done")
        client.close()
        talk.close()
