"""One worker's view of a circuit, alone and together with others around the circuit of a store."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ambassador.state.gate import Gate
from ambassador.state.passes import WAITING, Pass, ProbePass, Refused, Result
from ambassador.state.probe_leases import GRACE_S
from ambassador.state.protocol import Force, Probe, Report, Restore, State, Verb
from tests.state.fleet import TIMEOUT_S, Fleet, Worker, rules
from tests.state.probing import Probing
from tests.state.trips import Trip

GOOD, FAILED, HARD, SLOW, NOTHING = Result.GOOD, Result.FAILED, Result.HARD, Result.SLOW, Result.NOTHING


def a_fleet(*, replicas: int = 1, slots: int = 1, consecutive: int = 0, **changes: float) -> Fleet:
    fleet = Fleet(rules(**changes), replicas=replicas, slots=slots, consecutive=consecutive)
    fleet.deliver()
    return fleet


def fail(fleet: Fleet, *workers: Worker, times: int = 20) -> None:
    """So many failures at each worker, over half a second."""
    for _ in range(times):
        for worker in workers:
            fleet.request(worker, FAILED)
        fleet.advance(0.5 / times + 0.001)
    fleet.deliver()


def trip(fleet: Fleet) -> None:
    fail(fleet, *fleet.workers)
    assert fleet.circuit.row(fleet.now_us).state is State.OPEN


def recover(fleet: Fleet, worker: Worker) -> None:
    """From OPEN, whose time is over, to CLOSED."""
    for _ in range(3):
        assert fleet.request(worker, GOOD)
        fleet.advance(0.06)


def state(worker: Worker) -> State:
    return worker.gate.row.state if worker.gate.row is not None else State.CLOSED


# ----- closed ---------------------------------------------------------------------------------------------------------


def test_gate_that_is_new_lets_everything_through() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    assert not worker.gate.is_open
    assert fleet.enter(worker) is worker.gate.stamp


def test_successes_are_told_at_most_every_200_ms() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    fleet.advance(2)
    fleet.request(worker, GOOD)
    fleet.advance(2)  # what comes after a quiet time is told at once
    fleet.deliver()
    stamp = worker.gate.stamp
    reports = 0
    for _ in range(100):
        if not worker.gate.count(stamp, fleet.now):
            worker.gate.settle(stamp, GOOD, fleet.now, 0.5)
        fleet.advance(0.01)
        reports += sum(isinstance(operation, Report) for operation, _ in worker.pending)
        fleet.deliver()
    assert reports in (4, 5)
    fleet.advance(0.3)
    fleet.deliver()
    assert fleet.circuit.row(fleet.now_us).requests == 101


def test_failure_is_told_at_once_with_all_that_waits() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    fleet.advance(2)
    fleet.request(worker, GOOD)
    fleet.advance(2)
    fleet.deliver()
    for result in (GOOD, GOOD, FAILED):
        fleet.finish(worker, _pass(fleet, worker), result)
    ((operation, _),) = worker.pending
    assert isinstance(operation, Report)
    assert (operation.requests, operation.failures) == (3, 1)


def test_one_report_is_under_way_at_most() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    for _ in range(50):
        fleet.finish(worker, _pass(fleet, worker), FAILED)
    assert len(worker.pending) == 1
    fleet.answer_next(worker)
    ((operation, _),) = worker.pending
    assert isinstance(operation, Report)
    assert operation.failures == 49


def test_counting_without_a_clock_loses_nothing_when_buckets_turn() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    fleet.advance(2)
    for second in range(30):
        given = _pass(fleet, worker)
        if worker.gate.count(given, fleet.now):
            worker.inflight.remove(given)
        else:
            fleet.finish(worker, given, GOOD)
        fleet.deliver()
        fleet.advance(1.0)
        assert worker.gate.window(fleet.now)[0] == min(second + 1, 9)


# ----- trips ----------------------------------------------------------------------------------------------------------


def test_trip_opens_every_worker() -> None:
    fleet = a_fleet(replicas=2, slots=2)
    trip(fleet)
    for worker in fleet.workers:
        entry = fleet.enter(worker)
        assert isinstance(entry, Refused)
        assert 0 < entry.retry_after_s <= 2


def test_one_request_after_the_other_opens_the_circuit_of_the_only_worker_with_the_last_one_needed() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    for _ in range(10):
        assert fleet.request(worker, FAILED)
        fleet.advance(0.001)
    assert state(worker) is State.OPEN


@pytest.mark.parametrize("replicas", [1, 2])
def test_failures_at_two_workers_open_both_soon_although_no_request_follows(replicas: int) -> None:
    fleet = a_fleet(replicas=replicas, slots=2 // replicas)
    for number in range(10):
        assert fleet.request(fleet.workers[number % 2], FAILED)
        fleet.advance(0.001)
    _let_pass(fleet, 0.025)
    assert [state(worker) for worker in fleet.workers] == [State.OPEN] * 2


@pytest.mark.parametrize("replicas", [1, 2])
def test_only_worker_that_has_requests_opens_its_own_soon_although_none_follows(replicas: int) -> None:
    fleet = a_fleet(replicas=replicas, slots=2 // replicas)
    first, second = fleet.workers
    for _ in range(10):
        assert fleet.request(first, FAILED)
        fleet.advance(0.001)
    _let_pass(fleet, 0.025)
    assert isinstance(fleet.enter(first), Refused)
    assert isinstance(fleet.enter(second), Pass)


def test_only_worker_that_fails_among_others_opens_its_own_with_an_outcome_after_its_patience() -> None:
    fleet = a_fleet(slots=2)
    first, second = fleet.workers
    fleet.request(second, GOOD)
    for _ in range(10):
        assert fleet.request(first, FAILED)
    _let_pass(fleet, 0.19)
    assert fleet.request(first, FAILED)
    assert not first.gate.is_open
    _let_pass(fleet, 0.5)
    assert not first.gate.is_open  # for all that time nobody had a request
    assert fleet.request(first, FAILED)
    assert first.gate.is_open


def test_circuit_that_other_rules_keep_closed_is_looked_at_once_for_each_report() -> None:
    fleet = a_fleet(slots=2)
    asked = 0
    for worker in fleet.workers:
        worker.gate.rules = rules(slow=0.5)
    first, second = fleet.workers
    # Half of them by failures, half by slowness: both cross, and neither has the quorum.
    for worker, result in ((first, FAILED), (second, SLOW)):
        for _ in range(10):
            fleet.request(worker, result)
    for _ in range(100):
        fleet.advance(0.01)
        asked += sum(len(worker.pending) for worker in fleet.workers)
        fleet.deliver()
    assert state(first) is State.CLOSED
    assert asked <= 2


def test_success_after_a_quiet_time_is_told_at_once() -> None:
    fleet = a_fleet(slots=2)
    worker = fleet.workers[0]
    fleet.advance(60)
    fleet.finish(worker, _pass(fleet, worker), GOOD)
    ((operation, _),) = worker.pending
    assert isinstance(operation, Report)
    assert (operation.requests, operation.failures) == (1, 0)


def _let_pass(fleet: Fleet, seconds: float) -> None:
    """Time passes as the lane sees it: in steps of a bucket of its timer at most."""
    for _ in range(round(seconds / 0.005)):
        fleet.advance(0.005)
        fleet.deliver()


def test_outcomes_of_before_the_trip_change_nothing() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    late = [_pass(fleet, worker) for _ in range(50)]
    trip(fleet)
    fleet.advance(2.5)
    recover(fleet, worker)
    assert state(worker) is State.CLOSED
    before = worker.gate.window(fleet.now), fleet.circuit.row(fleet.now_us)
    for given in late:
        fleet.finish(worker, given, HARD)
    fleet.deliver()
    assert worker.gate.window(fleet.now) == before[0]
    after = fleet.circuit.row(fleet.now_us)
    assert (after.state, after.requests, after.failures) == (
        State.CLOSED,
        before[1].requests,
        before[1].failures,
    )


def test_slow_answers_open_it() -> None:
    fleet = a_fleet(errors=2.0, slow=0.8)
    for _ in range(20):
        fleet.request(fleet.workers[0], SLOW)
        fleet.advance(0.05)
    assert state(fleet.workers[0]) is State.OPEN


# ----- half-open ------------------------------------------------------------------------------------------------------


def test_first_request_after_the_open_time_asks_for_a_lease_and_others_are_refused_meanwhile() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    assert fleet.enter(worker) is WAITING
    entry = fleet.enter(worker)
    assert isinstance(entry, Refused)
    assert entry.retry_after_s == 1
    fleet.deliver()
    assert isinstance(fleet.enter(worker), ProbePass)


def test_one_lease_is_asked_for_in_50_ms() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    asked = 0
    for _ in range(50):
        asked += fleet.enter(worker) is WAITING
        fleet.deliver()
        fleet.advance(0.01)
    assert asked <= 10


def test_three_successes_close_it_and_it_ramps() -> None:
    fleet = a_fleet(slots=2)
    first, second = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    recover(fleet, first)
    for worker in (first, second):
        assert state(worker) is State.CLOSED
        assert isinstance(fleet.enter(worker, 0.24), Pass)
        refused = fleet.enter(worker, 0.26)
        assert isinstance(refused, Refused)
        assert refused.retry_after_s == 1
    fleet.advance(1.0)
    for worker in (first, second):
        assert isinstance(fleet.enter(worker, 0.49), Pass)
        assert isinstance(fleet.enter(worker, 0.51), Refused)
    fleet.advance(1.0)
    for worker in (first, second):
        assert isinstance(fleet.enter(worker, 0.99), Pass)
        assert not worker.gate.is_open


def test_failed_probe_opens_again_for_twice_as_long() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    assert fleet.request(worker, FAILED)
    entry = fleet.enter(worker)
    assert isinstance(entry, Refused)
    assert entry.retry_after_s == pytest.approx(4, abs=0.01)


def test_slow_probe_has_failed_where_slowness_opens() -> None:
    fleet = a_fleet(errors=2.0, slow=0.5)
    (worker,) = fleet.workers
    for _ in range(20):
        fleet.request(worker, SLOW)
        fleet.advance(0.05)
    for open_s in (2, 4, 8, 8):
        assert state(worker) is State.OPEN
        fleet.advance(open_s + 0.5)
        assert fleet.request(worker, SLOW)
        assert state(worker) is State.OPEN
    fleet.advance(8.5)
    recover(fleet, worker)
    assert state(worker) is State.CLOSED


def test_slow_probe_is_good_where_slowness_does_not_open() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    for _ in range(3):
        assert fleet.request(worker, SLOW)
        fleet.advance(0.06)
    assert state(worker) is State.CLOSED


def test_own_breaker_stays_open_after_a_slow_probe() -> None:
    fleet = a_fleet(replicas=2, consecutive=5, slow=0.5)
    bad, _ = fleet.workers
    for _ in range(5):
        fleet.request(bad, HARD)
    fleet.advance(2.5)
    assert fleet.request(bad, SLOW)
    assert isinstance(fleet.enter(bad), Refused)


def test_probe_that_is_cancelled_gives_its_lease_back() -> None:
    fleet = a_fleet(probes=1)
    (worker,) = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    assert fleet.request(worker, NOTHING)
    fleet.advance(0.06)
    assert fleet.request(worker, GOOD)
    assert state(worker) is State.CLOSED


def test_lease_that_nobody_uses_goes_back_before_it_counts_as_failed() -> None:
    fleet = a_fleet(probes=1, slots=2)
    first, second = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    assert fleet.enter(first) is WAITING
    fleet.deliver()
    assert first.gate.has_lease
    for _ in range(6):
        fleet.advance(0.2)
    fleet.deliver()
    assert not first.gate.has_lease
    assert state(first) is State.HALF_OPEN
    assert fleet.request(second, GOOD)


def test_killed_prober_blocks_nothing() -> None:
    fleet = a_fleet(probes=1, slots=2)
    first, second = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    assert fleet.enter(first) is WAITING
    fleet.deliver()
    assert isinstance(fleet.enter(first), ProbePass)
    fleet.kill(first)
    fleet.deliver()
    fleet.advance(TIMEOUT_S + GRACE_S + 0.1)
    assert not fleet.request(second, GOOD)  # the lease of the dead counts as failed
    fleet.advance(4.5)
    assert fleet.request(second, GOOD)
    assert state(second) is State.CLOSED


def test_probe_ends_here_before_it_ends_in_the_store() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    asked_at = fleet.now
    assert fleet.enter(worker) is WAITING
    fleet.now += 0.2  # a slow store
    fleet.deliver()
    given = fleet.enter(worker)
    assert isinstance(given, ProbePass)
    assert given.until == pytest.approx(asked_at + TIMEOUT_S)


def test_answer_that_is_lost_gives_the_lease_back() -> None:
    fleet = a_fleet(probes=1)
    (worker,) = fleet.workers
    trip(fleet)
    fleet.advance(2.5)
    assert fleet.enter(worker) is WAITING
    fleet.answer_next(worker, heard=False)
    fleet.deliver()
    fleet.advance(0.06)
    assert fleet.request(worker, GOOD)


# ----- the worker's own breaker ---------------------------------------------------------------------------------------


def test_failures_in_a_row_open_only_the_worker_that_sees_them() -> None:
    fleet = a_fleet(slots=3, consecutive=5)
    bad, *others = fleet.workers
    for _ in range(4):
        assert fleet.request(bad, HARD)
    assert not bad.gate.is_open
    assert fleet.request(bad, HARD)
    refused = fleet.enter(bad)
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == pytest.approx(2, abs=0.01)
    assert fleet.circuit.row(fleet.now_us).state is State.CLOSED
    assert all(fleet.request(worker, GOOD) for worker in others)


def test_statuses_do_not_count_as_failures_in_a_row() -> None:
    fleet = a_fleet(slots=3, consecutive=5, min_requests=1000)
    for _ in range(20):
        assert fleet.request(fleet.workers[0], FAILED)


def test_answer_ends_a_row_of_failures() -> None:
    fleet = a_fleet(slots=3, consecutive=5, min_requests=1000)
    for number in range(20):
        assert fleet.request(fleet.workers[0], GOOD if number % 5 == 4 else HARD)


def test_votes_of_a_quorum_open_all_without_min_requests() -> None:
    fleet = a_fleet(slots=3, consecutive=5, min_requests=1000)
    for worker in fleet.workers[:2]:
        for _ in range(5):
            fleet.request(worker, HARD)
    assert [state(worker) for worker in fleet.workers] == [State.OPEN] * 3


def test_only_worker_of_all_opens_by_its_own_vote() -> None:
    fleet = a_fleet(consecutive=5, min_requests=1000)
    for _ in range(5):
        fleet.request(fleet.workers[0], HARD)
    assert state(fleet.workers[0]) is State.OPEN


def test_own_breaker_makes_one_probe_and_closes_with_a_ramp() -> None:
    fleet = a_fleet(slots=3, consecutive=5)
    bad = fleet.workers[0]
    for _ in range(5):
        fleet.request(bad, HARD)
    fleet.advance(2.1)
    probe = fleet.enter(bad)
    assert isinstance(probe, ProbePass)
    assert probe.until == pytest.approx(fleet.now + TIMEOUT_S)
    assert isinstance(fleet.enter(bad), Refused)
    fleet.finish(bad, probe, GOOD)
    assert isinstance(fleet.enter(bad, 0.2), Pass)
    assert isinstance(fleet.enter(bad, 0.3), Refused)
    fleet.advance(2.0)
    assert isinstance(fleet.enter(bad, 0.99), Pass)
    assert not bad.gate.is_open


def test_own_breaker_stays_open_for_longer_after_a_failed_probe() -> None:
    fleet = a_fleet(slots=3, consecutive=5)
    bad = fleet.workers[0]
    for _ in range(5):
        fleet.request(bad, HARD)
    fleet.advance(2.1)
    assert fleet.request(bad, HARD)
    refused = fleet.enter(bad)
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == pytest.approx(4, abs=0.01)


def test_own_probe_that_hangs_frees_its_place_at_its_end() -> None:
    fleet = a_fleet(slots=3, consecutive=5)
    bad = fleet.workers[0]
    for _ in range(5):
        fleet.request(bad, HARD)
    fleet.advance(2.1)
    assert isinstance(fleet.enter(bad), ProbePass)
    fleet.advance(TIMEOUT_S)
    fleet.advance(4.1)
    assert isinstance(fleet.enter(bad), ProbePass)


def test_worker_that_alone_crosses_the_threshold_opens_only_itself() -> None:
    fleet = a_fleet(slots=4)
    bad, *others = fleet.workers
    for _ in range(40):
        fleet.request(bad, FAILED)
        for worker in others:
            fleet.request(worker, GOOD)
        fleet.advance(0.03)
    assert isinstance(fleet.enter(bad), Refused)
    assert fleet.circuit.row(fleet.now_us).state is State.CLOSED
    assert all(fleet.request(worker, GOOD) for worker in others)


def test_worker_that_sees_it_first_gives_the_others_time_to_see_it_too() -> None:
    fleet = a_fleet(replicas=2, slots=1)
    first, second = fleet.workers
    for worker in fleet.workers:
        for _ in range(8):
            fleet.request(worker, GOOD)
    fleet.advance(0.3)
    fleet.deliver()
    fleet.advance(0.5)
    for _ in range(10):
        fleet.request(first, FAILED)
        fleet.advance(0.01)
    assert fleet.request(first, FAILED)  # its own share is over a half, and it is not open
    for _ in range(10):
        fleet.request(second, FAILED)
    assert fleet.circuit.row(fleet.now_us).state is State.OPEN
    assert first.gate.status(fleet.now).own_left_s is None


def test_worker_whose_reports_were_lost_does_not_open_alone_what_the_store_lacks_its_failures_for() -> None:
    """It would send no more, and the others cannot open the circuit without it."""
    fleet = a_fleet(replicas=2)
    first, second = fleet.workers
    for worker in fleet.workers:
        for _ in range(8):
            fleet.request(worker, GOOD)
    for _ in range(20):
        fleet.request(first, FAILED)
    _let_pass(fleet, 0.5)
    for _ in range(8):
        fleet.finish(second, _pass(fleet, second), FAILED)
        fleet.answer_next(second, done=False, heard=False)
    for _ in range(3):  # for longer than its patience
        assert fleet.request(second, FAILED)
        _let_pass(fleet, 0.25)
    assert not second.gate.is_open
    for _ in range(5):
        assert fleet.request(second, FAILED)
    assert [state(worker) for worker in fleet.workers] == [State.OPEN] * 2


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize(
    "seed", [*range(12), 432, 690, 701, 912]
)  # the last four: once nobody was left to open it
def test_circuit_opens_when_everything_fails_however_late_or_lossy_the_store(seed: int, loss: float) -> None:
    assert Trip(seed, loss=loss).run(30.0) is not None


def test_bad_replica_opens_only_its_workers() -> None:
    fleet = a_fleet(replicas=5, slots=2)
    for _ in range(40):
        for number, worker in enumerate(fleet.workers):
            fleet.request(worker, FAILED if number < 2 else GOOD)
        fleet.advance(0.03)
    assert [isinstance(fleet.enter(worker), Refused) for worker in fleet.workers] == [True] * 2 + [False] * 8
    assert fleet.circuit.row(fleet.now_us).state is State.CLOSED


def test_replica_of_many_workers_opens_by_the_parts_that_each_of_them_sees() -> None:
    fleet = a_fleet(replicas=3, slots=4, min_requests=40)
    bad = fleet.workers[:4]
    for _ in range(30):
        for worker in fleet.workers:
            fleet.request(worker, FAILED if worker in bad else GOOD)
        fleet.advance(0.05)
    assert all(isinstance(fleet.enter(worker), Refused) for worker in bad)
    assert fleet.circuit.row(fleet.now_us).state is State.CLOSED


def test_circuit_that_opens_takes_over_from_the_own_breaker() -> None:
    fleet = a_fleet(slots=3, consecutive=5)
    for _ in range(5):
        fleet.request(fleet.workers[0], HARD)
    fail(fleet, *fleet.workers[1:])
    assert fleet.workers[0].gate.status(fleet.now).own_left_s is None
    assert state(fleet.workers[0]) is State.OPEN


# ----- force ----------------------------------------------------------------------------------------------------------


def test_forced_open_refuses_until_its_end_and_then_probes() -> None:
    fleet = a_fleet(slots=2)
    fleet.force("open", for_s=30)
    fleet.deliver()
    for worker in fleet.workers:
        refused = fleet.enter(worker)
        assert isinstance(refused, Refused)
        assert refused.retry_after_s == pytest.approx(30, abs=0.01)
    fleet.advance(30.1)
    recover(fleet, fleet.workers[0])
    assert [state(worker) for worker in fleet.workers] == [State.CLOSED] * 2


def test_forced_closed_lets_everything_through_and_does_not_trip() -> None:
    fleet = a_fleet(slots=2, consecutive=5)
    trip(fleet)
    fleet.force("closed")
    fleet.deliver()
    for _ in range(30):
        assert all(fleet.request(worker, HARD) for worker in fleet.workers)
        fleet.advance(0.05)


@pytest.mark.parametrize("to", ["open", "closed"])
def test_auto_gives_control_back_half_open(to: str) -> None:
    fleet = a_fleet(slots=2)
    fleet.force(to)
    fleet.deliver()
    fleet.force("auto")
    fleet.deliver()
    assert [state(worker) for worker in fleet.workers] == [State.HALF_OPEN] * 2
    recover(fleet, fleet.workers[0])
    assert isinstance(fleet.enter(fleet.workers[1], 0.3), Refused)  # the ramp


def test_worker_that_lost_the_event_asks_once_a_second() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    fleet.force("open")
    fleet.deliver()
    fleet.force("auto")
    fleet.hear_next(worker, lost=True)
    fleet.advance(1.1)
    assert isinstance(fleet.enter(worker), Refused)
    fleet.deliver()
    assert state(worker) is State.HALF_OPEN


# ----- a store that is away or has lost its data ----------------------------------------------------------------------


def test_open_circuit_survives_a_wiped_store() -> None:
    fleet = a_fleet(slots=3)
    trip(fleet)
    epoch = fleet.circuit.epoch
    fleet.advance(0.1)
    fleet.wipe()
    fleet.deliver()
    row = fleet.circuit.row(fleet.now_us)
    assert (row.state, row.epoch) == (State.OPEN, epoch)
    assert [state(worker) for worker in fleet.workers] == [State.OPEN] * 3


@pytest.mark.parametrize("to", ["open", "closed"])
def test_force_survives_a_wiped_store(to: str) -> None:
    fleet = a_fleet(slots=3)
    fleet.force(to, for_s=60)
    fleet.deliver()
    fleet.advance(0.1)
    fleet.wipe()
    fleet.deliver()
    row = fleet.circuit.row(fleet.now_us)
    assert (row.forced, row.forced_by, row.forced_reason) == (to, "ann", "a test")


def test_closed_circuit_of_a_wiped_store_is_the_stores() -> None:
    fleet = a_fleet(slots=2)
    trip(fleet)
    fleet.advance(2.5)
    recover(fleet, fleet.workers[0])
    fleet.advance(3.0)
    fleet.wipe()
    fleet.deliver()
    assert [worker.gate.stamp.epoch for worker in fleet.workers] == [0, 0]
    trip(fleet)


def test_answer_of_before_the_trip_is_not_taken_for_a_loss() -> None:
    fleet = a_fleet(slots=2)
    _first, second = fleet.workers
    fleet.finish(second, _pass(fleet, second), GOOD)
    second.gate.read(fleet.now)
    fleet.collect(second)
    operation, asked_at = second.pending.pop()
    old = fleet.perform(operation)
    trip(fleet)
    second.gate.answered(operation, old, asked_at, fleet.now, 0.5)
    fleet.collect(second)
    assert not any(isinstance(asked, Restore) for asked, _ in second.pending)
    assert state(second) is State.OPEN


def test_cut_off_worker_keeps_the_state_then_probes_alone() -> None:
    fleet = a_fleet(slots=2)
    trip(fleet)
    worker = fleet.workers[0]
    fleet.cut_off(worker)
    assert isinstance(fleet.enter(worker), Refused)
    fleet.advance(2.1)
    assert isinstance(fleet.enter(worker), Refused)  # the moment is spread over the workers
    fleet.advance(0.1)
    probe = fleet.enter(worker)
    assert isinstance(probe, ProbePass)
    assert isinstance(fleet.enter(worker), Refused)
    fleet.finish(worker, probe, GOOD)
    fleet.advance(2.1)
    assert isinstance(fleet.enter(worker, 0.99), Pass)
    fleet.heal(worker)
    fleet.deliver()
    assert state(worker) is fleet.circuit.row(fleet.now_us).state is State.OPEN


def test_cut_off_worker_decides_with_its_share_of_the_requests() -> None:
    fleet = a_fleet(slots=4, min_requests=40)
    worker = fleet.workers[0]
    fleet.cut_off(worker)
    done = 0
    while not worker.gate.is_open:
        fleet.request(worker, FAILED)
        fleet.advance(0.1)
        done += 1
    assert done == 10


def test_override_without_a_store_is_put_there_when_it_is_back() -> None:
    fleet = a_fleet(slots=2)
    for worker in fleet.workers:
        fleet.cut_off(worker)
    fleet.force("open")  # only to have its row
    row = fleet.circuit.row(fleet.now_us)
    fleet.wipe()
    for worker in fleet.workers:
        worker.events.clear()
        worker.gate.override(row, fleet.now)
        assert isinstance(fleet.enter(worker), Refused)
    fleet.advance(0.5)
    for worker in fleet.workers:
        fleet.heal(worker)
    fleet.deliver()
    assert fleet.circuit.row(fleet.now_us).forced == "open"


# ----- reload, news, status -------------------------------------------------------------------------------------------


def test_gate_with_other_settings_goes_on_from_where_the_old_one_is() -> None:
    fleet = a_fleet()
    trip(fleet)
    old = fleet.workers[0].gate
    new = Gate(
        "up",
        rules(min_requests=99),
        consecutive=0,
        peers=fleet.workers[0].peers,
        time=old._known._time,
        replica="r0",
        slot=0,
        key="new",
    )
    new.inherit(old, fleet.now)
    assert new.is_open
    assert isinstance(new.enter(fleet.now, 0.5, 1.0), Refused)


def test_news_of_a_trip_has_its_numbers_and_is_told_once_by_each_worker() -> None:
    fleet = a_fleet(slots=2)
    told: list[tuple[int, str]] = []
    collect = fleet.collect

    def collect_news(worker: Worker) -> None:
        number = fleet.workers.index(worker) if worker in fleet.workers else -1
        told.extend((number, news.text) for news in worker.gate.news if news.fleet)
        collect(worker)

    fleet.collect = collect_news  # type: ignore[method-assign]
    trip(fleet)
    (text,) = {text for _, text in told}
    assert sorted(number for number, _ in told) == [0, 1]
    assert text.startswith("breaker up: closed to open for 2.0 s (trip 1): ")
    assert "seen by 2 of 2" in text


def test_news_of_a_failed_probe_say_so_and_which_trip_it_is() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    told: list[str] = []
    fleet.collect = lambda worker: _collect(fleet, worker, told)  # type: ignore[method-assign]
    trip(fleet)
    for _ in range(2):
        fleet.advance(8.5)
        assert fleet.request(worker, FAILED)
    changes = [text.partition(": ")[2].partition(" for ")[0] for text in told]
    again = ["open to half_open", "half_open to open"]
    assert changes == ["closed to open", *again, *again]
    assert told[2] == "breaker up: half_open to open for 4.0 s (trip 2): a probe failed"
    assert told[4] == "breaker up: half_open to open for 8.0 s (trip 3): a probe failed"


@pytest.mark.parametrize("slot", [0, 1])
def test_news_of_a_slow_probe_say_how_slow_it_was(slot: int) -> None:
    fleet = a_fleet(slots=2, slow=0.5)
    told: list[str] = []
    trip(fleet)
    fleet.collect = lambda worker: _collect(fleet, worker, told)  # type: ignore[method-assign]
    fleet.advance(2.5)
    worker = fleet.workers[slot]
    fleet.enter(worker)
    fleet.deliver()
    given = fleet.enter(worker)
    assert isinstance(given, ProbePass)
    worker.gate.settle(given, SLOW, fleet.now, 0.5, 0.213)
    fleet.collect(worker)
    fleet.deliver()
    assert any("to open for 4.0 s (trip 2): a probe was slow (0.21 s)" in text for text in told)
    # The first worker tells of the circuit: another one's probe is told by that one, apart.
    assert ("breaker up: a probe was slow (0.21 s)" in told) is (slot != 0)


def test_window_that_is_told_is_empty_while_it_is_not_closed() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    trip(fleet)
    assert worker.gate.row is not None
    assert worker.gate.row.failures > 0
    assert worker.gate.status(fleet.now).window == (0, 0, 0)
    fleet.advance(2.5)
    recover(fleet, worker)
    assert state(worker) is State.CLOSED
    fleet.advance(3)
    assert fleet.request(worker, GOOD)
    fleet.advance(0.5)
    fleet.deliver()
    assert worker.gate.status(fleet.now).window == (1, 0, 0)


def test_news_of_a_circuit_that_was_put_back_do_not_invent_a_window() -> None:
    fleet = a_fleet(slots=2)
    trip(fleet)
    fleet.wipe()
    fleet.deliver()
    told: list[str] = []
    fleet.collect = lambda worker: _collect(fleet, worker, told)  # type: ignore[method-assign]
    fleet.kill(fleet.workers[0])
    fleet.deliver()
    assert told == ["breaker up: it is open for 2.0 s (trip 1)"]


def _collect(fleet: Fleet, worker: Worker, told: list[str]) -> None:
    told.extend(news.text for news in worker.gate.news)
    Fleet.collect(fleet, worker)


def test_news_of_a_force_show_what_another_replica_wrote_escaped() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    fleet.perform(Force("up", "open", fleet.rules, 0, "ann\r", "a\nb\0 \x1b[31m"))
    worker.gate.heard(worker.events.popleft(), fleet.now)
    (news,) = worker.gate.news
    assert news.text == r"breaker up: closed to forced open by ann\x0d: a\x0ab\x00 \x1b[31m"


def test_status_tells_the_window_of_all() -> None:
    fleet = a_fleet(slots=2)
    for worker in fleet.workers:
        for result in (GOOD, FAILED):
            fleet.request(worker, result)
    fleet.advance(0.3)
    fleet.deliver()
    status = fleet.workers[1].gate.status(fleet.now)
    assert (status.state, status.epoch, status.own_left_s) == ("closed", 0, None)
    assert status.window[0] == 4


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize(("store_stalls", "worker_stalls"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.3), (0.5, 0.3)])
@pytest.mark.parametrize(
    "seed", [5, 9, 13, 45, 46, 53]
)  # with each there were too many once, of one kind or another
def test_no_more_probes_hang_than_may_whoever_stands_still_and_whatever_is_lost(
    seed: int, store_stalls: float, worker_stalls: float, loss: float
) -> None:
    probing = Probing(seed, loss=loss, store_stalls=store_stalls, worker_stalls=worker_stalls)
    probing.run(20.0)
    assert 1 <= probing.leased <= probing.fleet.rules.probes
    assert probing.own <= 1
    assert probing.most <= probing.fleet.rules.probes + len(probing.fleet.workers) - 1


def test_store_that_comes_and_goes_has_a_worker_make_no_second_probe_of_its_own() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    trip(fleet)
    fleet.cut_off(worker)
    fleet.advance(2.1)
    _pass_alone(fleet, worker)
    fleet.heal(worker)
    fleet.deliver()
    fleet.cut_off(worker)
    for _ in range(3):
        fleet.advance(0.1)
        assert isinstance(fleet.enter(worker), Refused)


def test_worker_with_a_probe_by_a_lease_makes_none_of_its_own_when_the_store_is_lost() -> None:
    fleet = a_fleet()
    (worker,) = fleet.workers
    trip(fleet)
    fleet.advance(2.1)
    fleet.enter(worker)
    fleet.deliver()
    leased = _pass(fleet, worker)
    fleet.cut_off(worker)
    for _ in range(3):
        fleet.advance(0.1)
        assert isinstance(fleet.enter(worker), Refused)
    fleet.finish(worker, leased, HARD)
    assert _pass_alone(fleet, worker).lease == ""


def test_lease_in_hand_goes_back_when_the_circuit_changes() -> None:
    fleet = a_fleet(slots=2)
    first, second = fleet.workers
    trip(fleet)
    fleet.advance(2.1)
    fleet.enter(first)
    fleet.enter(second)
    fleet.deliver()
    fleet.finish(first, _pass(fleet, first), HARD)
    fleet.answer_next(first)
    while second.events:
        fleet.hear_next(second)
    assert not second.gate.has_lease
    ((operation, _),) = second.pending
    assert isinstance(operation, Probe)
    assert operation.verb is Verb.LOST


def _pass_alone(fleet: Fleet, worker: Worker) -> ProbePass:
    """Its own probe: one may have to wait until it is its turn among the workers."""
    entry = fleet.enter(worker)
    if isinstance(entry, Refused):
        fleet.advance(0.2)
        entry = fleet.enter(worker)
    assert isinstance(entry, ProbePass)
    return entry


# ----- everything at once ---------------------------------------------------------------------------------------------


def _pass(fleet: Fleet, worker: Worker) -> Pass:
    entry = fleet.enter(worker)
    assert isinstance(entry, Pass)
    return entry


WORKERS = st.integers(0, 3)
RESULTS = st.sampled_from([GOOD, GOOD, FAILED, HARD, SLOW, NOTHING])


class AnyHistory(RuleBasedStateMachine):
    """Four workers of two replicas, messages in any order or lost, processes killed, the store wiped or cut off.

    A probe may hang for longer than the circuit stays open.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(rules(open_ms=300, max_open_ms=1200), replicas=2, slots=2, consecutive=3)
        self.upstream_is_well = False

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.3, 1.0, 2.0, 9.0]))
    def advance(self, seconds: float) -> None:
        self.fleet.advance(seconds)

    @rule(number=WORKERS, random=st.floats(0, 1, exclude_max=True))
    def begin(self, number: int, random: float) -> None:
        entry = self.fleet.enter(self.fleet.workers[number], random)
        assert not isinstance(entry, Refused) or entry.retry_after_s > 0

    @rule(number=WORKERS, at=st.integers(0, 10), result=RESULTS)
    def end(self, number: int, at: int, result: Result) -> None:
        worker = self.fleet.workers[number]
        if worker.inflight:
            self.fleet.finish(worker, worker.inflight[at % len(worker.inflight)], result)

    @rule(number=WORKERS, result=RESULTS, times=st.integers(1, 20))
    def requests(self, number: int, result: Result, times: int) -> None:
        for _ in range(times):
            entry = self.fleet.enter(self.fleet.workers[number])
            if isinstance(entry, Pass):
                self.fleet.finish(self.fleet.workers[number], entry, result)

    @rule(number=WORKERS, done=st.booleans(), heard=st.booleans())
    def answer(self, number: int, done: bool, heard: bool) -> None:
        worker = self.fleet.workers[number]
        if worker.pending:
            self.fleet.answer_next(worker, done=done, heard=heard and done)

    @rule(number=WORKERS)
    def deliver(self, number: int) -> None:
        self.fleet.deliver(self.fleet.workers[number])

    @rule(number=WORKERS, lost=st.booleans())
    def hear(self, number: int, lost: bool) -> None:
        worker = self.fleet.workers[number]
        if worker.events:
            self.fleet.hear_next(worker, lost=lost)

    @rule(number=WORKERS)
    def kill(self, number: int) -> None:
        self.fleet.kill(self.fleet.workers[number])

    @precondition(lambda self: not self.fleet.probes_in_flight)
    @rule()
    def wipe(self) -> None:
        # Leases go with the store: probes that are out would not be counted against the next ones.
        self.fleet.wipe()

    @rule(number=WORKERS)
    def cut_off(self, number: int) -> None:
        self.fleet.cut_off(self.fleet.workers[number])

    @rule(number=WORKERS)
    def heal(self, number: int) -> None:
        if not self.fleet.workers[number].peers.up:
            self.fleet.heal(self.fleet.workers[number])

    @rule(to=st.sampled_from(["open", "closed", "auto"]), for_s=st.sampled_from([0.0, 1.0, 5.0]))
    def force(self, to: str, for_s: float) -> None:
        self.fleet.force(to, for_s)

    @invariant()
    def no_more_probes_than_allowed(self) -> None:
        assert self.fleet.probes_in_flight <= self.fleet.rules.probes

    @invariant()
    def no_more_is_queued_than_there_is_to_say(self) -> None:
        for worker in self.fleet.workers:
            reports = [each for each, _ in worker.pending if isinstance(each, Report) and each.requests]
            assert len(reports) <= 1

    def teardown(self) -> None:
        """When all is well again every worker lets everything through before long, and all agree."""
        fleet = self.fleet
        for worker in fleet.workers:
            fleet.heal(worker)
        # What only one of them knows of, a force as well, is known to all after a second with requests.
        self._serve_well(steps=20)
        fleet.force("auto")
        self._serve_well(steps=300)
        fleet.deliver()
        assert not any(worker.gate.is_open for worker in fleet.workers)
        assert {worker.gate.stamp.epoch for worker in fleet.workers} == {fleet.circuit.epoch}
        for worker in fleet.workers:
            assert not worker.gate.has_lease
            assert isinstance(fleet.enter(worker, 0.999), Pass)

    def _serve_well(self, *, steps: int) -> None:
        fleet = self.fleet
        for _ in range(steps):
            fleet.deliver()
            for worker in fleet.workers:
                for given in list(worker.inflight):
                    fleet.finish(worker, given, GOOD)
                fleet.request(worker, GOOD)
            fleet.advance(0.1)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=60, derandomize=True)
