from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ambassador.cli import main
from ambassador.cli.run import announcement_text, config_of
from ambassador.control.supervisor import Announcement


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
        to=["http://a:1", "http://b:2"], listen=None, admin="127.0.0.1:9901", control="unix:/c"
    )
    config = config_of(args)
    assert config is not None
    assert [endpoint.url for endpoint in config.upstreams["default"].endpoints] == [
        "http://a:1",
        "http://b:2",
    ]
    assert (config.listeners[0].address, config.control) == ("127.0.0.1:8080", "unix:/c")
    assert config.admin is not None


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ([], ["-c", "a", "--to", "http://b"], ["--to", "http://b", "--workers", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(["run", *wrong])
        assert ended.value.code == 2
    assert main(["run", "-c", "a", "--listen", "127.0.0.1:1"]) == 2
    assert main(["run", "-c", str(tmp_path / "none")]) == 1
    assert main(["run", "--to", "nowhere", "--to", "https://b"]) == 1
    errors = capsys.readouterr().err
    assert "nowhere" in errors
    assert "https://b" in errors
