"""The files of TLS: which ones a listener or an upstream names, what they hold, and what is wrong with them.

The same reading serves `check`, which tells of every file at its place in the config, and the service, which reads them
again when they change (`proxy.tls`). What was examined is what is used: OpenSSL is given the bytes that were read, by a
file in memory, never the path, whose content may be another by then.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from typing import Annotated, Final

from msgspec import Meta, Struct

from ambassador.files import UnfitFile, read_regular
from ambassador.proxy.certificate import Certificate, certificates, is_encrypted, is_key
from ambassador.settings import Section

__all__ = [
    "ClientConfig",
    "Content",
    "FileError",
    "KeyPair",
    "Pem",
    "ServerConfig",
    "load_authorities",
    "load_chain",
    "named_files",
    "read_file",
    "readable_by_all",
]

LARGEST_FILE: Final = 4 * 2**20
"""Bytes. A bundle of all public authorities is 220 KiB."""

PemFile = Annotated[str, Meta(extra={"form": "pem_file"})]
"""The absolute path of a PEM file; `file:/path` is the same."""
TlsVersion = Annotated[str, Meta(extra={"form": "tls_version"})]
"""`1.2` or `1.3`."""


class KeyPair(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certificate and its key."""

    cert: PemFile
    """The certificate, and behind it those that lead to its authority, in PEM form."""

    key: PemFile
    """The private key, in PEM form and without a passphrase. Nobody but the service should be able to read it."""


class ServerConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS with clients. The files are read again when they change; what then does not fit together is not taken."""

    cert: PemFile | None = None
    """The certificate, and behind it those that lead to its authority, in PEM form."""

    key: PemFile | None = None
    """The private key, in PEM form and without a passphrase. Nobody but the service should be able to read it."""

    certificates: tuple[KeyPair, ...] = ()
    """More certificates. A client gets the one whose names have the host that it asks for (SNI), by the whole name
    before by a wildcard; without one, the first, which is `cert` where that is written."""

    client_ca: PemFile | None = None
    """The authorities that clients' certificates come from. Unset: clients are not asked for one."""

    require_client_cert: bool = False
    """Whether a client without a certificate is refused. One with a bad certificate always is."""

    min_version: TlsVersion = "1.2"
    """The oldest version of TLS that is spoken, `1.2` or `1.3`."""

    @property
    def pairs(self) -> tuple[KeyPair, ...]:
        """Every certificate, the default first."""
        first = () if self.cert is None or self.key is None else (KeyPair(cert=self.cert, key=self.key),)
        return first + self.certificates

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """No certificate, or half of one; asking for clients' certificates that nobody vouches for."""
        if self.cert is None and self.key is None and not self.certificates:
            yield None, "needs 'cert' and 'key', or 'certificates'"
        if self.cert is not None and self.key is None:
            yield "cert", "needs its 'key'"
        if self.key is not None and self.cert is None:
            yield "key", "needs its 'cert'"
        if self.require_client_cert and self.client_ca is None:
            yield (
                "require_client_cert",
                "needs 'client_ca', the authorities that clients' certificates come from",
            )


class ClientConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS with an upstream's `https` endpoints. The files are read again when they change; what then does not fit
    together is not taken.
    """

    ca: PemFile | None = None
    """The authorities that the endpoints' certificates come from, in place of the system's."""

    cert: PemFile | None = None
    """The certificate that is shown to endpoints that ask for one, and behind it those that lead to its authority."""

    key: PemFile | None = None
    """Its private key, in PEM form and without a passphrase. Nobody but the service should be able to read it."""

    sni: Annotated[str, Meta(extra={"form": "server_name"})] | None = None
    """The name that is asked for (SNI) and that the certificate must be for. Unset: the host of the endpoint's URL."""

    verify: bool = True
    """Whether the endpoint's certificate is verified. Without, anybody on the way can pretend to be the endpoint."""

    min_version: TlsVersion = "1.2"
    """The oldest version of TLS that is spoken, `1.2` or `1.3`."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Half of a certificate; authorities that nobody asks."""
        if self.cert is not None and self.key is None:
            yield "cert", "needs its 'key'"
        if self.key is not None and self.cert is None:
            yield "key", "needs its 'cert'"
        if self.ca is not None and not self.verify:
            yield "ca", "has no effect with 'verify: false'"


class FileError(Exception):
    """A file that cannot be used: `label` is its setting, `path` where it is, `problem` what is wrong with it."""

    def __init__(self, label: str, path: str, problem: str) -> None:
        super().__init__(f"{label} '{path}' {problem}")
        self.label = label
        self.path = path
        self.problem = problem


class Content(Struct, frozen=True, kw_only=True):
    """A file as it was read. `label`: the setting that names it, as `cert`, `certificates[1].key`."""

    label: str
    path: str
    data: bytes

    def __repr__(self) -> str:
        return f"Content({self.label}, {self.path})"


class Pem(Struct, frozen=True, kw_only=True):
    """A file of certificates in use: its setting, where it is, and of what it holds the one that ends first."""

    label: str
    path: str
    certificate: Certificate


def named_files(config: ServerConfig | ClientConfig) -> Iterator[tuple[str, str]]:
    """(setting, path) of every file that is named, a certificate directly before its key."""
    for label in ("cert", "key"):
        path = getattr(config, label)
        if path is not None:
            yield label, path
    if isinstance(config, ServerConfig):
        for at, pair in enumerate(config.certificates):
            yield f"certificates[{at}].cert", pair.cert
            yield f"certificates[{at}].key", pair.key
    ca = config.client_ca if isinstance(config, ServerConfig) else config.ca
    if ca is not None:
        yield ("client_ca" if isinstance(config, ServerConfig) else "ca"), ca


def read_file(label: str, path: str) -> Content:
    """A file of the config. It may block. Raises `FileError`."""
    try:
        return Content(label=label, path=path, data=read_regular(path, LARGEST_FILE))
    except UnfitFile as error:
        raise FileError(label, path, str(error)) from None


def read_certificates(content: Content) -> list[Certificate]:
    """What a file of certificates holds. Raises `FileError`."""
    try:
        return certificates(content.data)
    except ValueError as error:
        raise FileError(content.label, content.path, str(error)) from None


# A key of another kind meets no certificate in the place that OpenSSL has for its kind.
_MISMATCHES: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
_SAID_OF_CERT: Final = {
    "EE_KEY_TOO_SMALL": "has a key that is too short to be safe",
    "CA_KEY_TOO_SMALL": "has a key that is too short to be safe",
    "CA_MD_TOO_WEAK": "is signed with a hash that is not safe any more",
    "EE_KEY_MD_TOO_WEAK": "is signed with a hash that is not safe any more",
}


def load_chain(context: ssl.SSLContext, cert: Content, key: Content) -> Certificate:
    """Have the context show this certificate; returns what it is. Raises `FileError`."""
    certificate = read_certificates(cert)[0]
    if is_encrypted(key.data):
        raise FileError(key.label, key.path, "is encrypted; write it without a passphrase")
    if not is_key(key.data):
        raise FileError(key.label, key.path, "holds no private key in PEM form")
    cert_fd, key_fd = os.memfd_create("cert"), os.memfd_create("key")
    try:
        _write(cert_fd, cert.data)
        _write(key_fd, key.data)
        context.load_cert_chain(f"/proc/self/fd/{cert_fd}", f"/proc/self/fd/{key_fd}", password=lambda: b"")
    except ssl.SSLError as error:
        reason = error.reason or "unknown"
        if reason in _SAID_OF_CERT:
            raise FileError(cert.label, cert.path, _SAID_OF_CERT[reason]) from None
        if reason in _MISMATCHES:
            raise FileError(
                key.label, key.path, f"does not belong to the certificate in '{cert.path}'"
            ) from None
        raise FileError(key.label, key.path, f"cannot be used: {_words(reason)}") from None
    finally:
        os.close(cert_fd)
        os.close(key_fd)
    return certificate


def load_authorities(context: ssl.SSLContext, ca: Content) -> list[Certificate]:
    """Have the context trust these authorities; returns what they are. Raises `FileError`."""
    found = read_certificates(ca)
    try:
        context.load_verify_locations(cadata=_only_certificates(ca.data))
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "unknown"
        raise FileError(ca.label, ca.path, f"cannot be used: {_words(reason)}") from None
    return found


def readable_by_all(path: str) -> bool:
    """Whether everybody on this machine may read a file; False if that cannot be told."""
    try:
        return bool(os.stat(path).st_mode & 0o004)
    except OSError:
        return False


def _write(fd: int, data: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(data)


def _only_certificates(pem: bytes) -> str:
    """As text for OpenSSL, which wants ASCII; what stands between the certificates may be anything."""
    return pem.decode("ascii", "replace").replace("\ufffd", "?")


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")
