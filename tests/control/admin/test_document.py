from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ambassador.control.admin.document import pieces


class Route(msgspec.Struct):
    name: str
    tags: list[str]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(JSON)
def test_the_pieces_are_the_whole(value: object) -> None:
    text = b"".join(pieces(value))
    assert json.loads(text) == value
    assert text == msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def test_no_piece_is_larger_than_one_member_of_a_list_in_an_object() -> None:
    routes = (Route(f"route {number}", ["line\nfeed", "b"]) for number in range(1000))
    told = list(
        pieces({"version": 1, "routes": routes, "upstreams": {str(n): Route("a", []) for n in range(9)}})
    )
    assert max(map(len, told)) < 120
    assert json.loads(b"".join(told))["routes"][999] == {"name": "route 999", "tags": ["line\nfeed", "b"]}


def test_a_list_is_made_while_it_is_told() -> None:
    made: list[int] = []

    def numbers() -> list[int]:
        return made

    def members() -> object:
        for number in range(3):
            made.append(number)
            yield number

    told = pieces(members())
    next(told)
    assert numbers() == [0]
    assert b"".join(told).endswith(b"2\n]\n")
