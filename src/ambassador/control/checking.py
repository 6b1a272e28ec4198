"""Reading and checking a config: in this process, or in one of its own that the supervisor keeps (`checker`).

Run by the supervisor as `python -m ambassador.control.checking FD PID`. It imports and warms everything first, then
waits for paths on its socket, each with the writing end of a pipe. Each is checked in a fork, which writes a `Checked`
as msgpack and ends: so a check starts with everything in place, within milliseconds on a busy host too, and leaves
nothing behind for the next one. An end of the pipe without a whole `Checked` is a check that died.

Nothing of trio is imported here: a quarter of the process's memory would be that.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final, NoReturn, TypeAlias

import msgspec

from ambassador.config.load import Loaded, load, load_string
from ambassador.config.schema import Config
from ambassador.control.child import ignore_signals
from ambassador.control.host import die_with_parent

CHECKING_MODULE: Final = "ambassador.control.checking"
LONGEST_PATH: Final = 4096
"""Linux: PATH_MAX."""

_SAMPLE: Final = """\
version: 1
listen: 127.0.0.1:0
routes:
  - {name: a, match: {host: a, path: /a/**}, to: "http://a:1", timeout: 1s, retry: {attempts: 1}, headers: {request: {set: {a: b}}}}
  - {name: b, match: {path: "/b/{id}"}, to: b, rewrite: {prefix: /}, timeout: {total: 1s}}
  - {name: c, match: {path: {regex: "/c"}}, redirect: {location: /, status: 302}}
  - {name: d, respomd: 200}
upstreams: {b: {endpoints: ["http://b:1"], connections: {max: 1}}}
"""
"""Uses what most configs use, and has a mistake, so that what is made on first use has been made."""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A config, or all that is wrong with it, each error as `file:line:col: error: path: problem`."""

    config: Config | None
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    places: dict[str, str] = {}
    """Where settings stand: see `config.load.Loaded`."""


Check: TypeAlias = Callable[[str], Checked]
"""Reads and checks the file with this path."""


def check_file(path: str) -> Checked:
    """Read and check a file in this process."""
    return _checked(load(path))


def check_text(text: str) -> Checked:
    """Check a config that is in no file, as the command line makes one."""
    return _checked(load_string(text))


def _checked(loaded: Loaded) -> Checked:
    return Checked(
        config=loaded.config,
        errors=tuple(problem.text() for problem in loaded.errors),
        warnings=tuple(problem.text() for problem in loaded.warnings),
        places=loaded.places,
    )


def obey(control_fd: int, supervisor: int, check: Check = check_file) -> None:
    """Be the checking process, until the supervisor (process `supervisor`) closes its side of `control_fd` or ends."""
    ignore_signals()
    die_with_parent(supervisor, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the forks
    check_text(_SAMPLE)
    gc.collect()
    gc.freeze()  # what all forks share stays shared: the collector would write to it
    checker = os.getpid()
    with socket.socket(fileno=control_fd) as control:
        while True:
            path, pipes, _, _ = socket.recv_fds(control, LONGEST_PATH, 1)
            if not pipes:
                return
            if os.fork() == 0:
                die_with_parent(checker, signal.SIGKILL)
                control.close()
                gc.disable()  # a life of milliseconds: 12 % of a check of 500 routes
                _answer(check(os.fsdecode(path)), pipes[0])
            os.close(pipes[0])


def _answer(checked: Checked, pipe: int) -> NoReturn:
    """The end of a fork. What is raised before ends it too, with its stack on standard error."""
    with open(pipe, "wb") as answer:
        answer.write(msgspec.msgpack.encode(checked))
    os._exit(0)


if __name__ == "__main__":
    obey(int(sys.argv[1]), int(sys.argv[2]))
