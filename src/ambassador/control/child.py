"""Starting a child process of the supervisor, with a socket to talk to it.

It is started from the main thread: PR_SET_PDEATHSIG means the thread that started a process, and trio's worker
threads end when they have been idle. The signals that the supervisor handles are blocked around the exec, until the
child has decided to ignore them (`ignore_signals`): a Ctrl-C in between must not kill it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from ambassador.control.entry import ENTRY_MODULE, OPEN, PRIVATE
from ambassador.control.host import SUPERVISOR_SIGNALS, is_private


def start_child(
    module: str, kind: socket.SocketKind = socket.SOCK_STREAM, *, private: bool = False
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run `module` as `python -m MODULE FD PID`; the process, and our side of the unix socket whose other side is FD.

    PID is this process. The child keeps what it reads to itself from its first moment on if it is to be `private`, or
    this process does so, whose variables it has. It gets no other descriptor: an empty input, and standard error as its
    output. Raises OSError when there is no process or descriptor to be had.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with theirs:
        how = PRIVATE if private or is_private() else OPEN
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISOR_SIGNALS)
        try:
            # -P: what lies in the working directory is not imported. A child prints nothing; a stray line is no log.
            process = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", ENTRY_MODULE, how, module, str(theirs.fileno()), str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process, ours


def ignore_signals() -> None:
    """The child's side: signals to the whole process group mean the supervisor."""
    for number in SUPERVISOR_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISOR_SIGNALS)
