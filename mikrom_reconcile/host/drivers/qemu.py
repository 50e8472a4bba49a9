"""QEMU microVMs: for machines on which Firecracker cannot run, and for guests that need another VMM.

`vmm_driver.py` has what is not QEMU's own, `qemu_command.py` the command line, `qemu_qmp.py` the language.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.observed import End, VMMStatus
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.specs import validate_vms
from mikrom_reconcile.host.drivers.qemu_command import (
    OVERHEAD_MIB,
    PROGRAM,
    Accelerator,
    arguments,
    boot_args_in,
    disks_in,
    interfaces_in,
    machine_in,
    metadata_disk,
    name_in,
)
from mikrom_reconcile.host.drivers.qemu_prerequisites import accelerator_of
from mikrom_reconcile.host.drivers.qemu_qmp import Qmp
from mikrom_reconcile.host.drivers.translate_errors import FaultError, NoAnswerError, step
from mikrom_reconcile.host.drivers.vmm import Places, Proc
from mikrom_reconcile.host.drivers.vmm_driver import Answer, VMMDriver
from mikrom_reconcile.host.drivers.vmm_start import Command, connected
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.provisioner import ResourceProvisioner, VMResources
from mikrom_reconcile.limits import VMMS
from mikrom_reconcile.system import processes
from mikrom_reconcile.system.files import write_whole
from mikrom_reconcile.system.folders import make_folder
from mikrom_reconcile.system.tails import tail

_STATUS: dict[str, VMMStatus] = {"prelaunch": "starting", "running": "running", "paused": "paused"}

_CTRL_ALT_DEL = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]


class _Run(msgspec.Struct):
    status: str


class QemuDriver(VMMDriver):
    """The driver for QEMU's microvm machine. `accelerator` None: KVM if it works here, else software emulation."""

    name = "qemu"

    def __init__(
        self,
        binary: Path,
        *,
        state_dir: Path,
        run_dir: Path,
        provisioner: ResourceProvisioner | None = None,
        answer_s: float = VMMS.answer_s,
        accelerator: Accelerator | None = None,
    ) -> None:
        super().__init__(binary, state_dir=state_dir, run_dir=run_dir, provisioner=provisioner, answer_s=answer_s)
        self._chosen = accelerator

    def memory_mib(self, spec: VMSpec) -> int:
        """QEMU itself takes more than a small guest does."""
        return spec.machine.mem_size_mib + OVERHEAD_MIB[self._accelerator]

    def _unsupported(self, spec: VMSpec) -> str | None:
        """Why QEMU cannot run `spec`."""
        for field, there in (("smt", spec.machine.smt), ("cpu_template", spec.machine.cpu_template)):
            if there:
                return f"machine.{field} is Firecracker's; this host runs its VMs in QEMU, which does not have it"
        for name, nic in spec.network_interfaces.items():
            if nic.rate_limiter.bandwidth_mbit is not None:
                return f"network_interfaces.{name}.rate_limiter is Firecracker's; this host runs its VMs in QEMU"
        return validate_vms.unsupported(spec)

    @property
    def _accelerator(self) -> Accelerator:
        return self._chosen or accelerator_of(self._binary)[0]

    def _kernel_problem(self, kernel: Path) -> str | None:
        """QEMU itself says what is wrong with an ELF."""
        with kernel.open("rb") as content:
            head = content.read(1024)
        if head[514:518] == b"HdrS" or head[:4] == b"\x7fELF":
            return None
        return "its kernel is neither a bzImage nor a vmlinux with a PVH entry, and QEMU boots those"

    def _is_one(self, name: str, argv: list[str]) -> str | None:
        return name_in(argv) if name.startswith("qemu-system") else None

    def _command(self, record: VMRecord, places: Places, media: VMResources) -> Command:
        if media.metadata is not None:
            with step(record.vm, "writing its metadata"):
                make_folder(places.folder)
                write_whole(places.metadata, metadata_disk(media.metadata), durable=False)
        argv = (str(self._binary), *arguments(record.spec, media, places, self._accelerator))
        return Command(driver=self.name, program=PROGRAM, argv=argv, output=places.log, fresh=(places.log,))

    def _boot(self, record: VMRecord, places: Places, proc: Proc, media: VMResources, *, give_up_at: float) -> None:
        del media  # the command line has it
        with step(record.vm, "connecting to QEMU"):
            qmp = connected(lambda: Qmp(str(places.socket), pid=proc.pid, give_up_at=give_up_at), proc, give_up_at)
        with qmp, step(record.vm, "starting the guest"):
            qmp.execute("cont")

    def _answer(self, record: VMRecord, places: Places, found: processes.Identity, timeout_s: float) -> Answer:
        with self._qmp(places, found, timeout_s) as qmp:
            status = _status_of(qmp)
        argv = processes.arguments(found.pid)
        return Answer(
            status=status,
            machine=machine_in(argv),
            boot_args=boot_args_in(argv),
            disks=disks_in(argv),
            interfaces=interfaces_in(argv),
            metadata=_metadata_on(places.metadata) if record.spec.mmds is not None else None,
        )

    def _set_paused(self, places: Places, found: processes.Identity, timeout_s: float, *, paused: bool) -> None:
        with self._qmp(places, found, timeout_s) as qmp:
            qmp.execute("stop" if paused else "cont")

    def _update(self, record: VMRecord, places: Places, found: processes.Identity, timeout_s: float) -> None:
        """Only the metadata: everything else that Firecracker changes live is refused by `unsupported`."""
        del found, timeout_s  # nothing has to be asked
        if (metadata := self._provisioner.metadata_of(record)) is not None:
            with places.metadata.open("r+b") as disk:  # QEMU has this very file open
                disk.write(metadata_disk(metadata))

    def _ask_to_leave(self, places: Places, found: processes.Identity, timeout_s: float) -> None:
        with self._qmp(places, found, timeout_s) as qmp:
            if (status := _status_of(qmp)) == "paused":
                qmp.execute("cont")
            elif status != "running":
                raise FaultError("its guest does not run")
            qmp.execute("system_powerdown")  # heard by a guest with ACPI
            with suppress(NoAnswerError):  # its guest may be quicker than its answer
                qmp.execute("send-key", keys=_CTRL_ALT_DEL)

    def _end_of(self, places: Places) -> End:
        """A QEMU that ends in order removes its pid file. Only the translator tells a triple fault from a reset."""
        said = tail(places.log, VMMS.log_tail_bytes)
        if places.pidfile.exists() or b"terminating on signal" in said:
            return "killed"
        return "crashed" if b"Triple fault" in said else "clean"

    @staticmethod
    def _qmp(places: Places, found: processes.Identity, timeout_s: float) -> Qmp:
        return Qmp(str(places.socket), pid=found.pid, give_up_at=time.monotonic() + timeout_s)


def _metadata_on(disk: Path) -> dict[str, Any]:
    """What the guest can read there; nothing if that is no metadata any more."""
    try:
        found: dict[str, Any] = msgspec.json.decode(disk.read_bytes().rstrip(b"\n\0"), type=ready(dict[str, Any]))
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}
    return found


def _status_of(qmp: Qmp) -> VMMStatus:
    return _STATUS.get(qmp.execute("query-status", _Run).status, "unresponsive")
