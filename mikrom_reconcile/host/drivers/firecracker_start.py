"""What a Firecracker is started and configured with. Only the last request boots the guest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.host.drivers import cgroups
from mikrom_reconcile.host.drivers.jail import LOG, METRICS, SOCKET, Jail
from mikrom_reconcile.host.drivers.vmm import Places
from mikrom_reconcile.host.drivers.vmm_start import Command
from mikrom_reconcile.host.resources.disks import ROOT_ID
from mikrom_reconcile.host.resources.networks import Interface
from mikrom_reconcile.host.resources.provisioner import VMResources
from mikrom_reconcile.limits import VMMS

PROGRAM = "Firecracker"

_BYTES_A_MBIT = 125_000

_X86_64 = (62).to_bytes(2, "little")

Request = tuple[str, dict[str, object], str]
"""Path, content, and what is being done, in words."""


def command(binary: Path, places: Places) -> Command:
    """A Firecracker without a configuration. It logs to standard output unless told otherwise: that is the console."""
    argv = (
        *(str(binary), "--id", places.vm, "--api-sock", str(places.socket)),
        *("--log-path", str(places.log), "--level", "Warn"),  # a level lower it logs each request, so each observation
        *("--metrics-path", str(places.metrics)),
    )
    # it makes neither its log nor its metrics file
    return Command(
        driver="firecracker", program=PROGRAM, argv=argv, output=places.console, fresh=(places.log, places.metrics)
    )


def jailed(plain: Command, jailer: Path, jail: Jail, places: Places, machine: Machine) -> Command:
    """The same Firecracker in a jail. Without --daemonize, which would take its console and its lock."""
    argv = (
        *(str(jailer), "--id", places.vm, "--exec-file", plain.argv[0], "--chroot-base-dir", str(places.jail)),
        *("--uid", str(jail.uid), "--gid", str(jail.uid), "--new-pid-ns", *cgroups.arguments(places, machine), "--"),
        *("--api-sock", SOCKET, "--log-path", LOG, "--level", "Warn", "--metrics-path", METRICS),
    )
    return msgspec.structs.replace(plain, argv=argv, jail=jail)


def requests(spec: VMSpec, media: VMResources) -> Iterator[Request]:
    """What configures the VMM and boots its guest, in order."""
    machine: dict[str, object] = msgspec.to_builtins(spec.machine)
    if spec.machine.cpu_template is None:
        del machine["cpu_template"]
    yield "/machine-config", machine, "configuring the machine"
    boot_source: dict[str, object] = {"kernel_image_path": str(media.kernel), "boot_args": media.boot_args}
    if media.initrd is not None:
        boot_source["initrd_path"] = str(media.initrd)
    yield "/boot-source", boot_source, "configuring the boot source"
    for disk in media.disks:
        drive: dict[str, object] = {
            "drive_id": disk.name,
            "path_on_host": str(disk.path),
            "is_root_device": disk.name == ROOT_ID,
            "is_read_only": disk.read_only,
            "cache_type": "Writeback",  # the default, Unsafe, takes no flush from a guest: its fsync does nothing
        }
        yield f"/drives/{disk.name}", drive, f"configuring the disk {disk.name}"
    for interface in media.interfaces:
        nic: dict[str, object] = {"host_dev_name": interface.tap, "guest_mac": interface.mac} | limits_of(interface)
        doing = f"configuring the interface {interface.name}"
        yield f"/network-interfaces/{interface.name}", {"iface_id": interface.name} | nic, doing
    if media.metadata is not None:
        service: dict[str, object] = {"version": "V2", "network_interfaces": [nic.name for nic in media.interfaces]}
        yield "/mmds/config", service, "configuring the metadata service"
        yield "/mmds", media.metadata, "giving the guest its metadata"
    yield "/actions", {"action_type": "InstanceStart"}, "starting the guest"


def limits_of(interface: Interface) -> dict[str, object]:
    """What makes its rate limiters carry that much in each direction; without a limit, what takes one away."""
    mbit = interface.bandwidth_mbit
    bandwidth = (
        {"size": mbit * _BYTES_A_MBIT, "refill_time": VMMS.rate_refill_ms} if mbit else {"size": 0, "refill_time": 0}
    )
    return {f"{direction}_rate_limiter": {"bandwidth": bandwidth} for direction in ("rx", "tx")}


def mbit_of(size: int, refill_ms: int) -> int | None:
    """The bandwidth that a rate limiter allows, in megabits per second; None for no limit."""
    return size * VMMS.rate_refill_ms // (refill_ms * _BYTES_A_MBIT) if refill_ms else None


def kernel_problem(kernel: Path) -> str | None:
    """Why Firecracker cannot boot this kernel, None if nothing speaks against it. Raises OSError."""
    with kernel.open("rb") as content:
        head = content.read(1024)
    if head[514:518] == b"HdrS":
        return "its kernel is a bzImage, and Firecracker boots a vmlinux: unpack it with the kernel's extract-vmlinux"
    if head[:4] != b"\x7fELF":
        packed = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"\xfd\x37": "xz"}.get(head[:2])
        found = f"packed with {packed}: unpack it" if packed else "no ELF file"
        return f"its kernel is {found}; Firecracker boots a vmlinux"
    if head[18:20] != _X86_64:
        return f"its kernel is for another CPU (ELF machine {int.from_bytes(head[18:20], 'little')}, x86-64 is 62)"
    return None
