"""Whether a host is this one, in odd forms too."""

from __future__ import annotations

import pytest

from ambassador.proxy.loopback import is_loopback, is_this_host

ADDRESSES = [
    "127.0.0.1", "127.0.0.0", "127.255.255.254", "::1", "[::1]", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1",
    "[::ffff:127.0.0.1]", "::FFFF:7f00:1", "::ffff:127.9.9.9",
]  # fmt: skip
NAMES = ["localhost", "LocalHost", "localhost.", "a.localhost", "a.b.localhost", "A.LOCALHOST."]
OTHERS = [
    "", ".", "[]", "128.0.0.1", "126.255.255.255", "0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "::2", "::127.0.0.1",
    "64:ff9b::127.0.0.1", "::1%lo", "::ffff:127.0.0.1%1", "fe80::1", "127.1", "127.0.0.1.", "0x7f.0.0.1", "2130706433",
    "0177.0.0.1", "127.0.0.01", "127.0.0.1:80", "127.0.0.1/8", " 127.0.0.1", "127.0.0.1\n", "[[::1]]",
    "\uff11\uff12\uff17.0.0.1", "localhost..", ".localhost", "a..localhost", "notlocalhost", "localhost.example.com",
    "localhost:80", "localhost6", "localhost.localdomain", "[localhost]", "localhost\n", "unix:/run/a",
]  # fmt: skip


@pytest.mark.parametrize("host", ADDRESSES)
def test_address_of_loopback_is_this_host(host: str) -> None:
    assert is_loopback(host)
    assert is_this_host(host)


@pytest.mark.parametrize("host", NAMES)
def test_name_of_this_host_is_no_address(host: str) -> None:
    assert not is_loopback(host)
    assert is_this_host(host)


@pytest.mark.parametrize("host", OTHERS)
def test_everything_else_is_another_host(host: str) -> None:
    assert not is_loopback(host)
    assert not is_this_host(host)
