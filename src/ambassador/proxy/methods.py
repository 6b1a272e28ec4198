"""What is known of HTTP methods (RFC 9110 9.2): which there are, who may be sent twice, who changes nothing."""

from __future__ import annotations

from typing import Final

KNOWN: Final = (
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "ACL", "BIND", "CHECKOUT", "COPY", "LINK",
    "LOCK", "M-SEARCH", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "NOTIFY", "PROPFIND", "PROPPATCH",
    "PURGE", "QUERY", "REBIND", "REPORT", "SEARCH", "SUBSCRIBE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE",
)  # fmt: skip
"""Those that are passed on: what httptools knows of HTTP but CONNECT, which makes a tunnel. Others are answered 501."""
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""They change nothing (9.2.1)."""
IDEMPOTENT: Final = SAFE | {"PUT", "DELETE"}
"""Sent twice they do what they do once (9.2.2)."""
