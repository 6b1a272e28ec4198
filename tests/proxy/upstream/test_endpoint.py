"""Endpoints and their addresses."""

from __future__ import annotations

import socket

import pytest

from ambassador.proxy.upstream.endpoint import Endpoint


def test_ip_needs_no_name() -> None:
    endpoint = Endpoint("http://10.0.0.1:8080", host="10.0.0.1", port=8080)
    assert endpoint.addresses == ((socket.AF_INET, ("10.0.0.1", 8080)),)
    assert endpoint.authority == b"10.0.0.1:8080"


def test_ipv6_is_bare() -> None:
    endpoint = Endpoint("http://[::1]:8080", host="::1", port=8080)
    assert endpoint.addresses == ((socket.AF_INET6, ("::1", 8080, 0, 0)),)
    assert endpoint.authority == b"[::1]:8080"


def test_name_has_no_address_until_it_is_told() -> None:
    endpoint = Endpoint("http://a:80", host="a", port=80)
    assert not endpoint.addresses
    endpoint.resolve(["10.0.0.1", "fd00::1", "nonsense"])
    assert endpoint.addresses == (
        (socket.AF_INET, ("10.0.0.1", 80)),
        (socket.AF_INET6, ("fd00::1", 80, 0, 0)),
    )
    endpoint.resolve([])
    assert not endpoint.addresses


@pytest.mark.parametrize(("port", "expected"), [(80, b"a"), (81, b"a:81")])
def test_authority_leaves_the_usual_port_out(port: int, expected: bytes) -> None:
    assert Endpoint(f"http://a:{port}", host="a", port=port).authority == expected


def test_unix_socket() -> None:
    endpoint = Endpoint("unix:/run/a", host="", port=0, path="/run/a")
    assert endpoint.addresses == ((socket.AF_UNIX, "/run/a"),)
    assert endpoint.authority == b"localhost"
