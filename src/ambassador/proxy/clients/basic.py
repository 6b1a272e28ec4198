"""User and password (RFC 7617). The pair is compared like an API key: by digest, in constant time."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from msgspec import Meta

from ambassador.settings import Secret, Section


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user with a password, as `Authorization: Basic` has them."""

    user: Annotated[str, Meta(min_length=1)]
    """The name. It has no colon."""

    password: Secret
    """Where the password is kept: `env:NAME` or `file:/path`."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """A name that no header could carry."""
        return "must not hold a colon" if field == "user" and ":" in value else None


def presented(credentials: bytes) -> bytes | None:
    """`user:password` of what follows the word `Basic`; None: it is not base64, or has no colon."""
    try:
        pair = base64.b64decode(credentials.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return pair if b":" in pair else None
