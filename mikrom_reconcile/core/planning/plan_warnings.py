"""What a person should know of a plan beside its changes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from mikrom_reconcile.core.model.desired import DesiredState, Machine
from mikrom_reconcile.core.model.observed import ObservedState
from mikrom_reconcile.core.model.plan import Action, VMChange
from mikrom_reconcile.core.planning.diff import in_scope
from mikrom_reconcile.core.planning.project_view import ProjectView
from mikrom_reconcile.core.specs.load import Specs

Kind = tuple[str, Machine]
"""Image and machine."""


def warnings_of_plan(desired: DesiredState, view: ProjectView, left_out: int) -> Iterator[str]:
    """What is left alone, and why."""
    strangers = [row for rows in view.own.values() for row in rows if not in_scope(desired, row.fleet)]
    taken_over = {vm.name for vm in desired.vms} if strangers else set()
    for fleet in sorted({row.fleet for row in strangers if row.name not in taken_over}):
        yield (
            f"fleet {fleet} is not in these specs and was left alone; "
            "only with a Project document are they the whole truth"
        )
    for row in sorted(view.others.values(), key=lambda row: row.name):
        if row.phase == "unreadable":
            yield f"{row.name} on {row.host} cannot be read: {row.last_error}"
    if left_out:
        yield f"{left_out} more changes are outside --limit, --tags or --skip-tags"


def notes_of_hosts(observed: ObservedState, actions: tuple[Action, ...]) -> Iterator[str]:
    """What should be known of the hosts on which something is done."""
    concerned = {action.host for action in actions}
    for view in observed.hosts:
        if view.report and view.report.note and view.host in concerned:
            yield f"{view.host}: {view.report.note}"


def renamed_fleets(
    specs: Specs, desired: DesiredState, view: ProjectView, changes: Iterable[VMChange]
) -> Iterator[str]:
    """The way out where a fleet is made in full beside one of its VMs' kinds that the specs no longer name."""
    known = {fleet.name for fleet in specs.fleets}
    old, new = defaultdict[str, Counter[Kind]](Counter), defaultdict[str, Counter[Kind]](Counter)
    for name, (row, *_) in view.own.items():
        if row.fleet not in known and name == _usual(name, row.fleet):
            old[row.fleet][row.spec.image, row.spec.machine] += 1
    if not old:
        return
    has = {vm.fleet for vm in desired.vms if vm.name in view.up_to_date or vm.name in view.own}
    for change in changes:
        if change.kind == "create" and change.fleet not in has and (vm := change.desired) is not None:
            new[vm.fleet][vm.spec.image, vm.spec.machine] += 1
    for before, vms in sorted(old.items()):
        for after in sorted(fleet for fleet in new if new[fleet] == vms):
            yield (
                f"fleet {after} is new and {before}, with VMs alike, is not in the specs: if it was renamed, "
                f'vm_name: "{before}-${{index:03d}}" in {after} keeps its VMs'
            )


def _usual(name: str, fleet: str) -> str:
    """The VM's name if it is as fleets name theirs, unless they say otherwise."""
    number = name.removeprefix(f"{fleet}-")
    return f"{fleet}-{int(number):03d}" if number.isdecimal() else ""
