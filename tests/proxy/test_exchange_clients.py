"""Who calls, through a worker's data plane: the same on the short way and on the long one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from ambassador.messages import Request
from ambassador.proxy import jose
from ambassador.proxy.policies.idempotency import name_of
from tests.proxy.clients import tokens
from tests.proxy.clients.tokens import ATTACKS
from tests.proxy.harness import OK, Origin, Plane, Talk, a_plane, until

HEAD = "version: 1\nlisten: 127.0.0.1:80\n"
KEYS = "clients: {a: {api_key: 'env:CALL_A'}, b: {api_key: 'env:CALL_B'}, f: {api_key: 'env:CALL_F', forward: true}}\n"
TOKENS = (
    f"clients: {{a: {{jwt: {{issuer: '{tokens.ISSUER}', audience: {tokens.AUDIENCE}, jwks: 'https://id.test/jwks',"
    " claims: {sub: svc-a}}}, b: {api_key: 'env:CALL_B'}}\n"
)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("A", "B", "F"):
        monkeypatch.setenv(f"CALL_{name}", f"key-{name}")


@dataclass
class World:
    """A data plane with one route to an origin, and what reached that."""

    plane: Plane
    origin: Origin
    heads: list[bytes]
    talks: list[Talk] = field(default_factory=list)

    async def connect(self) -> Talk:
        self.talks.append(await self.plane.connect())
        return self.talks[-1]


@asynccontextmanager
async def a_world(clients: str, route: str = "", *, fed: bool = True) -> AsyncIterator[World]:
    origin = Origin()
    heads: list[bytes] = []

    def reply(head: bytes) -> bytes:
        heads.append(head)
        return OK

    config = f"{HEAD}{clients}routes: [{{name: r, to: ['{origin.url}']{route}}}]"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(origin.serves, reply)
        async with a_plane(config) as plane:
            if fed:
                for key_set in plane.lasting.key_sets:
                    key_set.begin()
                    key_set.feed(jose.read_keys(tokens.jwks()))
            world = World(plane, origin, heads)
            try:
                yield world
            finally:
                for talk in world.talks:
                    talk.close()
        nursery.cancel_scope.cancel()
    origin.close()


def get(*lines: bytes, path: bytes = b"/") -> bytes:
    return b"".join([b"GET %b HTTP/1.1\r\nhost: a\r\n" % path, *(line + b"\r\n" for line in lines), b"\r\n"])


async def status(talk: Talk, request: bytes) -> int:
    await talk.send(request)
    return (await talk.answer())[0]


WAYS = pytest.mark.parametrize("more", [b"x-a: b", b"te: trailers"], ids=["short", "long"])
"""The second field is one that no plain request has."""


@pytest.mark.parametrize("name", [name for name, _, _ in ATTACKS])
async def test_no_attack_on_tokens_reaches_the_upstream(name: str) -> None:
    make, doubt = next((make, doubt) for known, make, doubt in ATTACKS if known == name)
    token = make(time.time()).replace(b"\0", b"")
    async with a_world(TOKENS, ", access: [a]") as world:
        talk = await world.connect()
        await talk.send(get(b"authorization: Bearer " + token))
        head = await talk.head()
        assert head.startswith(b"HTTP/1.1 401 ")
        assert b'www-authenticate: Bearer realm="ambassador", error="invalid_token"\r\n' in head
        assert world.heads == []
        assert world.plane.counts.refusals == [doubt]


@WAYS
async def test_a_good_token_passes_and_is_taken_out(more: bytes) -> None:
    token = tokens.sign(time.time())
    async with a_world(TOKENS, ", access: [a]") as world:
        talk = await world.connect()
        for _ in range(3):
            assert await status(talk, get(b"Authorization: Bearer " + token, more)) == 200
        assert len(world.heads) == 3
        assert not any(token in head or b"uthorization" in head for head in world.heads)
        assert world.plane.counts.asked == ["a"] * 3


@WAYS
async def test_credentials_of_others_go_on_untouched(more: bytes) -> None:
    async with a_world(KEYS, ", access: [a, f]") as world:
        talk = await world.connect()
        other = b"Authorization: Bearer of-the-upstream"
        assert await status(talk, get(b"X-Api-Key: key-A", other, more)) == 200
        assert await status(talk, get(b"X-Api-Key: key-F", other, more)) == 200
        assert [b"key-" in head for head in world.heads] == [False, True]
        assert all(other in head for head in world.heads)


@WAYS
async def test_on_a_route_for_anybody_a_wrong_credential_passes_as_it_came(more: bytes) -> None:
    async with a_world(KEYS, ", headers: {request: {set: {x-who: '{client}'}}}") as world:
        talk = await world.connect()
        assert await status(talk, get(b"X-Api-Key: guess", more)) == 200
        assert await status(talk, get(b"X-Api-Key: key-A", more)) == 200
        assert [b"X-Api-Key: guess" in head for head in world.heads] == [True, False]
        assert [b"x-who: a\r\n" in head for head in world.heads] == [False, True]


@WAYS
async def test_who_is_known_and_not_listed_is_forbidden_and_the_connection_stays(more: bytes) -> None:
    async with a_world(KEYS, ", access: [a]") as world:
        talk = await world.connect()
        for key, answer in (
            (b"key-B", 403),
            (b"key-A", 200),
            (b"guess", 401),
            (b"key-B", 403),
            (b"key-A", 200),
        ):
            assert await status(talk, get(b"x-api-key: " + key, more)) == answer
        assert await status(talk, get(more)) == 401
        assert world.plane.counts.refusals == ["forbidden", "unknown", "forbidden", "missing"]
        assert len(world.heads) == 2


async def test_pipelined_requests_are_each_their_own_clients() -> None:
    async with a_world(KEYS, ", access: [a]") as world:
        talk = await world.connect()
        keys = [b"key-A", b"key-B", b"key-A", b"guess", b"key-A"]
        await talk.send(b"".join(get(b"x-api-key: " + key) for key in keys))
        assert [(await talk.answer())[0] for _ in keys] == [200, 403, 200, 401, 200]
        assert len(world.heads) == 3


async def test_http_1_0_is_identified_too() -> None:
    async with a_world(KEYS, ", access: [a]") as world:
        for key, answer in ((b"key-A", b"200"), (b"key-B", b"403")):
            talk = await world.connect()
            await talk.send(b"GET / HTTP/1.0\r\nx-api-key: " + key + b"\r\n\r\n")
            assert (await talk.rest()).split(b" ")[1] == answer


async def test_trailers_prove_nothing_and_carry_no_credential() -> None:
    async with a_world(KEYS, ", access: [a]") as world:
        talk = await world.connect()
        body = b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-api-key: key-A\r\n\r\n"
        assert await status(talk, b"POST / HTTP/1.1\r\nhost: a\r\n" + body) == 401
        assert world.heads == []


async def test_a_connection_field_does_not_hide_a_credential() -> None:
    async with a_world(KEYS, ", access: [a]") as world:
        talk = await world.connect()
        assert await status(talk, get(b"connection: x-api-key", b"x-api-key: key-A")) == 200
        assert await status(talk, get(b"connection: x-api-key", b"x-api-key: guess")) == 401
        assert b"x-api-key" not in world.heads[0].lower()


async def test_a_body_is_not_asked_for_before_access_is_given() -> None:
    async with a_world(KEYS, ", access: [a]") as world:
        talk = await world.connect()
        await talk.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
        assert (await talk.head()).startswith(b"HTTP/1.1 401 ")


async def test_grpc_is_answered_in_its_own_way() -> None:
    async with a_world(KEYS, ", access: [a]") as world:
        talk = await world.connect()
        for key, answer in ((b"guess", b"grpc-status: 16\r\n"), (b"key-B", b"grpc-status: 7\r\n")):
            await talk.send(get(b"content-type: application/grpc", b"x-api-key: " + key))
            assert answer in await talk.head()


async def test_the_health_target_is_for_everybody() -> None:
    async with a_world(KEYS, ", access: [a]") as world:
        talk = await world.connect()
        assert await status(talk, get(path=b"/.well-known/ambassador/health")) == 200


async def test_routes_are_chosen_by_client() -> None:
    route = (
        ", match: {client: a}}, {name: other, match: {client: '*'}, respond: 204}, {name: rest, respond: 202"
    )
    async with a_world(KEYS, route) as world:
        talk = await world.connect()
        asked = [(b"key-A", 200), (b"key-B", 204), (b"guess", 202), (b"key-A", 200)]
        for key, answer in asked:
            await talk.send(get(b"x-api-key: " + key))
            assert (await talk.head()).startswith(b"HTTP/1.1 %d" % answer)
            if answer == 200:
                await talk.exactly(2)


async def test_limits_count_each_client_and_all_others_together() -> None:
    async with a_world(KEYS, ", limit: {rate: 1/h, burst: 1, per: client, mode: local}") as world:
        talk = await world.connect()
        for key in (b"key-A", b"key-B", b"guess"):
            assert [await status(talk, get(b"x-api-key: " + key)) for _ in range(2)] == [200, 429]
        assert await status(talk, get()) == 429


@WAYS
async def test_a_key_that_is_replaced_holds_no_more(more: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old")
    async with a_world(f"clients: {{a: {{api_key: 'file:{file}'}}}}\n", ", access: [a]") as world:
        talk = await world.connect()
        assert await status(talk, get(b"x-api-key: old", more)) == 200
        file.write_text("new")
        lasting, clients = world.plane.lasting, world.plane.service.table.clients
        assert clients is not None
        lasting.means.secrets.refresh()
        clients.refresh()
        assert await status(talk, get(b"x-api-key: old", more)) == 401
        assert await status(talk, get(b"x-api-key: new", more)) == 200


@WAYS
async def test_a_token_whose_key_is_withdrawn_holds_no_more(more: bytes) -> None:
    request = get(b"authorization: Bearer " + tokens.sign(time.time()), more)
    async with a_world(TOKENS, ", access: [a]") as world:
        talk = await world.connect()
        assert await status(talk, request) == 200
        for key_set in world.plane.lasting.key_sets:
            key_set.feed(jose.read_keys(tokens.jwks("ec")))
        assert await status(talk, request) == 401


async def test_a_head_that_was_seen_does_not_carry_one_connections_client_to_another() -> None:
    clients = "clients: {a: {mtls: {san: [a.test]}}, b: {mtls: {san: [b.test]}}}\n"
    async with a_world(clients, ", access: [a]") as world:
        talks: list[Talk] = []
        known: set[object] = set()
        for names in ((("DNS", "a.test"),), (("DNS", "b.test"),), ()):
            talks.append(await world.connect())
            await until(lambda: world.plane.listener.connections == len(talks))
            (newest,) = world.plane.listener._clients - known
            newest.peer.names = names
            known.add(newest)
        for _ in range(3):
            assert [await status(talk, get()) for talk in talks] == [200, 403, 401]
        assert len(world.heads) == 3


async def test_a_request_waits_for_keys_that_are_on_their_way() -> None:
    async with a_world(TOKENS, ", access: [a]", fed=False) as world:
        talk = await world.connect()
        await talk.send(get(b"authorization: Bearer " + tokens.sign(time.time())))
        (key_set,) = world.plane.lasting.key_sets
        await until(lambda: key_set._waiting)
        assert world.heads == []
        world.plane.lane.tick()
        key_set.feed(jose.read_keys(tokens.jwks()))
        assert (await talk.answer())[0] == 200


async def test_a_client_that_leaves_while_keys_are_awaited_leaves_nothing_behind() -> None:
    async with a_world(TOKENS, ", access: [a]", fed=False) as world:
        talk = await world.connect()
        await talk.send(get(b"authorization: Bearer " + tokens.sign(time.time())))
        (key_set,) = world.plane.lasting.key_sets
        await until(lambda: key_set._waiting)
        talk.reset()
        await until(lambda: world.plane.service.connections == 0)
        assert key_set._waiting == []


async def test_a_known_client_is_the_same_for_what_is_kept_whatever_its_token_is() -> None:
    now = time.time()
    async with a_world(TOKENS, ", access: ['*'], cache: {ttl: 1m}") as world:
        talk = await world.connect()
        for jti in ("1", "2"):
            assert await status(talk, get(b"authorization: Bearer " + tokens.sign(now, jti=jti))) == 200
        assert await status(talk, get(b"x-api-key: key-B")) == 200
        assert len(world.heads) == 2  # the second client has an answer of its own


def test_a_repeat_with_a_new_token_is_a_repeat() -> None:
    def asked(token: bytes, client: str | None, proof: tuple[bytes, ...]) -> Request:
        request = Request("POST", b"/", [(b"Authorization", b"Bearer " + token)], 1)
        request.client, request.proof = client, proof
        return request

    first, second = (asked(token, "a", (b"authorization",)) for token in (b"1", b"2"))
    assert name_of("r", first, b"key") == name_of("r", second, b"key")
    assert name_of("r", first, b"key") != name_of("r", asked(b"1", "b", (b"authorization",)), b"key")
    assert name_of("r", asked(b"1", None, ()), b"key") != name_of("r", asked(b"2", None, ()), b"key")


async def test_a_limit_by_a_header_that_holds_keys_does_not_tell_them() -> None:
    clients = "clients: {a: {api_key: {header: x-token, keys: 'env:CALL_A'}}}\n"
    async with a_world(clients, ", limit: {rate: 1/h, burst: 1, per: 'header:x-token'}") as world:
        assert await status(await world.connect(), get(b"X-Token: key-A")) == 200
        (policy,) = world.plane.service.table.limits
        (told,) = policy.status()
        assert told.key.startswith("#")


async def test_who_may_not_call_hears_nothing_of_the_limits() -> None:
    async with a_world(KEYS, ", access: [a], limit: {rate: 100/s, burst: 100}") as world:
        talk = await world.connect()
        for key, told in ((b"guess", False), (b"key-B", False), (b"key-A", True)):
            await talk.send(get(b"x-api-key: " + key))
            head, _ = await talk.whole()
            assert (b"ratelimit" in head.lower()) is told
