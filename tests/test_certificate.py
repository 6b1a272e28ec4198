"""What is read of certificates, held against what `cryptography` reads of the same ones."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from ambassador.certificate import certificates, covers, is_encrypted, is_key


def test_certificate_tells_names_and_times_as_another_reader_does() -> None:
    leaf = trustme.CA().issue_cert(
        "api.internal",
        "*.Shop.internal",
        "10.1.2.3",
        "fd00::1",
        not_after=dt.datetime(2061, 5, 6, 7, 8, 9, tzinfo=dt.UTC),
    )
    pem = leaf.cert_chain_pems[0].bytes()
    other = x509.load_pem_x509_certificate(pem)
    [found] = certificates(pem)
    assert found.names == ("api.internal", "*.shop.internal", "10.1.2.3", "fd00::1")
    assert found.not_before == other.not_valid_before_utc.timestamp()
    assert found.not_after == other.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("year", [2049, 2050])
def test_certificate_tells_times_in_both_forms(year: int) -> None:
    end = dt.datetime(year, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
    leaf = trustme.CA().issue_cert("a.b", not_after=end)
    assert certificates(leaf.cert_chain_pems[0].bytes())[0].not_after == end.timestamp()


def test_certificate_without_alternative_names_has_its_common_name() -> None:
    [authority] = certificates(trustme.CA(organization_unit_name="Tests").cert_pem.bytes())
    assert authority.subject == ""
    leaf = trustme.CA().issue_cert("a.b", common_name="Someone Else")
    [found] = certificates(leaf.cert_chain_pems[0].bytes())
    assert (found.subject, found.names) == ("Someone Else", ("a.b",))


def test_certificates_come_in_the_order_of_the_file_with_anything_between_them() -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("a.b").cert_chain_pems[0].bytes()
    found = certificates(b"Bag Attributes\n" + leaf + b"\xc3\xa4\n" + authority.cert_pem.bytes())
    assert [each.names for each in found] == [("a.b",), ()]


@pytest.mark.parametrize("data", [b"", b"no\n", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_certificates_are_missing_from_other_files(data: bytes) -> None:
    with pytest.raises(ValueError, match="holds no certificate"):
        certificates(data)


def test_certificates_refuse_what_is_not_base64() -> None:
    with pytest.raises(ValueError, match="not base64"):
        certificates(b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n")


_GOOD = base64.b64decode(
    b"".join(trustme.CA().issue_cert("a.b").cert_chain_pems[0].bytes().splitlines()[1:-1])
)


@given(st.one_of(st.binary(max_size=64), st.integers(0, len(_GOOD) - 1).map(lambda end: _GOOD[:end])))
def test_certificates_raise_nothing_else_for_other_bytes(der: bytes) -> None:
    pem = b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----\n" % base64.b64encode(der)
    with pytest.raises(ValueError, match="not an X"):
        certificates(pem)


@given(st.integers(0, len(_GOOD) - 1), st.integers(0, 255))
def test_certificates_with_one_byte_changed_are_read_or_refused(at: int, byte: int) -> None:
    der = _GOOD[:at] + bytes([byte]) + _GOOD[at + 1 :]
    pem = b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----\n" % base64.b64encode(der)
    with contextlib.suppress(ValueError):
        assert len(certificates(pem)) == 1


@pytest.mark.parametrize(
    ("names", "host", "does"),
    [
        (("a.b",), "a.b", True),
        (("a.b",), "x.a.b", False),
        (("*.b.c",), "a.b.c", True),
        (("*.b.c",), "x.a.b.c", False),
        (("*.b.c",), "b.c", False),
        (("*",), "a", False),
        (("10.0.0.1",), "10.0.0.1", True),
        ((), "a.b", False),
    ],
)
def test_certificate_covers_its_names_and_one_label_for_a_wildcard(
    names: tuple[str, ...], host: str, *, does: bool
) -> None:
    assert covers(names, host) is does


def test_key_is_told_from_other_files_and_an_encrypted_one_from_a_plain_one() -> None:
    leaf = trustme.CA().issue_cert("a.b")
    plain = leaf.private_key_pem.bytes()
    assert is_key(plain)
    assert not is_encrypted(plain)
    assert not is_key(leaf.cert_chain_pems[0].bytes())
    assert is_encrypted(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert is_encrypted(b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n")
    assert is_key(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
