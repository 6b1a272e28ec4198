"""The client's minimum pace."""

from ambassador.proxy.pace import Pace


def test_pace_below_the_floor_is_too_slow_after_the_window() -> None:
    pace = Pace(256.0)
    verdicts = [pace.is_too_slow(1.0, moved) for moved in range(30)]
    assert verdicts == [False] * 29 + [True]


def test_pace_at_the_floor_is_put_up_with_window_after_window() -> None:
    pace = Pace(256.0)
    assert not any(pace.is_too_slow(1.0, 300 * second) for second in range(200))


def test_pace_counts_only_time_spent_on_the_client() -> None:
    # An hour of a slow upstream passes between two short waits for the client: neither is its fault.
    pace = Pace(256.0)
    assert not pace.is_too_slow(0.1, 1)
    assert not pace.is_too_slow(0.1, 2)


def test_pace_counts_bytes_that_moved_without_a_wait() -> None:
    pace = Pace(256.0)
    assert not pace.is_too_slow(29.0, 0)
    assert not pace.is_too_slow(1.0, 7680)


def test_pace_of_an_earlier_window_does_not_help() -> None:
    pace = Pace(256.0)
    assert not pace.is_too_slow(15.0, 0)
    assert not pace.is_too_slow(15.0, 1_000_000)
    assert not pace.is_too_slow(15.0, 1_000_000)
    assert pace.is_too_slow(15.0, 1_000_015)
