"""Answers for errors: problem documents (RFC 9457) with `proxy-status` (RFC 9209), or a gRPC status."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from ambassador.messages import Reply

if TYPE_CHECKING:
    from ambassador.errors import ProxyError
    from ambassador.messages import Fields

_ENCODE = msgspec.json.Encoder().encode
_FINAL: Final = (b"; attempts=", b"; retry=?0", b'details="limited"', b'details="breaker_open"')
"""What `proxy-status` says where another attempt would only add to a storm."""


def error_reply(
    error: ProxyError,
    *,
    pseudonym: str,
    request_id: str,
    route: str,
    attempts: int,
    grpc: bool,
    is_final: bool = False,
) -> Reply:
    """The answer to a request that failed with `error`.

    `pseudonym` is the instance's name in `proxy-status`. What `proxy_status` tells there of `attempts` and `is_final`
    keeps an ambassador in front from multiplying retries. `grpc`: the caller speaks gRPC and reads no JSON.
    """
    status = proxy_status(error, pseudonym=pseudonym, attempts=attempts, is_final=is_final)
    headers: Fields = [(b"proxy-status", status), *error.fields]
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


def proxy_status(error: ProxyError, *, pseudonym: str, attempts: int, is_final: bool = False) -> bytes:
    """The `proxy-status` member for an error of our own: `name; error=…; details="code"`, and what was retried."""
    text = f'{pseudonym}; error={error.proxy_error}; details="{error.code}"'
    return text.encode() + _retried(attempts, is_final=is_final)


def received_status(status: int, *, pseudonym: str, attempts: int, is_final: bool = False) -> bytes:
    """The `proxy-status` member for an upstream's error that is passed on, likewise."""
    return b"%b; received-status=%d" % (pseudonym.encode(), status) + _retried(attempts, is_final=is_final)


def _retried(attempts: int, *, is_final: bool) -> bytes:
    """What was done to mend it: `attempts`, if they are more than one, and `retry=?0` if another would have been made
    but must not be: the retry budget is spent, the breaker opened, a quota is used up.
    """
    return (b"; attempts=%d" % attempts if attempts > 1 else b"") + (b"; retry=?0" if is_final else b"")


def fallback_status(
    failure: ProxyError | None,
    status: int,
    *,
    pseudonym: str,
    attempts: int,
    fallback: str,
    is_final: bool = False,
) -> bytes:
    """The `proxy-status` member of an answer in place of `failure`, or of an answer with `status` (None): the failure,
    as it would have been told, and which fallback this is (`to`, `stale`, `respond`).
    """
    if failure is not None:
        text = proxy_status(failure, pseudonym=pseudonym, attempts=attempts, is_final=is_final)
    else:
        text = received_status(status, pseudonym=pseudonym, attempts=attempts, is_final=is_final)
    return b"%b; fallback=%b" % (text, fallback.encode())


def forbids_retry(status: bytes) -> bool:
    """Whether a `proxy-status` field says that its maker retried, or must not, limited, or had its breaker open."""
    return any(mark in status for mark in _FINAL)


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
