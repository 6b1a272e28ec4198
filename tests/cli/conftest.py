from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.service import FakeService, fake_service


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """The only service there is."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("AMBASSADOR_CONTROL", raising=False)
    with fake_service(tmp_path / "ambassador-8080.sock") as server:
        yield server
