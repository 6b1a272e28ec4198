from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ambassador.control.host import (
    Unsupported,
    cgroup_cpus,
    check_platform,
    raise_descriptor_limit,
    resident_bytes,
    usable_cpus,
)


def test_other_platforms_are_refused_with_their_name() -> None:
    check_platform("linux")
    with pytest.raises(Unsupported, match="darwin"):
        check_platform("darwin")


@pytest.mark.parametrize(
    ("text", "cpus"), [("max 100000", None), ("150000 100000", 2), ("10000 100000", 1), ("400000 100000", 4)]
)
def test_a_quota_is_rounded_up_to_whole_cpus(tmp_path: Path, text: str, cpus: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert cgroup_cpus(tmp_path) == cpus


def test_the_quota_of_the_old_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("250000")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert cgroup_cpus(tmp_path) == 3
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert cgroup_cpus(tmp_path) is None


def test_usable_cpus_is_bounded_by_affinity_and_quota(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("1 100000")
    assert usable_cpus(tmp_path) == 1


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    hard = raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_private_process_leaves_no_core_and_lets_nobody_look() -> None:
    script = (
        "import ctypes, os, resource\n"
        "from ambassador.control.host import is_private, keep_private\n"
        "print(is_private())\n"
        "keep_private()\n"
        "print(is_private())\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
        "print(len(os.listdir('/proc/self/fd')) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "0", "0", "True"]


def test_memory_of_a_process_that_is_gone_is_unknown() -> None:
    assert (resident_bytes(os.getpid()) or 0) > 1_000_000
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert resident_bytes(process.pid) is None


def test_a_child_ends_with_its_parent() -> None:
    child = "import os, sys, signal\nfrom ambassador.control.host import die_with_parent\n"
    orphan = child + "die_with_parent(1 << 22)\nsignal.pause()"
    assert subprocess.run([sys.executable, "-c", orphan], timeout=10).returncode == -15
