from __future__ import annotations

import json

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService


def test_ready_and_live(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["GET", "/readyz"] = (503, {"ok": False, "reason": "draining"})
    service.answers["GET", "/livez"] = (200, {"ok": True, "reason": None})
    assert main(["health"]) == main(["health", "--ready"]) == 1
    assert capsys.readouterr().out == "draining\ndraining\n"
    assert main(["health", "--live", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "reason": None}


def test_something_else_answers(service: FakeService) -> None:
    assert main(["health"]) == 1


def test_nobody_answers() -> None:
    assert main(["health", "--control", "unix:/none"]) == 3
