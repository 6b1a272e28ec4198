"""What a worker saw, and how much of it is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ambassador.state.outcomes import Outcomes, crosses
from tests.state.fleet import rules


def test_window_holds_ten_buckets() -> None:
    seen = Outcomes(10_000)
    for second in range(30):
        seen.add(float(second), failed=second % 2 == 0, slow=False, hard=False)
        assert seen.window(float(second))[0] == min(second + 1, 10)


def test_failures_that_were_lost_are_not_told_and_leave_with_their_window() -> None:
    seen = Outcomes(10_000)
    for _ in range(6):
        seen.add(0.0, failed=True, slow=True, hard=False)
    seen.lose(0.2, 4, 3)
    assert seen.window(0.3) == (6, 6, 6)
    assert seen.told(0.3) == (6, 2, 3)
    seen.add(9.5, failed=False, slow=False, hard=False)
    assert seen.told(11.5) == (1, 0, 0)
    seen.lose(11.6, 5, 5)
    assert seen.told(11.7) == (1, 0, 0)
    seen.restart(12.0, same_epoch=True)
    seen.add(12.1, failed=True, slow=False, hard=False)
    assert seen.told(12.2) == (1, 1, 0)


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.booleans()), max_size=60))
def test_window_never_holds_what_is_older_than_it_and_always_what_is_much_younger(
    steps: list[tuple[float, bool, bool]],
) -> None:
    seen = Outcomes(10_000)
    now = 50.0
    history: list[tuple[float, bool]] = []
    for wait, failed, _ in steps:
        now += wait
        seen.add(now, failed=failed, slow=False, hard=False)
        history.append((now, failed))
        requests, failures, _ = seen.window(now)
        for counted, least, most in (
            (requests, _count(history, now - 8.9), _count(history, now - 11)),
            (failures, _count(history, now - 8.9, failed=True), _count(history, now - 11, failed=True)),
        ):
            assert least <= counted <= most


def _count(history: list[tuple[float, bool]], since: float, *, failed: bool = False) -> int:
    return sum(when > since and (not failed or bad) for when, bad in history)


@given(st.lists(st.sampled_from(["good", "failed", "slow", "late", "take", "restart", "other"]), max_size=60))
def test_everything_of_an_epoch_is_told_once(steps: list[str]) -> None:
    seen = Outcomes(10_000)
    told = [0, 0, 0]
    true = [0, 0, 0]

    def take() -> None:
        for index, value in enumerate(seen.take()):
            told[index] += value

    for number, step in enumerate(steps):
        if step in ("good", "failed", "slow"):
            seen.add(float(number), failed=step == "failed", slow=step == "slow", hard=False)
            true[0] += 1
            true[1] += step == "failed"
            true[2] += step == "slow"
        elif step == "late":
            seen.add_late(failed=True, slow=False)
            true[0] += 1
            true[1] += 1
        elif step == "take":
            take()
        elif step == "restart":
            seen.restart(float(number), same_epoch=True)
        else:
            take()
            seen.restart(float(number), same_epoch=False)
    take()
    assert told == true


def test_another_epoch_takes_what_was_not_told() -> None:
    seen = Outcomes(10_000)
    seen.add(1.0, failed=True, slow=False, hard=False)
    seen.add_late(failed=True, slow=False)
    seen.restart(2.0, same_epoch=False)
    assert seen.take() == (0, 0, 0)


def test_row_of_failures_ends_with_an_answer_and_with_a_change() -> None:
    seen = Outcomes(10_000)
    for hard in (True, True):
        seen.add(1.0, failed=True, slow=False, hard=hard)
    assert seen.in_row == 2
    seen.add(1.0, failed=True, slow=False, hard=False)
    assert seen.in_row == 0


def test_threshold_needs_enough_requests() -> None:
    seen = Outcomes(10_000)
    for _ in range(10):
        seen.add(1.0, failed=True, slow=False, hard=False)
    assert seen.crosses(1.0, rules(), 10)
    assert not seen.crosses(1.0, rules(), 11)
    assert not seen.crosses(1.0, rules(errors=2.0), 10)
    assert not Outcomes(10_000).crosses(1.0, rules(errors=0.0), 0)
    assert seen.text(1.0) == "10 of 10 failed, 0 were slow"


def test_slowness_crosses_like_failure() -> None:
    assert crosses(rules(slow=0.8), 10, 0, 8, least=10)
    assert not crosses(rules(slow=0.8), 10, 4, 7, least=10)
