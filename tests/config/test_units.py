"""Quantities: what is read, what is refused, and that each is written as it is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.config import units
from ambassador.config.units import Wrong

DURATIONS = [
    ("0", 0.0), ("0s", 0.0), ("250ms", 0.25), ("2s", 2.0), ("1.5s", 1.5), ("5m", 300.0),
    ("1h", 3600.0), ("1d", 86400.0), ("1m30s", 90.0), ("25us", 0.000025),
]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_parse_duration_reads(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5", "a duration needs a unit: '5s' or '5ms'"),
        ("1:30", "write it like '250ms', '2s' or '5m'"),
        ("-2s", "write it like '250ms', '2s' or '5m'"),
        ("2 s", "write it like '250ms', '2s' or '5m'"),
        ("", "write it like '250ms', '2s' or '5m'"),
        ("400d", None),
        ("99999999999999999999d", None),
    ],
)
def test_parse_duration_refuses(text: str, hint: str | None) -> None:
    with pytest.raises(Wrong) as caught:
        units.parse_duration(text)
    assert caught.value.hint == hint


@given(st.floats(min_value=0, max_value=units.LONGEST_S))
def test_duration_round_trip(seconds: float) -> None:
    # A billionth of a microsecond is where the written form ends.
    seconds = round(seconds, 12)
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (0.25, "250ms"), (90.0, "90s"), (300.0, "5m"), (0.0000015, "1.5us")]
)
def test_format_duration_is_short(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("64KiB", 65536), ("1MB", 10**6), ("512B", 512), ("0", 0), ("1.5KiB", 1536), ("2 gib", 2**31)],
)
def test_parse_size_reads(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("64", "a size needs a unit: '64B' or '64KiB'"),
        ("64k", "did you mean '64KiB'?"),
        ("64 apples", "write it like '64KiB', '1MB' or '512B'"),
        ("0.5B", None),
        ("99999999999TiB", None),
    ],
)
def test_parse_size_refuses(text: str, hint: str | None) -> None:
    with pytest.raises(Wrong) as caught:
        units.parse_size(text)
    assert caught.value.hint == hint


@given(st.integers(min_value=0, max_value=2**62))
def test_size_round_trip(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@given(st.integers(min_value=0, max_value=10**9))
def test_percent_round_trip(billionths: int) -> None:
    fraction = billionths / 10**9
    assert units.parse_percent(units.format_percent(fraction)) == fraction


@pytest.mark.parametrize(
    ("text", "hint"),
    [("0.2", "write it like '20%'"), ("20", "write it like '20%'"), ("x", "write it like '20%'")],
)
def test_parse_percent_asks_for_the_sign(text: str, hint: str) -> None:
    with pytest.raises(Wrong) as caught:
        units.parse_percent(text)
    assert caught.value.hint == hint


@given(st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)))
def test_duration_range_round_trip(microseconds: tuple[int, int]) -> None:
    low, high = sorted(value / 10**6 for value in microseconds)
    assert units.parse_duration_range(units.format_duration_range((low, high))) == (low, high)


@pytest.mark.parametrize(
    ("text", "after"),
    [("p95", (0.95, 0.0)), ("p99.9", (0.999, 0.0)), ("p50", (0.5, 0.0)), ("50ms", (0.0, 0.05))],
)
def test_hedge_after_round_trip(text: str, after: tuple[float, float]) -> None:
    assert units.parse_hedge_after(text) == after
    assert units.format_hedge_after(after) == text


@pytest.mark.parametrize("text", ["", "95", "p", "p100", "p49", "0s", "p95%", "95%"])
def test_parse_hedge_after_refuses_what_is_neither(text: str) -> None:
    with pytest.raises(units.Wrong):
        units.parse_hedge_after(text)


def test_parse_duration_range_refuses_the_wrong_order() -> None:
    with pytest.raises(Wrong) as caught:
        units.parse_duration_range("250ms..25ms")
    assert caught.value.hint == "did you mean '25ms..250ms'?"
    with pytest.raises(Wrong):
        units.parse_duration_range("0s..2s")


def test_byte_rate_round_trip() -> None:
    assert units.parse_byte_rate("256B/s") == 256.0
    assert units.format_byte_rate(65536.0) == "64KiB/s"
    for text in ("256B", "256B/m", "256/s"):
        with pytest.raises(Wrong):
            units.parse_byte_rate(text)


@pytest.mark.parametrize(
    ("text", "rate", "written"),
    [
        ("100/s", (100.0, 1), "100/s"),
        ("5000/m", (5000.0, 60), "5000/m"),
        ("20 / h", (20.0, 3600), "20/h"),
        ("1e6/d", (1e6, 86400), "1000000/d"),
        ("0.5/s", (0.5, 1), "0.5/s"),
        ("1.5e3/m", (1500.0, 60), "1500/m"),
    ],
)
def test_rate_is_an_amount_and_a_period(text: str, rate: tuple[float, int], written: str) -> None:
    assert units.parse_rate(text) == rate
    assert units.format_rate(rate) == written
    assert units.parse_rate(written) == rate


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("100", "a rate needs a period: '100/s' or '100/m'"),
        ("100/min", "did you mean '100/m'?"),
        ("7/seconds", "did you mean '7/s'?"),
        ("100 per second", "write it like '100/s', '5000/m', '20/h' or '1e6/d'"),
        ("-1/s", "write it like '100/s', '5000/m', '20/h' or '1e6/d'"),
        ("0/s", "a route can be answered with 'respond' instead"),
        ("1e13/s", None),
        ("1e99/d", None),
    ],
)
def test_rate_refuses_the_rest(text: str, hint: str | None) -> None:
    with pytest.raises(units.Wrong) as caught:
        units.parse_rate(text)
    assert caught.value.hint == hint
