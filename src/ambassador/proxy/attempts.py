"""The attempts of one request, one after another or two at once, until there is an answer to pass on.

An exchange is one of these, with what is around it: the route and its policies, caches and fallbacks, the answer. What
is here asks for an endpoint, makes an `Attempt` of it, looks at the answer, and decides whether another attempt is
made: by `policies/retry.py`, the budget, the time that is left, the breakers and the upstream's quota.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, TypeAlias

from ambassador.errors import (
    BreakerOpen,
    CredentialUnavailable,
    DeadlineExceeded,
    Limited,
    ProxyError,
    Unauthenticated,
    UpstreamError,
)
from ambassador.proxy.attempt import STATUS_TEXT, Attempt, is_refusal, is_stream, reason_of
from ambassador.proxy.content import CONTENT, LOOKED_AT
from ambassador.proxy.lane import TimedOut
from ambassador.proxy.methods import IDEMPOTENT
from ambassador.proxy.policies.breaker import guards_of
from ambassador.proxy.problem import forbids_retry
from ambassador.proxy.race import race, rival_of
from ambassador.proxy.retry_after import delay_s
from ambassador.proxy.transfer import Impatient, Transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ambassador.messages import Request, ResponseHead
    from ambassador.observe.trace import Trace
    from ambassador.proxy.http1 import ClientConnection
    from ambassador.proxy.plan import RoutePlan
    from ambassador.proxy.policies.hedge import Hedge
    from ambassador.proxy.policies.retry import RetryPolicy
    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.proxy.upstream.h1 import Http1Connection
    from ambassador.proxy.upstream.upstream import Upstream

Charge: TypeAlias = "ProxyError | Awaitable[None] | None"
"""What an upstream's own limits say to an attempt: None to go on."""


def charge(hook: Callable[[Request], Awaitable[None] | None], request: Request) -> Charge:
    """Charge an attempt to its upstream's own limits; a refusal is returned, not raised."""
    try:
        return hook(request)
    except ProxyError as error:
        return error


class Attempts:
    """The attempts of `request`, whose client is `client`."""

    # Defaults in the class, not slots: most requests change few of them (0.6 us a request).
    transfer: Transfer
    """Made before the first attempt."""
    paid = False
    """The upstream's quota was charged for what is sent next."""
    max_forwards: int | None = None
    trace: Trace | None = None
    attempts = 0
    """Those that were begun and not refused by a breaker."""
    attempt: Attempt | None = None
    """The present one."""
    _prepared = False
    _charged: Charge = None
    _last_endpoint: Endpoint | None = None
    _tried: tuple[Endpoint, ...] = ()
    _caller_at = inf
    _total_at = inf
    """The end of the route's `total` where it began to run before the first attempt."""
    _in_doubt = False
    """Whether the request was carried out by an attempt before the present one is not known."""
    _hedged = False
    _renewed = False
    """The upstream's credential was fetched again because of a 401."""
    _upstream_s = 0.0
    _is_final = False
    """Another attempt would have been made, and is ruled out: nobody in front should make it either."""

    def __init__(self, client: ClientConnection, request: Request) -> None:
        service = client.listener.service
        self.client = client
        self.request = request
        self.service = service
        self.lane = service.lane
        self._started = service.lane.now

    def _prepare(self, plan: RoutePlan) -> None:
        """Before the first attempt: the clock of the whole starts."""
        self._prepared = True
        self.transfer = Transfer(self.client, self.request, plan, self._started)
        self.transfer.caller_at = self._caller_at
        self.transfer.total_at = min(self.transfer.total_at, self._total_at)

    def _begin(self, plan: RoutePlan) -> None:
        """What there is to do before the first attempt. Raises as `_ask_for_body`."""
        if not self._prepared:
            self._prepare(plan)
        if self.request.expects_continue:
            self._ask_for_body(plan)
        self._count_on_budget(plan.retry)

    def _ask_for_body(self, plan: RoutePlan) -> None:
        """`100 Continue`, unless the credential is known to be in the way: a client need not send a body for a refusal.

        Raises `CredentialUnavailable`, `Unauthenticated` and `ClientError`.
        """
        if plan.credential is not None:
            plan.credential.in_hand(self.request)
        self.client.send_continue(self.request)

    async def _until_answer(self, plan: RoutePlan) -> tuple[Http1Connection, bool]:
        """Attempts until one has an answer to pass on: its connection, and whether the answer is a failure after which
        there may be no more. Raises the `UpstreamError` of the last one if that had no answer.
        """
        retry = plan.retry
        self._begin(plan)
        while True:
            connection: Http1Connection | None = None
            failure: UpstreamError | None = None
            try:
                attempt = self.attempt
                if attempt is None or attempt.connection is None:
                    attempt = self._begin_attempt(plan)
                connection = await (
                    attempt.until_head() if plan.hedge is None else self._until_head(plan, plan.hedge)
                )
                await self._hear(plan, connection)
            except UpstreamError as error:
                failure = error
                reason = outcome = reason_of(error)
                if self.attempt is not None:
                    self.attempt.settle(reason)  # before it is asked whether the breaker is open
            else:
                head = connection.reader.head
                assert head is not None
                assert self.attempt is not None
                found = self.attempt.found
                if self._renewed and head.status != 401 and plan.credential is not None:
                    plan.credential.accepted(self.request)
                if head.status not in plan.failing and not found:
                    return connection, False
                if head.status == 401 and await self._renews(plan):
                    self._count(plan, "401")
                    if not await self._goes_on(plan, "401"):
                        return connection, True
                    self.attempts -= 1  # it is no retry: the upstream did not act on what it refused
                    continue
                outcome = STATUS_TEXT[head.status]
                reason = outcome if retry is None else retry.reason(outcome, found)
            if await self._is_retried(plan, reason, outcome, answered=failure is None):
                continue
            if failure is not None:
                try:
                    raise failure
                finally:
                    del failure  # its traceback holds this frame
            assert connection is not None
            return connection, True

    async def _is_retried(self, plan: RoutePlan, reason: str, outcome: str, *, answered: bool) -> bool:
        """Whether there is another attempt, which begins then. Where none can, what came of this one is what there is;
        raises what `_goes_on` does if that was given up.
        """
        delay = self._retry_delay(plan, reason)
        if delay is None or not await self._is_affordable(plan):
            if not answered:
                self._count(plan, outcome)
            return False
        self._count(plan, outcome)
        held = answered and self._holds(plan.retry, delay)
        if not held:
            self._leave(kept=self.transfer.upload_done)
        await self._sleep(delay)
        return await self._goes_on(plan, reason, stands=held or not answered)

    def _holds(self, retry: RetryPolicy | None, delay: float) -> bool:
        """Whether the answer is kept until the next attempt begins. Its connection is of no use to others meanwhile: so
        not while a `Retry-After` is waited for, unless its repeats are to have an answer of the upstream.
        """
        return self.request.keeper is not None or retry is None or delay <= retry.cap_s

    async def _goes_on(self, plan: RoutePlan, reason: str, *, stands: bool = True) -> bool:
        """Begin the next attempt as far as it may be refused: its endpoint is picked, its breakers are passed. Only
        then is the one before over, if it is not. False: it cannot be begun, and what came of the one before `stands`.

        Where nothing does, raises what there is to say instead.
        """
        upstream, before = plan.upstream, self.attempt
        assert upstream is not None
        following: Attempt | None = None
        try:
            self.check_time(plan)
            following = Attempt(self, plan, self.pick(upstream))
            if upstream.only is None:
                self._tried = (*self._tried, following.endpoint)
            await following.enter()
        except (BreakerOpen, DeadlineExceeded, UpstreamError):
            if following is not None:
                following.leave(kept=False)
            self._is_final = True
            if stands:
                return False
            raise
        except BaseException:
            if following is not None:
                following.leave(kept=False)
            raise
        plan.metrics.retry(reason)
        if before is not None:
            self._leave(kept=self.transfer.upload_done)
        self.attempt = following
        return True

    async def _renews(self, plan: RoutePlan) -> bool:
        """Whether the upstream is asked once more, with another credential, which is in hand then. While there is none
        the 401 is the best answer there is. A request that cannot be sent again tells of the refusal all the same, for
        those after it.
        """
        credential = plan.credential
        if credential is None or self._renewed:
            return False
        self._renewed = True
        transfer, now = self.transfer, self.lane.now
        if (
            not credential.refused(self.request, transfer.sent_at)
            or not transfer.replayable
            or plan.cannot_finish(transfer.deadline - now, now)
        ):
            return False
        try:
            if not credential.in_hand(self.request):
                with self.client.resting_until(transfer.deadline):
                    await credential.fetched(self.request)
        except (CredentialUnavailable, Unauthenticated, TimedOut):
            return False
        return await self._is_affordable(plan)

    def _count_on_budget(self, retry: RetryPolicy | None) -> None:
        """A first attempt earns a part of a retry. Of a request that is a retry of somebody in front, it is one."""
        if retry is None or (self.attempt is not None and self.attempt.connection is not None):
            return  # there is no budget, or it was counted when it was sent
        if b"x-ambassador-attempt" not in self.request.special:
            retry.budget.deposit(self._started)
        elif self.client.peer.believed:  # else anybody could spend what is there for others
            retry.budget.spend(self._started)

    def _begin_attempt(self, plan: RoutePlan) -> Attempt:
        """The next attempt, at an endpoint that is picked for it unless that was done. Raises `NoEndpoint`."""
        upstream, attempt = plan.upstream, self.attempt
        assert upstream is not None
        if self._caller_at != inf or self.attempts:
            self.check_time(plan)
        self.attempts += 1
        self.transfer.begin_attempt()
        if attempt is None:
            attempt = self.attempt = Attempt(self, plan, self.pick(upstream))
        if upstream.only is None and attempt.endpoint not in self._tried[-1:]:
            self._tried = (*self._tried, attempt.endpoint)
        return attempt

    def pick(self, upstream: Upstream) -> Endpoint:
        """An endpoint for the next attempt, not one that was tried if there is another. Raises `NoEndpoint`."""
        key = None if upstream.key is None else upstream.key(self.request, self.request.client_ip)
        return upstream.only or upstream.pick(self._tried, key)

    def pick_instead(self, upstream: Upstream) -> Endpoint:
        """One for the present attempt in place of the endpoint that was picked and refused it; the same where there is
        no other.
        """
        other = self.pick(upstream)
        if upstream.only is None:
            self._tried = (*self._tried, other)
        return other

    def check_time(self, plan: RoutePlan) -> None:
        """Raises what there is to say if an attempt that began now could not finish in time."""
        now = self.lane.now
        if plan.cannot_finish(self.transfer.deadline - now, now):
            raise self.transfer.lacking()

    async def _hear(self, plan: RoutePlan, connection: Http1Connection) -> None:
        """Take what the answer says beyond this request, and look into it where the route does that.

        Raises `UpstreamError` if it breaks off meanwhile.
        """
        attempt, content, head = self.attempt, plan.content, connection.reader.head
        assert attempt is not None
        assert head is not None
        self._upstream_s = self.lane.now - self.transfer.sent_at
        keeper = self.request.keeper
        if content is None and keeper is None:
            return attempt.hear(head)
        if content is not None:
            attempt.found = content.by_head(head)
        attempt.hear(head)
        most = 0 if keeper is None else keeper.most
        if content is not None and content.looks_inside:
            most = max(most, LOOKED_AT)
        if most and not is_stream(head):
            await self.transfer.peek(connection, most)
            reader = connection.reader
            if content is not None:
                attempt.found |= content.by_body(head, reader.hold_body(), complete=reader.complete)

    # Two at once

    async def _until_head(self, plan: RoutePlan, hedge: Hedge) -> Http1Connection:
        """The present attempt until the head of its answer, with a second one beside it if it takes long: the present
        one is then the one that was answered. Raises as `Attempt.until_head`.
        """
        attempt = self.attempt
        assert attempt is not None
        first = self.attempts <= 1
        repeatable = first and self._may_repeat()
        if repeatable:
            self.transfer.patience_s = hedge.delay_s
        try:
            connection = await attempt.until_head()
        except Impatient:
            rival = None
            if repeatable and hedge.withdraw():
                rival = rival_of(self, plan)
            if rival is None:
                connection = await attempt.until_head()
            else:
                self._tried = (*self._tried, rival.endpoint)
                self._hedged = True
                plan.metrics.retry("hedge")
                began = self.transfer.sent_at
                await race(self, plan, rival)
                winner = self.attempt
                assert winner is not None
                assert winner.connection is not None
                hedge.observe(self.lane.now - began, self.lane.now)
                return winner.connection
        if first:
            hedge.observe(self.lane.now - self.transfer.sent_at, self.lane.now)
        return connection

    def _may_repeat(self) -> bool:
        """The request may be at two endpoints at once, and all of it is here."""
        request, special = self.request, self.request.special
        return (
            (request.method in IDEMPOTENT or b"idempotency-key" in special)
            and request.complete
            and self.transfer.replayable
            and b"x-ambassador-attempt" not in special
        )

    def follow(self, attempt: Attempt) -> None:
        """Of two attempts, this one is the present one from now on."""
        if attempt is not self.attempt:
            self.attempt = attempt
            if attempt.sent_at is not None:
                self.transfer.follow(attempt.sent_at, attempt.until)

    # Another one

    def _retry_delay(self, plan: RoutePlan, reason: str) -> float | None:
        """How long to wait before another attempt, or None if there must be none."""
        retry, request, special = plan.retry, self.request, self.request.special
        tries = self.attempts - self._hedged  # the one beside another is no retry
        if retry is None or tries > retry.attempts or not self.transfer.replayable:
            return None
        if b"x-ambassador-attempt" in special or not retry.allows(
            reason, request.method, keyed=b"idempotency-key" in special
        ):
            return None
        attempt, head = self.attempt, self._head()
        after = None
        if head is not None and (reason.isdigit() or reason == CONTENT):
            if forbids_retry(head.special.get(b"proxy-status", b"")):
                return None
            if b"retry-after" in head.special and not self._may_ask_another(plan, head):
                after = delay_s(head.special[b"retry-after"])
        delay = retry.delay_s(tries, self.service.random(), after)
        now = self.lane.now
        if delay is None or plan.cannot_finish(self.transfer.deadline - now - delay, now):
            return None
        only = None if plan.upstream is None or attempt is None else plan.upstream.only
        if any(breaker.is_open for breaker in (plan.gates if only is None else guards_of(plan.gates, only))):
            self._is_final = True
            return None  # what there is says more than that the breaker is open
        if retry.budget.withdraw(now):
            return delay
        self._is_final = True
        return None

    def _may_ask_another(self, plan: RoutePlan, head: ResponseHead) -> bool:
        """Whether a `Retry-After` is none of the next attempt's business: it binds the endpoint that said it, and there
        is one that was not tried. But a 429 speaks for the service, and so does each where a cool-down takes it so.
        """
        upstream = plan.upstream
        assert upstream is not None
        if head.status == 429 or (upstream.cooldown is not None and not upstream.cooldown.spares_others):
            return False
        return upstream.has_another(self._tried)

    def _note_doubt(self) -> None:
        """The present attempt ends: may it have carried out the request, for whose repeats the answer is kept?"""
        keeper = self.request.keeper
        if keeper is None or not keeper.reached:
            return
        if self._was_refused(self._head()):
            keeper.reached = False
        else:
            self._in_doubt = True

    def _was_refused(self, head: ResponseHead | None) -> bool:
        """Nothing was carried out: this answer says so, and there was no attempt of which that is not known."""
        return head is not None and is_refusal(head) and not self._in_doubt and not self._hedged

    def _head(self) -> ResponseHead | None:
        """That of the present attempt's answer, if it is here."""
        attempt = self.attempt
        return None if attempt is None or attempt.connection is None else attempt.connection.reader.head

    async def _is_affordable(self, plan: RoutePlan) -> bool:
        """Charge the next attempt to the upstream's own limits now, while there still is an answer to give."""
        try:
            await self.pay(plan, inf)
        except (Limited, DeadlineExceeded):
            self._is_final = True
            return False
        return True

    async def pay(self, plan: RoutePlan, until: float) -> bool:
        """Charge an attempt to the upstream's own limits, once; whether that took a wait, not beyond `until`.

        Raises `Limited`, and `DeadlineExceeded` when the caller's deadline passed meanwhile.
        """
        upstream = plan.upstream
        assert upstream is not None
        if upstream.charge is None or self.paid:
            return False
        charged, self._charged = self._charged, None
        if isinstance(charged, ProxyError):
            raise charged
        if charged is None:
            charged = upstream.charge(self.request)
        if charged is not None:
            await self._queue(charged, upstream.name, until)
        self.paid = True
        return charged is not None

    async def _queue(self, charged: Awaitable[None], upstream: str, until: float) -> None:
        """Wait for a quota: not beyond what the request, or the breaker's probe, has time for. The upstream's own time
        begins afterwards.
        """
        transfer, began = self.transfer, self.lane.now
        try:
            with self.client.resting_until(min(transfer.deadline, until)):
                await charged
        except TimedOut:
            if self.lane.now >= self._caller_at:
                raise DeadlineExceeded("the caller's deadline passed") from None
            raise Limited(
                f"the quota of upstream {upstream} is spent for longer than the request may take"
            ) from None
        transfer.put_off(self.lane.now - began)

    async def _sleep(self, delay: float) -> None:
        """Wait before a retry, unless the client leaves."""
        lane, client, link = self.lane, self.client, self.client.link
        until = lane.now + delay
        self.check_presence()
        while lane.now < until:
            link.interest = client.leaving(self.request)
            try:
                await client.strand.wait(until)
            except TimedOut:
                pass
            finally:
                link.interest = 0
            self.check_presence()

    def check_presence(self) -> None:
        """Raises `ClientGone` if the client has left, and what is wrong with a request that it left unfinished."""
        self.client.check_presence(self.request)

    # The end of one

    def _count(self, plan: RoutePlan, outcome: str) -> None:
        """The present attempt has come to its end; there is none where no endpoint was."""
        if self.attempt is not None:
            self.attempt.count(outcome)
        else:
            plan.metrics.attempt(outcome, 0.0)

    def _leave(self, *, kept: bool) -> None:
        """The present attempt is over. `kept`: so is the connection, if its exchange happens to be complete."""
        if self.request.keeper is not None:
            self._note_doubt()
        attempt, self.attempt = self.attempt, None
        assert attempt is not None
        if self._prepared and self.transfer.recorder is not None:
            self.transfer.recorder.abandon()
            self.transfer.recorder = None
        self._last_endpoint = attempt.endpoint
        attempt.leave(kept=kept)
