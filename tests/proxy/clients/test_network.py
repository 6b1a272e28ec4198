from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambassador.proxy.clients.network import Networks

NETWORKS = [
    ("10.0.0.0/8", 0), ("10.1.0.0/16", 1), ("10.1.2.0/24", 2), ("10.1.2.3/32", 3), ("10.255.0.0/16", 4),
    ("192.168.0.0/24", 5), ("192.168.1.0/24", 6), ("::1/128", 7), ("fd00::/8", 8), ("fd00:1::/32", 9),
]  # fmt: skip


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.0", 0), ("10.0.255.255", 0), ("10.1.0.0", 1), ("10.1.1.255", 1), ("10.1.2.2", 2), ("10.1.2.3", 3),
        ("10.1.2.4", 2), ("10.1.3.0", 1), ("10.2.0.0", 0), ("10.255.255.255", 4), ("11.0.0.0", None),
        ("9.255.255.255", None), ("192.168.0.255", 5), ("192.168.1.0", 6), ("192.168.2.0", None), ("0.0.0.0", None),
        ("255.255.255.255", None), ("::1", 7), ("::2", None), ("fd00:2::1", 8), ("fd00:1::1", 9), ("fe00::", None),
        ("::ffff:10.1.2.3", 3), ("::", None), ("", None), ("unknown", None), ("10.1.2.3:80", None),
    ],
)  # fmt: skip
def test_networks_find_the_smallest_that_holds_an_address(address: str, client: int | None) -> None:
    networks = Networks(NETWORKS)
    assert networks.find(address) == client
    assert networks.find(address) == client  # as it is remembered


def test_networks_keep_the_first_of_the_same() -> None:
    assert Networks([("10.0.0.0/8", 2), ("10.0.0.0/8", 3)]).find("10.0.0.1") == 2


def test_networks_take_everything_where_the_config_says_so() -> None:
    networks = Networks([("0.0.0.0/0", 0), ("::/0", 1)])
    assert (networks.find("255.255.255.255"), networks.find("ffff::"), networks.find("")) == (0, 1, None)


@st.composite
def network(draw: st.DrawFn) -> ipaddress.IPv4Network:
    bits = draw(st.integers(0, 32))
    start = draw(st.integers(0, 2**16 - 1)) << 16 | draw(st.sampled_from([0, 1, 0xFFFF]))
    return ipaddress.IPv4Network((start, bits), strict=False)


@given(st.lists(network(), max_size=12, unique=True), st.lists(st.integers(0, 2**32 - 1), max_size=20))
@settings(max_examples=200, deadline=None)
def test_networks_agree_with_a_plain_search(
    networks: list[ipaddress.IPv4Network], addresses: list[int]
) -> None:
    made = Networks((str(each), at) for at, each in enumerate(networks))
    edges = [int(each.network_address) for each in networks] + [
        int(each.broadcast_address) for each in networks
    ]
    for number in addresses + edges:
        address = ipaddress.ip_address(number)
        holding = [at for at, each in enumerate(networks) if address in each]
        wanted = max(holding, key=lambda at: networks[at].prefixlen, default=None)
        assert made.find(str(address)) == wanted
