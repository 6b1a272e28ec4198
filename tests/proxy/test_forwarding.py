"""Who sent a request, through whom it came, how long it may take."""

from __future__ import annotations

import ipaddress

import pytest

from ambassador.errors import BadRequest, LoopDetected
from ambassador.messages import Request
from ambassador.proxy.forwarding import Peer, Via, caller_deadline_s, deadline_fields, max_forwards

TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


def request(method: str = "GET", /, **special: bytes) -> Request:
    made = Request(method, b"/", [], 1)
    made.special = {name.replace("_", "-").encode(): value for name, value in special.items()}
    made.authority = b"a.example"
    return made


def client_ip(peer: Peer, chain: bytes) -> str:
    asked = request(x_forwarded_for=chain)
    peer.identify(asked)
    return asked.client_ip


def test_a_stranger_is_not_believed() -> None:
    peer = Peer("192.0.2.1", TRUSTED)
    asked = request(x_forwarded_for=b"1.2.3.4", x_forwarded_proto=b"https", x_forwarded_host=b"evil")
    assert client_ip(peer, b"1.2.3.4") == "192.0.2.1"
    assert list(peer.fields(asked)) == [
        (b"x-forwarded-for", b"192.0.2.1"), (b"x-forwarded-proto", b"http"), (b"x-forwarded-host", b"a.example"),
    ]  # fmt: skip


@pytest.mark.parametrize(("chain", "ip"), [
    (b"1.2.3.4", "1.2.3.4"),
    (b"6.6.6.6, 1.2.3.4", "1.2.3.4"),
    (b"6.6.6.6, 1.2.3.4, 10.2.2.2", "1.2.3.4"),
    (b"10.3.3.3, 10.2.2.2", "10.3.3.3"),
    (b"1.2.3.4, junk, 10.2.2.2", "10.2.2.2"),
    (b"[2001:db8::1]:443", "2001:db8::1"),
    (b"1.2.3.4:5000", "1.2.3.4"),
    (b"", "10.1.1.1"),
])  # fmt: skip
def test_the_rightmost_address_that_is_not_trusted_is_the_client(chain: bytes, ip: str) -> None:
    assert client_ip(Peer("10.1.1.1", TRUSTED), chain) == ip


def test_a_trusted_peer_is_appended_in_one_field() -> None:
    asked = request(x_forwarded_for=b"1.2.3.4", x_forwarded_proto=b"https", x_forwarded_host=b"b")
    assert list(Peer("10.1.1.1", TRUSTED).fields(asked)) == [
        (b"x-forwarded-for", b"1.2.3.4, 10.1.1.1"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"b"),
    ]  # fmt: skip


def test_a_request_that_names_no_host_is_forwarded_without_one() -> None:
    asked = request()
    asked.authority = b""
    for ip in ("192.0.2.1", "10.1.1.1"):
        assert [name for name, _ in Peer(ip, TRUSTED).fields(asked)] == [
            b"x-forwarded-for",
            b"x-forwarded-proto",
        ]


def test_a_unix_socket_is_believed_if_anything_is() -> None:
    assert Peer("", TRUSTED).believed
    assert not Peer("", []).believed


@pytest.mark.parametrize("via", [b"1.1 me", b"1.0 other, 1.1 ME (comment)", b"1.1\tme"])
def test_via_finds_this_instance(via: bytes) -> None:
    with pytest.raises(LoopDetected):
        Via("me").check(via)


@pytest.mark.parametrize("via", [b"", b"1.1 other", b"1.1 me2, me", b"1.1 other (me)"])
def test_via_is_not_mistaken(via: bytes) -> None:
    Via("me").check(via)


def test_via_is_extended() -> None:
    assert Via("me").extend(request()) == b"1.1 me"
    assert Via("me").extend(request(via=b"1.0 x")) == b"1.0 x, 1.1 me"


@pytest.mark.parametrize(("special", "left"), [
    ({}, None),
    ({"x_request_deadline": b"1010.5"}, 10.5),
    ({"x_request_deadline": b"990"}, -10.0),
    ({"x_request_deadline": b"soon"}, None),
    ({"x_request_deadline": b"1e9"}, None),
    ({"x_envoy_upstream_rq_timeout_ms": b"250"}, 0.25),
    ({"x_envoy_upstream_rq_timeout_ms": b"0"}, None),
    ({"grpc_timeout": b"2S"}, 2.0),
    ({"grpc_timeout": b"123456789S"}, None),
    ({"grpc_timeout": b"5m", "x_request_deadline": b"1010"}, 0.005),
])  # fmt: skip
def test_the_shortest_deadline_that_can_be_read_counts(special: dict[str, bytes], left: float | None) -> None:
    assert caller_deadline_s(request(**special), 1000.0) == left


def test_what_is_left_is_told_in_the_callers_way() -> None:
    asked = request(grpc_timeout=b"9S", x_envoy_upstream_rq_timeout_ms=b"9000")
    assert list(deadline_fields(asked, 1.5, 1000.0)) == [
        (b"x-request-deadline", b"1001.500"), (b"grpc-timeout", b"1500m"), (b"x-envoy-upstream-rq-timeout-ms", b"1500"),
    ]  # fmt: skip


def test_max_forwards_is_for_options_and_trace() -> None:
    assert max_forwards(request("OPTIONS", max_forwards=b"3")) == 3
    assert max_forwards(request("GET", max_forwards=b"0")) is None
    assert max_forwards(request("TRACE")) is None
    for value in (b"x", b"-1", b"", b"1, 2", b"9999999999"):
        with pytest.raises(BadRequest):
            max_forwards(request("TRACE", max_forwards=value))


@pytest.mark.parametrize(
    ("left_s", "told"),
    [(0.0001, b"1m"), (2.5, b"2500m"), (99_999.999, b"99999999m"), (1e5, b"100000S"), (1e12, b"99999999S")],
)
def test_grpc_timeout_has_eight_digits_at_most(left_s: float, told: bytes) -> None:
    assert (b"grpc-timeout", told) in deadline_fields(request(grpc_timeout=b"1H"), left_s, 1e9)
