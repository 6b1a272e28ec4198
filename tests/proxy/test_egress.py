"""Where the ambassador may connect to."""

from __future__ import annotations

import pytest

from ambassador.proxy.egress import Config, Egress

METADATA = [
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%lo",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "::ffff:169.254.169.254",
    "[::ffff:a9fe:a9fe]",
    "::169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "64:ff9b::a83f:8110",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::",  # the server of Teredo
    "2001:0:808:808:0:0:5601:5601",  # its client, of which each bit is turned round
]
SPECIAL = [
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "127.0.0.1",
    "127.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "0.0.0.0",
    "0.1.2.3",
    "255.255.255.255",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "::",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "100::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:127.0.0.1%25lo",
    "[::ffff:7f00:1]",
    "::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "2002:a00:1::1",
    "2002:808:808::1",
    "2001:0:808:808::f7f7:f7f7",
]
PUBLIC = [
    "8.8.8.8",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "128.0.0.1",
    "9.255.255.255",
    "11.0.0.1",
    "223.255.255.255",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]


@pytest.mark.parametrize("address", METADATA)
@pytest.mark.parametrize("config", [None, Config(), Config(allow=("*.example.com", "192.168.0.0/16"))])
def test_metadata_services_are_closed_to_names(address: str, config: Config | None) -> None:
    assert Egress(config).refusal("www.example.com", address) is not None


@pytest.mark.parametrize("address", SPECIAL)
def test_special_ranges_are_open_to_names_without_a_section_only(address: str) -> None:
    assert Egress().refusal("svc.internal", address) is None
    assert Egress(Config()).refusal("svc.internal", address) is not None


@pytest.mark.parametrize("address", SPECIAL + METADATA)
def test_special_ranges_are_closed_to_what_clients_choose(address: str) -> None:
    assert Egress().refusal("svc.internal", address, forward=True) is not None
    assert Egress().refusal(address, address, forward=True, configured=True) is not None


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_open(address: str) -> None:
    for egress in (Egress(), Egress(Config(allow=("10.0.0.0/8", "svc.internal")))):
        assert egress.refusal("svc.example.com", address) is None
        assert egress.refusal("svc.example.com", address, forward=True) is None


@pytest.mark.parametrize("address", SPECIAL + METADATA)
def test_addresses_that_are_written_are_wanted(address: str) -> None:
    assert Egress().refusal(address, address, configured=True) is None
    assert Egress(Config()).refusal(address, address, configured=True) is None


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "::ffff:10.1.2.3", "[::ffff:a01:203]", "64:ff9b::10.1.2.3", "2002:a01:203::", "::10.1.2.3"],
)
def test_deny_closes_an_address_in_every_spelling(address: str) -> None:
    for denied in ("10.1.0.0/16", "10.1.2.3/32", "::ffff:10.1.2.3/128", "::ffff:10.1.0.0/112"):
        egress = Egress(Config(allow=("10.0.0.0/8", "svc.internal", "64:ff9b::/96"), deny=(denied,)))
        assert egress.refusal("svc.internal", address) is not None
        assert egress.refusal(address, address, configured=True) is not None


@pytest.mark.parametrize("place", ["10.0.0.0/8", "10.1.2.3/32", "svc.internal", "*.internal"])
def test_allow_opens_a_special_range(place: str) -> None:
    egress = Egress(Config(allow=(place,)))
    assert egress.refusal("svc.internal", "10.1.2.3") is None
    assert egress.refusal("SVC.Internal.", "::ffff:10.1.2.3") is None
    assert egress.refusal("svc.internal", "10.1.2.3", forward=True) is None
    assert (egress.refusal("svc.internal", "192.168.0.1") is None) == ("internal" in place)


def test_allow_opens_metadata_by_address_only() -> None:
    name, address = "metadata.google.internal", "169.254.169.254"
    for place in ("169.254.169.254/32", "169.254.0.0/16"):
        assert Egress(Config(allow=(place,))).refusal(name, address) is None
    for place in (name, "*.google.internal"):
        assert Egress(Config(allow=(place,))).refusal(name, address) is not None
    assert Egress(Config(allow=("*.internal",))).refusal(name, "127.0.0.1") is None


def test_allow_must_open_every_address_that_one_carries() -> None:
    teredo = "2001:0:a00:1::5601:5601"  # server 10.0.0.1, client 169.254.169.254
    assert Egress(Config(allow=("10.0.0.0/8",))).refusal("a.test", teredo) is not None
    assert Egress(Config(allow=("2001::/32",))).refusal("a.test", teredo) is None


def test_deny_wins_over_allow() -> None:
    egress = Egress(
        Config(allow=("*.internal", "10.0.0.0/8"), deny=("admin.internal", "10.9.0.0/16", "*.bad"))
    )
    assert egress.refusal("svc.internal", "10.1.2.3") is None
    assert egress.refusal("admin.internal", "10.1.2.3") is not None
    assert egress.refusal("svc.internal", "10.9.2.3") is not None
    assert egress.refusal("a.b.bad", "8.8.8.8") is not None
    assert egress.refusal("bad", "8.8.8.8") is None


def test_a_suffix_is_of_whole_labels() -> None:
    egress = Egress(Config(allow=("*.internal",)))
    assert egress.refusal("notinternal", "10.0.0.1") is not None
    assert egress.refusal("internal", "10.0.0.1") is not None


@pytest.mark.parametrize(
    "name", ["metadata.google.internal", "metadata.google.internal.", "METADATA.google.INTERNAL"]
)
def test_a_name_is_judged_by_its_addresses(name: str) -> None:
    assert Egress().refusal(name, "169.254.169.254") is not None
    assert Egress().refusal(name, "8.8.8.8") is None


@pytest.mark.parametrize(
    "text", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "１２７.0.0.1", "", "localhost"]
)
def test_what_is_no_address_is_never_dialled(text: str) -> None:
    assert Egress().refusal("svc.internal", text) is not None


def test_hosts_are_closed_by_name_where_somebody_else_resolves_them() -> None:
    egress = Egress(Config(deny=("admin.internal", "*.corp", "10.0.0.0/8")))
    assert egress.closed_name("Admin.internal.") is not None
    assert egress.closed_name("a.corp") is not None
    assert egress.closed_name("svc.internal") is None


@pytest.mark.parametrize(
    ("url", "closed"),
    [
        ("http://10.0.0.1:80", True),
        ("http://[::ffff:10.0.0.1]:80", True),
        ("http://10.1.0.1:80", False),
        ("http://admin.internal:80", True),
        ("http://svc.internal:80", False),
        ("unix:/run/10.0.0.1", False),
    ],
)
def test_written_endpoints_are_closed_by_deny_only(url: str, *, closed: bool) -> None:
    rules = Egress(Config(deny=("10.0.0.0/16", "admin.internal")))
    assert (rules.of_written(url) is not None) == closed
