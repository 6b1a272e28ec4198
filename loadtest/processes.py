"""Starting processes pinned to a core, waiting until they answer, and ending them with everything they started.

Every process leads a session of its own, so that Ctrl-C reaches this program only and it decides the order of ends.
`running` is the one place where processes are started for longer than a call; whatever happens in its body, the tree
is gone afterwards: TERM, a short wait, KILL.
"""

import contextlib
import http.client
import os
import resource
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest import procfs

START_TIMEOUT_S = 20.0  # Envoy needs half a second; a Python start on a busy machine a few
STOP_TIMEOUT_S = 3.0
POLL_S = 0.02
LOG_TAIL_LINES = 15


class StartError(Exception):
    """A process ended, or did not answer, before it could be measured; the text holds the end of its output."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process that was started here: `pid` is the root of its tree, `port` where it listens on 127.0.0.1."""

    name: str
    pid: int
    port: int


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, for this process and all it starts; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started in the body run on one core (None: anywhere); they inherit it from this thread."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def may_prioritise() -> bool:
    """Whether `prioritised` works here."""
    try:
        with prioritised():
            return True
    except StartError:
        return False


@contextlib.contextmanager
def prioritised() -> Iterator[None]:
    """Processes started in the body come before all others on their core. Raises StartError where that is forbidden."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        raise StartError("real-time priorities are forbidden here: run it as root") from None
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    core: int | None,
    directory: Path,
    env: Mapping[str, str] | None = None,
    ready_path: str | None = "/",
    tls: bool = False,
) -> Iterator[Running]:
    """Start a server, wait until it answers 200 on `ready_path`, and end its whole tree after the body.

    `ready_path` None: it does not speak HTTP; it is ready when it takes connections. `tls`: it is asked by TLS.

    Its output goes to `directory`/NAME.log; it keeps this program's working directory. Raises StartError.
    """
    log = directory / f"{name}.log"
    with log.open("ab") as output, pinned(core):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    try:
        _wait_until_ready(process, name, port, ready_path, log, tls=tls)
        yield Running(name, process.pid, port)
    finally:
        _end(process)


def unverified() -> ssl.SSLContext:
    """Of a client that takes whatever certificate it is shown."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def answers(port: int, path: str, *, tls: bool = False) -> bool:
    """Whether a GET is answered with 200 within a second; whose certificate it is does not matter."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    if tls:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=1.0, context=unverified())
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def accepts(port: int) -> bool:
    """Whether a connection is taken within a second."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _wait_until_ready(
    process: subprocess.Popen[bytes], name: str, port: int, path: str | None, log: Path, *, tls: bool
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (accepts(port) if path is None else answers(port, path, tls=tls)):
        if process.poll() is not None:
            raise StartError(f"{name} ended with status {process.returncode}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            wanted = "take connections" if path is None else f"answer 200 on {path}"
            raise StartError(f"{name} did not {wanted} in {START_TIMEOUT_S:.0f} s:\n{_tail(log)}")
        time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    tree = [stat.pid for stat in procfs.read_tree(process.pid)]
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    left = {stat.pid for stat in procfs.read_tree(process.pid)} | {
        pid for pid in tree if _same_tree(pid, tree)
    }
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _same_tree(pid: int, tree: Sequence[int]) -> bool:
    try:
        stat = procfs.parse_stat((procfs.PROC / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.session in tree or stat.parent in tree


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (no output)"
