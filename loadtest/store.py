"""The Redis-compatible server of the scenarios that share state: in memory, on loopback, on the generator's core."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from loadtest import processes

INSTALL = "apt-get install redis-server"


def find() -> str | None:
    """The program of the first server that is there."""
    return next((path for name in ("valkey-server", "redis-server") if (path := shutil.which(name))), None)


@contextlib.contextmanager
def serving(directory: Path, core: int | None) -> Iterator[str]:
    """Start one without persistence; gives its URL. Raises StartError."""
    binary = find()
    if binary is None:
        raise processes.StartError(f"shared state needs Redis or Valkey: {INSTALL}")
    [port] = processes.free_ports(1)
    command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with processes.running("store", command, port=port, core=core, directory=directory, ready_path=None):
        yield f"redis://127.0.0.1:{port}/0"
