"""What a store of shared state can be asked, and what it answers.

A store holds what workers and replicas decide together: token buckets, circuits, credentials, who is alive, and named
values. There are two: `memory.MemoryStore`, which the supervisor holds for its workers, and `redis.RedisStore`, which
the whole fleet shares. Both keep the rules below to the letter, and one conformance suite holds them to it.

The protocol is cut at decisions, not at reads and writes: each operation is one atomic step of the store, by the
store's own clock, so that nobody ever reads, thinks and writes back. No operation is repeated by a transport, because
none may be counted twice: an operation whose answer did not come counts as possibly done.

- `Lease` takes tokens out of a bucket (rate limits, quotas, retry budgets) before anybody may spend them.
- `Report`, `Probe`, `Force` and `Restore` are the steps of a circuit.
- `Token` guards a credential that one worker fetches for all.
- `Beat` says who is alive, `Roll` lists them.
- `Put` and `Get` are named values with version and expiry: cool-downs, ramps, stored answers.
- `Permit` divides what one host may have in progress among its workers: concurrency, also adaptive.

Everything travels as msgpack arrays: the tag, then the fields in order. A field is only ever added at the end, with a
default. `VERSION` is part of every key of Redis and of the socket's greeting: stores of two layouts never meet.

Times of the store are microseconds of its own clock (Redis' `TIME`; the supervisor's wall clock). A worker maps them to
its monotonic clock with the `now_us` of the answer, and never compares them with its own time of day.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

VERSION: Final = 1
EPOCH_S: Final = 0.5
"""Demand is told and summed over epochs of this length: a worker tells its own once in each."""
MAX_VALUE_BYTES: Final = 80 * 1024
"""The longest value of `Put` and `Token`: an answer's body of 64 KiB, and its head."""
MAX_KEY_BYTES: Final = 200
"""The longest key, in UTF-8. Longer ones are hashed by who makes them."""
LATE_US: Final = 2_000_000
"""A worker that stands still cuts its probe when it goes on, and tells so then: for so long beyond its deadline a probe
is still thought to be at the upstream. (With 0, workers that stood still for up to 2 s had six of three there at once,
where a circuit opened for 0.5 s.)"""
LATE_S: Final = LATE_US / 1e6
SETTLING_US: Final = 20_000
"""Where several workers live, a circuit does not trip by percentage before its window is so old: others' first outcomes
are on their way. They are told at once (`gate.URGENT_S`), so a way to the store and a worker's delay are enough."""
BUCKETS: Final = 10
"""Of a circuit's window."""
RESERVE_GRACE_US: Final = 1_000_000
"""So long a cost that has come together waits to be taken: whoever was refused comes again after whole seconds."""
MOST_RESERVE_US: Final = 5_000_000
"""So long tokens are held back for a lease that does not come again."""
TELLING_US: Final = 1_500_000
"""In so long every worker has heard that the store lost its data, from the answer to a beat (one a second), and has
told what it used of a calendar window."""


class StoreLost(Exception):
    """The store did not answer, or answered that it cannot serve now: what was asked may have been done or not.

    Its argument is a short reason for the log. The connection is closed when this is raised.
    """


class CannotServe(StoreLost):
    """The store answers, and says that it cannot serve now: it is full, takes no writes, loads its data."""


class NotAllowed(CannotServe):
    """The store refused it for lack of a right, which the reason names."""


class _Message(msgspec.Struct, array_like=True, frozen=True):
    """Base of all operations and answers."""


# ----- buckets --------------------------------------------------------------------------------------------------------


class Lease(_Message, tag="lease", frozen=True):
    """Take up to `want` tokens out of the bucket `key`. Answered by `Leased`.

    The bucket holds at most `depth` tokens and gains `rate` a second. It is made by the first operation that names it:
    full, or, if the store itself is younger than the time to fill it, with `birth` and what it would have gained since
    the store began (so a wiped store gives no free burst). Refilling is exact, a clock that steps backwards counts as
    standing still (time goes on from where it then is), one that steps forward fills the bucket at most. In order:
    refilled, `credit` added up to `depth`, `back` added, `debt` taken, demand told, granted.

    Of `tokens` in the bucket it grants `min(want, floor(tokens), max(least, ceil(tokens * demand / all demands)))`:
    everybody has a part in proportion to its demand, and what somebody already waits for is not cut. All demands are
    the sum told in this epoch or that told in the last one, whichever is greater, and never less than `demand`; if they
    are 0 it is `min(want, floor(tokens))`. Epochs are numbered by the store's clock: `now_us // (EPOCH_S * 10^6)`.

    Requests may cost more than one token, and a part of a cost is of no use: in a worker's hand it expires. So a grant
    of less than `want` is a multiple of `first`, the whole of it is not cut by the others' demand, and what is not
    granted stays in the bucket. That great costs come together though small ones are asked for all the time: while all
    demands are above the rate, a lease that says what somebody `lacks` and is not granted as much, with less left, has
    that amount held back from leases with a lower `first`, who then have only what is there beyond it. It ends when a
    grant reaches it, and at the latest when the amount should have been there for RESERVE_GRACE_US, or after
    MOST_RESERVE_US, if nobody says again that he lacks it or more. Then nothing is held back for as long as the amount
    takes to come in: at least half of the rate is for the small.
    """

    key: str
    rate: float
    """Tokens a second; ignored with `window_s`."""
    depth: float
    want: int
    """0: only debt, credit, demand or return are told."""
    least: int = 0
    """What requests wait for that have already arrived, at most `want`."""
    demand: float = 0.0
    """Tokens a second that this worker is asked for."""
    tells_demand: bool = False
    """The first time in this worker's epoch: `demand` is added to the sum."""
    debt: float = 0.0
    """Tokens that were spent without a lease. They are taken first; the bucket may go below 0, to -`depth` at most."""
    credit: float = 0.0
    """Tokens that were earned, added after refilling, never above `depth` (retry budgets)."""
    window_s: int = 0
    """Above 0: `depth` tokens in each window of this length that begins at a multiple of it in unix time (UTC calendar
    for seconds, minutes, hours and days). Windows begin full; no birth rule; nothing is carried over. Windows of
    another length, and what refills, are other buckets, whatever the key; what is used of a window stays used when
    `depth` becomes another number."""
    back: int = 0
    """Tokens of window `back_window` that were leased and not spent; added if that is still the window."""
    back_window: int = 0
    start: float | None = None
    """What a bucket holds that this operation makes, at most `depth`, instead of the birth rule above: a share that
    takes over for the fleet's bucket begins with what that had left, not full. None: the rule above; without meaning
    with `window_s`, and for a bucket that is there."""
    most: float | None = None
    """What the bucket is lowered to before anything else but refilling: a share that was used before has
    refilled since, though the fleet's bucket, for which it stands, has not. None, and with `window_s`: nothing."""
    first: int = 0
    """What the first of those that wait needs, or one request where nobody waits: less is of no use, so less is not
    granted. 0 and 1: any amount is of use. No more than `want` counts."""
    lacks: int = 0
    """The most that a request needed which found too little since this worker's last lease, and was refused or is the
    first of those that wait: nothing is held back for one that has others before it."""
    birth: float = 0.0
    """What the bucket of a store that lost its data begins with, at most `depth`; see `bucket.first`. Without meaning
    with `window_s`."""
    knows: bool = False
    """With `window_s`: this worker has heard how much of the window was left, and that was something. Who does not is
    granted nothing in the first TELLING_US of a store that lost its data: by then those who used the window have said
    so."""


class Leased(_Message, tag="leased", frozen=True):
    """What a lease brought."""

    now_us: int
    granted: int
    left: float
    """Tokens in the bucket afterwards; below 0: debt."""
    retry_ms: int
    """When `max(1, least)` more tokens will be there, if nobody takes any: 0 if they are there now, at most an hour."""
    sharers: int
    """Workers that told a demand in this and the last epoch (the greater number), at least 1."""
    window: int = 0
    """The number of the calendar window that the tokens belong to."""
    window_left_ms: int = 0
    """How long it lasts."""
    born_us: int = 0
    """When the store's data began; another number than before: it has forgotten what was used, and what was there. 0:
    unknown."""


# ----- circuits -------------------------------------------------------------------------------------------------------


class State(enum.IntEnum):
    """Of a circuit."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


class Rules(_Message, frozen=True):
    """What a circuit trips and recovers by; the same in all workers that have the same config."""

    errors: float
    """Share of failures, 0..1; above 1: never by errors."""
    slow: float
    """Share of slow answers, 0..1; above 1: never by slowness."""
    min_requests: int
    window_ms: int
    quorum: float
    open_ms: int
    """After the first trip."""
    max_open_ms: int
    """After many; equal to `open_ms`: the time does not double."""
    probes: int
    """At most so many in flight, and so many successes in a row close."""


class Row(_Message, tag="row", frozen=True):
    """A circuit as the store has it."""

    now_us: int
    state: State
    epoch: int
    """Microseconds of the store's clock at the last transition or change of force; 0: there was none. Grows."""
    since_us: int
    """When `state` began; 0: unknown."""
    open_until_us: int
    """While OPEN: when probing may begin."""
    trips: int
    """Failed recoveries in a row, the first trip counted: the time doubles with each."""
    forced: str
    """"open", "closed", or "" for none."""
    forced_until_us: int
    """0: without end."""
    forced_by: str
    forced_reason: str
    requests: int
    """Of the window (or, just after a trip, of the window that caused it), as are the next four."""
    failures: int
    slow: int
    reporters: int
    """Replicas that reported (or workers, where one replica lives)."""
    failing: int
    """Of these, those whose own outcomes cross a threshold, or that voted."""


class Report(_Message, tag="report", frozen=True):
    """Add outcomes to a circuit's window, and trip it if that crosses a threshold. Answered by `Row`.

    If `epoch` is not the circuit's, or the circuit is not CLOSED, the outcomes are dropped: late results of an earlier
    life say nothing about this one. With all counts 0 it adds nothing, but a circuit of this epoch trips if it is due.

    The window is BUCKETS buckets of `window_ms / BUCKETS`, by the store's clock. It trips when nothing is forced and
    either
    - requests >= min_requests, the first report since the window was empty is at least SETTLING_US old or the only
      worker alive has sent it, failures / requests >= errors or slow / requests >= slow, and *quorum*: of the replicas
      that reported in this or the last
      half of the window (`reporters`; halves are numbered `now_us // (window_us / 2)`), those whose own outcomes in
      that time cross the same share (`failing`) are at least `ceil(quorum * reporters)` and at least `min(2, live
      replicas)`; or
    - votes reach the same quorum: replicas (of the reporters and voters) of which some worker voted within the last
      `window_ms`.
    If `live_replicas` is 1, workers count where replicas do: `min(2, live_workers)`.

    A trip sets OPEN, a new epoch (the clock, and greater than any before), empties the window and the votes, counts
    `trips`, and publishes the row. The open time is `min(max_open_ms, open_ms * 2^(trips-1))`, +-10 % by chance.
    """

    breaker: str
    replica: str
    slot: int
    epoch: int
    rules: Rules
    requests: int = 0
    failures: int = 0
    slow: int = 0
    vote: bool = False
    """This worker's own breaker opened by failures in a row."""
    live_replicas: int = 1
    live_workers: int = 1


class Verb(enum.IntEnum):
    """Of a probe."""

    ASK = 0
    OK = 1
    FAILED = 2
    LOST = 3
    """It said nothing about the upstream: cancelled by the client, refused by a quota."""


class Probe(_Message, tag="probe", frozen=True):
    """Ask for the right to send one request through a circuit that is not closed, or say what came of it.

    Answered by `Probed`. ASK: leases whose deadline passed are dropped, each as a FAILED one; an OPEN circuit whose
    time is over becomes HALF_OPEN (new epoch, published); granted if it is HALF_OPEN, nothing is forced open, and fewer
    than `rules.probes` leases are out; one of an earlier epoch is out until it is settled, at most LATE_US beyond its
    deadline. OK, FAILED and LOST count only with an id whose lease is out and was granted in this epoch. `rules.probes`
    OKs in a row close the circuit (new epoch, `since_us`, window empty, published). One FAILED opens it again with
    `trips` + 1, and all leases are void. `trips` goes back to 0 once the circuit has stayed CLOSED for 10 times
    `open_ms`. ASK with an id whose lease is out is granted again, and takes no other.
    """

    breaker: str
    id: str
    """Unique in the fleet, made by the asking worker."""
    verb: Verb
    rules: Rules
    timeout_ms: int = 10_000
    """With ASK: the lease's deadline."""


class Probed(_Message, tag="probed", frozen=True):
    """What came of a probe's step."""

    granted: bool
    """With ASK: it may be sent. Else: it was counted."""
    row: Row


class Force(_Message, tag="force", frozen=True):
    """Hold a circuit open or closed, or let go. Answered by `Row`. New epoch, published.

    A forced circuit goes on counting nothing; one forced closed does not trip. "auto" ends a force, and leaves the
    circuit HALF_OPEN, so that it ramps: nothing was counted meanwhile. A force whose time is over is as if it were not
    there: one that was "open" leaves the circuit HALF_OPEN at the first operation afterwards (new epoch, published, as
    at the end of one that was "closed", which leaves it CLOSED: no one is there to look at what that refuses).

    While forced open `state` is OPEN, with `open_until_us` as `forced_until_us`; while forced closed it is CLOSED. The
    window and the votes are emptied and probes' leases are void. "auto" without a force changes nothing.
    """

    breaker: str
    to: str
    """"open", "closed" or "auto"."""
    rules: Rules
    for_ms: int = 0
    """0: without end."""
    by: str = ""
    reason: str = ""


class Restore(_Message, tag="restore", frozen=True):
    """Put back a row that the store lost: taken if it has none for this circuit, or one with a lower epoch.

    Answered by `Row`, the one that stands. Published if taken.
    """

    breaker: str
    row: Row


# ----- credentials ----------------------------------------------------------------------------------------------------


class Token(_Message, tag="token", frozen=True):
    """A credential that one of many fetches for all. Answered by `Tokened`.

    `action` "read": what there is. "lock": the same, and the right to fetch it, if nobody has it (`lock_ms` long;
    asking again with the same nonce renews). "store": put `value` with version + 1, free the lock, publish; only by the
    lock's holder and only on `version`. "unlock": free it without a value. A value whose time is over is not there:
    its version is 0 again.
    """

    name: str
    action: str
    nonce: str = ""
    version: int = 0
    value: bytes = b""
    ttl_ms: int = 0
    """0: without end."""
    lock_ms: int = 15_000


class Tokened(_Message, tag="tokened", frozen=True):
    """A credential's state after the action."""

    now_us: int
    version: int
    """0: there is none."""
    value: bytes
    expires_us: int
    done: bool
    """The action was carried out: "lock" has the lock, "store" stored, "unlock" had held it, "read" found a value."""


# ----- who is alive ---------------------------------------------------------------------------------------------------


class Beat(_Message, tag="beat", frozen=True):
    """A worker says that it is alive, once a second. Answered by `Beaten`.

    Where it was not known to be, and others are, an `Alive` is published (kind "alive"): a loss of the store may come
    before their next beats, and parts of too few replicas are too large.
    """

    replica: str
    slot: int
    info: bytes = b""
    """msgpack, for `Roll`: whatever the replica tells about itself."""
    leaving: bool = False
    """It is forgotten at once."""
    terms: str = ""
    """The name of the limits' terms in its config (`accord.py`), at most MAX_KEY_BYTES; empty: there are none. A
    replica has those that one of its workers told last."""


class Beaten(_Message, tag="beaten", frozen=True):
    """Who else is alive: workers whose last beat is at most BEAT_TTL_US old, the asking one included."""

    now_us: int
    born_us: int
    """When the store's data began; another number than before: what it held is lost."""
    replicas: int
    workers: int
    terms: list[str] = []
    """The names of the terms that these replicas have, each once, in order."""


BEAT_TTL_US: Final = 3_000_000


class Alive(_Message, frozen=True):
    """The body of the event "alive", which has no name: as in `Beaten`."""

    replicas: int
    workers: int


class Roll(_Message, tag="roll", frozen=True):
    """List who is alive. Answered by `Rolled`."""


class Member(_Message, frozen=True):
    """A worker that is alive."""

    replica: str
    slot: int
    last_us: int
    info: bytes


class Rolled(_Message, tag="rolled", frozen=True):
    """Everybody, by replica and slot."""

    now_us: int
    members: list[Member]


# ----- named values ---------------------------------------------------------------------------------------------------


class Put(_Message, tag="put", frozen=True):
    """Set a named value. Answered by `Named`, with what stands afterwards.

    With `expect` it is done only if the present version is that (0: there is none). `longest`: done only if no value is
    there that lasts longer (cool-downs: the longest pause holds). Versions grow by 1 as long as the value lives.
    """

    name: str
    value: bytes
    ttl_ms: int = 0
    """0: without end; else it is gone after that."""
    expect: int | None = None
    longest: bool = False
    publish: bool = False


class Get(_Message, tag="get", frozen=True):
    """Read a named value. Answered by `Named`."""

    name: str


class Named(_Message, tag="named", frozen=True):
    """A named value, or that there is none (`version` 0)."""

    now_us: int
    version: int
    value: bytes
    ttl_ms: int
    """What is left; 0: without end, or no value."""
    done: bool = True
    """The put was done."""


# ----- permits --------------------------------------------------------------------------------------------------------


class Permit(_Message, tag="permit", frozen=True):
    """Say how many of the permits `key` this holder keeps, and how many it would have. Answered by `Permitted`.

    There are `most` permits; with `least` above 0 the number is found between the two by how long requests take
    (`gradient.Adaptive`). What a holder does not keep is free at once. It is granted up to `need` if that is free, but
    no more than its fair part where others lack some; and up to `want` where nobody does. What was granted before and
    is kept is never taken back by an answer, so the sum is never more than there are, unless there have become fewer:
    holders come down to `share` by themselves.

    Where somebody lacks permits that others may have to spare, or some became free that somebody lacks, or their number
    changed, a `Share` is published (kind "permits"). A holder that says nothing for PERMIT_TTL_US is forgotten, as is
    one that keeps and wants none.

    Only the replica's store does this: what it is about is what one host lets through. The fleet's refuses it.
    """

    key: str
    holder: str
    """A worker, in one of its lives."""
    most: int
    keep: int
    """It uses no more than this before the answer is there."""
    need: int
    """Requests that run or wait."""
    want: int = 0
    least: int = 0
    samples: list[float] = []
    """Seconds that requests took which began after the last change of the limit that this holder knows of."""
    drops: int = 0
    """Such requests that the upstream refused."""


class Permitted(_Message, tag="permitted", frozen=True):
    """What a holder of permits may use from now on."""

    now_us: int
    granted: int
    """At least what it keeps."""
    share: int
    """What it should have at most, since others lack some: it gives up more than this as soon as it can. Where nobody
    lacks any: all there are."""
    limit: int
    """How many there are."""
    holders: int
    """How many hold or need some."""
    lacks: int
    """How many all together lack."""


class Share(_Message, frozen=True):
    """The body of the event "permits", whose name is the key: as in `Permitted`, for every holder."""

    share: int
    limit: int
    free: int
    lacks: int


PERMIT_TTL_US: Final = 3_000_000
MOST_SAMPLES: Final = 256
"""Of one `Permit`."""


# ----- messages -------------------------------------------------------------------------------------------------------


class Refused(_Message, tag="refused", frozen=True):
    """The store could not do it (out of memory, a value too long). Nothing was changed."""

    why: str


Operation: TypeAlias = Lease | Report | Probe | Force | Restore | Token | Beat | Roll | Put | Get | Permit
Answer: TypeAlias = Leased | Row | Probed | Tokened | Beaten | Rolled | Named | Permitted | Refused


class Event(_Message, frozen=True):
    """Something that was published, told to every subscriber, the publisher included.

    At most once; those of one name in order.
    """

    kind: str
    """"circuit" (`body` is a `Row`), "value" (a `Named`), "token" (a `Tokened` without its value), "permits" (a
    `Share`), "alive" (an `Alive`)."""
    name: str
    body: bytes
    """msgpack."""


encode = msgspec.msgpack.Encoder().encode
decode_operations = msgspec.msgpack.Decoder(list[Operation]).decode
decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode
decode_row = msgspec.msgpack.Decoder(Row).decode
decode_tokened = msgspec.msgpack.Decoder(Tokened).decode
decode_event = msgspec.msgpack.Decoder(Event).decode
decode_share = msgspec.msgpack.Decoder(Share).decode
decode_alive = msgspec.msgpack.Decoder(Alive).decode
decode_named = msgspec.msgpack.Decoder(Named).decode

_BODIES: Final[dict[str, Callable[[bytes], object]]] = {
    "circuit": decode_row,
    "value": decode_named,
    "token": decode_tokened,
    "permits": decode_share,
    "alive": decode_alive,
}


def decode_published(message: bytes) -> Event:
    """An event, of which anybody may be the author: who hears of it may rely on its body.

    Raises msgspec.DecodeError where that is not what the kind says. Of kinds that are not known it is anything.
    """
    event = decode_event(message)
    if event.kind in _BODIES:
        _BODIES[event.kind](event.body)
    return event


def tag_of(key: str) -> int:
    """Which of the 64 shards of a Redis Cluster a key belongs to: CRC-32 of its UTF-8 bytes, modulo 64."""
    return zlib.crc32(key.encode()) % 64
