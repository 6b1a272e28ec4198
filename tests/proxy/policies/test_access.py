from __future__ import annotations

import pytest

from ambassador.errors import Forbidden, Unauthenticated
from ambassador.messages import Request
from ambassador.proxy.clients.who import DOUBTS
from ambassador.proxy.policies.access import Access, challenges

BEARER, KEY = b'Bearer realm="amb"', b'ApiKey realm="amb", header="x-api-key"'


class Counted:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)


def request(client: str | None, doubt: str | None = None) -> Request:
    made = Request("GET", b"/", [], 1)
    made.client, made.doubt = client, doubt
    return made


def access(*allowed: str) -> tuple[Access, Counted]:
    counts = Counted()
    return Access(allowed, [BEARER, KEY], counts), counts


def test_who_is_listed_may_call() -> None:
    policy, counts = access("a", "b")
    assert policy.check(request("a")) is None
    assert policy.takes("b")
    assert not policy.takes("c")
    assert not policy.takes(None)
    assert counts.reasons == []


def test_a_known_client_that_is_not_listed_is_forbidden() -> None:
    policy, counts = access("a")
    error = policy.check(request("b"))
    assert isinstance(error, Forbidden)
    assert (error.status, error.code, error.fields) == (403, "forbidden", ())
    assert counts.reasons == ["forbidden"]


def test_everybody_known_may_call_where_the_star_is() -> None:
    policy, _ = access("*")
    assert policy.check(request("anybody")) is None
    assert isinstance(policy.check(request(None)), Unauthenticated)


def test_nobody_known_is_challenged_for_each_way() -> None:
    policy, counts = access("a")
    error = policy.check(request(None))
    assert isinstance(error, Unauthenticated)
    assert error.status == 401
    assert error.fields == ((b"www-authenticate", BEARER), (b"www-authenticate", KEY))
    assert counts.reasons == ["missing"]


@pytest.mark.parametrize("doubt", DOUBTS)
def test_each_doubt_is_told_and_counted(doubt: str) -> None:
    policy, counts = access("a")
    error = policy.check(request(None, doubt))
    assert isinstance(error, Unauthenticated)
    assert error.detail
    of_token = doubt not in ("missing", "unknown", "ambiguous")
    assert error.fields[0][1] == (BEARER + b', error="invalid_token"' if of_token else BEARER)
    assert error.fields[1] == (b"www-authenticate", KEY)
    assert counts.reasons == [doubt]


def test_challenges_are_one_for_each_way_and_never_none() -> None:
    assert challenges(["jwt", "basic", "api_key:x-key", "jwt"], realm="r") == [
        b'Bearer realm="r"', b'Basic realm="r", charset="UTF-8"', b'ApiKey realm="r", header="x-key"',
    ]  # fmt: skip
    assert challenges(["mtls", "network"], realm="r") == [b'Certificate realm="r"']
    assert challenges(["network"], realm="r") == [b'Network realm="r"']
    assert challenges([], realm="r")
