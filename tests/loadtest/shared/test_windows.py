"""The arithmetic of the fleet's scenarios."""

from __future__ import annotations

import itertools
import math
import random

import msgspec
import pytest

from ambassador.state.protocol import SETTLING_US, Rules
from loadtest.shared import windows
from loadtest.shared.windows import Outcome, Worst

RULES = Rules(
    errors=0.5, slow=2.0, min_requests=20, window_ms=1000, quorum=0.3, open_ms=300, max_open_ms=300, probes=3
)


def by_hand(times: list[float], rate: float) -> float:
    pairs = itertools.combinations_with_replacement(range(len(times)), 2)
    return max((last - first + 1 - rate * (times[last] - times[first]) for first, last in pairs), default=0.0)


@pytest.mark.parametrize("seed", range(20))
def test_worst_window_is_the_worst_of_all(seed: int) -> None:
    chance = random.Random(seed)
    times = [chance.uniform(0, 10) for _ in range(chance.randrange(1, 60))]
    found = windows.worst_window(times, 4.0)
    assert found.beyond == pytest.approx(by_hand(sorted(times), 4.0))
    assert found.admitted == sum(found.begin <= time <= found.end for time in times)
    assert found.beyond == pytest.approx(found.admitted - 4.0 * found.length)


def test_worst_window_of_nothing_is_nothing() -> None:
    assert windows.worst_window([], 1.0) == Worst(0.0, 0, 0.0, 0.0)


def test_worst_window_of_a_burst_is_the_burst() -> None:
    assert windows.worst_window([1.0, 5.0, 5.0, 5.0, 9.0], 1.0) == Worst(3.0, 3, 5.0, 5.0)


def test_used_counts_from_begin_to_before_end() -> None:
    assert windows.used([0.0, 1.0, 1.5, 2.0], 2.0, 1.0, 2.0) == 1.0


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [windows.percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert windows.percentile([7.0], 0.01) == 7.0
    assert math.isnan(windows.percentile([], 0.5))


def test_most_at_once_takes_an_end_before_a_beginning() -> None:
    assert windows.most_at_once([(0, 1), (1, 2), (1, 3), (2, 3)]) == 2
    assert windows.most_at_once([(0, 5), (1, 5), (2, 5), (6, 7)]) == 3
    assert windows.most_at_once([]) == 0


def outcomes(*parts: tuple[int, bool], replicas: int = 2) -> list[Outcome]:
    """So many of each kind, 5 ms apart, from replicas in turns."""
    found: list[Outcome] = []
    for count, failed in parts:
        for _ in range(count):
            turn = len(found)
            at = 1_000_000_000 + turn * 5000
            found.append(Outcome(at, f"r{turn % replicas}", turn // replicas % 2, failed))
    return found


def test_crossing_is_where_half_of_a_window_has_failed() -> None:
    trace = outcomes((300, False), (300, True))
    crossed = windows.crossing_us(trace, RULES, replicas=2, workers=4)
    assert crossed is not None
    # The window holds up to ten of its tenths and the one that is begun: 0.9 to 1 s.
    assert 0.45e6 <= crossed - trace[300].at_us <= 0.51e6


def test_crossing_needs_a_second_replica() -> None:
    trace = outcomes((300, False), (300, True), replicas=1)
    assert windows.crossing_us(trace, RULES, replicas=2, workers=4) is None
    assert windows.crossing_us(trace, RULES, replicas=1, workers=2) is not None


def test_crossing_waits_until_a_window_is_settled() -> None:
    trace = outcomes((200, True))
    few = msgspec.structs.replace(RULES, min_requests=2)
    crossed = windows.crossing_us(trace, few, replicas=2, workers=4)
    assert crossed is not None
    assert crossed - trace[0].at_us == SETTLING_US


def test_crossing_does_not_come_with_good_answers() -> None:
    assert windows.crossing_us(outcomes((500, False)), RULES, replicas=2, workers=4) is None
