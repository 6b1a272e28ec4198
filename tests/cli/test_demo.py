from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from ambassador.cli import demo, main
from ambassador.config.load import load_string

URLS = {name: f"http://127.0.0.1:{port}" for port, name in enumerate(("healthy", "flaky", "slow", "soap"), 1)}


def test_the_demos_config_has_no_error_and_no_surprise() -> None:
    args = argparse.Namespace(listen="127.0.0.1:0", admin="127.0.0.1:0", control=None)
    loaded = load_string(demo._config(args, "/d", URLS))
    assert not loaded.errors
    config = loaded.require()
    assert config.control == "unix:/d/control.sock"
    assert [route.name for route in config.routes] == ["flaky", "slow", "soap", "hello", "old", "healthy"]


def test_a_bad_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--listen", 'f"oo', "--admin", "0.0.0.0:1", "--control", "c"]) == 2
    errors = [line.partition(";")[0] for line in capsys.readouterr().err.splitlines()]
    assert errors == [
        "ambassador demo: --listen: 'f\"oo' is not an address",
        "ambassador demo: --admin: '0.0.0.0:1' is beyond loopback, so a token is needed",
        "ambassador demo: --control: 'c' is not a socket",
    ]


def test_commands_are_printed_as_they_can_be_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "a b" / "ambassador"
    script.parent.mkdir()
    script.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo.program() == f"'{script}'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert demo.program() == "ambassador"
    monkeypatch.setattr(sys, "argv", ["/x/ambassador/__main__.py", "demo"])
    assert demo.program() == f"{sys.executable} -m ambassador"
