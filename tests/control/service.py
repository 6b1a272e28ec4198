"""A supervisor as a process of its own, for tests: started, asked and ended."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0


class Service:
    """`command` prints `listening on URL` first; its control socket is `control`."""

    def __init__(self, command: Sequence[str], control: Path, **environ: str) -> None:
        self.control = control
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths} | environ,
            cwd=ROOT,
            bufsize=0,  # what is read line by line here must not hide the rest from `communicate`
        )

    def wait_until_up(self) -> Service:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        found = re.match(r"listening on http://(.*):(\d+)\n", line)
        if found is None:
            self.process.kill()
            raise AssertionError(f"{line}{self.process.communicate()[1].decode()}")
        self.host, self.port = found[1], int(found[2])
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, timeout_s: float = PATIENCE_S) -> tuple[int, str]:
        """(exit status, what it wrote to standard error) once it ends by itself."""
        _, errors = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, errors.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        connection.connect()
        return connection

    def get(self, path: str = "/") -> Any:
        connection = self.connect()
        try:
            return ask(connection, path)
        finally:
            connection.close()

    def admin(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The answer of the admin API, over the control socket."""
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(PATIENCE_S)
            connection.sock.connect(str(self.control))
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            raw = response.read()
            is_json = "json" in (response.getheader("content-type") or "")
            return response.status, json.loads(raw) if is_json else raw.decode()
        finally:
            connection.close()

    def status(self) -> Any:
        return self.admin("GET", "/api/status")[1]

    def pids(self) -> dict[int, int]:
        """The process of each slot that is ready."""
        return {worker["slot"]: worker["pid"] for worker in self.status()["workers"] if worker["ready"]}

    def others(self) -> list[int]:
        """The processes that it has besides its workers."""
        workers = {worker["pid"] for worker in self.status()["workers"]}
        return [pid for pid in children(self.process.pid) if pid not in workers]

    def wait_for_workers(self, count: int) -> dict[int, int]:
        until(lambda: len(self.pids()) == count)
        return self.pids()


def children(pid: int) -> list[int]:
    """The processes that it started and that have not been buried."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ask(connection: http.client.HTTPConnection, path: str = "/") -> Any:
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait for other processes to do something."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def stop_process(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
