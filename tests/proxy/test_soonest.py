"""How soon a route is answered at best: never more than what an answer took of late, and nothing that is old."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ambassador.proxy.soonest import Soonest


def taught(soonest: Soonest, *seconds: float) -> None:
    soonest.fastest_s = min(soonest.fastest_s, *seconds)


def test_few_answers_say_nothing() -> None:
    soonest = Soonest()
    assert soonest.least_s(0.0, 0) == 0.0
    taught(soonest, 0.3)
    assert soonest.least_s(1.0, 99) == 0.0
    assert soonest.least_s(1.0, 100) == 0.3


def test_time_for_another_attempt_goes_by_what_was_seen_and_is_neither_nothing_nor_all() -> None:
    soonest = Soonest()
    assert soonest.ample_s(8.0) == 1.0
    for fastest_s, kept_s in ((3.0, 4.0), (0.5, 2.0), (0.01, 1.0)):
        taught(soonest, fastest_s)
        assert soonest.ample_s(8.0) == kept_s


def test_what_was_learned_before_anybody_asked_says_nothing() -> None:
    soonest = Soonest()
    taught(soonest, 0.3)
    assert soonest.least_s(1e6, 1000) == 0.0


def test_fastest_of_two_windows_counts() -> None:
    soonest = Soonest()
    soonest.least_s(0.0, 0)
    taught(soonest, 0.2)
    assert soonest.least_s(10.0, 60) == 0.0
    taught(soonest, 0.3)
    assert soonest.least_s(11.0, 120) == 0.2
    assert soonest.least_s(20.0, 180) == 0.3


def test_answers_of_long_ago_are_forgotten() -> None:
    soonest = Soonest()
    soonest.least_s(0.0, 0)
    taught(soonest, 0.3)
    assert soonest.least_s(9.9, 500) == 0.3
    assert soonest.least_s(20.0, 500) == 0.0


def test_refusing_everything_ends_after_two_windows() -> None:
    soonest = Soonest()
    soonest.least_s(0.0, 0)
    taught(soonest, 0.3)
    times = [step / 10 for step in range(1, 400)]
    refused = [now for now in times if soonest.least_s(now, 500) > 0.1]
    assert max(refused) <= 20.0


def test_attempts_that_were_never_answered_teach_nothing() -> None:
    soonest = Soonest()
    soonest.least_s(0.0, 0)
    assert soonest.least_s(1.0, 500) == 0.0


@given(st.lists(st.floats(0.0, 60.0), min_size=1, max_size=300))
def test_bound_is_never_above_any_answer(answers: list[float]) -> None:
    soonest = Soonest()
    soonest.least_s(0.0, 0)
    for count, seconds in enumerate(answers, 1):
        taught(soonest, seconds)
        assert soonest.least_s(1.0, count) in {0.0, min(answers[:count])}


class AnyHistory(RuleBasedStateMachine):
    """Whoever asks whenever: the bound is at most the fastest of the last 100 answers, and one of the last 30 s."""

    def __init__(self) -> None:
        super().__init__()
        self.soonest = Soonest()
        self.answers: list[tuple[float, float]] = []
        """All there were, with their times."""
        self.now = 0.0
        self.bound = 0.0

    @rule(seconds=st.floats(0.001, 5.0), count=st.integers(1, 120))
    def answer(self, seconds: float, count: int) -> None:
        self.answers += [(self.now, seconds)] * count
        taught(self.soonest, seconds)

    @rule(seconds=st.floats(0.1, 15.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        self.bound = self.soonest.least_s(self.now, len(self.answers))
        recent = [seconds for at, seconds in self.answers if at >= self.now - 30.0]
        assert self.bound == 0.0 or self.bound in recent
        assert self.bound == 0.0 or self.bound <= min(seconds for _, seconds in self.answers[-100:])

    @invariant()
    def bound_is_a_time(self) -> None:
        assert self.bound >= 0.0


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, derandomize=True)
