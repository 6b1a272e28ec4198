"""The schema described: each field's documentation, and JSON Schema for editors.

The JSON Schema is of the file as it is written (`250ms`, a bare duration for `timeout`), not of what loading makes of
it. It says less than `ambassador check` does: it is there so that an editor completes keys and marks slips.
"""

from __future__ import annotations

import ast
import inspect as python_inspect
import textwrap
from functools import cache
from itertools import pairwise
from typing import Any

from msgspec import NODEFAULT, inspect

from ambassador.config import display
from ambassador.config.read import section_of
from ambassador.config.schema import Document, Endpoint
from ambassador.settings import Section

_DURATION = r"^(0|([0-9]+(\.[0-9]+)?(us|ms|s|m|h|d))+)$"
_CONTENT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "header": {"type": "string", "examples": ["x-status=error"]},
        "json": {"type": "string", "examples": ["status=error"]},
        "body": {"type": "string", "examples": ["<(soap:)?Fault>"]},
    },
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
_STRINGS: dict[str, dict[str, Any]] = {
    "duration": {"type": ["string", "integer"], "pattern": _DURATION, "maximum": 0, "minimum": 0, "examples": ["250ms", "2s", "5m"]},
    "hedge_after": {"type": "string", "examples": ["p95", "50ms"]},
    "duration_range": {"type": "string", "examples": ["25ms..250ms"]},
    "size": {"type": ["string", "integer"], "pattern": r"^(0|[0-9]+(\.[0-9]+)? ?[KkMmGgTt]?[Ii]?[Bb])$", "maximum": 0, "minimum": 0, "examples": ["64KiB"]},
    "byte_rate": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?[KkMmGgTt]?[Ii]?[Bb]/s$", "examples": ["256B/s"]},
    "percent": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?%$", "examples": ["20%"]},
    "rate": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([eE]\+?[0-9]+)? ?/ ?[smhd]$", "examples": ["100/s", "5000/m", "1e6/d"]},
    "san_pattern": {"type": "string", "examples": ["*.internal", "spiffe://trust/ns/*"]},
    "jwks_source": {"type": "string", "pattern": r"^(https?://.+|(file:)?/.+)$", "examples": ["https://id.example.com/jwks"]},
    "client_name": {"type": "string", "pattern": r"^(\*|[A-Za-z0-9_][A-Za-z0-9_.-]{0,99})$"},
    "limit_per": {"type": "string", "pattern": r"^(route|client|client_ip|upstream|header:.+)$", "examples": ["client_ip", "header:x-tenant"]},
    "balance_key": {"type": "string", "pattern": r"^(client_ip|header:.+|cookie:.+)$", "examples": ["client_ip", "header:x-tenant"]},
    "zone": {"type": "string", "examples": ["eu-west-1a", "env:ZONE"]},
    "limit_cost": {"type": ["integer", "string"], "pattern": r"^([1-9][0-9]*|header:.+)$", "minimum": 1, "examples": ["header:x-cost"]},
    "name": {"type": "string", "pattern": r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"},
    "secret": {"type": "string", "pattern": r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.*)$", "examples": ["env:TOKEN", "file:/run/secrets/token"]},
    "state_url": {"type": "string", "pattern": r"^(local|rediss?(\+sentinel|\+cluster)?://[^/?#]+.*|unix:/.+)$", "examples": ["local", "redis://127.0.0.1:6379/0"]},
    "listen_address": {"type": "string", "pattern": r"^(unix:/.+|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|[^:\[\]]+:[0-9]{1,5})$", "examples": ["127.0.0.1:8080"]},
    "control": {"type": "string", "pattern": r"^unix:/.+$"},
    "endpoint_url": {"type": "string", "pattern": r"^([Hh][Tt][Tt][Pp][Ss]?://[^/?#@]+/?|unix:/.+)$", "examples": ["http://127.0.0.1:9000"]},
    "host_port": {"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):[0-9]{1,5}$", "examples": ["api.internal:8080"]},
    "srv_name": {"type": "string", "examples": ["_http._tcp.api.internal"]},
    "file_path": {"type": "string", "pattern": "^/"},
    "pem_file": {"type": "string", "pattern": "^(file:)?/", "examples": ["/run/tls/tls.crt"]},
    "tls_version": {"enum": [1.2, 1.3, "1.2", "1.3"]},
    "server_name": {"type": "string", "examples": ["api.example.com"]},
    "kubernetes_name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
    "kubernetes_port": {"type": ["string", "integer"], "minimum": 1, "maximum": 65535, "examples": ["http"]},
    "api_server": {"type": "string", "pattern": "^https?://[^/?#@]+/?$", "examples": ["https://10.0.0.1:6443"]},
    "token_url": {"type": "string", "pattern": "^https?://[^#@]+$", "examples": ["https://id.example.com/oauth/token"]},
    "path": {"type": "string", "pattern": "^/"},
    "path_pattern": {"type": "string", "pattern": "^/", "examples": ["/v1/**", "/v1/accounts/{id}"]},
    "method": {"type": "string", "pattern": "^[A-Z]+$"},
    "header_name": {"type": "string"},
    "component": {"type": "string", "examples": ["@method", "content-type"]},
    "retry_condition": {"anyOf": [{"type": ["string", "integer"], "examples": ["connect", "5xx", "502-504"]}, _CONTENT]},
    "status_range": {"type": ["string", "integer"], "examples": ["204", "200-399", "2xx"]},
    "failure_condition": {"anyOf": [{"type": ["string", "integer"], "examples": ["timeout", "5xx", "502-504"]}, _CONTENT]},
    "proxy_url": {"type": "string", "pattern": r"^(http|socks5h?)://[^/?#@]+/?$", "examples": ["http://proxy:3128", "socks5://proxy:1080"]},
    "egress_place": {"type": "string", "examples": ["10.0.0.0/8", "api.internal", "*.internal"]},
    "log_target": {"type": "string", "examples": ["stdout"]},
    "workers": {"type": ["string", "integer"], "pattern": "^auto$", "minimum": 1, "maximum": 1024},
}  # fmt: skip


@cache
def field_docs(section: type[Section]) -> dict[str, str]:
    """The documentation of each field of a section, inherited ones too; empty where the source is not at hand."""
    docs: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if issubclass(cls, Section) and cls is not Section:
            docs.update(_own_docs(cls))
    return docs


def _own_docs(section: type[Section]) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(python_inspect.getsource(section)))
    except (OSError, TypeError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs: dict[str, str] = {}
    for before, after in pairwise(body):
        named = isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[before.target.id] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
    return docs


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a config file."""
    definitions: dict[str, Any] = {}
    root = _reference(Document, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ambassador",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _reference(section: type[Section], definitions: dict[str, Any]) -> dict[str, Any]:
    name = _name_of(section)
    if name not in definitions:
        definitions[name] = {}
        definitions[name] = _section(section, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _name_of(section: type[Section]) -> str:
    module = section.__module__.rpartition(".")[2]
    own = module not in ("schema", section.__name__.lower())
    return f"{module}.{section.__name__}" if own else section.__name__


def _section(section: type[Section], definitions: dict[str, Any]) -> dict[str, Any]:
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    docs = field_docs(section)
    fields = [field for field in info.fields if not _is_internal(field)]
    properties = {field.encode_name: _property(field, docs, definitions) for field in fields}
    for alias, name in section.aliases.items():
        properties[alias] = {**properties[name], "description": f"The same as '{name}'."}
    for name, values in section.later.items():
        properties[name] = _later(values)
    mapping: dict[str, Any] = {
        "type": "object",
        "description": " ".join((section.__doc__ or "").split()),
        "properties": properties,
        "additionalProperties": False,
    }
    required = [field.encode_name for field in fields if field.required]
    if required:
        mapping["required"] = required
    if section.shorthand is None:
        return mapping
    short = next(field for field in fields if field.encode_name == section.shorthand)
    return {"anyOf": [mapping, _type(short.type, None, definitions)]}


def _later(values: tuple[str, ...]) -> dict[str, Any]:
    text = "Not supported by this version"
    if not values:
        return {"description": f"{text}.", "not": {}}
    allowed: list[Any] = [*values, *([False] if "false" in values else [])]
    return {
        "description": f"{text} beyond {values[0]!r}.",
        "anyOf": [{"enum": allowed}, {"type": "array", "items": {"enum": allowed}}],
    }


def _is_internal(field: inspect.Field) -> bool:
    return isinstance(field.type, inspect.Metadata) and bool((field.type.extra or {}).get("internal"))


def _property(field: inspect.Field, docs: dict[str, str], definitions: dict[str, Any]) -> dict[str, Any]:
    described = {"description": docs[field.name]} if field.name in docs else {}
    default = _default(field)
    return {**described, **default, **_type(field.type, None, definitions)}


def _default(field: inspect.Field) -> dict[str, Any]:
    if field.default is NODEFAULT or field.default is None or field.default == ():
        return {}
    shown = display.show(field.default, field.type)
    return {} if isinstance(shown, dict) else {"default": shown}


_OFF: dict[str, Any] = {"enum": ["off", False]}


def _type(info: inspect.Type, form: str | None, definitions: dict[str, Any]) -> dict[str, Any]:
    if isinstance(info, inspect.Metadata):
        return _type(info.type, (info.extra or {}).get("form", form), definitions)
    if form == "target":
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": _reference(Endpoint, definitions)}]}
    if form == "endpoints":
        item = _reference(Endpoint, definitions)
        return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}
    if form == "workers":
        return _STRINGS["workers"]
    if isinstance(info, inspect.UnionType):
        members = [
            _OFF if isinstance(m, inspect.NoneType) else _type(m, form, definitions) for m in info.types
        ]
        return {"anyOf": members}
    if isinstance(info, inspect.StructType):
        return _reference(section_of(info), definitions)
    if form is not None:
        return _STRINGS.get(form, {"type": ["string", "number", "boolean"]})
    return _plain(info, definitions)


def _plain(info: inspect.Type, definitions: dict[str, Any]) -> dict[str, Any]:
    if isinstance(info, inspect.LiteralType):
        return {"enum": list(info.values)}
    if isinstance(info, inspect.BoolType):
        return {"enum": [True, False, "on", "off", "yes", "no"]}
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        kind = "integer" if isinstance(info, inspect.IntType) else "number"
        bounds = {"minimum": info.ge, "maximum": info.le, "exclusiveMinimum": info.gt}
        return {"type": kind, **{key: value for key, value in bounds.items() if value is not None}}
    if isinstance(info, inspect.VarTupleType):
        item = _type(info.item_type, None, definitions)
        least = {"minItems": info.min_length} if info.min_length else {}
        several = {"type": "array", "items": item, **least}
        short = (
            not isinstance(info.item_type, inspect.StructType)
            or section_of(info.item_type).shorthand is not None
        )
        return {"anyOf": [item, several]} if short else several
    if isinstance(info, inspect.TupleType):
        items = [_type(inner, None, definitions) for inner in info.item_types]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if isinstance(info, inspect.DictType):
        return {"type": "object", "additionalProperties": _type(info.value_type, None, definitions)}
    return {"type": ["string", "number", "boolean"]}
