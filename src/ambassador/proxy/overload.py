"""Overload of the worker itself: how much of what comes is refused, so that the rest is served in time.

Refusing costs less than serving, but it costs: so a part is refused, which grows while it is too much and shrinks
slowly when it is not. Health checks on client listeners are answered before anything here is asked.

- *Loop lag*: the time from when a socket has something to when its strand is resumed, measured every CHECK_S with a
  byte that the worker sends to itself through the lane's own epoll, in the line with all others. Too long: a fifth more
  is refused each time; else a fiftieth less (additive both ways: there is no level to aim at, only a bound).
- *Memory* and *descriptors*: in proportion to how far the bound is passed, all of it halfway to the end (the scaled
  triggers of Envoy's overload manager). What is refused then also closes its connection.

`Shedding` is the arithmetic. `Monitor` measures; `control/worker.py` makes one where the config has `overload`.
"""

from __future__ import annotations

import os
import resource
import socket
from typing import TYPE_CHECKING, Final

from ambassador.proxy.lane import TICK_S, Timer
from ambassador.settings import Fraction, Seconds, Section

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ambassador.proxy.lane import Lane
    from ambassador.proxy.service import Service

CHECK_S: Final = 0.1
_SLOW_CHECKS: Final = 10
"""Memory and descriptors are read once a second: that costs 100 µs."""
MORE: Final = 0.2
LESS: Final = 0.02
MOST: Final = 0.95
"""Of what comes: some is let through, so that there is something to measure."""
_NO_LIMIT: Final = 1 << 60
"""cgroup v1 says so with a number like this."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a worker refuses a part of the requests with `overloaded`, before any work. Unset: never."""

    loop_lag: Seconds | None = 0.1
    """How long a worker may take to come round to a client that has sent something."""

    memory: Fraction | None = 0.9
    """Memory in use, of what the control group (or the machine) has."""

    descriptors: Fraction | None = 0.95
    """Open descriptors of the worker, of its limit."""


class Shedding:
    """How much is refused, and why. All fractions are 0..1."""

    __slots__ = ("_config", "_lagging", "closes", "part", "why")

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lagging = 0.0
        self.part = 0.0
        """Of the requests."""
        self.closes = False
        """Connections are part of the problem."""
        self.why = ""

    def update(self, *, lag_s: float, memory: float | None, descriptors: float) -> None:
        """What was measured, CHECK_S after the last time; None: not known."""
        config = self._config
        if config.loop_lag is not None and lag_s > config.loop_lag:
            self._lagging = min(MOST, self._lagging + MORE)
        else:
            self._lagging = max(0.0, self._lagging - LESS)
        scarce = max(_scaled(memory, config.memory), _scaled(descriptors, config.descriptors))
        self.closes = scarce > 0
        self.part = max(self._lagging, scarce)
        if scarce >= self._lagging:
            short = _scaled(memory, config.memory) == scarce
            self.why = "the worker is short of memory" if short else "the worker is short of descriptors"
        else:
            self.why = "the worker does not come round in time"


def _scaled(value: float | None, bound: float | None) -> float:
    """0 up to the bound, then in proportion, MOST from halfway to 1 on."""
    if value is None or bound is None or value <= bound:
        return 0.0
    return MOST * min(1.0, (value - bound) / max(1e-9, (1.0 - bound) / 2))


class Monitor(Timer):
    """Measures one worker and has its service refuse. `memory` gives the part of it that is in use.

    `start` and `stop` are called inside the lane's life. A worker without clients wakes ten times a second for it.
    """

    __slots__ = (
        "_checks",
        "_descriptors",
        "_lane",
        "_link",
        "_memory",
        "_sent_at",
        "_service",
        "_sock",
        "_used",
        "_worst",
        "shedding",
    )

    def __init__(self, config: Config, service: Service, memory: Callable[[], float | None]) -> None:
        super().__init__()
        self.shedding = Shedding(config)
        self._service = service
        self._lane: Lane = service.lane
        self._memory = memory
        self._checks = 0
        self._used: float | None = None
        self._descriptors = 0.0
        self._sent_at: float | None = None
        self._worst = 0.0
        self._sock, ear = socket.socketpair()
        self._sock.setblocking(False)
        ear.setblocking(False)
        self._link = self._lane.listen(ear, self._heard)

    def start(self) -> None:
        """Measure from now on."""
        self.deadline = self._lane.now + CHECK_S
        self._lane.arm(self)

    def stop(self) -> None:
        """Measure no more, and refuse nothing."""
        self._lane.disarm(self)
        self._link.close()
        self._sock.close()
        self._service.shed(0.0)

    def expire(self) -> None:
        """It is time to look."""
        now = self._lane.now
        lag_s = max(self._worst, now - self.deadline - TICK_S)
        if self._sent_at is None:
            self._worst = 0.0
            self._sent_at = now
            self._sock.send(b".")
        else:
            lag_s = max(lag_s, now - self._sent_at)
        if self._checks % _SLOW_CHECKS == 0:
            self._used = self._memory()
            self._descriptors = descriptors_in_use(self._lane.link_count)
        self._checks += 1
        shedding = self.shedding
        shedding.update(lag_s=lag_s, memory=self._used, descriptors=self._descriptors)
        self._service.shed(shedding.part, shedding.why, closes=shedding.closes)
        self.deadline = now + CHECK_S
        self._lane.arm(self)

    def _heard(self) -> None:
        try:
            self._link.sock.recv(16)
        except BlockingIOError:
            return
        if self._sent_at is not None:
            self._worst = max(self._worst, self._lane.now - self._sent_at)
            self._sent_at = None


def descriptors_in_use(links: int) -> float:
    """The part of the limit that is in use. `links`: sockets that the lane knows, which are nearly all: only when these
    alone are half of the limit is it worth the time to count (5 ms for 10,000, where the kernel does not do it).

    Counting must not fail where it matters, and looking into the directory takes a descriptor itself: where there is
    none left, all are in use.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or links < limit / 2:
        return 0.0 if limit == resource.RLIM_INFINITY else links / limit
    try:
        # Since Linux 6.2 the directory's size is their number, and asking takes no descriptor.
        return (os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))) / limit
    except FileNotFoundError:  # no /proc
        return links / limit
    except OSError:
        return 1.0


def memory_in_use(root: Path) -> float | None:
    """The part of the memory that is in use, by `/proc` and `/sys` under `root`: of the control group's where it has a
    limit (without what the kernel could drop), else of the machine's. None: it cannot be told.
    """
    try:
        group = (root / "proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    except OSError:
        group = ""
    for place, used, most in (
        (root / "sys/fs/cgroup" / group, "memory.current", "memory.max"),
        (root / "sys/fs/cgroup", "memory.current", "memory.max"),
        (root / "sys/fs/cgroup/memory", "memory.usage_in_bytes", "memory.limit_in_bytes"),
    ):
        part = _of_group(place, used, most)
        if part is not None:
            return part
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {
            name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest
        }
        return 1.0 - sizes["MemAvailable"] / sizes["MemTotal"]
    except (OSError, KeyError, ValueError, ZeroDivisionError):
        return None


def _of_group(place: Path, used: str, most: str) -> float | None:
    try:
        limit = int((place / most).read_text())  # "max" is no number
        if not 0 < limit < _NO_LIMIT:
            return None
        taken = int((place / used).read_text())
        for line in (place / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                taken -= int(value)
                break
    except (OSError, ValueError):
        return None
    return max(0.0, taken / limit)
