"""What a scenario found: figures for JSON, a table for people, and whether what should hold did."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest import report


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that should hold. `found` and `wanted` are as they are printed."""

    what: str
    wanted: str
    found: str
    held: bool


@dataclass(slots=True)
class Findings:
    """Of one scenario: `figures` has a mapping for each row of the table."""

    scenario: str
    header: tuple[str, ...]
    left: int = 1
    """So many columns of the table are words."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def add(self, figures: dict[str, Any], *cells: str) -> None:
        """A row."""
        self.figures.append(figures)
        self.rows.append(list(cells))

    def check(self, what: str, found: float, most: float, unit: str = "", *, least: bool = False) -> None:
        """`found` is to be at most `most`, or with `least` at least that."""
        held = found >= most if least else found <= most
        sign = "≥" if least else "≤"
        self.checks.append(Check(what, f"{sign} {most:.4g}{unit}", f"{found:.4g}{unit}", held))


def text(findings: Findings) -> str:
    """Both tables, as Markdown."""
    parts = [report.table(findings.header, findings.rows, left=range(findings.left))]
    if findings.checks:
        rows = [
            [check.what, check.wanted, check.found, "yes" if check.held else "NO"]
            for check in findings.checks
        ]
        parts.append(report.table(["what should hold", "wanted", "found", "held"], rows, left=(0,)))
    return "\n\n".join(parts)


def document(all_findings: Iterable[Findings], machine: dict[str, object]) -> dict[str, object]:
    """For JSON."""
    return {
        "schema": 1,
        "machine": machine,
        "scenarios": [
            {
                "name": findings.scenario,
                "figures": findings.figures,
                "checks": [asdict(check) for check in findings.checks],
            }
            for findings in all_findings
        ],
    }


def all_held(all_findings: Sequence[Findings]) -> bool:
    return all(check.held for findings in all_findings for check in findings.checks)
