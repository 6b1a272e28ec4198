from __future__ import annotations

import json

import pytest
import yaml

from ambassador.cli import main
from tests.cli.service import FakeService

ROUTES = [
    {
        "name": "billing",
        "match": {
            "host": ["a", "*.b"],
            "path": {"regex": "/x"},
            "methods": ["GET"],
            "headers": {"x-a": "1", "x-b": {"present": True}, "x-c": "on"},
        },
        "to": "billing",
        "policies": ["timeout", "retry"],
        "line": 7,
    },
    {"name": "health", "match": {"host": "*", "path": "/h/**"}, "to": "respond", "policies": [], "line": 11},
    {"name": "rest", "match": {"host": "*"}, "to": "redirect", "policies": ["timeout"], "line": 14},
]


def test_routes_are_listed_in_order(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["GET", "/api/routes"] = (200, ROUTES)
    assert main(["routes"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "ROUTE MATCH TO POLICIES LINE",
        (
            'billing {host: [a, "*.b"], path: {regex: /x}, methods: [GET],'
            ' headers: {x-a: "1", x-b: {present: true}, x-c: "on"}} billing timeout retry 7'
        ),
        "health {path: /h/**} respond 11",
        "rest everything redirect timeout 14",
    ]
    assert main(["routes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ROUTES


def test_without_a_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes", "--control", "unix:/none"]) == 3
    assert "cannot reach the service" in capsys.readouterr().err


def test_a_match_in_text_is_yaml(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    match = {
        "path": "/a/{id}",
        "headers": {"x": 'a "b": c', "y": "é # d", "z": ["", "~", "1"]},
        "query": {"no": "null"},
    }
    service.answers["GET", "/api/routes"] = (200, [{**ROUTES[1], "match": match}])
    assert main(["routes"]) == 0
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert yaml.safe_load(line.split(None, 1)[1].partition("  respond")[0]) == match
