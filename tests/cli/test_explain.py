"""`ambassador explain`: arguments, output and exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ambassador.cli import NO, OK, UNREACHABLE, USAGE, client, main
from ambassador.config.schema import Config, Endpoint, Listener, Match, Route, Upstream
from ambassador.control import checking
from ambassador.control.checking import Checked
from ambassador.proxy.key_files import ServerConfig

CONFIG = Config(
    listeners=(Listener(address="127.0.0.1:8080"),),
    upstreams={"billing": Upstream(endpoints=(Endpoint(url="http://a:80"),))},
    routes=(
        Route(name="beta", line=4, file="a.yaml", match=Match(host=("beta",)), to="billing"),
        Route(name="billing", line=9, file="a.yaml", match=Match(path="/v1/**"), to="billing"),
    ),
)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were asked for; each holds CONFIG, except `bad.yaml`."""
    asked: list[str] = []

    def check_file(path: str) -> Checked:
        asked.append(path)
        if path == "bad.yaml":
            return Checked(
                config=None, errors=("bad.yaml:1:1: error: routes: missing", "bad.yaml:2:1: error: x")
            )
        return Checked(config=CONFIG)

    monkeypatch.setattr(checking, "check_file", check_file)
    return asked


def test_text_of_a_file(read: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "GET", "http://h/v1/x", "-H", "x-tenant:  acme ", "-c", "a.yaml"]) == OK
    out = capsys.readouterr().out
    assert out.startswith("GET http://h/v1/x   x-tenant: acme\n")
    assert "  route     billing   a.yaml:9   matched host *, path /v1/**\n" in out
    assert read == ["a.yaml"]


@pytest.mark.usefixtures("read")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "GET", "/v1/x", "--json", "--config", "a.yaml"]) == OK
    told = json.loads(capsys.readouterr().out)
    assert (told["route"], told["place"], told["endpoints"]) == ("billing", "a.yaml:9", ["http://a:80"])
    assert told["considered"] == [{"route": "beta", "place": "a.yaml:4", "why_not": "host beta"}]


@pytest.mark.usefixtures("read")
def test_no_route_and_refusals_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "GET", "http://h/v2", "-c", "a.yaml"]) == NO
    assert "404 no_route" in capsys.readouterr().out
    assert main(["explain", "GET", "http://h/..", "-c", "a.yaml"]) == NO
    assert "400 bad_request" in capsys.readouterr().out
    late = ["-H", "x-request-deadline: 1000000000"]
    assert main(["explain", "GET", "http://h/v1/x", *late, "-c", "a.yaml"]) == NO
    assert "504 deadline_exceeded" in capsys.readouterr().out


@pytest.mark.usefixtures("read")
def test_errors_of_the_config_are_all_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "GET", "/", "-c", "bad.yaml"]) == NO
    assert capsys.readouterr().err.splitlines() == [
        "bad.yaml:1:1: error: routes: missing",
        "bad.yaml:2:1: error: x",
    ]
    assert main(["explain", "GET", "/", "-c", "bad.yaml", "--json"]) == NO
    assert len(json.loads(capsys.readouterr().out)["errors"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["GET"],
        ["get", "/"],
        ["G T", "/"],
        ["GET", "/", "-H", "x"],
        ["GET", "/", "-H", "x y: z"],
        ["GET", "/", "-H", "x: y\r\nz: 1"],
        ["GET", "/", "-c", "a.yaml", "--live"],
    ],
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of:
        main(["explain", *arguments])
    assert exit_of.value.code == USAGE
    assert capsys.readouterr().err


@pytest.mark.usefixtures("read")
def test_what_is_no_url_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "GET", "ftp://h/", "-c", "a.yaml"]) == USAGE
    assert "neither an http URL nor a path" in capsys.readouterr().err


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a running service answers, by path."""
    endpoint = {
        "url": "http://a:80",
        "healthy": False,
        "why": "unhealthy: status 500",
        "ewma_ms": 1.25,
        "inflight": 2,
        "weight": 1,
        "zone": None,
        "priority": 0,
    }
    answers: dict[str, Any] = {
        "/api/config": json.loads(msgspec.json.encode(CONFIG)),
        "/api/upstreams": [{"name": "billing", "endpoints": [endpoint]}],
    }
    monkeypatch.setattr(client.Client, "call", lambda _self, _method, path, _body=None: (200, answers[path]))
    return answers


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("options", [["--live"], []])
def test_live_config_is_the_default(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "GET", "/v1/x", "--control", "unix:/x.sock", *options]) == OK
    assert "route     billing" in capsys.readouterr().out


def test_live_endpoints_are_shown_with_their_state(
    service: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explain", "GET", "/v1/x", "--control", "unix:/x.sock"]
    assert main(command) == OK
    assert "  endpoint  http://a:80   unhealthy: status 500, 1.2 ms, 2 in flight\n" in capsys.readouterr().out
    service["/api/upstreams"] = [{"name": "billing", "endpoints": []}]
    assert main(command) == OK
    assert "none now: the answer is 503 no_endpoint" in capsys.readouterr().out


def test_token_of_the_service_is_shown_as_it_stands(
    service: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    oauth2 = {"token_url": "https://id.test/t", "client_id": "me", "client_secret": "***"}
    service["/api/config"]["upstreams"]["billing"]["auth"] = {"oauth2": oauth2}
    service["/api/upstreams"][0]["token"] = {"valid_for_s": 271.3, "problem": None, "next_try_s": None}
    assert main(["explain", "GET", "/v1/x", "--control", "unix:/x.sock"]) == OK
    said = " ".join(capsys.readouterr().out.split())
    assert "credential oauth2, a token for client me from https://id.test/t" in said
    assert "token a token for 271 s" in said


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, None),
        ({"state": "open", "retry_at": 10.0}, "open for 4 s more, then probes"),
        (
            {"state": "half_open", "local": [{}]},
            "half-open: probes pass, nothing else; 1 worker(s) have opened their own",
        ),
        (
            {"state": "open", "forced": {"state": "open", "until": 61.0, "by": "ann", "reason": "work"}},
            "held open for 55 s more by ann: work",
        ),
        (
            {"forced": {"state": "closed", "until": None, "by": "ann", "reason": "work"}},
            "held closed by ann: work",
        ),
    ],
)
def test_breakers_of_the_service_are_shown_where_they_are_not_simply_closed(
    service: dict[str, Any], capsys: pytest.CaptureFixture[str], told: dict[str, Any], said: str | None
) -> None:
    service["/api/config"]["upstreams"]["billing"]["breaker"] = {}
    plain: dict[str, Any] = {"state": "closed", "forced": None, "local": [], "retry_at": None, "now": 6.0}
    names = ("billing", "billing2", "route:other")
    service["/api/breakers"] = [{"name": name, **plain, **told} for name in names]
    assert main(["explain", "GET", "/v1/x", "--control", "unix:/x.sock", "--json"]) == OK
    lines = json.loads(capsys.readouterr().out)["lines"]
    expected = [] if said is None else [f"billing now: {said}"]
    assert [line["text"] for line in lines if line["what"] == "breaker"][1:] == expected


def test_service_of_another_version(service: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    service["/api/config"]["version"] = 7
    assert main(["explain", "GET", "/", "--control", "unix:/x.sock"]) == NO
    assert "another version" in capsys.readouterr().err


def test_service_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "GET", "/", "--live", "--control", f"unix:{tmp_path}/none.sock"]) == UNREACHABLE
    assert "cannot reach" in capsys.readouterr().err


def test_certificates_of_the_running_service_are_told_by_it(
    service: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tls = ServerConfig(cert="/none.crt", key="/none.key")
    config = msgspec.structs.replace(CONFIG, listeners=(Listener(address="127.0.0.1:8443", tls=tls),))
    certificates = [{"side": "client", "file": "/none.crt", "names": ["h"]}]
    service["/api/config"] = msgspec.to_builtins(config)
    service["/api/upstreams"] = []
    service["/api/status"] = {"certificates": certificates}
    assert main(["explain", "GET", "https://h/v1/x", "--control", "unix:/x.sock"]) == OK
    assert "127.0.0.1:8443: /none.crt (h) for h; TLS 1.2 or newer" in capsys.readouterr().out
