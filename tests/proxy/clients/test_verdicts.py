from __future__ import annotations

import pytest

from ambassador.proxy import jose
from tests.proxy.clients import tokens
from tests.proxy.clients.world import NOW, TOKEN_CLIENT, World, bearer


def test_a_verdict_is_remembered_until_the_token_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(TOKEN_CLIENT)
    token = bearer(tokens.sign(NOW, exp=int(NOW) + 100))
    assert world.find(token).name == "a"
    monkeypatch.setattr(jose, "read_token", None)  # it is not even read again
    world.wall = NOW + 159
    assert world.find(token).name == "a"
    world.wall = NOW + 160
    assert world.find(token).doubt == "expired"


def test_a_verdict_falls_with_the_key_that_it_was_made_by() -> None:
    world = World(TOKEN_CLIENT)
    token = bearer(tokens.sign(NOW))
    assert world.find(token).name == "a"
    world.feed(tokens.jwks("ec"))
    assert world.find(token).doubt == "key"


def test_a_refusal_is_not_remembered() -> None:
    world = World(TOKEN_CLIENT)
    token = bearer(tokens.sign(NOW, nbf=int(NOW) + 100))
    assert world.find(token).doubt == "early"
    world.wall = NOW + 60
    assert world.find(token).name == "a"


def test_verdicts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ambassador.proxy.clients.verdicts._SEEN_TOKENS", 2)
    world = World(TOKEN_CLIENT)
    made = [bearer(tokens.sign(NOW, jti=str(number))) for number in range(6)]
    assert {world.find(token).name for token in made} == {"a"}
    (known,) = world.clients._tokens.values()
    assert len(known._seen) + len(known._older) <= 4
