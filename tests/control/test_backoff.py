from __future__ import annotations

from ambassador.control.backoff import LONGEST_S, restart_delay_s, retry_s


def test_the_first_restart_is_at_once_and_then_delays_double() -> None:
    assert [restart_delay_s(failures) for failures in range(5)] == [0.0, 0.1, 0.2, 0.4, 0.8]


def test_a_crash_loop_of_years_waits_no_longer_than_the_longest() -> None:
    assert restart_delay_s(10_000_000) == LONGEST_S


def test_retry_backs_off_to_half_a_minute() -> None:
    assert [retry_s(failures, 0.5) for failures in (1, 2, 3, 4, 5, 6, 10**6)] == [1, 2, 4, 8, 16, 30, 30]
    assert (retry_s(1, 0.0), retry_s(1, 1.0)) == (0.75, 1.25)
