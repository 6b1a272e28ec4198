from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ambassador.control import socket_path


def test_the_runtime_directory_is_used_where_there_is_one() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert socket_path.default_path(8080, environ) == Path("/run/user/7/ambassador-8080.sock")
    assert socket_path.directory({}, 7) == Path("/tmp/ambassador-7")


def test_present_lists_sockets_only(tmp_path: Path) -> None:
    (tmp_path / "ambassador-1.sock").touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "ambassador-2.sock"))
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert socket_path.present(environ) == [tmp_path / "ambassador-2.sock"]


def test_a_directory_that_others_can_enter_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "ambassador-0"
    monkeypatch.setattr(socket_path, "directory", lambda environ: place)
    socket_path.make_directory({})
    assert place.stat().st_mode & 0o777 == 0o700
    os.chmod(place, 0o755)
    with pytest.raises(socket_path.UnsafeDirectory):
        socket_path.make_directory({})
