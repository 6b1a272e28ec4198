"""Metrics as text: Prometheus 0.0.4, or OpenMetrics 1.0 for those that ask for it by `Accept`.

The two differ in how a counter's family is named, in the type `info`, in how a bound is written, and in the last line.
Names and help texts are constants of this program; only label values, which the config holds, need escaping. Written by
hand since `prometheus_client` renders its own registry only; it is the second opinion in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from ambassador.observe.metrics import BOUNDS, Family, Histogram, Labels, cumulative

PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_LE: Final = (*(repr(bound) for bound in BOUNDS), "+Inf")


def render(families: Iterable[Family], accept: str = "") -> tuple[bytes, str]:
    """The text and its content type. `accept` is the request's header; empty gives the Prometheus format."""
    openmetrics = wants_openmetrics(accept)
    lines: list[str] = []
    for family in families:
        lines.extend(_family(family, openmetrics=openmetrics))
    if openmetrics:
        lines.append("# EOF")
    lines.append("")
    # A lone surrogate in a name, which no loader lets through, must not cost the whole scrape.
    return "\n".join(lines).encode("utf-8", "replace"), OPENMETRICS if openmetrics else PROMETHEUS


def wants_openmetrics(accept: str) -> bool:
    """Whether `Accept` names OpenMetrics with a weight over 0 and not under that of `text/plain`."""
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        if kind in weights:
            weights[kind] = max(weights[kind], _weight(parameters))
    return weights["application/openmetrics-text"] > 0 and (
        weights["application/openmetrics-text"] >= weights["text/plain"]
    )


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _family(family: Family, *, openmetrics: bool) -> Iterator[str]:
    suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
    header = family.name if openmetrics else family.name + suffix
    kind = family.kind if openmetrics or family.kind != "info" else "gauge"
    yield f"# HELP {header} {family.help}"
    yield f"# TYPE {header} {kind}"
    for labels, value in family.samples:
        if isinstance(value, Histogram):
            yield from _histogram(family.name, labels, value)
        else:
            yield f"{family.name}{suffix}{_labels(labels)} {value!r}"


def _histogram(name: str, labels: Labels, value: Histogram) -> Iterator[str]:
    counts = cumulative(value.buckets)
    inner = _pairs(labels)
    lead = inner + "," if inner else ""
    for bound, count in zip(_LE, counts, strict=True):
        yield f'{name}_bucket{{{lead}le="{bound}"}} {count}'
    yield f"{name}_count{_labels(labels)} {counts[-1]}"
    yield f"{name}_sum{_labels(labels)} {value.sum!r}"


def _labels(labels: Labels) -> str:
    return f"{{{_pairs(labels)}}}" if labels else ""


def _pairs(labels: Labels) -> str:
    return ",".join(f'{name}="{escape(value)}"' for name, value in labels)


def escape(value: str) -> str:
    """A label's value between its quotes: backslash, quote and line feed escaped, as both formats want it."""
    return value.translate(_ESCAPES)
