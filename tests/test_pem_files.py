"""Files of TLS: what is read, and what is said of those that cannot be used."""

from __future__ import annotations

import datetime as dt
import os
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from ambassador import pem_files
from ambassador.pem_files import (
    FileError,
    load_authorities,
    load_chain,
    read_file,
    readable_by_all,
    trusting,
)
from ambassador.proxy.key_files import KeyPair
from tests.proxy.pem import Authority


def load(pair: KeyPair) -> None:
    load_chain(
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), read_file("cert", pair.cert), read_file("key", pair.key)
    )


def test_chain_is_loaded_from_what_was_read(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    cert, key = read_file("cert", pair.cert), read_file("key", pair.key)
    Path(pair.cert).write_text("changed meanwhile")
    Path(pair.key).unlink()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert load_chain(context, cert, key).names == ("a.b",)


def test_chain_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, two = authority.issue("a.b"), authority.issue("c.d")
    load(one)
    before = len(os.listdir("/proc/self/fd"))
    load(one)
    with pytest.raises(FileError):
        load(KeyPair(cert=one.cert, key=two.key))
    assert len(os.listdir("/proc/self/fd")) == before


def test_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, two = authority.issue("a.b"), authority.issue("c.d")
    with pytest.raises(FileError) as caught:
        load(KeyPair(cert=one.cert, key=two.key))
    assert str(caught.value) == f"key '{two.key}' does not belong to the certificate in '{one.cert}'"


def test_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    other = trustme.CA().issue_cert("a.b", key_type=trustme.KeyType.RSA)
    Path(pair.key).write_bytes(other.private_key_pem.bytes())
    with pytest.raises(FileError, match="does not belong to the certificate"):
        load(pair)


def test_encrypted_key_is_refused_without_asking_for_a_passphrase(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    key = serialization.load_pem_private_key(Path(pair.key).read_bytes(), None)
    for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        encrypted = key.private_bytes(
            serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"secret")
        )
        Path(pair.key).write_bytes(encrypted)
        with pytest.raises(FileError, match="is encrypted; write it without a passphrase"):
            load(pair)


def test_file_with_something_else_is_refused(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    with pytest.raises(FileError, match=f"key '{pair.cert}' holds no private key in PEM form"):
        load(KeyPair(cert=pair.cert, key=pair.cert))
    with pytest.raises(FileError, match=f"cert '{pair.key}' holds no certificate in PEM form"):
        load(KeyPair(cert=pair.key, key=pair.key))
    Path(pair.key).write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(FileError, match=f"key '{pair.key}' cannot be used: "):
        load(pair)


def test_key_that_is_too_short_is_told_of_at_its_certificate(tmp_path: Path) -> None:
    pair = KeyPair(cert=str(tmp_path / "c"), key=str(tmp_path / "k"))
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "short")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    Path(pair.cert).write_bytes(cert)
    Path(pair.key).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(FileError, match=f"cert '{pair.cert}' has a key that is too short to be safe"):
        load(pair)


def test_authorities_are_loaded(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    content = read_file("ca", authority.ca)
    assert len(load_authorities(context, content)) == 1
    assert context.cert_store_stats()["x509_ca"] == 1


def test_authorities_refuse_what_is_no_certificate(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    with pytest.raises(FileError, match="holds no certificate"):
        load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), read_file("ca", pair.key))


def test_calls_trust_the_authorities_of_their_file_alone(tmp_path: Path) -> None:
    context = trusting(Authority(tmp_path).ca)
    assert len(context.get_ca_certs()) == 1
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_calls_trust_the_systems_authorities_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ssl.Purpose] = []
    monkeypatch.setattr(
        ssl.SSLContext, "load_default_certs", lambda _, purpose=ssl.Purpose.SERVER_AUTH: asked.append(purpose)
    )
    assert trusting(None).verify_mode is ssl.CERT_REQUIRED
    assert asked == [ssl.Purpose.SERVER_AUTH]


def test_calls_refuse_authorities_that_are_none_and_never_wait_for_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "cut").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for name, problem in (
        ("pipe", "is not a file"),
        ("missing", "cannot be read: No such file or directory"),
        ("junk", "holds no certificate in PEM form"),
        ("cut", "holds something that is not an X.509 certificate"),
    ):
        with pytest.raises(FileError, match=rf"^ca '{tmp_path}/{name}' {problem}"):
            trusting(str(tmp_path / name))
    with pytest.raises(FileError, match="is not a file"):
        trusting("/dev/zero")


def test_file_that_is_not_there_or_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_file("cert", str(tmp_path / "missing"))
    with pytest.raises(FileError, match="is not a file"):
        read_file("cert", str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is not a file"):
        read_file("cert", str(tmp_path / "pipe"))
    monkeypatch.setattr(pem_files, "LARGEST_FILE", 3)
    (tmp_path / "large").write_bytes(b"1234")
    with pytest.raises(FileError, match="is larger than"):
        read_file("cert", str(tmp_path / "large"))


def test_content_does_not_show_what_it_holds(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    content = read_file("key", pair.key)
    assert repr(content) == f"Content(key, {pair.key})"
    assert "PRIVATE" not in str(content)


def test_key_that_everybody_may_read_is_known(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("")
    path.chmod(0o640)
    assert not readable_by_all(str(path))
    path.chmod(0o644)
    assert readable_by_all(str(path))
    assert not readable_by_all(str(tmp_path / "missing"))
