"""CPU time and memory of process trees, from /proc.

A tree is a process, its descendants, and every process of its session (a child whose parent died belongs to init
but keeps the session). The CPU time of children already reaped is counted at the parent that reaped them, so the sum
over a tree never goes back while the root lives. utime and stime come in ticks of 10 ms, but the kernel scales them
so that their sum is the exact run time: 5 s of a busy core are right to 0.2 %.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that matter here; times in clock ticks, reaped children apart."""

    pid: int
    comm: str
    parent: int
    session: int
    user: int
    system: int
    reaped_user: int
    reaped_system: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time in seconds."""

    user_s: float
    system_s: float

    @property
    def total_s(self) -> float:
        """User and system time together."""
        return self.user_s + self.system_s

    def since(self, earlier: "Cpu") -> "Cpu":
        """The time spent after `earlier` was read."""
        return Cpu(self.user_s - earlier.user_s, self.system_s - earlier.system_s)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process or a tree in KiB, without the kernel's (socket buffers are not in it).

    `rss_kib` counts shared pages in full, `pss_kib` divides them among the processes that share them.
    """

    rss_kib: int
    pss_kib: int


def parse_stat(text: str) -> Stat:
    """Read one /proc/PID/stat line (proc(5)); the command's name may hold blanks and brackets."""
    opening, closing = text.index("("), text.rindex(")")
    fields = text[closing + 2 :].split()
    return Stat(
        pid=int(text[:opening]),
        comm=text[opening + 1 : closing],
        parent=int(fields[1]),
        session=int(fields[3]),
        user=int(fields[11]),
        system=int(fields[12]),
        reaped_user=int(fields[13]),
        reaped_system=int(fields[14]),
    )


def parse_memory(text: str) -> Memory:
    """Read /proc/PID/smaps_rollup."""
    values = {name: rest for name, _, rest in (line.partition(":") for line in text.splitlines())}
    return Memory(rss_kib=int(values["Rss"].split()[0]), pss_kib=int(values["Pss"].split()[0]))


def parse_core_busy_ticks(text: str, core: int) -> int:
    """How long a core was busy since the start of the machine, from /proc/stat: user, nice, system, irq, softirq."""
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name == f"cpu{core}":
            fields = [int(field) for field in rest.split()]
            return sum(fields[:3]) + sum(fields[5:7])
    raise LookupError(f"no core {core} in /proc/stat")


def tree_of(root: int, stats: Iterable[Stat]) -> list[Stat]:
    """The processes of a tree: the root's descendants and its session's members, the root included."""
    by_pid = {stat.pid: stat for stat in stats}
    members = {pid for pid, stat in by_pid.items() if root in (pid, stat.session)}
    grown = True
    while grown:
        born = {pid for pid, stat in by_pid.items() if stat.parent in members} - members
        members |= born
        grown = bool(born)
    return [by_pid[pid] for pid in sorted(members)]


def total_cpu(tree: Iterable[Stat], *, ticks_per_s: int = TICKS_PER_S) -> Cpu:
    """The CPU time of a tree, reaped children included."""
    user = system = 0
    for stat in tree:
        user += stat.user + stat.reaped_user
        system += stat.system + stat.reaped_system
    return Cpu(user / ticks_per_s, system / ticks_per_s)


def busiest(before: Mapping[int, Stat], after: Mapping[int, Stat]) -> int:
    """The pid that used the most CPU time between two readings: the worker, whatever the proxy calls it."""

    def spent(pid: int) -> int:
        earlier = before.get(pid)
        ticks = after[pid].user + after[pid].system
        return ticks - (earlier.user + earlier.system if earlier else 0)

    return max(after, key=spent)


def read_tree(root: int) -> list[Stat]:
    """The tree of a running process, now."""
    return tree_of(root, _read_all())


def read_cpu(root: int) -> Cpu:
    """The CPU time of a running process' tree, since its start."""
    return total_cpu(read_tree(root))


def read_memory(pid: int) -> Memory:
    """The memory of one process. Raises PermissionError for one that holds secrets, as with TLS, but for root."""
    return parse_memory((PROC / str(pid) / "smaps_rollup").read_text())


def read_tree_memory(root: int) -> Memory:
    """The memory of a tree."""
    parts = [read_memory(stat.pid) for stat in read_tree(root)]
    return Memory(sum(part.rss_kib for part in parts), sum(part.pss_kib for part in parts))


def read_core_busy_s(core: int) -> float:
    """Seconds that a core has been busy, whoever used it."""
    return parse_core_busy_ticks((PROC / "stat").read_text(), core) / TICKS_PER_S


def parse_tcp(text: str) -> dict[int, tuple[int, int]]:
    """The sockets of /proc/net/tcp: their inodes, each with its own port and the peer's."""
    found = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        own, peer = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        found[int(fields[9])] = own, peer
    return found


def connections(pid: int) -> list[tuple[int, int]]:
    """The IPv4 TCP sockets of a process: the own port of each, and the peer's. Empty for one that has ended."""
    sockets = parse_tcp((PROC / "net" / "tcp").read_text())
    held = []
    try:
        for entry in (PROC / str(pid) / "fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:[") and (inode := int(target[8:-1])) in sockets:
                held.append(sockets[inode])
    except FileNotFoundError:
        return []
    return held


def _read_all() -> list[Stat]:
    stats = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                stats.append(parse_stat((entry / "stat").read_text()))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return stats
