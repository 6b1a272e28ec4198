"""What the workers say of their upstreams, as one list. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_SUMMED = ("inflight",)
_SUMMED_CONNECTIONS = ("idle", "active")


def sum_upstreams(answers: Iterable[Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One list of upstreams from each worker's: counts are added, latencies averaged, the rest is the first one's."""
    upstreams: dict[str, dict[str, Any]] = {}
    endpoints: dict[tuple[str, str], dict[str, Any]] = {}
    latencies: dict[tuple[str, str], list[float]] = {}
    for answer in answers:
        for upstream in answer:
            name = upstream["name"]
            first = upstreams.setdefault(name, {"name": name, "endpoints": []})
            for endpoint in upstream["endpoints"]:
                key = (name, endpoint["url"])
                latencies.setdefault(key, []).append(endpoint.get("ewma_ms"))
                if key in endpoints:
                    _add(endpoints[key], endpoint)
                else:
                    endpoints[key] = endpoint
                    first["endpoints"].append(endpoint)
    for key, endpoint in endpoints.items():
        endpoint["ewma_ms"] = _mean(latencies[key])
    return list(upstreams.values())


def _add(total: dict[str, Any], other: dict[str, Any]) -> None:
    for name in _SUMMED:
        total[name] += other[name]
    for name in _SUMMED_CONNECTIONS:
        total["connections"][name] += other["connections"][name]


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those workers that have measured."""
    known = [value for value in values if value]
    return round(sum(known) / len(known), 3) if known else None
