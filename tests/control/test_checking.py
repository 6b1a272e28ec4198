from __future__ import annotations

from pathlib import Path

from ambassador.control.checking import check_file, check_in_child, check_text

GOOD = "version: 1\nlisten: 127.0.0.1:0\nroutes:\n  - {name: a, respond: 200}\n"


def test_a_good_text() -> None:
    checked = check_text(GOOD)
    assert checked.errors == ()
    assert checked.config is not None


def test_every_error_of_a_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("version: 1\nlisten: nowhere\nroutes:\n  - {name: a, respond: 7}\n")
    checked = check_file(str(file))
    assert checked.config is None
    assert [error.partition(": ")[0] for error in checked.errors] == [f"{file}:2:9", f"{file}:4:24"]


async def test_a_child_gives_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(GOOD)
    assert await check_in_child(str(file)) == check_file(str(file))
    file.write_text("version: 2\n")
    assert await check_in_child(str(file)) == check_file(str(file))
    assert (await check_in_child(str(tmp_path / "none"))).errors
