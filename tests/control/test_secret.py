from __future__ import annotations

from pathlib import Path

import pytest

from ambassador.control.secret import SecretError, read_secret


def test_secret_is_read_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "from env")
    (tmp_path / "t").write_text("from file\n")
    assert read_secret("env:TOKEN") == "from env"
    assert read_secret(f"file:{tmp_path}/t") == "from file"
    (tmp_path / "t").write_text("\n")
    for bad in ("env:NONE", f"file:{tmp_path}/none", f"file:{tmp_path}/t"):
        with pytest.raises(SecretError):
            read_secret(bad)
