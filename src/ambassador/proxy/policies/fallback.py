"""Fallback: what a client gets when all attempts failed or the breaker is open.

Phase REPEAT, outside the retries: it begins where they gave up. What counts as failed is what the upstream did not
answer, and an answer with one of `FAILED` (RFC 5861 4: what stale-if-error calls an error) or with a server error that
the route retries. Nothing that is the client's own doing is mended, nor an answer whose head was passed on.

In turn, as far as the config names them: the other upstream, the last good answer, the fixed one. Neither retries nor
the retry budget of the route apply to the one attempt at the other upstream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ambassador.errors import BreakerOpen, ConnectFailed, Limited, NoEndpoint, Overloaded, UpstreamError

if TYPE_CHECKING:
    from ambassador.errors import ProxyError
    from ambassador.messages import Reply, Request
    from ambassador.proxy.plan import RoutePlan

FAILED: Final = frozenset({500, 502, 503, 504})
"""Answers that a fallback is better than, whatever the route retries."""

FAILURES: Final = (UpstreamError, BreakerOpen, Overloaded)
"""How attempts fail that a fallback is for. Not `Limited`: a quota of the upstream is meant to be felt."""
FAILURES_ELSEWHERE: Final = (*FAILURES, Limited)
"""How the attempt at the other upstream fails."""

_UNSEEN: Final = (ConnectFailed, NoEndpoint, BreakerOpen, Overloaded)
_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 9.2.2


class Fallback:
    """The fallback of a route.

    `elsewhere`: the route towards the other upstream; `respond`: makes the fixed answer. `all_methods`: requests of
    any method go to the other upstream, even if the first may have acted on them. `retried`: statuses that the route
    retries.
    """

    __slots__ = ("_all_methods", "elsewhere", "respond", "statuses")

    def __init__(
        self,
        *,
        elsewhere: RoutePlan | None = None,
        respond: Callable[[Request], Reply] | None = None,
        all_methods: bool = False,
        retried: frozenset[int] = frozenset(),
    ) -> None:
        self.elsewhere = elsewhere
        self.respond = respond
        self.statuses = FAILED | {status for status in retried if status >= 500}
        """Answers that count as failed."""
        self._all_methods = all_methods

    def may_send(self, request: Request, failure: ProxyError | None) -> bool:
        """Whether the other upstream may have the request after `failure`, or after an answer (None)."""
        return (
            self._all_methods
            or request.method in _REPEATABLE
            or b"idempotency-key" in request.special
            or isinstance(failure, _UNSEEN)
        )
