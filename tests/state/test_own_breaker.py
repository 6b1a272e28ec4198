"""A worker's own breaker."""

from __future__ import annotations

import pytest

from ambassador.state.own_breaker import OwnBreaker
from tests.state.fleet import rules


def opened(random: float = 0.5) -> OwnBreaker:
    own = OwnBreaker(rules(open_ms=2000, max_open_ms=8000))
    own.trip(100.0, random, "why")
    return own


def test_new_one_is_closed() -> None:
    assert not OwnBreaker(rules()).is_open


@pytest.mark.parametrize(("random", "open_s"), [(0.0, 1.8), (0.5, 2.0), (1.0, 2.2)])
def test_open_time_has_jitter(random: float, open_s: float) -> None:
    own = opened(random)
    assert own.left(100.0) == pytest.approx(open_s)
    assert own.left(100.0 + open_s + 1e-6) == 0


def test_open_time_doubles_with_each_failed_probe_up_to_the_longest() -> None:
    own = opened()
    times = []
    for number in range(4):
        now = 200.0 + 100 * number
        own.probed(now, 0.5, good=False)
        times.append(own.left(now))
    assert times == pytest.approx([4, 8, 8, 8])


def test_one_probe_at_a_time() -> None:
    own = opened()
    own.begin_probe(105.0)
    assert own.left(103.0) == 1.0
    assert own.left(105.0) == 0
    own.end_probe()
    own.probed(103.0, 0.5, good=None)
    assert own.left(103.0) == 0


def test_probe_under_way_outlives_what_it_was_for() -> None:
    own = OwnBreaker(rules(open_ms=2000))
    own.stand_in(101.0, "away")
    own.begin_probe(105.0)
    own.close()
    own.stand_in(103.0, "away again")
    assert own.left(104.0) == 1.0
    own.end_probe()
    assert own.left(104.0) == 0


def test_good_probe_closes_it_and_after_a_calm_time_it_begins_anew() -> None:
    own = opened()
    own.probed(102.0, 0.5, good=True)
    assert not own.is_open
    assert own.trip(103.0, 0.5, "again") == pytest.approx(4)
    own.probed(110.0, 0.5, good=True)
    assert own.trip(130.0, 0.5, "much later") == pytest.approx(2)


def test_stand_in_counts_no_trip() -> None:
    own = OwnBreaker(rules(open_ms=2000))
    own.stand_in(101.0, "away")
    assert (own.is_open, own.alone, own.left(100.5)) == (True, True, 0.5)
    own.close()
    assert (own.is_open, own.alone) == (False, False)
    assert own.trip(102.0, 0.5, "why") == pytest.approx(2)


def test_it_is_inherited_but_for_a_probe_that_another_waits_for() -> None:
    own = opened()
    own.begin_probe(200.0)
    heir = OwnBreaker(rules(open_ms=3000))
    heir.inherit(own)
    assert (heir.is_open, heir.until, heir.why) == (True, own.until, "why")
    assert heir.left(150.0) == 0
