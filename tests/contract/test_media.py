"""Real microVMs with images and disks of their own: what a Firecracker really has open, through the whole host side."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Boot, DesiredVM, Drive, Machine, PinnedFile, RootDisk, VMSpec
from mikrom_reconcile.host.resources.images import ImageCache
from tests.contract.drivers import RealBench
from tests.contract.field_rows import Socket
from tests.contract.hosts import Host
from tests.fakes import desired_vm, order
from tests.guests import MEM_MIB

pytestmark = pytest.mark.kvm
VM = "web-000"
MIB = 1 << 20


@pytest.fixture
def host(real: RealBench, own_environment: Path) -> Host:
    return Host(real, own_environment)


def pinned(folder: Path, name: str, content: bytes) -> PinnedFile:
    """A file that a spec can name, in the folder that images may come from."""
    path = folder / "state/images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return PinnedFile(source=f"file://{path}", sha256=hashlib.sha256(content).hexdigest())


def kernel_in(folder: Path) -> PinnedFile:
    return pinned(folder, "vmlinux", ImageCache(folder / "state").hello().read_bytes())


def wanted(folder: Path, root: bytes = b"root".ljust(MIB), *, name: str = VM, **fields: Any) -> DesiredVM:
    disk = pinned(folder, f"disk-{root[:4].decode()}", root)
    boot = Boot(kernel=kernel_in(folder), rootfs=RootDisk(source=disk.source, sha256=disk.sha256))
    return desired_vm(name, VMSpec(image="web", boot=boot, machine=Machine(mem_size_mib=MEM_MIB), **fields))


def disks_of(real: RealBench) -> dict[str, dict[str, Any]]:
    status, config = Socket(real.socket(VM)).ask("GET", "/vm/config")
    assert status == 200
    return {drive["drive_id"]: drive for drive in config["drives"]}


def test_a_vm_has_its_disks_through_restart_and_replace_and_retains_its_drive(
    host: Host, real: RealBench, own_environment: Path
) -> None:
    drives = {"data": Drive(size_mib=1)}
    seen = host.created(VM, wanted(own_environment, drives=drives))
    disks = disks_of(real)
    assert {disk["cache_type"] for disk in disks.values()} == {"Writeback"}  # else a guest's fsync does nothing
    assert [(name, disk["is_root_device"], disk["is_read_only"]) for name, disk in disks.items()] == [
        ("rootfs", True, False),
        ("data", False, False),
    ]
    root, data = (Path(disk["path_on_host"]) for disk in disks.values())
    assert root.read_bytes() == b"root".ljust(MIB)
    root.write_bytes(b"written".ljust(MIB))
    data.write_bytes(b"mine".ljust(MIB))

    grown = wanted(own_environment, drives={"data": Drive(size_mib=2)})
    assert [outcome.verb for outcome in host.converge(VM, grown)] == ["restart"]
    assert (root.read_bytes()[:7], data.read_bytes()[:4], data.stat().st_size) == (b"written", b"mine", 2 * MIB)

    replaced = wanted(own_environment, b"anew".ljust(MIB), drives={"data": Drive(size_mib=2)})
    assert [outcome.result for outcome in host.converge(VM, replaced)] == ["done"]
    assert not root.exists()
    now = disks_of(real)
    assert Path(now["rootfs"]["path_on_host"]).read_bytes()[:4] == b"anew"
    assert data.read_bytes()[:4] == b"mine"
    after = host.seen(VM)
    assert after is not None
    assert (after.uid, after.drift) == (seen.uid, ())

    host.converge(VM, None)
    kept = own_environment / "state"
    assert [path for path in real.leftovers() if path.is_relative_to(kept / "vms")] == []
    assert [path for path in real.leftovers() if path.is_relative_to(kept / "drives")] == [data]


def test_a_disk_that_was_put_in_behind_its_back_is_drift(host: Host, real: RealBench, own_environment: Path) -> None:
    desired = wanted(own_environment, drives={"data": Drive(size_mib=1)})
    host.created(VM, desired)
    other = own_environment / "other"
    other.write_bytes(b"\0" * MIB)
    status, _ = Socket(real.socket(VM)).ask("PATCH", "/drives/data", {"drive_id": "data", "path_on_host": str(other)})
    assert status == 204
    seen = host.seen(VM)
    assert seen is not None
    assert [(drift.path, drift.recorded, drift.actual) for drift in seen.drift] == [("drives.data", "data", None)]
    assert [outcome.verb for outcome in host.converge(VM, desired)] == ["restart"]


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (b"MZ".ljust(514, b"\0") + b"HdrS" + b"\0" * 600, "it is a bzImage that has no kernel in it"),
        (b"\x1f\x8b" + b"\0" * 600, "packed with gzip"),
        (b"#!/bin/sh\n" * 60, "no ELF file"),
        (b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + b"\xb7\0" + b"\0" * 600, "for another CPU"),
    ],
)
def test_what_firecracker_cannot_boot_is_found_out_before_it_is_tried(
    host: Host, real: RealBench, own_environment: Path, kernel: bytes, why: str
) -> None:
    boot = Boot(kernel=pinned(own_environment, "kernel", kernel))
    desired = desired_vm(VM, VMSpec(image="web", boot=boot, machine=Machine(mem_size_mib=MEM_MIB)))
    outcome = host.agent.execute(order("create", VM, desired=desired))
    assert outcome.result == "failed_permanent"
    assert why in str(outcome.error)
    assert real.pids(VM) == []


def test_a_wrong_digest_stops_that_vm_alone(host: Host, own_environment: Path) -> None:
    good = wanted(own_environment, name="web-001")
    assert good.spec.boot is not None
    wrong = replace(good.spec.boot, kernel=replace(good.spec.boot.kernel, sha256="0" * 64))
    bad = desired_vm(VM, replace(good.spec, boot=wrong))
    outcome = host.agent.execute(order("create", VM, desired=bad))
    assert outcome.result == "failed_permanent"
    assert "while fetching its kernel" in str(outcome.error)
    assert host.agent.execute(order("create", "web-001", desired=good)).result == "done"
