"""The types, the field table and the schema know the same fields: docs/adding-a-field.md leads through all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mikrom_reconcile.core.model.desired import (
    Balloon,
    Boot,
    Check,
    Drive,
    NetworkInterface,
    PinnedFile,
    Policy,
    RootDisk,
    VMSpec,
    Vsock,
)
from mikrom_reconcile.core.model.fields import FIELDS, RECORD, impact_of, is_row_of, recorded
from mikrom_reconcile.core.specs.networks import OF_INTERFACES
from tests.contract.field_rows import ROWS

SCHEMAS = Path(__file__).parents[3] / "schemas"
SCHEMA = json.loads((SCHEMAS / "fleet.schema.json").read_text(encoding="utf-8"))
IMAGE = json.loads((SCHEMAS / "image.schema.json").read_text(encoding="utf-8"))["properties"]["spec"]
KERNEL = PinnedFile(source="file:///k", sha256="0" * 64)
FLEET = SCHEMA["properties"]["spec"]["properties"]


def paths_in(fields: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from paths_in(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def paths_of(schema: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, entry in schema.get("properties", {}).items():
        if "properties" in entry:
            yield from paths_of(entry, f"{above}{name}.")
        elif isinstance(named := entry.get("additionalProperties"), dict):
            yield f"{above}{name}.*"
            yield from paths_of(named, f"{above}{name}.*.")
        else:
            yield f"{above}{name}"


OF_A_NETWORK = {f"network_interfaces.*.{word}" for word in OF_INTERFACES}
"""What the document of a network says, for all VMs that are on it."""

WHOLE = {"vsock", "balloon"}
"""Rows of mappings that appear and vanish as a whole; what is in them has rows, too."""

UNWRITTEN = OF_A_NETWORK | WHOLE | {f"{path}.**" for path in ("mmds", *OF_A_NETWORK)}

FULL = VMSpec(
    image="web",
    boot=Boot(kernel=KERNEL, initrd=KERNEL, rootfs=RootDisk(source=KERNEL.source, sha256=KERNEL.sha256)),
    drives={"data": Drive(size_mib=1)},
    network_interfaces={"eth0": NetworkInterface(network="prod", publish={"8080": 80})},
    command=("sh",),
    env={"A": "b"},
    mmds={"role": "web"},
    cpu_config={"msr_modifiers": []},
    vsock=Vsock(),
    balloon=Balloon(),
    checks={"port": Check(type="tcp", port=80)},
)


def test_everything_that_is_recorded_has_a_row_in_the_table_and_every_row_is_recorded() -> None:
    fields = recorded(fleet="web", state="running", spec=FULL, policy=Policy())
    paths = set(paths_in(fields))
    unknown = {path for path in paths if not any(is_row_of(row, path) for row in FIELDS)}
    assert not unknown
    above = {path.rpartition(".")[0] for path in paths} | {"boot", "boot.initrd"}
    assert {row for row in FIELDS if not any(is_row_of(row, path) for path in paths | above)} == set()


def test_the_schema_of_images_opens_all_that_a_vm_boots() -> None:
    boot = {path.removeprefix("boot.") for path in FIELDS if path.startswith("boot.")}
    of_containers = {f"rootfs.{word}" for word in ("oci", "oci_layout", "docker_archive")}  # all become a source
    assert set(paths_of(IMAGE)) - {"boot_args"} - of_containers == boot - {"initrd", "rootfs"} | {
        "rootfs.source",
        "kernel.source",
    }


def test_the_schema_opens_every_field_of_a_vm_wherever_one_is_written() -> None:
    written = set(VMSpec.__struct_fields__) - {"boot"}  # what an image's name stands for is written in its document
    rows = {path for path in FIELDS if path.partition(".")[0] in written} - UNWRITTEN | {"state"}
    template = set(paths_of(FLEET["template"]))
    assert {path for path in template if not any(is_row_of(row, path) for row in rows)} == set()
    assert {row for row in rows if not any(is_row_of(row, path) for path in template)} == set()
    assert set(paths_of(FLEET["overrides"]["items"])) - {"match"} == template
    assert set(paths_of(FLEET["instances"]["additionalProperties"])) - {"host"} == template


def test_every_field_of_a_vmm_can_be_ignored() -> None:
    ignorable = FLEET["lifecycle"]["properties"]["ignore_changes"]["items"]["else"]["enum"]
    elsewhere = ("boot.", *(path for path in FIELDS if "*" in path))  # meant by `image`, or of names that people chose
    known = (path for path in FIELDS if not f"{path}.".startswith(elsewhere))
    assert sorted(ignorable) == sorted(["image", *(path for path in known if impact_of(path) != "record")])


def test_each_row_of_the_table_is_carried_out_and_seen_by_a_contract_test() -> None:
    assert set(ROWS) == set(FIELDS), (
        "give the row another value and a place where it is seen: tests/contract/field_rows.py"
    )


def test_drift_policies_may_name_every_field_that_a_vmm_is_asked_for() -> None:
    named = FLEET["drift"]["properties"]["fields"]["propertyNames"]["else"]["enum"]
    asked = {"machine", "boot_args", "mmds_config", "entropy", "vsock", "balloon"}
    assert set(named) == {row for row in FIELDS if row.split(".")[0] in asked} | {RECORD}
