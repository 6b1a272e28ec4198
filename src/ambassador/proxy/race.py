"""Two attempts of one request under way at once: the first good head of an answer wins, the other is cancelled.

One coroutine waits for both. The second attempt never waits for anything before its first byte but its connection: if
a breaker, a cool-down or a quota has more to say than yes, it is not made. An attempt that fails, or is answered with
something that another may mend, is dropped as long as the other is still under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ambassador.errors import ProxyError, UpstreamError
from ambassador.proxy.attempt import STATUS_TEXT, Attempt, reason_of
from ambassador.proxy.lane import TimedOut
from ambassador.proxy.transfer import ClientGone

if TYPE_CHECKING:
    from ambassador.proxy.attempts import Attempts
    from ambassador.proxy.plan import RoutePlan


def rival_of(exchange: Attempts, plan: RoutePlan) -> Attempt | None:
    """A second attempt, begun beside the present one, at an endpoint that was not tried if there is another.

    None: it cannot be made at once, and nothing was begun.
    """
    upstream = plan.upstream
    assert upstream is not None
    rival = Attempt(exchange, plan, exchange.pick(upstream))
    try:
        if rival.begin_beside():
            return rival
    except ProxyError:
        pass
    rival.leave(kept=False)
    return None


async def race(exchange: Attempts, plan: RoutePlan, rival: Attempt) -> None:
    """Wait for the first good head, of the present attempt or of `rival`; its attempt is then the present one.

    Raises `UpstreamError` when neither came to one (that of the attempt which is then the present one), and
    `ClientGone`.
    """
    first = exchange.attempt
    assert first is not None
    first.until = exchange.transfer.head_at
    racing = [first, rival]
    try:
        while not _is_decided(exchange, plan, racing):
            await _wait(exchange, racing)
    except BaseException:
        for attempt in racing:
            if attempt is not exchange.attempt:
                attempt.count("cancelled")
                attempt.leave(kept=False)
        raise


def _is_decided(exchange: Attempts, plan: RoutePlan, racing: list[Attempt]) -> bool:
    """Look what has come; whether there is a winner, the present attempt from then on."""
    for attempt in tuple(racing):
        try:
            if not attempt.look():
                continue
        except UpstreamError as error:
            if len(racing) == 1:
                raise
            _drop(exchange, racing, attempt, reason_of(error))
            continue
        assert attempt.connection is not None
        assert attempt.connection.reader.head is not None
        status = attempt.connection.reader.head.status
        if len(racing) == 2 and (status >= 500 or status == 429 or status in plan.failing):
            _drop(exchange, racing, attempt, STATUS_TEXT[status])
            continue
        for loser in racing:
            if loser is not attempt:
                _drop(exchange, racing, loser, "cancelled")
        return True
    return False


def _drop(exchange: Attempts, racing: list[Attempt], attempt: Attempt, outcome: str) -> None:
    """One that is out of the race; the other is the present attempt."""
    racing.remove(attempt)
    attempt.count(outcome)
    exchange.follow(racing[0])
    attempt.leave(kept=False)


async def _wait(exchange: Attempts, racing: list[Attempt]) -> None:
    """Wait for either, for the client to leave, or for the deadline that is next."""
    client = exchange.client
    client_link = client.link
    gone = client.gone(exchange.request)
    if client_link.ready & gone:
        raise ClientGone
    client_link.interest = gone
    waiting = [attempt.interest() for attempt in racing]
    try:
        await client.strand.wait(min(attempt.until for attempt in racing))
    except TimedOut:
        pass
    finally:
        client_link.interest = 0
        for link in waiting:
            link.interest = 0
