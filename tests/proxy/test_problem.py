"""Errors as their callers see them."""

from __future__ import annotations

import json

import pytest

from ambassador.errors import NoRoute, Overloaded, ProxyError, UpstreamReset, UpstreamTimeout
from ambassador.messages import Reply
from ambassador.proxy.problem import (
    error_reply,
    fallback_status,
    forbids_retry,
    proxy_status,
    received_status,
    speaks_grpc,
)


def reply(error: ProxyError, *, attempts: int = 1, grpc: bool = False) -> Reply:
    return error_reply(error, pseudonym="me", request_id="r1", route="shop", attempts=attempts, grpc=grpc)


def kinds(base: type[ProxyError]) -> list[type[ProxyError]]:
    return [base, *(deeper for kind in base.__subclasses__() for deeper in kinds(kind))]


@pytest.mark.parametrize("kind", kinds(ProxyError))
def test_every_error_is_a_problem_document(kind: type[ProxyError]) -> None:
    made = reply(kind('why "so"\r\n'))
    assert made.status == kind.status
    assert json.loads(made.body) == {
        "type": "about:blank", "title": kind.title, "status": kind.status, "detail": 'why "so"\r\n', "code": kind.code,
        "request_id": "r1", "route": "shop",
    }  # fmt: skip
    assert (b"content-type", b"application/problem+json") in made.headers
    assert all(b"\r" not in value and b"\n" not in value for _, value in made.headers)


def test_the_title_stands_in_for_a_detail() -> None:
    assert json.loads(reply(NoRoute()).body)["detail"] == NoRoute.title


@pytest.mark.parametrize(("seconds", "value"), [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.1, b"2")])
def test_retry_after_is_whole_seconds(seconds: float, value: bytes) -> None:
    assert (b"retry-after", value) in reply(Overloaded(retry_after_s=seconds)).headers


def test_no_retry_after_where_none_is_known() -> None:
    assert b"retry-after" not in dict(reply(Overloaded()).headers)


def test_proxy_status_names_the_error_and_more_than_one_attempt() -> None:
    error = UpstreamReset()
    one = proxy_status(error, pseudonym="me", attempts=1)
    assert one == b'me; error=connection_terminated; details="upstream_reset"'
    assert proxy_status(error, pseudonym="me", attempts=3) == one + b"; attempts=3"
    assert not forbids_retry(one)
    assert forbids_retry(one + b"; attempts=3")
    assert forbids_retry(b'x; details="limited"')
    assert forbids_retry(b'x; details="breaker_open"')


def test_proxy_status_of_an_upstreams_error_tells_what_was_retried() -> None:
    assert received_status(503, pseudonym="me", attempts=1) == b"me; received-status=503"
    assert received_status(503, pseudonym="me", attempts=3) == b"me; received-status=503; attempts=3"


@pytest.mark.parametrize("attempts", [1, 2])
def test_retry_that_is_ruled_out_is_ruled_out_in_front_too(attempts: int) -> None:
    failure = UpstreamReset()
    for text in (
        proxy_status(failure, pseudonym="me", attempts=attempts, is_final=True),
        received_status(503, pseudonym="me", attempts=attempts, is_final=True),
        fallback_status(None, 503, pseudonym="me", attempts=attempts, fallback="respond", is_final=True),
        fallback_status(failure, 0, pseudonym="me", attempts=attempts, fallback="respond", is_final=True),
    ):
        assert b"; retry=?0" in text
        assert forbids_retry(text)


def test_grpc_callers_get_a_grpc_status() -> None:
    made = reply(UpstreamTimeout(), grpc=True)
    assert (made.status, made.body) == (200, b"")
    assert dict(made.headers)[b"grpc-status"] == b"4"


@pytest.mark.parametrize("kind", kinds(ProxyError))
def test_every_error_has_a_grpc_status(kind: type[ProxyError]) -> None:
    made = reply(kind(retry_after_s=3.0), grpc=True)
    told = dict(made.headers)
    assert (made.status, made.body) == (200, b"")
    assert told[b"content-type"] == b"application/grpc"
    assert (int(told[b"grpc-status"]), told[b"grpc-message"]) == (kind.grpc_status, kind.code.encode())
    assert 0 < kind.grpc_status <= 16
    assert told[b"retry-after"] == b"3"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b" Application/GRPC-Web; x=y", True),
        (b"application/json", False),
        (b"text/application/grpc", False),
    ],
)
def test_grpc_callers_are_known_by_their_content_type(value: bytes, expected: bool) -> None:
    assert speaks_grpc([(b"a", b"b"), (b"Content-Type", value)]) is expected
    assert not speaks_grpc([(b"accept", value)])
