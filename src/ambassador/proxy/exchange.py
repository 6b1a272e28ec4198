"""One request and its answer: route, attempts, outcome.

The order is that of the life of a request (see the package's map). Everything below `_attempts` runs once per attempt.
What moves bodies and waits for either side is `transfer.py`.

A small GET meets two waits and four system calls, and allocates little but what it sends. Outcomes are settled when
the *body* ends. After the head of the answer was passed on, an error cuts the client's connection: a cut answer must
never look complete.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias

from ambassador.errors import (
    ConnectFailed,
    DeadlineExceeded,
    Fault,
    Limited,
    NoRoute,
    ProxyError,
    UpstreamError,
    UpstreamReset,
    UpstreamTimeout,
)
from ambassador.messages import Reply, Request, RequestHead
from ambassador.observe.access_log import AccessRecord
from ambassador.proxy.fields import tokens
from ambassador.proxy.forwarding import caller_deadline_s, deadline_fields, max_forwards
from ambassador.proxy.http1_parser import HEALTH_TARGETS
from ambassador.proxy.lane import HANGUP, READ, TimedOut
from ambassador.proxy.policies.breaker import Refusal, Ticket, closed, enter, guards_of, settle
from ambassador.proxy.policies.retry import IDEMPOTENT
from ambassador.proxy.problem import error_reply, forbids_retry
from ambassador.proxy.transfer import ClientGone, Transfer
from ambassador.proxy.upstream.pool import QueueTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ambassador.messages import Fields, ResponseHead
    from ambassador.observe.trace import Trace
    from ambassador.proxy.http1 import ClientConnection
    from ambassador.proxy.plan import RoutePlan
    from ambassador.proxy.service import Table
    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.proxy.upstream.h1 import Http1Connection

STATUS_TEXT: Final = {status: str(status) for status in range(1000)}
_CLIENT_GONE_STATUS: Final = 499  # nginx's number for a client that left before its answer; only in the log


Charge: TypeAlias = "ProxyError | Awaitable[None] | None"
"""What an upstream's own limits say to an attempt: None to go on."""
Verdict: TypeAlias = "Reply | ProxyError | Awaitable[Reply | None] | None"
"""What policies say before the first attempt: None to go on."""


class Exchange:
    """One request on one client connection. `run` answers it and never raises but for `ClientGone`."""

    # Defaults in the class, not slots: most requests change few of them (0.6 us a request).
    _plan: RoutePlan | None = None
    _verdict: Verdict = None
    _transfer: Transfer
    """Made for the first attempt."""
    _failure: UpstreamError | None = None
    _ticket: Ticket | None = None
    _charged: Charge = None
    _paid = False
    _connection: Http1Connection | None = None
    _endpoint: Endpoint | None = None
    _last_endpoint: Endpoint | None = None
    _tried: tuple[Endpoint, ...] = ()
    _caller_at = inf
    _max_forwards: int | None = None
    _status = 0
    _code: str | None = None
    _client_left = False
    _trace: Trace | None = None
    _upstream_s = 0.0
    attempts = 0

    def __init__(self, client: ClientConnection, request: Request) -> None:
        service = client.listener.service
        self._client = client
        self.request = request
        self._service = service
        self._table = service.table
        self._lane = service.lane
        self._started = service.lane.now
        self._bytes_before = client.bytes_written

    async def run(self) -> None:
        """Answer the request."""
        service = self._service
        service.inflight += 1
        try:
            verdict = self._verdict if self._plan is not None else self._route()
            if verdict is None:
                assert self._plan is not None
                await self._attempts(self._plan)
            elif isinstance(verdict, Reply):
                await self._answer(verdict)
            elif isinstance(verdict, ProxyError):
                raise verdict
            else:
                await self._admit_slowly(verdict)
        except ProxyError as error:
            await self._fail(error)
        except ClientGone:
            self._client_left = True
            self._status = self._status or _CLIENT_GONE_STATUS
            self._client.abort()
            raise
        finally:
            service.inflight -= 1
            if self._endpoint is not None:
                self._leave_endpoint(kept=False)
            self._settle()

    @classmethod
    async def refuse(cls, client: ClientConnection, error: ProxyError) -> None:
        """Answer input that is no request at all."""
        request = Request("-", b"-", [], 1)
        request.complete = True
        exchange = cls(client, request)
        request.client_ip = client.peer.ip
        request.request_id = exchange._service.tracer.begin().trace_id
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
        self._trace = trace
        self._verdict = verdict

    def take_endpoint(self, endpoint: Endpoint) -> None:
        """Begin with `endpoint`, which was picked for the first attempt, after `take_over`."""
        self._endpoint = endpoint
        endpoint.inflight += 1

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

        `failure`: what came of it, if that is known.
        """
        plan = self._plan
        assert plan is not None
        assert plan.upstream is not None
        self.attempts = 1
        self._endpoint, self._connection, self._failure = endpoint, connection, failure
        self._ticket = ticket
        if plan.upstream.only is None:
            self._tried = (endpoint,)
        self._started = sent_at
        self._transfer = Transfer(self._client, self.request, plan, sent_at)
        self._transfer.resume_attempt(sent_at)

    def take_charge(self, charged: Charge) -> None:
        """The first attempt was charged already, with this outcome."""
        self._charged = charged

    def _route(self) -> Verdict:
        """Who asks for what, which route takes it, and what its ADMIT policies say."""
        request = self.request
        if request.target in HEALTH_TARGETS:
            return self._service.health_reply()
        self._identify(request)
        plan = self._table.locate(request)
        if b"max-forwards" in request.special:
            self._max_forwards = max_forwards(request)
            if self._max_forwards == 0:
                return _final_hop(request)
        self._plan = plan
        request.route = plan.name
        request.waiter = self._client
        return admit(plan, request)

    async def _admit_slowly(self, waiting: Awaitable[Reply | None]) -> None:
        """Wait for what the policies say, not beyond the caller's deadline."""
        self._client.rest_until = self._caller_at
        try:
            reply = await waiting
        except TimedOut:
            raise DeadlineExceeded("the caller's deadline passed") from None
        finally:
            self._client.rest_until = inf
        if reply is not None:
            return await self._answer(reply)
        assert self._plan is not None
        await self._attempts(self._plan)

    def _identify(self, request: Request) -> None:
        """Client, request id, trace, deadline; the loop check."""
        special = request.special
        client = self._client
        service = self._service
        self._trace, request.request_id = service.tracer.identify(special)
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

    # Attempts

    async def _attempts(self, plan: RoutePlan) -> None:
        retry = plan.retry
        if self._connection is None:
            if self.request.expects_continue:
                self._client.send_continue(self.request)
            self._transfer = Transfer(self._client, self.request, plan, self._started)
            self._transfer.caller_at = self._caller_at
            if retry is not None:
                retry.budget.deposit(self._started)
        transfer = self._transfer
        while True:
            if self._connection is None:
                self.attempts += 1
            connection: Http1Connection | None = None
            failure: UpstreamError | None = None
            try:
                connection = await self._try(plan)
            except UpstreamError as error:
                failure, reason = error, _reason(error)
                self._settle_ticket(reason)  # before it is asked whether the breaker is open
            else:
                assert connection.reader.head is not None
                self._upstream_s = self._lane.now - transfer.sent_at
                status = connection.reader.head.status
                self._hear(plan, connection.reader.head)
                if retry is None or status not in retry.statuses:
                    return await self._relay(plan, connection)
                reason = str(status)
            delay = self._retry_delay(plan, reason)
            if delay is None or not await self._is_affordable(plan):
                if failure is not None:
                    self._count_attempt(plan, reason)
                    raise failure
                assert connection is not None
                return await self._relay(plan, connection)
            self._count_attempt(plan, reason)
            plan.metrics.retry(reason)
            self._leave_endpoint(kept=transfer.upload_done)
            await self._sleep(delay)

    def _retry_delay(self, plan: RoutePlan, reason: str) -> float | None:
        """How long to wait before another attempt, or None if there must be none."""
        retry, request, special = plan.retry, self.request, self.request.special
        if retry is None or self.attempts > retry.attempts or not self._transfer.replayable:
            return None
        if b"x-ambassador-attempt" in special or not retry.allows(
            reason, request.method, keyed=b"idempotency-key" in special
        ):
            return None
        head = self._connection.reader.head if self._connection is not None else None
        after = None
        if head is not None and reason.isdigit():
            if forbids_retry(head.special.get(b"proxy-status", b"")):
                return None
            value = head.special.get(b"retry-after", b"")
            after = float(value) if value.isdigit() and len(value) < 9 else None
        delay = retry.delay_s(self.attempts, self._service.random(), after)
        if delay is None or self._lane.now + delay >= self._transfer.deadline:
            return None
        only = self._endpoint if plan.upstream is not None and plan.upstream.only is not None else None
        if any(breaker.is_open for breaker in (plan.gates if only is None else guards_of(plan.gates, only))):
            return None  # what there is says more than that the breaker is open
        return delay if retry.budget.withdraw(self._lane.now) else None

    async def _is_affordable(self, plan: RoutePlan) -> bool:
        """Charge the next attempt to the upstream's own limits now, while there still is an answer to give."""
        try:
            await self._pay(plan)
        except (Limited, DeadlineExceeded):
            return False
        return True

    async def _pay(self, plan: RoutePlan) -> bool:
        """Charge an attempt to the upstream's own limits, once; whether that took a wait. Raises `Limited`, and
        `DeadlineExceeded` when the caller's deadline passed meanwhile.
        """
        upstream = plan.upstream
        assert upstream is not None
        if upstream.charge is None or self._paid:
            return False
        charged, self._charged = self._charged, None
        if isinstance(charged, ProxyError):
            raise charged
        if charged is None:
            charged = upstream.charge(self.request)
        if charged is not None:
            await self._queue(charged, upstream.name)
        self._paid = True
        return charged is not None

    async def _queue(self, charged: Awaitable[None], upstream: str) -> None:
        """Wait for a quota: not beyond what the request, or the breaker's probe, has time for. The upstream's own time
        begins afterwards.
        """
        transfer, client, ticket = self._transfer, self._client, self._ticket
        began = self._lane.now
        until = inf if ticket is None else ticket.until
        client.rest_until = min(transfer.deadline, until)
        try:
            await charged
        except TimedOut:
            if self._lane.now >= self._caller_at:
                raise DeadlineExceeded("the caller's deadline passed") from None
            raise Limited(
                f"the quota of upstream {upstream} is spent for longer than the request may take"
            ) from None
        finally:
            client.rest_until = inf
        transfer.put_off(self._lane.now - began, until)

    async def _sleep(self, delay: float) -> None:
        """Wait before a retry, unless the client leaves."""
        lane, client, link = self._lane, self._client, self._client.link
        until, gone = lane.now + delay, client.gone(self.request)
        while lane.now < until and not link.ready & gone:
            link.interest = gone
            try:
                await client.strand.wait(until)
            except TimedOut:
                pass
            finally:
                link.interest = 0
        if link.ready & gone:
            raise ClientGone

    async def _try(self, plan: RoutePlan) -> Http1Connection:
        """One attempt, until the head of an answer is there. Raises `UpstreamError`."""
        connection = self._connection
        if connection is None:
            endpoint, upstream = self._pick(plan), plan.upstream
            assert upstream is not None
            if upstream.cooldown is not None or plan.gates or endpoint.gate is not None:
                await self._enter(plan, endpoint)
            connection = endpoint.pool.take()
            if connection is not None and upstream.charge is not None:
                await self._pay_beside(plan, connection)
            if connection is None or connection.link.closed:
                return await self._try_on_new(plan)
            self._connection = connection
            self._start(plan, connection, endpoint)
        try:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            await self._transfer.until_head(connection)
        except UpstreamReset:
            if not self._is_stale():
                raise
            self._paid = True
            return await self._try_on_new(plan)
        return connection

    def _pick(self, plan: RoutePlan) -> Endpoint:
        """Begin an attempt: pick its endpoint, unless that was done."""
        upstream = plan.upstream
        assert upstream is not None
        self._transfer.begin_attempt()
        endpoint = self._endpoint
        if endpoint is None:
            endpoint = self._endpoint = upstream.only or upstream.pick(self._tried)
            endpoint.inflight += 1
        if upstream.only is None:
            self._tried = (*self._tried, endpoint)
        return endpoint

    async def _enter(self, plan: RoutePlan, endpoint: Endpoint) -> None:
        """Ask the cool-down and the breakers. Raises `BreakerOpen`: no attempt was made then."""
        upstream, now = plan.upstream, self._lane.now
        assert upstream is not None
        if upstream.cooldown is not None:
            left_s = upstream.cooldown.left(self.request.passing, endpoint)
            if left_s > 0:
                self.attempts -= 1
                raise upstream.cooldown.error(left_s)
        guards = guards_of(plan.gates, endpoint)
        ticket = closed(guards)
        if ticket is None:
            entry = enter(guards, now, plan.answer_within_s, self._client)
            if not isinstance(entry, Ticket | Refusal):
                entry = await entry
            if isinstance(entry, Refusal):
                self.attempts -= 1
                raise entry.error()
            ticket = entry
        self._ticket = ticket
        self._transfer.try_at = min(self._transfer.try_at, ticket.until)

    def _hear(self, plan: RoutePlan, head: ResponseHead) -> None:
        """Take what an answer's head says beyond this request: a pause that is asked for; of a stream, how it went."""
        assert plan.upstream is not None
        cooldown = plan.upstream.cooldown
        if cooldown is not None and self._endpoint is not None:
            after = head.special.get(b"retry-after")
            cooldown.heard(self.request.passing, self._endpoint, head.status, after)
        if self._ticket is not None and _is_stream(head):
            self._settle_ticket(STATUS_TEXT[head.status])

    def _settle_ticket(self, outcome: str) -> None:
        """Tell the breakers how the attempt went."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            now = self._lane.now
            settle(ticket, outcome, now - self._transfer.sent_at, now)

    async def _pay_beside(self, plan: RoutePlan, connection: Http1Connection) -> bool:
        """`_pay` directly before the first byte, with the connection at hand, which is for others if the attempt is
        not to be.
        """
        try:
            return await self._pay(plan)
        except BaseException:
            if not connection.link.closed:
                connection.pool.put(connection)
            raise

    async def _try_on_new(self, plan: RoutePlan) -> Http1Connection:
        """The same attempt on a new connection (or one that comes free meanwhile), until the head of its answer."""
        endpoint, client, transfer = self._endpoint, self._client, self._transfer
        assert endpoint is not None
        deadline = transfer.attempt_deadline
        fresh = self._connection is not None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        while True:
            try:
                connection = await endpoint.pool.acquire(
                    client.strand, plan.timeouts.connect, deadline, fresh=fresh
                )
            except QueueTimeout:
                raise transfer.missed() from None
            except ConnectFailed:
                if self._lane.now >= deadline:
                    raise transfer.missed() from None
                raise
            if await self._pay_beside(plan, connection) and connection.link.ready & (READ | HANGUP):
                connection.close()  # its end came meanwhile
                continue
            self._connection = connection
            if client.link.ready & client.gone(self.request):
                raise ClientGone
            if not connection.used and self._service.metrics is not None:
                self._service.metrics.upstream_opened()
            self._start(plan, connection, endpoint)
            try:
                await transfer.until_head(connection)
            except UpstreamReset:
                if fresh or not self._is_stale():
                    raise
            else:
                return connection
            connection.close()
            fresh = self._paid = True

    def _is_stale(self) -> bool:
        """The connection had been closed while idle, and the request may be sent again (contract 7.3)."""
        connection, request = self._connection, self.request
        if connection is None or not connection.used or connection.reader.started:
            return False
        if not self._transfer.replayable:
            return False  # some of the body is gone
        return connection.untouched or request.method in IDEMPOTENT or b"idempotency-key" in request.special

    def _start(self, plan: RoutePlan, connection: Http1Connection, endpoint: Endpoint) -> None:
        """Send the head and what there is of the body."""
        request = self.request
        path = request.path if plan.rewrite is None else plan.rewrite(request)
        if request.query is not None:
            path = b"%b?%b" % (path, request.query)
        elif request.target == b"*":
            path = b"*"
        if plan.keep_host:
            host = request.authority or endpoint.authority
        else:
            host = plan.host or endpoint.authority
        head = RequestHead(request.method, path, host, self._request_fields(plan))
        if request.chunked:
            head.sized = False
        if b"te" in request.special:
            head.takes_trailers = b"trailers" in tokens(request.special[b"te"])
        self._paid = False
        self._transfer.start(connection, head)

    def _request_fields(self, plan: RoutePlan) -> Fields:
        """What passes, what the proxy adds (who sent it, through whom, under which ids), what the route changes."""
        request, trace = self.request, self._trace
        assert trace is not None
        fields = [
            *request.passing,
            *self._client.peer.fields(request),
            (b"via", self._service.via.extend(request)),
            (b"x-request-id", request.request_id),
            (b"traceparent", trace.parent),
        ]
        if trace.state is not None:
            fields.append((b"tracestate", trace.state))
        if self._max_forwards is not None:
            fields.append((b"max-forwards", b"%d" % (self._max_forwards - 1)))
        left = self._transfer.deadline - self._lane.now
        if left != inf:
            fields += deadline_fields(request, max(left, 0.001), self._service.wall_s())
        if self.attempts > 1:
            fields.append((b"x-ambassador-attempt", b"%d" % self.attempts))
        elif b"x-ambassador-attempt" in request.special and self._client.peer.believed:
            fields.append((b"x-ambassador-attempt", request.special[b"x-ambassador-attempt"]))
        for hook in plan.shape_request:
            hook(request, fields)
        return fields

    # The answer

    async def _relay(self, plan: RoutePlan, connection: Http1Connection) -> None:
        """Pass the answer on, from its head to the end of its body."""
        client, request, reader = self._client, self.request, connection.reader
        head = reader.head
        assert head is not None
        status = self._status = head.status
        body = reader.take_body()
        complete = reader.complete and self._transfer.upload_done and not reader.trailers
        fields = self._response_fields(plan, head)
        sized = head.content_length is not None or status in (204, 304) or request.method == "HEAD"
        if not complete:
            client.start_response(request, status, fields, body, sized=sized, complete=False)
            return await self._relay_rest(plan, connection)
        self._finish_attempt(plan, None)
        client.start_response(request, status, fields, body, sized=sized, complete=True)
        if client.blocked is not None or client.write_failed:
            await client.drained(client.limits.body_timeout)

    async def _relay_rest(self, plan: RoutePlan, connection: Http1Connection) -> None:
        """An answer whose body, or whose request's body, is still on its way."""
        try:
            await self._transfer.relay(connection)
        except ClientGone:
            self._finish_attempt(plan, "cancelled")
            raise
        except UpstreamError as error:
            self._finish_attempt(plan, _reason(error))
            raise
        self._finish_attempt(plan, None)

    def _response_fields(self, plan: RoutePlan, head: ResponseHead) -> Fields:
        fields = [*head.passing]
        if head.status == 204 and b"content-length" in head.special:  # RFC 9110 8.6
            fields = [field for field in fields if field[0].lower() != b"content-length"]
        if b"date" not in head.special:
            fields.append((b"date", self._service.http_date()))
        if plan.map_location is not None and b"location" in head.special:
            plan.map_location(self.request, fields)
        for hook in plan.shape_response:
            hook(self.request, fields)
        fields.append((b"x-request-id", self.request.request_id))
        if plan.limit is not None:
            fields += plan.limit.answer_fields(self.request)
        if self.attempts > 1 and head.status >= 500:
            fields.append((b"proxy-status", self._service.retried_status(head.status, self.attempts)))
        if self._table.debug_headers:
            fields.append((b"x-ambassador-upstream-ms", b"%d" % (self._upstream_s * 1000)))
            fields.append((b"x-ambassador-attempts", b"%d" % self.attempts))
        return fields

    # Ends

    def _finish_attempt(self, plan: RoutePlan, failure: str | None) -> None:
        """The answer is complete, or given up because of `failure`: free the endpoint and the connection."""
        self._count_attempt(plan, failure or STATUS_TEXT[self._status])
        self._leave_endpoint(kept=self._transfer.upload_done and failure is None)

    def _count_attempt(self, plan: RoutePlan, outcome: str) -> None:
        plan.metrics.attempt(outcome, self._lane.now - self._transfer.sent_at)
        self._settle_ticket(outcome)

    def _leave_endpoint(self, *, kept: bool) -> None:
        """The attempt has ended. `kept`: so is the connection, if its exchange happens to be complete."""
        if self._ticket is not None:
            self._settle_ticket("cancelled")
        endpoint, connection = self._endpoint, self._connection
        assert endpoint is not None
        endpoint.inflight -= 1
        self._last_endpoint, self._endpoint, self._connection = endpoint, None, None
        if connection is not None:
            if kept:
                connection.release()
            else:
                connection.close()

    async def _answer(self, reply: Reply) -> None:
        """Answer with something made here."""
        request = self.request
        fields = [*reply.headers]
        body = b"" if request.method == "HEAD" or reply.status in (204, 304) else reply.body
        if reply.status not in (204, 304):
            fields.append((b"content-length", b"%d" % len(reply.body)))
        fields.append((b"date", self._service.http_date()))
        if request.request_id:
            fields.append((b"x-request-id", request.request_id))
        if self._plan is not None and self._plan.limit is not None:
            fields += self._plan.limit.answer_fields(request)
        self._status = reply.status
        self._client.start_response(request, reply.status, fields, body, sized=True, complete=True)
        await self._client.drained(self._client.limits.body_timeout)

    async def _fail(self, error: ProxyError) -> None:
        """Answer with the error's problem document, or cut what has begun."""
        self._code = error.code
        if self._client.answered:
            self._client.abort()
            raise ClientGone from error
        request = self.request
        if error.fault is Fault.CLIENT and not isinstance(error, NoRoute):
            self._client.close_after = True
        if not request.request_id:
            _, request.request_id = self._service.tracer.identify(request.special)
        reply = error_reply(
            error,
            pseudonym=self._service.name,
            request_id=request.request_id.decode("ascii"),
            route=request.route,
            attempts=self.attempts,
            grpc=any(
                name.lower() == b"content-type" and value.startswith(b"application/grpc")
                for name, value in request.headers
            ),
        )
        await self._answer(reply)

    def _settle(self) -> None:
        """Count the request and write its line."""
        service, now = self._service, self._lane.now
        plan = self._plan
        seconds = now - self._started
        (plan.metrics if plan is not None else self._table.unrouted).settled(self._status // 100, seconds)
        log = service.access_log
        if log is not None:
            log.write(self._record(seconds))

    def _record(self, seconds: float) -> AccessRecord:
        request, plan, endpoint = self.request, self._plan, self._last_endpoint
        return AccessRecord(
            ts=self._service.wall_s() - seconds,
            request_id=request.request_id,
            trace_id=self._trace.trace_id if self._trace is not None else b"",
            client=request.client,
            client_ip=request.client_ip,
            method=request.method,
            host=request.host,
            path=request.path or request.target,
            query=request.query,
            protocol="HTTP/1.1" if request.minor else "HTTP/1.0",
            status=self._status,
            code=self._code,
            bytes_in=self._transfer.bytes_in if self.attempts else 0,
            bytes_out=self._client.bytes_written - self._bytes_before,
            duration_ms=seconds * 1000,
            upstream_ms=self._upstream_s * 1000 if self.attempts else None,
            route=request.route,
            upstream=plan.upstream.name if plan is not None and plan.upstream is not None else None,
            endpoint=endpoint.url if endpoint is not None else None,
            attempts=self.attempts,
            flags=self._flags(),
        )

    def _flags(self) -> tuple[str, ...]:
        if self.attempts and self._transfer.client_slow:
            return ("client_slow",)
        return ("client_gone",) if self._client_left else ()


def admit(plan: RoutePlan, request: Request) -> Verdict:
    """What the ADMIT policies of the route say, in their order: None to go on."""
    for position, hook in enumerate(plan.admit):
        try:
            verdict = hook(request)
        except ProxyError as error:
            return error
        if verdict is not None:
            return verdict if isinstance(verdict, Reply) else _admit_rest(plan, request, position, verdict)
    return None


async def _admit_rest(
    plan: RoutePlan, request: Request, position: int, waiting: Awaitable[Reply | None]
) -> Reply | None:
    """The ADMIT policies from one that must wait on."""
    reply = await waiting
    for hook in plan.admit[position + 1 :]:
        if reply is not None:
            break
        answer = hook(request)
        reply = answer if answer is None or isinstance(answer, Reply) else await answer
    return reply


def _is_stream(head: ResponseHead) -> bool:
    """The body is not one answer, but lasts as long as both sides like."""
    return any(
        name.lower() == b"content-type" and value.startswith((b"text/event-stream", b"application/grpc"))
        for name, value in head.passing
    )


def charge(hook: Callable[[Request], Awaitable[None] | None], request: Request) -> Charge:
    """Charge an attempt to its upstream's own limits."""
    try:
        return hook(request)
    except ProxyError as error:
        return error


_ENVOY_TIMEOUT: Final = b"x-envoy-upstream-rq-timeout-ms"


def _reason(error: UpstreamError) -> str:
    if isinstance(error, ConnectFailed):
        return "connect"
    if isinstance(error, UpstreamTimeout):
        return "timeout"
    return "reset" if error.status == 502 else error.code


def _final_hop(request: Request) -> Reply:
    """`Max-Forwards: 0`: the request ends here (RFC 9110 7.6.2)."""
    if request.method == "TRACE":
        hidden = (b"authorization", b"cookie", b"proxy-authorization", b"x-api-key")
        lines = [b"%b: %b" % field for field in request.headers if field[0].lower() not in hidden]
        head = b"TRACE %b HTTP/1.%d\r\n" % (request.target, request.minor)
        return Reply(200, [(b"content-type", b"message/http")], head + b"\r\n".join(lines) + b"\r\n\r\n")
    return Reply(200, [(b"allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE")])
