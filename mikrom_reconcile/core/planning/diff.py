"""Compares desired with observed state, VM by VM; `rules` say what is to be done about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.fields import keep_applied
from mikrom_reconcile.core.model.observed import SATISFIES, ObservedVM
from mikrom_reconcile.core.model.plan import VMChange
from mikrom_reconcile.core.planning.context import Draft, PlanContext
from mikrom_reconcile.core.planning.project_view import EXPECTED_PHASE
from mikrom_reconcile.core.planning.rules import DiffInput, judge


def diff(draft: Draft, context: PlanContext) -> Draft:
    """Every change, sorted by name and host, and how many VMs of each host are as they should be."""
    changes: list[VMChange] = []
    unchanged: Counter[str] = Counter()
    for case in (*_wanted(draft, context, unchanged), *_unwanted(draft, context)):
        verdict = judge(case)
        if isinstance(verdict, VMChange):
            changes.append(verdict)
        else:
            unchanged[case.host] += 1
    changes.sort(key=lambda change: (change.name, change.host))
    return replace(draft, changes=changes, unchanged=dict(sorted(unchanged.items())))


def _wanted(draft: Draft, context: PlanContext, up_to_date: Counter[str]) -> Iterator[DiffInput]:
    """The wanted VMs that rules have to decide about. Those that digests or rows prove to be where and as they are
    wanted are only counted: of a large fleet these are many.
    """
    view, removed, placing = context.view, context.removed_hosts, draft.placing
    for vm in draft.desired:
        rows = view.own.get(vm.name, ())
        proven = vm.name in view.up_to_date or _is_up_to_date(vm, rows)
        if proven and vm.name not in placing.rejections and vm.host not in removed:
            up_to_date[vm.host] += 1
            continue
        keeper = rows[0] if rows else None
        yield DiffInput(
            desired=effective(vm, keeper) if keeper else vm,
            observed=keeper,
            name_conflict=view.others.get(vm.name),
            host_unreachable=view.unreachable.get(vm.host, ""),
            possible_on=() if rows else context.possible_on,
            placed=placing.placed.get(vm.name, ""),
            eviction_reason=placing.eviction_reasons.get(vm.name, ""),
            rejections=placing.rejections.get(vm.name, ()),
            host_removed=keeper is not None and keeper.host in removed,
            retry=context.overrides.retry,
        )


def _is_up_to_date(vm: DesiredVM, rows: tuple[ObservedVM, ...]) -> bool:
    """Whether its row says what a fleet's digest would prove."""
    if len(rows) != 1:
        return False
    (row,) = rows
    as_wanted = row.spec_digest == vm.spec_digest and row.phase == EXPECTED_PHASE.get(vm.state)
    return as_wanted and row.host == vm.host and not row.drift


def _unwanted(draft: Draft, context: PlanContext) -> Iterator[DiffInput]:
    """The VMs that are there and not wanted, or there twice."""
    own, removed = context.view.own, context.removed_hosts
    wanted = {vm.name for vm in draft.desired} if own else set()
    for name, rows in own.items():
        kept_on = rows[0].host if name in wanted else ""
        proven = rows[0].host not in removed and rows[0].phase in SATISFIES[rows[0].state]
        for row in rows:
            if row.host != kept_on and (kept_on or in_scope(context, row.fleet)):
                yield DiffInput(
                    desired=None,
                    observed=row,
                    duplicate_on=kept_on,
                    proven=proven,
                    host_removed=row.host in removed,
                    destroy=context.given.destroy,
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


def in_scope(context: PlanContext, fleet: str) -> bool:
    """Whether the specs speak for this fleet, so that a VM of it which they do not want has to go."""
    return context.specs.whole or fleet in context.fleets
