"""Secrets by reference: the config names where one is kept, and whoever needs it reads it then."""

from __future__ import annotations

import os
from pathlib import Path


class SecretError(Exception):
    """A secret cannot be read; the text never holds it."""


def read_secret(reference: str) -> str:
    """What `env:NAME` or `file:/path` holds now. Raises `SecretError` when there is nothing."""
    kind, _, where = reference.partition(":")
    try:
        value = os.environ[where] if kind == "env" else Path(where).read_text()
    except (KeyError, OSError, UnicodeError):
        raise SecretError(f"{reference}: cannot be read") from None
    if not value.strip():
        raise SecretError(f"{reference}: is empty")
    return value.strip()
