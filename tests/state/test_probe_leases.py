"""When leases for probes are asked for, how long they are held, and when they go back."""

from __future__ import annotations

from ambassador.state.probe_leases import ASK_S, GRACE_S, KEEP_S, ProbeLeases
from ambassador.state.protocol import LATE_US, Probe, Verb
from tests.state.fleet import rules


def leases() -> ProbeLeases:
    return ProbeLeases("up", rules(), "r0.0.1")


def granted(held: ProbeLeases, now: float, timeout_s: float = 10.0) -> Probe:
    asked = held.ask(now, timeout_s)
    assert asked is not None
    held.answered()
    held.keep(asked, now, now + 0.01)
    return asked


def test_one_lease_is_asked_for_at_a_time_and_in_so_long() -> None:
    held = leases()
    asked = held.ask(10.0, 2.5)
    assert asked == Probe("up", "r0.0.1.1", Verb.ASK, rules(), round((2.5 + GRACE_S) * 1000))
    assert held.ask(20.0, 2.5) is None
    held.answered()
    assert not held.held
    again = held.ask(20.0, 2.5)
    assert again is not None
    assert again.id == "r0.0.1.2"
    held.answered()
    assert held.ask(20.0 + ASK_S / 2, 2.5) is None
    assert held.ask(20.0 + ASK_S, 2.5) is not None


def test_lease_is_used_once_and_ends_by_the_time_of_its_question() -> None:
    held = leases()
    asked = granted(held, 10.0, 2.0)
    assert held.held
    assert held.use() == (asked.id, 12.0)
    assert held.use() is None
    assert not held.held


def test_lease_that_nobody_uses_goes_back() -> None:
    held = leases()
    asked = granted(held, 10.0)
    assert held.drop_stale(10.0 + KEEP_S) == []
    assert held.drop_stale(10.01 + KEEP_S) == [held.give_back(asked.id)]
    assert held.give_back(asked.id).verb is Verb.LOST
    assert not held.held


def test_lease_that_is_over_goes_back_sooner() -> None:
    held = leases()
    granted(held, 10.0, 0.5)
    assert len(held.drop_stale(10.5)) == 1


def test_probe_is_under_way_until_it_has_ended_or_is_late_beyond_measure() -> None:
    held = leases()
    asked = granted(held, 10.0, 2.0)
    assert not held.is_probing(11.0)
    held.use()
    assert held.is_probing(12.0 + LATE_US / 1e6 - 0.01)
    assert not held.is_probing(12.0 + LATE_US / 1e6)
    held.ended(asked.id)
    assert not held.is_probing(11.0)


def test_change_of_the_circuit_voids_what_is_held_and_gives_it_back() -> None:
    held = leases()
    asked = granted(held, 10.0)
    assert held.clear() == [held.give_back(asked.id)]
    assert not held.held
    assert held.drop_stale(100.0) == []
