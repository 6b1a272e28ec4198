"""The token that a caller came with, as far as it must be understood to exchange it for another one (RFC 8693).

It is not verified here: the token service does that. What is read of it only makes the answer's life shorter. No I/O,
no clock.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterable
from math import isfinite
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ambassador.messages import Field

MOST_BYTES: Final = 16 * 1024
_BEARER: Final = re.compile(rb"[ \t]*bearer +([\x21-\x7e]+)[ \t]*", re.IGNORECASE)


def subject_of(fields: Iterable[Field]) -> bytes | None:
    """The token in the one `Authorization: Bearer` among the fields of a request; None: there is none, or no such one.

    White space around the value says nothing (RFC 9110 5.5), and more than one space before the token neither (11.4).
    With two of them nobody knows whose the request is.
    """
    found = [value for name, value in fields if name.lower() == b"authorization"]
    if len(found) != 1:
        return None
    match = _BEARER.fullmatch(found[0])
    return None if match is None or len(match[1]) > MOST_BYTES else match[1]


def expires_at(token: bytes) -> float | None:
    """When a token says that it expires, in unix seconds; None: it is no JWT, or says nothing."""
    parts = token.split(b".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    value = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if isfinite(seconds) else None
