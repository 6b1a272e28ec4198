"""The effective config as people write it: what `/api/config` shows. Secrets are masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct, inspect

from ambassador.config import units
from ambassador.config.schema import Config
from ambassador.config.secrecy import URLS, hidden, may_be_secret, without_query
from ambassador.config.veil import MASK
from ambassador.proxy import content

_FORMATS: dict[str, Callable[[Any], Any]] = {
    "duration": units.format_duration,
    "duration_range": units.format_duration_range,
    "hedge_after": units.format_hedge_after,
    "size": units.format_size,
    "byte_rate": units.format_byte_rate,
    "percent": units.format_percent,
    "rate": units.format_rate,
    "failure_condition": content.written,
    "retry_condition": content.written,
}


def _masked(_reference: str) -> str:
    return MASK


def to_display(config: Config, mask: Callable[[str], str] = _masked) -> dict[str, Any]:
    """The config as plain data for JSON: quantities with their units, None as null, secrets, and what has the name of
    one, as `***`.

    `line` and `file` of the routes stay, so that it can be said where each comes from. `mask` gives what stands for the
    secret of a reference, or for such a text.
    """
    shown = show(config, inspect.type_info(Config), mask=mask)
    assert isinstance(shown, dict)
    return shown


def show(
    value: Any, info: inspect.Type, form: str | None = None, mask: Callable[[str], str] = _masked
) -> Any:
    """A value of a type as plain data; `form` is how its text is written, if it is one of the kinds of `settings`."""
    if value is None:
        return None
    if isinstance(info, inspect.Metadata):
        return show(value, info.type, (info.extra or {}).get("form", form), mask)
    if isinstance(info, inspect.UnionType):
        return show(value, _member(value, info), form, mask)
    if form == "secret":
        return mask(value)
    if form in URLS:
        told = without_query(value)
        return told if told == value or told is None else told.replace(MASK, mask(value))
    if form in _FORMATS:
        return _FORMATS[form](value)
    if isinstance(info, inspect.StructType):
        return {
            field.encode_name: show(getattr(value, field.name), field.type, mask=mask)
            for field in info.fields
        }
    if isinstance(info, inspect.DictType):
        return {
            key: show(hidden(inner, mask) if may_be_secret(key, inner) else inner, info.value_type, mask=mask)
            for key, inner in value.items()
        }
    if isinstance(info, inspect.VarTupleType):
        return [show(inner, info.item_type, mask=mask) for inner in value]
    return list(value) if isinstance(value, tuple) else value


def _member(value: Any, info: inspect.UnionType) -> inspect.Type:
    """The member of a union that a value is of."""
    others = [inner for inner in info.types if not isinstance(inner, inspect.NoneType)]
    for inner in others:
        bare = inner.type if isinstance(inner, inspect.Metadata) else inner
        if isinstance(bare, inspect.StructType) == isinstance(value, Struct) and (
            isinstance(bare, inspect.VarTupleType) == isinstance(value, tuple)
        ):
            return inner
    return others[0]
