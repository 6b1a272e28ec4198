"""Writes `docs/reference.md` from the config's Structs: `python docs/make_reference.py`; `--check` only compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ambassador.config.describe import json_schema

PAGE = Path(__file__).resolve().parent / "reference.md"

HEAD = """\
# Reference of the config

Made from the code by `docs/make_reference.py`; change the docstrings, not this page. `ambassador schema` prints the same
as JSON Schema, for editors.

A config is YAML (JSON is YAML). Durations are written `250ms`, `2s`, `5m`; sizes `64KiB`; percents `10%`; ranges
`25ms..250ms`. `off` switches off what may be switched off. A secret is never in the file: `env:NAME` or `file:/path`.
What a later version will have is refused as *not supported by this version*; what is unknown is refused too.
"""

REF = "#/$defs/"
ROOT = "Document"
LATER = "Not supported by this version"


def mapping(definition: dict[str, Any]) -> dict[str, Any]:
    """The long form of a section: that with the properties."""
    forms = [form for form in definition.get("anyOf", [definition]) if "properties" in form]
    return forms[0] if forms else definition


def linked(value: object) -> Iterator[str]:
    """The sections that a part of the schema refers to, in order."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield str(value["$ref"]).removeprefix(REF)
        for inner in value.values():
            yield from linked(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from linked(inner)


def in_order(definitions: dict[str, Any]) -> list[str]:
    """Sections as a reader meets them: each after the one that first names it."""
    order = [ROOT]
    for name in order:
        order += [other for other in dict.fromkeys(linked(mapping(definitions[name]))) if other not in order]
    return order


def title(name: str) -> str:
    """What a section is called: `retry.Config` is the section `retry`."""
    if name == ROOT:
        return "The file"
    module, _, kind = name.rpartition(".")
    return module if module and kind == "Config" else kind


def row(name: str, field: dict[str, Any], *, required: bool) -> str:
    """One key of a section."""
    sections = " ".join(f"[{title(s)}](#{title(s).lower()})" for s in dict.fromkeys(linked(field)))
    default = "required" if required else f"`{field['default']}`" if "default" in field else ""
    text = str(field.get("description", "")).replace("|", "\\|")
    return f"| `{name}` | {default} | {text}{' → ' + sections if sections else ''} |"


def page() -> str:
    """The whole page."""
    definitions = json_schema()["$defs"]
    parts = [HEAD]
    for name in in_order(definitions):
        section = mapping(definitions[name])
        fields = section.get("properties", {})
        built = {key: field for key, field in fields.items() if LATER not in field.get("description", "")}
        later = [f"`{key}`" for key in fields if key not in built]
        required = section.get("required", [])
        parts.append(f"## {title(name)}\n\n{section.get('description', '')}\n")
        parts.append("| key | default | what it says |\n|---|---|---|")
        parts.extend(row(key, field, required=key in required) for key, field in built.items())
        if later:
            parts.append(f"\nOf a later version: {', '.join(later)}.")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    """Write the page, or say whether it is up to date."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
