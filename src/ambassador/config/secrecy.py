"""Whether a config names secrets: then the processes that run it keep what they hold from other processes."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, inspect

from ambassador.config.schema import Config

_KEY = ("key", "pem_file")
"""The name and the form of a setting that is the file of a private key."""


def holds_secrets(config: Config) -> bool:
    """Whether whoever runs it reads a secret or a private key."""
    return _holds(config)


def _holds(value: Any) -> bool:
    if isinstance(value, Struct):
        info = inspect.type_info(type(value))
        assert isinstance(info, inspect.StructType)
        return any(
            _holds(inner) or (_is_secret(field) and inner != ())
            for field in info.fields
            for inner in [getattr(value, field.name)]
            if inner is not None
        )
    if isinstance(value, dict):
        return any(map(_holds, value.values()))
    return isinstance(value, tuple) and any(map(_holds, value))


def _is_secret(field: inspect.Field) -> bool:
    return any(form == "secret" or (field.name, form) == _KEY for form in _forms(field.type))


def _forms(info: inspect.Type) -> list[str]:
    """The forms of a type, of the members of a union, and of a list's items."""
    if isinstance(info, inspect.Metadata):
        form = (info.extra or {}).get("form")
        return [form] if form else _forms(info.type)
    if isinstance(info, inspect.UnionType):
        return [form for inner in info.types for form in _forms(inner)]
    return _forms(info.item_type) if isinstance(info, inspect.VarTupleType) else []
