from __future__ import annotations

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService


def test_a_drain_is_begun(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["POST", "/api/drain"] = (202, {"draining": True})
    assert main(["drain"]) == 0
    assert capsys.readouterr().out == "draining\n"
    assert service.asked == [("POST", "/api/drain", {}, None)]


def test_nothing_to_drain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "--wait", "--control", "unix:/none"]) == 3
    assert "cannot reach" in capsys.readouterr().err
