"""What every host refuses again, whoever checked it before."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import (
    Balloon,
    Boot,
    Check,
    Drive,
    Machine,
    MmdsConfig,
    PinnedFile,
    VMSpec,
    Vsock,
)
from mikrom_reconcile.core.specs.validate_vms import gets_entropy, unsupported


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (VMSpec(image="debian"), 'not built in as "hello" is'),
        (VMSpec(image="hello", machine=Machine(vcpu_count=33)), "Firecracker takes 1 to 32"),
        (VMSpec(image="hello", boot_args="é" * 1024), "boot_args has 2048 bytes"),
        (VMSpec(image="hello", drives={f"d{n}": Drive(size_mib=1) for n in range(18)}), None),
        (VMSpec(image="hello", drives={f"d{n}": Drive(size_mib=1) for n in range(19)}), "are 19; Firecracker takes 18"),
        (VMSpec(image="hello", drives={f"d{n}": Drive(size_mib=1) for n in range(18)}, vsock=Vsock()), "are 19;"),
        (VMSpec(image="hello", machine=Machine(huge_pages="2M", mem_size_mib=9)), "it is an even number"),
        (VMSpec(image="hello", machine=Machine(huge_pages="2M"), balloon=Balloon()), "exclude each other"),
        (VMSpec(image="hello", balloon=Balloon(amount_mib=128)), "leaves nothing of machine.mem_size_mib, 128"),
        (VMSpec(image="hello", balloon=Balloon(amount_mib=127), vsock=Vsock()), None),
        (
            VMSpec(image="hello", machine=Machine(cpu_template="T2"), cpu_config={}),
            "cpu_config and machine.cpu_template",
        ),
        (VMSpec(image="hello", mmds_config=MmdsConfig(imds_compat=True)), "is for VMs that have mmds: leave it out"),
        (VMSpec(image="hello", mmds={}), "mmds is read over a network interface"),
        (VMSpec(image="hello", checks={"up": Check(type="console", port=1, deny="(")}), None),
        (VMSpec(image="hello"), None),
    ],
)
def test_a_host_refuses_what_cannot_run_and_not_what_only_misleads(spec: VMSpec, word: str | None) -> None:
    assert (word is None and unsupported(spec) is None) or str(word) in str(unsupported(spec))


BOOT = Boot(kernel=PinnedFile(source="file:///k", sha256="0" * 64))
WEB = VMSpec(image="web", boot=BOOT)


@pytest.mark.parametrize(
    ("spec", "gets"),
    [
        (WEB, True),
        (VMSpec(image="hello"), False),
        (replace(WEB, entropy=False), False),
        (replace(WEB, drives={f"d{n}": Drive(size_mib=1) for n in range(17)}), True),
        (replace(WEB, drives={f"d{n}": Drive(size_mib=1) for n in range(18)}), False),
        (replace(WEB, boot_args="x" * 2003), True),
        (replace(WEB, boot_args="x" * 2004), False),
    ],
)
def test_entropy_takes_no_room_that_a_vm_needs_for_what_was_asked_for(spec: VMSpec, gets: bool) -> None:  # noqa: FBT001
    assert gets_entropy(spec) == gets
