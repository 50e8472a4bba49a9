"""What belongs to nobody, or to somebody else, on the hosts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from mikrom_reconcile.core.model.observed import HostView, ObservedVM
from mikrom_reconcile.core.planning.project_view import rank
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.table import table

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


def orphans_in(views: Iterable[HostView], project: str | None, wanted: frozenset[str]) -> list[Orphan]:
    """All that the hosts reported, sorted. Without specs (`project` None) only processes and doubles can be judged."""
    views = tuple(views)
    rows = [vm for view in views if view.report for vm in view.report.vms if vm.phase != "unreadable"]
    newest = {(vm.project, vm.name): vm.host for vm in sorted(rows, key=rank, reverse=True)}
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
    rows = [
        ((orphan.kind, ""), (orphan.vm or "-", ""), (orphan.project or "-", ""), (orphan.host, ""), (_pid(orphan), ""))
        for orphan in orphans
    ]
    kinds = [kind for kind in WHAT_NEXT if any(orphan.kind == kind for orphan in orphans)]
    notes = "".join(f"{kind}: {WHAT_NEXT[kind]}.\n" for kind in kinds)
    return f"{table(('KIND', 'NAME', 'PROJECT', 'HOST', 'PID'), rows, style)}\n{notes}"


def _pid(orphan: Orphan) -> str:
    return "-" if orphan.pid is None else str(orphan.pid)
