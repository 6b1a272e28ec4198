"""One attempt: a request on its way to one endpoint, until the head of an answer is there, and what it leaves behind.

`attempts.py` makes one after another, each at an endpoint that was picked for it. An attempt asks the cool-down and the
breakers, takes or opens a connection, pays the upstream's quota directly before the first byte, sends, and waits for
the head of the answer together with `transfer.py`. `leave` ends it, whatever became of it: the endpoint, the
connection and the breakers are told once.

A request that met a connection which had been closed while idle is sent again on a fresh one, once; that is still the
same attempt (contract 7.3).

Whose fault an end is, for breakers, outlier detection and balancing (`_upstreams_part` decides it, for all of them):

| the attempt ended                                                                 | who             | told as      |
|-----------------------------------------------------------------------------------|-----------------|--------------|
| with an answer; cut inside it; no connection; a reset                             | the upstream    | what it was  |
| no head, though it had its time: `per_try`, `first_byte`, or FAIR of `total`      | the upstream    | `timeout`    |
| nothing moved in the answer for `idle`, and the client took all there was         | the upstream    | `timeout`    |
| no head by the end of `total`, of which waits here or other attempts took the rest | nobody          | `cancelled`  |
| before its first byte: in the queue for a connection, waiting for a credential    | nobody          | `cancelled`  |
| a reset, after a time of which more than half was a wait for the client           | the client      | `cancelled`  |
| the client left, paused for `idle` or `body_timeout`, spent `total_body`, crawled | the client      | `cancelled`  |
| its own deadline passed                                                           | the client      | `cancelled`  |

A breaker's probe has a bound of its own, for the head of its answer. If that is there in time, the probe is good or not
by its status at the bound at the latest, however long the body takes; its lease is given back, and a body that is cut
later counts as of any attempt that has outlived a change. A probe that a client or a queue held up until then says
nothing, and goes on as an attempt without a lease.

`cancelled` says nothing; metrics and retries have the end's own name. What a client was waited for is not part of how
slow an answer was either.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from ambassador.errors import (
    BreakerOpen,
    ClientError,
    ConnectFailed,
    CredentialUnavailable,
    EgressProxyRefused,
    TlsFailed,
    Unauthenticated,
    UpstreamError,
    UpstreamReset,
    UpstreamTimeout,
)
from ambassador.messages import RequestHead
from ambassador.proxy.content import CONTENT, NOTHING
from ambassador.proxy.fields import tokens
from ambassador.proxy.forwarding import deadline_fields
from ambassador.proxy.lane import BROKEN, HANGUP, READ, WRITE, TimedOut
from ambassador.proxy.methods import IDEMPOTENT
from ambassador.proxy.policies.breaker import (
    LONGEST_PROBE_S,
    Refusal,
    Ticket,
    closed,
    enter,
    guards_of,
    settle,
)
from ambassador.proxy.tls_socket import TlsSocket
from ambassador.proxy.transfer import ClientGone
from ambassador.proxy.upstream.pool import QueueTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ambassador.errors import ProxyError
    from ambassador.messages import Fields, Request, ResponseHead
    from ambassador.proxy.attempts import Attempts
    from ambassador.proxy.credentials import Credential
    from ambassador.proxy.lane import Link
    from ambassador.proxy.plan import RoutePlan
    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.proxy.upstream.h1 import Http1Connection
    from ambassador.proxy.upstream.upstream import Upstream

FAIR: Final = 0.75
"""An attempt that had this part of the time which the route gives to one, and no head came, has shown something. One
that had less may have been on its way to a good answer; the rest is for pauses between attempts, so that an upstream
which hangs is seen to do so after them as well."""
_FAILED: Final = frozenset({"connect", "reset", "timeout"})
"""Ends of an attempt that speak of its endpoint. Others say that the client left, or that it was not made at all."""
GATHERED: Final = 65536
"""So much of a body is here before its request asks for a probe's lease: clients that send slowly hold none up."""
_DOUBTFUL: Final = frozenset({"reset", "timeout"})
"""Those of which others can be the cause."""
STATUS_TEXT: Final = {status: str(status) for status in range(1000)}


class Attempt:
    """One attempt of those of `exchange` at `endpoint`, which counts it as in flight until `leave`."""

    __slots__ = (
        "_counted", "_exchange", "_failure", "_head_s", "_hindered", "_is_probe", "_opening", "_plan", "_untold", "connection",
        "endpoint", "found", "sent_at", "ticket", "until",
    )  # fmt: skip

    def __init__(self, exchange: Attempts, plan: RoutePlan, endpoint: Endpoint) -> None:
        self._exchange = exchange
        self._plan = plan
        self._counted = False
        self._failure: UpstreamError | None = None
        self._head_s: float | None = None
        self._hindered = False
        """Its time ran out before its first byte, on something else than the upstream."""
        self._is_probe = False
        self._untold = plan.upstream is not None and plan.upstream.measured
        """The endpoint has not been told what came of it, and wants to know."""
        self.endpoint = endpoint
        self.connection: Http1Connection | None = None
        self.ticket: Ticket | None = None
        """What the breakers want to have told."""
        self.until = inf
        """In a race: when the head of its answer must be there."""
        self.sent_at: float | None = None
        """When it began, if that is not when the present attempt of the exchange did."""
        self._opening: Link | None = None
        self.found = NOTHING
        """The content conditions that its answer met: it is a failure for whoever named them."""
        endpoint.inflight += 1

    def sent(self, connection: Http1Connection, ticket: Ticket | None, failure: UpstreamError | None) -> None:
        """Somebody else has written the whole request to `connection`. `failure`: what came of it, if that is known."""
        self.connection, self.ticket, self._failure = connection, ticket, failure

    # On its way

    async def until_head(self) -> Http1Connection:
        """Send the request, unless it is sent, and wait for the head of its answer.

        Raises `UpstreamError`, what the quota says (`Limited`, `DeadlineExceeded`), and `ClientGone`.
        """
        exchange, plan, connection = self._exchange, self._plan, self.connection
        if connection is None:
            upstream = plan.upstream
            assert upstream is not None
            if plan.credential is not None:
                await self._have(plan.credential)
            if self.ticket is None:
                try:
                    await self.enter()
                except BreakerOpen:
                    exchange.attempts -= 1
                    raise
            if self._is_probe and self.ticket is not None:
                exchange.transfer.begin_probe(self, self.ticket.until)
            connection = self.endpoint.pool.take()
            if connection is not None and upstream.charge is not None:
                await self._pay_beside(connection)
            if connection is None or connection.link.closed:
                return await self._on_new()
            self.connection = connection
            self._start(connection)
        try:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            await exchange.transfer.until_head(connection)
        except UpstreamReset:
            if not self._is_stale():
                raise
            exchange.paid = True
            return await self._on_new()
        return connection

    async def _have(self, credential: Credential) -> None:
        """Have in hand what the upstream will be shown, and the body if that is signed.

        Raises `CredentialUnavailable`, `Unauthenticated` and `ClientError`: no attempt was made then. And as
        `Transfer.gather`.
        """
        exchange = self._exchange
        transfer = exchange.transfer
        try:
            if self.endpoint.withheld and not self.endpoint.addresses:
                raise credential.unavailable("is not sent over plaintext HTTP")
            if not credential.in_hand(exchange.request):
                await self._fetch(credential)
        except (CredentialUnavailable, ClientError, Unauthenticated):
            exchange.attempts -= 1
            raise
        request = exchange.request
        if not request.complete and 0 < (request.content_length or 1) <= credential.reads:
            await transfer.gather(credential.reads)

    async def _fetch(self, credential: Credential) -> None:
        transfer, client, lane = self._exchange.transfer, self._exchange.client, self._exchange.lane
        began = lane.now
        try:
            with client.resting_until(transfer.attempt_deadline):
                await credential.fetched(self._exchange.request)
        except TimedOut:
            raise self._missed_here() from None
        transfer.put_off(lane.now - began)  # the upstream's own time begins now
        transfer.sent_at = lane.now  # exactly: if it is refused, this tells which credential was

    def _shown(self) -> Fields:
        """Those of the client's fields that have the credential by which the upstream knows the caller."""
        request, credential = self._exchange.request, self._plan.credential
        return request.passing if credential is None else credential.told_apart(request)

    async def enter(self) -> None:
        """Ask the cool-down and the breakers, at other endpoints too where one's own breaker refuses; `until_head` does
        it where that was not done before. Raises `BreakerOpen`: no attempt was made then.
        """
        exchange, plan, request = self._exchange, self._plan, self._exchange.request
        upstream = plan.upstream
        assert upstream is not None
        if upstream.cooldown is None and not plan.gates and self.endpoint.gate is None:
            return
        refused = [self.endpoint]
        while True:
            endpoint = self.endpoint
            if upstream.cooldown is not None:
                left_s = upstream.cooldown.left(self._shown(), endpoint)
                if left_s > 0:
                    raise upstream.cooldown.error(left_s)
            guards = guards_of(plan.gates, endpoint)
            entry = closed(guards)
            if entry is None:
                if not request.complete and any(each.gate.is_due(exchange.lane.now) for each in guards):
                    await exchange.transfer.gather(GATHERED)
                began = exchange.lane.now
                asked = enter(guards, began, plan.answer_within_s, exchange.client, held_s=request.held_s)
                if not isinstance(asked, Ticket | Refusal):
                    asked = await asked
                    request.held_s += exchange.lane.now - began
                if isinstance(asked, Refusal):
                    if self._goes_elsewhere(upstream, asked, refused):
                        continue
                    raise asked.error()
                entry = asked
            self.ticket = entry
            self._is_probe = entry.until < inf
            return

    def _goes_elsewhere(self, upstream: Upstream, refusal: Refusal, refused: list[Endpoint]) -> bool:
        """Whether there is an endpoint beside those that have `refused`; the attempt is at that one from now on.

        A pick does not see what a ramp refuses, nor that a lease for a probe has gone meanwhile.
        """
        gate = self.endpoint.gate
        if gate is None or refusal.breaker != gate.name:
            return False  # it refuses them all
        other = self._exchange.pick_instead(upstream)
        if other in refused:
            return False
        refused.append(other)
        self.endpoint.inflight -= 1
        self.endpoint = other
        other.inflight += 1
        return True

    async def _pay_beside(self, connection: Http1Connection) -> bool:
        """`Attempts.pay` directly before the first byte, with the connection at hand, which is for others if the
        attempt is not to be. Raises what that does, and what there is to say when too little time is left meanwhile: a
        probe whose lease is over by now, for a worker that stood still, may have been replaced by another.
        """
        exchange = self._exchange
        try:
            exchange.check_time(self._plan)
            waited = await exchange.pay(self._plan, inf if self.ticket is None else self.ticket.until)
            if waited:
                exchange.check_time(self._plan)
            self._check_ticket()
            return waited
        except BaseException:
            if not connection.link.closed:
                connection.pool.put(connection)
            raise

    def _check_ticket(self) -> None:
        if self.ticket is not None and self._exchange.lane.now >= self.ticket.until:
            raise self._missed_here()

    def _missed_here(self) -> ProxyError:
        """The time is over, and the upstream has nothing to do with it."""
        self._hindered = True
        return self._exchange.transfer.missed()

    async def _on_new(self) -> Http1Connection:
        """The same attempt on a new connection (or one that comes free meanwhile), until the head of its answer."""
        exchange, plan, endpoint = self._exchange, self._plan, self.endpoint
        client, transfer = exchange.client, exchange.transfer
        deadline = transfer.attempt_deadline
        fresh = self.connection is not None
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        while True:
            client.link.interest = client.leaving(exchange.request)
            began = exchange.lane.now
            try:
                connection = await endpoint.pool.acquire(
                    client.strand,
                    plan.timeouts.connect,
                    deadline,
                    fresh=fresh,
                    check=exchange.check_presence,
                )
            except QueueTimeout:
                raise self._missed_here() from None
            except ConnectFailed as error:
                self._count_failure(error)
                if exchange.lane.now >= deadline:
                    raise transfer.missed() from None
                raise
            finally:
                client.link.interest = 0
            transfer.queued_s += (
                exchange.lane.now - began - (0.0 if connection.used else connection.opening_s)
            )
            if await self._pay_beside(connection) and not connection.is_quiet():
                connection.close()  # its end came meanwhile
                continue
            self.connection = connection
            if client.link.ready & client.gone(exchange.request):
                raise ClientGone
            if not connection.used:
                self._count_opened(connection)
            self._start(connection)
            try:
                await transfer.until_head(connection)
            except UpstreamReset:
                if fresh or not self._is_stale():
                    raise
            else:
                return connection
            connection.close()
            fresh = exchange.paid = True

    def _count_opened(self, connection: Http1Connection) -> None:
        metrics, sock = self._exchange.service.metrics, connection.link.sock
        if metrics is not None:
            metrics.upstream_opened()
            if isinstance(sock, TlsSocket):
                metrics.upstream_handshake("resumed" if sock.resumed else "full")

    def _count_failure(self, error: ConnectFailed) -> None:
        metrics = self._exchange.service.metrics
        if metrics is not None and isinstance(error, TlsFailed):
            metrics.upstream_handshake("failed")

    def _is_stale(self) -> bool:
        """The connection had been closed while idle, and the request may be sent again (contract 7.3)."""
        connection, request = self.connection, self._exchange.request
        if connection is None or not connection.used or connection.reader.started:
            return False
        if not self._exchange.transfer.replayable:
            return False  # some of the body is gone
        if connection.untouched:
            return True
        if request.keeper is not None:
            return False  # it is to be carried out once, and perhaps it was
        return request.method in IDEMPOTENT or b"idempotency-key" in request.special

    # Beside another

    def begin_beside(self) -> bool:
        """Begin while another attempt is under way. False if that takes a wait. Raises what forbids it (`ProxyError`).

        Afterwards `look` goes on with it.
        """
        exchange, plan, endpoint = self._exchange, self._plan, self.endpoint
        upstream = plan.upstream
        assert upstream is not None
        now = exchange.lane.now
        if plan.cannot_finish(exchange.transfer.deadline - now, now):
            return False
        if plan.credential is not None and not plan.credential.in_hand(exchange.request):
            return False
        if upstream.cooldown is not None and upstream.cooldown.left(self._shown(), endpoint) > 0:
            return False
        if plan.gates or endpoint.gate is not None:
            self.ticket = closed(guards_of(plan.gates, endpoint))
            if self.ticket is None:
                return False
        self.connection = endpoint.pool.take()
        if self.connection is None:
            self._opening = endpoint.pool.open_nowait(exchange.client.strand)
            if self._opening is None:
                return False
        if upstream.charge is not None and not self._is_charged(upstream.charge):
            return False
        timeouts, transfer = plan.timeouts, exchange.transfer
        self.sent_at = now
        self.until = min(now + timeouts.per_try, now + timeouts.first_byte, transfer.deadline)
        exchange.attempts += 1
        if self.connection is not None:
            self._start(self.connection)
        return True

    def _is_charged(self, charge: Callable[[Request], Awaitable[None] | None]) -> bool:
        """Whether the upstream's quota lets it through at once; an idle connection goes back if not."""
        connection, self.connection = self.connection, None
        try:
            charged = charge(self._exchange.request)
        except BaseException:
            if connection is not None:
                connection.pool.put(connection)
            raise
        if charged is None:
            self.connection = connection
            return True
        charged.close()  # type: ignore[attr-defined]  # a coroutine that was never begun
        if connection is not None:
            connection.pool.put(connection)
        return False

    def look(self) -> bool:
        """Go on as far as that is possible now; whether the head of the answer is there. Raises `UpstreamError`."""
        link = self._opening
        if link is not None:
            try:
                self.connection = self.endpoint.pool.opened(link)
            except ConnectFailed as error:
                self._count_failure(error)
                raise
            if self.connection is not None:
                self._opening = None
                self._count_opened(self.connection)
                self._start(self.connection)
        elif self.connection is not None:
            connection = self.connection
            if connection.blocked is not None and connection.link.ready & (WRITE | BROKEN):
                connection.flush()
            while connection.reader.head is None and connection.link.ready & (READ | HANGUP):
                if not connection.receive():
                    break
            connection.reader.interim = []  # of two answers on their way the client hears nothing
            if connection.reader.head is not None:
                return True
        if self._exchange.lane.now >= self.until:
            raise self._exchange.transfer.missed()
        return False

    def interest(self) -> Link:
        """Say what `look` waits for; its link, whose interest the caller takes back."""
        if self._opening is not None:
            self._opening.interest = self.endpoint.pool.missing(self._opening)
            return self._opening
        connection = self.connection
        assert connection is not None
        connection.link.interest = READ | HANGUP | (WRITE if connection.blocked is not None else 0)
        return connection.link

    # What is sent

    def _start(self, connection: Http1Connection) -> None:
        """Send the head and what there is of the body."""
        exchange, plan = self._exchange, self._plan
        request = exchange.request
        path = request.path if plan.rewrite is None else plan.rewrite(request)
        if request.query is not None:
            path = b"%b?%b" % (path, request.query)
        elif request.target == b"*":
            path = b"*"
        if plan.keep_host:
            host = request.authority or self.endpoint.authority
        else:
            host = plan.host or self.endpoint.authority
        head = RequestHead(request.method, path, host, self._fields())
        if request.chunked:
            head.sized = False
        if b"te" in request.special:
            head.takes_trailers = b"trailers" in tokens(request.special[b"te"])
        if plan.credential is not None:
            self._put(plan.credential, head)
        exchange.paid = False
        exchange.transfer.start(connection, head)

    def _put(self, credential: Credential, head: RequestHead) -> None:
        """Have the credential in the head. A body that it signs is sent with its length.

        Not of a TRACE, whose answer is the request: the client would be shown it (RFC 9110 9.3.8).
        """
        request = self._exchange.request
        if request.method == "TRACE":
            head.fields = credential.others(head.fields)
            return
        if credential.reads:
            body = head.body = self._exchange.transfer.whole_body()
            if body is not None and not head.sized and not request.trailers:
                head.sized = True
                head.fields.append((b"content-length", b"%d" % len(body)))
        credential.put(request, head, self.endpoint)

    def _fields(self) -> Fields:
        """What passes, what the proxy adds (who sent it, through whom, under which ids), what the route changes."""
        exchange = self._exchange
        request, trace, client = exchange.request, exchange.trace, exchange.client
        assert trace is not None
        fields = [
            *request.passing,
            *client.peer.fields(request),
            (b"via", exchange.service.via.extend(request)),
            (b"x-request-id", request.request_id),
            (b"traceparent", trace.parent),
        ]
        if trace.state is not None:
            fields.append((b"tracestate", trace.state))
        if exchange.max_forwards is not None:
            fields.append((b"max-forwards", b"%d" % (exchange.max_forwards - 1)))
        left = exchange.transfer.deadline - exchange.lane.now
        if left != inf:
            fields += deadline_fields(request, max(left, 0.001), exchange.service.wall_s())
        if exchange.attempts > 1:
            fields.append((b"x-ambassador-attempt", b"%d" % exchange.attempts))
        elif b"x-ambassador-attempt" in request.special and client.peer.believed:
            fields.append((b"x-ambassador-attempt", request.special[b"x-ambassador-attempt"]))
        for hook in self._plan.shape_request:
            hook(request, fields)
        return fields

    # What came of it

    def hear(self, head: ResponseHead) -> None:
        """Take what an answer's head says beyond this request: its latency, a pause that is asked for; of a stream, how
        it went.
        """
        upstream = self._plan.upstream
        assert upstream is not None
        cooldown = upstream.cooldown
        if cooldown is not None:
            after = head.special.get(b"retry-after")
            cooldown.heard(self._shown(), self.endpoint, head.status, after)
        took_s = self._head_s = self._exchange.lane.now - self._began
        self._plan.soonest.fastest_s = min(self._plan.soonest.fastest_s, took_s)
        if (self._untold or self.ticket is not None) and is_stream(head):
            self._tell(STATUS_TEXT[head.status])
            self.settle(STATUS_TEXT[head.status])

    def count(self, outcome: str) -> None:
        """The attempt has come to its end: a status as text, or a word of `observe.metrics.RESULTS`. What is said first
        counts: the answer may be passed on after all.
        """
        if self._counted:
            return
        self._counted = True
        now = self._exchange.lane.now
        seconds = now - self._began
        self._plan.metrics.attempt(CONTENT if self.found and outcome.isdigit() else outcome, seconds)
        self._tell(outcome)
        self.settle(outcome)

    def _upstreams_part(self, outcome: str) -> str:
        """`outcome` as far as it speaks of the upstream: as it is, or `cancelled` (see the table above)."""
        if outcome not in _DOUBTFUL:
            return outcome
        transfer = self._exchange.transfer
        took_s, client_s = self._exchange.lane.now - self._began, transfer.client_s
        if outcome == "timeout":
            if self._head_s is not None:
                return outcome
            had_s = took_s - client_s - transfer.queued_s
            due_s = self._plan.answer_within_s
            if self._is_probe:
                due_s = min(due_s, LONGEST_PROBE_S)
            doubtful = self._hindered or had_s < FAIR * due_s
        else:
            doubtful = client_s > took_s / 2
        return "cancelled" if doubtful else outcome

    def _tell(self, outcome: str) -> None:
        """Tell the endpoint, once, how long its head took and whether it failed.

        Bodies are left out: how long they take, clients and sizes decide. An attempt that nobody waited for any more
        says something only where it had taken longer than the estimate: else an endpoint that hangs would look good to
        those who never wait for its end.
        """
        if not self._untold:
            return
        self._untold = False
        outcome = self._upstreams_part(outcome)
        now = self._exchange.lane.now
        seconds = now - self._began if self._head_s is None else self._head_s
        if outcome == "cancelled":
            if self._head_s is not None or (self.connection is not None and seconds > self.endpoint.ewma_s):
                self.endpoint.settled(seconds, now, failed=False, abandoned=True)
        elif outcome.isdigit() or outcome in _FAILED:
            failed = outcome >= "500" or not outcome.isdigit() or bool(self.found)
            self.endpoint.settled(seconds, now, failed=failed, limited=outcome == "429")

    def outlasts_its_lease(self) -> bool:
        """The attempt is a probe whose lease is over. Whether it goes on: a head that came in time is its verdict, and
        of one that was held up by others there is none. Else it is to be cut, and has failed.
        """
        head = None if self.connection is None else self.connection.reader.head
        outcome = self._upstreams_part("timeout") if head is None else STATUS_TEXT[head.status]
        if outcome == "timeout":
            return False
        self.settle(outcome)
        return True

    def settle(self, outcome: str) -> None:
        """Tell the breakers how the attempt went, if they have not been told."""
        ticket, self.ticket = self.ticket, None
        if self._is_probe:
            self._exchange.transfer.end_probe()
        if ticket is not None:
            now = self._exchange.lane.now
            seconds = now - self._began - self._exchange.transfer.client_s
            settle(ticket, self._upstreams_part(outcome), seconds, now, self.found)

    @property
    def _began(self) -> float:
        return self._exchange.transfer.sent_at if self.sent_at is None else self.sent_at

    def leave(self, *, kept: bool) -> None:
        """The attempt has ended. `kept`: so is the connection, if its exchange happens to be complete."""
        self._tell("cancelled")
        if self.ticket is not None:
            self.settle("cancelled")
        self.endpoint.inflight -= 1
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.close()
            self.endpoint.pool.forget()
        connection, self.connection = self.connection, None
        if connection is not None:
            if kept:
                connection.release()
            else:
                connection.close()


def reason_of(error: UpstreamError) -> str:
    """The failure as `retry.when` and the metrics name it."""
    if isinstance(error, ConnectFailed):
        return "reset" if isinstance(error, EgressProxyRefused) else "connect"
    if isinstance(error, UpstreamTimeout):
        return "timeout"
    return "reset" if error.status == 502 else error.code


def is_stream(head: ResponseHead) -> bool:
    """The body is not one answer, but lasts as long as both sides like."""
    return any(
        name.lower() == b"content-type" and value.startswith((b"text/event-stream", b"application/grpc"))
        for name, value in head.passing
    )


def is_refusal(head: ResponseHead) -> bool:
    """The answer says that the request was not carried out, and may be made again later (RFC 6585 4; RFC 9110 15.6.4
    with the time after which to try).
    """
    return head.status == 429 or (head.status == 503 and b"retry-after" in head.special)
