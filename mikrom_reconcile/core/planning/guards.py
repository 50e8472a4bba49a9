"""Guards: what a plan must not do by itself. A guard holds changes back or refuses them; it never adds any.

A refusal stops only what it concerns, and its message says the rule, the numbers and the way out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping

import msgspec

from mikrom_reconcile.core.model.desired import DesiredState, DesiredVM, Policy, Share, State
from mikrom_reconcile.core.model.digests import spec_digest
from mikrom_reconcile.core.model.observed import ObservedVM, Placements
from mikrom_reconcile.core.model.plan import ChangeKind, FieldChange, Refusal, VMChange
from mikrom_reconcile.core.planning.project_view import ProjectView


class RunOverrides(msgspec.Struct, frozen=True, kw_only=True):
    """What this run allows beyond the fleets' own policy.

    `prune_max` replaces every fleet's share; `confirmed` names fleets whose removals a person has confirmed;
    `all_removals` is for a destroy: removals are what was asked for. `retry` brings back what was given up, once: VMs
    that this run has `tried` are given up again if that failed.
    """

    prune_max: Share | None = None
    confirmed: tuple[str, ...] = ()
    all_removals: bool = False
    retry: bool = False
    tried: frozenset[str] = frozenset()


def resolve_share(share: Share, total: int) -> int:
    """How many of `total` a share stands for: percentages are rounded down, but never to none unless 0 was said."""
    if isinstance(share, int):
        return share
    percent = int(share.rstrip("%"))
    return max(1, total * percent // 100) if percent else 0


def limit_removals(
    changes: list[VMChange],
    fleets: Mapping[str, FleetCounts],
    policies: Mapping[str, Policy],
    limits: RunOverrides,
    drained: Container[str] = (),
) -> tuple[list[VMChange], list[Refusal]]:
    """Refuses all removals of a fleet that together pass its share, or that would take its last VM.

    All or none: letting some through would empty a fleet in steps. A move takes a VM's root disk with it, so it counts,
    unless it is off a host that the inventory says to drain. `policies` are those of the fleets in the specs.
    """
    removals: dict[str, list[VMChange]] = defaultdict(list)
    for change in changes:
        if _removes(change, drained):
            removals[change.fleet].append(change)
    refusals = [
        refusal
        for fleet, going in sorted(removals.items())
        if fleet not in limits.confirmed and not limits.all_removals
        for refusal in _removal_refusal(
            fleet, going, fleets.get(fleet, FleetCounts()), _policy(fleet, going, policies), limits.prune_max
        )
    ]
    refused = {refusal.fleet for refusal in refusals}
    kept = [
        with_kind(change, "blocked", "the removals of this fleet were refused")
        if change.fleet in refused and _removes(change, drained)
        else change
        for change in changes
    ]
    return kept, refusals


def _removes(change: VMChange, drained: Container[str]) -> bool:
    return change.kind == "delete" or (change.kind == "move" and change.host not in drained)


def _removal_refusal(
    fleet: str, going: list[VMChange], has: FleetCounts, policy: Policy, prune_max: Share | None
) -> Iterable[Refusal]:
    share = policy.prune_max if prune_max is None else prune_max
    owned, unseen = has.owned + has.unseen, has.unseen
    budget = resolve_share(share, owned)
    way_out = "to allow it once: --prune-max 100%, or confirm at the prompt"
    moves = sum(change.kind == "move" for change in going)
    deletes = len(going) - moves
    if len(going) + unseen > budget:
        told = f"{len(going) + unseen} of {owned} VMs would go"
        told += f" ({moves} of them to another host)" if moves else ""
        told += f" ({unseen} of them on hosts that cannot be read)" if unseen else ""
        message = f"{told}, prune.max {share} allows {budget}; {way_out}"
    elif deletes and deletes == has.owned and not policy.allow_empty and prune_max != "100%":
        message = f"its last VM would go; {way_out}; for good: prune: {{allow_empty: true}}"
    else:
        return ()
    return (Refusal(fleet=fleet, vm="", rule="prune", message=message),)


def protect(changes: list[VMChange], policies: Mapping[str, Policy]) -> tuple[list[VMChange], list[Refusal]]:
    """Refuses to remove VMs, or what they wrote to their root disks, where their record forbids it, whatever the
    specs say about them now.

    An explicit `prevent_destroy: false` of the fleet is planned as a change of its own; what it forbade follows.
    """
    kept: list[VMChange] = []
    refusals: list[Refusal] = []
    for change in changes:
        seen = change.observed
        if seen is None or not seen.policy.prevent_destroy or not _loses_disks(change, seen):
            kept.append(change)
            continue
        policy = policies.get(change.fleet)
        if policy is not None and policy.prevent_destroy is False:
            kept.append(_lifted(change, seen, policy))
        else:
            kept.append(with_kind(change, "blocked", "prevent_destroy is recorded with it"))
            way_out = f"to lift it: lifecycle: {{prevent_destroy: false}} in fleet {change.fleet}, apply, then remove"
            refusals.append(Refusal(fleet=change.fleet, vm=change.name, rule="protection", message=way_out))
    return kept, refusals


def _loses_disks(change: VMChange, seen: ObservedVM) -> bool:
    """Whether data may be lost: the VM goes, or its writable root disk is made anew now or when it starts."""
    if change.kind in {"delete", "move"}:
        return True
    rootfs = seen.spec.boot and seen.spec.boot.rootfs
    replaced = any(field.impact == "replace" for field in change.fields)
    return bool(replaced and rootfs and not rootfs.read_only and change.kind != "blocked")


def _lifted(change: VMChange, seen: ObservedVM, policy: Policy) -> VMChange:
    desired = as_recorded(seen, seen.state, policy)
    lifted = FieldChange(path="lifecycle.prevent_destroy", before=True, after=False, impact="record")
    return msgspec.structs.replace(
        with_kind(change, "update", "its protection is lifted first, what it forbade follows in the next run"),
        fields=(lifted,),
        desired=desired,
    )


class FleetCounts(msgspec.Struct, frozen=True):
    """VMs of a fleet: `owned` on hosts that answered, and `unseen` ones that nothing wants, last known on dark hosts.

    Those have to go as soon as their host answers: a share that forgot them could be spent anew on each host.
    """

    owned: int = 0
    unseen: int = 0


def fleet_counts(view: ProjectView, desired: DesiredState, remembered: Placements) -> dict[str, FleetCounts]:
    """What each fleet has."""
    owned = Counter(row.fleet for rows in view.own.values() for row in rows)
    owned += Counter(vm.fleet for vm in desired.vms if vm.name in view.up_to_date)
    unseen: Counter[str] = Counter()
    if view.unreachable:
        wanted = {vm.name for vm in desired.vms if vm.state != "absent"}
        lost = (name for name, host in remembered.vms.items() if host in view.unreachable and name not in wanted)
        unseen.update(remembered.fleet_of(name) for name in lost if name not in view.own)
    return {fleet: FleetCounts(owned[fleet], unseen[fleet]) for fleet in owned | unseen}


def _policy(fleet: str, going: list[VMChange], policies: Mapping[str, Policy]) -> Policy:
    """The policy in the specs, or for a fleet that vanished from them the strictest that its hosts recorded."""
    if fleet in policies:
        return policies[fleet]
    recorded = [change.observed.policy for change in going if change.observed]
    return min(recorded, key=lambda policy: (resolve_share(policy.prune_max, 1000), policy.allow_empty))


def as_recorded(seen: ObservedVM, state: State, policy: Policy) -> DesiredVM:
    """The VM with the spec and the addresses that are recorded of it."""
    digest = seen.spec_digest
    if (state, policy) != (seen.state, seen.policy):
        digest = spec_digest(project=seen.project, fleet=seen.fleet, state=state, spec=seen.spec, policy=policy)
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


def with_kind(change: VMChange, kind: ChangeKind, reason: str) -> VMChange:
    """The change as a guard makes it; what it was is what is `wanted`."""
    return msgspec.structs.replace(change, kind=kind, wanted=change.kind, reasons=(*change.reasons, reason))
