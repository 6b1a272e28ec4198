"""What this host and its kernel give: the platform check, CPUs, descriptors, the fate of orphans."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final

SUPERVISOR_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
"""Signals that mean the supervisor although they may reach its whole process group: workers ignore them."""

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_CGROUP = Path("/sys/fs/cgroup")


class Unsupported(Exception):
    """The platform cannot run the service."""


def check_platform(platform: str = sys.platform) -> None:
    """Raise `Unsupported` unless this is Linux: epoll, SO_REUSEPORT groups and memfd are at the heart of it."""
    if platform != "linux":
        raise Unsupported(f"the service runs on Linux only, and this is {platform}")


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """The CPUs that this process may use: by its affinity, and by its cgroup's quota rounded up; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup_cpus(cgroup)
    return allowed if quota is None else max(1, min(allowed, quota))


def cgroup_cpus(cgroup: Path) -> int | None:
    """The quota of cgroup v2 (`cpu.max`) or v1, in whole CPUs, rounded up; None without one."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1") or not int(period):
        return None
    return max(1, -(-int(quota) // int(period)))


def die_with_parent(parent: int, with_signal: int = signal.SIGTERM) -> None:
    """Have the kernel send `with_signal` to this process when its parent, process `parent`, ends.

    The kernel means the *thread* that started us, so a parent must start its children from its main thread. If the
    parent has gone already, the signal comes at once.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), with_signal)


def keep_private() -> None:
    """Keep what is in this process' memory in it: it leaves no core dump, and no other process of the same user may
    look into it (`ptrace`, `/proc/PID/mem` and `environ`). Holds until the process ends; root and CAP_SYS_PTRACE may
    look all the same.

    The limit alone would not do: a `core_pattern` that is a program (systemd-coredump, apport) gets its dump whatever
    the limit says, core(5).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def is_private() -> bool:
    """Whether this process keeps to itself, as `keep_private` has it."""
    return bool(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)


def resident_bytes(pid: int) -> int | None:
    """The memory that a process holds, or None if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def stop_listening(sock: socket.socket) -> None:
    """Have the kernel refuse what comes to a listening socket from now on, whoever else has it open; it stays bound.

    What waits in its queue is reset (TCP), or can still be accepted (unix). One that does not listen stays as it is.
    """
    # Linux ends the listening itself here; closing would only end it with the last of all descriptors.
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RD)
