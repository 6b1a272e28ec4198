"""`ambassador schema`."""

from __future__ import annotations

import json

import pytest

from ambassador.cli import main


@pytest.mark.parametrize("arguments", [["schema"], ["schema", "--json"]])
def test_schema_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "Route" in printed["$defs"]
