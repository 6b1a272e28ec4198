"""Unix sockets that have a name: bound over a dead predecessor, never over a live one, and removed at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat


class InUse(OSError):
    """Somebody answers at that path."""


class NamedSocket:
    """A bound unix socket and the file it made. `remove` unlinks the file only if it is still this socket's."""

    def __init__(self, path: str, *, mode: int | None = None) -> None:
        """Bind, not yet listening. `mode` None leaves what the umask gives.

        Raises `InUse` when somebody listens there, and OSError for what else prevents it.
        """
        _clear_stale(path)
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.sock.bind(path)
            if mode is not None:
                os.chmod(path, mode)
            self._identity = _identity(path)
        except BaseException:
            self.sock.close()
            raise

    def close(self) -> None:
        """Close this process's descriptor and remove the file."""
        self.sock.close()
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _clear_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InUse(errno.EADDRINUSE, "a file that is not a socket is there", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A full queue of a live listener must not hold us up: it answers EAGAIN, which is an answer.
        probe.settimeout(0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise InUse(errno.EADDRINUSE, "another process listens there", path)
