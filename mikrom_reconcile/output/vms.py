"""VMs as hosts report them, for people and for programs, and those that belong to nobody, or to somebody else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from mikrom_reconcile.core.model.observed import SATISFIES, HostView, ObservedVM
from mikrom_reconcile.output.text import Column, Document, Style, mebibytes, row_document, row_table, section


def vms_in(views: Iterable[HostView]) -> list[ObservedVM]:
    """Every VM that was reported, sorted by name and host."""
    return sorted((vm for view in views if view.report for vm in view.report.vms), key=lambda vm: (vm.name, vm.host))


_VMS = (
    Column("name", "NAME"), Column("fleet", "FLEET"), Column("host", "HOST"), Column("state", "STATE"),
    Column("phase", "PHASE", cell=lambda vm: (vm.phase, "green" if vm.phase in SATISFIES[vm.state] else "red")),
    Column("image", "IMAGE", lambda vm: vm.spec.image),
    Column("vcpu_count", "VCPU", lambda vm: vm.spec.machine.vcpu_count),
    Column("mem_size_mib", "MEM", lambda vm: vm.spec.machine.mem_size_mib,
           cell=lambda vm: mebibytes(vm.spec.machine.mem_size_mib)),
    Column("pid", "PID"), Column("created_at", "AGE"), Column("uid"),
    Column("ip", value=lambda vm: next(iter(vm.addresses.values()), None)),
    Column("spec_digest"), Column("last_error"),
)  # fmt: skip
_PROJECT = Column("project", "PROJECT")
_ADDRESSES = Column("addresses", "ADDRESSES", cell=lambda vm: ", ".join(vm.addresses.values()) or "-")
_RESTARTS = Column("restarts", "RESTARTS", cell=lambda vm: str(len(vm.restarts)))


def vm_row(vm: ObservedVM) -> Document:
    """A VM as its host sees it. `state` is what was last ordered, `ip` the first of `addresses` or null."""
    return row_document((_PROJECT, *_VMS, _ADDRESSES, _RESTARTS), vm)


def vms_text(vms: Sequence[ObservedVM], now: datetime, style: Style) -> str:
    """One line per VM, with the columns that tell something, then what went wrong with whom."""
    if not vms:
        return "No VMs.\n"
    columns = [
        *([_PROJECT] if len({vm.project for vm in vms}) > 1 else []),
        *_VMS,
        *([_ADDRESSES] if any(vm.addresses for vm in vms) else []),
        *([_RESTARTS] if any(vm.restarts for vm in vms) else []),
    ]
    errors = (f"{vm.name} on {vm.host}: {vm.last_error}" for vm in vms if vm.last_error)
    return row_table(columns, vms, style, now) + section("Last errors", errors, style, "red")


Kind = Literal["no record", "double", "no spec", "other project", "foreign"]

WHAT_NEXT: dict[Kind, str] = {
    "no record": "a VMM of this state folder that no record knows: restore its record, or kill the pid",
    "double": "a newer VM of this name is on another host: the next apply removes it once that one is well",
    "no spec": "no spec wants it: the next apply removes it if the specs are the whole truth, `mikrom delete` at once",
    "other project": "it is left alone, and its name cannot be used",
    "foreign": "a VMM of another program or state folder: it is left alone",
}


class Orphan(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. `vm` is "" for a process that does not say what it runs."""

    kind: Kind
    vm: str
    host: str
    project: str = ""
    pid: int | None = None


_ORPHANS = (
    Column("kind", "KIND"), Column("vm", "NAME"), Column("project", "PROJECT"), Column("host", "HOST"),
    Column("pid", "PID"),
)  # fmt: skip


def orphans_in(views: Iterable[HostView], project: str | None, wanted: frozenset[str]) -> list[Orphan]:
    """All that the hosts reported, sorted. Without specs (`project` None) only processes and doubles can be judged."""
    views = tuple(views)
    rows = [vm for vm in vms_in(views) if vm.phase != "unreadable"]
    newest = {(vm.project, vm.name): vm.host for vm in sorted(rows, key=lambda vm: -vm.token)[::-1]}
    found = (orphan for view in views for orphan in _on(view, project, wanted, newest))
    return sorted(found, key=lambda orphan: (list(WHAT_NEXT).index(orphan.kind), orphan.host, orphan.vm))


def _on(
    view: HostView, project: str | None, wanted: frozenset[str], newest: Mapping[tuple[str, str], str]
) -> Iterator[Orphan]:
    if view.report is None:
        return
    for stray in view.report.strays:
        yield Orphan(kind="no record", vm=stray.vm, host=view.host, pid=stray.pid)
    for stray in view.report.foreign:
        yield Orphan(kind="foreign", vm=stray.vm, host=view.host, pid=stray.pid)
    for vm in view.report.vms:
        is_double = newest.get((vm.project, vm.name), vm.host) != vm.host
        if (kind := "double" if is_double else _kind(vm, project, wanted)) is not None:
            yield Orphan(kind=kind, vm=vm.name, host=view.host, project=vm.project, pid=vm.pid)


def _kind(vm: ObservedVM, project: str | None, wanted: frozenset[str]) -> Kind | None:
    if project is None or vm.phase == "unreadable":
        return None  # nobody can say whose it is; plan and get tell of it
    if vm.project != project:
        return "other project"
    return None if vm.name in wanted else "no spec"


def orphans_text(orphans: Sequence[Orphan], style: Style) -> str:
    """A table, and what each kind means. Ends with a line break."""
    if not orphans:
        return "No orphans.\n"
    kinds = [kind for kind in WHAT_NEXT if any(orphan.kind == kind for orphan in orphans)]
    notes = "".join(f"{kind}: {WHAT_NEXT[kind]}.\n" for kind in kinds)
    return f"{row_table(_ORPHANS, orphans, style)}\n{notes}"
