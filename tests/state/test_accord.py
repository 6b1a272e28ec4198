"""Which terms hold while configs differ, and how little of them travels."""

from __future__ import annotations

import msgspec
import pytest

from ambassador.state.accord import (
    MOST_NAMES,
    Accord,
    Told,
    count_of,
    key_of,
    name_of,
    parts_of,
    place_of,
    read_part,
)
from ambassador.state.protocol import MAX_KEY_BYTES, MAX_VALUE_BYTES, Beat, encode

LOW: Told = {("r/limit", 0): (50.0, 100.0), ("q/limit", 86400): (10.0, 864000.0)}
HIGH: Told = {("r/limit", 0): (100.0, 60.0), ("s/limit", 0): (1.0, 1.0)}


def many(count: int) -> Told:
    return {(f"route-of-some-length-{number}/limit", 0): (100.0, 100.0 + number) for number in range(count)}


def tell(accord: Accord, told: Told) -> str:
    """Everything there is to know of other terms; their name."""
    parts = parts_of(told)
    name = name_of(parts)
    for part, value in enumerate(parts):
        accord.hear_part(name, part, value)
    return name


def of(told: Told) -> Accord:
    accord = Accord()
    accord.have(told, alone=True)
    return accord


def test_name_is_the_same_for_equal_terms_in_any_order() -> None:
    turned = dict(reversed(LOW.items()))
    assert name_of(parts_of(LOW)) == name_of(parts_of(turned))
    assert name_of(parts_of(LOW)) != name_of(parts_of(HIGH))
    assert name_of(parts_of({})) == ""


@pytest.mark.parametrize("count", [1, 500, 3000])
def test_parts_hold_all_terms_and_each_is_a_value_that_stores_take(count: int) -> None:
    parts = parts_of(many(count))
    assert max(map(len, parts)) <= MAX_VALUE_BYTES
    together: Told = {}
    for part in parts:
        together |= read_part(part)
    assert together == many(count)


def test_beat_is_as_long_with_500_limits_as_with_one() -> None:
    names = [name_of(parts_of(many(count))) for count in (1, 500)]
    one, many_limits = (encode(Beat("replica", 0, terms=name)) for name in names)
    assert len(one) == len(many_limits) < len(encode(Beat("replica", 0))) + 40


def test_keys_of_parts_are_known_again() -> None:
    name = name_of(parts_of(LOW))
    assert count_of(name) == 1
    assert len(key_of(name, 0)) < MAX_KEY_BYTES
    assert place_of(key_of(name, 0)) == (name, 0)


@pytest.mark.parametrize(
    "key",
    ["", "cooldown:x:y", "terms:", "terms:x:0", f"terms:{'0' * 32}.1:1", f"terms:{'0' * 32}.1:-1",
     f"terms:{'0' * 32}.1:²", f"terms:{'0' * 32}.99:0", f"terms:{'0' * 32}.1"],
)  # fmt: skip
def test_keys_of_others_are_none_of_ours(key: str) -> None:
    assert place_of(key) is None


@pytest.mark.parametrize("value", [b"", b"\xc1", msgspec.msgpack.encode({"a": 1}), b"\x91\x01"])
def test_part_that_is_none_tells_nothing(value: bytes) -> None:
    assert read_part(value) == {}


@pytest.mark.parametrize(
    "entry",
    [("a", 0, 0.0, 5.0), ("a", 0, -1.0, 5.0), ("a", 0, float("nan"), 5.0), ("a", 0, 1.0, 0.5),
     ("a", 0, float("inf"), 5.0), ("a", -1, 1.0, 5.0), ("a", 0, 1.0, float("nan"))],
)  # fmt: skip
def test_numbers_that_are_no_limit_are_left_out(entry: tuple[str, int, float, float]) -> None:
    assert read_part(msgspec.msgpack.encode([entry, ("b", 0, 1.0, 2.0)])) == {("b", 0): (1.0, 2.0)}


def test_own_terms_hold_where_nobody_has_others() -> None:
    accord = of(LOW)
    accord.hear_names([accord.name])
    assert accord.missing() == []
    assert accord.lowest(("r/limit", 0)) == (50, 100)


def test_of_each_number_the_lowest_holds_in_all_replicas() -> None:
    first, second = of(LOW), of(HIGH)
    for accord, told in ((first, HIGH), (second, LOW)):
        accord.hear_names([tell(accord, told), accord.name])
        assert accord.missing() == []
        assert accord.lowest(("r/limit", 0)) == (50, 60)
    assert first.lowest(("q/limit", 86400)) == LOW["q/limit", 86400]
    assert second.lowest(("s/limit", 0)) == (1, 1)


def test_limit_of_another_window_is_another_limit() -> None:
    accord = of({("r/limit", 0): (100.0, 100.0)})
    accord.hear_names([tell(accord, {("r/limit", 60): (1.0, 60.0)})])
    assert accord.lowest(("r/limit", 0)) == (100, 100)


def test_name_that_is_not_known_is_asked_for_until_it_is() -> None:
    accord, parts = of(LOW), parts_of(many(3000))
    name = name_of(parts)
    accord.hear_names([name])
    assert accord.missing() == [(name, part) for part in range(len(parts))]
    accord.hear_part(name, 1, parts[1])
    accord.hear_names([name])
    assert (name, 1) not in accord.missing()
    assert len(accord.missing()) == len(parts) - 1


def test_lower_terms_end_with_the_last_replica_that_has_them() -> None:
    accord = of(HIGH)
    name = tell(accord, LOW)
    accord.hear_names([name, accord.name])
    assert accord.lowest(("r/limit", 0)) == (50, 60)
    accord.hear_names([accord.name])
    assert accord.lowest(("r/limit", 0)) == (100, 60)


def test_terms_that_were_just_told_hold_before_a_beat_names_them() -> None:
    accord = of(HIGH)
    tell(accord, LOW)
    assert accord.lowest(("r/limit", 0)) == (50, 60)
    accord.hear_names([accord.name])  # asked before they were told
    assert accord.lowest(("r/limit", 0)) == (50, 60)
    accord.hear_names([accord.name])
    assert accord.lowest(("r/limit", 0)) == (100, 60)


def test_change_of_the_own_config_keeps_what_others_have() -> None:
    accord = of(LOW)
    accord.hear_names([tell(accord, LOW | {("r/limit", 0): (20.0, 20.0)}), accord.name])
    accord.have(HIGH, alone=False)
    assert accord.lowest(("r/limit", 0)) == (20, 20)


def test_own_former_terms_hold_until_it_is_clear_that_no_other_replica_has_them() -> None:
    accord = of(LOW)
    former = accord.name
    accord.have(HIGH, alone=False)
    for _ in range(3):
        assert accord.lowest(("r/limit", 0)) == (50, 60)
        accord.hear_names([former, accord.name])
        assert accord.missing() == []
    for _ in range(2):
        accord.hear_names([accord.name])
    assert accord.lowest(("r/limit", 0)) == (100, 60)


def test_own_former_terms_of_a_replica_alone_are_over_at_once() -> None:
    accord = of(LOW)
    accord.have(HIGH, alone=True)
    assert accord.lowest(("r/limit", 0)) == (100, 60)


def test_names_that_are_made_up_are_bounded() -> None:
    accord = of(LOW)
    for number in range(2 * MOST_NAMES):
        accord.hear_part(f"{number:032x}.1", 0, b"\x90")
    accord.hear_names([f"{number:032x}.1" for number in range(500)] + ["nonsense", "0" * 32 + ".0"])
    assert len(accord.missing()) <= MOST_NAMES
