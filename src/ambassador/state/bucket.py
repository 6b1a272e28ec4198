"""A token bucket, or a calendar quota, as a store keeps it: the arithmetic of `protocol.Lease`.

Pure: the time comes as an argument, in microseconds of the store's clock. Rules that hold here:
- `tokens` is never above the depth and never below -depth, and grows by nothing but `rate` and `credit`. So what is
  granted in any time D is at most depth + rate * D, however operations are lost or the clock steps back.
- A bucket that was idle until `expires_us` is full again (or its window is over): it may be dropped then, and is the
  same when it is made anew.

What a step costs is told in `memory.py`.
"""

from __future__ import annotations

from math import ceil, floor, inf
from typing import Final

import msgspec

from ambassador.state.protocol import EPOCH_S, Lease, Leased

_EPOCH_US: Final = int(EPOCH_S * 1_000_000)
_LONGEST_RETRY_MS: Final = 3_600_000
_GRACE_US: Final = 2_000_000
"""Kept beyond its time: demands live two epochs, and the clock may step forward by a little."""
_MOST: Final = 1e15
"""Of any amount: up to here a double counts single tokens, with room for thousandths."""


def is_sound(lease: Lease) -> bool:
    """Whether the numbers can be reckoned with: none negative, endless, or no number at all."""
    start, most = lease.start, lease.most
    return (
        0 <= lease.rate <= _MOST
        and 0 <= lease.depth <= _MOST
        and 0 <= lease.debt <= _MOST
        and 0 <= lease.credit <= _MOST
        and 0 <= lease.demand <= _MOST
        and lease.want >= 0
        and lease.least >= 0
        and lease.window_s >= 0
        and lease.back >= 0
        and (start is None or -_MOST <= start <= _MOST)
        and (most is None or -_MOST <= most <= _MOST)
    )


class Bucket(msgspec.Struct, gc=False):
    """One key's tokens. A Struct that the garbage collector need not look at: there may be a million."""

    tokens: float
    """What is there. Of a calendar window that less the depth: what is used, below 0, whatever the depth is next."""
    at_us: int
    """When `tokens` was right."""
    window: int = 0
    """The calendar window it counts in; 0 for one that refills."""
    expires_us: float = 0.0
    epoch: int = 0
    """The epoch of `demand` and `tellers`; those of the epoch before are kept beside."""
    demand: float = 0.0
    tellers: int = 0
    demand_before: float = 0.0
    tellers_before: int = 0

    def lease(self, lease: Lease, now_us: int, born_us: int = 0) -> Leased:
        """Carry out a lease that `is_sound`. `born_us`: what `Leased.born_us` shall say."""
        depth = lease.depth
        window_s = lease.window_s
        if window_s:
            tokens = self._enter_window(window_s * 1_000_000, depth, now_us)
        else:
            elapsed = now_us - self.at_us
            tokens = self.tokens + lease.rate * elapsed / 1e6 if elapsed > 0 else self.tokens
            if lease.most is not None:
                tokens = min(tokens, max(lease.most, -depth))
        tokens = min(tokens, depth)
        if lease.credit or lease.back or lease.debt:
            tokens = self._settle(lease, tokens)
        self.at_us = now_us

        epoch = now_us // _EPOCH_US
        if epoch != self.epoch:
            self._enter_epoch(epoch)
        demand = lease.demand
        if lease.tells_demand:
            self.demand += demand
            self.tellers += 1

        want = lease.want
        granted = 0
        if want and tokens >= 1:
            granted = floor(tokens)
            demands = max(self.demand, self.demand_before, demand)
            if demands > demand:
                granted = min(granted, max(lease.least, ceil(tokens * demand / demands)))
            granted = min(granted, want)
            tokens -= granted
        self.tokens = tokens - depth if window_s else tokens

        sharers = max(self.tellers, self.tellers_before, 1)
        missing = max(1, lease.least) - tokens
        if window_s:
            end_us = (self.window + 1) * window_s * 1_000_000
            self.expires_us = end_us + _GRACE_US
            left_ms = -((now_us - end_us) // 1000)
            retry_ms = min(left_ms, _LONGEST_RETRY_MS) if missing > 0 else 0
            return Leased(now_us, granted, tokens, retry_ms, sharers, self.window, left_ms, born_us)
        rate = lease.rate
        full_s = (depth - tokens) / rate if rate else inf
        self.expires_us = now_us + _GRACE_US + full_s * 1e6
        retry_ms = 0
        if missing > 0:
            retry_ms = ceil(min(missing / rate * 1000, _LONGEST_RETRY_MS)) if rate else _LONGEST_RETRY_MS
        return Leased(now_us, granted, tokens, retry_ms, sharers)

    def _enter_window(self, window_us: int, depth: float, now_us: int) -> float:
        """The tokens of the window of now. One step of the clock back over a border does not begin a window again."""
        window = now_us // window_us
        if window == self.window or window == self.window - 1:
            return self.tokens + depth
        self.window = window
        return depth

    def _settle(self, lease: Lease, tokens: float) -> float:
        """Tokens after what was earned, given back and spent unasked."""
        tokens += lease.credit
        if lease.window_s and lease.back_window == self.window:
            tokens += lease.back
        return max(min(tokens, lease.depth) - lease.debt, min(tokens, -lease.depth))

    def _enter_epoch(self, epoch: int) -> None:
        follows = epoch == self.epoch + 1
        self.demand_before = self.demand if follows else 0.0
        self.tellers_before = self.tellers if follows else 0
        self.demand = 0.0
        self.tellers = 0
        self.epoch = epoch


def first(lease: Lease, now_us: int, born_us: int | None) -> Bucket:
    """The bucket that this lease makes. `born_us`: when the store's data began; None: buckets begin full."""
    depth = lease.depth
    if lease.window_s:
        return Bucket(0.0, now_us, now_us // (lease.window_s * 1_000_000))
    if lease.start is not None:
        return Bucket(max(-depth, min(depth, lease.start)), now_us)
    if born_us is None:
        return Bucket(depth, now_us)
    return Bucket(min(depth, lease.rate * max(0, now_us - born_us) / 1e6), now_us)
