"""What a machine needs to run QEMU, and which accelerator works there: for the choice of a driver and for `doctor`."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from importlib import resources
from pathlib import Path

from mikrom_reconcile.core.model.desired import Machine
from mikrom_reconcile.host.drivers.firecracker_prerequisites import kvm_problem
from mikrom_reconcile.host.drivers.qemu_command import Accelerator, bare_arguments
from mikrom_reconcile.limits import VMMS

NAME = "qemu-system-x86_64"

_PVM = Path("/sys/module/kvm_pvm")


def find_qemu() -> Path | None:
    """The first QEMU on PATH."""
    found = shutil.which(NAME)
    return None if found is None else Path(found).absolute()


@cache
def accelerator_of(binary: Path) -> tuple[Accelerator, str]:
    """What QEMU is to run guests with here, and why it is not KVM ("" if it is). Costs 0.1 s, once per process."""
    reason = _why_not_kvm(binary)
    return ("tcg", reason) if reason else ("kvm", "")


def _why_not_kvm(binary: Path) -> str:
    if problem := kvm_problem():
        return problem.partition(": ")[0]
    if _PVM.exists():
        return "its /dev/kvm is that of a PVM guest, which boots no ordinary kernel"
    guest = resources.files("mikrom_reconcile") / "guest" / "hello.elf"
    with resources.as_file(guest) as kernel:
        argv = bare_arguments("kvm", kernel=kernel, boot_args="mikrom.mode=exit:0", machine=Machine(mem_size_mib=16))
        try:
            probe = subprocess.run(
                [binary, *argv, "-serial", "stdio"], capture_output=True, timeout=VMMS.probe_s, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"a trial guest did not boot under KVM: {error}"
    if b"MIKROM-EXIT" in probe.stdout:
        return ""
    said = probe.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "it said nothing"
    return f"a trial guest did not boot under KVM: {said}"
