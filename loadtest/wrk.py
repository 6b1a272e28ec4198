"""The generator: wrk, one thread, a closed loop (the next request of a connection waits for the answer to the last).

A closed loop measures the cost of a request at saturation well and latency badly: when the proxy stalls, fewer
requests are sent, so the stall weighs little in the percentiles. Compare latencies only between proxies here.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtest import processes
from loadtest.scenarios import Scenario

GRACE_S = 15.0  # wrk waits for nothing at its end, but starts slowly on a busy core

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PERCENTILE = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m|h)\s*$", re.MULTILINE)
_REQUESTS = re.compile(r"^\s+(\d+) requests in ([\d.]+)(us|ms|s|m|h),", re.MULTILINE)
_SOCKET_ERRORS = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_BAD_STATUS = re.compile(r"Non-2xx or 3xx responses: (\d+)")


class WrkError(Exception):
    """wrk failed or printed something that is not its report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What wrk counted: answers, seconds, latency percentiles in seconds, and errors by kind."""

    requests: int
    duration_s: float
    p50_s: float
    p99_s: float
    socket_errors: int
    bad_status: int

    @property
    def errors(self) -> int:
        """Answers other than 2xx and 3xx, and failed, broken or timed out connections."""
        return self.socket_errors + self.bad_status


def parse(text: str) -> Result:
    """Read the report that `wrk --latency` prints. Raises WrkError when a part is missing."""
    requests = _REQUESTS.search(text)
    percentiles = {m[1]: float(m[2]) * _UNITS_S[m[3]] for m in _PERCENTILE.finditer(text)}
    if requests is None or set(percentiles) != {"50", "99"}:
        raise WrkError(f"not a report of wrk --latency:\n{text}")
    socket_errors = _SOCKET_ERRORS.search(text)
    bad_status = _BAD_STATUS.search(text)
    return Result(
        requests=int(requests[1]),
        duration_s=float(requests[2]) * _UNITS_S[requests[3]],
        p50_s=percentiles["50"],
        p99_s=percentiles["99"],
        socket_errors=sum(int(count) for count in socket_errors.groups()) if socket_errors else 0,
        bad_status=int(bad_status[1]) if bad_status else 0,
    )


def script(body_bytes: int) -> str:
    """A wrk script that sends a POST; without a `request` function wrk formats the request once."""
    return (
        'wrk.method = "POST"\n'
        f'wrk.body = string.rep("x", {body_bytes})\n'
        'wrk.headers["Content-Type"] = "application/octet-stream"\n'
    )


def command(scenario: Scenario, *, port: int, duration_s: int, directory: Path) -> list[str]:
    """The command line for a scenario; writes the script it needs into `directory`."""
    argv = [_binary(), "-t1", f"-c{scenario.connections}", f"-d{duration_s}s", "--latency", "--timeout", "5s"]
    if scenario.close:
        argv += ["-H", "Connection: close"]
    if scenario.body_bytes is not None:
        path = directory / f"{scenario.name}.lua"
        path.write_text(script(scenario.body_bytes))
        argv += ["-s", str(path)]
    scheme = "https" if scenario.tls else "http"
    return [*argv, f"{scheme}://127.0.0.1:{port}{scenario.path}"]


def run(
    scenario: Scenario,
    *,
    port: int,
    duration_s: int,
    core: int | None,
    directory: Path,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Load a proxy for `duration_s` seconds, with `env` added to the environment. Raises WrkError."""
    argv = command(scenario, port=port, duration_s=duration_s, directory=directory)
    with processes.pinned(core):
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                timeout=duration_s + GRACE_S,
                check=False,
                env={**os.environ, **(env or {})},
            )
        except subprocess.TimeoutExpired as error:
            raise WrkError(f"wrk did not end within {GRACE_S:.0f} s after its time") from error
    if done.returncode != 0:
        raise WrkError(f"wrk ended with status {done.returncode}: {done.stdout}{done.stderr}")
    return parse(done.stdout)


def _binary() -> str:
    path = shutil.which("wrk")
    if path is None:
        raise WrkError("wrk is not installed: apt-get install wrk")
    return path
