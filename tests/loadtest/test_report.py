"""Medians, ratios, targets and the tables."""

import json

import pytest

from loadtest import report
from loadtest.compare import Beside, Load, Measurement, Memory


def load(
    proxy: str, number: int, cpu_us: float, *, scenario: str = "plain", problem: str | None = None
) -> Load:
    return Load(
        scenario=scenario,
        proxy=proxy,
        round=number,
        requests=1000,
        user_us=cpu_us / 4,
        system_us=cpu_us * 3 / 4,
        rate=20_000.0,
        p50_us=900.0,
        p99_us=1800.0,
        busy=0.98,
        problem=problem,
    )


def memory(proxy: str, per_connection_kib: float, *, worker_kib: int = 30 * 1024) -> Memory:
    return Memory(
        scenario="idle",
        proxy=proxy,
        round=1,
        per_connection_kib=per_connection_kib,
        worker_kib=worker_kib,
        tree_kib=2 * worker_kib,
    )


def beside(proxy: str, number: int, beside_p50_us: float, *, others: float = 0.0) -> Beside:
    return Beside(
        scenario="bulk",
        proxy=proxy,
        round=number,
        alone_p50_us=100.0,
        beside_p50_us=beside_p50_us,
        bulk_mb_s=300.0,
        others=others,
    )


ROUNDS: list[Measurement] = [
    *(load("ambassador", number, cpu) for number, cpu in enumerate((20.0, 18.0, 40.0), 1)),
    *(load("envoy", number, cpu) for number, cpu in enumerate((41.0, 40.0, 39.0), 1)),
    *(load("haproxy", number, cpu) for number, cpu in enumerate((8.0, 8.0, 8.0), 1)),
]


def test_summary_is_the_median_with_its_spread() -> None:
    [first, *_] = report.summarise(ROUNDS)
    assert (first.proxy, first.rounds, first.counted) == ("ambassador", 3, 3)
    assert first.medians["cpu_us"] == 20.0
    assert first.spread == pytest.approx(22 / 20)


def test_summary_leaves_out_rounds_with_a_problem() -> None:
    rounds = [load("envoy", 1, 40.0), load("envoy", 2, 1.0, problem="7 answers not 2xx, 0 socket errors")]
    [summary] = report.summarise(rounds)
    assert (summary.counted, summary.medians["cpu_us"]) == (1, 40.0)
    assert summary.problems == ["round 2: 7 answers not 2xx, 0 socket errors"]
    assert "! plain, envoy: round 2: 7 answers" in report.text(rounds)


def test_summary_without_a_good_round_has_no_figures() -> None:
    rounds = [load("ambassador", 1, 20.0), load("envoy", 1, 40.0, problem="refused")]
    summaries = report.summarise(rounds)
    assert summaries[1].medians == {}
    assert report.ratios(summaries) == {}
    assert {verdict.held for verdict in report.verdicts(summaries, scenarios=["plain"])} == {None}


def test_ratios_are_of_medians() -> None:
    assert report.ratios(report.summarise(ROUNDS)) == {"plain": {"envoy": 0.5, "haproxy": 2.5}}


def test_ratios_of_idle_are_of_memory() -> None:
    summaries = report.summarise([memory("ambassador", 6.0), memory("envoy", 12.0)])
    assert report.ratios(summaries) == {"idle": {"envoy": 0.5}}


def test_verdicts_of_the_scenarios_that_ran() -> None:
    held = {
        (verdict.target.scenario, verdict.target.peer): verdict.held
        for verdict in report.verdicts(report.summarise(ROUNDS), scenarios=["plain"])
    }
    assert held == {("plain", "envoy"): True, ("plain", "haproxy"): False}


def test_verdicts_of_memory_need_no_peer() -> None:
    summaries = report.summarise([memory("ambassador", 8.5, worker_kib=59 * 1024)])
    assert [verdict.held for verdict in report.verdicts(summaries, scenarios=["idle"])] == [False, True]


def test_verdict_of_the_download_is_on_the_median_of_its_rounds_ratios() -> None:
    rounds = [beside("ambassador", number, p50) for number, p50 in enumerate((120.0, 140.0, 900.0), 1)]
    [summary] = report.summarise(rounds)
    assert summary.medians["p50_ratio"] == pytest.approx(1.4)
    [verdict] = report.verdicts([summary], scenarios=["bulk"])
    assert verdict.value == pytest.approx(1.4)
    assert verdict.held
    assert (
        report.verdicts(report.summarise([beside("ambassador", 1, 151.0)]), scenarios=["bulk"])[0].held
        is False
    )


def test_table_of_the_download_has_both_latencies_and_their_ratio() -> None:
    text = report.text([beside("ambassador", 1, 120.0), beside("envoy", 1, 300.0, others=0.2)])
    row = next(line for line in text.splitlines() if "| envoy" in line)
    assert [cell.strip() for cell in row.split("|")[3:8]] == ["100", "300", "3.00", "0%", "300"]
    assert "1.5 × alone" in text
    assert "! bulk, envoy: other programs" in text


def test_table_is_aligned_markdown() -> None:
    assert report.table(["a", "name", "µs"], [["1", "x", "2.5"], ["22", "longer", "130"]]).splitlines() == [
        "| a  | name   |  µs |",
        "| -- | ------ | --: |",
        "| 1  | x      | 2.5 |",
        "| 22 | longer | 130 |",
    ]


@pytest.mark.parametrize(
    ("value", "shown"), [(19.96, "20.0"), (99.9, "99.9"), (100.0, "100"), (1382.4, "1382")]
)
def test_microseconds(value: float, shown: str) -> None:
    assert report.microseconds(value) == shown


def test_text_holds_ratio_verdict_and_memory() -> None:
    text = report.text([*ROUNDS, memory("ambassador", 5.8)])
    envoy = next(line for line in text.splitlines() if "| envoy" in line)
    assert "0.50" in envoy
    assert "MISSED" in next(line for line in text.splitlines() if "2.20 × haproxy" in line)
    assert "KiB/idle connection" in text


def test_text_names_a_disturbed_core() -> None:
    disturbed = Load(scenario="plain", proxy="nginx", round=1, requests=1, others=0.3)
    assert "! plain, nginx: other programs used more than 5%" in report.text([disturbed])


def test_line_tells_one_turn() -> None:
    assert report.line(load("envoy", 2, 40.0)) == "plain, round 2, envoy: 40.0 µs CPU, 20,000 requests/s"
    assert report.line(memory("envoy", 12.6)) == "idle, round 1, envoy: 12.6 KiB/connection, worker 30.0 MiB"
    assert report.line(beside("envoy", 1, 150.0)) == (
        "bulk, round 1, envoy: p50 100 µs alone, 150 µs beside 300 MB/s, 1.50 times"
    )
    assert "INVALID, refused" in report.line(load("envoy", 1, 40.0, problem="refused"))


def test_document_is_json_with_every_turn() -> None:
    document = report.document(
        [*ROUNDS, memory("ambassador", 5.8), beside("ambassador", 1, 150.0)],
        machine={"cpu": "x"},
        options={"rounds": 3},
    )
    read = json.loads(json.dumps(document))
    assert len(read["measurements"]) == 11
    assert read["measurements"][-1]["p50_ratio"] == 1.5
    assert read["measurements"][0]["cpu_us"] == 20.0
    assert read["ratios"]["plain"]["envoy"] == 0.5
    assert read["targets"][0]["scenario"] == "plain"
