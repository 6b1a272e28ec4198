"""How long a worker that crashed waits before it is started again. Pure."""

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
