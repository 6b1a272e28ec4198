"""What the proxy must know of an X.509 certificate: the names it is for, and until when. Pure; PEM to `Certificate`.

Nothing is verified here, that is OpenSSL's; but `ssl` tells these things only of a peer's certificate, and the core
works without the package `cryptography`. So the few fields are found by a walk over the DER (X.690 8), which reads
lengths and passes over everything else (RFC 5280 4.1).
"""

from __future__ import annotations

import binascii
import ipaddress
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct

__all__ = ["Certificate", "certificates", "covers", "is_encrypted", "is_key"]

_BLOCK: Final = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END (?:X509 |TRUSTED )?CERTIFICATE-----",
    re.DOTALL,
)
_KEY: Final = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_ENCRYPTED: Final = re.compile(
    rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: *4, *ENCRYPTED", re.MULTILINE
)

_SEQUENCE: Final = 0x30
_EXTENSIONS: Final = 0xA3
_VERSION: Final = 0xA0
_OID: Final = 0x06
_OCTETS: Final = 0x04
_UTC_TIME: Final = 0x17
_DNS_NAME: Final = 0x82
_URI: Final = 0x86
_IP_ADDRESS: Final = 0x87
_COMMON_NAME: Final = b"\x55\x04\x03"
_ALTERNATIVE_NAME: Final = b"\x55\x1d\x11"


class Certificate(Struct, frozen=True, kw_only=True):
    """`not_before` and `not_after` in unix seconds. `names`: DNS names in lower case, IP addresses and URIs of the
    subject's alternative names; the common name where it has none of these. `subject`: the common name, or "".
    """

    names: tuple[str, ...]
    not_before: float
    not_after: float
    subject: str = ""


def certificates(pem: bytes) -> list[Certificate]:
    """The certificates of a file, in its order: that of a server first, then those that lead to its authority.

    Raises ValueError when there is none, or when one cannot be read.
    """
    found = [_certificate(_decoded(block[1])) for block in _BLOCK.finditer(pem)]
    if not found:
        raise ValueError("holds no certificate in PEM form")
    return found


def is_key(pem: bytes) -> bool:
    """Whether a file holds a private key in PEM form."""
    return _KEY.search(pem) is not None


def is_encrypted(pem: bytes) -> bool:
    """Whether the private key in a file needs a passphrase."""
    return _ENCRYPTED.search(pem) is not None


def covers(names: Sequence[str], host: str) -> bool:
    """Whether a certificate with these names is for `host` (lower case): by its name, or by `*.` and all behind the
    first label (RFC 6125 6.4.3).
    """
    _, _, parent = host.partition(".")
    return host in names or (bool(parent) and f"*.{parent}" in names)


def _decoded(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(b"".join(text.split()), strict_mode=True)
    except binascii.Error:
        raise ValueError("holds a certificate that is not base64") from None


def _certificate(der: bytes) -> Certificate:
    try:
        return _read(der)
    except (IndexError, ValueError, StopIteration):
        raise ValueError("holds something that is not an X.509 certificate") from None


def _read(der: bytes) -> Certificate:
    _, whole = next(_elements(der))
    _, signed = next(_elements(whole))
    parts = list(_elements(signed))
    if parts[0][0] == _VERSION:
        parts = parts[1:]
    # serial number, algorithm, issuer, validity, subject, public key, and what is optional
    first, last = (_time(tag, text) for tag, text in _elements(parts[3][1]))
    subject = _common_name(parts[4][1])
    names = next((_names(text) for tag, text in parts[6:] if tag == _EXTENSIONS), ())
    return Certificate(
        names=names or ((subject.lower(),) if subject else ()),
        not_before=first,
        not_after=last,
        subject=subject,
    )


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of what stands one behind the other. Raises ValueError for what ends before its length."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size])
            at += size
        content = data[at : at + length]
        if len(content) != length:
            raise ValueError("it is cut off")
        yield tag, content
        at += length


def _time(tag: int, text: bytes) -> float:
    digits = text.decode("ascii")
    # RFC 5280 4.1.2.5.1: two digits are 1950 to 2049.
    if tag == _UTC_TIME:
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _common_name(name: bytes) -> str:
    """The last common name of a distinguished name, as OpenSSL takes it."""
    found = ""
    for _, relative in _elements(name):
        for _, pair in _elements(relative):
            (_, kind), (_, value) = _elements(pair)
            if kind == _COMMON_NAME:
                found = value.decode("utf-8", "replace")
    return found


def _names(extensions: bytes) -> tuple[str, ...]:
    for _, listed in _elements(extensions):
        for _, extension in _elements(listed):
            parts = list(_elements(extension))
            if parts[0] == (_OID, _ALTERNATIVE_NAME) and parts[-1][0] == _OCTETS:
                (tag, general), *_ = _elements(parts[-1][1])
                return tuple(_general_names(general)) if tag == _SEQUENCE else ()
    return ()


def _general_names(data: bytes) -> Iterator[str]:
    for tag, value in _elements(data):
        if tag == _DNS_NAME:
            yield value.decode("ascii", "replace").lower()
        elif tag == _URI:
            yield value.decode("ascii", "replace")
        elif tag == _IP_ADDRESS and len(value) in (4, 16):
            yield str(ipaddress.ip_address(value))
