from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request


def test_the_samples_do_as_their_names_say_and_end_with_their_input() -> None:
    command = [sys.executable, "-m", "ambassador.cli.samples"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        urls = json.loads(process.stdout.readline())
        assert get(urls["healthy"] + "/x") == (200, "application/json")
        assert [get(urls["flaky"])[0] for _ in range(4)] == [503, 200, 503, 200]
        assert get(urls["slow"] + "/?seconds=0.01")[0] == 200
        assert get(urls["soap"])[1].startswith("text/xml")
        process.stdin.close()
        assert process.wait(10) == 0


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.headers["content-type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"]
