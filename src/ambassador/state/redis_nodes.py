"""Connections to Redis servers: one server, the master that Sentinels name, or the masters of a Cluster.

This is the only module that imports redis-py. It uses the library's `Connection` (TLS, ACL, the wire format) and none
of its clients. Those retry by themselves (ten times since 8.0, pipelines included), and what is asked here may never be
sent twice; the one for clusters also reads the server's whole table of commands at every connect: 21 ms of the
interpreter, which the worker's own thread waits for, where this takes 5. Over a unix socket one script costs the client
21 us of CPU through a `Connection` and 60 through a `Pipeline`, ten cost 102 and 155, fifty 407 and 547 (CPython 3.11,
redis-py 8.1 without hiredis, two busy cores).

The rules:
- Nothing is ever sent again from here. redis-py's own retry, at connecting, is off too.
- Every error that leaves doubt, and every answer by which a server says that it cannot serve now, is `StoreLost`. Who
  catches it closes the node: a connection on which an answer may still come is never used again.
- An answer by which a server says that it did not do something is no error but a `Trouble` among the replies.
- Everything blocks, each wait for at most the timeout. One thread uses a node at a time.
"""

from __future__ import annotations

import enum
import re
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as NoAnswerError
from redis.retry import Retry

from ambassador.pem_files import FileError, load_chain, read_file, trusting
from ambassador.state.protocol import CannotServe, NotAllowed, StoreLost
from ambassador.state.redis_url import Address

TAGS: Final = 64
"""Shards: `protocol.tag_of` gives the number of a key's."""

_IDLE_S: Final = 10.0
"""Servers may be set to close connections that are idle for longer: Redis' `timeout`, a firewall."""

_CODE: Final = re.compile(r"(?:^|: -?)([A-Z][A-Z]+) ")
"""The code of an error. Before Redis 7 the error of a command inside a script comes wrapped in another."""
_CANNOT_SERVE: Final = frozenset(
    (
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "UNKILLABLE",
    )
)
"""Codes by which a server says that it cannot serve, whatever it is asked."""
_CODE_OF: Final = {
    ClusterDownError: "CLUSTERDOWN",
    NoPermissionError: "NOPERM",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
}
"""Where redis-py has a class for a code, it cuts the code off the text."""

_DENIED_IN_SCRIPT: Final = re.compile(r"ACL failure in script|The user executing the script can't")
"""Valkey's words and Redis' for a command inside a script that the user may not call: neither gives it a code."""

Command: TypeAlias = Sequence[str | bytes | int]
Reply: TypeAlias = Any
"""What redis-py makes of an answer: int, bytes, None, a list of these, or a `Trouble`."""


class Kind(enum.Enum):
    """Why a server did not do something."""

    NO_SCRIPT = enum.auto()
    MOVED = enum.auto()
    """The slot is another node's."""
    ASK = enum.auto()
    """The slot is on its way to another node, and the key is there already, or is not there yet."""
    AGAIN = enum.auto()
    """The slot is on its way, and some of the keys have arrived."""
    DENIED = enum.auto()
    """The user may not do what the script was about to do; what it did before that stays."""
    FAILED = enum.auto()
    """The command itself is at fault."""


class Trouble(msgspec.Struct, frozen=True):
    """A server did not do what it was asked, and nothing was changed."""

    kind: Kind
    text: str = ""
    host: str = ""
    """With MOVED and ASK: where to go; "" is the node that said so."""
    port: int = 0


_WATCH_EVERY_S: Final = 0.5
"""A Sentinel is asked who the master is."""
_WATCH_AGAIN_S: Final = 5.0
"""After a Sentinel did not answer, another is tried."""
_WATCH_TIMEOUT_S: Final = 0.05
"""For connecting to it; operations wait meanwhile."""


class Node:
    """One connection to one server."""

    __slots__ = ("_address", "_connection", "_open", "_used_s", "host", "port")

    def __init__(self, address: Address, host: str, port: int, timeout_s: float) -> None:
        self.host = host
        self.port = port
        self._address = address
        self._connection = _make_connection(address, host, port, timeout_s)
        self._open = False
        self._used_s = 0.0

    def connect(self) -> None:
        """Connect, authenticate, select the database.

        Raises:
            StoreLost: it did not work.
        """
        try:
            self._connect()
        except RedisError as error:
            raise self._lost(error) from None
        self._open = True
        self._used_s = time.monotonic()

    def send(self, commands: Iterable[Command]) -> None:
        """Write commands in one go. If the server has closed a connection that was long idle, on a new one.

        Raises:
            StoreLost: some of them may have been sent.
        """
        if not self._open:  # redis-py would connect by itself
            raise StoreLost("the connection is closed")
        try:
            now_s = time.monotonic()
            if now_s - self._used_s > _IDLE_S and self._has_ended():
                self._connect()
            self._used_s = now_s
            self._connection.send_packed_command(self._connection.pack_commands(commands))
        except RedisError as error:
            raise self._lost(error) from None

    def receive(self, count: int) -> list[Reply]:
        """The next `count` answers.

        Raises:
            StoreLost: one did not come in time, or says that the server cannot serve.
        """
        replies: list[Reply] = []
        for _ in range(count):
            try:
                replies.append(self._connection.read_response())
            except ResponseError as error:
                replies.append(_trouble(error))
            except RedisError as error:
                raise self._lost(error) from None
        return replies

    def ask(self, *command: str | bytes | int) -> Reply:
        """One command and its answer; raises as `send` and `receive` do."""
        self.send((command,))
        return self.receive(1)[0]

    def wait_push(self, timeout_s: float) -> Reply | None:
        """A message that comes without having been asked for (after SUBSCRIBE); None: there was none in that time.

        Raises:
            StoreLost: the connection ended.
        """
        try:
            if not self._connection.can_read(timeout=timeout_s):
                return None
        except RedisError as error:
            raise self._lost(error) from None
        return self.receive(1)[0]

    def close(self) -> None:
        """Close it; again is allowed."""
        self._open = False
        self._connection.disconnect()

    def _connect(self) -> None:
        if self._address.tls:
            self._connection.context = _context(self._address)
        self._connection.connect()

    def _has_ended(self) -> bool:
        """Whether the server closed the connection while nothing was under way; it is closed then."""
        try:
            if not self._connection.can_read(timeout=0):
                return False
        except RedisError:
            pass
        self._connection.disconnect()
        return True

    def _lost(self, error: RedisError) -> StoreLost:
        self.close()
        return _lost(error)


class Nodes(Protocol):
    """The servers that hold the shards."""

    def open(self) -> None:
        """Find them, and connect to each.

        Raises:
            StoreLost: one of them cannot be reached or does not serve.
        """

    def open_any(self) -> Node:
        """Connect to only one of them, whichever there is. Raises StoreLost if there is none."""

    def check(self) -> None:
        """Raise StoreLost if it is known that another server has taken over. Waits for nothing."""

    def of_tag(self, tag: int) -> Node:
        """The server of a shard. Raises StoreLost if it cannot be reached."""

    def at(self, host: str, port: int) -> Node:
        """The server at this place, as a `Trouble` names it. Raises StoreLost if it cannot be reached."""

    def moved(self, tag: int, host: str, port: int) -> None:
        """A server said that this shard is elsewhere now."""

    def all(self) -> list[Node]:
        """Those that are connected."""

    def close(self) -> None:
        """Close all connections."""


class _OneServer(Nodes):
    """A single server, which holds all shards: at a fixed place, or where Sentinels say the master is."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._node: Node | None = None
        self._watch = _Watch(address, timeout_s) if address.kind == "sentinel" else None

    def open(self) -> None:
        self.close()
        host, port = self._address.hosts[0] if self._address.hosts else ("", 0)
        if self._address.kind == "sentinel":
            host, port = _ask_sentinels(self._address, self._timeout_s)
        node = Node(self._address, host, port, self._timeout_s)
        self._node = node
        try:
            node.connect()
            if self._address.kind == "sentinel":
                _verify_master(node)
        except StoreLost:
            self.close()
            raise

    def open_any(self) -> Node:
        self.open()
        return self.of_tag(0)

    def check(self) -> None:
        if self._watch is None or self._node is None:
            return
        master = self._watch.master()
        if master is not None and master != (self._node.host, self._node.port):
            raise StoreLost("the Sentinels have made another server the master")

    def of_tag(self, tag: int) -> Node:  # noqa: ARG002 # one server holds all shards
        if self._node is None:
            raise StoreLost("not connected")
        return self._node

    def at(self, host: str, port: int) -> Node:  # noqa: ARG002 # nobody but a cluster names places
        raise StoreLost("this is a node of a cluster: write redis+cluster://")

    def moved(self, tag: int, host: str, port: int) -> None:  # noqa: ARG002 # likewise
        raise StoreLost("this is a node of a cluster: write redis+cluster://")

    def all(self) -> list[Node]:
        return [] if self._node is None else [self._node]

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        if self._node is not None:
            self._node.close()
            self._node = None


class _Watch:
    """Asks a Sentinel now and then who is the master, and never waits for the answer.

    A master that was deposed goes on taking writes until a Sentinel tells it, up to 10 s later: who stayed with it
    would count by itself, and what it counts will be thrown away.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = min(timeout_s, _WATCH_TIMEOUT_S)
        self._next = 0
        """Of the Sentinels, the one to be asked if this one does not answer."""
        self._node: Node | None = None
        self._ask_at_s = 0.0
        self._waiting = False

    def master(self) -> tuple[str, int] | None:
        """What a Sentinel has said since this was called last; None: nothing. Asks again when it is time."""
        now_s = time.monotonic()
        try:
            named = self._read(now_s)
            if not self._waiting and now_s >= self._ask_at_s:
                self._ask_at_s = now_s + _WATCH_EVERY_S
                self._ask()
        except StoreLost:  # that Sentinel; the next one may know
            self.close()
            self._ask_at_s = now_s + _WATCH_AGAIN_S
            return None
        return named

    def _read(self, now_s: float) -> tuple[str, int] | None:
        if not self._waiting or self._node is None:
            return None
        answer = self._node.wait_push(0)
        if answer is None:
            if now_s - self._ask_at_s > _WATCH_AGAIN_S:
                raise StoreLost("no answer in time")
            return None
        self._waiting = False
        return _master_of(answer)

    def _ask(self) -> None:
        if self._node is None:
            place = self._address.hosts[self._next % len(self._address.hosts)]
            self._next += 1
            self._node = _sentinel(self._address, *place, self._timeout_s)
            self._node.connect()
        self._node.send([_who_is_master(self._address)])
        self._waiting = True

    def close(self) -> None:
        self._waiting = False
        if self._node is not None:
            self._node.close()
            self._node = None


class _Cluster(Nodes):
    """The masters of a Redis Cluster, as far as they hold one of our shards.

    The map is read when it is opened and when a server says that a shard has moved.
    """

    def __init__(self, address: Address, timeout_s: float, hash_tag: Callable[[int], str]) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._slots = [key_slot(hash_tag(tag).encode()) for tag in range(TAGS)]
        self._seeds = list(address.hosts)
        self._nodes: dict[tuple[str, int], Node] = {}
        self._places: list[tuple[str, int]] = []

    def open(self) -> None:
        self.close()
        try:
            self._read_map()
            for place in dict.fromkeys(self._places):
                self.at(*place)
        except StoreLost:
            self.close()
            raise

    def open_any(self) -> Node:
        self.close()
        self._read_map()
        return next(iter(self._nodes.values()))

    def of_tag(self, tag: int) -> Node:
        if not self._places:
            raise StoreLost("not connected")
        return self.at(*self._places[tag])

    def at(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            node = Node(self._address, host, port, self._timeout_s)
            node.connect()
            self._nodes[host, port] = node
        return node

    def check(self) -> None:
        pass

    def moved(self, tag: int, host: str, port: int) -> None:
        # The hint alone would do for this shard; others have probably moved with it.
        if self._places[tag] != (host, port):
            self._places[tag] = (host, port)
            self._read_map_at(self.at(host, port))

    def all(self) -> list[Node]:
        return list(self._nodes.values())

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()
        self._nodes.clear()
        self._places = []

    def _read_map(self) -> None:
        """From the first node that answers: those of the setting, then those of the last map."""
        reasons = []
        for seed in self._seeds:
            try:
                self._read_map_at(self.at(*seed))
            except StoreLost as lost:
                reasons.append(f"{seed[0]}:{seed[1]}: {lost}")
                if (node := self._nodes.pop(seed, None)) is not None:
                    node.close()
            else:
                return
        raise StoreLost("; ".join(reasons[:3]))

    def _read_map_at(self, node: Node) -> None:
        reply = node.ask("CLUSTER", "SLOTS")
        if isinstance(reply, Trouble):
            raise StoreLost(reply.text)
        ranges = [(first, last, _place(master, node)) for first, last, master, *_ in reply]
        places = []
        for slot in self._slots:
            place = next((place for first, last, place in ranges if first <= slot <= last), None)
            if place is None:
                raise StoreLost(f"no node of the cluster has slot {slot}")
            places.append(place)
        self._places = places
        self._seeds = [*self._address.hosts, *(set(places) - set(self._address.hosts))]


def make_nodes(address: Address, timeout_s: float, hash_tag: Callable[[int], str]) -> Nodes:
    """The servers behind an address. `hash_tag` gives the part of a shard's keys that chooses their slot."""
    if address.kind == "cluster":
        return _Cluster(address, timeout_s, hash_tag)
    return _OneServer(address, timeout_s)


def _place(master: list[Any], asked: Node) -> tuple[str, int]:
    """A node's place in the map. A node that does not know its own name leaves it out: it is the one that was asked."""
    host = master[0].decode() if master[0] else ""
    return (asked.host if host in ("", "?") else host), int(master[1])


def _verify_master(node: Node) -> None:
    """What Sentinels know may be old: the server itself says whether it is the master. Raises StoreLost."""
    reply = node.ask("ROLE")
    if not isinstance(reply, list) or reply[0] != b"master":
        raise StoreLost("the server that the Sentinels name is not the master")


def _ask_sentinels(address: Address, timeout_s: float) -> tuple[str, int]:
    """Where the first Sentinel that knows says the master is (https://redis.io/docs/reference/sentinel-clients)."""
    reasons = []
    for host, port in address.hosts:
        node = _sentinel(address, host, port, timeout_s)
        try:
            node.connect()
            master = _master_of(node.ask(*_who_is_master(address)))
        except StoreLost as lost:
            reasons.append(f"{host}:{port}: {lost}")
        else:
            if master is not None:
                return master
        finally:
            node.close()
    raise StoreLost("; ".join([f"no Sentinel knows a master `{address.master}`", *reasons[:3]]))


def _sentinel(address: Address, host: str, port: int, timeout_s: float) -> Node:
    own = msgspec.structs.replace(
        address, user=address.sentinel_user, password=address.sentinel_password, db=0
    )
    return Node(own, host, port, timeout_s)


def _who_is_master(address: Address) -> tuple[str, str, str]:
    return "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.master


def _master_of(reply: Reply) -> tuple[str, int] | None:
    return (reply[0].decode(), int(reply[1])) if isinstance(reply, list) else None


class _Secured(redis.SSLConnection):
    """TLS as the ambassador speaks it. By itself redis-py has OpenSSL read the files by their paths at each connect,
    and trusts the system's authorities beside those that are named.
    """

    context: ssl.SSLContext

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        return self.context.wrap_socket(sock, server_hostname=self.host)


def _context(address: Address) -> ssl.SSLContext:
    """Made of the files as they are now. Raises StoreLost."""
    try:
        context = trusting(address.ca)
        if address.cert is not None and address.key is not None:
            load_chain(context, read_file("cert", address.cert), read_file("key", address.key))
    except FileError as error:
        raise StoreLost(f"`{error.label}` '{error.path}' {error.problem}") from None
    return context


def _make_connection(address: Address, host: str, port: int, timeout_s: float) -> Any:
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # our replies are flat, and any proxy speaks it
        "username": address.user,
        "password": address.password,
        "db": address.db,
    }
    make: Any = _Secured if address.tls else redis.Connection
    if address.path is None:
        options |= {"host": host, "port": port, "socket_keepalive": True}
    else:
        make = redis.UnixDomainSocketConnection
        options["path"] = address.path
    return make(**options)


def _trouble(error: ResponseError) -> Trouble:
    """What an error means that a server answered.

    Raises:
        StoreLost: the server cannot serve.
    """
    if isinstance(error, NoScriptError):
        return Trouble(Kind.NO_SCRIPT)
    if isinstance(error, AskError):
        kind = Kind.MOVED if isinstance(error, MovedError) else Kind.ASK
        return Trouble(kind, host=error.host, port=error.port)
    if isinstance(error, TryAgainError):
        return Trouble(Kind.AGAIN)
    code = next((code for kind, code in _CODE_OF.items() if isinstance(error, kind)), None)
    text = f"{code} {error}" if code else str(error)
    codes = _CODE.findall(text)
    if not _CANNOT_SERVE.isdisjoint(codes):
        raise NotAllowed(text[:160]) if "NOPERM" in codes else CannotServe(text[:160])
    if _DENIED_IN_SCRIPT.search(text):
        return Trouble(Kind.DENIED, text[:160])
    return Trouble(Kind.FAILED, text[:160])


def _lost(error: RedisError) -> StoreLost:
    if isinstance(error, BusyLoadingError):
        return StoreLost("LOADING: the server reads its data")
    if isinstance(error, AuthenticationError):
        return StoreLost("the server refused the user or password")
    if isinstance(error, NoAnswerError):
        return StoreLost("no answer in time")
    return StoreLost(str(error)[:160])
