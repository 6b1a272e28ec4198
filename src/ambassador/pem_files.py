"""Files of TLS: what they hold, and what is wrong with them. The one way in which any is read, by everybody.

OpenSSL is never given a path: it would wait for whoever writes into a pipe, and what was examined may be something else
by then. It gets the bytes that were read, which are those of a regular file, and not too many (`files.py`). So `check`,
which tells of a file at its place in the config, and the service, which reads it again when it has changed, speak of
the same.
"""

from __future__ import annotations

import os
import ssl
from typing import Final

from msgspec import Struct

from ambassador.certificate import Certificate, certificates, is_encrypted, is_key
from ambassador.files import UnfitFile, read_regular

__all__ = [
    "Content",
    "FileError",
    "load_authorities",
    "load_chain",
    "read_certificates",
    "read_file",
    "readable_by_all",
    "trusting",
]

LARGEST_FILE: Final = 4 * 2**20
"""Bytes. A bundle of all public authorities is 220 KiB."""


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
        raise _unusable(ca, error) from None
    return found


def trusting(ca: str | None) -> ssl.SSLContext:
    """A context for calls of the ambassador's own, with Python's defaults: servers are verified by the authorities in
    the file `ca`, and no others; None: by the system's. It blocks, for 20 ms with these. Raises `FileError`.
    """
    if ca is None:
        return ssl.create_default_context()
    content = read_file("ca", ca)
    read_certificates(content)  # OpenSSL passes over what it cannot read
    try:
        return ssl.create_default_context(cadata=_only_certificates(content.data))
    except (ssl.SSLError, ValueError) as error:
        raise _unusable(content, error) from None


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


def _unusable(content: Content, error: Exception) -> FileError:
    reason = getattr(error, "reason", None) or "unknown"
    return FileError(content.label, content.path, f"cannot be used: {_words(reason)}")


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")
