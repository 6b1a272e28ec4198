from __future__ import annotations

from ambassador.control.roll import Replica, decode_roll, encode_roll
from ambassador.state.lives import Info, encode_info
from ambassador.state.protocol import Member, Refused, Rolled


def member(replica: str, slot: int, last_s: float, info: bytes) -> Member:
    return Member(replica=replica, slot=slot, last_us=int(last_s * 1e6), info=info)


def info(since: float, version: str, generation: int, *, state_up: bool = True) -> bytes:
    return encode_info(Info(since=since, version=version, generation=generation, state_up=state_up))


def test_roll_is_told_by_replica() -> None:
    members = [
        member("b", 0, 20.0, info(2.0, "2", 1)),
        member("a", 0, 12.0, info(5.0, "2", 8, state_up=False)),
        member("a", 1, 11.0, info(4.0, "1", 7)),
    ]
    assert decode_roll(encode_roll(Rolled(now_us=30_000_000, members=members))) == [
        Replica(
            id="a", workers=2, since=4.0, last_beat=12.0, version="2", generation=8, state_up=False, now=30.0
        ),
        Replica(
            id="b", workers=1, since=2.0, last_beat=20.0, version="2", generation=1, state_up=True, now=30.0
        ),
    ]


def test_worker_of_another_version_is_counted() -> None:
    members = [member("a", 0, 12.0, b"\xc1"), member("a", 1, 11.0, b"")]
    (replica,) = decode_roll(encode_roll(Rolled(now_us=30_000_000, members=members)))
    assert (replica.workers, replica.version, replica.last_beat) == (2, "?", 12.0)


def test_roll_that_nobody_answered_is_empty() -> None:
    assert decode_roll(encode_roll(None)) == []
    assert decode_roll(encode_roll(Refused("full"))) == []


def test_start_is_told_by_the_clock_of_the_store() -> None:
    fast = encode_info(Info(since=3605.0, version="1", generation=1, state_up=True, age_s=4.0))
    (replica,) = decode_roll(encode_roll(Rolled(now_us=30_000_000, members=[member("a", 0, 12.0, fast)])))
    assert (replica.since, replica.last_beat, replica.now) == (8.0, 12.0, 30.0)
