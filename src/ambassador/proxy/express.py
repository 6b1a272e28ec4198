"""The way that most requests take: a plain one, there in one piece, to an idle connection, answered in one piece.

`ride` does for such a request what `exchange.py` does for any, in a dozen calls instead of eighty: 5 µs of Python
instead of 18. It decides nothing of its own. What is not plain, and whatever happens that is not the usual thing, goes
to an `Exchange`, from the start or from where the ride ended. So every rule is written in the exchange, and
`tests/proxy/test_express.py` holds the two against each other.

Plain is
- a request of HTTP/1.1 on a connection that goes on, with nothing in its head that needs a second look
  (`Request.lines`), and a body of known length that has arrived whole,
- on a route that changes no field and looks into no answer,
- answered with a head that needs no second look either (`ResponseHead.lines`), and a body that arrived with it.

Clients repeat themselves, so what was worked out for a head is remembered by its bytes, by all of them: parsing, route,
all that goes upstream but ids and deadline. It holds for one table and the limits of one listener, and only with a body
of the length that the head says, behind which nothing follows. A head that will hardly come again, since it has a query
or ids of its own, is worked out each time.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

from ambassador.errors import Overloaded, ProxyError, UpstreamError, UpstreamReset
from ambassador.observe.access_log import AccessRecord, LineTemplate
from ambassador.proxy.admit import admit
from ambassador.proxy.attempts import charge
from ambassador.proxy.clients.who import let_know
from ambassador.proxy.exchange import Exchange
from ambassador.proxy.fields import wire_lines
from ambassador.proxy.http1_answers import SEEN_HEADS, status_line
from ambassador.proxy.http1_requests import HEALTH_TARGETS, OWN_IDS
from ambassador.proxy.lane import HANGUP, NOT_READ, READ, TimedOut
from ambassador.proxy.policies.breaker import Ticket, closed, guards_of
from ambassador.proxy.policies.breaker import answered as settle
from ambassador.proxy.problem import error_reply, speaks_grpc
from ambassador.proxy.transfer import ClientGone
from ambassador.proxy.wire import READ_SIZE, SCRATCH, SCRATCH_BYTES, SCRATCH_SIZE, WORTH_A_VECTOR

if TYPE_CHECKING:
    from ambassador.messages import Request, ResponseHead
    from ambassador.observe.access_log import AccessLog
    from ambassador.observe.trace import Trace
    from ambassador.proxy.admit import Verdict
    from ambassador.proxy.clients.who import Clients, Credentials, Found
    from ambassador.proxy.http1 import ClientConnection
    from ambassador.proxy.plan import RoutePlan
    from ambassador.proxy.service import Service, Table
    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.proxy.upstream.h1 import Http1Connection

_REMEMBERED: Final = 1024
"""Heads of a listener's requests: with all that belongs to them about 4 MiB."""
_MOST_TAILS: Final = 64
"""Of each head: 100 bytes for each endpoint."""
_END: Final = b"\r\n\r\n"
_CLIENT_GONE: Final = ("client_gone",)
_PARENT: Final = b"\r\ntraceparent: "
_OWN_ID: Final = 32
"""Characters of an id that was made here."""
_find_in_scratch: Final = SCRATCH_BYTES.find


class _Refusal:
    """An answer that says `overloaded`, in the pieces between which the date and the request's id stand."""

    __slots__ = ("detail", "document", "head", "tail")

    def __init__(self, detail: str, request: Request, pseudonym: str) -> None:
        mark = "0" * _OWN_ID
        reply = error_reply(
            Overloaded(detail),
            pseudonym=pseudonym,
            request_id=mark,
            route=request.route,
            attempts=0,
            grpc=False,
        )
        fields = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        self.detail = detail
        self.head = b"%b%bdate: " % (status_line(reply.status), wire_lines(fields))
        self.document, _, self.tail = reply.body.partition(mark.encode())


class Known:
    """The head of a plain request, and all that was worked out for it."""

    __slots__ = (
        "credentials", "found", "has_ids", "host", "lines", "made_in", "plan", "refusal", "request", "size", "start", "table",
        "tails", "take", "upstream",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        table: Table,
        plan: RoutePlan,
        credentials: Credentials = (),
        found: Found | None = None,
    ) -> None:
        assert plan.upstream is not None
        self.request = request
        """Never changed, only copied, and without its body."""
        self.made_in = table
        self.table = table if table.clients is None else None
        """The table in which it holds without a further look. None: first it must be seen that who asks is the same."""
        self.credentials = credentials
        """The fields by which that is seen."""
        self.found = found
        """Who that was."""
        self.plan = plan
        self.take = plan.limit.take if plan.limit is not None and len(plan.admit) == 1 else None
        """Stands for all of the ADMIT policies where it says yes. None: there is nothing of the kind."""
        self.upstream = plan.upstream
        self.size = request.content_length or 0
        path = request.path if plan.rewrite is None else plan.rewrite(request)
        if request.query is not None:
            path = b"%b?%b" % (path, request.query)
        self.start = b"%b %b HTTP/1.1\r\nhost: " % (request.method.encode(), path)
        assert request.lines is not None
        self.lines = request.lines
        """What passes, but for the fields in whose place the upstream's credential is."""
        if plan.credential is not None:
            self.lines = wire_lines(plan.credential.others(request.passing))
        self.host = request.authority if plan.keep_host else plan.host
        """What is sent as Host; None or empty: the endpoint's own."""
        self.refusal: _Refusal | None = None
        """How it was answered last that there is too much to do."""
        self.tails: dict[str, bytes] = {}
        """How the lines of the access log end, by the endpoint."""
        self.has_ids = not OWN_IDS.isdisjoint(request.special)


async def ride(client: ClientConnection) -> Exchange | None:
    """Serve requests as long as they are plain. Call it between two requests.

    Gives back an exchange that began here, to be run; or None when something else came, which `client.reader` has.
    Raises `ClientGone` at the connection's end, and `trio.Cancelled`.
    """
    link, strand, known_heads = client.link, client.strand, client.known_heads
    lane, listener, idle_s = link.lane, client.listener, client.limits.idle
    service = listener.service
    begin_trace = service.tracer.begin
    receive = link.sock.recv
    previous: Known | None = None
    forwarding = b""
    keyed: Known | None = None
    key: int | None = None
    log = _Log(client)
    while True:
        # The next request
        if not link.ready & (READ | HANGUP):
            link.interest = READ | HANGUP
            client.idle = True
            await strand.park(lane.now + idle_s)
            client.idle = False
            link.interest = 0
            if strand.interrupted:
                await _end_of_idleness(client)
        try:
            data = receive(READ_SIZE)
        except BlockingIOError:
            link.ready &= NOT_READ
            continue
        except OSError:
            raise ClientGone from None
        if not data:
            raise ClientGone
        if link.ready & HANGUP:  # it may have left already
            client.reader.feed(data)
            return None
        if len(data) < READ_SIZE:
            link.ready &= NOT_READ  # a short read has emptied the socket
        end = data.find(_END) + 4
        known = known_heads.get(data[:end])
        if (
            known is None
            or known.size != len(data) - end
            or known.table is not service.table
            or service.draining
        ) and not (known is not None and known.table is None and _is_same(client, known, len(data) - end)):
            client.reader.feed(data)
            known = _learn(client, data[:end], len(data) - end)
            if known is None:
                return None
        body = data[end:] if known.size else b""
        if known.has_ids:
            trace, request_id = service.tracer.identify(known.request.special)
            parent = (
                trace.parent if trace.state is None else b"%b\r\ntracestate: %b" % (trace.parent, trace.state)
            )
        else:
            trace = begin_trace()
            request_id, parent = trace.trace_id, trace.parent

        # Its way upstream
        now = lane.now
        plan, upstream = known.plan, known.upstream
        request: Request | None = None
        if service.shedding:
            refused = service.refusal()
            if refused is not None:
                refusal = _refusal(known, service, request_id, refused)
                if refusal is not None:
                    await _refuse(client, known, trace, request_id, refusal)
                    continue
                return _board(
                    client, known, _request(client, known, body, request_id), trace, verdict=refused
                )
        if plan.admit and (known.take is None or not known.take()):
            request = _request(client, known, body, request_id)
            verdict = admit(plan, request)
            if request.ends is not None:
                client.holding = request
            if verdict is not None:
                refusal = None
                if isinstance(verdict, Overloaded) and request.ends is None:
                    refusal = _refusal(known, service, request_id, verdict)
                if refusal is not None:
                    await _refuse(client, known, trace, request_id, refusal)
                    continue
                return _board(client, known, request, trace, verdict=verdict)
        if plan.ending_at != now and not plan.end_heads(now, service.wall_s()):
            return _board(client, known, request or _request(client, known, body, request_id), trace)
        if upstream.key is None:
            endpoint = upstream.only or upstream.pick_or_none()
        else:
            if known is not keyed:
                keyed, key = known, upstream.key(known.request, client.peer.ip)
            endpoint = upstream.only or upstream.pick_or_none(key)
        connection = endpoint.pool.take() if endpoint is not None else None
        if endpoint is None or connection is None:
            return _board(
                client, known, request or _request(client, known, body, request_id), trace, endpoint
            )
        ticket: Ticket | None = None
        if plan.gates or endpoint.gate is not None:
            ticket = closed(guards_of(plan.gates, endpoint))
            if ticket is None:
                endpoint.pool.put(connection)
                return _board(
                    client, known, request or _request(client, known, body, request_id), trace, endpoint
                )
        if upstream.charge is not None:
            request = request or _request(client, known, body, request_id)
            try:
                charged = charge(upstream.charge, request)
            except BaseException:
                endpoint.pool.put(connection)
                raise
            if charged is not None:
                endpoint.pool.put(connection)
                exchange = _board(client, known, request, trace, endpoint)
                exchange.take_charge(charged)
                return exchange
        if known is not previous:
            previous = known
            forwarding = _forwarding_lines(client, known)
        if plan.retry is not None:
            plan.retry.budget.deposit(now)
        service.inflight += 1
        endpoint.inflight += 1
        host = known.host or endpoint.authority
        connection.begin(
            strand,
            b"".join((known.start, host, forwarding, request_id, _PARENT, parent, plan.ending, body)),
        )
        up = connection.link
        count = 0
        failure: UpstreamError | None = None
        if connection.blocked is None:
            up.interest = READ | HANGUP
            link.interest = listener.gone
            hedge = plan.hedge
            patience_s = plan.answer_within_s
            if hedge is not None and hedge.delay_s < patience_s:
                patience_s = hedge.delay_s
            await strand.park(now + patience_s)
            up.interest = link.interest = 0
            if up.ready & (READ | HANGUP) and not strand.interrupted:
                try:
                    count = connection.read(SCRATCH_SIZE) or 0
                except OSError:
                    failure = UpstreamReset("the upstream reset the connection")

        # Its answer
        end = _find_in_scratch(_END, 0, count) + 4
        answer = SEEN_HEADS.get(bytes(SCRATCH[:end]))
        content: bytes | memoryview = SCRATCH[end:count]
        if (
            answer is None
            or answer.start is None
            or answer.content_length != count - end
            or answer.status in plan.failing
            or service.draining
        ):
            failure = _parse(connection, count) or failure
            answer = None if failure is not None or service.draining else _plain_answer(connection, plan)
            if answer is None:
                service.inflight -= 1
                request = request or _request(client, known, body, request_id)
                exchange = _board(client, known, request, trace)
                exchange.take_attempt(endpoint, connection, ticket, sent_at=now, failure=failure)
                return exchange
            content = b"".join(connection.reader.body)
        assert answer.start is not None
        endpoint.inflight -= 1
        if up.ready & (READ | HANGUP) and not connection.is_quiet():
            connection.close()  # it ended, or says more than it should
        else:
            endpoint.pool.put(connection)
        answered, written = lane.now, client.bytes_written
        took_s = answered - now
        if took_s < plan.soonest.fastest_s:  # noqa: PLR1730 - `min` takes 0.05 µs
            plan.soonest.fastest_s = took_s
        if plan.hedge is not None:
            plan.hedge.observe(took_s, answered)
        if upstream.measured:
            status = answer.status
            endpoint.settled(took_s, answered, failed=status >= 500, limited=status == 429)
        flags: tuple[str, ...] = ()
        try:
            if ticket is not None:
                settle(ticket, answer.status, took_s, answered)
            ending = _END
            if plan.limit is not None:
                ending = b"\r\n%b\r\n" % plan.limit.answer_lines(request or known.request)
            if len(content) < WORTH_A_VECTOR:
                client.write(b"".join((answer.start, request_id, ending, content)))
            else:
                client.write_with(b"".join((answer.start, request_id, ending)), content)
            if client.blocked is not None or client.write_failed:
                await client.drained(client.limits.body_timeout)
        except ClientGone:
            flags = _CLIENT_GONE
            client.abort()
            raise
        except BaseException:  # the worker ends, or a defect: what was not taken is cut, as in an exchange
            client.abort()
            raise
        finally:
            service.inflight -= 1
            seconds = lane.now - now
            if request is not None and request.ends is not None:
                client.holding = None
                request.end(answer.status, seconds)
            plan.metrics.single(answer.status, seconds, took_s)
            if service.access_log is not None:
                size = client.bytes_written - written
                log.tell(known, endpoint, trace, request_id, answer, flags, now, answered, size)


def _refusal(known: Known, service: Service, request_id: bytes, error: Overloaded) -> _Refusal | None:
    """How this request is told that there is too much to do; None: an exchange is to do it, it is not plain enough."""
    if error.closes or known.plan.limit is not None or len(request_id) != _OWN_ID or service.draining:
        return None
    refusal = known.refusal
    if refusal is None or refusal.detail != error.detail:
        if speaks_grpc(known.request.headers):
            return None
        refusal = known.refusal = _Refusal(error.detail, known.request, service.name)
    return refusal


async def _refuse(
    client: ClientConnection, known: Known, trace: Trace, request_id: bytes, refusal: _Refusal
) -> None:
    """Answer so: 4 µs, where an exchange takes 20, and it is when there is no time that this is done."""
    service = client.listener.service
    now, written = service.lane.now, client.bytes_written
    service.inflight += 1
    try:
        date = service.http_date()
        client.write(
            b"".join(
                (
                    *(refusal.head, date, b"\r\nx-request-id: ", request_id, b"\r\n\r\n"),
                    *(refusal.document, request_id, refusal.tail),
                )
            )
        )
        if client.blocked is not None or client.write_failed:
            await client.drained(client.limits.body_timeout)
    finally:
        service.inflight -= 1
        seconds = service.lane.now - now
        known.plan.metrics.settled(Overloaded.status // 100, seconds)
        if service.access_log is not None:
            record = _record(client, known, trace, request_id, Overloaded.status)
            record.ts, record.duration_ms = service.wall_s() - seconds, seconds * 1000
            record.code, record.bytes_out = Overloaded.code, client.bytes_written - written
            service.access_log.write(record)


def _record(
    client: ClientConnection, known: Known, trace: Trace, request_id: bytes, status: int
) -> AccessRecord:
    """What is said of a request that met no endpoint, but for its times and the size of the answer."""
    request = known.request
    return AccessRecord(
        ts=0.0,
        request_id=request_id,
        trace_id=trace.trace_id,
        client=request.client,
        client_ip=client.peer.ip,
        method=request.method,
        host=request.host,
        path=request.path,
        query=request.query,
        status=status,
        bytes_in=0,
        bytes_out=0,
        duration_ms=0.0,
        upstream_ms=None,
        route=known.plan.name,
        upstream=known.upstream.name,
        endpoint=None,
        attempts=0,
    )


async def _end_of_idleness(client: ClientConnection) -> None:
    """The wait for a request ended otherwise: raises why."""
    try:
        await client.strand.interrupt()
    except TimedOut:
        raise ClientGone from None


def _learn(client: ClientConnection, head: bytes, size: int) -> Known | None:
    """Take the request that was just fed from the client's reader if it is plain, and remember its head.

    What was fed was `head` and `size` bytes. If any of them do not belong to the request, it is not plain.
    """
    reader = client.reader
    request = reader.requests[0] if len(reader.requests) == 1 else None
    if (
        request is None
        or client.expired
        or request.lines is None
        or not request.complete
        or size != (request.content_length or 0)
        or reader.error is not None
        or request.method == "HEAD"
        or request.target in HEALTH_TARGETS
        or client.listener.service.draining
    ):
        return None
    table = client.listener.service.table
    credentials: Credentials = ()
    found: Found | None = None
    if table.clients is not None:
        credentials = table.clients.credentials(request.headers)
        found = _who(client, table.clients, credentials)
        if found.may_change:
            return None  # keys that may tell are not at hand: the exchange can wait for them
        let_know(request, found)
    try:
        request.scheme = client.peer.scheme
        plan = table.locate(request)
        if (
            plan.upstream is None
            or (plan.access is not None and not plan.access.takes(request.client))
            or plan.upstream.cooldown is not None
            or plan.upstream.forwards
            or (plan.credential is not None and (plan.credential.varies or request.method == "TRACE"))
            or plan.content is not None
            or plan.shape_request
            or plan.shape_response
            or (plan.keeps and plan.keeps_of(request.method))
            or table.debug_headers
            or request.target[:1] != b"/"
        ):
            return None
        known = Known(request, table, plan, credentials, found)
    except ProxyError:
        return None  # the exchange meets it again, and says so
    request.route = plan.name
    request.body.clear()
    reader.requests.clear()
    if request.query is None and not known.has_ids:
        heads = client.known_heads
        if len(heads) >= _REMEMBERED or (heads and next(iter(heads.values())).made_in is not table):
            heads.clear()  # all are of one table: one that was replaced is not kept alive
        heads[head] = known
    if found is not None and found.count is not None:
        found.count()
    return known


def _who(client: ClientConnection, clients: Clients, credentials: Credentials) -> Found:
    """Who asks on this connection, with a head that says no other address (such a head is not plain)."""
    peer = client.peer
    return clients.find(credentials, peer, peer.ip, client.listener.service.wall_s)


def _is_same(client: ClientConnection, known: Known, size: int) -> bool:
    """Whether a head that was seen before, with a body of `size` bytes, is of the same client again.

    Its bytes do not tell: another connection may have another certificate, a token expires, a key is replaced.
    """
    service = client.listener.service
    clients = service.table.clients
    if clients is None or known.made_in is not service.table or known.size != size or service.draining:
        return False
    found = known.found
    if found is None or _who(client, clients, known.credentials) is not found:
        return False
    if found.count is not None:
        found.count()
    return True


def _forwarding_lines(client: ClientConnection, known: Known) -> bytes:
    """What goes upstream between the host and the request id."""
    request = known.request
    fields = [*client.peer.fields(request), (b"via", client.listener.service.via.extend(request))]
    return b"\r\n%b%bx-request-id: " % (known.lines, wire_lines(fields))


class _Log:
    """The access log of one connection's plain requests. Those that repeat the last one share its template."""

    __slots__ = ("_client", "_known", "_log", "_template")

    def __init__(self, client: ClientConnection) -> None:
        self._client = client
        self._known: Known | None = None
        self._log: AccessLog | None = None
        self._template: LineTemplate

    def tell(  # noqa: PLR0917 - keywords cost 0.1 µs
        self,
        known: Known,
        endpoint: Endpoint,
        trace: Trace,
        request_id: bytes,
        answer: ResponseHead,
        flags: tuple[str, ...],
        started: float,
        answered: float,
        size: int,
    ) -> None:
        service = self._client.listener.service
        log = service.access_log
        if log is None or not log.wants(answer.status):
            return
        seconds = service.lane.now - started
        ts = service.wall_s() - seconds
        if known.has_ids or flags or answer.status != 200:
            record = self._record(known, endpoint, trace, request_id, answer)
            record.ts, record.bytes_out, record.flags = ts, size, flags
            record.duration_ms, record.upstream_ms = seconds * 1000, (answered - started) * 1000
            log.put(log.lines.line(record))
            return
        tail = known.tails.get(endpoint.url)
        if tail is None or self._known is not known or self._log is not log:
            line = log.lines.line(self._record(known, endpoint, trace, request_id, answer))
            self._known, self._log, self._template = known, log, LineTemplate(log.lines, line)
            if len(known.tails) >= _MOST_TAILS:
                known.tails.clear()
            tail = known.tails[endpoint.url] = LineTemplate.tail_of(line)
        log.put(
            self._template.line(
                ts, request_id, trace.trace_id, size, seconds * 1000, (answered - started) * 1000, tail
            )
        )

    def _record(
        self, known: Known, endpoint: Endpoint, trace: Trace, request_id: bytes, answer: ResponseHead
    ) -> AccessRecord:
        """What is said of a request, but for its times and the size of the answer."""
        record = _record(self._client, known, trace, request_id, answer.status)
        record.endpoint, record.attempts, record.bytes_in, record.upstream_ms = (
            endpoint.url,
            1,
            known.size,
            0.0,
        )
        return record


def _request(client: ClientConnection, known: Known, body: bytes, request_id: bytes) -> Request:
    """The request that `known` stands for this time."""
    request = copy.copy(known.request)
    request.request_id = request_id
    request.client_ip = client.peer.ip
    request.waiter = client
    request.body = [body] if body else []
    return request


def _board(
    client: ClientConnection,
    known: Known,
    request: Request,
    trace: Trace,
    endpoint: Endpoint | None = None,
    *,
    verdict: Verdict = None,
) -> Exchange:
    """The exchange that goes on with a request behind the `verdict` of the ADMIT policies, and with the endpoint that
    was picked for it, if any.
    """
    exchange = Exchange(client, request)
    exchange.take_over(known.made_in, known.plan, trace, verdict)
    if endpoint is not None:
        exchange.take_endpoint(endpoint)
    return exchange


def _parse(connection: Http1Connection, count: int) -> UpstreamError | None:
    """Have the first `count` bytes of an answer parsed."""
    connection.reader.begin(for_head=False)
    try:
        if count:
            connection.reader.feed(SCRATCH[:count])
    except UpstreamError as error:
        return error
    return None


def _plain_answer(connection: Http1Connection, plan: RoutePlan) -> ResponseHead | None:
    """The head of an answer that is complete and plain, else None."""
    reader = connection.reader
    head = reader.head
    if (
        head is None
        or head.lines is None
        or not reader.complete
        or not reader.reusable
        or reader.interim
        or head.status in plan.failing
        or b"date" not in head.special
        or b"location" in head.special
    ):
        return None
    if head.start is None:
        head.start = b"%b%bx-request-id: " % (status_line(head.status, head.reason), head.lines)
    return head
