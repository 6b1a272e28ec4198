"""The documentation is of this version: the generated page is current, and no link leads nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_reference_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_reference.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "the config's docstrings changed: run python docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_the_map_names_files_that_exist() -> None:
    text = (ROOT / "src" / "ambassador" / "__init__.py").read_text()
    package = ROOT / "src" / "ambassador"
    named = set(re.findall(r"`([a-z0-9_]+/[a-z0-9_/]*(?:\.py)?)`", text))
    assert [name for name in sorted(named) if not (package / name).exists()] == []
