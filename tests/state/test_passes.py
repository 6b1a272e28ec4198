"""What attempts say, and what passes are worth."""

from __future__ import annotations

import pytest

from ambassador.state.passes import OWN_PROBE, Pass, ProbePass, Result


@pytest.mark.parametrize(
    ("result", "slow", "failed"),
    [
        (Result.GOOD, False, False),
        (Result.SLOW, True, False),
        (Result.FAILED, False, True),
        (Result.SLOW_FAILED, True, True),
        (Result.HARD, False, True),
        (Result.NOTHING, False, False),
    ],
)
def test_result_is_slow_or_failed_or_both(result: Result, slow: bool, failed: bool) -> None:
    assert (result.slow, result.failed) == (slow, failed)


def test_probe_belongs_to_the_time_of_its_stamp() -> None:
    stamp = Pass(7)
    probe = ProbePass(stamp, OWN_PROBE, 5.0)
    assert probe.stamp is stamp
    assert probe.epoch == 7
    assert stamp.until == float("inf")


@pytest.mark.parametrize(
    ("result", "slow_is_good", "verdict"),
    [
        (Result.GOOD, False, True),
        (Result.SLOW, True, True),
        (Result.SLOW, False, False),
        (Result.FAILED, True, False),
        (Result.SLOW_FAILED, True, False),
        (Result.HARD, True, False),
        (Result.NOTHING, True, None),
    ],
)
def test_probe_tells_whether_the_upstream_is_well(
    result: Result, slow_is_good: bool, verdict: bool | None
) -> None:
    probe = ProbePass(Pass(0), "id", 5.0)
    assert probe.verdict(result, slow_is_good=slow_is_good) is verdict
