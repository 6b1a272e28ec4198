"""What the supervisor and a worker say to each other, as msgpack over a socketpair (`channel.py`).

The supervisor gives orders, the worker reports. Descriptors travel beside a message in the order that its docstring
names. A worker serves nothing until the first `Serve`: so who accepts from which socket is decided in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from ambassador.config.discover import Found
from ambassador.proxy.upstream.via import Config as Via


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One message; its tag is its class's name."""


class SocketRef(msgspec.Struct, frozen=True, array_like=True):
    """Which listening socket a descriptor is.

    `listener` is its key (`listeners.keyed`). `slot` None: one socket for all slots (unix listeners).
    """

    listener: str
    slot: int | None


class KeptFiles(msgspec.Struct, frozen=True, array_like=True):
    """The files of a TLS section, (setting, path), and which of `Kept.blobs` each held."""

    files: tuple[tuple[str, str], ...]
    blobs: tuple[int, ...]


class KeySetName(msgspec.Struct, frozen=True, array_like=True):
    """Which set of public keys: as of `KeySets.get`."""

    source: str
    ca: str | None
    via: Via | None

    def __repr__(self) -> str:
        return f"KeySetName({self.source.partition('?')[0]})"  # in the rest there may be a secret


class KeptKeys(msgspec.Struct, frozen=True, array_like=True):
    """A set of public keys as its source had it `age_s` seconds ago."""

    name: KeySetName
    document: bytes
    age_s: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the files and sources that a config names held when they were read last and were good: a worker takes it in
    the place of what is not good now, so that all workers of a replica have the same.

    `secrets` are values by reference, `blobs` the contents of files of TLS, each once.
    """

    secrets: Mapping[str, str] = {}
    blobs: tuple[bytes, ...] = ()
    tls: tuple[KeptFiles, ...] = ()
    key_sets: tuple[KeptKeys, ...] = ()

    def __repr__(self) -> str:
        return f"Kept({len(self.secrets)} secrets, {len(self.tls)} of TLS, {len(self.key_sets)} sets of keys)"


class Brief(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker needs in order to serve one generation of the config.

    `config` is the msgpack of a `Config`; `blocks` tells where in the worker's page each block of counters lies, as
    the registry made it; `page_size` is the page's size in bytes; `addresses` are those that upstreams' names have,
    `found` what their sources have said; `unhealthy` are endpoints, see `Health`. `kept` is for these two processes
    alone.
    """

    generation: int
    config: bytes
    blocks: bytes
    page_size: int
    addresses: Mapping[str, tuple[str, ...]]
    unhealthy: Mapping[str, Mapping[str, str]] = {}
    found: tuple[Found, ...] = ()
    kept: Kept = Kept()


class Start(Message, frozen=True):
    """The first order. Descriptors: the page of counters, the pipe for log lines, the socket to the supervisor's store
    (`state/frames.py`), then one for each of `sockets`.

    `replica` names this supervisor among all that share a store, `started` is when it did, in unix seconds.
    """

    slot: int
    instance: str
    replica: str
    started: float
    brief: Brief
    sockets: tuple[SocketRef, ...]


class Sockets(Message, frozen=True):
    """More sockets, not served before a `Serve` says so. Descriptors: one for each of `sockets`."""

    sockets: tuple[SocketRef, ...]


class Prepare(Message, frozen=True):
    """Make ready to serve another generation; answered `Prepared` or `Refused`."""

    brief: Brief


class Commit(Message, frozen=True):
    """Serve what was prepared; answered `Committed` once the queues of removed listeners are empty."""

    generation: int


class Abort(Message, frozen=True):
    """Forget what was prepared."""

    generation: int


class Serve(Message, frozen=True):
    """Accept from the sockets of these slots, and of those that all share, and from no others."""

    slots: tuple[int, ...]


class Addresses(Message, frozen=True):
    """Names whose addresses changed."""

    addresses: Mapping[str, tuple[str, ...]]


class Health(Message, frozen=True):
    """The endpoints of these upstreams that active checks have found unhealthy, all of them, by url, with the reason.

    A worker that starts has them from its `Brief`; later ones say nothing of them.
    """

    unhealthy: Mapping[str, Mapping[str, str]]


class Discovered(Message, frozen=True):
    """A source has other endpoints now."""

    found: Found


class Drain(Message, frozen=True):
    """Finish and exit. Sent again, it can only bring the end nearer.

    For `delay_s` go on accepting; then take no more, say `Stopped`, and have `timeout_s` for what is under way. `last`:
    nobody else serves these sockets after, so empty their queues, and have the kernel queue no more, before letting go
    of them.
    """

    delay_s: float
    timeout_s: float
    last: bool


class Reopen(Message, frozen=True):
    """Open log files again, by name."""


class Ask(Message, frozen=True):
    """A question for the admin API, `upstreams`, `breakers`, `limits`, `permits` or `tasks`; answered with `Answer`."""

    id: int
    what: str


class Act(Message, frozen=True):
    """Do something for the admin API that may take a moment; answered with `Answer`. `data`: a `breakers.Override`."""

    id: int
    data: bytes


Order: TypeAlias = (
    Start
    | Sockets
    | Prepare
    | Commit
    | Abort
    | Serve
    | Addresses
    | Discovered
    | Health
    | Drain
    | Reopen
    | Ask
    | Act
)


class Ready(Message, frozen=True):
    """The worker can serve the generation it was started with."""


class Failed(Message, frozen=True):
    """The worker cannot start, because of `error`, and exits."""

    error: str


class Prepared(Message, frozen=True):
    """`Commit` will do."""

    generation: int


class Refused(Message, frozen=True):
    """The generation cannot be served, because of `error`."""

    generation: int
    error: str


class Committed(Message, frozen=True):
    """The generation is served."""

    generation: int


class KeySetTrouble(msgspec.Struct, frozen=True, array_like=True):
    """A set of public keys that a worker could not read: `since`, in unix seconds, because of `problem`. `has_keys`: it
    goes on with those that it had before.
    """

    since: float
    problem: str
    has_keys: bool


class Beat(Message, frozen=True):
    """Sent twice a second by the worker's loop: that it comes proves that the loop runs.

    `loop_lag_ms` is the longest turn of the loop since the last beat.
    """

    connections: int
    inflight: int
    loop_lag_ms: float
    open_breakers: Mapping[str, tuple[int, int]] = {}
    """Breakers that are not closed: epoch and `state.protocol.State`."""
    ejections: Mapping[str, tuple[int, int]] = {}
    """Of each upstream that has had ejections: endpoints that are ejected, and ejections so far."""
    key_sets: Mapping[str, KeySetTrouble] = {}
    """The sets of keys that cannot be read, each by the first client in the config that has it."""


class KeysRead(Message, frozen=True):
    """What the source of a set of public keys has now, as a worker has just read it."""

    name: KeySetName
    document: bytes


class Counted(Message, frozen=True):
    """What limits have counted since the config was loaded, to be kept when the worker ends, or dies: sent every few
    seconds if it has changed, and when a drain begins and ends. `lines` as of `limits.counted`.
    """

    generation: int
    lines: bytes


class Answer(Message, frozen=True):
    """The answer to `Ask`: `tasks` as JSON, `replicas` as `roll` makes it; `upstreams`, `breakers` and `limits` as
    `answer` of `sums`, `breakers` and `limits` does, `permits` as `limits.permit_answer`.

    To `Act`: a `breakers.Obeyed` as msgpack.
    """

    id: int
    data: bytes


class Leaving(Message, frozen=True):
    """The worker was told by a signal to end: it goes on until another has taken its place."""


class Stopped(Message, frozen=True):
    """A drain's delay is over: the worker accepts from no socket any more."""


class Drained(Message, frozen=True):
    """Nothing is under way any more; the worker exits."""


Report: TypeAlias = (
    Ready
    | Failed
    | Prepared
    | Refused
    | Committed
    | Beat
    | KeysRead
    | Counted
    | Answer
    | Leaving
    | Stopped
    | Drained
)
