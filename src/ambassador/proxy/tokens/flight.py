"""One token as one worker has it: used, refreshed, refused, missing. A pure state machine.

It is told what happens (`want`, `refused`, `told`, `fetched`, `heard`, `rang`), with the time and a chance, and leaves
what is to be done in `todo`: ask a store, ask the token service. `keeper.py` does that, and wakes who waits whenever
`news` grew.

All workers that share a store ask the token service once: whoever has the store's lock does, the others wait for the
value. Stores are tried in order (`places`: the fleet's, the replica's); one that does not answer is passed over, and
with none left the worker asks alone.

    REST --- a token is needed, or due ---> READING ---> LOCKING ---> FETCHING ---> STORING ---> REST
                                               |            |  ^
                                          there is one      v  | every 100 ms, and when there is news
                                               v          WAITING (somebody else fetches)
                                              REST

The rules that hold here
- A token that has ended is never given out; nor is one that the upstream refused, unless the token service gave the
  same one again.
- While a token is good nobody waits: the next one is fetched beside it, and if that fails it is used to its end.
- After a failure nobody asks before a pause is over (`life.pause_s`); who wants a token meanwhile hears of the failure
  at once. It is shared within the replica (by the last of the stores), if there is no token: other replicas may have
  better secrets, or a better network. After three in a row only one request tries again, and the others go on hearing
  of the failure until it has worked.
- A lock lasts 4 s and is renewed each second: one whose holder died is free before those who wait give up (5 s).
"""

from __future__ import annotations

import enum
from math import inf
from typing import Final, TypeAlias

import msgspec

from ambassador.proxy.tokens.answer import Failure, Granted
from ambassador.proxy.tokens.life import Held, hold, pause_s

LOCK_S: Final = 4.0
RENEW_S: Final = 1.0
POLL_S: Final = 0.1
TRUST: Final = 3
"""So many failures in a row, and a request that cannot be the one that tries again does not wait for it."""
RENEWAL_PAUSE_S: Final = 1.0
"""After an upstream has refused a token, the one after it does not count as refused so soon unless it was accepted
once, and longer with each: an upstream that refuses all of them shall not make the token service make more."""
MOST_RENEWAL_PAUSE_S: Final = 30.0
_REMEMBERED: Final = 4
"""Tokens that were refused: what a store holds may be the last but one."""


class Phase(enum.Enum):
    """What is under way."""

    REST = enum.auto()
    READING = enum.auto()
    LOCKING = enum.auto()
    WAITING = enum.auto()
    FETCHING = enum.auto()
    STORING = enum.auto()


class Down(msgspec.Struct, frozen=True):
    """There is no token, and none is asked for before `until`."""

    failure: Failure
    failures: int
    """In a row."""
    until: float


class Record(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """A token as a store has it; how much longer it lasts the store says."""

    text: str
    life_s: float

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Refusal(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """There was none; it stays in the store until the pause is over."""

    result: str
    why: str
    code: str
    failures: int


class Seen(msgspec.Struct, frozen=True):
    """What a store answered. `value` None: there is none that could be read; `left_s`: how long it stays."""

    version: int
    value: Record | Refusal | None
    left_s: float
    done: bool


class Ask(msgspec.Struct, frozen=True):
    """Ask a store, and answer `told` with `turn`. `value` is for "store" and stays for `ttl_s`."""

    turn: int
    place: int
    action: str
    version: int = 0
    value: Record | Refusal | None = None
    ttl_s: float = 0.0


class Fetch(msgspec.Struct, frozen=True):
    """Ask the token service, and answer `fetched`."""


Todo: TypeAlias = Ask | Fetch


class Flight:
    """One token. `places` is how many stores there are to share it by. Times are seconds of a monotonic clock."""

    __slots__ = (
        "_asked_at",
        "_bad",
        "_next_at",
        "_place",
        "_renewal_pause_s",
        "_ring_at",
        "_turn",
        "_unrefused_until",
        "_used",
        "_version",
        "down",
        "failures",
        "latest",
        "news",
        "phase",
        "places",
        "proactive",
        "todo",
        "token",
    )

    def __init__(self, places: int, *, proactive: bool) -> None:
        self.places = places
        self.proactive = proactive
        """A token that was used is fetched again when it is due, not only when it is wanted the next time."""
        self.phase = Phase.REST
        self.token: Held | None = None
        """Not given out without a look at the clock: `want` takes it."""
        self.latest: Held | None = None
        """The last one there was, also if it was refused since: for who has been given it and is about to show it."""
        self.down: Down | None = None
        """The last failure; None after a success."""
        self.failures = 0
        self.news = 0
        """Grows whenever who waits has something to look at."""
        self.todo: list[Todo] = []
        self._bad: tuple[str, ...] = ()
        self._turn = 0
        self._place = 0
        self._version = 0
        self._asked_at = 0.0
        self._ring_at = inf
        self._next_at = 0.0
        self._unrefused_until = -inf
        self._renewal_pause_s = 0.0
        self._used = False

    # What requests want

    def want(self, now: float) -> Held | Down | None:
        """The token for a request that begins now; why there is none; or None: wait until `news` grows, and ask again.

        Begins what has to be begun.
        """
        token = self.token
        if token is not None and now < token.ends_at:
            self._used = True
            if now >= token.due_at and now >= self._next_at:
                self._begin(now)
            return token
        down = self.down
        if down is not None and now < down.until:
            return down
        if self.phase is Phase.REST:
            self._begin(now)
        elif down is not None and down.failures >= TRUST:
            return down
        return None

    def refused(self, began: float, now: float) -> bool:
        """The upstream did not accept the token, in an attempt that began then. Whether another attempt may do better:
        there is another token, or there will be.

        What began in the moment in which the token came has shown it: who waited for it is first.
        """
        token = self.token
        if token is None:
            if self.down is not None and now < self.down.until:
                return False
        elif began >= token.since:
            if now < self._unrefused_until:
                return False
            calm = now >= self._unrefused_until + MOST_RENEWAL_PAUSE_S
            self._renewal_pause_s = (
                RENEWAL_PAUSE_S if calm else min(2 * self._renewal_pause_s, MOST_RENEWAL_PAUSE_S)
            )
            self._unrefused_until = now + self._renewal_pause_s
            self._bad = (token.text, *self._bad[: _REMEMBERED - 1])
            self.token = None
        elif now < token.ends_at:
            return True
        if self.phase is Phase.REST:
            self._begin(now)
        return True

    def accepted(self) -> None:
        """The upstream accepted the token that came in place of a refused one: the next refusal counts at once."""
        self._unrefused_until = -inf

    # What happens

    @property
    def ring_at(self) -> float:
        """When `rang` is to be called."""
        if self.phase is not Phase.REST:
            return self._ring_at
        token = self.token
        if token is None or not self.proactive or not self._used:
            return inf
        due = max(token.due_at, self._next_at)
        return due if due < token.ends_at else inf

    def rang(self, now: float) -> None:
        """It is `ring_at`."""
        if now < self.ring_at:
            return
        if self.phase is Phase.WAITING:
            self._lock(now)
        elif self.phase is Phase.FETCHING:
            self._ring_at = now + RENEW_S
            # Nobody listens to turn 0: what it says changes nothing.
            self.todo.append(Ask(0, self._place, "lock"))
        elif self.phase is Phase.REST:
            self._used = False
            self._begin(now)

    def heard(self, version: int, now: float) -> None:
        """Somebody stored something, as this version."""
        if self.phase is Phase.WAITING:
            self._lock(now)
        elif self.token is not None and version != self._version and now < self.token.ends_at:
            self._begin(now)

    def told(self, turn: int, seen: Seen | None, now: float, chance: float) -> None:
        """A store answered what was asked in this turn; None: it did not, or not what was asked."""
        if turn != self._turn:
            return
        phase = self.phase
        if phase is Phase.STORING:
            self._stored(seen, now, chance)
        elif phase is Phase.READING or phase is Phase.LOCKING:
            if seen is None:
                self._place += 1
                self._look(now)
            else:
                self._found(seen, now, chance)

    def fetched(self, result: Granted | Failure, now: float, chance: float) -> None:
        """The token service answered, or did not."""
        if self.phase is not Phase.FETCHING:
            return
        if isinstance(result, Granted):
            self._bad = tuple(text for text in self._bad if text != result.text)
            self._take(
                hold(result.text, result.life_s, self._asked_at + result.life_s, now=now, chance=chance)
            )
            self._keep(Record(result.text, result.life_s), self._asked_at + result.life_s - now, now)
            return
        self.failures += 1
        pause = pause_s(self.failures, result.after_s, chance)
        self._next_at = now + pause
        self.down = Down(result, self.failures, now + pause)
        self.news += 1
        has_token = self.token is not None and now < self.token.ends_at
        if not has_token and self._place == self.places - 1:
            self._keep(Refusal(result.result, result.why, result.code, self.failures), pause, now)
        else:  # a token that is good stays in the store, and other replicas may have better secrets and networks
            self._unlock()
            self._rest()

    # Steps

    def _begin(self, now: float) -> None:
        if self.phase is Phase.REST:
            self._place = 0
            self._look(now)

    def _look(self, now: float) -> None:
        """Look into the next store; with none left, ask the token service alone."""
        if self._place < self.places:
            self._ask(Phase.READING, "read", now)
        else:
            self._fetch(now)

    def _lock(self, now: float) -> None:
        self._ask(Phase.LOCKING, "lock", now)

    def _fetch(self, now: float) -> None:
        self.phase = Phase.FETCHING
        self._asked_at = now
        self._ring_at = now + RENEW_S if self._place < self.places else inf
        self.todo.append(Fetch())

    def _ask(self, phase: Phase, action: str, now: float) -> None:
        self.phase = phase
        self._turn += 1
        self._asked_at = now
        self._ring_at = inf
        self.todo.append(Ask(self._turn, self._place, action))

    def _found(self, seen: Seen, now: float, chance: float) -> None:
        """A store was read, or its lock asked for."""
        self._version = seen.version
        locking = self.phase is Phase.LOCKING
        self._adopt(seen, now, chance)
        token, down = self.token, self.down
        if token is not None and now < token.due_at:
            enough = True
        else:
            enough = token is None and down is not None and now < down.until
        if enough:
            if locking and seen.done:
                self._unlock()
            self._rest()
        elif not locking:
            self._lock(now)
        elif seen.done:
            self._fetch(now)
        elif token is not None and now < token.ends_at:
            self._next_at = now + RENEW_S  # somebody fetches the next one; this one is still good
            self._rest()
        else:
            self.phase = Phase.WAITING
            self._ring_at = now + POLL_S

    def _adopt(self, seen: Seen, now: float, chance: float) -> None:
        """Take what a store has, if it is better than what is in hand."""
        value = seen.value
        if isinstance(value, Record):
            if value.text in self._bad:
                return
            # What was left when the store answered counts from when it was asked: never too long.
            token = hold(value.text, value.life_s, self._asked_at + seen.left_s, now=now, chance=chance)
            mine = self.token
            if now < token.ends_at and (
                mine is None or (token.text != mine.text and token.expires_at > mine.expires_at)
            ):
                self._take(token)
        elif isinstance(value, Refusal) and (self.token is None or now >= self.token.ends_at):
            until = self._asked_at + seen.left_s
            if now < until:
                self.failures = max(self.failures, value.failures)
                self.down = Down(Failure(value.result, value.why, value.code), value.failures, until)
                self._next_at = until
                self.news += 1

    def _take(self, token: Held) -> None:
        self.token = self.latest = token
        self.down = None
        self.failures = 0
        self._next_at = 0.0
        self._used = False
        self.news += 1

    def _keep(self, value: Record | Refusal, ttl_s: float, now: float) -> None:
        """Store it where the lock is, if there is one."""
        if self._place >= self.places:
            self._rest()
            return
        self.phase = Phase.STORING
        self._turn += 1
        self._asked_at = now
        self._ring_at = inf
        self.todo.append(Ask(self._turn, self._place, "store", self._version, value, ttl_s))

    def _stored(self, seen: Seen | None, now: float, chance: float) -> None:
        """It is stored; or somebody else stored another one meanwhile, since the lock was lost."""
        if seen is not None:
            self._version = seen.version
            if not seen.done:
                self._adopt(seen, now, chance)
        self._rest()

    def _unlock(self) -> None:
        if self._place < self.places:
            self.todo.append(Ask(0, self._place, "unlock"))

    def _rest(self) -> None:
        self.phase = Phase.REST
        self._ring_at = inf
