"""What one worker has in hand of the permits of one key, and how it asks for more and gives some back.

A request takes a permit from the hand without asking anybody. The store is asked (`protocol.Permit`) when the hand is
empty, when it holds much more than it needs, and once a second, so that the store knows that it lives. Nothing waits
here, and nothing is timed here: `pulse` is called by who has timers, `heard` for every event "permits" of the key.

Rules that hold here
- `used` is never raised beyond `may` but by what is in use already when the limit falls.
- One operation is under way at most. What is kept while it is under way is what was told; what is given up meanwhile is
  told with the next one.
- While others lack permits the hand keeps no idle one, and of those in use it gives up what is beyond its fair part as
  they end.
- A store that is away divides nothing: then every worker may use an equal part, and what it has. An answer that is lost
  while the store is there is asked for again.
"""

from __future__ import annotations

from math import ceil, inf
from typing import TYPE_CHECKING, Final

from ambassador.state.protocol import MOST_SAMPLES, Permit, Permitted

if TYPE_CHECKING:
    from collections.abc import Callable

    from ambassador.state.protocol import Answer, Share
    from ambassador.state.scope import Clock, Scope

PULSE_S: Final = 0.05
"""How often `pulse` is called while there is anything to do."""
_RENEW_S: Final = 1.0
"""A third of what the store waits for."""
_SHORT_S: Final = 0.1
"""While there are too few for all, the store is told this often who needs how many; and of latencies, if it counts."""
_AGAIN_S: Final = 0.02
"""Who was told that nothing is free asks again after this, or when it hears that something is."""


class Allotment:
    """One key's permits in one worker's hand. `gained` is called when there may be some for requests that wait."""

    __slots__ = (
        "_again", "_alone", "_asking", "_clock", "_drops", "_gained", "_holder", "_kept", "_key", "_samples", "_sent_at", "_store", "_told",
        "dry_until", "holders", "lacks", "least", "limit", "may", "most", "over", "share", "since", "used", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        key: str,
        store: Scope,
        clock: Clock,
        *,
        holder: str,
        most: int,
        least: int = 0,
        gained: Callable[[], None],
    ) -> None:
        self._key = key
        self._store = store
        self._clock = clock
        self._holder = holder
        self._gained = gained
        self.most = most
        self.least = least
        """Above 0: the limit is found between this and `most`."""
        self.may = 0
        """So many may be in use."""
        self.used = 0
        """So many are."""
        self.waiting = 0
        """Requests that wait for one; whoever lets them wait sets it."""
        self.limit = most
        """How many all workers may use together, as far as it is known."""
        self.share = most
        self.lacks = 0
        """How many all lack, this worker included."""
        self.holders = 1
        self.over = False
        """What becomes idle is for others: `ended` has to be told when a permit comes back."""
        self.dry_until = -inf
        """Until then nothing more is to be had: this worker has its part, and all others use theirs."""
        self.since = -inf
        """When the limit changed: what began before says nothing about it."""
        self._samples: list[float] = []
        self._drops = 0
        self._asking = False
        self._again = False
        self._alone = False
        self._kept = 0
        self._told = 0
        """What the store takes for the need: too much of it would be kept from others."""
        self._sent_at = -inf

    @property
    def need(self) -> int:
        """Requests that run or wait."""
        return self.used + self.waiting

    def configure(self, most: int, least: int) -> None:
        """There are so many from now on."""
        if (most, least) != (self.most, self.least):
            self.most, self.least = most, least
            self.limit = self.share = most
            self.ask()

    # Asking

    def ask(self) -> None:
        """Ask for what is needed, and tell what is kept."""
        if self._asking:
            self._again = True
            return
        # After the store was away, who holds what comes first; what is lacking is asked for when all have told.
        need = min(self.need, self.may) if self._alone else self.need
        self._asking, self._again, self._told = True, False, need
        self._kept = self.may
        self._sent_at = self._clock.now
        samples, self._samples = self._samples, []
        drops, self._drops = self._drops, 0
        self._store.ask(
            Permit(
                self._key,
                self._holder,
                self.most,
                self.may,
                need,
                # Some more than is needed now: the next requests need not ask.
                max(self.may, need + ceil(need / 4)) if need > self.may else self.may,
                self.least,
                samples,
                drops,
            ),
            self._answered,
        )

    def _answered(self, answer: Answer | None) -> None:
        self._asking = False
        now = self._clock.now
        if isinstance(answer, Permitted):
            self.may += max(0, answer.granted - self._kept)
            self.holders = answer.holders
            self._learn(answer.share, answer.limit, answer.lacks)
            if self._alone:
                self._alone, self.dry_until = False, now + _SHORT_S
            elif self.need > self.may >= max(1, self.share) and answer.granted <= self._kept:
                self.dry_until = now + _SHORT_S  # with less than its part: others come down to theirs
        elif answer is not None or not self._store.up:
            sharers = max(1, self._store.workers // max(1, self._store.replicas))
            self._alone = True
            self.holders = sharers
            self.limit = self.share = self.most
            self.lacks = 0
            self.may = max(self.may, ceil(self.most / sharers))
        if self.waiting:
            self._gained()
        self._come_down()
        if self._again and not self._asking:
            self.ask()

    def heard(self, told: Share) -> None:
        """Others lack some, some became free, or there are more or fewer."""
        self._learn(told.share, told.limit, told.lacks)
        self._come_down()
        if told.free > 0:
            self.dry_until = -inf
            if self.need > self.may:
                self.ask()

    def _learn(self, share: int, limit: int, lacks: int) -> None:
        if limit != self.limit:
            self.limit = limit
            self.since = self._clock.now
            self._samples, self._drops = [], 0
        self.share, self.lacks = share, lacks

    def _come_down(self) -> None:
        """Give up what is idle or beyond the fair part, where others lack it or there are fewer than were granted."""
        others = self.lacks - max(0, self.need - self.may) > 0 or self.share < self.limit
        if not others and self.may <= self.limit:
            self.over = False
            return
        most = max(self.used, min(self.need, self.share))
        self.over = True
        if self.may > most:
            self.may = most
            self.ask()

    # What ends

    def ended(self) -> None:
        """A permit has come back while `over`, and who waits here was not served yet."""
        self._come_down()

    def sample(self, seconds: float, *, dropped: bool) -> None:
        """A request took so long that began after `since`; `dropped`: the upstream refused it."""
        if dropped:
            self._drops += 1
        elif len(self._samples) < MOST_SAMPLES:
            self._samples.append(seconds)

    def leave(self) -> None:
        """Give everything back, for good."""
        if self.may:
            self.may = self.waiting = 0
            self._store.ask(Permit(self._key, self._holder, self.most, 0, 0, least=self.least))

    @property
    def is_idle(self) -> bool:
        """There is nothing to do before the next request."""
        return not (self.may or self.used or self.waiting or self._asking or self._told)

    def pulse(self, now: float) -> None:
        """Tell the store what it should know by now, and ask again for what is lacking."""
        if self._asking:
            return
        passed = now - self._sent_at
        lacking = (self.need > self.may and now >= self.dry_until) or self._told > self.need == 0
        news = bool(self._samples or self._drops or self.lacks)
        if (lacking and passed >= _AGAIN_S) or (news and passed >= _SHORT_S):
            self.ask()
        elif passed >= _RENEW_S and (self.may or self.need):
            # Half of what is not used goes back each second, all of it in the end.
            self.may -= (self.may - self.used + 1) // 2 if self.may > self.need else 0
            self.ask()
