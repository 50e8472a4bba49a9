"""Desired against observed: one ordered table of rules, the first that matches wins. Read it aloud.

A rule answers with a change, with UNCHANGED, or with None for "not my case". It never acts, counts or limits:
that is for guards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import msgspec

from mikrom_reconcile.core.model.desired import DesiredState, DesiredVM
from mikrom_reconcile.core.model.fields import field_changes, impact_of, is_row_of, keep_applied, recorded
from mikrom_reconcile.core.model.lifecycle import DEGRADED, HAS_VMM, HEALTHY, NOT_RESTARTED, SATISFIES
from mikrom_reconcile.core.model.observed import Drift, ObservedVM
from mikrom_reconcile.core.model.plan import ChangeKind, FieldChange, VMChange
from mikrom_reconcile.core.planning.diff_input import UNCHANGED, DiffInput, Verdict
from mikrom_reconcile.core.planning.project_view import SETTLED, ProjectView


def diff(
    desired: DesiredState, view: ProjectView, possible_on: tuple[str, ...], *, retry: bool = False
) -> tuple[list[VMChange], dict[str, int]]:
    """Every change, sorted by name and host, and how many VMs of each host are as they should be.

    `possible_on` names dark hosts on which VMs may exist unknown to us; `retry` brings back what was given up.
    """
    changes: list[VMChange] = []
    own = view.own
    settled = view.up_to_date  # of a large fleet these are many: no copy is made without need
    if more := {vm.name for vm in desired.vms if vm.name in own and _is_settled(vm, own[vm.name])}:
        settled |= more
    if desired.rejections:
        settled -= desired.rejections.keys()
    if removed := view.reports.keys() - set(desired.hosts):
        settled -= {vm.name for vm in desired.vms if vm.host in removed}
    unchanged = Counter(vm.host for vm in desired.vms if vm.name in settled)
    for case in _cases(desired, view, possible_on, settled, removed):
        verdict = judge(msgspec.structs.replace(case, retry=True) if retry else case)
        if isinstance(verdict, VMChange):
            changes.append(verdict)
        else:
            unchanged[case.host] += 1
    return sorted(changes, key=lambda change: (change.name, change.host)), dict(sorted(unchanged.items()))


def judge(case: DiffInput) -> Verdict:
    """What the first matching rule says."""
    rule, verdict = next((rule, verdict) for rule, says in RULES.items() if (verdict := says(case)) is not None)
    if verdict == UNCHANGED:
        rule, verdict = "cannot-move", cannot_leave(case) or UNCHANGED
    return msgspec.structs.replace(verdict, rule=rule) if isinstance(verdict, VMChange) else verdict


def _is_settled(vm: DesiredVM, rows: tuple[ObservedVM, ...]) -> bool:
    """Whether its row says what a fleet's digest would prove: it is where and as it is wanted, whatever the rules."""
    if len(rows) != 1:
        return False
    (row,) = rows
    as_wanted = row.spec_digest == vm.spec_digest and row.phase == SETTLED.get(vm.state)
    return as_wanted and row.host == vm.host and not row.drift


def _cases(
    desired: DesiredState,
    view: ProjectView,
    possible_on: tuple[str, ...],
    settled: frozenset[str],
    removed: set[str],
) -> Iterator[DiffInput]:
    wanted = set()
    for vm in desired.vms:
        if vm.name in view.own:
            wanted.add(vm.name)
        if vm.name in settled:
            continue
        rows = view.own.get(vm.name, ())
        keeper = rows[0] if rows else None
        yield DiffInput(
            desired=_effective(vm, keeper) if keeper else vm,
            observed=keeper,
            name_conflict=view.others.get(vm.name),
            host_unreachable=view.unreachable.get(vm.host, ""),
            possible_on=() if rows else possible_on,
            placed=desired.placed.get(vm.name, ""),
            eviction_reason=desired.eviction_reasons.get(vm.name, ""),
            rejections=desired.rejections.get(vm.name, ()),
            host_removed=keeper is not None and keeper.host in removed,
        )
    for name, rows in view.own.items():
        kept_on = rows[0].host if name in wanted else ""
        proven = rows[0].host not in removed and rows[0].phase in SATISFIES[rows[0].state]
        for row in rows:
            if row.host != kept_on and (kept_on or in_scope(desired, row.fleet)):
                gone, end = row.host in removed, desired.destroy
                yield DiffInput(
                    desired=None, observed=row, duplicate_on=kept_on, proven=proven, host_removed=gone, destroy=end
                )


def _effective(desired: DesiredVM, observed: ObservedVM) -> DesiredVM:
    """What to bring this VM to: protection that the spec does not mention, and ignored fields, stay as applied."""
    policy, spec = desired.policy, desired.spec
    if policy.prevent_destroy is None and observed.policy.prevent_destroy:
        policy = msgspec.structs.replace(policy, prevent_destroy=True)
    if desired.ignore_changes:
        spec = keep_applied(spec, desired.ignore_changes, observed.spec)
    if policy is desired.policy and spec is desired.spec:
        return desired
    return msgspec.structs.replace(desired, policy=policy, spec=spec)


def in_scope(desired: DesiredState, fleet: str) -> bool:
    """Whether the specs speak for this fleet, so that a VM of it which they do not want has to go."""
    return desired.whole or fleet in desired.fleets


# ---- the rules, first match wins --------------------------------------------------------------------------------


def on_a_dark_host(case: DiffInput) -> Verdict:
    """What cannot be read is unknown: neither made elsewhere nor deleted."""
    if case.host_unreachable and case.desired:
        return case.change("blocked", f"its host {case.desired.host} could not be read: {case.host_unreachable}")
    return None


def runs_twice(case: DiffInput) -> Verdict:
    """Of two VMs of one name the one that was changed last stays; the other goes once that one is as was ordered."""
    if case.duplicate_on and not case.proven:
        reason = f"a newer VM of this name is on {case.duplicate_on}: this one stays until that one is well"
        return case.change("wait", reason, wanted="delete")
    return case.change("delete", f"a newer VM of this name is on {case.duplicate_on}") if case.duplicate_on else None


def left_the_inventory(case: DiffInput) -> Verdict:
    """A host that left the inventory counts as dark until it is empty: leaving is no order to move or remove."""
    if case.host_removed and not case.destroy:
        host = case.host
        way_out = f"put it back with state: drain, or --assume-dead {host} once it is off for good"
        wanted: ChangeKind = "move" if case.desired else "delete"
        return case.change("blocked", f"its host {host} left the inventory: {way_out}", wanted=wanted)
    return None


def destroyed(case: DiffInput) -> Verdict:
    """A destroy takes everything that the specs speak for."""
    if case.desired is None and case.destroy:
        return case.change("delete", "destroy was asked for")
    return None


def not_wanted(case: DiffInput) -> Verdict:
    """No spec wants it any more."""
    if case.desired is None:
        return case.change("delete", "not in the specs")
    return None


def wanted_absent(case: DiffInput) -> Verdict:
    """`state: absent` is a removal like any other."""
    if case.desired and case.desired.state == "absent":
        return case.change("delete", "state: absent") if case.observed else UNCHANGED
    return None


def name_taken(case: DiffInput) -> Verdict:
    """A VM of another project, or one whose record nobody can read, is never touched."""
    if case.name_conflict is None or case.observed is not None:
        return None
    if case.name_conflict.phase == "unreadable":
        return case.change(
            "blocked", f"it is on {case.name_conflict.host} and cannot be read: {case.name_conflict.last_error}"
        )
    return case.change(
        "blocked", f"the name belongs to project {case.name_conflict.project} on {case.name_conflict.host}"
    )


def may_hide(case: DiffInput) -> Verdict:
    """It may exist on a dark host that we know nothing of: making it now could double it."""
    if case.possible_on:
        return case.change(
            "blocked", f"it may exist on {', '.join(case.possible_on)}, which cannot be read", wanted="create"
        )
    return None


def homeless(case: DiffInput) -> Verdict:
    """No host has it, and none can."""
    if case.observed is None and case.rejections:
        return case.change("blocked", "no host can have it", *case.rejections, wanted="create")
    return None


def missing(case: DiffInput) -> Verdict:
    """No host has it."""
    if case.observed is None:
        return case.change("create", "does not exist")
    return None


def misplaced(case: DiffInput) -> Verdict:
    """It is where it may not be any more: it goes there now, and is made on its new host in the next pass."""
    desired, observed = _both(case)
    if desired.host != observed.host:
        return case.change("move", f"it belongs on {desired.host}", f"{observed.host}: {case.eviction_reason}")
    return None


def half_deleted(case: DiffInput) -> Verdict:
    """A delete began and did not end; create finishes it first."""
    if case.observed and case.observed.phase == "deleting":
        return case.change("create", "an earlier delete was interrupted")
    return None


def shrinking(case: DiffInput) -> Verdict:
    """A drive never gets smaller: what lies behind its new end would be lost."""
    smaller = [
        field
        for field in changed_fields(*_both(case))
        if is_row_of("drives.*.size_mib", field.path) and field.after < field.before
    ]
    if not smaller:
        return None
    reasons = [f"{field.path} would shrink from {field.before} to {field.after}" for field in smaller]
    return case.change("blocked", *reasons, "write the old size, or a drive of another name")


def wanted_stopped(case: DiffInput) -> Verdict:
    """`state: stopped`, and a VMM lives or the record does not say so yet."""
    desired, observed = _both(case)
    if desired.state != "stopped":
        return None
    fields = changed_fields(desired, observed)
    if observed.phase in HAS_VMM or observed.state != "stopped":
        return case.change("stop", f"state: stopped, and it is {observed.phase}", fields=fields)
    return case.change("update", "spec changed", fields=fields) if fields else UNCHANGED


def parked(case: DiffInput) -> Verdict:
    """Its host has given up bringing it back; a changed spec or --retry begins anew."""
    desired, observed = _both(case)
    if observed.phase != "parked" or case.retry or changed_fields(desired, observed):
        return None
    tries = f"{len(observed.restarts)} restarts within {observed.spec.restart.interval} did not keep it up"
    end = f", the last time: {observed.last_error}" if observed.last_error else ""
    return case.change("blocked", f"parked: {tries}{end}; change its spec, or --retry", wanted="start")


def replacing(case: DiffInput) -> Verdict:
    """The spec differs in what its root disk is made from."""
    desired, observed = _both(case)
    fields = changed_fields(desired, observed)
    if any(field.impact == "replace" for field in fields):
        return case.change("replace", "spec changed", *_drift_reasons(desired, observed), fields=fields)
    return None


def left_down(case: DiffInput) -> Verdict:
    """Its restart policy leaves it as it ended."""
    desired, observed = _both(case)
    ended_so = observed.phase in NOT_RESTARTED[desired.spec.restart.policy]
    return UNCHANGED if ended_so and not case.retry and not changed_fields(desired, observed) else None


def down(case: DiffInput) -> Verdict:
    """It should be up and no VMM lives."""
    desired, observed = _both(case)
    if observed.phase not in HAS_VMM or observed.phase == "starting":
        reason = f"it is {observed.phase}" + (f": {observed.last_error}" if observed.last_error else "")
        return case.change("start", reason, fields=changed_fields(desired, observed))
    return None


def broken(case: DiffInput) -> Verdict:
    """A VMM lives and cannot be reached, or was told to stop."""
    desired, observed = _both(case)
    if observed.phase not in HEALTHY | DEGRADED:
        return case.change("restart", f"it is {observed.phase}", fields=changed_fields(desired, observed))
    return None


def restarting(case: DiffInput) -> Verdict:
    """The spec differs from what was applied in a field that only a restart changes."""
    desired, observed = _both(case)
    fields = changed_fields(desired, observed)
    if any(field.impact == "restart" for field in fields):
        return case.change("restart", "spec changed", *_drift_reasons(desired, observed), fields=fields)
    return None


def drifted(case: DiffInput) -> Verdict:
    """The VMM is not what its record says, in what only a restart mends."""
    desired, observed = _both(case)
    if any(impact_of(item.path) in {"restart", "replace"} for item in _drift(desired, observed)):
        return case.change("restart", *_drift_reasons(desired, observed), fields=changed_fields(desired, observed))
    return None


def paused_or_not(case: DiffInput) -> Verdict:
    """It runs and should be paused, or the other way round."""
    desired, observed = _both(case)
    as_wanted = observed.phase in SATISFIES[desired.state]
    if as_wanted or (desired.state == "running" and observed.phase in DEGRADED):
        return None
    kind: ChangeKind = "pause" if desired.state == "paused" else "resume"
    fields = changed_fields(desired, observed)
    return case.change(kind, f"state: {desired.state}, and it is {observed.phase}", fields=fields)


def updating(case: DiffInput) -> Verdict:
    """What differs can change while it runs, or only the record knows it."""
    desired, observed = _both(case)
    fields = changed_fields(desired, observed)
    reasons = [*(["spec changed"] if fields else []), *_drift_reasons(desired, observed)]
    return case.change("update", *reasons, fields=fields) if reasons else None


def unwell(case: DiffInput) -> Verdict:
    """It runs, and its guest does not do what its checks want: only time or a person can help."""
    observed = _both(case)[1]
    if observed.phase in DEGRADED:
        return case.change("wait", f"it is {observed.phase}: {observed.health}")
    return None


def as_wanted(case: DiffInput) -> Verdict:
    """Nothing to do."""
    del case
    return UNCHANGED


def cannot_leave(case: DiffInput) -> Verdict:
    """It may not stay where it is, and no other host can have it: until one can, it is looked after where it is."""
    if case.rejections:
        return case.change("blocked", "it cannot leave this host", *case.rejections, wanted="move")
    return None


RULES: dict[str, Callable[[DiffInput], Verdict]] = {
    "unreachable-host": on_a_dark_host,
    "duplicate": runs_twice,
    "host-removed": left_the_inventory,
    "destroy": destroyed,
    "not-in-specs": not_wanted,
    "absent": wanted_absent,
    "name-conflict": name_taken,
    "possible-duplicate": may_hide,
    "unplaceable": homeless,
    "missing": missing,
    "misplaced": misplaced,
    "interrupted-delete": half_deleted,
    "shrinking-drive": shrinking,
    "stopped": wanted_stopped,
    "crash-loop": parked,
    "needs-replace": replacing,
    "not-restarted": left_down,
    "down": down,
    "unresponsive": broken,
    "needs-restart": restarting,
    "drift": drifted,
    "pause-or-resume": paused_or_not,
    "needs-update": updating,
    "unhealthy": unwell,
    "up-to-date": as_wanted,
    "cannot-move": cannot_leave,
}
"""Each rule under its id, by which plans, `explain` and metrics call it: an id stays when its function is renamed.

The last one looks at what those before leave unchanged.
"""

STANDS_IN_THE_WAY = frozenset({"host-removed", "name-conflict", "unplaceable", "crash-loop", "cannot-move"})
"""Rules whose `blocked` asks for somebody to do something; a dark host only has to answer again."""


def changed_fields(desired: DesiredVM, observed: ObservedVM) -> tuple[FieldChange, ...]:
    """What differs between the spec and what was last applied; nothing when their digests are equal."""
    if desired.spec_digest == observed.spec_digest:
        return ()
    return field_changes(
        recorded(fleet=observed.fleet, state=observed.state, spec=observed.spec, policy=observed.policy),
        recorded(fleet=desired.fleet, state=desired.state, spec=desired.spec, policy=desired.policy),
    )


def _drift_reasons(desired: DesiredVM, observed: ObservedVM) -> tuple[str, ...]:
    return tuple(f"drift: {item.path} is {item.actual}, recorded {item.recorded}" for item in _drift(desired, observed))


def _drift(desired: DesiredVM, observed: ObservedVM) -> tuple[Drift, ...]:
    """The drift that somebody minds."""
    return tuple(item for item in observed.drift if item.path not in desired.ignore_changes)


def _both(case: DiffInput) -> tuple[DesiredVM, ObservedVM]:
    desired, observed = case.desired, case.observed
    assert desired is not None, "rules above answer for a missing side"  # noqa: S101
    assert observed is not None, "rules above answer for a missing side"  # noqa: S101
    return desired, observed
