"""The leases of one worker for probes of one circuit: asked for, held, and given back. Pure.

- One is asked for by the first request that finds the circuit due, at most once in ASK_S.
- A lease that nobody has used in KEEP_S goes back: soon it would count as a failure.
- Its time began when it was asked for, so it ends here before it does in the store: by GRACE_S at least, in which a
  worker tells what came of a probe that was under way until then.
"""

from __future__ import annotations

from typing import Final

from ambassador.state.protocol import LATE_S, Probe, Rules, Verb

ASK_S: Final = 0.05
"""One request for a probe's lease in this time from each worker."""
KEEP_S: Final = 1.0
"""How long a lease may be held for the next request."""
GRACE_S: Final = 0.5
"""For the coarse timer of a lane and the way to the store."""


class ProbeLeases:
    """`key` makes ids unique in the fleet. Times are monotonic seconds."""

    __slots__ = ("_asked", "_asking", "_breaker", "_held", "_key", "_next_ask", "_rules", "_used")

    def __init__(self, breaker: str, rules: Rules, key: str) -> None:
        self._breaker = breaker
        self._rules = rules
        self._key = key
        self._held: list[tuple[str, float, float]] = []
        """Id, end, and when it came."""
        self._used: dict[str, float] = {}
        """The ends of those whose probes are under way."""
        self._asking = False
        self._asked = 0
        self._next_ask = float("-inf")

    @property
    def held(self) -> bool:
        """A probe may be made at once."""
        return bool(self._held)

    def ask(self, now: float, timeout_s: float) -> Probe | None:
        """The question to be asked for a probe that takes so long at most, if it is time for one."""
        if self._asking or now < self._next_ask:
            return None
        self._asking = True
        self._asked += 1
        self._next_ask = now + ASK_S
        name = f"{self._key}.{self._asked}"
        return Probe(self._breaker, name, Verb.ASK, self._rules, max(1, int((timeout_s + GRACE_S) * 1000)))

    def answered(self) -> None:
        """The question has its answer, or will have none."""
        self._asking = False

    def keep(self, asked: Probe, asked_at: float, now: float) -> None:
        """It was granted."""
        self._held.append((asked.id, asked_at + asked.timeout_ms / 1000 - GRACE_S, now))

    def use(self) -> tuple[str, float] | None:
        """Take one, until `ended`: its id, and when it ends."""
        if not self._held:
            return None
        name, until, _ = self._held.pop()
        self._used[name] = until
        return name, until

    def ended(self, name: str) -> None:
        """The probe of this lease has ended."""
        self._used.pop(name, None)

    def is_probing(self, now: float) -> bool:
        """Whether a probe by a lease is under way."""
        return any(until + LATE_S > now for until in self._used.values())

    def drop_stale(self, now: float) -> list[Probe]:
        """Give back those that wait for nothing: what is to be asked for that."""
        stale = [lease for lease in self._held if now >= min(lease[2] + KEEP_S, lease[1])]
        for lease in stale:
            self._held.remove(lease)
        return [self.give_back(name) for name, _, _ in stale]

    def give_back(self, name: str) -> Probe:
        """The probe of this lease says nothing."""
        return Probe(self._breaker, name, Verb.LOST, self._rules)

    def inherit(self, other: ProbeLeases) -> None:
        """Know of the probes that another one has under way, until they end there."""
        self._used = other._used

    def clear(self) -> list[Probe]:
        """The circuit has changed: those that are held are void. What is to be asked, so that the store counts them no
        more among those that are on their way to the upstream.
        """
        void, self._held = self._held, []
        return [self.give_back(name) for name, _, _ in void]
