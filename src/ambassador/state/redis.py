"""The fleet's store: Redis or Valkey, alone, behind Sentinels, or as a Cluster.

What an operation means is in `protocol.py`; it is carried out by Lua scripts (`redis_scripts.py`, `*.lua`) over plain
connections (`redis_nodes.py`). This module knows how a batch of them is carried through:
- One batch is one round trip: what goes to one server is written at once, and to all servers before any is read.
- Nothing is sent twice that may have been done. Three answers say that it was not: NOSCRIPT (the script is sent along
  with the next try), MOVED and ASK (it goes where they say), TRYAGAIN (a slot is between two servers: again in 5 ms).
- Anything else that leaves doubt is `StoreLost`: all connections are closed, and the whole batch counts as possibly
  done. `connect` then begins anew, with whoever is the master by now.

When Redis' data began is written down for each shard by whoever connects first (`birth.lua`). A process that finds
nothing takes the data for old when it has never seen any, and for lost when it has; and when some shards say so and
others do not, the others have lost theirs.

What it costs the server, in us of CPU for a call with one key and for each of ten keys in one call (Redis 7.0 | Valkey
9.1; an empty script 1.5 | 1.3, a plain SET 0.6 | 0.7):

    Lease       7.2 / 4.4  | 9.5 / 5.0         Probe  25 | 25       Put    9 | 9
    Report      27 / 17    | 34 / 18           Token   5 | 9        Get    7 | 7
    as read     18         | 23                Beat   37 | 37 with 64 workers alive

A report costs the same with 64 replicas as with two. So 64 workers that each lease 500 keys a second take up to 23 % of
a core, and with 20 circuits each that report five times a second another 19 %. The client pays 40 us for `perform` of
one operation, 170 us for ten of as many shards, 100 us for ten of one (CPython 3.11).

Needs Redis 6.2 or Valkey 7.2, and an ACL user who may do no more than

    ~PREFIX:* &PREFIX:* +evalsha +script|load +time +get +set +del +hmget +hset +hget +hdel +pexpire +zadd +zrem +zrange
    +zrangebyscore +publish +subscribe +role +cluster|slots +ping (and, for `examine`, +info +config|get)
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Final, NamedTuple

import msgspec

from ambassador.state.protocol import (
    Answer,
    Beaten,
    Event,
    Lease,
    NotAllowed,
    Operation,
    Put,
    Refused,
    StoreLost,
    Token,
    decode_published,
    tag_of,
)
from ambassador.state.redis_nodes import TAGS, Command, Kind, Node, Nodes, Reply, Trouble, make_nodes
from ambassador.state.redis_scripts import MEMBERS_TAG, Call, Script, Scripts, refusal
from ambassador.state.redis_url import parse_address

TIMEOUT_S: Final = 0.25
"""For connecting and for each answer: when the store counts as lost."""
_PAUSE_S: Final = 0.005
_ROUNDS: Final = 6
"""At most so many tries of what was not done. A slot on its way holds a batch up for 30 ms at most; then what is about
keys that are not there yet is refused: only when the slot has arrived can such a key be made."""
_YOUNG_US: Final = 10_000_000
"""Of several processes that start with an empty Redis, one writes the births; the others may find half of them."""

_IDLE_S: Final = 1.0
"""A subscription that heard nothing for so long asks whether the server is there."""
_STOP_S: Final = 0.25
"""A subscription that is stopped ends within this time."""
_LEAST_REDIS: Final = (6, 2)
_LEAST_VALKEY: Final = (7, 2)
_LINE: Final = re.compile(r"user_script: ?([0-9]+)")
_COMMAND: Final = re.compile(r"redis\.call\('([A-Z]+)'")
_UNSENT: Final = Refused("it was not sent")


class RedisStore:
    """A store in Redis. One thread uses it; what `subscribe` returns is for another one."""

    def __init__(
        self, url: str, *, prefix: str = "amb", timeout_s: float = TIMEOUT_S, clock: str | None = None
    ) -> None:
        """
        Args:
            url: one of the forms of `redis_url`, with its secrets in it.
            prefix: of all keys, and of the channel.
            timeout_s: for connecting, and for each answer.
            clock: Lua that takes the place of `clock.lua`, for tests that move the time.

        Raises:
            ValueError: the URL is none of the forms.
        """
        self._address = parse_address(url)
        self._timeout_s = timeout_s
        self._scripts = Scripts(prefix, clock)
        self._nodes: Nodes = make_nodes(self._address, timeout_s, Scripts.hash_tag)
        self._born_us: int | None = None
        """Of the shard that beats are in, as seen last; None: this process has seen no data yet."""
        self.age_s = inf
        """How long ago the data began, as last looked at: of all shards the oldest's; inf: buckets begin full."""

    def connect(self) -> None:
        """Find the servers, connect, and write down when the data began where nobody did. Again is allowed.

        Raises:
            StoreLost: a server cannot be reached, refuses us, or cannot serve. Nothing stays open.
        """
        try:
            self._nodes.open()
            self._register()
        except StoreLost:
            self.close()
            raise

    def perform(self, operations: Sequence[Operation]) -> list[Answer]:
        """Have operations done: each once, each atomically, those of one name in their order. Blocks for a round trip,
        and for `timeout_s` at most where a server is silent.

        Returns:
            The answers, in the operations' order.

        Raises:
            StoreLost: nobody knows which of them were done. The connections are closed.
        """
        refusals = [refusal(operation) for operation in operations]
        sound = [(position, operations[position]) for position, why in enumerate(refusals) if why is None]
        answers: list[Answer] = [why or _UNSENT for why in refusals]
        try:
            self._nodes.check()
            for call, reply in self._carry_through(self._scripts.calls(sound)):
                if isinstance(reply, Trouble):
                    refused = Refused(reply.text or "its shard is on its way to another server")
                    for position in call.positions:
                        answers[position] = refused
                else:
                    for position, answer in zip(call.positions, call.decode(reply), strict=True):
                        answers[position] = answer
            for answer in answers:
                if isinstance(answer, Beaten) and answer.born_us != self._born_us:
                    self._register()
        except StoreLost:
            self.close()
            raise
        return answers

    def close(self) -> None:
        """Close all connections. `connect` opens them again."""
        self._nodes.close()

    def subscribe(self) -> Subscription:
        """Connect once more, to hear what is published from now on.

        Raises:
            StoreLost: it did not work.
        """
        nodes = make_nodes(self._address, self._timeout_s, Scripts.hash_tag)
        return Subscription(nodes, self._scripts.channel)

    def shown(self) -> str:
        """The address, without secrets."""
        return self._address.shown()

    def examine(self) -> list[str]:
        """What is wrong with the servers, or may become so: sentences for `doctor` and the log. Connect first."""
        findings = [finding for node in self._nodes.all() for finding in _examine(node, self._scripts.all())]
        return findings + self._examine_events()

    def _examine_events(self) -> list[str]:
        """Whether the user may publish and hear: without, the store works, and what others decide is heard later."""
        findings = []
        try:
            self._nodes.of_tag(0).ask("PUBLISH", self._scripts.channel, b"")
        except NotAllowed as denied:
            findings.append(f"{_may_not('publish', self._scripts.channel)} ({denied})")
        try:
            self.subscribe().close()
        except NotAllowed as denied:
            findings.append(str(denied))
        if findings:
            findings.append("without events, replicas learn what others decide up to a second later")
        return findings

    def try_out(self) -> None:
        """Write something small that goes by itself, to every shard. Connect first.

        A server that is full, that cannot save, or that lacks replicas answers whoever only connects and reads. And the
        rights that only some operations need are tried.

        Raises:
            StoreLost: a server refuses it, and why.
        """
        self.perform(
            [
                *(Put(name, b"", ttl_ms=1) for name in _a_name_of_each_shard()),
                Lease("try", 1.0, 1.0, 0),
                Token("try", "lock", "try", lock_ms=1),
                Token("try", "unlock", "try"),
            ]
        )

    # How a batch is carried through

    def _carry_through(self, calls: list[Call]) -> list[tuple[Call, Reply]]:
        """Each call with its answer, or with the trouble that stood in its way to the end."""
        done: list[tuple[Call, Reply]] = []
        troubled: list[tuple[Call, Trouble]] = []
        for _ in range(_ROUNDS):
            troubled = []
            for node, call, reply in self._exchange(calls):
                if isinstance(reply, Trouble) and reply.kind is Kind.DENIED:
                    raise NotAllowed(_denied(call.script, reply.text))
                if isinstance(reply, Trouble) and reply.kind is not Kind.FAILED:
                    _prepare(call, node, reply)
                    if reply.kind is Kind.MOVED:
                        self._nodes.moved(call.tag, reply.host or node.host, reply.port)
                    troubled.append((call, reply))
                else:
                    done.append((call, reply))
            if not troubled:
                break
            if any(trouble.kind is Kind.AGAIN for _, trouble in troubled):
                time.sleep(_PAUSE_S)
                # Those keys of a call that are all on one side need not wait for the others.
                troubled = [
                    (part, trouble)
                    for call, trouble in troubled
                    for part in (call.split() if trouble.kind is Kind.AGAIN else [call])
                ]
            calls = [call for call, _ in troubled]
        return [*done, *troubled]

    def _exchange(self, calls: list[Call]) -> list[tuple[Node, Call, Reply]]:
        """Send calls, each to the server it was told to ask or else to its shard's; then read all answers."""
        batches: dict[Node, list[Call]] = {}
        for call in calls:
            node = self._nodes.of_tag(call.tag) if call.place is None else self._nodes.at(*call.place)
            batches.setdefault(node, []).append(call)
        sent = [(node, batch, _send(node, batch)) for node, batch in batches.items()]
        results: list[tuple[Node, Call, Reply]] = []
        for node, batch, positions in sent:
            replies = node.receive(positions[-1] + 1)
            results += [
                (node, call, replies[position]) for call, position in zip(batch, positions, strict=True)
            ]
        return results

    # When the data began

    def _register(self) -> None:
        """See to it that every shard says when its data began."""
        found = self._births("look", range(TAGS))
        if missing := [tag for tag, birth in found.items() if not birth.born_us]:
            # Another process may be half-way through the same.
            begun = any(birth.full and birth.now_us - birth.born_us < _YOUNG_US for birth in found.values())
            fresh = self._born_us is None and (begun or len(missing) == TAGS)
            found |= self._births("fresh" if fresh else "lost", missing)
        self._born_us = found[MEMBERS_TAG].born_us
        self.age_s = max(birth.age_s for birth in found.values())

    def _births(self, mode: str, tags: Iterable[int]) -> dict[int, _Birth]:
        births: dict[int, _Birth] = {}
        for call, reply in self._carry_through(self._scripts.births(mode, tags)):
            if isinstance(reply, Trouble):
                raise StoreLost(reply.text or "a shard is on its way to another server")
            births[call.tag] = _Birth(*reply)
        return births


class _Birth(NamedTuple):
    born_us: int
    """0: nothing says so."""
    full: int
    now_us: int

    @property
    def age_s(self) -> float:
        return inf if self.full else (self.now_us - self.born_us) / 1e6


class Subscription:
    """What is published, from when it was made on: iterate over it in a thread of its own.

    It ends after `stop`, which any thread may call, within 0.25 s; and with `StoreLost` when the connection is. Events
    that were published while nobody listened are gone: whoever listens again must ask how things stand. Make a new one
    whenever the store was lost: after a failover the old connection may go on with a server that nobody writes to.
    """

    def __init__(self, nodes: Nodes, channel: str) -> None:
        self.channel = channel
        self._nodes = nodes
        self._stopped = False
        self._node = nodes.open_any()
        try:
            reply = self._node.ask("SUBSCRIBE", channel)
        except NotAllowed as denied:
            self.close()
            raise NotAllowed(f"{_may_not('subscribe', channel)} ({denied})") from None
        except StoreLost:
            self.close()
            raise
        if isinstance(reply, Trouble):
            self.close()
            raise StoreLost(reply.text)

    def __iter__(self) -> Iterator[Event]:
        """Every event, in order.

        Raises:
            StoreLost: the connection ended, or the server is silent for more than two seconds.
        """
        try:
            while not self._stopped:
                event = self._next()
                if event is not None:
                    yield event
        finally:
            self.close()

    def stop(self) -> None:
        """Have the iteration end."""
        self._stopped = True

    def close(self) -> None:
        """Close the connection. Only from the thread that iterates, or when none does."""
        self._nodes.close()

    def receive(self, timeout_s: float) -> bytes | None:
        """What was published next; None: nothing in that time, or `stop` was called.

        Raises:
            StoreLost: the connection ended.
        """
        message = self._wait(timeout_s)
        return message[2] if isinstance(message, list) and message[0] == b"message" else None

    def _next(self) -> Event | None:
        """An event; None when there was none for a while, or something else came."""
        message = self._wait(_IDLE_S)
        if message is None and not self._stopped:
            # A server that hangs, or a peer that is gone without a word, would never be noticed.
            self._node.send((("PING",),))
            message = self._wait(_IDLE_S)
            if message is None and not self._stopped:
                raise StoreLost("no answer in time")
        if not isinstance(message, list) or message[0] != b"message":
            return None
        try:
            return decode_published(message[2])
        except msgspec.DecodeError:  # not ours: anybody may publish who knows the channel
            return None

    def _wait(self, timeout_s: float) -> Reply | None:
        deadline = time.monotonic() + timeout_s
        while not self._stopped and (left := deadline - time.monotonic()) > 0:
            if (message := self._node.wait_push(min(left, _STOP_S))) is not None:
                return message
        return None


def _a_name_of_each_shard() -> list[str]:
    names: dict[int, str] = {}
    for number in itertools.count():
        names.setdefault(tag_of(f"try-{number}"), f"try-{number}")
        if len(names) == TAGS:
            return list(names.values())
    raise AssertionError  # numbers do not end


def _may_not(verb: str, channel: str) -> str:
    return f"the user may not {verb} to {channel}: give it +{verb} and &{channel.partition(':')[0]}:*"


def _denied(script: Script, text: str) -> str:
    """What the user may not do: servers before Redis 7.2 only name the script's line."""
    lines = script.source.splitlines()
    found = _LINE.search(text)
    above = reversed(lines[: int(found[1])]) if found else ()
    command = next((match[1] for line in above if (match := _COMMAND.search(line))), None)
    if command is None:
        return f"NOPERM in the script `{script.name}`: {text}"
    return f"NOPERM: the user may not run {command}, which the script `{script.name}` calls: give it +{command.lower()}"


def _send(node: Node, calls: list[Call]) -> list[int]:
    """Send calls to a server; where among the answers that of each will be."""
    commands: list[Command] = []
    positions: list[int] = []
    brought: set[Script] = set()
    for call in calls:
        if call.brings_script and call.script not in brought:
            brought.add(call.script)
            commands.append(("SCRIPT", "LOAD", call.script.source))
        if call.place is not None:
            commands.append(("ASKING",))
        positions.append(len(commands))
        commands.append(call.command())
    node.send(commands)
    return positions


def _prepare(call: Call, node: Node, trouble: Trouble) -> None:
    """Have the next try of a call go where it belongs, with what it needs."""
    call.brings_script = trouble.kind is Kind.NO_SCRIPT
    if trouble.kind is not Kind.NO_SCRIPT:  # which is said of the place where the call was sent
        call.place = None
    if trouble.kind is Kind.ASK:
        call.place = (trouble.host or node.host, trouble.port)


def _examine(node: Node, scripts: list[Script]) -> Iterator[str]:
    """What is wrong with one server."""
    name = f"{node.host}:{node.port}" if node.host else "Redis"
    try:
        info = _parse_info(node.ask("INFO"))
        yield from _examine_info(name, info)
    except StoreLost as lost:
        yield f"{name}: cannot be examined: {lost}"
    for script in scripts:
        try:
            loaded = node.ask("SCRIPT", "LOAD", script.source)
        except StoreLost as lost:
            loaded = Trouble(Kind.FAILED, str(lost))
        if loaded != script.sha.encode():
            why = f": {loaded.text}" if isinstance(loaded, Trouble) else ""
            yield f"{name}: does not take the script `{script.name}`{why}"


def _examine_info(name: str, info: dict[str, str]) -> Iterator[str]:
    valkey = info.get("valkey_version")
    version = valkey or info.get("redis_version", "0")
    product = "Valkey" if valkey else "Redis"
    least = _LEAST_VALKEY if valkey else _LEAST_REDIS
    if _numbers(version) < least:
        yield f"{name}: {product} {version} is older than {'.'.join(map(str, least))}"
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield (
            f"{name}: maxmemory-policy is {policy}, and a limit or a circuit that was evicted looks unused; "
            "set it to noeviction"
        )
    if info.get("role", "master") != "master":
        yield f"{name}: is a replica, and cannot be written to"
    if info.get("loading", "0") != "0":
        yield f"{name}: is still loading its data"


def _parse_info(reply: Reply) -> dict[str, str]:
    if not isinstance(reply, bytes):
        return {}
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
