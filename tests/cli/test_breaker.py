from __future__ import annotations

import json

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService

DONE = {"name": "u/a:1", "state": "open", "fleet": True, "detail": "held open for 10m"}


def test_order_is_given_with_time_reason_and_name(
    service: FakeService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    service.answers["POST", "/api/breakers/u/a:1"] = (200, DONE)
    assert main(["breaker", "u/a:1", "open", "--for", "10m", "--reason", "maintenance"]) == 0
    assert capsys.readouterr().out == "u/a:1: held open for 10m\n"
    assert service.asked[0][2] == {"state": "open", "for": "10m", "reason": "maintenance", "by": "ann"}


def test_order_that_reaches_this_replica_only_is_a_no(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["POST", "/api/breakers/u"] = (200, DONE | {"fleet": False})
    assert main(["breaker", "u", "close", "--reason", "x", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["fleet"] is False


def test_unknown_breaker_is_a_no(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["POST", "/api/breakers/nope"] = (404, {"detail": "there is no breaker 'nope'"})
    assert main(["breaker", "nope", "auto", "--reason", "x"]) == 1
    assert "there is no breaker 'nope'" in capsys.readouterr().err


def test_reason_that_is_refused_is_a_failure(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["POST", "/api/breakers/u"] = (400, {"detail": r"'reason' must be one line: a\x0ab"})
    assert main(["breaker", "u", "open", "--reason", "a\nb"]) == 1
    assert capsys.readouterr().err.endswith(": 'reason' must be one line: a\\x0ab\n")


def test_reason_is_needed(service: FakeService) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["breaker", "u", "open"])
    assert stop.value.code == 2


@pytest.mark.parametrize("text", ["abc", "0s", "0.4ms", "-5m", "2y"])
def test_time_that_is_none_is_a_wrong_command_line(service: FakeService, text: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["breaker", "u", "open", "--for", text, "--reason", "x"])
    assert stop.value.code == 2
    assert not service.asked


def test_control_is_not_given_back_for_a_time(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["breaker", "u", "auto", "--for", "5m", "--reason", "x"]) == 2
    assert "--for has no meaning" in capsys.readouterr().err
    assert not service.asked
