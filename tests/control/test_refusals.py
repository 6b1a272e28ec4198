"""The log hears of addresses that egress refuses."""

from __future__ import annotations

import logging

import pytest

from ambassador.config.load import load_text
from ambassador.config.schema import Config
from ambassador.control.refusals import Refusals


def a_config(egress: str = "") -> Config:
    return load_text(f"""
version: 1
listen: 127.0.0.1:0
{egress}
routes: [{{name: a, match: {{path: /a}}, to: svc}}, {{name: b, to: found}}]
upstreams:
  svc: {{endpoints: ["http://svc.test:80", "http://10.0.0.9:80", "unix:/run/app.sock"]}}
  found: {{discover: {{dns: "pool.test:80"}}}}
""")


def test_refused_addresses_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    config = a_config()
    refusals = Refusals(logging.getLogger("test"))
    found = {config.upstreams["found"].discover: ["http://10.0.0.1:80", "http://169.254.169.254:80"]}
    for _ in range(2):
        refusals.look(config, {"svc.test": ["169.254.1.1", "10.0.0.2"]}, found)  # type: ignore[arg-type]
    assert caplog.messages == [
        f"upstream {who} is not connected to: {what} is link-local, or that of a metadata service"
        for who, what in [
            ("found: 169.254.169.254", "169.254.169.254"),
            ("svc: svc.test", "169.254.1.1"),
        ]
    ]


def test_refused_addresses_that_were_gone_are_told_again(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(logging.getLogger("test"))
    for addresses in (["169.254.1.1"], [], ["169.254.1.1"]):
        refusals.look(a_config(), {"svc.test": addresses}, {})
    assert len(caplog.messages) == 2


def test_refusals_follow_the_config(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(logging.getLogger("test"))
    refusals.look(a_config("egress: {allow: [svc.test], deny: [10.0.0.9]}"), {"svc.test": ["10.0.0.2"]}, {})
    assert caplog.messages == ["upstream svc: 10.0.0.9 is not connected to: egress.deny closes 10.0.0.9"]


def test_refused_address_of_an_egress_proxy_is_told(caplog: pytest.LogCaptureFixture) -> None:
    text = """
version: 1
listen: 127.0.0.1:0
routes: [{name: r, to: u}]
upstreams: {u: {endpoints: ["http://svc.test"], connections: {via: "http://proxy.test:3128"}}}
"""
    Refusals(logging.getLogger("test")).look(load_text(text), {"proxy.test": ["169.254.1.1"]}, {})
    (told,) = caplog.messages
    assert told.startswith(
        "upstream u: svc.test via proxy.test is not connected to: 169.254.1.1 is link-local"
    )
