"""The extras: what a plain installation does without, which keys need one, and what to type where one is missing.

A key that always needs one is named in its section's `extras` (`settings.Section`). Where it depends on what is
written (`state: redis://…`, but not `state: local`), the value's parser asks `config.words.need`. Both make it an error
of the key, with its place, before anything is served; whoever imports the library may rely on that.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final, NamedTuple


class Extra(NamedTuple):
    """One of `pyproject.toml`. `modules` are those that others import when it is installed."""

    name: str
    modules: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """Whether all of it is there; nothing is imported."""
        return all(find_spec(module) is not None for module in self.modules)

    @property
    def hint(self) -> str:
        """How to install it."""
        return f"pip install 'ambassador-proxy[{self.name}]'"


AUTH: Final = Extra("auth", ("jwt", "cryptography"))
RE2: Final = Extra("re2", ("re2",))
REDIS: Final = Extra("redis", ("redis",))
