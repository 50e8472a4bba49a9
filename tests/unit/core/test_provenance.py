"""Where each value of a VM came from, layer by layer."""

from __future__ import annotations

from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.placement.desired_state import validate_specs
from mikrom_reconcile.core.specs.load import expand
from mikrom_reconcile.core.specs.resolve import Provenance

DB = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: db}
spec:
  vars: {size: 64}
  instances:
    db-a: {machine: {vcpu_count: 4}, boot_args: null}
    db-b:
  template: {image: hello, boot_args: "from the template", machine: {mem_size_mib: "${size}"}}
  overrides:
    - {match: "*", machine: {vcpu_count: 2}, restart: {attempts: 5}}
    - {match: db-b, boot_args: "from an override", restart: null}
    - {match: nobody, boot_args: "from nowhere"}
  prune: {max: 1}
"""


def places(name: str) -> dict[str, tuple[object, str]]:
    """Value and place of each field, by path."""
    specs = validate_specs(
        SourceTree(revision="r1", files=(SourceFile(path="db.yml", text=DB),)), wiring.schemas(), here="localhost"
    )
    vm = next(vm for vm in expand(specs) if vm.name == name)
    return {origin.path: (origin.value, origin.place) for origin in Provenance(specs).of(vm, "localhost")}


def test_the_strongest_layer_that_says_something_is_named() -> None:
    found = places("db-a")
    assert found["machine.vcpu_count"] == (4, "db.yml:7:34 instance db-a")
    assert found["restart.attempts"] == (5, "db.yml:11:66 override *")
    assert found["machine.mem_size_mib"] == (64, "db.yml:9:84 template")
    assert found["prune.max"] == (1, "db.yml:14:16 fleet")
    assert found["prune.allow_empty"] == (False, "default")
    other = places("db-b")
    assert other["machine.vcpu_count"] == (2, "db.yml:11:42 override *")
    assert other["boot_args"] == ("from an override", "db.yml:12:32 override db-b")


def test_what_a_null_resets_is_the_default_of_nobody_else() -> None:
    assert places("db-a")["boot_args"] == ("console=ttyS0", "default")
    assert places("db-b")["restart.attempts"] == (3, "default")
