"""What a gate gives to whoever wants to make an attempt, and what an attempt says about the upstream.

A pass bears the time between two changes that it was given in: it is compared by identity, so that what comes of an
attempt of before a change never counts for what is after it.
"""

from __future__ import annotations

import enum
from math import inf
from typing import Final, TypeAlias


class Result(enum.Enum):
    """What an attempt says about the upstream."""

    GOOD = 0
    SLOW = 1
    FAILED = 2
    SLOW_FAILED = 3
    HARD = 4
    """No answer: connect, reset or timeout. Counts as FAILED, and in a row it opens this worker's own breaker."""
    NOTHING = 5
    """Cancelled by the client, refused by somebody else."""

    @property
    def slow(self) -> bool:
        """It took too long."""
        return self in (Result.SLOW, Result.SLOW_FAILED)

    @property
    def failed(self) -> bool:
        """It counts as a failure."""
        return self in (Result.FAILED, Result.SLOW_FAILED, Result.HARD)


class Pass:
    """The right to make attempts between two changes: the stamp of that time, compared by identity."""

    __slots__ = ("epoch",)

    until: float = inf
    """When an attempt must have its answer's head, in monotonic seconds; whoever makes it cuts it then."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch


OWN_PROBE: Final = ""
"""The id of a probe that needs no lease."""


class ProbePass(Pass):
    """The right to make one attempt, which shows whether the upstream is well again. `lease`: its id."""

    __slots__ = ("lease", "stamp", "until")

    def __init__(self, stamp: Pass, lease: str, until: float) -> None:
        super().__init__(stamp.epoch)
        self.stamp = stamp
        self.lease = lease
        self.until = until

    def verdict(self, result: Result, *, slow_is_good: bool) -> bool | None:
        """Whether the upstream is well; None: it says nothing about that."""
        if result is Result.NOTHING:
            return None
        return result is Result.GOOD or (result is Result.SLOW and slow_is_good)


class Refused:
    """No attempt. `retry_after_s` is when one may be worth it."""

    __slots__ = ("retry_after_s",)

    def __init__(self, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s


class Waiting:
    """A lease was asked for: the answer will tell."""

    __slots__ = ()


WAITING: Final = Waiting()

Entry: TypeAlias = Pass | Refused | Waiting
