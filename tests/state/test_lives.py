from __future__ import annotations

import msgspec

from ambassador.state.lives import Info, Lives, decode_info, encode_info
from ambassador.state.protocol import Beat, Beaten, Get, Named, Put
from tests.state.still import Still

INFO = Info(since=1.5, version="1", generation=3, state_up=True)


def greeting() -> Beat:
    return Beat("replica", 2, encode_info(INFO))


def test_beat_says_who_this_is_in_every_store() -> None:
    local, fleet = Still(), Still()
    lives = Lives(greeting, local, fleet)
    local.asked.clear()
    lives.beat()
    assert local.asked == fleet.asked == [greeting()]
    (beat,) = local.asked
    assert isinstance(beat, Beat)
    assert decode_info(beat.info) == INFO


def test_beat_without_a_fleet_asks_the_replica_alone() -> None:
    local = Still()
    Lives(greeting, local, None).beat()
    assert local.asked == [greeting()]


def test_beat_leaves_a_store_that_is_away_in_peace() -> None:
    local, fleet = Still(), Still(up=False)
    Lives(greeting, local, fleet).beat()
    assert fleet.asked == []


def test_leaving_is_said() -> None:
    local, fleet = Still(), Still()
    lives = Lives(greeting, local, fleet)
    lives.leave()
    assert fleet.asked == [Beat("replica", 2, leaving=True)]


def test_numbers_of_the_fleet_are_handed_to_a_later_worker() -> None:
    local, fleet = Still(), Still()
    lives = Lives(greeting, local, fleet)
    local.asked.clear()
    lives.beat()
    fleet.answer(Beaten(now_us=1, born_us=1, replicas=3, workers=12))
    lives.beat()
    lives.beat()
    puts = [each for each in local.asked if isinstance(each, Put)]
    assert len(puts) == 1

    restarted, away = Still(), Still(up=False)
    Lives(greeting, restarted, away)
    (asked,) = restarted.asked
    assert isinstance(asked, Get)
    assert asked.name == puts[0].name
    restarted.answer(Named(now_us=1, version=1, value=puts[0].value, ttl_ms=0))
    assert (away.replicas, away.workers) == (3, 12)
    assert not away.census.known


def test_numbers_that_nobody_handed_down_are_not_missed() -> None:
    local, fleet = Still(), Still(up=False)
    fleet.census.assume(4, 4)
    Lives(greeting, local, fleet)
    local.answer(Named(now_us=1, version=0, value=b"", ttl_ms=0))
    assert fleet.replicas == 4
    Lives(greeting, local, fleet)
    local.answer(None)
    assert fleet.replicas == 4


def test_numbers_travel_as_a_list() -> None:
    assert msgspec.msgpack.decode(encode_info(INFO)) == [1.5, "1", 3, True, None]


def test_versions_that_tell_less_or_more_are_understood() -> None:
    assert decode_info(msgspec.msgpack.encode([1.5, "1", 3, True])) == INFO
    assert decode_info(msgspec.msgpack.encode([1.5, "1", 3, True, 2.0, "more"])).age_s == 2.0
