"""QEMU microVMs: for machines on which Firecracker cannot run, and for guests that need another VMM. QEMU takes its
whole configuration at its start, so that the command line of the process is what it really runs: it is a pure function
of spec, resources and paths, and read back to see what runs.
"""

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, cached_property
from importlib.resources import as_file, files as package_files
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.core.model.encoding import decoded
from mikrom_reconcile.core.model.observed import End, VMMStatus
from mikrom_reconcile.core.specs import validate_vms
from mikrom_reconcile.host.drivers.connection import QMP
from mikrom_reconcile.host.drivers.jail import VMPaths
from mikrom_reconcile.host.drivers.select import kvm_problem
from mikrom_reconcile.host.drivers.vmm import VMM, Command
from mikrom_reconcile.host.drivers.vmm_driver import Answer, VMMDriver
from mikrom_reconcile.host.errors import FaultError, NoAnswerError, translate_errors
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.disks import ROOT_ID, Disk
from mikrom_reconcile.host.resources.networks import Interface
from mikrom_reconcile.host.resources.provisioner import VMResources
from mikrom_reconcile.system import processes
from mikrom_reconcile.system.files import make_folder, tail, write_whole
from mikrom_reconcile.times_and_sizes import VMMS

_STATUS: dict[str, VMMStatus] = {"prelaunch": "starting", "running": "running", "paused": "paused"}
_CTRL_ALT_DEL = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
Accelerator = Literal["kvm", "tcg"]  # what runs the guest's instructions: the CPU through KVM, or QEMU's translator

METADATA_ID = "mmds"  # the serial number of the disk that the guest finds its metadata on; the last of its disks

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
_NIC = re.compile(r"virtio-net-device,netdev=(?P<name>\w+),mac=(?P<mac>[0-9a-f:]+)(?:,host_mtu=(?P<mtu>\d+))?")
_DRIVE = re.compile(r"if=none,format=raw,readonly=(?P<mode>on|off),id=(?P<name>\w+),file=(?P<path>.*)", re.DOTALL)
_SIZES = re.compile(r"([0-9]+) ([0-9]+)M")
_ENTROPY = "virtio-rng-device"
_FIRECRACKERS = (
    *("machine.smt", "machine.cpu_template", "machine.huge_pages", "cpu_config"),
    *("mmds_config.imds_compat", "vsock", "balloon"),
)

_PVM = Path("/sys/module/kvm_pvm")


class QemuDriver(VMMDriver):
    """The driver for QEMU's microvm machine: through KVM if that works here, else in software emulation."""

    name = "qemu"
    program = "QEMU"

    def memory_mib(self, spec: VMSpec) -> int:
        """QEMU itself takes more than a small guest does, and what it has translated."""
        own_mib: int = VMMS.qemu_overhead_mib + (VMMS.qemu_translated_mib if self._accelerator == "tcg" else 0)
        return spec.machine.mem_size_mib + own_mib

    @cached_property
    def _accelerator(self) -> Accelerator:
        return "tcg" if why_not_kvm(self._binary) else "kvm"

    def _unsupported(self, spec: VMSpec) -> str | None:
        for path in _only_in_firecracker(spec):
            return f"{path} is Firecracker's; this host runs its VMs in QEMU, which does not have it"
        for name in spec.secret_env:
            return f"env.{name} is a secret, which only Firecracker keeps off the disk; this host runs its VMs in QEMU"
        return validate_vms.unsupported(spec)

    def _kernel_problem(self, head: bytes) -> str | None:
        """QEMU itself says what is wrong with an ELF."""
        if head[514:518] == b"HdrS" or head[:4] == b"\x7fELF":
            return None
        return "its kernel is neither a bzImage nor a vmlinux with a PVH entry, and QEMU boots those"

    def _vm_in(self, name: str, argv: list[str]) -> str | None:
        if not name.startswith("qemu-system"):
            return None
        return argv[argv.index("-name") + 1] if "-name" in argv[:-1] else ""

    def _command(self, record: VMRecord, paths: VMPaths, resources: VMResources) -> Command:
        if resources.metadata is not None:
            with translate_errors(record.vm, "writing its metadata"):
                make_folder(paths.folder)
                write_whole(paths.metadata, metadata_disk(resources.metadata), durable=False)
        argv = (str(self._binary), *command_line(record.spec, resources, paths, self._accelerator))
        return Command(argv=argv, output=paths.log)

    def _boot(self, record: VMRecord, vmm: VMM, resources: VMResources, *, give_up_at: float) -> None:
        del resources  # the command line has it
        with translate_errors(record.vm, "connecting to QEMU"):
            qmp = QMP.first(vmm.paths.socket, vmm.process, give_up_at)
        with qmp, translate_errors(record.vm, "starting the guest"):
            qmp.execute("cont")

    def _answer(self, record: VMRecord, vmm: VMM, timeout_s: float) -> Answer:
        with vmm.connect(QMP, timeout_s) as qmp:
            status = _status_of(qmp)
        metadata = _metadata_on(vmm.paths.metadata) if record.spec.has_metadata else None
        return replace(read_back(processes.arguments(vmm.process.pid), status), metadata=metadata)

    def _set_paused(self, vmm: VMM, timeout_s: float, *, paused: bool) -> None:
        with vmm.connect(QMP, timeout_s) as qmp:
            qmp.execute("stop" if paused else "cont")

    def _update(self, record: VMRecord, vmm: VMM, timeout_s: float) -> None:
        """Only the metadata: everything else that Firecracker changes live is refused by `unsupported`."""
        del timeout_s  # nothing has to be asked
        if (metadata := self._provisioner.metadata_of(record)) is not None:
            with vmm.paths.metadata.open("r+b") as disk:  # QEMU has this very file open
                disk.write(metadata_disk(metadata))

    def _ask_to_leave(self, vmm: VMM, timeout_s: float) -> None:
        with vmm.connect(QMP, timeout_s) as qmp:
            if (status := _status_of(qmp)) == "paused":
                qmp.execute("cont")
            elif status != "running":
                raise FaultError("its guest does not run")
            qmp.execute("system_powerdown")  # heard by a guest with ACPI
            with suppress(NoAnswerError):  # its guest may be quicker than its answer
                qmp.execute("send-key", keys=_CTRL_ALT_DEL)

    def _end_of(self, paths: VMPaths) -> End:
        """A QEMU that ends in order removes its pid file. Only the translator tells a triple fault from a reset."""
        said = tail(paths.log, VMMS.log_tail_bytes).content
        if paths.pidfile.exists() or b"terminating on signal" in said:
            return "killed"
        return "crashed" if b"Triple fault" in said else "clean"


def _only_in_firecracker(spec: VMSpec) -> Iterator[str]:
    """The fields that are used and that QEMU lacks."""
    plain = VMSpec(image=spec.image)
    yield from (path for path in _FIRECRACKERS if attrgetter(path)(spec) != attrgetter(path)(plain))
    for kind in ("network_interfaces", "drives"):
        for name, one in getattr(spec, kind).items():
            if one.rate_limiter != type(one.rate_limiter)():
                yield f"{kind}.{name}.rate_limiter"
    yield from (f"drives.{name}.is_root_device" for name, drive in spec.drives.items() if drive.is_root_device)


def _metadata_on(disk: Path) -> dict[str, Any]:
    """What the guest can read there; nothing if that is no metadata any more."""
    with suppress(FileNotFoundError):
        return decoded(disk.read_bytes().rstrip(b"\n\0"), dict[str, Any]) or {}
    return {}


def _status_of(qmp: QMP) -> VMMStatus:
    return _STATUS.get(qmp.execute("query-status", dict[str, Any]).get("status"), "unresponsive")


@cache
def why_not_kvm(binary: Path) -> str:
    """Why QEMU cannot run guests with KVM here, "" if it can. Costs 0.1 s, once per process."""
    if problem := kvm_problem():
        return problem.partition(": ")[0]
    if _PVM.exists():
        return "its /dev/kvm is that of a PVM guest, which boots no ordinary kernel"
    guest = package_files("mikrom_reconcile") / "guest" / "hello.elf"
    with as_file(guest) as kernel:
        argv = bare_arguments("kvm", kernel=kernel, boot_args="mikrom.mode=exit:0", machine=Machine(mem_size_mib=16))
        command = (str(binary), *argv, "-serial", "stdio")
        try:
            probe = subprocess.run(command, capture_output=True, timeout=VMMS.probe_s, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return f"a trial guest did not boot under KVM: {error}"
    if b"MIKROM-EXIT" in probe.stdout:
        return ""
    said = probe.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "it said nothing"
    return f"a trial guest did not boot under KVM: {said}"


def bare_arguments(accelerator: Accelerator, *, kernel: Path, boot_args: str, machine: Machine) -> tuple[str, ...]:
    """What boots `kernel` and nothing more."""
    return (
        *_MACHINE,
        *_ACCELERATION[accelerator],
        *(_STEADY_CLOCK if accelerator == "tcg" and machine.vcpu_count == 1 else ()),
        *("-smp", str(machine.vcpu_count), "-m", f"{machine.mem_size_mib}M"),
        *("-kernel", str(kernel), "-append", boot_args),
    )


def command_line(spec: VMSpec, resources: VMResources, paths: VMPaths, accelerator: Accelerator) -> tuple[str, ...]:
    """The whole command line but the program. The guest stands still (`-S`) until it is told to go on."""
    disks = resources.disks
    if resources.metadata is not None:
        disks = (*disks, Disk(name=METADATA_ID, path=paths.metadata, read_only=True))
    # what Firecracker adds for a root disk, so that one spec boots under both
    boot_args = resources.boot_args + next((_ROOT[disk.read_only] for disk in disks if disk.name == ROOT_ID), "")
    return (
        *("-name", paths.vm, "-S"),
        *bare_arguments(accelerator, kernel=resources.kernel, boot_args=boot_args, machine=spec.machine),
        *(() if resources.initrd is None else ("-initrd", str(resources.initrd))),
        *(word for disk in disks for word in _disk_arguments(disk)),
        *(word for interface in resources.interfaces for word in _nic_arguments(interface)),
        *(("-device", _ENTROPY) if validate_vms.gets_entropy(spec) else ()),
        *("-chardev", f"file,id=console,append=on,path={_quoted(paths.console)}", "-serial", "chardev:console"),
        *("-qmp", f"unix:{_quoted(paths.socket)},server=on,wait=off"),
        *("-pidfile", str(paths.pidfile), "-d", "cpu_reset"),  # both tell how it ended
    )


def metadata_disk(metadata: dict[str, Any]) -> bytes:
    """A disk that holds the metadata as JSON and line ends behind it: QEMU has no metadata service."""
    return msgspec.json.encode(metadata, order="deterministic").ljust(VMMS.qemu_metadata_bytes, b"\n")


def _disk_arguments(disk: Disk) -> tuple[str, ...]:
    """One disk. QEMU finds the places on its bus, so that a guest names disks in their order, /dev/vda first."""
    mode = "on" if disk.read_only else "off"
    return (
        *("-drive", f"if=none,format=raw,readonly={mode},id={disk.name},file={_quoted(disk.path)}"),
        *("-device", f"virtio-blk-device,drive={disk.name},serial={disk.name[:20]}"),
    )


def _nic_arguments(interface: Interface) -> tuple[str, ...]:
    mtu = f",host_mtu={interface.mtu}" if interface.mtu else ""
    return (
        *("-netdev", f"tap,id={interface.name},ifname={interface.tap},script=no,downscript=no"),
        *("-device", f"virtio-net-device,netdev={interface.name},mac={interface.mac}{mtu}"),
    )


def read_back(argv: list[str], status: VMMStatus) -> Answer:
    """What a command line says. What is looked for stands before the boot arguments, which may hold any word."""
    said = defaultdict[str, list[str]](list)
    for option, value in pairwise(argv):
        said[option].append(value)
    disks = (
        Disk(name=disk["name"], path=Path(disk["path"].replace(",,", ",")), read_only=disk["mode"] == "on")
        for disk in filter(None, map(_DRIVE.fullmatch, said["-drive"]))
    )
    taps = {nic["name"]: nic["tap"] for nic in filter(None, map(_NETDEV.match, said["-netdev"]))}
    nics = (
        Interface(name=nic["name"], tap=taps.get(nic["name"], ""), mac=nic["mac"], mtu=int(nic["mtu"] or 0) or None)
        for nic in filter(None, map(_NIC.fullmatch, said["-device"]))
    )
    sizes = _SIZES.fullmatch(" ".join((*said["-smp"][:1], *said["-m"][:1])))
    boot_args = next(iter(said["-append"]), None)
    disk_of = {disk.name: disk for disk in disks}
    if boot_args is not None and ROOT_ID in disk_of:
        boot_args = boot_args[: -len(_ROOT[False])]  # as long as the other
    return Answer(
        status=status,
        machine=Machine(vcpu_count=int(sizes[1]), mem_size_mib=int(sizes[2])) if sizes else None,
        boot_args=boot_args,
        disks=disk_of,
        interfaces={nic.name: nic for nic in nics},
        entropy=_ENTROPY in said["-device"],
    )


def _quoted(path: Path) -> str:
    """A path as the value of a suboption, in which a comma ends it."""
    return str(path).replace(",", ",,")
