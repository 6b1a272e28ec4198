"""Idempotency: a request that is repeated with its key gets the answer of the first, and is carried out once.

Phase ADMIT, the last of it: whoever is refused before uses up no key. What a key stands for is a named value of the
fleet's store, changed by compare-and-set: first a *mark* that the request is in flight, then a *record* of its answer.
One round trip before the request goes up, one before its answer is passed on; requests without a key meet a look-up.

Source: draft-ietf-httpapi-idempotency-key-header (409 while the first is in flight, 422 for another request with the
key, the first's result for a repeat, "success or an error"), and Stripe's API, which keeps the answer "regardless of
whether it succeeds or fails" once the work has begun, and none where it has not. So
- an upstream's answer is the record, whatever its status, but for those that say that nothing was carried out: 429, and
  503 with `Retry-After`. Who waits as he is told must find something else than the same answer;
- what the ambassador itself says after bytes have gone up (a timeout, a reset) is one too: whether the work was done is
  not known, and a repeat must not do it again;
- where nothing has gone up, the mark is taken away: the key is as good as new;
- what refuses a further attempt (an open breaker, no endpoint, a quota) is never a record: the answer before it is, and
  where there is none any more the mark lives out its time.

The rules that hold here
- A name in the store is a hash of route, credential and key: nobody is given another's answer, and no key is stored.
- A mark lives MARK_S and is renewed; after a worker's death the key is free that much later at most. A client that
  leaves does not end its request: the answer is what its repeat will ask for.
- Bodies are digested as they stream. A record knows how much of the body that was, so an answer that came before the
  body's end is compared by the part that was seen.
- Nothing that is asked of the store twice may count twice: a put whose answer was lost is recognised by its value, also
  by what is put next. So no two claims of a key may renew with the same mark.
- Who has the answer may ask again, anywhere: so the store has the record, or the key back, before the answer is passed
  on. A store that is late holds it for `state.max_wait` and no longer. (The other way, a repeat that waits for a first
  that has just ended, costs questions and time of every repeat that comes too early, and can but hope.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec

from ambassador.errors import AlreadyDone, BadRequest, KeyInUse, KeyReused, StateUnavailable
from ambassador.messages import Reply
from ambassador.proxy.fields import CREDENTIALS
from ambassador.proxy.lane import Timer, ended_by
from ambassador.settings import BytesOrNone, MatchHeader, Seconds, Section
from ambassador.state.protocol import MAX_VALUE_BYTES, Get, Named, Put, Refused
from ambassador.state.scope import MAX_WAIT_S

if TYPE_CHECKING:
    from ambassador.messages import Fields, Request, Waiter
    from ambassador.proxy.lane import Timer as LaneTimer
    from ambassador.state.protocol import Answer
    from ambassador.state.scope import Scope

MARK_S: Final = 15.0
"""How long a mark is good for without being renewed: twice the pause after which a worker that stalls is replaced, and
more, so that a slow worker does not lose it."""
RENEW_S: Final = 5.0
MOST_BYTES: Final = 64 * 1024
"""Of a body that is kept. With the fields, which have the rest of `MAX_VALUE_BYTES`."""
_FREED_MS: Final = 1
"""What a store keeps for at least. An empty value means that the key is free."""
_TRIES: Final = 3
"""To take a key that was freed a moment ago: others may want it as well."""
_TRY_AGAIN_S: Final = 1.0
_GIVE_UP_S: Final = 60.0
"""A record that the store did not take is offered again each second, for so long."""
_MOST_OFFERED: Final = 256
"""Records that wait for a store, in each worker: 16 MiB."""
METHODS: Final = frozenset({"POST", "PUT", "PATCH"})
_NOT_KEPT: Final = frozenset(
    {
        b"connection", b"content-length", b"date", b"keep-alive", b"proxy-status", b"ratelimit", b"ratelimit-policy",
        b"transfer-encoding", b"x-ambassador-attempts", b"x-ambassador-upstream-ms", b"x-request-id",
    }
)  # fmt: skip
"""Fields that are of one answer to one request: a repeat's has its own."""
_REPLAYED: Final = (b"idempotent-replayed", b"true")


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Repeats of POST, PUT and PATCH with the same key get the answer of the first, from all replicas. Off unless
    written; `{}` has every default.
    """

    header: MatchHeader = "idempotency-key"
    """The header with the key. Requests without it are not held to anything; an empty key, or two of them, are
    `bad_request`. Keys of different credentials (`authorization`, `x-api-key`, `cookie`) and of different routes are
    different keys."""

    ttl: Seconds = 86400.0
    """How long an answer is kept, at least 15 s. Stripe: 24 h."""

    max: BytesOrNone = MOST_BYTES
    """The longest body that is kept; at most 64 KiB. Of a longer answer only that it was given is: a repeat is told
    `already_done`. Answers are held back until so much of them is here."""

    on_loss: Literal["refuse", "local"] = "refuse"
    """While the store is lost, requests with a key are `state_unavailable` (`refuse`), or go by this replica's own
    store (`local`): what other replicas carried out is not known then."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """More than a store takes."""
        if self.max > MOST_BYTES:
            yield "max", "must be at most 64KiB"
        if self.ttl < MARK_S:
            yield "ttl", f"must be at least {MARK_S:.0f}s"


# ----- what is in the store -------------------------------------------------------------------------------------------


class Mark(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """The first request is in flight."""

    head: bytes
    """Digest of its method, host, path and query."""
    since_us: int = 0
    """When the key was taken, by the store's clock, once that is known: no other claim of the key renews with the same
    mark. (Versions begin anew with each life of a value.)"""


class Record(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """It was answered."""

    head: bytes
    seen: int
    """How much of its body the digest is of."""
    digest: bytes
    whole: bool
    """That was all of it."""
    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes | None
    """None: it was too long to be kept."""


_encode: Final = msgspec.msgpack.Encoder().encode
_DECODER: Final[msgspec.msgpack.Decoder[Mark | Record]] = msgspec.msgpack.Decoder(Mark | Record)


def decode(value: bytes) -> Mark | Record | None:
    """What a value says; None if nothing that this version knows."""
    try:
        return _DECODER.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return None


def head_of(request: Request) -> bytes:
    """What a repeat must have in common with the first beside its body."""
    parts = (request.method.encode(), request.host.encode(), request.path, request.query or b"")
    return hashlib.sha256(b"\0".join(b"%d:%b" % (len(part), part) for part in parts)).digest()[:16]


def name_of(route: str, request: Request, key: bytes, *, of_caller: bool = False) -> str:
    """Where the key of a request is in the store: other routes and other credentials have other places. `of_caller`:
    what the upstream is shown is made of the caller's `Authorization`.
    """
    digest = hashlib.sha256()
    # A client that is known is known by its name: it may have a new token by the time that it repeats itself.
    who = sorted(
        (lower, value)
        for name, value in request.headers
        if (lower := name.lower()) in CREDENTIALS
        and (lower not in request.proof or (of_caller and lower == b"authorization"))
    )
    parts = [route.encode(), (request.client or "").encode(), key, *(part for field in who for part in field)]
    for part in parts:
        digest.update(b"%d:%b" % (len(part), part))
    return f"idempotency:{digest.hexdigest()}"


class BodyDigest:
    """Of the first `most` bytes of a body (None: of all of it)."""

    __slots__ = ("_hash", "_most", "size")

    def __init__(self, most: int | None = None) -> None:
        self._hash = hashlib.sha256()
        self._most = most
        self.size = 0
        """How much has come, more than `most` included."""

    def see(self, data: bytes | memoryview) -> None:
        """The next piece."""
        rest = len(data) if self._most is None else max(0, self._most - self.size)
        self._hash.update(data[:rest])
        self.size += len(data)

    def value(self) -> bytes:
        """Of what has come."""
        return self._hash.digest()[:16]


# ----- a repeat -------------------------------------------------------------------------------------------------------


class Repeat(Reply):
    """The first's answer for a repeat, once its body has been compared: `see` it, then `check`."""

    __slots__ = ("_digest", "_record")

    def __init__(self, record: Record) -> None:
        super().__init__(record.status, [*record.fields, _REPLAYED], record.body or b"")
        self._record = record
        self._digest = BodyDigest(record.seen)

    def see(self, data: bytes) -> bool:
        """A piece of the repeat's body. False: no more is needed."""
        self._digest.see(data)
        return self._digest.size <= self._record.seen

    def check(self) -> None:
        """Raises `KeyReused` if the body was another one, `AlreadyDone` if there is no answer to give."""
        record, size = self._record, self._digest.size
        if self._digest.value() != record.digest or (
            size > record.seen if record.whole else size < record.seen
        ):
            raise KeyReused("the key was used for a request with another body")
        if record.body is None:
            raise AlreadyDone(
                f"the first request was answered with {record.status}; the answer was too long to be kept"
            )


# ----- the first ------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """The lane, as far as it is needed here."""

    @property
    def now(self) -> float:
        """The time."""

    def arm(self, timer: LaneTimer) -> None:
        """Have it called at its deadline."""

    def disarm(self, timer: LaneTimer) -> None:
        """Do not."""


class Claim(Timer):
    """A key that a request holds, from its mark to the record of its answer. A `messages.Keeper`.

    At most one operation is under way; what is wanted meanwhile is asked afterwards.
    """

    __slots__ = (
        "_asked", "_clock", "_digest", "_give_up_at", "_head", "_mark", "_name", "_policy", "_renewing", "_short",
        "_store", "_ttl_ms", "_unheard", "_value", "_version", "_waiter", "kept", "most", "reached",
    )  # fmt: skip

    def __init__(self, policy: Idempotency, store: Scope, name: str, head: bytes, taken: Named) -> None:
        """`taken`: what the store answered to the first mark."""
        super().__init__()
        self._policy = policy
        self._clock = policy.clock
        self._store = store
        self._name = name
        self._head = head
        self._version: int | None = taken.version
        """Of what is in the store; None: the key is not this request's any more."""
        self._mark = self._value = _encode(Mark(head, taken.now_us))
        """`_value`: what is to be in the store."""
        self._unheard = False
        """A mark may have been put of which no answer came."""
        self._short: bytes | None = None
        """What is to be there if there is no room for that."""
        self._ttl_ms = round(MARK_S * 1000)
        self._asked: bytes | None = None
        """What is being put."""
        self._give_up_at = 0.0
        self._waiter: Waiter | None = None
        self._digest = BodyDigest()
        self._renewing = True
        self.most = policy.most
        self.reached = False
        """Bytes of it have gone up."""
        self.kept = False
        """Its answer is recorded."""
        self._arm(RENEW_S)

    # What an exchange tells

    def see(self, data: bytes | memoryview) -> None:
        """A piece of the request's body, on its way up."""
        self._digest.see(data)

    def keep(self, status: int, fields: Fields, body: bytes | None, *, whole: bool) -> None:
        """This is the answer; None: a body that cannot be kept. `whole`: all of the request has been seen."""
        if self.kept:
            return
        self.kept = True
        self._renewing = False
        if body is not None and len(body) > self.most:
            body = None
        stay = [(name, value) for name, value in fields if name.lower() not in _NOT_KEPT]
        record = Record(self._head, self._digest.size, self._digest.value(), whole, status, stay, body)
        value = _encode(record)
        self._short = _encode(msgspec.structs.replace(record, fields=[], body=None))
        if len(value) > MAX_VALUE_BYTES:
            value = self._short
        self._want(value, round(self._policy.ttl_s * 1000))

    def free(self) -> None:
        """There will be no answer to keep. Free the key if nothing has gone up; else the mark lives out its time, since
        nobody knows what was done.
        """
        if self.kept:
            return
        self.kept = True
        self._renewing = False
        self._clock.disarm(self)
        if not self.reached:
            self._want(b"", _FREED_MS)

    def refused(self) -> None:
        """The upstream says that it did not carry it out: the key is as good as new."""
        self.reached = False
        self.free()

    async def told(self, waiter: Waiter) -> None:
        """Wait until the store has said something to what it was told last, no longer than `state.max_wait`.

        Raises what the waiter's `rest` raises.
        """
        until = self._clock.now + ended_by(self._policy.max_wait_s)
        self._waiter = waiter
        try:
            while self._asked is not None and self._clock.now < until:
                await waiter.rest(until)
        finally:
            self._waiter = None

    def end(self, status: int, seconds: float) -> None:  # noqa: ARG002 - what `Request.at_end` calls with
        """The request has ended."""
        self.free()

    # The store

    def expire(self) -> None:
        """It is time to renew the mark, or to offer the record again."""
        if self._renewing:
            self._arm(RENEW_S)
        self._ask()

    def _arm(self, seconds: float) -> None:
        self.deadline = self._clock.now + seconds
        self._clock.arm(self)

    def _want(self, value: bytes, ttl_ms: int) -> None:
        self._value, self._ttl_ms = value, ttl_ms
        self._give_up_at = self._clock.now + _GIVE_UP_S
        self._clock.disarm(self)
        self._ask()

    def _ask(self) -> None:
        if self._asked is None and self._version is not None:
            self._asked = self._value
            self._store.ask(
                Put(self._name, self._value, ttl_ms=self._ttl_ms, expect=self._version), self._answered
            )

    def _answered(self, answer: Answer | None) -> None:
        asked, self._asked = self._asked, None
        self._learn(asked, answer)
        if self._waiter is not None and self._asked is None:
            self._waiter.wake()

    def _learn(self, asked: bytes | None, answer: Answer | None) -> None:
        if isinstance(answer, Refused) and self._short not in (None, asked):
            assert self._short is not None
            self._value = self._short  # that it was done must be known, if nothing more can be
            self._ask()
        elif not isinstance(answer, Named):
            self._unheard = self._unheard or asked == self._mark
            self._offer_later()
        elif answer.done or answer.value == asked or (self._unheard and answer.value == self._mark):
            self._unheard = False
            self._version = answer.version
            stands = asked if answer.done else answer.value
            if self._value != stands:
                self._ask()
        elif not answer.version and self._version:
            self._version = 0  # its time was over, or the store has lost its data
            self._ask()
        else:
            self._version = None
            self._clock.disarm(self)

    def _offer_later(self) -> None:
        """The store did not take it, or perhaps it did."""
        if not self._renewing and self._clock.now < self._give_up_at and self._policy.may_wait(self):
            self._arm(_TRY_AGAIN_S)


class _Question:
    """What one request asks of a store, and waits for."""

    __slots__ = ("answer", "answered", "waiter")

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.answered = False
        self.answer: Named | None = None
        """None: the store is lost."""

    def take(self, answer: Answer | None) -> None:
        """Its answer."""
        self.answered = True
        self.answer = answer if isinstance(answer, Named) else None
        self.waiter.wake()


class Idempotency:
    """The policy of one route. `replica` is what there is while `fleet` is lost; they may be the same."""

    def __init__(
        self,
        config: Config,
        *,
        route: str,
        clock: Clock,
        fleet: Scope,
        replica: Scope,
        max_wait_s: float = MAX_WAIT_S,
        of_caller: bool = False,
    ) -> None:
        """`max_wait_s`: how long an answer may be held back for a store. `of_caller`: see `name_of`."""
        self._route = route
        self._of_caller = of_caller
        self._header = config.header.encode()
        self._fleet = fleet
        self._replica = replica if config.on_loss == "local" and replica is not fleet else None
        self.clock = clock
        self.ttl_s = config.ttl
        self.most = config.max
        self.max_wait_s = max_wait_s
        self._also_local_until = 0.0
        """Until then an answer may be in the replica's store only."""
        self._offered = 0
        self._offered_at = 0.0

    def hook(self, request: Request) -> Awaitable[Reply | None] | None:
        """The ADMIT hook: None for requests without a key; else it takes a look into the store.

        Raises `BadRequest`, and when awaited `KeyInUse`, `KeyReused`, `StateUnavailable`.
        """
        if request.method not in METHODS:
            return None
        keys = [value.strip() for name, value in request.headers if name.lower() == self._header]
        if not keys or request.waiter is None:
            return None
        if len(keys) > 1 or not keys[0]:
            # Whoever sends one means to be safe, and would not be.
            raise BadRequest(f"{'more than one' if keys[0] else 'an empty'} {self._header.decode()}")
        return self._look(
            request, request.waiter, name_of(self._route, request, keys[0], of_caller=self._of_caller)
        )

    def may_wait(self, claim: Claim) -> bool:  # noqa: ARG002 - any of them counts alike
        """Whether one more record may wait for a store that is away."""
        if self.clock.now >= self._offered_at + _TRY_AGAIN_S:
            self._offered, self._offered_at = 0, self.clock.now
        self._offered += 1
        return self._offered <= _MOST_OFFERED

    async def _look(self, request: Request, waiter: Waiter, name: str) -> Reply | None:
        head, store = head_of(request), self._fleet
        found = await self._mark(store, waiter, name, head)
        if found is None and self._replica is not None:
            store = self._replica
            self._also_local_until = self.clock.now + self.ttl_s
            found = await self._mark(store, waiter, name, head)
        if found is None:
            raise StateUnavailable("what was done with this key cannot be known now", retry_after_s=1.0)
        if not found.done:
            return _reply(found.value, head)
        claim = Claim(self, store, name, head, found)
        request.at_end(claim.end)
        if self._replica is not None and store is self._fleet and self.clock.now < self._also_local_until:
            here = await self._ask(self._replica, Get(name), waiter)
            if here is not None and here.version and here.value:
                return _reply(here.value, head)
        request.keeper = claim
        return None

    async def _mark(self, store: Scope, waiter: Waiter, name: str, head: bytes) -> Named | None:
        value, ttl_ms = _encode(Mark(head)), round(MARK_S * 1000)
        found: Named | None = None
        for _ in range(_TRIES):
            expect = 0 if found is None else found.version
            found = await self._ask(store, Put(name, value, ttl_ms=ttl_ms, expect=expect), waiter)
            if found is None or found.done or found.value:
                break
        return found

    async def _ask(self, store: Scope, operation: Put | Get, waiter: Waiter) -> Named | None:
        """What the store says, which takes no longer than it does to be lost: the one wait that `state.max_wait` does
        not end, since there is nothing else to go by. None: it is lost.
        """
        question = _Question(waiter)
        left = False

        def answered(answer: Answer | None) -> None:
            if not left:
                question.take(answer)
            elif isinstance(operation, Put) and isinstance(answer, Named) and answer.done:
                # Whoever asked has left: the mark is nobody's.
                store.ask(Put(operation.name, b"", ttl_ms=1, expect=answer.version))

        store.ask(operation, answered)
        try:
            while not question.answered:
                await waiter.rest(self.clock.now + _TRY_AGAIN_S)
        except BaseException:
            left = True
            if question.answer is not None:
                answered(question.answer)
            raise
        return question.answer


def _reply(value: bytes, head: bytes) -> Reply:
    """What a key that is there already means for a request with this head."""
    found = decode(value)
    if found is not None and found.head != head:
        raise KeyReused("the key was used for another request")
    if isinstance(found, Record):
        return Repeat(found)
    raise KeyInUse("the first request with this key is in flight", retry_after_s=1.0)
