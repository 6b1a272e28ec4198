"""One request and its answer: route, policies, cache and fallback, answer, outcome.

The order is that of the life of a request (see the package's map). Its attempts are `attempts.py`, one of them is
`attempt.py`; what moves bodies and waits for either side is `transfer.py`.

A small GET meets two waits and four system calls, and allocates little but what it sends. Outcomes are settled when
the *body* ends. After the head of the answer was passed on, an error cuts the client's connection: a cut answer must
never look complete.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias

from ambassador.errors import (
    BreakerOpen,
    CredentialUnavailable,
    DeadlineExceeded,
    Fault,
    Limited,
    NoEndpoint,
    NoRoute,
    NotCached,
    Overloaded,
    ProxyError,
    Unauthenticated,
    UpstreamError,
)
from ambassador.messages import Reply, Request
from ambassador.observe.access_log import AccessRecord, mask_target
from ambassador.proxy.admit import admit
from ambassador.proxy.attempt import STATUS_TEXT, Attempt, reason_of
from ambassador.proxy.attempts import Attempts, Charge
from ambassador.proxy.fields import CREDENTIALS
from ambassador.proxy.forwarding import caller_deadline_s, max_forwards
from ambassador.proxy.freshness import Said, by_name, initial_age_s, is_unchanged
from ambassador.proxy.http1_requests import HEALTH_TARGETS
from ambassador.proxy.lane import TimedOut
from ambassador.proxy.methods import SAFE
from ambassador.proxy.policies.cache import Flight
from ambassador.proxy.policies.fallback import FAILURES, FAILURES_ELSEWHERE
from ambassador.proxy.policies.idempotency import Repeat
from ambassador.proxy.problem import (
    error_reply,
    fallback_status,
    received_status,
    speaks_grpc,
)
from ambassador.proxy.shelf import Recording
from ambassador.proxy.transfer import ClientGone, Transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ambassador.messages import Field, Fields, ResponseHead
    from ambassador.observe.trace import Trace
    from ambassador.proxy.admit import Verdict
    from ambassador.proxy.http1 import ClientConnection
    from ambassador.proxy.plan import RoutePlan
    from ambassador.proxy.policies.breaker import Ticket
    from ambassador.proxy.policies.cache import Cache, Found, Visit
    from ambassador.proxy.policies.fallback import Fallback
    from ambassador.proxy.service import Table
    from ambassador.proxy.shelf import Kept, Shelf
    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.proxy.upstream.h1 import Http1Connection

_OF_A_BODY: Final = frozenset({
    b"content-length", b"content-type", b"content-encoding", b"content-language", b"content-range",
})  # fmt: skip
"""Fields that a 304 leaves out (RFC 9110 15.4.5)."""
_ALLOW: Final = (b"allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE")
_ENVOY_TIMEOUT: Final = b"x-envoy-upstream-rq-timeout-ms"
_CLIENT_GONE_STATUS: Final = 499  # nginx's number for a client that left before its answer; only in the log
_NOT_MADE: Final = (BreakerOpen, CredentialUnavailable, Limited, NoEndpoint, Overloaded)
"""What ends a request before its next attempt: no result that a repeat should be given."""

Fallen: TypeAlias = "tuple[ProxyError | None, int, str]"
"""What a fallback is in place of: a failure, or an answer (None), with its status; and which fallback it is."""


class Exchange(Attempts):
    """One request on one client connection. `run` answers it and never raises but for `ClientGone`."""

    _plan: RoutePlan | None = None
    _verdict: Verdict = None
    _status = 0
    _code: str | None = None
    _client_left = False
    _fallen: Fallen | None = None
    _visit: Visit | None = None
    _cache_note: bytes | None = None
    _replayed = False
    _denied = False

    def __init__(self, client: ClientConnection, request: Request) -> None:
        super().__init__(client, request)
        self._table = self.service.table
        self._arrived = request.complete
        self._bytes_before = client.bytes_written

    async def run(self) -> None:
        """Answer the request."""
        service = self.service
        service.inflight += 1
        try:
            verdict = self._verdict if self._plan is not None else self._route()
            if verdict is None:
                assert self._plan is not None
                await self._forward(self._plan)
            elif isinstance(verdict, Reply):
                await self._answer(verdict)
            elif isinstance(verdict, ProxyError):
                raise verdict  # noqa: TRY301 - as what the attempts raise
            else:
                await self._admit_slowly(verdict)
        except ProxyError as error:
            await self._fail(error)
        except ClientGone:
            self._client_left = True
            self._status = self._status or _CLIENT_GONE_STATUS
            self.client.abort()
            raise
        except BaseException:  # the worker ends, or a defect
            if self.client.answered:
                self.client.abort()
            raise
        finally:
            service.inflight -= 1
            if self.attempt is not None:
                self._leave(kept=False)
            self._settle()

    @classmethod
    async def refuse(cls, client: ClientConnection, error: ProxyError) -> None:
        """Answer input that is no request at all."""
        request = Request(client.reader.refused_method, b"-", client.reader.head_fields, 1)
        request.complete = True
        exchange = cls(client, request)
        request.client_ip = client.peer.ip
        request.request_id = exchange.service.tracer.begin().trace_id
        try:
            await exchange._fail(error)
        except ClientGone:
            pass
        finally:
            exchange._settle()

    # Before any attempt

    def take_over(self, table: Table, plan: RoutePlan, trace: Trace, verdict: Verdict) -> None:
        """Begin behind the ADMIT policies of `plan`, which said `verdict`: the request was identified, and routed in
        `table`.
        """
        self._table = table
        self._plan = plan
        self.trace = trace
        self._verdict = verdict

    def take_endpoint(self, endpoint: Endpoint) -> None:
        """Begin with `endpoint`, which was picked for the first attempt, after `take_over`."""
        assert self._plan is not None
        self.attempt = Attempt(self, self._plan, endpoint)

    def take_attempt(
        self,
        endpoint: Endpoint,
        connection: Http1Connection,
        ticket: Ticket | None,
        *,
        sent_at: float,
        failure: UpstreamError | None,
    ) -> None:
        """Begin inside the first attempt, after `take_over`: the whole request was written at `sent_at`.

        `failure`: what came of it, if that is known. `endpoint` counts the request as in flight already.
        """
        plan = self._plan
        assert plan is not None
        assert plan.upstream is not None
        self.attempts = 1
        endpoint.inflight -= 1
        self.attempt = Attempt(self, plan, endpoint)
        self.attempt.sent(connection, ticket, failure)
        if plan.upstream.only is None:
            self._tried = (endpoint,)
        self._started = sent_at
        self._prepared = True
        self.transfer = Transfer(self.client, self.request, plan, sent_at)
        self.transfer.resume_attempt(sent_at)

    def take_charge(self, charged: Charge) -> None:
        """The first attempt was charged already, with this outcome."""
        self._charged = charged

    def _route(self) -> Verdict:
        """Who asks for what, which route takes it, and what its ADMIT policies say."""
        request = self.request
        if request.target in HEALTH_TARGETS:
            self.trace, request.request_id = self.service.tracer.identify(request.special)
            return self.service.health_reply(request.method)
        self._identify(request)
        request.waiter = self.client
        clients = self._table.clients
        if clients is not None:
            waiting = clients.identify(request, self.client.peer, self.service.wall_s)
            if waiting is not None:
                return self._locate_later(waiting)
        return self._locate()

    async def _locate_later(self, waiting: Awaitable[None]) -> Reply | None:
        """Wait until it is known who asks; then as `_locate`."""
        await waiting
        verdict = self._locate()
        if isinstance(verdict, ProxyError):
            raise verdict
        self.client.rest_until = self._begin_total()
        return verdict if verdict is None or isinstance(verdict, Reply) else await verdict

    def _locate(self) -> Verdict:
        """Which route takes the request, and what its ADMIT policies say."""
        request = self.request
        try:
            plan = self._table.locate(request)
        except NoRoute:
            if request.target == b"*":
                return Reply(204, [_ALLOW])  # it asks about the server as a whole (RFC 9110 9.3.7)
            raise
        if b"max-forwards" in request.special:
            self.max_forwards = max_forwards(request)
            if self.max_forwards == 0:
                return _final_hop(request)
        self._plan = plan
        request.route = plan.name
        if self.service.shedding:
            refused = self.service.refusal()
            if refused is not None:
                return refused
        if plan.access is not None:
            denied = plan.access.check(request)
            if denied is not None:
                self._denied = True
                return denied
        return admit(plan, request)

    def _begin_total(self) -> float:
        """Have the route's `total` run while policies wait, if all of the request is here: it began when it came. Gives
        how long they may wait.
        """
        if self._plan is not None and self._arrived:
            self._total_at = self._started + self._plan.timeouts.total
        return min(self._caller_at, self._total_at)

    async def _admit_slowly(self, waiting: Awaitable[Reply | None]) -> None:
        """Wait for what the policies say, not beyond the caller's deadline, nor the route's own."""
        try:
            with self.client.resting_until(self._begin_total()):
                reply = await waiting
                if isinstance(reply, Repeat):
                    await self.client.read_body(self.request, reply.see)
                    reply.check()
                    assert self._plan is not None
                    self._plan.metrics.replayed()
        except TimedOut:
            if self.lane.now >= self._caller_at:
                raise DeadlineExceeded("the caller's deadline passed") from None
            raise DeadlineExceeded("the request waited for its turn as long as it may take") from None
        if reply is not None:
            return await self._answer(reply)
        assert self._plan is not None
        self.client.stays = self.request.keeper is not None
        await self._forward(self._plan)

    def _identify(self, request: Request) -> None:
        """Client, request id, trace, deadline; the loop check."""
        special = request.special
        client = self.client
        service = self.service
        self.trace, request.request_id = service.tracer.identify(special)
        client.peer.identify(request)
        via = special.get(b"via")
        if via is not None:
            service.via.check(via)
        if b"x-request-deadline" in special or b"grpc-timeout" in special or _ENVOY_TIMEOUT in special:
            left_s = caller_deadline_s(request, service.wall_s())
            if left_s is not None:
                if left_s <= 0:
                    raise DeadlineExceeded("the caller's deadline has passed")
                self._caller_at = self._started + left_s

    # Going up

    def _forward(self, plan: RoutePlan) -> Awaitable[None]:
        """Have the upstream answer, or what the route has in its place."""
        return self._answered(plan) if plan.fallback is None else self._answered_or_else(plan)

    async def _answered_or_else(self, plan: RoutePlan) -> None:
        try:
            return await self._answered(plan)
        except FAILURES as error:
            if self.client.answered or self._fallen is not None:
                raise
            failure = error
        try:
            if not await self._fall_back(plan, failure, failure.status):
                raise failure
        finally:
            del failure  # its traceback holds this frame

    def _answered(self, plan: RoutePlan) -> Awaitable[None]:
        return self._attempts(plan) if plan.cache is None else self._through_cache(plan, plan.cache)

    async def _attempts(self, plan: RoutePlan) -> None:
        connection, failed = await self._until_answer(plan)
        if failed:
            head = connection.reader.head
            assert head is not None
            if await self._fall_back(plan, None, head.status):
                return
        await self._relay(plan, connection)

    async def _through_cache(self, plan: RoutePlan, cache: Cache) -> None:
        """Answer with what is kept, or what another request brings; else go up, and leave the answer there."""
        visit = self._visit = cache.visit(self.request, self._told_besides())
        if visit is None:
            return await self._attempts(plan)
        try:
            self._prepare(plan)
            found = await self._find(plan, visit)
            if found is not None:
                await self._replay(plan, found.kept, found.note)
            elif visit.only_if_cached:
                self._cache_note = b"detail=only-if-cached"
                raise NotCached("the request takes an answer from the cache only, and there is none")
            else:
                await self._attempts(plan)
        except (ClientGone, DeadlineExceeded):
            visit.leave()  # that is the client's doing: the answer may be on its way
            raise
        finally:
            plan.metrics.cached(visit.result)
            visit.withdraw()

    def _told_besides(self) -> Fields:
        """What answers are kept by besides what goes on of the request: what upstreams are told of the client."""
        request = self.request
        fields = self.client.peer.fields(request)
        if self._plan is not None and self._plan.of_caller:
            fields = [*fields, *(field for field in request.headers if field[0].lower() == b"authorization")]
        return fields

    async def _find(self, plan: RoutePlan, visit: Visit) -> Found | None:
        """What there is at the cache, perhaps after a wait for an identical request; None: this one goes up.

        The wait ends in time for an attempt of its own: the one in front may be stuck. An answer on its way is lost to
        this request then, so the wait is as long as it can be. Where what is left is known to be too little for an
        answer, such an attempt would be in vain, and the wait goes on.
        """
        client, transfer, now = self.client, self.transfer, self.lane.now
        left_s = transfer.deadline - now
        own_s = plan.soonest.ample_s(left_s)
        until: float | None = None
        while True:
            found = visit.look()
            if not isinstance(found, Flight):
                return found
            if until is None:
                until = inf if plan.cannot_finish(own_s, now) else now + left_s - own_s
            try:
                with client.resting_until(transfer.deadline):
                    answer = await visit.wait(found, client, until)
            except TimedOut:
                raise transfer.missed() from None
            if answer is not None:
                return answer

    # When all have failed

    async def _fall_back(self, plan: RoutePlan, failure: ProxyError | None, status: int) -> bool:
        """Answer otherwise than by `failure`, or by an answer with `status` that is at hand. False: there is no other.

        Raises what becomes of the attempt at the other upstream, if that was made and nothing else is left.
        """
        fallback, transfer = plan.fallback, self.transfer
        if fallback is None or (failure is None and not self._has_failed(fallback, status)):
            return False
        self._note_doubt()
        other, respond, kept = plan.elsewhere, fallback.respond, self._last_good(plan, fallback)
        is_last = respond is None and kept is None
        if (
            other is not None
            and transfer.replayable
            and not other.cannot_finish(transfer.deadline - self.lane.now, self.lane.now)
            and fallback.may_send(self.request, failure)
            and self._is_known_to(other)
        ):
            self._give_up(failure, status)
            self._fallen = (failure, status, "to")
            try:
                connection = await self._attempt_elsewhere(other)
            except FAILURES_ELSEWHERE as error:
                if is_last:
                    if failure is not None and isinstance(error, Unauthenticated):
                        raise failure from None
                    raise
                self._give_up(error, error.status)
            else:
                head = connection.reader.head
                assert head is not None
                if is_last or not self._has_failed(fallback, head.status):
                    await self._relay(other, connection)
                    return True
                self._give_up(None, head.status)
        if is_last:
            return False
        self._give_up(failure, status)
        self._plan = plan
        if kept is not None:
            self._fallen = (failure, status, "stale")
            await self._replay(plan, kept, None)
        elif respond is not None:
            self._fallen = (failure, status, "respond")
            await self._answer(respond(self.request))
        return True

    def _is_known_to(self, other: RoutePlan) -> bool:
        """Whether the caller has what the credential of that upstream is made of, as far as is known by now."""
        try:
            if other.credential is not None:
                other.credential.in_hand(self.request)
        except Unauthenticated:
            return False
        except CredentialUnavailable:
            pass  # said, and counted, by the attempt
        return True

    def _last_good(self, plan: RoutePlan, fallback: Fallback) -> Kept | None:
        if fallback.last_good is None:
            return None
        request, forwarded = self.request, self._told_besides()
        cached = None if plan.cache is None else plan.cache.last(request, forwarded)
        return fallback.last_good.find(request, forwarded, cached, self.lane.now)

    def _has_failed(self, fallback: Fallback, status: int) -> bool:
        """Whether the present attempt's answer is one that a fallback is better than."""
        return status in fallback.statuses or (self.attempt is not None and bool(self.attempt.found))

    def _give_up(self, failure: ProxyError | None, status: int) -> None:
        """The present attempt, if there is one, is not what is answered. A failed one was counted before."""
        if self._visit is not None:
            self._visit.end()
        if self.attempt is not None:
            if failure is None:
                assert self._plan is not None
                self._count(self._plan, STATUS_TEXT[status])
            self._leave(kept=self.transfer.upload_done)

    async def _attempt_elsewhere(self, plan: RoutePlan) -> Http1Connection:
        """One attempt at another upstream than the route's own, up to the head of its answer."""
        self._plan, self._tried, self._charged, self.paid = plan, (), None, False
        self.transfer.patience_s = inf
        if self._visit is not None:
            self._visit.withdraw()
        if self.request.expects_continue:
            self._ask_for_body(plan)
        try:
            attempt = self._begin_attempt(plan)
            connection = await attempt.until_head()
            await self._hear(plan, connection)
        except UpstreamError as error:
            reason = reason_of(error)
            if self.attempt is not None:
                self.attempt.settle(reason)
            self._count(plan, reason)
            raise
        return connection

    # The answer

    async def _relay(self, plan: RoutePlan, connection: Http1Connection) -> None:
        """Pass the answer on, from its head to the end of its body."""
        client, request, reader = self.client, self.request, connection.reader
        head = reader.head
        assert head is not None
        status = self._status = head.status
        if plan.keeps and await self._keep(plan, head):
            return None
        body = reader.take_body()
        complete = reader.complete and self.transfer.upload_done and not reader.trailers
        if self.transfer.recorder is not None:
            self.transfer.record(body)
            if complete:
                self.transfer.end_record(whole=True)
        fields = self._response_fields(plan, head)
        keeper = request.keeper
        if keeper is not None:
            body = bytes(body)  # what a view shows does not hold while somebody waits
            whole_body = body if reader.complete and not reader.trailers else None
            if self._was_refused(head):
                keeper.refused()
            keeper.keep(status, fields, whole_body, whole=self.transfer.upload_done)
        sized = head.content_length is not None or status in (204, 304) or request.method == "HEAD"
        if not complete:
            if keeper is not None:
                await keeper.told(client)
            client.start_response(
                request, status, fields, body, sized=sized, complete=False, reason=head.reason
            )
            return await self._relay_rest(plan, connection)
        self._finish(plan, None)
        if keeper is not None:
            await keeper.told(client)
        client.start_response(request, status, fields, body, sized=sized, complete=True, reason=head.reason)
        if client.blocked is not None or client.write_failed:
            await client.drained(client.limits.body_timeout)

    async def _keep(self, plan: RoutePlan, head: ResponseHead) -> bool:
        """See to it that the answer is kept if it may be. True: what is kept already holds still, and was given."""
        request, visit, now = self.request, self._visit, self.lane.now
        if plan.spoil is not None and request.method not in SAFE and head.status < 400:
            plan.spoil(request, head)
        last_good = None if plan.fallback is None else plan.fallback.last_good
        if self.attempt is not None and self.attempt.found:
            if visit is not None:
                visit.end()
            return False
        if visit is None and last_good is None:
            return False
        said = Said(
            head.status,
            head.passing,
            date=self.service.http_date(),
            default_lifetime_s=None if plan.cache is None else plan.cache.ttl_s,
        )
        delay_s = now - self.transfer.sent_at
        age_s = initial_age_s(said.fields, wall_s=self.service.wall_s(), delay_s=delay_s)
        takers: list[tuple[Shelf, Callable[[bytes | None], None]]] = []
        if visit is not None and plan.cache is not None:
            found = visit.hear(head, said, age_s)
            if found is not None:
                self._finish(plan, None)
                await self._replay(plan, found.kept, found.note)
                return True
            self._cache_note = visit.note
            if visit.wants_body():
                takers.append((plan.cache.shelf, visit.take))
        if last_good is not None:
            take = last_good.taker(request, self._told_besides(), head, said, now=now, age_s=age_s)
            if take is not None:
                takers.append((last_good.shelf, take))
        if takers:
            self.transfer.recorder = Recording(takers)
        return False

    async def _replay(self, plan: RoutePlan, kept: Kept, note: bytes | None) -> None:
        """Answer with what is kept; `note` is what `cache-status` says of it."""
        client, request = self.client, self.request
        self._cache_note = note
        self._replayed = True
        status, reason, body = kept.head.status, kept.head.reason, kept.body
        fields = self._response_fields(plan, kept.head)
        fields.append((b"age", b"%d" % kept.age_s(self.lane.now)))
        if status == 200 and is_unchanged(kept.said.fields, by_name(request.headers)):
            status, reason, body = 304, b"", b""
            fields = [field for field in fields if field[0].lower() not in _OF_A_BODY]
        elif request.method == "HEAD":
            body = b""
        self._status = status
        client.start_response(request, status, fields, body, sized=True, complete=True, reason=reason)
        if client.blocked is not None or client.write_failed:
            await client.drained(client.limits.body_timeout)

    def _cache_status(self, note: bytes) -> Field:
        return (b"cache-status", b"%b; %b" % (self.service.name.encode(), note))

    async def _relay_rest(self, plan: RoutePlan, connection: Http1Connection) -> None:
        """An answer whose body, or whose request's body, is still on its way."""
        try:
            await self.transfer.relay(connection)
        except ClientGone:
            self._finish(plan, "cancelled")
            raise
        except UpstreamError as error:
            self._finish(plan, reason_of(error))
            raise
        self._finish(plan, None)

    def _response_fields(self, plan: RoutePlan, head: ResponseHead) -> Fields:
        fields = [*head.passing]
        if head.status == 204 and b"content-length" in head.special:  # RFC 9110 8.6
            fields = [field for field in fields if field[0].lower() != b"content-length"]
        if not self.request.minor:  # which gets no trailers
            fields = [field for field in fields if field[0].lower() != b"trailer"]
        if b"date" not in head.special:
            fields.append((b"date", self.service.http_date()))
        if plan.map_location is not None and b"location" in head.special:
            plan.map_location(self.request, fields)
        for hook in plan.shape_response:
            hook(self.request, fields)
        fields.append((b"x-request-id", self.request.request_id))
        if plan.limit is not None:
            fields += plan.limit.answer_fields(self.request)
        if self._cache_note is not None:
            fields.append(self._cache_status(self._cache_note))
        if self._fallen is not None:
            fields.append(self._fallen_field(self._fallen))
        elif (self.attempts > 1 or self._is_final) and self._is_failure(plan, head.status):
            status = received_status(
                head.status, pseudonym=self.service.name, attempts=self.attempts, is_final=self._is_final
            )
            fields.append((b"proxy-status", status))
        if self._table.debug_headers:
            fields.append((b"x-ambassador-upstream-ms", b"%d" % (self._upstream_s * 1000)))
            fields.append((b"x-ambassador-attempts", b"%d" % self.attempts))
        return fields

    def _is_failure(self, plan: RoutePlan, status: int) -> bool:
        """Whether somebody in front may take the answer for one that another attempt may mend."""
        return (
            status >= 500 or status in plan.failing or (self.attempt is not None and bool(self.attempt.found))
        )

    def _fallen_field(self, fallen: Fallen) -> Field:
        failure, status, how = fallen
        text = fallback_status(
            failure,
            status,
            pseudonym=self.service.name,
            attempts=self.attempts,
            fallback=how,
            is_final=self._is_final,
        )
        return (b"proxy-status", text)

    # Ends

    def _finish(self, plan: RoutePlan, failure: str | None) -> None:
        """The answer is complete, or given up because of `failure`: free the endpoint and the connection."""
        self._count(plan, failure or STATUS_TEXT[self._status])
        self._leave(kept=self.transfer.upload_done and failure is None)

    async def _answer(self, reply: Reply) -> None:
        """Answer with something made here."""
        request = self.request
        fields = [*reply.headers]
        body = b"" if request.method == "HEAD" or reply.status in (204, 304) else reply.body
        if reply.status not in (204, 304):
            fields.append((b"content-length", b"%d" % len(reply.body)))
        fields.append((b"date", self.service.http_date()))
        if self._fallen is not None:
            fields.append(self._fallen_field(self._fallen))
        if self._cache_note is not None:
            fields.append(self._cache_status(self._cache_note))
        if request.request_id:
            fields.append((b"x-request-id", request.request_id))
        if self._plan is not None and self._plan.limit is not None and not self._denied:
            fields += self._plan.limit.answer_fields(request)
        self._status = reply.status
        if request.keeper is not None:
            if request.keeper.reached:
                request.keeper.keep(reply.status, fields, reply.body, whole=self.transfer.upload_done)
            else:
                request.keeper.free()
            await request.keeper.told(self.client)
        self.client.start_response(request, reply.status, fields, body, sized=True, complete=True)
        await self.client.drained(self.client.limits.body_timeout)

    async def _fail(self, error: ProxyError) -> None:
        """Answer with the error's problem document, or cut what has begun."""
        self._code = error.code
        self._fallen = None
        if self.client.answered:
            self.client.abort()
            raise ClientGone from error
        request = self.request
        if request.keeper is not None and isinstance(error, _NOT_MADE):
            request.keeper.free()
        if (error.fault is Fault.CLIENT and not isinstance(error, NoRoute)) or (
            isinstance(error, Overloaded) and error.closes
        ):
            self.client.close_after = True
        if not request.request_id:
            _, request.request_id = self.service.tracer.identify(request.special)
        reply = error_reply(
            error,
            pseudonym=self.service.name,
            request_id=request.request_id.decode("ascii"),
            route=request.route,
            attempts=self.attempts,
            grpc=speaks_grpc(request.headers),
            is_final=self._is_final,
        )
        await self._answer(reply)

    def _settle(self) -> None:
        """Count the request and write its line."""
        self.request.waiter = (
            None  # the connection may hold the request, and the collector does not see requests
        )
        service, now = self.service, self.lane.now
        plan = self._plan
        seconds = now - self._started
        if self.request.ends is not None:
            self.request.end(0 if self._status == _CLIENT_GONE_STATUS else self._status, seconds)
        (plan.metrics if plan is not None else self._table.unrouted).settled(self._status // 100, seconds)
        log = service.access_log
        if log is not None:
            log.write(self._record(seconds))

    def _record(self, seconds: float) -> AccessRecord:
        request, plan, endpoint = self.request, self._plan, self._last_endpoint
        return AccessRecord(
            ts=self.service.wall_s() - seconds,
            request_id=request.request_id,
            trace_id=self.trace.trace_id if self.trace is not None else b"",
            client=request.client,
            client_ip=request.client_ip,
            method=request.method,
            host=request.host,
            # Without a path the request was refused before it had one.
            path=request.path or mask_target(request.target),
            query=request.query if request.path else None,
            protocol="HTTP/1.1" if request.minor else "HTTP/1.0",
            status=self._status,
            code=self._code,
            bytes_in=self.transfer.bytes_in if self.attempts else 0,
            bytes_out=self.client.bytes_written - self._bytes_before,
            duration_ms=seconds * 1000,
            upstream_ms=self._upstream_s * 1000 if self.attempts else None,
            route=request.route,
            upstream=plan.upstream.name if plan is not None and plan.upstream is not None else None,
            endpoint=endpoint.url if endpoint is not None else None,
            attempts=self.attempts,
            flags=self._flags(),
        )

    def _flags(self) -> tuple[str, ...]:
        flags: tuple[str, ...] = ("hedged",) if self._hedged else ()
        if self._replayed:
            flags = (*flags, "kept")
        if self.attempts and self.transfer.client_slow:
            return (*flags, "client_slow")
        if self._fallen is not None:
            flags = (*flags, "fallback")
        return (*flags, "client_gone") if self._client_left else flags


def _final_hop(request: Request) -> Reply:
    """`Max-Forwards: 0`: the request ends here (RFC 9110 7.6.2)."""
    if request.method == "TRACE":
        hidden = (*CREDENTIALS, *request.proof)
        lines = [b"%b: %b" % field for field in request.headers if field[0].lower() not in hidden]
        head = b"TRACE %b HTTP/1.%d\r\n" % (request.target, request.minor)
        return Reply(200, [(b"content-type", b"message/http")], head + b"\r\n".join(lines) + b"\r\n\r\n")
    return Reply(200, [_ALLOW])
