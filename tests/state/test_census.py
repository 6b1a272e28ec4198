from __future__ import annotations

from ambassador.state.census import SHRINKS_AFTER_S, Census
from ambassador.state.protocol import Beaten


def beaten(replicas: int, workers: int, born_us: int = 1) -> Beaten:
    return Beaten(now_us=0, born_us=born_us, replicas=replicas, workers=workers)


def test_census_grows_at_once() -> None:
    census = Census()
    assert (census.replicas, census.workers, census.known) == (1, 1, False)
    census.count(beaten(4, 16), 0.0)
    assert (census.replicas, census.workers, census.known) == (4, 16, True)


def test_census_grows_by_those_who_come_and_never_shrinks_by_them() -> None:
    census = Census()
    census.grow(2, 3)
    assert (census.replicas, census.workers, census.known) == (2, 3, False)
    census.count(beaten(4, 16), 0.0)
    census.grow(3, 17)
    assert (census.replicas, census.workers) == (4, 17)


def test_census_shrinks_only_when_every_answer_of_a_while_says_so() -> None:
    census = Census()
    census.count(beaten(4, 16), 0.0)
    for second in range(int(SHRINKS_AFTER_S)):
        census.count(beaten(2, 8), 1.0 + second)
        assert census.replicas == 4
    census.count(beaten(1, 4), 1.0 + SHRINKS_AFTER_S)
    assert (census.replicas, census.workers) == (2, 8)


def test_census_of_a_store_that_was_wiped_stays_until_everybody_has_beaten_again() -> None:
    census = Census()
    census.count(beaten(4, 16), 0.0)
    assert census.count(beaten(1, 1, born_us=2), 10.0)
    assert not census.count(beaten(4, 16, born_us=2), 11.0)
    assert not census.count(beaten(3, 12, born_us=2), 20.0)
    assert (census.replicas, census.workers) == (4, 16)


def test_census_assumes_what_it_is_told_only_before_it_knows() -> None:
    census = Census()
    census.assume(3, 1)
    assert (census.replicas, census.workers, census.known) == (3, 3, False)
    census.count(beaten(1, 1), 0.0)
    assert census.replicas == 3
    census.assume(9, 9)
    assert census.replicas == 3
