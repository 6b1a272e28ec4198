"""TLS in words."""

from __future__ import annotations

import pytest

from ambassador.config.discover import Discover
from ambassador.config.explain import Explanation, explain, with_endpoints
from ambassador.config.explain_lines import EndpointNow
from ambassador.config.schema import Config, Endpoint, Listener, Match, Route, Upstream
from ambassador.config.tls_words import certificate_text, verification_text
from ambassador.proxy.key_files import ClientConfig, KeyPair, ServerConfig

ONE = ServerConfig(cert="/a.crt", key="/a.key")
TWO = ServerConfig(cert="/a.crt", key="/a.key", certificates=(KeyPair(cert="/b.crt", key="/b.key"),))
NO_NAME = "no certificate has that name, so it is the first one, and clients will refuse it"
NAMES = {"/a.crt": ("a.test",), "/b.crt": ("*.b.test", "b.test")}
SECURE = Upstream(endpoints=(Endpoint(url="https://pay.test:443"),))


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("x.b.test", "/b.crt (*.b.test, b.test) for x.b.test; TLS 1.2 or newer"),
        ("", "/a.crt (a.test) for a client that asks for no name; TLS 1.2 or newer"),
        (
            "c.test",
            f"/a.crt (a.test) for c.test: {NO_NAME}; TLS 1.2 or newer",
        ),
    ],
)
def test_certificate_is_named_that_a_client_gets(host: str, text: str) -> None:
    assert certificate_text(TWO, host, NAMES) == text


def test_certificate_is_not_named_where_files_are_not_known() -> None:
    assert certificate_text(ONE, "a.test", {}) == "/a.crt; TLS 1.2 or newer"
    assert certificate_text(TWO, "a.test", {"/a.crt": ("a.test",)}) == (
        "one of 2, by the name that the client asks for; TLS 1.2 or newer"
    )


@pytest.mark.parametrize(("required", "word"), [(True, "must"), (False, "may")])
def test_clients_certificate_is_told_of(required: bool, word: str) -> None:
    tls = ServerConfig(cert="/a.crt", key="/a.key", client_ca="/ca", require_client_cert=required)
    assert certificate_text(tls, "a.test", NAMES).endswith(f"; clients {word} show one of /ca")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            ClientConfig(),
            "verified by the system's authorities, as the endpoint's own name; TLS 1.2 or newer",
        ),
        (
            ClientConfig(ca="/ca", sni="x.test", cert="/c", key="/k", min_version="1.3"),
            "verified by /ca, as x.test; TLS 1.3 or newer; /c is shown where it is asked for",
        ),
        (
            ClientConfig(verify=False, sni="x.test"),
            "not verified: anybody on the way can pretend to be the endpoint; x.test is asked for; TLS 1.2 or newer",
        ),
    ],
)
def test_verification_of_an_upstream_is_told(config: ClientConfig, text: str) -> None:
    assert verification_text(config, SECURE) == text


def test_verification_by_the_name_that_a_source_has() -> None:
    found = Upstream(discover=Discover(dns="api.test:443"), tls=ClientConfig())
    assert verification_text(ClientConfig(), found).startswith(
        "verified by the system's authorities, as the source's name"
    )


def test_explain_tells_of_both_sides() -> None:
    config = Config(
        listeners=(Listener(address="127.0.0.1:8080"), Listener(address="127.0.0.1:8443", tls=TWO)),
        upstreams={"pay": SECURE, "plain": Upstream(endpoints=(Endpoint(url="http://a:80"),))},
        routes=(
            Route(name="pay", line=1, file="a", match=Match(host=("b.test",)), to="pay"),
            Route(name="rest", line=2, file="a", to="plain"),
        ),
    )
    lines = {line.what: line for line in explain(config, "GET", "https://b.test/", names=NAMES).lines}
    assert lines["certificate"].key == "listeners[1].tls"
    assert lines["certificate"].text.startswith("127.0.0.1:8443: /b.crt (*.b.test, b.test) for b.test;")
    assert lines["tls"].key == "upstreams.pay.tls"
    assert "tls" not in {line.what for line in explain(config, "GET", "http://x/", names=NAMES).lines}


def test_explain_tells_of_tls_with_what_a_file_lists_only_where_that_is_https() -> None:
    config = Config(
        listeners=(Listener(address="127.0.0.1:8080"),),
        upstreams={"found": Upstream(discover=Discover(file="/endpoints.yaml"))},
        routes=(Route(name="r", line=1, file="a", to="found"),),
    )
    told = explain(config, "GET", "http://x/")
    expected = "where an endpoint is https, verified by the system's authorities, as the source's name; TLS 1.2 or newer"

    def tls(told: Explanation) -> list[str]:
        return [line.text for line in told.lines if line.what == "tls"]

    plain, secure = EndpointNow(url="http://a:80"), EndpointNow(url="https://b:443")
    assert tls(told) == [expected]
    assert tls(with_endpoints(told, config, [plain])) == []
    assert tls(with_endpoints(told, config, [plain, secure])) == [expected]
