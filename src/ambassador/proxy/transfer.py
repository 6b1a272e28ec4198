"""The two bodies of an exchange: the request's on its way up, the answer's on its way down.

One coroutine drives both directions: it moves what can be moved without waiting, then waits once for whichever socket
or deadline comes first. The slower side sets the pace: while a write is blocked, nothing is read for it. An answer may
come, and end, before the request's body has.

The rules that hold here
- What a deadline means depends on who is waited for: a client that neither sends nor takes anything for `body_timeout`
  or `idle`, or for which most of `total_body` was spent, is at fault, and so is one that falls below `min_rate`; else
  it is the upstream. (What that says about the upstream is the business of `attempt.py`.)
- The clocks of an attempt run from the request's last byte: what its client takes to send it is not the upstream's.
- Before the head of the answer was passed on, a wait that failed has an answer of its own; after it the client's
  connection is cut.
- A body of known length that nobody reads goes past the parsers, and through a pipe if much is left of it.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from ambassador.errors import DeadlineExceeded, ProxyError, RequestTimeout, UpstreamReset, UpstreamTimeout
from ambassador.proxy.fields import clean_trailers
from ambassador.proxy.lane import BROKEN, HANGUP, READ, WRITE, TimedOut
from ambassador.proxy.pace import Pace
from ambassador.proxy.splice import MIN_SPLICE, Splice, can_splice
from ambassador.proxy.wire import READ_SIZE, SCRATCH

if TYPE_CHECKING:
    from ambassador.messages import Fields, Request, RequestHead
    from ambassador.proxy.http1 import ClientConnection
    from ambassador.proxy.plan import RoutePlan
    from ambassador.proxy.shelf import Recording
    from ambassador.proxy.upstream.h1 import Http1Connection

_REPLAY_BYTES: Final = 65536
"""Kept of a body without retries, for the one repeat after a connection that was closed while idle."""
_TURN_BYTES: Final = 131072
"""Moved before other connections have their turn: at 3 GB/s, 45 us. With 16 pieces of 256 KiB small requests beside a
download waited 1.4 times as long as without it, with one of 128 KiB 1.3 times; what the download costs is the same."""
_MOVES_PER_TURN: Final = 16
_PATIENCE_S: Final = 1.0
"""So long in sum a probe waits for its client, then its lease is for others: who sends or reads slowly on purpose would
hold them all."""


class ClientGone(Exception):
    """The client left, or was too slow and was cut: nobody is there to answer."""


class Impatient(Exception):
    """The first attempt has taken so long that a second is worth making beside it (`Transfer.patience_s`)."""


class Probe(Protocol):
    """An attempt by which breakers find out whether an upstream is well again."""

    def outlasts_its_lease(self) -> bool:
        """The time has come at which its answer's head must be there. Whether it goes on, as one that is no probe."""


class Transfer:
    """Both bodies of one exchange, over all its attempts, and the deadlines that hold meanwhile.

    Deadlines are in seconds of the lane's clock, and so is `started`, when the exchange began.
    """

    # Defaults in the class, not slots: most requests change few of them.
    caller_at = inf
    """The caller's own deadline, if it gave one."""
    total_at = inf
    """The end of `timeouts.total`, once it is known: it begins when the request has arrived."""
    try_at = inf
    probe_until = inf
    """When the present attempt must have its answer's head as a breaker's probe."""
    probe: Probe | None = None
    """The present attempt, if it is one."""
    patience_s = inf
    """How long an attempt is waited for before `Impatient` says that it takes long, once."""
    sent_at = 0.0
    """When the present attempt began, or when the last of a body that streamed was written."""
    upload_done = False
    """The whole request was handed to the present connection."""
    replayable = True
    """The request can be sent again: what was taken of its body was kept."""
    client_s = 0.0
    """How much of the time since `sent_at` the client was waited for, to send or to take."""
    queued_s = 0.0
    """How much of the time since `sent_at` the attempt was in the queue for a connection."""
    client_slow = False
    """The client was cut because of its pace."""
    bytes_in = 0
    """Taken of the request's body."""
    recorder: Recording | None = None
    """Sees the body of the answer as it passes."""
    _kept: list[bytes] | None = None
    _raw_in = 0
    _raw_out: int | None = None
    _splice: Splice | None = None
    _response_done = False
    _moves = 0
    _pace: Pace | None = None

    def __init__(self, client: ClientConnection, request: Request, plan: RoutePlan, started: float) -> None:
        self._client = client
        self._request = request
        self._lane = client.link.lane
        self._plan = plan
        self._started = started
        self._turn_from = client.bytes_written
        if request.complete:
            self.total_at = self._lane.now + plan.timeouts.total

    # An attempt, up to the head of its answer

    def begin_attempt(self) -> None:
        """An attempt begins now: connecting counts towards its timeouts."""
        self.end_probe()
        self._begin_clocks()

    def begin_probe(self, probe: Probe, until: float) -> None:
        """The present attempt is a probe, until then."""
        self.probe, self.probe_until = probe, until

    def end_probe(self) -> None:
        """It is none any more."""
        self.probe, self.probe_until = None, inf

    def _begin_clocks(self) -> None:
        now = self.sent_at = self._lane.now
        self.try_at = now + self._plan.timeouts.per_try
        self.client_s = self.queued_s = 0.0

    def put_off(self, waited_s: float) -> None:
        """The attempt began so much later."""
        self.sent_at += waited_s
        self.try_at += waited_s

    def resume_attempt(self, began_at: float) -> None:
        """The request was written whole by somebody else, who was the first to do so, in an attempt from `began_at`."""
        timeouts = self._plan.timeouts
        self.sent_at = began_at
        self.total_at = began_at + timeouts.total
        self.try_at = began_at + timeouts.per_try
        self._take_body()
        self.upload_done = True

    def follow(self, sent_at: float, until: float) -> None:
        """The attempt that was sent at `sent_at`, whose head must be there at `until`, is the present one now."""
        self.sent_at, self.try_at = sent_at, until
        self.end_probe()

    @property
    def deadline(self) -> float:
        """For all attempts together."""
        return min(self.total_at, self.caller_at)

    @property
    def attempt_deadline(self) -> float:
        """For the present attempt, until it is sent."""
        return min(self.total_at, self.caller_at, self.try_at, self.probe_until)

    def missed(self) -> ProxyError:
        """Which deadline it was that has passed."""
        if self._lane.now >= self.caller_at:
            return DeadlineExceeded("the caller's deadline passed")
        return UpstreamTimeout("the upstream did not answer in time")

    def lacking(self) -> ProxyError:
        """Whose deadline it is that leaves an attempt too little time."""
        if self.caller_at <= self.total_at:
            return DeadlineExceeded("the caller's deadline leaves too little time for an attempt")
        return UpstreamTimeout("too little time is left for another attempt")

    async def gather(self, most: int) -> None:
        """Have the request's body come before the attempt begins: all of it, or more than `most` bytes.

        It stays in the request. Raises `ClientGone`, `RequestTimeout`, what is wrong with the body, and what a deadline
        means that passed.
        """
        client, request = self._client, self._request
        taken: list[bytes] = []
        size = 0

        def take(piece: bytes) -> bool:
            nonlocal size
            taken.append(piece)
            size += len(piece)
            return size <= most

        until = min(self.caller_at, self._started + self._plan.timeouts.total_body)
        try:
            with client.resting_until(until):
                await client.read_body(request, take)
        except TimedOut:
            if self._lane.now >= self.caller_at:
                raise self.missed() from None
            raise _unfinished() from None
        finally:
            request.body[:0] = taken
        self.begin_attempt()
        if request.complete and self.total_at == inf:
            self._begin_total()

    def whole_body(self) -> bytes | None:
        """All of the request's body as the next attempt will send it; None: not all of it is here."""
        request = self._request
        if not request.complete or not self.replayable:
            return None
        return b"".join((*(self._kept or ()), *request.body))

    def start(self, connection: Http1Connection, head: RequestHead) -> None:
        """Begin the request on `connection`, with all there is of its body."""
        request = self._request
        body = b""
        if self._kept or request.body:
            before = b"".join(self._kept) if self._kept else b""
            body = before + self._take_body()
        if request.complete:
            self.upload_done = True
            if self.total_at == inf:
                self._begin_total()  # it became complete while this attempt connected
            connection.start(self._client.strand, head, body, self._trailers())
        else:
            self.upload_done = False
            connection.start(self._client.strand, head, body, None)
        if request.keeper is not None and not connection.untouched:
            request.keeper.reached = True

    async def until_head(self, connection: Http1Connection) -> None:
        """Wait for the head of the answer, and move the request's body on if it is still on its way.

        Raises what the reader raises, `UpstreamReset`, what a deadline that passed means, `ClientGone`, and what is
        wrong with the request's body.
        """
        client, strand, reader = self._client, self._client.strand, connection.reader
        if strand.interrupted:  # while somebody else waited for it
            await self._interrupt()
        if reader.interim:
            self._pass_interim(connection)
        if not self.upload_done or connection.blocked is not None or connection.write_failed:
            return await self._until_head_streaming(connection)
        client_link, link = client.link, connection.link
        client_interest = client.gone(self._request)
        deadline = min(self.head_at, self.sent_at + self.patience_s)
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
                if not self._outlasts_its_lease():
                    raise self._late() from None
                deadline = min(self.head_at, self.sent_at + self.patience_s)
            finally:
                client_link.interest = link.interest = 0

    def _outlasts_its_lease(self) -> bool:
        """Whether it was the time of a probe that is over, and the attempt goes on without."""
        probe = self.probe
        if probe is None or (self._lane.now < self.probe_until and not self._is_held_up()):
            return False
        return probe.outlasts_its_lease()

    def _is_held_up(self) -> bool:
        """The client has been waited for so long, to send its body or to take the answer's, that a probe's lease is for
        others.
        """
        return self.client_s >= _PATIENCE_S and (not self.upload_done or self._client.answered)

    @property
    def head_at(self) -> float:
        """When the head of an answer to the present attempt must be there, once the request is sent."""
        first_byte_at = self.sent_at + self._plan.timeouts.first_byte
        return min(self.total_at, self.caller_at, self.try_at, self.probe_until, first_byte_at)

    def _late(self) -> Exception:
        if self._lane.now < self.head_at:
            self.patience_s = inf
            return Impatient()
        return self.missed()

    async def _interrupt(self) -> None:
        try:
            await self._client.strand.interrupt()
        except TimedOut:
            raise self._late() from None

    async def _until_head_streaming(self, connection: Http1Connection) -> None:
        """The same while the body is still on its way, here or upstream. Answers may come early."""
        reader = connection.reader
        while reader.head is None:
            if connection.link.ready & (READ | HANGUP) and connection.receive():
                if reader.interim:
                    self._pass_interim(connection)
            elif not self._push(connection):
                await self._wait(connection, for_head=True)
            elif self._is_turn_over():
                await self._client.strand.pause()

    async def peek(self, connection: Http1Connection, most: int) -> None:
        """Have the answer's body come, up to `most` bytes or a read more, before its head is passed on.

        It stays in the reader. Longer than for the head nobody waits for it: then what is there is there. Raises as
        `until_head` does, but for what a deadline means.
        """
        reader = connection.reader
        reader.hold_body()
        try:
            while not reader.complete and reader.held < most:
                if connection.link.ready & (READ | HANGUP) and connection.receive_body():
                    continue
                if self.upload_done or not self._push(connection):
                    await self._wait(connection, for_head=True)
                elif self._is_turn_over():
                    await self._client.strand.pause()
        except (DeadlineExceeded, UpstreamTimeout):
            pass

    def _pass_interim(self, connection: Http1Connection) -> None:
        for head in connection.reader.interim:
            if head.status != 100:
                self._client.write_interim(self._request, head.status, head.passing)
        connection.reader.interim = []

    # Up

    def _trailers(self) -> Fields:
        """Those of the request that go up: none that would pass for the credential, or for what the head lost."""
        plan = self._plan
        trailers, credential = clean_trailers(self._request.trailers, plan.barred_up), plan.credential
        return trailers if credential is None or not trailers else credential.others(trailers)

    def _take_body(self) -> bytes:
        """What has arrived of the body and was not taken; kept for a replay while it is small."""
        request = self._request
        if not request.body:
            return b""
        data = request.body[0] if len(request.body) == 1 else b"".join(request.body)
        request.body.clear()
        self.bytes_in += len(data)
        if request.keeper is not None:
            request.keeper.see(data)
        if self.replayable:
            retry = self._plan.retry
            if self.bytes_in > (_REPLAY_BYTES if retry is None else retry.buffer):
                self.replayable, self._kept = False, None
            elif self._kept is None:
                self._kept = [data]
            else:
                self._kept.append(data)
        return data

    def _push(self, connection: Http1Connection) -> bool:
        """Move some of the request's body upstream. False if that cannot be done now, or is done."""
        if connection.blocked is not None:
            if connection.write_failed or not connection.link.ready & (WRITE | BROKEN):
                return False
            connection.flush()
            return True
        if self.upload_done or connection.write_failed:
            return False
        return self._push_raw(connection) if self._raw_in else self._push_parsed(connection)

    def _push_raw(self, connection: Http1Connection) -> bool:
        client = self._client
        if not client.link.ready & (READ | HANGUP):
            return False
        count = client.read_raw(min(self._raw_in, READ_SIZE))
        if count is None:
            return False
        if self._request.keeper is not None:
            self._request.keeper.see(SCRATCH[:count])
        connection.write_body(SCRATCH[:count])
        self._raw_in = client.raw_left = self._raw_in - count
        self.bytes_in += count
        if not self._raw_in:
            self._request.complete = True
            self._upload_is_done()
        return True

    def _push_parsed(self, connection: Http1Connection) -> bool:
        request, client = self._request, self._client
        if request.error is not None:
            raise request.error
        if not request.body and not request.complete:
            if not self.replayable and client.go_raw(request):
                self._raw_in = client.raw_left
                return True
            if not client.link.ready & (READ | HANGUP) or not client.fill(request):
                return False
        data = self._take_body()
        if request.complete:
            connection.write_body(data, self._trailers())
            self._upload_is_done()
        else:
            connection.write_body(data)
        return True

    def _upload_is_done(self) -> None:
        self.upload_done = True
        self._begin_clocks()
        if self.total_at == inf:
            self._begin_total()

    def _begin_total(self) -> None:
        timeouts = self._plan.timeouts
        self.total_at = min(self.sent_at + timeouts.total, self._started + timeouts.total_body)

    # Down

    async def relay(self, connection: Http1Connection) -> None:
        """Move both bodies until the answer is complete and the client has it.

        The head was passed on, with what had come of the body. Raises as `until_head` does.
        """
        client, reader = self._client, connection.reader
        self._raw_out = reader.raw_body()
        if reader.complete:
            self._end_response(connection)
        try:
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
                if not self.upload_done and self._push(connection):
                    moved = True
                if not moved:
                    await self._wait(connection, for_head=False)
                elif self._is_turn_over():
                    await client.strand.pause()
        finally:
            if self._splice is not None:
                client.listener.service.splices.give_back(self._splice)
                self._splice = None

    def _pull(self, connection: Http1Connection) -> bool:
        """Move some of the answer's body to the client. False if nothing is there."""
        if self._raw_out is not None:
            return self._pull_raw(connection, self._raw_out)
        reader, client = connection.reader, self._client
        if not connection.link.ready & (READ | HANGUP) or not connection.receive():
            return False
        if reader.body:
            data = reader.take_body()
            self.record(data)
            client.write_body(data)
        if reader.complete:
            self._end_response(connection)
        return True

    def _end_response(self, connection: Http1Connection) -> None:
        self._response_done = True
        trailers = connection.reader.trailers
        self.end_record(whole=not trailers)
        self._client.end_body(clean_trailers(trailers, self._plan.barred_down))

    def record(self, data: bytes | memoryview) -> None:
        """Show a piece of the answer's body to the recorder."""
        if self.recorder is not None and not self.recorder.add(data):
            self.recorder = None

    def end_record(self, *, whole: bool) -> None:
        """Tell it the end."""
        if self.recorder is not None:
            self.recorder.end(whole=whole)
            self.recorder = None

    def _pull_raw(self, connection: Http1Connection, left: int) -> bool:
        client = self._client
        if not left:
            self._response_done = connection.reader.complete = True
            self.end_record(whole=True)
            return True
        if not connection.link.ready & (READ | HANGUP):
            return False
        if (
            left >= MIN_SPLICE
            and self._splice is None
            and self.recorder is None
            and can_splice(connection.link, client.link)
        ):
            self._splice = client.listener.service.splices.take()
        if self._splice is not None:
            return self._pull_spliced(connection, self._splice, left)
        count = connection.receive_raw(min(left, READ_SIZE))
        if count is None:
            return False
        if count == 0:
            raise UpstreamReset("the upstream closed the connection inside its answer")
        self._raw_out = left - count
        self.record(SCRATCH[:count])
        client.write_body(SCRATCH[:count])
        return True

    def _pull_spliced(self, connection: Http1Connection, splice: Splice, left: int) -> bool:
        client = self._client
        moved = splice.move(connection.link, client.link, left)
        if splice.ended:
            raise UpstreamReset("the upstream closed the connection inside its answer")
        if splice.write_failed:
            raise ClientGone
        self._raw_out = left - moved
        client.bytes_written += moved
        return moved > 0

    # Waiting

    async def _wait(self, connection: Http1Connection, *, for_head: bool) -> None:
        """Wait until either side can go on. Raises what the time that passed means."""
        client, now = self._client, self._lane.now
        client_link, link = client.link, connection.link
        client_interest = client.gone(self._request)
        if client_link.ready & client_interest:
            raise ClientGone
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
        elif not self.upload_done and not connection.write_failed:
            client_interest |= READ | HANGUP
            client_due = True
        if client_link.ready & client_interest or link.ready & upstream_interest:
            return  # something came between the last try and now
        deadline = self._wait_deadline(for_head=for_head, client_due=client_due)
        client_link.interest, link.interest = client_interest, upstream_interest
        try:
            await client.strand.wait(deadline)
        except TimedOut:
            late = True
        else:
            late = False
        finally:
            client_link.interest = link.interest = 0
            if client_due:
                self.client_s += self._lane.now - now
        looked_at = (
            for_head and connection.reader.head is not None
        )  # what is there by now is to be judged first
        if late and (looked_at or not self._outlasts_its_lease()):
            raise self._missed_waiting(client_due=client_due, since=now)
        if client_due:
            self._check_pace(self._lane.now - now)

    def _wait_deadline(self, *, for_head: bool, client_due: bool) -> float:
        now, timeouts = self._lane.now, self._plan.timeouts
        deadline = min(
            now + timeouts.idle,
            self._started + timeouts.total_body,
            self.caller_at if for_head else inf,
            self.probe_until,
        )
        if client_due:
            deadline = min(deadline, now + self._client.limits.body_timeout)
            if self.probe is not None and (not self.upload_done or self._client.answered):
                deadline = min(deadline, now + max(0.0, _PATIENCE_S - self.client_s))
        if for_head and self.upload_done:
            deadline = min(deadline, self.head_at)
        return deadline

    def _missed_waiting(self, *, client_due: bool, since: float) -> Exception:
        now, timeouts = self._lane.now, self._plan.timeouts
        if now >= self.caller_at and not self._client.answered:
            return self.missed()
        if client_due and now >= since + min(self._client.limits.body_timeout, timeouts.idle):
            return self._too_slow()
        if now >= self._started + timeouts.total_body and self.client_s > (now - self.sent_at) / 2:
            return self._too_slow()
        if self._client.answered:
            return UpstreamTimeout("nothing moved in the answer's body for too long")
        return self.missed()

    def _too_slow(self) -> Exception:
        self.client_slow = True
        if self._client.answered or self.upload_done:
            return ClientGone()
        return _unfinished()

    def _check_pace(self, waited_s: float) -> None:
        floor, client = self._client.limits.min_rate, self._client
        if floor is None:
            return
        if self._pace is None:
            self._pace = Pace(floor)
        if self._pace.is_too_slow(waited_s, client.bytes_written + self.bytes_in):
            raise self._too_slow()

    def _is_turn_over(self) -> bool:
        self._moves += 1
        moved = self.bytes_in + self._client.bytes_written
        if self._moves < _MOVES_PER_TURN and moved < self._turn_from + _TURN_BYTES:
            return False
        self._moves, self._turn_from = 0, moved
        return True


def _unfinished() -> RequestTimeout:
    return RequestTimeout("the request's body did not come in time")
