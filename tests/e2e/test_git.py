"""git over HTTP: chunked and compressed request bodies, streamed answers, a client that is strict about all of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.origins import blob, git_application, wsgi
from tests.e2e.programs import DEADLINE_S, ambassador, needs

pytestmark = needs("git")


def git(*arguments: str, at: Path) -> str:
    environment = os.environ | {
        "HOME": str(at),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
    }  # fmt: skip
    done = subprocess.run(
        ["git", *arguments], cwd=at, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A repository with one commit that is larger than any buffer on the way."""
    work, root = tmp_path / "work", tmp_path / "root"
    work.mkdir()
    root.mkdir()
    git("init", "-q", "-b", "main", at=work)
    (work / "large").write_bytes(os.urandom(3_000_000))
    (work / "text").write_text("one\n")
    git("add", ".", at=work)
    git("commit", "-q", "-m", "one", at=work)
    git("clone", "-q", "--bare", str(work), str(root / "project.git"), at=tmp_path)
    git("config", "http.receivepack", "true", at=root / "project.git")
    return root


@pytest.fixture
def url(bare: Path) -> Iterator[str]:
    with wsgi(git_application(bare)) as origin:
        with ambassador(f"routes: [{{name: git, match: {{path: '/**'}}, to: '{origin}'}}]") as proxy:
            yield f"{proxy.url}/project.git"


def test_clone_brings_the_repository(url: str, bare: Path, tmp_path: Path) -> None:
    git("clone", "-q", url, "copy", at=tmp_path)
    assert git("rev-parse", "HEAD", at=tmp_path / "copy") == git("rev-parse", "main", at=bare / "project.git")
    assert git("fsck", "--full", at=tmp_path / "copy") == ""


def test_push_in_chunks_and_fetch(url: str, bare: Path, tmp_path: Path) -> None:
    git("clone", "-q", url, "copy", at=tmp_path)
    copy = tmp_path / "copy"
    (copy / "more").write_bytes(blob(500_000) + os.urandom(500_000))
    git("add", ".", at=copy)
    git("commit", "-q", "-m", "two", at=copy)
    # A pack over postBuffer goes chunked.
    git("-c", "http.postBuffer=65536", "push", "-q", "origin", "main", at=copy)
    assert git("rev-parse", "HEAD", at=copy) == git("rev-parse", "main", at=bare / "project.git")

    git("clone", "-q", "--depth", "1", url, "shallow", at=tmp_path)
    git("fetch", "-q", "--unshallow", at=tmp_path / "shallow")
    assert git("rev-list", "--count", "HEAD", at=tmp_path / "shallow").strip() == "2"
