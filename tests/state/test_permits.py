"""Permits of a key: never more out than there are, fair when they are short, and nobody is forgotten."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ambassador.state.permits import Permits, fair_share, is_sound
from ambassador.state.protocol import PERMIT_TTL_US, Permit, Permitted, Share


class Store:
    """One key, and the time."""

    def __init__(self, most: int = 10, least: int = 0) -> None:
        self.most, self.least = most, least
        self.now_us = 0
        self.permits = Permits(Permit("k", "x", most, 0, 0, least=least), 0)
        self.told: Share | None = None

    def ask(
        self, holder: str, keep: int, need: int, want: int = 0, samples: list[float] | None = None
    ) -> Permitted:
        permit = Permit("k", holder, self.most, keep, need, want, self.least, samples or [])
        answer = self.permits.permit(permit, self.now_us)
        self.told = self.permits.take_published()
        return answer


def test_permits_are_granted_as_long_as_there_are_some() -> None:
    store = Store(10)
    assert store.ask("a", 0, 6).granted == 6
    answer = store.ask("b", 0, 6)
    assert (answer.granted, answer.share, answer.lacks, answer.holders) == (4, 5, 2, 2)
    assert store.told == Share(5, 10, 0, 2)


def test_more_than_is_needed_is_granted_only_where_nobody_lacks() -> None:
    store = Store(10)
    assert store.ask("a", 0, 1, 4).granted == 4
    assert store.ask("b", 0, 20, 25).granted == 6
    store.ask("a", 1, 1, 1)
    assert store.ask("a", 1, 1, 8).granted == 1
    assert store.ask("b", 6, 20, 25).granted == 9


def test_who_gives_up_tells_who_lacks() -> None:
    store = Store(2)
    store.ask("a", 0, 2)
    store.ask("b", 0, 2)
    assert store.told is not None
    assert store.told.share == 1
    assert store.ask("a", 1, 2).granted == 1
    assert store.told == Share(1, 2, 1, 3)
    assert store.ask("b", 0, 2).granted == 1


def test_who_waits_longest_is_the_next() -> None:
    store = Store(1)
    store.ask("a", 0, 5)
    store.ask("b", 0, 5)
    store.ask("c", 0, 5)
    assert store.ask("a", 0, 5).granted == 0  # gave it up, and does not get it back
    assert store.ask("c", 0, 5).granted == 0
    assert store.ask("a", 0, 5).granted == 0
    assert store.ask("b", 0, 5).granted == 1


def test_holder_that_is_silent_is_forgotten() -> None:
    store = Store(3)
    store.ask("a", 0, 3)
    store.now_us = PERMIT_TTL_US
    assert store.ask("b", 0, 3).granted == 0
    store.now_us += 1
    assert store.ask("b", 0, 3).granted == 3


def test_holder_without_anything_is_forgotten_at_once() -> None:
    store = Store(3)
    store.ask("a", 0, 3)
    store.ask("a", 0, 0)
    assert store.ask("b", 0, 2).holders == 1


def test_fewer_permits_are_told_and_none_is_granted_before_holders_have_come_down() -> None:
    store = Store(10)
    store.ask("a", 0, 5)
    store.ask("b", 0, 5)
    store.most = 4
    assert store.ask("a", 5, 5).granted == 5
    assert store.told is not None
    assert (store.told.share, store.told.limit, store.told.free) == (2, 4, -6)
    assert store.ask("a", 2, 5).granted == 2
    assert store.ask("b", 2, 5).granted == 2


def test_adaptive_limit_is_fed_by_all_holders() -> None:
    store = Store(100, least=4)
    assert store.ask("a", 0, 20, 0).limit == 20
    store.now_us = 200_000
    store.ask("b", 0, 20, samples=[0.01] * 20)
    store.ask("a", 20, 20, samples=[0.01] * 20)
    for _ in range(5):
        store.now_us += 200_000
        answer = store.ask("a", 20, 40, samples=[0.01] * 40)
    assert answer.limit > 20
    store.least = 0
    assert store.ask("a", 20, 20).limit == 100
    store.least = 4
    assert store.ask("a", 20, 20).limit == 20


@pytest.mark.parametrize(
    "permit",
    [
        Permit("k", "h", 0, 0, 0),
        Permit("k", "h", 5, -1, 0),
        Permit("k", "h", 5, 0, -1),
        Permit("k", "h", 5, 0, 0, -1),
        Permit("k", "h", 5, 0, 0, least=6),
        Permit("k", "h", 5, 0, 0, samples=[-1.0]),
        Permit("k", "h", 5, 0, 0, samples=[inf]),
        Permit("k", "h", 5, 0, 0, samples=[0.0] * 1000),
        Permit("k", "h", 10**9, 0, 0),
    ],
)
def test_unsound_numbers(permit: Permit) -> None:
    assert not is_sound(permit)


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(1, 100))
def test_fair_share_divides_all_and_no_more(claims: list[int], most: int) -> None:
    level = fair_share(claims, most)
    got = sum(min(claim, level) for claim in claims)
    assert got == pytest.approx(min(sum(claims), most))


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8), st.integers(1, 100))
def test_fair_share_of_who_claims_less_does_not_matter(claims: list[int], most: int) -> None:
    level = fair_share(claims, most)
    assume(level < inf)
    claims[0] = claims[0] if claims[0] < level else 1000
    assert fair_share(claims, most) == pytest.approx(level)


class Machine(RuleBasedStateMachine):
    """Holders that do what a worker does, in any order: ask, use, finish, come down, die."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(7)
        self.may = dict.fromkeys("abc", 0)
        self.need = dict.fromkeys("abc", 0)

    @rule(holder=st.sampled_from("abc"), need=st.integers(0, 12), spare=st.integers(0, 4))
    def ask(self, holder: str, need: int, spare: int) -> None:
        keep = self.may[holder]
        self.need[holder] = need
        answer = self.store.ask(holder, keep, need, need + spare)
        assert answer.granted >= keep
        self.may[holder] = answer.granted

    @rule(holder=st.sampled_from("abc"), less=st.integers(1, 7))
    def give_up(self, holder: str, less: int) -> None:
        keep = max(0, self.may[holder] - less)
        self.may[holder] = self.store.ask(holder, keep, self.need[holder]).granted

    @rule(holder=st.sampled_from("abc"))
    def die(self, holder: str) -> None:
        """The others go on, until the store has forgotten it."""
        for _ in range(3):
            self.store.now_us += PERMIT_TTL_US // 2
            for other in "abc":
                if other != holder:
                    self.may[other] = self.store.ask(other, self.may[other], self.need[other]).granted
        self.may[holder] = self.need[holder] = 0

    @precondition(lambda self: all(self.need.values()))
    @rule()
    def all_come_down_to_their_share(self) -> None:
        """Then everybody has a fair part, and all permits are out."""
        for _ in range(8):
            for holder in "abc":
                answer = self.store.ask(holder, self.may[holder], self.need[holder])
                share = answer.share if answer.lacks else 7
                keep = min(answer.granted, max(share, 0), self.need[holder])
                if keep < answer.granted:
                    answer = self.store.ask(holder, keep, self.need[holder])
                self.may[holder] = answer.granted
        level = fair_share(self.need.values(), 7)
        for holder in "abc":
            assert self.may[holder] >= min(self.need[holder], level) - 1

    @invariant()
    def never_more_than_there_are(self) -> None:
        assert sum(self.may.values()) <= 7


TestMachine = Machine.TestCase
