"""Which endpoint of an upstream is picked: over priorities, zones, health, pauses, and changes of the endpoints."""

from __future__ import annotations

from random import Random
from typing import cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ambassador.errors import NoEndpoint
from ambassador.proxy.policies.breaker import Breaker
from ambassador.proxy.upstream.balance import CHOICES, RingHash
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.pool import Pool
from ambassador.proxy.upstream.upstream import Upstream


class Clock:
    def __init__(self) -> None:
        self.now = 100.0


class Connections:
    """A pool that only knows whether it was retired."""

    def __init__(self) -> None:
        self.retired = False

    def retire(self) -> None:
        self.retired = True


class Gate:
    """A breaker that is open or not."""

    def __init__(self) -> None:
        self.welcoming = True

    @property
    def is_open(self) -> bool:
        return not self.welcoming

    def welcomes(self, now: float) -> bool:
        return self.welcoming


def endpoint(number: int, *, priority: int = 0, zone: str = "", weight: int = 1) -> Endpoint:
    made = Endpoint(
        f"http://10.0.0.{number}:80",
        host=f"10.0.0.{number}",
        port=80,
        priority=priority,
        zone=zone,
        weight=weight,
    )
    made.pool = cast("Pool", Connections())
    return made


def upstream(*endpoints: Endpoint, clock: Clock | None = None, slow_start_s: float = 0.0) -> Upstream:
    return Upstream("u", endpoints, Random(7).random, clock or Clock(), slow_start_s=slow_start_s)


def picked(of: Upstream, *tried: Endpoint) -> set[Endpoint]:
    return {of.pick(tried) for _ in range(100)}


def test_upstream_picks_the_less_loaded_of_two() -> None:
    busy, free = endpoint(1), endpoint(2)
    busy.inflight = 3
    both = upstream(busy, free)
    assert picked(both) == {free}
    assert both.pick((free,)) is busy


def test_upstream_without_endpoints_has_none_to_pick() -> None:
    nothing = upstream()
    with pytest.raises(NoEndpoint):
        nothing.pick(())
    with pytest.raises(NoEndpoint):
        nothing.pick((endpoint(1),))
    assert nothing.pick_or_none() is None
    assert nothing.only is None


def test_only_endpoint_is_picked_even_if_it_was_tried() -> None:
    one = endpoint(1)
    assert upstream(one).pick((one,)) is one


def test_only_upstreams_with_a_choice_or_an_outlier_watch_are_measured() -> None:
    class Watch:
        def recovered(self) -> None:
            raise NotImplementedError

        def settled(self, now: float, *, failed: bool) -> None: ...

    one = upstream(endpoint(1))
    assert not one.measured
    one.endpoints[0].outlier = Watch()
    one.refresh()
    assert one.measured
    assert upstream(endpoint(1), endpoint(2)).measured


def test_endpoint_just_tried_is_left_out_even_when_all_were() -> None:
    first, second, third = endpoint(1), endpoint(2), endpoint(3)
    assert picked(upstream(first, second, third), first, second, third) == {first, second}
    assert picked(upstream(first, second), first, second) == {first}


def test_another_priority_is_tried_before_the_same_endpoint_again() -> None:
    first, second = endpoint(1), endpoint(2, priority=1)
    levels = upstream(first, second)
    assert picked(levels) == {first}
    assert picked(levels, first) == {second}


def test_breakers_are_looked_at_only_when_one_is_open() -> None:
    first, second = endpoint(1), endpoint(2)
    gate = Gate()
    first.gate = cast("Breaker", gate)
    gate.welcoming = False
    both = upstream(first, second)
    assert picked(both) == {first, second}
    both.shut = 1
    assert picked(both) == {second}
    assert {both.pick_or_none() for _ in range(50)} == {second}
    assert picked(both, second) == {second}  # tried, but the other is open
    gate.welcoming = True
    assert picked(both) == {first, second}
    gate.welcoming = False
    assert picked(both) == {second}
    both.shut = 0
    assert picked(both) == {first, second}
    assert {both.pick_or_none() for _ in range(50)} == {first, second}


def test_next_priority_takes_over_when_breakers_of_the_first_are_open() -> None:
    first, second = endpoint(1), endpoint(2, priority=1)
    gate = Gate()
    gate.welcoming = False
    first.gate = cast("Breaker", gate)
    levels = upstream(first, second)
    levels.shut = 1
    assert picked(levels) == {second}


def test_unhealthy_endpoint_is_left_out_and_comes_back() -> None:
    first, second, third = endpoint(1), endpoint(2), endpoint(3)
    three = upstream(first, second, third)
    first.healthy = False
    three.refresh()
    assert picked(three) == {second, third}
    assert picked(three, second) == {third}
    second.healthy = False
    three.refresh()  # 1 of 3: panic
    assert picked(three) == {first, second, third}
    first.healthy = second.healthy = True
    three.refresh()
    assert picked(three) == {first, second, third}


def test_ejected_endpoint_comes_back_by_itself() -> None:
    clock = Clock()
    first, second = endpoint(1), endpoint(2)
    both = upstream(first, second, clock=clock)
    first.ejected_until = 130.0
    both.refresh()
    assert picked(both) == {second}
    clock.now = 129.9
    assert picked(both) == {second}
    clock.now = 130.0
    assert picked(both) == {first, second}
    assert {both.pick_or_none() for _ in range(50)} == {first, second}


def test_endpoint_whose_name_has_no_address_gets_nothing() -> None:
    first, second = endpoint(1), endpoint(2)
    both = upstream(first, second)
    first.resolve([])
    both.refresh()
    assert picked(both) == {second}


def test_own_zone_is_preferred() -> None:
    here, there = endpoint(1, zone="a"), endpoint(2, zone="b")
    zoned = Upstream("u", [there, here], Random(1).random, Clock(), zone="a")
    assert picked(zoned) == {here}
    assert picked(zoned, here) == {there}
    here.healthy = False
    zoned.refresh()
    assert picked(zoned) == {there}


def test_new_endpoint_starts_slowly() -> None:
    clock = Clock()
    first, second = endpoint(1), endpoint(2)
    both = upstream(first, clock=clock, slow_start_s=100.0)
    both.set_endpoints([first, second])
    assert (first.share, second.share) == (1.0, 0.1)
    shares = []
    for _ in range(10):
        counts = [both.pick(()) for _ in range(1000)]
        shares.append(counts.count(second) / 1000)
        clock.now += 10.0
    assert shares[0] == pytest.approx(0.1 / 1.1, abs=0.03)
    assert shares == sorted(shares) or shares[-1] > shares[4] > shares[0]
    both.pick(())
    assert second.share == 1.0
    assert {both.pick_or_none() for _ in range(50)} == {first, second}


def test_endpoint_that_comes_back_starts_slowly() -> None:
    clock = Clock()
    first, second = endpoint(1), endpoint(2)
    both = upstream(first, second, clock=clock, slow_start_s=10.0)
    assert (first.share, second.share) == (1.0, 1.0)  # the first set is all there is
    first.healthy = False
    both.refresh()
    clock.now += 50.0
    first.healthy = True
    both.refresh()
    assert first.share == 0.1
    clock.now += 5.0
    both.pick(())
    assert first.share == pytest.approx(0.5)


def test_changed_endpoints_keep_what_stays() -> None:
    first, second, third = endpoint(1), endpoint(2), endpoint(3)
    some = upstream(first, second)
    first.inflight = 5
    first.settled(0.1, 1.0, failed=False)
    again = endpoint(1, weight=3, priority=1, zone="z")
    some.set_endpoints([again, third])
    assert some.endpoints == (first, third)
    assert (first.weight, first.priority, first.zone) == (3, 1, "z")
    assert (first.inflight, first.ewma_s) == (5, 0.1)
    assert cast("Connections", second.pool).retired
    assert not cast("Connections", first.pool).retired
    some.set_endpoints([third])
    assert some.only is third
    some.set_endpoints([])
    assert some.pick_or_none() is None
    some.set_endpoints([first, second])
    assert picked(some) == {second}  # the first has priority 1 now


def test_next_table_goes_on_with_what_is_known() -> None:
    clock = Clock()
    old_first, old_second = endpoint(1), endpoint(2)
    old = upstream(old_first, old_second, clock=clock)
    old_first.settled(0.1, 1.0, failed=False)
    first, second, third = endpoint(1), endpoint(2), endpoint(3)
    new = upstream(first, second, third, clock=clock, slow_start_s=10.0)
    new.inherit(old)
    assert (first.ewma_s, second.ewma_s) == (0.1, 0.0)
    assert (first.share, second.share, third.share) == (1.0, 1.0, 0.1)


def test_reason_why_an_endpoint_gets_nothing() -> None:
    clock = Clock()
    pool = [endpoint(number) for number in range(7)]
    gate = Gate()
    pool[3].gate = cast("Breaker", gate)
    of = upstream(*pool, endpoint(9, priority=1), clock=clock)
    assert [of.why_not(each) for each in of.endpoints] == [*[""] * 7, "priority 1 is not needed"]
    pool[0].healthy, pool[0].why = False, "answered 503"
    pool[1].ejected_until, pool[1].why = clock.now + 10, "5 failures in a row"
    of.refresh()
    assert [of.why_not(each) for each in of.endpoints] == [
        "answered 503",
        "5 failures in a row",
        *[""] * 5,
        "priority 1 is not needed",
    ]
    gate.welcoming = False
    pool[2].paused_until = clock.now + 5
    of.shut = 2
    of.pick(())
    assert of.why_not(pool[2]) == "it has asked for a pause"
    assert of.why_not(pool[3]) == "its breaker is open"
    pool[4].resolve([])
    of.refresh()
    assert of.why_not(pool[4]) == "the name has no address"


def test_reason_is_told_in_panic_and_of_other_zones_too() -> None:
    first, second = endpoint(1), endpoint(2)
    both = upstream(first, second)
    first.healthy = second.healthy = False
    first.why = "answered 503"
    both.refresh()
    assert both.why_not(first) == "answered 503; used all the same, since most are not well"
    assert both.why_not(second) == "unhealthy; used all the same, since most are not well"
    here, there = endpoint(1, zone="a"), endpoint(2, zone="b")
    zoned = Upstream("u", [there, here], Random(1).random, Clock(), zone="a")
    assert (zoned.why_not(here), zoned.why_not(there)) == ("", "its zone is not needed")


def test_key_keeps_requests_together_over_tiers_too() -> None:
    pool = [endpoint(number, priority=number // 4) for number in range(8)]
    hashed = Upstream("u", pool, Random(1).random, Clock(), balance=RingHash())
    for each in pool[:3]:
        each.healthy = False
    hashed.refresh()
    for key in range(0, 2**64, 2**58 + 12345):
        assert len({hashed.pick((), key) for _ in range(20)}) == 1


class Balancing(RuleBasedStateMachine):
    """Endpoints come, go, fall ill, are ejected, shut and paused, at any time: who is picked is always right."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.random = Random(1).random
        self.made = 0
        self.requests: list[Endpoint] = []
        self.use("p2c", slow_start_s=0.0)

    def use(self, balance: str, slow_start_s: float) -> None:
        self.upstream = Upstream(
            "u",
            [self.make(0, "") for _ in range(3)],
            self.random,
            self.clock,
            balance=CHOICES[balance](),
            zone="a",
            slow_start_s=slow_start_s,
        )

    def make(self, priority: int, zone: str, weight: int = 1) -> Endpoint:
        self.made += 1
        made = endpoint(self.made % 250, priority=priority, zone=zone, weight=weight)
        made.gate = cast("Breaker", Gate())
        return made

    def gate(self, of: Endpoint) -> Gate:
        return cast("Gate", of.gate)

    @rule(balance=st.sampled_from(list(CHOICES)), slow_start_s=st.sampled_from([0.0, 5.0]))
    def start_anew(self, balance: str, slow_start_s: float) -> None:
        before = self.upstream
        self.use(balance, slow_start_s)
        self.upstream.inherit(before)

    @rule(priority=st.integers(0, 2), zone=st.sampled_from(["", "a", "b"]), weight=st.integers(1, 5))
    def add(self, priority: int, zone: str, weight: int) -> None:
        self.upstream.set_endpoints([*self.upstream.endpoints, self.make(priority, zone, weight)])

    @precondition(lambda self: self.upstream.endpoints)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.upstream.endpoints))
        self.upstream.set_endpoints([each for each in self.upstream.endpoints if each is not gone])
        self.count_shut()

    @precondition(lambda self: self.upstream.endpoints)
    @rule(data=st.data(), healthy=st.booleans())
    def check(self, data: st.DataObject, *, healthy: bool) -> None:
        data.draw(st.sampled_from(self.upstream.endpoints)).healthy = healthy
        self.upstream.refresh()

    @precondition(lambda self: self.upstream.endpoints)
    @rule(data=st.data(), seconds=st.floats(0.5, 20))
    def eject(self, data: st.DataObject, seconds: float) -> None:
        data.draw(st.sampled_from(self.upstream.endpoints)).ejected_until = self.clock.now + seconds
        self.upstream.refresh()

    @precondition(lambda self: self.upstream.endpoints)
    @rule(data=st.data(), welcoming=st.booleans())
    def turn_breaker(self, data: st.DataObject, *, welcoming: bool) -> None:
        self.gate(data.draw(st.sampled_from(self.upstream.endpoints))).welcoming = welcoming
        self.count_shut()

    @precondition(lambda self: self.upstream.endpoints)
    @rule(data=st.data(), seconds=st.floats(0.5, 20))
    def pause(self, data: st.DataObject, seconds: float) -> None:
        data.draw(st.sampled_from(self.upstream.endpoints)).paused_until = self.clock.now + seconds
        self.count_shut()

    def count_shut(self) -> None:
        self.upstream.shut = sum(
            not self.gate(each).welcoming or each.paused_until > 0 for each in self.upstream.endpoints
        )

    @rule(seconds=st.floats(0.1, 10))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.upstream.endpoints)
    @rule(seconds=st.floats(0.0001, 10), failed=st.booleans(), key=st.none() | st.integers(0, 2**64 - 1))
    def request(self, seconds: float, *, failed: bool, key: int | None) -> None:
        first = self.upstream.pick_or_none(key)
        assert first is not None
        first.inflight += 1
        self.requests.append(first)
        first.settled(seconds, self.clock.now, failed=failed)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.requests) - 1))
        self.requests.pop(place).inflight -= 1

    @invariant()
    def right_one_is_picked(self) -> None:
        now, endpoints = self.clock.now, self.upstream.endpoints
        if not endpoints:
            assert self.upstream.pick_or_none() is None
            return
        tried: tuple[Endpoint, ...] = ()
        for _ in range(len(endpoints) + 1):
            found = self.upstream.pick(tried)
            assert found in endpoints
            if tried and found is tried[-1]:
                # There is no other that may be used.
                others = [
                    each for tier in self.upstream._tiers for each in tier.endpoints if each is not found
                ]
                assert not others
            tried = (*tried, found)
        well = [
            each
            for each in endpoints
            if each.healthy
            and each.ejected_until <= now
            and self.gate(each).welcoming
            and each.paused_until <= now
        ]
        if len(well) == len(endpoints):
            best = min(each.priority for each in endpoints)
            own = [each for each in endpoints if each.priority == best and each.zone == "a"]
            found = self.upstream.pick(())
            assert found.priority == best
            assert found in own or not own
        elif len(well) * 2 > len(endpoints) and len({each.priority for each in endpoints}) == 1:
            assert self.upstream.pick(()) in well


TestBalancing = Balancing.TestCase


@pytest.mark.parametrize("balance", sorted(CHOICES))
def test_endpoint_of_weight_0_is_drained_until_it_has_one_again(balance: str) -> None:
    pool = [endpoint(number, weight=weight) for number, weight in ((1, 0), (2, 1), (3, 1))]
    upstream = Upstream("u", pool, Random(1).random, Clock(), balance=CHOICES[balance](), slow_start_s=0.0)
    keys = range(0, 2**64, 2**59)
    assert {upstream.pick((), key) for key in keys} == {*pool[1:]}
    assert upstream.pick(pool[1:]) in pool[1:]
    assert upstream.endpoints == tuple(pool)
    assert [upstream.why_not(each) for each in pool] == ["drained: its weight is 0", "", ""]
    upstream.set_endpoints([endpoint(number, weight=number != 2) for number in (1, 2, 3)])
    assert {upstream.pick((), key) for key in keys} == {pool[0], pool[2]}
    upstream.set_endpoints([endpoint(1, weight=0)])
    assert upstream.only is None
    with pytest.raises(NoEndpoint):
        upstream.pick(())
