"""What a run of the hedge's scenario says."""

from __future__ import annotations

from loadtest import hedge
from loadtest.shared.driver import Answered
from loadtest.shared.witness import Seen


def answered(case: int, ms: int, number: int) -> Answered:
    return Answered(
        **dict.fromkeys(Answered._fields, 0) | {"case": case, "due_ns": 10**9 + number, "status": 200}
        | {"took_ns": ms * 10**6}
    )  # fmt: skip


def seen(case: int) -> Seen:
    return Seen(arrived_ns=0, ended_ns=0, case=case, key=0, status=200, port=1)


def test_tail_and_extra_attempts_are_compared() -> None:
    answers = [answered(0, 200 if number % 50 == 0 else 5, number) for number in range(1000)]
    answers += [answered(1, 15 if number % 50 == 0 else 5, number) for number in range(1000)]
    found = hedge.new_findings()
    hedge.judge(0.0, 2.0, answers, [seen(0)] * 1000 + [seen(1)] * 1015, found)
    assert [row[-1] for row in found.rows] == ["0.00%", "1.50%"]
    assert [row[3] for row in found.rows] == ["200.0 ms", "15.0 ms"]
    assert all(check.held for check in found.checks)
