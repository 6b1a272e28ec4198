from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ambassador import __version__
from ambassador.cli import doctor, main
from ambassador.cli.doctor import Host, host_findings, service_findings
from tests.cli.service import FakeService

HOST = Host(
    system="Linux",
    kernel="6.1.0-13-amd64",
    descriptors=1_048_576,
    somaxconn=4096,
    cpus=8,
    usable_cpus=4,
    has_re2=True,
)
WORKER = {"pid": 7, "ready": True, "loop_lag_ms": 0.5}
STATUS: dict[str, Any] = {
    "name": "a",
    "version": __version__,
    "generation": 3,
    "draining": False,
    "workers": [WORKER],
    "worker_restarts": 0,
    "state": {"backend": "local", "up": True},
    "last_reload": {"ok": True, "at": 1, "errors": []},
}
NOW = 1_800_000_000.0
UP = {"name": "u", "endpoints": [{"url": "http://a:1", "healthy": True, "why": None}]}
DOWN = {"name": "u", "endpoints": [{"url": "http://a:1", "healthy": False, "why": "no address"}]}


def test_a_good_host_has_nothing_to_complain_of() -> None:
    assert [finding.level for finding in host_findings(HOST)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("host", "level", "words"),
    [
        (replace(HOST, system="Darwin"), "error", "runs on Linux only"),
        (replace(HOST, kernel="5.4.0"), "error", "at least 5.10"),
        (replace(HOST, descriptors=1024), "warning", "LimitNOFILE"),
        (replace(HOST, somaxconn=128), "warning", "somaxconn=4096"),
        (replace(HOST, has_re2=False), "warning", "[re2]"),
    ],
)
def test_each_trouble_of_a_host_is_told_with_what_to_do(host: Host, level: str, words: str) -> None:
    (found,) = (finding for finding in host_findings(host) if finding.level != "ok")
    assert found.level == level
    assert words in str(found.advice)


def test_what_cannot_be_read_is_no_trouble() -> None:
    assert all(finding.level == "ok" for finding in host_findings(replace(HOST, somaxconn=None)))


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"draining": True}, "warning", "draining"),
        ({"workers": []}, "error", "workers do not start"),
        ({"version": "0.0.1"}, "warning", "USR2"),
        (
            {"last_reload": {"ok": False, "errors": ["a.yaml:1:1: error: x\n  1 | y"]}},
            "error",
            "a.yaml:1:1: error: x",
        ),
        ({"last_reload": {"ok": False, "errors": []}}, "error", "no reason"),
        ({"worker_restarts": 2}, "warning", "log"),
        ({"state": {"backend": "redis", "up": False}}, "error", "local"),
        (
            {"state": {"backend": "redis", "up": True, "warnings": ["set noeviction"]}},
            "warning",
            "noeviction",
        ),
        ({"workers": [WORKER | {"loop_lag_ms": 250.0}]}, "warning", "CPU"),
    ],
)
def test_each_trouble_of_a_service_is_told_with_what_to_do(
    change: dict[str, Any], level: str, words: str
) -> None:
    (found,) = (
        finding for finding in service_findings(STATUS | change, [UP], now=NOW) if finding.level != "ok"
    )
    assert found.level == level
    assert words in str(found.advice)
    assert "\n" not in str(found.advice)


def test_upstream_that_cannot_be_shown_its_credential_is_told_of() -> None:
    shut = UP | {"credential": "the credential for upstream a cannot be read"}
    found = [finding for finding in service_findings(STATUS, [shut], now=NOW) if finding.level != "ok"]
    assert [(finding.level, "cannot be read" in finding.what) for finding in found] == [("error", True)]


def test_a_service_that_was_never_reloaded_is_fine() -> None:
    assert [finding.level for finding in service_findings(STATUS | {"last_reload": None}, [UP], now=NOW)] == [
        "ok",
        "ok",
    ]


def test_certificates_are_warned_of_before_their_end_and_named_after_it() -> None:
    def certificate(days: float, problem: str | None = None, name: str = "a") -> dict[str, Any]:
        return {
            "side": "upstream" if name == "b" else "client",
            "name": name,
            "file": f"/{name}.pem",
            "expires": NOW + days * 86400,
            "problem": problem,
        }

    status = STATUS | {
        "certificates": [
            certificate(100),
            certificate(13.5),
            certificate(-1, name="b"),
            certificate(100, "key does not fit", name="c"),
            certificate(100, "key does not fit", name="c"),
        ]
    }
    found = [each for each in service_findings(status, [UP], now=NOW) if each.level != "ok"]
    assert [(each.level, each.what) for each in found] == [
        ("warning", "listener a: the certificate in /a.pem expires in 13.5 days"),
        ("error", "upstream b: the certificate in /b.pem has expired"),
        ("error", "listener c: changed files of TLS are not in use"),
    ]
    assert found[-1].advice == "key does not fit"


def test_sets_of_keys_that_cannot_be_read_are_told_of_with_since_when_and_why() -> None:
    def key_set(client: str, *, up: bool = False, has_keys: bool = True) -> dict[str, Any]:
        return {
            "client": client,
            "source": "https://id.test/jwks",
            "up": up,
            "since": None if up else 1_800_000_000.0,
            "problem": None if up else "was answered with status 500",
            "has_keys": has_keys,
        }

    status = STATUS | {
        "key_sets": [
            key_set("shop"),
            key_set("fine", up=True),
            key_set("till"),
            key_set("empty", has_keys=False),
        ]
    }
    found = [each for each in service_findings(status, [UP], now=NOW) if each.level != "ok"]
    told = "the keys of https://id.test/jwks cannot be read since 2027-01-15 08:00 UTC"
    assert [(each.level, each.what, each.advice) for each in found] == [
        (
            "warning",
            f"clients shop, till: {told}",
            "was answered with status 500; older keys are used, for 24 h at most",
        ),
        ("error", f"client empty: {told}", "was answered with status 500; tokens are refused"),
    ]


@pytest.fixture
def good_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_look_at_host", lambda: HOST)


@pytest.mark.usefixtures("good_host")
def test_exit_status(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["GET", "/api/status"] = (200, STATUS)
    service.answers["GET", "/api/upstreams"] = (200, [UP])
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "ok       a: generation 3, 1 workers ready",
        "ok       state store local: every worker reaches it",
    ]
    lost = {"backend": "redis://h", "up": False, "warnings": ["the store cannot be used: OOM"]}
    service.answers["GET", "/api/status"] = (200, STATUS | {"state": lost})
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "error    the state store redis://h is lost\n" in out
    assert "the store cannot be used: OOM" in out
    service.answers["GET", "/api/status"] = (200, STATUS)
    service.answers["GET", "/api/upstreams"] = (200, [DOWN])
    assert main(["doctor"]) == 1
    assert "error    upstream u: http://a:1 is down\n         no address\n" in capsys.readouterr().out
    assert main(["doctor", "--json", "--control", "unix:/none"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert [finding["level"] for finding in told] == ["ok", "ok", "error"]
    assert "cannot reach the service" in told[-1]["what"]


def test_this_host_can_be_looked_at() -> None:
    assert list(host_findings(doctor._look_at_host()))
