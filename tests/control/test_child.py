from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from ambassador.control.child import start_child
from ambassador.control.host import SUPERVISOR_SIGNALS
from tests.control.service import PATIENCE_S


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A child that has an ear for its parent, and ignores signals once it is told to."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "odd_child.py").write_text(
        "import socket, sys\nfrom ambassador.control.child import ignore_signals\n"
        "sock = socket.socket(fileno=int(sys.argv[1]))\n"
        "sock.recv(1)\n"
        "ignore_signals()\n"
        "sock.send(sys.argv[2].encode())\n"
        "sock.recv(1)\n"
    )
    return "odd_child"


def test_signals_to_the_group_do_not_end_it_at_any_time(module: str) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    process, sock = start_child(module)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    with process, sock:
        sock.settimeout(PATIENCE_S)
        for number in SUPERVISOR_SIGNALS:
            process.send_signal(number)
        sock.send(b"x")
        assert sock.recv(100) == str(os.getpid()).encode()
        for number in SUPERVISOR_SIGNALS:
            process.send_signal(number)
        sock.close()
        assert process.wait(PATIENCE_S) == 0


def test_it_leaves_no_socket_when_there_is_no_process_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")

    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(OSError, match="Resource"):
        start_child("none", socket.SOCK_SEQPACKET)
    assert os.listdir("/proc/self/fd") == before
