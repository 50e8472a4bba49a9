"""The plan that comes of a draft: an action for each change that has a verb, warnings, and an id for all of it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

import msgspec

from mikrom_reconcile.core.model.encoding import digest_of
from mikrom_reconcile.core.model.observed import ObservedState, ObservedVM
from mikrom_reconcile.core.model.plan import Action, ChangeKind, Expect, Plan, Verb, VMChange
from mikrom_reconcile.core.placement.scheduler import NOTHING
from mikrom_reconcile.core.planning.context import Draft, PlanContext
from mikrom_reconcile.times_and_sizes import ORDERS

LEFT_OUT = "left out by --without-host"
"""Why there is no report of a host that a plan is to do without."""

VERBS: dict[ChangeKind, Verb] = {verb: verb for verb in get_args(Verb)} | {
    "replace": "restart",  # the host makes the root disk anew where it is not of the image that the spec names
    "move": "delete",  # it is made on its new host once it is proven gone from the old one
}
"""The verb that carries a kind of change out; kinds without one are not acted on."""


def plan_of(
    draft: Draft,
    observed: ObservedState,
    *,
    project: str,
    revision: str,
    warnings: Iterable[str],
    mem_limits_mib: Mapping[str, int] = NOTHING,
) -> Plan:
    """The plan that a finished draft stands for. `mem_limits_mib` are by host."""
    unreachable = {view.host: view.error for view in observed.hosts if view.report is None}
    return numbered(
        Plan(
            id="",
            project=project,
            revision=revision,
            taken_at=observed.taken_at,
            changes=tuple(draft.changes),
            unchanged=draft.unchanged,
            actions=tuple(actions_of(draft.changes, project, mem_limits_mib)),
            refusals=draft.refusals,
            unreachable={host: why for host, why in sorted(unreachable.items()) if why != LEFT_OUT},
            warnings=tuple(warnings),
            peaks=draft.peaks,
            selected=draft.selected,
        )
    )


def actions_of(
    changes: Iterable[VMChange], project: str, mem_limits_mib: Mapping[str, int] = NOTHING
) -> Iterator[Action]:
    """One action for each change that has a verb, in the order of the changes. `mem_limits_mib` are by host."""
    for change in changes:
        if change.kind not in VERBS:
            continue
        content: dict[str, Any] = {
            "verb": VERBS[change.kind],
            "host": change.host,
            "vm": change.name,
            "project": project,
            "desired": None if VERBS[change.kind] == "delete" else change.desired,
            "expect": expect_of(change.observed),
            "deadline_s": ORDERS.deadline_s,
        }
        content |= {"mem_limit_mib": mem_limits_mib[change.host]} if change.host in mem_limits_mib else {}
        yield Action(id=digest_of(content), **content)


def expect_of(seen: ObservedVM | None) -> Expect:
    """What an action that was planned from this row expects to find."""
    return Expect(uid=seen.uid, generation=seen.generation) if seen else Expect(uid=None, generation=0)


def numbered(plan: Plan) -> Plan:
    """The plan with its id: a digest of everything but the time."""
    content = msgspec.structs.asdict(plan)
    content.pop("taken_at")
    return msgspec.structs.replace(plan, id=digest_of(content))


def warnings_of(draft: Draft, context: PlanContext) -> Iterator[str]:
    """What is left alone and why, how to keep the VMs of a fleet that was renamed, what hosts say of themselves."""
    view = context.view
    strangers = [row for rows in view.own.values() for row in rows if not context.in_scope(row.fleet)]
    adopted = {vm.name for vm in draft.desired} if strangers else set()
    for fleet in sorted({row.fleet for row in strangers if row.name not in adopted}):
        why = "only with a Project document are they the whole truth"
        yield f"fleet {fleet} is not in these specs and was left alone; {why}"
    for row in sorted(view.others.values(), key=lambda row: row.name):
        if row.phase == "unreadable":
            yield f"{row.name} on {row.host} cannot be read: {row.last_error}"
    if draft.left_out:
        yield f"{len(draft.left_out)} more changes are outside --limit, --tags or --skip-tags"
    yield from _renamed_fleets(draft, context)
    concerned = {change.host for change in draft.changes if change.kind in VERBS}
    for host, report in view.reports.items():
        if report.note and host in concerned:
            yield f"{host}: {report.note}"


def _renamed_fleets(draft: Draft, context: PlanContext) -> Iterator[str]:
    """Fleets that are made in full, just like one that is there and that the specs no longer name."""
    view = context.view
    old, new = defaultdict[str, Counter[Any]](Counter), defaultdict[str, Counter[Any]](Counter)
    for name, (row, *_) in view.own.items():
        if row.fleet not in context.fleets and re.fullmatch(re.escape(row.fleet) + r"-\d{3,}", name):  # by default
            old[row.fleet][row.spec.image, row.spec.machine] += 1
    if not old:
        return
    has = {vm.fleet for vm in draft.desired if vm.name in view.up_to_date or vm.name in view.own}
    for change in draft.changes:
        if change.kind == "create" and change.fleet not in has and (vm := change.desired) is not None:
            new[vm.fleet][vm.spec.image, vm.spec.machine] += 1
    for before, vms in sorted(old.items()):
        for after in sorted(fleet for fleet in new if new[fleet] == vms):
            keep = f'vm_name: "{before}-${{index:03d}}" in {after} keeps its VMs'
            yield f"fleet {after} is new and {before}, with VMs alike, is not in the specs: if it was renamed, {keep}"
