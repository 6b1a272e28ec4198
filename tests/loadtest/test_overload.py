"""The simulated servers of the overload scenario, and what is made of its answers."""

import pytest

from loadtest import overload
from loadtest.overload import MEASURED_S, Phase, Servers
from loadtest.shared.driver import Answered


def test_servers_take_requests_in_order() -> None:
    servers = Servers(2, 0.1)
    assert [round(servers.delay_s(1.0), 3) for _ in range(5)] == [0.1, 0.1, 0.2, 0.2, 0.3]
    assert servers.delay_s(5.0) == pytest.approx(0.1)


def test_servers_can_become_fewer_and_slower() -> None:
    servers = Servers(4, 0.1)
    for _ in range(4):
        servers.delay_s(1.0)
    servers.change(1, 0.2, 1.0)
    assert servers.delay_s(1.0) == pytest.approx(0.3)
    servers.change(3, 0.1, 1.0)
    assert servers.delay_s(1.0) == pytest.approx(0.1)


def answered(at_s: float, took_s: float, status: int = 200) -> Answered:
    return Answered(round(at_s * 1e9), round(took_s * 1e9), 0, 0, status, 0, 0)


@pytest.mark.parametrize(("took_s", "count", "held"), [(0.15, 9, True), (0.3, 9, False), (0.15, 4, False)])
def test_judge_compares_with_what_the_upstream_can_do(took_s: float, count: int, held: bool) -> None:
    found = overload.new_findings()
    step = 1 / count
    answers = [answered(100 + step * n, took_s) for n in range(round(MEASURED_S * count) + 50)]
    answers += [answered(101.0, 0.001, 503)] * 10
    overload.judge(Phase("p", 1, 0.1), 100.0, answers, found)
    assert all(check.held for check in found.checks) == held
    assert found.figures[0]["refused"] == 10
