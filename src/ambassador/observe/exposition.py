"""Metrics as text: Prometheus 0.0.4, or OpenMetrics 1.0 for those that ask for it by `Accept`.

The two differ in how a counter's family is named, in the type `info`, in how a bound is written, and in the last line.
Names and help texts are constants of this program; only label values, which the config holds, need escaping. Written by
hand since `prometheus_client` renders its own registry only; it is the second opinion in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from ambassador.observe.families import Family, Histogram, Labels, Word, cumulative
from ambassador.observe.metrics import BOUNDS

PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_LE: Final = (*(repr(bound) for bound in BOUNDS), "+Inf")


def render(families: Iterable[Family], accept: str = "") -> tuple[Iterator[bytes], str]:
    """The text, in pieces of some lines each, and its content type. `accept` is the request's; empty: Prometheus."""
    openmetrics = wants_openmetrics(accept)
    return _lines(families, openmetrics=openmetrics), OPENMETRICS if openmetrics else PROMETHEUS


def _lines(families: Iterable[Family], *, openmetrics: bool) -> Iterator[bytes]:
    for family in families:
        for lines in _family(family, openmetrics=openmetrics):
            # A lone surrogate in a name, which no loader lets through, must not cost the whole scrape.
            yield lines.encode("utf-8", "replace")
    if openmetrics:
        yield b"# EOF\n"


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
    yield f"# HELP {header} {family.help}\n# TYPE {header} {kind}\n"
    name = family.name + suffix
    write = _word_writer(name, family.word) if family.word is not None else _writer(family.name, name)
    for labels, value in family.samples:
        yield write(_pairs(labels), value)


# Most of the text is the same for every route: it is formed once a family, and each sample is one format and one
# replacement. The labels are put in last, so nothing in them is taken for something else.
_LABELS: Final = "\0"


def _with_labels(text: str, pairs: str) -> str:
    if not pairs:
        return text.replace(f"{{{_LABELS}}}", "").replace(f"{_LABELS},", "")
    return text.replace(_LABELS, pairs)


def _writer(family: str, name: str) -> Callable[[str, Any], str]:
    buckets = "".join(f'{family}_bucket{{{_LABELS},le="{bound}"}} %d\n' for bound in _LE)
    histogram = f"{buckets}{family}_count{{{_LABELS}}} %d\n{family}_sum{{{_LABELS}}} %r\n"

    def write(pairs: str, value: float | Histogram) -> str:
        if not isinstance(value, Histogram):
            return _with_labels(f"{name}{{{_LABELS}}} {value!r}\n", pairs)
        counts = cumulative(value.buckets)
        return _with_labels(histogram % (*counts, counts[-1], value.sum), pairs)

    return write


def _word_writer(name: str, word: Word) -> Callable[[str, Any], str]:
    lines = [f'{name}{{{_LABELS},{word.name}="{value}"}} %d\n' for value in word.values]
    usual = "".join(lines[word.rare :])

    def write(pairs: str, counts: Sequence[int]) -> str:
        rare = [line % count for line, count in zip(lines[: word.rare], counts, strict=False) if count]
        return _with_labels("".join([*rare, usual % tuple(counts[word.rare :])]), pairs)

    return write


def _pairs(labels: Labels) -> str:
    return ",".join(f'{name}="{escape(value)}"' for name, value in labels)


def escape(value: str) -> str:
    """A label's value between its quotes: backslash, quote and line feed escaped, as both formats want it."""
    return value.translate(_ESCAPES)
