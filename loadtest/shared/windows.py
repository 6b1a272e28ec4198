"""The arithmetic of these scenarios. Pure: all times come as arguments, in seconds where nothing else is said."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ambassador.state.circuit import Circuit
from ambassador.state.protocol import Report, Rules, State


class Worst(NamedTuple):
    """Of all windows, the one in which most was admitted beyond the rate."""

    beyond: float
    """What was admitted in it minus rate * length: at most the burst, if the limit was kept."""
    admitted: int
    begin: float
    end: float

    @property
    def length(self) -> float:
        """Of the window."""
        return self.end - self.begin


def worst_window(times: Iterable[float], rate: float) -> Worst:
    """The worst of *all* windows, exactly: it begins and ends with an admitted request (both are in it).

    With the n-th request at t(n), a window from i to j holds j - i + 1 and exceeds by that minus rate * (t(j) - t(i)):
    so for each end the best beginning is the one with the least i - rate * t(i), which one pass keeps.
    """
    ordered = sorted(times)
    worst = Worst(0.0, 0, 0.0, 0.0)
    least, first = math.inf, 0
    for number, time in enumerate(ordered):
        height = number - rate * time
        if height < least:
            least, first = height, number
        beyond = height + 1 - least
        if beyond > worst.beyond:
            worst = Worst(beyond, number - first + 1, ordered[first], time)
    return worst


def used(times: Iterable[float], rate: float, begin: float, end: float) -> float:
    """What was admitted in [begin, end) in parts of what the rate gives in that time."""
    return sum(begin <= time < end for time in times) / (rate * (end - begin))


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that `share` (0..1] of them do not exceed (nearest rank); NaN without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def most_at_once(intervals: Iterable[tuple[float, float]]) -> int:
    """The greatest number of intervals that overlap; one that ends as another begins does not overlap it."""
    steps = sorted([(end, -1) for _, end in intervals] + [(begin, 1) for begin, _ in intervals])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


class Outcome(NamedTuple):
    """An answer as its worker saw it."""

    at_us: int
    """When, by the clock of the store (unix time)."""
    replica: str
    slot: int
    failed: bool


def crossing_us(outcomes: Sequence[Outcome], rules: Rules, *, replicas: int, workers: int) -> int | None:
    """When a circuit would trip that heard of each outcome at once; None: it would not.

    `outcomes` are those since the circuit closed, in their order. The rule is the store's own.
    """
    circuit = Circuit()
    for outcome in outcomes:
        row = circuit.report(
            Report(
                "replayed",
                outcome.replica,
                outcome.slot,
                0,
                rules,
                requests=1,
                failures=int(outcome.failed),
                live_replicas=replicas,
                live_workers=workers,
            ),
            outcome.at_us,
            0.5,
        )
        if row.state is not State.CLOSED:
            return outcome.at_us
    return None
