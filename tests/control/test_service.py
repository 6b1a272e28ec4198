from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ambassador.config.load import load, load_text
from ambassador.control.service import serve


def test_an_address_that_is_taken_is_told_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = load_text(f"version: 1\nlisten: {address}\ncontrol: 'unix:{tmp_path}/c'\nroutes: []\n")
        assert serve(config, lambda _: "never said") == 1
    out, errors = capfd.readouterr()
    assert out == ""
    assert f"cannot listen on {address}: address already in use" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "listen: 127.0.0.1:0\ntelemetry: {access_log: /none/log}\n",
            "4:25: error: telemetry.access_log: '/none/log' cannot be opened: no such file or directory",
        ),
        (
            "listen: 127.0.0.1:0\nadmin: {address: 127.0.0.1:0, token: 'env:NOPE'}\n",
            "4:38: error: admin.token: env:NOPE: cannot be read",
        ),
        (
            "listen: 127.0.0.1:0\nadmin: 'unix:/none/a'\n",
            "4:8: error: admin: cannot listen on unix:/none/a: no such file or directory",
        ),
        (
            "listeners:\n  - 127.0.0.1:0\n  - address: 192.0.2.1:1\n",
            "5:14: error: listeners[1].address: cannot listen on 192.0.2.1:1: not an address of this host",
        ),
        (
            "listen: 192.0.2.1:1\n",
            "3:9: error: listen: cannot listen on 192.0.2.1:1: not an address of this host",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_with_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, error: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"version: 1\ncontrol: 'unix:{tmp_path}/c'\n{text}routes: []\n")
    loaded = load(file)
    assert serve(loaded.require(), lambda _: "never said", places=loaded.places) == 1
    assert caplog.messages == [f"{file}:{error}"]


def test_a_control_socket_that_cannot_be_had_is_told_with_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("version: 1\nlisten: 127.0.0.1:0\ncontrol: 'unix:/none/c'\nroutes: []\n")
    loaded = load(file)
    assert serve(loaded.require(), lambda _: "never said", places=loaded.places) == 1
    error = "error: control: cannot listen on unix:/none/c: no such file or directory"
    assert caplog.messages == [f"{file}:3:10: {error}"]
