from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from ambassador.config.schema import Admin
from ambassador.control.admin.doors import AdminDoor, ControlDoor, serve_door
from ambassador.control.admin.http import Request, Response
from ambassador.control.slots import BindError


def test_a_changed_token_holds_at_once_and_a_lost_one_shuts_the_door(tmp_path: Path) -> None:
    token = tmp_path / "t"
    token.write_text("one")
    door = AdminDoor(Admin(address="127.0.0.1:0", token=f"file:{token}"))
    assert door.door().token == "one"
    token.write_text("two")
    assert door.door().token == "two"
    token.unlink()
    assert door.door().token not in (None, "", "two")
    assert door.url.startswith("http://127.0.0.1:")
    door.close()


def test_an_admin_address_that_is_taken_is_told() -> None:
    door = AdminDoor(Admin(address="127.0.0.1:0"))
    with pytest.raises(BindError, match="address already in use"):
        AdminDoor(Admin(address=door.url.removeprefix("http://")))
    door.close()


def test_an_admin_api_on_a_unix_socket(tmp_path: Path) -> None:
    door = AdminDoor(Admin(address=f"unix:{tmp_path}/a.sock"))
    assert door.url == f"unix:{tmp_path}/a.sock"
    assert door.door().local
    assert (tmp_path / "a.sock").stat().st_mode & 0o777 == 0o600
    door.close()
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize(("leads_to", "local"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_an_admin_name_is_local_if_it_leads_to_this_host_alone(
    leads_to: str, monkeypatch: pytest.MonkeyPatch, *, local: bool
) -> None:
    def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        assert host == "localhost"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (leads_to, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    door = AdminDoor(Admin(address="localhost:0"))
    assert door.door().local is local
    door.close()


def test_a_control_socket_in_use_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    door = ControlDoor(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BindError, match="another instance"):
        ControlDoor(str(path))
    door.close()
    with pytest.raises(BindError):
        ControlDoor(str(tmp_path / "none" / "c.sock"))


_ASKER = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(b"POST /api/drain HTTP/1.1\\r\\nhost: a\\r\\ncontent-length: 0\\r\\n\\r\\n")
    print(sock.recv(65536).split()[1].decode())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can ask as somebody else")
async def test_control_socket_is_shut_for_other_users_even_if_its_file_is_not(nursery: trio.Nursery) -> None:
    async def handler(_request: Request) -> Response:
        raise AssertionError("nobody was to get this far")

    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        door = ControlDoor(f"{directory}/c.sock")
        os.chmod(door.path, 0o666)
        nursery.start_soon(serve_door, door, handler, logging.getLogger("test"))
        told = await trio.run_process([sys.executable, "-I", "-c", _ASKER, door.path], capture_stdout=True)
        assert told.stdout == b"403\n"
        nursery.cancel_scope.cancel()
        door.close()
