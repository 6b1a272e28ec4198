from __future__ import annotations

import json

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService

ROUTES = [
    {
        "name": "billing",
        "match": {"host": ["a", "b"], "path": {"regex": "/x"}, "headers": {"x-a": "1"}},
        "to": "billing",
        "policies": ["timeout", "retry"],
        "line": 7,
    },
    {"name": "health", "match": {"host": "*", "path": "/h"}, "to": "respond", "policies": [], "line": 11},
    {"name": "rest", "match": {"host": "*"}, "to": "redirect", "policies": ["timeout"], "line": 14},
]


def test_routes_are_listed_in_order(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["GET", "/api/routes"] = (200, ROUTES)
    assert main(["routes"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "ROUTE MATCH TO POLICIES LINE",
        "billing host a|b, path regex=/x, headers x-a=1 billing timeout retry 7",
        "health path /h respond 11",
        "rest everything redirect timeout 14",
    ]
    assert main(["routes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ROUTES


def test_without_a_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes", "--control", "unix:/none"]) == 3
    assert "cannot reach the service" in capsys.readouterr().err
