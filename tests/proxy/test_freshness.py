"""The arithmetic of caching, rule by rule of RFC 9111."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy import freshness
from ambassador.proxy.freshness import (
    Said,
    allows,
    by_name,
    cache_control,
    conditions,
    date_s,
    initial_age_s,
    is_unchanged,
    lifetime_s,
    may_be_stale,
    may_share,
    may_store,
    seconds,
    selected,
    vary_names,
)

DATE = 1_795_761_874


def http(at: float) -> bytes:
    return formatdate(at, usegmt=True).encode()


@pytest.mark.parametrize(
    ("value", "directives"),
    [
        (None, {}),
        (b"", {}),
        (b"no-store", {b"no-store": None}),
        (b"Max-Age=5, PUBLIC", {b"max-age": b"5", b"public": None}),
        (b'max-age="5"', {b"max-age": b"5"}),
        (b'private="a, no-store", x', {b"private": b"a, no-store", b"x": None}),
        (b'x="a\\"b"', {b"x": b'a"b'}),
        (b",, max-age=1 ,", {b"max-age": b"1"}),
        (b"max-age=9, max-age=3", {b"max-age": b"3"}),
        (b"max-age=, public", {b"max-age": b"", b"public": None}),
    ],
)
def test_directives_are_parsed(value: bytes | None, directives: dict[bytes, bytes | None]) -> None:
    assert cache_control(value) == directives


@given(st.binary(max_size=60))
def test_directives_of_anything_are_parsed_without_an_error(value: bytes) -> None:
    found = cache_control(value)
    assert all(name == name.lower() for name in found)


@given(st.lists(st.sampled_from([b"no-store", b"private", b"max-age=1", b'x="a,b"', b"public"])))
def test_no_directive_is_lost_among_others(members: list[bytes]) -> None:
    assert cache_control(b", ".join(members)).keys() == {member.partition(b"=")[0] for member in members}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"0", 0), (b"60", 60), (b"9" * 40, 2**31), (b"-1", 0), (b"1.5", 0), (b"x", 0), (None, 0)],
)
def test_seconds_that_are_none_are_stale(value: bytes | None, expected: int) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize("value", [None, b"0", b"-1", b"tomorrow", b"\xff", b"Fri, 99 Nov 2026 06:44:34 GMT"])
def test_dates_that_are_none_are_none(value: bytes | None) -> None:
    assert date_s(value) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({b"cache-control": b"max-age=60"}, 60),
        ({b"cache-control": b"max-age=60, s-maxage=10"}, 10),
        ({b"cache-control": b"max-age=60, no-cache"}, 0),
        ({b"cache-control": b"max-age=x"}, 0),
        ({b"cache-control": b"public"}, None),
        ({b"expires": http(DATE + 30), b"date": http(DATE)}, 30),
        ({b"expires": http(DATE - 30), b"date": http(DATE)}, 0),
        ({b"expires": b"0", b"date": http(DATE)}, 0),
        ({b"expires": http(DATE + 30)}, 25),
        ({b"expires": http(DATE + 30), b"date": b"today"}, 0),
        ({b"expires": http(DATE)}, 0),
        ({b"expires": http(DATE + 30), b"date": http(DATE), b"cache-control": b"max-age=5"}, 5),
    ],
)
def test_lifetime_is_the_first_that_is_said(fields: dict[bytes, bytes], expected: float | None) -> None:
    assert lifetime_s(cache_control(fields.get(b"cache-control")), fields, http(DATE + 5)) == expected


@pytest.mark.parametrize(
    ("fields", "wall_s", "delay_s", "expected"),
    [
        ({}, DATE, 2, 2),
        ({b"date": http(DATE)}, DATE + 5, 2, 5),
        ({b"date": http(DATE)}, DATE - 5, 2, 2),
        ({b"date": http(DATE), b"age": b"30"}, DATE + 5, 2, 32),
        ({b"age": b"30, 40"}, DATE, 0, 30),
        ({b"age": b"old"}, DATE, 1, 1),
    ],
)
def test_age_is_the_greater_of_what_is_seen_and_said(
    fields: dict[bytes, bytes], wall_s: float, delay_s: float, expected: float
) -> None:
    assert initial_age_s(fields, wall_s=wall_s, delay_s=delay_s) == expected


@given(st.integers(0, 10**6), st.integers(-(10**5), 10**5), st.floats(0, 1000))
def test_age_is_never_less_than_what_it_took_to_come(said: int, skew: int, delay_s: float) -> None:
    fields = {b"age": b"%d" % said, b"date": http(DATE)}
    assert initial_age_s(fields, wall_s=DATE + skew, delay_s=delay_s) >= max(said + delay_s, skew)


def stores(control: bytes = b"", status: int = 200, *, authorized: bool = False, **fields: bytes) -> bool:
    named = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    return may_store(status, cache_control(control), named, authorized=authorized)


def test_what_a_shared_cache_may_store() -> None:
    assert stores()
    assert stores(vary=b"accept")
    assert not stores(b"no-store")
    assert not stores(b"private, max-age=60")
    assert not stores(b'private="x"')
    assert not stores(set_cookie=b"a=b")
    assert not stores(vary=b"accept, *")
    assert not stores(content_range=b"bytes 0-1/2")
    assert not stores(status=206)
    assert not stores(status=500)


@pytest.mark.parametrize("control", [b"public", b"s-maxage=1", b"must-revalidate"])
def test_answers_to_authorized_requests_are_stored_only_if_they_say_so(control: bytes) -> None:
    assert not stores(b"max-age=60", authorized=True)
    assert stores(control, authorized=True)
    assert not stores(control + b", private", authorized=True)


@given(
    st.sets(st.sampled_from([b"no-store", b"private", b"public", b"no-cache", b"max-age=1", b"s-maxage=1"]))
)
def test_what_may_be_stored_may_be_shared(members: set[bytes]) -> None:
    control = cache_control(b",".join(members))
    for authorized in (False, True):
        if may_store(200, control, {}, authorized=authorized):
            assert may_share(control, {})


def said(*fields: tuple[bytes, bytes], status: int = 200, default_s: float | None = None) -> Said:
    return Said(status, list(fields), date=http(DATE), default_lifetime_s=default_s)


def test_head_is_of_when_it_came_unless_it_says_when() -> None:
    assert said((b"Expires", http(DATE + 9))).lifetime_s == 9.0
    assert said((b"Expires", http(DATE + 9)), (b"Date", http(DATE + 2))).lifetime_s == 7.0
    assert (said().date, said((b"Date", b"then")).date) == (http(DATE), b"then")


def test_lifetime_of_the_config_holds_for_heads_that_say_none() -> None:
    assert said(default_s=60.0).lifetime_s == 60.0
    assert said().lifetime_s == 0.0
    assert said((b"cache-control", b"max-age=5"), default_s=60.0).lifetime_s == 5.0
    assert said((b"cache-control", b"no-cache"), default_s=60.0).lifetime_s == 0.0
    assert said(status=404, default_s=60.0).lifetime_s == 0.0


def test_public_is_what_may_be_kept_and_is_fresh() -> None:
    fresh = (b"cache-control", b"max-age=5")
    assert said(fresh).is_public(authorized=False)
    assert not said(fresh).is_public(authorized=True)
    assert not said().is_public(authorized=False)
    assert said(default_s=1.0).is_public(authorized=False)
    assert not said((b"cache-control", b"max-age=0"), default_s=1.0).is_public(authorized=False)
    assert not said(fresh, (b"set-cookie", b"a=b")).is_public(authorized=False)
    assert not said(fresh, status=500).is_public(authorized=False)


@given(st.sets(st.sampled_from([b"no-store", b"private", b"public", b"no-cache", b"max-age=1"])))
def test_what_is_public_may_be_stored_and_shared(members: set[bytes]) -> None:
    each = said((b"cache-control", b",".join(members)))
    for authorized in (False, True):
        assert each.may_store(authorized=authorized) >= each.is_public(authorized=authorized)
        assert each.may_share() >= each.may_store(authorized=authorized)


def test_what_must_be_validated_is_never_stale() -> None:
    assert may_be_stale(cache_control(b"max-age=1, public"))
    for control in (b"no-cache", b"must-revalidate", b"proxy-revalidate", b"s-maxage=5"):
        assert not may_be_stale(cache_control(control))


def test_requests_say_how_old_and_how_fresh() -> None:
    assert allows({}, age_s=10, left_s=5)
    assert not allows({b"no-cache": None}, age_s=0, left_s=5)
    assert allows({b"max-age": b"10"}, age_s=10, left_s=5)
    assert not allows({b"max-age": b"9"}, age_s=10, left_s=5)
    assert allows({b"min-fresh": b"5"}, age_s=10, left_s=5)
    assert not allows({b"min-fresh": b"6"}, age_s=10, left_s=5)


def test_selection_by_vary() -> None:
    assert vary_names({b"vary": b" Accept ,accept, Origin,"}) == (b"accept", b"origin")
    request = by_name([(b"Accept", b"a"), (b"accept", b" b ")])
    assert selected((b"accept", b"origin"), request) == ((b"accept", b"a,b"), (b"origin", None))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, False),
        ({b"if-none-match": b'"a"'}, True),
        ({b"if-none-match": b'W/"a"'}, True),
        ({b"if-none-match": b'"b", W/"a"'}, True),
        ({b"if-none-match": b"*"}, True),
        ({b"if-none-match": b'"b"'}, False),
        ({b"if-none-match": b"a"}, False),
        ({b"if-modified-since": http(DATE)}, True),
        ({b"if-modified-since": http(DATE - 1)}, False),
        ({b"if-modified-since": b"x"}, False),
        ({b"if-none-match": b'"b"', b"if-modified-since": http(DATE)}, False),
    ],
)
def test_client_that_has_it_is_told_so(request_: dict[bytes, bytes], expected: bool) -> None:
    stored = {b"etag": b'"a"', b"last-modified": http(DATE)}
    assert is_unchanged(stored, request_) is expected


def test_conditions_are_made_of_validators() -> None:
    assert conditions({}) == []
    assert conditions({b"etag": b'W/"a"', b"last-modified": b"x"}) == [
        (b"if-none-match", b'W/"a"'),
        (b"if-modified-since", b"x"),
    ]


def test_statuses_with_a_configured_lifetime_are_storable() -> None:
    assert freshness.DEFAULT_STORABLE <= freshness.STORABLE
