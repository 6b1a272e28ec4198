"""The Structs: what is immutable, and what cannot be together."""

from __future__ import annotations

import pytest

from ambassador.config.load import load_text
from ambassador.config.schema import (
    ON_THE_WAY,
    POLICIES,
    TARGETS,
    Config,
    Discover,
    Listener,
    Route,
    Timeout,
    Upstream,
    ValueMatch,
    policies_of,
)
from ambassador.proxy.key_files import ClientConfig


def test_config_is_immutable() -> None:
    config = Config(listeners=(Listener(address="127.0.0.1:1"),))
    with pytest.raises(AttributeError):
        config.name = "x"  # type: ignore[misc]


def test_timeout_conflicts() -> None:
    assert list(Timeout(per_try=2.0, total=2.0).conflicts()) == []
    assert [field for field, _ in Timeout(per_try=3.0, first_byte=3.0, total=2.0).conflicts()] == [
        "per_try",
        "first_byte",
    ]


def test_value_match_conflicts() -> None:
    assert list(ValueMatch(exact=("a",)).conflicts()) == []
    assert len(list(ValueMatch().conflicts())) == 1
    assert len(list(ValueMatch(exact=("a",), present=True).conflicts())) == 1


def test_every_field_of_a_route_is_a_policy_or_says_which_requests_and_where_they_go() -> None:
    about = {"name", "match", "line", "file"}
    assert sorted([*POLICIES, *TARGETS, *about]) == sorted(Route.__struct_fields__)
    assert set(ON_THE_WAY) < set(POLICIES)


def test_policies_of_a_route_are_those_that_do_something() -> None:
    text = """version: 1
listen: 127.0.0.1:80
defaults: {limit: 5/s, concurrency: 3}
routes:
  - {name: a, to: http://a, idempotency: {}, hedge: {}, retry: off}
  - {name: b, respond: 200}
"""
    forwarded, answered = map(policies_of, load_text(text).routes)
    assert forwarded == ("limit", "concurrency", "idempotency", "timeout", "hedge")
    assert answered == ("limit", "concurrency")


def test_upstream_with_tls_speaks_it_with_all_that_its_source_finds() -> None:
    found = Upstream(discover=Discover(dns="api.test:443"), tls=ClientConfig())
    assert found.found_url("http://10.0.0.1:443") == "https://10.0.0.1:443"
    assert found.own_host == "api.test"
    plain = Upstream(discover=Discover(dns="api.test:443"))
    assert plain.found_url("http://10.0.0.1:443") == "http://10.0.0.1:443"
    assert plain.own_host == "api.test:443"
    in_file = Upstream(discover=Discover(file="/f"), tls=ClientConfig())
    assert in_file.found_url("http://10.0.0.1:80") == "http://10.0.0.1:80"
    assert in_file.own_host is None
