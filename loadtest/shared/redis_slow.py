"""Limits behind a Redis that takes its time: 30 and 100 ms, where a request waits 20 ms at most.

The cases are those of `limit_accuracy`, and so are the figures: what is promised does not change with the delay.
"""

from loadtest.shared.limit_accuracy import SKEWED, Case

DELAYS_MS = (30.0, 100.0)


def cases() -> list[Case]:
    """What is measured, for each delay."""
    return [
        case
        for delay in DELAYS_MS
        for case in (
            Case(name=f"{delay:g} ms, under", rate=1000, burst=1000, demand=800, delay_ms=delay),
            Case(name=f"{delay:g} ms, over", rate=1000, burst=1000, demand=2000, delay_ms=delay, uses=True),
            Case(
                name=f"{delay:g} ms, over, skewed",
                rate=1000,
                burst=1000,
                demand=2000,
                weights=SKEWED,
                delay_ms=delay,
                uses=True,
            ),
        )
    ]
