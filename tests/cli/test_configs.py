from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import pytest

from ambassador.cli.client import Failure
from ambassador.cli.configs import file_config, live_config
from ambassador.config.load import load_file
from tests.cli.service import FakeService

ARGS = argparse.Namespace(control=None, admin=None, token=None)


def test_a_files_errors_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("version: 1\nlisten: nowhere\nroutes: 7\n")
    assert file_config(str(file), as_json=True) is None
    out, errors = capsys.readouterr()
    assert len(json.loads(out)["errors"]) == 2
    assert errors.count(": error: ") == 2
    file.write_text("version: 1\nlisten: 127.0.0.1:1\nroutes: []\n")
    assert file_config(str(file), as_json=False) == load_file(file)


def test_the_services_config_is_read_back(service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("version: 1\nlisten: 127.0.0.1:1\nroutes: [{name: a, to: 'http://a', timeout: 1s}]\n")
    config = load_file(file)
    service.answers["GET", "/api/config"] = (200, msgspec.to_builtins(config))
    assert live_config(ARGS) == config
    service.answers["GET", "/api/config"] = (200, {"version": 7})
    with pytest.raises(Failure, match="of another version") as failed:
        live_config(ARGS)
    assert failed.value.status == 1
