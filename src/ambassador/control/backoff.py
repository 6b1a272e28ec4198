"""How long what failed waits before it is tried again: workers that crashed, questions without an answer. Pure."""

from __future__ import annotations

FIRST_S = 0.1
LONGEST_S = 30.0
STEADY_S = 10.0
"""A worker that lived so long was not part of a crash loop."""


def restart_delay_s(failures: int) -> float:
    """Seconds before the next start, after `failures` short lives in a row: 0, 0.1, 0.2, 0.4 … 30."""
    if failures <= 0:
        return 0.0
    # The exponent is bounded before it is used: a crash loop may go on for years.
    return float(min(LONGEST_S, FIRST_S * 2 ** min(failures - 1, 30)))


def retry_s(failures: int, chance: float) -> float:
    """Seconds until what failed `failures` times in a row, at least once, is asked again: about 1, 2, 4 … 30, ±25 %.

    `chance` is uniform in [0, 1): many that fail together do not come back together.
    """
    return float(min(LONGEST_S, 2 ** min(failures - 1, 30))) * (0.75 + 0.5 * chance)
