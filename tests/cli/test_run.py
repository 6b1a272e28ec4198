from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ambassador.cli import main
from ambassador.cli.run import announcement_text, loaded_of
from ambassador.config import addresses
from ambassador.control.supervisor import Announcement
from ambassador.extras import Extra


def test_what_is_served_is_announced_listeners_first() -> None:
    told = Announcement(
        listeners=("http://a:1", "unix:/s"), admin="http://a:2", control="/c", state="local", pid=1
    )
    assert announcement_text(told).splitlines() == [
        "listening on http://a:1",
        "listening on unix:/s",
        "admin on http://a:2",
        "state local",
        "control unix:/c",
    ]


def test_urls_become_one_route_with_the_defaults() -> None:
    args = argparse.Namespace(
        config=None, to=["http://a:1", "http://b:2"], listen=None, admin="127.0.0.1:9901", control="unix:/c"
    )
    config = loaded_of(args).require()
    assert [endpoint.url for endpoint in config.upstreams["default"].endpoints] == [
        "http://a:1",
        "http://b:2",
    ]
    assert (config.listeners[0].address, config.control) == ("127.0.0.1:8080", "unix:/c")
    assert config.admin is not None


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["-c", "a", "--to", "http://b"], ["--to", "http://b", "--workers", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(["run", *wrong])
        assert ended.value.code == 2
    assert main(["run", "-c", "a", "--listen", "127.0.0.1:1"]) == 2
    assert main(["run"]) == 2
    assert "-c FILE, or one route with --to URL" in capsys.readouterr().err
    assert main(["run", "a.yaml"]) == 2
    assert "ambassador run -c a.yaml" in capsys.readouterr().err


def test_a_bad_file_is_the_checks_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("version: 1\nlisten: nowhere\nroutes: []\n")
    assert main(["run", "-c", str(file)]) == 1
    assert f"{file}:2:9: error: listen: 'nowhere' is not an address" in capsys.readouterr().err
    assert main(["run", "-c", str(tmp_path / "none")]) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_config_that_needs_a_missing_extra_is_not_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "REDIS", Extra("redis", ("no_such_module",)))
    file = tmp_path / "a.yaml"
    file.write_text("listen: 127.0.0.1:0\nstate: redis://127.0.0.1\nroutes: [{name: a, respond: 200}]\n")
    for command in (["run", "-c"], ["check"]):
        assert main([*command, str(file)]) == 1
        printed = capsys.readouterr()
        assert (
            f"{file}:2:8: error: state: a Redis needs the extra 'redis', which is not installed; "
            "pip install 'ambassador-proxy[redis]'"
        ) in printed.out + printed.err


def test_a_bad_option_is_named_and_not_the_config_it_would_make(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = ["--to", "nowhere", "--to", "http://b", "--listen", "127.0.0.1:99999", "--admin", "0.0.0.0:1"]
    assert main(["run", *wrong, "--control", "c"]) == 2
    errors = [line.partition(";")[0] for line in capsys.readouterr().err.splitlines()]
    assert errors == [
        "ambassador run: --listen: '127.0.0.1:99999': port 99999 is over 65535",
        "ambassador run: --admin: '0.0.0.0:1' is beyond loopback, so a token is needed",
        "ambassador run: --control: 'c' is not a socket",
        "ambassador run: --to: 'nowhere' is not a URL",
    ]
