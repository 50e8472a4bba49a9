"""The command line of a QEMU: a pure function of spec, media and places, and what can be read back from one.

QEMU takes its whole configuration at its start, so that the command line of the process is what it really runs.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec

from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.host.drivers.vmm import Places
from mikrom_reconcile.host.resources.disks import ROOT_ID, Disk
from mikrom_reconcile.host.resources.networks import Interface
from mikrom_reconcile.host.resources.provisioner import VMResources
from mikrom_reconcile.limits import VMMS

PROGRAM = "QEMU"

Accelerator = Literal["kvm", "tcg"]
"""What runs the guest's instructions: the CPU through KVM, or QEMU's translator."""

METADATA_ID = "mmds"
"""The serial number of the disk that the guest finds its metadata on; the last of its disks."""

OVERHEAD_MIB: dict[Accelerator, int] = {
    "kvm": VMMS.qemu_overhead_mib,
    "tcg": VMMS.qemu_overhead_mib + VMMS.qemu_translated_mib,
}
"""Memory of a QEMU beside its guest's: 42 MiB were measured with the demo guest, 107 with an emulated Linux."""

_ACCELERATION: dict[Accelerator, tuple[str, ...]] = {
    "kvm": ("-accel", "kvm", "-cpu", "host"),
    "tcg": ("-accel", f"tcg,tb-size={VMMS.qemu_translated_mib}", "-cpu", "max"),
}

_STEADY_CLOCK = ("-icount", "shift=auto")
"""The translator's clock counts instructions: a Linux that measures its clocks on a busy host hangs without it (6.1:
"tsc: Unable to calibrate against PIT"). With more than one vCPU it hangs with it.
"""

_MACHINE = (
    # a timer, an interrupt controller and a keyboard, as a Firecracker has them; the guest finds devices through ACPI
    *("-M", "microvm,rtc=on,pic=on,pit=on,auto-kernel-cmdline=off", "-device", "i8042"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"),
    "-no-reboot",  # a guest that resets itself has ended, as under Firecracker
)

_ROOT = {False: " root=/dev/vda rw", True: " root=/dev/vda ro"}
_NETDEV = re.compile(r"tap,id=(?P<name>\w+),ifname=(?P<tap>\w+),")
_NIC = re.compile(r"virtio-net-device,netdev=(?P<name>\w+),mac=(?P<mac>[0-9a-f:]+)")
_DRIVE = re.compile(r"if=none,format=raw,readonly=\w+,id=(?P<name>\w+),file=(?P<path>.*)", re.DOTALL)


def bare_arguments(accelerator: Accelerator, *, kernel: Path, boot_args: str, machine: Machine) -> tuple[str, ...]:
    """What boots `kernel` and nothing more."""
    return (
        *_MACHINE,
        *_ACCELERATION[accelerator],
        *(_STEADY_CLOCK if accelerator == "tcg" and machine.vcpu_count == 1 else ()),
        *("-smp", str(machine.vcpu_count), "-m", f"{machine.mem_size_mib}M"),
        *("-kernel", str(kernel), "-append", boot_args),
    )


def arguments(spec: VMSpec, media: VMResources, places: Places, accelerator: Accelerator) -> tuple[str, ...]:
    """The whole command line but the program. The guest stands still (`-S`) until it is told to go on."""
    disks = media.disks
    if media.metadata is not None:
        disks = (*disks, Disk(name=METADATA_ID, path=places.metadata, read_only=True))
    return (
        *("-name", places.vm, "-S"),
        *bare_arguments(
            accelerator, kernel=media.kernel, boot_args=media.boot_args + _root_of(media.disks), machine=spec.machine
        ),
        *(() if media.initrd is None else ("-initrd", str(media.initrd))),
        *(word for disk in disks for word in _disk_arguments(disk)),
        *(word for interface in media.interfaces for word in _nic_arguments(interface)),
        *("-chardev", f"file,id=console,append=on,path={_quoted(places.console)}", "-serial", "chardev:console"),
        *("-qmp", f"unix:{_quoted(places.socket)},server=on,wait=off"),
        *("-pidfile", str(places.pidfile), "-d", "cpu_reset"),  # both tell how it ended
    )


def metadata_disk(metadata: dict[str, Any]) -> bytes:
    """A disk that holds the metadata as JSON and line ends behind it: QEMU has no metadata service."""
    return msgspec.json.encode(metadata, order="deterministic").ljust(VMMS.qemu_metadata_bytes, b"\n")


def _root_of(disks: tuple[Disk, ...]) -> str:
    """What Firecracker adds to the boot arguments for a root disk, so that one spec boots under both."""
    return next((_ROOT[disk.read_only] for disk in disks if disk.name == ROOT_ID), "")


def _disk_arguments(disk: Disk) -> tuple[str, ...]:
    """One disk. QEMU finds the places on its bus, so that a guest names disks in their order, /dev/vda first."""
    mode = "on" if disk.read_only else "off"
    return (
        *("-drive", f"if=none,format=raw,readonly={mode},id={disk.name},file={_quoted(disk.path)}"),
        *("-device", f"virtio-blk-device,drive={disk.name},serial={disk.name[:20]}"),
    )


def _nic_arguments(interface: Interface) -> tuple[str, ...]:
    """An interface; a guest names them in their order, too."""
    return (
        *("-netdev", f"tap,id={interface.name},ifname={interface.tap},script=no,downscript=no"),
        *("-device", f"virtio-net-device,netdev={interface.name},mac={interface.mac}"),
    )


def name_in(argv: list[str]) -> str:
    """The VM's name in a command line; "" if it has none."""
    return _after("-name", argv) or ""


def machine_in(argv: list[str]) -> Machine | None:
    """The machine that a command line asks for; None if it is not one of ours."""
    vcpu_count, mem_size = _after("-smp", argv) or "", _after("-m", argv) or ""
    mem_size_mib = mem_size.removesuffix("M")
    if not (vcpu_count.isdecimal() and mem_size_mib.isdecimal() and mem_size.endswith("M")):
        return None
    return Machine(vcpu_count=int(vcpu_count), mem_size_mib=int(mem_size_mib))


def boot_args_in(argv: list[str]) -> str | None:
    """The kernel's command line, without what a root disk adds to it."""
    text = _after("-append", argv)
    if text is None or ROOT_ID not in disks_in(argv):
        return text
    return text[: -len(_ROOT[False])]  # as long as the other


def disks_in(argv: list[str]) -> dict[str, str]:
    """The disks by name, and the path of each."""
    found = (_DRIVE.fullmatch(value) for value in _values("-drive", argv))
    return {drive["name"]: drive["path"].replace(",,", ",") for drive in found if drive}


def interfaces_in(argv: list[str]) -> dict[str, Interface]:
    """The interfaces by name, with the tap and the MAC address of each."""
    taps = {found["name"]: found["tap"] for value in _values("-netdev", argv) if (found := _NETDEV.match(value))}
    macs = {found["name"]: found["mac"] for value in _values("-device", argv) if (found := _NIC.fullmatch(value))}
    return {
        name: Interface(name=name, tap=tap, mac=macs.get(name, ""), bandwidth_mbit=None) for name, tap in taps.items()
    }


def _values(option: str, argv: list[str]) -> list[str]:
    return [value for word, value in pairwise(argv) if word == option]


def _after(option: str, argv: list[str]) -> str | None:
    """What follows the first `option`. What we look for stands before the boot arguments, which may hold any word."""
    place = argv.index(option) if option in argv else len(argv)
    return argv[place + 1] if place + 1 < len(argv) else None


def _quoted(path: Path) -> str:
    """A path as the value of a suboption, in which a comma ends it."""
    return str(path).replace(",", ",,")
