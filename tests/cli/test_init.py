from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ambassador.cli import COMMANDS, main


def test_without_a_command_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_an_unknown_command_is_a_usage_error_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["relaod"]) == 2
    assert "did you mean 'reload'?" in capsys.readouterr().err


def test_a_command_that_is_not_built_yet_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ramp", "--over", "30m"]) == 2
    assert capsys.readouterr().err == "ambassador: 'ramp' is not supported by this version\n"


def test_help_may_come_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["help", "reload"])
    assert ended.value.code == 0
    assert "usage: ambassador reload" in capsys.readouterr().out
    assert main(["help", "relaod"]) == 2
    assert main(["help"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_control_socket(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--control unix:PATH" in capsys.readouterr().out


def test_a_control_socket_does_not_disturb_commands_that_need_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("version: 1\nlisten: 127.0.0.1:0\nroutes: [{name: a, respond: 200}]\n")
    for command in (["version"], ["schema"], ["check", str(file)]):
        assert main([*command, "--control", "unix:/none"]) == 0
    assert "cannot" not in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: ambassador {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["version", "health", "reload", "drain", "workers", "routes", "upstreams", "replicas", "top"]
)
def test_commands_for_probes_import_nothing_heavy(command: str) -> None:
    program = (
        "import sys\nfrom ambassador.cli import main\n"
        f"main(['{command}', '--json'] + ([] if '{command}' == 'version' else ['--control', '/none']))\n"
        "heavy = {'trio', 'httpcore', 'msgspec', 'yaml', 'h11', 'httptools', 'ssl'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy - {'ssl'} else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_usage_error_exits_with_2() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["workers", "0"])
    assert ended.value.code == 2


@pytest.mark.parametrize("command", ["version", "schema"])
def test_a_reader_that_has_seen_enough_is_no_reason_to_complain(command: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "ambassador", command], stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "")
