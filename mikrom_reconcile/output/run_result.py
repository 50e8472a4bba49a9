"""What a plan or a run comes to: text, JSON and exit code all say the same."""

from __future__ import annotations

from typing import Literal

import msgspec

from mikrom_reconcile.core.model.plan import Plan, VMChange
from mikrom_reconcile.core.model.run import BEAT, ActionOutcome, Result, RunReport

CHANGES_OR_FAILED = 2
"""`plan --detailed-exitcode`: something to change. A run: some VM is not as specified. All four are bits."""
UNREACHABLE = 4
REFUSED = 8
LATE = 16
USAGE = 64

FAILED: frozenset[Result] = frozenset({"failed_temporary", "failed_permanent"})

VMOnHost = tuple[str, str]
"""VM and host."""

Finding = tuple[Literal["failed", "refused", "waiting"], str]
"""What a VM that is not as specified counts as, and the reason."""


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run left undone: `failed`, `refused` and `waiting` map VMs on hosts to the reason, each VM in one of them.

    `unreachable` maps hosts to the reason, `late` says that the deadline passed first. What waits is no failure: the
    next of the `scheduled` runs goes on with it; to a run that nobody follows, a guard has refused it.
    """

    failed: dict[VMOnHost, str]
    refused: dict[VMOnHost, str]
    waiting: dict[VMOnHost, str]
    scheduled: bool
    unreachable: dict[str, str]
    late: bool

    @property
    def exit_code(self) -> int:
        """0 when everything is as specified and was seen to be, or will be, else the bits of what stood in the way."""
        held = self.refused or (self.waiting and not self.scheduled and not self.late)
        return (
            (CHANGES_OR_FAILED if self.failed else 0)
            | (UNREACHABLE if self.unreachable else 0)
            | (REFUSED if held else 0)
            | (LATE if self.late else 0)
        )

    @property
    def converged(self) -> bool:
        """Whether everything is as specified."""
        return self.exit_code == 0 and not self.waiting


def plan_exit_code(plan: Plan, *, detailed: bool) -> int:
    """0 when everything could be planned; `detailed` adds 2 when there is something that may be changed."""
    pending = any(change.kind != "blocked" for change in plan.changes)
    blocked = any(change.kind == "blocked" and change.host not in plan.unreachable for change in plan.changes)
    return (
        (CHANGES_OR_FAILED if detailed and pending else 0)
        | (UNREACHABLE if plan.unreachable else 0)
        | (REFUSED if blocked or plan.refusals else 0)
    )


def result_of(report: RunReport) -> RunResult:
    """What a run comes to, by what its last observation still found different.

    What failed counts even if the VM is as specified in the end. Without a last observation nothing that was to be
    changed counts as specified.
    """
    last = {(outcome.vm, outcome.host): outcome for outcome in report.outcomes}
    planned = {(change.name, change.host) for change in report.plan.changes}
    final = report.remaining or report.plan
    findings: dict[VMOnHost, Finding] = {}
    for change in final.changes:
        if change.host in final.unreachable:
            continue
        vm = (change.name, change.host)
        if finding := _finding(change, last.get(vm), late=report.late, planned=vm in planned):
            findings[vm] = finding
    for vm, outcome in last.items():
        if outcome.result in FAILED and outcome.host not in final.unreachable:
            findings[vm] = "failed", f"{outcome.verb}: {outcome.error or outcome.result}"
    by_kind = {
        kind: {vm: reason for vm, (found, reason) in findings.items() if found == kind}
        for kind in ("failed", "refused", "waiting")
    }
    return RunResult(**by_kind, scheduled=report.origin == BEAT, unreachable=final.unreachable, late=report.late)


def _finding(change: VMChange, outcome: ActionOutcome | None, *, late: bool, planned: bool) -> Finding | None:
    """Why this VM is not as specified; None when only the deadline is to blame. First match wins."""
    if change.kind == "blocked":
        return "refused", _why(change)
    if outcome is not None and outcome.result == "stale":
        return "refused", outcome.error or "the world has moved since the plan"
    if change.kind == "wait":
        unwell = change.observed is not None and change.observed.phase == "unhealthy"
        return "failed" if unwell else "waiting", _why(change)
    if late:
        return None
    if outcome is not None and outcome.result == "skipped":
        return "failed", f"{outcome.verb} was not begun: {outcome.error or 'skipped'}"
    if outcome is not None:
        return "failed", f"{outcome.verb} was done, and yet it needs {change.kind}: {_why(change)}"
    if planned:
        return "failed", f"{change.wanted or change.kind} was not attempted; run again"
    return "refused", f"needs {change.kind} since after the plan was made ({_why(change)}); run again"


def _why(change: VMChange) -> str:
    return "; ".join(change.reasons)
