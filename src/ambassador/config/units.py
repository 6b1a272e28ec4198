"""Quantities as people write them: durations, sizes, percents and ranges. Pure; text to base units and back.

Each parser takes the text of one value and raises `Wrong` with a problem that names the right form. A number without a
unit is refused, since its reader and its writer may think of different units; only 0 needs none. What a parser
returns, its formatter writes in the shortest exact form, and that is read back as the same value.
"""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = [
    "Wrong",
    "format_byte_rate",
    "format_duration",
    "format_duration_range",
    "format_hedge_after",
    "format_percent",
    "format_rate",
    "format_size",
    "parse_byte_rate",
    "parse_duration",
    "parse_duration_range",
    "parse_hedge_after",
    "parse_percent",
    "parse_rate",
    "parse_size",
]


class Wrong(ValueError):
    """A value is not what its place needs. `problem` says so in words, `hint` what to write, or is None."""

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


_SECONDS = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
    "us": Decimal("0.000001"),
}
_BYTES = {
    "TiB": 2**40,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "KB": 10**3,
    "B": 1,
}
_BYTES_ANY_CASE = {unit.lower(): factor for unit, factor in _BYTES.items()}

# Twenty digits hold every sensible quantity and keep a hostile one from costing time.
_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,20})?"
_DURATION = re.compile(rf"(?:{_NUMBER}(?:us|ms|s|m|h|d))+", re.ASCII)
_DURATION_PART = re.compile(rf"({_NUMBER})(us|ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER}) ?([A-Za-z]{{1,3}})", re.ASCII)
_PERCENT = re.compile(rf"({_NUMBER}) ?%", re.ASCII)
_BARE = re.compile(rf"{_NUMBER}", re.ASCII)

LONGEST_S = 366 * 86400.0
"""No timeout is longer than a year; what is, is a slip of units."""


def parse_duration(text: str) -> float:
    """Seconds of `250ms`, `2s`, `1m30s`, `0`; from 0 to a year."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise Wrong(f"{text!r} is not a duration", _duration_hint(text))
    seconds = float(sum(Decimal(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)))
    if seconds > LONGEST_S:
        raise Wrong(f"{text!r} is longer than a year")
    return seconds


def _duration_hint(text: str) -> str:
    if _BARE.fullmatch(text):
        return f"a duration needs a unit: '{text}s' or '{text}ms'"
    return "write it like '250ms', '2s' or '5m'"


def format_duration(seconds: float) -> str:
    """The shortest exact text of a duration in seconds: 0.25 is `250ms`, 90 is `90s`."""
    exact = Decimal(repr(seconds))
    if not exact:
        return "0s"
    for unit, factor in _SECONDS.items():
        count = exact / factor
        if count == count.to_integral_value() and count * factor == exact:
            return f"{int(count)}{unit}"
    return f"{exact / _SECONDS['us']:f}us"


def parse_duration_range(text: str) -> tuple[float, float]:
    """Seconds of both ends of `25ms..250ms`; one duration is both ends. 0 < low <= high."""
    low_text, dots, high_text = text.partition("..")
    low = parse_duration(low_text.strip())
    high = parse_duration(high_text.strip()) if dots else low
    if low <= 0:
        raise Wrong(f"{text!r} must begin above 0")
    if high < low:
        raise Wrong(
            f"{text!r} ends before it begins", f"did you mean '{high_text.strip()}..{low_text.strip()}'?"
        )
    return low, high


def format_duration_range(ends: tuple[float, float]) -> str:
    """`25ms..250ms`, or one duration if both ends are the same."""
    low, high = ends
    return format_duration(low) if low == high else f"{format_duration(low)}..{format_duration(high)}"


_PERCENTILE = re.compile(r"p([0-9]{1,2}(?:\.[0-9]{1,3})?)", re.ASCII)


def parse_hedge_after(text: str) -> tuple[float, float]:
    """A share and seconds, one of which is 0: `p95` is (0.95, 0), `50ms` is (0, 0.05)."""
    match = _PERCENTILE.fullmatch(text)
    if match is not None:
        share = float(Decimal(match[1]) / 100)
        if share < 0.5:
            raise Wrong(f"{text!r} is below the median", "write it like 'p95'")
        return share, 0.0
    try:
        seconds = parse_duration(text)
    except Wrong:
        raise Wrong(
            f"{text!r} is neither a percentile nor a duration", "write it like 'p95' or '50ms'"
        ) from None
    if not seconds:
        raise Wrong(f"{text!r} must be more than nothing")
    return 0.0, seconds


def format_hedge_after(after: tuple[float, float]) -> str:
    """`p95`, or a duration."""
    share, seconds = after
    return f"p{(Decimal(repr(share)) * 100).normalize():f}" if share else format_duration(seconds)


def parse_size(text: str) -> int:
    """Bytes of `64KiB`, `1MB`, `512B`, `0`. KiB is 1024 bytes, KB is 1000."""
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text)
    factor = _BYTES_ANY_CASE.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise Wrong(f"{text!r} is not a size", _size_hint(text))
    size = Decimal(match[1]) * factor
    if size != size.to_integral_value():
        raise Wrong(f"{text!r} is not a whole number of bytes")
    if size >= 2**63:
        raise Wrong(f"{text!r} is too large")
    return int(size)


def _size_hint(text: str) -> str:
    if _BARE.fullmatch(text):
        return f"a size needs a unit: '{text}B' or '{text}KiB'"
    short = re.fullmatch(rf"({_NUMBER}) ?([KMGT])", text, re.ASCII | re.IGNORECASE)
    if short:
        return f"did you mean '{short[1]}{short[2].upper()}iB'?"
    return "write it like '64KiB', '1MB' or '512B'"


def format_size(size: int) -> str:
    """The shortest exact text of a size in bytes: 65536 is `64KiB`."""
    exact = {unit: size // factor for unit, factor in _BYTES.items() if size and size % factor == 0}
    if not exact:
        return "0B"
    unit = min(exact, key=lambda name: exact[name])
    return f"{exact[unit]}{unit}"


def parse_byte_rate(text: str) -> float:
    """Bytes a second of `256B/s`."""
    amount, slash, period = text.partition("/")
    if not slash or period.strip() != "s":
        raise Wrong(f"{text!r} is not a transfer rate", "write it like '256B/s' or '64KiB/s'")
    return float(parse_size(amount.strip()))


def format_byte_rate(rate: float) -> str:
    """`256B/s`."""
    return f"{format_size(int(rate))}/s"


_RATE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?(?:[eE]\+?[0-9]{1,2})?) ?/ ?([A-Za-z0-9]+)", re.ASCII)
_PERIODS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PERIOD_WORDS = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "day": "d"}
MOST_PER_PERIOD = 10**12
"""Beyond that nothing is limited."""


def parse_rate(text: str) -> tuple[float, int]:
    """The amount and the period's seconds of `100/s`, `5000/m`, `20/h`, `1e6/d`; the amount is more than 0."""
    match = _RATE.fullmatch(text)
    period = _PERIODS.get(match[2]) if match else None
    if match is None or period is None:
        raise Wrong(f"{text!r} is not a rate", _rate_hint(text, match[2] if match else ""))
    amount = Decimal(match[1])
    if not amount:
        raise Wrong(f"{text!r} lets nothing through", "a route can be answered with 'respond' instead")
    if amount > MOST_PER_PERIOD:
        raise Wrong(f"{text!r} is no limit: at most 1e12")
    return float(amount), period


def _rate_hint(text: str, period: str) -> str:
    word = _PERIOD_WORDS.get(period.lower().removesuffix("s")) or _PERIOD_WORDS.get(period.lower())
    if word is not None:
        return f"did you mean '{text.partition('/')[0].strip()}/{word}'?"
    if _BARE.fullmatch(text):
        return f"a rate needs a period: '{text}/s' or '{text}/m'"
    return "write it like '100/s', '5000/m', '20/h' or '1e6/d'"


def format_rate(rate: tuple[float, int]) -> str:
    """`100/s`."""
    amount, period = rate
    unit = next(unit for unit, seconds in _PERIODS.items() if seconds == period)
    return f"{Decimal(repr(amount)).normalize():f}/{unit}"


def parse_percent(text: str) -> float:
    """The fraction of `20%`: 0.2. Bounds are the caller's."""
    match = _PERCENT.fullmatch(text)
    if match is None:
        raise Wrong(f"{text!r} is not a percentage", _percent_hint(text))
    return float(Decimal(match[1]) / 100)


def _percent_hint(text: str) -> str:
    if not _BARE.fullmatch(text):
        return "write it like '20%'"
    number = Decimal(text)
    return f"write it like '{number * 100 if number <= 1 else number:f}%'".replace(".00%", "%").replace(
        ".0%", "%"
    )


def format_percent(fraction: float) -> str:
    """`20%` of 0.2."""
    text = f"{Decimal(repr(fraction)) * 100:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"
