"""What of a plan takes data away, which people approve by signatures, and what is left of it without them."""

from collections.abc import Collection, Iterable
from datetime import datetime

from msgspec.structs import replace

from mikrom_reconcile.core.model.encoding import canonical_json, spec_digest
from mikrom_reconcile.core.model.plan import Action, Plan, Refusal
from mikrom_reconcile.core.planning.context import actions_of, numbered, with_kind
from mikrom_reconcile.core.planning.guards import loses_disks


def loss_of(action: Action) -> str:
    """The line that people sign for an action: of which VM, as it was found, and what it becomes ("": it goes)."""
    vm, expect = action.desired, action.expect
    becomes = spec_digest(vm.project, vm.fleet, vm.state, vm.spec, vm.policy) if vm else ""
    line = (action.project, action.host, action.vm, expect.uid, expect.generation, becomes)
    return canonical_json(line).decode()


def losses_of(plan: Plan) -> dict[tuple[str, str], str]:
    """The lines of a plan by VM and host, of what waits in it too."""
    due = (replace(one, kind=one.wanted or one.kind) if one.kind == "wait" else one for one in plan.changes)
    losing = [change for change in due if change.observed and loses_disks(change, change.observed)]
    return {(action.vm, action.host): loss_of(action) for action in actions_of(losing, plan.project)}


def statement_of(losses: Iterable[str], at: datetime) -> str:
    """The text that is signed: it means nothing else, and what was signed for another plan is another text."""
    return "\n".join(("mikrom approval 1", at.isoformat(), *sorted(losses), ""))


def held_back(plan: Plan, approved: Collection[str], why: str) -> Plan:
    """The plan, in which everything is refused that takes data away and is not `approved`."""
    held = {vm for vm, loss in losses_of(plan).items() if loss not in approved}
    if not held:
        return plan
    refused = [change for change in plan.changes if (change.name, change.host) in held]
    refusals = (Refusal(fleet=each.fleet, vm=each.name, rule="approval", message=why) for each in refused)
    changes = (
        with_kind(each, "blocked", "it lacks approvals") if (each.name, each.host) in held else each
        for each in plan.changes
    )
    actions = tuple(action for action in plan.actions if (action.vm, action.host) not in held)
    return numbered(replace(plan, id="", changes=tuple(changes), actions=actions, refusals=(*plan.refusals, *refusals)))
