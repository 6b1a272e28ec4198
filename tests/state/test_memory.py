"""What `test_conformance.py` does not ask of every store: bounds, expiry, chance."""

from __future__ import annotations

import msgspec

from ambassador.state import memory
from ambassador.state.bucket import Bucket
from ambassador.state.memory import MemoryStore, Table
from ambassador.state.protocol import (
    Beat,
    Beaten,
    Force,
    Get,
    Lease,
    Leased,
    Named,
    Permit,
    Permitted,
    Probe,
    Probed,
    Put,
    Refused,
    Report,
    Restore,
    Row,
    Rules,
    Share,
    State,
    Token,
    Tokened,
    Verb,
    decode_share,
)

NOW_US = 1_800_000_000_000_000
RULES = Rules(
    errors=0.5,
    slow=2,
    min_requests=1,
    window_ms=10_000,
    quorum=0.3,
    open_ms=5_000,
    max_open_ms=60_000,
    probes=3,
)


def sweep_all(store: MemoryStore, now_us: int) -> None:
    for _ in range(memory.SHARDS):
        store.sweep(now_us)


def test_buckets_begin_full_or_by_the_birth_rule() -> None:
    lease = Lease("k", 1, 10, 10)
    full = MemoryStore(NOW_US).perform(lease, NOW_US)
    bare = MemoryStore(NOW_US, full=False).perform(lease, NOW_US)
    assert isinstance(full, Leased)
    assert isinstance(bare, Leased)
    assert (full.granted, bare.granted) == (10, 0)


def test_what_is_over_is_swept_away_in_time() -> None:
    store = MemoryStore(NOW_US)
    for n in range(50):
        store.perform(Lease(f"k{n}", 10, 10, 1), NOW_US)
        store.perform(Put(f"v{n}", b"x" * 100, ttl_ms=1000), NOW_US)
    store.perform(Token("t", "lock", "me", lock_ms=10), NOW_US)
    store.perform(Put("endless", b"x"), NOW_US)
    store.perform(Report("b", "a", 0, 0, RULES, 1), NOW_US)
    assert store.keys == 103
    sweep_all(store, NOW_US + 60_000_000)
    assert store.keys == 2


def test_operations_sweep_as_time_goes_on() -> None:
    store = MemoryStore(NOW_US)
    for n in range(50):
        store.perform(Put(f"v{n}", b"x", ttl_ms=1), NOW_US)
    for n in range(memory.SHARDS):
        store.perform(Get("other"), NOW_US + (n + 2) * memory.SWEEP_EVERY_US)
    assert store.keys == 0


def test_no_new_key_beyond_the_most() -> None:
    store = MemoryStore(NOW_US, max_keys=2)
    assert isinstance(store.perform(Lease("a", 1, 10, 1), NOW_US), Leased)
    assert isinstance(store.perform(Put("b", b""), NOW_US), Named)
    for operation in (
        Lease("c", 1, 10, 1),
        Put("c", b""),
        Token("c", "lock", "me"),
        Report("c", "a", 0, 0, RULES, 1),
        Probe("c", "p", Verb.ASK, RULES),
        Force("c", "open", RULES),
    ):
        assert isinstance(store.perform(operation, NOW_US), Refused)
    assert isinstance(store.perform(Lease("a", 1, 10, 1), NOW_US), Leased)
    assert isinstance(store.perform(Put("b", b"x"), NOW_US), Named)
    assert isinstance(store.perform(Beat("a", 0), NOW_US), Beaten)
    assert store.collect() == []


def test_a_full_store_makes_room_when_something_is_over() -> None:
    store = MemoryStore(NOW_US, max_keys=1)
    store.perform(Lease("a", 10, 10, 1), NOW_US)
    answers = [store.perform(Lease("c", 1, 10, 1), NOW_US + 60_000_000) for _ in range(memory.SHARDS)]
    assert isinstance(answers[-1], Leased)


def test_values_are_bounded_in_bytes() -> None:
    store = MemoryStore(NOW_US, max_bytes=1000)
    assert isinstance(store.perform(Put("a", bytes(600)), NOW_US), Named)
    assert isinstance(store.perform(Put("b", bytes(600)), NOW_US), Refused)
    assert store.perform(Get("b"), NOW_US) == Named(NOW_US, 0, b"", 0)
    store.perform(Token("t", "lock", "me"), NOW_US)
    assert isinstance(store.perform(Token("t", "store", "me", 0, bytes(600)), NOW_US), Refused)
    assert isinstance(store.perform(Put("a", bytes(100), ttl_ms=10), NOW_US), Named)
    stored = store.perform(Token("t", "store", "me", 0, bytes(900), ttl_ms=10), NOW_US)
    assert isinstance(stored, Tokened)
    assert stored.done
    assert isinstance(store.perform(Put("b", bytes(1)), NOW_US), Refused)
    sweep_all(store, NOW_US + 20_000_000)
    assert isinstance(store.perform(Put("b", bytes(1000)), NOW_US + 20_000_000), Named)


def test_a_value_that_is_over_makes_room_before_it_is_swept() -> None:
    store = MemoryStore(NOW_US, max_bytes=1000)
    store.perform(Put("a", bytes(1000), ttl_ms=10), NOW_US)
    later = NOW_US + 10_000
    assert store.perform(Get("a"), later) == Named(later, 0, b"", 0)
    assert isinstance(store.perform(Put("b", bytes(1000)), later), Named)


def test_chance_decides_the_open_time() -> None:
    opened = []
    for chance in (0.0, 0.999):
        store = MemoryStore(NOW_US, chance=lambda chance=chance: chance)  # type: ignore[misc]
        row = store.perform(Report("b", "a", 0, 0, RULES, 1, 1, vote=True), NOW_US)
        assert isinstance(row, Row)
        assert row.state is State.OPEN
        opened.append(row.open_until_us - NOW_US)
    assert opened[0] == 4_500_000
    assert 5_490_000 < opened[1] <= 5_500_000


def test_unsound_steps_are_refused() -> None:
    store = MemoryStore(NOW_US)
    bad = msgspec.structs.replace(RULES, window_ms=0)
    row = Row(0, State.OPEN, 5, 0, 0, 1, "ajar", 0, "", "", 0, 0, 0, 0, 0)
    for operation in (
        Report("b", "a", 0, 0, bad, 1),
        Report("b", "a", 0, 0, RULES, -1),
        Probe("b", "p", Verb.ASK, bad),
        Probe("b", "p" * 999, Verb.ASK, RULES),
        Force("b", "ajar", RULES),
        Force("b", "open", RULES, for_ms=-1),
        Force("b", "open", RULES, reason="x" * 100_000),
        Restore("b", row),
        Beat("a" * 999, 0),
        Beat("a", 0, bytes(100_000)),
        Put("v", b"", ttl_ms=-1),
        Token("t", "lock", "me", lock_ms=-1),
        Report("b" * 999, "a", 0, 0, RULES, 1),
    ):
        assert isinstance(store.perform(operation, NOW_US), Refused), operation
    assert store.collect() == []


def test_probed_circuits_are_published_as_they_answered() -> None:
    store = MemoryStore(NOW_US)
    store.perform(Force("b", "open", RULES), NOW_US)
    store.perform(Force("b", "auto", RULES), NOW_US)
    store.collect()
    store.perform(Probe("b", "p", Verb.ASK, RULES), NOW_US)
    failed = store.perform(Probe("b", "p", Verb.FAILED, RULES), NOW_US)
    assert isinstance(failed, Probed)
    (event,) = store.collect()
    assert msgspec.msgpack.decode(event.body, type=Row) == failed.row
    assert store.collect() == []


def test_table_counts_what_it_holds() -> None:
    lost: list[Bucket] = []
    table: Table[Bucket] = Table(16, lost.append)
    for n in range(100):
        table.add(str(n), Bucket(0.0, 0, expires_us=n))
    assert table.count == 100
    for _ in range(16):
        table.sweep(49)
    assert (table.count, len(lost)) == (50, 50)
    assert "50" in table.shard("50")
    assert "49" not in table.shard("49")


def test_permits_are_divided_and_what_is_short_is_published() -> None:
    store = MemoryStore(NOW_US)
    assert store.perform(Permit("k", "a", 3, 0, 3), NOW_US) == Permitted(NOW_US, 3, 3, 3, 1, 0)
    assert store.collect() == []
    assert store.perform(Permit("k", "b", 3, 0, 1), NOW_US) == Permitted(NOW_US, 0, 2, 3, 2, 1)
    (event,) = store.collect()
    assert (event.kind, event.name, decode_share(event.body)) == ("permits", "k", Share(2, 3, 0, 1))
    assert store.keys == 1
    for step in range(memory.SHARDS):
        store.sweep(NOW_US + 60_000_000 + step)
    assert store.keys == 0


def test_permits_that_make_no_sense_are_refused() -> None:
    store = MemoryStore(NOW_US, max_keys=1)
    for permit in (
        Permit("k", "a", 0, 0, 0),
        Permit("k" * 999, "a", 1, 0, 0),
        Permit("k", "a" * 999, 1, 0, 0),
    ):
        assert isinstance(store.perform(permit, NOW_US), Refused)
    store.perform(Permit("k", "a", 1, 0, 0), NOW_US)
    assert isinstance(store.perform(Permit("l", "a", 1, 0, 0), NOW_US), Refused)


def a_window(key: str, want: int = 1) -> Lease:
    return Lease(key, 0.0, 10.0, want, window_s=86_400)


def test_full_store_drops_a_bucket_that_is_full_again_for_a_new_key() -> None:
    store = MemoryStore(NOW_US, max_keys=2)
    assert isinstance(store.perform(Lease("a", 10, 10, 1), NOW_US), Leased)
    assert isinstance(store.perform(a_window("b"), NOW_US), Leased)
    # Half a second later `a` is full; a store with room would keep it for two more.
    later_us = NOW_US + 500_000
    answers = [store.perform(a_window("c"), later_us + 10_000 * step) for step in range(memory.SHARDS)]
    assert isinstance(answers[-1], Leased)
    assert isinstance(store.perform(a_window("d"), later_us + 10_000 * memory.SHARDS), Refused)


def test_full_store_forgets_no_quota_that_was_used() -> None:
    store = MemoryStore(NOW_US, max_keys=1)
    store.perform(a_window("a", want=10), NOW_US)
    for step in range(memory.SHARDS):
        assert isinstance(store.perform(a_window("b"), NOW_US + step), Refused)
    answer = store.perform(a_window("a"), NOW_US + memory.SHARDS)
    assert isinstance(answer, Leased)
    assert answer.granted == 0


def test_store_says_that_it_is_nearly_full_until_it_has_room_again() -> None:
    store = MemoryStore(NOW_US, max_keys=100)
    for number in range(89):
        store.perform(Lease(str(number), 1, 10, 1), NOW_US)
    assert store.findings(NOW_US) == ()
    store.perform(Lease("89", 1, 10, 1), NOW_US)
    (near,) = store.findings(NOW_US)
    assert near == "this replica's store is nearly full: more than 85% of 100 keys are in use"
    store.sweep(NOW_US)
    assert store.findings(NOW_US) == (near,)
    sweep_all(store, NOW_US + 10_000_000)
    assert store.findings(NOW_US + 10_000_000) == ()


def test_store_says_for_a_minute_that_it_refused_a_key_or_a_value() -> None:
    store = MemoryStore(NOW_US, max_keys=1, max_bytes=1)
    store.perform(a_window("a"), NOW_US)
    assert isinstance(store.perform(a_window("b"), NOW_US), Refused)
    (full,) = store.findings(NOW_US)
    assert full.startswith("this replica's store is full: it holds 1 keys.")
    (near,) = store.findings(NOW_US + 60_000_000)
    assert "nearly full" in near
    store = MemoryStore(NOW_US, max_bytes=1)
    assert isinstance(store.perform(Put("n", b"xx"), NOW_US), Refused)
    (full,) = store.findings(NOW_US)
    assert "keeps no new ones" in full
