"""Consistent hashing with bounded loads."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.messages import Request
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.ring import BOUND, Ring, hash_of, key_reader
from ambassador.proxy.upstream.tiers import Tier

KEYS = [hash_of(b"key %d" % number) for number in range(4000)]


def endpoints(*weights: int) -> list[Endpoint]:
    return [
        Endpoint(f"http://10.0.0.{number}:80", host=f"10.0.0.{number}", port=80, weight=weight)
        for number, weight in enumerate(weights)
    ]


def test_places_are_the_same_in_every_process() -> None:
    assert hash_of(b"a") == 0x40F89E395B66422F


def test_ring_of_nothing_has_nobody() -> None:
    assert Ring([]).choose(1, Tier(())) is None
    assert Ring(endpoints(1)).choose(1, Tier(endpoints(1))) is None


@given(key=st.integers(0, 2**64 - 1), count=st.integers(1, 6))
def test_owners_are_all_of_them_once(key: int, count: int) -> None:
    pool = endpoints(*[1] * count)
    owners = list(Ring(pool).owners(key))
    assert len(owners) == count
    assert set(owners) == set(pool)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 5)])
def test_keys_follow_weight(weights: tuple[int, ...]) -> None:
    pool = endpoints(*weights)
    ring, tier = Ring(pool), Tier(pool)
    counts = Counter(ring.choose(key, tier) for key in KEYS)
    for endpoint in pool:
        assert counts[endpoint] / len(KEYS) == pytest.approx(endpoint.weight / sum(weights), rel=0.25)


@given(count=st.integers(2, 6), gone=st.integers(0, 5))
def test_only_the_keys_of_one_that_goes_move(count: int, gone: int) -> None:
    pool = endpoints(*[1] * count)
    left = [endpoint for endpoint in pool if endpoint is not pool[gone % count]]
    whole, smaller = Ring(pool), Ring(left)
    for key in KEYS[:300]:
        before = whole.choose(key, Tier(pool))
        after = smaller.choose(key, Tier(left))
        assert after is (before if before in left else after)
        assert whole.choose(key, Tier(left)) is after  # one that is out for a while is like one that went


@given(loads=st.lists(st.integers(0, 50), min_size=2, max_size=6), key=st.sampled_from(KEYS))
def test_load_is_bounded(loads: list[int], key: int) -> None:
    pool = endpoints(*[1] * len(loads))
    for endpoint, load in zip(pool, loads, strict=True):
        endpoint.inflight = load
    chosen = Ring(pool).choose(key, Tier(pool))
    assert chosen is not None
    assert chosen.inflight + 1 <= BOUND * (sum(loads) + 1) / len(loads) + 1


def request(*headers: tuple[bytes, bytes]) -> Request:
    return Request("GET", b"/", list(headers), 1)


@pytest.mark.parametrize(
    ("source", "headers", "expected"),
    [
        ("header:x-tenant", [(b"X-Tenant", b"a")], b"a"),
        ("header:x-tenant", [(b"Other", b"a")], None),
        ("cookie:sid", [(b"Cookie", b"a=1; sid=xyz;b=2")], b"xyz"),
        ("cookie:sid", [(b"Cookie", b"a=1"), (b"cookie", b"sid=xyz")], b"xyz"),
        ("cookie:sid", [(b"Cookie", b"xsid=1")], None),
        ("client_ip", [], b"10.0.0.9"),
    ],
)
def test_key_is_read(source: str, headers: list[tuple[bytes, bytes]], expected: bytes | None) -> None:
    read = key_reader(source)(request(*headers), "10.0.0.9")
    assert read == (None if expected is None else hash_of(expected))


def test_client_without_an_address_has_no_key() -> None:
    assert key_reader("client_ip")(request(), "") is None
