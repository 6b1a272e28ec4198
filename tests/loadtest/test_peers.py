"""Each proxy is configured for the same job."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest import bulk, nginx_common, origin, processes
from loadtest.__main__ import UsageError, choose_proxies, choose_scenarios, possible
from loadtest.identity import Identity
from loadtest.job import Job
from loadtest.peers import PROXIES, ambassador, envoy, haproxy, nginx
from loadtest.scenarios import SCENARIOS

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def job(directory: Path, scenario: str = "plain", *, log: bool = False) -> Job:
    return Job(
        scenario=BY_NAME[scenario],
        port=8080,
        upstream_port=9000,
        admin_port=9901,
        directory=directory,
        access_log=directory / "access.log" if log else None,
    )


def texts(task: Job) -> dict[str, str]:
    return {
        "ambassador": json.dumps(ambassador.configuration(task)),
        "envoy": json.dumps(envoy.configuration(task)),
        "haproxy": haproxy.configuration(task),
        "nginx": nginx.configuration(task),
    }


def test_every_proxy_has_its_configuration_tested() -> None:
    assert {proxy.name for proxy in PROXIES} == set(texts(job(Path("/x"))))


@pytest.mark.parametrize("name", ["ambassador", "envoy", "haproxy", "nginx"])
def test_configurations_name_listener_and_upstream_and_log_only_when_told(name: str) -> None:
    text = texts(job(Path("/x")))[name]
    assert "8080" in text
    assert "9000" in text
    assert "/x/access.log" not in text
    if name != "haproxy":  # writes to its standard output, which is a file
        assert "/x/access.log" in texts(job(Path("/x"), log=True))[name]


@pytest.mark.parametrize("name", ["ambassador", "envoy", "haproxy", "nginx"])
def test_configurations_have_the_route_of_the_download_only_when_told(name: str) -> None:
    task = job(Path("/x"), "bulk")
    assert bulk.PATH not in texts(task)[name]
    text = texts(replace(task, bulk_port=9777))[name]
    assert bulk.PATH in text
    assert text.count("9777") == 1


@pytest.mark.parametrize("name", ["ambassador", "envoy", "nginx"])
def test_configurations_hold_every_route(name: str) -> None:
    text = texts(job(Path("/x"), "manyroutes"))[name]
    assert all(prefix in text for prefix in BY_NAME["manyroutes"].prefixes())


@pytest.mark.parametrize("name", ["ambassador", "envoy", "haproxy", "nginx"])
def test_configurations_show_and_verify_a_certificate_only_when_told(name: str) -> None:
    task = job(Path("/x"), "tls")
    assert "pem" not in texts(task)[name]
    tls = Identity(
        cert=Path("/x/cert.pem"),
        key=Path("/x/key.pem"),
        both=Path("/x/both.pem"),
        client_conf=Path("/x/conf"),
    )
    text = texts(replace(task, tls=tls))[name]
    assert ("both.pem" if name == "haproxy" else "key.pem") in text
    assert text.count("/x/cert.pem") == (1 if name == "haproxy" else 2)


def test_haproxy_keeps_its_many_routes_in_a_map(tmp_path: Path) -> None:
    haproxy.configure(job(tmp_path, "manyroutes"), "haproxy")
    lines = (tmp_path / "haproxy.map").read_text().splitlines()
    assert (len(lines), lines[-1]) == (500, "/svc-499/ origin")
    assert "map_beg" in (tmp_path / "haproxy.cfg").read_text()


def test_haproxy_logs_only_when_told() -> None:
    assert "log-format" not in haproxy.configuration(job(Path("/x")))
    assert "log-format" in haproxy.configuration(job(Path("/x"), log=True))


def test_fill_replaces_known_placeholders_and_keeps_other_braces() -> None:
    words = ambassador.fill(
        "python -c 'print({})' {listen} --up={upstream}", {"listen": "h:1", "upstream": "h:2"}
    )
    assert words == ["python", "-c", "print({})", "h:1", "--up=h:2"]


def test_custom_command_takes_the_ambassadors_place(tmp_path: Path) -> None:
    [proxy] = choose_proxies("ambassador", "{python} proto.py {listen_port} {upstream_port} {config}")
    launch = proxy.configure(job(tmp_path), "/usr/bin/python3")
    assert launch.command == ["/usr/bin/python3", "proto.py", "8080", "9000", f"{tmp_path}/ambassador.yaml"]
    assert json.loads((tmp_path / "ambassador.yaml").read_text())["version"] == 1


def test_choosing_keeps_the_order_given_and_refuses_unknown_names() -> None:
    assert [scenario.name for scenario in choose_scenarios("light, plain,light")] == ["light", "plain"]
    assert [proxy.name for proxy in choose_proxies("nginx,envoy", None)] == ["nginx", "envoy"]
    with pytest.raises(UsageError, match="caddy"):
        choose_proxies("envoy,caddy", None)
    with pytest.raises(UsageError, match="no such scenario"):
        choose_scenarios("")


def test_scenario_that_needs_priorities_is_skipped_without_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = choose_scenarios("plain,bulk")
    monkeypatch.setattr(processes, "may_prioritise", lambda: True)
    assert possible(chosen) == chosen
    monkeypatch.setattr(processes, "may_prioritise", lambda: False)
    assert [scenario.name for scenario in possible(chosen)] == ["plain"]
    assert "bulk skipped" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no scenario"):
        possible(choose_scenarios("bulk"))


def test_origin_has_its_files(tmp_path: Path) -> None:
    text = origin.write(tmp_path, 9000).read_text()
    assert (tmp_path / "origin" / "1m").stat().st_size == 2**20
    assert (tmp_path / "origin" / "64k").stat().st_size == 2**16
    assert (tmp_path / "origin" / "bulk").stat().st_size == origin.BULK_BYTES
    assert (tmp_path / "origin" / "bulk").stat().st_blocks < 100  # a hole
    assert "access_log off" in text


def test_origin_speaks_tls_only_when_told(tmp_path: Path) -> None:
    assert "ssl" not in origin.configuration(tmp_path, tmp_path, 9000)
    tls = Identity(cert=Path("/c"), key=Path("/k"), both=Path("/b"), client_conf=Path("/o"))
    text = origin.configuration(tmp_path, tmp_path, 9000, tls)
    assert text.count("listen") == text.count("9000 ssl ") == 2
    assert "ssl_certificate /c;" in text


def test_nginx_runs_in_the_foreground() -> None:
    assert "daemon off;" in nginx_common.command("nginx", Path("/x/nginx.conf"))
