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
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
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


@pytest.mark.parametrize(
    ("private", "own", "expected"), [(False, False, b"1"), (True, False, b"0"), (False, True, b"0")]
)
def test_it_is_private_if_it_must_be_or_its_parent_is(
    private: bool, own: bool, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("ambassador.control.child.is_private", lambda: own)
    (tmp_path / "telling_child.py").write_text(
        "import ctypes, socket, sys\nsock = socket.socket(fileno=int(sys.argv[1]))\n"
        "sock.send(b'%d' % ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    process, sock = start_child("telling_child", private=private)
    with process, sock:
        sock.settimeout(PATIENCE_S)
        assert sock.recv(100) == expected


def test_it_leaves_no_socket_when_there_is_no_process_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")

    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(OSError, match="Resource"):
        start_child("none", socket.SOCK_SEQPACKET)
    assert os.listdir("/proc/self/fd") == before
