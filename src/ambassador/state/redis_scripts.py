"""Operations as calls of Lua scripts, and what the scripts answer as answers.

A script is one family of operations in a file `*.lua`, with `clock.lua` (and `birth.lua`, if it must know how old the
data is) in front of it. All that an operation reads, decides and writes happens in one script, by Redis' own clock, on
the keys of one hash tag, so every operation is atomic on a single server and in a Cluster alike.

The keys, all with a time to live but for `gen`, forces and values without an end:

    PREFIX:v1:{sNN}:gen             when the data of this shard began: struct <dd, see birth.lua
    PREFIX:v1:{sNN}:rl:KEY          a bucket: struct, see lease.lua
    PREFIX:v1:{sNN}:cq:SECONDS:KEY  a calendar quota of windows of this length, likewise
    PREFIX:v1:{sNN}:cb:BREAKER      a circuit and its window: msgpack, see circuit.lua
    PREFIX:v1:{sNN}:cbr:BREAKER     who reported to it: a hash, see circuit.lua
    PREFIX:v1:{sNN}:tok:NAME        a credential: struct, see token.lua
    PREFIX:v1:{sNN}:val:NAME        a named value: struct, see value.lua
    PREFIX:v1:{sNN}:live            who is alive, by the time of the last beat: a sorted set
    PREFIX:v1:{sNN}:info            what each of them tells: a hash
    PREFIX:v1:{sNN}:terms           the name of the limits' terms that each replica tells: a hash
    PREFIX:v1:ev                    the channel of events

NN is `protocol.tag_of` of the name; of those who are alive there is one list, so one shard.

Leases of one shard travel in one call, and so do reports: a call costs the server about as much as a key in it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from ambassador.state import bucket, circuit
from ambassador.state.protocol import (
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    VERSION,
    Answer,
    Beat,
    Beaten,
    Force,
    Get,
    Lease,
    Leased,
    Member,
    Named,
    Operation,
    Permit,
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
    tag_of,
)

_FAMILIES: Final = {
    "gen": ("clock", "birth", "gen"),
    "lease": ("clock", "birth", "lease"),
    "circuit": ("clock", "event", "circuit"),
    "token": ("clock", "event", "token"),
    "beat": ("clock", "birth", "event", "beat"),
    "value": ("clock", "event", "value"),
}
"""Each script, and the files that it is made of."""

MEMBERS_TAG: Final = tag_of("members")
"""The shard that lists those who are alive."""

_LEASE: Final = struct.Struct("<19d")
_BATCH: Final = 32
"""At most so many keys in one call: nobody else is served meanwhile. 32 leases take 0.15 ms, reports 0.6 ms."""

_TOO_LONG: Final = Refused("too long")
_UNSOUND: Final = Refused("numbers out of range")

_decode_leased = msgspec.msgpack.Decoder(Leased).decode
_decode_row = msgspec.msgpack.Decoder(Row).decode

Decode: TypeAlias = Callable[[Any], list[Answer]]


class Script:
    """A script's text, and the digest that calls it."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Call:
    """One call of a script, for one or more operations of a shard."""

    __slots__ = ("arguments", "brings_script", "decode", "keys", "place", "positions", "script", "tag")

    def __init__(  # noqa: PLR0917 # made on each batch; keywords would cost
        self,
        script: Script,
        tag: int,
        keys: list[str],
        arguments: Sequence[str | bytes | int],
        decode: Decode,
        positions: list[int],
    ) -> None:
        self.script = script
        self.tag = tag
        self.keys = keys
        self.arguments = arguments
        self.decode = decode
        self.positions = positions
        """Of the operations in what `perform` was given."""
        self.brings_script = False
        """The server does not know the script: it is sent along."""
        self.place: tuple[str, int] | None = None
        """Another server than the shard's that must be asked this time, for the shard is on its way to it."""

    def command(self) -> tuple[str | bytes | int, ...]:
        """As it is sent."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)

    def split(self) -> list[Call]:
        """The same as calls of one operation each."""
        if len(self.positions) <= 1:
            return [self]
        shared_keys, shared_arguments = (1, 0) if self.script.name == "lease" else (0, 1)
        each = (len(self.keys) - shared_keys) // len(self.positions)
        parts = []
        for index, position in enumerate(self.positions):
            first = shared_keys + index * each
            keys = [*self.keys[:shared_keys], *self.keys[first : first + each]]
            arguments = [*self.arguments[:shared_arguments], self.arguments[shared_arguments + index]]
            parts.append(Call(self.script, self.tag, keys, arguments, self.decode, [position]))
        return parts


class Scripts:
    """All scripts, for the keys of one prefix."""

    def __init__(self, prefix: str, clock: str | None = None) -> None:
        """`clock` takes the place of `clock.lua`: tests that move the time."""
        texts = {name: _text(name) for files in _FAMILIES.values() for name in files}
        if clock is not None:
            texts["clock"] = clock
        self._scripts = {
            family: Script(family, "\n".join(texts[name] for name in files))
            for family, files in _FAMILIES.items()
        }
        self._prefix = f"{prefix}:v{VERSION}:"
        self._heads = [f"{self._prefix}{self.hash_tag(tag)}:" for tag in range(64)]
        self.channel = f"{self._prefix}ev"
        self._one: Final[dict[type, Callable[[Any, int], Call]]] = {
            Probe: self._probe,
            Force: self._circuit,
            Restore: self._circuit,
            Token: self._token,
            Beat: self._beat,
            Roll: self._roll,
            Put: self._put,
            Get: self._get,
        }

    @staticmethod
    def hash_tag(tag: int) -> str:
        """The part of a shard's keys that chooses their slot."""
        return f"{{s{tag:02}}}"

    def all(self) -> list[Script]:
        """Every script."""
        return list(self._scripts.values())

    def calls(self, operations: Iterable[tuple[int, Operation]]) -> list[Call]:
        """What has operations done, each given with its position; in their order as far as they are about one name.

        Leases and reports are gathered by shard; a batch ends where another operation names the shard, so that two
        operations of one name are never swapped.
        """
        calls: list[Call] = []
        open_calls: dict[tuple[type, int], Call] = {}
        for position, operation in operations:
            kind = type(operation)
            if kind is Lease or kind is Report:
                name = operation.key if kind is Lease else operation.breaker  # type: ignore[union-attr]
                tag = tag_of(name)
                call = open_calls.get((kind, tag))
                if call is None or len(call.positions) >= _BATCH:
                    call = self._empty(kind, tag)
                    open_calls[kind, tag] = call
                    calls.append(call)
                self._add(call, operation, name)
                call.positions.append(position)
            else:
                call = self._one[kind](operation, position)
                open_calls.pop((Report, call.tag), None)
                calls.append(call)
        return calls

    def births(self, mode: str, tags: Iterable[int]) -> list[Call]:
        """Have shards say when their data began: `mode` is "fresh", "lost" or "look", see gen.lua."""
        script = self._scripts["gen"]
        return [Call(script, tag, [self._heads[tag] + "gen"], (mode,), list, []) for tag in tags]

    def _empty(self, kind: type, tag: int) -> Call:
        if kind is Lease:
            return Call(self._scripts["lease"], tag, [self._heads[tag] + "gen"], [], _leased, [])
        return Call(self._scripts["circuit"], tag, [], [self.channel], _rows, [])

    def _add(self, call: Call, operation: Any, name: str) -> None:
        head = self._heads[call.tag]
        if call.script.name == "lease":
            window_s = operation.window_s
            call.keys.append(f"{head}cq:{window_s}:{name}" if window_s else f"{head}rl:{name}")
            call.arguments.append(  # type: ignore[attr-defined]
                _LEASE.pack(
                    operation.rate,
                    operation.depth,
                    operation.want,
                    operation.least,
                    operation.demand,
                    operation.tells_demand,
                    operation.debt,
                    operation.credit,
                    operation.window_s,
                    operation.back,
                    operation.back_window,
                    operation.start is not None,
                    operation.start or 0.0,
                    operation.most is not None,
                    operation.most or 0.0,
                    operation.first,
                    operation.lacks,
                    operation.birth,
                    operation.knows,
                )
            )
        else:
            call.keys += (f"{head}cb:{name}", f"{head}cbr:{name}")
            call.arguments.append(encode(operation))  # type: ignore[attr-defined]

    def _circuit(self, operation: Force | Restore, position: int) -> Call:
        tag = tag_of(operation.breaker)
        call = self._empty(Report, tag)
        self._add(call, operation, operation.breaker)
        call.positions.append(position)
        return call

    def _probe(self, operation: Probe, position: int) -> Call:
        call = self._circuit(operation, position)  # type: ignore[arg-type] # likewise
        call.decode = _probed
        return call

    def _token(self, operation: Token, position: int) -> Call:
        return self._named(
            _TOKEN,
            operation.name,
            position,
            (
                operation.action,
                operation.nonce,
                operation.version,
                operation.value,
                operation.ttl_ms,
                operation.lock_ms,
            ),
        )

    def _put(self, operation: Put, position: int) -> Call:
        return self._named(
            _VALUE,
            operation.name,
            position,
            (
                "put",
                operation.value,
                operation.ttl_ms,
                "" if operation.expect is None else operation.expect,
                int(operation.longest),
                int(operation.publish),
            ),
        )

    def _get(self, operation: Get, position: int) -> Call:
        return self._named(_VALUE, operation.name, position, ("get",))

    def _named(self, kind: _Kind, name: str, position: int, arguments: tuple[str | bytes | int, ...]) -> Call:
        tag = tag_of(name)
        keys = [f"{self._heads[tag]}{kind.key}:{name}"]
        arguments = (self.channel, name, *arguments)
        return Call(self._scripts[kind.script], tag, keys, arguments, kind.decode, [position])

    def _beat(self, operation: Beat, position: int) -> Call:
        member = encode((operation.replica, operation.slot))
        return self._members(
            _beaten,
            position,
            "leave" if operation.leaving else "beat",
            member,
            operation.info,
            operation.terms,
            self.channel,
        )

    def _roll(self, operation: Roll, position: int) -> Call:  # noqa: ARG002 # it has no fields
        return self._members(_rolled, position, "roll")

    def _members(self, decode: Decode, position: int, *arguments: str | bytes) -> Call:
        head = self._heads[MEMBERS_TAG]
        keys = [head + "gen", head + "live", head + "info", head + "terms"]
        return Call(self._scripts["beat"], MEMBERS_TAG, keys, arguments, decode, [position])


def _leased(reply: Any) -> list[Answer]:
    return [_decode_leased(item) for item in reply]


def _rows(reply: Any) -> list[Answer]:
    return [_decode_row(item) for item in reply]


def _probed(reply: Any) -> list[Answer]:
    row, granted = reply
    return [Probed(granted=bool(granted), row=_decode_row(row))]


def _tokened(reply: Any) -> list[Answer]:
    now_us, version, value, expires_us, done = reply
    return [Tokened(now_us, version, value, expires_us, bool(done))]


def _named(reply: Any) -> list[Answer]:
    if isinstance(reply, bytes):
        return [Refused(reply.decode())]
    now_us, version, value, ttl_ms, done = reply
    return [Named(now_us, version, value, ttl_ms, bool(done))]


def _beaten(reply: Any) -> list[Answer]:
    now_us, born_us, replicas, workers, terms = reply
    return [Beaten(now_us, born_us, replicas, workers, [each.decode(errors="replace") for each in terms])]


def _rolled(reply: Any) -> list[Answer]:
    now_us, *rest = reply
    members = []
    for member, last_us, info in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        replica, slot = msgspec.msgpack.decode(member, type=tuple[str, int])
        members.append(Member(replica, slot, last_us, info))
    members.sort(key=lambda member: (member.replica, member.slot))
    return [Rolled(now_us, members)]


class _Kind(NamedTuple):
    """How something with a name is asked for."""

    script: str
    key: str
    decode: Decode


_TOKEN: Final = _Kind("token", "tok", _tokened)
_VALUE: Final = _Kind("value", "val", _named)


def refusal(operation: Operation) -> Refused | None:
    """Why an operation cannot be done by any store, or None. Scripts rely on it: they check no numbers themselves."""
    check = _CHECKS.get(type(operation))
    return None if check is None else check(operation)


def _check_lease(lease: Lease) -> Refused | None:
    return _check(lease.key, sound=bucket.is_sound(lease))


def _check_report(report: Report) -> Refused | None:
    sound = min(report.requests, report.failures, report.slow) >= 0 and circuit.is_sound(report.rules)
    return _check(report.breaker, sound=sound)


def _check_probe(probe: Probe) -> Refused | None:
    sound = probe.timeout_ms >= 0 and circuit.is_sound(probe.rules)
    return _check(probe.breaker, sound=sound) or _check(probe.id)


def _check_force(force: Force) -> Refused | None:
    if force.to not in ("open", "closed", "auto"):
        return Refused("no such force")
    if len(force.by) + len(force.reason) > MAX_VALUE_BYTES:
        return _TOO_LONG
    return _check(force.breaker, sound=force.for_ms >= 0)


def _check_restore(restore: Restore) -> Refused | None:
    row = restore.row
    sound = row.epoch >= 0 and row.trips >= 0 and row.forced in ("", "open", "closed")
    return _check(restore.breaker, sound=sound)


def _check_token(token: Token) -> Refused | None:
    if token.action not in ("read", "lock", "store", "unlock"):
        return Refused("no such action")
    sound = token.ttl_ms >= 0 and token.lock_ms >= 0
    return _check(token.name, token.value, sound=sound) or _check(token.nonce)


def _check_beat(beat: Beat) -> Refused | None:
    return _check(beat.replica, beat.info) or _check(beat.terms)


def _check_put(put: Put) -> Refused | None:
    return _check(put.name, put.value, sound=put.ttl_ms >= 0)


def _check(name: str, value: bytes = b"", *, sound: bool = True) -> Refused | None:
    if len(value) > MAX_VALUE_BYTES:
        return _TOO_LONG
    # A character is four bytes at most.
    if len(name) * 4 > MAX_KEY_BYTES and len(name.encode()) > MAX_KEY_BYTES:
        return _TOO_LONG
    return None if sound else _UNSOUND


def _check_permit(_: Permit) -> Refused:
    return Refused("permits are the replica's: its own store divides them")


_CHECKS: Final[dict[type, Callable[[Any], Refused | None]]] = {
    Lease: _check_lease,
    Report: _check_report,
    Probe: _check_probe,
    Force: _check_force,
    Restore: _check_restore,
    Token: _check_token,
    Beat: _check_beat,
    Put: _check_put,
    Permit: _check_permit,
}


def _text(name: str) -> str:
    return resources.files("ambassador.state").joinpath(f"{name}.lua").read_text(encoding="utf-8")
