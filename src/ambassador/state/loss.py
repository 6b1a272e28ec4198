"""What a limit becomes while the fleet's store is away: a part of it in each replica's own store. Pure.

All replicas' parts add up to the limit, if they know how many they are. What they spend meanwhile is posted to the
fleet's bucket when it is back, as far as that could not have refilled: more would starve the key for as long as the
outage lasted.
"""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A replica's part of a bucket."""

    rate: float
    """Tokens a second."""
    burst: float
    """The most it holds."""


def part_of(rate: float, burst: float, replicas: int) -> Part:
    """The part of a limit of `rate` tokens a second and `burst` that one of `replicas` takes.

    The burst is at least 1, so that a small limit lets something through at all: of fewer tokens than replicas more
    than the burst may pass.
    """
    replicas = max(1, replicas)
    return Part(rate / replicas, max(1.0, burst / replicas))


def replicas_for(known: int | None, expected: int | None) -> int:
    """Into how many parts a limit falls: as many as were alive when it was last known, else as are expected, else 1."""
    return max(1, known if known is not None else expected if expected is not None else 1)


def start_level(part: Part, lost_for_s: float) -> float:
    """What the bucket of a key holds that was not seen before the loss: what it has gained since then.

    Not its burst: the fleet's bucket may have been empty, and nobody here knows.
    """
    return min(part.burst, part.rate * max(0.0, lost_for_s))


def debt_after(part: Part, left: float) -> float:
    """What the fleet's bucket is owed when it is back: what the part lacks from full, at most its burst.

    `left` is what the part's bucket holds, below 0 if it is in debt itself.
    """
    return min(part.burst, max(0.0, part.burst - left))
