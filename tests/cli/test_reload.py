from __future__ import annotations

import json

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService


def test_a_reload_tells_its_generation(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["POST", "/api/reload"] = (200, {"ok": True, "at": 1, "errors": [], "generation": 4})
    assert main(["reload"]) == 0
    assert capsys.readouterr().out == "generation 4 is served\n"
    assert main(["reload", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == 4


def test_a_refused_reload_prints_every_error(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {
        "ok": False,
        "at": 1,
        "errors": ["a.yaml:1:2: error: x", "a.yaml:3:4: error: y"],
        "generation": 4,
    }
    service.answers["POST", "/api/reload"] = (409, answer)
    assert main(["reload"]) == 1
    assert capsys.readouterr().err.splitlines()[:2] == answer["errors"]


def test_a_token_that_is_missing_is_told(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["POST", "/api/reload"] = (401, {"detail": "a token is needed"})
    assert main(["reload"]) == 1
    assert "a token is needed" in capsys.readouterr().err
