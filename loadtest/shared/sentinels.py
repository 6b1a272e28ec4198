"""A Redis with a replica, and a Sentinel that makes the one the master when the other is gone."""

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from loadtest import processes
from loadtest.shared.redis_server import Redis, program

NAME = "fleet"
DOWN_AFTER_MS = 500
"""So long a master must be silent. With an election among one it has a successor about 1 s after its end."""
_POLL_S = 0.01
_PATIENCE_S = 15.0


class Sentinels:
    """`master` is the one that was started as such, `heir` its replica."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        at_once = ("--repl-diskless-sync-delay", "0")
        self.master = Redis(directory / "master", *at_once)
        self.heir = Redis(directory / "heir", "--replicaof", "127.0.0.1", str(self.master.port), *at_once)
        for server in (self.master, self.heir):
            stack.callback(server.kill)
            server.start()
        [self.port] = processes.free_ports(1)
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self.master.port} 1\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {NAME} 2000\n"
        )
        log = stack.enter_context((directory / "sentinel.log").open("ab"))
        process = subprocess.Popen(
            [program(), str(config), "--sentinel"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.kill)
        self._client: Any = redis.Redis(port=self.port, socket_timeout=5.0)
        _wait(self._knows_heir, "the Sentinel knows the replica")

    @property
    def url(self) -> str:
        """For a config."""
        return f"redis+sentinel://127.0.0.1:{self.port}/{NAME}"

    def _knows_heir(self) -> bool:
        follows = self.heir.client.info("replication")["master_link_status"] == "up"
        return follows and bool(self._client.sentinel_slaves(NAME))

    def ask_for_failover(self) -> None:
        """As an operator does who is about to restart the master."""
        _wait(lambda: bool(self._client.execute_command("SENTINEL", "FAILOVER", NAME)), "the Sentinel obeys")

    def wait_for_heir(self) -> float:
        """Wait until clients are told of the new master, and it is one; then."""
        _wait(self._has_heir, "there is a new master")
        return time.monotonic()

    def _has_heir(self) -> bool:
        _, port = self._client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return int(port) == self.heir.port and self.heir.client.role()[0] == b"master"


def _wait(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(redis.RedisError):
            if holds():
                return
        if time.monotonic() > deadline:
            raise processes.StartError(f"waited in vain until {what}")
        time.sleep(_POLL_S)
