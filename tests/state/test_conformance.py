"""What every store does, by the letter of `protocol.py`. Expectations are worked out from the answers' `now_us`."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec
import pytest

from ambassador.state.protocol import (
    EPOCH_S,
    LATE_US,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    MOST_RESERVE_US,
    TELLING_US,
    Answer,
    Beat,
    Beaten,
    Event,
    Force,
    Get,
    Lease,
    Leased,
    Member,
    Named,
    Operation,
    Probe,
    Probed,
    Put,
    Refused,
    Report,
    Restore,
    Roll,
    Rolled,
    Row,
    Rules,
    State,
    Token,
    Tokened,
    Verb,
    decode_alive,
    decode_named,
    decode_row,
)
from tests.state.backends import Backend

A = TypeVar("A", bound=Answer)

SLOW = 0.02
"""A rate that brings next to nothing within a test, and fills any bucket of one within an hour."""


def ask(backend: Backend, operation: Operation, kind: type[A]) -> A:
    (answer,) = backend.perform([operation])
    assert isinstance(answer, kind), answer
    return answer


def lease(
    backend: Backend, key: str = "k", rate: float = SLOW, depth: float = 10, want: int = 0, **more: Any
) -> Leased:
    return ask(backend, Lease(key, rate, depth, want, **more), Leased)


def kinds(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.name) for event in events]


# ----- buckets --------------------------------------------------------------------------------------------------------


def test_bucket_of_an_old_store_begins_full(backend: Backend) -> None:
    leased = lease(backend, want=20, least=20)
    assert (leased.granted, leased.sharers, leased.window) == (10, 1, 0)
    assert leased.left == pytest.approx(0, abs=0.05)


def test_bucket_of_a_wiped_store_has_what_it_gained_since(backend: Backend) -> None:
    backend.wipe()
    born_us = ask(backend, Beat("a", 0), Beaten).born_us
    backend.advance(0.3)
    leased = lease(backend, rate=10)
    assert leased.left == pytest.approx(10 * (leased.now_us - born_us) / 1e6, abs=1e-6)
    assert lease(backend, "fast", rate=1000).left == 10


def test_bucket_refills_by_the_clock_up_to_its_depth(backend: Backend) -> None:
    before = lease(backend, rate=50, want=10)
    backend.advance(0.1)
    after = lease(backend, rate=50)
    gained = 50 * (after.now_us - before.now_us) / 1e6
    assert after.left == pytest.approx(before.left + gained, abs=1e-6)
    backend.advance(0.2)
    assert lease(backend, rate=50).left == 10


def test_bucket_grants_whole_tokens_and_no_more_than_wanted(backend: Backend) -> None:
    assert lease(backend, depth=10.9, want=4).granted == 4
    assert lease(backend, depth=10.9, want=40).granted == 6
    assert lease(backend, depth=10.9, want=1).granted == 0


def test_bucket_asked_for_nothing_gives_nothing(backend: Backend) -> None:
    assert (lease(backend).granted, lease(backend).left) == (0, 10)


@pytest.mark.parametrize("window_s", [0, 3600])
def test_bucket_tells_whose_data_it_is(backend: Backend, window_s: int) -> None:
    (beaten,) = backend.perform([Beat("r", 0)])
    assert isinstance(beaten, Beaten)
    born_us = lease(backend, "k", window_s=window_s).born_us
    assert born_us > 0
    assert lease(backend, "k", window_s=window_s).born_us == born_us


def test_bucket_may_be_lowered(backend: Backend) -> None:
    assert lease(backend).left == 10
    assert lease(backend, most=20).left == 10
    assert lease(backend, most=3, want=1).left == pytest.approx(2, abs=0.05)
    assert lease(backend, most=-99).left == pytest.approx(-10, abs=0.05)
    assert lease(backend, "window", window_s=3600).left == 10
    assert lease(backend, "window", window_s=3600, most=3).left == 10


def test_bucket_may_be_made_with_less(backend: Backend) -> None:
    assert lease(backend, start=3).left == pytest.approx(3, abs=0.05)
    assert lease(backend, start=9).left == pytest.approx(3, abs=0.05)
    assert lease(backend, "more", start=99).left == 10
    assert lease(backend, "debt", start=-99).left == pytest.approx(-10, abs=0.05)


def test_debt_is_taken_first_and_goes_no_deeper_than_the_bucket(backend: Backend) -> None:
    assert lease(backend, want=10, debt=4).granted == 6
    assert lease(backend, debt=3).left == pytest.approx(-3, abs=0.05)
    assert lease(backend, debt=100).left == pytest.approx(-10, abs=0.05)
    assert lease(backend, want=1).granted == 0


def test_credit_fills_up_to_the_depth(backend: Backend) -> None:
    lease(backend, want=10)
    assert lease(backend, credit=2.5).left == pytest.approx(2.5, abs=0.05)
    assert lease(backend, credit=100).left == 10
    assert lease(backend, credit=5, debt=1).left == pytest.approx(9, abs=0.05)


def test_bucket_without_a_rate_lives_on_credit(backend: Backend) -> None:
    leased = lease(backend, rate=0, start=0, want=1)
    assert (leased.granted, leased.retry_ms) == (0, 3_600_000)
    assert lease(backend, rate=0, credit=2, want=5).granted == 2


@pytest.mark.parametrize(("rate", "least"), [(10, 1), (10, 3), (7, 2), (0.5, 1)])
def test_retry_is_when_so_many_more_will_be_there(backend: Backend, rate: float, least: int) -> None:
    leased = lease(backend, rate=rate, want=10, least=10)
    leased = lease(backend, rate=rate, want=0, least=least)
    missing = least - leased.left
    assert leased.retry_ms == pytest.approx(math.ceil(missing / rate * 1000), abs=1)
    assert leased.left + rate * leased.retry_ms / 1000 >= least - 1e-6


def test_retry_is_at_once_or_within_an_hour(backend: Backend) -> None:
    assert lease(backend, want=5).retry_ms == 0
    assert lease(backend, "slower", rate=1e-9, want=5).retry_ms == 3_600_000


def test_tokens_are_shared_by_demand(backend: Backend) -> None:
    lease(backend, "k", depth=40, demand=30, tells_demand=True)
    leased = lease(backend, "k", depth=40, want=40, demand=10, tells_demand=True)
    assert (leased.granted, leased.sharers) == (10, 2)
    leased = lease(backend, "k", depth=40, want=40, demand=30)
    assert leased.granted == math.ceil(30 * 30 / 40)


def test_what_is_waited_for_is_not_cut(backend: Backend) -> None:
    lease(backend, demand=99, tells_demand=True)
    assert lease(backend, want=8, least=4, demand=1, tells_demand=True).granted == 4
    assert lease(backend, want=8, least=0).granted == 0


def test_who_asks_alone_gets_all(backend: Backend) -> None:
    assert lease(backend, want=10, demand=0.01, tells_demand=True).granted == 10


def test_demand_lasts_to_the_end_of_the_next_epoch(backend: Backend) -> None:
    told = lease(backend, demand=5, tells_demand=True)
    lease(backend, demand=5, tells_demand=True)
    backend.advance(EPOCH_S)
    later = lease(backend, demand=5)
    if later.now_us // 500_000 == told.now_us // 500_000 + 1:
        assert later.sharers == 2
    backend.advance(EPOCH_S)
    assert lease(backend, demand=5).sharers == 1
    assert lease(backend, demand=5, want=10).granted == 10


def test_quota_is_a_window_of_the_calendar(backend: Backend) -> None:
    leased = lease(backend, depth=100, want=30, window_s=86_400)
    day_us = 86_400_000_000
    left_us = (leased.window + 1) * day_us - leased.now_us
    assert (leased.granted, leased.left, leased.retry_ms) == (30, 70, 0)
    assert leased.window == leased.now_us // day_us
    assert leased.window_left_ms == pytest.approx(left_us / 1000, abs=1)
    leased = lease(backend, depth=100, want=100, window_s=86_400)
    assert (leased.granted, leased.left) == (70, 0)
    assert leased.retry_ms == min(3_600_000, leased.window_left_ms)


def test_quota_of_a_wiped_store_begins_full(backend: Backend) -> None:
    backend.wipe()
    assert lease(backend, want=10, window_s=3600, start=1, knows=True).granted == 10


def test_quota_of_a_wiped_store_is_not_for_who_knows_nothing_until_the_others_have_told(
    backend: Backend,
) -> None:
    backend.wipe()
    assert lease(backend, want=10, window_s=3600).granted == 0
    assert lease(backend, want=0, debt=7, window_s=3600).left == 3
    backend.advance(TELLING_US / 1e6 + 0.01)
    assert lease(backend, want=10, window_s=3600).granted == 3


def test_bucket_of_a_wiped_store_begins_with_what_is_free_of_the_burst(backend: Backend) -> None:
    backend.wipe()
    assert lease(backend, want=9, birth=2.5).granted == 2
    assert lease(backend, "deep", birth=99).left == 10


def test_bucket_gives_the_first_all_that_it_needs_or_nothing(backend: Backend) -> None:
    assert lease(backend, want=12, least=12, first=6).granted == 6
    assert lease(backend, want=12, least=12, first=6).granted == 0
    assert lease(backend, want=12, least=12, first=1).granted == 4
    assert lease(backend, "other", want=10, least=10, first=4).granted == 10
    assert lease(backend, "less", want=3, first=99).granted == 3


def test_first_is_not_cut_by_what_others_ask_for(backend: Backend) -> None:
    lease(backend, demand=99, tells_demand=True)
    assert lease(backend, want=9, first=4, demand=1).granted == 4


def test_bucket_holds_back_for_who_needs_more_than_is_there(stepping: Backend) -> None:
    loud: dict[str, Any] = {"demand": 100.0, "rate": 10.0}
    assert lease(stepping, want=6, **loud).granted == 6
    assert lease(stepping, want=8, least=8, first=8, lacks=8, **loud).granted == 0
    stepping.advance(0.3)
    assert lease(stepping, want=1, least=1, first=1, **loud).granted == 0
    assert lease(stepping, rate=10.0).left == pytest.approx(7)
    stepping.advance(0.2)
    assert lease(stepping, want=3, least=3, first=1, **loud).granted == 1
    assert lease(stepping, want=8, least=8, first=8, lacks=8, **loud).granted == 8
    stepping.advance(0.1)
    assert lease(stepping, want=8, least=8, first=8, lacks=8, **loud).granted == 0
    assert lease(stepping, want=1, least=1, first=1, **loud).granted == 1  # the small have their turn


def test_bucket_holds_back_for_a_bounded_time(stepping: Backend) -> None:
    slow: dict[str, Any] = {"demand": 100.0, "rate": 0.1}
    lease(stepping, want=9, **slow)
    assert lease(stepping, want=8, least=8, first=8, lacks=8, **slow).granted == 0
    assert lease(stepping, want=1, **slow).granted == 0
    stepping.advance(MOST_RESERVE_US / 1e6 - 0.1)
    assert lease(stepping, want=1, **slow).granted == 0
    stepping.advance(0.2)
    assert lease(stepping, want=1, **slow).granted == 1


def test_bucket_that_is_enough_for_all_holds_nothing_back(stepping: Backend) -> None:
    assert lease(stepping, want=6, rate=10.0, demand=9.0).granted == 6
    assert lease(stepping, want=8, least=8, first=8, lacks=8, rate=10.0, demand=9.0).granted == 0
    assert lease(stepping, want=1, rate=10.0, demand=9.0).granted == 1


def test_quota_takes_back_what_is_of_its_window(backend: Backend) -> None:
    window = lease(backend, want=10, window_s=86_400).window
    assert lease(backend, window_s=86_400, back=4, back_window=window - 1).left == 0
    assert lease(backend, window_s=86_400, back=4, back_window=window).left == 4
    assert lease(backend, window_s=86_400, back=400, back_window=window).left == 10


def test_quota_begins_again_with_its_window(stepping: Backend) -> None:
    first = lease(stepping, want=7, window_s=60)
    stepping.advance(first.window_left_ms / 1000)
    second = lease(stepping, want=12, window_s=60)
    assert (second.window, second.granted) == (first.window + 1, 10)


def test_what_is_used_of_a_quota_stays_used_when_it_becomes_another(backend: Backend) -> None:
    assert lease(backend, depth=100, want=30, window_s=86_400).left == 70
    assert lease(backend, depth=50, window_s=86_400).left == 20
    assert lease(backend, depth=20, want=5, window_s=86_400).granted == 0
    assert lease(backend, depth=20, debt=5, window_s=86_400).left == -15
    assert lease(backend, depth=100, window_s=86_400).left == 65


def test_windows_of_another_length_and_what_refills_are_other_buckets(backend: Backend) -> None:
    assert lease(backend, want=4).left == 6
    assert lease(backend, want=3, window_s=86_400).left == 7
    assert lease(backend, want=2, window_s=3600).left == 8
    assert [lease(backend, window_s=window_s).left for window_s in (86_400, 3600)] == [7, 8]
    assert lease(backend).left == pytest.approx(6, abs=0.1)


def test_a_clock_that_steps_back_over_a_border_begins_no_window_again(stepping: Backend) -> None:
    first = lease(stepping, window_s=60)
    stepping.advance(first.window_left_ms / 1000)
    assert lease(stepping, want=10, window_s=60).granted == 10
    stepping.advance(-1)
    again = lease(stepping, want=10, window_s=60)
    assert (again.granted, again.window) == (0, first.window + 1)


def test_a_clock_that_steps_back_counts_as_standing_still(stepping: Backend) -> None:
    lease(stepping, rate=1, want=10)
    stepping.advance(-100)
    assert lease(stepping, rate=1).left == 0
    stepping.advance(2)
    assert lease(stepping, rate=1).left == pytest.approx(2)


def test_a_clock_that_steps_forward_fills_the_bucket_at_most(stepping: Backend) -> None:
    lease(stepping, rate=1, want=10)
    stepping.advance(1e6)
    assert lease(stepping, rate=1, want=99).granted == 10


def test_a_bucket_long_idle_is_full_and_one_in_debt_is_not_forgiven(stepping: Backend) -> None:
    lease(stepping, "idle", rate=1, want=10)
    lease(stepping, "debt", rate=0.1, want=10, debt=10)
    stepping.advance(50)
    assert lease(stepping, "idle", rate=1).left == 10
    assert lease(stepping, "debt", rate=0.1).left == pytest.approx(5)


def test_operations_are_done_in_order_each_by_itself(backend: Backend) -> None:
    answers = backend.perform([Lease("k", SLOW, 10, 6), Put("v", b"x"), Lease("k", SLOW, 10, 6), Get("v")])
    assert [answer.granted for answer in answers if isinstance(answer, Leased)] == [6, 4]
    assert [answer.value for answer in answers if isinstance(answer, Named)] == [b"x", b"x"]


@pytest.mark.parametrize(
    "operation",
    [
        Lease("k" * (MAX_KEY_BYTES + 1), 1, 10, 1),
        Lease("ä" * (MAX_KEY_BYTES // 2 + 1), 1, 10, 1),
        Lease("k", -1, 10, 1),
        Lease("k", math.nan, 10, 1),
        Lease("k", 1, math.inf, 1),
        Lease("k", 1, 10, -1),
        Lease("k", 1, 10, 1, debt=-1),
        Lease("k", 1, 10, 1, credit=math.nan),
        Put("v", bytes(MAX_VALUE_BYTES + 1)),
        Token("t", "store", "n", 0, bytes(MAX_VALUE_BYTES + 1)),
        Token("t", "sing", "n"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(backend: Backend, operation: Operation) -> None:
    assert isinstance(backend.perform([operation])[0], Refused)
    assert lease(backend, "k").left == 10
    assert backend.events() == []


def test_keys_may_be_long_and_are_of_their_kind(backend: Backend) -> None:
    key = "ä" * (MAX_KEY_BYTES // 2)
    assert lease(backend, key, want=1).granted == 1
    assert ask(backend, Get(key), Named).version == 0
    assert ask(backend, Put(key, b"v"), Named).version == 1
    assert lease(backend, key, want=99).granted == 9
    assert not ask(backend, Token(key, "read"), Tokened).done


# ----- circuits -------------------------------------------------------------------------------------------------------

RULES = Rules(
    errors=0.5,
    slow=0.8,
    min_requests=10,
    window_ms=10_000,
    quorum=0.3,
    open_ms=100,
    max_open_ms=300,
    probes=2,
)


def report(
    backend: Backend, slot: int = 0, requests: int = 0, failures: int = 0, *, replica: str = "a", **more: Any
) -> Row:
    made = Report("b", replica, slot, 0, RULES, requests, failures, live_workers=2)
    return ask(backend, msgspec.structs.replace(made, **more), Row)


def probe(backend: Backend, name: str, verb: Verb = Verb.ASK, **more: Any) -> Probed:
    return ask(backend, msgspec.structs.replace(Probe("b", name, verb, RULES), **more), Probed)


def force(backend: Backend, to: str, **more: Any) -> Row:
    return ask(backend, Force("b", to, RULES, **more), Row)


def settle(backend: Backend, **more: Any) -> None:
    """Begin the window with one good request, and let it become old enough."""
    report(backend, requests=1, **more)
    backend.advance(0.021)


def trip(backend: Backend) -> Row:
    """Open the circuit, by two workers' votes; forget what was published."""
    epoch = report(backend).epoch
    report(backend, 0, 1, 1, vote=True, epoch=epoch)
    row = report(backend, 1, 1, 1, vote=True, epoch=epoch)
    assert row.state is State.OPEN
    backend.events()
    return row


def half_open(backend: Backend) -> Row:
    """Let it be half open, with the probe `first` under way."""
    trip(backend)
    backend.advance(0.12)
    probed = probe(backend, "first")
    assert (probed.granted, probed.row.state) == (True, State.HALF_OPEN)
    backend.events()
    return probed.row


def test_circuit_that_nobody_knows_is_closed(backend: Backend) -> None:
    row = report(backend)
    assert row == Row(row.now_us, State.CLOSED, 0, 0, 0, 0, "", 0, "", "", 0, 0, 0, 0, 0)
    assert backend.events() == []


def test_circuit_trips_when_a_quorum_of_workers_fails(backend: Backend) -> None:
    settle(backend)
    row = report(backend, 0, 10, 9)
    assert (row.state, row.requests, row.failures, row.reporters, row.failing) == (State.CLOSED, 11, 9, 1, 1)
    row = report(backend, 1, 4, 3)
    assert (row.state, row.requests, row.failures, row.reporters, row.failing) == (State.OPEN, 15, 12, 2, 2)
    assert (row.epoch, row.since_us, row.trips) == (row.now_us, row.now_us, 1)
    assert 90_000 <= row.open_until_us - row.now_us <= 110_000
    (event,) = backend.events()
    assert (event.kind, event.name, decode_row(event.body)) == ("circuit", "b", row)


def test_circuit_does_not_trip_before_its_window_has_settled(backend: Backend) -> None:
    report(backend, 0, 20, 20)
    assert report(backend, 1, 20, 20).state is State.CLOSED
    backend.advance(0.021)
    assert report(backend, 1, 1, 1).state is State.OPEN


def test_circuit_that_is_due_opens_for_whoever_looks_and_knows_its_epoch(backend: Backend) -> None:
    for slot in (0, 1):
        report(backend, slot, 20, 20)
    backend.advance(0.021)
    assert report(backend, epoch=-1).state is State.CLOSED
    row = report(backend)
    assert (row.state, row.requests, row.failures, row.reporters) == (State.OPEN, 40, 40, 2)


def test_circuit_of_one_worker_alone_trips_with_the_outcome_that_crosses(backend: Backend) -> None:
    assert report(backend, 0, 9, 9, live_workers=1).state is State.CLOSED
    assert report(backend, 0, 1, 1, live_workers=1).state is State.OPEN


def test_circuit_does_not_trip_on_few_requests(backend: Backend) -> None:
    settle(backend)
    report(backend, 0, 4, 4)
    assert report(backend, 1, 4, 4).state is State.CLOSED
    assert report(backend, 1, 1, 1).state is State.OPEN


def test_circuit_does_not_trip_below_its_share(backend: Backend) -> None:
    settle(backend)
    report(backend, 0, 19, 10)
    assert report(backend, 1, 20, 9).state is State.CLOSED
    assert report(backend, 1, 2, 2).state is State.OPEN


def test_circuit_does_not_trip_for_one_bad_worker(backend: Backend) -> None:
    settle(backend)
    report(backend, 1, 5, 0)
    row = report(backend, 0, 90, 90)
    assert (row.state, row.reporters, row.failing) == (State.CLOSED, 2, 1)
    assert report(backend, 1, 5, 5).state is State.OPEN


def test_circuit_trips_for_a_worker_that_is_alone(backend: Backend) -> None:
    settle(backend, live_workers=1)
    assert report(backend, 0, 10, 10, live_workers=1).state is State.OPEN


def test_circuit_counts_replicas_where_there_are_many(backend: Backend) -> None:
    settle(backend, live_replicas=2)
    report(backend, 0, 10, 10, live_replicas=2)
    row = report(backend, 1, 10, 10, live_replicas=2)
    assert (row.state, row.reporters, row.failing) == (State.CLOSED, 1, 1)
    row = report(backend, 0, 5, 5, replica="other", live_replicas=2)
    assert (row.state, row.reporters, row.failing) == (State.OPEN, 2, 2)


def test_circuit_needs_the_quorum_that_its_rules_say(backend: Backend) -> None:
    rules = msgspec.structs.replace(RULES, quorum=0.6)
    settle(backend, rules=rules, live_workers=4)
    for slot in (1, 2, 3):
        report(backend, slot, 1, rules=rules, live_workers=4)
    for slot in (0, 1):
        assert report(backend, slot, 20, 20, rules=rules, live_workers=4).state is State.CLOSED
    row = report(backend, 2, 20, 20, rules=rules, live_workers=4)
    assert (row.state, row.reporters, row.failing) == (State.OPEN, 4, 3)


def test_circuit_trips_by_slowness(backend: Backend) -> None:
    settle(backend)
    report(backend, 0, 10, slow=9)
    row = report(backend, 1, 10, slow=9)
    assert (row.state, row.slow, row.failures) == (State.OPEN, 18, 0)


def test_circuit_that_never_trips_by_errors(backend: Backend) -> None:
    rules = msgspec.structs.replace(RULES, errors=2.0, slow=2.0)
    settle(backend, rules=rules)
    report(backend, 0, 100, 100, slow=100, rules=rules)
    assert report(backend, 1, 100, 100, slow=100, rules=rules).state is State.CLOSED


def test_votes_of_a_quorum_trip_at_once(backend: Backend) -> None:
    row = report(backend, 0, 1, 1, vote=True)
    assert (row.state, row.failing) == (State.CLOSED, 1)
    assert report(backend, 0, 1, 1, vote=True).state is State.CLOSED
    assert report(backend, 1, 1, 1, vote=True).state is State.OPEN


def test_votes_without_outcomes_count(backend: Backend) -> None:
    report(backend, 0, vote=True)
    assert report(backend, 1, vote=True).state is State.OPEN


def test_reports_of_another_epoch_are_dropped(backend: Backend) -> None:
    settle(backend)
    row = report(backend, 0, 99, 99, epoch=7, vote=True)
    assert (row.requests, row.reporters) == (1, 1)
    row = report(backend, 1, 99, 99, epoch=7, vote=True)
    assert (row.state, row.requests) == (State.CLOSED, 1)


def test_reading_makes_no_reporter(backend: Backend) -> None:
    report(backend, 0, 3, 1)
    report(backend, 1)
    row = report(backend, 5)
    assert (row.requests, row.failures, row.reporters) == (3, 1, 1)


def test_circuits_are_apart(backend: Backend) -> None:
    trip(backend)
    assert report(backend, breaker="other").state is State.CLOSED


def test_window_forgets(stepping: Backend) -> None:
    report(stepping, 0, 20, 20)
    stepping.advance(6)
    row = report(stepping, 1, 20, 20, live_workers=3, rules=msgspec.structs.replace(RULES, quorum=1.0))
    assert row.state is State.OPEN
    stepping.wipe()
    report(stepping, 0, 20, 20)
    stepping.advance(11)
    row = report(stepping, 1, 20, 20)
    assert (row.state, row.requests, row.reporters) == (State.CLOSED, 20, 1)


def test_votes_are_forgotten_with_the_window(stepping: Backend) -> None:
    report(stepping, 0, 1, 1, vote=True)
    stepping.advance(10.5)
    assert report(stepping, 1, 1, 1, vote=True).state is State.CLOSED


def test_reporters_are_those_of_two_halves(stepping: Backend) -> None:
    report(stepping, 0, 5)
    stepping.advance(5)
    assert report(stepping, 1, 5).reporters == 2
    stepping.advance(5)
    assert report(stepping, 1, 5).reporters == 1


def test_voter_whose_vote_is_over_is_no_reporter(stepping: Backend) -> None:
    now_us = report(stepping).now_us
    stepping.advance(6 - now_us % 5_000_000 / 1e6)  # one second into a half of the window
    report(stepping, 0, vote=True)
    stepping.advance(9)
    assert report(stepping, 1, 5).reporters == 2
    stepping.advance(2)
    assert report(stepping, 1, 5).reporters == 1


def test_probes_begin_when_the_open_time_is_over(backend: Backend) -> None:
    opened = trip(backend)
    probed = probe(backend, "early")
    if probed.row.now_us < opened.open_until_us:
        assert (probed.granted, probed.row.state) == (False, State.OPEN)
    backend.advance(0.12)
    probed = probe(backend, "due")
    assert (probed.granted, probed.row.state) == (True, State.HALF_OPEN)
    assert probed.row.epoch > opened.epoch
    assert (probed.row.since_us, probed.row.requests) == (probed.row.now_us, 0)
    assert [decode_row(event.body) for event in backend.events()] == [probed.row]


def test_never_more_probes_than_the_rules_say(backend: Backend) -> None:
    half_open(backend)
    assert [probe(backend, name).granted for name in ("second", "third", "fourth")] == [True, False, False]
    assert probe(backend, "second").granted
    assert not probe(backend, "third").granted
    assert backend.events() == []


def test_successes_in_a_row_close_the_circuit(backend: Backend) -> None:
    before = half_open(backend)
    row = probe(backend, "first", Verb.OK).row
    assert row.state is State.HALF_OPEN
    assert probe(backend, "second").granted
    probed = probe(backend, "second", Verb.OK)
    assert (probed.granted, probed.row.state, probed.row.trips) == (True, State.CLOSED, 1)
    assert probed.row.epoch > before.epoch
    assert probed.row.since_us == probed.row.now_us
    assert [decode_row(event.body) for event in backend.events()] == [probed.row]
    assert not probe(backend, "third").granted


def test_a_failure_opens_the_circuit_for_longer_up_to_the_most(backend: Backend) -> None:
    half_open(backend)
    row = probe(backend, "first", Verb.FAILED).row
    assert (row.state, row.trips) == (State.OPEN, 2)
    assert 180_000 <= row.open_until_us - row.now_us <= 220_000
    assert [decode_row(event.body) for event in backend.events()] == [row]
    backend.advance(0.23)
    probe(backend, "next")
    row = probe(backend, "next", Verb.FAILED).row
    assert row.trips == 3
    assert 270_000 <= row.open_until_us - row.now_us <= 330_000


def test_a_failure_voids_the_other_probes(backend: Backend) -> None:
    half_open(backend)
    probe(backend, "second")
    row = probe(backend, "first", Verb.FAILED).row
    late = probe(backend, "second", Verb.OK)
    assert (late.granted, late.row.epoch, late.row.state) == (False, row.epoch, State.OPEN)
    assert not probe(backend, "second", Verb.FAILED).granted


def test_probes_of_an_earlier_epoch_count_until_they_are_settled(backend: Backend) -> None:
    half_open(backend)
    probe(backend, "second")
    probe(backend, "first", Verb.FAILED)
    backend.advance(0.25)
    assert probe(backend, "third").row.state is State.HALF_OPEN
    assert not probe(backend, "fourth").granted  # of two that are allowed the second is still on its way
    assert not probe(backend, "second", Verb.OK).granted
    probed = probe(backend, "fourth")
    assert (probed.granted, probed.row.state) == (True, State.HALF_OPEN)


def test_probes_of_an_earlier_epoch_count_until_they_are_late_beyond_measure(backend: Backend) -> None:
    trip(backend)
    backend.advance(0.12)
    probe(backend, "hangs", timeout_ms=400)
    probe(backend, "first")
    probe(backend, "first", Verb.FAILED)
    backend.advance(0.45)
    assert [probe(backend, name).granted for name in ("second", "third")] == [True, False]
    backend.advance(LATE_US / 1e6)
    probed = probe(backend, "third")
    assert (probed.granted, probed.row.state) == (True, State.HALF_OPEN)


def test_a_probe_that_is_not_out_counts_for_nothing(backend: Backend) -> None:
    before = half_open(backend)
    for verb in (Verb.OK, Verb.FAILED, Verb.LOST):
        assert not probe(backend, "stranger", verb).granted
    probe(backend, "first", Verb.OK)
    assert not probe(backend, "first", Verb.OK).granted
    row = probe(backend, "second").row
    assert (row.state, row.epoch) == (State.HALF_OPEN, before.epoch)


def test_a_lost_probe_makes_room_and_says_nothing(backend: Backend) -> None:
    half_open(backend)
    probe(backend, "second")
    assert probe(backend, "second", Verb.LOST).granted
    probed = probe(backend, "third")
    assert (probed.granted, probed.row.state) == (True, State.HALF_OPEN)
    probe(backend, "first", Verb.OK)
    assert probe(backend, "third", Verb.OK).row.state is State.CLOSED


def test_a_probe_past_its_deadline_has_failed(backend: Backend) -> None:
    trip(backend)
    backend.advance(0.12)
    probe(backend, "dead", timeout_ms=50)
    backend.advance(0.06)
    probed = probe(backend, "next")
    assert (probed.granted, probed.row.state, probed.row.trips) == (False, State.OPEN, 2)
    assert not probe(backend, "dead", Verb.OK).granted


def test_reports_count_nothing_while_it_is_not_closed(backend: Backend) -> None:
    opened = trip(backend)
    row = report(backend, 0, 50, 50, epoch=opened.epoch, vote=True)
    assert (row.state, row.epoch) == (State.OPEN, opened.epoch)
    backend.advance(0.12)
    half = probe(backend, "first").row
    row = report(backend, 0, 50, 50, epoch=half.epoch, vote=True)
    assert (row.state, row.epoch, row.requests) == (State.HALF_OPEN, half.epoch, 0)


def test_the_open_time_begins_anew_after_calm(stepping: Backend) -> None:
    half_open(stepping)
    probe(stepping, "first", Verb.OK)
    probe(stepping, "second")
    assert probe(stepping, "second", Verb.OK).row.state is State.CLOSED
    stepping.advance(0.9)
    assert trip(stepping).trips == 2
    stepping.advance(0.3)
    for name in ("third", "fourth"):
        probe(stepping, name)
        probe(stepping, name, Verb.OK)
    stepping.advance(1.0)
    assert trip(stepping).trips == 1


def test_epochs_grow_with_every_change(backend: Backend) -> None:
    epochs = [trip(backend).epoch]
    backend.advance(0.12)
    epochs.append(probe(backend, "first").row.epoch)
    epochs.append(probe(backend, "first", Verb.FAILED).row.epoch)
    epochs += [force(backend, to).epoch for to in ("closed", "open", "auto")]
    assert epochs == sorted(set(epochs))


def test_a_force_open_holds_it_open(backend: Backend) -> None:
    row = force(backend, "open", by="ada", reason="drill")
    assert (row.state, row.forced, row.forced_by, row.forced_reason) == (State.OPEN, "open", "ada", "drill")
    assert (row.forced_until_us, row.open_until_us, row.since_us) == (0, 0, row.now_us)
    assert [decode_row(event.body) for event in backend.events()] == [row]
    assert not probe(backend, "p").granted
    after = report(backend, 0, 9, 9, epoch=row.epoch, vote=True)
    assert (after.epoch, after.requests) == (row.epoch, 0)


@pytest.mark.parametrize("to", ["open", "closed"])
def test_control_given_back_is_half_open(backend: Backend, to: str) -> None:
    forced = force(backend, to)
    row = force(backend, "auto")
    assert (row.state, row.forced, row.forced_by) == (State.HALF_OPEN, "", "")
    assert row.epoch > forced.epoch
    assert len(backend.events()) == 2
    assert probe(backend, "p").granted


def test_a_force_closed_does_not_trip(backend: Backend) -> None:
    trip(backend)
    row = force(backend, "closed")
    assert (row.state, row.forced, row.open_until_us) == (State.CLOSED, "closed", 0)
    for slot in (0, 1):
        row = report(backend, slot, 50, 50, epoch=row.epoch, vote=True)
    assert (row.state, row.requests) == (State.CLOSED, 0)


def test_a_force_ends_with_its_time(backend: Backend) -> None:
    forced = force(backend, "open", for_ms=100)
    assert forced.forced_until_us == forced.open_until_us == forced.now_us + 100_000
    backend.events()
    backend.advance(0.11)
    row = report(backend)
    assert (row.state, row.forced, row.forced_until_us) == (State.HALF_OPEN, "", 0)
    assert row.epoch > forced.epoch
    assert [decode_row(event.body) for event in backend.events()] == [row]


def test_a_force_closed_ends_with_its_time(backend: Backend) -> None:
    forced = force(backend, "closed", for_ms=100)
    backend.advance(0.11)
    row = report(backend)
    assert (row.state, row.forced) == (State.CLOSED, "")
    assert row.epoch > forced.epoch


def test_auto_without_a_force_changes_nothing(backend: Backend) -> None:
    before = trip(backend)
    row = force(backend, "auto")
    assert (row.state, row.epoch) == (State.OPEN, before.epoch)
    assert backend.events() == []


def test_a_force_voids_probes(backend: Backend) -> None:
    half_open(backend)
    force(backend, "open")
    force(backend, "auto")
    assert not probe(backend, "first", Verb.OK).granted


def test_a_row_that_was_lost_is_put_back(backend: Backend) -> None:
    row = trip(backend)
    backend.wipe()
    restored = ask(backend, Restore("b", row), Row)
    assert msgspec.structs.replace(restored, now_us=0, requests=0, failures=0, reporters=0, failing=0) == (
        msgspec.structs.replace(row, now_us=0, requests=0, failures=0, reporters=0, failing=0)
    )
    assert [decode_row(event.body) for event in backend.events()] == [restored]
    backend.advance(0.12)
    assert probe(backend, "p").granted


def test_a_row_never_goes_back(backend: Backend) -> None:
    old = trip(backend)
    new = force(backend, "closed", by="ada")
    backend.events()
    row = ask(backend, Restore("b", old), Row)
    assert (row.epoch, row.forced) == (new.epoch, "closed")
    row = ask(backend, Restore("b", msgspec.structs.replace(new, forced_by="eve")), Row)
    assert row.forced_by == "ada"
    assert backend.events() == []


def test_a_restored_force_holds_and_ends(backend: Backend) -> None:
    row = force(backend, "open", for_ms=200, by="ada")
    backend.wipe()
    assert ask(backend, Restore("b", row), Row).forced_by == "ada"
    assert not probe(backend, "p").granted
    backend.advance(0.21)
    assert report(backend).state is State.HALF_OPEN


def test_epochs_grow_from_a_restored_row(backend: Backend) -> None:
    row = msgspec.structs.replace(trip(backend), epoch=9_000_000_000_000_000)
    ask(backend, Restore("b", row), Row)
    assert force(backend, "closed").epoch == 9_000_000_000_000_001


# ----- credentials ----------------------------------------------------------------------------------------------------


def token(backend: Backend, action: str, nonce: str = "", **more: Any) -> Tokened:
    return ask(backend, Token("t", action, nonce, **more), Tokened)


def test_a_credential_that_is_not_there(backend: Backend) -> None:
    told = token(backend, "read")
    assert told == Tokened(told.now_us, 0, b"", 0, done=False)
    assert not token(backend, "unlock", "me").done
    assert not token(backend, "store", "me", value=b"x").done
    assert backend.events() == []


def test_one_of_many_fetches_a_credential(backend: Backend) -> None:
    assert token(backend, "lock", "me").done
    assert token(backend, "lock", "me").done
    assert not token(backend, "lock", "you").done
    assert not token(backend, "store", "you", value=b"stolen").done
    assert not token(backend, "unlock", "you").done
    told = token(backend, "store", "me", value=b"secret", ttl_ms=60_000)
    assert (told.done, told.version, told.value) == (True, 1, b"secret")
    assert told.expires_us == told.now_us + 60_000_000
    (event,) = backend.events()
    assert (event.kind, event.name) == ("token", "t")
    published = msgspec.msgpack.decode(event.body, type=Tokened)
    assert (published.version, published.value, published.expires_us) == (1, b"", told.expires_us)
    read = token(backend, "read")
    assert (read.done, read.value, read.version) == (True, b"secret", 1)
    locked = token(backend, "lock", "you")
    assert (locked.done, locked.value) == (True, b"secret")


def test_a_credential_is_replaced_only_in_the_version_that_was_seen(backend: Backend) -> None:
    for nonce, version, done in [("a", 0, True), ("b", 0, False), ("b", 1, True)]:
        token(backend, "lock", nonce)
        assert token(backend, "store", nonce, version=version, value=nonce.encode()).done is done
    assert (token(backend, "read").version, token(backend, "read").value) == (2, b"b")


def test_a_lock_that_is_let_go_is_free(backend: Backend) -> None:
    token(backend, "lock", "me")
    assert token(backend, "unlock", "me").done
    assert token(backend, "lock", "you").done


def test_a_lock_ends_with_its_time(backend: Backend) -> None:
    token(backend, "lock", "me", lock_ms=100)
    backend.advance(0.11)
    assert not token(backend, "store", "me", value=b"late").done
    assert token(backend, "lock", "you").done


def test_a_credential_ends_with_its_time(backend: Backend) -> None:
    token(backend, "lock", "me")
    token(backend, "store", "me", value=b"x", ttl_ms=100)
    backend.advance(0.11)
    told = token(backend, "read")
    assert (told.done, told.version, told.value, told.expires_us) == (False, 0, b"", 0)
    token(backend, "lock", "me")
    assert token(backend, "store", "me", value=b"y", version=0).version == 1


def test_a_credential_without_end(backend: Backend) -> None:
    token(backend, "lock", "me")
    assert token(backend, "store", "me", value=b"x").expires_us == 0
    assert token(backend, "read").done


# ----- who is alive ---------------------------------------------------------------------------------------------------


def test_beats_tell_who_is_alive(backend: Backend) -> None:
    alone = ask(backend, Beat("a", 0, b"one"), Beaten)
    assert (alone.replicas, alone.workers) == (1, 1)
    assert alone.born_us < alone.now_us
    ask(backend, Beat("a", 1, b"two"), Beaten)
    beaten = ask(backend, Beat("b", 0, b"three"), Beaten)
    assert (beaten.replicas, beaten.workers, beaten.born_us) == (2, 3, alone.born_us)
    again = ask(backend, Beat("a", 0, b"new"), Beaten)
    assert (again.replicas, again.workers) == (2, 3)
    members = ask(backend, Roll(), Rolled).members
    assert [(member.replica, member.slot, member.info) for member in members] == [
        ("a", 0, b"new"),
        ("a", 1, b"two"),
        ("b", 0, b"three"),
    ]
    assert members[0] == Member("a", 0, again.now_us, b"new")


def test_beats_tell_which_terms_replicas_have(backend: Backend) -> None:
    assert ask(backend, Beat("a", 0, terms="new"), Beaten).terms == ["new"]
    assert ask(backend, Beat("b", 0, terms="old"), Beaten).terms == ["new", "old"]
    assert ask(backend, Beat("c", 0), Beaten).terms == ["new", "old"]
    assert ask(backend, Beat("b", 1, terms="new"), Beaten).terms == ["new"]
    assert ask(backend, Beat("c", 0, terms="old"), Beaten).terms == ["new", "old"]


def test_terms_live_as_long_as_a_worker_of_their_replica(stepping: Backend) -> None:
    ask(stepping, Beat("a", 0, terms="old"), Beaten)
    ask(stepping, Beat("a", 1, terms="old"), Beaten)
    assert ask(stepping, Beat("b", 0, terms="new"), Beaten).terms == ["new", "old"]
    assert ask(stepping, Beat("a", 0, leaving=True), Beaten).terms == ["new", "old"]
    assert ask(stepping, Beat("a", 1, leaving=True), Beaten).terms == ["new"]
    ask(stepping, Beat("c", 0, terms="old"), Beaten)
    stepping.advance(3.5)
    assert ask(stepping, Beat("b", 0, terms="new"), Beaten).terms == ["new"]
    assert ask(stepping, Beat("c", 0), Beaten).terms == ["new"]


def test_who_comes_is_told_to_those_who_are_there(stepping: Backend) -> None:
    def told() -> list[tuple[str, int, int]]:
        found = []
        for event in stepping.events():
            assert event.kind == "alive"
            alive = decode_alive(event.body)
            found.append((event.name, alive.replicas, alive.workers))
        return found

    ask(stepping, Beat("a", 0), Beaten)
    assert told() == []  # there is nobody else
    ask(stepping, Beat("a", 1), Beaten)
    assert told() == [("", 1, 2)]
    ask(stepping, Beat("b", 0, b"info"), Beaten)
    assert told() == [("", 2, 3)]
    ask(stepping, Beat("a", 0), Beaten)
    ask(stepping, Beat("b", 0, leaving=True), Beaten)
    assert told() == []
    ask(stepping, Beat("b", 0), Beaten)
    assert told() == [("", 2, 3)]
    stepping.advance(2)
    ask(stepping, Beat("a", 0), Beaten)
    stepping.advance(2)
    ask(stepping, Beat("b", 0), Beaten)  # forgotten meanwhile
    assert told() == [("", 2, 2)]


def test_who_leaves_is_forgotten_at_once(backend: Backend) -> None:
    ask(backend, Beat("a", 0), Beaten)
    ask(backend, Beat("a", 1), Beaten)
    beaten = ask(backend, Beat("a", 0, leaving=True), Beaten)
    assert (beaten.replicas, beaten.workers) == (1, 1)
    assert [member.slot for member in ask(backend, Roll(), Rolled).members] == [1]


def test_who_is_silent_is_forgotten(stepping: Backend) -> None:
    ask(stepping, Beat("a", 0), Beaten)
    stepping.advance(3)
    assert ask(stepping, Beat("a", 1), Beaten).workers == 2
    stepping.advance(0.001)
    assert [member.slot for member in ask(stepping, Roll(), Rolled).members] == [1]


def test_a_wiped_store_is_born_anew(backend: Backend) -> None:
    before = ask(backend, Beat("a", 0), Beaten)
    backend.advance(0.01)
    backend.wipe()
    after = ask(backend, Beat("a", 0), Beaten)
    assert before.born_us < after.born_us <= after.now_us


# ----- named values ---------------------------------------------------------------------------------------------------


def put(backend: Backend, value: bytes, **more: Any) -> Named:
    return ask(backend, Put("v", value, **more), Named)


def get(backend: Backend) -> Named:
    return ask(backend, Get("v"), Named)


def test_a_value_is_put_and_got(backend: Backend) -> None:
    missing = get(backend)
    assert missing == Named(missing.now_us, 0, b"", 0, done=True)
    told = put(backend, b"one")
    assert told == Named(told.now_us, 1, b"one", 0, done=True)
    assert put(backend, b"two").version == 2
    assert (get(backend).version, get(backend).value) == (2, b"two")
    assert backend.events() == []


def test_a_value_of_the_greatest_size_is_kept(backend: Backend) -> None:
    assert put(backend, bytes(range(256)) * (MAX_VALUE_BYTES // 256)).done
    assert len(get(backend).value) == MAX_VALUE_BYTES


def test_a_value_is_put_only_over_the_expected_version(backend: Backend) -> None:
    told = put(backend, b"x", expect=3)
    assert (told.done, told.version, told.value) == (False, 0, b"")
    assert put(backend, b"one", expect=0).done
    told = put(backend, b"two", expect=0)
    assert (told.done, told.version, told.value) == (False, 1, b"one")
    assert put(backend, b"two", expect=1).version == 2


def test_a_value_ends_with_its_time(backend: Backend) -> None:
    told = put(backend, b"x", ttl_ms=100)
    assert 0 < told.ttl_ms <= 100
    assert 0 < get(backend).ttl_ms <= 100
    backend.advance(0.11)
    assert (get(backend).version, get(backend).value) == (0, b"")
    assert put(backend, b"y", expect=0).version == 1


def test_the_longest_pause_holds(backend: Backend) -> None:
    assert put(backend, b"long", ttl_ms=60_000, longest=True).done
    told = put(backend, b"short", ttl_ms=1_000, longest=True)
    assert (told.done, told.value) == (False, b"long")
    assert 1_000 < told.ttl_ms <= 60_000
    assert put(backend, b"longer", ttl_ms=120_000, longest=True).done
    assert put(backend, b"endless", longest=True).done
    assert not put(backend, b"long", ttl_ms=60_000, longest=True).done
    assert put(backend, b"plain", ttl_ms=5).done


def test_a_value_is_published_if_asked_for(backend: Backend) -> None:
    told = put(backend, b"x", ttl_ms=60_000, publish=True)
    put(backend, b"y", expect=7, publish=True)
    (event,) = backend.events()
    assert (event.kind, event.name) == ("value", "v")
    assert decode_named(event.body) == told


def test_events_come_in_order(backend: Backend) -> None:
    # Of one name: in a Redis Cluster, those of two names may come from two servers.
    backend.perform([Put("n", b"", publish=True), Force("n", "open", RULES), Put("n", b"", publish=True)])
    assert kinds(backend.events()) == [("value", "n"), ("circuit", "n"), ("value", "n")]
