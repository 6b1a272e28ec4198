from __future__ import annotations

import pytest

from loadtest import balance
from loadtest.balance import (
    BAD_S,
    GOOD_S,
    TROUBLES,
    WARM_S,
    judge,
    latencies,
    new_findings,
    share,
)
from loadtest.shared.driver import Answered
from loadtest.shared.witness import Seen

BAD_AT = WARM_S + GOOD_S


def answered(due_s: float, took_ms: float) -> Answered:
    return Answered(round(due_s * 1e9), round(took_ms * 1e6), 0, 0, 200, 0, 0)


def seen(*at_s: float) -> list[Seen]:
    return [Seen(round(at * 1e9), 0, 0, 0, 200, 1) for at in at_s]


def test_share_is_of_those_that_arrived_then() -> None:
    assert share([[1.0, 2.0, 9.0], [1.5], []], 1.0, 3.0) == pytest.approx(2 / 3)
    assert share([[], []], 0.0, 1.0) == 0.0


def test_latencies_are_of_requests_that_were_due_then() -> None:
    answers = [answered(1.0, 5), answered(2.0, 7), answered(3.0, 9)]
    assert latencies(answers, 1.5, 3.0) == [7.0]


@pytest.mark.parametrize(("slow_ms", "held"), [(6.0, True), (60.0, False)])
def test_slow_endpoint_is_judged_by_the_whole(slow_ms: float, *, held: bool) -> None:
    times = [number / 50 for number in range(round(50 * (WARM_S + GOOD_S + BAD_S)))]
    answers = [
        answered(at, slow_ms if at >= BAD_AT and not number % 20 else 5.0) for number, at in enumerate(times)
    ]
    found = new_findings()
    judge(TROUBLES[0], 0.0, answers, [seen(*times[::100]), seen(*times), [], []], found)
    slower, shares = found.checks
    assert (slower.held, shares.held) == (held, True)
    assert found.rows[0][0] == "10 x slower"


def test_failing_endpoint_is_judged_by_its_share() -> None:
    times = [number / 50 for number in range(round(50 * (WARM_S + GOOD_S + BAD_S + balance.AFTER_S)))]
    answers = [answered(at, 5.0) for at in times]
    back_at = BAD_AT + BAD_S + 4
    good = [at for at in times if at < BAD_AT + 1 or at >= back_at]
    found = new_findings()
    judge(TROUBLES[1], 0.0, answers, [seen(*good[::2]), seen(*times)], found)
    judge(TROUBLES[1], 0.0, answers, [seen(*times), seen(*times)], found)
    assert [check.held for check in found.checks] == [True, False]
    assert [row[-1] for row in found.rows] == ["4 s", "0 s"]
