"""One request and its answer: route, attempts, deadline, both bodies, outcome.

The order is that of the life of a request (see the package's map). Everything below `_attempt` runs once per attempt.
One coroutine drives both directions: it moves what can be moved without waiting, then waits once for whichever socket
or deadline comes first. A small GET meets two waits and four system calls, and allocates little but what it sends.

Outcomes are settled when the *body* ends. After the head of the answer was passed on, an error cuts the client's
connection: a cut answer must never look complete.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias

from ambassador.errors import (
    ConnectFailed,
    DeadlineExceeded,
    Fault,
    NoRoute,
    ProxyError,
    RequestTimeout,
    UpstreamError,
    UpstreamReset,
    UpstreamTimeout,
)
from ambassador.messages import Reply, Request
from ambassador.observe.access_log import AccessRecord
from ambassador.proxy.fields import clean_trailers, tokens, wire_lines
from ambassador.proxy.forwarding import caller_deadline_s, deadline_fields, max_forwards
from ambassador.proxy.http1_parser import HEALTH_TARGETS
from ambassador.proxy.lane import BROKEN, HANGUP, READ, WRITE, TimedOut
from ambassador.proxy.pace import Pace
from ambassador.proxy.policies.retry import IDEMPOTENT
from ambassador.proxy.problem import error_reply, forbids_retry
from ambassador.proxy.splice import MIN_SPLICE, Splice
from ambassador.proxy.upstream.pool import QueueTimeout
from ambassador.proxy.wire import READ_SIZE, SCRATCH

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ambassador.messages import Fields, ResponseHead
    from ambassador.observe.trace import Trace
    from ambassador.proxy.http1 import ClientConnection
    from ambassador.proxy.plan import RoutePlan
    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.proxy.upstream.h1 import Http1Connection

_join_field: Final = b": ".join
STATUS_TEXT: Final = {status: str(status) for status in range(1000)}
_REPLAY_BYTES: Final = 65536
"""Kept of a body without retries, for the one repeat after a connection that was closed while idle."""
_MOVES_PER_TURN: Final = 16
_CLIENT_GONE_STATUS: Final = 499  # nginx's number for a client that left before its answer; only in the log


Verdict: TypeAlias = "Reply | ProxyError | Awaitable[Reply | None] | None"
"""What policies say before the first attempt: None to go on."""


class ClientGone(Exception):
    """The client left, or was too slow and was cut: nobody is there to answer."""


class Exchange:
    """One request on one client connection. `run` answers it and never raises but for `ClientGone`."""

    # Defaults in the class, not slots: most requests change few of them (0.6 us a request).
    _plan: RoutePlan | None = None
    _verdict: Verdict = None
    _failure: UpstreamError | None = None
    _connection: Http1Connection | None = None
    _endpoint: Endpoint | None = None
    _last_endpoint: Endpoint | None = None
    _tried: tuple[Endpoint, ...] = ()
    _caller_at = inf
    _total_at = inf
    _try_at = inf
    _sent_at = 0.0
    _replay: list[bytes] | None = None
    _raw_in = 0
    _raw_out: int | None = None
    _splice: Splice | None = None
    _upload_done = False
    _response_done = False
    _moves = 0
    _pace: Pace | None = None
    _max_forwards: int | None = None
    _status = 0
    _code: str | None = None
    _flags = ""
    _trace: Trace | None = None
    _upstream_s = 0.0
    attempts = 0
    bytes_in = 0

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
            self._flags = self._flags or "client_gone"
            self._status = self._status or _CLIENT_GONE_STATUS
            self._client.abort()
            raise
        finally:
            service.inflight -= 1
            if self._connection is not None or self._endpoint is not None or self._splice is not None:
                self._let_go()
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

    def take_over(self, plan: RoutePlan, trace: Trace, verdict: Verdict) -> None:
        """Begin behind the ADMIT policies of `plan`, which said `verdict`: the request was identified and routed."""
        self._plan = plan
        self._trace = trace
        self._verdict = verdict
        self._total_at = self._started + plan.timeouts.total

    def take_attempt(
        self, endpoint: Endpoint, connection: Http1Connection, sent_at: float, failure: UpstreamError | None
    ) -> None:
        """Begin inside the first attempt, after `take_over`: the whole request was written at `sent_at`.

        `failure`: what came of it, if that is known.
        """
        plan = self._plan
        assert plan is not None
        assert plan.upstream is not None
        self.attempts = 1
        self._endpoint, self._connection, self._failure = endpoint, connection, failure
        if len(plan.upstream.endpoints) > 1:
            self._tried = (endpoint,)
        self._started = self._sent_at = sent_at
        self._total_at = sent_at + plan.timeouts.total
        self._try_at = sent_at + plan.timeouts.per_try
        self._replay = []
        self._take_body(plan)
        self._upload_done = True

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
        verdict = admit(plan, request)
        if verdict is None:
            self._admitted(plan)
        return verdict

    async def _admit_slowly(self, waiting: Awaitable[Reply | None]) -> None:
        reply = await waiting
        if reply is not None:
            return await self._answer(reply)
        assert self._plan is not None
        self._admitted(self._plan)
        await self._attempts(self._plan)

    def _admitted(self, plan: RoutePlan) -> None:
        request = self.request
        if request.expects_continue:
            self._client.send_continue(request)
        if request.complete:
            self._total_at = self._lane.now + plan.timeouts.total

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

    def _identity(self) -> Fields:
        """What the proxy adds: who sent the request, through whom it came, under which ids."""
        request, trace, special = self.request, self._trace, self.request.special
        assert trace is not None
        fields = self._client.peer.fields(request)
        fields.append((b"via", self._service.via.extend(request)))
        fields.append((b"x-request-id", request.request_id))
        fields.append((b"traceparent", trace.parent))
        if trace.state is not None:
            fields.append((b"tracestate", trace.state))
        if b"te" in special and b"trailers" in tokens(special[b"te"]):
            fields += [(b"te", b"trailers"), (b"connection", b"te")]
        if self._max_forwards is not None:
            fields.append((b"max-forwards", b"%d" % (self._max_forwards - 1)))
        return fields

    # Attempts

    async def _attempts(self, plan: RoutePlan) -> None:
        retry = plan.retry
        if self._connection is None:
            self._replay = []
            if retry is not None:
                retry.budget.deposit(self._started)
        while True:
            if self._connection is None:
                self.attempts += 1
            connection: Http1Connection | None = None
            failure: UpstreamError | None = None
            try:
                connection = await self._try(plan)
            except UpstreamError as error:
                failure, reason = error, _reason(error)
            else:
                assert connection.reader.head is not None
                status = connection.reader.head.status
                if retry is None or status not in retry.statuses:
                    return await self._relay(plan, connection)
                reason = str(status)
            delay = self._retry_delay(plan, reason)
            if delay is None:
                if failure is not None:
                    plan.metrics.attempt(reason, self._lane.now - self._sent_at)
                    raise failure
                assert connection is not None
                return await self._relay(plan, connection)
            plan.metrics.attempt(reason, self._lane.now - self._sent_at)
            plan.metrics.retry(reason)
            self._give_up_connection()
            await self._sleep(delay)

    def _retry_delay(self, plan: RoutePlan, reason: str) -> float | None:
        """How long to wait before another attempt, or None if there must be none."""
        retry, request, special = plan.retry, self.request, self.request.special
        if retry is None or self.attempts > retry.attempts or self._replay is None:
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
        if delay is None or self._lane.now + delay >= min(self._total_at, self._caller_at):
            return None
        return delay if retry.budget.withdraw(self._lane.now) else None

    async def _sleep(self, delay: float) -> None:
        """Wait before a retry, unless the client leaves."""
        lane, link = self._lane, self._client.link
        until = lane.now + delay
        self._check_client()
        while lane.now < until:
            link.interest = self._gone()
            try:
                await self._client.strand.wait(until)
            except TimedOut:
                pass
            finally:
                link.interest = 0
            self._check_client()

    async def _try(self, plan: RoutePlan) -> Http1Connection:
        """One attempt, until the head of an answer is there. Raises `UpstreamError`."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        connection = self._connection or self._begin_on_idle(plan)
        if connection is None:
            return await self._attempt(plan)
        try:
            if self._upload_done and connection.blocked is None and not connection.write_failed:
                await self._until_head(plan, connection)
            else:
                await self._until_head_streaming(plan, connection)
        except UpstreamReset:
            if not self._is_stale():
                raise
            return await self._attempt(plan)
        return connection

    def _begin_on_idle(self, plan: RoutePlan) -> Http1Connection | None:
        """Pick an endpoint and begin the attempt if it has an idle connection; else None, with the endpoint picked."""
        upstream = plan.upstream
        assert upstream is not None
        endpoint = self._endpoint = upstream.pick(self._tried)
        endpoint.inflight += 1
        if len(upstream.endpoints) > 1:
            self._tried = (*self._tried, endpoint)
        now = self._sent_at = self._lane.now
        self._try_at = now + plan.timeouts.per_try
        connection = endpoint.pool.take()
        if connection is not None:
            self._connection = connection
            self._start(plan, connection, endpoint)
        return connection

    async def _attempt(self, plan: RoutePlan) -> Http1Connection:
        """The same attempt on a new connection (or one that comes free meanwhile), until the head of its answer."""
        endpoint = self._endpoint
        assert endpoint is not None
        deadline = min(self._total_at, self._caller_at, self._try_at)
        fresh = self._connection is not None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        while True:
            try:
                connection = await endpoint.pool.acquire(
                    self._client.strand, plan.timeouts.connect, deadline, fresh=fresh
                )
            except QueueTimeout:
                raise self._timeout() from None
            except ConnectFailed:
                if self._lane.now >= deadline:
                    raise self._timeout() from None
                raise
            self._check_client(connection)
            self._connection = connection
            if not connection.used and self._service.metrics is not None:
                self._service.metrics.upstream_opened()
            self._start(plan, connection, endpoint)
            try:
                await self._until_head_streaming(plan, connection)
            except UpstreamReset:
                if fresh or not self._is_stale():
                    raise
            else:
                return connection
            connection.close()
            fresh = True

    def _is_stale(self) -> bool:
        """The connection had been closed while idle, and the request may be sent again (contract 7.3)."""
        connection, request = self._connection, self.request
        if connection is None or not connection.used or connection.reader.started:
            return False
        if self._replay is None:
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
        head = self._head_and_body(plan, path, host)
        connection.start(self._client.strand, head, for_head=request.method == "HEAD")

    def _head_and_body(self, plan: RoutePlan, path: bytes, host: bytes) -> bytes:
        """Any request's head, with what there is of its body."""
        request = self.request
        fields = [*request.passing, *self._identity()]
        left = min(self._total_at, self._caller_at) - self._lane.now
        if left != inf:
            fields += deadline_fields(request, max(left, 0.001), self._service.wall_s())
        if self.attempts > 1:
            fields.append((b"x-ambassador-attempt", b"%d" % self.attempts))
        elif b"x-ambassador-attempt" in request.special and self._client.peer.believed:
            fields.append((b"x-ambassador-attempt", request.special[b"x-ambassador-attempt"]))
        if request.chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        for hook in plan.shape_request:
            hook(request, fields)
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n\r\n" % (
            request.method.encode(), path, host, b"\r\n".join(map(_join_field, fields))
        )  # fmt: skip
        if request.complete and not request.body and not self._replay and not request.chunked:
            self._upload_done = True  # nothing but a head
            return head
        self._upload_done = False
        body = b"".join(self._replay) if self._replay else b""
        body += self._take_body(plan)
        if body:
            head += self._framed(body)
        if request.complete:
            head += self._last_chunk()
            self._upload_done = True
        return head

    def _framed(self, body: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(body), body) if self.request.chunked else body

    def _last_chunk(self) -> bytes:
        if not self.request.chunked:
            return b""
        return b"0\r\n%b\r\n" % wire_lines(clean_trailers(self.request.trailers))

    def _take_body(self, plan: RoutePlan) -> bytes:
        """What has arrived of the body and was not taken; remembered for a replay while it is small."""
        request = self.request
        if not request.body:
            return b""
        data = request.body[0] if len(request.body) == 1 else b"".join(request.body)
        request.body.clear()
        self.bytes_in += len(data)
        if self._replay is not None:
            self._replay.append(data)
            if self.bytes_in > (_REPLAY_BYTES if plan.retry is None else plan.retry.buffer):
                self._replay = None
        return data

    async def _until_head(self, plan: RoutePlan, connection: Http1Connection) -> None:
        """Wait for the head of the answer to a request that was sent whole."""
        client_link, link = self._client.link, connection.link
        reader = connection.reader
        deadline = min(
            self._total_at, self._caller_at, self._try_at, self._sent_at + plan.timeouts.first_byte
        )
        client_interest = self._client.listener.gone
        strand = self._client.strand
        try:
            if strand.interrupted:  # while the express waited
                await strand.interrupt()
        except TimedOut:
            raise self._timeout() from None
        while reader.head is None:
            if link.ready & (READ | HANGUP) and connection.receive():
                if reader.interim:
                    self._pass_interim(connection)
                continue
            if client_link.ready & client_interest:
                raise ClientGone
            client_link.interest = client_interest
            link.interest = READ | HANGUP
            try:
                await strand.wait(deadline)
            except TimedOut:
                raise self._timeout() from None
            finally:
                client_link.interest = link.interest = 0
        if reader.interim:
            self._pass_interim(connection)
        self._upstream_s = self._lane.now - self._sent_at

    async def _until_head_streaming(self, plan: RoutePlan, connection: Http1Connection) -> None:
        """The same while the body is still on its way, here or upstream. Answers may come early."""
        reader = connection.reader
        while reader.head is None:
            if connection.link.ready & (READ | HANGUP) and connection.receive():
                if reader.interim:
                    self._pass_interim(connection)
            elif not self._push(plan, connection):
                await self._wait_streaming(plan, connection, for_head=True)
            elif self._is_turn_over():
                await self._client.strand.pause()
        self._upstream_s = self._lane.now - self._sent_at

    def _pass_interim(self, connection: Http1Connection) -> None:
        for head in connection.reader.interim:
            if head.status != 100:
                self._client.write_interim(self.request, head.status, head.passing)
        connection.reader.interim = []

    # The request's body

    def _push(self, plan: RoutePlan, connection: Http1Connection) -> bool:
        """Move some of the request's body upstream. False if that cannot be done now, or is done."""
        if connection.blocked is not None:
            if connection.write_failed or not connection.link.ready & (WRITE | BROKEN):
                return False
            connection.flush()
            return True
        if self._upload_done or connection.write_failed:
            return False
        return self._push_raw(connection) if self._raw_in else self._push_parsed(plan, connection)

    def _push_raw(self, connection: Http1Connection) -> bool:
        client = self._client
        if not client.link.ready & (READ | HANGUP):
            return False
        count = client.read_raw(min(self._raw_in, READ_SIZE))
        if count is None:
            return False
        connection.write(SCRATCH[:count])
        self._raw_in = client.raw_left = self._raw_in - count
        self.bytes_in += count
        if not self._raw_in:
            self.request.complete = True
            self._upload_is_done()
        return True

    def _push_parsed(self, plan: RoutePlan, connection: Http1Connection) -> bool:
        request, client = self.request, self._client
        if request.error is not None:
            raise request.error
        if not request.body and not request.complete:
            if self._replay is None and client.go_raw(request):
                self._raw_in = client.raw_left
                return True
            if not client.link.ready & (READ | HANGUP) or not client.fill(request):
                return False
        data = self._take_body(plan)
        framed = self._framed(data) if data else b""
        if request.complete:
            framed += self._last_chunk()
        if framed:
            connection.write(framed)
        if request.complete:
            self._upload_is_done()
        return True

    def _upload_is_done(self) -> None:
        self._upload_done = True
        self._sent_at = self._lane.now
        assert self._plan is not None
        if self._total_at == inf:
            self._total_at = self._lane.now + self._plan.timeouts.total

    # The answer

    async def _relay(self, plan: RoutePlan, connection: Http1Connection) -> None:
        """Pass the answer on, from its head to the end of its body."""
        client, request = self._client, self.request
        reader = connection.reader
        head = reader.head
        assert head is not None
        status = self._status = head.status
        body: bytes | memoryview = (
            b"" if not reader.body else reader.body[0] if len(reader.body) == 1 else b"".join(reader.body)
        )
        complete = reader.complete and self._upload_done and not reader.trailers
        reader.body.clear()
        fields = self._response_fields(plan, head)
        sized = head.content_length is not None or status in (204, 304) or request.method == "HEAD"
        if not complete:
            return await self._relay_rest(plan, connection, fields, body, sized=sized)
        self._finish_attempt(plan, None)
        client.start_response(request, status, fields, body, sized=sized, complete=True)
        if client.blocked is not None or client.write_failed:
            await client.drained(client.limits.body_timeout)

    async def _relay_rest(
        self,
        plan: RoutePlan,
        connection: Http1Connection,
        fields: Fields,
        body: bytes | memoryview,
        *,
        sized: bool,
    ) -> None:
        """An answer whose body, or whose request's body, is still on its way."""
        client, request, reader = self._client, self.request, connection.reader
        head = reader.head
        assert head is not None
        client.start_response(request, head.status, fields, body, sized=sized, complete=False)
        self._raw_out = reader.raw_body()
        if reader.complete:
            self._end_response(connection)
        try:
            await self._pump(plan, connection)
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
        if self.attempts > 1 and head.status >= 500:
            fields.append((b"proxy-status", self._service.retried_status(head.status, self.attempts)))
        if self._table.debug_headers:
            fields.append((b"x-ambassador-upstream-ms", b"%d" % (self._upstream_s * 1000)))
            fields.append((b"x-ambassador-attempts", b"%d" % self.attempts))
        return fields

    async def _pump(self, plan: RoutePlan, connection: Http1Connection) -> None:
        """Both bodies at once, until the answer is complete and the client has it."""
        client = self._client
        while True:
            moved = False
            if client.blocked is not None:
                if client.link.ready & (WRITE | BROKEN):
                    client.flush()
                    moved = True
            elif not self._response_done:
                moved = self._pull(connection)
            elif not client.write_failed:
                return
            if client.write_failed:
                raise ClientGone
            if not self._upload_done and self._push(plan, connection):
                moved = True
            if not moved:
                await self._wait_streaming(plan, connection, for_head=False)
            elif self._is_turn_over():
                await client.strand.pause()

    def _pull(self, connection: Http1Connection) -> bool:
        """Move some of the answer's body to the client. False if nothing is there."""
        if self._raw_out is not None:
            return self._pull_raw(connection)
        reader, client = connection.reader, self._client
        if not connection.link.ready & (READ | HANGUP) or not connection.receive():
            return False
        if reader.body:
            data = reader.body[0] if len(reader.body) == 1 else b"".join(reader.body)
            reader.body.clear()
            client.write_body(data)
        if reader.complete:
            self._end_response(connection)
        return True

    def _end_response(self, connection: Http1Connection) -> None:
        client = self._client
        self._response_done = True
        if client.blocked is None:
            client.end_body(clean_trailers(connection.reader.trailers))
        else:
            client.blocked = memoryview(
                bytes(client.blocked) + client.last_chunk(clean_trailers(connection.reader.trailers))
            )

    def _pull_raw(self, connection: Http1Connection) -> bool:
        left, client = self._raw_out, self._client
        assert left is not None
        if not left:
            self._response_done = connection.reader.complete = True
            return True
        link = connection.link
        if not link.ready & (READ | HANGUP):
            return False
        if left >= MIN_SPLICE and self._splice is None:
            self._splice = self._service.splices.take()
        if self._splice is not None:
            return self._pull_spliced(connection, left)
        count = connection.receive_raw(min(left, READ_SIZE))
        if count is None:
            return False
        if count == 0:
            raise UpstreamReset("the upstream closed the connection inside its answer")
        self._raw_out = left - count
        client.write(SCRATCH[:count])
        return True

    def _pull_spliced(self, connection: Http1Connection, left: int) -> bool:
        splice, client = self._splice, self._client
        assert splice is not None
        moved = splice.move(connection.link, client.link, left)
        if splice.ended:
            raise UpstreamReset("the upstream closed the connection inside its answer")
        if splice.write_failed:
            raise ClientGone
        self._raw_out = left - moved
        client.bytes_written += moved
        return moved > 0

    # Waiting

    async def _wait_streaming(self, plan: RoutePlan, connection: Http1Connection, *, for_head: bool) -> None:
        """Wait until either side can go on. Raises what the time that passed means."""
        client, now = self._client, self._lane.now
        client_link, link = client.link, connection.link
        client_interest = self._gone()
        upstream_interest = 0
        client_due = False
        if client.blocked is not None or (self._splice is not None and self._splice.held):
            client_interest |= WRITE
            client_due = True
        else:
            upstream_interest |= READ | HANGUP
        if connection.blocked is not None:
            if not connection.write_failed:
                upstream_interest |= WRITE | BROKEN
        elif not self._upload_done and not connection.write_failed:
            client_interest |= READ | HANGUP
            client_due = True
        self._check_client()
        if client_link.ready & client_interest or link.ready & upstream_interest:
            return  # something came between the last try and now
        deadline = self._streaming_deadline(plan, for_head=for_head, client_due=client_due)
        client_link.interest, link.interest = client_interest, upstream_interest
        try:
            await client.strand.wait(deadline)
        except TimedOut:
            raise self._streaming_timeout(client_due=client_due, since=now) from None
        finally:
            client_link.interest = link.interest = 0
        if client_due:
            self._check_pace(self._lane.now - now)

    def _streaming_deadline(self, plan: RoutePlan, *, for_head: bool, client_due: bool) -> float:
        now = self._lane.now
        deadline = min(
            now + plan.timeouts.idle,
            self._started + plan.timeouts.total_body,
            self._caller_at if for_head else inf,
        )
        if client_due:
            deadline = min(deadline, now + self._client.limits.body_timeout)
        if for_head and self._upload_done:
            deadline = min(deadline, self._total_at, self._try_at, self._sent_at + plan.timeouts.first_byte)
        return deadline

    def _streaming_timeout(self, *, client_due: bool, since: float) -> Exception:
        now = self._lane.now
        if now >= self._caller_at and not self._client.answered:
            return self._timeout()
        if client_due and now >= since + self._client.limits.body_timeout:
            return self._too_slow()
        if self._client.answered:
            return UpstreamTimeout("nothing moved in the answer's body for too long")
        return self._timeout()

    def _too_slow(self) -> Exception:
        self._flags = "client_slow"
        if self._client.answered or self._upload_done:
            return ClientGone()
        return RequestTimeout("the request's body did not come in time")

    def _check_pace(self, waited_s: float) -> None:
        floor, client = self._client.limits.min_rate, self._client
        if floor is None:
            return
        if self._pace is None:
            self._pace = Pace(floor)
        if self._pace.is_too_slow(waited_s, client.bytes_written + self.bytes_in):
            raise self._too_slow()

    def _check_client(self, connection: Http1Connection | None = None) -> None:
        if self._client.link.ready & self._gone():
            if connection is not None:
                connection.close()
            raise ClientGone

    def _gone(self) -> int:
        """The flags that mean that the client has left; a FIN inside its request is met by who reads the body."""
        return self._client.listener.gone if self.request.complete else BROKEN

    def _is_turn_over(self) -> bool:
        self._moves += 1
        return self._moves % _MOVES_PER_TURN == 0

    def _timeout(self) -> ProxyError:
        """Which of the deadlines it was."""
        if self._lane.now >= self._caller_at:
            return DeadlineExceeded("the caller's deadline passed")
        return UpstreamTimeout("the upstream did not answer in time")

    # Ends

    def _finish_attempt(self, plan: RoutePlan, failure: str | None) -> None:
        """The answer is complete, or given up because of `failure`: free the endpoint and the connection."""
        plan.metrics.attempt(failure or STATUS_TEXT[self._status], self._lane.now - self._sent_at)
        endpoint, connection = self._endpoint, self._connection
        assert endpoint is not None
        assert connection is not None
        endpoint.inflight -= 1
        self._last_endpoint, self._endpoint, self._connection = endpoint, None, None
        if self._upload_done and failure is None:
            connection.release()
        else:
            connection.close()

    def _give_up_connection(self) -> None:
        """Before a retry: keep the connection only if its exchange happens to be complete."""
        if self._endpoint is not None:
            self._endpoint.inflight -= 1
            self._last_endpoint, self._endpoint = self._endpoint, None
        if self._connection is not None:
            if self._upload_done:
                self._connection.release()
            else:
                self._connection.close()
            self._connection = None

    def _let_go(self) -> None:
        """Whatever ended this exchange early: leave nothing behind."""
        self._upload_done = False
        self._give_up_connection()
        if self._splice is not None:
            self._service.splices.give_back(self._splice)
            self._splice = None

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
            bytes_in=self.bytes_in,
            bytes_out=self._client.bytes_written - self._bytes_before,
            duration_ms=seconds * 1000,
            upstream_ms=self._upstream_s * 1000 if self.attempts else None,
            route=request.route,
            upstream=plan.upstream.name if plan is not None and plan.upstream is not None else None,
            endpoint=endpoint.url if endpoint is not None else None,
            attempts=self.attempts,
            flags=(self._flags,) if self._flags else (),
        )


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
