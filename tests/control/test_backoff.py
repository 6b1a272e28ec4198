from __future__ import annotations

from ambassador.control.backoff import LONGEST_S, restart_delay_s


def test_the_first_restart_is_at_once_and_then_delays_double() -> None:
    assert [restart_delay_s(failures) for failures in range(5)] == [0.0, 0.1, 0.2, 0.4, 0.8]


def test_a_crash_loop_of_years_waits_no_longer_than_the_longest() -> None:
    assert restart_delay_s(10_000_000) == LONGEST_S
