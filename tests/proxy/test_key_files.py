"""Which files of TLS a section names."""

from __future__ import annotations

from ambassador.proxy.key_files import ClientConfig, KeyPair, ServerConfig, named_files


def test_named_files_are_told_in_order() -> None:
    server = ServerConfig(
        cert="/a.crt",
        key="/a.key",
        certificates=(KeyPair(cert="/b.crt", key="/b.key"),),
        client_ca="/ca",
    )
    assert list(named_files(server)) == [
        ("cert", "/a.crt"),
        ("key", "/a.key"),
        ("certificates[0].cert", "/b.crt"),
        ("certificates[0].key", "/b.key"),
        ("client_ca", "/ca"),
    ]
    assert list(named_files(ClientConfig(ca="/ca"))) == [("ca", "/ca")]
    assert list(named_files(ClientConfig())) == []


def test_pairs_begin_with_the_default() -> None:
    other = KeyPair(cert="/b.crt", key="/b.key")
    assert ServerConfig(certificates=(other,)).pairs == (other,)
    assert ServerConfig(cert="/a.crt", key="/a.key", certificates=(other,)).pairs == (
        KeyPair(cert="/a.crt", key="/a.key"),
        other,
    )
