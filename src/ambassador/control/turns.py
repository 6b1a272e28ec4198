"""Long work in short turns: a process's loop serves others in between.

The supervisor's carries heartbeats, signals and health, a worker's its clients, and neither must be held up for longer
than a millisecond or two; what is told or compiled of many routes takes longer. A thread would not do: it holds the
interpreter for 5 ms at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

TURN_S: Final = 0.0005
"""Long against a pass of the loop (20 µs), short against what others wait for."""


class Turns:
    """One work at a time: a crowd that asks for much holds others up no longer than one who does."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, turn_s: float = TURN_S) -> None:
        """`clock` is real time in seconds, whatever the loop's clock is: what is measured is work."""
        self._clock = clock
        self._turn_s = turn_s
        self._busy = trio.Lock()

    async def take(self, steps: Iterable[T]) -> list[T]:
        """All that `steps` gives. A step should be short: others have theirs after each turn."""
        made: list[T] = []
        async with self._busy:
            end = self._clock() + self._turn_s
            for each in steps:
                made.append(each)
                if self._clock() >= end:
                    await trio.lowlevel.checkpoint()
                    end = self._clock() + self._turn_s
        return made
