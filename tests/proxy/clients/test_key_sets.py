from __future__ import annotations

import pytest

from ambassador.proxy.clients.key_sets import COOL_DOWN_S, KEPT_S, WAIT_S, KeySet, KeySets
from ambassador.proxy.jose import PublicKey
from ambassador.proxy.upstream.via import Config as Via

KEYS = (PublicKey("1", frozenset({"RS256"}), None),)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def tick(self) -> None:
        """A test moves it."""


class Resting:
    """A waiter whose time passes when it rests, and which is told what to do then."""

    def __init__(self, clock: Clock, *then: object) -> None:
        self.clock = clock
        self.then = list(then)
        self.woken = 0

    async def rest(self, until: float) -> None:
        step = self.then.pop(0) if self.then else None
        if callable(step):
            step()
        else:
            self.clock.now = until

    def wake(self) -> None:
        self.woken += 1


def fed(clock: Clock) -> KeySet:
    key_set = KeySet("https://id.test/jwks", None, clock)
    key_set.begin()
    key_set.feed(KEYS)
    return key_set


def test_a_new_set_is_wanted_already() -> None:
    assert KeySet("https://id.test/jwks", None, Clock()).ask()


def test_ask_rings_once_and_then_not_before_the_cool_down_is_over() -> None:
    clock, rings = Clock(), []
    key_set = fed(clock)
    key_set.ring = lambda: rings.append(clock.now)
    assert not key_set.ask()
    clock.now += COOL_DOWN_S - 0.1
    assert not key_set.ask()
    clock.now += 0.1
    assert key_set.ask()
    assert key_set.ask()
    assert len(rings) == 1


def test_set_knows_since_when_it_cannot_be_read() -> None:
    clock = Clock()
    key_set = fed(clock)
    assert key_set.failing_since is None
    clock.now = 200.0
    key_set.fail("one")
    clock.now = 300.0
    key_set.fail("another")
    assert [key_set.failing_since, key_set.problem] == [200.0, "another"]
    key_set.confirm()
    assert [key_set.failing_since, key_set.problem] == [None, ""]


def test_set_without_keys_is_known_to_have_none() -> None:
    key_set = fed(clock := Clock())
    assert not key_set.is_empty
    clock.now = 200.0
    key_set.feed(())
    clock.now = 300.0
    key_set.confirm()
    assert (key_set.is_empty, key_set.failing_since) == (True, 200.0)
    key_set.fail("away")
    assert not key_set.is_empty


def test_set_reads_the_clock_itself_since_nothing_else_may_be_awake() -> None:
    class Late(Clock):
        def tick(self) -> None:
            self.now = 500.0

    key_set = KeySet("https://id.test/jwks", None, Late())
    key_set.fail("gone")
    assert key_set.failing_since == 500.0


def test_the_cool_down_holds_after_a_failure_too() -> None:
    clock = Clock()
    key_set = fed(clock)
    clock.now += COOL_DOWN_S
    assert key_set.ask()
    key_set.begin()
    key_set.fail("away")
    assert not key_set.ask()


async def test_wait_ends_when_the_set_is_fed() -> None:
    clock = Clock()
    key_set = KeySet("https://id.test/jwks", None, clock)
    waiter = Resting(clock, lambda: key_set.feed(KEYS))
    await key_set.wait(waiter)
    assert waiter.woken == 1
    assert clock.now == 100.0
    key_set.feed(KEYS)
    assert waiter.woken == 1  # it waits no more


async def test_wait_ends_when_the_set_cannot_be_fed() -> None:
    clock = Clock()
    key_set = KeySet("https://id.test/jwks", None, clock)
    await key_set.wait(Resting(clock, lambda: key_set.fail("away")))
    assert clock.now == 100.0
    assert key_set.problem == "away"


async def test_wait_is_bounded_and_rests_again_if_woken_for_nothing() -> None:
    clock = Clock()
    key_set = KeySet("https://id.test/jwks", None, clock)
    await key_set.wait(Resting(clock, lambda: None, lambda: None))
    assert clock.now == 100.0 + WAIT_S


async def test_wait_leaves_nothing_behind_when_the_client_leaves() -> None:
    clock = Clock()
    key_set = KeySet("https://id.test/jwks", None, clock)

    def leave() -> None:
        raise ConnectionError

    waiter = Resting(clock, leave)
    with pytest.raises(ConnectionError):
        await key_set.wait(waiter)
    key_set.feed(KEYS)
    assert waiter.woken == 0


def test_keys_are_kept_while_the_source_is_away_but_not_for_ever() -> None:
    clock = Clock()
    key_set = fed(clock)
    clock.now += KEPT_S - 1
    key_set.fail("away")
    assert (key_set.keys, key_set.version) == (KEYS, 1)
    clock.now += 1
    key_set.fail("away")
    assert (key_set.keys, key_set.version) == ((), 2)


def test_confirm_makes_keys_young_again() -> None:
    clock = Clock()
    key_set = fed(clock)
    clock.now += KEPT_S - 1
    key_set.confirm()
    clock.now += KEPT_S - 1
    key_set.fail("away")
    assert (key_set.keys, key_set.version) == (KEYS, 1)


def test_key_sets_give_the_same_set_for_the_same_source() -> None:
    key_sets = KeySets(Clock())
    told: list[KeySet] = []
    first = key_sets.get("https://id.test/jwks")
    key_sets.feed_by(told.append)
    assert told == [first]
    assert key_sets.get("https://id.test/jwks") is first
    other = key_sets.get("https://id.test/jwks", "/ca.pem")
    led = key_sets.get("https://id.test/jwks", "/ca.pem", Via(url="http://proxy.test:3128"))
    assert len({id(each) for each in (first, other, led)}) == 3
    assert told == [first, other, led]


def test_key_sets_retire_what_no_table_uses() -> None:
    key_sets, rings = KeySets(Clock()), []
    first, second = key_sets.get("file:/a"), key_sets.get("file:/b")
    first.ring = lambda: rings.append("first")
    key_sets.install([second])
    assert (first.retired, second.retired, rings) == (True, False, ["first"])
    assert list(key_sets) == [second]
    assert key_sets.get("file:/a") is not first
