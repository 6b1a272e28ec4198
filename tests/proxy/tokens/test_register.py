"""The register of tokens: one keeper for what is wanted, and everybody hears of what is stored."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from ambassador.proxy.tokens.answer import Granted
from ambassador.proxy.tokens.keeper import Keeper, Place, Wanted
from ambassador.proxy.tokens.request import Asker
from ambassador.secret import Secrets
from ambassador.state.scope import Scopes
from tests.proxy.tokens.world import ASKER, FORM, World


def a_made_one(world: World, upstream: str) -> Keeper:
    wanted = Wanted(upstream, ASKER, FORM, (Place(world.shared.scopes[0]),))
    return world.tokens[0].make(wanted, "x.y", world.counts)


@pytest.mark.parametrize("is_made", [True, False])
def test_upstreams_with_the_same_settings_share_a_token_and_hear_of_it(*, is_made: bool) -> None:
    world = World()
    if is_made:
        keepers = [a_made_one(world, upstream) for upstream in ("a", "b", "c")]
    else:
        places = (Place(world.shared.scopes[0]),)
        keepers = [
            world.tokens[0].get(Wanted(upstream, ASKER, FORM, places), world.counts)
            for upstream in ("a", "b", "c")
        ]
    for keeper in keepers:
        keeper.line()
    world.shared.deliver()
    assert len(world.questions) == 1, "one of them has the lock"
    world.answer(Granted("t", 1000.0))
    assert [keeper.line() for keeper in keepers] == [b"\r\nauthorization: Bearer t"] * 3


def test_keeper_hears_of_its_token_when_a_namesake_has_gone() -> None:
    world = World(2)
    stays, goes = a_made_one(world, "a"), a_made_one(world, "b")
    other = world.tokens[1].make(
        Wanted("a", ASKER, FORM, (Place(world.shared.scopes[1]),)), "x.y", world.counts
    )
    other.line()
    world.shared.deliver()
    stays.line()
    world.shared.deliver()
    gone = weakref.ref(goes)
    del goes
    gc.collect()
    assert gone() is None
    world.answer(Granted("t", 1000.0))
    assert stays.line() == b"\r\nauthorization: Bearer t"


def test_nothing_is_left_of_keepers_that_have_gone() -> None:
    world = World()
    a_made_one(world, "a")
    world.keeper()
    gc.collect()
    assert not world.tokens[0]._by_credential


def test_places_are_where_tokens_may_be_put(tmp_path: Path) -> None:
    world = World(2)
    fleet, replica = world.shared.scopes
    tokens = world.make_tokens(0)
    tokens._scopes = Scopes(fleet, replica)
    (tmp_path / "k").write_text("a key that is long enough")
    secrets = Secrets()
    assert tokens.places(secrets, None, remote=False) == (Place(fleet),)
    assert tokens.places(secrets, None, remote=True) == (Place(replica),)
    sealed = tokens.places(secrets, f"file:{tmp_path}/k", remote=True)
    assert [place.scope for place in sealed] == [fleet, replica]
    assert [place.sealer is None for place in sealed] == [False, True]
    assert tokens.places(secrets, f"file:{tmp_path}/k", remote=True) == sealed


def test_keeper_is_the_same_for_the_next_config_as_long_as_somebody_has_it() -> None:
    world = World()
    keeper = world.keeper()
    assert world.keeper() is keeper
    assert world.keeper(asker=Asker(url=ASKER.url, client_id="you")) is not keeper
    world.fill(keeper)
    gone = weakref.ref(keeper)
    world.clock.timers.clear()
    del keeper
    gc.collect()
    assert gone() is None


def test_token_is_not_kept_beyond_what_it_is_made_for() -> None:
    world = World()
    wanted = Wanted("api", ASKER, FORM, (Place(world.shared.scopes[0]),))
    keeper = world.tokens[0].make(wanted, "x.y", world.counts, until=world.clock.now + 50.0)
    world.fill(keeper, life_s=1000.0)
    assert keeper.standing().valid_for_s == pytest.approx(50.0)
