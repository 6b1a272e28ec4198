"""Which functions of the ambassador's worker the time goes to, under a scenario's load.

py-spy looks into the worker from outside (1,000 samples a second; it needs leave to trace: root, or
`kernel.yama.ptrace_scope=0`). Where it is missing, the worker runs under cProfile: a `sitecustomize` module in a
directory put first on PYTHONPATH starts it in the worker only and writes the result at its end. cProfile makes every
call dearer, so small functions look larger than they are.
"""

import contextlib
import pstats
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtest import processes, procfs, wrk
from loadtest.compare import WARM_UP_S, Cores, ready_path
from loadtest.job import Job, Proxy

RATE_HZ = 1000
_GRACE_S = 20.0

SITECUSTOMIZE = """\
import sys

if "ambassador.control.worker" in sys.orig_argv:
    import atexit
    import cProfile

    profile = cProfile.Profile()
    profile.enable()
    atexit.register(lambda: (profile.disable(), profile.dump_stats({path!r})))
"""


class ProfileError(Exception):
    """The profiler could not be started or saw nothing."""


@dataclass(frozen=True, slots=True)
class Hotspot:
    """A function with its share of the samples: `own` in its own code, `total` with all it calls (0..1)."""

    name: str
    own: float
    total: float


def find_py_spy() -> str | None:
    """py-spy of this interpreter's environment, else the one on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def parse_collapsed(text: str) -> list[Hotspot]:
    """Read collapsed stacks (`outer;inner 12` a line, py-spy's `raw` format), the largest own share first.

    A function that calls itself counts once in a stack's total.
    """
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack and count.isdigit():
            frames = stack.split(";")
            own[frames[-1]] += int(count)
            for frame in set(frames):
                total[frame] += int(count)
    samples = sum(own.values())
    spots = [Hotspot(name, own[name] / samples, total[name] / samples) for name in total]
    return sorted(spots, key=lambda spot: (-spot.own, -spot.total, spot.name))


def from_pstats(stats: pstats.Stats) -> list[Hotspot]:
    """The same from cProfile's result."""
    profile = stats.get_stats_profile()
    whole = profile.total_tt or 1.0
    spots = [
        Hotspot(
            f"{name} ({Path(function.file_name).name}:{function.line_number})",
            function.tottime / whole,
            function.cumtime / whole,
        )
        for name, function in profile.func_profiles.items()
    ]
    return sorted(spots, key=lambda spot: (-spot.own, -spot.total, spot.name))


def run(
    job: Job, proxy: Proxy, binary: str, *, duration_s: int, cores: Cores, native: bool
) -> tuple[str, list[Hotspot]]:
    """Load the ambassador and profile its worker; returns the profiler's name and what it saw. Raises ProfileError."""
    py_spy = find_py_spy()
    if py_spy is not None:
        return "py-spy", _run_py_spy(
            py_spy, job, proxy, binary, duration_s=duration_s, cores=cores, native=native
        )
    return "cProfile", _run_cprofile(job, proxy, binary, duration_s, cores)


def _run_py_spy(
    py_spy: str, job: Job, proxy: Proxy, binary: str, *, duration_s: int, cores: Cores, native: bool
) -> list[Hotspot]:
    stacks, errors = job.directory / "stacks.txt", job.directory / "py-spy.log"
    with _server(job, proxy, binary, cores, env={}) as server:
        worker = _warm_up(server, job, cores)
        command = [
            py_spy, "record", "--pid", str(worker), "--duration", str(duration_s), "--rate", str(RATE_HZ),
            "--format", "raw", "--output", str(stacks), "--function", "--nonblocking",
        ]  # fmt: skip
        if native:
            command = [word for word in command if word != "--nonblocking"] + ["--native"]
        with errors.open("wb") as output, processes.pinned(cores.generator):
            spy = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            _load(job, cores, duration_s + 1)
            spy.wait(_GRACE_S)
        except subprocess.TimeoutExpired as error:
            raise ProfileError("py-spy did not end in time") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                spy.kill()
            spy.wait()
    if spy.returncode != 0 or not stacks.exists():
        raise ProfileError(
            f"py-spy ended with status {spy.returncode}:\n{errors.read_text(errors='replace')}"
        )
    return _seen(parse_collapsed(stacks.read_text()))


def _run_cprofile(job: Job, proxy: Proxy, binary: str, duration_s: int, cores: Cores) -> list[Hotspot]:
    site, result = job.directory / "site", job.directory / "worker.prof"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE.format(path=str(result)))
    with _server(job, proxy, binary, cores, env={"PYTHONPATH": str(site)}):
        _load(job, cores, duration_s)
    if not result.exists():
        raise ProfileError("the worker left no profile; install py-spy (pip install py-spy)")
    return _seen(from_pstats(pstats.Stats(str(result))))


def _seen(spots: list[Hotspot]) -> list[Hotspot]:
    if not spots:
        raise ProfileError("the profiler saw no Python code at work in the busiest process")
    return spots


@contextlib.contextmanager
def _server(
    job: Job, proxy: Proxy, binary: str, cores: Cores, *, env: dict[str, str]
) -> Iterator[processes.Running]:
    launch = proxy.configure(job, binary)
    with processes.running(
        proxy.name,
        launch.command,
        port=job.port,
        core=cores.proxy,
        directory=job.directory,
        env={**launch.env, **env},
        ready_path=ready_path(job.scenario),
    ) as server:
        yield server


def _warm_up(server: processes.Running, job: Job, cores: Cores) -> int:
    before = _by_pid(procfs.read_tree(server.pid))
    _load(job, cores, WARM_UP_S)
    return procfs.busiest(before, _by_pid(procfs.read_tree(server.pid)))


def _by_pid(tree: Iterable[procfs.Stat]) -> dict[int, procfs.Stat]:
    return {stat.pid: stat for stat in tree}


def _load(job: Job, cores: Cores, duration_s: int) -> None:
    wrk.run(job.scenario, port=job.port, duration_s=duration_s, core=cores.generator, directory=job.directory)
