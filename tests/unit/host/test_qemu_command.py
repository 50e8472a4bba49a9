"""The command line of a QEMU says what a spec wants, and gives it back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.host.drivers.qemu import (
    Accelerator,
    QemuDriver,
    command_line,
    read_back,
)
from mikrom_reconcile.host.drivers.vmm import StateLayout
from mikrom_reconcile.host.drivers.vmm_driver import Answer
from mikrom_reconcile.host.resources.disks import ROOT_ID, Disk
from mikrom_reconcile.host.resources.networks import Interface
from mikrom_reconcile.host.resources.provisioner import VMResources

PATHS = StateLayout(Path("/srv/mikrom"), Path("/run/a,b")).of("web-001")
KERNEL = Path("/srv/kernel")
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


def disk(name: str, path: str | None = None, *, read_only: bool = False) -> Disk:
    return Disk(name=name, path=Path(path or f"/srv/{name}.img"), read_only=read_only)


def line(
    spec: VMSpec, *disks: Disk, interfaces: tuple[Interface, ...] = (), accelerator: Accelerator = "tcg"
) -> list[str]:
    media = VMResources(kernel=KERNEL, boot_args=spec.boot_args, disks=disks, interfaces=interfaces)
    return list(command_line(spec, media, PATHS, accelerator))


def after(option: str, argv: list[str]) -> str:
    return argv[argv.index(option) + 1]


@given(
    boot_args=st.one_of(
        WORDS,
        st.sampled_from(["-smp", "-m", "-name", "-append", "-drive", " root=/dev/vda rw", " root=/dev/vda ro", ""]),
    ),
    machine=st.builds(Machine, vcpu_count=st.integers(1, 32), mem_size_mib=st.integers(1, 1048576)),
    paths=st.lists(WORDS.map(lambda text: f"/srv/{text}"), max_size=3),
    rooted=st.booleans(),
    read_only=st.booleans(),
)
def test_what_a_spec_says_is_read_back(
    boot_args: str, machine: Machine, paths: list[str], *, rooted: bool, read_only: bool
) -> None:
    disks = [disk(f"d{number}", path) for number, path in enumerate(paths)]
    if rooted:
        disks.insert(0, disk(ROOT_ID, "/srv/r,oot", read_only=read_only))
    nics = tuple(
        Interface(name=f"eth{number}", tap=f"mk{number}", mac=f"06:00:00:00:00:0{number}", mtu=number * 1000 or None)
        for number in range(len(paths))
    )
    argv = line(VMSpec(image="x", machine=machine, boot_args=boot_args), *disks, interfaces=nics)
    assert after("-name", argv) == "web-001"
    assert read_back(argv, "running") == Answer(
        status="running",
        machine=machine,
        boot_args=boot_args,
        disks={disk.name: disk for disk in disks},
        interfaces={nic.name: nic for nic in nics},
        entropy=False,  # the demo guest gets none
    )


def test_a_command_line_that_is_not_ours_says_nothing() -> None:
    for argv in ([], ["-smp"], ["-smp", "2", "-m", "1G"], ["-smp", "cpus=2", "-m", "8M"]):
        assert read_back(argv, "running") == Answer(status="running")
    assert read_back(["-drive", "file=/a"], "paused") == Answer(status="paused")


def test_disks_stand_on_the_bus_in_their_order_and_the_root_disk_is_mounted_as_under_firecracker() -> None:
    argv = line(VMSpec(image="x", boot_args="quiet"), disk(ROOT_ID, read_only=True), disk("data"))
    devices = [value for value in argv if value.startswith("virtio-blk")]
    assert devices == [f"virtio-blk-device,drive={name},serial={name}" for name in (ROOT_ID, "data")]
    assert after("-append", argv) == "quiet root=/dev/vda ro"
    assert f"readonly=on,id={ROOT_ID}" in after("-drive", argv)


def test_a_comma_in_a_path_ends_no_option() -> None:
    assert after("-qmp", line(VMSpec(image="x"))) == "unix:/run/a,,b/web-001/api.sock,server=on,wait=off"


@pytest.mark.parametrize(("accelerator", "words"), [("kvm", "kvm -cpu host"), ("tcg", "tcg,tb-size=64 -cpu max")])
def test_an_accelerator_brings_its_cpu(accelerator: Accelerator, words: str) -> None:
    assert f"-accel {words}" in " ".join(line(VMSpec(image="x"), accelerator=accelerator))


def test_what_was_translated_takes_memory_too(tmp_path: Path) -> None:
    driver, need_mib = QemuDriver(Path("qemu"), state_dir=tmp_path, run_dir=tmp_path), {}
    for accelerator in ("kvm", "tcg"):
        driver._accelerator = accelerator
        need_mib[accelerator] = driver.memory_mib(VMSpec(image="x"))
    assert need_mib["tcg"] > need_mib["kvm"] > VMSpec(image="x").machine.mem_size_mib


def test_an_initrd_is_loaded_if_there_is_one() -> None:
    media = VMResources(kernel=KERNEL, initrd=Path("/srv/initrd"))
    assert after("-initrd", list(command_line(VMSpec(image="x"), media, PATHS, "tcg"))) == "/srv/initrd"
    assert "-initrd" not in line(VMSpec(image="x"))


@pytest.mark.parametrize(
    ("accelerator", "vcpu_count", "steady"), [("tcg", 1, True), ("tcg", 2, False), ("kvm", 1, False)]
)
def test_the_clock_of_one_emulated_vcpu_counts_instructions(
    accelerator: Accelerator, vcpu_count: int, *, steady: bool
) -> None:
    spec = VMSpec(image="x", machine=Machine(vcpu_count=vcpu_count))
    assert ("-icount" in line(spec, accelerator=accelerator)) is steady
