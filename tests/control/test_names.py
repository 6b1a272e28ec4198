from __future__ import annotations

from ambassador.config.load import load_text
from ambassador.control.names import host_names


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
