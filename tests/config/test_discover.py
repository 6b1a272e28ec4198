from __future__ import annotations

import msgspec
import pytest

from ambassador.config.discover import Discover, Kubernetes, own_host, source_name
from ambassador.config.load import load_string, load_text
from ambassador.config.schema import Config


def upstream(settings: str) -> str:
    head = "version: 1\nlisten: 127.0.0.1:0\nroutes: [{name: a, to: u}]\n"
    return f"{head}upstreams: {{u: {{{settings}}}}}\n"


def discover(settings: str) -> Discover:
    found = load_text(upstream(f"discover: {{{settings}}}")).upstreams["u"].discover
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("dns: 'API.internal:8080'", Discover(dns="api.internal:8080")),
        ("dns: '[::1]:80'", Discover(dns="[::1]:80")),
        ("srv: _HTTP._tcp.api.internal.", Discover(srv="_http._tcp.api.internal")),
        ("file: /etc/a.yaml", Discover(file="/etc/a.yaml")),
        ("kubernetes: web", Discover(kubernetes=Kubernetes(service="web"))),
        (
            "kubernetes: {service: web, namespace: shop, port: 8080}",
            Discover(kubernetes=Kubernetes(service="web", namespace="shop", port="8080")),
        ),
        (
            "kubernetes: {service: web, namespace: shop, server: 'https://API:6443', token: 'env:T', ca: /ca.pem}",
            Discover(
                kubernetes=Kubernetes(
                    service="web", namespace="shop", server="https://api:6443", token="env:T", ca="/ca.pem"
                )
            ),
        ),
    ],
)
def test_source_is_read(written: str, read: Discover) -> None:
    assert discover(written) == read


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("weight: 1", "unknown key 'weight'"),
        ("connections: {max: 1}", "upstreams.u: needs one of 'endpoints' and 'discover'"),
        ("endpoints: []", "upstreams.u.endpoints: must not be empty"),
        (
            "endpoints: [http://a], discover: {dns: 'a:1'}",
            "upstreams.u.discover: is in place of 'endpoints', and both are there",
        ),
        ("discover: {}", "upstreams.u.discover: needs exactly one of dns, srv, file, kubernetes"),
        (
            "discover: {dns: 'a:1', srv: b}",
            "upstreams.u.discover: needs exactly one of dns, srv, file, kubernetes",
        ),
        ("discover: {dns: a}", "discover.dns: 'a' has no port; write it like 'a:8080'"),
        ("discover: {dns: 'a:0'}", "discover.dns: 'a:0': port 0 cannot be connected to"),
        ("discover: {srv: 'a:1'}", "discover.srv: 'a:1' has a port; SRV records tell the ports themselves"),
        ("discover: {srv: 10.0.0.1}", "discover.srv: '10.0.0.1' is an address"),
        ("discover: {file: a.yaml}", "discover.file: 'a.yaml' is not the absolute path of a file"),
        ("discover: {kubernetes: {service: Web}}", "discover.kubernetes.service: 'Web' is not a name"),
        ("discover: {kubernetes: {service: w, port: 0}}", "discover.kubernetes.port: '0' is not a port"),
        ("discover: {kubernetes: {service: w, ca: /a}}", "kubernetes.ca: needs the 'server' that it is for"),
        ("discover: {kubernetes: {service: w, server: 'https://a'}}", "the 'namespace' must be named too"),
        (
            "discover: {kubernetes: {service: w, namespace: n, server: 'http://a', token: 'env:T'}}",
            "kubernetes.token: is not sent over plaintext HTTP to another host",
        ),
        (
            "discover: {kubernetes: {service: w, server: 'ftp://a'}}",
            "'ftp://a' is not the address of a server",
        ),
    ],
)
def test_source_that_cannot_be_is_refused(settings: str, problem: str) -> None:
    errors = [str(error) for error in load_string(upstream(settings)).errors]
    assert len(errors) == 1
    assert problem in errors[0]


def test_token_may_go_to_a_server_on_this_host() -> None:
    read = discover("kubernetes: {service: w, namespace: n, server: 'http://127.0.0.1:8001', token: 'env:T'}")
    discover(
        "kubernetes: {service: w, namespace: n, server: 'http://[::ffff:127.0.0.1]:8001', token: 'env:T'}"
    )
    assert read.kubernetes is not None
    assert read.kubernetes.server == "http://127.0.0.1:8001"


@pytest.mark.parametrize(
    ("source", "name", "host"),
    [
        (Discover(dns="api:8080"), "dns api:8080", "api:8080"),
        (Discover(dns="api:80"), "dns api:80", "api"),
        (Discover(srv="_a._tcp.b"), "srv _a._tcp.b", None),
        (Discover(file="/a"), "file /a", None),
        (Discover(kubernetes=Kubernetes(service="web")), "kubernetes web", "web"),
        (
            Discover(kubernetes=Kubernetes(service="web", namespace="shop", port="http")),
            "kubernetes shop/web:http",
            "web.shop.svc",
        ),
    ],
)
def test_source_has_a_name_and_maybe_a_host(source: Discover, name: str, host: str | None) -> None:
    assert source_name(source) == name
    assert own_host(source) == host


def test_sources_are_keys_and_survive_msgpack() -> None:
    config = load_text(upstream("discover: {kubernetes: {service: web, port: http}}"))
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=Config)
    assert again == config
    assert {again.upstreams["u"].discover: 1}[config.upstreams["u"].discover] == 1
