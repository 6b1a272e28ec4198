"""`ambassador check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ambassador.cli import main

GOOD = "listen: 127.0.0.1:8080\nroutes: [{name: a, respond: 200}]\n"
BAD = "listen: 127.0.0.1:8080\nroutes: [{name: a, too: http://a, mirror: {}}]\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    return tmp_path


@pytest.mark.usefixtures("files")
def test_check_of_a_good_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "good.yaml"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "good.yaml: no problems\n")


@pytest.mark.usefixtures("files")
def test_check_prints_every_error_of_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "bad.yaml", "good.yaml", "none.yaml"]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "bad.yaml:2:20: error: routes[0]: unknown key 'too'; did you mean 'to'?",
        "    2 | routes: [{name: a, too: http://a, mirror: {}}]",
        "      |                    ^",
        "bad.yaml:2:35: error: routes[0].mirror: 'mirror' is not supported by this version",
        "    2 | routes: [{name: a, too: http://a, mirror: {}}]",
        "      |                                   ^",
        "none.yaml: error: cannot be read: No such file or directory",
    ]
    assert printed.err == "bad.yaml, good.yaml, none.yaml: 3 errors\n"


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("option", [["--json"], ["--format", "json"]])
def test_check_as_json(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "bad.yaml", *option]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is False
    first = printed["problems"][0]
    assert (first["file"], first["line"], first["column"], first["level"]) == ("bad.yaml", 2, 20, "error")


@pytest.mark.usefixtures("files")
def test_check_as_annotations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "bad.yaml", "--format", "github"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == (
        "::error file=bad.yaml,line=2,col=20::routes[0]: unknown key 'too'; did you mean 'to'?"
    )


def test_check_without_a_file_is_usage() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check"])
    assert caught.value.code == 2
