from __future__ import annotations

from pathlib import Path

import pytest

from ambassador.config.schema import Admin
from ambassador.control.admin.doors import AdminDoor, ControlDoor
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
    door.close()
    assert not (tmp_path / "a.sock").exists()


def test_a_control_socket_in_use_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    door = ControlDoor(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BindError, match="another instance"):
        ControlDoor(str(path))
    door.close()
    with pytest.raises(BindError):
        ControlDoor(str(tmp_path / "none" / "c.sock"))
