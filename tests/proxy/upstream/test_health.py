from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.upstream.health import HURRY_S, Config, Marks, Standing, Upstream, pause_s

RESULTS = st.lists(st.booleans(), max_size=60)
COUNTS = st.integers(1, 5)


def test_statuses_are_spelt_out() -> None:
    config = Config(expect=("204", "300-302", "4xx"))
    assert config.statuses == {204, 300, 301, 302, *range(400, 500)}


def test_conflicts_names_what_a_tcp_check_does_not_look_at() -> None:
    assert not list(Config(tcp=True).conflicts())
    assert [key for key, _ in Config(tcp=True, path="/up", expect=("200",)).conflicts()] == ["path", "expect"]


def test_standing_is_healthy_until_fall_checks_have_failed() -> None:
    standing = Standing(rise=2, fall=3)
    assert [standing.took(passed=False) for _ in range(3)] == [False, False, True]
    assert not standing.healthy


def test_standing_is_healthy_again_after_rise_checks() -> None:
    standing = Standing(rise=2, fall=1)
    standing.took(passed=False)
    assert [standing.took(passed=passed) for passed in (True, False, True, True)] == [
        False,
        False,
        False,
        True,
    ]


def test_standing_is_changing_until_the_first_success_and_between_states() -> None:
    standing = Standing(rise=2, fall=2)
    assert standing.changing
    standing.took(passed=True)
    assert not standing.changing
    standing.took(passed=False)
    assert standing.changing
    standing.took(passed=False)
    assert not standing.changing
    standing.took(passed=True)
    assert standing.changing


@given(RESULTS, COUNTS, COUNTS)
def test_standing_changes_exactly_when_a_run_against_it_is_long_enough(
    results: list[bool], rise: int, fall: int
) -> None:
    standing = Standing(rise=rise, fall=fall)
    healthy, run = True, 0
    for passed in results:
        run = run + 1 if passed != healthy else 0
        flips = run == (rise if passed else fall)
        if flips:
            healthy, run = passed, 0
        assert standing.took(passed=passed) == flips
        assert standing.healthy == healthy
        assert standing.changing == (run > 0 or not standing.known)


@given(st.floats(0, 1, exclude_max=True), st.floats(0.1, 60), st.booleans())
def test_pause_is_within_a_tenth_of_every_and_short_while_nothing_is_healthy(
    chance: float, every: float, bleak: bool
) -> None:
    standing = Standing(rise=1, fall=1)
    standing.took(passed=True)
    pause = pause_s(Config(every=every), standing, bleak=bleak, least_s=0.0, chance=chance)
    expected = min(every, HURRY_S) if bleak else every
    assert 0.9 * expected <= pause <= 1.1 * expected + 1e-9


def test_pause_is_longer_with_many_endpoints() -> None:
    standing = Standing(rise=1, fall=1)
    assert pause_s(Config(), standing, bleak=True, least_s=3.0, chance=0.5) == pytest.approx(3.0)


class FakeOutlier:
    def __init__(self) -> None:
        self.recoveries = 0

    def settled(self, now: float, *, failed: bool) -> None:
        raise NotImplementedError

    def recovered(self) -> None:
        self.recoveries += 1


class FakeEndpoint:
    def __init__(self, url: str) -> None:
        self.url = url
        self.healthy = True
        self.why = ""
        self.outlier: FakeOutlier | None = None


class FakeUpstream:
    name = "a"

    def __init__(self, *urls: str) -> None:
        self.endpoints = [FakeEndpoint(url) for url in urls]
        self.followers: list[Callable[[Upstream], None]] = []
        self.refreshed = 0

    def follow(self, told: Callable[[Upstream], None]) -> None:
        self.followers.append(told)

    def refresh(self) -> None:
        self.refreshed += 1

    def healthy(self) -> list[bool]:
        return [endpoint.healthy for endpoint in self.endpoints]


def test_marks_refresh_only_what_has_changed() -> None:
    marks = Marks()
    upstream = FakeUpstream("x", "y")
    marks.install([upstream])
    assert upstream.refreshed == 0
    marks.learn({"a": {"y": "cannot connect", "z": "gone"}, "b": {"x": "of another"}})
    assert upstream.healthy() == [True, False]
    assert upstream.endpoints[1].why == "cannot connect"
    marks.learn({"a": {"y": "no answer"}})
    assert upstream.endpoints[1].why == "no answer"
    assert upstream.refreshed == 1
    marks.learn({"a": {}})
    assert upstream.healthy() == [True, True]
    assert upstream.endpoints[1].why == ""
    assert upstream.refreshed == 2


def test_marks_leave_alone_why_a_healthy_endpoint_is_passed_over() -> None:
    marks = Marks()
    upstream = FakeUpstream("x")
    marks.install([upstream])
    upstream.endpoints[0].why = "ejected"
    marks.learn({"a": {}})
    assert upstream.endpoints[0].why == "ejected"


def test_marks_outlive_tables_and_know_endpoints_that_come_later() -> None:
    marks = Marks({"a": {"y": "down", "z": "down"}})
    first, second = FakeUpstream("x", "y"), FakeUpstream("y")
    marks.install([first])
    assert first.healthy() == [True, False]
    marks.install([second])
    assert second.healthy() == [False]
    second.endpoints = [*second.endpoints, FakeEndpoint("z")]
    for tell in second.followers:
        tell(second)
    assert second.healthy() == [False, False]
    marks.learn({"a": {}})
    assert second.healthy() == [True, True]
    assert first.healthy() == [True, False]


def test_marks_tell_who_ejects_of_a_recovery() -> None:
    marks = Marks()
    upstream = FakeUpstream("x")
    outlier = upstream.endpoints[0].outlier = FakeOutlier()
    marks.install([upstream])
    marks.learn({"a": {"x": "down"}})
    assert outlier.recoveries == 0
    marks.learn({"a": {}})
    marks.learn({"a": {}})
    assert outlier.recoveries == 1
