"""The counters of all workers, held by the supervisor because they must outlive them.

Each incarnation has a page of its own. At its end the counters are folded into the totals once, and its gauges are
dropped. Where a block lies in a page never changes while the supervisor lives, so a page outlasts reloads.
"""

from __future__ import annotations

import os

from ambassador.config.schema import Config
from ambassador.control.incarnation import Incarnation


class Pages:
    """Stand-in until the counters are there."""

    size = 4096

    def __init__(self) -> None:
        self._open: dict[int, int] = {}

    def place(self, config: Config) -> bytes:
        return b""

    def open(self, worker: Incarnation) -> int:
        fd = self._open[worker.pid] = os.memfd_create("page")
        return fd

    def settle(self, worker: Incarnation) -> None:
        os.close(self._open.pop(worker.pid))

    def render(self, *, generation: int, restarts: int) -> bytes:
        return b""
