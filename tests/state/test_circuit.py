"""What `test_conformance.py` does not ask of every store."""

from __future__ import annotations

import math

import msgspec
import pytest

from ambassador.state.circuit import Circuit, is_sound, open_time_us
from ambassador.state.protocol import Force, Probe, Report, Restore, Row, Rules, State, Verb

NOW_US = 1_800_000_000_000_000
RULES = Rules(
    errors=0.5,
    slow=2,
    min_requests=10,
    window_ms=10_000,
    quorum=0.3,
    open_ms=5_000,
    max_open_ms=60_000,
    probes=3,
)


def report(circuit: Circuit, now_us: int, failures: int = 1, slot: int = 0, **more: object) -> Row:
    made = Report("b", "a", slot, circuit.epoch, RULES, 1, failures, live_workers=2)
    return circuit.report(msgspec.structs.replace(made, **more), now_us, 0.5)


def test_open_time_doubles_up_to_the_most_and_jitters_by_a_tenth() -> None:
    assert [open_time_us(RULES, trips, 0.5) // 1_000_000 for trips in (1, 2, 3, 4, 5, 1000)] == [
        5, 10, 20, 40, 60, 60,
    ]  # fmt: skip
    assert open_time_us(RULES, 1, 0.0) == 4_500_000
    assert open_time_us(RULES, 1, 1.0) == 5_500_000
    single = msgspec.structs.replace(RULES, max_open_ms=5_000)
    assert open_time_us(single, 9, 0.5) == 5_000_000


def test_window_slides_by_a_bucket() -> None:
    circuit = Circuit()
    start = NOW_US - NOW_US % 1_000_000
    for second in range(10):
        row = report(circuit, start + second * 1_000_000, failures=0)
    assert row.requests == 10
    assert report(circuit, start + 9_999_999, failures=0).requests == 11
    assert report(circuit, start + 10_000_000, failures=0).requests == 11
    assert report(circuit, start + 30_000_000, failures=0).requests == 1


def test_window_that_changes_its_length_loses_nothing_and_keeps_nothing_for_ever() -> None:
    short = msgspec.structs.replace(RULES, window_ms=1_000)
    circuit = Circuit()
    report(circuit, NOW_US, rules=short)
    assert report(circuit, NOW_US + 500_000).requests == 2
    assert report(circuit, NOW_US + 600_000, rules=short).requests == 3
    assert report(circuit, NOW_US + 2_000_000, rules=short).requests == 1


def test_window_settles_anew_when_it_was_empty() -> None:
    circuit = Circuit()
    report(circuit, NOW_US)
    later = NOW_US + 60_000_000
    for slot in (0, 1):
        row = report(circuit, later, 20, slot, requests=20)
    assert row.state is State.CLOSED
    assert report(circuit, later + 19_999).state is State.CLOSED
    assert report(circuit, later + 20_000).state is State.OPEN


def test_votes_of_one_replica_are_one() -> None:
    circuit = Circuit()
    for slot in range(4):
        row = report(circuit, NOW_US, slot=slot, vote=True, live_replicas=3)
    assert (row.state, row.reporters, row.failing) == (State.CLOSED, 1, 1)


def test_circuit_tells_once_that_it_changed() -> None:
    circuit = Circuit()
    assert not circuit.take_published()
    circuit.force(Force("b", "open", RULES), NOW_US)
    assert circuit.take_published()
    assert not circuit.take_published()


def test_epochs_grow_although_the_clock_stands_still() -> None:
    circuit = Circuit()
    epochs = [circuit.force(Force("b", to, RULES), NOW_US).epoch for to in ("open", "closed", "auto")]
    assert epochs == [NOW_US, NOW_US + 1, NOW_US + 2]


def test_circuit_is_remembered_by_what_it_has_to_say() -> None:
    circuit = Circuit()
    report(circuit, NOW_US)
    assert circuit.expires_us == NOW_US + 3600 * 1_000_000
    circuit.force(Force("b", "open", RULES), NOW_US)
    assert circuit.expires_us == math.inf
    circuit.force(Force("b", "auto", RULES), NOW_US)
    assert circuit.expires_us == NOW_US + 7 * 24 * 3600 * 1_000_000


def test_restored_half_open_circuit_has_no_probe_out() -> None:
    circuit = Circuit()
    row = Row(0, State.HALF_OPEN, NOW_US, NOW_US, 0, 1, "", 0, "", "", 0, 0, 0, 0, 0)
    assert circuit.restore(Restore("b", row), NOW_US).state is State.HALF_OPEN
    granted = [circuit.probe(Probe("b", str(n), Verb.ASK, RULES), NOW_US, 0.5).granted for n in range(4)]
    assert granted == [True, True, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_ms": 0},
        {"window_ms": 9},
        {"quorum": math.nan},
        {"quorum": 1.1},
        {"open_ms": -1},
        {"max_open_ms": 10**13},
        {"probes": 0},
        {"errors": math.nan},
        {"slow": -0.1},
    ],
)
def test_rules_that_cannot_be_are_unsound(wrong: dict[str, float]) -> None:
    assert is_sound(RULES)
    assert not is_sound(msgspec.structs.replace(RULES, **wrong))
