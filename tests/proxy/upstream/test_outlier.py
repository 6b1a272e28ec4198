from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.outlier import (
    WINDOW_S,
    Config,
    Ejection,
    Ejections,
    Outliers,
    Row,
    SuccessRate,
    most_ejected,
    worst,
)
from ambassador.proxy.upstream.upstream import Upstream
from ambassador.state.protocol import Put
from tests.proxy.stores import SharedStore

S = 1_000_000
URLS = [f"http://10.0.0.{number}:80" for number in range(1, 11)]


# Row


@given(st.lists(st.tuples(st.integers(1, 15), st.lists(st.booleans(), max_size=5)), max_size=40))
def test_row_counts_exactly_what_is_within_the_window(steps: list[tuple[int, list[bool]]]) -> None:
    row, second = Row(), 0
    seen: list[tuple[int, bool]] = []
    for pause, outcomes in steps:
        row.roll(pause)
        second += pause
        for failed in outcomes:
            row.requests += 1
            row.failures += failed
            seen.append((second, failed))
        within = [failed for when, failed in seen if when > second - WINDOW_S]
        assert row.window == (len(within), sum(within))


def test_row_forgets_everything_when_it_is_cleared() -> None:
    row = Row()
    row.requests = row.failures = row.in_row = 7
    row.roll(1)
    row.clear()
    assert (row.window, row.in_row) == ((0, 0), 0)


# worst

WINDOWS = st.lists(
    st.integers(0, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=8
)


@given(WINDOWS, st.floats(0, 1), st.integers(1, 200))
def test_worst_is_below_the_others_and_has_the_lowest_share(
    windows: list[tuple[int, int]], below: float, least: int
) -> None:
    found = worst(windows, below=below, min_requests=least)

    def stands_out(index: int) -> bool:
        requests, failures = windows[index]
        others = [window for at, window in enumerate(windows) if at != index]
        theirs = sum(each[0] for each in others)
        if requests < least or theirs < least:
            return False
        return 1 - failures / requests < below * (1 - sum(each[1] for each in others) / theirs)

    candidates = [index for index in range(len(windows)) if stands_out(index)]
    if found is None:
        assert not candidates
    else:
        assert found in candidates
        shares = [1 - windows[index][1] / windows[index][0] for index in candidates]
        assert 1 - windows[found][1] / windows[found][0] == min(shares)


@pytest.mark.parametrize(
    ("windows", "found"),
    [
        ([(100, 16), (100, 0)], 0),
        ([(100, 15), (100, 0)], None),
        ([(99, 99), (100, 0)], None),
        ([(1000, 1000), (99, 0)], None),
        ([(100, 100), (100, 100), (100, 100)], None),
        ([(100, 50), (100, 50), (100, 60)], 2),
        ([(100, 30), (100, 90), (100, 0)], 1),
        ([(1000, 1000)], None),
    ],
)
def test_worst_of(windows: list[tuple[int, int]], found: int | None) -> None:
    assert worst(windows, below=0.85, min_requests=100) == found


# Ejections


@pytest.mark.parametrize(
    ("endpoints", "share", "most"),
    [
        (0, 0.5, -1),
        (1, 1.0, 0),
        (2, 0.5, 1),
        (3, 0.5, 1),
        (4, 0.5, 2),
        (4, 1.0, 3),
        (10, 0.0, 1),
        (10, 0.35, 3),
    ],
)
def test_most_ejected_is_one_at_least_and_never_all(endpoints: int, share: float, most: int) -> None:
    assert most_ejected(endpoints, share) == most


def seconds_of(ejections: Ejections | None, url: str, now_us: int) -> float:
    assert ejections is not None
    return (ejections.by_url[url].until_us - now_us) / S


def test_ejection_grows_each_time_up_to_the_longest() -> None:
    config, now_us, ejections = Config(eject_for=(30.0, 100.0)), 0, Ejections()
    lengths = []
    for _ in range(5):
        ejected = ejections.eject(URLS[0], URLS[:3], now_us, config, "x")
        lengths.append(seconds_of(ejected, URLS[0], now_us))
        assert ejected is not None
        ejections = ejected
        now_us = ejections.by_url[URLS[0]].until_us
    assert lengths == [30, 60, 90, 100, 100]
    assert ejections.total == 5


def test_ejection_of_a_single_value_does_not_grow() -> None:
    config, ejections = Config(eject_for=(30.0, 30.0)), Ejections({URLS[0]: Ejection(0, 7, "x")})
    assert seconds_of(ejections.eject(URLS[0], URLS[:2], 0, config, "x"), URLS[0], 0) == 30


def test_ejections_are_forgotten_one_for_each_base_time_that_goes_well() -> None:
    ejections = Ejections({URLS[0]: Ejection(100 * S, 3, "x")})
    at = [ejections.remembered(URLS[0], after * S, 30.0) for after in (50, 100, 129, 130, 160, 190, 1000)]
    assert at == [3, 3, 3, 2, 1, 0, 0]
    assert ejections.remembered(URLS[1], 0, 30.0) == 0
    # What is forgotten is not kept for ever.
    later = ejections.eject(URLS[1], URLS[:3], 1000 * S, Config(), "x")
    assert later is not None
    assert set(later.by_url) == {URLS[1]}


def test_ejection_is_refused_when_too_many_are_or_it_is_already() -> None:
    ejections = Ejections({URLS[0]: Ejection(100 * S, 1, "x"), "gone": Ejection(100 * S, 1, "x")})
    assert ejections.eject(URLS[0], URLS[:4], 0, Config(), "x") is None
    assert ejections.eject(URLS[1], URLS[:3], 0, Config(), "x") is None
    assert ejections.eject(URLS[1], URLS[:4], 0, Config(), "x") is not None
    assert ejections.eject(URLS[1], URLS[:3], 100 * S, Config(), "x") is not None
    assert Ejections().eject(URLS[0], URLS[:1], 0, Config(), "x") is None


# With store, clock and endpoints


class NoPool:
    def retire(self) -> None:
        pass


def make_endpoint(url: str) -> Endpoint:
    endpoint = Endpoint(url, host="h", port=80)
    endpoint.pool = NoPool()  # type: ignore[assignment]
    return endpoint


class Worker:
    def __init__(self, shared: SharedStore, number: int, config: Config, endpoints: int = 4) -> None:
        self.shared = shared
        self.scope = shared.scopes[number]
        self.outliers = Outliers(shared.time, tells=number == 0)
        self.serve(config, endpoints)

    def serve(self, config: Config | None, endpoints: int = 4) -> None:
        self.endpoints = [make_endpoint(url) for url in URLS[:endpoints]]
        self.upstream = Upstream("up", self.endpoints, lambda: 0.5, self.shared.time)
        made = [] if config is None else [self.outliers.get(config, self.upstream, self.scope)]
        self.outliers.install(made)
        self.shared.deliver()

    def settle(self, endpoint: int, *, failed: bool, times: int = 1) -> None:
        for _ in range(times):
            self.endpoints[endpoint].settled(0.01, self.shared.time.now, failed=failed)

    def fails(self, endpoint: int, times: int = 5) -> None:
        self.settle(endpoint, failed=True, times=times)
        self.shared.deliver()

    @property
    def ejected(self) -> list[int]:
        now = self.shared.time.now
        return [index for index, each in enumerate(self.endpoints) if each.ejected_until > now]


def two(config: Config | None = None, endpoints: int = 4) -> list[Worker]:
    shared = SharedStore(2)
    return [Worker(shared, number, config or Config(), endpoints) for number in range(2)]


def test_failures_in_a_row_eject_for_every_worker() -> None:
    first, second = two()
    first.fails(1, 4)
    assert first.ejected == []
    first.fails(1, 1)
    assert first.ejected == second.ejected == [1]
    assert second.endpoints[1].why == "ejected: 5 failures in a row"
    assert first.outliers.figures() == second.outliers.figures() == {"up": (1, 1)}


def test_success_between_failures_and_429_begin_the_row_anew() -> None:
    first, _ = two(Config(success_rate=None))
    for _ in range(5):
        first.fails(1, 4)
        first.settle(1, failed=False)
        first.fails(2, 4)
        first.endpoints[2].settled(0.01, first.shared.time.now, failed=False, limited=True)
    assert first.ejected == []


def test_failures_in_a_row_can_be_switched_off() -> None:
    first, _ = two(Config(consecutive=0, success_rate=None))
    first.fails(1, 500)
    assert first.ejected == []


def test_ejection_ends_by_itself_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = two()
    first.fails(1)
    first.shared.advance(29.9)
    assert first.ejected == second.ejected == [1]
    first.shared.advance(0.2)
    assert first.ejected == second.ejected == []
    assert [worker.endpoints[1].ejected_until for worker in (first, second)] == [0.0, 0.0]
    assert second.endpoints[1].why == ""
    assert [record.getMessage() for record in caplog.records] == [
        f"upstream up: {URLS[1]} is ejected for 30 s: 5 failures in a row (time 1)",
        f"upstream up: {URLS[1]} is not ejected any more",
    ]
    first.shared.advance(1)
    second.fails(1)
    assert second.endpoints[1].ejected_until - first.shared.time.now == pytest.approx(60.0, abs=0.01)


def test_no_more_are_ejected_than_may_be_whichever_worker_asks() -> None:
    first, second = two(endpoints=4)
    for worker, endpoint in ((first, 0), (second, 1), (first, 2), (second, 3)):
        worker.settle(endpoint, failed=True, times=5)  # all at once, before anybody is answered
    first.shared.deliver()
    for worker, endpoint in ((first, 0), (second, 1), (first, 2), (second, 3)):
        worker.fails(endpoint, 5)
    assert len(first.ejected) == 2
    assert first.ejected == second.ejected


def test_lone_endpoint_is_never_ejected() -> None:
    first, _ = two(endpoints=1)
    first.fails(0, 100)
    assert first.ejected == []


def test_last_healthy_endpoint_is_not_ejected() -> None:
    first, _ = two(endpoints=3)
    first.endpoints[0].healthy = first.endpoints[1].healthy = False
    first.fails(2, 50)
    assert first.ejected == []


def test_low_share_of_successes_ejects() -> None:
    first, second = two(Config(consecutive=0))
    for second_number in range(3):
        for endpoint in range(4):
            first.settle(endpoint, failed=endpoint == 3 and second_number > 0, times=60)
        first.shared.deliver()
        first.shared.advance(1.0)
    assert first.ejected == second.ejected == [3]
    assert first.endpoints[3].why == "ejected: 60 of 120 requests failed, against 0 of 360 at the others"


def test_nobody_is_ejected_where_all_fail_alike() -> None:
    first, _ = two(Config(consecutive=0))
    for _ in range(20):
        for endpoint in range(4):
            first.settle(endpoint, failed=True, times=50)
        first.shared.deliver()
        first.shared.advance(1.0)
    assert first.ejected == []


def test_what_was_before_an_ejection_does_not_count_after_it() -> None:
    first, _ = two()
    first.fails(1)
    first.settle(1, failed=True, times=4)  # requests that were in flight
    first.shared.advance(31)
    first.fails(1, 1)
    assert first.ejected == [1]
    first.shared.advance(100)
    first.settle(1, failed=False)
    first.fails(1, 4)
    assert first.ejected == []


def test_reload_keeps_ejections_and_counts() -> None:
    first, _ = two()
    first.fails(1)
    first.fails(2, 4)
    first.serve(Config(consecutive=5, max_ejected=0.75))
    assert first.ejected == [1]
    first.fails(2, 1)
    assert first.ejected == [1, 2]
    first.serve(None)
    assert first.ejected == []
    assert not first.upstream.endpoints[0].outlier


def test_worker_that_starts_later_learns_of_ejections() -> None:
    shared = SharedStore(2)
    first = Worker(shared, 0, Config())
    first.fails(1)
    shared.advance(10)
    late = Worker(shared, 1, Config())
    assert late.ejected == [1]
    assert late.endpoints[1].ejected_until == pytest.approx(first.endpoints[1].ejected_until, abs=0.01)


def test_ejection_holds_for_one_worker_while_the_store_is_away() -> None:
    first, second = two()
    first.scope.go_down()
    first.fails(1)
    assert (first.ejected, second.ejected) == ([1], [])
    first.scope.come_up()
    first.shared.deliver()
    second.fails(2)
    assert second.ejected == [2]


def test_recovery_that_checks_have_seen_ends_an_ejection_for_every_worker() -> None:
    first, second = two()
    first.fails(1)
    first.fails(2)
    for worker in (first, second):  # both are told
        watch = worker.endpoints[1].outlier
        assert watch is not None
        watch.recovered()
    first.shared.deliver()
    assert first.ejected == second.ejected == [2]
    first.fails(1)  # the second time within little
    assert second.endpoints[1].ejected_until - first.shared.time.now == pytest.approx(60.0, abs=0.01)
    first.settle(3, failed=False)
    third = first.endpoints[3].outlier
    assert third is not None
    third.recovered()  # was not ejected: nothing to end
    assert not first.scope.pending


def test_endpoints_that_come_later_are_watched_and_known() -> None:
    first, second = two()
    first.fails(1)
    for worker in (first, second):
        worker.upstream.set_endpoints([make_endpoint(url) for url in (URLS[1], *URLS[4:8])])
        worker.endpoints = list(worker.upstream.endpoints)
        assert worker.ejected == [0]
    second.fails(3)
    assert first.ejected == [0, 3]


@pytest.mark.parametrize("away", [False, True])
def test_ejection_that_is_past_when_it_is_heard_of_is_neither_told_nor_counted(
    away: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = two()
    first.settle(1, failed=True, times=5)
    first.shared.advance(112)
    if away:
        first.scope.go_down()
    first.shared.deliver()
    assert first.ejected == second.ejected == []
    assert [worker.outliers.figures().get("up", (0, 0)) for worker in (first, second)] == [(0, 0)] * 2
    assert caplog.records == []
    if away:
        first.scope.come_up()
    first.fails(1)
    assert first.ejected == second.ejected == [1]
    assert first.endpoints[1].ejected_until - first.shared.time.now == pytest.approx(30.0, abs=0.1)
    assert [record.getMessage() for record in caplog.records] == [
        f"upstream up: {URLS[1]} is ejected for 30 s: 5 failures in a row (time 1)"
    ]


def test_ejection_that_is_past_leaves_what_was_remembered_before_it() -> None:
    first, second = two()
    first.fails(1)
    first.shared.advance(31)
    second.settle(1, failed=True, times=5)
    first.shared.advance(61)
    first.shared.deliver()
    assert first.outliers.figures() == second.outliers.figures() == {"up": (0, 1)}
    before = {URLS[1]: Ejection(0, 1, "x")}
    late = Ejections(before).eject(URLS[1], URLS[:3], 31 * S, Config(), "y")
    assert late is not None
    ejection = late.by_url[URLS[1]]
    assert late.withdraw(URLS[1], ejection, before[URLS[1]]) == Ejections(before)
    assert late.withdraw(URLS[1], ejection, None) == Ejections()
    assert Ejections(before).withdraw(URLS[1], ejection, None) is None


def test_answer_that_was_long_under_way_moves_no_ejection() -> None:
    """Its time is known to half of that only, so what was known of the store's clock holds, though it is old."""
    first, second = two(Config(consecutive=2, eject_for=(10.0, 40.0)), endpoints=5)
    first.shared.advance(37)
    second.fails(3, 0)
    second.settle(3, failed=True, times=2)
    first.shared.advance(27)
    first.fails(2, 2)
    first.shared.deliver()
    assert first.ejected == second.ejected
    late, punctual = second.endpoints[2].ejected_until, first.endpoints[2].ejected_until
    assert late == pytest.approx(punctual, abs=0.01)


def test_store_is_asked_once_at_a_time() -> None:
    first, _ = two()
    before = len(first.scope.asked)
    first.settle(1, failed=True, times=100)
    asked: Sequence[object] = first.scope.asked[before:]
    assert [type(each) for each in asked] == [Put]


CLOCK_S = 0.3
"""Two workers' ideas of the store's clock differ by less: each is that of an answer which was under way for longer only
if clocks may have drifted by as much since the one before (0.1 ms a second, over the 1200 s of the longest run)."""


class Machine(RuleBasedStateMachine):
    """Three workers of a replica, over which outcomes, answers of the store and time come in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = SharedStore(3)
        self.config = Config(
            consecutive=2,
            success_rate=SuccessRate(below=0.8, min_requests=5),
            eject_for=(10.0, 40.0),
            max_ejected=0.5,
        )
        self.workers = [Worker(self.shared, number, self.config, 5) for number in range(3)]

    @rule(
        worker=st.integers(0, 2),
        endpoint=st.integers(0, 4),
        outcomes=st.lists(st.booleans(), min_size=1, max_size=6),
    )
    def settle(self, worker: int, endpoint: int, outcomes: list[bool]) -> None:
        for failed in outcomes:
            self.workers[worker].settle(endpoint, failed=failed)

    @rule(worker=st.integers(0, 2), count=st.integers(1, 2))
    def answer(self, worker: int, count: int) -> None:
        self.workers[worker].scope.deliver(count)

    @rule(seconds=st.floats(0.1, 30))
    def wait(self, seconds: float) -> None:
        self.shared.advance(seconds)

    @precondition(lambda self: self.workers[0].scope.up)
    @rule(worker=st.integers(0, 2))
    def reload(self, worker: int) -> None:
        self.workers[worker].serve(self.config, 5)

    @rule()
    def settle_everything(self) -> None:
        self.shared.deliver()
        for url in range(5):
            left = [self.left(worker, url) for worker in self.workers]
            assert max(left) - min(left) < CLOCK_S

    @invariant()
    def no_more_are_ejected_than_may_be(self) -> None:
        for worker in self.workers:
            assert sum(self.left(worker, url) > CLOCK_S for url in range(5)) <= 2

    @invariant()
    def no_ejection_is_longer_than_the_longest(self) -> None:
        for worker in self.workers:
            for endpoint in worker.endpoints:
                assert endpoint.ejected_until <= self.shared.time.now + 40 + CLOCK_S

    def left(self, worker: Worker, endpoint: int) -> float:
        """For how long it is ejected yet, in seconds."""
        return max(0.0, worker.endpoints[endpoint].ejected_until - self.shared.time.now)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestEjections = Machine.TestCase
