"""Answers for errors: problem documents (RFC 9457) with `proxy-status` (RFC 9209), or a gRPC status."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from ambassador.messages import Reply

if TYPE_CHECKING:
    from ambassador.errors import ProxyError
    from ambassador.messages import Fields

_ENCODE = msgspec.json.Encoder().encode


def error_reply(
    error: ProxyError, *, pseudonym: str, request_id: str, route: str, attempts: int, grpc: bool
) -> Reply:
    """The answer to a request that failed with `error`.

    `pseudonym` is the instance's name in `proxy-status`; `attempts` is told there when it is more than one, so that an
    ambassador in front does not multiply retries. `grpc`: the caller speaks gRPC and reads no JSON.
    """
    headers: Fields = [(b"proxy-status", proxy_status(error, pseudonym=pseudonym, attempts=attempts))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if grpc:
        headers += [
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"%d" % error.grpc_status),
            (b"grpc-message", error.code.encode()),
        ]
        return Reply(200, headers)
    headers.append((b"content-type", b"application/problem+json"))
    return Reply(error.status, headers, _document(error, request_id=request_id, route=route))


def speaks_grpc(headers: Fields) -> bool:
    """Whether a request with these fields comes from gRPC, or from gRPC-Web."""
    return any(
        name.lower() == b"content-type" and value.lstrip().lower().startswith(b"application/grpc")
        for name, value in headers
    )


def proxy_status(error: ProxyError, *, pseudonym: str, attempts: int) -> bytes:
    """The `proxy-status` member for an error of our own: `name; error=…; details="code"`."""
    text = f'{pseudonym}; error={error.proxy_error}; details="{error.code}"'
    return (f"{text}; attempts={attempts}" if attempts > 1 else text).encode()


def fallback_status(
    failure: ProxyError | None, status: int, *, pseudonym: str, attempts: int, fallback: str
) -> bytes:
    """The `proxy-status` member of an answer in place of `failure`, or of an answer with `status` (None): the failure,
    as it would have been told, and which fallback this is (`to`, `stale`, `respond`).
    """
    if failure is not None:
        text = proxy_status(failure, pseudonym=pseudonym, attempts=attempts)
    else:
        text = f"{pseudonym}; received-status={status}".encode()
        if attempts > 1:
            text += b"; attempts=%d" % attempts
    return b"%b; fallback=%b" % (text, fallback.encode())


def forbids_retry(status: bytes) -> bool:
    """Whether a `proxy-status` field says that its maker retried, limited, or had its breaker open."""
    return any(mark in status for mark in (b"; attempts=", b'details="limited"', b'details="breaker_open"'))


def _document(error: ProxyError, *, request_id: str, route: str) -> bytes:
    return _ENCODE(
        {
            "type": "about:blank",
            "title": error.title,
            "status": error.status,
            "detail": error.detail or error.title,
            "code": error.code,
            "request_id": request_id,
            "route": route,
        }
    )
