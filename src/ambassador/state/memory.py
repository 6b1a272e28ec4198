"""The store in memory, which the supervisor holds for its workers: a dictionary of each kind, and the rules of time.

No I/O, no clock: `perform` does one operation at the time that it is given, which never goes backwards. It is called
once for each cold request of every worker, so it must never take long:
- A key goes into one of many small dictionaries by its hash. A single one of a million keys would stop for 60 ms when
  it grows.
- What is over is found by looking through one of these at a time, at most one in SWEEP_EVERY_US: some 250 keys of a
  million. Nobody notices before: what is over is not there for whoever asks.
- Buckets are Structs that the garbage collector does not know, as are the values.
- Beyond `max_keys` and `max_bytes` nothing new is taken (`Refused`); what is there works on. Before a key is refused,
  buckets are looked for that are full again, or whose window is over: those are dropped without the grace that others
  have. What is left is keys that have used something; to forget one would give it that once more. `findings` says so.

Measured (CPython 3.11, one core of the design's machine): 1.9 us a lease of a bucket that is there, 4.4 a report of a
circuit with four workers, 2.3 a probe, 0.4 a get, 1.4 a beat of eight. With a million keys: 335 MB, 5 us for a new one,
and the longest step 0.5 ms while they come, 0.8 when all of a dictionary's keys are over at once. (Some runs had one or
two steps of 2 to 4 ms, never at the same key; the garbage collector was not it.)
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from ambassador.state import bucket, circuit, permits
from ambassador.state.bucket import Bucket
from ambassador.state.circuit import Circuit
from ambassador.state.permits import Permits
from ambassador.state.protocol import (
    BEAT_TTL_US,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    TELLING_US,
    Alive,
    Answer,
    Beat,
    Beaten,
    Event,
    Force,
    Get,
    Lease,
    Leased,
    Member,
    Named,
    Operation,
    Permit,
    Permitted,
    Probe,
    Probed,
    Put,
    Refused,
    Report,
    Restore,
    Roll,
    Rolled,
    Row,
    Token,
    Tokened,
    encode,
)

MAX_KEYS: Final = 1_100_000
"""Of all kinds together: 370 MB of buckets, which come first to many."""
_NEAR: Final = (0.9, 0.85)
"""Parts of `max_keys`: from the first on it is told that there may be too many, until there are fewer than the
second."""
_TOLD_US: Final = 60_000_000
"""So long it is told that something was refused."""
MAX_CIRCUITS: Final = 20_000
"""A circuit takes some 2 KB, and there is one for an upstream, an endpoint or a route of the config."""
MAX_BYTES: Final = 256 * 1024 * 1024
"""Of values and credentials."""
SWEEP_EVERY_US: Final = 4_000
"""So what is over is gone after 16 s, where operations come in that often; with a million keys that takes 5 % of a
core."""
SHARDS: Final = 4096
_FORCES: Final = ("open", "closed", "auto")

_TOO_LONG: Final = Refused("too long")
_UNSOUND: Final = Refused("numbers out of range")
_FULL: Final = Refused("out of memory")


class _Expiring(Protocol):
    """Something that is over at `expires_us` of the store's clock."""

    expires_us: float


Kept = TypeVar("Kept", bound=_Expiring)


class Table(Generic[Kept]):
    """Things by key, in so many dictionaries that none is ever large."""

    __slots__ = ("_hand", "_lost", "_shards", "count")

    def __init__(self, shards: int, lost: Callable[[Kept], None] | None = None) -> None:
        self._shards: list[dict[str, Kept]] = [{} for _ in range(shards)]
        self._hand = 0
        self._lost = lost
        """Told of everything that is swept away."""
        self.count = 0

    def shard(self, key: str) -> dict[str, Kept]:
        """The dictionary that the key belongs to, to be read."""
        return self._shards[hash(key) % len(self._shards)]

    def add(self, key: str, kept: Kept) -> None:
        """A key that is not there yet."""
        self._shards[hash(key) % len(self._shards)][key] = kept
        self.count += 1

    def sweep(self, now_us: int) -> None:
        """Drop what is over from the next dictionary."""
        if not self.count:
            return
        shard = self._shards[self._hand]
        self._hand = (self._hand + 1) % len(self._shards)
        gone = [key for key, kept in shard.items() if kept.expires_us <= now_us]
        for key in gone:
            kept = shard.pop(key)
            if self._lost is not None:
                self._lost(kept)
        self.count -= len(gone)


class _Value(msgspec.Struct, gc=False):
    """A named value, or a credential. `version` 0: there is none (a credential's lock may be held)."""

    version: int = 0
    value: bytes = b""
    ends_us: float = inf
    """When the value is over."""
    expires_us: float = inf
    """When there is nothing to be remembered."""
    nonce: str = ""
    """Who has the lock, while it is before `locked_us`."""
    locked_us: int = 0

    def drop_if_over(self, now_us: int) -> int:
        """Bytes that became free."""
        if self.ends_us > now_us:
            return 0
        freed = len(self.value)
        self.version, self.value, self.ends_us = 0, b"", inf
        return freed


class MemoryStore:
    """One store. `perform` is called with a clock that never goes backwards, `collect` after it for what to tell.

    `born_us` is when it began. `full`: buckets begin full, as of a store that has nothing to have lost; else by the
    birth rule of `Lease`. `chance` gives numbers from 0 up to 1 for the jitter of open times; None: no jitter.
    `max_bytes` counts values, not keys.
    """

    __slots__ = (
        "_actions",
        "_beats",
        "_born_us",
        "_buckets",
        "_bytes",
        "_chance",
        "_circuits",
        "_events",
        "_full",
        "_max_bytes",
        "_max_keys",
        "_near",
        "_no_keys_us",
        "_no_room_us",
        "_perform",
        "_permits",
        "_sweep_at",
        "_terms",
        "_tokens",
        "_values",
    )

    def __init__(
        self,
        born_us: int,
        *,
        full: bool = True,
        chance: Callable[[], float] | None = None,
        max_keys: int = MAX_KEYS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._born_us = born_us
        self._full = full
        self._chance = chance or (lambda: 0.5)
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._bytes = 0
        self._near = False
        self._no_keys_us = self._no_room_us = -inf
        """When a key, or a value, was refused last."""
        self._buckets: Table[Bucket] = Table(SHARDS)
        self._circuits: Table[Circuit] = Table(SHARDS // 64)
        self._tokens: Table[_Value] = Table(SHARDS // 16, self._free)
        self._values: Table[_Value] = Table(SHARDS, self._free)
        self._permits: Table[Permits] = Table(SHARDS // 64)
        self._beats: dict[tuple[str, int], Member] = {}
        self._terms: dict[str, str] = {}
        """By replica."""
        self._events: list[Event] = []
        self._sweep_at = born_us + SWEEP_EVERY_US
        self._actions: dict[str, Callable[[_Value, Token, int], bool | None]] = {
            "read": lambda kept, _token, _now_us: kept.version > 0,
            "lock": self._lock,
            "store": self._store,
            "unlock": self._unlock,
        }
        self._perform: dict[type[Operation], Callable[[Any, int], Answer]] = {
            Lease: self._lease,
            Report: self._report,
            Probe: self._probe,
            Force: self._force,
            Restore: self._restore,
            Token: self._token,
            Beat: self._beat,
            Roll: self._roll,
            Put: self._put,
            Get: self._get,
            Permit: self._permit,
        }

    def perform(self, operation: Operation, now_us: int) -> Answer:
        """Do one operation. `now_us`: unix time in microseconds, never less than before. Never raises."""
        if now_us >= self._sweep_at:
            self.sweep(now_us)
        return self._perform[type(operation)](operation, now_us)

    def collect(self) -> list[Event]:
        """What was published since the last call, in order, for everybody."""
        if not self._events:
            return self._events
        events, self._events = self._events, []
        return events

    def sweep(self, now_us: int) -> None:
        """Drop some of what is over; `perform` does so as often as is needed while there is something to perform."""
        self._sweep_at = now_us + SWEEP_EVERY_US
        self._buckets.sweep(now_us)
        self._circuits.sweep(now_us)
        self._tokens.sweep(now_us)
        self._values.sweep(now_us)
        self._permits.sweep(now_us)

    @property
    def keys(self) -> int:
        """How many keys it holds, those included that are over and not yet swept away."""
        tables = (self._buckets, self._circuits, self._tokens, self._values, self._permits)
        return sum(table.count for table in tables)

    def _has_room(self, now_us: int) -> bool:
        """For one more key. If there is none, the next ones may find what this one swept away."""
        if self.keys < self._max_keys:
            return True
        self.sweep(now_us)
        self._buckets.sweep(now_us + bucket.GRACE_US)
        if self.keys < self._max_keys:
            return True
        self._no_keys_us = now_us
        return False

    def findings(self, now_us: int) -> tuple[str, ...]:
        """What whoever runs this should know of its bounds, in sentences that stay the same as long as it is so."""
        found = []
        most = f"{self._max_keys:,} keys"
        self._near = self.keys >= self._max_keys * _NEAR[self._near]
        if now_us - self._no_keys_us < _TOLD_US:
            found.append(
                f"this replica's store is full: it holds {most}. New clients of limits that count by client, address or "
                "header get only what a worker gives by itself, until keys have expired"
            )
        elif self._near:
            found.append(
                f"this replica's store is nearly full: more than {_NEAR[1]:.0%} of {most} are in use"
            )
        if now_us - self._no_room_us < _TOLD_US:
            found.append(
                f"this replica's store is full: it holds {self._max_bytes >> 20} MiB of answers, tokens and the like, and "
                "keeps no new ones"
            )
        return tuple(found)

    def _free(self, value: _Value) -> None:
        self._bytes -= len(value.value)

    # Buckets

    def _lease(self, lease: Lease, now_us: int) -> Leased | Refused:
        key = f"{lease.window_s} {lease.key}" if lease.window_s else lease.key
        kept = self._buckets.shard(key).get(key)
        if not bucket.is_sound(lease):
            return _UNSOUND
        if kept is None:
            if _is_too_long(lease.key):
                return _TOO_LONG
            if not self._has_room(now_us):
                return _FULL
            kept = bucket.first(lease, now_us, None if self._full else self._born_us)
            self._buckets.add(key, kept)
        return kept.lease(lease, now_us, self._born_us, 0 if self._full else self._born_us + TELLING_US)

    # Circuits

    def _report(self, report: Report, now_us: int) -> Row | Refused:
        sound = min(report.requests, report.failures, report.slow) >= 0 and circuit.is_sound(report.rules)
        kept = self._circuit(report.breaker, now_us) if sound else _UNSOUND
        if isinstance(kept, Refused):
            return kept
        return self._told(report.breaker, kept, kept.report(report, now_us, self._chance()))

    def _probe(self, probe: Probe, now_us: int) -> Probed | Refused:
        sound = probe.timeout_ms >= 0 and circuit.is_sound(probe.rules)
        kept = self._circuit(probe.breaker, now_us) if sound else _UNSOUND
        if isinstance(kept, Refused):
            return kept
        if _is_too_long(probe.id):
            return _TOO_LONG
        probed = kept.probe(probe, now_us, self._chance())
        self._told(probe.breaker, kept, probed.row)
        return probed

    def _force(self, force: Force, now_us: int) -> Row | Refused:
        if force.to not in _FORCES:
            return Refused("no such force")
        if len(force.by) + len(force.reason) > MAX_VALUE_BYTES:
            return _TOO_LONG
        kept = self._circuit(force.breaker, now_us) if force.for_ms >= 0 else _UNSOUND
        if isinstance(kept, Refused):
            return kept
        return self._told(force.breaker, kept, kept.force(force, now_us))

    def _restore(self, restore: Restore, now_us: int) -> Row | Refused:
        row = restore.row
        sound = row.epoch >= 0 and row.trips >= 0 and row.forced in ("", "open", "closed")
        kept = self._circuit(restore.breaker, now_us) if sound else _UNSOUND
        if isinstance(kept, Refused):
            return kept
        return self._told(restore.breaker, kept, kept.restore(restore, now_us))

    def _circuit(self, breaker: str, now_us: int) -> Circuit | Refused:
        kept = self._circuits.shard(breaker).get(breaker)
        if kept is None:
            if _is_too_long(breaker):
                return _TOO_LONG
            if self._circuits.count >= MAX_CIRCUITS or not self._has_room(now_us):
                return _FULL
            kept = Circuit()
            self._circuits.add(breaker, kept)
        return kept

    def _told(self, breaker: str, kept: Circuit, row: Row) -> Row:
        if kept.take_published():
            self._events.append(Event("circuit", breaker, encode(row)))
        return row

    # Credentials

    def _token(self, token: Token, now_us: int) -> Tokened | Refused:
        if len(token.value) > MAX_VALUE_BYTES or _is_too_long(token.name) or _is_too_long(token.nonce):
            return _TOO_LONG
        if token.ttl_ms < 0 or token.lock_ms < 0:
            return _UNSOUND
        act = self._actions.get(token.action)
        if act is None:
            return Refused("no such action")
        kept = self._tokens.shard(token.name).get(token.name)
        if kept is None:
            if token.action != "lock":
                return Tokened(now_us, 0, b"", 0, done=False)
            if not self._has_room(now_us):
                return _FULL
            kept = _Value()
            self._tokens.add(token.name, kept)
        self._bytes -= kept.drop_if_over(now_us)
        if kept.locked_us <= now_us:
            kept.nonce = ""
        done = act(kept, token, now_us)
        kept.expires_us = max(kept.ends_us if kept.version else 0, kept.locked_us)
        if done is None:
            return _FULL
        return Tokened(now_us, kept.version, kept.value, _us(kept.ends_us), done)

    def _lock(self, kept: _Value, token: Token, now_us: int) -> bool:
        if not token.nonce or kept.nonce not in ("", token.nonce):
            return False
        kept.nonce, kept.locked_us = token.nonce, now_us + token.lock_ms * 1000
        return True

    def _unlock(self, kept: _Value, token: Token, _: int) -> bool:
        if not token.nonce or kept.nonce != token.nonce:
            return False
        kept.nonce, kept.locked_us = "", 0
        return True

    def _store(self, kept: _Value, token: Token, now_us: int) -> bool | None:
        """None: there is no room for it."""
        if not token.nonce or kept.nonce != token.nonce or kept.version != token.version:
            return False
        if not self._replace(kept, token.value, token.ttl_ms, now_us):
            return None
        kept.nonce, kept.locked_us = "", 0
        told = Tokened(now_us, kept.version, b"", _us(kept.ends_us), done=True)
        self._events.append(Event("token", token.name, encode(told)))
        return True

    def _replace(self, kept: _Value, value: bytes, ttl_ms: int, now_us: int) -> bool:
        """Set a value, unless there is no room for it."""
        grown = len(value) - len(kept.value)
        if grown > 0 and self._bytes + grown > self._max_bytes:
            self._no_room_us = now_us
            return False
        self._bytes += grown
        kept.version += 1
        kept.value = value
        kept.ends_us = now_us + ttl_ms * 1000 if ttl_ms else inf
        return True

    # Who is alive

    def _beat(self, beat: Beat, now_us: int) -> Beaten | Refused:
        if len(beat.info) > MAX_VALUE_BYTES or _is_too_long(beat.replica) or _is_too_long(beat.terms):
            return _TOO_LONG
        self._forget_silent(now_us)
        comes = False
        if beat.leaving:
            self._beats.pop((beat.replica, beat.slot), None)
        else:
            comes = (beat.replica, beat.slot) not in self._beats
            self._beats[beat.replica, beat.slot] = Member(beat.replica, beat.slot, now_us, beat.info)
            self._terms[beat.replica] = beat.terms
        replicas = {replica for replica, _ in self._beats}
        for gone in self._terms.keys() - replicas:
            del self._terms[gone]
        terms = sorted(set(self._terms.values()) - {""})
        if comes and len(self._beats) > 1:
            self._events.append(Event("alive", "", encode(Alive(len(replicas), len(self._beats)))))
        return Beaten(now_us, self._born_us, len(replicas), len(self._beats), terms)

    def _roll(self, _: Roll, now_us: int) -> Rolled:
        self._forget_silent(now_us)
        return Rolled(now_us, [self._beats[who] for who in sorted(self._beats)])

    def _forget_silent(self, now_us: int) -> None:
        oldest_us = now_us - BEAT_TTL_US
        for who in [who for who, member in self._beats.items() if member.last_us < oldest_us]:
            del self._beats[who]

    # Named values

    def _put(self, put: Put, now_us: int) -> Named | Refused:
        if len(put.value) > MAX_VALUE_BYTES or _is_too_long(put.name):
            return _TOO_LONG
        if put.ttl_ms < 0:
            return _UNSOUND
        kept = self._values.shard(put.name).get(put.name)
        if kept is not None:
            self._bytes -= kept.drop_if_over(now_us)
        version = 0 if kept is None else kept.version
        ends_us = now_us + put.ttl_ms * 1000 if put.ttl_ms else inf
        if (put.expect is not None and put.expect != version) or (
            put.longest and kept is not None and version and kept.ends_us > ends_us
        ):
            return _named(kept, now_us, done=False)
        if kept is None:
            if not self._has_room(now_us):
                return _FULL
            kept = _Value()
            if not self._replace(kept, put.value, put.ttl_ms, now_us):
                return _FULL
            self._values.add(put.name, kept)
        elif not self._replace(kept, put.value, put.ttl_ms, now_us):
            return _FULL
        kept.expires_us = kept.ends_us
        named = _named(kept, now_us, done=True)
        if put.publish:
            self._events.append(Event("value", put.name, encode(named)))
        return named

    def _get(self, get: Get, now_us: int) -> Named:
        kept = self._values.shard(get.name).get(get.name)
        if kept is not None:
            self._bytes -= kept.drop_if_over(now_us)
        return _named(kept, now_us, done=True)

    # Permits

    def _permit(self, permit: Permit, now_us: int) -> Permitted | Refused:
        if not permits.is_sound(permit):
            return _UNSOUND
        kept = self._permits.shard(permit.key).get(permit.key)
        if kept is None:
            if _is_too_long(permit.key) or _is_too_long(permit.holder):
                return _TOO_LONG
            if not self._has_room(now_us):
                return _FULL
            kept = Permits(permit, now_us)
            self._permits.add(permit.key, kept)
        answer = kept.permit(permit, now_us)
        told = kept.take_published()
        if told is not None:
            self._events.append(Event("permits", permit.key, encode(told)))
        return answer


def _named(kept: _Value | None, now_us: int, *, done: bool) -> Named:
    if kept is None or not kept.version:
        return Named(now_us, 0, b"", 0, done)
    ttl_ms = 0 if kept.ends_us == inf else -int((now_us - kept.ends_us) // 1000)
    return Named(now_us, kept.version, kept.value, ttl_ms, done)


def _us(when: float) -> int:
    return 0 if when == inf else int(when)


def _is_too_long(key: str) -> bool:
    return len(key) * 4 > MAX_KEY_BYTES and len(key.encode()) > MAX_KEY_BYTES
