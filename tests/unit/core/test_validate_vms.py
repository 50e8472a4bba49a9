"""What every host refuses again, whoever checked it before."""

from __future__ import annotations

import pytest

from mikrom_reconcile.core.model.desired import Check, Drive, Machine, VMSpec
from mikrom_reconcile.core.specs.validate_vms import unsupported


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (VMSpec(image="debian"), 'not built in as "hello" is'),
        (VMSpec(image="hello", machine=Machine(vcpu_count=33)), "Firecracker takes 1 to 32"),
        (VMSpec(image="hello", boot_args="é" * 1024), "boot_args has 2048 bytes"),
        (VMSpec(image="hello", drives={f"d{n}": Drive(size_mib=1) for n in range(18)}), None),
        (VMSpec(image="hello", drives={f"d{n}": Drive(size_mib=1) for n in range(19)}), "are 19; Firecracker takes 18"),
        (VMSpec(image="hello", mmds={}), "mmds is read over a network interface"),
        (VMSpec(image="hello", checks={"up": Check(type="console", port=1, deny="(")}), None),
        (VMSpec(image="hello"), None),
    ],
)
def test_a_host_refuses_what_cannot_run_and_not_what_only_misleads(spec: VMSpec, word: str | None) -> None:
    assert (word is None and unsupported(spec) is None) or str(word) in str(unsupported(spec))
