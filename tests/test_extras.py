"""The extras are those of pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

from ambassador import extras
from ambassador.extras import Extra

ALL = [each for each in vars(extras).values() if isinstance(each, Extra)]


def test_extras_are_those_that_can_be_installed() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    written = project["optional-dependencies"]
    assert sorted(each.name for each in ALL) == sorted(written.keys() - {"full"})
    (full,) = written["full"]
    assert full == f"{project['name']}[{','.join(name for name in written if name != 'full')}]"
    assert f"'{project['name']}[redis]'" in extras.REDIS.hint


def test_extra_is_installed_when_all_its_modules_are_there() -> None:
    assert Extra("x", ("json",)).is_installed
    assert not Extra("x", ("json", "no_such_module_at_all")).is_installed
