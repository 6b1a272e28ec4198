"""Waiting, for a time or for what others do. All times are of the monotonic clock."""

import time
from collections.abc import Callable

from loadtest import processes

PATIENCE_S = 20.0
_POLL_S = 0.005


def sleep_until(when: float) -> None:
    """Sleep until that time; not at all if it has passed."""
    time.sleep(max(0.0, when - time.monotonic()))


def wait_for(look: Callable[[], object], what: str) -> None:
    """Wait until `look` gives something true. Raises `processes.StartError` when it does not within PATIENCE_S."""
    until = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > until:
            raise processes.StartError(f"{what} did not come within {PATIENCE_S:g} s")
        time.sleep(_POLL_S)
