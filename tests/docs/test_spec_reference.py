"""docs/reference/specs.md is what tools/spec_reference.py makes of the schemas."""

from __future__ import annotations

from tools.spec_reference import PAGE, page


def test_the_reference_is_made_from_the_schemas() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_field_of_a_vm_is_in_it() -> None:
    for field in ("spec.template.machine.mem_size_mib", "spec.instances.<name>.host", "spec.hosts.<name>.vars"):
        assert f"| `{field}` |" in page()
