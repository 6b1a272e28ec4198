"""The files of TLS that a listener or an upstream names: the settings. What reads them is `pem_files.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, Struct

from ambassador.certificate import Certificate
from ambassador.settings import Section

__all__ = ["ClientConfig", "KeyPair", "Pem", "PemFile", "ServerConfig", "named_files"]

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
