"""The types, the field table and the schema know the same fields: docs/adding-a-field.md leads through all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mikrom_reconcile.core.fields import FIELDS, SPEC_PATHS, recorded
from mikrom_reconcile.core.model.desired import Policy, VMSpec

SCHEMA = json.loads((Path(__file__).parents[3] / "schemas/fleet.schema.json").read_text(encoding="utf-8"))
FLEET = SCHEMA["properties"]["spec"]["properties"]


def paths_in(fields: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from paths_in(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def paths_of(schema: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, entry in schema["properties"].items():
        if "properties" in entry:
            yield from paths_of(entry, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def test_everything_that_is_recorded_has_a_row_in_the_table_and_every_row_is_recorded() -> None:
    fields = recorded(fleet="web", state="running", spec=VMSpec(image="hello"), policy=Policy())
    assert sorted(paths_in(fields)) == sorted(FIELDS)


def test_the_schema_opens_every_field_of_a_vm_wherever_one_is_written() -> None:
    of_a_vm = (path for path in FIELDS if path.partition(".")[0] in VMSpec.__struct_fields__)
    expected = sorted([*of_a_vm, "state"])
    assert sorted(paths_of(FLEET["template"])) == expected
    assert sorted(set(paths_of(FLEET["overrides"]["items"])) - {"match"}) == expected
    assert sorted(set(paths_of(FLEET["instances"]["additionalProperties"])) - {"host"}) == expected


def test_every_field_of_a_vm_can_be_ignored() -> None:
    ignorable = FLEET["lifecycle"]["properties"]["ignore_changes"]["items"]["enum"]
    assert sorted(ignorable) == sorted(SPEC_PATHS)
