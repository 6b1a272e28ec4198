"""The path that goes upstream, and the way back for `Location`."""

from __future__ import annotations

import pytest

from ambassador.errors import BadRequest
from ambassador.messages import Fields, Request
from ambassador.proxy import path_regex
from ambassador.proxy.policies.rewrite import Rewrite, literal_prefix, location_rewriter, path_rewriter


def a_request(path: bytes = b"/") -> Request:
    request = Request("GET", path, [], 1)
    request.path = path
    request.authority = b"shop.example:8080"
    return request


@pytest.mark.parametrize(
    ("pattern", "prefix", "path", "expected"),
    [
        ("/old/**", "/new", b"/old/a", b"/new/a"),
        ("/old/**", "/new/", b"/old/a", b"/new/a"),
        ("/old/**", "/new", b"/old", b"/new"),
        ("/old/**", "/new", b"/old/", b"/new/"),
        ("/old/**", "/", b"/old/a", b"/a"),
        ("/old/**", "/", b"/old", b"/"),
        ("/old/**", "/", b"/old//a", b"//a"),
        ("/old", "/new", b"/old", b"/new"),
        ("/old/", "/new", b"/old/", b"/new/"),
        ("/", "/new", b"/", b"/new/"),
        ("/**", "/new", b"/a", b"/new/a"),
        (None, "/new", b"/a", b"/new/a"),
        ("/v1/accounts/{id}", "/acc", b"/v1/accounts/42", b"/acc/42"),
        ("/{tenant}/x/**", "/t", b"/acme/x/y", b"/t/acme/x/y"),
    ],
)
def test_prefix(pattern: str | None, prefix: str, path: bytes, expected: bytes) -> None:
    rewrite = path_rewriter(Rewrite(prefix=prefix), pattern)
    assert rewrite is not None
    assert rewrite(a_request(path)) == expected


def test_no_rewrite_of_the_path_is_no_function() -> None:
    assert path_rewriter(None, "/a/**") is None
    assert path_rewriter(Rewrite(host="keep"), "/a/**") is None


def test_literal_prefix_ends_before_the_first_variable_segment() -> None:
    assert [literal_prefix(p) for p in (None, "/", "/a/b", "/a/**", "/a/{b}/c", "/{b}")] == [
        "",
        "",
        "/a/b",
        "/a",
        "/a",
        "",
    ]


def regex(pattern: str, substitution: str, path: bytes) -> bytes:
    rewrite = path_rewriter(Rewrite(regex=(pattern, substitution)), None)
    assert rewrite is not None
    return rewrite(a_request(path))


def test_regex_puts_groups_in_place() -> None:
    assert regex(r"^/v1/([^/]+)(/.*)?", r"/v2/\1-x\2", b"/v1/a%2Fb/c") == b"/v2/a%2Fb-x/c"
    assert regex(r"^/v1/", "/v2/", b"/other") == b"/other"
    assert regex(r"^/.*", "", b"/a") == b"/"


def test_regex_cannot_be_led_out_of_where_the_config_sends_it() -> None:
    with pytest.raises(BadRequest):
        regex(r"^/a(.*)", r"/data/\1", b"/a../secret")
    with pytest.raises(BadRequest):
        regex(r"^/(.*)", r"\1", b"/a")


@pytest.mark.parametrize("substitution", ["/a b", "/a?b", "/\r\n", "/%zz", "/é", r"/\3"])
def test_regex_substitution_must_be_a_path(substitution: str) -> None:
    with pytest.raises(path_regex.Refused):
        path_rewriter(Rewrite(regex=("^/(.*)", substitution)), None)


ENDPOINTS = ("http://10.0.0.1:9000", "http://backend:80", "unix:/run/x.sock")


def location(
    config: Rewrite, value: bytes, pattern: str = "/api/**", authority: bytes | None = None
) -> bytes:
    hook = location_rewriter(config, pattern, ENDPOINTS)
    assert hook is not None
    request = a_request()
    if authority is not None:
        request.authority = authority
    fields: Fields = [(b"a", b"1"), (b"Location", value), (b"b", b"2")]
    hook(request, fields)
    assert (fields[0], fields[2]) == ((b"a", b"1"), (b"b", b"2"))
    assert fields[1][0] == b"Location"
    return fields[1][1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"http://10.0.0.1:9000/new/x?y#z", b"http://shop.example:8080/api/x?y#z"),
        (b"HTTP://Backend/new", b"http://shop.example:8080/api"),
        (b"http://backend:80/newer", b"http://shop.example:8080/newer"),
        (b"http://backend?x", b"http://shop.example:8080?x"),
        (b"http://backend:81/new/x", b"http://backend:81/new/x"),
        (b"https://elsewhere.example/new/x", b"https://elsewhere.example/new/x"),
        (b"/new/x", b"/api/x"),
        (b"/new?x", b"/api?x"),
        (b"/other", b"/other"),
        (b"//backend/new/x", b"//backend/new/x"),
        (b"relative", b"relative"),
        (b"http://[bad/new", b"http://[bad/new"),
        (b"", b""),
    ],
)
def test_location_under_a_prefix_finds_its_way_back(value: bytes, expected: bytes) -> None:
    assert location(Rewrite(prefix="/new"), value) == expected


def test_location_with_the_prefix_taken_off() -> None:
    assert location(Rewrite(prefix="/"), b"/x") == b"/api/x"
    assert location(Rewrite(prefix="/"), b"http://backend/x") == b"http://shop.example:8080/api/x"
    assert location(Rewrite(prefix="/new"), b"/new", pattern="/**") == b"/"


def test_location_of_the_host_that_was_sent() -> None:
    assert (
        location(Rewrite(host="public.example"), b"http://public.example/x") == b"http://shop.example:8080/x"
    )
    by_regex = Rewrite(regex=("^/api", ""))
    assert location(by_regex, b"http://10.0.0.1:9000/x") == b"http://shop.example:8080/x"
    assert location(by_regex, b"/x") == b"/x"
    assert location(by_regex, b"http://10.0.0.1:9000/x", authority=b"") == b"/x"


def test_location_is_left_alone_where_nothing_was_rewritten() -> None:
    assert location_rewriter(None, "/api/**", ENDPOINTS) is None
    assert location_rewriter(Rewrite(host="keep"), "/api/**", ENDPOINTS) is None
    assert location_rewriter(Rewrite(host="keep", prefix="/new"), "/api/**", ENDPOINTS) is not None
