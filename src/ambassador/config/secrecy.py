"""The secrets that a config names: whether there are any, which, at which keys, and the config without where they are.

Pure, and by the types of the settings: what is declared as a `Secret` is one, wherever it stands. Headers and
parameters are texts, so a credential may have been written into one in spite of all; there the name decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, TypeVar

from msgspec import Struct, inspect, structs

from ambassador.config.schema import Config, ValueMatch
from ambassador.config.veil import MASK
from ambassador.observe.access_log import mask_query
from ambassador.observe.secret_names import names_a_secret

_T = TypeVar("_T")
URLS: Final = frozenset(("token_url", "jwks_source"))
"""The forms of settings that are URLs which may have a query."""
_KEY: Final = ("key", "pem_file")
"""The name and the form of a setting that is the file of a private key."""


def holds_secrets(config: Config) -> bool:
    """Whether whoever runs it reads a secret or a private key."""
    return _holds(config)


def secret_files(config: Config) -> frozenset[str]:
    """The references of all secrets that are kept in files: `file:/path`."""
    return frozenset(each for each in _references(config) if each.startswith("file:"))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Struct):
        secrets = _secret_names(type(value))
        for name in value.__struct_fields__:
            inner = getattr(value, name)
            if name not in secrets:
                yield from _references(inner)
            elif inner is not None:
                yield from inner if isinstance(inner, tuple) else (inner,)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _references(inner)


def without_secrets(value: _T) -> _T:
    """The same section, or mapping or tuple of them, with every reference to a secret as `***`, and what stands under
    the name of one.
    """
    masked: Any = value
    if isinstance(value, Struct):
        secrets, urls = _secret_names(type(value)), _urls(type(value))
        changed = {}
        for name in value.__struct_fields__:
            inner = getattr(value, name)
            if name in secrets:
                outer = _masked(inner)
            else:
                outer = without_query(inner) if name in urls else without_secrets(inner)
            if outer is not inner:
                changed[name] = outer
        masked = structs.replace(value, **changed) if changed else value
    elif isinstance(value, dict):
        parts = {
            key: hidden(inner, lambda _: MASK) if may_be_secret(key, inner) else without_secrets(inner)
            for key, inner in value.items()
        }
        masked = parts if any(parts[key] is not inner for key, inner in value.items()) else value
    elif isinstance(value, tuple):
        items = tuple(map(without_secrets, value))
        masked = items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    result: _T = masked
    return result


def without_query(url: str | None) -> str | None:
    """A URL with `***` for the values in its query that have the name of a secret."""
    place, mark, query = (url or "").partition("?")
    return f"{place}?{mask_query(query.encode()).decode()}" if mark else url


def may_be_secret(name: str, value: object) -> bool:
    """Whether a header or a parameter of this name with this value may hold a credential that was written into it."""
    if isinstance(value, ValueMatch):
        return value.present is None and names_a_secret(name.encode())
    return isinstance(value, str) and names_a_secret(name.encode())


def hidden(value: str | ValueMatch, mask: Callable[[str], str]) -> Any:
    """What `mask` gives for it, in the form of what may be secret."""
    if isinstance(value, ValueMatch):
        return ValueMatch(exact=(mask(value.regex or "\n".join(value.exact or ())),))
    return mask(value)


def _masked(references: Any) -> Any:
    """In place of one reference, or of several."""
    if isinstance(references, tuple):
        return (MASK,) * len(references)
    return None if references is None else MASK


def _holds(value: Any) -> bool:
    if isinstance(value, Struct):
        private = _secret_names(type(value)) | _keys(type(value))
        return any(
            _holds(inner) or (name in private and inner not in (None, ()))
            for name in value.__struct_fields__
            for inner in [getattr(value, name)]
        )
    if isinstance(value, dict):
        return any(map(_holds, value.values()))
    return isinstance(value, tuple) and any(map(_holds, value))


def secret_keys(section: type[Struct]) -> frozenset[str]:
    """The keys of a section, as they are written, that name a secret, or several."""
    return frozenset(field.encode_name for field in _secrets(section))


@cache
def _secret_names(section: type[Struct]) -> frozenset[str]:
    return frozenset(field.name for field in _secrets(section))


@cache
def _secrets(section: type[Struct]) -> tuple[inspect.Field, ...]:
    """The fields of a section that name secrets."""
    return tuple(field for field in _fields(section) if "secret" in _forms(field.type))


@cache
def _urls(section: type[Struct]) -> frozenset[str]:
    """Those that are URLs which may have a query."""
    return frozenset(field.name for field in _fields(section) if URLS.intersection(_forms(field.type)))


@cache
def _keys(section: type[Struct]) -> frozenset[str]:
    """Those that are files of private keys."""
    return frozenset(
        field.name
        for field in _fields(section)
        if any((field.name, form) == _KEY for form in _forms(field.type))
    )


def _fields(section: type[Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    return info.fields


def _forms(info: inspect.Type) -> list[str]:
    """The forms of a type, of the members of a union, and of a list's items."""
    if isinstance(info, inspect.Metadata):
        form = (info.extra or {}).get("form")
        return [form] if form else _forms(info.type)
    if isinstance(info, inspect.UnionType):
        return [form for inner in info.types for form in _forms(inner)]
    return _forms(info.item_type) if isinstance(info, inspect.VarTupleType) else []
