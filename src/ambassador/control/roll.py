"""The roll: which replicas share the state, as one worker hears it from the store and the admin API tells it."""

from __future__ import annotations

from math import inf

import msgspec

from ambassador.state.lives import Info, decode_info
from ambassador.state.protocol import Answer, Member, Rolled


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """`/api/replicas`: one host's ambassador. Times are in unix seconds by the store's clock: hosts may have others.

    `since` is when it started, whatever has become of its workers since. `version` is that of the latest beat,
    `generation` the newest; `state_up`: all of its workers reach the store.
    """

    id: str
    workers: int
    since: float
    last_beat: float
    version: str
    generation: int
    state_up: bool
    now: float
    """When this was told."""


_ROLL = msgspec.msgpack.Decoder(tuple[int, list[Member]])


def encode_roll(told: Answer | None) -> bytes:
    """What a worker heard, for its supervisor; nobody, if the store did not answer."""
    return msgspec.msgpack.encode((told.now_us, told.members) if isinstance(told, Rolled) else (0, []))


def decode_roll(data: bytes) -> list[Replica]:
    """The replicas of a roll, in the order of their names.

    A worker that tells of itself in a way that is not known here, because it runs another version, is counted and not
    described.
    """
    replicas: dict[str, list[Member]] = {}
    now_us, members = _ROLL.decode(data)
    for member in members:
        replicas.setdefault(member.replica, []).append(member)
    return [_replica(name, replicas[name], now_us / 1e6) for name in sorted(replicas)]


def _replica(name: str, members: list[Member], now: float) -> Replica:
    infos: list[Info] = []
    since = inf
    for member in sorted(members, key=lambda each: each.last_us):
        try:
            info = decode_info(member.info)
        except msgspec.MsgspecError:
            continue
        infos.append(info)
        since = min(since, info.since if info.age_s is None else member.last_us / 1e6 - info.age_s)
    last_beat = max(member.last_us for member in members) / 1e6
    return Replica(
        id=name,
        workers=len(members),
        since=since if infos else last_beat,
        last_beat=last_beat,
        version=infos[-1].version if infos else "?",
        generation=max((info.generation for info in infos), default=0),
        state_up=all(info.state_up for info in infos),
        now=now,
    )
