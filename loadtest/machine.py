"""What the figures were measured on: the machine, the kernel, the versions."""

import datetime as dt
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from loadtest.job import Proxy

_TIMEOUT_S = 10.0


def describe(proxies: Sequence[tuple[Proxy, str]], *, now: dt.datetime) -> dict[str, object]:
    """Processor, cores, memory, kernel, Python, commit and the proxies' versions, ready for JSON."""
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _first_line(["git", "rev-parse", "--short", "HEAD"]),
        "date": now.isoformat(timespec="seconds"),
        "versions": {proxy.name: _first_line([binary, *proxy.version]) for proxy, binary in proxies},
    }


def cpu_model(cpuinfo: str) -> str:
    """The processor's name in /proc/cpuinfo; the architecture where it has none."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _first_line(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if done.returncode == 0 and lines else None
