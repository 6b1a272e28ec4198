"""The generator of TLS connections: each carries one request, and begins with a full handshake or resumes a session.

wrk resumes wherever it can and does not tell, so this one is used, on the generator's core like wrk. A connection costs
it more than it costs any of the proxies, so that the rate is the generator's: what compares is the CPU time.
Run as `python -m loadtest.handshakes PORT PATH SECONDS CONNECTIONS CA MODE`; prints one line of JSON.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtest import processes, wrk
from loadtest.identity import NAME, Identity
from loadtest.scenarios import Scenario
from loadtest.shared.windows import percentile

_TIMEOUT_S = 5.0
_READ_BYTES = 65536


@dataclass(slots=True)
class Counted:
    """What one thread saw: seconds from connect to the answer's end, errors, and handshakes that were resumed."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    resumed: int = 0


def run(
    scenario: Scenario, *, port: int, duration_s: int, core: int | None, identity: Identity
) -> wrk.Result:
    """Load a proxy for `duration_s` seconds. Raises WrkError, also when handshakes were not of the kind asked for."""
    assert scenario.handshakes is not None
    argv = [sys.executable, "-m", "loadtest.handshakes", str(port), scenario.path, str(duration_s)]
    argv += [str(scenario.connections), str(identity.cert), scenario.handshakes]
    with processes.pinned(core):
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=duration_s + wrk.GRACE_S,
            check=False,
            env={**os.environ, **identity.client_env},
        )
    if done.returncode != 0:
        raise wrk.WrkError(f"the generator ended with status {done.returncode}: {done.stderr}")
    return result(json.loads(done.stdout), scenario)


def result(told: dict[str, float], scenario: Scenario) -> wrk.Result:
    """What the generator printed. Raises WrkError when handshakes were not of the kind asked for."""
    requests, resumed = int(told["requests"]), int(told["resumed"])
    # The first connection of each thread has nothing to resume.
    wanted = 0 if scenario.handshakes == "full" else requests - scenario.connections
    if resumed < wanted or (resumed and not wanted):
        raise wrk.WrkError(f"{resumed} of {requests} handshakes were resumed, not {wanted}")
    return wrk.Result(
        requests=requests,
        duration_s=told["duration_s"],
        p50_s=told["p50_s"],
        p99_s=told["p99_s"],
        socket_errors=int(told["failed"]),
        bad_status=0,
    )


def _connections(counted: Counted, port: int, path: str, until: float, ca: str, *, resume: bool) -> None:
    context = ssl.create_default_context(cafile=ca)
    request = f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()
    session = None
    while time.monotonic() < until:
        began = time.perf_counter()
        try:
            with (
                _connected(port) as plain,
                context.wrap_socket(plain, server_hostname=NAME, session=session) as sock,
            ):
                sock.sendall(request)
                answer = b""
                while data := sock.recv(_READ_BYTES):
                    answer += data
                counted.resumed += bool(sock.session_reused)
                session = sock.session if resume else None
        except OSError:
            counted.failed += 1
            continue
        if answer.startswith(b"HTTP/1.1 200 "):
            counted.seconds.append(time.perf_counter() - began)
        else:
            counted.failed += 1


def _connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
    # Else the request waits until the end of the handshake is acknowledged, which Envoy does 40 ms later.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def main(arguments: Sequence[str]) -> None:
    """The process: load, and tell."""
    port, path, duration_s, connections, ca, mode = arguments
    counts = [Counted() for _ in range(int(connections))]
    began = time.monotonic()
    until = began + float(duration_s)
    threads = [
        threading.Thread(
            target=_connections,
            args=(counted, int(port), path, until, ca),
            kwargs={"resume": mode == "resumed"},
        )
        for counted in counts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = [each for counted in counts for each in counted.seconds]
    told = {
        "requests": len(seconds),
        "duration_s": time.monotonic() - began,
        "p50_s": percentile(seconds, 0.5) if seconds else 0.0,
        "p99_s": percentile(seconds, 0.99) if seconds else 0.0,
        "failed": sum(counted.failed for counted in counts),
        "resumed": sum(counted.resumed for counted in counts),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
