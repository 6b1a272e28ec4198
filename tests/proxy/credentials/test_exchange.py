"""Exchange: each caller's token for one of the upstream's, and nobody's for another's."""

from __future__ import annotations

import json
import logging
from base64 import urlsafe_b64encode
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from msgspec import structs

from ambassador.errors import CredentialUnavailable, Unauthenticated
from ambassador.messages import Request, RequestHead
from ambassador.proxy.credentials import exchange
from ambassador.proxy.credentials.exchange import Config, Exchanged, credential, describe
from ambassador.proxy.tokens.answer import CONNECT, FAILED, REFUSED, Failure, Granted
from ambassador.proxy.tokens.keeper import Place
from tests.proxy.credentials.shown import ENDPOINT, GivenSecrets, means
from tests.proxy.tokens.world import WALL_S, Rest, World, a_request

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"


@pytest.fixture
def world() -> World:
    return World()


def made(world: World, tmp_path: Path, worker: int = 0) -> Exchanged:
    (tmp_path / "s").write_text("secret")
    config = Config(
        token_url="https://id.test/token",
        client_id="me",
        client_secret=f"file:{tmp_path}/s",
        audience="api",
        resource="https://api.test",
        requested_token_type="urn:ietf:params:oauth:token-type:jwt",
    )
    given = structs.replace(
        means(),
        secrets=GivenSecrets(),
        wall_s=lambda: WALL_S + world.clock.now,
        tokens=world.tokens[worker],
        places=(Place(world.shared.scopes[worker]),),
        token_counts=lambda _: world.counts,
    )
    return credential(config, "api", given)


def of(token: str) -> Request:
    return a_request(Rest(), (b"authorization", b"Bearer " + token.encode()))


def shown(exchanged: Exchanged, request: Request) -> bytes:
    assert exchanged.in_hand(request)
    head = RequestHead("GET", b"/", b"a", list(request.headers))
    exchanged.put(request, head, ENDPOINT)
    ((name, value),) = head.fields
    assert name == b"authorization"
    return value


def begin(world: World, exchanged: Exchanged, request: Request) -> None:
    assert not exchanged.in_hand(request)
    world.shared.deliver()


def jwt(exp: float) -> str:
    payload = urlsafe_b64encode(json.dumps({"exp": exp}).encode()).rstrip(b"=").decode()
    return f"e30.{payload}.c2ln"


def test_exchange_asks_with_the_callers_token(world: World, tmp_path: Path) -> None:
    begin(world, made(world, tmp_path), of("alice"))
    (question,) = world.questions
    assert dict(parse_qsl(question.body.decode())) == {
        "grant_type": GRANT,
        "subject_token": "alice",
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "requested_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "audience": "api",
        "resource": "https://api.test",
    }


def test_each_caller_has_a_token_of_their_own(world: World, tmp_path: Path) -> None:
    exchanged = made(world, tmp_path)
    for caller in ("alice", "bob"):
        begin(world, exchanged, of(caller))
        world.answer(Granted(f"for-{caller}", 100.0))
    assert shown(exchanged, of("alice")) == b"Bearer for-alice"
    assert shown(exchanged, of("bob")) == b"Bearer for-bob"
    assert len(world.questions) == 2
    assert exchanged.line() is None, "there is none for all requests alike"


def test_workers_share_the_tokens_of_callers(tmp_path: Path) -> None:
    world = World(2)
    first, second = made(world, tmp_path, 0), made(world, tmp_path, 1)
    begin(world, first, of("alice"))
    world.answer(Granted("for-alice", 100.0))
    begin(world, second, of("alice"))
    assert shown(second, of("alice")) == b"Bearer for-alice"
    assert len(world.questions) == 1
    names = {getattr(each, "name", "") for each in world.shared.scopes[0].asked}
    assert not [name for name in names if "alice" in name]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Basic YTpi")],
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
    ],
)
def test_caller_without_a_token_is_unauthenticated(
    world: World, tmp_path: Path, headers: list[tuple[bytes, bytes]]
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        made(world, tmp_path).in_hand(a_request(Rest(), *headers))
    assert caught.value.fields == ((b"www-authenticate", b"Bearer"),)
    assert not world.questions


def test_callers_token_that_has_expired_is_not_even_asked_about(world: World, tmp_path: Path) -> None:
    exchanged = made(world, tmp_path)
    now = WALL_S + world.clock.now
    with pytest.raises(Unauthenticated, match="has expired"):
        exchanged.in_hand(of(jwt(now - 1)))
    assert not world.questions


def test_token_is_not_used_beyond_the_callers(world: World, tmp_path: Path) -> None:
    exchanged = made(world, tmp_path)
    caller = of(jwt(WALL_S + world.clock.now + 50))
    begin(world, exchanged, caller)
    world.answer(Granted("t", 1000.0))
    standing = exchanged.standing()
    assert standing is not None
    assert standing.valid_for_s == pytest.approx(50.0)
    world.shared.advance(51.0)
    with pytest.raises(Unauthenticated):
        exchanged.in_hand(caller)
    with pytest.raises(Unauthenticated):
        exchanged.put(caller, RequestHead("GET", b"/", b"a", []), ENDPOINT)
    exchanged.accepted(caller)
    assert not exchanged.refused(caller, world.clock.now), "what comes after the end is no error"


def test_callers_token_that_is_not_accepted_is_the_callers_fault(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exchanged = made(world, tmp_path)
    with caplog.at_level(logging.INFO):
        begin(world, exchanged, of("mallory"))
        world.answer(Failure(REFUSED, "answered 400: invalid_request", "invalid_request"))
    with pytest.raises(Unauthenticated, match="does not accept the caller's token") as caught:
        exchanged.in_hand(of("mallory"))
    assert caught.value.fields == ((b"www-authenticate", b'Bearer error="invalid_token"'),)
    assert not caplog.records, "nobody fills the log with tokens of their own making"


def test_client_that_is_not_accepted_is_not_the_callers_fault(world: World, tmp_path: Path) -> None:
    exchanged = made(world, tmp_path)
    begin(world, exchanged, of("alice"))
    world.answer(Failure(REFUSED, "answered 401: invalid_client", "invalid_client"))
    with pytest.raises(CredentialUnavailable):
        exchanged.in_hand(of("alice"))


def test_token_service_that_is_down_is_not_asked_for_every_caller(world: World, tmp_path: Path) -> None:
    exchanged = made(world, tmp_path)
    for number in range(3):
        begin(world, exchanged, of(f"caller{number}"))
        world.answer(Failure(CONNECT, "cannot connect"))
    for number in range(3, 20):
        begin(world, exchanged, of(f"caller{number}"))
        with pytest.raises(CredentialUnavailable):
            exchanged.in_hand(of(f"caller{number}"))
    assert len(world.questions) == 3
    assert world.counts.results == {"connect": 3}


def test_refused_token_of_one_caller_is_replaced_and_the_others_stay(world: World, tmp_path: Path) -> None:
    exchanged = made(world, tmp_path)
    for caller in ("alice", "bob"):
        begin(world, exchanged, of(caller))
        world.answer(Granted(f"for-{caller}", 1000.0))
    world.shared.advance(10.0)
    assert exchanged.refused(of("alice"), world.clock.now)
    world.shared.deliver()
    world.answer(Granted("again", 1000.0))
    exchanged.accepted(of("alice"))
    assert shown(exchanged, of("alice")) == b"Bearer again"
    assert shown(exchanged, of("bob")) == b"Bearer for-bob"


def test_only_so_many_callers_are_remembered(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MOST_CALLERS", 3)
    exchanged = made(world, tmp_path)
    for number in range(10):
        begin(world, exchanged, of(f"caller{number}"))
        world.answer(Granted(f"t{number}", 1000.0))
        assert len(exchanged._keepers) <= 3
    assert shown(exchanged, of("caller9")) == b"Bearer t9"
    begin(world, exchanged, of("caller0"))
    assert shown(exchanged, of("caller0")) == b"Bearer t0", "the store still has it"
    assert len(world.questions) == 10


def test_exchange_is_told_of_without_its_secret() -> None:
    config = Config(token_url="https://id.test/t?k=v")
    assert describe(config) == "exchange, a token from https://id.test/t for the caller's (RFC 8693)"


def test_callers_token_that_the_service_stumbles_over_stops_nobody_else(world: World, tmp_path: Path) -> None:
    exchanged = made(world, tmp_path)
    for number in range(5):
        mallory = of(f"mallory-{number}")
        mallory.client_ip = f"2001:db8::{number}"
        begin(world, exchanged, mallory)
        world.answer(Failure(FAILED, "answered 500"))
    begin(world, exchanged, of("alice"))
    world.answer(Granted("for-alice", 100.0))
    assert shown(exchanged, of("alice")) == b"Bearer for-alice"


def test_service_that_stumbles_over_the_tokens_of_several_callers_is_left_alone(
    world: World, tmp_path: Path
) -> None:
    exchanged = made(world, tmp_path)
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1%eth0"):
        request = of(f"of-{address}")
        request.client_ip = address
        begin(world, exchanged, request)
        world.answer(Failure(FAILED, "answered 500"))
    alice = of("alice")
    begin(world, exchanged, alice)
    with pytest.raises(CredentialUnavailable):
        exchanged.in_hand(alice)


def test_upstream_tells_callers_apart_by_their_tokens(world: World, tmp_path: Path) -> None:
    exchanged = made(world, tmp_path)
    (alice,) = exchanged.told_apart(of("alice"))
    assert alice == (b"authorization", b"alice")
    assert exchanged.told_apart(a_request(Rest(), (b"authorization", b"bearer  alice"))) == [alice]
    assert exchanged.told_apart(of("bob")) != [alice]
    assert exchanged.told_apart(a_request(Rest())) == []
