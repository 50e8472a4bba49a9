"""What Refactor documents make of what is remembered and reported, before anything is placed or compared."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.planning.context import PlanInput, ProjectView


def remembered_as_named_now(placements: Placements, renames: Mapping[str, str]) -> Placements:
    """What is remembered, under the names that VMs have in the specs: they are not made anew while a host is dark."""
    known = placements.vms
    now = {was: name for name, was in renames.items() if was in known and name not in known}
    if not now:
        return placements
    return replace(
        placements,
        vms={now.get(name, name): host for name, host in known.items()},
        addresses={now.get(name, name): found for name, found in placements.addresses.items()},
    )


def refactored(view: ProjectView, given: PlanInput) -> ProjectView:
    """The VMs that were moved as those that they are now, though not by name; those that are imported are ours."""
    refactor, own, others = given.specs.refactor, dict(view.own), dict(view.others)
    if given.destroy or not refactor.documents:
        return view
    fleets = {vm.name: vm.fleet.name for vm in given.unplaced}
    for name, was in given.renames.items():
        if was in own and name not in own and name not in view.up_to_date:
            newest, *doubles = own.pop(was)
            own[name] = (replace(newest, fleet=fleets[name]),)
            own |= {was: tuple(doubles)} if doubles else {}
        elif was in others and others[was].phase == "unreadable":
            others[name] = others.pop(was)
    for name, row in view.others.items():
        if row.unmanaged and row.project == given.specs.project and {name, fleets.get(name)} & refactor.imported:
            own[name] = (others.pop(name),)
    return replace(view, own=own, others=others)
