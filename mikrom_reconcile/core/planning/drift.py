"""What is otherwise than it was last applied, and what a scheduled run does about it: put it right, or only tell."""

from collections.abc import Container, Iterable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, DriftPolicy
from mikrom_reconcile.core.model.fields import RECORD, counted_drift
from mikrom_reconcile.core.model.observed import WANTS_VMM, Drift, ObservedVM, Phase
from mikrom_reconcile.core.model.plan import Refusal, VMChange
from mikrom_reconcile.core.planning.context import VERBS, PlanContext, with_kind
from mikrom_reconcile.core.planning.guards import as_recorded
from mikrom_reconcile.core.planning.rules import DiffInput, Verdict, judge

TOLD = "told and not done: drift is reported here"
CAUSES: dict[Phase, str] = {
    "crashed": "crash", "oom": "out-of-memory", "killed": "killed", "rebooted": "host-reboot", "exited": "guest-exit",
    "crash_loop": "crash-loop", "failed": "start-failed", "defined": "never-started", "unhealthy": "checks",
    "unresponsive": "no-answer", "socket_lost": "socket-gone", "paused": "api", "running": "api",
}  # fmt: skip
"""What has happened to a VM that is in one of these phases and should not be; others speak for themselves."""

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
        allowed = change
        if case.desired and case.observed and (reported := policy.paths("report")):  # as if that drift did not exist
            ignored = replace(case.desired, ignore_drift=case.desired.ignore_drift + reported)
            allowed = judge(replace(case, desired=ignored))
    return allowed if isinstance(allowed, VMChange) and allowed.kind in VERBS else with_kind(change, "blocked", TOLD)


def unfrozen(case: DiffInput, change: VMChange, context: PlanContext) -> VMChange:
    """What is left of a change while its project is frozen: dead VMs come back as they were, all else waits."""
    if change.kind not in VERBS or not context.freezes or context.overrides.override_freeze:
        return change
    allowed, why = _healed(case, DriftPolicy(heal="restarts")), f"the project is {context.freezes[0]}"
    if isinstance(allowed, VMChange) and allowed.kind in VERBS:
        return allowed
    return with_kind(change, "wait", why, held_by="freeze")


def not_done(changes: Iterable[VMChange]) -> Iterator[Refusal]:
    """A refusal for each change that is only told."""
    remedy = "`mikrom apply` does it; drift: {mode: enforce} lets scheduled runs do it, unless MIKROM_RECONCILE_MODE"
    for change in changes:
        if change.reasons[-1:] == (TOLD,):
            yield Refusal(fleet=change.fleet, vm=change.name, rule="report", message=f"{TOLD}; {remedy} is report")


class DriftedField(msgspec.Struct, frozen=True, kw_only=True):
    """One field that is not as it was left, and why; `phase` is that of the VM."""

    path: str
    before: Any
    after: Any
    cause: str


class DriftedVM(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that is not as it was last applied. `rule_id` is that of the rule that saw it."""

    vm: str
    fleet: str
    host: str
    rule_id: str
    fields: tuple[DriftedField, ...]


def drifted(changes: Iterable[VMChange], remembered: Container[str] = ()) -> Iterator[DriftedVM]:
    """The VMs that are otherwise than last applied, whatever is wanted by now; of missing ones those `remembered`."""
    for change in changes:
        fields: tuple[DriftedField, ...] = ()
        if (seen := change.observed) is None:
            if change.rule == "missing" and change.name in remembered:
                fields = (DriftedField(path=RECORD, before="there", after=None, cause="vm-gone"),)
        elif seen.phase not in {"booting", "deleting"} and isinstance(verdict := _back(seen, change.desired), VMChange):
            fields = tuple(_fields_of(seen, verdict))
            change = replace(change, rule=verdict.rule)  # noqa: PLW2901 - which rule sees it, not what the specs want
        if fields:
            yield DriftedVM(vm=change.name, fleet=change.fleet, host=change.host, rule_id=change.rule, fields=fields)


def is_pending(change: VMChange, drift: Container[str]) -> bool:
    """Whether the specs or the inventory want something else by now; `drift` names the VMs that have drifted."""
    booting = change.observed is not None and change.observed.phase == "booting"
    unread = change.rule in {"unreachable-host", "possible-duplicate"}
    return bool(change.fields) or not (change.name in drift or booting or unread)


def _fields_of(seen: ObservedVM, verdict: VMChange) -> Iterator[DriftedField]:
    if verdict.rule not in _OF_FIELDS:
        yield DriftedField(path="phase", before=seen.state, after=seen.phase, cause=CAUSES.get(seen.phase, seen.phase))
    for item in counted_drift(seen.drift, verdict.desired) if verdict.desired else ():
        yield DriftedField(path=item.path, before=item.recorded, after=item.actual, cause=_cause_of(item))


def _cause_of(item: Drift) -> str:
    kind, *name = item.path.split(".")
    if kind == "network_interfaces" and not item.path.endswith(".rate_limiter.bandwidth_mbit"):
        return "tap-gone" if len(name) == 1 else "host-network"
    return "record-edited" if kind == RECORD else "disk-gone" if kind == "drives" and len(name) == 1 else "api"


def _back(seen: ObservedVM, want: DesiredVM | None, ignoring: tuple[str, ...] = ()) -> Verdict:
    """What brings a VM back to what was last applied, but for drift that is ignored, if anything."""
    was = as_recorded(seen, seen.state, seen.policy)
    if want is not None:
        was = replace(was, ignore_changes=want.ignore_changes, ignore_drift=want.ignore_drift + ignoring)
    return judge(DiffInput(desired=was, observed=seen))


def _healed(case: DiffInput, policy: DriftPolicy) -> Verdict:
    """What is done where drift is reported: a part of what brings the VM back, and nothing that the specs want else."""
    seen, want = case.observed, case.desired
    if seen is None or want is None or want.state not in {seen.state, *WANTS_VMM}:  # what is to go down stays down
        return None
    if policy.heal == "all":
        return _back(seen, want, policy.paths("report"))
    enforced = policy.paths("enforce")
    verdict = _back(seen, want, tuple(item.path for item in seen.drift if item.path not in enforced))
    rules = _OF_FIELDS | ({"down"} if policy.heal == "restarts" else set())
    return verdict if isinstance(verdict, VMChange) and verdict.rule in rules else None
