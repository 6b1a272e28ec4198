"""Certificates of an authority that tests make up, as files."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import trustme

from ambassador.proxy.key_files import KeyPair


class Authority:
    """An authority, whose certificate is the file `ca`; it writes what it issues into the same directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.ca = str(directory / f"{name}.pem")
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, *names: str, file: str | None = None, days: float = 365) -> KeyPair:
        """A certificate for these names, from the day before yesterday and good for so many days from now.

        The files are called as the first name, or `file`; a `*` in it becomes `any`.
        """
        stem = (file or names[0]).replace("*", "any")
        now = dt.datetime.now(dt.UTC)
        leaf = self._authority.issue_cert(
            *names, not_before=now - dt.timedelta(days=2), not_after=now + dt.timedelta(days=days)
        )
        pair = KeyPair(cert=str(self._directory / f"{stem}.crt"), key=str(self._directory / f"{stem}.key"))
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        Path(pair.cert).write_bytes(chain)
        Path(pair.key).write_bytes(leaf.private_key_pem.bytes())
        Path(pair.key).chmod(0o600)
        return pair
