"""The unit is one that systemd takes, and it calls commands that exist."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "ambassador.service"


def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser["Service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    # The command is in place only where the package is installed in /opt/ambassador.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/ambassador/bin/ambassador", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == []


@pytest.mark.parametrize("key", ["ExecStartPre", "ExecStart", "ExecReload"])
def test_command_of_the_unit_exists(key: str) -> None:
    program, command, *arguments = service()[key].split()
    assert program == "/opt/ambassador/bin/ambassador"
    done = subprocess.run(
        [sys.executable, "-m", "ambassador", command, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for option in (argument for argument in arguments if argument.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}\b", done.stdout), f"{command} knows no {option}"


def test_stop_waits_for_the_drain() -> None:
    drain_s = 5 + 20  # drain.delay and drain.timeout unless the config says otherwise
    assert int(service()["TimeoutStopSec"].removesuffix("s")) > drain_s
