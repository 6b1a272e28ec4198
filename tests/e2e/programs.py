"""Starting real programs for the end-to-end tests, and seeing that nothing of them is left.

Each is started in a session of its own, so that at the end its whole process group can be looked at. Waiting is polling
with a deadline; a deadline is generous, because it is only reached when something is broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

DEADLINE_S = 20.0
T = TypeVar("T")


def program(name: str) -> str | None:
    """Where a program is, also in the administrator's directories; None where it is not installed."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips where a program that the test drives is missing; `.ci/run` installs them."""
    missing = [name for name in names if program(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing) or 'nothing'}")


def wait_until(look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """What `look` returns, as soon as it is neither None nor False."""
    until = time.monotonic() + deadline_s
    while True:
        seen = look()
        if seen is not None and seen is not False:
            return seen
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not happen within {deadline_s} s")
        time.sleep(0.02)


@dataclass
class Running:
    """A started program: its process, its output in files."""

    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def output(self) -> str:
        """Both streams, for the report of a failure."""
        return f"--- stdout\n{self.stdout.read_text()}\n--- stderr\n{self.stderr.read_text()}"

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it, wait for its end, kill what is left of its group. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill_group()
            self.process.wait()
            raise AssertionError(f"it did not end within {DEADLINE_S} s\n{self.output()}") from None
        try:
            wait_until(lambda: not self.group_lives(), "the end of the process group", 2.0)
        except TimeoutError:
            self.kill_group()
            raise AssertionError(f"processes were left behind\n{self.output()}") from None
        return status

    def group_lives(self) -> bool:
        """Whether any process of its group is left."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill_group(self) -> None:
        """The end of all of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def start(command: Sequence[str], directory: Path, name: str) -> Running:
    """Start a program in a session of its own, its output going to files in `directory`."""
    stdout, stderr = directory / f"{name}.out", directory / f"{name}.err"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=directory, start_new_session=True
        )
    return Running(process, stdout, stderr)


@dataclass
class Ambassador:
    """A running `ambassador run -c FILE`."""

    running: Running
    config: Path
    url: str
    """Of the first listener."""
    admin: str
    control: str
    urls: list[str]
    """Of all listeners."""
    checks_at_end: list[Callable[[], None]] = field(default_factory=list)

    def admin_get(self, path: str) -> bytes:
        """The body of a GET to the admin API."""
        with urllib.request.urlopen(self.admin + path, timeout=DEADLINE_S) as answer:
            body: bytes = answer.read()
        return body

    def samples(self, beginning: str) -> list[str]:
        """The lines of its metrics that begin so."""
        lines = self.admin_get("/metrics").decode().splitlines()
        return [line for line in lines if line.startswith(beginning)]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ambassador ARGUMENTS` against this service's control socket."""
        return subprocess.run(
            [*AMBASSADOR, *arguments, "--control", self.control],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )

    def log(self) -> list[dict[str, object]]:
        """The access log so far (whole lines only)."""
        lines = self.running.stdout.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines[1:] if line.endswith("\n")]


AMBASSADOR = (sys.executable, "-m", "ambassador")

_HEAD = """\
version: 1
listen: {listen}
admin: 127.0.0.1:0
control: unix:{directory}/control.sock
workers: {workers}
drain: {{delay: 0s, timeout: 10s}}
"""


def config_text(body: str, directory: Path, workers: int, listen: str = "127.0.0.1:0") -> str:
    """A whole config: `body` (routes, upstreams, …) after what every test's config begins with."""
    return _HEAD.format(directory=directory, workers=workers, listen=listen) + textwrap.dedent(body)


@contextlib.contextmanager
def ambassador(body: str, *, workers: int = 1, listen: str = "127.0.0.1:0") -> Iterator[Ambassador]:
    """A running ambassador; `listen` is the key's value.

    At the end: exit status 0, no process, no socket and no stack trace left.
    """
    # Not tmp_path: the path of a Unix socket may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="amb-") as name:
        directory = Path(name)
        config = directory / "ambassador.yaml"
        config.write_text(config_text(body, directory, workers, listen))
        running = start([*AMBASSADOR, "run", "-c", str(config), "--json"], directory, "ambassador")
        try:
            said = wait_until(lambda: announcement(running), "the announcement")
            service = Ambassador(
                running,
                config,
                url=str(said["listeners"][0]).rstrip("/"),
                admin=str(said["admin"]).rstrip("/"),
                control=f"unix:{directory}/control.sock",
                urls=[url.rstrip("/") for url in said["listeners"]],
            )
            wait_until(lambda: is_ready(service), "readiness")
            yield service
        except BaseException as error:
            running.kill_group()
            running.process.wait()
            error.add_note(running.output())
            raise
        status = running.end()
        assert status == 0, running.output()
        assert not (directory / "control.sock").exists()
        assert "Traceback" not in running.stderr.read_text(), running.output()
        for check in service.checks_at_end:
            check()


def announcement(running: Running) -> dict[str, list[str]] | None:
    """What the service says once it serves: the first line of its output. None until then."""
    if running.process.poll() is not None:
        raise AssertionError(f"it ended at once with status {running.process.returncode}\n{running.output()}")
    first, newline, _ = running.stdout.read_text().partition("\n")
    said: dict[str, list[str]] | None = json.loads(first) if newline else None
    return said


def is_ready(service: Ambassador) -> bool:
    """Whether `/readyz` says 200."""
    try:
        service.admin_get("/readyz")
    except OSError:
        return False
    return True
