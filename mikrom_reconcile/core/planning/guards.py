"""What a plan must not do by itself, or without people's approvals. A guard holds back or refuses; it adds nothing."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from datetime import datetime

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Policy, State, resolve_share
from mikrom_reconcile.core.model.encoding import canonical_json, spec_digest
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import Action, FieldChange, Plan, Refusal, VMChange, group_by
from mikrom_reconcile.core.planning.context import Draft, PlanContext, actions_of, numbered, with_kind
from mikrom_reconcile.core.specs.load import FleetSpec


def prune(draft: Draft, context: PlanContext) -> Draft:
    """Refuses all removals of a fleet that together pass its share, or that would take its last VM. All or none, or a
    fleet would be emptied in steps. A move takes a VM's root disk with it, so it counts, unless off a drained host.
    """
    overrides, hosts = context.overrides, context.given.specs.inventory.hosts
    drained = {name for name, host in hosts.items() if host.state == "drain"}
    going = (change for change in draft.changes if _removes(change, drained))
    removals = group_by((change for change in going if change.fleet not in overrides.confirmed), lambda it: it.fleet)
    if not removals or context.given.destroy:  # a destroy asks for removals
        return draft
    owned, unseen = _owned(draft, context, removals), _unseen(draft, context)
    gone = {(change.name, change.host) for change in draft.changes if change.kind == "delete"}
    refusals = []
    for name in sorted(removals):
        vms = owned[name]
        is_last = bool(vms) and gone >= {(vm, hosts[0]) for vm, hosts in vms.items()}  # the newest copy of each
        counts = sum(map(len, vms.values())), unseen[name]
        if refusal := _prune_refusal(name, removals[name], counts, context, is_last=is_last):
            refusals.append(refusal)
    refused = {refusal.fleet for refusal in refusals}
    why = "the removals of this fleet were refused"
    kept = [
        with_kind(change, "blocked", why) if change.fleet in refused and _removes(change, drained) else change
        for change in draft.changes
    ]
    return replace(draft, changes=kept, refusals=(*draft.refusals, *refusals))


def _removes(change: VMChange, drained: Container[str]) -> bool:
    """Whether it is a removal that nobody asked for by name."""
    asked_for = change.rule == "removed"
    return (change.kind == "delete" and not asked_for) or (change.kind == "move" and change.host not in drained)


def _prune_refusal(
    fleet: str, going: list[VMChange], counts: tuple[int, int], context: PlanContext, *, is_last: bool
) -> Refusal | None:
    policy, prune_max = _policy(fleet, going, context.fleets), context.overrides.prune_max
    share = policy.prune_max if prune_max is None else prune_max
    total, unseen = sum(counts), counts[1]
    budget = resolve_share(share, total)
    remedy = "to allow it once: --prune-max 100%, or confirm at the prompt"
    moves = sum(change.kind == "move" for change in going)
    if len(going) + unseen > budget:
        numbers = f"{len(going) + unseen} of {total} VMs would go"
        numbers += f" ({moves} of them to another host)" if moves else ""
        numbers += f" ({unseen} of them on hosts that cannot be read)" if unseen else ""
        message = f"{numbers}, prune.max {share} allows {budget}; {remedy}"
    elif is_last and not policy.allow_empty and prune_max != "100%":
        message = f"its last VM would go; {remedy}; for good: prune: {{allow_empty: true}}"
    else:
        return None
    return Refusal(fleet=fleet, vm="", rule="prune", message=message)


def _owned(draft: Draft, context: PlanContext, fleets: Container[str]) -> dict[str, dict[str, list[str]]]:
    """The VMs of these fleets, with the hosts that answered and have them: those of older copies come last."""
    view = context.view
    owned: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for name, rows in view.own.items():
        for row in rows:
            if row.fleet in fleets:
                owned[row.fleet].setdefault(name, []).append(row.host)
    for vm in draft.desired:
        if vm.fleet in fleets and vm.name in view.up_to_date:
            owned[vm.fleet].setdefault(vm.name, []).insert(0, vm.host)
    return owned


def _unseen(draft: Draft, context: PlanContext) -> Counter[str]:
    """VMs of each fleet on unreachable hosts that nothing wants: they go, too."""
    view, remembered = context.view, context.placements
    wanted = {vm.name for vm in draft.desired if vm.state != "absent"}
    lost = (name for name, host in remembered.vms.items() if host in view.unreachable and name not in wanted)
    return Counter(remembered.fleet_of(name) for name in lost if name not in view.own)


def _policy(fleet: str, going: list[VMChange], fleets: Mapping[str, FleetSpec]) -> Policy:
    """The policy in the specs, or for a fleet that vanished from them the strictest that its hosts recorded."""
    if fleet in fleets:
        return fleets[fleet].policy
    recorded = [change.observed.policy for change in going if change.observed]
    return min(recorded, key=lambda policy: (resolve_share(policy.prune_max, 1000), policy.allow_empty))


def protect(draft: Draft, context: PlanContext) -> Draft:
    """Refuses what the records of VMs forbid; see `protected`."""
    return protected(draft, lambda fleet: context.fleets[fleet].policy if fleet in context.fleets else None)


def protected(draft: Draft, policy_of: Callable[[str], Policy | None]) -> Draft:
    """Refuses to remove VMs, or what they wrote to their root disks, where their record forbids it, whatever the specs
    say about them now. An explicit `prevent_destroy: false` is planned as a change of its own; what it forbade follows.
    """
    kept: list[VMChange] = []
    refusals: list[Refusal] = []
    for change in draft.changes:
        seen = change.observed
        if seen is None or not seen.policy.prevent_destroy or not loses_disks(change, seen):
            kept.append(change)
            continue
        if (policy := policy_of(change.fleet)) and policy.prevent_destroy is False:
            kept.append(_lifted(change, seen, policy))
        else:
            kept.append(with_kind(change, "blocked", "prevent_destroy is recorded with it"))
            remedy = f"to lift it: lifecycle: {{prevent_destroy: false}} in fleet {change.fleet}, apply, then remove"
            refusals.append(Refusal(fleet=change.fleet, vm=change.name, rule="protection", message=remedy))
    return replace(draft, changes=kept, refusals=(*draft.refusals, *refusals))


def loses_disks(change: VMChange, seen: ObservedVM) -> bool:
    """Whether data may be lost: the VM goes, or its writable root disk is made anew now or when it starts."""
    if change.kind in {"delete", "move"}:
        return True
    rootfs = seen.spec.boot and seen.spec.boot.rootfs
    replaced = any(field.impact == "replace" for field in change.fields)
    return bool(replaced and rootfs and not rootfs.read_only and change.kind != "blocked")


def _lifted(change: VMChange, seen: ObservedVM, policy: Policy) -> VMChange:
    lifted = FieldChange(path="lifecycle.prevent_destroy", before=True, after=False, impact="record")
    change = with_kind(change, "update", "its protection is lifted first, what it forbade follows in the next run")
    return replace(change, fields=(lifted,), desired=as_recorded(seen, seen.state, policy))


def as_recorded(seen: ObservedVM, state: State, policy: Policy) -> DesiredVM:
    """The VM with the spec and the addresses that are recorded of it."""
    digest = seen.spec_digest
    if (state, policy) != (seen.state, seen.policy):
        digest = spec_digest(seen.project, seen.fleet, state, seen.spec, policy)
    return DesiredVM(
        name=seen.name,
        project=seen.project,
        fleet=seen.fleet,
        host=seen.host,
        state=state,
        spec=seen.spec,
        policy=policy,
        spec_digest=digest,
        addresses=seen.addresses,
    )


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
    held = {vm: why for vm, loss in losses_of(plan).items() if loss not in approved}
    return with_refusals(plan, held, rule="approval", reason="it lacks approvals")


def with_refusals(plan: Plan, why: Mapping[tuple[str, str], str], *, rule: str, reason: str = "") -> Plan:
    """The plan, in which the changes of these VMs on hosts are blocked, for a `reason` that is shorter than `why`."""
    if not why:
        return plan
    pairs = [(change, why.get((change.name, change.host))) for change in plan.changes]
    changes = tuple(with_kind(it, "blocked", reason or said) if said else it for it, said in pairs)
    actions = tuple(action for action in plan.actions if (action.vm, action.host) not in why)
    refusals = (Refusal(fleet=it.fleet, vm=it.name, rule=rule, message=said) for it, said in pairs if said)
    return numbered(plan, changes=changes, actions=actions, refusals=(*plan.refusals, *refusals))
