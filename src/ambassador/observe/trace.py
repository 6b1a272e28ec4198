"""Request ids and W3C trace context: kept where the caller sent good ones, begun where it did not.

Source: W3C Trace Context, level 1. Randomness needs to be unique, not secret, so it comes from a private generator
seeded by the system (0.2 us an id), never from the request.
"""

from __future__ import annotations

import random
import re
from typing import Final

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}")
_TRACESTATE: Final = re.compile(rb"[\x20-\x7e\t]{0,512}")
_NO_TRACE: Final = b"0" * 32
_NO_PARENT: Final = b"0" * 16

_bits = random.SystemRandom().getrandbits
_random = random.Random(_bits(128)).getrandbits


def request_id(sent: bytes | None) -> bytes:
    """The caller's id if it is a token of up to 128 visible ASCII characters, else a new one of 32 hex digits."""
    if sent is not None and _REQUEST_ID.fullmatch(sent):
        return sent
    return b"%032x" % _random(128)


def continue_trace(traceparent: bytes | None, tracestate: bytes | None) -> tuple[bytes, bytes | None]:
    """(`traceparent`, `tracestate` or None) to send: the caller's trace with a new parent id, or a new trace.

    A malformed `traceparent` begins a new trace, without the old state. The sampled flag is the caller's; a trace that
    begins here is sampled.
    """
    if traceparent is not None:
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is not None and _is_valid(match):
            flags = b"%02x" % (int(match[4], 16) & 1)
            if tracestate is not None and not _TRACESTATE.fullmatch(tracestate):
                tracestate = None
            return b"00-%b-%016x-%b" % (match[2], _random(64) | 1, flags), tracestate
    return b"00-%032x-%016x-01" % (_random(128) | 1, _random(64) | 1), None


def _is_valid(match: re.Match[bytes]) -> bool:
    version, trace, parent, _, rest = match.groups()
    if version == b"ff" or trace == _NO_TRACE or parent == _NO_PARENT:
        return False
    return rest is None or version != b"00"
