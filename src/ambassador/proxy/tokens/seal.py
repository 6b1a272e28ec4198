"""Encryption of what is put into a store that others can read: Redis' dumps, replicas, backups, MONITOR.

AES-256-GCM. Its key is derived from `state.secret_key` by HKDF-SHA256 (RFC 5869), as is an id of the key: what was
sealed under another key is not a damaged value, but none. Name and version of the value are authenticated with it, so
that whoever can write to the store cannot give one credential's value for another's, or an old one again.

    format 1 byte | id of the key 8 | nonce 12 | ciphertext and tag

No I/O; the nonce comes as an argument, and must be random: 2^32 values under one key are allowed (NIST SP 800-38D).
The library is imported when it is first needed: it takes 20 ms, and is an extra (`auth`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ambassador.secret import SecretError

if TYPE_CHECKING:
    from ambassador.secret import Secret

NONCE_BYTES: Final = 12
LEAST_SECRET: Final = 16
"""Characters of a secret: HKDF makes nothing stronger of one that can be guessed."""
_FORMAT: Final = b"\x01"
_ID_BYTES: Final = 8
_SALT: Final = b"ambassador"


class Sealer:
    """Seals and opens with the key that is made of `secret`, as that is now."""

    __slots__ = ("__weakref__", "_cipher", "_id", "_made_of", "_secret")

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._made_of = -1
        self._id = b""
        self._cipher: Any = None

    @property
    def key_id(self) -> str:
        """What tells this key from others, and nothing else of it. Raises `SecretError`."""
        self._prepare()
        return self._id.hex()

    def seal(self, name: str, version: int, plain: bytes, nonce: bytes) -> bytes:
        """The value for a store, under this name and version. Raises `SecretError`."""
        self._prepare()
        sealed: bytes = self._cipher.encrypt(nonce, plain, _bound(name, version))
        return b"%b%b%b%b" % (_FORMAT, self._id, nonce, sealed)

    def open(self, name: str, version: int, value: bytes) -> bytes | None:
        """What was sealed; None if it was sealed by another key, for another name or version, or not at all.

        Raises `SecretError`.
        """
        self._prepare()
        head = len(_FORMAT) + _ID_BYTES
        if not value.startswith(_FORMAT + self._id) or len(value) < head + NONCE_BYTES:
            return None
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an extra

        try:
            plain: bytes = self._cipher.decrypt(
                value[head : head + NONCE_BYTES], value[head + NONCE_BYTES :], _bound(name, version)
            )
        except InvalidTag:
            return None
        return plain

    def _prepare(self) -> None:
        made_of = self._secret.version
        if made_of == self._made_of and self._cipher is not None:
            return
        secret = self._secret.value
        if len(secret) < LEAST_SECRET:
            raise SecretError(f"{self._secret.reference}: is shorter than {LEAST_SECRET} characters")
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - an extra, and slow to import

        self._cipher = AESGCM(_derived(secret, b"credentials in a store", 32))
        self._id = _derived(secret, b"id of the key", _ID_BYTES)
        self._made_of = made_of


def _derived(secret: str, purpose: bytes, size: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    return HKDF(SHA256(), size, _SALT, purpose).derive(secret.encode())


def _bound(name: str, version: int) -> bytes:
    return b"%b\0%d" % (name.encode(), version)
