"""The example configs are right for this version."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.proxy.pem import Authority

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WHOLE_CONFIG = re.compile(r"^```yaml\n(version: 1\n.*?)^```", re.DOTALL | re.MULTILINE)


def check(*files: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ambassador", "check", *map(str, files)],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_example_passes_the_check_without_a_warning(file: Path) -> None:
    assert "warning" not in check(file)


def test_every_example_is_named_in_the_readme() -> None:
    text = (ROOT / "deploy" / "README.md").read_text()
    assert [file.name for file in EXAMPLES if file.name not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configs_of_the_documentation_pass_the_check(page: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    Path(authority.ca).rename(tmp_path / "ca.crt")
    for name in ("tls", "shop"):
        authority.issue("example.com", file=name)
    for number, text in enumerate(WHOLE_CONFIG.findall(page.read_text())):
        config = tmp_path / f"{number}.yaml"
        config.write_text(text.replace("/etc/ambassador/tls", str(tmp_path)))
        check(config)


def test_haproxy_of_the_compose_file_may_open_what_its_maxconn_needs() -> None:
    compose = ROOT / "deploy" / "compose"
    found = re.search(r"^    maxconn (\d+)$", (compose / "haproxy.cfg").read_text(), re.MULTILINE)
    assert found is not None
    services = yaml.safe_load((compose / "compose.yaml").read_text())["services"]
    limit = services["haproxy"]["ulimits"]["nofile"]
    # Both sides of a connection, and checks, listeners and the like.
    assert limit["soft"] == limit["hard"] >= 2 * int(found[1]) + 1000
