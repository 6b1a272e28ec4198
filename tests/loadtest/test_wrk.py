"""Reading wrk's report, and the commands made for it."""

from pathlib import Path

import pytest

from loadtest import wrk
from loadtest.scenarios import SCENARIOS

REPORT = """\
Running 5s test @ http://127.0.0.1:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.02ms  210.11us   9.87ms   91.23%
    Req/Sec    31.20k     1.91k   34.11k    70.00%
  Latency Distribution
     50%  980.00us
     75%    1.10ms
     90%    1.21ms
     99%    1.72ms
  155213 requests in 5.10s, 36.71MB read
Requests/sec:  31042.60
Transfer/sec:      7.34MB
"""


def test_parse_reads_counts_and_percentiles_in_seconds() -> None:
    result = wrk.parse(REPORT)
    assert (result.requests, result.duration_s) == (155213, 5.1)
    assert result.p50_s == pytest.approx(980e-6)
    assert result.p99_s == pytest.approx(1.72e-3)
    assert result.errors == 0


def test_parse_counts_every_kind_of_error() -> None:
    lines = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
    result = wrk.parse(REPORT.replace("Requests/sec", lines + "Requests/sec"))
    assert (result.socket_errors, result.bad_status, result.errors) == (10, 5, 15)


@pytest.mark.parametrize(("text", "seconds"), [("2.50s", 2.5), ("1.00m", 60.0), ("15.00us", 15e-6)])
def test_parse_knows_every_unit(text: str, seconds: float) -> None:
    assert wrk.parse(REPORT.replace("1.72ms", text)).p99_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "unable to connect to 127.0.0.1:1 Connection refused", REPORT[:300]])
def test_parse_refuses_what_is_no_report(text: str) -> None:
    with pytest.raises(wrk.WrkError):
        wrk.parse(text)


def test_script_sends_a_post_of_the_size_asked_for() -> None:
    assert 'wrk.method = "POST"' in wrk.script(4096)
    assert 'string.rep("x", 4096)' in wrk.script(4096)


def test_command_follows_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.wrk.shutil.which", lambda name: f"/usr/bin/{name}")
    commands = {
        scenario.name: wrk.command(scenario, port=81, duration_s=5, directory=tmp_path)
        for scenario in SCENARIOS
    }
    assert "-c32" in commands["plain"]
    assert "-c1" in commands["light"]
    assert "Connection: close" in commands["churn"]
    assert "Connection: close" not in commands["plain"]
    assert str(tmp_path / "post4k.lua") in commands["post4k"]
    assert commands["manyroutes"][-1] == "http://127.0.0.1:81/svc-499/items"


def test_command_says_what_to_install_when_wrk_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.wrk.shutil.which", lambda _name: None)
    with pytest.raises(wrk.WrkError, match="apt-get install wrk"):
        wrk.command(SCENARIOS[0], port=81, duration_s=5, directory=tmp_path)
