"""OAuth2: the token of a token service, as requests to an upstream show it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from msgspec import structs

from ambassador.errors import CredentialUnavailable
from ambassador.messages import RequestHead
from ambassador.proxy.credentials import Means
from ambassador.proxy.credentials.oauth2 import Config, Fetched, credential, describe
from ambassador.proxy.tokens.answer import Granted
from ambassador.proxy.tokens.keeper import Place
from tests.proxy.credentials.shown import ENDPOINT, means, put
from tests.proxy.tokens.world import World, a_request


@pytest.fixture
def world() -> World:
    return World()


def made(world: World, tmp_path: Path) -> Fetched:
    (tmp_path / "s").write_text("secret")
    config = Config(
        token_url="https://id.test/token",
        client_id="me",
        client_secret=f"file:{tmp_path}/s",
        scopes=("a", "b"),
        audience="x",
        auth_style="body",
    )
    with_tokens: Means = structs.replace(
        means(),
        tokens=world.tokens[0],
        places=(Place(world.shared.scopes[0]),),
        token_counts=lambda _: world.counts,
    )
    return credential(config, "api", with_tokens)


def test_token_is_asked_for_with_the_client_credentials_grant(world: World, tmp_path: Path) -> None:
    assert made(world, tmp_path).line() is None
    world.shared.deliver()
    (question,) = world.questions
    assert dict(parse_qsl(question.body.decode())) == {
        "grant_type": "client_credentials",
        "scope": "a b",
        "audience": "x",
        "client_id": "me",
        "client_secret": "secret",
    }


def test_token_takes_the_place_of_what_the_client_sent(world: World, tmp_path: Path) -> None:
    fetched = made(world, tmp_path)
    world.fill(fetched.keeper, "t0k3n")
    assert put(fetched, (b"Authorization", b"mine"), (b"a", b"b")) == [
        (b"a", b"b"),
        (b"authorization", b"Bearer t0k3n"),
    ]
    assert fetched.line() == b"\r\nauthorization: Bearer t0k3n"
    assert "t0k3n" not in repr(fetched)


def test_token_that_ended_on_the_way_is_not_sent(world: World, tmp_path: Path) -> None:
    fetched = made(world, tmp_path)
    world.fill(fetched.keeper, life_s=10.0)
    world.shared.advance(10.0)
    with pytest.raises(CredentialUnavailable, match="has ended meanwhile"):
        fetched.put(a_request(), RequestHead("GET", b"/", b"a", []), ENDPOINT)


def test_token_that_was_refused_is_fetched_again(world: World, tmp_path: Path) -> None:
    fetched = made(world, tmp_path)
    world.fill(fetched.keeper, "old")
    world.shared.advance(1.0)
    assert fetched.refused(a_request(), world.clock.now)
    world.shared.deliver()
    world.answer(Granted("new", 100.0))
    assert fetched.line() == b"\r\nauthorization: Bearer new"


def test_oauth2_cannot_be_made_where_no_tokens_are_kept(tmp_path: Path) -> None:
    config = Config(token_url="https://id.test/t", client_id="me", client_secret="env:S")
    with pytest.raises(ValueError, match="cannot be fetched here"):
        credential(config, "api", means(S="secret"))


def test_oauth2_is_told_of_without_its_secret() -> None:
    config = Config(token_url="https://id.test/t?k=v", client_id="me", client_secret="env:S")
    assert describe(config) == "oauth2, a token for client me from https://id.test/t"
