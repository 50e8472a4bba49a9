"""Writes docs/reference/specs.md from schemas/: every field of every kind, its type, its default and what it means.

`make docs` runs it; a test holds the committed file to it. Nothing about a field is written here: it belongs into the
schema, where editors show it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "specs.md"
KINDS = ("Project", "Inventory", "Image", "Network", "Fleet", "Refactor")

_HEAD = """\
# The spec language, field by field

Generated from [schemas/](../../schemas) by `make docs`; `mikrom schema KIND` prints the same for editors. Keys in `<…>`
are names of your own, `[]` is each entry of a list.

## Which files are read

Files that end in `.yml` or `.yaml`, in upper case too, below the given folders, and files that are given by name,
whatever it is. Names that begin with a dot are left out. A file of another name that looks like a spec (`web.yml.off`,
`web.json`) is an error, so that no fleet counts as removed because of it; a copy beside its file (`web.yml~`,
`web.yml.bak`) is left alone, and so is every other file.

Variables of groups and hosts stand in `group_vars` and `host_vars`, anywhere, as Ansible has them: `group_vars/NAME`,
with `.yml`, `.yaml`, `.json` or without a suffix, or every such file in a folder `group_vars/NAME/`, in the order of
their names, a later one winning. Not both for one name. They are mappings without a schema.

## Variables

`${name}` looks up, in this order: what is built in (`name`, `index`, `fleet`, `project`, `host`: nobody can set those),
`-e`, the fleet's `vars`, `host_vars`, `group_vars`, the inventory's own. A value that is one lookup takes the
variable's type, inside text it becomes text, spelled as it was written (`1.30`). `$${` is the text `${`. `machine`,
`state` and `image` may look up variables of hosts in which all agree that may have the VM. Images look nothing up.
"""
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}


def page() -> str:
    """The whole page."""
    schemas = [json.loads((ROOT / "schemas" / f"{kind.lower()}.schema.json").read_text("utf-8")) for kind in KINDS]
    return _HEAD + "".join(_kind(schema) for schema in schemas)


def _kind(schema: dict[str, Any]) -> str:
    template = schema["properties"].get("spec", {}).get("properties", {}).get("template", {}).get("properties", {})
    rows = "".join(f"| {' | '.join(cells)} |\n" for cells in _rows(schema, "", template))
    head = f"\n## {schema['title']}\n\n{schema['description']}\n\n"
    return f"{head}| field | value | default | |\n|---|---|---|---|\n{rows}"


def _rows(schema: dict[str, Any], path: str, template: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row for each field below `path`; what repeats the template is named once."""
    repeated = {} if path == "spec.template" else {key for key in template if _fields(schema).get(key) == template[key]}
    for key, field in _fields(schema).items():
        here = f"{path}.{key}".lstrip(".")
        if key not in repeated:
            needed = " **(needed)**" if key in schema.get("required", ()) else ""
            default = f"`{json.dumps(field['default'])}`" if "default" in field else ""
            yield f"`{here}`{needed}", _value(field), default, _cell(field.get("description", ""))
            yield from _rows(field, here, template)
    if repeated:
        yield f"`{path}.…`", "", "", "Any field of `spec.template`."
    for part, inner in (("<name>", schema.get("additionalProperties")), ("[]", schema.get("items"))):
        if isinstance(inner, dict):
            below = f"{path}[]" if part == "[]" else f"{path}.{part}"
            yield from _rows(inner, below, template)


def _fields(schema: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = schema.get("properties", {})
    return fields


def _value(field: dict[str, Any]) -> str:
    """What may stand there, in words."""
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(word).strip(chr(34))}`" for word in field["enum"])
    types = field.get("type", [])
    return _cell(" or ".join(_word(name, field) for name in ([types] if isinstance(types, str) else types)))


def _word(name: str, field: dict[str, Any]) -> str:
    if name == "array":
        return f"list of {_value(field['items'])}"
    if name in {"integer", "number"} and "minimum" in field:
        return f"{field['minimum']} to {field['maximum']}" if "maximum" in field else f"{field['minimum']} or more"
    if name == "string" and field.get("pattern", "").startswith("^\\$"):
        return "a variable"
    return _TYPES[name]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
