"""The JSON Schema and the documentation in it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec import Struct, inspect

from ambassador.config.describe import field_docs, json_schema
from ambassador.config.read import section_of
from ambassador.config.schema import Document
from ambassador.settings import Section


def sections(section: type[Section], found: set[type[Section]]) -> set[type[Section]]:
    info = inspect.type_info(section)
    stack: list[Any] = [info]
    while stack:
        item = stack.pop()
        if isinstance(item, inspect.StructType) and section_of(item) not in found:
            found.add(section_of(item))
            stack += [field.type for field in item.fields]
        stack += list(getattr(item, "types", ()))
        stack += [getattr(item, name) for name in ("type", "item_type", "value_type") if hasattr(item, name)]
    return found


@pytest.mark.parametrize(
    "section", sorted(sections(Document, set()), key=str), ids=lambda section: section.__qualname__
)
def test_every_field_is_documented(section: type[Section]) -> None:
    assert issubclass(section, Struct)
    docs = field_docs(section)
    assert section.__doc__
    assert [name for name in section.__struct_fields__ if not docs.get(name)] == []


def test_schema_takes_the_written_forms() -> None:
    schema = json_schema()
    definitions = schema["$defs"]
    timeout = definitions["Timeout"]["anyOf"]
    assert timeout[0]["properties"]["total"]["default"] == "15s"
    assert re.search(timeout[1]["pattern"], "250ms")
    assert not re.search(timeout[1]["pattern"], "250")
    assert schema["$ref"] == "#/$defs/Document"
    assert set(definitions["Document"]["properties"]) >= {"listen", "routes", "include", "defaults"}
    route = definitions["Route"]["properties"]
    assert "line" not in route
    assert "file" not in route
    assert route["timeout"]["description"] == "How long things may take."


def test_schema_has_no_loose_references() -> None:
    schema = json_schema()
    wanted = set(re.findall(r"#/\$defs/([\w.]+)", str(schema)))
    assert wanted == set(schema["$defs"])
