"""What is known of HTTP methods (RFC 9110 9.2): who may be sent twice, who changes nothing."""

from __future__ import annotations

from typing import Final

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""They change nothing (9.2.1)."""
IDEMPOTENT: Final = SAFE | {"PUT", "DELETE"}
"""Sent twice they do what they do once (9.2.2)."""
