"""The fleet's scenarios: their configs are ones that the ambassador takes, and their figures are judged."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ambassador.config.load import load
from ambassador.state.holding import terms
from loadtest.__main__ import main
from loadtest.shared import breaker_trip, commands, findings, limit_accuracy, redis_loss, replicas
from loadtest.shared.bench import Run
from loadtest.shared.driver import Answered
from loadtest.shared.findings import Findings
from loadtest.shared.witness import Seen

MAKES = [
    partial(limit_accuracy.make, limit_accuracy.CASES),
    partial(limit_accuracy.make_keys, limit_accuracy.KEYS),
    *(partial(breaker_trip.make, trips.open_s) for trips in breaker_trip.TRIPS),
    redis_loss.make,
]


@pytest.mark.parametrize("make", MAKES)
def test_configuration_is_accepted(make: Any, tmp_path: Path) -> None:
    parts: tuple[Mapping[str, object], Sequence[Mapping[str, object]]] = make(9)
    upstreams, routes = parts
    config = replicas.configuration(
        "a",
        port=1,
        admin_port=2,
        directory=tmp_path,
        workers=2,
        state={"url": "redis://127.0.0.1:3/0"},
        upstreams=upstreams,
        routes=routes,
    )
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config))
    assert load(path) is not None


def test_rules_are_those_of_the_configuration() -> None:
    upstreams, _ = breaker_trip.make(0.3, 9)
    breaker = upstreams["u0"]["breaker"]  # type: ignore[index]
    rules = breaker_trip.rules(0.3)
    assert breaker["open_for"] == f"{rules.open_ms}ms"
    assert (breaker["probes"], breaker["min_requests"]) == (rules.probes, rules.min_requests)


def test_probes_are_those_that_came_while_their_own_upstream_hung() -> None:
    hangs = [breaker_trip.Hang(1000, 2000), breaker_trip.Hang(1100, 2500)]
    intervals = [
        (0, 900, 1500),
        (0, 1200, 1800),
        (0, 1300, 1900),
        (0, 2100, 2200),
        (1, 1050, 2000),
        (1, 2400, 2600),
    ]
    seen = [Seen(arrived, ended, case, 0, 0, 1) for case, arrived, ended in intervals]
    assert breaker_trip.most_probes(seen, hangs) == (2, 3)


def test_more_probes_are_allowed_while_workers_are_without_the_store() -> None:
    assert breaker_trip.most_allowed(4, away=False) == breaker_trip.PROBES
    assert breaker_trip.most_allowed(4, away=True) == breaker_trip.PROBES + 3


def test_operations_are_bounded_by_keys_where_there_are_many() -> None:
    assert limit_accuracy.most_operations(terms(1000, 1000), 60) == 500
    assert limit_accuracy.most_operations(terms(1000, 1000), 1200) == pytest.approx(10_000)


def test_metric_sums_all_labels() -> None:
    text = '# HELP a_total x\na_total{l="1"} 2\na_total{l="}"} 3\na_total_x 7\nb 4.5\n'
    assert replicas.metric(text, "a_total") == 5
    assert replicas.metric(text, "b") == 4.5
    assert replicas.metric(text, "c") == 0


def judged(answers: list[Answered], seen: list[Seen]) -> Findings:
    found = Findings("redis-loss", ("Redis",))
    redis_loss._judge(
        found, redis_loss.FAULTS[0], Run(0.0, answers, seen), 0, redis_loss.Marks(4.0, 9.0, 0.5)
    )
    return found


def answer(
    at: float, *, status: int = 200, case: int = redis_loss.FREE, key: int = 0, ms: float = 1.0
) -> Answered:
    return Answered(round(at * 1e9), round(ms * 1e6), case, key, status, int(status >= 400), 0)


def held(found: Findings) -> dict[str, bool]:
    return {check.what.partition(": ")[2]: check.held for check in found.checks}


def test_loss_that_nobody_notices_holds() -> None:
    found = judged([answer(at / 10, ms=1 + at % 3) for at in range(10, 130)], [])
    assert all(held(found).values())
    assert found.figures[0]["longest_ms"] == 3


def test_failover_is_judged_for_as_long_as_other_losses() -> None:
    (fault, _) = (each for each in redis_loss.FAULTS if each.fails_over)
    answers = [answer(at / 10, ms=50 if at == 70 else 1) for at in range(10, 130)]
    found = redis_loss.new_findings()
    redis_loss._judge(found, fault, Run(0.0, answers, []), 0, redis_loss.Marks(4.0, 4.2, 0.5))
    assert not held(found)["p99 from the 2nd second on, beyond before"]
    assert held(found)["shared counting back"]


def test_loss_is_judged_by_what_clients_see() -> None:
    answers = [answer(at / 10) for at in range(10, 130)]
    answers += [
        answer(5, status=503),
        answer(6, status=429, case=redis_loss.LOUD, key=1),
        answer(6, status=429, case=redis_loss.LOUD),  # it asks for too much
        answer(7, ms=30),  # 3 at most before
    ]
    burst = [Seen(5 * 10**9, 5 * 10**9, redis_loss.LOUD, 0, 200, 1)] * (redis_loss.BURST + 1)
    found = held(judged(answers, burst))
    assert found == {
        "5xx made by the ambassador": False,
        "errors": True,
        "longest, beyond the longest before": False,
        "p99 from the 2nd second on, beyond before": False,
        "worst window at 110 % of the rate": False,
        "quiet clients refused": False,
        "shared counting back": True,
    }


def test_findings_print_and_tell_whether_all_held() -> None:
    found = Findings("s", ("case", "x"))
    found.add({"case": "a", "x": 1}, "a", "1")
    found.check("x", 1, 2, " ms")
    assert findings.all_held([found])
    found.check("y", 1, 2, least=True)
    assert not findings.all_held([found])
    assert [cell.strip() for cell in findings.text(found).splitlines()[-1].split("|")[1:-1]] == [
        "y",
        "≥ 2",
        "1",
        "NO",
    ]
    document = json.loads(json.dumps(findings.document([found], {})))
    assert document["scenarios"][0]["figures"] == [{"case": "a", "x": 1}]


def test_commands_are_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in commands.SCENARIOS)
    parser = argparse.ArgumentParser()
    commands.add(parser.add_subparsers())
    options = parser.parse_args(["limit-accuracy", "--store", "memory"])
    assert options.store == "memory"
