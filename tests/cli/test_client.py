from __future__ import annotations

import argparse
import socket
from pathlib import Path

import pytest

from ambassador.cli import main
from ambassador.cli.client import Client, Failure, client
from tests.cli.service import FakeService, fake_service


def args(
    control: str | None = None, admin: str | None = None, token: str | None = None
) -> argparse.Namespace:
    return argparse.Namespace(control=control, admin=admin, token=token)


def failure(found: argparse.Namespace) -> Failure:
    with pytest.raises(Failure) as caught:
        client(found).get("/api/status")
    return caught.value


def test_the_only_service_is_found(service: FakeService) -> None:
    service.answers["GET", "/api/status"] = (200, {"a": 1})
    assert client(args()).get("/api/status") == {"a": 1}


def test_dead_sockets_are_passed_over_and_several_services_are_told(
    service: FakeService, tmp_path: Path
) -> None:
    service.answers["GET", "/api/status"] = (200, {})
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "ambassador-1.sock"))
    assert client(args()).get("/api/status") == {}
    with fake_service(tmp_path / "ambassador-2.sock"):
        told = failure(args())
        assert (told.status, "--control" in str(told)) == (2, True)
        assert client(args(control=f"unix:{tmp_path}/ambassador-8080.sock")).get("/api/status") == {}


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert failure(args()).status == 3
    assert failure(args(control="unix:/none")).status == 3
    assert failure(args(admin="http://127.0.0.1:1")).status == 3


def test_a_token_comes_from_a_secret_only(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t")
    assert failure(args(admin="http://127.0.0.1:1", token="t")).status == 2
    assert failure(args(admin="http://127.0.0.1:1", token="env:NONE")).status == 2
    where = f"unix:{service.server_address!s}"
    Client(where, "t").call("GET", "/x")
    assert service.asked[-1][3] == "Bearer t"


def test_a_no_is_told_with_its_reason(service: FakeService) -> None:
    service.answers["POST", "/api/drain"] = (401, {"detail": "a token is needed"})
    with pytest.raises(Failure, match="a token is needed") as caught:
        client(args()).post("/api/drain")
    assert caught.value.status == 1


def test_an_admin_url_must_be_one(service: FakeService) -> None:
    for wrong in ("ftp://x", "https://x", "http://", "localhost:port", "http://[::1"):
        assert failure(args(admin=wrong)).status == 2


@pytest.mark.parametrize("command", ["breakers", "limits"])
@pytest.mark.parametrize("ready", [False, True])
def test_list_that_is_empty_for_want_of_workers_says_so(
    service: FakeService, capsys: pytest.CaptureFixture[str], command: str, ready: bool
) -> None:
    service.answers["GET", f"/api/{command}"] = (200, [])
    service.answers["GET", "/api/status"] = (200, {"ready": ready})
    assert main([command]) == 0
    assert ("not ready yet" in capsys.readouterr().err) is not ready
