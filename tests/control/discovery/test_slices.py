from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.config.discover import Server
from ambassador.control.discovery.slices import EndpointSlice, SliceList, merge


def slices(*objects: dict[str, Any]) -> list[EndpointSlice]:
    return msgspec.convert(list(objects), list[EndpointSlice])


def pod(
    address: str, ready: bool | None = True, *, zone: str | None = None, **conditions: bool
) -> dict[str, Any]:
    return {"addresses": [address], "conditions": {"ready": ready, **conditions}, "zone": zone}


def slice_of(
    *pods: dict[str, Any], family: str = "IPv4", ports: Any = (("http", 8080),), name: str = "s"
) -> dict[str, Any]:
    listed = (
        None if ports is None else [{"name": each[0], "port": each[1], "protocol": "TCP"} for each in ports]
    )
    return {"metadata": {"name": name}, "addressType": family, "endpoints": list(pods), "ports": listed}


def urls(*objects: dict[str, Any], port: str | None = None) -> list[str]:
    return [server.url for server in merge(slices(*objects), port).servers]


def test_ready_pods_of_all_slices_are_servers_with_their_zones() -> None:
    merged = merge(
        slices(
            slice_of(pod("10.0.0.2", zone="b"), pod("10.0.0.3", ready=False)),
            slice_of(pod("10.0.0.1", zone="a")),
        ),
        None,
    )
    assert merged.servers == (
        Server("http://10.0.0.1:8080", 1, "a"),
        Server("http://10.0.0.2:8080", 1, "b"),
    )
    assert merged.problem is None


def test_condition_that_is_not_known_means_ready() -> None:
    bare = {"addresses": ["10.0.0.1"]}
    assert urls(slice_of(bare, pod("10.0.0.2", ready=None))) == [
        "http://10.0.0.1:8080",
        "http://10.0.0.2:8080",
    ]


def test_pod_that_is_in_two_slices_is_one_server() -> None:
    twice = urls(slice_of(pod("10.0.0.1", ready=False)), slice_of(pod("10.0.0.1")))
    assert twice == ["http://10.0.0.1:8080"]


def test_terminating_pods_serve_only_while_none_is_ready() -> None:
    leaving = pod("10.0.0.1", ready=False, serving=True, terminating=True)
    ended = pod("10.0.0.2", ready=False, serving=False, terminating=True)
    assert urls(slice_of(leaving, ended)) == ["http://10.0.0.1:8080"]
    assert urls(slice_of(leaving, ended, pod("10.0.0.3"))) == ["http://10.0.0.3:8080"]


def test_pod_that_serves_but_is_not_ready_and_does_not_end_gets_nothing() -> None:
    assert urls(slice_of(pod("10.0.0.1", ready=False, serving=True))) == []


def test_only_the_first_address_counts() -> None:
    assert urls(slice_of({"addresses": ["10.0.0.1", "10.0.0.2"]})) == ["http://10.0.0.1:8080"]


def test_dual_stack_service_has_its_ipv4_pods() -> None:
    v6 = slice_of(pod("2001:DB8::1"), family="IPv6")
    assert urls(slice_of(pod("10.0.0.1")), v6) == ["http://10.0.0.1:8080"]
    assert urls(slice_of(pod("10.0.0.1", ready=False)), v6) == ["http://[2001:db8::1]:8080"]


def test_names_are_endpoints_too() -> None:
    assert urls(slice_of(pod("Db.Example"), family="FQDN")) == ["http://db.example:8080"]


def test_what_is_no_address_is_passed_over() -> None:
    assert urls(slice_of(pod("ten"), pod("10.0.0.1"), {"addresses": []}, {"addresses": None})) == [
        "http://10.0.0.1:8080"
    ]
    assert urls(slice_of(pod("10.0.0.1"), family="IPv7")) == []


TWO = (("http", 8080), ("admin", 9000))


@pytest.mark.parametrize(
    ("ports", "wanted", "found"),
    [
        ((("", 8080),), None, 8080),
        ((("http", 8080),), "http", 8080),
        (TWO, "admin", 9000),
        (TWO, "9000", 9000),
        (None, "7000", 7000),
        ((("all", None),), "7000", 7000),
    ],
)
def test_port_is_found_by_name_or_number(ports: Any, wanted: str | None, found: int) -> None:
    assert urls(slice_of(pod("10.0.0.1"), ports=ports), port=wanted) == [f"http://10.0.0.1:{found}"]


def test_named_port_may_differ_from_slice_to_slice() -> None:
    old = slice_of(pod("10.0.0.1"), ports=(("http", 8080),))
    new = slice_of(pod("10.0.0.2"), ports=(("http", 8081),))
    assert urls(old, new, port="http") == ["http://10.0.0.1:8080", "http://10.0.0.2:8081"]


def test_several_ports_without_a_choice_are_a_problem() -> None:
    merged = merge(slices(slice_of(pod("10.0.0.1"), ports=TWO)), None)
    assert merged.servers == ()
    assert merged.problem == "the service has several ports; name one: admin, http"


def test_port_that_is_not_there_is_a_problem() -> None:
    merged = merge(slices(slice_of(pod("10.0.0.1"), ports=TWO)), "grpc")
    assert merged.servers == ()
    assert merged.problem == "the service has no port 'grpc'; it has admin, http"
    assert merge(slices(slice_of(ports=TWO)), "grpc").problem is None


def test_udp_ports_do_not_count() -> None:
    made = slice_of(pod("10.0.0.1"))
    made["ports"].append({"name": "dns", "port": 53, "protocol": "UDP"})
    assert urls(made) == ["http://10.0.0.1:8080"]


def test_no_slice_is_no_server_and_no_problem() -> None:
    assert merge([], None) == merge([], "http")
    assert merge([], None).servers == ()


def test_list_of_the_api_is_read_with_its_nulls() -> None:
    text = b"""{"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1",
      "metadata": {"resourceVersion": "7", "continue": "next", "remainingItemCount": 1},
      "items": [{"metadata": {"name": "web-x", "resourceVersion": "5", "labels": {"a": "b"}},
        "addressType": "IPv4", "endpoints": null, "ports": null}]}"""
    page = msgspec.json.decode(text, type=SliceList)
    assert (page.metadata.resource_version, page.metadata.continue_) == ("7", "next")
    assert page.items is not None
    assert page.items[0].metadata.name == "web-x"
    assert merge(page.items, None).servers == ()


CONDITION = st.none() | st.booleans()
POD = st.builds(
    lambda last, ready, serving, terminating: {
        "addresses": [f"10.0.0.{last}"],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    },
    st.integers(1, 6),
    CONDITION,
    CONDITION,
    CONDITION,
)


@given(st.lists(st.lists(POD, max_size=4), max_size=4), st.randoms())
def test_order_and_grouping_of_slices_do_not_matter(groups: list[list[dict[str, Any]]], random: Any) -> None:
    # Duplicates that differ may be told in either slice; what is usable in one is usable.
    merged = merge(slices(*(slice_of(*group) for group in groups)), "http")
    flat = [each for group in groups for each in group]
    random.shuffle(flat)
    assert merge(slices(*(slice_of(each) for each in flat)), "http") == merged
    ready = {each["addresses"][0] for each in flat if each["conditions"]["ready"] is not False}
    if ready:
        assert {server.url for server in merged.servers} == {f"http://{address}:8080" for address in ready}
