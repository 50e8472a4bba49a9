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
from mikrom_reconcile.core.planning.diff_input import UNCHANGED, Case, Verdict
from mikrom_reconcile.core.planning.project_view import SETTLED, Sight


def diff(
    desired: DesiredState, sight: Sight, hiding: tuple[str, ...], *, retry: bool = False
) -> tuple[list[VMChange], dict[str, int]]:
    """Every change, sorted by name and host, and how many VMs of each host are as they should be.

    `hiding` names dark hosts on which VMs may exist unknown to us; `retry` brings back what was given up.
    """
    changes: list[VMChange] = []
    own = sight.own
    settled = sight.settled  # of a large fleet these are many: no copy is made without need
    if more := {vm.name for vm in desired.vms if vm.name in own and _is_settled(vm, own[vm.name])}:
        settled |= more
    if desired.rejections:
        settled -= desired.rejections.keys()
    if vanished := sight.reports.keys() - set(desired.hosts):
        settled -= {vm.name for vm in desired.vms if vm.host in vanished}
    unchanged = Counter(vm.host for vm in desired.vms if vm.name in settled)
    for case in _cases(desired, sight, hiding, settled, vanished):
        verdict = judge(msgspec.structs.replace(case, retry=True) if retry else case)
        if isinstance(verdict, VMChange):
            changes.append(verdict)
        else:
            unchanged[case.host] += 1
    return sorted(changes, key=lambda change: (change.name, change.host)), dict(sorted(unchanged.items()))


def judge(case: Case) -> Verdict:
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
    desired: DesiredState, sight: Sight, hiding: tuple[str, ...], settled: frozenset[str], vanished: set[str]
) -> Iterator[Case]:
    wanted = set()
    for vm in desired.vms:
        if vm.name in sight.own:
            wanted.add(vm.name)
        if vm.name in settled:
            continue
        rows = sight.own.get(vm.name, ())
        keeper = rows[0] if rows else None
        yield Case(
            desired=_effective(vm, keeper) if keeper else vm,
            observed=keeper,
            taken=sight.others.get(vm.name),
            dark=sight.dark.get(vm.host, ""),
            hiding=() if rows else hiding,
            placed=desired.placed.get(vm.name, ""),
            leaves=desired.leaves.get(vm.name, ""),
            rejections=desired.rejections.get(vm.name, ()),
            vanished=keeper is not None and keeper.host in vanished,
        )
    for name, rows in sight.own.items():
        kept_on = rows[0].host if name in wanted else ""
        proven = rows[0].host not in vanished and rows[0].phase in SATISFIES[rows[0].state]
        for row in rows:
            if row.host != kept_on and (kept_on or in_scope(desired, row.fleet)):
                gone, end = row.host in vanished, desired.destroy
                yield Case(desired=None, observed=row, double=kept_on, proven=proven, vanished=gone, destroy=end)


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


def on_a_dark_host(case: Case) -> Verdict:
    """What cannot be read is unknown: neither made elsewhere nor deleted."""
    if case.dark and case.desired:
        return case.change("blocked", f"its host {case.desired.host} could not be read: {case.dark}")
    return None


def runs_twice(case: Case) -> Verdict:
    """Of two VMs of one name the one that was changed last stays; the other goes once that one is as was ordered."""
    if case.double and not case.proven:
        reason = f"a newer VM of this name is on {case.double}: this one stays until that one is well"
        return case.change("wait", reason, wanted="delete")
    return case.change("delete", f"a newer VM of this name is on {case.double}") if case.double else None


def left_the_inventory(case: Case) -> Verdict:
    """A host that left the inventory counts as dark until it is empty: leaving is no order to move or remove."""
    if case.vanished and not case.destroy:
        host = case.host
        way_out = f"put it back with state: drain, or --assume-dead {host} once it is off for good"
        wanted: ChangeKind = "move" if case.desired else "delete"
        return case.change("blocked", f"its host {host} left the inventory: {way_out}", wanted=wanted)
    return None


def destroyed(case: Case) -> Verdict:
    """A destroy takes everything that the specs speak for."""
    if case.desired is None and case.destroy:
        return case.change("delete", "destroy was asked for")
    return None


def not_wanted(case: Case) -> Verdict:
    """No spec wants it any more."""
    if case.desired is None:
        return case.change("delete", "not in the specs")
    return None


def wanted_absent(case: Case) -> Verdict:
    """`state: absent` is a removal like any other."""
    if case.desired and case.desired.state == "absent":
        return case.change("delete", "state: absent") if case.observed else UNCHANGED
    return None


def name_taken(case: Case) -> Verdict:
    """A VM of another project, or one whose record nobody can read, is never touched."""
    if case.taken is None or case.observed is not None:
        return None
    if case.taken.phase == "unreadable":
        return case.change("blocked", f"it is on {case.taken.host} and cannot be read: {case.taken.last_error}")
    return case.change("blocked", f"the name belongs to project {case.taken.project} on {case.taken.host}")


def may_hide(case: Case) -> Verdict:
    """It may exist on a dark host that we know nothing of: making it now could double it."""
    if case.hiding:
        return case.change(
            "blocked", f"it may exist on {', '.join(case.hiding)}, which cannot be read", wanted="create"
        )
    return None


def homeless(case: Case) -> Verdict:
    """No host has it, and none can."""
    if case.observed is None and case.rejections:
        return case.change("blocked", "no host can have it", *case.rejections, wanted="create")
    return None


def missing(case: Case) -> Verdict:
    """No host has it."""
    if case.observed is None:
        return case.change("create", "does not exist")
    return None


def misplaced(case: Case) -> Verdict:
    """It is where it may not be any more: it goes there now, and is made on its new host in the next pass."""
    desired, observed = _both(case)
    if desired.host != observed.host:
        return case.change("move", f"it belongs on {desired.host}", f"{observed.host}: {case.leaves}")
    return None


def half_deleted(case: Case) -> Verdict:
    """A delete began and did not end; create finishes it first."""
    if case.observed and case.observed.phase == "deleting":
        return case.change("create", "an earlier delete was interrupted")
    return None


def shrinking(case: Case) -> Verdict:
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


def wanted_stopped(case: Case) -> Verdict:
    """`state: stopped`, and a VMM lives or the record does not say so yet."""
    desired, observed = _both(case)
    if desired.state != "stopped":
        return None
    fields = changed_fields(desired, observed)
    if observed.phase in HAS_VMM or observed.state != "stopped":
        return case.change("stop", f"state: stopped, and it is {observed.phase}", fields=fields)
    return case.change("update", "spec changed", fields=fields) if fields else UNCHANGED


def parked(case: Case) -> Verdict:
    """Its host has given up bringing it back; a changed spec or --retry begins anew."""
    desired, observed = _both(case)
    if observed.phase != "parked" or case.retry or changed_fields(desired, observed):
        return None
    tries = f"{len(observed.restarts)} restarts within {observed.spec.restart.interval} did not keep it up"
    end = f", the last time: {observed.last_error}" if observed.last_error else ""
    return case.change("blocked", f"parked: {tries}{end}; change its spec, or --retry", wanted="start")


def replacing(case: Case) -> Verdict:
    """The spec differs in what its root disk is made from."""
    desired, observed = _both(case)
    fields = changed_fields(desired, observed)
    if any(field.impact == "replace" for field in fields):
        return case.change("replace", "spec changed", *_drift_reasons(desired, observed), fields=fields)
    return None


def left_down(case: Case) -> Verdict:
    """Its restart policy leaves it as it ended."""
    desired, observed = _both(case)
    ended_so = observed.phase in NOT_RESTARTED[desired.spec.restart.policy]
    return UNCHANGED if ended_so and not case.retry and not changed_fields(desired, observed) else None


def down(case: Case) -> Verdict:
    """It should be up and no VMM lives."""
    desired, observed = _both(case)
    if observed.phase not in HAS_VMM or observed.phase == "starting":
        reason = f"it is {observed.phase}" + (f": {observed.last_error}" if observed.last_error else "")
        return case.change("start", reason, fields=changed_fields(desired, observed))
    return None


def broken(case: Case) -> Verdict:
    """A VMM lives and cannot be reached, or was told to stop."""
    desired, observed = _both(case)
    if observed.phase not in HEALTHY | DEGRADED:
        return case.change("restart", f"it is {observed.phase}", fields=changed_fields(desired, observed))
    return None


def restarting(case: Case) -> Verdict:
    """The spec differs from what was applied in a field that only a restart changes."""
    desired, observed = _both(case)
    fields = changed_fields(desired, observed)
    if any(field.impact == "restart" for field in fields):
        return case.change("restart", "spec changed", *_drift_reasons(desired, observed), fields=fields)
    return None


def drifted(case: Case) -> Verdict:
    """The VMM is not what its record says, in what only a restart mends."""
    desired, observed = _both(case)
    if any(impact_of(item.path) in {"restart", "replace"} for item in _drift(desired, observed)):
        return case.change("restart", *_drift_reasons(desired, observed), fields=changed_fields(desired, observed))
    return None


def paused_or_not(case: Case) -> Verdict:
    """It runs and should be paused, or the other way round."""
    desired, observed = _both(case)
    as_wanted = observed.phase in SATISFIES[desired.state]
    if as_wanted or (desired.state == "running" and observed.phase in DEGRADED):
        return None
    kind: ChangeKind = "pause" if desired.state == "paused" else "resume"
    fields = changed_fields(desired, observed)
    return case.change(kind, f"state: {desired.state}, and it is {observed.phase}", fields=fields)


def updating(case: Case) -> Verdict:
    """What differs can change while it runs, or only the record knows it."""
    desired, observed = _both(case)
    fields = changed_fields(desired, observed)
    reasons = [*(["spec changed"] if fields else []), *_drift_reasons(desired, observed)]
    return case.change("update", *reasons, fields=fields) if reasons else None


def unwell(case: Case) -> Verdict:
    """It runs, and its guest does not do what its checks want: only time or a person can help."""
    observed = _both(case)[1]
    if observed.phase in DEGRADED:
        return case.change("wait", f"it is {observed.phase}: {observed.health}")
    return None


def as_wanted(case: Case) -> Verdict:
    """Nothing to do."""
    del case
    return UNCHANGED


def cannot_leave(case: Case) -> Verdict:
    """It may not stay where it is, and no other host can have it: until one can, it is looked after where it is."""
    if case.rejections:
        return case.change("blocked", "it cannot leave this host", *case.rejections, wanted="move")
    return None


RULES: dict[str, Callable[[Case], Verdict]] = {
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


def _both(case: Case) -> tuple[DesiredVM, ObservedVM]:
    desired, observed = case.desired, case.observed
    assert desired is not None, "rules above answer for a missing side"  # noqa: S101
    assert observed is not None, "rules above answer for a missing side"  # noqa: S101
    return desired, observed
