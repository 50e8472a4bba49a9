"""Which host may need which files: those of every VM that it may get, and no others."""

from __future__ import annotations

from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.placement.desired_state import files_by_host, named_files, validate_specs
from mikrom_reconcile.core.specs.load import Specs
from mikrom_reconcile.wiring import schemas

SPECS = """\
apiVersion: mikrom/v1
kind: Inventory
metadata: {name: all}
spec: {hosts: {hv01: {vars: {rack: a}}, hv02: {vars: {rack: b}}, hv03: {state: drain}}}
---
apiVersion: mikrom/v1
kind: Image
metadata: {name: linux}
spec:
  kernel: {source: "https://x/kernel", sha256: KERNEL}
  rootfs: {source: "https://x/rootfs", sha256: ROOTFS}
---
apiVersion: mikrom/v1
kind: Image
metadata: {name: spare}
spec: {kernel: {source: "https://x/kernel", sha256: KERNEL}, initrd: {source: "https://x/initrd", sha256: INITRD}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec: {replicas: 2, placement: {constraint: [{attribute: host.rack, value: a}]}, template: {image: linux}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: demo}
spec: {replicas: 1, template: {image: hello}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: gone}
spec: {replicas: 1, template: {image: spare, state: absent}}
"""


def specs() -> Specs:
    text = SPECS
    for number, name in enumerate(("KERNEL", "ROOTFS", "INITRD")):
        text = text.replace(name, f'"{number}{"a" * 63}"')
    return validate_specs(
        SourceTree(revision="r", files=(SourceFile(path="a.yml", text=text),)), schemas(), here="localhost"
    )


def test_a_host_needs_the_files_of_the_vms_that_it_may_get() -> None:
    found = files_by_host(specs(), here="localhost")
    assert {host: [file.part for file in files] for host, files in found.items()} == {
        "hv01": ["kernel", "rootfs"],
        "hv02": [],
        "hv03": [],
    }
    assert found["hv01"][0].source == "https://x/kernel"


def test_all_files_that_documents_name_are_listed_used_or_not() -> None:
    assert [(file.image, file.part) for file in named_files(specs())] == [
        ("linux", "kernel"),
        ("linux", "rootfs"),
        ("spare", "kernel"),
        ("spare", "initrd"),
    ]
