"""The Redis of a scenario: what is done to it, and what it has counted."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import redis

from loadtest import processes, store

_POLL_S = 0.01


def program() -> str:
    """The server's. Raises StartError."""
    binary = store.find()
    if binary is None:
        raise processes.StartError(f"shared state needs Redis or Valkey: {store.INSTALL}")
    return binary


class Redis:
    """A server whose place stays when it is killed. In memory only."""

    def __init__(self, directory: Path, *options: str) -> None:
        binary = program()
        directory.mkdir(exist_ok=True)
        [self.port] = processes.free_ports(1)
        self._log = directory / "redis.log"
        self._command = [
            binary, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no",
            "--dir", str(directory), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, socket_timeout=5.0)

    def start(self) -> float:
        """Returns when it answers: then."""
        first = processes.prioritised() if processes.may_prioritise() else contextlib.nullcontext()
        with self._log.open("ab") as log, first:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 10.0
        while True:
            with contextlib.suppress(redis.RedisError):
                self.client.ping()
                return time.monotonic()
            if time.monotonic() > deadline:
                raise processes.StartError(f"Redis did not start:\n{self._log.read_text()}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """As a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """It stops, and its connections stay."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> float:
        self._signal(signal.SIGCONT)
        return time.monotonic()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def calls(self, *names: str) -> int:
        """How often these commands were carried out so far, inside of scripts too."""
        stats: dict[str, Any] = self.client.info("commandstats")
        return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in names)

    @property
    def scripts(self) -> int:
        """Scripts that were called: each for one batch of operations of one kind and shard."""
        return self.calls("evalsha", "eval")

    @property
    def leases(self) -> int:
        """Key operations of limits: each writes its bucket, with SET. (So do births of data, 64 in all.)"""
        return self.calls("set")

    def last_client(self) -> int:
        """The number of the connection that was made last: this one."""
        return int(self.client.client_id())

    def speakers(self, after: int) -> int:
        """Connections made after that one that have called a script last."""
        clients: list[dict[str, str]] = self.client.client_list()
        return sum(int(each["id"]) > after and each["cmd"].startswith("eval") for each in clients)
