from __future__ import annotations

from ambassador.config.discover import Discover
from ambassador.config.load import load_text
from ambassador.control.names import host_names, sources


def test_hosts_are_those_of_all_endpoints() -> None:
    config = load_text(
        """\
version: 1
listen: 127.0.0.1:0
upstreams:
  a: {endpoints: ["http://One.example:80", "http://127.0.0.1:1", "http://[::1]:1", "unix:/s"]}
routes:
  - {name: a, to: a}
  - {name: b, to: "http://two.example"}
"""
    )
    assert host_names(config) == {"one.example", "127.0.0.1", "::1", "two.example"}


def test_sources_are_those_of_all_upstreams_once() -> None:
    config = load_text(
        """\
version: 1
listen: 127.0.0.1:0
upstreams:
  a: {discover: {dns: "one.example:80"}}
  b: {discover: {dns: "ONE.example:80"}, connections: {max: 1}}
  c: {endpoints: ["http://two.example"]}
routes: [{name: a, to: a}, {name: b, to: b}, {name: c, to: c}]
"""
    )
    assert sources(config) == {Discover(dns="one.example:80")}
    assert host_names(config) == {"two.example"}
