"""VMs as a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from mikrom_reconcile.core.model.lifecycle import SATISFIES
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.output.section import section
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.table import Cell, table
from mikrom_reconcile.output.units import age, mebibytes

_HEADER: tuple[str, ...] = ("NAME", "FLEET", "HOST", "STATE", "PHASE", "IMAGE", "VCPU", "MEM", "PID", "AGE")


def vms_text(vms: Sequence[ObservedVM], now: datetime, style: Style) -> str:
    """One line per VM, then what went wrong with whom; project, addresses and restarts are columns where they tell
    something.
    """
    if not vms:
        return "No VMs.\n"
    header, rows = _HEADER, [_row(vm, now) for vm in vms]
    if any(vm.addresses for vm in vms):
        header = (*header, "ADDRESSES")
        rows = [(*row, (", ".join(vm.addresses.values()) or "-", "")) for vm, row in zip(vms, rows, strict=True)]
    if any(vm.restarts for vm in vms):
        header = (*header, "RESTARTS")
        rows = [(*row, (str(len(vm.restarts)), "")) for vm, row in zip(vms, rows, strict=True)]
    if len({vm.project for vm in vms}) > 1:
        header = ("PROJECT", *header)
        rows = [((vm.project, ""), *row) for vm, row in zip(vms, rows, strict=True)]
    errors = (f"{vm.name} on {vm.host}: {vm.last_error}" for vm in vms if vm.last_error)
    return table(header, rows, style) + "".join(f"{line}\n" for line in section("Last errors", errors, style, "red"))


def _row(vm: ObservedVM, now: datetime) -> tuple[Cell, ...]:
    machine = vm.spec.machine
    return (
        (vm.name, ""),
        (vm.fleet, ""),
        (vm.host, ""),
        (vm.state, ""),
        (vm.phase, "green" if vm.phase in SATISFIES[vm.state] else "red"),
        (vm.spec.image or "-", ""),
        (str(machine.vcpu_count), ""),
        (mebibytes(machine.mem_size_mib), ""),
        (str(vm.pid or "-"), ""),
        (age(vm.created_at, now), ""),
    )
