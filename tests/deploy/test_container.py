"""The image's and compose's files are what their tools take, and say what the rest of the repository does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
BIN = Path(sys.executable).parent


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def services() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return tree


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run(BIN / "hadolint", DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_image_runs_without_root_and_ends_by_a_drain() -> None:
    final = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", final, re.MULTILINE)
    assert not re.search(r"^RUN", final, re.MULTILINE)  # so that a base without a shell will do


@pytest.mark.parametrize("instruction", ["HEALTHCHECK", "CMD"])
def test_commands_of_the_image_exist(instruction: str) -> None:
    found = re.findall(r"^(?:HEALTHCHECK.*\\\n\s+)?CMD (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE)
    arguments = [part for part in yaml.safe_load(found[instruction == "CMD"]) if part != "ambassador"]
    done = run(sys.executable, "-m", "ambassador", arguments[0], "--help")
    assert done.returncode == 0, done.stderr
    for option in (argument for argument in arguments if argument.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}\b", done.stdout)


def test_compose_file_is_of_the_specification() -> None:
    done = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
    assert done.returncode == 0, done.stdout


def test_config_of_compose_passes_the_check_without_a_warning() -> None:
    done = run(sys.executable, "-m", "ambassador", "check", DEPLOY / "compose" / "ambassador.yaml")
    assert done.returncode == 0, done.stdout
    assert "warning" not in done.stdout + done.stderr


def test_compose_gives_a_replica_time_to_drain() -> None:
    config = yaml.safe_load((DEPLOY / "compose" / "ambassador.yaml").read_text())
    drain_s = sum(int(config["drain"][key].removesuffix("s")) for key in ("delay", "timeout"))
    assert int(services()["ambassador"]["stop_grace_period"].removesuffix("s")) > drain_s


def test_config_expects_the_replicas_that_compose_starts() -> None:
    config = yaml.safe_load((DEPLOY / "compose" / "ambassador.yaml").read_text())
    assert config["state"]["expected_replicas"] == services()["ambassador"]["deploy"]["replicas"]


def test_services_of_compose_may_do_little() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_services_of_compose_come_back_after_a_reboot() -> None:
    for name, service in services().items():
        assert service["restart"] == "unless-stopped", name


def test_redis_of_compose_is_given_no_capability() -> None:
    redis = services()["redis"]
    assert "cap_add" not in redis
    assert redis["user"] == "999:1000"  # what the image calls valkey, on Debian and on Alpine


# What the entrypoint of the image does before it becomes the server.
ENTRYPOINT = """
set -e
if [ "$(id -u)" = 0 ]; then
    find . \\! -user 999 -exec chown 999 {} +
    exec setpriv --reuid=999 --regid=1000 --clear-groups -- "$@"
fi
[ -w . ]
umask 0077
exec "$@"
"""


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root, and setpriv")
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
def test_redis_of_compose_starts_again_on_what_it_has_written() -> None:
    redis = services()["redis"]
    user, _, group = redis["user"].partition(":")
    with tempfile.TemporaryDirectory() as data:
        os.chown(data, int(user), int(group))
        os.chmod(data, 0o1777)  # as the volume is made from the image
        arguments = [data if part == "/data" else part for part in redis["command"][1:]]
        server = ["redis-server", *arguments, "--port", "0", "--unixsocket", f"{data}/socket"]
        as_service = [
            "setpriv",
            f"--reuid={user}",
            f"--regid={group}",
            "--clear-groups",
            "--bounding-set=-all",
        ]
        for _ in range(2):
            command = [*as_service, "sh", "-c", ENTRYPOINT, "sh", *server]
            with subprocess.Popen(command, cwd=data, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                said = []
                for line in process.stdout:
                    said.append(line)
                    if "eady to accept connections" in line:
                        break
                process.terminate()
            assert any("eady to accept connections" in line for line in said), said
        assert (
            Path(data, "appendonlydir").stat().st_mode & 0o777 == 0o700
        )  # where the second start could fail


@pytest.mark.skipif(shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None, reason="needs haproxy")
def test_haproxy_takes_its_config() -> None:
    done = run(
        shutil.which("haproxy", path="/usr/sbin:/usr/bin"), "-c", "-f", DEPLOY / "compose" / "haproxy.cfg"
    )
    assert done.returncode == 0, done.stderr


def test_yaml_is_tidy() -> None:
    rules = (
        "{extends: default, rules: {line-length: {max: 120}, braces: {max-spaces-inside: 1}, "
        "document-start: disable, comments: {min-spaces-from-content: 2}}}"
    )
    done = run(BIN / "yamllint", "-s", "-d", rules, DEPLOY / "compose", DEPLOY / "examples")
    assert (done.returncode, done.stdout) == (0, "")
