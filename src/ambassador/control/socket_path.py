"""Where the control socket is. Imported by commands that must start fast: nothing heavy here."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path


class UnsafeDirectory(Exception):
    """The directory for control sockets belongs to somebody else, or others can write to it."""


def directory(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> Path:
    """`$XDG_RUNTIME_DIR`, or `/tmp/ambassador-UID` where there is none."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) if runtime else Path(f"/tmp/ambassador-{os.getuid() if uid is None else uid}")  # noqa: S108


def default_path(label: int | str, environ: Mapping[str, str] = os.environ) -> Path:
    """The control socket of the instance whose first listener has this port, or this name of a unix socket."""
    return directory(environ) / f"ambassador-{label}.sock"


def make_directory(environ: Mapping[str, str] = os.environ) -> None:
    """Make the directory if it is ours to make, and be sure of it. Raises `UnsafeDirectory`."""
    path = directory(environ)
    if environ.get("XDG_RUNTIME_DIR"):
        return
    path.mkdir(mode=0o700, exist_ok=True)
    # In /tmp anybody can have been first: what is not a directory of ours alone is not used.
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UnsafeDirectory(
            f"{path} must be a directory that only this user can enter; set 'control' in the config"
        )


def present(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The control sockets in the default place, dead ones included."""
    return sorted(path for path in directory(environ).glob("ambassador-*.sock") if path.is_socket())
