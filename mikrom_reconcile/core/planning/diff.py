"""Compares desired with observed state, VM by VM; `rules` say what is to be done about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredState, DesiredVM
from mikrom_reconcile.core.model.fields import keep_applied
from mikrom_reconcile.core.model.lifecycle import SATISFIES
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import VMChange
from mikrom_reconcile.core.planning.context import Draft, PlanContext
from mikrom_reconcile.core.planning.project_view import EXPECTED_PHASE
from mikrom_reconcile.core.planning.rules import DiffInput, judge


def diff(draft: Draft, context: PlanContext) -> Draft:
    """Every change, sorted by name and host, and how many VMs of each host are as they should be."""
    desired = draft.desired
    up_to_date = _up_to_date(desired, context)
    unchanged = Counter(vm.host for vm in desired.vms if vm.name in up_to_date)
    changes: list[VMChange] = []
    for case in _inputs(desired, context, up_to_date):
        verdict = judge(case)
        if isinstance(verdict, VMChange):
            changes.append(verdict)
        else:
            unchanged[case.host] += 1
    changes.sort(key=lambda change: (change.name, change.host))
    return replace(draft, changes=changes, unchanged=dict(sorted(unchanged.items())))


def _up_to_date(desired: DesiredState, context: PlanContext) -> AbstractSet[str]:
    """The VMs that no rule has to look at: digests or rows prove that they are where and as they are wanted."""
    own, proven = context.view.own, context.view.up_to_date
    if not own and not desired.rejections:
        return proven  # of a large fleet these are many: no copy is made without need
    shown = {vm.name for vm in desired.vms if vm.name in own and _is_up_to_date(vm, own[vm.name])} if own else set()
    removed = context.removed_hosts
    elsewhere = {vm.name for vm in desired.vms if vm.host in removed} if removed else set()
    return (proven | shown) - elsewhere - desired.rejections.keys()


def _is_up_to_date(vm: DesiredVM, rows: tuple[ObservedVM, ...]) -> bool:
    """Whether its row says what a fleet's digest would prove."""
    if len(rows) != 1:
        return False
    (row,) = rows
    as_wanted = row.spec_digest == vm.spec_digest and row.phase == EXPECTED_PHASE.get(vm.state)
    return as_wanted and row.host == vm.host and not row.drift


def _inputs(desired: DesiredState, context: PlanContext, up_to_date: AbstractSet[str]) -> Iterator[DiffInput]:
    """The VMs that rules have to look at: those that are wanted, then those that are there unwanted, or twice."""
    view, removed, retry = context.view, context.removed_hosts, context.overrides.retry
    wanted = set()
    for vm in desired.vms:
        if vm.name in view.own:
            wanted.add(vm.name)
        if vm.name in up_to_date:
            continue
        rows = view.own.get(vm.name, ())
        keeper = rows[0] if rows else None
        yield DiffInput(
            desired=effective(vm, keeper) if keeper else vm,
            observed=keeper,
            name_conflict=view.others.get(vm.name),
            host_unreachable=view.unreachable.get(vm.host, ""),
            possible_on=() if rows else context.possible_on,
            placed=desired.placed.get(vm.name, ""),
            eviction_reason=desired.eviction_reasons.get(vm.name, ""),
            rejections=desired.rejections.get(vm.name, ()),
            host_removed=keeper is not None and keeper.host in removed,
            retry=retry,
        )
    for name, rows in view.own.items():
        kept_on = rows[0].host if name in wanted else ""
        proven = rows[0].host not in removed and rows[0].phase in SATISFIES[rows[0].state]
        for row in rows:
            if row.host != kept_on and (kept_on or in_scope(desired, row.fleet)):
                yield DiffInput(
                    desired=None,
                    observed=row,
                    duplicate_on=kept_on,
                    proven=proven,
                    host_removed=row.host in removed,
                    destroy=desired.destroy,
                )


def effective(desired: DesiredVM, observed: ObservedVM) -> DesiredVM:
    """What to bring this VM to: protection that the spec does not mention, and ignored fields, stay as applied."""
    policy, spec = desired.policy, desired.spec
    if policy.prevent_destroy is None and observed.policy.prevent_destroy:
        policy = replace(policy, prevent_destroy=True)
    if desired.ignore_changes:
        spec = keep_applied(spec, desired.ignore_changes, observed.spec)
    if policy is desired.policy and spec is desired.spec:
        return desired
    return replace(desired, policy=policy, spec=spec)


def in_scope(desired: DesiredState, fleet: str) -> bool:
    """Whether the specs speak for this fleet, so that a VM of it which they do not want has to go."""
    return desired.whole or fleet in desired.fleets
