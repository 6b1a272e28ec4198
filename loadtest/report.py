"""From measurements to medians, ratios, targets, a table and JSON. Pure: no clock, no files.

A figure is the median over the rounds that count; a ratio is the ambassador's median divided by the peer's, so below
1 the ambassador is cheaper. The spread is the distance between the largest and the smallest round in parts of the
median.
"""

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from loadtest.compare import MAX_OTHERS, Beside, Load, Measurement, Memory

SUBJECT = "ambassador"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Target:
    """What must hold: the ambassador's figure is at most `limit` (times the peer's, where there is a peer)."""

    scenario: str
    figure: str
    peer: str | None
    limit: float
    unit: str = ""


TARGETS: tuple[Target, ...] = (
    Target("plain", "cpu_us", "envoy", 0.7),
    Target("post4k", "cpu_us", "envoy", 0.7),
    Target("manyroutes", "cpu_us", "envoy", 0.7),
    Target("body64k", "cpu_us", "envoy", 0.8),
    Target("body1m", "cpu_us", "envoy", 1.0),
    Target("light", "cpu_us", "envoy", 0.9),
    Target("policies", "cpu_us", "envoy", 0.7),
    Target("policies-redis", "cpu_us", "envoy", 0.7),
    Target("plain", "cpu_us", "haproxy", 2.2),
    Target("tls", "cpu_us", "envoy", 0.85),
    Target("bulk", "p50_ratio", None, 1.5, "× alone"),
    Target("idle", "per_connection_kib", None, 8.0, "KiB"),
    Target("idle", "worker_kib", None, 60 * 1024.0, "KiB"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The rounds of one proxy in one scenario: medians by name of the figure, and how many rounds count."""

    scenario: str
    proxy: str
    rounds: int
    counted: int
    medians: Mapping[str, float]
    spread: float
    noisy: bool
    problems: Sequence[str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target with what was measured; `value` None: it could not be told."""

    target: Target
    value: float | None

    @property
    def held(self) -> bool | None:
        """Whether the target holds, None when it could not be told."""
        return None if self.value is None else self.value <= self.target.limit


_LOAD_FIGURES = ("cpu_us", "user_us", "system_us", "rate", "p50_us", "p99_us", "busy", "others")
_MEMORY_FIGURES = ("per_connection_kib", "worker_kib", "tree_kib")
_BESIDE_FIGURES = ("p50_ratio", "alone_p50_us", "beside_p50_us", "bulk_mb_s", "others")
_FIGURES: Mapping[type[Measurement], tuple[str, ...]] = {
    Load: _LOAD_FIGURES,
    Memory: _MEMORY_FIGURES,
    Beside: _BESIDE_FIGURES,
}
"""By the kind of measurement, the main figure first."""


def summarise(measurements: Iterable[Measurement]) -> list[Summary]:
    """One summary per scenario and proxy, in the order in which they first appear."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.scenario, measurement.proxy), []).append(measurement)
    # Rounds rotate the proxies; the first round has them in their own order.
    return [_summary(scenario, proxy, rounds) for (scenario, proxy), rounds in groups.items()]


def _summary(scenario: str, proxy: str, rounds: Sequence[Measurement]) -> Summary:
    counted = [measurement for measurement in rounds if measurement.problem is None]
    figures = _FIGURES[type(rounds[0])]
    medians = (
        {name: statistics.median(getattr(m, name) for m in counted) for name in figures} if counted else {}
    )
    main = [float(getattr(m, figures[0])) for m in counted]
    middle = medians.get(figures[0], 0.0)
    return Summary(
        scenario=scenario,
        proxy=proxy,
        rounds=len(rounds),
        counted=len(counted),
        medians=medians,
        spread=(max(main) - min(main)) / middle if middle > 0 else 0.0,
        noisy=any(not isinstance(m, Memory) and m.others > MAX_OTHERS for m in counted),
        problems=[f"round {m.round}: {m.problem}" for m in rounds if m.problem is not None],
    )


def find(summaries: Iterable[Summary], scenario: str, proxy: str, figure: str) -> float | None:
    """A median, None when it was not measured."""
    for summary in summaries:
        if (summary.scenario, summary.proxy) == (scenario, proxy):
            return summary.medians.get(figure)
    return None


def ratios(summaries: Sequence[Summary], *, subject: str = SUBJECT) -> dict[str, dict[str, float]]:
    """The subject's main figure divided by each peer's: scenario -> peer -> ratio."""
    result: dict[str, dict[str, float]] = {}
    for summary in summaries:
        figure = main_figure(summary)
        mine = find(summaries, summary.scenario, subject, figure)
        theirs = summary.medians.get(figure)
        if summary.proxy != subject and mine is not None and theirs:
            result.setdefault(summary.scenario, {})[summary.proxy] = mine / theirs
    return result


def main_figure(summary: Summary) -> str:
    """The figure that is compared: CPU time; memory in the idle scenario, the rise of the p50 in the bulk one."""
    return next((figures[0] for figures in _FIGURES.values() if figures[0] in summary.medians), "cpu_us")


def verdicts(summaries: Sequence[Summary], *, scenarios: Iterable[str]) -> list[Verdict]:
    """The targets of the scenarios that were run, with what was measured."""
    chosen = set(scenarios)
    return [Verdict(target, _value(summaries, target)) for target in TARGETS if target.scenario in chosen]


def _value(summaries: Sequence[Summary], target: Target) -> float | None:
    mine = find(summaries, target.scenario, SUBJECT, target.figure)
    if target.peer is None or mine is None:
        return mine
    theirs = find(summaries, target.scenario, target.peer, target.figure)
    return mine / theirs if theirs else None


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0, 1)) -> str:
    """A Markdown table with aligned columns: those in `left` (by number) to the left, the others to the right."""
    cells = [list(header), *([*row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    marks = [
        "-" * width if column in left else "-" * (width - 1) + ":" for column, width in enumerate(widths)
    ]
    return "\n".join([line(cells[0]), f"| {' | '.join(marks)} |", *map(line, cells[1:])])


def line(measurement: Measurement) -> str:
    """One measured turn, for the progress output."""
    start = f"{measurement.scenario}, round {measurement.round}, {measurement.proxy}:"
    if measurement.problem is not None:
        return f"{start} INVALID, {measurement.problem}"
    if isinstance(measurement, Memory):
        return (
            f"{start} {measurement.per_connection_kib:.1f} KiB/connection, "
            f"worker {measurement.worker_kib / 1024:.1f} MiB"
        )
    if isinstance(measurement, Beside):
        return (
            f"{start} p50 {microseconds(measurement.alone_p50_us)} µs alone, "
            f"{microseconds(measurement.beside_p50_us)} µs beside {measurement.bulk_mb_s:.0f} MB/s, "
            f"{measurement.p50_ratio:.2f} times"
        )
    return f"{start} {microseconds(measurement.cpu_us)} µs CPU, {measurement.rate:,.0f} requests/s"


def machine_line(machine: Mapping[str, object]) -> str:
    """What it was measured on, in one paragraph; `machine` as `machine.describe` returns it."""
    versions = machine["versions"]
    assert isinstance(versions, dict)
    programs = "; ".join(f"{name}: {version or 'unknown version'}" for name, version in versions.items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_mib']} MiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, commit {machine['commit']}, {machine['date']}. {programs}."
    )


def text(measurements: Sequence[Measurement]) -> str:
    """Everything for people: the tables, the targets and what went wrong."""
    summaries = summarise(measurements)
    scenarios = list(dict.fromkeys(summary.scenario for summary in summaries))
    kinds = {m.scenario: type(m) for m in measurements}
    parts = []
    for kind, show in _TABLES.items():
        if chosen := [summary for summary in summaries if kinds[summary.scenario] is kind]:
            parts.append(show(chosen))
    held = verdicts(summaries, scenarios=scenarios)
    if held and any(summary.proxy == SUBJECT for summary in summaries):
        parts.append(_target_table(held))
    notes = [f"{s.scenario}, {s.proxy}: {problem}" for s in summaries for problem in s.problems]
    notes += [
        f"{s.scenario}, {s.proxy}: other programs used more than {MAX_OTHERS:.0%} of the proxy's core"
        for s in summaries
        if s.noisy
    ]
    if notes:
        parts.append("\n".join(f"! {note}" for note in notes))
    return "\n\n".join(parts)


def microseconds(value: float) -> str:
    """A time per request: three significant digits below 100 us, whole microseconds above."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _cell(summary: Summary, figure: str, show: Callable[[float], str]) -> str:
    value = summary.medians.get(figure)
    return "-" if value is None else show(value)


def _share(value: float) -> str:
    return f"{value:.0%}"


def _ratio(relations: Mapping[str, Mapping[str, float]], summary: Summary) -> str:
    value = relations.get(summary.scenario, {}).get(summary.proxy)
    return "-" if value is None else f"{value:.2f}"


def _counted(summary: Summary) -> str:
    return f"{summary.counted}/{summary.rounds}"


def _load_table(summaries: Sequence[Summary]) -> str:
    relations = ratios(summaries)
    columns: list[tuple[str, Callable[[Summary], str]]] = [
        ("user µs", lambda s: _cell(s, "user_us", microseconds)),
        ("sys µs", lambda s: _cell(s, "system_us", microseconds)),
        ("CPU µs/request", lambda s: _cell(s, "cpu_us", microseconds)),
        (f"{SUBJECT} ÷ this", lambda s: _ratio(relations, s)),
        ("spread", lambda s: _share(s.spread)),
        ("requests/s", lambda s: _cell(s, "rate", "{:,.0f}".format)),
        ("p50 µs", lambda s: _cell(s, "p50_us", microseconds)),
        ("p99 µs", lambda s: _cell(s, "p99_us", microseconds)),
        ("core busy", lambda s: _cell(s, "busy", _share)),
        ("others", lambda s: _cell(s, "others", _share)),
        ("rounds", _counted),
    ]
    return _columns_table(summaries, columns)


def _memory_table(summaries: Sequence[Summary]) -> str:
    relations = ratios(summaries)

    def mebibytes(kib: float) -> str:
        return f"{kib / 1024:.1f}"

    columns: list[tuple[str, Callable[[Summary], str]]] = [
        ("KiB/idle connection", lambda s: _cell(s, "per_connection_kib", "{:.1f}".format)),
        (f"{SUBJECT} ÷ this", lambda s: _ratio(relations, s)),
        ("spread", lambda s: _share(s.spread)),
        ("worker at rest MiB", lambda s: _cell(s, "worker_kib", mebibytes)),
        ("all processes MiB", lambda s: _cell(s, "tree_kib", mebibytes)),
        ("rounds", _counted),
    ]
    return _columns_table(summaries, columns)


def _beside_table(summaries: Sequence[Summary]) -> str:
    columns: list[tuple[str, Callable[[Summary], str]]] = [
        ("p50 µs alone", lambda s: _cell(s, "alone_p50_us", microseconds)),
        ("p50 µs beside the download", lambda s: _cell(s, "beside_p50_us", microseconds)),
        ("beside ÷ alone", lambda s: _cell(s, "p50_ratio", "{:.2f}".format)),
        ("spread", lambda s: _share(s.spread)),
        ("download MB/s", lambda s: _cell(s, "bulk_mb_s", "{:.0f}".format)),
        ("others", lambda s: _cell(s, "others", _share)),
        ("rounds", _counted),
    ]
    return _columns_table(summaries, columns)


_TABLES: Mapping[type[Measurement], Callable[[Sequence[Summary]], str]] = {
    Load: _load_table,
    Beside: _beside_table,
    Memory: _memory_table,
}


def _columns_table(
    summaries: Sequence[Summary], columns: Sequence[tuple[str, Callable[[Summary], str]]]
) -> str:
    header = ["scenario", "proxy", *(title for title, _ in columns)]
    return table(header, ([s.scenario, s.proxy, *(show(s) for _, show in columns)] for s in summaries))


def _target_table(held: Iterable[Verdict]) -> str:
    words = {True: "held", False: "MISSED", None: "not measured"}
    rows = []
    for verdict in held:
        target = verdict.target
        measured = "-" if verdict.value is None else f"{verdict.value:,.2f}"
        against = (
            f"{target.limit:,.2f} × {target.peer}" if target.peer else f"{target.limit:,.9g} {target.unit}"
        )
        rows.append([target.scenario, target.figure, against, measured, words[verdict.held]])
    return table(["target", "figure", "at most", "measured", "verdict"], rows)


def document(
    measurements: Sequence[Measurement], *, machine: Mapping[str, object], options: Mapping[str, object]
) -> dict[str, object]:
    """Everything for programs; `machine` and `options` go in as they are."""
    summaries = summarise(measurements)
    scenarios = list(dict.fromkeys(summary.scenario for summary in summaries))
    return {
        "schema": SCHEMA,
        "machine": dict(machine),
        "options": dict(options),
        "summaries": [asdict(summary) for summary in summaries],
        "ratios": ratios(summaries),
        "targets": [
            {**asdict(verdict.target), "value": verdict.value, "held": verdict.held}
            for verdict in verdicts(summaries, scenarios=scenarios)
        ],
        "measurements": [_plain(measurement) for measurement in measurements],
    }


def _plain(measurement: Measurement) -> dict[str, object]:
    derived = {
        name: getattr(measurement, name) for name in ("cpu_us", "p50_ratio") if hasattr(measurement, name)
    }
    return {**asdict(measurement), **derived}
