from __future__ import annotations

from typing import Any

from ambassador.control.sums import sum_upstreams


def answer(inflight: int, idle: int, ewma_ms: float | None) -> list[dict[str, Any]]:
    connections = {"idle": idle, "active": 1}
    endpoint = {"url": "http://a:1", "inflight": inflight, "ewma_ms": ewma_ms, "connections": connections}
    return [{"name": "a", "endpoints": [endpoint]}]


def test_counts_are_added_and_latencies_averaged() -> None:
    (upstream,) = sum_upstreams([answer(1, 2, 4.0), answer(2, 3, 8.0), answer(0, 0, None)])
    assert upstream["endpoints"] == [
        {"url": "http://a:1", "inflight": 3, "ewma_ms": 6.0, "connections": {"idle": 5, "active": 3}}
    ]


def test_no_answers_are_no_upstreams() -> None:
    assert sum_upstreams([]) == []
