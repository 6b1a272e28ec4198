from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from ambassador.cli import main
from ambassador.config.load import load_file
from tests.cli.service import FakeService

CONFIG = "version: 1\nlisten: 127.0.0.1:8080\nroutes: [{name: a, respond: %d}]\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    for number in (200, 201):
        (tmp_path / f"{number}.yaml").write_text(CONFIG % number)
    return str(tmp_path / "200.yaml"), str(tmp_path / "201.yaml")


def test_two_files(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *files]) == 0
    assert "    respond.status: 200 -> 201\n" in capsys.readouterr().out
    assert main(["diff", files[0], files[0]]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", "--json", *files]) == 0
    (change,) = json.loads(capsys.readouterr().out)
    assert (change["what"], change["kind"]) == ("route a", "changed")
    assert change["keys"] == [{"key": "respond.status", "before": 200, "after": 201}]


def test_a_file_and_the_service(
    files: tuple[str, str], service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET", "/api/config"] = (200, msgspec.to_builtins(load_file(files[0])))
    assert main(["diff", "--live", files[1]]) == 0
    assert "    respond.status: 200 -> 201\n" in capsys.readouterr().out


def test_errors(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", files[0]]) == 2
    assert main(["diff", "--live", *files]) == 2
    assert main(["diff", "--live", files[0], "--control", "unix:/none"]) == 3
    capsys.readouterr()
    assert main(["diff", files[0], str(tmp_path / "none")]) == 1
    assert "cannot be read" in capsys.readouterr().err
