"""A token bucket, or a calendar quota, as a store keeps it: the arithmetic of `protocol.Lease`.

Pure: the time comes as an argument, in microseconds of the store's clock. Rules that hold here:
- `tokens` is never above the depth and never below -depth, and grows by nothing but `rate` and `credit`. So what is
  granted in any time D is at most depth + rate * D, however operations are lost or the clock steps back.
- A bucket that was idle until `expires_us` is full again (or its window is over): it may be dropped then, and is the
  same when it is made anew.

A store that loses its data at a time w gives no second burst. Let B be the burst, B' the depth, R the rate, and h the
longest time from asking for a token to spending it. What is spent in [t, t + D] was granted in [t - h, t + D]. With w
in there, the old bucket grants at most B' + R (w - t + h) of it, and a new one that begins with s at w at most
s + R (t + D - w). Together that is B' + s + R (D + h), which is no more than B + R D for

    s = B - B' - R h.

So a bucket that a young store makes begins with s, and R times the age of the store's data (`first`). Where tokens live
as long as B allows, h = (B - B') / R, s is 0. Limits so slow that they lease on demand have tokens that live seconds
(`holding.SLOW_LIFE_S`), so nearly all of B - B' is free: 10/h with a burst of 10 admits one at once after a loss, the
second 5 s later, and not after 6 minutes. Of several losses within a window, each but one adds s at most.

What a step costs is told in `memory.py`.
"""

from __future__ import annotations

from math import ceil, floor, inf
from typing import Final

import msgspec

from ambassador.state.protocol import EPOCH_S, MOST_RESERVE_US, RESERVE_GRACE_US, Lease, Leased

_EPOCH_US: Final = int(EPOCH_S * 1_000_000)
_LONGEST_RETRY_MS: Final = 3_600_000
GRACE_US: Final = 2_000_000
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
        and lease.first >= 0
        and lease.lacks >= 0
        and 0 <= lease.birth <= _MOST
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
    reserved: float = 0.0
    """What is held back for a lease that needs so much at once, before `reserved_until_us`."""
    reserved_until_us: float = 0.0

    def lease(self, lease: Lease, now_us: int, born_us: int = 0, telling_until_us: int = 0) -> Leased:
        """Carry out a lease that `is_sound`. `born_us`: what `Leased.born_us` shall say. Before `telling_until_us` of
        a window only those are granted anything who know of it.
        """
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
        if lease.tells_demand:
            self.demand += lease.demand
            self.tellers += 1

        granted = 0
        if lease.want and tokens >= 1 and not (now_us < telling_until_us and window_s and not lease.knows):
            granted = self._grant(lease, tokens, now_us)
            tokens -= granted
        if (lease.lacks > 1 or self.reserved) and not window_s:
            self._reserve(lease, granted, tokens, now_us)
        self.tokens = tokens - depth if window_s else tokens

        sharers = max(self.tellers, self.tellers_before, 1)
        missing = max(1, lease.least) - tokens
        if window_s:
            end_us = (self.window + 1) * window_s * 1_000_000
            self.expires_us = end_us + GRACE_US
            left_ms = -((now_us - end_us) // 1000)
            retry_ms = min(left_ms, _LONGEST_RETRY_MS) if missing > 0 else 0
            return Leased(now_us, granted, tokens, retry_ms, sharers, self.window, left_ms, born_us)
        rate = lease.rate
        full_s = (depth - tokens) / rate if rate else inf
        self.expires_us = now_us + GRACE_US + full_s * 1e6
        retry_ms = 0
        if missing > 0:
            retry_ms = ceil(min(missing / rate * 1000, _LONGEST_RETRY_MS)) if rate else _LONGEST_RETRY_MS
        return Leased(now_us, granted, tokens, retry_ms, sharers, born_us=born_us)

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

    def _grant(self, lease: Lease, tokens: float, now_us: int) -> int:
        want, demand, first = lease.want, lease.demand, min(lease.first, lease.want)
        there = tokens
        if first < self.reserved and now_us < self.reserved_until_us:
            there = max(0.0, tokens - self.reserved)
        granted = floor(there)
        demands = max(self.demand, self.demand_before, demand)
        if demands > demand:
            granted = min(granted, max(lease.least, first, ceil(tokens * demand / demands)))
        if granted >= want:
            return want
        return granted - granted % first if first > 1 else granted

    def _reserve(self, lease: Lease, granted: int, tokens: float, now_us: int) -> None:
        """Hold tokens back for who needs more than is there; see `Lease`. `tokens` are those left."""
        rate, lacks = lease.rate, min(lease.lacks, floor(lease.depth))
        is_held = now_us < self.reserved_until_us
        if is_held and granted >= self.reserved:
            self.reserved_until_us = now_us
            is_held = False
        presses = max(self.demand, self.demand_before, lease.demand) > rate > 0
        if lacks <= 1 or max(granted, tokens) >= lacks or not presses:
            return
        if is_held:
            if lacks < self.reserved:
                return
        elif now_us < self.reserved_until_us + self.reserved / rate * 1e6:
            return
        self.reserved = lacks
        fills_us = (lacks - tokens) / rate * 1e6
        self.reserved_until_us = now_us + min(fills_us + RESERVE_GRACE_US, MOST_RESERVE_US)

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
    return Bucket(min(depth, lease.birth + lease.rate * max(0, now_us - born_us) / 1e6), now_us)
