from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ambassador.config.load import load_text
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
