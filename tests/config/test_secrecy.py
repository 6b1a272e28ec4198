from __future__ import annotations

import pytest

from ambassador.config.load import load_text
from ambassador.config.schema import Auth, Config, Endpoint, Listener, Upstream
from ambassador.config.secrecy import holds_secrets, secret_files, without_secrets
from ambassador.proxy.credentials import basic
from ambassador.proxy.key_files import ClientConfig, KeyPair, ServerConfig

PLAIN = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: u}]\nupstreams: {u: {endpoints: [http://127.0.0.1:1]}}\n"


def test_config_without_secrets_holds_none() -> None:
    assert not holds_secrets(load_text(PLAIN + "admin: 127.0.0.1:9901\nstate: redis://127.0.0.1"))


@pytest.mark.parametrize(
    "config",
    [
        PLAIN + "admin: {address: '127.0.0.1:9901', token: env:A}",
        PLAIN + "state: {url: 'redis://127.0.0.1', password: env:A}",
        PLAIN.replace("}}", ", auth: {bearer: env:A}}}"),
        PLAIN.replace("}}", ", auth: {basic: {user: a, password: env:A}}}}"),
    ],
)
def test_config_with_a_secret_holds_some(config: str) -> None:
    assert holds_secrets(load_text(config))


@pytest.mark.parametrize(
    "tls", [ServerConfig(cert="/a", key="/b"), ServerConfig(certificates=(KeyPair(cert="/a", key="/b"),))]
)
def test_config_with_a_private_key_holds_some(tls: ServerConfig) -> None:
    assert holds_secrets(Config(listeners=(Listener(address="127.0.0.1:80", tls=tls),)))


def test_config_without_secrets_says_nowhere_where_they_are() -> None:
    config = load_text(
        PLAIN.replace("}}", ", auth: {basic: {user: a, password: env:SECRET_A}}}}")
        + "admin: {address: '127.0.0.1:9901', token: env:SECRET_B}\n"
        + "state: {url: 'redis://127.0.0.1', password: env:SECRET_C, secret_key: file:/SECRET_D}\n"
        + "clients: {c: {api_key: [env:SECRET_E, file:/SECRET_F], basic: {user: b, password: env:SECRET_G}}}"
    )
    told = without_secrets(config)
    assert "SECRET" not in repr(told)
    assert repr(told).count("'***'") == 7
    assert told.upstreams["u"].auth == Auth(basic=basic.Config(user="a", password="***"))
    assert told.routes is config.routes  # what has none is not made again


def test_private_key_for_upstreams_is_one() -> None:
    upstream = Upstream(endpoints=(Endpoint(url="https://a:443"),), tls=ClientConfig(ca="/a"))
    assert not holds_secrets(Config(listeners=(), upstreams={"u": upstream}))
    upstream = Upstream(endpoints=(Endpoint(url="https://a:443"),), tls=ClientConfig(cert="/a", key="/b"))
    assert holds_secrets(Config(listeners=(), upstreams={"u": upstream}))


def test_secrets_in_files_are_listed_wherever_they_stand() -> None:
    config = load_text(
        PLAIN.replace("}}", ", auth: {basic: {user: a, password: file:/a}}}}")
        + "state: {url: 'redis://127.0.0.1', password: env:B, secret_key: file:/c}\n"
        + "clients: {c: {api_key: [env:D, file:/e], basic: {user: b, password: file:/a}}}"
    )
    assert secret_files(config) == {"file:/a", "file:/c", "file:/e"}
    assert secret_files(load_text(PLAIN)) == frozenset()
