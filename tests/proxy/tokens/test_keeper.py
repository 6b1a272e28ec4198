"""Keepers of tokens: who waits is woken, who shares a store shares tokens, and nothing secret is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio
import trio.testing

from ambassador.errors import CredentialUnavailable
from ambassador.proxy.tokens.answer import FAILED, REFUSED, Failure, Granted
from ambassador.proxy.tokens.keeper import Place
from ambassador.proxy.tokens.request import Asker
from ambassador.proxy.tokens.seal import Sealer
from ambassador.secret import Secrets
from ambassador.state.protocol import Token
from tests.proxy.tokens.world import ASKER, FORM, WALL_S, Rest, World, a_request

KEY = "a key that is long enough"


def sealer(tmp_path: Path, key: str = KEY) -> Sealer:
    file = tmp_path / key.replace(" ", "-")
    file.write_text(key)
    return Sealer(Secrets().get(f"file:{file}"))


async def test_requests_wait_for_one_token_and_are_woken_by_it() -> None:
    world = World()
    keeper = world.keeper()
    done: list[int] = []

    async def one(number: int) -> None:
        assert not keeper.in_hand()
        await keeper.fetched(a_request(Rest()))
        done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
        await trio.testing.wait_all_tasks_blocked()
        world.shared.deliver()
        assert len(world.questions) == 1
        world.answer(Granted("t", 100.0))
    assert sorted(done) == list(range(20))
    assert keeper.in_hand()
    assert keeper.line() == b"\r\nauthorization: Bearer t"
    held = keeper.held()
    assert held is not None
    assert held.field == (b"authorization", b"Bearer t")
    assert keeper.idle


async def test_requests_are_told_of_a_failure_as_soon_as_it_is_known() -> None:
    world = World()
    keeper = world.keeper()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                assert not keeper.in_hand()
                with pytest.raises(
                    CredentialUnavailable, match=r"refused by the token service \(invalid_client\)"
                ) as e:
                    await keeper.fetched(a_request(Rest()))
                assert e.value.retry_after_s is not None

            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            world.shared.deliver()
            world.answer(Failure(REFUSED, "answered 401: invalid_client", "invalid_client"))
    with pytest.raises(CredentialUnavailable):
        keeper.in_hand()
    assert keeper.standing().problem == "answered 401: invalid_client"


async def test_request_gives_up_after_five_seconds() -> None:
    world = World()
    keeper = world.keeper()
    rest = Rest()
    async with trio.open_nursery() as nursery:

        async def one() -> None:
            assert not keeper.in_hand()
            with pytest.raises(CredentialUnavailable, match="has not come in time"):
                await keeper.fetched(a_request(rest))

        nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        world.clock.now += 5.0
        rest.wake()
    assert keeper.idle


async def test_request_that_leaves_is_forgotten() -> None:
    world = World()
    keeper = world.keeper()
    async with trio.open_nursery() as nursery:

        async def one() -> None:
            assert not keeper.in_hand()
            await keeper.fetched(a_request(Rest()))

        nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert not keeper.idle
        nursery.cancel_scope.cancel()
    assert keeper.idle
    world.shared.deliver()
    world.answer(Granted("t", 100.0))
    assert keeper.line() is not None, "what was fetched for it serves the next"


async def test_request_that_cannot_wait_is_told_so() -> None:
    with pytest.raises(CredentialUnavailable, match="is being fetched"):
        await World().keeper().fetched(a_request())


def test_what_cannot_be_asked_fails_at_once(tmp_path: Path) -> None:
    world = World()
    asker = Asker(url=ASKER.url, client_id="me", secret=Secrets().get(f"file:{tmp_path}/nothing"))
    keeper = world.keeper(asker=asker)
    keeper.line()
    world.shared.deliver()
    with pytest.raises(CredentialUnavailable):
        keeper.in_hand()
    assert world.counts.results == {"secret": 1}
    assert not world.questions


def test_what_cannot_be_asked_fails_at_once_where_there_is_no_store_to_ask(tmp_path: Path) -> None:
    world = World()
    asker = Asker(url=ASKER.url, client_id="me", secret=Secrets().get(f"file:{tmp_path}/nothing"))
    with pytest.raises(CredentialUnavailable):
        world.keeper(asker=asker, places=()).in_hand()


def test_workers_share_a_token_by_their_store() -> None:
    world = World(3)
    first, second, third = (world.keeper(worker) for worker in range(3))
    first.line()
    world.shared.deliver()
    second.line()
    world.shared.deliver()
    world.answer(Granted("t", 1000.0))
    assert second.line() == b"\r\nauthorization: Bearer t", "the event has it look again"
    third.line()
    world.shared.deliver()
    assert third.line() == b"\r\nauthorization: Bearer t"
    assert len(world.questions) == 1


def test_workers_have_the_next_token_as_soon_as_one_has_fetched_it() -> None:
    world = World(2)
    first, second = world.keeper(0), world.keeper(1)
    world.fill(first, "old")
    second.line()
    world.shared.deliver()
    world.shared.advance(810.0)
    first.line()
    world.shared.deliver()
    world.answer(Granted("new", 1000.0))
    assert second.line() == b"\r\nauthorization: Bearer new"
    assert len(world.questions) == 2


def test_token_that_is_used_is_refreshed_by_the_clock() -> None:
    world = World()
    keeper = world.keeper()
    world.fill(keeper, life_s=1000.0)
    keeper.line()
    world.shared.advance(801.0)
    world.shared.deliver()
    assert len(world.questions) == 2
    world.answer(Granted("u", 1000.0))
    world.shared.advance(801.0)
    world.shared.deliver()
    assert len(world.questions) == 2, "nobody has used the second"


def test_token_is_not_written_once_it_has_expired() -> None:
    world = World()
    keeper = world.keeper()
    world.fill(keeper, life_s=100.0)
    world.shared.advance(95.0)
    assert keeper.line() is None
    assert keeper.held() is not None, "who began before may still show it"
    world.shared.advance(5.1)
    assert keeper.held() is None


def test_refused_token_is_replaced() -> None:
    world = World()
    keeper = world.keeper()
    world.fill(keeper, "old")
    world.shared.advance(10.0)
    assert keeper.refused(world.clock.now)
    assert keeper.line() is None
    held = keeper.held()
    assert held is not None
    assert held.text == "old", "for who was given it before, and has only now got a connection"
    world.shared.deliver()
    world.answer(Granted("new", 1000.0))
    assert keeper.line() == b"\r\nauthorization: Bearer new"


# ----- a store that others can read ---------------------------------------------------------------------------------


def values_of(world: World) -> list[bytes]:
    return [
        operation.value
        for scope in world.shared.scopes
        for operation in scope.asked
        if isinstance(operation, Token) and operation.value
    ]


def test_sealed_token_is_shared_and_cannot_be_read_in_the_store(tmp_path: Path) -> None:
    world = World(2)
    places = [(Place(world.shared.scopes[worker], sealer(tmp_path)),) for worker in range(2)]
    first, second = (world.keeper(worker, places=places[worker]) for worker in range(2))
    world.fill(first, "s3cret-token")
    second.line()
    world.shared.deliver()
    assert second.line() == b"\r\nauthorization: Bearer s3cret-token"
    assert len(values_of(world)) == 1
    assert b"s3cret-token" not in values_of(world)[0]


def test_worker_with_another_key_gets_a_token_of_its_own_and_leaves_the_others_alone(tmp_path: Path) -> None:
    world = World(2)
    first = world.keeper(0, places=(Place(world.shared.scopes[0], sealer(tmp_path)),))
    other = world.keeper(1, places=(Place(world.shared.scopes[1], sealer(tmp_path, "quite another key")),))
    world.fill(first, "one")
    world.fill(other, "two")
    assert (first.line(), other.line()) == (
        b"\r\nauthorization: Bearer one",
        b"\r\nauthorization: Bearer two",
    )
    assert len(world.questions) == 2


def test_key_that_cannot_be_used_has_the_next_store_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(2)
    bad = sealer(tmp_path, "short")
    places = (Place(world.shared.scopes[0], bad), Place(world.shared.scopes[1]))
    keeper = world.keeper(0, places=places)
    with caplog.at_level(logging.WARNING):
        world.fill(keeper)
    assert keeper.line() is not None
    assert "state.secret_key" in caplog.text
    assert not [each for each in world.shared.scopes[0].asked if isinstance(each, Token)]


def test_value_of_the_store_that_is_none_of_ours_counts_as_none() -> None:
    world = World()
    scope = world.shared.scopes[0]
    name = Place(scope).name(ASKER.identity(FORM))
    scope.ask(Token(name, "lock", nonce="x"))
    scope.ask(Token(name, "store", nonce="x", value=b"\xc1junk"))
    world.shared.deliver()
    keeper = world.keeper()
    world.fill(keeper)
    assert keeper.line() == b"\r\nauthorization: Bearer t"


# ----- what others see ----------------------------------------------------------------------------------------------


def test_standing_tells_how_long_the_token_holds_and_what_failed_last() -> None:
    world = World()
    keeper = world.keeper()
    assert keeper.standing().valid_for_s is None
    world.fill(keeper, life_s=1000.0)
    world.shared.advance(100.0)
    assert keeper.standing().valid_for_s == pytest.approx(900.0)
    assert world.counts.expiry == pytest.approx(WALL_S + 2000.0)
    world.shared.advance(800.0)
    keeper.line()
    world.shared.deliver()
    world.answer(Failure(FAILED, "answered 500"))
    standing = keeper.standing()
    assert standing.valid_for_s == pytest.approx(100.0)
    assert standing.problem == "answered 500"
    assert standing.next_try_s == pytest.approx(0.875)


def test_log_tells_a_failure_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    keeper = world.keeper()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            keeper.line()
            world.shared.deliver()
            world.answer(Failure(FAILED, "answered 500"))
            world.shared.advance(40.0)
        world.fill(keeper, "s3cret-token")
    assert [record.message for record in caplog.records] == [
        "upstream api: no token from https://id.test/token: answered 500",
        "upstream api: the token service gives tokens again",
    ]
    assert world.counts.results == {"failed": 3, "ok": 1}
    assert "s3cret-token" not in repr(keeper) + repr(keeper.held()) + repr(keeper.standing())
