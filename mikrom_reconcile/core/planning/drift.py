"""What is otherwise than it was last applied, and what a scheduled run does about it: put it right, or only tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DriftPolicy
from mikrom_reconcile.core.model.observed import WANTS_VMM
from mikrom_reconcile.core.model.plan import Refusal, VMChange
from mikrom_reconcile.core.planning.context import VERBS, PlanContext, with_kind
from mikrom_reconcile.core.planning.guards import as_recorded
from mikrom_reconcile.core.planning.rules import DiffInput, Verdict, judge

TOLD = "told and not done: drift is reported here"
_OF_FIELDS = frozenset({"drift", "needs-update"})  # the rules that see drift in single fields


def unattended(case: DiffInput, change: VMChange, context: PlanContext) -> VMChange:
    """What a run makes of a change: a scheduled one does all of it, a part, or nothing, as the fleet's policy says."""
    mode = context.overrides.drift_mode
    if mode is None or change.kind not in VERBS:
        return change
    policy = context.fleets[change.fleet].drift if change.fleet in context.fleets else DriftPolicy()
    if "report" in {mode, policy.mode}:
        allowed = _healed(case, policy)
    else:
        allowed = _without_reported(case, policy) if case.desired and case.observed else change
    return allowed if isinstance(allowed, VMChange) and allowed.kind in VERBS else with_kind(change, "blocked", TOLD)


def not_done(changes: Iterable[VMChange]) -> Iterator[Refusal]:
    """A refusal for each change that is only told."""
    remedy = "`mikrom apply` does it; drift: {mode: enforce} lets scheduled runs do it, unless MIKROM_RECONCILE_MODE"
    for change in changes:
        if change.reasons[-1:] == (TOLD,):
            yield Refusal(fleet=change.fleet, vm=change.name, rule="report", message=f"{TOLD}; {remedy} is report")


def back(case: DiffInput, ignoring: tuple[str, ...] = ()) -> Verdict:
    """What brings the VM back to what was last applied, but for drift in the paths that are ignored, if anything."""
    seen, want = case.observed, case.desired
    if seen is None or want is None or seen.phase == "deleting":
        return None
    was = as_recorded(seen, seen.state, seen.policy)
    ignored = {"ignore_changes": want.ignore_changes, "ignore_drift": want.ignore_drift + ignoring}
    return judge(DiffInput(desired=replace(was, **ignored), observed=seen))


def _healed(case: DiffInput, policy: DriftPolicy) -> Verdict:
    """What is done where drift is reported: a part of what brings the VM back, and nothing that the specs want else."""
    seen, want = case.observed, case.desired
    if seen is None or want is None or want.state not in {seen.state, *WANTS_VMM}:  # what is to go down stays down
        return None
    if policy.heal == "all":
        return back(case, policy.paths("report"))
    enforced = policy.paths("enforce")
    verdict = back(case, tuple(item.path for item in seen.drift if item.path not in enforced))
    rules = _OF_FIELDS | ({"down"} if policy.heal == "restarts" else set())
    return verdict if isinstance(verdict, VMChange) and verdict.rule in rules else None


def _without_reported(case: DiffInput, policy: DriftPolicy) -> Verdict:
    """What would be done if the drift did not exist that is only reported."""
    reported = policy.paths("report")
    return judge(replace(case, desired=replace(case.want, ignore_drift=case.want.ignore_drift + reported)))
