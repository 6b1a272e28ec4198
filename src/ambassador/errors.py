"""The one tree of errors that a client of the ambassador can see.

Each leaf has a stable `code` (the `code` of the problem document, contract 3), the HTTP status and the gRPC status
it is answered with, whose fault it is, and the `proxy-status` error type of RFC 9209. Libraries' errors are mapped to
these where the library is imported; nothing else decides a status.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Fault(enum.Enum):
    """Whose doing an error is: decides what counts against an upstream and who is told."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    AMBASSADOR = "ambassador"


class ProxyError(Exception):
    """Base of every coded error.

    `detail` is one sentence for the caller; it never holds header values, credentials or upstream bodies.
    `retry_after_s` becomes `Retry-After` (whole seconds, at least 1); None sends no such header.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    grpc_status: ClassVar[int] = 13
    title: ClassVar[str] = "Internal error"
    fault: ClassVar[Fault] = Fault.AMBASSADOR
    proxy_error: ClassVar[str] = "proxy_internal_error"

    fields: tuple[tuple[bytes, bytes], ...] = ()
    """Further header fields of the answer."""

    def __init__(self, detail: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class ClientError(ProxyError):
    """The caller's message cannot be accepted; the connection is closed after the answer."""

    code = "bad_request"
    status = 400
    grpc_status = 3
    title = "Bad request"
    fault = Fault.CLIENT
    proxy_error = "http_request_error"


class BadRequest(ClientError):
    """Malformed, ambiguous or abusive input (RFC 9112)."""


class HeaderTooLarge(ClientError):
    code = "header_too_large"
    status = 431
    title = "Request header fields too large"


class UriTooLong(ClientError):
    code = "uri_too_long"
    status = 414
    title = "URI too long"


class BodyTooLarge(ClientError):
    code = "body_too_large"
    status = 413
    grpc_status = 8
    title = "Content too large"


class RequestTimeout(ClientError):
    code = "request_timeout"
    status = 408
    grpc_status = 4
    title = "Request timeout"


class NotImplementedByProxy(ClientError):
    code = "not_implemented"
    status = 501
    grpc_status = 12
    title = "Not implemented"


class VersionNotSupported(ClientError):
    code = "version_not_supported"
    status = 505
    grpc_status = 12
    title = "HTTP version not supported"


class ExpectationFailed(ClientError):
    code = "expectation_failed"
    status = 417
    title = "Expectation failed"


class LoopDetected(ClientError):
    code = "loop_detected"
    status = 508
    grpc_status = 13
    title = "Loop detected"
    proxy_error = "proxy_loop_detected"


class NoRoute(ClientError):
    code = "no_route"
    status = 404
    grpc_status = 12
    title = "No route"
    proxy_error = "destination_not_found"


class Unauthenticated(ProxyError):
    """The route is for known clients, and it is not known who asks. Nothing is wrong with the message: the connection
    stays. `fields` hold the challenges (RFC 9110 11.6.1).
    """

    code = "unauthenticated"
    status = 401
    grpc_status = 16
    title = "Unauthenticated"
    proxy_error = "http_request_denied"


class Forbidden(ProxyError):
    """Who asks is known, and the route is not for them. The connection stays."""

    code = "forbidden"
    status = 403
    grpc_status = 7
    title = "Forbidden"
    proxy_error = "http_request_denied"


class Limited(ProxyError):
    """A rate limit or quota is reached. Nothing is wrong with the request: the connection stays."""

    code = "limited"
    status = 429
    grpc_status = 8
    title = "Too many requests"
    proxy_error = "http_request_denied"

    @classmethod
    def with_status(cls, status: int) -> type[Limited]:
        """The same error, answered with another status."""
        if status == cls.status:
            return cls
        other = _LIMITED.get(status)
        if other is None:
            other = _LIMITED[status] = type("Limited", (cls,), {"status": status})
        return other


_LIMITED: dict[int, type[Limited]] = {}


class Overloaded(ProxyError):
    """Too much is in progress, in the worker or behind it. Nothing is wrong with the request."""

    closes = False
    """The connection is closed after the answer: the worker has too many."""

    code = "overloaded"
    status = 503
    grpc_status = 14
    title = "Overloaded"
    proxy_error = "connection_limit_reached"


class KeyInUse(ProxyError):
    """A request with the same idempotency key is in flight. Nothing is wrong with this one: the connection stays."""

    code = "key_in_use"
    status = 409
    grpc_status = 10
    title = "Request in flight"
    proxy_error = "http_request_denied"


class KeyReused(ProxyError):
    """The idempotency key was used for another request."""

    code = "key_reused"
    status = 422
    grpc_status = 3
    title = "Key used for another request"
    proxy_error = "http_request_denied"


class AlreadyDone(ProxyError):
    """The request was carried out before, and its answer was not kept."""

    code = "already_done"
    status = 409
    grpc_status = 6
    title = "Already carried out"
    proxy_error = "http_request_denied"


class NotCached(ProxyError):
    """The request would have an answer from the cache only (RFC 9111 5.2.1.7), and there is none."""

    code = "not_cached"
    status = 504
    grpc_status = 5
    title = "Not in the cache"
    proxy_error = "proxy_internal_response"


class StateUnavailable(ProxyError):
    """The store is lost, and there is nothing else to decide by. Nothing was sent."""

    code = "state_unavailable"
    status = 503
    grpc_status = 14
    title = "State unavailable"


class InjectedFault(ProxyError):
    """A fault that the config asks for, to try what clients make of it. Nothing was sent upstream."""

    code = "fault"
    status = 503
    grpc_status = 14
    title = "Injected fault"

    @classmethod
    def with_status(cls, status: int) -> type[InjectedFault]:
        """The same error, answered with another status."""
        return cls if status == cls.status else type("InjectedFault", (cls,), {"status": status})


class BreakerOpen(ProxyError):
    """A circuit breaker or a cool-down keeps requests away from the upstream: none was sent."""

    code = "breaker_open"
    status = 503
    grpc_status = 14
    title = "Breaker open"
    proxy_error = "destination_unavailable"


class CredentialUnavailable(ProxyError):
    """What the upstream must be shown cannot be had: nothing was sent to it."""

    code = "credential_unavailable"
    status = 503
    grpc_status = 14
    title = "Credential unavailable"
    proxy_error = "proxy_configuration_error"


class UpstreamError(ProxyError):
    """The upstream did not give a usable answer, after all attempts allowed."""

    code = "upstream_reset"
    status = 502
    grpc_status = 14
    title = "Bad gateway"
    fault = Fault.UPSTREAM
    proxy_error = "connection_terminated"


class NoEndpoint(UpstreamError):
    code = "no_endpoint"
    status = 503
    title = "No endpoint"
    proxy_error = "destination_unavailable"


class ConnectFailed(UpstreamError):
    code = "connect_failed"
    status = 503
    title = "Connection to the upstream failed"
    proxy_error = "connection_refused"


class EgressProxyRefused(ConnectFailed):
    """An egress proxy answered a request with 407. Whether anybody has carried it out cannot be known: what is not
    idempotent is not sent again.
    """

    proxy_error = "destination_unavailable"


class TlsFailed(ConnectFailed):
    """The handshake with the upstream failed."""

    proxy_error = "tls_protocol_error"


class CertificateRefused(TlsFailed):
    """The upstream's certificate is not one to trust, or not this upstream's."""

    proxy_error = "tls_certificate_error"


class UpstreamReset(UpstreamError):
    code = "upstream_reset"
    title = "Upstream closed the connection"


class UpstreamProtocol(UpstreamError):
    code = "upstream_protocol"
    grpc_status = 13
    title = "Upstream sent a malformed answer"
    proxy_error = "http_protocol_error"


class UpstreamTimeout(UpstreamError):
    code = "upstream_timeout"
    status = 504
    grpc_status = 4
    title = "Upstream timeout"
    proxy_error = "http_response_timeout"


class DeadlineExceeded(ProxyError):
    code = "deadline_exceeded"
    status = 504
    grpc_status = 4
    title = "Deadline exceeded"
    proxy_error = "http_response_timeout"
