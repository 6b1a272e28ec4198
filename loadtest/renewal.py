"""A certificate is replaced under load, as Kubernetes does it: does any request fail, and when is the new one shown?

500 requests/s go through two workers, half of them over connections that stay, half over a new one each. Meanwhile
another client connects all the time and looks at the certificate that it gets. What counts is the last moment after a
replacement at which a new connection got the old one.
"""

import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest import identity, origin, processes
from loadtest.losses import CLIENTS, RATE, Load, Request
from loadtest.shared.findings import Findings
from loadtest.volume import Volume
from loadtest.waits import PATIENCE_S

TIMES = 5
EVERY_S = 3.0
WITHIN_S = 2.0
"""The target."""
_LOOK_EVERY_S = 0.005

CONFIG = """\
version: 1
listeners: [{{address: "127.0.0.1:{port}", tls: {{cert: {volume}/tls.crt, key: {volume}/tls.key}}}}]
admin: 127.0.0.1:{admin}
control: unix:{directory}/control.sock
workers: 2
telemetry: {{access_log: off}}
drain: {{delay: 0s, timeout: 2s}}
routes:
  - {{name: main, to: "http://127.0.0.1:{origin}"}}
"""


def renew(volume: Volume, directory: Path) -> bytes:
    """Have another certificate in the volume, which is returned (DER). It is made in `directory`. Raises StartError."""
    made = identity.make(directory)
    volume.put_pair(made.cert, made.key)
    return ssl.PEM_cert_to_DER_cert(made.cert.read_text())


class Looker:
    """Connects all the time: when (seconds of time.monotonic), and which certificate that gave."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.seen: list[tuple[float, bytes]] = []
        self._port = port
        self._context = context
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            began = time.monotonic()
            with (
                socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S) as plain,
                self._context.wrap_socket(plain) as sock,
            ):
                self.seen.append((began, sock.getpeercert(binary_form=True) or b""))

    def stop(self) -> list[tuple[float, bytes]]:
        """No more; what there was."""
        self._over.set()
        self._thread.join()
        return self.seen


def new_findings() -> Findings:
    """For `run`."""
    return Findings("renewal", ("replacement", "old one last seen after"))


def run(directory: Path, tell: Callable[[str], None]) -> Findings:
    """Measure. Raises StartError."""
    tell(f"{TIMES} replacements, one each {EVERY_S:g} s")
    volume = Volume(directory / "tls")
    first = renew(volume, directory)
    port, admin = processes.free_ports(2)
    with origin.serving(directory / "origin", None) as origin_port:
        config = directory / "ambassador.yaml"
        config.write_text(
            CONFIG.format(
                port=port, admin=admin, directory=directory, volume=volume.directory, origin=origin_port
            )
        )
        command = [sys.executable, "-m", "ambassador", "run", "-c", str(config)]
        with processes.running("ambassador", command, port=port, core=None, directory=directory, tls=True):
            context = processes.unverified()
            load = Load(port, tls=context, fresh=CLIENTS // 2)
            looker = Looker(port, context)
            shown, replaced = [first], [time.monotonic()]
            for _ in range(TIMES):
                time.sleep(EVERY_S)
                shown.append(renew(volume, directory))
                replaced.append(time.monotonic())
            time.sleep(EVERY_S)
            requests, seen = load.stop(), looker.stop()
    found = new_findings()
    judge(requests, delays(seen, shown, replaced), found)
    return found


def delays(
    seen: Sequence[tuple[float, bytes]], shown: Sequence[bytes], replaced: Sequence[float]
) -> list[float]:
    """For each replacement, how long after it (seconds) the certificate before was last seen; 0: not any more.

    `shown` are the certificates in order, each there from the moment in `replaced` on.
    """
    return [
        max((at - moment for at, certificate in seen if certificate == before and at >= moment), default=0.0)
        for before, moment in zip(shown, replaced[1:], strict=False)
    ]


def judge(requests: Sequence[Request], late_s: Sequence[float], found: Findings) -> None:
    """Add what was seen to the findings."""
    for number, each in enumerate(late_s, 1):
        found.add({"replacement": number, "late_s": each}, str(number), f"{each * 1000:.0f} ms")
    failed = sum(each.failed for each in requests)
    found.check(f"requests that failed, of {len(requests):,} at {RATE:g}/s", failed, 0)
    found.check("old certificate last seen after a replacement", max(late_s), WITHIN_S, " s")
