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

from ambassador.errors import (
    BreakerOpen,
    ConnectFailed,
    CredentialUnavailable,
    Limited,
    NoEndpoint,
    Overloaded,
    Unauthenticated,
    UpstreamError,
)
from ambassador.proxy import freshness
from ambassador.proxy.methods import IDEMPOTENT
from ambassador.proxy.shelf import Kept, Key

if TYPE_CHECKING:
    from ambassador.errors import ProxyError
    from ambassador.messages import Fields, Reply, Request, ResponseHead
    from ambassador.proxy.shelf import Shelf

FAILED: Final = frozenset({500, 502, 503, 504})
"""Answers that a fallback is better than, whatever the route retries."""

FAILURES: Final = (UpstreamError, BreakerOpen, Overloaded, CredentialUnavailable)
"""How attempts fail that a fallback is for. Not `Limited`: a quota of the upstream is meant to be felt."""
FAILURES_ELSEWHERE: Final = (*FAILURES, Limited, Unauthenticated)
"""How the attempt at the other upstream fails: the caller owes only the first one a token."""

_UNSEEN: Final = (ConnectFailed, NoEndpoint, BreakerOpen, Overloaded, CredentialUnavailable)


class LastGood:
    """The last good answers to GET that one worker has seen, on `shelf`; none older than `for_s` is given.

    They are found by all that they may depend on, credentials included (`proxy/shelf.py`). What says `no-store` or
    `private`, sets a cookie, or must not be used without being validated (RFC 9111 4.2.4) is not among them.
    """

    __slots__ = ("_for_s", "shelf")

    def __init__(self, for_s: float, shelf: Shelf) -> None:
        self._for_s = for_s
        self.shelf = shelf

    def taker(
        self,
        request: Request,
        forwarded: Fields,
        head: ResponseHead,
        said: freshness.Said,
        *,
        now: float,
        age_s: float,
    ) -> Callable[[bytes | None], None] | None:
        """Who takes the body of an answer, `age_s` old and of which the head has `said` this; None: it is not kept."""
        if request.method != "GET" or head.status != 200 or request.content_length or request.chunked:
            return None
        if not (said.may_share() and freshness.may_be_stale(said.directives)):
            return None
        key = Key(request, forwarded)
        if b"range" in key.fields:
            return None

        def take(body: bytes | None) -> None:
            if body is not None:
                self.shelf.put(Kept(key, head, body, said, now=now, age_s=age_s))

        return take

    def find(self, request: Request, forwarded: Fields, others: Kept | None, now: float) -> Kept | None:
        """The answer to give, if there is one. `others`: what the route's cache has."""
        key = Key(request, forwarded)
        if request.method not in ("GET", "HEAD") or b"range" in key.fields:
            return None
        known = [self.shelf.find(key), others]
        usable = [
            kept
            for kept in known
            if kept is not None
            and kept.head.status == 200
            and kept.held_s(now) <= self._for_s
            and freshness.may_be_stale(kept.said.directives)
        ]
        return min(usable, key=lambda kept: kept.held_s(now), default=None)


class Fallback:
    """The fallback of a route, but for the other upstream, which is `RoutePlan.elsewhere`.

    `respond`: makes the fixed answer; `last_good`: those to fall back on. `all_methods`: requests of any method go to
    the other upstream, even if the first may have acted on them. `retried`: statuses that the route retries.
    """

    __slots__ = ("_all_methods", "last_good", "respond", "statuses")

    def __init__(
        self,
        *,
        respond: Callable[[Request], Reply] | None = None,
        last_good: LastGood | None = None,
        all_methods: bool = False,
        retried: frozenset[int] = frozenset(),
    ) -> None:
        self.respond = respond
        self.last_good = last_good
        self.statuses = FAILED | {status for status in retried if status >= 500}
        """Answers that count as failed."""
        self._all_methods = all_methods

    def may_send(self, request: Request, failure: ProxyError | None) -> bool:
        """Whether the other upstream may have the request after `failure`, or after an answer (None)."""
        return (
            self._all_methods
            or request.method in IDEMPOTENT
            or b"idempotency-key" in request.special
            or isinstance(failure, _UNSEEN)
        )
