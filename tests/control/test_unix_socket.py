from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ambassador.control.unix_socket import InUse, NamedSocket


def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    named = NamedSocket(str(path), mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    named.close()
    assert not path.exists()


def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = NamedSocket(str(path))
    first.sock.listen()
    with pytest.raises(InUse):
        NamedSocket(str(path))
    first.close()


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(InUse):
        NamedSocket(str(path))
    assert path.read_text() == "precious"


def test_the_file_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = NamedSocket(str(path))
    path.unlink()
    second = NamedSocket(str(path))
    first.close()
    assert path.exists()
    second.close()
