from __future__ import annotations

import gc
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.observe.families import Histogram, Reader, cumulative
from ambassador.observe.metrics import (
    BOUNDS,
    NO_ROUTE,
    REASONS,
    RESULTS,
    ROUTE_SLOTS,
    WORKER_SLOTS,
    BlockKey,
    Page,
    Registry,
    Totals,
    decode_blocks,
    encode_blocks,
    summed,
)

BILLING = BlockKey("billing", "billing-backend")


def series(registry: Registry, pages: list[Page], totals: Totals | None = None) -> dict[tuple[str, ...], Any]:
    """Every sample as (family, label values...) -> value."""
    found: dict[tuple[str, ...], Any] = {}
    for family in Reader(registry, pages, totals or Totals()).families():
        for labels, sample in family.samples:
            key = (family.name, *(value for _, value in labels))
            if family.word is None:
                found[key] = sample
            else:
                assert isinstance(sample, list)
                found |= {(*key, word): count for word, count in zip(family.word.values, sample, strict=True)}
    return found


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.place([BILLING])
    return registry


def test_bounds_are_one_two_and_a_half_and_five_from_half_a_millisecond_to_a_minute() -> None:
    steps = [digit * 10.0**power for power in range(-4, 2) for digit in (1, 2.5, 5)]
    assert list(BOUNDS) == pytest.approx([*(step for step in steps if step >= 0.0005), 60.0])


def test_registry_places_once_and_never_moves() -> None:
    registry = Registry()
    first = registry.place([BILLING])
    other = BlockKey("other", "billing-backend")
    second = registry.place([other])
    assert second[other] == first[BILLING] + ROUTE_SLOTS
    assert BILLING not in second
    assert registry.place([BILLING, other]) == first | second
    assert first[NO_ROUTE] == WORKER_SLOTS


def test_registry_grows_by_whole_pages_and_only_when_full(registry: Registry) -> None:
    before = registry.size
    registry.place([BlockKey("second", "b")])
    assert registry.size == before
    offsets = registry.place([BlockKey(f"r{number}", "b") for number in range(1000)])
    assert registry.size > before
    assert registry.size % os.sysconf("SC_PAGESIZE") == 0
    assert (max(offsets.values()) + ROUTE_SLOTS) * 8 <= registry.size


def test_blocks_survive_the_wire(registry: Registry) -> None:
    assert decode_blocks(encode_blocks(registry.blocks)) == registry.blocks


def test_request_is_counted_by_class_and_duration(registry: Registry) -> None:
    page = Page.create(registry.size)
    route = page.route(registry.blocks[BILLING])
    route.settled(2, 0.02)
    route.settled(5, 99.0)
    route.settled(0, 0.0005)
    route.settled(9, -1.0)
    found = series(registry, [page])
    assert found["ambassador_requests", "billing", "billing-backend", "2xx"] == 1
    assert found["ambassador_requests", "billing", "billing-backend", "5xx"] == 1
    assert found["ambassador_requests", "billing", "billing-backend", "4xx"] == 0
    assert found["ambassador_requests", "billing", "billing-backend", "none"] == 2
    histogram = found["ambassador_request_seconds", "billing", "billing-backend"]
    assert isinstance(histogram, Histogram)
    assert histogram.buckets == (2, 0, 0, 0, 0, 1, *[0] * 11, 1)
    assert histogram.sum == pytest.approx(99.0205)
    page.close()


@given(st.lists(st.floats(min_value=0, max_value=1000), max_size=20))
def test_histogram_counts_what_is_at_most_each_bound(durations: list[float]) -> None:
    registry = Registry()
    page = Page.create(registry.size)
    for seconds in durations:
        page.route(registry.blocks[NO_ROUTE]).settled(2, seconds)
    found = series(registry, [page]).get(("ambassador_request_seconds", "-", "-"), Histogram((0,) * 18, 0.0))
    expected = [sum(seconds <= bound for seconds in durations) for bound in BOUNDS]
    assert cumulative(found.buckets) == [*expected, len(durations)]
    assert found.sum == pytest.approx(sum(durations), abs=1e-6 * max(1, len(durations)))
    page.close()


def test_attempts_and_retries_are_counted_by_word(registry: Registry) -> None:
    page = Page.create(registry.size)
    route = page.route(registry.blocks[BILLING])
    for result in (*RESULTS, "503", "no such word"):
        route.attempt(result, 0.001)
    for reason in (*REASONS, "429", "no such word"):
        route.retry(reason)
    found = series(registry, [page])
    attempts = {key[3]: value for key, value in found.items() if key[0] == "ambassador_attempts"}
    retries = {key[3]: value for key, value in found.items() if key[0] == "ambassador_retries"}
    assert attempts == dict.fromkeys(RESULTS, 1) | {"5xx": 2, "other": 2}
    assert retries == dict.fromkeys(REASONS, 1) | {"4xx": 2, "other": 2}
    assert found["ambassador_upstream_seconds", "billing", "billing-backend"].buckets[1] == len(RESULTS) + 2
    page.close()


def test_blocks_do_not_touch_each_other() -> None:
    registry = Registry()
    keys = [BlockKey(f"r{number}", "u") for number in range(3)]
    offsets = registry.place(keys)
    page = Page.create(registry.size)
    for number, key in enumerate(keys):
        for _ in range(number + 1):
            route = page.route(offsets[key])
            route.settled(5, 100.0)
            route.attempt("other", 100.0)
            route.retry("other")
    found = series(registry, [page])
    for number, key in enumerate(keys):
        assert found["ambassador_requests", key.route, "u", "5xx"] == number + 1
        assert found["ambassador_retries", key.route, "u", "other"] == number + 1
    assert found["ambassador_requests", "-", "-", "5xx"] == 0
    page.close()


def test_quiet_route_shows_its_requests_and_nothing_else(registry: Registry) -> None:
    found = series(registry, [])
    assert found["ambassador_requests", "billing", "billing-backend", "2xx"] == 0
    assert not [key for key in found if key[0] == "ambassador_attempts"]


def test_supervisor_and_worker_see_one_memory(registry: Registry) -> None:
    page = Page.create(registry.size)
    worker = Page.attach(os.dup(page.fd), registry.size)
    worker.route(registry.blocks[BILLING]).settled(2, 0.01)
    assert series(registry, [page])["ambassador_requests", "billing", "billing-backend", "2xx"] == 1
    page.close()
    worker.close()


def test_page_grows_under_a_route_that_is_in_use(registry: Registry) -> None:
    page = Page.create(registry.size)
    worker = Page.attach(os.dup(page.fd), registry.size)
    before = worker.route(registry.blocks[BILLING])
    late = BlockKey("late", "b")
    registry.place([BlockKey(f"r{number}", "b") for number in range(500)])
    offsets = registry.place([late])
    page.grow(registry.size)
    worker.remap(registry.size)
    before.settled(2, 0.01)
    worker.route(registry.blocks[BILLING]).settled(2, 0.01)
    worker.route(offsets[late]).settled(4, 0.01)
    found = series(registry, [page])
    assert found["ambassador_requests", "billing", "billing-backend", "2xx"] == 2
    assert found["ambassador_requests", "late", "b", "4xx"] == 1
    assert page.size == worker.size == registry.size
    page.close()
    worker.close()


def test_page_cannot_shrink(registry: Registry) -> None:
    page = Page.create(registry.size)
    with pytest.raises(PermissionError):
        os.ftruncate(page.fd, 0)
    page.close()


def test_page_that_is_smaller_than_the_registry_is_read_as_far_as_it_goes(registry: Registry) -> None:
    page = Page.create(registry.size)
    page.route(registry.blocks[BILLING]).settled(2, 0.01)
    registry.place([BlockKey(f"r{number}", "b") for number in range(500)])
    assert series(registry, [page])["ambassador_requests", "billing", "billing-backend", "2xx"] == 1
    page.close()


def beat(page: Page, *, lag: float = 0.0, inflight: int = 0, dropped: int = 0) -> None:
    page.worker().beat(
        loop_lag_s=lag, inflight=inflight, client=(inflight, 10), upstream=(inflight, 5), log_dropped=dropped
    )


def test_gauges_are_summed_and_the_lag_is_the_worst(registry: Registry) -> None:
    pages = [Page.create(registry.size) for _ in range(2)]
    beat(pages[0], lag=0.25, inflight=3, dropped=1)
    beat(pages[1], lag=0.05, inflight=4, dropped=2)
    pages[1].worker().client_opened()
    pages[1].worker().upstream_opened()
    found = series(registry, pages)
    assert found["ambassador_inflight",] == 7
    assert found["ambassador_connections", "client", "active"] == 7
    assert found["ambassador_connections", "client", "idle"] == 20
    assert found["ambassador_connections", "upstream", "idle"] == 10
    assert found["ambassador_connections_opened", "client"] == 1
    assert found["ambassador_connections_opened", "upstream"] == 1
    assert found["ambassador_loop_lag_seconds",] == 0.25
    assert found["ambassador_log_dropped",] == 3
    assert found["ambassador_resident_bytes",] > 0
    assert pages[0].heartbeat_ns > 0
    for page in pages:
        page.close()


def test_ended_worker_leaves_its_counters_and_no_gauges(registry: Registry) -> None:
    ended, alive = Page.create(registry.size), Page.create(registry.size)
    totals = Totals()
    for page in (ended, alive):
        beat(page, lag=0.5, inflight=2, dropped=4)
        page.route(registry.blocks[BILLING]).settled(2, 0.01)
    totals.fold(ended)
    ended.close()
    found = series(registry, [alive], totals)
    assert found["ambassador_requests", "billing", "billing-backend", "2xx"] == 2
    assert found["ambassador_log_dropped",] == 8
    assert found["ambassador_inflight",] == 2
    alive.close()
    assert series(registry, [], totals)["ambassador_loop_lag_seconds",] == 0


def test_garbage_collections_are_counted_while_watched(registry: Registry) -> None:
    page = Page.create(registry.size)
    worker = page.worker()
    with worker.watching_garbage():
        gc.collect()
    gc.collect()
    assert series(registry, [page])["ambassador_gc_pauses",] == 1
    page.close()


def test_what_workers_counted_is_added_up_slot_by_slot(registry: Registry) -> None:
    pages = [Page.create(registry.size) for _ in range(3)]
    for number, page in enumerate(pages):
        for slot in range(WORKER_SLOTS, WORKER_SLOTS + 4):
            page.slots[slot] = slot * 2**40 + number
    assert summed([page.slots for page in pages], WORKER_SLOTS, WORKER_SLOTS + 5) == [
        *(3 * slot * 2**40 + 3 for slot in range(WORKER_SLOTS, WORKER_SLOTS + 4)),
        0,
    ]
    end = len(pages[0].slots)
    assert summed([page.slots for page in pages], end - 1, end + 2) == [0, 0, 0]
    assert summed([], 0, 2) == [0, 0]
    for page in pages:
        page.close()


def test_totals_outgrow_the_page_that_was_folded_first(registry: Registry) -> None:
    totals = Totals()
    for keys in ([BILLING], [BlockKey(f"r{number}", "b") for number in range(500)]):
        registry.place(keys)
        page = Page.create(registry.size)
        page.route(registry.blocks[keys[-1]]).settled(2, 0.01)
        page.route(registry.blocks[BILLING]).settled(2, 0.01)
        totals.fold(page)
        page.close()
    found = series(registry, [], totals)
    assert found["ambassador_requests", "billing", "billing-backend", "2xx"] == 3
    assert found["ambassador_requests", "r499", "b", "2xx"] == 1
