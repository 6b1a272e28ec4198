"""Endpoints and their addresses."""

from __future__ import annotations

import socket
from math import exp, isnan, log, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.upstream.endpoint import DECAY_S, Endpoint


def fresh() -> Endpoint:
    return Endpoint("http://10.0.0.1:80", host="10.0.0.1", port=80)


def test_ip_needs_no_name() -> None:
    endpoint = Endpoint("http://10.0.0.1:8080", host="10.0.0.1", port=8080)
    assert endpoint.addresses == ((socket.AF_INET, ("10.0.0.1", 8080)),)
    assert endpoint.authority == b"10.0.0.1:8080"


def test_ipv6_is_bare() -> None:
    endpoint = Endpoint("http://[::1]:8080", host="::1", port=8080)
    assert endpoint.addresses == ((socket.AF_INET6, ("::1", 8080, 0, 0)),)
    assert endpoint.authority == b"[::1]:8080"


def test_name_has_no_address_until_it_is_told() -> None:
    endpoint = Endpoint("http://a:80", host="a", port=80)
    assert not endpoint.addresses
    endpoint.resolve(["10.0.0.1", "fd00::1", "nonsense"])
    assert endpoint.addresses == (
        (socket.AF_INET, ("10.0.0.1", 80)),
        (socket.AF_INET6, ("fd00::1", 80, 0, 0)),
    )
    endpoint.resolve([])
    assert not endpoint.addresses


def test_guarded_name_has_its_loopback_addresses_alone() -> None:
    endpoint = Endpoint("http://localhost:80", host="localhost", port=80, guarded=True)
    endpoint.resolve(["10.0.0.1", "127.0.0.1", "::1"])
    assert endpoint.addresses == ((socket.AF_INET, ("127.0.0.1", 80)), (socket.AF_INET6, ("::1", 80, 0, 0)))
    assert endpoint.withheld
    endpoint.resolve(["127.0.0.1"])
    assert not endpoint.withheld


@pytest.mark.parametrize(("port", "expected"), [(80, b"a"), (81, b"a:81")])
def test_authority_leaves_the_usual_port_out(port: int, expected: bytes) -> None:
    assert Endpoint(f"http://a:{port}", host="a", port=port).authority == expected


def test_unix_socket() -> None:
    endpoint = Endpoint("unix:/run/a", host="", port=0, path="/run/a")
    assert endpoint.addresses == ((socket.AF_UNIX, "/run/a"),)
    assert endpoint.authority == b"localhost"


def test_latency_is_unknown_before_the_first_answer() -> None:
    endpoint = fresh()
    assert endpoint.latency_s(5.0) is None
    assert isnan(endpoint.level)
    endpoint.settled(0.02, 5.0, failed=False)
    assert endpoint.latency_s(5.0) == pytest.approx(0.02)


def test_slower_answer_replaces_the_peak_at_once() -> None:
    endpoint = fresh()
    endpoint.settled(0.01, 0.0, failed=False)
    endpoint.settled(0.5, 0.001, failed=False)
    assert endpoint.peak_s == 0.5
    assert endpoint.ewma_s == pytest.approx(sqrt(0.5 * 0.0105), rel=0.01)


def test_faster_answers_bring_it_down_with_the_time_constants() -> None:
    endpoint = fresh()
    endpoint.settled(1.0, 0.0, failed=False)
    for step in range(1, 1001):
        endpoint.settled(0.1, step / 100, failed=False)
    assert endpoint.peak_s == pytest.approx(0.1 + 0.9 * exp(-10 / DECAY_S), rel=0.01)
    assert endpoint.mean_s == pytest.approx(0.1, rel=0.01)


def test_pause_of_the_whole_host_does_not_make_a_slow_endpoint_look_like_the_others() -> None:
    good, slow = fresh(), fresh()
    for step in range(300):
        now = step / 100
        pause = 0.06 if step % 60 < 3 else 0.0  # three answers in a row are late, each 0.6 s
        good.settled(0.005 + pause, now, failed=False)
        slow.settled(0.05 + pause, now, failed=False)
    assert slow.peak_s < 2 * good.peak_s
    assert slow.ewma_s > 2.5 * good.ewma_s


def test_time_without_an_answer_brings_it_down_too() -> None:
    endpoint = fresh()
    endpoint.settled(1.0, 0.0, failed=False)
    assert endpoint.latency_s(DECAY_S) == pytest.approx(exp(-1))
    endpoint.settled(0.1, 10 * DECAY_S, failed=False)
    assert endpoint.ewma_s == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("failures", "expected"), [(1, 0.0005), (4, 0.0005), (5, 0.01), (6, 0.08), (7, 0.64), (8, 5.0), (99, 5.0)]
)
def test_some_failures_are_tolerated_and_more_are_slower_and_slower_answers(
    failures: int, expected: float
) -> None:
    endpoint = fresh()
    endpoint.settled(0.0005, 0.0, failed=False)
    for _ in range(failures):
        endpoint.settled(0.0001, 0.0, failed=True)
    assert endpoint.ewma_s == pytest.approx(expected)


def test_first_good_answer_after_failures_shows_that_it_is_back() -> None:
    back, failing = fresh(), fresh()
    for _ in range(9):
        back.settled(0.001, 0.0, failed=True)
        failing.settled(0.001, 0.0, failed=True)
    assert back.ewma_s == failing.ewma_s == pytest.approx(5.0)
    back.settled(0.002, 0.1, failed=False)
    assert back.ewma_s < failing.ewma_s / 10
    assert back.ewma_s > 10 * 0.002  # it may fail again


def test_refusals_are_slow_answers_too() -> None:
    endpoint = fresh()
    for _ in range(5):
        endpoint.settled(0.0005, 0.0, failed=False, limited=True)
    assert endpoint.ewma_s == pytest.approx(0.01)


def test_tolerated_failures_of_an_endpoint_without_an_answer_say_nothing_of_its_latency() -> None:
    endpoint = fresh()
    for _ in range(4):
        endpoint.settled(0.0001, 1.0, failed=True)
    assert isnan(endpoint.level)


def test_good_answer_makes_up_for_a_failure() -> None:
    endpoint = fresh()
    for step in range(100):
        endpoint.settled(0.001, step / 100, failed=step % 2 == 0)
    assert endpoint.ewma_s == pytest.approx(0.001)
    for step in range(20):  # two in three
        endpoint.settled(0.001, 1 + step / 100, failed=step % 3 != 0)
    assert endpoint.ewma_s > 0.002


def test_abandoned_attempt_makes_up_for_nothing() -> None:
    endpoint = fresh()
    for _ in range(8):
        endpoint.settled(0.001, 0.0, failed=True)
    endpoint.settled(6.0, 1.0, failed=False, abandoned=True)
    assert endpoint.ewma_s > 4.9


def test_failure_that_took_long_counts_as_long_as_it_took() -> None:
    endpoint = fresh()
    endpoint.settled(15.0, 20.0, failed=True)
    assert endpoint.ewma_s == 15.0


def test_answer_in_no_time_has_a_level() -> None:
    endpoint = fresh()
    endpoint.settled(0.0, 1.0, failed=False)
    assert endpoint.level < 1.0
    endpoint.settled(0.0, 1e6, failed=False)
    endpoint.settled(0.0, 1e6, failed=True)
    assert endpoint.level > 1e6 - 120


@given(
    samples=st.lists(st.tuples(st.floats(0, 60), st.floats(0, 100), st.booleans()), min_size=1, max_size=20)
)
def test_level_orders_as_the_decayed_estimate_does(samples: list[tuple[float, float, bool]]) -> None:
    one, other = fresh(), fresh()
    now = 1e6  # clocks begin anywhere
    for number, (seconds, since, failed) in enumerate(samples):
        now += since
        (one, other)[number % 2].settled(seconds, now, failed=failed)
    for endpoint in (one, other):
        latency_s = endpoint.latency_s(now)
        if latency_s:
            assert endpoint.level == pytest.approx(now + DECAY_S * log(latency_s), abs=1e-6)


@given(samples=st.lists(st.tuples(st.floats(1e-5, 60), st.floats(0, 100)), min_size=1, max_size=20))
def test_estimate_is_between_the_fastest_and_the_slowest_answer(samples: list[tuple[float, float]]) -> None:
    endpoint, now = fresh(), 0.0
    for seconds, since in samples:
        now += since
        endpoint.settled(seconds, now, failed=False)
        assert endpoint.peak_s >= seconds * 0.999
    all_s = [seconds for seconds, _ in samples]
    assert min(all_s) * 0.999 <= endpoint.mean_s <= max(all_s) * 1.001
    assert min(all_s) * 0.999 <= endpoint.ewma_s <= max(all_s) * 1.001


def test_outlier_watch_hears_of_every_outcome() -> None:
    class Watch:
        heard: list[tuple[float, bool]] = []  # noqa: RUF012 - one test's

        def recovered(self) -> None:
            raise NotImplementedError

        def settled(self, now: float, *, failed: bool) -> None:
            self.heard.append((now, failed))

    endpoint = fresh()
    endpoint.outlier = Watch()
    endpoint.settled(0.1, 1.0, failed=False)
    endpoint.settled(0.2, 2.0, failed=True)
    assert Watch.heard == [(1.0, False), (2.0, True)]


def test_endpoint_goes_on_from_that_of_the_table_before() -> None:
    old, new = fresh(), fresh()
    old.settled(0.1, 1.0, failed=False)
    old.healthy, old.added_at, old.inflight = False, 3.0, 4
    new.go_on_from(old)
    assert (new.peak_s, new.mean_s, new.level) == (old.peak_s, old.mean_s, old.level)
    assert (new.healthy, new.added_at) == (True, 3.0)
    assert new.inflight == 0  # those end on the old one
